# SPDX-License-Identifier: Apache-2.0
"""How fast a revision reaches all hosts: the host program itself, with real aria2, opentracker, mktorrent and nginx.

Hosts are network namespaces with shaped links.

    python -m bench.model_spread                       what results.json keeps, as root: half an hour, and 13 GB of /dev/shm
    python -m bench.model_spread --hosts 8             for one number of hosts, without the slow origin: --overlap is for that
    python -m bench.model_spread --delivered 1,2,4,8   GB/s that one host delivers to another by so many processes, on loopback: no root, no network

F is the revision's size, u the rate of every link, both ways: nothing can bring it to any number of hosts in less than F/u.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from bench.figures import ROOT, BenchError, Figure, keep, table
from bench.network import Host, Network

PACKAGE = ROOT / "plugins/module_utils/_weights"
REPO, REVISION = "bench/model", "b" * 40
MIB = 1024**2
#: The interpreter that the unit takes on a host.
PYTHON = "/usr/bin/python3"
#: The user that the program runs as, on hosts that are namespaces.
NOBODY = "65534"
PORT = 8481
ORIGIN = "origin"
#: Seconds that a measurement may take.
PATIENCE = 540
#: Numbers of hosts that are measured, those of them that results.json keeps, and how many hosts share the slow origin.
COUNTS, KEPT, SHARING = (2, 8, 16, 24), (8, 24), 8
#: How much slower than the site's links the slow origin is; so much less of the revision is got from it, which takes as long as all of it within the site.
SLOWNESS = 4
#: Files that an origin gives at once in any case.
FEW = 4
#: Of the bytes that all receivers get, the part in which a rate is measured: before it programs start, after it the last files are proved.
MIDDLE = (0.1, 0.9)
NGINX = """\
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err; user root; worker_processes 1;
events {{ worker_connections 1024; }}
http {{ log_format bytes $body_bytes_sent; access_log {folder}/nginx.log bytes; sendfile on; server {{ listen 80; root {folder}/files; }} }}
"""


@dataclasses.dataclass(frozen=True)
class Revision:
    """Files of random bytes, so that nothing compresses them, and their manifest."""

    files: int
    size: int

    def part(self, hosts: int) -> Revision:
        """A smaller one, which so many hosts get one after the other in about a quarter of the time that the whole one takes them together."""
        return Revision(max(self.files // 4, 1), max(self.size // 4 // hosts, MIB))

    def write(self, folder: Path) -> dict[str, t.Any]:
        """Write the files below `folder`; the manifest as a dict."""
        entries = []
        for number in range(self.files):
            content = os.urandom(self.size // self.files)
            name = f"model-{number + 1:05d}-of-{self.files:06d}.safetensors"
            (folder / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            entries.append({"path": name, "size": len(content), "algorithm": "sha256", "digest": digest})
        return {"repo": REPO, "revision": REVISION, "files": entries}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Seconds until each host had all of it, and bytes that the origin sent."""

    seconds: dict[str, float]
    origin: int

    @property
    def last(self) -> float:
        return max(self.seconds.values())


class Arrivals:
    """How the bytes of those who receive grow with time."""

    def __init__(self, folder: Path, receivers: t.Collection[str], size: int) -> None:
        self._roots = [folder / name for name in receivers]
        self._had = [0] * len(receivers)
        self._total = len(receivers) * size
        self._points: list[tuple[float, int]] = []

    def look(self, seconds: float) -> None:
        # What is complete has moved, and counts on.
        self._had = [max(had, _blocks(root)) for had, root in zip(self._had, self._roots, strict=True)]
        self._points.append((seconds, sum(self._had)))

    @property
    def begin(self) -> float:
        """When the first byte was there; raises BenchError where it was never seen."""
        for seconds, had in self._points:
            if had:
                return seconds
        raise BenchError(f"{self._total} bytes are there too soon to be measured -> give a larger --size")

    @property
    def rate(self) -> float:
        """Bytes a second that all receive together, in the middle of the transfer."""
        low, high = (part * self._total for part in MIDDLE)
        middle = [point for point in self._points if low <= point[1] <= high]
        if len(middle) < 2 or middle[-1][1] <= middle[0][1]:
            raise BenchError(f"{self._total} bytes are there too soon to be measured -> give a larger --size")
        return (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0])


class Fleet:
    """Hosts that fetch one revision, below a folder in memory."""

    def __init__(
        self, folder: Path, hosts: t.Mapping[str, Host | None], revision: Revision, processes: int = 1
    ) -> None:
        self.folder = folder
        self.hosts = hosts
        self.processes = processes
        self.size = revision.size
        (folder / "lib").mkdir()
        (folder / "lib/weights").symlink_to(PACKAGE)
        self.files = folder / "files" / REPO / REVISION
        self.files.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(revision.write(self.files)), encoding="utf-8")

    def run(
        self,
        distribution: str,
        sources: t.Sequence[str],
        full: t.Collection[str] = (),
        watched: t.Callable[[float], None] = lambda _seconds: None,
    ) -> Outcome:
        """Let all hosts fetch at once; those in `full` have the files already, unproved. `watched` is called with the time, again and again."""
        programs = {}
        log = self.folder / "nginx.log"
        log.write_bytes(b"")
        try:
            for name in self.hosts:
                self._prepare(name, distribution, sources, full=name in full)
            begin = time.monotonic()
            for name in self.hosts:
                programs[name] = self._start(name)
            seconds = self._watch(programs, begin, watched)
            for program in programs.values():
                program.wait(PATIENCE)
        finally:
            for program in programs.values():
                if program.poll() is None:
                    program.terminate()
            for program in programs.values():
                program.wait(PATIENCE)
            for name in self.hosts:
                shutil.rmtree(self.folder / name)
        return Outcome(seconds, sum(map(int, log.read_text(encoding="ascii").split())))

    def rate(
        self, distribution: str, sources: t.Sequence[str], receivers: t.Collection[str], full: t.Collection[str] = ()
    ) -> float:
        """Bytes a second that the receivers get together, from the first byte to the last host: programs that start take as long for any size."""
        arrivals = Arrivals(self.folder, receivers, self.size)
        last = self.run(distribution, sources, full, arrivals.look).last
        return len(receivers) * self.size / (last - arrivals.begin)

    def _prepare(self, name: str, distribution: str, sources: t.Sequence[str], *, full: bool) -> None:
        root = self.folder / name
        (root / "state").mkdir(parents=True)
        destination = root / "models" / REVISION
        destination.mkdir(parents=True)
        if full:
            for file in self.files.iterdir():
                os.link(file, destination / file.name)
        members = {
            other: {"address": host.address if host else f"127.0.0.{number + 2}"}
            for number, (other, host) in enumerate(self.hosts.items())
        }
        job = {
            "manifest": str(self.folder / "manifest.json"),
            "destination": str(destination),
            "stamp": str(destination / ".stamp"),
            "state": str(root / "state"),
            "host": name,
            "distribution": distribution,
            "sources": [{"kind": "http", "url": url} for url in sources],
            "limits": {"give_up": PATIENCE},
            "site": {"hosts": members, "origins": [next(iter(members))], "port": PORT, "processes": self.processes},
        }
        (root / "job.json").write_text(json.dumps(job), encoding="utf-8")

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        root, host = self.folder / name, self.hosts[name]
        program = [PYTHON, "-m", "weights", "fetch", str(root / "job.json")]
        if host:
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(root)], check=True)
            user = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
            program = host.run("setpriv", *user, "--", *program)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder / "lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        with (root / "log").open("wb") as log:
            return subprocess.Popen(program, env=environment, cwd="/", stdout=log, stderr=subprocess.STDOUT)

    def _watch(
        self, programs: t.Mapping[str, subprocess.Popen[bytes]], begin: float, watched: t.Callable[[float], None]
    ) -> dict[str, float]:
        """Seconds until the revision was visible on each host; raises BenchError."""
        seconds: dict[str, float] = {}
        while len(seconds) < len(programs):
            for name, program in programs.items():
                if name not in seconds and (self.folder / name / "models" / REVISION / ".stamp").exists():
                    seconds[name] = time.monotonic() - begin
                elif name not in seconds and program.poll() is not None:
                    raise BenchError(f"{name}: {(self.folder / name / 'log').read_text()[-2000:]}")
            if time.monotonic() - begin > PATIENCE:
                raise BenchError(f"after {PATIENCE} s {', '.join(programs.keys() - seconds.keys())} still wait")
            watched(time.monotonic() - begin)
            time.sleep(0.05)
        return seconds


@contextlib.contextmanager
def fleet(count: int, revision: Revision, rate: int, outside: int, processes: int) -> t.Iterator[tuple[Fleet, str]]:
    """So many hosts whose links have a rate, in a network with a web server that has the revision behind a link of another rate, and its address."""
    names = [f"h{number:02d}" for number in range(1, count + 1)]
    with memory() as folder, Network([*names, ORIGIN]) as hosts:
        for name, host in hosts.items():
            host.shape(outside if name == ORIGIN else rate)
        made = Fleet(folder, {name: hosts[name] for name in names}, revision, processes)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder), encoding="utf-8")
        server = subprocess.Popen(
            hosts[ORIGIN].run("nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.err"))
        )
        try:
            yield made, f"http://{hosts[ORIGIN].address}"
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def memory() -> t.Iterator[Path]:
    """A folder in memory, which others may enter."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="h20-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@dataclasses.dataclass(frozen=True)
class Row:
    """What so many hosts take: times as multiples of F/u, the origin's bytes as a multiple of F."""

    hosts: int
    seconds: float
    spread: float
    origin: float
    each: float
    http: float

    def figures(self) -> list[Figure]:
        """What results.json keeps of it."""
        goal = 1.5 if self.hosts <= 8 else 1.75
        return [
            Figure(f"model.fanout_n{self.hosts}", self.spread, "x F/u", goal),
            Figure(f"model.origin_ratio_n{self.hosts}", self.origin, "x F", 1.0),
            Figure(f"model.http_speedup_n{self.hosts}", self.http / self.spread, "x", 0.5 * self.hosts, at_least=True),
        ]


def row(count: int, revision: Revision, rate: int, processes: int) -> Row:
    """Spread a revision from a host that has it; then a smaller one from an origin by all three ways, for its bytes and for the rates that it comes at."""
    ideal = revision.size / rate
    with fleet(count, revision, rate, rate, processes) as (hosts, _origin):
        seconds = hosts.run("peer", [], full=[next(iter(hosts.hosts))]).last
    print(f"N={count}: F/u {ideal:.0f} s, last host {seconds:.0f} s", flush=True)
    with fleet(count, revision.part(count), rate, rate, processes) as (hosts, origin):
        first, *others = hosts.hosts
        once = hosts.run("peer", [origin]).origin / hosts.size
        each = hosts.rate("source", [origin], list(hosts.hosts))
        http = hosts.rate("http", [], others, full=[first])
    return Row(count, seconds, seconds / ideal, once, count * rate / each, (count - 1) * rate / http)


def overlap(revision: Revision, rate: int, processes: int) -> Figure:
    """Time to the last host from a slow origin over the time that the origin's link alone takes."""
    outside = rate // SLOWNESS
    part = Revision(revision.files, revision.size // SLOWNESS)
    with fleet(SHARING, part, rate, outside, processes) as (hosts, origin):
        together = hosts.run("peer", [origin]).last
    return Figure("model.overlap_ratio", together / (part.size / outside), "x origin", 1.15)


def delivered(processes: int, size: int, receivers: int) -> float:
    """GB/s that all receivers get together from a host with everything, by so many processes of aria2 each; on loopback, as the present user.

    The files are so few that all are on their way at once, and so large that it does not matter when each is let in.
    """
    seed, *others = ["seed", *(f"receiver{number}" for number in range(receivers))]
    with memory() as folder:
        made = Fleet(folder, dict.fromkeys([seed, *others]), Revision(max(processes, FEW), size), processes)
        arrivals = Arrivals(folder, others, size)
        made.run("peer", [], [seed], arrivals.look)
        return arrivals.rate / 1e9


def _blocks(root: Path) -> int:
    """Bytes that the growing files of a host take; none any more when they are complete and have moved."""
    with contextlib.suppress(FileNotFoundError):
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(root / f"models/{REVISION}.partial"))
    return 0


def columns(rows: t.Sequence[Row]) -> str:
    """The table for eyes: times in multiples of F/u."""
    lines = [("N", "LAST HOST", "PEERS", "FROM THE ORIGIN", "EACH FOR ITSELF", "HTTP FROM ONE HOST")]
    lines += [
        (
            str(row.hosts),
            f"{row.seconds:.0f} s",
            f"{row.spread:.2f} F/u",
            f"{row.origin:.3f} F",
            f"{row.each:.1f} F/u",
            f"{row.http:.1f} F/u",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model_spread", description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", help="numbers of hosts, instead of 2,8,16,24 and the slow origin")
    parser.add_argument("--overlap", action="store_true", help="the slow origin, and nothing else")
    parser.add_argument("--size", type=int, help="of the revision, in MiB: 480; with --delivered 2048")
    parser.add_argument("--files", type=int, default=64, help="of the revision")
    parser.add_argument("--rate", type=float, default=2, help="of a link, in MiB/s")
    parser.add_argument("--processes", type=int, default=4, help="of aria2 on each host")
    parser.add_argument(
        "--delivered", default="", help="numbers of processes: measure what they deliver, and nothing else"
    )
    parser.add_argument("--receivers", type=int, default=1, help="hosts that receive, with --delivered")
    parser.add_argument(
        "--tools", type=Path, help="a folder with aria2c, opentracker and mktorrent, where PATH has none"
    )
    options = parser.parse_args()
    if options.tools:
        os.environ["PATH"] = f"{options.tools.resolve()}:{os.environ['PATH']}"
    size = options.size or (2048 if options.delivered else 480)
    revision, rate = Revision(options.files, size * MIB), int(options.rate * MIB)
    counts = [int(count) for count in options.hosts.split(",")] if options.hosts else COUNTS
    try:
        if options.delivered:
            for number in map(int, options.delivered.split(",")):
                print(f"{number:3} processes  {delivered(number, size * MIB, options.receivers):.2f} GB/s", flush=True)
            return 0
        rows = [] if options.overlap else [row(count, revision, rate, options.processes) for count in counts]
        figures = [figure for measured in rows if measured.hosts in KEPT for figure in measured.figures()]
        if options.overlap or not options.hosts:
            figures.append(overlap(revision, rate, options.processes))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    keep(figures)
    print(columns(rows), table(figures), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
