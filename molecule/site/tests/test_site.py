# SPDX-License-Identifier: Apache-2.0
"""What is there after the whole road: not that tasks ran, but what an operator and a client find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import typing as t

import docker
import pytest
from conftest import INSTANCE, ROOT, UNIT, Api, backend, on_console

if t.TYPE_CHECKING:
    from testinfra.host import Host

testinfra_hosts = [backend("h20-11"), backend("h20-12")]

RELEASE = "/opt/vllm/releases/demo"
DRIVER = "580.173.02"
MODEL = "/data/models/h20-fleet/tiny-deepseek-v3"
READY_SECONDS = 300


@pytest.fixture
def api(host: Host) -> Api:
    return Api(host.backend.host.name)


def processes_of(host: Host, user: str) -> list[str]:
    output: str = host.run(f"ps -o pid=,args= -u {user}").stdout
    return output.splitlines()


def test_driver_fabric_manager_and_nscq_are_of_one_version_and_held(host: Host) -> None:
    held = host.check_output("apt-mark showhold").split()
    for name in ("nvidia-open", "nvidia-persistenced", "nvidia-fabricmanager", "libnvidia-nscq"):
        package = host.package(name)
        assert package.version.startswith(f"{DRIVER}-")
        assert name in held


def test_pin_keeps_the_newer_branch_away(host: Host) -> None:
    policy = host.check_output("apt-cache policy nvidia-open")
    candidate = next(line.split()[1] for line in policy.splitlines() if "Candidate:" in line)
    assert candidate.startswith(f"{DRIVER}-")
    assert "595." in policy, "the repository has no newer branch, so this test would prove nothing"


def test_all_gpus_answer_with_a_completed_fabric(host: Host) -> None:
    assert len(host.check_output("nvidia-smi -L").splitlines()) == 8
    report = host.check_output("nvidia-smi -q -x")
    assert report.count("<state>Completed</state>") == 8


def test_nvcc_is_of_the_release(host: Host) -> None:
    assert "release 13.0," in host.check_output("/usr/local/cuda-13.0/bin/nvcc --version")


def test_installed_packages_are_exactly_the_lock(host: Host) -> None:
    lock = host.file(f"{RELEASE}/requirements.lock").content_string
    wanted = {
        line.split(" ")[0].lower() for line in lock.splitlines() if "==" in line and not line.startswith(("#", " "))
    }
    uv = f"/opt/vllm/tools/uv-0.13.9/bin/uv pip freeze --python {RELEASE}/bin/python"
    assert {line.lower() for line in host.check_output(uv).splitlines()} == wanted


def test_current_is_the_release_and_is_recorded(host: Host) -> None:
    assert host.file("/opt/vllm/current").linked_to == RELEASE
    assert json.loads(host.file(f"{RELEASE}/release.json").content_string)["release"] == "demo"


def test_every_byte_of_the_model_is_proved(host: Host) -> None:
    job = host.check_output("ls /etc/h20-fleet/models/*.job.json")
    assert host.run(f"{RELEASE}/bin/python /usr/local/lib/h20-fleet/model_fetch.py prove {job}").rc == 0
    assert not host.file(f"{host.file(f'{MODEL}/current').linked_to}.partial").exists


def test_weights_are_readable_for_all_and_writable_for_root_alone(host: Host) -> None:
    odd = host.check_output(
        f"find {MODEL}/ -type f ( ! -perm 0644 -o ! -user root )".replace("(", r"\(").replace(")", r"\)")
    )
    assert odd == ""


def test_service_runs_as_its_own_user_and_starts_after_the_fabric_manager(host: Host) -> None:
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled
    assert service.systemd_properties["User"] == "vllm"
    assert "nvidia-fabricmanager.service" in service.systemd_properties["After"]
    assert "nvidia-fabricmanager.service" in service.systemd_properties["Requires"]
    assert service.systemd_properties["KillMode"] == "mixed"
    assert service.systemd_properties["NoNewPrivileges"] == "yes"
    assert service.systemd_properties["ProtectSystem"] == "strict"
    user = host.user("vllm")
    assert user.shell == "/usr/sbin/nologin"
    assert user.uid < 1000


def test_no_secret_in_a_process_list_or_in_a_file_that_others_read(host: Host, api: Api) -> None:
    assert api.key not in host.check_output("ps -eo args")
    secret = host.file(f"/etc/vllm/{INSTANCE}.env")
    assert secret.mode == 0o640
    assert (secret.user, secret.group) == ("root", "vllm")
    assert api.key in secret.content_string
    assert api.key not in host.file(f"/etc/vllm/{INSTANCE}.yaml").content_string
    assert api.key not in host.check_output("journalctl --no-pager --output cat")


def test_api_answers_with_the_key_and_refuses_without(host: Host, api: Api) -> None:
    assert api.chat()
    status = host.check_output(
        "curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:8000/v1/models"
    )
    assert status == "401"


def test_curl_and_journal_of_the_guide_work(host: Host, api: Api) -> None:
    body = json.dumps({"model": INSTANCE, "prompt": "Hello", "max_tokens": 4})
    headers = f"-H 'Content-Type: application/json' -H 'Authorization: Bearer {api.key}'"
    curl = f"curl --silent --fail http://127.0.0.1:8000/v1/completions {headers} -d '{body}'"
    assert json.loads(host.check_output(curl))["usage"]["completion_tokens"] == 4
    assert "ready after" in host.check_output(f"journalctl --unit {UNIT} --no-pager --output cat")


@pytest.mark.usefixtures("host")
def test_chat_example_streams_an_answer(api: Api) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples/chat.py"),
        "--base-url",
        f"{api.url}/v1",
        "--model",
        INSTANCE,
        "--max-tokens",
        "8",
        "Hello",
    ]
    done = subprocess.run(
        command, env=os.environ | {"OPENAI_API_KEY": api.key}, capture_output=True, text=True, timeout=120, check=False
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


def test_stop_leaves_no_process_and_start_serves_again(host: Host, api: Api) -> None:
    assert processes_of(host, "vllm")
    assert host.run(f"systemctl stop {UNIT}").rc == 0
    assert processes_of(host, "vllm") == []
    assert host.run(f"systemctl start {UNIT}").rc == 0, "start must wait for the first completion"
    assert api.chat()


@pytest.mark.usefixtures("host")
def test_service_survives_a_restart_of_its_host(api: Api) -> None:
    docker.from_env().containers.get(api.host).restart()
    end = time.monotonic() + READY_SECONDS
    while on_console(api.host, "systemctl", "is-active", UNIT).strip() != "active":
        assert time.monotonic() < end, f"{UNIT} is not active after {READY_SECONDS} s"
        time.sleep(2)
    assert api.chat()
