# SPDX-License-Identifier: Apache-2.0
"""vllm_watchdog against a server that says /health and /metrics and gives no token: three strikes, and never one for what produces."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{{engine="0",model_name="tiny"}} {requests}
vllm:num_requests_waiting{{engine="0",model_name="tiny"}} 0.0
vllm:prompt_tokens_total{{engine="0",model_name="tiny"}} 7.0
vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {tokens}
vllm:generation_tokens_total{{engine="1",model_name="tiny"}} 1e+01
"""


@pytest.fixture(scope="module")
def vllm_watchdog(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The program beside what it imports, as the role installs them."""
    library = tmp_path_factory.mktemp("library")
    (library / "gpus").symlink_to(ROOT / "plugins/module_utils")
    sys.path[:0] = [str(library), str(ROOT / "roles/vllm_service/files")]
    return importlib.import_module("vllm_watchdog")


class Vllm(ThreadingHTTPServer):
    """``tokens`` so far and ``requests`` that run; a completion is answered with ``status``, or never where that is 0."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens, self.requests, self.status = 0, 0, 200
        self.asked = 0


class Handler(BaseHTTPRequestHandler):
    """Metrics, and completions."""

    server: Vllm

    def do_GET(self) -> None:
        self._send(200, METRICS.format(tokens=self.server.tokens, requests=self.server.requests))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if self.server.status:
            self._send(self.server.status, "{}")
        else:
            time.sleep(0.5)

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Say nothing."""


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    with Vllm() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def instance(vllm_watchdog: Any, vllm: Vllm, tmp_path: Path) -> Any:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"host": "0.0.0.0", "port": vllm.server_port, "served-model-name": ["tiny"]}))  # noqa: S104
    (tmp_path / "ready").write_text(json.dumps({"since": "2026", "pid": 1}))
    return vllm_watchdog.Instance(config, tmp_path, 0.1, 0.2)


def test_the_metrics_are_summed_over_the_engines(vllm_watchdog: Any) -> None:
    assert vllm_watchdog.parse(METRICS.format(tokens=32, requests=3.0)) == (49.0, 3.0)
    assert vllm_watchdog.parse("") == (0.0, 0.0)


def test_an_idle_engine_is_asked_for_a_token(instance: Any, vllm: Vllm) -> None:
    assert [instance.beat() for _ in range(4)] == [False] * 4
    assert (vllm.asked, instance.strikes) == (4, 0)


def test_tokens_under_load_are_life_enough(instance: Any, vllm: Vllm) -> None:
    vllm.status, vllm.requests = 0, 5
    for tokens in range(5):
        vllm.tokens = tokens
        assert not instance.beat()
    assert (vllm.asked, instance.strikes) == (0, 0)


@pytest.mark.parametrize(("requests", "why"), [(0, "within 0 s while it is idle"), (5, "while 5 requests run or wait")])
def test_three_beats_without_a_token_end_it(
    instance: Any, vllm: Vllm, requests: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    instance.beat()
    vllm.status, vllm.requests = 0, requests
    instance.tokens = 17.0  # what the metrics have said before
    assert [instance.beat() for _ in range(3)] == [False, False, True]
    assert "strike 3 of 3: no token" in capsys.readouterr().out
    assert why in instance.lives()


def test_one_token_forgives_the_strikes(instance: Any, vllm: Vllm) -> None:
    vllm.status = 0
    assert [instance.beat() for _ in range(2)] == [False, False]
    vllm.status = 200
    assert not instance.beat()
    vllm.status = 0
    assert [instance.beat() for _ in range(2)] == [False, False]


@pytest.mark.parametrize(("status", "strikes"), [(401, 0), (404, 0), (429, 0), (500, 1), (503, 1)])
def test_a_refusal_is_an_answer_and_an_engine_that_is_dead_none(
    instance: Any, vllm: Vllm, status: int, strikes: int
) -> None:
    vllm.status = status
    instance.beat()
    assert instance.strikes == strikes


def test_a_port_that_is_closed_is_a_strike(vllm_watchdog: Any, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"host": "127.0.0.1", "port": 9, "served-model-name": ["tiny"]}))
    assert "/metrics does not answer" in vllm_watchdog.Instance(config, tmp_path, 0.1, 0.2).lives()


def test_ready_is_taken_away_with_the_reason_and_given_back(
    instance: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        instance.withdraw("Xid 95 -> reset the GPU")
    assert not (tmp_path / "ready").exists()
    assert json.loads((tmp_path / "withdrawn").read_text()) == {
        "since": "2026",
        "pid": 1,
        "why": "Xid 95 -> reset the GPU",
    }
    assert capsys.readouterr().err == "error: vllm@tiny.service is not ready any more: Xid 95 -> reset the GPU\n"
    instance.restore()
    assert json.loads((tmp_path / "ready").read_text()) == {"since": "2026", "pid": 1}
    assert not (tmp_path / "withdrawn").exists()


def test_no_process_of_another_unit_is_ended(instance: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        instance.end(process.pid)
        time.sleep(0.1)
        assert process.poll() is None
        process.terminate()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ""),
        (["NVRM: Xid (PCI:0000:18:00): 31, pid=1, name=x, MMU Fault"], ""),
        (["NVRM: Xid (PCI:0000:5d:00): 79, GPU has fallen off the bus."], "Xid 79 of 0000:5d:00.0 at 2026-"),
        (
            ["nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"],
            "Sxid 20034 of 0000:c1:00.0",
        ),
    ],
)
def test_an_xid_that_a_restart_mends_is_none_that_matters(
    vllm_watchdog: Any, lines: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "journalctl"
    log = "".join(f"1795000000.5 h20-07 kernel: {line}\\n" for line in lines)
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\nprintf '{log}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = vllm_watchdog.fatal_xid("@1794999999")
    assert found.startswith(said)
    assert bool(found) == bool(said)
    assert "--since=@1794999999" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('accepted')", ""),
        (
            "import sys; sys.exit('error: other GPUs were accepted than are there -> run the stage')",
            "other GPUs were accepted",
        ),
        ("import time; time.sleep(5)", "has not answered within"),
    ],
)
def test_a_host_that_is_not_accepted_any_more_is_told(
    vllm_watchdog: Any, script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gate.py").write_text(script)
    monkeypatch.setattr(vllm_watchdog, "GATE", tmp_path / "gate.py")
    monkeypatch.setattr(vllm_watchdog, "GATE_SECONDS", 2)
    assert said in vllm_watchdog.refused()
    assert bool(vllm_watchdog.refused()) == bool(said)
