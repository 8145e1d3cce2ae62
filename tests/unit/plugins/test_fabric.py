# SPDX-License-Identifier: Apache-2.0
"""The bisection of a fabric: each fault is brought about in a fabric of numbers, and the search has to name it within its rounds."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import pytest

_fabric: Any = importlib.import_module("ansible_collections.h20.fleet.plugins.module_utils._fabric")
GOOD, BAD = 100.0, 20.0
LIMITS = _fabric.Limits(floor=60.0)


class Fabric:
    """Hosts whose groups are as fast as the slowest link of their ring; adapters and pairs can be slow."""

    def __init__(self, count: int, adapters: int = 1) -> None:
        self.hosts = [f"h{number:02}" for number in range(count)]
        self.adapters = {host: [f"mlx5_{number}:1" for number in range(adapters)] for host in self.hosts}
        self.slow_hosts: dict[str, float] = {}
        self.slow_links: dict[frozenset[str], float] = {}
        self.slow_adapters: dict[tuple[str, int], float] = {}
        self.crowded = 0.0
        self.rounds: list[list[Any]] = []

    def measure(self, probe: Any) -> float:
        ring = [*probe.hosts, probe.hosts[0]]
        links = {frozenset(pair) for pair in itertools.pairwise(ring)}
        found = [GOOD, *(self.slow_links.get(link, GOOD) for link in links)]
        found += [self.slow_hosts.get(host, GOOD) for host in probe.hosts]
        places = range(len(self.adapters[ring[0]])) if probe.adapter is None else [probe.adapter]
        found += [self.slow_adapters.get((host, place), GOOD) for host in probe.hosts for place in places]
        if self.crowded and len(probe.hosts) == len(self.hosts):
            found.append(self.crowded)
        return min(found)

    def search(self, limits: Any = LIMITS, *, pairs: bool = False, parallel: bool = True) -> Any:
        measured: dict[Any, float] = {}
        for _round in range(200):
            search = _fabric.Search(self.hosts, measured, limits, self.adapters, pairs=pairs)
            probes = search.round(parallel=parallel)
            if not probes:
                return search
            taken = [host for probe in probes for host in probe.hosts]
            assert len(taken) == len(set(taken)), "a host cannot take part in two groups at once"
            assert not set(probes) & measured.keys(), "nothing is measured twice"
            self.rounds.append(probes)
            measured |= {probe: self.measure(probe) for probe in probes}
        raise AssertionError("the search does not end")


def named(search: Any) -> set[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return {(finding.id, tuple(sorted(finding.hosts)), finding.adapters) for finding in search.findings}


@pytest.mark.parametrize("count", [2, 3, 4, 7, 16])
def test_a_ring_that_holds_is_all_there_is_to_measure(count: int) -> None:
    fabric = Fabric(count)
    assert fabric.search().findings == []
    assert [[probe.hosts for probe in probes] for probes in fabric.rounds] == [[tuple(fabric.hosts)]]


@pytest.mark.parametrize("count", [3, 4, 5, 8, 13, 16])
def test_one_bad_host_is_named_in_logarithmic_rounds(count: int) -> None:
    for bad in range(count):
        fabric = Fabric(count)
        fabric.slow_hosts = {fabric.hosts[bad]: BAD}
        assert named(fabric.search()) == {("HOST", (fabric.hosts[bad],), ())}
        assert len(fabric.rounds) <= math.ceil(math.log2(count)) + 4, (bad, fabric.rounds)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 13, 16])
def test_one_bad_link_of_the_ring_is_named(count: int) -> None:
    for first in range(count):
        fabric = Fabric(count)
        pair = (fabric.hosts[first], fabric.hosts[(first + 1) % count])
        fabric.slow_links = {frozenset(pair): BAD}
        assert named(fabric.search()) == {("LINK", tuple(sorted(pair)), ())}
        assert len(fabric.rounds) <= math.ceil(math.log2(count)) + 4, (first, fabric.rounds)


@pytest.mark.parametrize("count", [4, 8])
def test_one_bad_adapter_of_one_host_is_named(count: int) -> None:
    for bad, place in itertools.product(range(count), range(4)):
        fabric = Fabric(count, adapters=4)
        fabric.slow_adapters = {(fabric.hosts[bad], place): BAD}
        assert named(fabric.search()) == {("ADAPTER", (fabric.hosts[bad],), (f"mlx5_{place}:1",))}


def test_a_host_of_which_all_adapters_are_slow_is_the_host() -> None:
    fabric = Fabric(4, adapters=2)
    fabric.slow_hosts = {"h01": BAD}
    assert named(fabric.search()) == {("HOST", ("h01",), ())}


@pytest.mark.parametrize("count", [4, 5, 8, 16])
def test_two_bad_hosts_are_both_named(count: int) -> None:
    for pair in itertools.combinations(range(count), 2):
        fabric = Fabric(count)
        fabric.slow_hosts = {fabric.hosts[number]: BAD for number in pair}
        assert named(fabric.search()) == {("HOST", (fabric.hosts[number],), ()) for number in pair}


def test_a_bad_host_and_a_bad_link_elsewhere_are_both_named() -> None:
    fabric = Fabric(8)
    fabric.slow_hosts, fabric.slow_links = {"h01": BAD}, {frozenset(("h05", "h06")): BAD}
    assert named(fabric.search()) == {("HOST", ("h01",), ()), ("LINK", ("h05", "h06"), ())}


@pytest.mark.parametrize("count", [3, 4, 8])
def test_where_all_are_slow_nobody_is_named(count: int) -> None:
    fabric = Fabric(count)
    fabric.slow_hosts = dict.fromkeys(fabric.hosts, BAD)
    assert named(fabric.search()) == {("ALL", tuple(fabric.hosts), ())}


def test_of_two_hosts_nobody_can_tell_which() -> None:
    fabric = Fabric(2)
    fabric.slow_hosts = {"h00": BAD}
    assert named(fabric.search()) == {("PAIR", ("h00", "h01"), ())}


def test_slow_together_and_fine_apart_is_the_switches() -> None:
    fabric = Fabric(8)
    fabric.crowded = BAD
    assert named(fabric.search()) == {("TOGETHER", tuple(fabric.hosts), ())}


def test_no_result_counts_as_slow_even_without_a_floor() -> None:
    fabric = Fabric(4)
    fabric.slow_hosts = {"h02": 0.0}
    search = fabric.search(_fabric.Limits())
    assert named(search) == {("HOST", ("h02",), ())}
    assert "no result" in search.findings[0].evidence


def test_without_a_floor_pairs_are_compared_with_each_other() -> None:
    fabric = Fabric(8)
    fabric.slow_hosts = {"h02": 50.0}
    assert fabric.search(_fabric.Limits()).findings == [], "a ring alone has nothing to be compared with"
    assert named(fabric.search(_fabric.Limits(), pairs=True)) == {("HOST", ("h02",), ())}


def test_pairs_are_measured_where_the_ring_holds_and_all_is_fine() -> None:
    fabric = Fabric(4)
    assert fabric.search(pairs=True).findings == []
    pairs = {frozenset(probe.hosts) for probes in fabric.rounds for probe in probes if len(probe.hosts) == 2}
    assert {frozenset(pair) for pair in itertools.pairwise([*fabric.hosts, fabric.hosts[0]])} <= pairs


def test_groups_are_measured_one_by_one_where_they_disturb_each_other() -> None:
    fabric = Fabric(8)
    fabric.slow_hosts = {"h03": BAD}
    assert named(fabric.search(parallel=False)) == {("HOST", ("h03",), ())}
    assert {len(probes) for probes in fabric.rounds} == {1}


def test_every_finding_has_figures_and_a_remedy() -> None:
    fabric = Fabric(4, adapters=2)
    fabric.slow_adapters = {("h03", 1): BAD}
    (finding,) = fabric.search().findings
    assert finding.evidence.endswith("over mlx5_0:1: 100 GB/s; h01-h03 over mlx5_1:1: 20 GB/s, 90 needed")
    assert "switch port" in finding.remedy
    assert set(_fabric.REMEDIES) == {getattr(_fabric, kind) for kind in _fabric.REMEDIES}


@pytest.mark.parametrize(
    ("rates", "floor"),
    [({"a": [400.0, 400.0], "b": [400.0, 200.0]}, 52.5), ({"a": [400.0], "b": [None]}, 0.0), ({"a": [], "b": []}, 0.0)],
)
def test_the_floor_follows_the_weakest_host(rates: dict[str, list[float | None]], floor: float) -> None:
    assert _fabric.adapter_floor(rates, 0.7) == floor
