#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Wait until a starting vLLM has answered a completion; the unit counts as started then, and not before.

    vllm_ready.py CONFIG

Run by systemd beside the service (ExecStartPost), with its environment. CONFIG is the file that vLLM itself was started with. Ends with 1 as soon as the
main process is gone, so that systemd need not wait for the timeout of the unit; there is no timeout here, because the unit has one.
"""

from __future__ import annotations

import json
import os
import sys
import time
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

import yaml

POLL_SECONDS = 1
REPORT_SECONDS = 30
ANSWER_SECONDS = 60


def base_url(config: dict[str, t.Any]) -> str:
    """URL of the API as seen from this host; an address that means all of them is reached on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config["host"], config["host"])  # noqa: S104 (compared, not bound)
    return f"http://{f'[{host}]' if ':' in host else host}:{config['port']}"


def call(url: str, body: dict[str, t.Any] | None = None) -> bytes:
    """The answer to a GET, or to a POST of ``body``; raises OSError where there is none or its status is an error."""
    headers = {"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        return t.cast(bytes, response.read())


def is_healthy(url: str) -> bool:
    try:
        call(f"{url}/health")
    except OSError:  # the port is not open before the engine is ready
        return False
    return True


def main(arguments: list[str]) -> int:
    config = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    url, process = base_url(config), Path("/proc") / os.environ["MAINPID"]
    begun = reported = time.monotonic()
    while not is_healthy(url):
        if not process.exists():
            print("error: vLLM ended before it was ready; its own error stands above", file=sys.stderr)
            return 1
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            print(f"starting for {reported - begun:.0f} s", flush=True)
        time.sleep(POLL_SECONDS)
    try:
        answer = json.loads(
            call(f"{url}/v1/completions", {"model": config["served-model-name"][0], "prompt": "1", "max_tokens": 1})
        )
    except (urllib.error.HTTPError, OSError, ValueError) as error:
        print(f"error: vLLM is healthy but does not complete: {error}", file=sys.stderr)
        return 1
    print(
        f"ready after {time.monotonic() - begun:.0f} s, {answer['usage']['completion_tokens']} token answered",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
