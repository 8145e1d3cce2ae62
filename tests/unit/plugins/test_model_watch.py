# SPDX-License-Identifier: Apache-2.0
"""model_watch: what an operator reads of few and of many hosts, when it ends, and that a lost connection does not end it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.action import model_watch
from ansible_collections.h20.fleet.plugins.module_utils._weights.progress import Progress
from ansible_collections.h20.fleet.plugins.plugin_utils import _transfers

GIB, MIB = 1024**3, 1024**2
TOTAL = 640 * GIB


def account(phase: str = "receiving", share: float = 0.5, **fields: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"bytes": int(TOTAL * share), "total": TOTAL, "rate": 200 * MIB, "updated": 1.0}
    return Progress("a", phase, **known | fields).as_dict()


def picture(accounts: dict[str, Any], seconds: float = 0) -> _transfers.Picture:
    """What was seen once, so many seconds ago."""
    made = _transfers.Picture(list(accounts), 0)
    made.see(accounts, 0)
    made.see(accounts, seconds)
    return made


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            account("fetching", 0.25, source="hub http://hub.test"),
            "fetching   160.0 / 640.0 GiB  25%  200 MiB/s  41 min left  from hub http://hub.test",
        ),
        (account("retrying", 0, rate=0, error="HTTP 503"), "retrying   0.0 / 640.0 GiB  0%  0 MiB/s  (HTTP 503)"),
        (account("complete", 1), "complete   640.0 / 640.0 GiB  100%"),
        (account("failed", 0.1, error="the disk is full -> make room"), "FAILED  the disk is full -> make room"),
        (account("complete", total=3 * MIB, bytes=3 * MIB), "complete   3.0 / 3.0 MiB  100%"),
        (None, "nothing heard yet"),
    ],
)
def test_a_few_hosts_have_a_line_each(said: dict[str, Any] | None, line: str) -> None:
    assert picture({"h20-01": said}).lines(0) == [f"  h20-01  {line}"]


def test_many_hosts_have_a_summary_and_those_in_trouble_a_line() -> None:
    many = {f"h20-{number:02}": account(share=number / 100, rate=number * MIB) for number in range(1, 21)}
    many["h20-21"] = account("complete", 1)
    many["h20-22"] = account("failed", 0, error="gone -> mend")
    assert picture(many).lines(0) == [
        "  20 receiving, 1 complete, 1 failed  6.4 .. 128.0 GiB of 640.0 GiB  1%  10 MiB/s each (median)  180.2 h left",
        "  h20-22  FAILED  gone -> mend",
    ]
    assert picture(dict.fromkeys(many)).lines(0)[0] == "  nothing heard yet"


def test_standing_still_is_told_from_silence() -> None:
    still = {"a": account()}
    watched = _transfers.Picture(["a"], 0)
    watched.see(still, 0)
    watched.see({"a": still["a"] | {"updated": 2.0}}, 100)
    assert watched.lines(100)[0].endswith("STALLED for 100 s, goes on by itself")
    assert picture(still, 300).lines(300)[0].endswith("SILENT for 5 min")
    assert "STALLED" not in picture({"a": account("proving")}, 80).lines(80)[0]


def test_it_is_over_when_all_have_ended_or_are_silent() -> None:
    assert picture({"a": account("complete"), "b": account("failed"), "c": account("seeding")}).is_over(0)
    half = picture({"a": account("complete"), "b": None})
    assert not half.is_over(_transfers.SILENCE - 1)
    assert half.is_over(_transfers.SILENCE)
    assert not picture({"a": account("proving")}).is_over(0)


class Action(model_watch.ActionModule):
    """The action without Ansible around it: answers that follow each other, and what was printed."""

    def __init__(self, answers: list[Any], **arguments: Any) -> None:
        self.answers = iter(answers)
        self.printed: list[str] = []
        self.arguments = {"instance": "m", "hosts": ["a"], "title": "tiny", "interval": 0, "patience": 60} | arguments

    @property
    def _display(self) -> Any:
        return self

    def display(self, text: str) -> None:
        self.printed += text.splitlines()

    def validate_argument_spec(self, **_spec: Any) -> Any:
        return None, self.arguments

    def _execute_module(self, **_call: Any) -> dict[str, Any]:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves."""
    now = [0.0]
    monkeypatch.setattr(ActionBase, "run", lambda *_arguments: {})
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda span: now.__setitem__(0, now[0] + span))
    return now


def found(said: dict[str, Any], *, running: bool = True) -> dict[str, Any]:
    return {"running": running, "hosts": {"a": said}}


def test_it_watches_to_the_end_through_a_lost_connection(seconds: list[float]) -> None:
    lost = AnsibleConnectionFailure("no route to host\nand so on")
    action = Action([found(account()), lost, {"failed": True, "msg": "no python"}, found(account("complete", 1))])
    assert action.run() == {"changed": False, "over": True, "seconds": seconds[0]}
    assert action.printed[0] == "tiny"
    told = [line for line in action.printed if "does not answer" in line]
    assert len(told) == 1
    assert "(no route to host)" in told[0]
    assert action.printed[-1] == "  a  complete   640.0 / 640.0 GiB  100%"


def test_it_prints_no_more_often_than_it_is_asked_to(seconds: list[float]) -> None:
    action = Action(
        [found(account(updated=float(number))) for number in range(20)] + [found(account("failed"))], interval=30
    )
    action.run()
    assert len([line for line in action.printed if line.startswith("  a  ")]) == 1 + seconds[0] // 30


@pytest.mark.usefixtures("seconds")
def test_it_ends_where_nobody_can_tell_any_more() -> None:
    ended = Action([found(account(), running=False)]).run()
    assert ended["over"] is False
    gone = Action([AnsibleConnectionFailure("gone")] * 100, patience=30)
    assert gone.run()["over"] is False
