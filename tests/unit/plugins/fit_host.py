# SPDX-License-Identifier: Apache-2.0
"""What the tests of preflight start from: all that is read of a host with no fault, and a way to say what differs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ansible_collections.h20.fleet.plugins.module_utils import _profiles

Facts = dict[str, Any]
GIB = 1024**3
MODEL_BYTES = 700 * GIB
MODEL = "/data/models/org/name/revision"
DRIVER = "580.173.02"
OLDER = "580.159.04"
ADDRESSES = [f"0000:{bus}:00.0" for bus in ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")]
DEEPSEEK = json.loads((Path(__file__).parent / "models/deepseek-v3.json").read_text(encoding="utf-8"))
NGINX = {"pid": 812, "command": "nginx", "unit": "nginx.service"}
VLLM = {"pid": 900, "command": "vllm", "unit": "vllm@deepseek.service"}
XID = {
    "time": "2026-11-23T03:12:00Z",
    "kind": "xid",
    "address": ADDRESSES[3],
    "code": 79,
    "name": "GPU has fallen off the bus",
    "action": "power-cycle the host",
    "fatal": True,
    "message": "",
}


def package(name: str, version: str, archive: str) -> Facts:
    upstream = version.partition("-")[0]
    return {
        "name": name,
        "version": version,
        "upstream_version": upstream,
        "archive": archive,
        "status": "installed",
        "held": True,
    }


def process(name: str) -> Facts:
    return {"pid": 4711, "name": name, "memory_mib": 100_000}


def fit() -> dict[str, Facts]:
    """host, gpu, model and need of a host with no fault: its driver is the release's, its disk takes the model exactly."""
    pci = {"numa_node": 0, "link_width": 16, "link_width_max": 16, "driver": "nvidia"}
    answer = {
        "device": "232c",
        "product": "NVIDIA H20-3e",
        "memory_mib": 143771,
        "memory_used_mib": 600,
        "ecc": "Enabled",
        "ecc_pending": "Enabled",
        "ecc_uncorrectable": 0,
        "ecc_uncorrectable_aggregate": 0,
        "mig": "Disabled",
        "row_remap_pending": "No",
        "row_remap_failure": "No",
        "recovery_action": None,
        "fabric_state": "Completed",
        "fabric_status": "Success",
        "processes": [],
        "nvlinks": {"active": 18, "inactive": []},
    }
    facts: dict[str, Facts] = {
        "host": {
            "os": {"id": "ubuntu", "version_id": "24.04"},
            "architecture": "x86_64",
            "kernel": "6.8.0-60-generic",
            "memory_bytes": 1024 * GIB,
            "filesystems": {
                "/data/models": {"parent": "/data", "free_bytes": round(MODEL_BYTES * 1.05), "total_bytes": 2**50}
            },
            "trees": {MODEL: {"exists": False, "bytes": 0}, f"{MODEL}.partial": {"exists": False, "bytes": 0}},
            "ports": {},
        },
        "gpu": {
            "profile": "h20_141g",
            "profiles": _profiles.PROFILES,
            "pci_gpus": [pci | {"address": address, "device": "232c"} for address in ADDRESSES],
            "pci_nvswitches": [pci | {"address": f"0000:0{number}:00.0", "device": "22a3"} for number in range(4, 8)],
            "kernel": {
                "release": "6.8.0-60-generic",
                "headers": True,
                "secure_boot": False,
                "metapackages": [{"name": "linux-image-generic", "held": True}],
            },
            "module": {"loaded_version": DRIVER, "installed_version": DRIVER, "open": True, "nouveau": False},
            "userspace_version": DRIVER,
            "fabric_manager": {"version": DRIVER, "active": True},
            "packages": [package("nvidia-open", f"{DRIVER}-1ubuntu1", "nvidia")],
            "runfile": False,
            "pcie": {"redirecting": [], "translated": []},
            "dpkg": {"interrupted": [], "lock_holder": None},
            "smi": {
                "driver_version": DRIVER,
                "cuda_version": "13.0",
                "gpus": [answer | {"address": address} for address in ADDRESSES],
            },
            "smi_error": "",
            "xids": [],
        },
        "model": {
            "present": False,
            "config": DEEPSEEK,
            "bytes": MODEL_BYTES,
            "weight_bytes": None,
            "source": "hub",
            "error": "",
        },
        "need": {
            "release": "2026.11",
            "profile": "auto",
            "driver_version": DRIVER,
            "minimum_driver": "580.65.06",
            "driver_replace": False,
            "secure_boot_enrolled": False,
            "memory_gib": 1024,
            "nodes": "single",
            "model_root": "/data/models",
            "model_path": MODEL,
            "model_bytes": MODEL_BYTES,
            "instances": [{"name": "deepseek", "profile": "latency", "port": 8000}],
        },
    }
    return copy.deepcopy(facts)


def changed(changes: Facts) -> dict[str, Facts]:
    """The fit host after changes by dotted path; ``gpus:3`` keeps the first three of a list, and ``*`` means each of it."""
    facts = fit()
    for path, value in changes.items():
        *parents, last = path.split(".")
        targets: list[Any] = [facts]
        for key in parents:
            targets = [child for target in targets for child in _children(target, key)]
        for target in targets:
            _put(target, last, value)
    return facts


def _children(target: Any, key: str) -> list[Any]:
    if key == "*":
        return list(target)
    return [target[int(key)] if isinstance(target, list) else target[key]]


def _put(target: Any, key: str, value: Any) -> None:
    name, _colon, length = key.partition(":")
    if length:
        # A longer list repeats its last entry under other addresses.
        kept = target[name][: int(length)]
        more = [target[name][-1] | {"address": f"0000:f{number}:00.0"} for number in range(int(length) - len(kept))]
        target[name] = kept + more
    else:
        target[name] = copy.deepcopy(value)
