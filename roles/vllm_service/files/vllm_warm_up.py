#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Warm a vLLM that has answered, prove it by a canary, and only then call it ready.

    vllm_warm_up.py CONFIG PROOF

Run by systemd beside the service (ExecStartPost), with its environment, after it has answered a first completion. CONFIG is the file that vLLM itself was
started with, PROOF says how large the load is and what the canary must answer. The load goes on in rounds until two of them were equally fast; one that does
not settle within its bounds is told and no refusal. The canary is one: no token in time, or another answer than is known of this model. The state `ready` is
a file, `ready` in the runtime directory of the unit, which systemd deletes with the directory when the unit has ended, however that came.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import typing as t
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import yaml
from vllm_ready import base_url

#: Ids of tokens that every tokenizer of a byte level has as single characters: no prefix of one prompt is that of another.
TOKENS = range(32, 224)
CANARY_TOKENS = 32


class Unproved(Exception):  # noqa: N818 - the answer of this program, not an error of it
    """Why the replica is not ready, with the remedy."""


class Api(t.NamedTuple):
    """Where vLLM answers, by which name, and how long an answer may take."""

    url: str
    model: str
    seconds: float

    def ask(self, path: str, body: dict[str, t.Any]) -> t.Any:
        """The response to a POST; raises OSError."""
        headers = {"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}", "Content-Type": "application/json"}
        data = json.dumps({"model": self.model, **body}).encode()
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=self.seconds)


def answered(api: Api, load: dict[str, t.Any]) -> int:
    """Tokens of one answer to a prompt that nobody has asked before."""
    prompt = random.choices(TOKENS, k=load["prompt_tokens"])  # noqa: S311 (no secret)
    body = {"prompt": prompt, "max_tokens": load["answer_tokens"], "ignore_eos": True}
    with api.ask("/v1/completions", body) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


def speed(api: Api, load: dict[str, t.Any]) -> float:
    """Tokens a second of one round of the load."""
    begun = time.monotonic()
    with ThreadPoolExecutor(load["concurrency"]) as pool:
        tokens = sum(pool.map(lambda _number: answered(api, load), range(load["concurrency"])))
    return tokens / (time.monotonic() - begun)


def warm(api: Api, load: dict[str, t.Any]) -> tuple[list[float], bool]:
    """The speed of each round, and whether the last two were equally fast."""
    begun = time.monotonic()
    speeds: list[float] = []
    while len(speeds) < load["rounds"] and time.monotonic() - begun < load["seconds"]:
        speeds.append(speed(api, load))
        print(f"warm-up round {len(speeds)}: {speeds[-1]:.1f} tokens/s, {load['concurrency']} at once", flush=True)
        if len(speeds) > 1 and abs(speeds[-1] - speeds[-2]) <= load["tolerance"] * max(speeds[-2:]):
            return speeds, True
    print(
        f"warm-up has not settled in {len(speeds)} rounds and {time.monotonic() - begun:.0f} s; it goes on as it is",
        flush=True,
    )
    return speeds, False


def prove(api: Api, canary: dict[str, t.Any]) -> float:
    """Seconds to the first token of the canary; raises Unproved where it is late or the answer is wrong."""
    body = {
        "messages": [{"role": "user", "content": canary["prompt"]}],
        "max_tokens": CANARY_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    begun = time.monotonic()
    first: float | None = None
    text = ""
    with api.ask("/v1/chat/completions", body) as response:
        for line in response:
            piece = token(line)
            if piece is not None and first is None:
                first = time.monotonic() - begun
            text += piece or ""
    if first is None:
        raise Unproved("the canary got no token -> the lines above say why; systemctl restart the unit")
    if first > canary["first_token_seconds"]:
        raise Unproved(
            f"the canary's first token came after {first:.1f} s, bound {canary['first_token_seconds']} s -> see that no GPU is throttled "
            "(nvidia-smi -q -d PERFORMANCE), or raise vllm_service_first_token_timeout"
        )
    if canary["expected"] not in text:
        raise Unproved(
            f"the canary answered {text!r}, and {canary['expected']!r} was expected -> the weights or the kernels are not right: "
            "run playbooks verify and acceptance, or correct the field canary of the instance"
        )
    return first


def token(line: bytes) -> str | None:
    """The text of a line of the stream; None where it brings no token."""
    data = line.decode().removeprefix("data:").strip()
    if not data or data == "[DONE]":
        return None
    event = json.loads(data)
    if "error" in event:
        raise ValueError(event["error"])
    choices = event.get("choices") or [{}]
    content = choices[0].get("delta", {}).get("content")
    return str(content) if content else "" if choices[0].get("finish_reason") else None


def publish(path: Path, state: dict[str, t.Any]) -> None:
    """Put the state in place at once, readable for all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(state) + "\n", encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


def started(pid: int) -> int:
    """When a process began, in seconds since 1970."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK"))


def main(arguments: list[str]) -> int:
    config, proof = (yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in arguments)
    api = Api(base_url(config), config["served-model-name"][0], proof["warm_up"]["seconds"])
    try:
        speeds, steady = warm(api, proof["warm_up"])
        first = prove(api, proof["canary"])
    except Unproved as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"error: vLLM fails under its warm-up: {error} -> its own error stands above", file=sys.stderr)
        return 1
    pid = int(os.environ["MAINPID"])
    state = {
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "release": proof["release"],
        "pid": pid,
        "started": started(pid),
        "tokens_per_second": round(speeds[-1], 1),
        "first_load_ratio": round(speeds[0] / speeds[-1], 2),
        "steady": steady,
        "first_token_seconds": round(first, 3),
    }
    publish(Path(os.environ["RUNTIME_DIRECTORY"]) / "ready", state)
    print(f"warm: {speeds[-1]:.1f} tokens/s, first token after {first:.2f} s; in service", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
