#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Watch one vLLM instance by its tokens: an engine that answers /health and produces none is ended, so that systemd starts it again.

    vllm_watchdog.py CONFIG INTERVAL GRACE

Runs beside the instance, as its user. A beat every INTERVAL seconds: tokens that were produced since the last one are life; where there are none, idle or hung
alike, a completion of one token is asked for, which may take an interval where nothing else runs and GRACE seconds behind other requests. Three
beats without a token, and the main process is killed: the unit's own Restart and start limit go on from there. After an Xid that no restart mends, or where
the host's acceptance does not hold any more, it ends nothing: it takes the state `ready` away, says why, and gives it back when the reason is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from vllm_ready import base_url
from vllm_warm_up import publish

#: As the modules of the collection read the kernel log; the role installs it beside this program.
_kernel_log = importlib.import_module("gpus._kernel_log")

STRIKES = 3
GATE = Path("/usr/local/lib/h20-fleet/acceptance_gate.py")
#: Seconds between two looks at acceptance, which has nvidia-smi asked, and that one of them may take.
GATE_SECONDS = 300
PRODUCED = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_SAMPLE = re.compile(r"^([a-zA-Z_:]+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


class Beat(t.NamedTuple):
    """What the metrics say: tokens since the start, and requests that run or wait."""

    tokens: float
    requests: float


def parse(metrics: str) -> Beat:
    """The sums over all engines; 0 where vLLM does not say."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        sums[name] = sums.get(name, 0.0) + float(value)
    return Beat(sum(sums.get(name, 0.0) for name in PRODUCED), sum(sums.get(name, 0.0) for name in BUSY))


class Instance:
    """One instance: its API, its process, and its state `ready`."""

    def __init__(self, config: Path, runtime: Path, interval: float, grace: float) -> None:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        self.unit = f"vllm@{config.stem}.service"
        self.url, self.model = base_url(settings), settings["served-model-name"][0]
        self.interval, self.grace = interval, grace
        self.ready, self.withdrawn = runtime / "ready", runtime / "withdrawn"
        self.tokens = -1.0
        self.strikes = 0

    def get(self, path: str, timeout: float, body: dict[str, t.Any] | None = None) -> str:
        headers = {"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return str(response.read().decode())

    def state(self) -> dict[str, t.Any] | None:
        """What was published when it became ready; None while it starts or stops."""
        path = self.withdrawn if self.withdrawn.exists() else self.ready
        try:
            return t.cast("dict[str, t.Any]", json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def lives(self) -> str:
        """Why it does not produce tokens; "" where it does."""
        try:
            beat = parse(self.get("/metrics", self.interval))
        except (OSError, ValueError) as error:
            return f"/metrics does not answer: {error}"
        moved, self.tokens = beat.tokens != self.tokens, beat.tokens
        if moved and beat.requests:
            return ""
        patience = self.grace if beat.requests else self.interval
        try:
            self.get("/v1/completions", patience, {"model": self.model, "prompt": "1", "max_tokens": 1})
        except urllib.error.HTTPError as error:
            # A refusal is an answer of the API server, an engine that is dead another.
            return "" if error.code < 500 else f"it answers HTTP {error.code}"
        except (OSError, ValueError) as error:
            load = f"{beat.requests:.0f} requests run or wait" if beat.requests else "it is idle"
            return f"no token within {patience:.0f} s while {load}: {error}"
        return ""

    def beat(self) -> bool:
        """One look; whether the instance has to be ended."""
        why = self.lives()
        if not why:
            if self.strikes:
                print(f"{self.unit} produces tokens again", flush=True)
            self.strikes = 0
            return False
        self.strikes += 1
        print(f"strike {self.strikes} of {STRIKES}: {why}", flush=True)
        return self.strikes >= STRIKES

    def withdraw(self, why: str) -> None:
        """Take the state `ready` away; the reason stands in `withdrawn`, and once in the journal."""
        state = self.state() or {}
        if state.get("why") == why:
            return
        print(f"error: {self.unit} is not ready any more: {why}", file=sys.stderr, flush=True)
        publish(self.withdrawn, state | {"why": why})
        self.ready.unlink(missing_ok=True)

    def restore(self) -> None:
        if self.withdrawn.exists():
            state = self.state() or {}
            state.pop("why", None)
            publish(self.ready, state)
            self.withdrawn.unlink()
            print(f"{self.unit} is ready again", flush=True)

    def end(self, pid: int) -> None:
        """Kill the main process, where it still is this instance's: systemd ends the rest of its control group and starts it again."""
        try:
            owner = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").strip().rpartition("/")[2]
        except OSError:
            return
        if owner == self.unit:
            os.kill(pid, signal.SIGKILL)


def fatal_xid(since: str) -> str:
    """The last thing that the kernel has said of a GPU since then that no restart mends; "" where it has said none."""
    command = [
        "journalctl",
        "--dmesg",
        "--output=short-unix",
        "--no-pager",
        f"--grep={_kernel_log.PATTERN}",
        f"--since={since}",
    ]
    log = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    found = [event for event in _kernel_log.parse(log) if event["fatal"]]
    if not found:
        return ""
    event = found[-1]
    return f"{event['kind'].capitalize()} {event['code']} of {event['address']} at {event['time']}, {event['name']} -> {event['action']}"


def refused() -> str:
    """Why the host is not accepted any more; "" where it is."""
    try:
        done = subprocess.run(
            ["/usr/bin/python3", str(GATE)], capture_output=True, text=True, timeout=GATE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{GATE} has not answered within {GATE_SECONDS} s -> look for an Xid in the kernel log"
    return done.stderr.strip().removeprefix("error: ") if done.returncode else ""


def main(arguments: list[str]) -> int:
    config, interval, grace = Path(arguments[0]), float(arguments[1]), float(arguments[2])
    instance = Instance(config, Path("/run/vllm") / config.stem, interval, grace)
    gate_due, refusal = 0.0, ""
    print(f"watches {instance.unit}: a beat every {interval:.0f} s, {grace:.0f} s behind other requests", flush=True)
    while True:
        time.sleep(interval)
        state = instance.state()
        if state is None:  # it starts or stops
            instance.strikes = 0
            continue
        if time.monotonic() >= gate_due:
            gate_due, refusal = time.monotonic() + GATE_SECONDS, refused()
        # Of the kernel, what it has said since the process began: what was before, its start has passed.
        if why := fatal_xid(f"@{state['started']}") or refusal:
            instance.withdraw(why)
        elif instance.beat():
            instance.withdraw(
                f"it has produced no token in {STRIKES} beats -> nothing: it is ended and started again; the lines above say why"
            )
            instance.end(int(state["pid"]))
            instance.strikes = 0
        elif not instance.strikes:
            instance.restore()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
