# SPDX-License-Identifier: Apache-2.0
"""A release's packages for N hosts: a plain `pip install` from the index on each, against one fetch to a mirror that all install from.

Two containers of the demo on one machine: one is the mirror, the other plays all hosts, one after the other, each with nothing in its cache. The walls
are therefore sums, and both ways alternate, so that a slow hour of the network meets both. Bytes are what the containers' interfaces have received; wheels
that the machine's own pip settings find in local folders cost none, in neither way. Both install one lock, with byte code; pip is spared the resolving
(--no-deps), and neither way counts the installation of its tool.
"""

from __future__ import annotations

import itertools
import sys
import typing as t

from bench.figures import BenchError, Figure, Play, play

PLAYBOOK = "bench/release_install.yml"
#: Numbers of hosts that have a figure.
COUNTS = (1, 4, 16)


class Way(t.NamedTuple):
    """One host's installation: wall time in s and bytes received."""

    seconds: float
    bytes: int


def measure(hosts: int) -> list[Figure]:
    """Install for so many hosts in both ways; the figures of those COUNTS that were reached. Raises BenchError."""
    try:
        filled = play(PLAYBOOK, bench_part="fill")
        fill = Way(filled.seconds("Fill the mirror"), _received(filled, "the fill"))
        say(f"fill: {fill.seconds:.1f} s, {fill.bytes / 1e6:.1f} MB from the index")
        plain: list[Way] = []
        ours: list[Way] = []
        strays = 0
        for number in range(1, hosts + 1):
            installed = play(PLAYBOOK, bench_part="install")
            plain.append(Way(_seconds(installed, "pip"), _received(installed, "pip")))
            ours.append(Way(_seconds(installed, "the mirror"), _received(installed, "the mirror")))
            # What the host has received and the mirror has not sent came from elsewhere. Frames of the acknowledgements make it a little less than nothing.
            strays += max(0, ours[-1].bytes - _sent(installed))
            say(
                f"host {number}: pip {plain[-1].seconds:.1f} s, {plain[-1].bytes / 1e6:.1f} MB;"
                f" mirror {ours[-1].seconds:.1f} s, {ours[-1].bytes / 1e6:.1f} MB, {strays / 1e6:.3f} MB so far not from it"
            )
    finally:
        play(PLAYBOOK, bench_part="clean")
    return figures(fill, plain, ours, strays)


def figures(fill: Way, plain: t.Sequence[Way], ours: t.Sequence[Way], strays: int) -> list[Figure]:
    """The speedup for each of COUNTS that was reached, and for the largest the bytes from the index over those of one plain installation."""
    one = sum(way.bytes for way in plain) / len(plain)
    if not one:
        raise BenchError("pip has fetched nothing: all wheels are in local folders, so there is nothing to compare")
    spent = list(itertools.accumulate(way.seconds for way in plain))
    saved = list(itertools.accumulate((way.seconds for way in ours), initial=fill.seconds))[1:]
    found = [
        Figure(f"release.install_speedup_n{count}", spent[count - 1] / saved[count - 1], "x", budget=1, at_least=True)
        for count in COUNTS
        if count <= len(plain)
    ]
    if len(plain) == COUNTS[-1]:
        ratio = (fill.bytes + strays) / one
        found.append(Figure(f"release.index_bytes_ratio_n{len(plain)}", ratio, "x", budget=1.05, baseline=len(plain)))
    return found


def _seconds(done: Play, way: str) -> float:
    return done.seconds(f"Make an environment for {way}") + done.seconds(f"Install by {way}")


def _received(done: Play, what: str) -> int:
    return _counter(done, f"Count what came with {what}") - _counter(done, f"Count what came before {what}")


def _sent(done: Play) -> int:
    return _counter(done, "Count what the mirror sent with all") - _counter(done, "Count what the mirror sent before")


def _counter(done: Play, name: str) -> int:
    return int(done.result(name)["stdout"])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
