# SPDX-License-Identifier: Apache-2.0
"""`make bench`: measures on the demo's converged hosts what the project promises, prints a table and writes results.json.

Every figure stands beside its budget and, where there is one, beside a baseline measured in the same run, so that a noisy machine shows in both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

from bench import hashing, release_install
from bench.figures import ROOT, BenchError, Figure, keep, play, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    choices = ["site", "release", "hashing", "units"]
    parser.add_argument("what", nargs="?", default="site", choices=choices, help="release takes half an hour")
    parser.add_argument("--hosts", type=int, default=16, help="for how many hosts a release is installed")
    options = parser.parse_args()
    os.chdir(ROOT)
    measures = {
        "site": site,
        "release": lambda: release_install.measure(options.hosts),
        "hashing": hashing.measure,
        "units": units,
    }
    try:
        figures = measures[options.what]()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    keep(figures)
    print(table(figures))
    return 0


def site() -> list[Figure]:
    """What a converged fleet costs."""
    converged = play("h20.fleet.site")
    reading = play("bench/gpu_info.yml")
    hosts = sorted({host for task in converged.tasks for host in task["hosts"]})
    work, nothing = (reading.seconds(name) for name in ("Read the hardware", "Do nothing"))
    return [
        Figure("site.noop_tasks", max(converged.reaching(host) for host in hosts), "tasks", budget=40),
        Figure(
            "model.noop_tasks", max(converged.reaching(host, "h20.fleet.model") for host in hosts), "tasks", budget=2
        ),
        Figure("site.noop_controller_cpu", converged.cpu / len(hosts), "s/host", budget=3),
        Figure("hardware.gpu_info", work, "s", budget=1, baseline=nothing),
        Figure("acceptance.wall_s_per_host", max(acceptance_seconds(host) for host in hosts), "s", budget=600),
        *units(),
    ]


def units() -> list[Figure]:
    """How much of a host the units of a replica could reach, by systemd's own rating: the higher of the replica's and its watchdog's."""
    rated = play("bench/unit_exposure.yml").results("Rate the units")
    found = [
        re.search(r"exposure level for \S+: ([0-9.]+)", item["stdout"])
        for result in rated
        for item in result["results"]
    ]
    if not found or None in found:
        raise BenchError("systemd-analyze security has rated no unit")
    return [Figure("serving.unit_exposure", max(float(match[1]) for match in found if match), "of 10", budget=2.5)]


def acceptance_seconds(host: str) -> float:
    """How long the measurement took that the host is accepted by, as the run just made has written it down."""
    report = json.loads((ROOT / f"reports/acceptance/{host}.json").read_text(encoding="utf-8"))
    return float(report["measurement"]["wall_s"])


if __name__ == "__main__":
    sys.exit(main())
