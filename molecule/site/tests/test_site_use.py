# SPDX-License-Identifier: Apache-2.0
"""What an operator and a client do with a host that serves, on one host, since each of it takes its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import typing as t

import docker
from conftest import INSTANCE, ROOT, UNIT, Api, backend, on_console

if t.TYPE_CHECKING:
    from testinfra.host import Host

API = Api("h20-12")
testinfra_hosts = [backend(API.host)]

MODEL = "/data/models/h20-fleet/tiny-deepseek-v3"
READY_SECONDS = 300


def processes_of(host: Host, user: str) -> list[str]:
    output: str = host.run(f"ps -o pid=,args= -u {user}").stdout
    return output.splitlines()


def test_curl_and_journal_of_the_guide_work(host: Host) -> None:
    body = json.dumps({"model": INSTANCE, "prompt": "Hello", "max_tokens": 4})
    headers = f"-H 'Content-Type: application/json' -H 'Authorization: Bearer {API.key}'"
    curl = f"curl --silent --fail http://127.0.0.1:8000/v1/completions {headers} -d '{body}'"
    assert json.loads(host.check_output(curl))["usage"]["completion_tokens"] == 4
    assert "ready after" in host.check_output(f"journalctl --unit {UNIT} --no-pager --output cat")


def test_chat_example_streams_an_answer() -> None:
    command = [
        sys.executable,
        str(ROOT / "examples/chat.py"),
        "--base-url",
        f"{API.url}/v1",
        "--model",
        INSTANCE,
        "--max-tokens",
        "8",
        "Hello",
    ]
    done = subprocess.run(
        command, env=os.environ | {"OPENAI_API_KEY": API.key}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_offline_batch_example_answers_every_prompt(host: Host) -> None:
    script = (ROOT / "examples/offline_batch.py").read_text(encoding="utf-8")
    host.check_output("printf %%s %s > /tmp/offline_batch.py", script)
    options = f"--model {MODEL}/current --tensor-parallel-size 1 --max-model-len 512 --max-tokens 8 --enforce-eager"
    run = "runuser -u vllm -- env HOME=/var/lib/vllm VLLM_CPU_KVCACHE_SPACE=1 /opt/vllm/current/bin/python /tmp/offline_batch.py"
    output = host.check_output(
        f"printf 'one\\ntwo\\n' | {run} {options} 2>/tmp/offline_batch.log || (cat /tmp/offline_batch.log; false)"
    )
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [answer["prompt"] for answer in answers] == ["one", "two"]
    assert all(answer["text"] for answer in answers)


def test_stop_leaves_no_process_and_start_serves_again(host: Host) -> None:
    assert processes_of(host, "vllm")
    assert host.run(f"systemctl stop {UNIT}").rc == 0
    assert processes_of(host, "vllm") == []
    assert host.run(f"systemctl start {UNIT}").rc == 0, "start must wait for the first completion"
    assert API.chat()


def test_service_survives_a_restart_of_its_host() -> None:
    docker.from_env().containers.get(API.host).restart()
    end = time.monotonic() + READY_SECONDS
    while on_console(API.host, "systemctl", "is-active", UNIT).strip() != "active":
        assert time.monotonic() < end, f"{UNIT} is not active after {READY_SECONDS} s"
        time.sleep(2)
    assert API.chat()
