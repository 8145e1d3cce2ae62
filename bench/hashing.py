# SPDX-License-Identifier: Apache-2.0
"""How near the proof of the weights comes to what the machine allows: all cores hashing what they have at hand, or all files read, whichever is slower.

All cores together hash less than one times their number, where they share a clock or units; one core's rate is shown beside it. The rates are measured one
after the other, several times, since a machine that others use as well changes from second to second; the figure is that of the median round. The files lie in
the page cache where the memory holds them, else on the disk: each rate meets them there alike.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from bench.figures import ROOT, Figure
from plugins.module_utils._weights import proof
from plugins.module_utils._weights.manifest import File

MIB, GB = 1024**2, 1e9
#: Files of a shard's kind, but smaller; so many for each core, so that none is idle for long at the end.
SIZE, FILES = 256 * MIB, 8
ROUNDS = 5


def measure() -> list[Figure]:
    """The figure of this machine."""
    cores = len(os.sched_getaffinity(0))
    (ROOT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder, proof.processes() as pool:
        files = _write(Path(folder), cores * FILES)
        shares = [_round(Path(folder), files, pool, cores) for _ in range(ROUNDS)]
    return [Figure("model.hash_efficiency", statistics.median(shares), "of the machine", budget=0.8, at_least=True)]


def _write(folder: Path, count: int) -> list[File]:
    content = os.urandom(SIZE)
    digest = hashlib.sha256(content).hexdigest()
    files = [File(f"{number:03}.safetensors", SIZE, "sha256", digest) for number in range(count)]
    for file in files:
        (folder / file.path).write_bytes(content)
    os.sync()
    return files


def _round(folder: Path, files: list[File], pool: Executor, cores: int) -> float:
    """What share of the slower of both bounds the proof reaches."""
    count = sum(file.size for file in files)
    one = SIZE / _seconds(lambda: _hash(SIZE))
    hashing = count / _seconds(lambda: list(pool.map(_hash, [file.size for file in files])))
    reading = count / _seconds(lambda: _read(folder, files, cores))
    proving = count / _seconds(lambda: _prove(folder, files, pool))
    print(
        f"GB/s: one core hashes {one / GB:.2f}, all {cores} hash {hashing / GB:.2f}, files are read at {reading / GB:.2f} and proved at {proving / GB:.2f}",
        flush=True,
    )
    return proving / min(hashing, reading)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _hash(size: int) -> None:
    """What one core does with bytes that it has at hand."""
    state, block = hashlib.sha256(), os.urandom(proof.BLOCK)
    for _ in range(size // len(block)):
        state.update(block)


def _read(folder: Path, files: list[File], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda file: _drain(folder / file.path), files))


def _drain(path: Path) -> None:
    block = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def _prove(folder: Path, files: list[File], pool: Executor) -> None:
    wrong = proof.differences(folder, files, pool)
    assert not wrong, wrong
