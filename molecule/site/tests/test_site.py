# SPDX-License-Identifier: Apache-2.0
"""What is there after the whole road: not that tasks ran, but what an operator and a client find."""

from __future__ import annotations

import json
import re
import typing as t

import pytest
from conftest import INSTANCE, UNIT, Api, backend

if t.TYPE_CHECKING:
    from testinfra.host import Host

testinfra_hosts = [backend("h20-11"), backend("h20-12")]

RELEASE = "/opt/vllm/releases/demo"
DRIVER = "580.173.02"
MODEL = "/data/models/h20-fleet/tiny-deepseek-v3"


@pytest.fixture
def api(host: Host) -> Api:
    return Api(host.backend.host.name)


def test_driver_fabric_manager_and_nscq_are_of_one_version_and_held(host: Host) -> None:
    held = host.check_output("apt-mark showhold").split()
    for name in ("nvidia-open", "nvidia-fabricmanager", "libnvidia-nscq"):
        assert host.package(name).version.startswith(f"{DRIVER}-")
        assert name in held
    assert host.package("nvidia-persistenced").version.startswith(f"{DRIVER}-")


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
    uv = f"/opt/vllm/tools/uv-0.13.9/bin/uv --no-cache pip freeze --python {RELEASE}/bin/python"
    assert {line.lower() for line in host.check_output(uv).splitlines()} == wanted


def test_current_is_the_release_and_is_recorded(host: Host) -> None:
    assert host.file("/opt/vllm/current").linked_to == RELEASE
    assert json.loads(host.file(f"{RELEASE}/release.json").content_string)["release"] == "demo"


def test_every_byte_of_the_model_is_proved(host: Host) -> None:
    job = host.check_output("ls /etc/h20-fleet/models/*.job.json")
    assert host.run(f"env PYTHONPATH=/usr/local/lib/h20-fleet python3 -B -m weights prove {job}").rc == 0
    assert not host.file(f"{host.file(f'{MODEL}/current').linked_to}.partial").exists


def test_weights_are_readable_for_all_and_writable_for_the_account_that_fetches_alone(host: Host) -> None:
    odd = host.check_output(
        f"find {MODEL}/ -type f ( ! -perm 0644 -o ! -user model-fetch )".replace("(", r"\(").replace(")", r"\)")
    )
    assert odd == ""


def test_collectives_between_the_ranks_are_right_and_their_bandwidth_is_kept(host: Host) -> None:
    kept = json.loads(host.file("/var/lib/h20-fleet/nccl-bandwidth.json").content_string)
    assert (kept["key"]["backend"], kept["key"]["ranks"], kept["key"]["release"]) == ("gloo", 2, "demo")
    results = kept["measurement"]["results"]
    assert {result["collective"] for result in results} == {"all_reduce", "all_gather", "all_to_all"}
    assert all(result["busbw_gb_s"] > 0 for result in results)
    settings = [line for line in host.file("/etc/nccl.conf").content_string.splitlines() if not line.startswith("#")]
    assert settings == ["NCCL_DEBUG=WARN"]


def test_plan_of_the_memory_stands_beside_the_configuration(host: Host) -> None:
    plan = json.loads(host.file(f"/etc/vllm/{INSTANCE}.plan.json").content_string)
    assert plan["layout"] == "TP1"
    assert plan["kv_bytes_per_token"] > 0


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
    exposure = re.search(
        r"Overall exposure level for \S+: ([0-9.]+)", host.check_output(f"systemd-analyze security --no-pager {UNIT}")
    )
    assert exposure
    assert float(exposure[1]) <= 2.5
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
