# SPDX-License-Identifier: Apache-2.0
"""Filter of the release: what in it contradicts itself or the files that it names."""

from __future__ import annotations

DOCUMENTATION = r"""
name: release_errors
short_description: Say what in a release contradicts itself
version_added: 1.0.0
description:
  - Judges a release that has its shape already, with the lock files and the manifest that it names, all of them on the controller.
  - Of several locks only the one for the release's Python is read, as no other is installed.
positional: folder, manifests
options:
  _input:
    description: The release, resolved.
    type: dict
    required: true
  folder:
    description: Folder on the controller of the lock files that are named without a path.
    type: str
    required: true
  manifests:
    description: Folder on the controller of the manifests that are named without a path.
    type: str
    required: true
  minimum_driver:
    description: Oldest driver that runs the release's CUDA; empty where its major is not known.
    type: str
    default: ""
  signers:
    description: Who may sign the manifest of the model, as the text of an allowed signers file; empty asks for no signature.
    type: str
    default: ""
  instances:
    description: The replicas of a host, which share it.
    type: list
    elements: dict
    default: []
  recorded:
    description: Whether the release is a host's own record. Its packages are installed then, and no file of the controller is read.
    type: bool
    default: false
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Refuse a release that contradicts itself
  ansible.builtin.assert:
    that: errors | length == 0
    fail_msg: "{{ errors | join('\n') }}"
  vars:
    errors: "{{ release_definition | h20.fleet.release_errors('/site/locks', '/site/manifests', minimum_driver=release_minimum_driver) }}"
"""

RETURN = r"""
_value:
  description: A sentence with its remedy for each contradiction; empty for a sound release.
  type: list
  elements: str
"""

import hashlib
import re
import typing as t
from pathlib import Path

from ansible_collections.h20.fleet.plugins.module_utils import _hub, _locks, _signatures
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import ManifestError

# Requires-Python of vLLM's wheels: from this version on, the oldest Python and the first that is too new.
PYTHONS = (((0, 32), "3.11", "3.15"), ((0, 20), "3.10", "3.15"), ((0,), "3.10", "3.14"))
VERSIONS = ("driver", "cuda", "dcgm", "python", "uv", "vllm")
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def release_errors(
    release: dict[str, t.Any],
    folder: str,
    manifests: str,
    minimum_driver: str = "",
    instances: t.Sequence[dict[str, t.Any]] = (),
    signers: str = "",
    recorded: bool = False,
) -> list[str]:
    """A sentence for each contradiction; see DOCUMENTATION."""
    errors = list(_numbers(release))
    if not errors:
        errors += [*_versions(release, minimum_driver), *_hashes(release), *_source(release["vllm"])]
    if not errors and not recorded:
        errors += [*_lock_file(release, Path(folder)), *_build_lock(release, Path(folder))]
        errors += _manifest(release["model"], Path(manifests), signers)
    return errors + list(_instances(instances))


def _numbers(release: dict[str, t.Any]) -> t.Iterator[str]:
    """Versions that YAML took for numbers: 3.10 is 3.1 then, and everything that compares it goes astray."""
    for part in VERSIONS:
        if not isinstance(release[part]["version"], str):
            yield f"{part}.version {release[part]['version']} is a number, not a version -> write it in quotes"
    for python in release["vllm"]["locks"]:
        if not isinstance(python, str):
            yield f"vllm.locks {python} is a number, not a version of Python -> write it in quotes"


def _versions(release: dict[str, t.Any], minimum_driver: str) -> t.Iterator[str]:
    driver, cuda, python = (release[part]["version"] for part in ("driver", "cuda", "python"))
    vllm, locks = release["vllm"]["version"], release["vllm"]["locks"]
    if not minimum_driver:
        yield f"CUDA {cuda} is of no major that this collection knows a driver for -> name 12.x or 13.x"
    elif _version(driver) < _version(minimum_driver):
        yield f"CUDA {cuda} does not run on driver {driver} -> name a driver from {minimum_driver} on"
    _since, oldest, below = max(entry for entry in PYTHONS if entry[0] <= _version(vllm))
    if not _version(oldest) <= _version(python) < _version(below):
        yield f"vLLM {vllm} does not run on Python {python} -> name one from {oldest} to below {below}"
    if python not in locks:
        yield f"python.version {python} has no lock; vllm.locks has {', '.join(locks) or 'none'} -> add its lock, or name one of these"
    elif not isinstance(locks[python], dict) or {"file", "sha256"} - locks[python].keys():
        yield f"vllm.locks {python} is not whole -> give it file and sha256"
    if release["vllm"]["target_device"] == "empty" and not release["vllm"].get("source"):
        yield "vllm.target_device empty has no wheel anywhere -> add vllm.source, or name cuda or cpu"


def _hashes(release: dict[str, t.Any]) -> t.Iterator[str]:
    vllm = release["vllm"]
    source = vllm.get("source") or {}
    parts = {
        "uv": release["uv"],
        f"vllm.locks {release['python']['version']}": vllm["locks"].get(release["python"]["version"]),
    }
    parts |= {"vllm.source.sdist": source.get("sdist"), "vllm.source.build_lock": source.get("build_lock")}
    parts["model.manifest"] = release["model"].get("manifest")
    for name, part in parts.items():
        if isinstance(part, dict) and "sha256" in part and not re.fullmatch("[0-9a-f]{64}", str(part["sha256"])):
            yield f"{name}: sha256 {part['sha256']} is none -> write the 64 hexadecimal digits that `sha256sum` prints, in quotes"
    revision = release["model"]["revision"]
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        yield f"model.revision {revision} is no full commit -> pin the 40 hexadecimal digits; a branch moves"


def _source(vllm: dict[str, t.Any]) -> t.Iterator[str]:
    source = vllm.get("source")
    if not source:
        return
    given = [kind for kind in ("sdist", "git") if source.get(kind)]
    if len(given) != 1:
        yield f"vllm.source names {' and '.join(given) or 'neither sdist nor git'} -> name one of sdist (requirement, sha256) and git (url, revision)"
    if "git" in given and not re.fullmatch("[0-9a-f]{40}", str(source["git"]["revision"])):
        yield (
            f"vllm.source.git.revision {source['git']['revision']} is no full commit"
            " -> pin the 40 hexadecimal digits; a tag or branch moves"
        )
    requirement = source["sdist"]["requirement"] if "sdist" in given else ""
    pinned = re.search(r"==\s*([^\s;]+)", requirement)
    if pinned and pinned[1] != vllm["version"]:
        yield f"vllm.source.sdist.requirement {requirement} is not vllm.version {vllm['version']} -> name the same in both"


def _lock_file(release: dict[str, t.Any], folder: Path) -> t.Iterator[str]:
    """What is wrong with the lock that would be installed."""
    vllm, python = release["vllm"], release["python"]["version"]
    lock = vllm["locks"][python]
    path = folder / lock["file"]
    if error := _file_error(f"vllm.locks {python}", path, lock["sha256"]):
        yield error
        return
    locked = _locks.pins(path.read_text(encoding="utf-8"))
    pinned = locked.get("vllm", "")
    if not vllm.get("source") and vllm["version"] not in (pinned, pinned.split("+")[0]):
        yield (
            f"vllm.locks {python}: {path.name} pins {f'vllm=={pinned}' if pinned else 'no vllm'}, vllm.version is {vllm['version']}"
            " -> name the lock of that version, or the version of that lock"
        )
    for reason in _locks.unsuitable(locked, vllm["target_device"], release["cuda"]["version"]):
        yield f"vllm.locks {python}: {path.name} {reason}"


def _build_lock(release: dict[str, t.Any], folder: Path) -> t.Iterator[str]:
    lock = (release["vllm"].get("source") or {}).get("build_lock")
    if lock and (error := _file_error("vllm.source.build_lock", folder / lock["file"], lock["sha256"])):
        yield error


def _manifest(model: dict[str, t.Any], folder: Path, signers: str) -> t.Iterator[str]:
    """What is wrong with the manifest that the release brings, or that it brings none though it has to be a signed one."""
    given = model.get("manifest")
    if not given:
        if signers.strip():
            yield (
                "model.manifest is missing, and fleet_model_signers asks for a signed one"
                " -> make, review and sign it (playbook manifest), and paste the lines that it prints"
            )
        return
    path = folder / given["file"]
    if error := _file_error("model.manifest", path, given["sha256"]):
        yield error
        return
    text = path.read_bytes().decode(errors="replace")
    try:
        _hub.parse_manifest(text, model["repo"], model["revision"])
    except ManifestError as error:
        yield f"model.manifest: {path} {error} -> name the manifest of this revision, or make it (playbook manifest)"
    if signers.strip():
        signature = _signatures.read_signature(folder / given["signature"]) if given.get("signature") else ""
        try:
            _signatures.model_signer(str(path), text, signature, signers)
        except _signatures.SignatureError as error:
            yield f"model.manifest: {error}"


def _file_error(name: str, path: Path, sha256: str) -> str:
    """Why the file is not the one that the release names; "" where it is."""
    if not path.is_file():
        known = ", ".join(sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}"))) or "nothing of its kind"
        return f"{name}: {path} is not on the controller; beside it is {known} -> name one of these, or an absolute path of yours"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found == sha256:
        return ""
    return (
        f"{name}: {path} has sha256 {found}, the release names {sha256} -> somebody changed the file: restore it; where the change is meant,"
        " `make lock` in the clone or the new sha256 in your release vouches for it"
    )


def _instances(instances: t.Sequence[dict[str, t.Any]]) -> t.Iterator[str]:
    names, ports = ([instance[key] for instance in instances] for key in ("name", "port"))
    if len(set(names)) < len(names) or len(set(ports)) < len(ports):
        yield "fleet_instances share a name or a port -> give each its own"
    if not all(1024 <= int(port) <= 65535 for port in ports):
        yield "fleet_instances name a port outside 1024 to 65535 -> the service has no privilege to open it"
    if not all(NAME.fullmatch(name) for name in names):
        yield "fleet_instances have a name with other characters than lower case letters, digits and dashes -> rename it"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


class FilterModule:
    """Filters of the release."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"release_errors": release_errors}
