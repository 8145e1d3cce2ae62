# SPDX-License-Identifier: Apache-2.0
"""One replica over several hosts: what of an inventory and a run would split it."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.h20.fleet.plugins.filter import replica_errors
from ansible_collections.h20.fleet.plugins.module_utils import _replica

judge = replica_errors.FilterModule().filters()["replica_errors"]
GROUPS = {"pair": ["a", "b"], "other": ["c", "d"]}
NAMED = {"a": "pair", "b": "pair", "c": "other", "d": "other"}
HOSTS = ["a", "b", "c", "d"]


def errors(**changed: t.Any) -> list[str]:
    said = {"name": "pair", "host": "a", "groups": GROUPS, "named": NAMED, "hosts": HOSTS, "serial": "100%"} | changed
    found: list[str] = judge(*said.values())
    return found


@pytest.mark.parametrize("serial", ["100%", 2, "2", "50%", [2, "100%"], 0, 9])
def test_a_replica_that_goes_as_one_is_taken(serial: t.Any) -> None:
    assert errors(serial=serial) == []
    assert errors(host="b", hosts=["b", "a", "d", "c"], serial=serial) == []


def test_a_host_that_serves_alone_is_not_judged() -> None:
    assert errors(name="", groups={}, named={}, hosts=["a"], serial=1) == []


WRONG: dict[str, tuple[dict[str, t.Any], str]] = {
    "no group": ({"name": "pairs"}, "pairs is no group of the inventory"),
    "not in the group": ({"host": "c"}, "c is not in that group"),
    "alone": ({"groups": {"pair": ["a"]}}, "replica pair has one host"),
    "in two replicas": ({"named": NAMED | {"b": "other"}}, "hosts of group pair have another fleet_replica: b (other)"),
    "in none": ({"named": {"a": "pair"}}, "have another fleet_replica: b (none)"),
    "left out": ({"hosts": ["a", "c", "d"]}, "b is not in this run -> --limit names all its hosts (a,b) or none"),
    "host by host": ({"serial": 1}, "fleet_serial 1 splits it -> let every batch hold whole replicas, for example -e fleet_serial=2"),
    "by a share": ({"serial": "25%"}, "fleet_serial 25% splits it"),
    "by a canary": ({"serial": [1, "100%"]}, "fleet_serial [1, '100%'] splits it"),
    "by the order": ({"hosts": ["a", "c", "b", "d"], "serial": 2}, "fleet_serial 2 splits it"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_would_split_a_replica_is_refused_with_its_remedy(name: str) -> None:
    changed, says = WRONG[name]
    [error] = errors(**changed)
    assert says in error
    assert " -> " in error


def test_batches_are_cut_as_ansible_cuts_them() -> None:
    assert _replica.batches(HOSTS, 3) == [["a", "b", "c"], ["d"]]
    assert _replica.batches(HOSTS, [1, "50%"]) == [["a"], ["b", "c"], ["d"]]
    assert _replica.batches(HOSTS, "10%") == [["a"], ["b"], ["c"], ["d"]]
    assert _replica.batches([], "100%") == []
