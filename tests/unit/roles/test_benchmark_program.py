# SPDX-License-Identifier: Apache-2.0
"""The program that measures a replica, with a small vLLM in place of the real one: its client writes what the real one writes, a small server counts."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/benchmark/files/benchmark.py"

#: Notes its command line and key, has the server count, and writes a result; what it is told by a file beside it comes first.
CLIENT = """\
import json, os, sys, time, urllib.request
from pathlib import Path
HERE = Path(__file__).parents[2]

def main():
    options = dict(zip(sys.argv[3:-1], sys.argv[4:]))
    with (HERE / "calls").open("a") as file:
        file.write(json.dumps({"argv": sys.argv, "key": os.environ.get("OPENAI_API_KEY"), "home": os.environ["HOME"]}) + "\\n")
    print("a line of vLLM's own")
    fault = (HERE / "fault").read_text() if (HERE / "fault").exists() else ""
    exec(fault)
    requests = int(options["--num-prompts"])
    urllib.request.urlopen(options["--base-url"] + f"/count?{requests}", b"").read()
    found = {"completed": requests, "failed": 0, "output_throughput": 100.0, "total_token_throughput": 500.0, "duration": 1.0,
             "median_ttft_ms": 10.0, "p99_ttft_ms": 12.0, "median_tpot_ms": 5.0, "p99_tpot_ms": 6.0, "errors": ["", "ConnectionError: gone"], "itls": [[1]]}
    (Path(options["--result-dir"]) / options["--result-filename"]).write_text(json.dumps(found))
"""


class Replica(ThreadingHTTPServer):
    """Counts requests as vLLM does, in two counters that belong together; ``foreign`` are answered beside each count."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answered = 7
        self.foreign = 0


class Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        self._send(
            f'# HELP\nvllm:request_success_total{{finished_reason="stop"}} 1.0\nvllm:request_success_created{{}} 1.7e+09\n'
            f'vllm:request_success_total{{finished_reason="length"}} {self.server.answered}.0\n'
        )

    def do_POST(self) -> None:
        self.server.answered += int(self.path.rpartition("?")[2]) + self.server.foreign
        self._send("")

    def _send(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Keep the terminal of the tests quiet."""


class Bench:
    """A folder with the small vLLM and the job, and its server."""

    def __init__(self, folder: Path, replica: Replica) -> None:
        self.folder, self.replica = folder, replica
        self.work = folder / "work"
        self.work.mkdir()
        for name, text in {"entrypoints/cli/main.py": CLIENT, "benchmarks/serve.py": ""}.items():
            path = folder / "vllm" / name
            path.parent.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")
        self.job = {
            "url": f"http://127.0.0.1:{replica.server_port}",
            "model": "m",
            "tokenizer": "/models/m",
            "concurrencies": [1, 4],
            "requests": 2,
            "input_tokens": 32,
            "output_tokens": 8,
            "timeout": 20,
            "state": str(self.work / "state.json"),
        }

    def run(self, **changes: t.Any) -> subprocess.CompletedProcess[str]:
        path = self.folder / "job.json"
        path.write_text(json.dumps(self.job | changes), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(self.folder), "VLLM_API_KEY": "key-of-a-test"}
        command = [sys.executable, "-B", str(PROGRAM), str(path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    @property
    def state(self) -> dict[str, t.Any]:
        document: dict[str, t.Any] = json.loads((self.work / "state.json").read_text(encoding="utf-8"))
        return document

    @property
    def calls(self) -> list[dict[str, t.Any]]:
        return [json.loads(line) for line in (self.folder / "vllm/calls").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> t.Iterator[Bench]:
    replica = Replica()
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    yield Bench(tmp_path, replica)
    replica.shutdown()
    replica.server_close()


def test_each_concurrency_is_measured_twice_with_other_prompts_and_the_first_is_discarded(bench: Bench) -> None:
    done = bench.run()
    assert done.returncode == 0, done.stderr
    options = [dict(itertools.pairwise(call["argv"][3:])) for call in bench.calls]
    assert [(each["--max-concurrency"], each["--num-prompts"]) for each in options] == [("1", "2")] * 2 + [
        ("4", "8")
    ] * 2
    assert len({each["--seed"] for each in options}) == 4
    assert bench.state["done"]
    assert [(each["concurrency"], each["result"]["completed"], each["others"]) for each in bench.state["rounds"]] == [
        (1, 2, 0),
        (4, 8, 0),
    ]
    assert bench.state["said"] == done.stdout.splitlines()
    assert "c=4  100 tokens/s of output, TTFT 10 ms, TPOT 5.0 ms, 8 requests" in bench.state["said"][-1]
    assert "itls" not in bench.state["rounds"][0]["result"]


def test_the_key_is_in_the_environment_alone(bench: Bench) -> None:
    done = bench.run()
    assert {call["key"] for call in bench.calls} == {"key-of-a-test"}
    assert {call["home"] for call in bench.calls} == {str(bench.work)}
    assert "key-of-a-test" not in json.dumps(
        [call["argv"] for call in bench.calls]
    ) + done.stdout + done.stderr + json.dumps(bench.state)


def test_requests_of_others_are_counted(bench: Bench) -> None:
    bench.replica.foreign = 3
    assert bench.run(concurrencies=[1]).returncode == 0
    assert bench.state["rounds"][0]["others"] == 3


def test_a_round_that_hangs_is_ended_with_a_remedy(bench: Bench) -> None:
    (bench.folder / "vllm/fault").write_text("time.sleep(60)", encoding="utf-8")
    begun = time.monotonic()
    done = bench.run(timeout=1)
    assert time.monotonic() - begun < 20
    assert done.returncode == 1
    assert bench.state["error"].startswith("2 requests at c=1 did not end within 1 s -> ")
    assert done.stderr.splitlines()[-1] == f"error: {bench.state['error']}"
    assert not bench.state["done"]


def test_a_client_that_fails_says_why(bench: Bench) -> None:
    (bench.folder / "vllm/fault").write_text("raise ValueError('no such tokenizer')", encoding="utf-8")
    assert bench.run().returncode == 1
    assert bench.state["error"] == "`vllm bench serve` ended with status 1 at c=1: ValueError: no such tokenizer"


def test_a_release_without_what_the_client_needs_is_refused_before_any_request(bench: Bench) -> None:
    (bench.folder / "vllm/benchmarks/serve.py").write_text("import pandas_of_another_release", encoding="utf-8")
    assert bench.run().returncode == 1
    assert (
        "No module named 'pandas_of_another_release' -> add what is missing to the release's lock"
        in bench.state["error"]
    )
    assert not (bench.folder / "vllm/calls").exists()
