# SPDX-License-Identifier: Apache-2.0
"""What an instance is started with: its profile, what it adds, what the role sets; and what in that vLLM would refuse or misread.

Pure functions of ``fleet_instances``. The options of a version of vLLM are a mapping of long names without dashes in front to ``kind`` and ``choices``, as
roles/vllm_service/files/options/ holds them: a ``boolean`` has a ``no-`` form, a ``switch`` has none, ``value`` and ``list`` take something.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import re
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _model_fit
from ansible_collections.h20.fleet.plugins.module_utils._serving_profiles import (
    ANY,
    CANARIES,
    PROFILES,
    TOOL_CALLS,
    WARM_UP,
)

Instance = t.Mapping[str, t.Any]
Options = t.Mapping[str, t.Mapping[str, t.Any]]

#: Options that the role sets itself, and what an operator sets in their place.
OWN = {
    "model": "the field model of the instance, or the release",
    "served-model-name": "the name of the instance",
    "host": "vllm_service_address",
    "port": "the field port of the instance",
    "shutdown-timeout": "vllm_service_shutdown_timeout",
    "api-key": "vllm_service_api_key, which no process list shows",
    "nnodes": "fleet_replica, the group of the hosts that serve together",
    "node-rank": "the order of the hosts in the group that fleet_replica names",
    "master-addr": "the order of the hosts in the group that fleet_replica names, and nccl_socket_interfaces",
    "master-port": "vllm_service_replica_port",
    "headless": "nothing: all hosts of a replica but the first are",
}

#: Variables of the environment that the role sets itself where a replica spans hosts.
OWN_VARIABLES = ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

#: Options that vLLM once had: the first version whose wheel was seen without them, and what stands in their place. One may come back with another meaning, as
#: 0.33 has disable-log-requests as the opposite of enable-log-requests: what the parser of a version has counts.
REMOVED = {
    "swap-space": ("0.18.1", "kv-offloading-size, where a cache in the host's memory is wanted"),
    "disable-log-requests": ("0.18.1", "nothing: requests are not logged unless enable-log-requests is set"),
    "calculate-kv-scales": ("0.32.0", "nothing: scales come with a checkpoint, else they are 1.0"),
    "enable-reasoning": ("0.13.0", "reasoning-parser; DeepSeek-V3 is no reasoning model and needs none"),
    "guided-decoding-backend": ("0.13.0", "structured-outputs-config: {backend: ...}"),
    "num-scheduler-steps": ("0.13.0", "nothing: scheduling is asynchronous by itself"),
    "max-seq-len-to-capture": ("0.13.0", "max-cudagraph-capture-size, which counts requests"),
    "preload-model": ("0", "load-format, where loading is slow; there never was such an option"),
    "use-beam-search": ("0", "use_beam_search of a request"),
}

#: Variables of the environment likewise.
REMOVED_VARIABLES = {
    "VLLM_ATTENTION_BACKEND": ("0.15.1", "argument attention-backend; FLASHINFER serves no MLA on Hopper, and the automatic choice is right"),
    "VLLM_USE_V1": ("0.13.0", "nothing: there is no other engine any more"),
    "VLLM_USE_FLASHINFER_MOE_FP8": ("0.26.0", "argument moe-backend"),
    "VLLM_FLASHINFER_MOE_BACKEND": ("0.26.0", "argument moe-backend"),
    "VLLM_ALL2ALL_BACKEND": ("0.18.1", "argument all2all-backend"),
    "VLLM_TORCH_PROFILER_DIR": ("0.18.1", "argument profiler-config"),
    "VLLM_SLEEP_WHEN_IDLE": ("0.18.1", "nothing"),
    "VLLM_RPC_TIMEOUT": ("0.26.0", "nothing; vllm_service_start_timeout bounds the start"),
}  # fmt: skip


class SettingError(ValueError):
    """vLLM would misread it; the text says how to write it."""


def version(text: str) -> tuple[int, ...]:
    """A version as numbers, a local part such as +cpu without."""
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0]))


def arguments(instance: Instance, own: t.Mapping[str, t.Any] | None = None) -> dict[str, t.Any]:
    """The options of an instance: its profile's, then its own, then ``own`` (the role's), as vLLM's configuration file takes them.

    ``vllm serve --config`` drops a false one without a word, in 0.26 as in 0.33, so that it is written as its ``no-`` form. Raises SettingError for what
    vLLM would misread and KeyError for an unknown profile.
    """
    given = {name: setting.value for name, setting in PROFILES[instance["profile"]].arguments.items()}
    if instance.get("tool_calls"):
        given |= {name: setting.value for name, setting in TOOL_CALLS.items()}
    # A `no-` form and its positive one are one option, of which the later counts; null takes one of the profile's away.
    for name, value in (instance.get("arguments") or {}).items():
        positive = name.removeprefix("no-") if isinstance(value, bool) else name
        removed = given.pop(positive, None)
        if value is not None or removed is None:
            given[positive] = value if positive == name else not value
    given |= own or {}
    merged: dict[str, t.Any] = {}
    for name, value in given.items():
        _readable(name, value)
        merged |= {f"no-{name}": True} if value is False else {name: value}
    return merged


def _readable(name: str, value: t.Any) -> None:
    if "_" in name or name.startswith("-"):
        wanted = name.lstrip("-").replace("_", "-")
        raise SettingError(f"vLLM argument {name}: write it as {wanted}; vLLM drops a misspelt one without a word")
    if value is None:
        raise SettingError(f"vLLM argument {name} is null, which vLLM reads as the text None: leave the key out")


def environment(instance: Instance) -> dict[str, str]:
    """The variables of an instance beside those that every instance has: its profile's, the GPUs that it may see, its own."""
    profile = {name: str(setting.value) for name, setting in PROFILES[instance["profile"]].environment.items()}
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, instance["gpus"]))} if instance.get("gpus") else {}
    return profile | gpus | {name: str(value) for name, value in (instance.get("environment") or {}).items()}


def proof(instance: Instance, repo: str) -> dict[str, t.Any]:
    """The load and the question by which an instance is proved after a start: its profile's, within its own longest context, and what is known of its model."""
    load = PROFILES[instance["profile"]].warm_up
    longest = arguments(instance).get("max-model-len")
    room = longest - load.answer_tokens if isinstance(longest, int) and longest > 0 else load.prompt_tokens
    known = ANY if instance.get("model") else CANARIES.get(repo, ANY)
    return {
        "warm_up": {
            "concurrency": load.concurrency,
            "prompt_tokens": max(1, min(load.prompt_tokens, room)),
            "answer_tokens": load.answer_tokens,
            **WARM_UP,
        },
        "canary": dataclasses.asdict(known) | (instance.get("canary") or {}),
    }


def errors(
    instances: t.Sequence[Instance], vllm_version: str, options: Options | None, on_gpus: bool = True, hosts: int = 1
) -> list[str]:
    """A sentence with its remedy for all that cannot be served, by ``hosts`` that serve together.

    ``options`` is None where nobody has read the parser of that version.
    """
    found: list[str] = []
    for instance in instances:
        sentences = [*_profile(instance, vllm_version)]
        if not sentences:
            sentences += [*_own(instance), *_arguments(instance, vllm_version, options)]
            sentences += [*_environment(instance, vllm_version), *_gpus(instance, hosts), *_hosts(instance, hosts)]
        found += [f"instance {instance['name']} {sentence}" for sentence in sentences]
    return found if found or not on_gpus else [*_shared(instances)]


def _profile(instance: Instance, vllm_version: str) -> t.Iterator[str]:
    name = instance["profile"]
    if name not in PROFILES:
        yield f"names profile {name}; known are {', '.join(PROFILES)} -> name one of them"
        return
    first, beyond = PROFILES[name].versions
    if not version(first) <= version(vllm_version) < version(beyond):
        yield (
            f"names profile {name}, which is valid for vLLM {first} to below {beyond}, whose parsers were read; the release has {vllm_version}"
            " -> name a release with such a vLLM, or have the profile reviewed for this one (`make parsers`)"
        )


def _own(instance: Instance) -> t.Iterator[str]:
    taken = [name for name in instance.get("arguments") or {} if name in OWN]
    if taken:
        instead = "; ".join(f"{name}: {OWN[name]}" for name in taken)
        yield f"sets {', '.join(taken)} in its arguments, which the role sets itself -> {instead}"
    canary = instance.get("canary") or {}
    if not isinstance(canary, dict) or set(canary) - {"prompt", "expected"}:
        yield f"has canary {canary!r} -> give it prompt and expected alone: a question, and what its answer contains"
    if "CUDA_VISIBLE_DEVICES" in (instance.get("environment") or {}):
        yield "sets CUDA_VISIBLE_DEVICES in its environment -> name them in its field gpus, which is checked against the other instances"
    if instance.get("model") and not str(instance["model"]).startswith("/"):
        yield f"has model {instance['model']}, which is no absolute path -> name the folder on the hosts"


def _arguments(instance: Instance, vllm_version: str, options: Options | None) -> t.Iterator[str]:
    try:
        merged = arguments(instance)
    except SettingError as error:
        yield f"cannot be written: {error}"
        return
    for name, value in merged.items():
        gone = options is None or name not in options
        if gone and name in REMOVED and version(vllm_version) >= version(REMOVED[name][0]):
            yield f"sets {name}, which vLLM {vllm_version} does not have any more -> {REMOVED[name][1]}"
        elif options is not None:
            yield from _option(name, value, vllm_version, options)


def _option(name: str, value: t.Any, vllm_version: str, options: Options) -> t.Iterator[str]:
    negated = name not in options and name.startswith("no-") and value is True
    option = options.get(name.removeprefix("no-") if negated else name)
    if option is None:
        near = difflib.get_close_matches(name.removeprefix("no-"), options, n=1)
        hint = f"did you mean {near[0]}?" if near else "`vllm serve --help=all` lists what it has"
        yield f"sets {name}, which vLLM {vllm_version} does not have -> {hint}"
    elif negated and option["kind"] != "boolean":
        yield f"sets {name.removeprefix('no-')} to false, which takes no such value -> leave it out"
    elif not negated and (option["kind"] in ("boolean", "switch")) != isinstance(value, bool):
        wanted = "true or false" if option["kind"] == "boolean" else "true"
        yield f"sets {name} to {value!r} -> " + (
            f"write {wanted}" if option["kind"] in ("boolean", "switch") else "give it a value"
        )
    elif option.get("choices") and not isinstance(value, list) and str(value) not in option["choices"]:
        yield f"sets {name} to {value!r} -> choose one of {', '.join(option['choices'])}"


def _environment(instance: Instance, vllm_version: str) -> t.Iterator[str]:
    for name in instance.get("environment") or {}:
        since, instead = REMOVED_VARIABLES.get(name, ("", ""))
        if since and version(vllm_version) >= version(since):
            yield f"sets {name} in its environment, which vLLM {vllm_version} does not read any more -> {instead}"


def _hosts(instance: Instance, hosts: int) -> t.Iterator[str]:
    """What stands against as many hosts as serve the instance together."""
    profile = PROFILES[instance["profile"]].arguments
    if "nnodes" in profile and profile["nnodes"].value != hosts:
        yield (
            f"names profile {instance['profile']} for {profile['nnodes'].value} hosts and is served by {hosts}"
            " -> name in fleet_replica a group of as many hosts, or another profile"
        )
    taken = [name for name in OWN_VARIABLES if name in (instance.get("environment") or {})]
    if hosts > 1 and taken:
        yield f"sets {', '.join(taken)} in its environment, which the role sets itself for a replica over hosts -> nccl_socket_interfaces names the interface"
    if hosts < 2:
        return
    try:
        layout = _model_fit.read_layout(arguments(instance, {"nnodes": hosts}))
    except (ValueError, TypeError, AttributeError):
        return  # what cannot be read is told by the plan
    if layout.data > 1:
        yield f"has the layout {layout.name}, and data parallelism over hosts is not set up here -> take tensor-parallel-size and pipeline-parallel-size"
    elif layout.gpus % hosts:
        yield (
            f"has the layout {layout.name} of {layout.gpus} GPUs, which {hosts} hosts cannot share evenly"
            f" -> let tensor-parallel-size times pipeline-parallel-size be a multiple of {hosts}"
        )


def _gpus(instance: Instance, hosts: int) -> t.Iterator[str]:
    gpus = instance.get("gpus") or []
    if len(set(gpus)) < len(gpus) or any(gpu < 0 for gpu in gpus):
        yield f"has gpus {', '.join(map(str, gpus))} -> name each once, by its number from 0 on"
        return
    try:
        layout = _model_fit.read_layout(arguments(instance, {"nnodes": hosts} if hosts > 1 else {}))
    except (ValueError, TypeError, AttributeError):
        return  # what cannot be read is told by the plan
    if gpus and layout.gpus_here is not None and layout.gpus_here != len(gpus):
        yield f"has {len(gpus)} gpus and its layout {layout.name} takes {layout.gpus_here} of a host -> let the two agree"


def _shared(instances: t.Sequence[Instance]) -> t.Iterator[str]:
    """Instances that together ask for more than a GPU has; one that names no GPUs may use all."""
    if len(instances) < 2:
        return
    shares: dict[int | str, dict[str, float]] = collections.defaultdict(dict)
    every = {gpu for instance in instances for gpu in instance.get("gpus") or []}
    for instance in instances:
        share = _share(instance)
        for gpu in instance.get("gpus") or every or ["all"]:
            shares[gpu][str(instance["name"])] = share
    told = set()
    for gpu, asked in shares.items():
        names = tuple(asked)
        if sum(asked.values()) >= 1 and names not in told:
            told.add(names)
            where = "all GPUs" if gpu == "all" else f"GPU {gpu}"
            parts = " and ".join(f"{name} ({share:g})" for name, share in asked.items())
            yield (
                f"instances {parts} share {where} and ask for {sum(asked.values()):g} of its memory, vLLM's default being {_model_fit.GPU_MEMORY_UTILIZATION}"
                " -> give each its own gpus, or shares of gpu-memory-utilization that add up below 1"
            )


def _share(instance: Instance) -> float:
    """Share of a GPU's memory that an instance asks for; 0 for what is no number, which the parser refuses."""
    try:
        return float(arguments(instance).get("gpu-memory-utilization", _model_fit.GPU_MEMORY_UTILIZATION))
    except (TypeError, ValueError):
        return 0.0
