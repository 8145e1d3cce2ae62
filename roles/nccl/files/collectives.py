#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure what collectives reach between the GPUs of one host or of several, through the torch and the NCCL that vLLM itself uses, and check what they return.

    collectives.py --ranks 8 [--backend nccl|gloo] [--max-bytes N] [--timeout S]
    collectives.py --ranks 8 --nodes 2 --node-rank 0|1 --master ADDRESS:PORT [--interface NAME] [--hca DEVICE:PORT]     on each host at the same time

Starts a process a rank, which runs all_reduce, all_gather_into_tensor and all_to_all_single from small sizes to the largest, and prints one JSON document.
Bandwidths are in GB/s (10^9 bytes) as nccl-tests defines them: bytes are the larger buffer of one rank; algbw is bytes by time, busbw is that times the share
of the bytes that has to cross a link, so that it can be held against the hardware whatever the number of ranks. One rank has nobody to send to, hence no busbw.

Ranks of one host meet through a file and talk over loopback and NVLink or shared memory: no port is open to the network. Ranks of several hosts meet at the
port of the first, which is open for as long as the measurement takes, and talk over the interfaces and adapters that /etc/nccl.conf names, or the arguments;
each host prints what its own ranks saw. More than two hosts do all of it twice, the second time the other way round. A wrong result, a rank that ends and a
rank that hangs end all of them, with 1 and a line on stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

GIB = 1024**3
#: From one size to the next smaller one, and where to end.
STEP = 4
SMALLEST = 128 * 1024
#: Share of the bytes of a collective that crosses a link of each rank, by the number of ranks (nccl-tests, PERFORMANCE.md).
FACTORS: dict[str, t.Callable[[int], float]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: (ranks - 1) / ranks,
    "all_to_all": lambda ranks: (ranks - 1) / ranks,
}
ITEM = 4  # bytes of a float32
WARMUP = 3
#: Timed iterations of a size: as many as fit into the seconds, within these bounds.
ITERATIONS = (3, 20)
SECONDS = 2.0
#: Elements that are filled and compared at a time: what the check takes beside the buffers.
CHUNK = 2**24
#: Whole numbers below it, and their sums over all ranks, are exact in float32.
PERIOD = 1021
PR_SET_PDEATHSIG = 1


class CollectiveError(Exception):
    """Why there is no measurement, worded for the operator."""


def sizes(max_bytes: int, ranks: int, min_bytes: int = SMALLEST) -> list[int]:
    """Bytes of the larger buffer from small to large; each can be dealt out to the ranks in whole elements."""
    unit = ITEM * ranks
    found = [max(max_bytes // unit, 1) * unit]
    while (smaller := found[-1] // STEP // unit * unit) >= max(min_bytes, unit):
        found.append(smaller)
    return found[::-1]


def bandwidths(collective: str, size: int, seconds: float, ranks: int) -> dict[str, float | None]:
    """algbw and busbw in GB/s; busbw is None where nothing crosses a link."""
    algorithm = size / seconds / 1e9
    factor = FACTORS[collective](ranks)
    return {"algbw_gb_s": round(algorithm, 3), "busbw_gb_s": round(algorithm * factor, 3) if factor else None}


def merge(reports: list[dict[str, t.Any]], backend: str, wall_s: float, nodes: int = 1) -> dict[str, t.Any]:
    """The document, from what each rank of this host reports: a collective is as slow as its slowest rank."""
    ranks, results = len(reports) * nodes, []
    for same in zip(*(report["results"] for report in reports), strict=True):
        collective, size = same[0]["collective"], same[0]["bytes"]
        seconds = max(sum(each["seconds"]) / len(each["seconds"]) for each in same)
        # An iteration is over when its last rank is done.
        iterations = [max(each) for each in zip(*(each["seconds"] for each in same), strict=True)]
        result = {"collective": collective, "bytes": size, "seconds": seconds, "iterations": len(iterations)}
        result |= bandwidths(collective, size, seconds, ranks)
        result |= {"seconds_min": min(iterations), "seconds_max": max(iterations)}
        results.append(result)
    named = {key: reports[0][key] for key in ("torch", "nccl", "device")}
    return {"backend": backend, "ranks": ranks, "nodes": nodes, **named, "results": results, "wall_s": round(wall_s, 2)}


class Rank:
    """One rank: its device, its buffers and its place among the others."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch  # noqa: PLC0415 (seconds that the parent and the tests of the arithmetic need not wait for)
        import torch.distributed as dist  # noqa: PLC0415

        self.torch, self.dist, self.arguments = torch, dist, arguments
        self.rank = arguments.node_rank * arguments.ranks + arguments.rank
        self.ranks, self.gpu = arguments.nodes * arguments.ranks, arguments.backend == "nccl"
        if self.gpu and torch.cuda.device_count() < arguments.ranks:
            raise CollectiveError(
                f"torch {torch.__version__} sees {torch.cuda.device_count()} of {arguments.ranks} GPUs"
            )
        self.device = torch.device("cuda", arguments.rank) if self.gpu else torch.device("cpu")
        if self.gpu:
            torch.cuda.set_device(self.device)
        self.store = self._meeting()
        self._join("forth")
        self.pattern = torch.arange(CHUNK, device=self.device).remainder_(PERIOD).to(torch.float32)
        self.max_bytes = self._fitting(arguments.max_bytes)

    def _meeting(self) -> t.Any:
        """Where the ranks find each other."""
        limit = datetime.timedelta(seconds=self.arguments.timeout)
        if self.arguments.nodes == 1:
            return self.dist.FileStore(str(self.arguments.folder / "meeting"), self.ranks)
        print(f"{self.arguments.nodes} hosts meet at {self.arguments.master}", file=sys.stderr, flush=True)
        address, _colon, port = self.arguments.master.rpartition(":")
        return self.dist.TCPStore(address.strip("[]"), int(port), self.ranks, self.rank == 0, limit)

    def _join(self, way: str) -> None:
        self.dist.init_process_group(
            self.arguments.backend,
            store=self.dist.PrefixStore(way, self.store),
            rank=self.rank,
            world_size=self.ranks,
            timeout=datetime.timedelta(seconds=self.arguments.timeout),
            device_id=self.device if self.gpu else None,
        )

    def measure(self) -> dict[str, t.Any]:
        results = self._results()
        if self.arguments.nodes > 2:
            # A ring goes one way round, and a link may be slow in one direction alone.
            self.dist.barrier()
            self.close()
            self.rank = self.ranks - 1 - self.rank
            self._join("back")
            results += self._results()
        nccl = ".".join(map(str, self.torch.cuda.nccl.version())) if self.gpu else ""
        device = self.torch.cuda.get_device_name(self.device) if self.gpu else "cpu"
        return {"torch": self.torch.__version__, "nccl": nccl, "device": device, "results": results}

    def _results(self) -> list[dict[str, t.Any]]:
        """Seconds of each iteration, by collective and size."""
        results = []
        for collective in self.arguments.collective or list(FACTORS):
            for size in sizes(self.max_bytes, self.ranks, self.arguments.min_bytes):
                print(f"{collective} of {size} bytes", file=sys.stderr, flush=True)
                results.append(
                    {"collective": collective, "bytes": size, "seconds": getattr(self, f"_{collective}")(size)}
                )
        return results

    def close(self) -> None:
        self.dist.destroy_process_group()

    def _all_reduce(self, size: int) -> list[float]:
        buffer = self._buffer(size)
        self._fill(buffer, self.rank)
        self.dist.all_reduce(buffer)
        self._check("all_reduce", size, buffer, sum(range(self.ranks)), times=self.ranks)
        # Sums of sums would overflow within a few iterations.
        buffer.zero_()
        return self._time(lambda: self.dist.all_reduce(buffer))

    def _all_gather(self, size: int) -> list[float]:
        mine, gathered = self._buffer(size // self.ranks), self._buffer(size)
        self._fill(mine, self.rank)
        self.dist.all_gather_into_tensor(gathered, mine)
        for rank, part in enumerate(gathered.chunk(self.ranks)):
            self._check("all_gather", size, part, rank)
        return self._time(lambda: self.dist.all_gather_into_tensor(gathered, mine))

    def _all_to_all(self, size: int) -> list[float]:
        sent, received = self._buffer(size), self._buffer(size)
        for rank, part in enumerate(sent.chunk(self.ranks)):
            self._fill(part, self.rank * self.ranks + rank)
        self.dist.all_to_all_single(received, sent)
        for rank, part in enumerate(received.chunk(self.ranks)):
            self._check("all_to_all", size, part, rank * self.ranks + self.rank)
        return self._time(lambda: self.dist.all_to_all_single(received, sent))

    def _fitting(self, wanted: int) -> int:
        """The largest size for which two buffers and the check fit into the memory that every GPU has free."""
        if not self.gpu:
            return wanted
        free = self._agreed(self.torch.cuda.mem_get_info(self.device)[0] / GIB, self.dist.ReduceOp.MIN)
        room = int((free - 1) * 0.9 * GIB / 2)
        if room < SMALLEST:
            raise CollectiveError(f"a GPU has {free:.1f} GiB of memory free; something else uses it")
        return min(wanted, room)

    def _buffer(self, size: int) -> t.Any:
        return self.torch.empty(size // ITEM, dtype=self.torch.float32, device=self.device)

    def _fill(self, buffer: t.Any, offset: int) -> None:
        for part in buffer.split(CHUNK):
            part.copy_(self.pattern[: part.numel()]).add_(offset)

    def _check(self, collective: str, size: int, buffer: t.Any, offset: int, times: int = 1) -> None:
        for part in buffer.split(CHUNK):
            if not self.torch.equal(part, self.pattern[: part.numel()] * times + offset):
                raise CollectiveError(f"{collective} of {size} bytes returned wrong numbers on rank {self.rank}")

    def _agreed(self, value: float, operation: t.Any) -> float:
        """The largest or smallest of what the ranks say."""
        said = self.torch.tensor([value], dtype=self.torch.float32, device=self.device)
        self.dist.all_reduce(said, op=operation)
        return float(said.item())

    def _time(self, run: t.Callable[[], t.Any]) -> list[float]:
        """Seconds of each iteration; all ranks make the same number of them."""
        for _round in range(WARMUP):
            run()
        once = self._agreed(self._seconds(run, 1)[0], self.dist.ReduceOp.MAX)
        fewest, most = ITERATIONS
        return self._seconds(run, max(fewest, min(most, int(SECONDS / max(once, 1e-6)))))

    def _seconds(self, run: t.Callable[[], t.Any], iterations: int) -> list[float]:
        self.dist.barrier()
        if not self.gpu:
            clock = [time.perf_counter()]
            for _iteration in range(iterations):
                run()
                clock.append(time.perf_counter())
            return [end - begin for begin, end in itertools.pairwise(clock)]
        # On a GPU the host only queues the work: events tell when the GPU itself came to each.
        self.torch.cuda.synchronize()
        events = [self.torch.cuda.Event(enable_timing=True) for _boundary in range(iterations + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        self.torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(events)]


def run_rank(arguments: argparse.Namespace) -> int:
    """A child: measure and write what this rank saw beside the others."""
    # Whatever ends the parent ends the ranks.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        rank = Rank(arguments)
        report = rank.measure()
    except CollectiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (arguments.folder / f"report-{arguments.rank}.json").write_text(json.dumps(report), encoding="utf-8")
    rank.close()
    return 0


def run_all(arguments: argparse.Namespace) -> dict[str, t.Any]:
    """The parent: start a process a rank, wait for all, and put together what they saw."""
    begun = time.monotonic()
    environment = os.environ | network(arguments) | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="collectives-") as name:
        folder = Path(name)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(arguments.ranks):
                command = [sys.executable, __file__, *sys.argv[1:], f"--rank={rank}", f"--folder={folder}"]
                with (folder / f"log-{rank}").open("wb") as log:
                    processes.append(
                        subprocess.Popen(
                            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
                        )
                    )
            wait(processes, folder, begun + arguments.timeout)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
        reports = [
            json.loads((folder / f"report-{rank}.json").read_text(encoding="utf-8")) for rank in range(arguments.ranks)
        ]
    return merge(reports, arguments.backend, time.monotonic() - begun, arguments.nodes)


def network(arguments: argparse.Namespace) -> dict[str, str]:
    """What tells the ranks which way to go. What /etc/nccl.conf says else still holds."""
    # Ranks of one host find each other over loopback.
    interface = arguments.interface or ("lo" if arguments.nodes == 1 else "")
    ways = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}
    return ways | ({"NCCL_IB_HCA": f"={arguments.hca}"} if arguments.hca else {})


def wait(processes: list[subprocess.Popen[bytes]], folder: Path, until: float) -> None:
    """Return when all ranks have ended well; raises CollectiveError for the first that did not, and where time is up."""
    while None in (codes := [process.poll() for process in processes]) or any(codes):
        if failed := [rank for rank, code in enumerate(codes) if code]:
            # The others may end for its sake: the one that says why comes first.
            told = min(failed, key=lambda rank: "error: " not in last_words(folder, rank))
            raise CollectiveError(f"rank {told} ended with status {codes[told]}: {last_words(folder, told)}")
        if time.monotonic() > until:
            states = [f"rank {rank}: {last_words(folder, rank)}" for rank, code in enumerate(codes) if code is None]
            raise CollectiveError(f"the collectives did not end in time; {'; '.join(states)}")
        time.sleep(0.05)


def last_words(folder: Path, rank: int) -> str:
    """The line of a rank's log that tells the most: its own error, or else the last one."""
    lines = (folder / f"log-{rank}").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or [line for line in lines if line.strip()] or ["it said nothing"])[-1][:500]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ranks", type=int, required=True, help="processes, each with a GPU of its own where the backend is nccl"
    )
    parser.add_argument("--backend", choices=["nccl", "gloo"], default="nccl")
    parser.add_argument(
        "--max-bytes", type=int, default=8 * GIB, help="largest size; less is taken where a GPU has no room for it"
    )
    parser.add_argument("--min-bytes", type=int, default=SMALLEST, help="smallest size")
    parser.add_argument("--collective", action="append", choices=FACTORS, help="this one alone; may be repeated")
    parser.add_argument("--timeout", type=int, default=600, help="seconds after which everything is ended")
    parser.add_argument("--nodes", type=int, default=1, help="hosts that take part, each with as many ranks")
    parser.add_argument("--node-rank", type=int, default=0, help="which of the hosts this one is, from 0")
    parser.add_argument("--master", default="", help="address and port of the first host, [address]:port for IPv6")
    parser.add_argument("--interface", default="", help="interfaces by exact name, with commas, in place of NCCL's own")
    parser.add_argument("--hca", default="", help="adapters by exact name, with commas, in place of NCCL_IB_HCA")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.ranks < 1 or known.max_bytes < 1 or known.timeout < 1:
        parser.error("ranks, max-bytes and timeout are at least 1")
    if not 0 <= known.node_rank < known.nodes or (known.nodes > 1) != bool(known.master):
        parser.error("several hosts need --nodes, a --node-rank below it, and the --master that they meet at")
    return known


def main(arguments: list[str]) -> int:
    known = parse(arguments)
    if known.rank is not None:
        return run_rank(known)
    # A plain kill runs no `finally`: turn it into an exception, so that no rank and no file is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        print(json.dumps(run_all(known)))
    except CollectiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
