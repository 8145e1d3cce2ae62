# SPDX-License-Identifier: Apache-2.0
"""What an instance has compiled, for hosts that would compile the same: its key, and one archive of it that is taken whole or not at all.

<key>/              what a start has compiled; key.json in it tells what the key stands for
<key>.tar.gz        the same on its way to other hosts
<key>.json          its manifest: key, factors, SHA256 of the archive and of each file
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import time
import typing as t
import zlib
from pathlib import Path, PurePosixPath

from ansible_collections.h20.fleet.plugins.module_utils import _bundle

ROOT = "/var/lib/vllm/cache"
#: In the folder itself, for whoever wonders what it is of.
KEY_FILE = "key.json"
#: Left out of archives: vLLM 0.26.0 writes the whole environment of the start there, with the API key.
SECRET_FILES = ("cache_key_factors.json",)
#: Options that say where an instance is reached and how it ends; none of them changes what is compiled.
PLAIN_ARGUMENTS = ("api-key", "host", "port", "served-model-name", "shutdown-timeout")
#: Variables that are secrets, name a place that holds the key itself, or choose among equal GPUs.
PLAIN_VARIABLES = (
    "CUDA_CACHE_PATH",
    "CUDA_VISIBLE_DEVICES",
    "FLASHINFER_WORKSPACE_BASE",
    "HF_TOKEN",
    "HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TVM_FFI_CACHE_DIR",
    "VLLM_API_KEY",
    "VLLM_CACHE_ROOT",
    "VLLM_HOST_IP",
)
KEY_DIGITS = 16
#: What ninja keeps beside build.ninja: five fields a line, of which the third is a time and the fourth the output; and binary records, those of headers marked.
NINJA_LOG, NINJA_DEPS, LOG_FIELDS = ".ninja_log", ".ninja_deps", 5
DEPS_HEAD, DEPS_RECORD = b"# ninjadeps\n" + struct.pack("<I", 4), 0x80000000

Factors = dict[str, t.Any]
Manifest = dict[str, t.Any]


class CacheError(Exception):
    """An archive that is not taken; the text says why."""


def factors(
    *,
    gpu: t.Mapping[str, t.Any],
    driver: str,
    release: str,
    packages: str,
    model: t.Mapping[str, str],
    arguments: t.Mapping[str, t.Any],
    environment: t.Mapping[str, t.Any],
) -> Factors:
    """What the compiled code of an instance depends on.

    ``packages`` is a digest of what the release has installed, ``model`` its repository and revision, or the digest of its config.json.
    """
    return {
        "gpu": dict(gpu),
        "driver": driver,
        "release": {"name": release, "packages": packages},
        "model": dict(model),
        "arguments": {name: value for name, value in arguments.items() if name not in PLAIN_ARGUMENTS},
        # systemd knows texts alone, and a number of the inventory is the same variable as its text
        "environment": {name: str(value) for name, value in environment.items() if name not in PLAIN_VARIABLES},
    }


def key(found: Factors) -> str:
    """The name of what was compiled under these factors, the same wherever and in whatever order they were found."""
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def key_file(found: Factors) -> str:
    """Content of the file that tells what a key stands for."""
    return json.dumps({"key": key(found), "factors": found}, indent=2, sort_keys=True) + "\n"


def is_there(folder: Path) -> bool:
    """Whether the folder holds anything that was compiled."""
    return folder.is_dir() and any(path.name != KEY_FILE for path in folder.iterdir())


def plain_files(folder: Path) -> list[str]:
    """What of the folder goes into an archive. A link may lead anywhere, and none of the compilers is known to make one."""
    found = []
    for above, _folders, names in os.walk(folder):
        paths = (Path(above) / name for name in names if name not in SECRET_FILES)
        found += [path for path in paths if path.is_file() and not path.is_symlink() and path != folder / KEY_FILE]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def pack(folder: Path, archive: Path, found: Factors) -> Manifest:
    """Write the archive of a folder, the same bytes for the same files, and return its manifest.

    The instance runs meanwhile: each file is read once, and one that goes away, as compilers rename theirs, is left out.
    """
    listed: dict[str, dict[str, t.Any]] = {}
    partial = archive.with_name(f".{archive.name}.partial")
    try:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in plain_files(folder):
                with contextlib.suppress(FileNotFoundError):
                    listed[name] = _add(tar, folder / name, name)
        if not listed:
            raise CacheError(f"{folder} holds nothing that was compiled")
        partial.chmod(0o600)  # it is code that other hosts run
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)
    return {"key": key(found), "factors": found, "sha256": _bundle.digest(archive), "files": listed}


def _add(tar: tarfile.TarFile, path: Path, name: str) -> dict[str, t.Any]:
    """Add one file to an archive, without what differs from host to host; returns its line of the manifest."""
    # The folder is the service user's: a file that has become a link since it was listed is not followed.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        status, content = os.fstat(file.fileno()), file.read()
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o700 if status.st_mode & stat.S_IXUSR else 0o600
    # As a text of its own: a float of tarfile's loses the last digits, by which FlashInfer's ninja tells old from new.
    member.pax_headers = {"mtime": f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09}"}
    tar.addfile(member, io.BytesIO(content))
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def unpack(archive: Path, manifest: t.Mapping[str, t.Any], folder: Path, owner: tuple[int, int] | None = None) -> int:
    """Put the files of an archive in place of the folder, which gets ``owner``; returns their number.

    Raises CacheError, and leaves the folder as it is, where anything is not as the manifest says.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        listed = manifest["files"]
        if manifest["key"] != folder.name or key(manifest["factors"]) != folder.name:
            raise CacheError(f"it is of the key {manifest['key']}")
        if _bundle.digest(archive) != manifest["sha256"]:
            raise CacheError("its SHA256 is not that of its manifest")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        with tarfile.open(archive, "r:gz") as tar:
            taken = [_extract(tar, member, listed, partial) for member in tar]
        if sorted(taken) != sorted(listed):
            raise CacheError(f"it has {len(taken)} files, its manifest names {len(listed)}")
        _renew(partial, folder)
        (partial / KEY_FILE).write_text(key_file(manifest["factors"]), encoding="utf-8")
        if owner:
            for path in (
                *partial.rglob("*"),
                partial,
            ):  # last the folder itself, as the user could then exchange what is in it
                os.chown(path, *owner, follow_symlinks=False)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except (
        tarfile.TarError,
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        KeyError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise CacheError(f"it cannot be read ({error or type(error).__name__})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(taken)


def _extract(
    tar: tarfile.TarFile, member: tarfile.TarInfo, listed: t.Mapping[str, t.Mapping[str, t.Any]], folder: Path
) -> str:
    """Write one file below the folder, with its time; returns its name."""
    parts = PurePosixPath(member.name).parts
    if member.name.startswith("/") or ".." in parts or not parts or member.name == KEY_FILE:
        raise CacheError(f"{member.name!r} in it leaves the folder or is none of a cache")
    if not member.isreg() or member.mode & 0o7000:
        raise CacheError(f"{member.name!r} in it is no plain file")
    source = tar.extractfile(member)
    if source is None or member.name not in listed or listed[member.name]["size"] != member.size:
        raise CacheError(f"{member.name!r} in it is not as its manifest says")
    path = folder / member.name
    for above in reversed(path.relative_to(folder).parents[:-1]):
        (folder / above).mkdir(mode=0o700, exist_ok=True)
    state = hashlib.sha256()
    with path.open("xb") as file:  # a name that comes twice is refused
        while block := source.read(_bundle.BLOCK):
            state.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # the rename must not outlive the content
    if state.hexdigest() != listed[member.name]["sha256"]:
        raise CacheError(f"{member.name!r} in it is not as its manifest says")
    path.chmod(0o700 if member.mode & stat.S_IXUSR else 0o600)
    seconds, _separator, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    changed = int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9])
    os.utime(path, ns=(changed, changed))
    return member.name


def _renew(partial: Path, folder: Path) -> None:
    """Tell ninja, by which FlashInfer compiles, that what it has made is newer than the release's files, which were installed later here than there.

    It compares three times with those of the sources: the output's own, that of its record in .ninja_log, and that of its record in .ninja_deps. The first
    alone, or the first two, have it compile anew (seen with ninja 1.13). That the sources are the same is what the key says.
    """
    now = time.time_ns()
    for log in partial.rglob(NINJA_LOG):
        rows = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines(keepends=True)]
        for row in (row for row in rows if len(row) == LOG_FIELDS):
            # Names are absolute, or relative to the folder of the log; what is not below the cache is none of ours.
            path = os.path.relpath(folder / log.parent.relative_to(partial) / row[3], folder)
            if not path.startswith("..") and (partial / path).is_file():
                os.utime(partial / path, ns=(now, now))
                row[2] = str(now)
        log.write_text("".join("\t".join(row) for row in rows), encoding="utf-8")
        deps = log.with_name(NINJA_DEPS)
        if deps.is_file():
            deps.write_bytes(_renewed(deps.read_bytes(), now))


def _renewed(content: bytes, now: int) -> bytes:
    """ninja's records of headers with another time: of version 4, as ninja 1.13 writes it; any other is left as it is."""
    if not content.startswith(DEPS_HEAD):
        return content
    made, at = bytearray(content), len(DEPS_HEAD)
    while at + 4 <= len(made):
        (size,) = struct.unpack_from("<I", made, at)
        if size & DEPS_RECORD:
            struct.pack_into("<Q", made, at + 8, now)  # after the size and the number of the output
        at += 4 + (size & ~DEPS_RECORD)
    return bytes(made)
