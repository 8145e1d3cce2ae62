# SPDX-License-Identifier: Apache-2.0
"""Bad input and broken surroundings: each is refused with evidence and remedy, and nothing is half changed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import typing as t
import urllib.error
import urllib.request

import docker
import pytest
import yaml
from conftest import INSTANCE, ROOT, UNIT, Api, Run, backend, play

if t.TYPE_CHECKING:
    from testinfra.host import Host

testinfra_hosts = [backend("h20-11")]

FIRST = "19084726f6d2b3193591a470e97f13c7247dc2c4"
SECOND = "6be61bfbeb72a40f268473d6fd399800c4f84206"
MODEL = "/data/models/h20-fleet/tiny-deepseek-v3"


def release_with(**model: t.Any) -> dict[str, t.Any]:
    """The demo's release with other fields of its model, as extra variables."""
    variables = yaml.safe_load((ROOT / "inventories/local/group_vars/all/release.yml").read_text(encoding="utf-8"))
    release = variables["fleet_releases"]["demo"]
    return {"fleet_releases": {"demo": release | {"model": release["model"] | model}}}


def instance_with(**fields: t.Any) -> dict[str, t.Any]:
    return {"fleet_instances": [{"name": INSTANCE, "profile": "cpu_test", "port": 8000} | fields]}


def site(host: str, variables: dict[str, t.Any] | None = None, *arguments: str) -> Run:
    """Run the whole road on one host with extra variables."""
    everywhere = {"fleet_hosts": "h20:unfit"}
    return play("site", "--limit", host, "--extra-vars", json.dumps(everywhere | (variables or {})), *arguments)


@contextlib.contextmanager
def hub_down() -> t.Iterator[None]:
    hub = docker.from_env().containers.get("molecule-hub")
    hub.stop(timeout=1)
    try:
        yield
    finally:
        hub.start()


def hub_address() -> str:
    networks = docker.from_env().containers.get("molecule-hub").attrs["NetworkSettings"]["Networks"]
    return f"http://{networks['h20-molecule']['IPAddress']}"


@contextlib.contextmanager
def hub_fault(faults: dict[str, t.Any]) -> t.Iterator[None]:
    """The hub serves wrongly what matches a pattern, until the block ends."""
    url = f"{hub_address()}/_testbed/faults"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(faults).encode(), method="POST"), timeout=10).close()
    try:
        yield
    finally:
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()


@contextlib.contextmanager
def listener(host: Host, port: int) -> t.Iterator[None]:
    """Another program of the host that listens on a port."""
    host.check_output(f"systemd-run --unit other-program --collect python3 -m http.server {port}")
    try:
        yield
    finally:
        host.check_output("systemctl stop other-program")


@dataclasses.dataclass(frozen=True)
class Served:
    """What serves on a host, as far as a refused run must leave it alone."""

    process: str
    links: str
    configuration: str
    packages: str

    @classmethod
    def of(cls, host: Host) -> Served:
        return cls(
            process=host.check_output(f"systemctl show --property=MainPID,InvocationID {UNIT}"),
            links=host.check_output(f"readlink -f /opt/vllm/current {MODEL}/current"),
            configuration=host.check_output("sha256sum /etc/vllm/* /etc/nccl.conf /etc/systemd/system/vllm@.service"),
            packages=host.check_output("apt-mark showhold; dpkg-query --show nvidia-open"),
        )


REFUSED = {
    "7 of 8 GPUs": ("h20-17", {}, "GPU-COUNT 7 of 8 GPUs are on the PCI bus -> power-cycle the host"),
    "unknown GPU": ("h20-18", {}, "GPU-UNKNOWN 8 GPUs 10de:26b9 match no profile"),
    "GPU of another profile": (
        "h20-11",
        {"fleet_hardware_profile": "h20_96g"},
        "GPU-MODEL profile h20_96g is 10de:2329, but 0000:",
    ),
    "too little disk": (
        "h20-11",
        {"fleet_model_root": "/small"} | release_with(bytes=2**34),
        "DISK /small has 0.01 GiB free, the model needs 16.80 GiB",
    ),
    "too little memory": (
        "h20-11",
        {"preflight_memory_gib": 4096},
        "GiB of RAM, at least 4096 GiB wanted -> fit more memory",
    ),
    "unknown revision": (
        "h20-11",
        release_with(revision="f" * 40),
        f"MODEL-SOURCE the hub http://hub.test has no revision {'f' * 40}",
    ),
    "unknown repository": (
        "h20-11",
        release_with(repo="h20-fleet/nothing"),
        "MODEL-SOURCE the hub http://hub.test has no repository h20-fleet/nothing",
    ),
    "a branch for a revision": (
        "h20-11",
        release_with(revision="main"),
        "model.revision main is no full commit -> pin the 40 hexadecimal digits",
    ),
    "unknown release": (
        "h20-11",
        {"fleet_release": "1999.01"},
        "fleet_release 1999.01 is not known; known are 2026.11, demo, demo-next",
    ),
    "release that is not whole": (
        "h20-11",
        {"fleet_releases": {"demo": {"description": "torn"}}},
        "missing required arguments: cuda, dcgm, driver",
    ),
    "driver too old for CUDA": (
        "h20-11",
        {
            "fleet_releases": {
                "demo": yaml.safe_load((ROOT / "inventories/local/group_vars/all/release.yml").read_text())[
                    "fleet_releases"
                ]["demo"]
                | {"driver": {"version": "570.1"}}
            }
        },
        "CUDA 13.0 does not run on driver 570.1 -> name a driver from 580.65.06 on",
    ),
    "unknown value": (
        "h20-11",
        {"fleet_hardware_profile": "b300"},
        "fleet_hardware_profile b300 is not known; known are auto, ",
    ),
    "value of another type": ("h20-11", {"model_fetch_connections": "many"}, "model_fetch_connections"),
    "unknown serving profile": (
        "h20-11",
        instance_with(profile="fastest"),
        "names profile fastest; known are latency, throughput, long_context, h20_96g, two_node, guide, cpu_test",
    ),
    "privileged port": ("h20-11", instance_with(port=80), "a port outside 1024 to 65535"),
    "open door without a key": (
        "h20-11",
        {"vllm_service_api_key": ""},
        "vllm_service_address 0.0.0.0 is open to the network and there is no key -> set vllm_service_api_key",
    ),
    "argument that the role sets itself": (
        "h20-11",
        instance_with(arguments={"api-key": "seen-in-ps"}),
        "sets api-key in its arguments, which the role sets itself",
    ),
    "argument that vLLM does not have any more": (
        "h20-11",
        instance_with(arguments={"swap-space": 4}),
        "sets swap-space, which vLLM 0.32.0 does not have any more -> kv-offloading-size",
    ),
    "argument that vLLM never had": (
        "h20-11",
        instance_with(arguments={"max-model-length": 512}),
        "sets max-model-length, which vLLM 0.32.0 does not have -> did you mean max-model-len?",
    ),
    "value that vLLM's own parser refuses": (
        "h20-11",
        instance_with(arguments={"seed": "first"}),
        "argument --seed: invalid int value: ",
    ),
    "argument that vLLM would drop": (
        "h20-11",
        instance_with(arguments={"enable_prefix_caching": False}),
        "write it as enable-prefix-caching; vLLM drops a misspelt one",
    ),
}


@pytest.mark.parametrize(("name", "variables", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_and_nothing_changed(host: Host, name: str, variables: dict[str, t.Any], message: str) -> None:
    before = Served.of(host)
    run = site(name, variables)
    assert run.rc == 2, run.output
    assert message in run.words
    assert re.search(rf"{name} +: .* changed=0 ", run.output), "it must be refused before the first change"
    assert Served.of(host) == before
    assert Api("h20-11").chat()


def test_taken_port_is_refused_with_its_holder(host: Host) -> None:
    before = Served.of(host)
    with listener(host, 8100):
        run = site("h20-11", instance_with(port=8100))
    assert run.rc == 2, run.output
    assert f"PORT port 8100 of instance {INSTANCE} is held by python3 (pid " in run.words
    assert "other-program.service) -> stop it, or give the instance another port" in run.words
    assert Served.of(host) == before


def test_bandwidth_below_the_floor_is_refused_and_the_replica_is_not_disturbed(host: Host) -> None:
    before = Served.of(host)
    run = site("h20-11", {"nccl_allreduce_floor_gb_s": 1000}, "--tags", "nccl")
    assert run.rc == 2, run.output
    assert "all-reduce over 2 ranks" in run.words
    assert "the floor is 1000 GB/s -> see that nothing else uses the GPUs" in run.words
    assert Served.of(host) == before


def test_hub_that_is_down_is_named_before_anything_changes(host: Host) -> None:
    before = Served.of(host)
    with hub_down():
        run = site("h20-11", release_with(revision=SECOND))
    assert run.rc == 2, run.output
    assert "MODEL-SOURCE the hub http://hub.test does not answer" in run.words
    assert "or set fleet_hub_endpoint to another mirror" in run.words
    assert Served.of(host) == before
    assert not host.file(f"{MODEL}/{SECOND}").exists


def test_gpu_that_does_not_answer_is_found_as_soon_as_there_is_a_driver() -> None:
    """On the bus all eight are there; the gate after the installation finds the silent one, and preflight names it from then on."""
    run = site("h20-16")
    assert run.rc == 2, run.output
    assert "7 of 8 GPUs answer, fabric Completed Success" in run.words
    run = play("preflight", "--limit", "h20-16", "--extra-vars", '{"fleet_hosts": "unfit"}')
    assert run.rc == 2, run.output
    assert "GPU-LOST 7 of 8 GPUs answer; 0000:5d:00.0 on the PCI bus but not in nvidia-smi" in run.words


@pytest.mark.parametrize(
    ("stage", "missing"),
    {
        "cuda_toolkit": "nvidia-smi (stage nvidia_driver)",
        "vllm": "/opt/vllm/releases/demo/bin/python (stage python_venv)",
        "nccl": "nvidia-smi (stage nvidia_driver)",
        "vllm_service": f"{MODEL}/{FIRST}/config.json (stage model)",
    }.items(),
)
def test_stage_alone_names_the_stage_that_is_missing(stage: str, missing: str) -> None:
    run = play("site", "--limit", "h20-17", "--tags", stage, "--extra-vars", '{"fleet_hosts": "unfit"}')
    assert run.rc == 2, run.output
    assert f"stage {stage} stands on what this host lacks: " in run.words
    assert missing in run.words
    assert "-> run the missing stage first: --tags " in run.words


def test_wrong_bytes_are_refused_by_name_and_the_run_after_mending_converges(host: Host) -> None:
    """The next revision comes with a corrupt shard; once the hub is mended the same command brings it, on another port as well."""
    wanted = release_with(revision=SECOND) | instance_with(port=8001)
    before = Served.of(host)
    with hub_fault({"*model-00002-of-000003.safetensors": "corrupt"}):
        run = site("h20-11", wanted)
    assert run.rc == 2, run.output
    assert "model-00002-of-000003.safetensors has sha256 " in run.words
    assert "run the stage again" in run.words
    assert Served.of(host) == before
    assert not host.file(f"{MODEL}/{SECOND}").exists
    assert Api("h20-11").chat()

    mended = site("h20-11", wanted)
    assert mended.rc == 0, mended.output
    assert host.file(f"{MODEL}/current").linked_to == f"{MODEL}/{SECOND}"
    assert host.file(f"{MODEL}/{FIRST}").is_directory, "the revision before must stay"
    assert Api("h20-11", port=8001).chat()
    with pytest.raises(urllib.error.URLError, match="refused"):
        Api("h20-11").chat()


def test_going_back_fetches_nothing(host: Host) -> None:
    """The revision before is still there, so going back needs no hub."""
    with hub_down():
        run = site("h20-11")
    assert run.rc == 0, run.output
    assert host.file(f"{MODEL}/current").linked_to == f"{MODEL}/{FIRST}"
    assert Api("h20-11").chat()


def test_no_secret_in_the_most_verbose_output() -> None:
    """Neither the key that is there nor one that would replace it."""
    verified = play("verify", "--limit", "h20-11", "--tags", "vllm_service", "-vvv")
    assert verified.rc == 0, verified.output
    checked = site(
        "h20-11", {"vllm_service_api_key": "another-secret"}, "--tags", "vllm_service", "--check", "--diff", "-vvv"
    )
    assert checked.rc == 0, checked.output
    assert "Write the configuration of each instance, its environment" in checked.output
    assert Api("h20-11").key not in verified.output + checked.output
    assert "another-secret" not in checked.output
