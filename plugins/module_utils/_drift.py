# SPDX-License-Identifier: Apache-2.0
"""Compare a host with its release: what was read of it against what the stages would make of it.

Pure functions. Nothing is judged twice: what the modules of the stages said in check mode is put into words here.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils._preflight import REFUSE, Finding, table

Facts = t.Mapping[str, t.Any]
PLAYBOOK = "ansible-playbook h20.fleet.site --tags "


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that is not as the release says: what sort of thing, what was seen, and the stage that mends it ("" where none does)."""

    id: str
    evidence: str
    stage: str
    remedy: str = ""

    @property
    def finding(self) -> Finding:
        """The difference as preflight's table has it."""
        return Finding(self.id, REFUSE, self.evidence, self.remedy or f"--tags {self.stage}")


def differences(wanted: Facts, found: Facts) -> list[Difference]:
    """All differences, in the order of the road.

    ``wanted``: release (name), definition, files (path to stage and sha256, null where there should be none), packages (stage to names), held (names).
    ``found``: what drift_info returned, beside gpu (gpu_info), driver (driver_plan), venv (venv_packages), kernel (kernel_settings), revision
    (model_revision) and instances (vllm_instance), the last four in check mode.
    """
    return [
        *_driver(wanted, found),
        *_kernel(found),
        *_packages(wanted, found),
        *_release(wanted, found),
        *_venv(found["venv"]),
        *_revision(found["revision"]),
        *_files(wanted, found),
        *_settings(found["kernel"]),
        *_services(found),
    ]


def report(hostname: str, release: str, different: t.Sequence[Difference]) -> str:
    """The lines an operator reads of one host."""
    if not different:
        return f"{hostname}  no drift  release {release}"
    return "\n".join([f"{hostname}  DRIFT  release {release}", *table([entry.finding for entry in different])])


def summary(different: t.Sequence[Difference]) -> str:
    """One line with the one command that mends all that stages mend."""
    if not different:
        return "no drift"
    counts = ", ".join(dict.fromkeys(entry.id for entry in different))
    stages = ",".join(dict.fromkeys(entry.stage for entry in different if entry.stage))
    remedy = f"{PLAYBOOK}{stages}" if stages else "see the table"
    return f"drift: {counts} -> {remedy}"


def _driver(wanted: Facts, found: Facts) -> t.Iterator[Difference]:
    plan, gpu = found["driver"], found["gpu"]
    for line in plan["differences"]:
        held = line.endswith((" is not held", " is held"))
        yield Difference("HOLD" if held else "PACKAGE", f"{line} (release {wanted['release']})", "nvidia_driver")
    release = wanted["definition"]["driver"]["version"]
    for line in plan["reboot"]:
        yield Difference("MODULE", line, "nvidia_driver")
    on_disk = gpu["module"]["installed_version"]
    if on_disk not in ("", release):
        yield Difference("MODULE", f"the module that is loaded next is {on_disk}, not {release}", "nvidia_driver")
    if gpu["pci_nvswitches"] and not gpu["fabric_manager"]["active"]:
        yield Difference("SERVICE", "nvidia-fabricmanager.service does not run", "nvidia_driver")


def _kernel(found: Facts) -> t.Iterator[Difference]:
    """A newer kernel that the next boot would bring."""
    running = found["gpu"]["kernel"]["release"]
    newest = next(iter(found["kernels"]), running)
    if newest != running:
        yield Difference(
            "KERNEL",
            f"{running} runs, the next boot brings {newest}",
            "",
            "reboot in a change window and verify, or remove the newer one",
        )


def _packages(wanted: Facts, found: Facts) -> t.Iterator[Difference]:
    for stage, names in wanted["packages"].items():
        for name in names:
            package = found["packages"].get(name)
            if package is None:
                yield Difference("PACKAGE", f"{name} is not installed", stage)
            elif package["status"] != "installed":
                yield Difference("PACKAGE", f"{name} is {package['status']}", stage)
            elif name in wanted["held"] and not package["held"]:
                yield Difference("HOLD", f"{name} is not held", stage)


def _release(wanted: Facts, found: Facts) -> t.Iterator[Difference]:
    name, definition = wanted["release"], wanted["definition"]
    if found["uv"] != definition["uv"]["version"]:
        yield Difference("UV", f"uv is {found['uv'] or 'not there'}, not {definition['uv']['version']}", "python_venv")
    version = definition["python"]["version"]
    if not f"{found['python']}.".startswith(f"{version}."):
        yield Difference(
            "PYTHON", f"the environment's Python is {found['python'] or 'not there'}, not {version}", "python_venv"
        )
    record = found["releases"].get(name)
    if record is None:
        yield Difference("RELEASE", f"{name} is not complete on the host", "python_venv,vllm")
    else:
        for key, was, now in _leaves(record, definition):
            yield Difference("RELEASE", f"{name} was installed with {key} {was}, its definition says {now}", "vllm")
    if found["current"] != name:
        yield Difference("CURRENT", f"current names {found['current'] or 'nothing'}, not {name}", "vllm_service")


def _leaves(record: t.Any, definition: t.Any, key: str = "") -> t.Iterator[tuple[str, t.Any, t.Any]]:
    """What the definition says and the record does not, by dotted keys: (key, recorded, defined)."""
    if isinstance(definition, dict) and isinstance(record, dict):
        for name, value in definition.items():
            yield from _leaves(record.get(name), value, f"{key}.{name}".lstrip("."))
    elif record != definition:
        yield key, record, definition


def _venv(venv: Facts) -> t.Iterator[Difference]:
    """What venv_packages would change, a line a package."""
    diff = venv.get("diff") or {}
    before, after = (diff.get(side, "").splitlines() for side in ("before", "after"))
    has, wants = ({line.split("==")[0]: line for line in side if "==" in line} for side in (before, after))
    for name in sorted({*has, *wants}):
        evidence = f"{has.get(name, f'{name} is missing')}, the lock says {wants.get(name, 'nothing of it')}"
        yield Difference("VENV", evidence, "vllm")
    for line in before:
        if line.startswith("digest "):
            yield Difference("VENV", "files of packages are not those that the release was recorded with", "vllm")
        elif "==" not in line:
            yield Difference("VENV", f"{line} is not what its package brought", "vllm")
    if not venv["packages"]:
        yield Difference("VENV", "there is no lock to compare the environment with", "vllm")


def _revision(revision: Facts) -> t.Iterator[Difference]:
    """What model_revision would fetch or write."""
    for path in revision["altered"]:
        yield Difference("MODEL", f"{path} is not what was proved", "model")
    for path, file in revision["files"].items():
        if file["state"] == "absent":
            yield _absent(path, "model")
        elif file["state"] == "strange":
            yield _strange(path, "model", file["changed"])
        elif file["state"] != "same":
            yield _other(path, "model", file["changed"])


def _files(wanted: Facts, found: Facts) -> t.Iterator[Difference]:
    for path, entry in wanted["files"].items():
        there, stage = found["files"].get(path), entry["stage"]
        if entry.get("error"):
            yield Difference("FILE", f"what {path} should hold cannot be told: {entry['error']}", stage)
        elif there is None and entry["sha256"] is not None:
            yield _absent(path, stage)
        elif there is not None and entry["sha256"] is None:
            yield _strange(path, stage, there["changed"])
        elif there is not None and there["sha256"] != entry["sha256"]:
            yield _other(path, stage, there["changed"])


def _absent(path: str, stage: str) -> Difference:
    return Difference("FILE", f"{path} is not there", stage)


def _strange(path: str, stage: str, changed: str) -> Difference:
    return Difference("FILE", f"{path} should not be there (since {changed})", stage)


def _other(path: str, stage: str, changed: str) -> Difference:
    remedy = f"--tags {stage}, or move the change into the inventory"
    return Difference("FILE", f"{path} is not what the stage writes (changed {changed})", stage, remedy)


def _settings(kernel: Facts) -> t.Iterator[Difference]:
    """What kernel_settings would write."""
    diff = kernel.get("diff") or {}
    pairs = zip(diff.get("before", "").splitlines(), diff.get("after", "").splitlines())  # noqa: B905 (of one length, and Python 3.10 knows strict)
    for before, after in pairs:
        yield Difference("SETTING", f"{before}, wanted {after.rpartition(' = ')[2]}", "host_tuning")


def _services(found: Facts) -> t.Iterator[Difference]:
    """What vllm_instance would do."""
    for instance in found["instances"]:
        unit = instance["unit"]
        if "enable " in (instance.get("diff") or {}).get("after", ""):
            yield Difference("SERVICE", f"{unit} is not enabled", "vllm_service")
        if instance["reason"]:
            evidence = instance["reason"]
            yield Difference("SERVICE", evidence if evidence.startswith(unit) else f"{unit} {evidence}", "vllm_service")
