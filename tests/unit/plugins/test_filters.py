# SPDX-License-Identifier: Apache-2.0
"""The filter of the status verb."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter import status_table

table = status_table.FilterModule().filters()["status_table"]

REVISION = "e9b33add76883f293d6bf61f6bd89b497e80e335"
REPLICA = {
    "release": "2026.11",
    "model": "deepseek-ai/DeepSeek-V3-0324",
    "revision": REVISION,
    "instances": [{"name": "deepseek-v3", "state": "active"}],
}


def gpu(answering: int | None, on_bus: int = 8) -> dict[str, Any]:
    return {"smi": None if answering is None else {"gpus": [{}] * answering}, "pci_gpus": [{}] * on_bus}


def test_the_fleet_as_a_table() -> None:
    empty = {"release": "", "model": "", "revision": "", "instances": []}
    two = REPLICA | {"instances": [{"name": "a", "state": "active"}, {"name": "b", "state": "failed"}]}
    replicas = {"h20-01": REPLICA, "h20-02": empty, "h20-04": two, "h20-05": REPLICA}
    replicas["h20-01"] = REPLICA | {"acceptance": {"verdict": "accepted"}}
    gpus = {"h20-01": gpu(7), "h20-02": gpu(None), "h20-03": gpu(8), "h20-04": gpu(8)}
    assert table([f"h20-0{number}" for number in range(1, 6)], replicas, gpus).splitlines() == [
        "host    release  model                      GPUs  acceptance    instance     state",
        "h20-01  2026.11  DeepSeek-V3-0324@e9b33add  7/8   accepted      deepseek-v3  active",
        "h20-02  -        -                          0/8   not measured  -            not set up",
        "h20-03  -        -                          -     -             -            unreachable",
        "h20-04  2026.11  DeepSeek-V3-0324@e9b33add  8/8   not measured  a            active",
        "h20-04  2026.11  DeepSeek-V3-0324@e9b33add  8/8   not measured  b            failed",
        "h20-05  -        -                          -     -             -            unreachable",
    ]


@pytest.mark.parametrize(
    ("instance", "told"),
    [
        (
            {"state": "active", "ready": True, "proof": {"since": "2026-11-25T04:00:00+00:00"}},
            "ready since 2026-11-25T04:00:00+00:00",
        ),
        (
            {"state": "active", "ready": False, "proof": {"why": "Xid 95 -> reset the GPU"}},
            "not ready: Xid 95 -> reset the GPU",
        ),
        ({"state": "activating", "ready": False, "proof": {}}, "activating"),
    ],
)
def test_an_instance_shows_whether_it_is_ready(instance: dict[str, Any], told: str) -> None:
    replica = REPLICA | {"instances": [{"name": "deepseek-v3", **instance}]}
    assert table(["h20-01"], {"h20-01": replica}, {"h20-01": gpu(8)}).endswith(told)


@pytest.mark.parametrize(
    ("until", "told"), [("2999-12-24", "waived until 2999-12-24"), ("2020-12-24", "waiver expired 2020-12-24")]
)
def test_a_waiver_shows_its_end(until: str, told: str) -> None:
    record = {"verdict": "waived", "waivers": [{"until": until}, {"until": "3000-01-01"}]}
    assert told in table(["h20-01"], {"h20-01": REPLICA | {"acceptance": record}}, {"h20-01": gpu(8)})


def test_a_fleet_without_hosts_is_a_header() -> None:
    assert table([], {}, {}) == "host  release  model  GPUs  acceptance  instance  state"


def test_a_part_of_a_replica_names_it() -> None:
    part = REPLICA | {"instances": [{"name": "deepseek-v3", "state": "active", "replica": "pair", "rank": 1}]}
    assert "deepseek-v3 (pair, rank 1)  active" in table(["h20-02"], {"h20-02": part}, {"h20-02": gpu(8)})
