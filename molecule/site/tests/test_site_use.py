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


def example(name: str, *arguments: str) -> str:
    """What an example prints that asks the replica from outside, as a client's own machine does."""
    command = [
        sys.executable,
        str(ROOT / "examples" / name),
        "--base-url",
        f"{API.url}/v1",
        "--model",
        INSTANCE,
        *arguments,
    ]
    environment = os.environ | {"OPENAI_API_KEY": API.key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_curl_example_completes_chats_and_streams() -> None:
    command = ["bash", str(ROOT / "examples/curl.sh"), API.url, INSTANCE]
    environment = os.environ | {"API_KEY": API.key, "no_proxy": "*"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    completion, chat, *stream = [line for line in output.splitlines() if line]
    assert json.loads(completion)["usage"]["completion_tokens"] == 32
    assert json.loads(chat)["choices"][0]["message"]["content"]
    assert len(stream) > 2
    assert stream[-1] == "data: [DONE]"


def test_chat_example_streams_an_answer() -> None:
    assert example("chat.py", "--max-tokens", "8", "Hello")


def test_structured_example_answers_in_its_schema() -> None:
    """The weights are random, so that only the server keeps the answer in its form."""
    answer = json.loads(example("structured.py", "The parcel was wet."))
    assert answer.keys() == {"sentiment", "complaint"}
    assert answer["sentiment"] in ("positive", "negative", "mixed")
    assert isinstance(answer["complaint"], bool)


def test_offline_batch_example_answers_every_prompt_and_goes_on_where_it_was_stopped(host: Host) -> None:
    """A run before has answered the first prompt and was cut off in the second; the third has an id of its own."""
    script = (ROOT / "examples/offline_batch.py").read_text(encoding="utf-8")
    host.check_output("printf %%s %s > /tmp/offline_batch.py", script)
    host.check_output("rm -rf /tmp/batch && install -d -o vllm /tmp/batch")
    prompts = [{"prompt": "one"}, {"prompt": "two"}, {"id": "mine", "prompt": "three"}]
    before = {"id": 1, "prompt": "one", "text": "answered before"}
    files = {
        "in": "".join(f"{json.dumps(prompt)}\n" for prompt in prompts),
        "out": f'{json.dumps(before)}\n{{"id": 2, "pro',
    }
    for name, text in files.items():
        host.check_output(f"printf %%s %s > /tmp/batch/{name}.jsonl && chown vllm /tmp/batch/{name}.jsonl", text)
    options = f"--model {MODEL}/current --tensor-parallel-size 1 --max-model-len 512 --max-tokens 8 --enforce-eager"
    run = "runuser -u vllm -- env HOME=/var/lib/vllm VLLM_CPU_KVCACHE_SPACE=1 /opt/vllm/current/bin/python /tmp/offline_batch.py"
    done = host.run(f"{run} {options} /tmp/batch/in.jsonl /tmp/batch/out.jsonl")
    assert done.rc == 0, done.stderr
    assert "3/3" in done.stderr, "the progress bar ends at the last prompt"
    answers = [json.loads(line) for line in host.check_output("cat /tmp/batch/out.jsonl").splitlines()]
    assert answers[0] == before
    assert [(answer["id"], answer["prompt"]) for answer in answers[1:]] == [(2, "two"), ("mine", "three")]
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
