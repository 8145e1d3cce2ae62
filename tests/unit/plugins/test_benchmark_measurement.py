# SPDX-License-Identifier: Apache-2.0
"""benchmark_measurement on the controller: what it shows while a host measures, what it returns, and what it makes of a host that stays away."""

from __future__ import annotations

import importlib
import unittest.mock
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

measurement: Any = importlib.import_module("ansible_collections.h20.fleet.plugins.action.benchmark_measurement")

JOB: dict[str, Any] = {
    "program": "",
    "url": "http://127.0.0.1:8000",
    "model": "m",
    "instance": "m",
    "concurrencies": [1, 4],
}
JOB |= {"requests": 4, "input_tokens": 1024, "output_tokens": 256, "timeout": 60}
BEGUN = {"status": "running", "said": [], "rounds": [], "vllm": "0.32.0"}
ENDED = {"status": "ended", "said": ["importing vLLM", "c=1  ..."], "rounds": [{"concurrency": 1}]}
REPLICA = {"release": "2026.11", "model": "deepseek-ai/DeepSeek-V3-0324"}
GPUS = {"smi": {"driver_version": "580.173.02", "gpus": [{"product": "NVIDIA H20-3e"}] * 8}}


def run(answers: list[Any], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """What the action returns and shows, where the host answers benchmark_job so, one after the other."""
    arguments = {"job": JOB, "profile": "latency", "need": {"tolerance": 0.1}, "interval": 0} | changes
    task = unittest.mock.MagicMock(async_val=0, args=arguments)
    others = dict.fromkeys(("play_context", "loader", "templar", "shared_loader_obj"))
    action = measurement.ActionModule(task=task, connection=unittest.mock.MagicMock(), **others)
    left = iter(answers)

    def answer(module_name: str, **_options: Any) -> dict[str, Any]:
        name = module_name.rpartition(".")[2]
        found: Any = {"replica_info": REPLICA, "gpu_info": GPUS}.get(name) or next(left)
        if isinstance(found, Exception):
            raise found
        return dict(found)

    with (
        unittest.mock.patch.object(action, "_execute_module", answer),
        unittest.mock.patch.object(action, "_display") as display,
    ):
        result: dict[str, Any] = action.run(task_vars={"inventory_hostname": "h20-01"})
    return result, [call.args[0] for call in display.display.call_args_list]


def test_each_line_is_shown_once_and_the_record_says_what_was_measured() -> None:
    half = BEGUN | {"said": ENDED["said"][:1]}
    result, shown = run([BEGUN, half, half, ENDED])
    assert shown == ["  h20-01  m  importing vLLM", "  h20-01  m  c=1  ..."]
    found = result["found"]
    assert (found["model"], found["release"], found["vllm"]) == (REPLICA["model"], "2026.11", "0.32.0")
    assert (found["gpu"], found["gpus"], found["driver"], found["profile"]) == (
        "NVIDIA H20-3e",
        8,
        "580.173.02",
        "latency",
    )
    assert (found["rounds"], found["need"], result["changed"]) == (ENDED["rounds"], {"tolerance": 0.1}, False)


def test_behind_a_url_nobody_knows_the_hardware() -> None:
    result, _shown = run(
        [BEGUN, ENDED], job=JOB | {"instance": "", "url": "http://gateway"}, model="theirs", profile=""
    )
    found = result["found"]
    assert (found["instance"], found["model"], found["gpu"], found["gpus"], found["release"]) == (
        "http://gateway",
        "theirs",
        "",
        0,
        "",
    )


def test_check_mode_says_what_would_be_measured() -> None:
    result, shown = run([BEGUN | {"status": "due"}])
    assert (result["found"], result["changed"]) == ({}, False)
    assert shown == ["  h20-01  m  would be measured at c=1, 4, each twice, the first time discarded"]


def test_a_part_of_a_replica_without_an_api_is_measured_by_the_first_host() -> None:
    result, shown = run([], measured_by="h20-00")
    assert (result["found"], result["changed"], result.get("failed")) == ({}, False, None)
    assert shown == ["  h20-01  m  has no API here: h20-00 measures the replica"]


@pytest.mark.parametrize("answers", [[{"failed": True, "msg": "no"}], [BEGUN, {"failed": True, "msg": "no"}]])
def test_what_the_host_refuses_is_told_with_the_replica_and_without_the_program(answers: list[Any]) -> None:
    answers[-1] = answers[-1] | {"invocation": {"module_args": {"program": "..."}}}
    result, _shown = run(answers)
    assert (result["failed"], result["msg"]) == (True, "m: no")
    assert "invocation" not in result


def test_a_host_that_was_away_for_a_moment_is_asked_again() -> None:
    result, _shown = run([BEGUN, AnsibleConnectionFailure("timed out"), {"unreachable": True, "msg": "gone"}, ENDED])
    assert result["found"]["rounds"] == ENDED["rounds"]


def test_a_host_that_stays_away_is_given_up_and_its_benchmark_goes_on() -> None:
    result, _shown = run([BEGUN, AnsibleConnectionFailure("timed out")], patience=-1)
    assert result["failed"]
    assert result["msg"].startswith(
        "m: the host is out of reach (timed out); its benchmark goes on without the controller -> "
    )
