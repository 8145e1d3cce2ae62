# SPDX-License-Identifier: Apache-2.0
"""host_info: the distribution, room on disks, folders, and who holds a port."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.modules import host_info
from unit.plugins.support import run_module

TABLE_HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LISTEN, ESTABLISHED = "0A", "01"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n', ("ubuntu", "24.04")),
        ("ID='debian'\nVERSION_ID='12'\n", ("debian", "12")),
        ('# a comment\n\nID=debian\nHOME_URL="https://example.org/?a=b"\n', ("debian", "")),
        ("", ("", "")),
    ],
)
def test_the_distribution_by_quotes_and_gaps(text: str, expected: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(text)
    assert host_info.os_release(tmp_path / "os-release") == dict(zip(("id", "version_id"), expected, strict=True))


@pytest.mark.parametrize("below", ["", "models", "models/org/name/revision"])
def test_a_path_is_measured_by_the_nearest_folder_that_exists(below: str, tmp_path: Path) -> None:
    measured = host_info.filesystem(tmp_path / below)
    assert measured["parent"] == str(tmp_path)
    assert 0 <= measured["free_bytes"] <= measured["total_bytes"]
    assert measured["total_bytes"] == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert not (tmp_path / "models").exists()


def test_a_folder_counts_the_bytes_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "tree/deep/er").mkdir(parents=True)
    for name, size in (("tree/a", 3), ("tree/deep/b", 5), ("tree/deep/er/c", 0), ("tree/deep/.hidden", 7)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "tree/broken").symlink_to("nowhere")
    assert host_info.tree(tmp_path / "tree") == {"exists": True, "bytes": 15}
    assert host_info.tree(tmp_path / "absent") == {"exists": False, "bytes": 0}
    assert host_info.tree(tmp_path / "tree/a")["exists"] is False


class Proc:
    """A /proc of its own: sockets in net/tcp and net/tcp6, and processes that hold them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "net").mkdir(parents=True)

    def socket(self, inode: int, port: int, state: str = LISTEN, table: str = "tcp") -> None:
        path = self.root / "net" / table
        address = f"{'0' * (8 if table == 'tcp' else 32)}:{port:04X}"
        row = f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
        path.write_text((path.read_text() if path.exists() else TABLE_HEADER) + row)

    def process(self, pid: int, command: str, cgroup: str, *descriptors: str) -> Path:
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True)
        for number, target in enumerate(descriptors):
            (folder / "fd" / str(number)).symlink_to(target)
        (folder / "comm").write_text(f"{command}\n")
        (folder / "cgroup").write_text(f"{cgroup}\n")
        return folder


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


@pytest.mark.parametrize("table", ["tcp", "tcp6"])
@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/nginx.service", "nginx.service"),
        ("0::/system.slice/system-vllm.slice/vllm@deepseek.service/sub", "vllm@deepseek.service"),
        ("12:pids:/system.slice/nginx.service\n0::/system.slice/nginx.service", "nginx.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope", "run-1.scope"),
        ("0::/", ""),
    ],
)
def test_a_listener_is_named_with_its_unit(proc: Proc, table: str, cgroup: str, unit: str) -> None:
    proc.socket(41, 8000, table=table)
    proc.process(812, "nginx", cgroup, "/dev/null", "socket:[41]")
    assert host_info.listeners(proc.root, [8000, 8001]) == {"8000": {"pid": 812, "command": "nginx", "unit": unit}}


def test_only_listening_sockets_of_asked_ports_count(proc: Proc) -> None:
    proc.socket(41, 8000, ESTABLISHED)
    proc.socket(42, 9000)
    proc.process(812, "nginx", "0::/", "socket:[41]", "socket:[42]")
    assert host_info.listeners(proc.root, [8000]) == {}


def test_a_socket_without_a_visible_owner_is_a_listener_all_the_same(proc: Proc) -> None:
    proc.socket(41, 8000)
    (proc.root / "812").mkdir()  # it has ended, or hides what it has open
    proc.process(900, "other", "0::/", "socket:[40]")
    assert host_info.listeners(proc.root, [8000]) == {"8000": {"pid": None, "command": "", "unit": ""}}


def test_a_kernel_without_tables_has_no_listeners(proc: Proc) -> None:
    assert host_info.listeners(proc.root, [8000]) == {}


def test_a_descriptor_that_closes_meanwhile_hides_no_other(proc: Proc) -> None:
    proc.socket(41, 8000)
    folder = proc.process(812, "nginx", "0::/system.slice/nginx.service", "socket:[41]")
    (folder / "fd/1").touch()  # no link to read any more
    assert host_info.listeners(proc.root, [8000])["8000"]["unit"] == "nginx.service"


def test_a_process_that_ends_meanwhile_is_passed_over(proc: Proc) -> None:
    proc.socket(41, 8000)
    folder = proc.process(812, "nginx", "0::/", "socket:[41]")
    (folder / "comm").unlink()
    (folder / "cgroup").unlink()
    assert host_info.listeners(proc.root, [8000]) == {"8000": {"pid": None, "command": "", "unit": ""}}


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_module_finds_the_socket_of_this_process(
    family: socket.AddressFamily, address: str, tmp_path: Path
) -> None:
    try:
        listening = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("this host has no such loopback address")
    with listening, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port, silent = listening.getsockname()[1], bound.getsockname()[1]
        result = run_module(
            "host_info", check=True, ports=[port, silent], trees=[str(tmp_path)], filesystems=[str(tmp_path / "new")]
        )
    own = Path("/proc/self/comm").read_text().strip()
    assert {key: (value["pid"], value["command"]) for key, value in result["ports"].items()} == {
        str(port): (os.getpid(), own)
    }
    assert result["trees"] == {str(tmp_path): {"exists": True, "bytes": 0}}
    assert result["filesystems"][str(tmp_path / "new")]["parent"] == str(tmp_path)
    assert (result["architecture"], result["kernel"], result["changed"]) == (
        platform.machine(),
        platform.release(),
        False,
    )
    assert set(result["os"]) == {"id", "version_id"}
    assert result["memory_bytes"] > 2**20


def test_users_of_devices_are_named_by_pattern(proc: Proc) -> None:
    proc.process(4711, "python3", "0::/user.slice/session-1.scope", "/dev/null", "/dev/nvidia3")
    proc.process(900, "exporter", "0::/system.slice/exporter.service", "/dev/nvidia-caps/nvidia-cap1")
    proc.process(901, "bash", "0::/", "/dev/null", "/var/log/nvidia")
    assert host_info.users(proc.root, ["/dev/nvidia*"]) == [
        {"pid": 900, "command": "exporter", "unit": "exporter.service"},
        {"pid": 4711, "command": "python3", "unit": "session-1.scope"},
    ]
    assert host_info.users(proc.root, []) == []
