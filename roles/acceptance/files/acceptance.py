#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure whether a host may serve: DCGM's diagnosis, copies between host and GPUs, clocks under load, and the read rate of the weights.

    acceptance.py --gpus 8 --model DIR --output FILE [--backend cuda|cpu] [--dcgm-level N] [--load-seconds S] [--user NAME]

Judges nothing: what was seen goes into FILE as one JSON document. A part that fails or hangs is ended, says why under ``error``, and the other parts are
measured all the same. What it is about is told on stderr, a line a part. The GPUs are driven by a child of its own, through the torch of the interpreter that
runs this program and as an account without rights; nvidia-smi is asked beside it. With the backend cpu copies and load stay in the memory of the host.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import ctypes
import itertools
import json
import mmap
import os
import pwd
import re
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

Document = dict[str, t.Any]

GIB, MIB = 1024**3, 1024**2
PR_SET_PDEATHSIG = 1
#: Seconds that torch and CUDA may take to start, and each part beside its own time to end.
STARTUP, SLACK = 240, 60
#: Seconds that a program which is asked to end has for it.
PATIENCE = 10.0
#: Bytes of a copy and the seconds that it is repeated for.
COPY_BYTES = {"cuda": GIB, "cpu": 32 * MIB}
COPY_SECONDS = {"cuda": 1.0, "cpu": 0.2}
#: Rows and columns of the matrices, and how many multiplications are queued at a time.
MATRIX = {"cuda": 8192, "cpu": 256}
QUEUED = 8
#: Of the samples under load this share is left out: clocks rise and GPUs warm up.
WARMUP_SHARE = 0.25
#: What the weights are read in, and by how many threads: more than one disk has queues for.
BLOCK, READERS = 4 * MIB, 16
#: Shorter than this a pass over the files says little, so that small ones are read again.
LEAST_SECONDS = 1.0
#: Bits of clocks_event_reasons.active (nvml.h, nvmlClocksEventReason*).
REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clocks_setting",
}
FIELDS = ("index", "uuid", "clocks.sm", "temperature.gpu", "power.draw", "clocks_event_reasons.active")


class PartError(Exception):
    """Why a part was not measured, worded for the operator."""


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


# Programs and children: each ends with this one, and in time


def identity(user: str) -> Document:
    """Popen's arguments for an account; whoever is not root stays what he is."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def start(command: t.Sequence[str], user: str = "root", **pipes: t.Any) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "TORCH_"))}
    environment |= {"HOME": "/", "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
        **pipes,
        **identity(user),
    )


def end(process: subprocess.Popen[str], gently: bool = False) -> None:
    """End a program with all that it started. One that the kernel does not let go is left behind."""
    for sign in (signal.SIGTERM, signal.SIGKILL) if gently else (signal.SIGKILL,):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            break
    if process.stdout:
        process.stdout.close()


def listen(process: subprocess.Popen[str], until: float) -> t.Iterator[str]:
    """The lines that a child prints; raises PartError where it does not end in time."""
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    while True:
        readable = select.select([descriptor], [], [], max(until - time.monotonic(), 0))[0]
        if not readable:
            raise PartError("it did not end in time and was killed")
        data = os.read(descriptor, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def child(part: str, seconds: float, user: str, heard: t.Callable[[str], None]) -> Document:
    """Run a part in a process of its own; what it prints beside its result goes to ``heard``."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--part={part}"]
    try:
        process = start(command, user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise PartError(f"{sys.executable} cannot be run as {user}: {error.strerror}") from error
    result: Document | None = None
    last = "it said nothing"
    try:
        for line in listen(process, time.monotonic() + seconds):
            if line.startswith("result: "):
                result = json.loads(line.removeprefix("result: "))
            elif line.strip():
                heard(line)
                last = line.removeprefix("error: ")
    finally:
        end(process)
    if result is None:
        raise PartError(f"{last[:500]}")
    return result


# DCGM


def dcgm(arguments: argparse.Namespace) -> Document:
    """What the diagnosis printed and ended with; one that hangs is a finding and no error."""
    command = ["dcgmi", "diag", "-r", str(arguments.dcgm_level), "--json"]
    known: Document = {"level": arguments.dcgm_level, "timeout": arguments.dcgm_timeout, "hung": False}
    begun = time.monotonic()
    try:
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return known | {"status": 127, "output": f"dcgmi cannot be run: {error.strerror}", "seconds": 0.0}
    try:
        output = process.communicate(timeout=arguments.dcgm_timeout)[0]
    except subprocess.TimeoutExpired:
        # Asked to end, dcgmi tells its engine to stop the diagnosis.
        end(process, gently=True)
        output, known["hung"] = "", True
    return known | {"status": process.returncode, "output": output, "seconds": round(time.monotonic() - begun, 1)}


# GPUs


class Lane:
    """One GPU, driven from the CPUs that are next to it: memory is taken where the thread runs that asks for it."""

    def __init__(self, torch: t.Any, backend: str, index: int) -> None:
        self.torch, self.backend, self.gpu = torch, backend, backend == "cuda"
        self.device = torch.device("cuda", index) if self.gpu else torch.device("cpu")
        self.cpus = self._cpus() if self.gpu else set()
        self.host: t.Any = None
        self.board: t.Any = None

    def _cpus(self) -> set[int]:
        """CPUs of the GPU's NUMA node; none where the kernel does not tell."""
        known = self.torch.cuda.get_device_properties(self.device)
        address = f"{known.pci_domain_id:04x}:{known.pci_bus_id:02x}:{known.pci_device_id:02x}.0"
        with contextlib.suppress(OSError):
            text = Path(f"/sys/bus/pci/devices/{address}/local_cpulist").read_text(encoding="ascii")
            return {
                cpu
                for part in re.findall(r"(\d+)(?:-(\d+))?", text)
                for cpu in range(int(part[0]), int(part[1] or part[0]) + 1)
            }
        return set()

    def settle(self) -> None:
        """Bind this thread to the CPUs next to the GPU, as far as it may use them, and the GPU to the thread."""
        if near := self.cpus & os.sched_getaffinity(0):
            os.sched_setaffinity(threading.get_native_id(), near)
        if self.gpu:
            self.torch.cuda.set_device(self.device)
        if self.host is None:
            size = COPY_BYTES[self.backend]
            self.host = self.torch.zeros(size, dtype=self.torch.uint8, pin_memory=self.gpu)
            self.board = self.torch.zeros(size, dtype=self.torch.uint8, device=self.device)

    def wait(self) -> None:
        if self.gpu:
            self.torch.cuda.synchronize(self.device)

    def copy(self, way: str) -> tuple[int, float]:
        """Bytes and seconds of copies that are repeated for a while."""
        source, target = (self.host, self.board) if way == "host_to_gpu" else (self.board, self.host)
        target.copy_(source, non_blocking=True)
        self.wait()
        begun, moved = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < COPY_SECONDS[self.backend] or not moved:
            target.copy_(source, non_blocking=True)
            self.wait()
            moved += COPY_BYTES[self.backend]
        return moved, max(time.perf_counter() - begun, passed)

    def multiply(self, ready: threading.Barrier, seconds: float) -> float:
        """TFLOP/s of matrix multiplications over the seconds."""
        size = MATRIX[self.backend]
        kind = self.torch.bfloat16 if self.gpu else self.torch.float32
        one, other = (self.torch.randn(size, size, device=self.device).to(kind) for _matrix in range(2))
        product = one @ other
        self.wait()
        ready.wait(STARTUP)
        begun, times = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            for _time in range(QUEUED):
                self.torch.matmul(one, other, out=product)
            self.wait()
            times += QUEUED
        return 2 * size**3 * times / (time.perf_counter() - begun) / 1e12


def rates(lanes: list[Lane], way: str) -> Document:
    """GB/s of each GPU alone, and of all of them at once."""

    def one(lane: Lane, ready: threading.Barrier) -> tuple[int, float]:
        lane.settle()
        ready.wait(STARTUP)
        return lane.copy(way)

    def together(some: list[Lane]) -> float:
        ready = threading.Barrier(len(some))
        with concurrent.futures.ThreadPoolExecutor(len(some)) as pool:
            done = list(pool.map(lambda lane: one(lane, ready), some))
        # Copies that end first leave the others more room: all bytes, by the longest.
        return round(sum(moved for moved, _seconds in done) / max(seconds for _moved, seconds in done) / 1e9, 3)

    return {"each": [together([lane]) for lane in lanes], "together": together(lanes)}


def gpu_part(arguments: argparse.Namespace) -> Document:
    """Copies, then load; runs in the child. Lines on stdout tell the parent when the load begins and ends."""
    import torch  # noqa: PLC0415 (seconds that the parent and the tests of the arithmetic need not wait for)

    if arguments.backend == "cuda" and torch.cuda.device_count() < arguments.gpus:
        raise PartError(f"torch {torch.__version__} sees {torch.cuda.device_count()} of {arguments.gpus} GPUs")
    if arguments.backend == "cpu":
        torch.set_num_threads(1)
    lanes = [Lane(torch, arguments.backend, index) for index in range(arguments.gpus)]
    print("copies", flush=True)
    copies = {way: rates(lanes, way) for way in ("host_to_gpu", "gpu_to_host")}
    for lane in lanes:
        lane.host = lane.board = None
    # The last to be ready lets all begin, and tells so.
    ready = threading.Barrier(len(lanes), action=lambda: print("load begins", flush=True))

    def load(lane: Lane) -> float:
        if lane.gpu:
            torch.cuda.set_device(lane.device)
        return lane.multiply(ready, arguments.load_seconds)

    with concurrent.futures.ThreadPoolExecutor(len(lanes)) as pool:
        tflops = [round(rate, 4) for rate in pool.map(load, lanes)]
    print("load ends", flush=True)
    return {"torch": torch.__version__, "copies": copies, "tflops": tflops}


class Sampler(threading.Thread):
    """Asks nvidia-smi once a second until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.samples: list[list[Document]] = []

    def run(self) -> None:
        while not self.over.is_set():
            begun = time.monotonic()
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                self.samples.append(sample())
            self.over.wait(max(1.0 - (time.monotonic() - begun), 0.05))


def sample() -> list[Document]:
    """What nvidia-smi says of each GPU now."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL)
    return [gpu_state(line) for line in done.stdout.splitlines() if line.strip()]


def gpu_state(line: str) -> Document:
    """One line of --query-gpu; what is not told is None."""
    index, uuid, clock, temperature, power, reasons = (part.strip() for part in line.split(","))
    bits = int(reasons, 16) if re.fullmatch("0x[0-9a-fA-F]+", reasons) else 0
    return {
        "index": int(index),
        "uuid": uuid,
        "clock": decimal(clock),
        "temperature": decimal(temperature),
        "power_w": decimal(power),
        "reasons": [name for bit, name in REASONS.items() if bits & bit],
    }


def decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def summarise(samples: list[list[Document]]) -> list[Document]:
    """Each GPU over all samples under load. One that said it was idle throughout had none: it has no clock under load."""
    kept = samples[int(len(samples) * WARMUP_SHARE) :]
    by_gpu: dict[str, list[Document]] = {}
    for state in itertools.chain.from_iterable(kept):
        by_gpu.setdefault(state["uuid"], []).append(state)
    found = []
    for uuid, states in by_gpu.items():
        busy = [state["clock"] for state in states if "gpu_idle" not in state["reasons"] and state["clock"] is not None]
        names = sorted({reason for state in states for reason in state["reasons"]})
        found.append(
            {
                "index": states[0]["index"],
                "uuid": uuid,
                "clock": median([state["clock"] for state in states]),
                "clock_mhz": median(busy),
                "temperature": max(
                    (state["temperature"] for state in states if state["temperature"] is not None), default=None
                ),
                "power_w": max((state["power_w"] for state in states if state["power_w"] is not None), default=None),
                "reasons": {
                    name: round(sum(name in state["reasons"] for state in states) / len(states), 3) for name in names
                },
            }
        )
    return found


def median(values: t.Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def gpus(arguments: argparse.Namespace) -> Document:
    """Copies and load by the child, and what nvidia-smi says while the load is on."""
    sampler = Sampler()

    def heard(line: str) -> None:
        if line == "copies":
            say(f"copies between the host and {arguments.gpus} GPUs")
        elif line == "load begins":
            say(f"load on {arguments.gpus} GPUs for {arguments.load_seconds} s")
            sampler.start()
        elif line == "load ends":
            sampler.over.set()

    try:
        seconds = STARTUP + arguments.load_seconds + SLACK + 8 * arguments.gpus
        done = child("gpu", seconds, arguments.user, heard)
    except PartError as error:
        return {"torch": "", "copies": {"error": str(error)}, "load": {"error": str(error)}}
    finally:
        sampler.over.set()
    sampler.join(30)
    load = {"seconds": arguments.load_seconds, "samples": len(sampler.samples), "tflops": done["tflops"]}
    return {"torch": done["torch"], "copies": done["copies"], "load": load | {"gpus": summarise(sampler.samples)}}


# Disk


def drop(descriptor: int) -> None:
    """Drop what the page cache has of a file."""
    os.fsync(descriptor)  # what is not written yet is not dropped either
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def is_direct(path: Path) -> bool:
    """Whether the file's system reads past the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            os.preadv(descriptor, [buffer], 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


class Reading:
    """Blocks of the files, dealt out to threads until the time is up: past the page cache, or after it was dropped."""

    def __init__(self, files: list[Path], seconds: float) -> None:
        self.direct = is_direct(files[0])
        self.begun = time.monotonic()
        self.until = self.begun + seconds
        self.bytes, self.last, self.error = 0, self.begun, ""
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        self.open = [(os.open(path, flags), path.stat().st_size) for path in files]
        self.lock = threading.Lock()
        self.places = self._places()

    def _places(self) -> t.Iterator[tuple[int, int]]:
        """A descriptor and an offset each, over all files; from the start again where they are few and small."""
        passed = 0
        while not passed or time.monotonic() - self.begun < LEAST_SECONDS:
            passed += 1
            for descriptor, size in self.open:
                if not self.direct:
                    drop(descriptor)
                yield from ((descriptor, offset) for offset in range(0, size, BLOCK))

    def read(self) -> None:
        """What one thread does."""
        with mmap.mmap(-1, BLOCK) as buffer:
            while time.monotonic() < self.until:
                try:
                    with self.lock:
                        descriptor, offset = next(self.places)
                    got = os.preadv(descriptor, [buffer], offset)
                except StopIteration:
                    return
                except OSError as error:
                    self.error = str(error.strerror)
                    return
                with self.lock:
                    self.bytes += got
                    self.last = time.monotonic()


def disk_part(arguments: argparse.Namespace) -> Document:
    """Read the largest files of the model for some seconds; runs in the child, which a disk that hangs does not let go."""
    found = sorted(Path(arguments.model).glob("*.safetensors"), key=lambda path: -path.stat().st_size)
    files = found or [path for path in Path(arguments.model).iterdir() if path.is_file() and path.stat().st_size]
    if not files:
        raise PartError(f"{arguments.model} has no file that could be read")
    reading = Reading(files, arguments.disk_seconds)
    readers = [threading.Thread(target=reading.read, daemon=True) for _reader in range(READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(max(reading.until + 1 - time.monotonic(), 0.01))
    if reading.error:
        raise PartError(f"the weights in {arguments.model} cannot be read: {reading.error}")
    # A block that is under way when the time is up counts for nothing: a disk that stands still has read nothing.
    seconds = (reading.last if reading.bytes else time.monotonic()) - reading.begun
    rate = reading.bytes / max(seconds, 1e-6) / 1e9
    known = {"bytes": reading.bytes, "seconds": round(seconds, 2), "gb_s": float(f"{rate:.4g}")}
    return known | {"direct": reading.direct, "threads": READERS, "files": len(files)}


def disk(arguments: argparse.Namespace) -> Document:
    try:
        return child("disk", arguments.disk_seconds + SLACK, "root", say)
    except PartError as error:
        return {"error": str(error)}


def run_part(arguments: argparse.Namespace) -> int:
    """A child: its part, as one line."""
    # Whatever ends the parent ends it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        result = {"gpu": gpu_part, "disk": disk_part}[arguments.part](arguments)
    except PartError as error:
        print(f"error: {error}", flush=True)
        return 1
    print(f"result: {json.dumps(result)}", flush=True)
    os._exit(0)  # a reader that its disk does not let go would be waited for


def measure(arguments: argparse.Namespace) -> Document:
    """All parts, one after the other: each would disturb the next."""
    begun = time.monotonic()
    say(f"dcgmi diag -r {arguments.dcgm_level}, at most {arguments.dcgm_timeout} s")
    diagnosis = dcgm(arguments)
    driven = gpus(arguments)
    say(f"read rate of {arguments.model} for {arguments.disk_seconds} s")
    read = disk(arguments)
    known = {"schema": 1, "backend": arguments.backend, "dcgm": diagnosis, **driven, "disk": read}
    return known | {"wall_s": round(time.monotonic() - begun, 1)}


def write(path: Path, document: Document) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, required=True, help="GPUs that are driven at once")
    parser.add_argument("--model", required=True, help="folder of the weights whose read rate is measured")
    parser.add_argument("--output", type=Path, required=True, help="file that the document is written to")
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dcgm-level", type=int, default=2, help="level of dcgmi diag, 1 to 4")
    parser.add_argument("--dcgm-timeout", type=int, default=900, help="seconds after which a diagnosis counts as hung")
    parser.add_argument("--load-seconds", type=int, default=30)
    parser.add_argument("--disk-seconds", type=int, default=20)
    parser.add_argument(
        "--user", default="nobody", help="account without rights that drives the GPUs where root runs this"
    )
    parser.add_argument("--part", choices=["gpu", "disk"], help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if min(known.gpus, known.dcgm_level, known.dcgm_timeout, known.load_seconds, known.disk_seconds) < 1:
        parser.error("numbers are at least 1")
    return known


def main(arguments: list[str]) -> int:
    known = parse(arguments)
    if known.part:
        return run_part(known)
    # A plain kill runs no `finally`: turn it into an exception, so that no child is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    write(known.output, measure(known))
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
