# SPDX-License-Identifier: Apache-2.0
"""What an instance is started with, and what of it is refused before any host is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.h20.fleet.plugins.filter import serving_errors, vllm_config, vllm_environment
from ansible_collections.h20.fleet.plugins.module_utils import _model_fit, _profiles, _serving, _serving_profiles

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "roles/vllm_service/files/options"
OPTIONS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")}
CONFIG = json.loads((Path(__file__).parent / "models/deepseek-v3.json").read_text(encoding="utf-8"))
PROFILES = _serving_profiles.PROFILES
TWO = [{"name": "left", "profile": "latency", "port": 8000}, {"name": "right", "profile": "latency", "port": 8001}]
TP4 = {"tensor-parallel-size": 4}

merge = vllm_config.FilterModule().filters()["vllm_config"]
variables = vllm_environment.FilterModule().filters()["vllm_environment"]
judge = serving_errors.FilterModule().filters()["serving_errors"]


def instance(**fields: Any) -> dict[str, Any]:
    return {"name": "deepseek-v3", "profile": "latency", "port": 8000} | fields


def release(version: str = "0.32.0", target_device: str = "cuda") -> dict[str, Any]:
    return {"vllm": {"version": version, "target_device": target_device}}


def errors(*instances: dict[str, Any], version: str = "0.32.0", target_device: str = "cuda") -> list[str]:
    found: list[str] = judge(list(instances), release(version, target_device), str(FOLDER))
    return found


def test_the_versions_that_are_vouched_for_are_the_ones_that_were_read() -> None:
    read = sorted(yaml.safe_load((ROOT / "requirements/parsers.yml").read_text(encoding="utf-8")))
    assert sorted(OPTIONS) == read
    assert {"0.26.0", "0.32.0"} <= OPTIONS.keys()
    assert _serving_profiles.VERSIONS[0] == read[0]
    assert _serving.version(read[-1]) < _serving.version(_serving_profiles.VERSIONS[1])


@pytest.mark.parametrize("version", sorted(OPTIONS))
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("tool_calls", [False, True], ids=["", "tools"])
def test_every_profile_is_made_of_options_of_every_version(name: str, version: str, tool_calls: bool) -> None:
    for argument, value in _serving.arguments({"profile": name, "tool_calls": tool_calls}).items():
        option = OPTIONS[version][argument]
        assert (option["kind"] in ("boolean", "switch")) == isinstance(value, bool)
        assert str(value) in option.get("choices", [str(value)])


def test_two_hosts_serve_what_they_can_share() -> None:
    """A replica over hosts is a group of the inventory, which is judged by the number of its hosts."""

    def judged(hosts: int, **fields: Any) -> list[str]:
        found: list[str] = judge([instance(**fields)], release(), str(FOLDER), hosts)
        return found

    for name in ("two_node", "latency", "h20_96g"):
        assert judged(2, profile=name) == []
    assert judged(2, profile="two_node", arguments={"tensor-parallel-size": 16, "pipeline-parallel-size": None}) == []
    assert judged(2, gpus=[0, 1, 2, 3]) == []
    wrong: list[tuple[int, dict[str, Any], str]] = [
        (3, {"profile": "two_node"}, "names profile two_node for 2 hosts and is served by 3"),
        (3, {}, "has the layout TP8 of 8 GPUs, which 3 hosts cannot share evenly"),
        (2, {"profile": "throughput"}, "data parallelism over hosts is not set up here"),
        (2, {"gpus": [0, 1]}, "has 2 gpus and its layout TP8 takes 4 of a host"),
        (2, {"environment": {"VLLM_HOST_IP": "10.0.0.1"}}, "sets VLLM_HOST_IP in its environment"),
        *((2, {"arguments": {name: 1}}, f"sets {name} in its") for name in ("node-rank", "master-port", "nnodes")),
    ]
    for hosts, fields, says in wrong:
        found = judged(hosts, **fields)
        assert any(says in error and " -> " in error for error in found), found
    assert judged(1, environment={"VLLM_HOST_IP": "10.0.0.1"}) == []


@pytest.mark.parametrize("name", set(PROFILES) - {"two_node"})
def test_every_profile_passes_for_every_version(name: str) -> None:
    for version in OPTIONS:
        assert errors(instance(profile=name, tool_calls=True), version=version) == []


@pytest.mark.parametrize("name", PROFILES)
def test_every_setting_has_a_reason_and_a_source(name: str) -> None:
    settings = PROFILES[name].arguments | PROFILES[name].environment | _serving_profiles.TOOL_CALLS
    assert PROFILES[name].purpose
    assert not [key for key, setting in settings.items() if len(setting.reason) < 10 or not setting.source]


#: The requests of its own length that each profile's reason speaks of, by hardware.
CONCURRENCY = {
    ("latency", "h20_141g"): 9,
    ("throughput", "h20_141g"): 6,
    ("long_context", "h20_141g"): 4,
    ("h20_96g", "h20_96g"): 5,
    ("two_node", "h20_96g"): 9,
    ("two_node", "h20_141g"): 19,
    ("guide", "h20_141g"): 177,
}


@pytest.mark.parametrize(("name", "hardware"), CONCURRENCY)
def test_a_profile_fits_the_hardware_that_it_is_for(name: str, hardware: str) -> None:
    arguments = _serving.arguments({"profile": name})
    found = _model_fit.plan(CONFIG, None, _profiles.PROFILES[hardware], arguments)
    assert found.fits
    assert found.concurrency is not None
    assert int(found.concurrency) == CONCURRENCY[name, hardware]


def test_the_manual_shows_every_profile_as_it_is() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| (.*?) \|", (ROOT / "docs/serving.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    shown = {(name, value.strip("`")) for name, value in rows}
    for profile in PROFILES.values():
        for settings in (profile.arguments, profile.environment):
            for name, setting in settings.items():
                value = json.dumps(setting.value) if isinstance(setting.value, dict | bool) else str(setting.value)
                assert (name, value) in shown


def test_the_manual_shows_the_load_of_every_warm_up() -> None:
    manual = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    for name, profile in PROFILES.items():
        load = profile.warm_up
        assert (
            f"| {name} | {load.concurrency} | {load.prompt_tokens:,} | {load.answer_tokens} | {load.reason} |" in manual
        )


def test_the_role_and_the_profiles_name_one_template() -> None:
    role = yaml.safe_load((ROOT / "roles/vllm_service/vars/main.yml").read_text(encoding="utf-8"))
    template = _serving_profiles.TOOL_CALLS["chat-template"].value
    assert role["__vllm_service_tools"] == template
    assert (ROOT / "roles/vllm_service/files" / Path(template).name).is_file()


def test_what_is_removed_is_in_no_later_parser_and_what_stands_in_its_place_is() -> None:
    for name, (since, instead) in _serving.REMOVED.items():
        later = {version for version in OPTIONS if _serving.version(version) >= _serving.version(since)}
        assert later
        back = {version for version in later if name in OPTIONS[version]}
        assert not [version for version in back if OPTIONS[version][name]["kind"] != "switch"]
        assert "0.32.0" in later - back
        for word in re.findall(r"\b[a-z]+(?:-[a-z]+)+\b", instead):
            assert all(word in OPTIONS[version] for version in later), word
    for _since, instead in _serving.REMOVED_VARIABLES.values():
        for word in re.findall(r"argument ([a-z0-9-]+)", instead):
            assert all(word in options for options in OPTIONS.values()), word


@pytest.mark.parametrize(
    ("arguments", "own", "merged"),
    [
        ({}, {}, {}),
        ({"max-model-len": 2}, {}, {"max-model-len": 2}),
        ({"max-model-len": 2}, {"max-model-len": 3}, {"max-model-len": 3}),
        ({"seed": 0, "enforce-eager": True}, {}, {"seed": 0, "enforce-eager": True}),
        ({"enforce-eager": False}, {}, {"no-enforce-eager": True}),
        ({"no-enforce-eager": True}, {}, {"no-enforce-eager": True}),
        ({"no-enforce-eager": False}, {}, {"enforce-eager": True}),
        ({"speculative-config": {"num_tokens": None}}, {}, {"speculative-config": {"num_tokens": None}}),
    ],
)
def test_later_arguments_win(arguments: dict[str, Any], own: dict[str, Any], merged: dict[str, Any]) -> None:
    base = {name: setting.value for name, setting in PROFILES["latency"].arguments.items()}
    assert merge(instance(arguments=arguments), own) == base | merged


def test_an_option_of_the_profile_may_be_taken_away_or_turned_round() -> None:
    assert merge(instance(arguments={"speculative-config": None})).keys() == {"tensor-parallel-size", "max-model-len"}
    assert "enable-expert-parallel" in merge(instance(profile="throughput"))
    for off in ({"enable-expert-parallel": False}, {"no-enable-expert-parallel": True}):
        merged = merge(instance(profile="throughput", arguments=off))
        assert merged["no-enable-expert-parallel"] is True
        assert "enable-expert-parallel" not in merged


@pytest.mark.parametrize(
    ("argument", "value", "advice"),
    [
        ("max_model_len", 1, "write it as max-model-len"),
        ("--max-model-len", 1, "write it as max-model-len"),
        ("enforce_eager", False, "write it as enforce-eager"),
        ("seed", None, "leave the key out"),
    ],
)
def test_what_vllm_would_misread_is_refused(argument: str, value: object, advice: str) -> None:
    wrong = instance(arguments={argument: value})
    with pytest.raises(AnsibleFilterError, match=advice) as refused:
        merge(wrong)
    assert f"vLLM argument {argument}" in str(refused.value)
    [error] = errors(wrong)
    assert advice in error


def test_variables_of_the_profile_the_gpus_and_the_instance() -> None:
    assert variables(instance()) == {"VLLM_USE_DEEP_GEMM": "0"}
    given = {"VLLM_USE_DEEP_GEMM": 1, "VLLM_LOGGING_LEVEL": "DEBUG"}
    assert variables(instance(gpus=[4, 5], environment=given)) == {
        "VLLM_USE_DEEP_GEMM": "1",
        "CUDA_VISIBLE_DEVICES": "4,5",
        "VLLM_LOGGING_LEVEL": "DEBUG",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"profile": "fastest"}, "names profile fastest; known are latency, throughput, "),
        (
            {"arguments": {"api-key": "x", "port": 1}},
            "sets api-key, port in its arguments, which the role sets itself -> ",
        ),
        (
            {"arguments": {"swap-space": 4}},
            "sets swap-space, which vLLM 0.32.0 does not have any more -> kv-offloading",
        ),
        ({"arguments": {"disable-log-requests": True}}, "-> nothing: requests are not logged unless"),
        ({"arguments": {"max-model-length": 1}}, "does not have -> did you mean max-model-len?"),
        ({"arguments": {"no-max-model-len": True}}, "sets max-model-len to false, which takes no such value -> leave"),
        ({"arguments": {"grpc": False}}, "sets grpc to false, which takes no such value -> leave it out"),
        ({"arguments": {"qqq": 1}}, "does not have -> `vllm serve --help=all` lists what it has"),
        ({"arguments": {"enforce-eager": "false"}}, "sets enforce-eager to 'false' -> write true or false"),
        ({"arguments": {"seed": True}}, "sets seed to True -> give it a value"),
        ({"arguments": {"kv-cache-dtype": "fp9"}}, "sets kv-cache-dtype to 'fp9' -> choose one of auto, bfloat16, "),
        (
            {"environment": {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}},
            "-> argument attention-backend; FLASHINFER serves no",
        ),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "-> name them in its field gpus"),
        ({"gpus": [0, 0]}, "has gpus 0, 0 -> name each once"),
        ({"gpus": [0, 1, 2, 3]}, "has 4 gpus and its layout TP8 takes 8 of a host"),
        (
            {"profile": "two_node"},
            "names profile two_node for 2 hosts and is served by 1 -> name in fleet_replica a group of as many hosts",
        ),
        ({"model": "ours"}, "has model ours, which is no absolute path"),
    ],
)
def test_what_cannot_be_served_is_refused(fields: dict[str, Any], message: str) -> None:
    [error] = errors(instance(**fields))
    assert error.startswith("instance deepseek-v3 ")
    assert message in error
    assert " -> " in error or "write it as" in error


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = {"swap-space": 4, "qqq": 1, "host": "0.0.0.0"}  # noqa: S104
    assert len(errors(instance(arguments=wrong), instance(name="other", profile="fastest"))) == 4


@pytest.mark.parametrize(
    ("version", "fits"), [("0.25.1", False), ("0.26.0", True), ("0.33.9+cu130", True), ("0.34.0", False)]
)
def test_a_profile_is_refused_for_a_vllm_that_nobody_has_looked_at(version: str, fits: bool) -> None:
    found = errors(instance(), version=version)
    assert bool(found) is not fits
    if found:
        assert (
            f"valid for vLLM 0.26.0 to below 0.34.0, whose parsers were read; the release has {version} -> " in found[0]
        )


def test_an_option_counts_by_the_version_that_has_it() -> None:
    assert errors(instance(arguments={"calculate-kv-scales": True}), version="0.26.0") == []
    assert "does not have any more" in errors(instance(arguments={"calculate-kv-scales": True}))[0]
    assert "does not have" in errors(instance(arguments={"monokernel": True}))[0]
    assert errors(instance(arguments={"monokernel": True}), version="0.33.0") == []


def test_a_version_whose_parser_nobody_has_read_is_left_to_the_host() -> None:
    assert errors(instance(arguments={"qqq": 1}), version="0.31.0") == []
    assert "any more" in errors(instance(arguments={"swap-space": 1}), version="0.31.0")[0]


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ({}, {}, "instances left (0.92) and right (0.92) share all GPUs and ask for 1.84 of its memory"),
        ({"gpus": [0, 1, 2, 3], "arguments": TP4}, {"gpus": [4, 5, 6, 7], "arguments": TP4}, ""),
        ({"gpus": [0, 1, 2, 3], "arguments": TP4}, {"gpus": [3, 4, 5, 6], "arguments": TP4}, "share GPU 3 and ask for 1.84"),
        ({"gpus": [0, 1, 2, 3], "arguments": TP4}, {"arguments": TP4}, "share GPU 0 and ask for 1.84"),
        (
            {"gpus": [0, 1, 2, 3], "arguments": TP4 | {"gpu-memory-utilization": 0.5}},
            {"gpus": [0, 1, 2, 3], "arguments": TP4 | {"gpu-memory-utilization": 0.45}},
            "",
        ),
        ({"arguments": {"gpu-memory-utilization": 0.5}}, {"arguments": {"gpu-memory-utilization": 0.5}}, "ask for 1 of"),
    ],
)  # fmt: skip
def test_instances_share_no_more_of_a_gpu_than_there_is(
    left: dict[str, Any], right: dict[str, Any], message: str
) -> None:
    found = errors(TWO[0] | left, TWO[1] | right)
    assert [message in error for error in found] == ([True] if message else [])


def test_a_share_that_is_no_number_is_left_to_the_parser() -> None:
    assert errors(TWO[0], TWO[1] | {"arguments": {"gpu-memory-utilization": "half"}}) == []


def test_without_gpus_there_is_nothing_to_share() -> None:
    two = [instance(name=name, profile="cpu_test") for name in ("left", "right")]
    assert errors(*two, target_device="cpu") == []


@pytest.mark.parametrize("name", PROFILES)
def test_the_load_of_a_warm_up_fits_the_longest_context_of_its_profile(name: str) -> None:
    load = _serving.proof({"name": "one", "profile": name}, "org/name")["warm_up"]
    assert load["prompt_tokens"] == PROFILES[name].warm_up.prompt_tokens
    assert load["prompt_tokens"] + load["answer_tokens"] <= _serving.arguments({"profile": name})["max-model-len"]


def test_a_warm_up_keeps_within_a_shorter_context() -> None:
    instance = {"name": "one", "profile": "latency", "arguments": {"max-model-len": 512}}
    assert _serving.proof(instance, "org/name")["warm_up"]["prompt_tokens"] == 384


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        ({}, "Paris"),
        ({"canary": {"prompt": "2 + 3?", "expected": "5"}}, "5"),
        ({"canary": {"expected": ""}}, ""),
        ({"model": "/data/models/ours"}, ""),
    ],
)
def test_the_canary_is_the_instances_or_what_is_known_of_the_model(instance: dict[str, Any], expected: str) -> None:
    found = _serving.proof({"name": "one", "profile": "latency"} | instance, "deepseek-ai/DeepSeek-V3-0324")
    assert found["canary"]["expected"] == expected


def test_a_canary_of_other_fields_is_refused() -> None:
    instance = {"name": "one", "profile": "latency", "port": 8000, "canary": {"question": "2 + 3?"}}
    assert [error for error in _serving.errors([instance], "0.32.0", OPTIONS["0.32.0"]) if "has canary" in error]
