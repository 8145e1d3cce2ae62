# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a replica that serves: vLLM's own client against it, the reports, and the baseline that a run is held against."""

from __future__ import annotations

import http.client
import json
import re
import typing as t
from xml.etree import ElementTree as ET

import pytest
import yaml
from conftest import INSTANCE, ROOT, Api, Run, play, shell

if t.TYPE_CHECKING:
    from pathlib import Path

HOST = "h20-12"
REPORTS = ROOT / ".testbed/reports"
SVG = "{http://www.w3.org/2000/svg}"
#: What a run is told beside the inventory: few requests, and what a CPU that others use as well may differ by from one run to the next.
SETTINGS = {"benchmark_concurrencies": [1, 2], "benchmark_requests": 2, "benchmark_tolerance": 5.0}


def benchmark(*arguments: str, **settings: t.Any) -> Run:
    return play("benchmark", "--limit", HOST, "--extra-vars", json.dumps(SETTINGS | settings), *arguments)


def report() -> dict[str, t.Any]:
    document: dict[str, t.Any] = json.loads((REPORTS / f"benchmark/{HOST}.json").read_text("utf-8"))
    return document


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baseline") / "baseline.yml"


@pytest.fixture(scope="module")
def stored(baseline: Path) -> Run:
    """The first run, which becomes the baseline."""
    return benchmark(benchmark_store=True, benchmark_baseline_file=str(baseline))


def test_check_mode_says_what_would_be_measured(baseline: Path) -> None:
    run = benchmark("--check", benchmark_store=True, benchmark_baseline_file=str(baseline))
    assert run.rc == 0, run.output
    assert f"{HOST} {INSTANCE} would be measured at c=1, 2" in run.words
    assert not baseline.exists()


def test_a_run_shows_each_round_and_ends_with_a_table(stored: Run) -> None:
    assert stored.rc == 0, stored.output
    for concurrency in (1, 2):
        assert re.search(
            rf"c={concurrency} +[\d,.]+ tokens/s of output, TTFT .* {2 * concurrency} requests in", stored.output
        )
    assert re.search(rf"{HOST}  {INSTANCE} +1( +[\d,.]+){{6}} +0 ", stored.output), stored.output


def test_the_report_says_what_was_measured_and_on_what(stored: Run) -> None:
    assert stored.rc == 0, stored.output
    [replica] = report()["replicas"]
    assert (replica["instance"], replica["profile"], replica["release"]) == (INSTANCE, "cpu_test", "demo")
    assert (replica["vllm"], replica["gpus"], replica["driver"]) == ("0.32.0", 8, "580.173.02")
    assert [entry["concurrency"] for entry in replica["rounds"]] == [1, 2]
    for entry in replica["rounds"]:
        assert (entry["completed"], entry["failed"], entry["others"]) == (2 * entry["concurrency"], 0, 0)
        assert 0 < entry["output_tok_s"] < entry["total_tok_s"]
        assert 0 < entry["ttft_p50_ms"] <= entry["ttft_p99_ms"]
        assert 0 < entry["tpot_p50_ms"] <= entry["tpot_p99_ms"]
    root = ET.parse(REPORTS / "benchmark.svg").getroot()  # noqa: S314 (written by this run)
    assert [len(line.attrib["points"].split()) for line in root.iter(f"{SVG}polyline")] == [2, 2]
    cases = ET.parse(REPORTS / "benchmark.xml").getroot().iter("testcase")  # noqa: S314 (written by this run)
    assert [case.attrib["name"] for case in cases] == [f"{INSTANCE} c=1", f"{INSTANCE} c=2"]


def test_nothing_of_it_stays_on_the_host_and_no_key_is_shown(stored: Run) -> None:
    assert Api(HOST).key not in stored.output
    assert shell(HOST, "ls -d /run/h20-fleet-benchmark* 2>/dev/null || true") == ""
    assert "could not be found" in shell(HOST, "systemctl status h20-fleet-benchmark 2>&1 || true")
    assert Api(HOST).key not in shell(HOST, "journalctl --unit h20-fleet-benchmark --no-pager --output cat")


def test_what_reaches_the_baseline_passes_and_what_does_not_fails(stored: Run, baseline: Path) -> None:
    assert stored.rc == 0, stored.output
    again = benchmark("--extra-vars", f"@{baseline}")
    assert again.rc == 0, again.output
    assert report()["verdict"] == "as the baseline"

    kept = yaml.safe_load(baseline.read_text("utf-8"))
    for entry in kept["benchmark_baseline"][0]["rounds"]:
        entry["output_tok_s"] *= 100
    baseline.write_text(yaml.safe_dump(kept), "utf-8")
    below = benchmark("--extra-vars", f"@{baseline}", benchmark_tolerance=0.1)
    assert below.rc == 2, below.output
    assert re.search(
        rf"{INSTANCE} c=2: [\d,.]+ tokens/s of output, 9\d\.\d% below the baseline of [\d,.e+]+ \(10% are borne\)",
        below.words,
    )
    assert "-e benchmark_store=true" in below.words
    assert report()["verdict"] == "failed"


def test_a_replica_that_answers_somebody_else_is_left_alone() -> None:
    """A request of many long answers, which ends when the client goes away."""
    api = Api(HOST)
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=60)
    body = {"model": INSTANCE, "prompt": "a", "max_tokens": 1000, "ignore_eos": True, "n": 128}
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    try:
        run = benchmark()
    finally:
        connection.close()
    assert run.rc == 2, run.output
    assert re.search(
        r"the replica answers somebody else: \d+ requests run, \d+ wait -> take it out of service first", run.words
    ), run.output
