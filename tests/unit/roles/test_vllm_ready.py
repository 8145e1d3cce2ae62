# SPDX-License-Identifier: Apache-2.0
"""vllm_ready against a small server in place of vLLM."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = Path(__file__).parents[3] / "roles/vllm_service/files/vllm_ready.py"
sys.path.insert(0, str(PROGRAM.parent))
vllm_ready: Any = importlib.import_module(PROGRAM.stem)

KEY = "key-of-a-test"
COMPLETION = {"usage": {"completion_tokens": 1}}


class Vllm(ThreadingHTTPServer):
    """Unhealthy for the first ``starting`` questions, then healthy; ``completion`` is the status and body of its answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.starting = 0
        self.completion = (200, json.dumps(COMPLETION).encode())
        self.health_asked = 0
        self.prompts: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    """Health and completions; both want the key."""

    server: Vllm

    def do_GET(self) -> None:
        self.server.health_asked += 1
        healthy = self.path == "/health" and self.server.health_asked > self.server.starting
        self._send(200 if healthy else 503, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.prompts.append(body)
        wanted = (self.path, self.headers["Authorization"]) == ("/v1/completions", f"Bearer {KEY}")
        self._send(*(self.server.completion if wanted else (401, b"")))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Say nothing."""


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vllm]:
    monkeypatch.setattr(vllm_ready, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("MAINPID", str(os.getpid()))
    with Vllm() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def config(folder: Path, port: int) -> str:
    path = folder / "deepseek.yaml"
    path.write_text(yaml.safe_dump({"host": "0.0.0.0", "port": port, "served-model-name": ["deepseek", "org/name"]}))  # noqa: S104
    return str(path)


@pytest.fixture
def ended_process() -> str:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104 (compared, not bound)
        ("::", "http://[::1]:8000"),
        ("10.0.0.7", "http://10.0.0.7:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_address_as_seen_from_the_host_itself(host: str, url: str) -> None:
    assert vllm_ready.base_url({"host": host, "port": 8000}) == url


@pytest.mark.parametrize("starting", [0, 5])
def test_ready_means_that_a_completion_was_answered(
    vllm: Vllm, starting: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.starting = starting
    assert vllm_ready.main([config(tmp_path, vllm.server_port)]) == 0
    assert vllm.health_asked == starting + 1
    assert vllm.prompts == [{"model": "deepseek", "prompt": "1", "max_tokens": 1}]
    assert capsys.readouterr().out == "ready after 0 s, 1 token answered\n"


def test_a_long_start_is_told(
    vllm: Vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_ready, "REPORT_SECONDS", 0)
    vllm.starting = 2
    vllm_ready.main([config(tmp_path, vllm.server_port)])
    assert capsys.readouterr().out.splitlines()[:2] == ["starting for 0 s"] * 2


def test_a_process_that_is_gone_ends_the_wait(
    vllm: Vllm,
    ended_process: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vllm.starting = 1000
    monkeypatch.setenv("MAINPID", ended_process)
    assert vllm_ready.main([config(tmp_path, vllm.server_port)]) == 1
    assert "vLLM ended before it was ready" in capsys.readouterr().err


def test_a_port_that_is_not_open_is_no_health(
    ended_process: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAINPID", ended_process)
    assert vllm_ready.main([config(tmp_path, 9)]) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b""), (404, b'{"error": "no such model"}'), (401, b""), (200, b""), (200, b"<html>")],
)
def test_health_without_a_completion_is_not_ready(
    vllm: Vllm, status: int, body: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.completion = (status, body)
    assert vllm_ready.main([config(tmp_path, vllm.server_port)]) == 1
    assert "vLLM is healthy but does not complete: " in capsys.readouterr().err


def test_the_program_runs_as_systemd_runs_it(vllm: Vllm, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), config(tmp_path, vllm.server_port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("1 token answered\n")
