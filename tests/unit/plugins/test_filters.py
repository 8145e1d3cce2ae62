# SPDX-License-Identifier: Apache-2.0
"""The filters of serving and of the status verb."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.h20.fleet.plugins.filter import status_table, vllm_config

merge = vllm_config.FilterModule().filters()["vllm_config"]
table = status_table.FilterModule().filters()["status_table"]

REVISION = "e9b33add76883f293d6bf61f6bd89b497e80e335"
REPLICA = {
    "release": "2026.11",
    "model": "deepseek-ai/DeepSeek-V3-0324",
    "revision": REVISION,
    "instances": [{"name": "deepseek-v3", "state": "active"}],
}


@pytest.mark.parametrize(
    ("profile", "arguments", "merged"),
    [
        ({}, {}, {}),
        ({"max-model-len": 1}, {}, {"max-model-len": 1}),
        ({"max-model-len": 1, "dtype": "auto"}, {"max-model-len": 2}, {"max-model-len": 2, "dtype": "auto"}),
        ({}, {"enforce-eager": False, "seed": 0}, {"enforce-eager": False, "seed": 0}),
        ({}, {"speculative-config": {"num_tokens": None}}, {"speculative-config": {"num_tokens": None}}),
    ],
)
def test_later_arguments_win(profile: dict[str, Any], arguments: dict[str, Any], merged: dict[str, Any]) -> None:
    before = dict(profile)
    assert merge(profile, arguments) == merged
    assert profile == before


@pytest.mark.parametrize(
    ("argument", "value", "advice"),
    [
        ("max_model_len", 1, "'max-model-len'"),
        ("--max-model-len", 1, "'max-model-len'"),
        ("enforce_eager", False, "'enforce-eager'"),
        ("seed", None, "leave the key out"),
    ],
)
def test_what_vllm_would_misread_is_refused_wherever_it_stands(argument: str, value: object, advice: str) -> None:
    wrong, nothing = {argument: value}, dict[str, object]()
    for profile, arguments in ((wrong, nothing), (nothing, wrong)):
        with pytest.raises(AnsibleFilterError, match=advice) as refused:
            merge(profile, arguments)
        assert repr(argument) in str(refused.value)


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
    ("until", "told"), [("2999-12-24", "waived until 2999-12-24"), ("2020-12-24", "waiver expired 2020-12-24")]
)
def test_a_waiver_shows_its_end(until: str, told: str) -> None:
    record = {"verdict": "waived", "waivers": [{"until": until}, {"until": "3000-01-01"}]}
    assert told in table(["h20-01"], {"h20-01": REPLICA | {"acceptance": record}}, {"h20-01": gpu(8)})


def test_a_fleet_without_hosts_is_a_header() -> None:
    assert table([], {}, {}) == "host  release  model  GPUs  acceptance  instance  state"
