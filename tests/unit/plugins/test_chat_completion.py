# SPDX-License-Identifier: Apache-2.0
"""What an API may answer to the completion that proves a replica."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import typing as t

import pytest
from ansible_collections.h20.fleet.plugins.modules import chat_completion


@contextlib.contextmanager
def api(status: int, answer: bytes, seen: list[dict[str, t.Any]]) -> t.Iterator[str]:
    """An API on loopback that gives every request the same answer and keeps what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: object) -> None:
            """Keep the terminal of the tests quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def completion(tokens: int) -> bytes:
    return json.dumps({"choices": [{"message": {"content": "yes"}}], "usage": {"completion_tokens": tokens}}).encode()


def parameters(url: str, key: str = "") -> dict[str, t.Any]:
    return {"url": url, "model": "deepseek-v3", "prompt": "Hello", "max_tokens": 4, "api_key": key, "timeout": 10}


@pytest.mark.parametrize(("key", "header"), [("", None), ("secret", "Bearer secret")])
def test_text_and_tokens_of_the_answer_are_returned(key: str, header: str | None) -> None:
    seen: list[dict[str, t.Any]] = []
    with api(200, completion(3), seen) as url:
        assert chat_completion.complete(parameters(url, key)) == ("yes", 3)
    assert (seen[0]["path"], seen[0]["key"], seen[0]["model"]) == ("/v1/chat/completions", header, "deepseek-v3")
    assert seen[0]["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (200, completion(0), "answers without a token"),
        (401, b"{}", "answers HTTP 401"),
        (500, b"", "answers HTTP 500"),
        (200, b"<html>", "does not answer as the OpenAI API does"),
        (200, b"{}", "does not answer as the OpenAI API does"),
        (200, b"[]", "does not answer as the OpenAI API does"),
    ],
)
def test_any_other_answer_is_an_error_that_says_so(status: int, answer: bytes, message: str) -> None:
    with api(status, answer, []) as url, pytest.raises(chat_completion.CompletionError, match=message):
        chat_completion.complete(parameters(url))


def test_an_api_that_is_down_is_an_error_that_says_so() -> None:
    with api(200, b"", []) as url:
        pass
    with pytest.raises(chat_completion.CompletionError, match="does not answer"):
        chat_completion.complete(parameters(url))
