# SPDX-License-Identifier: Apache-2.0
"""benchmark_job: what is refused before a replica is loaded, how the unit is started and joined, and what is taken in; systemd is a stand-in."""

from __future__ import annotations

import dataclasses
import getpass
import http.server
import json
import os
import stat
import threading
import typing as t
from pathlib import Path

import pytest
from unit.plugins.support import run_module, write_program

SYSTEMCTL = """\
if ARGUMENTS[0] == "is-active":
    print((HERE / ("bench" if "benchmark" in ARGUMENTS[1] else "unit")).read_text().strip())
"""
SYSTEMD_RUN = "(HERE / 'runs').open('a').write(json.dumps(ARGUMENTS) + '\\n'); (HERE / 'bench').write_text('active')"
KEY = "key-of-a-test"
RESULT = {
    "completed": 4,
    "failed": 0,
    "duration": 1.0,
    "output_throughput": 100.0,
    "total_token_throughput": 500.0,
    "median_ttft_ms": 10.0,
    "p99_ttft_ms": 12.0,
    "median_tpot_ms": 5.0,
    "p99_tpot_ms": 6.0,
}


class Api(http.server.BaseHTTPRequestHandler):
    """What vLLM says of itself: models want the key, the rest does not."""

    root = ""
    metrics = "vllm:num_requests_running{} 0.0\nvllm:num_requests_waiting{} 0.0\n"

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.headers.get("Authorization") != f"Bearer {KEY}":
            self._send(401, "")
        elif self.path == "/v1/models":
            self._send(200, json.dumps({"data": [{"id": "m", "root": self.root, "max_model_len": 1280}]}))
        elif self.path == "/version":
            self._send(200, '{"version": "0.32.0"}')
        else:
            self._send(200 if self.metrics else 404, self.metrics)

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Keep the terminal of the tests quiet."""


@dataclasses.dataclass
class Host:
    """A host with systemd and an API, and the module's parameters for it."""

    folder: Path
    api: type[Api]
    params: dict[str, t.Any]

    def run(self, *, check: bool = False, **changes: t.Any) -> dict[str, t.Any]:
        return run_module("benchmark_job", check=check, **(self.params | changes))

    def say(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text, encoding="utf-8")

    def end(self, state: dict[str, t.Any] | None) -> None:
        self.say("bench", "inactive")
        if state is not None:
            (self.folder / "job/work/state.json").write_text(json.dumps(state), encoding="utf-8")

    @property
    def runs(self) -> list[list[str]]:
        path = self.folder / "bin/runs"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Host]:
    write_program(tmp_path / "bin/systemctl", SYSTEMCTL)
    write_program(tmp_path / "bin/systemd-run", SYSTEMD_RUN)
    write_program(tmp_path / "bin/journalctl", "print((HERE / 'journal').read_text(), end='')")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for path in ("release/bin", "model"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "release/bin/vllm").touch()
    api = type("Api", (Api,), {"root": str(tmp_path / "model")})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    params = {
        "program": "print('a program')",
        "url": f"http://127.0.0.1:{server.server_port}",
        "model": "m",
        "api_key": KEY,
        "concurrencies": [1, 4],
        "requests": 4,
        "input_tokens": 1024,
        "output_tokens": 256,
        "timeout": 60,
        "current": str(tmp_path / "release"),
        "folder": str(tmp_path / "job"),
        "user": getpass.getuser(),
    }
    made = Host(tmp_path, api, params)
    for name, text in {"bench": "inactive", "unit": "active", "journal": ""}.items():
        made.say(name, text)
    yield made
    server.shutdown()
    server.server_close()


def test_starts_a_unit_without_rights_and_with_the_key_in_a_file_of_roots(host: Host) -> None:
    begun = host.run()
    assert (begun["status"], begun["vllm"], begun["changed"]) == ("running", "0.32.0", False)
    [command] = host.runs
    limit = 2 * 2 * 60 + 600
    assert {
        f"--property=User={getpass.getuser()}",
        "--property=Nice=5",
        f"--property=RuntimeMaxSec={limit}",
        "--collect",
    } <= set(command)
    assert command[-4:] == [
        f"{host.folder}/release/bin/python",
        "-B",
        f"{host.folder}/job/benchmark.py",
        f"{host.folder}/job/job.json",
    ]
    assert KEY not in json.dumps(command) + json.dumps(begun)
    secret = host.folder / "job/key.env"
    assert f"--property=EnvironmentFile={secret}" in command
    assert (secret.read_text("utf-8"), stat.S_IMODE(secret.stat().st_mode)) == (f"VLLM_API_KEY={KEY}\n", 0o600)
    job = json.loads((host.folder / "job/job.json").read_text("utf-8"))
    assert (job["tokenizer"], job["concurrencies"]) == (str(host.folder / "model"), [1, 4])
    assert KEY not in json.dumps(job)


def test_shows_how_far_it_is_and_takes_the_figures_in_once_it_has_ended(host: Host) -> None:
    host.run()
    state = {"said": ["importing vLLM"], "rounds": [], "error": "", "done": False}
    host.end(state)
    host.say("bench", "active")
    assert host.run(step="look")["said"] == ["importing vLLM"]
    rounds = [{"concurrency": 1, "others": 0, "result": RESULT}]
    host.end(state | {"rounds": rounds, "done": True})
    ended = host.run(step="look")
    assert (ended["status"], ended["rounds"][0]["output_tok_s"], ended["rounds"][0]["tpot_p50_ms"]) == (
        "ended",
        100.0,
        5.0,
    )
    assert not (host.folder / "job").exists()


def test_the_same_benchmark_is_joined_and_another_is_refused(host: Host) -> None:
    host.run()
    host.api.metrics = "vllm:num_requests_running{} 4.0\n"  # its own
    assert host.run()["status"] == "running"
    assert len(host.runs) == 1
    other = host.run(requests=2)
    assert other["msg"] == (
        f"another benchmark runs on this host (of m at {host.params['url']}) -> wait for it, or end it: systemctl stop h20-fleet-benchmark.service"
    )


@pytest.mark.parametrize(
    ("state", "journal", "message"),
    [
        ({"error": "2 requests did not end -> wait"}, "", "2 requests did not end -> wait"),
        (
            None,
            "importing vLLM\nMain process exited, status=9/KILL\n\n",
            "the benchmark was ended: Main process exited, status=9/KILL -> run it again",
        ),
        (None, "", "the benchmark was ended: it said nothing -> run it again"),
    ],
)
def test_a_unit_without_a_result_says_why(
    host: Host, state: dict[str, t.Any] | None, journal: str, message: str
) -> None:
    host.run()
    host.say("journal", journal)
    host.end(state)
    assert host.run(step="look")["msg"] == message
    assert not (host.folder / "job").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concurrencies": []}, "there is nothing to measure"),
        ({"concurrencies": [4, 0]}, "there is nothing to measure"),
        ({"timeout": 0}, "there is nothing to measure"),
        ({"current": "/nowhere"}, "/nowhere/bin/vllm is not there -> run the stages first"),
        ({"api_key": "wrong"}, "/v1/models answers HTTP 401 Unauthorized -> name the key in benchmark_api_key"),
        ({"model": "other"}, "has no model other -> name one of those that it has: m"),
        ({"output_tokens": 257}, "prompts of 1024 tokens with answers of 257 are longer than max-model-len 1280"),
        ({"tokenizer": "/nowhere"}, "there is no folder /nowhere on this host -> name one in benchmark_tokenizer"),
        ({"url": "http://127.0.0.1:9"}, "does not answer: "),
    ],
)
def test_refuses_what_cannot_be_measured_before_it_starts_anything(
    host: Host, changes: dict[str, t.Any], message: str
) -> None:
    assert message in host.run(**changes)["msg"]
    assert host.runs == []


def test_refuses_an_instance_that_does_not_serve(host: Host) -> None:
    host.say("unit", "activating")
    assert host.run(instance="m")["msg"].startswith("vllm@m.service is activating -> ")


def test_refuses_a_replica_that_answers_somebody_else_unless_told_so(host: Host) -> None:
    host.api.metrics = 'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\nvllm:num_requests_waiting{} 5.0\n'
    assert host.run()["msg"].startswith("the replica answers somebody else: 3 requests run, 5 wait -> ")
    assert host.runs == []
    assert host.run(while_serving=True)["status"] == "running"


def test_a_gateway_need_not_hand_on_metrics(host: Host) -> None:
    host.api.metrics = ""
    assert host.run()["status"] == "running"


def test_check_mode_judges_and_starts_nothing(host: Host) -> None:
    assert host.run(check=True)["status"] == "due"
    assert "longer than" in host.run(check=True, input_tokens=2000)["msg"]
    assert host.runs == []
    assert not (host.folder / "job").exists()
