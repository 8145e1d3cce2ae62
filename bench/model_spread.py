# SPDX-License-Identifier: Apache-2.0
"""How fast a revision reaches all hosts: the host program itself, with real aria2, opentracker, mktorrent and nginx.

Hosts are network namespaces with shaped links.

    python -m bench.model_spread [--hosts 8,24]        what results.json keeps, as root
    python -m bench.model_spread --processes 1,2,4,8   GB/s that one host delivers to another by so many processes, on loopback: no root, no network

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


class Fleet:
    """Hosts that fetch one revision, below a folder in memory."""

    def __init__(
        self, folder: Path, hosts: t.Mapping[str, Host | None], revision: Revision, processes: int = 1
    ) -> None:
        self.folder = folder
        self.hosts = hosts
        self.processes = processes
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
def fleet(count: int, revision: Revision, rate: int, outside: int) -> t.Iterator[tuple[Fleet, str]]:
    """So many hosts whose links have a rate, in a network with a web server that has the revision behind a link of another rate, and its address."""
    names = [f"h{number:02d}" for number in range(1, count + 1)]
    with memory() as folder, Network([*names, ORIGIN]) as hosts:
        for name, host in hosts.items():
            host.shape(outside if name == ORIGIN else rate)
        made = Fleet(folder, {name: hosts[name] for name in names}, revision)
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


def shaped(counts: t.Sequence[int], revision: Revision, rate: int) -> list[Figure]:
    """What spreading costs by the number of hosts, and with an origin that is slower than the site."""
    figures, ideal = [], revision.size / rate
    for count in counts:
        with fleet(count, revision, rate, rate) as (hosts, origin):
            seed = next(iter(hosts.hosts))
            peers = hosts.run("peer", [], full=[seed]).last
            once = hosts.run("peer", [origin])
        goal = 1.5 if count <= 8 else 1.75
        figures += [
            Figure(f"model.fanout_n{count}", peers / ideal, "x F/u", goal),
            Figure(f"model.origin_ratio_n{count}", once.origin / revision.size, "x F", 1.0),
        ]
        print(f"N={count}: F/u {ideal:.0f} s, last host {peers:.0f} s", flush=True)
    return figures


def speedup(count: int, revision: Revision, rate: int, fanout: float) -> Figure:
    """By how much peers are faster than HTTP from one host, whose time is N times F/u: so a small revision is enough to measure it."""
    with fleet(count, revision, rate, rate) as (hosts, _origin):
        served = hosts.run("http", [], full=[next(iter(hosts.hosts))]).last
    return Figure(f"model.http_speedup_n{count}", served / (revision.size / rate) / fanout, "x", 5, at_least=True)


def overlap(count: int, revision: Revision, rate: int, outside: int) -> Figure:
    """Time to the last host over that of one host alone, from an origin that is slow."""
    with fleet(1, revision, rate, outside) as (hosts, origin):
        alone = hosts.run("source", [origin]).last
    with fleet(count, revision, rate, outside) as (hosts, origin):
        together = hosts.run("peer", [origin]).last
    return Figure("model.overlap_ratio", together / alone, "x origin", 1.15)


def delivered(processes: int, revision: Revision, receivers: int) -> float:
    """GB/s that all receivers get together from a host with everything, by so many processes of aria2 each; on loopback, as the present user."""
    names = ["seed", *(f"receiver{number}" for number in range(receivers))]
    points: list[tuple[float, int]] = []
    with memory() as folder:
        made = Fleet(folder, dict.fromkeys(names), revision, processes)

        def watched(seconds: float) -> None:
            points.append((seconds, sum(_blocks(folder / name) for name in names[1:])))

        made.run("peer", [], full=["seed"], watched=watched)
    total = receivers * revision.size
    # Neither the beginning nor the end: programs start, the last files are proved.
    middle = [point for point in points if 0.1 * total <= point[1] <= 0.9 * total]
    if len(middle) < 2:
        raise BenchError(f"{revision.size} bytes are there too soon to be measured -> give a larger --size")
    return (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0]) / 1e9


def _blocks(root: Path) -> int:
    """Bytes that the growing files of a host take; none any more when they are complete and have moved."""
    with contextlib.suppress(FileNotFoundError):
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(root / f"models/{REVISION}.partial"))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model_spread", description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", default="8,24", help="numbers of hosts")
    parser.add_argument("--size", type=int, default=256, help="of the revision, in MiB")
    parser.add_argument("--files", type=int, default=64, help="of the revision")
    parser.add_argument("--rate", type=float, default=4, help="of a link, in MiB/s")
    parser.add_argument(
        "--processes", default="", help="numbers of processes: measure what they deliver, and nothing else"
    )
    parser.add_argument("--receivers", type=int, default=1, help="hosts that receive, with --processes")
    parser.add_argument(
        "--tools", type=Path, help="a folder with aria2c, opentracker and mktorrent, where PATH has none"
    )
    options = parser.parse_args()
    if options.tools:
        os.environ["PATH"] = f"{options.tools.resolve()}:{os.environ['PATH']}"
    revision, rate = Revision(options.files, options.size * MIB), int(options.rate * MIB)
    try:
        if options.processes:
            for number in map(int, options.processes.split(",")):
                print(f"{number:3} processes  {delivered(number, revision, options.receivers):.2f} GB/s", flush=True)
            return 0
        figures = shaped([int(count) for count in options.hosts.split(",")], revision, rate)
        fanout = next((figure.value for figure in figures if figure.name == "model.fanout_n24"), None)
        if fanout:
            figures.append(speedup(24, Revision(8, revision.size // 8), rate, fanout))
        figures.append(overlap(8, revision, rate, rate // 4))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    keep(figures)
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
