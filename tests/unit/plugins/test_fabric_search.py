# SPDX-License-Identifier: Apache-2.0
"""fabric_search on the controller: rounds, seats, silent hosts, the table, the report and the end of the run; fabric_probe's command line."""

from __future__ import annotations

import importlib
import json
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from unit.plugins.support import MODULES, run_module, write_program

fabric_search: Any = importlib.import_module("ansible_collections.h20.fleet.plugins.action.fabric_search")
fabric_probe: Any = importlib.import_module(f"{MODULES}.fabric_probe")
HOSTS = ["h20-01", "h20-02", "h20-03", "h20-04"]
LOST: list[str] = []


def search(
    tmp_path: Path, before: dict[str, Any], answers: dict[str, Any], differences: dict[str, str] | None = None
) -> dict[str, Any]:
    """What the action returns of one step of the search."""
    arguments = {
        "hosts": HOSTS,
        "lost": LOST,
        "before": before,
        "answers": answers,
        "adapters": dict.fromkeys(HOSTS, ("ib0", "ib1")),
        "differences": differences or {},
        "floor": 60,
        "about": "gloo over ib0",
        "folder": str(tmp_path / "reports"),
    }
    task = unittest.mock.MagicMock(async_val=0, args=arguments)
    others = dict.fromkeys(("play_context", "loader", "templar", "shared_loader_obj"))
    action = fabric_search.ActionModule(task=task, connection=unittest.mock.MagicMock(), **others)
    result: dict[str, Any] = action.run(task_vars={})
    return result


def report(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "reports/fabric/fabric.json").read_text(encoding="utf-8"))
    return document


def answer(before: dict[str, Any], slow: str = "", silent: str = "") -> dict[str, Any]:
    """What the hosts of a round say; the group of a slow one is slow."""
    groups: dict[str, list[str]] = {}
    for host, seat in before["seats"].items():
        groups.setdefault(seat["master"], []).append(host)
    return {
        host: {"number": before["number"], "busbw_gb_s": 20.0 if slow in members else 100.0, "error": ""}
        for members in groups.values()
        for host in members
        if host != silent
    }


def test_the_first_round_is_the_ring_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = search(tmp_path, {}, {})
    assert result["number"] == 1
    assert result["seats"] == {
        host: {"nodes": 4, "node_rank": rank, "master": "h20-01", "adapter": -1} for rank, host in enumerate(HOSTS)
    }
    assert "fabric, round 1: h20-01 h20-02 h20-03 h20-04" in capsys.readouterr().out


def test_a_ring_that_holds_ends_well_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = search(tmp_path, {}, {})
    result = search(tmp_path, first, answer(first))
    assert (result["seats"], result["findings"], result.get("failed")) == ({}, [], None)
    assert "fabric of 4 hosts  as it should be  gloo over ib0, floor 60 GB/s" in capsys.readouterr().out
    assert report(tmp_path)["verdict"] == "fit"
    assert report(tmp_path)["measured"] == [
        {"round": 1, "hosts": HOSTS, "adapter": -1, "busbw_gb_s": 100.0, "errors": {}}
    ]


def test_a_host_that_is_slow_is_named_with_figures_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = search(tmp_path, {}, {})
    while step["seats"]:
        assert step["number"] <= 7
        step = search(tmp_path, step, answer(step, slow="h20-03"))
    assert step["failed"] is True
    assert step["findings"] == ["HOST h20-03"]
    assert step["msg"].startswith("HOST h20-03 -> mend what the table says and run it again")
    (finding,) = report(tmp_path)["findings"]
    assert (finding["id"], finding["hosts"]) == ("HOST", ["h20-03"])
    assert "20 GB/s, 90 needed" in finding["evidence"]
    assert finding["remedy"] in capsys.readouterr().out


def test_a_host_that_does_not_answer_is_left_out_of_the_next_round(tmp_path: Path) -> None:
    first = search(tmp_path, {}, {})
    # An answer of an earlier round is none.
    stale = answer(first, silent="h20-02") | {"h20-02": {"number": 0, "busbw_gb_s": 99.0, "error": ""}}
    second = search(tmp_path, first, stale)
    assert second["silent"] == ["h20-02"]
    assert list(second["seats"]) == ["h20-01", "h20-03", "h20-04"]
    assert search(tmp_path, second, answer(second))["findings"] == ["SILENT h20-02"]
    assert report(tmp_path)["findings"][0]["evidence"] == "did not answer in round 1"


def test_a_host_that_was_lost_before_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LOST", ["h20-05"])
    first = search(tmp_path, {}, {})
    assert search(tmp_path, first, answer(first))["findings"] == ["SILENT h20-05"]
    assert report(tmp_path)["findings"][0]["evidence"] == "was lost before the first round"


def test_why_a_group_has_no_result_is_shown(tmp_path: Path) -> None:
    step = search(tmp_path, {}, {})
    while step["seats"]:
        said = answer(step)
        broken = step["seats"].get("h20-03", {"master": ""})["master"]
        for host, seat in step["seats"].items():
            if seat["master"] == broken:
                said[host] |= {"busbw_gb_s": None, "error": "7 of 8 GPUs" if host == "h20-03" else "did not end"}
        step = search(tmp_path, step, said)
    assert step["findings"] == ["HOST h20-03"]
    assert report(tmp_path)["findings"][0]["evidence"].endswith("no result; h20-03: 7 of 8 GPUs")


def test_hosts_that_differ_are_findings_as_well(tmp_path: Path) -> None:
    first = search(tmp_path, {}, {})
    line = "h20-04 differs from the other hosts: driver is 595.71.05 -> make the hosts the same"
    assert search(tmp_path, first, answer(first), {"h20-04": line})["findings"] == ["DIFFERS h20-04"]
    (finding,) = report(tmp_path)["findings"]
    assert finding["evidence"] == "differs from the other hosts: driver is 595.71.05"
    assert finding["remedy"] == "make the hosts the same"


def test_one_host_has_no_fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "HOSTS", ["h20-01"])
    with pytest.raises(AnsibleActionFail, match="at least two hosts -> name more of them"):
        search(tmp_path, {}, {})


ARGUMENTS: dict[str, Any] = {
    "number": 3,
    "nodes": 2,
    "node_rank": 1,
    "master": "10.0.0.7",
    "ranks": 8,
    "interfaces": ["bond0", "eth1"],
}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, ["--interface=bond0,eth1", "--master=10.0.0.7:29500", "--nodes=2", "--node-rank=1", "--ranks=8"]),
        ({"master": "fd00::7", "port": 1234}, ["--master=[fd00::7]:1234"]),
        ({"adapter": 1}, ["--interface=eth1"]),
        ({"hcas": ["mlx5_0:1", "mlx5_1:1"]}, ["--interface=bond0,eth1", "--hca=mlx5_0:1,mlx5_1:1"]),
        ({"hcas": ["mlx5_0:1", "mlx5_1:1"], "adapter": 1}, ["--interface=bond0,eth1", "--hca=mlx5_1:1"]),
    ],
)
def test_each_host_measures_as_its_seat_says(tmp_path: Path, more: dict[str, Any], words: list[str]) -> None:
    results = [{"collective": "all_reduce", "bytes": 1024, "busbw_gb_s": figure} for figure in (90.0, 80.0)]
    code = f"import sys\n(HERE / 'line').write_text(' '.join(sys.argv))\nprint({json.dumps({'results': results})!r})\n"
    program = write_program(tmp_path / "measure", code)
    result = run_module("fabric_probe", program=str(program), python=sys.executable, user="root", **(ARGUMENTS | more))
    assert (result["busbw_gb_s"], result["error"], result["number"], result["changed"]) == (80.0, "", 3, False)
    line = (tmp_path / "line").read_text(encoding="utf-8").split()
    assert [word for word in words if word not in line] == [], line
    assert ("--hca" in " ".join(line)) == ("hcas" in more)


def test_a_measurement_that_fails_is_a_result(tmp_path: Path) -> None:
    program = write_program(tmp_path / "measure", "import sys\nsys.exit('error: rank 3 ended with status 1')\n")
    result = run_module("fabric_probe", program=str(program), python=sys.executable, user="root", **ARGUMENTS)
    assert (result["busbw_gb_s"], result["error"]) == (None, "rank 3 ended with status 1")
    assert "failed" not in result
    checked = run_module("fabric_probe", check=True, program=str(program), python=sys.executable, **ARGUMENTS)
    assert checked["error"] == "nothing is measured in check mode"
