# SPDX-License-Identifier: Apache-2.0
"""vllm_warm_up against a small server in place of vLLM: warm when two rounds are equally fast, ready when the canary holds."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = Path(__file__).parents[3] / "roles/vllm_service/files/vllm_warm_up.py"
sys.path.insert(0, str(PROGRAM.parent))
vllm_warm_up: Any = importlib.import_module(PROGRAM.stem)

KEY = "key-of-a-test"


class Vllm(ThreadingHTTPServer):
    """Answers completions with all tokens that were asked for, and a chat with a stream of ``words``, the first after ``late`` seconds."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.words = ["Par", "is"]
        self.late = 0.0
        self.status = 200
        self.prompts: list[list[int]] = []


class Handler(BaseHTTPRequestHandler):
    """Completions and chats; both want the key."""

    server: Vllm

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {KEY}" or self.server.status != 200:
            self._send(self.server.status if self.server.status != 200 else 401, b"")
        elif self.path == "/v1/completions":
            self.server.prompts.append(body["prompt"])
            self._send(200, json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}).encode())
        else:
            assert body["stream"]
            time.sleep(self.server.late)
            deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in self.server.words)]
            events = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
            self._send(200, "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Say nothing."""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vllm]:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("MAINPID", str(os.getpid()))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with Vllm() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def run(vllm: Vllm, folder: Path, **canary: Any) -> int:
    config, proof = folder / "deepseek.yaml", folder / "deepseek.proof.json"
    config.write_text(
        yaml.safe_dump({"host": "127.0.0.1", "port": vllm.server_port, "served-model-name": ["deepseek"]})
    )
    load = {"concurrency": 3, "prompt_tokens": 7, "answer_tokens": 5, "rounds": 4, "seconds": 20, "tolerance": 1.0}
    question = {"prompt": "What is the capital of France?", "expected": "Paris", "first_token_seconds": 5} | canary
    proof.write_text(json.dumps({"release": "2026.11", "warm_up": load, "canary": question}))
    status: int = vllm_warm_up.main([str(config), str(proof)])
    return status


def test_ready_is_what_is_warm_and_proved(vllm: Vllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(vllm, tmp_path) == 0
    state = json.loads((tmp_path / "ready").read_text())
    assert (state["release"], state["pid"], state["steady"]) == ("2026.11", os.getpid(), True)
    assert time.time() - 86400 < state["started"] <= time.time()
    assert (tmp_path / "ready").stat().st_mode & 0o777 == 0o644
    assert len(vllm.prompts) == 6
    assert {len(prompt) for prompt in vllm.prompts} == {7}
    assert len({tuple(prompt) for prompt in vllm.prompts}) == 6, (
        "a prompt that was asked before is answered from the cache"
    )
    assert "in service" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speeds", "rounds", "steady"),
    [
        ([60.0, 100.0, 102.0, 500.0], 3, True),
        ([100.0, 100.0], 2, True),
        ([60.0, 100.0, 60.0, 100.0, 60.0], 4, False),
    ],
)
def test_rounds_go_on_until_two_are_equally_fast_or_there_were_enough(
    speeds: list[float], rounds: int, steady: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(speeds)
    monkeypatch.setattr(vllm_warm_up, "speed", lambda *_arguments: next(left))
    load = {"concurrency": 1, "rounds": 4, "seconds": 60, "tolerance": 0.05}
    assert vllm_warm_up.warm(None, load) == (speeds[:rounds], steady)


def test_rounds_end_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def round_of_20_ms(*_arguments: object) -> float:
        time.sleep(0.02)
        return time.monotonic()

    monkeypatch.setattr(vllm_warm_up, "speed", round_of_20_ms)
    load = {"concurrency": 1, "rounds": 1000, "seconds": 0.1, "tolerance": 0.0}
    speeds, steady = vllm_warm_up.warm(None, load)
    assert 1 <= len(speeds) <= 6
    assert not steady


@pytest.mark.parametrize(
    ("words", "late", "said"),
    [
        ([], 0.0, "the canary got no token ->"),
        (["Lon", "don"], 0.0, "the canary answered 'London', and 'Paris' was expected ->"),
        (["Paris"], 0.3, "first token came after 0."),
    ],
)
def test_a_canary_that_does_not_hold_is_not_ready(
    vllm: Vllm, words: list[str], late: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.words, vllm.late = words, late
    assert run(vllm, tmp_path, first_token_seconds=0.2 if late else 5) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ready").exists()


def test_an_unknown_model_may_say_what_it_likes(vllm: Vllm, tmp_path: Path) -> None:
    vllm.words = ["whatever"]
    assert run(vllm, tmp_path, expected="") == 0


def test_an_engine_that_fails_under_its_warm_up_is_not_ready(
    vllm: Vllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.status = 500
    assert run(vllm, tmp_path) == 1
    assert "error: vLLM fails under its warm-up: HTTP Error 500" in capsys.readouterr().err
    assert not (tmp_path / "ready").exists()
