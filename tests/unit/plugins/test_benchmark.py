# SPDX-License-Identifier: Apache-2.0
"""A benchmark on the controller: figures, what they are held against, what is stored, the table, the chart and the reports."""

from __future__ import annotations

import importlib
import json
import unittest.mock
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _benchmark
from ansible_collections.h20.fleet.plugins.plugin_utils import _chart

benchmark_report: Any = importlib.import_module("ansible_collections.h20.fleet.plugins.action.benchmark_report")
SVG = "{http://www.w3.org/2000/svg}"
GOOD = {1: (40.0, 24.0), 64: (1800.0, 34.0)}


def round_of(concurrency: int, output: float, tpot: float, **changes: Any) -> dict[str, Any]:
    """A round as the reports keep it."""
    result = {
        "completed": 4 * concurrency,
        "failed": 0,
        "duration": 12.5,
        "output_throughput": output,
        "total_token_throughput": 5 * output,
        "median_ttft_ms": 200.0,
        "p99_ttft_ms": 400.0,
        "median_tpot_ms": tpot,
        "p99_tpot_ms": tpot + 1,
        "first_error": "",
    }
    entry = {"concurrency": concurrency, "others": changes.pop("others", 0), "result": result | changes}
    return _benchmark.figures(entry)


def record(rounds: dict[int, tuple[float, float]] = GOOD, **changes: Any) -> dict[str, Any]:
    """What was measured of a replica."""
    found = {
        "schema": 1,
        "instance": "deepseek-v3",
        "profile": "latency",
        "model": "deepseek-ai/DeepSeek-V3-0324",
        "release": "2026.11",
        "vllm": "0.32.0",
        "gpu": "NVIDIA H20-3e",
        "gpus": 8,
        "driver": "580.173.02",
        "measured": "2026-11-25T08:00:00+00:00",
        "url": "http://127.0.0.1:8000",
        "input_tokens": 1024,
        "output_tokens": 256,
        "requests": 4,
        "rounds": [round_of(concurrency, *figures) for concurrency, figures in rounds.items()],
        "need": {"baseline": [], "tolerance": 0.1},
    }
    return found | changes


BASELINE = _benchmark.store([record()], [])


def evidence(
    found: dict[str, Any], baseline: list[dict[str, Any]] = BASELINE, tolerance: float = 0.1
) -> list[tuple[str, str]]:
    return [
        (check.name, check.evidence)
        for check in _benchmark.checks(found, baseline, tolerance)
        if check.verdict == "fail"
    ]


def test_figures_are_named_by_what_they_are() -> None:
    found = round_of(64, 1800.12345, 34.0)
    assert (
        found["output_tok_s"],
        found["total_tok_s"],
        found["ttft_p99_ms"],
        found["tpot_p50_ms"],
        found["seconds"],
    ) == (1800.123, 9000.617, 400.0, 34.0, 12.5)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((1800.0, 34.0), []),
        ((1621.0, 37.3), []),
        ((1619.0, 34.0), ["1,619 tokens/s of output, 10.1% below {b} 1,800 (10% are borne)"]),
        ((1800.0, 37.5), ["TPOT 37.5 ms, 10.3% above {b} 34 (10% are borne)"]),
        ((900.0, 68.0), ["900 tokens/s of output, 50.0% below {b} 1,800 (10% are borne); TPOT 68 ms, 100.0% above {b} 34 (10% are borne)"]),
    ],
)  # fmt: skip
def test_slower_than_is_borne_is_refused_with_both_figures(figures: tuple[float, float], said: list[str]) -> None:
    assert evidence(record({1: GOOD[1], 64: figures})) == [
        ("deepseek-v3 c=64", line.format(b="the baseline of")) for line in said
    ]


def test_failed_and_disturbed_rounds_are_refused_without_a_baseline_too() -> None:
    rounds = [
        round_of(1, 40.0, 24.0, failed=1, completed=3, first_error="TimeoutError"),
        round_of(64, 1800.0, 34.0, others=5),
    ]
    assert evidence(record(rounds={}) | {"rounds": rounds}, baseline=[]) == [
        ("deepseek-v3 c=1", "1 of 4 requests failed (TimeoutError)"),
        ("deepseek-v3 c=64", "5 requests of others were answered meanwhile"),
    ]


@pytest.mark.parametrize(
    "change", [{"profile": "throughput"}, {"gpu": "NVIDIA H20"}, {"gpus": 4}, {"input_tokens": 512}, {"requests": 2}]
)
def test_a_replica_is_held_against_the_like_of_it_alone(change: dict[str, Any]) -> None:
    half = record({1: (20.0, 48.0), 64: (900.0, 68.0)})
    assert evidence(half)
    assert evidence(half | change) == []


def test_another_release_is_what_a_baseline_is_for() -> None:
    assert evidence(record({64: (900.0, 34.0)}, release="2026.12", vllm="0.33.0", driver="595.71.05"))


def test_the_baseline_is_the_median_of_alike_replicas_and_keeps_what_was_not_measured() -> None:
    other = record(profile="throughput")
    before = _benchmark.store([record({1: (39.0, 25.0), 256: (4000.0, 60.0)}), other], [])
    replicas = [record({1: (output, 24.0)}) for output in (38.0, 40.0, 44.0)]
    stored, kept = _benchmark.store(replicas, before)
    assert [(entry["concurrency"], entry["output_tok_s"]) for entry in stored["rounds"]] == [(1, 40.0), (256, 4000.0)]
    assert (stored["replicas"], stored["release"]) == (3, "2026.11")
    assert kept == before[1]


def test_the_table_lies_beside_the_baseline() -> None:
    lines = _benchmark.table([("h20-01  deepseek-v3", record({64: (1710.0, 35.0), 256: (4000.0, 60.0)}), BASELINE)])
    assert [line.split() for line in lines[1:]] == [
        ["h20-01", "deepseek-v3", "64", "1,710", "8,550", "200.0", "400.0", "35.0", "36.0", "0", "-5.0%"],
        ["256", "4,000", "20,000", "200.0", "400.0", "60.0", "61.0", "0", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("most", "scale"),
    [
        (4386, [0, 1000, 2000, 3000, 4000, 5000]),
        (68, [0, 20, 40, 60, 80]),
        (5, [0, 1, 2, 3, 4, 5]),
        (0.7, [0, 0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_scales_have_round_numbers_that_reach_the_most(most: float, scale: list[float]) -> None:
    assert _chart.steps(most) == pytest.approx(scale)


def lines_of(count: int) -> list[_chart.Line]:
    return [
        _chart.Line(f"h20-{number:02}", [(1, 40.0, 24.0), (16, 500.0 + number, 28.0), (256, 4000.0, 60.0)])
        for number in range(count)
    ]


def test_the_chart_has_two_panels_with_a_logarithmic_axis_and_says_what_it_shows() -> None:
    baseline = _chart.Line("baseline", [(1, 41.0, 23.0), (256, 4100.0, 59.0)], is_baseline=True)
    root = ET.fromstring(_chart.document("Title <1>", "about & more", [*lines_of(2), baseline]))  # noqa: S314
    assert root.attrib["role"] == "img"
    assert root.findtext(f"{SVG}title") == "Title <1>"
    assert "h20-01: 40 tokens/s and 24 ms at 1, 501 tokens/s" in str(root.findtext(f"{SVG}desc"))
    drawn = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter(f"{SVG}polyline")
    ]
    assert [len(points) for points in drawn] == [3, 3, 2] * 2
    (left, _), (middle, _), (right, high) = drawn[0]
    assert middle - left == pytest.approx((right - left) / 2, abs=0.11)  # 16 is half way from 1 to 256
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    assert all(
        0 < x < width and _chart.TOP <= y <= _chart.TOP + _chart.PLOT < height for points in drawn for x, y in points
    )
    assert high == pytest.approx(_chart.TOP + _chart.PLOT * (1 - 4000 / 5000), abs=0.11)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"h20-00", "h20-01", "baseline", "1", "16", "256", "5,000", "60"} <= set(words)


def test_of_many_replicas_the_chart_names_the_median() -> None:
    root = ET.fromstring(_chart.document("Title", "about", lines_of(30)))  # noqa: S314
    assert len(list(root.iter(f"{SVG}polyline"))) == 2 * 31
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {"30 replicas", "median of them"} <= words
    assert "h20-29" not in words


def test_a_single_concurrency_is_drawn_in_the_middle() -> None:
    root = ET.fromstring(_chart.document("Title", "about", [_chart.Line("a", [(64, 1800.0, 34.0)])]))  # noqa: S314
    circles = [float(circle.attrib["cx"]) for circle in root.iter(f"{SVG}circle")]
    assert circles == [left + _chart.PANEL_WIDTH / 2 for left in _chart.LEFTS]


def report(tmp_path: Path, measured: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What the action returns."""
    arguments = {"measured": measured, "hosts": list(measured), "folder": str(tmp_path / "reports")} | changes
    task = unittest.mock.MagicMock(async_val=0, args=arguments)
    others = dict.fromkeys(("play_context", "loader", "templar", "shared_loader_obj"))
    result: dict[str, Any] = benchmark_report.ActionModule(
        task=task, connection=unittest.mock.MagicMock(), **others
    ).run(task_vars={})
    return result


def test_the_report_tells_the_hosts_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need = {"baseline": BASELINE, "tolerance": 0.1}
    measured = {"h20-01": [record(need=need)], "h20-02": [record({1: GOOD[1], 64: (900.0, 34.0)}, need=need)]}
    result = report(tmp_path, measured, hosts=["h20-01", "h20-02", "h20-03"])
    assert list(result["messages"]) == ["h20-02"]
    assert "deepseek-v3 c=64: 900 tokens/s of output, 50.0% below" in result["messages"]["h20-02"]
    assert result["baseline"] == []
    printed = capsys.readouterr().out
    assert "h20-03  not measured: the run failed on it" in printed
    documents = {
        host: json.loads((tmp_path / f"reports/benchmark/{host}.json").read_text("utf-8")) for host in measured
    }
    assert [document["verdict"] for document in documents.values()] == ["as the baseline", "failed"]
    assert "need" not in documents["h20-01"]["replicas"][0]
    xml = ET.parse(tmp_path / "reports/benchmark.xml").getroot()  # noqa: S314
    assert [(suite.attrib["name"], suite.attrib["failures"], suite.attrib["errors"]) for suite in xml] == [
        ("h20-01", "0", "0"),
        ("h20-02", "1", "0"),
        ("h20-03", "0", "1"),
    ]
    chart = ET.parse(tmp_path / "reports/benchmark.svg").getroot()  # noqa: S314
    assert {"baseline of deepseek-v3, release 2026.11", "Benchmark of 2 replicas"} <= {
        text.text for text in chart.iter(f"{SVG}text")
    }


def test_what_becomes_the_baseline_is_not_held_against_the_one_before_but_has_to_be_sound(tmp_path: Path) -> None:
    need = {"baseline": BASELINE, "tolerance": 0.1}
    slow, broken = (
        record({1: (20.0, 48.0)}, need=need),
        record(need=need) | {"rounds": [round_of(1, 90.0, 10.0, failed=2)]},
    )
    result = report(tmp_path, {"h20-01": [slow], "h20-02": [broken]}, store=True)
    assert list(result["messages"]) == ["h20-02"]
    assert [(entry["concurrency"], entry["output_tok_s"]) for entry in result["baseline"][0]["rounds"]] == [
        (1, 20.0),
        (64, 1800.0),
    ]


def test_check_mode_writes_no_reports(tmp_path: Path) -> None:
    assert report(tmp_path, {"h20-01": []}, store=True) == {"changed": False, "messages": {}, "baseline": []}
    assert not (tmp_path / "reports").exists()
