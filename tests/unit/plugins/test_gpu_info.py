# SPDX-License-Identifier: Apache-2.0
"""gpu_info: a live host through its programs, a captured one without any, and programs that fail or hang."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.module_utils import _programs
from ansible_collections.h20.fleet.plugins.module_utils._profiles import PROFILES
from ansible_collections.h20.fleet.plugins.modules import gpu_info
from testbed import hardware
from unit.plugins.support import DRIVER, load_driver, run_module, write_program, write_sysfs

CAPTURE = Path(__file__).parent / "captures/nvidia-smi-h200.xml"
DEFAULTS: dict[str, Any] = {"capture": None, "kernel_log": None, "profiles": {}, "topology": False, "timeout": 60}
XID = "1763916788.1 h20-07 kernel: NVRM: Xid (PCI:0000:5d:00): 79, GPU has fallen off the bus.\n"
PACKAGES = {
    "nvidia-open": ("NVIDIA <cudatools@nvidia.com>", "hold"),
    "nvidia-fabricmanager": ("NVIDIA <cudatools@nvidia.com>", "hold"),
    "linux-image-generic": ("Ubuntu <kernel-team@lists.ubuntu.com>", "install"),
    "coreutils": ("Ubuntu <ubuntu-devel-discuss@lists.ubuntu.com>", "install"),
}


class Host:
    """A host below a root whose programs answer from a table; nvidia-smi is run for real where there is one. Notes what was run."""

    def __init__(self, root: Path, **answers: _programs.Answer) -> None:
        self.root = root
        self.nvidia_smi = str(root / "usr/bin/nvidia-smi")
        self.ran: list[str] = []
        self.answers = {"dpkg-query": said(dpkg(PACKAGES))} | {
            name.replace("_", "-"): answer for name, answer in answers.items()
        }

    def run(self, command: Sequence[str], timeout: int) -> _programs.Answer:
        self.ran.append(" ".join([Path(command[0]).name, *command[1:]]))
        if command[0] == self.nvidia_smi:
            return _programs.run(command, timeout)
        return self.answers.get(Path(command[0]).name, _programs.Answer(command[0], 127, "", "not installed"))

    def describe(self, **params: Any) -> dict[str, Any]:
        return gpu_info.describe(DEFAULTS | {"root": str(self.root), "nvidia_smi": self.nvidia_smi} | params, self.run)


def said(out: str, status: int = 0, err: str = "") -> _programs.Answer:
    return _programs.Answer("program", status, out, err)


def dpkg(packages: dict[str, tuple[str, str]]) -> str:
    rows = [
        [name, f"{DRIVER}-1", DRIVER, maintainer, want, "installed", "ok"]
        for name, (maintainer, want) in packages.items()
    ]
    return "".join("\t".join(row) + "\n" for row in rows)


def with_program(root: Path, *names: str) -> None:
    for name in names:
        (root / "usr/bin").mkdir(parents=True, exist_ok=True)
        (root / "usr/bin" / name).touch()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Eight H20-3e with a driver, its fabric manager running."""
    write_sysfs(hardware.load("h20_141g"), tmp_path)
    load_driver(tmp_path)
    with_program(tmp_path, "nv-fabricmanager")
    return Host(tmp_path, modinfo=said(f"{DRIVER}\n"), systemctl=said("active\n"), journalctl=said(XID))


def documented() -> dict[str, Any]:
    entries: dict[str, Any] = yaml.safe_load(gpu_info.RETURN)
    return entries


def check_documented(value: Any, entry: dict[str, Any], path: str) -> None:
    """The value is of the type that RETURN says, and has exactly the keys that it lists."""
    types = {"str": str, "int": int, "bool": bool, "float": float, "list": list, "dict": dict}
    assert value is None or isinstance(value, types[entry["type"]]), path
    for element in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
        if "elements" in entry:
            assert isinstance(element, types[entry["elements"]]), path
        if "contains" in entry:
            assert element.keys() == entry["contains"].keys(), path
            for key, field in entry["contains"].items():
                check_documented(element[key], field, f"{path}.{key}")


@pytest.mark.parametrize("topology", [False, True])
def test_every_key_is_as_it_is_documented(host: Host, *, topology: bool) -> None:
    result = host.describe(topology=topology)
    assert result.keys() == documented().keys()
    for key, entry in documented().items():
        check_documented(result[key], entry, key)
        assert entry["returned"] == "always"


def test_a_live_host_is_described_in_one_go(host: Host) -> None:
    result = host.describe()
    assert (result["profile"], len(result["pci_gpus"]), len(result["pci_nvswitches"])) == ("h20_141g", 8, 4)
    assert result["module"] == {"loaded_version": DRIVER, "installed_version": DRIVER, "open": True, "nouveau": False}
    assert result["fabric_manager"] == {"version": DRIVER, "active": True}
    assert {entry["name"]: (entry["archive"], entry["held"]) for entry in result["packages"]} == {
        "nvidia-open": ("nvidia", True),
        "nvidia-fabricmanager": ("nvidia", True),
    }
    assert result["kernel"]["metapackages"] == [{"name": "linux-image-generic", "held": False}]
    assert [entry["code"] for entry in result["xids"]] == [79]
    assert (result["smi"]["driver_version"], result["smi_error"]) == (DRIVER, "")


def test_few_programs_are_run(host: Host) -> None:
    host.describe(topology=True)
    assert [line.split()[0] for line in host.ran] == [
        *["nvidia-smi", "dpkg-query", "modinfo", "systemctl"],
        *["nvidia-smi", "nvidia-smi", "journalctl"],
    ]


def test_links_and_topology_are_told_where_they_are_asked_for(host: Host) -> None:
    result = host.describe(topology=True)
    assert len(result["topology"]) == 8 * 7 // 2
    assert [gpu["nvlinks"] for gpu in result["smi"]["gpus"]] == [{"active": 18, "inactive": []}] * 8
    result = host.describe()
    assert result["topology"] == []
    assert {gpu["nvlinks"] for gpu in result["smi"]["gpus"]} == {None}


def test_a_host_without_any_program_or_file_is_described_all_the_same(tmp_path: Path) -> None:
    host = Host(tmp_path, dpkg_query=_programs.Answer("dpkg-query", 127, "", "not installed"))
    result = host.describe(topology=True)
    assert result["smi_error"] == f"{tmp_path}/usr/bin/nvidia-smi is not installed"
    known = {key: value for key, value in result.items() if key not in {"profiles", "smi_error"}}
    assert known == {
        "profile": None,
        "pci_gpus": [],
        "pci_nvswitches": [],
        "infiniband": [],
        "pcie": {"redirecting": [], "translated": []},
        "kernel": {"release": "", "headers": False, "secure_boot": None, "metapackages": []},
        "module": {"loaded_version": "", "installed_version": "", "open": None, "nouveau": False},
        "userspace_version": "",
        "fabric_manager": {"version": "", "active": False},
        "packages": [],
        "runfile": False,
        "dpkg": {"interrupted": [], "lock_holder": None},
        "smi": None,
        "topology": [],
        "xids": [],
    }


def test_the_bus_and_the_driver_are_told_apart(tmp_path: Path) -> None:
    write_sysfs(hardware.load("h20_141g_7_gpus"), tmp_path)
    load_driver(tmp_path)
    result = Host(tmp_path).describe(topology=True)
    assert (len(result["pci_gpus"]), len(result["smi"]["gpus"]), len(result["topology"])) == (8, 7, 7 * 6 // 2)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('No devices were found'); sys.exit(6)", "No devices were found"),
        ("print('WARNING: no XML today')", "nvidia-smi did not print XML"),
        ("sys.exit(3)", "nvidia-smi ended with status 3"),
    ],
)
def test_it_says_why_nvidia_smi_does_not_answer(body: str, reason: str, tmp_path: Path) -> None:
    write_sysfs(hardware.load("h20_141g"), tmp_path)
    write_program(tmp_path / "usr/bin/nvidia-smi", body)
    result = Host(tmp_path).describe(topology=True)
    assert (result["smi"], result["topology"], result["profile"]) == (None, [], "h20_141g")
    assert result["smi_error"].startswith(reason)


def test_an_nvidia_smi_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    body = """\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    (HERE / "pids").write_text(f"{os.getpid()} {child}")
while True:
    time.sleep(1)"""
    write_program(tmp_path / "usr/bin/nvidia-smi", body)
    start = time.monotonic()
    result = Host(tmp_path).describe(timeout=1)
    assert time.monotonic() - start < 1 + _programs.PATIENCE
    assert (result["smi"], result["smi_error"]) == (None, "nvidia-smi did not answer within 1 s")
    for pid in map(int, (tmp_path / "usr/bin/pids").read_text().split()):
        assert is_gone(pid)


def is_gone(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has asked for its status yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_program_that_cannot_be_killed_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As one that waits in the kernel for a GPU that does not answer: here the signal is lost on its way."""
    program = write_program(tmp_path / "nvidia-smi", "import time; time.sleep(60)")
    lost: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _signal: lost.append(pid))
    monkeypatch.setattr(_programs, "PATIENCE", 0.2)
    start = time.monotonic()
    answer = _programs.run([str(program)], timeout=1)
    assert time.monotonic() - start < 5
    assert answer.error == "nvidia-smi did not answer within 1 s"
    monkeypatch.undo()
    os.killpg(lost[0], signal.SIGKILL)


@pytest.mark.parametrize(
    ("package", "program", "version"),
    [
        ("nvidia-fabricmanager", True, DRIVER),
        ("nvidia-fabricmanager-580", True, DRIVER),
        ("nvidia-fabricmanager-dev-580", True, "580.95.05"),
        (None, True, "580.95.05"),
        ("nvidia-fabricmanager", False, ""),
    ],
    ids=["package", "Ubuntu's package", "headers only", "no package", "no program"],
)
def test_the_program_decides_and_the_package_tells_the_version(
    package: str | None,
    program: bool,
    version: str,
    tmp_path: Path,
) -> None:
    if program:
        with_program(tmp_path, "nv-fabricmanager")
    packages = {package: ("NVIDIA <cudatools@nvidia.com>", "install")} if package else {}
    host = Host(
        tmp_path, dpkg_query=said(dpkg(packages)), nv_fabricmanager=said("Fabric Manager version is : 580.95.05\n")
    )
    assert host.describe()["fabric_manager"] == {"version": version, "active": False}


def test_a_fabric_manager_that_is_stopped_is_not_active(host: Host) -> None:
    host.answers["systemctl"] = said("inactive\n", status=3)
    assert host.describe()["fabric_manager"] == {"version": DRIVER, "active": False}


@pytest.mark.parametrize("name", ["nvidia-uninstall", "nvidia-installer"])
def test_a_runfile_is_known_by_a_program_that_no_package_owns(name: str, tmp_path: Path) -> None:
    with_program(tmp_path, name)
    assert Host(tmp_path).describe()["runfile"] is True
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "some-package.list").write_text(f"/.\n/usr/bin/{name}\n")
    assert Host(tmp_path).describe()["runfile"] is False


@pytest.mark.parametrize(
    ("answer", "runs"),
    [(said(XID), 1), (said("", status=1), 1), (said("", status=1, err="Compiled without pattern matching support"), 2)],
    ids=["found", "nothing found", "no --grep"],
)
def test_a_journalctl_without_grep_is_asked_for_all(answer: _programs.Answer, runs: int, tmp_path: Path) -> None:
    host = Host(tmp_path, journalctl=answer)
    result = host.describe()
    assert len([line for line in host.ran if line.startswith("journalctl")]) == runs
    assert len(result["xids"]) == len(answer.out.splitlines())


def test_a_capture_is_judged_without_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_programs, "run", refuse_to_run)
    result = run_module("gpu_info", capture=str(CAPTURE), topology=True)
    [gpu] = result["pci_gpus"]
    assert gpu == {
        "address": "0000:00:06.0",
        "device": "2335",
        "numa_node": None,
        "link_width": 16,
        "link_width_max": 16,
        "driver": "nvidia",
    }
    assert (result["profile"], result["smi"]["driver_version"], result["kernel"]["release"]) == (
        "h200",
        "580.159.04",
        "",
    )
    assert (result["packages"], result["xids"], result["smi_error"], result["changed"]) == ([], [], "", False)


def refuse_to_run(command: Sequence[str], timeout: int) -> _programs.Answer:
    raise AssertionError(f"{command} was run for {timeout} s")


def test_a_captured_root_is_read_without_running_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_programs, "run", refuse_to_run)
    write_sysfs(replace(hardware.load("h20_141g"), nouveau_loaded=True), tmp_path)
    (tmp_path / "log").write_text(XID)
    result = run_module("gpu_info", root=str(tmp_path), kernel_log=str(tmp_path / "log"))
    assert (result["profile"], result["module"]["nouveau"], len(result["xids"])) == ("h20_141g", True, 1)
    assert (result["smi"], result["smi_error"], result["packages"]) == (None, "", [])


def test_the_bus_of_a_captured_root_goes_before_the_capture(tmp_path: Path) -> None:
    write_sysfs(hardware.load("h20_141g"), tmp_path)
    result = run_module("gpu_info", root=str(tmp_path), capture=str(CAPTURE))
    assert (len(result["pci_gpus"]), len(result["smi"]["gpus"]), result["profile"]) == (8, 1, "h20_141g")


def test_a_capture_that_is_no_xml_says_so(tmp_path: Path) -> None:
    (tmp_path / "smi.xml").write_text("NVIDIA-SMI has failed\n")
    result = run_module("gpu_info", capture=str(tmp_path / "smi.xml"))
    assert (result["smi"], result["pci_gpus"]) == (None, [])
    assert result["smi_error"].startswith("nvidia-smi did not print XML")


@pytest.mark.parametrize("option", ["capture", "kernel_log"])
def test_a_file_that_is_not_there_is_an_error(option: str, tmp_path: Path) -> None:
    params: dict[str, Any] = {"root": str(tmp_path), option: str(tmp_path / "absent")}
    result = run_module("gpu_info", **params)
    assert result["failed"]
    assert f"{tmp_path}/absent" in result["msg"]


def test_a_sites_own_profile_is_added_or_refused(tmp_path: Path) -> None:
    write_sysfs(hardware.load("unknown_gpu"), tmp_path)
    [device] = {gpu.pci_id or hardware.load("unknown_gpu").gpu.pci_id for gpu in hardware.load("unknown_gpu").gpus}
    profile = PROFILES["h200"] | {"pci_device": device.removeprefix("10de:")}
    assert run_module("gpu_info", root=str(tmp_path))["profile"] is None
    assert run_module("gpu_info", root=str(tmp_path), profiles={"own": profile})["profile"] == "own"
    refused = run_module("gpu_info", root=str(tmp_path), profiles={"own": {"gpus": 8}})
    assert refused["failed"]
    assert refused["msg"].startswith("profile own: ")


@pytest.mark.parametrize("check", [False, True])
def test_a_machine_without_gpus_is_described_live(*, check: bool, tmp_path: Path) -> None:
    result = run_module("gpu_info", check=check, nvidia_smi=str(tmp_path / "nvidia-smi"))
    assert (result["changed"], result["smi"]) == (False, None)
    assert result["smi_error"] == f"{tmp_path}/nvidia-smi is not installed"
    assert result["kernel"]["release"] == os.uname().release
    assert json.loads(json.dumps(result)) == result


def test_eight_gpus_are_described_within_a_second(host: Host) -> None:
    """Of computing, nvidia-smi included: what other work on this machine takes does not count."""
    before = os.times()
    host.describe(topology=True)
    after = os.times()
    assert sum(after[:4]) - sum(before[:4]) < 1
