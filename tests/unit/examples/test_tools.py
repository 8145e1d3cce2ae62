# SPDX-License-Identifier: Apache-2.0
"""The example of tool calls with the real client and a server that answers as vLLM does: a model with random weights writes no call that ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "examples/tools.py"
CALL = {"id": "call-1", "type": "function", "function": {"name": "time_in", "arguments": '{"zone": "Asia/Shanghai"}'}}


class Replica(ThreadingHTTPServer):
    """Answers each request with the next message, and keeps what it was asked."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.messages = list(messages)
        self.asked: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        message = {"role": "assistant", "content": None} | self.server.messages.pop(0)
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "deepseek-v3", "choices": [choice]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def replica(request: pytest.FixtureRequest) -> Iterator[Replica]:
    server = Replica(*request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(replica: Replica, *arguments: str) -> str:
    url = f"http://127.0.0.1:{replica.server_port}/v1"
    environment = os.environ | {"OPENAI_API_KEY": "secret", "no_proxy": "*"}
    command = [sys.executable, str(PROGRAM), "--base-url", url, *arguments, "What time is it?"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("replica", [[{"tool_calls": [CALL]}, {"content": "Noon."}]], indirect=True)
def test_the_result_of_the_call_goes_back_and_the_answer_is_printed(replica: Replica) -> None:
    call, answer = ask(replica).splitlines()
    assert (match := re.fullmatch(r'time_in\(\{"zone": "Asia/Shanghai"\}\) = (\d\d:\d\d)', call))
    assert answer == "Noon."
    first, second = replica.asked
    assert first["tool_choice"] == "auto"
    assert first["tools"][0]["function"]["name"] == "time_in"
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert second["messages"][1]["tool_calls"][0] == CALL
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "call-1", "content": match[1]}


@pytest.mark.parametrize("replica", [[{"content": "I do not know."}]], indirect=True)
def test_an_answer_without_a_call_is_printed(replica: Replica) -> None:
    assert ask(replica, "--force") == "I do not know.\n"
    assert replica.asked[0]["tool_choice"]["function"]["name"] == "time_in"
