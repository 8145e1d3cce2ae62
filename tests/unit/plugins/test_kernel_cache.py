# SPDX-License-Identifier: Apache-2.0
"""Compiled code on its way from one host to the others: never under another key, never in part, never anywhere but in its folder."""

from __future__ import annotations

import hashlib
import io
import os
import pwd
import shutil
import struct
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _kernel_cache
from unit.plugins.support import run_module

TIME = 1_764_000_000_123_456_789
FACTORS: dict[str, Any] = {
    "gpu": {"product": "NVIDIA H20", "pci_device": "2329"},
    "driver": "580.173.02",
    "release": "2026.11",
    "packages": "ab" * 32,
    "model": {"repo": "deepseek-ai/DeepSeek-V3-0324", "revision": "e9b33add"},
    "arguments": {"tensor-parallel-size": 8, "port": 8000},
    "environment": {"VLLM_USE_DEEP_GEMM": "0", "VLLM_API_KEY": "secret"},
}
FOUND = _kernel_cache.factors(**FACTORS)
KEY = _kernel_cache.key(FOUND)
FILES = {"triton/AB/kernel.cubin": b"cubin", "vllm/torch_compile_cache/graph.so": b"library", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a start has compiled."""
    made = tmp_path / "canary" / KEY
    for name, content in FILES.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o700 if name.endswith(".so") else 0o600)
        os.utime(path, ns=(TIME, TIME))
    (made / _kernel_cache.KEY_FILE).write_text(_kernel_cache.key_file(FOUND))
    return made


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Where another host would have it."""
    (tmp_path / "other").mkdir()
    return tmp_path / "other" / KEY


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != _kernel_cache.KEY_FILE
    }


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": {"product": "NVIDIA H20-3e", "pci_device": "232c"}},
        {"driver": "580.159.04"},
        {"release": "2026.12"},
        {"packages": "cd" * 32},
        {"model": {"repo": "deepseek-ai/DeepSeek-V3-0324", "revision": "other"}},
        {"arguments": {"tensor-parallel-size": 4}},
        {"environment": {"VLLM_USE_DEEP_GEMM": "1"}},
    ],
)
def test_what_changes_code_changes_the_key(change: dict[str, Any]) -> None:
    assert _kernel_cache.key(_kernel_cache.factors(**FACTORS | change)) != KEY


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"port": 8001, "host": "10.0.0.1", "served-model-name": ["b"], "tensor-parallel-size": 8}},
        {"arguments": {"shutdown-timeout": 5, "api-key": "k", "tensor-parallel-size": 8}},
        {"environment": {"VLLM_CACHE_ROOT": "/elsewhere", "CUDA_VISIBLE_DEVICES": "4,5", "VLLM_USE_DEEP_GEMM": 0}},
    ],
)
def test_where_and_by_whom_it_is_reached_does_not(change: dict[str, Any]) -> None:
    assert _kernel_cache.key(_kernel_cache.factors(**FACTORS | change)) == KEY


def test_the_key_names_a_folder_and_holds_no_secret() -> None:
    assert len(KEY) == _kernel_cache.KEY_DIGITS
    assert int(KEY, 16)
    assert "secret" not in _kernel_cache.key_file(FOUND)


def test_another_host_gets_what_was_packed_with_its_times(folder: Path, other: Path, tmp_path: Path) -> None:
    manifest = _kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)
    assert _kernel_cache.unpack(tmp_path / "a.tar.gz", manifest, other, (os.getuid(), os.getgid())) == len(FILES)
    assert contents(other) == FILES
    assert {(other / name).stat().st_mtime_ns for name in FILES} == {TIME}
    assert (other / "vllm/torch_compile_cache/graph.so").stat().st_mode & 0o777 == 0o700
    assert other.stat().st_mode & 0o777 == (other / "vllm/torch_compile_cache").stat().st_mode & 0o777 == 0o700
    assert _kernel_cache.is_there(other)
    assert [path.name for path in other.parent.iterdir()] == [KEY]


def test_the_same_files_are_the_same_archive(folder: Path, other: Path, tmp_path: Path) -> None:
    one = _kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)
    _kernel_cache.unpack(tmp_path / "a.tar.gz", one, other)
    assert _kernel_cache.pack(other, tmp_path / "b.tar.gz", FOUND) == one


def test_secrets_and_links_stay_at_home(folder: Path, tmp_path: Path) -> None:
    (folder / "vllm/cache_key_factors.json").write_text('{"VLLM_API_KEY": "secret"}')
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "elsewhere").symlink_to(folder.parent)
    assert sorted(_kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)["files"]) == sorted(FILES)
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert sorted(tar.getnames()) == sorted(FILES)


def test_a_folder_behind_a_link_stays_at_home_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("private")
    (folder / "triton/outside").symlink_to(tmp_path / "outside")
    assert "triton/outside/file" not in _kernel_cache.plain_files(folder)


def test_a_file_that_goes_away_meanwhile_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernel_cache, "plain_files", lambda _folder: ["empty", "tmp.pid_1"])
    assert list(_kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)["files"]) == ["empty"]


def test_nothing_compiled_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(_kernel_cache.CacheError, match="nothing"):
        _kernel_cache.pack(tmp_path / "none", tmp_path / "a.tar.gz", FOUND)
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


def refused(archive: Path, manifest: Any, other: Path) -> str:
    """Why an archive is not taken; what the host has compiled itself is still there, and nothing else."""
    other.mkdir(exist_ok=True)
    (other / "own").write_bytes(b"own")
    with pytest.raises(_kernel_cache.CacheError) as error:
        _kernel_cache.unpack(archive, manifest, other)
    assert contents(other) == {"own": b"own"}
    assert [path.name for path in other.parent.iterdir()] == [KEY]
    return str(error.value)


def forged(path: Path, *members: tarfile.TarInfo) -> dict[str, Any]:
    """An archive with these members, and a manifest that fits it."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            member.size = 4 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"evil"))
    line = {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"key": KEY, "factors": FOUND, "sha256": digest, "files": {member.name: line for member in members}}


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o600) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("/evil")], "leaves the folder"),
        ([member("../evil")], "leaves the folder"),
        ([member("a/../../evil")], "leaves the folder"),
        ([member("key.json")], "none of a cache"),
        ([member("link", tarfile.SYMTYPE, "/etc"), member("link/evil")], "no plain file"),
        ([member("link", tarfile.SYMTYPE, "inside")], "no plain file"),
        ([member("link", tarfile.LNKTYPE, "../own")], "no plain file"),
        ([member("device", tarfile.CHRTYPE)], "no plain file"),
        ([member("pipe", tarfile.FIFOTYPE)], "no plain file"),
        ([member("root", mode=0o4755)], "no plain file"),
    ],
)
def test_what_is_no_plain_file_of_the_folder_is_refused(
    members: list[tarfile.TarInfo], reason: str, other: Path, tmp_path: Path
) -> None:
    assert reason in refused(tmp_path / "a.tar.gz", forged(tmp_path / "a.tar.gz", *members), other)


def test_a_forged_archive_of_plain_files_alone_is_taken(other: Path, tmp_path: Path) -> None:
    """So that the refusals above are not those of something else."""
    manifest = forged(tmp_path / "a.tar.gz", member("a/plain"))
    assert _kernel_cache.unpack(tmp_path / "a.tar.gz", manifest, other) == 1


def test_an_archive_that_is_not_its_manifests_is_refused(folder: Path, other: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    manifest = _kernel_cache.pack(folder, archive, FOUND)
    files = manifest["files"]
    wrong = files | {"empty": {"sha256": "0" * 64, "size": 0}}
    fewer = {name: line for name, line in files.items() if name != "empty"}
    assert "not as its manifest says" in refused(archive, manifest | {"files": wrong}, other)
    assert "not as its manifest says" in refused(archive, manifest | {"files": fewer}, other)
    assert "3 files" in refused(archive, manifest | {"files": files | {"more": files["empty"]}}, other)
    assert "of the key" in refused(archive, manifest | {"key": "0" * 16}, other)
    assert "of the key" in refused(archive, manifest | {"factors": FOUND | {"driver": "1"}}, other)
    torn: Any
    for torn in ({}, [], {"key": KEY}, manifest | {"files": None}):
        assert "cannot be read" in refused(archive, torn, other)


def test_a_torn_archive_is_refused(folder: Path, other: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    manifest = _kernel_cache.pack(folder, archive, FOUND)
    archive.write_bytes(archive.read_bytes()[:-20])
    assert "SHA256" in refused(archive, manifest, other)
    assert "cannot be read" in refused(
        archive, manifest | {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}, other
    )


def test_a_key_without_anything_compiled_is_an_empty_folder(tmp_path: Path) -> None:
    assert not _kernel_cache.is_there(tmp_path / KEY)
    (tmp_path / _kernel_cache.KEY_FILE).write_text(_kernel_cache.key_file(FOUND))
    assert not _kernel_cache.is_there(tmp_path)
    (tmp_path / "triton").mkdir()
    assert _kernel_cache.is_there(tmp_path)


def run(step: str, folder: Path, **params: Any) -> dict[str, Any]:
    user = pwd.getpwuid(os.getuid()).pw_name
    return run_module("kernel_cache", step=step, root=str(folder.parent), factors=FOUND, owner=user, **params)


def test_the_module_carries_it_once(folder: Path, other: Path, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.gz")
    assert run("describe", folder)["there"] is True
    packed = run("pack", folder, archive=archive)
    assert (packed["changed"], packed["files"]) == (True, len(FILES))
    assert run("describe", other) | {"invocation": 0} == {
        "changed": False,
        "key": KEY,
        "path": str(other),
        "there": False,
        "invocation": 0,
    }
    carry = {"archive": archive, "manifest": packed["manifest"]}
    assert run("unpack", other, check=True, **carry)["changed"] is True
    assert not other.exists()
    assert run("unpack", other, **carry)["files"] == len(FILES)
    assert contents(other) == FILES
    again = run("unpack", other, **carry)
    assert (again["changed"], again["there"]) == (False, True)


def test_the_module_leaves_alone_what_a_host_has_compiled(folder: Path, tmp_path: Path) -> None:
    answer = run("unpack", folder, archive=str(tmp_path / "none.tar.gz"), manifest={})
    assert answer["changed"] is False
    assert contents(folder) == FILES


def test_the_module_refuses_with_a_remedy(folder: Path, other: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    manifest = run("pack", folder, archive=str(archive))["manifest"]
    archive.write_bytes(b"torn")
    answer = run("unpack", other, archive=str(archive), manifest=manifest)
    assert (answer["failed"], answer["changed"]) == (True, False)
    assert "SHA256" in answer["msg"]
    assert " -> " in answer["msg"]
    assert not other.exists()
    assert run("unpack", other, archive=str(tmp_path / "none"), manifest=manifest)["failed"]


def test_there_is_nothing_to_pack_where_nothing_was_compiled(other: Path, tmp_path: Path) -> None:
    assert run("pack", other, archive=str(tmp_path / "a.tar.gz"))["changed"] is False
    assert not (tmp_path / "a.tar.gz").exists()


def test_without_the_user_nothing_is_unpacked(folder: Path, other: Path, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.gz")
    manifest = run("pack", folder, archive=archive)["manifest"]
    params = {"root": str(other.parent), "factors": FOUND, "archive": archive, "manifest": manifest}
    assert "no user nobody-here" in run_module("kernel_cache", step="unpack", owner="nobody-here", **params)["msg"]
    assert not other.exists()


NINJA = shutil.which("ninja")
BUILD = """\
rule cc
  command = cc -MMD -MF $out.d -fPIC -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = cc -shared $in -o $out
build {folder}/a.o: cc {site}/a.c
build {library}: link {folder}/a.o
"""


@pytest.mark.skipif(not NINJA or not shutil.which("cc"), reason="needs ninja and a C compiler")
@pytest.mark.parametrize("library", ["{folder}/a.so", "a.so"], ids=["absolute", "relative"])
def test_ninja_compiles_nothing_anew_where_the_release_is_younger(folder: Path, tmp_path: Path, library: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.h").write_text("#define A 1\n")
    (site / "a.c").write_text('#include "a.h"\nint a(void) { return A; }\n')
    text = BUILD.format(folder=folder, site=site, library=library.format(folder=folder))
    (folder / "build.ninja").write_text(text)

    def ninja(*arguments: str) -> str:
        return subprocess.run(
            [str(NINJA), "-C", str(folder), *arguments], check=True, capture_output=True, text=True
        ).stdout

    ninja()
    manifest = _kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)
    for path in site.iterdir():
        os.utime(path)
    assert "cc -MMD" in ninja("-n", "-v")
    _kernel_cache.unpack(tmp_path / "a.tar.gz", manifest, folder)
    assert "no work to do" in ninja("-n")
    os.utime(site / "a.h", (time.time() + 60,) * 2)
    assert "cc -MMD" in ninja("-n", "-v")


def test_times_of_ninjas_records_alone_are_renewed(folder: Path, other: Path, tmp_path: Path) -> None:
    head = b"# ninjadeps\n" + struct.pack("<I", 4)
    name = struct.pack("<I", 8) + b"a.o\0" + struct.pack("<I", 0xFFFFFFFF)
    (folder / ".ninja_deps").write_bytes(head + name + struct.pack("<IIQI", 0x80000010, 0, TIME, 1) + name)
    (folder / "a.o").write_bytes(b"object")
    log = f"# ninja log v7\n0\t9\t{{0}}\ta.o\tabc\n0\t9\t{TIME}\t/elsewhere/b.o\tdef\ncut off"
    (folder / ".ninja_log").write_text(log.format(TIME))
    manifest = _kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)
    _kernel_cache.unpack(tmp_path / "a.tar.gz", manifest, other)
    now = (other / "a.o").stat().st_mtime_ns
    assert now > TIME
    assert (other / ".ninja_log").read_text() == log.format(now)
    record = struct.pack("<IIQI", 0x80000010, 0, now, 1)
    assert (other / ".ninja_deps").read_bytes() == head + name + record + name


@pytest.mark.parametrize("content", [b"", b"# ninjadeps\n\3\0\0\0", b"# ninjadeps\n\4\0\0\0\1"])
def test_records_of_another_ninja_are_left_alone(folder: Path, other: Path, tmp_path: Path, content: bytes) -> None:
    (folder / ".ninja_deps").write_bytes(content)
    (folder / ".ninja_log").write_text("")
    manifest = _kernel_cache.pack(folder, tmp_path / "a.tar.gz", FOUND)
    _kernel_cache.unpack(tmp_path / "a.tar.gz", manifest, other)
    assert (other / ".ninja_deps").read_bytes() == content
