# SPDX-License-Identifier: Apache-2.0
"""weights_plan: who is started, who fetches, and in which way the others get it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter.weights_plan import weights_plan
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job

NAMES = [f"h20-{number:02}" for number in range(1, 9)]
MEMBERS = {name: {"address": f"10.0.0.{number}", "group": ""} for number, name in enumerate(NAMES, start=1)}


def state(*, complete: bool = False, running: bool = False, instance: str = "m", **way: Any) -> dict[str, Any]:
    return {"complete": complete, "running": running, "instance": instance, "distribution": "source", "site": {}} | way


def states(count: int, **changed: dict[str, Any]) -> dict[str, Any]:
    """So many hosts that lack the revision, but for those that are named h1, h2, ..."""
    return {name: changed.get(f"h{number}", state()) for number, name in enumerate(NAMES[:count], start=1)}


def plan(found: dict[str, Any], members: dict[str, Any] = MEMBERS, **wish: Any) -> dict[str, Any]:
    """The only plan, whose site is one that the program understands."""
    [made] = weights_plan(found, members, **wish).values()
    if made["site"]:
        folders = {"manifest": "/m", "destination": "/d", "stamp": "/s", "state": "/t"}
        job = {"host": made["hosts"][0], "distribution": made["distribution"], "sources": [], "site": made["site"]}
        site = Job.of(folders | job).site
        assert site is not None
        assert site.exchange == made["exchange"]
        groups = {member.group for member in site.hosts.values()}
        if made["distribution"] == "peer":
            leaders = {name for name, packages in made["packages"].items() if "opentracker" in packages}
            assert leaders == {site.leader(group) for group in groups}
    return made


def test_nobody_is_started_where_all_have_it() -> None:
    made = plan(states(2, h1=state(complete=True), h2=state(complete=True)))
    assert (made["start"], made["hosts"], made["outside"], made["refusal"]) == ([], [], [], "")


@pytest.mark.parametrize(
    ("count", "tracker", "distribution"),
    [(1, True, "source"), (2, True, "http"), (5, True, "http"), (6, True, "peer"), (6, False, "http")],
)
def test_auto_goes_by_the_number_of_hosts(*, count: int, tracker: bool, distribution: str) -> None:
    made = plan(states(count), tracker=tracker)
    assert (made["distribution"], made["start"], made["exchange"]) == (distribution, NAMES[:count], NAMES[0])
    assert bool(made["site"]) is (count > 1)
    assert bool(made["notes"]) is not tracker
    if made["notes"]:
        assert made["notes"][0].startswith("the hosts' distribution has no package opentracker, so that all get")


def test_a_host_alone_needs_no_package_but_for_s3() -> None:
    assert plan(states(1))["packages"] == {NAMES[0]: []}
    assert plan(states(1), kinds=["hub", "s3"])["packages"] == {NAMES[0]: ["python3-botocore"]}


def test_packages_are_those_of_the_part_that_a_host_has() -> None:
    http = plan(states(3), kinds=["s3"], distribution="http")["packages"]
    assert http == {
        NAMES[0]: ["nftables", "python3-botocore", "nginx-light"],
        NAMES[1]: ["nftables"],
        NAMES[2]: ["nftables"],
    }
    peer = plan(states(3), distribution="peer")["packages"]
    assert peer == {
        NAMES[0]: ["nftables", "aria2", "mktorrent", "opentracker"],
        NAMES[1]: ["nftables", "aria2"],
        NAMES[2]: ["nftables", "aria2"],
    }


def test_each_rack_has_a_tracker() -> None:
    racks = {name: member | {"group": "east" if name < "h20-04" else "west"} for name, member in MEMBERS.items()}
    made = plan(states(6), racks, distribution="peer", origins=[NAMES[4]])
    leaders = [name for name, packages in made["packages"].items() if "opentracker" in packages]
    assert sorted(leaders) == [NAMES[0], NAMES[4]]


def test_who_has_it_already_is_the_origin_and_the_others_that_have_it_are_left_alone() -> None:
    made = plan(states(4, h2=state(complete=True), h3=state(complete=True)))
    assert (made["origins"], made["hosts"], made["start"]) == (
        [NAMES[1]],
        [NAMES[0], NAMES[3]],
        [NAMES[1], NAMES[0], NAMES[3]],
    )
    assert set(made["site"]["hosts"]) == {NAMES[0], NAMES[1], NAMES[3]}
    assert made["distribution"] == "http"


def test_a_host_of_an_earlier_batch_is_the_origin_whatever_it_said_then() -> None:
    made = plan(states(3, h3=state()), elsewhere=[NAMES[2]])
    assert (made["outside"], made["origins_here"], made["start"]) == ([NAMES[2]], [], NAMES[:2])
    assert made["exchange"] == NAMES[2]
    assert NAMES[2] in made["packages"]


def test_origins_that_are_named_fetch_wherever_they_are() -> None:
    made = plan(states(3), origins=[NAMES[1], NAMES[7]])
    assert (made["origins_here"], made["outside"], made["start"][0]) == ([NAMES[1]], [NAMES[7]], NAMES[1])
    assert made["summary"] == "3 hosts from h20-02, h20-08 by HTTP"
    assert plan(states(2), origins=["h20-99"])["refusal"] == (
        "model_origins names h20-99, which the inventory does not have -> name hosts of the inventory"
    )


@pytest.mark.parametrize("distribution", ["source", "shared"])
def test_hosts_that_get_it_by_themselves_only_report(distribution: str) -> None:
    made = plan(states(3, h1=state(complete=True)), distribution=distribution, origins=[NAMES[7]])
    assert (made["start"], made["origins_here"], made["outside"]) == ([NAMES[1], NAMES[2]], [], [])
    assert (made["exchange"], made["packages"][NAMES[1]]) == (NAMES[1], ["nftables"])


def test_peers_that_were_asked_for_are_refused_without_a_tracker() -> None:
    assert plan(states(2), distribution="peer", tracker=False)["refusal"].startswith(
        "model_distribution is peer, and the hosts' distribution has no package opentracker -> "
    )


def under_way(count: int, **wish: Any) -> dict[str, Any]:
    made = plan(states(count), **wish)
    return {"running": True, "distribution": made["distribution"], "site": made["site"]}


def test_what_is_under_way_is_joined_by_whoever_is_left() -> None:
    way = under_way(6)
    found = states(6, h1=state(complete=True), h2=state(complete=True), h4=state(**way), h6=state(**way))
    made = plan(found)
    assert (made["site"], made["distribution"]) == (way["site"], "peer")
    assert made["hosts"] == [NAMES[2], NAMES[3], NAMES[4], NAMES[5]]
    assert made["start"][0] == NAMES[0], "its exchange has it already and is still asked"


@pytest.mark.parametrize(
    "wish",
    [
        {"distribution": "http"},
        {"origins": [NAMES[1]]},
        {"port": 9000},
        {"members": MEMBERS | {NAMES[2]: {"address": "10.9.9.9", "group": ""}}},
    ],
    ids=["another way", "another origin", "another port", "another address"],
)
def test_what_is_under_way_in_another_way_is_not_joined(wish: dict[str, Any]) -> None:
    way = under_way(6)
    made = plan(states(6, h3=state(**way), h4=state(**way)), **wish)
    assert (made["distribution"], made["site"]) != (way["distribution"], way["site"])


def test_a_host_that_joins_later_makes_it_another_transfer() -> None:
    way = under_way(3)
    made = plan(states(4, h1=state(**way), h2=state(**way), h3=state(**way)))
    assert set(made["site"]["hosts"]) == set(NAMES[:4])


def test_hosts_with_other_revisions_have_nothing_to_do_with_each_other() -> None:
    found = states(4, h3=state(instance="n"), h4=state(instance="n"))
    made = weights_plan(found, MEMBERS)
    assert {instance: each["start"] for instance, each in made.items()} == {"m": NAMES[:2], "n": NAMES[2:4]}
