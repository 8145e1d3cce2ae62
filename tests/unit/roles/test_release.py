# SPDX-License-Identifier: Apache-2.0
"""The release: what a site says of it and of its hardware is whole, known and free of contradictions before anything else happens."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.module_utils import _profiles

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = yaml.safe_load((ROOT / "roles/release/vars/main.yml").read_text(encoding="utf-8"))
LOCKS = ROOT / "roles/vllm/files/locks"
GPU_LOCK = (LOCKS / "vllm-0.32.0-cu130-py312.txt").read_text(encoding="utf-8")
CPU_LOCK = (LOCKS / "vllm-0.32.0-cpu-py311.txt").read_text(encoding="utf-8")
BASE = "2026.11"
WHOLE = _profiles.PROFILES["h200"] | {"gpus": 4, "nvswitches": 0, "source": "measured by us"}


def test_the_role_names_what_is_shipped() -> None:
    """The role refuses a name before a module could be asked, so it has a list of its own."""
    assert VARIABLES["__release_hardware_profiles"] == list(_profiles.PROFILES)
    assert VARIABLES["__release_hardware_shape"] == _profiles.OPTIONS


# Locks of the site, each wrong in its own way; they lie in the folder LOCK_FOLDER stands for.
LOCK_FOLDER = "/@locks@"
SITE_LOCKS = {
    "whole.txt": GPU_LOCK,
    "tampered.txt": GPU_LOCK + "left-pad==1.0 --hash=sha256:" + "0" * 64 + "\n",
    "cpu.txt": GPU_LOCK.replace("torch==2.13.0 ", "torch==2.13.0+cpu "),
    "mixed.txt": GPU_LOCK.replace("nvidia-nccl-cu13==", "nvidia-nccl-cu12=="),
    "older.txt": GPU_LOCK.replace("vllm==0.32.0 ", "vllm==0.31.0 "),
    "build.txt": "setuptools==80.0 --hash=sha256:" + "0" * 64 + "\n",
}
SDIST = {"requirement": "vllm==0.32.0", "sha256": "1" * 64}
GIT = {"url": "https://mirror.test/vllm.git", "revision": "2" * 40}


def lock(name: str, vouched_for: str = "") -> dict[str, str]:
    """A lock of the site, with the hash of it or of another one."""
    return {
        "file": f"{LOCK_FOLDER}/{name}",
        "sha256": hashlib.sha256(SITE_LOCKS[vouched_for or name].encode()).hexdigest(),
    }


def release(**fields: Any) -> dict[str, Any]:
    """A release of the site over the shipped one, as variables."""
    return {"fleet_release": "ours", "fleet_releases": {"ours": {"base": BASE, **fields}}}


def locked(name: str, vouched_for: str = "", **fields: Any) -> dict[str, Any]:
    return release(vllm={"locks": {"3.12": lock(name, vouched_for)}, **fields})


def built(**source: Any) -> dict[str, Any]:
    return locked("whole.txt", source={"build_lock": lock("build.txt"), **source})


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"fleet_hardware_profile": "b300"},
        "fleet_hardware_profile b300 is not known; known are auto, h100, h200, h20_141g, h20_96g, h20_nvl16 -> name one of them",
    ),
    "partial": (
        {"fleet_hardware_profiles": {"ours": {"gpus": 4}}},
        "missing required arguments: allreduce_floor_gb_s, copy_floor_gb_s, link_width",
    ),
    "type": ({"fleet_hardware_profiles": {"ours": WHOLE | {"gpus": "many"}}}, "'gpus' is of type"),
    "number": (
        {"fleet_hardware_profiles": {"ours": WHOLE | {"pci_device": 2335}}},
        "ours has pci_device 2335 -> write the four",
    ),
    "vendor": (
        {"fleet_hardware_profiles": {"ours": WHOLE | {"pci_device": "10de:2335"}}},
        "ours has pci_device 10de:2335",
    ),
    "whole": ({"fleet_hardware_profile": "ours", "fleet_hardware_profiles": {"ours": WHOLE}}, ""),
    "unknown-release": (
        {"fleet_release": "1999.01"},
        "fleet_release 1999.01 is not known; known are 2026.11 -> name one of them",
    ),
    "unknown-base": (
        release(base="1999.01"),
        "release ours: its base 1999.01 is not known; known are 2026.11 -> name one of them, or write the release out",
    ),
    "base-of-a-base": (
        {"fleet_release": "ours", "fleet_releases": {"ours": {"base": "theirs"}, "theirs": {"base": BASE}}},
        "release ours: its base theirs has a base itself, 2026.11 -> a base stands alone",
    ),
    "over-a-base": (release(description="Another driver", driver={"version": "595.71.05"}), ""),
    "over-the-shipped-of-its-name": ({"fleet_releases": {BASE: {"base": BASE, "dcgm": {"version": "4.5.3"}}}}, ""),
    "torn": (
        {"fleet_release": "ours", "fleet_releases": {"ours": {"description": "torn"}}},
        "missing required arguments: cuda, dcgm, driver",
    ),
    "misspelt": (release(vllm={"lock": "x.txt"}), "vllm.lock. Supported parameters include"),
    "unknown-device": (release(vllm={"target_device": "rocm"}), "must be one of: cuda, cpu, empty, got: rocm"),
    "manifest-without-hash": (release(model={"manifest": {"file": "m.json"}}), "missing required arguments: sha256"),
    "source-without-build-lock": (locked("whole.txt", source={"git": GIT}), "missing required arguments: build_lock"),
    "driver": (
        release(driver={"version": "570.1"}),
        "release ours: CUDA 13.0 does not run on driver 570.1 -> name a driver from 580.65.06 on",
    ),
    "cuda-of-no-major": (release(cuda={"version": "14.0"}), "CUDA 14.0 is of no major that this collection knows"),
    "version-as-number": (release(python={"version": 3.12}), "python.version 3.12 is a number, not a version"),
    "python": (
        release(python={"version": "3.10"}),
        "vLLM 0.32.0 does not run on Python 3.10 -> name one from 3.11 to below 3.15",
    ),
    "python-without-lock": (
        release(python={"version": "3.13"}),
        "python.version 3.13 has no lock; vllm.locks has 3.11, 3.12 -> add its lock, or name one of these",
    ),
    "lock-without-hash": (release(vllm={"locks": {"3.12": {"sha256": None}}}), "vllm.locks 3.12: sha256 None is none"),
    "lock-that-is-not-there": (
        release(vllm={"locks": {"3.12": {"file": "vllm-9.txt"}}}),
        "files/locks/vllm-9.txt is not on the controller; beside it is vllm-0.32.0-",
    ),
    "lock-tampered": (
        locked("tampered.txt", vouched_for="whole.txt"),
        f"tampered.txt has sha256 {lock('tampered.txt')['sha256']}, the release names {lock('whole.txt')['sha256']} -> somebody changed the file",
    ),
    "lock-of-another-vllm": (
        locked("older.txt"),
        "older.txt pins vllm==0.31.0, vllm.version is 0.32.0 -> name the lock of that version",
    ),
    "lock-with-cpu-torch": (locked("cpu.txt"), "cpu.txt pins torch==2.13.0+cpu, built without CUDA -> resolve it"),
    "lock-of-two-cudas": (
        locked("mixed.txt"),
        "mixed.txt mixes CUDA 12 (nvidia-nccl-cu12==2.29.7), CUDA 13 (cuda-bindings==13.0.3) -> keep all but one out",
    ),
    "lock-of-another-cuda": (
        release(cuda={"version": "12.8"}),
        "is for CUDA 13 (cuda-bindings==13.0.3), cuda.version is 12.8 -> name a lock for that CUDA, or cuda.version 13.x",
    ),
    "lock-with-cuda-for-cpu": (
        locked("whole.txt", target_device="cpu"),
        "whole.txt pins torch==2.13.0, built for CUDA, and target_device is cpu -> pin PyTorch's CPU build, torch==2.13.0+cpu",
    ),
    "lock-with-a-local-label": (
        release(
            python={"version": "3.11"},
            vllm={
                "target_device": "cpu",
                "locks": {
                    "3.11": {
                        "file": "vllm-0.32.0-cpu-py311.txt",
                        "sha256": hashlib.sha256(CPU_LOCK.encode()).hexdigest(),
                    }
                },
            },
        ),
        "",
    ),
    "uv": (release(uv={"sha256": "d7f459fe"}), "uv: sha256 d7f459fe is none -> write the 64 hexadecimal digits"),
    "branch": (release(model={"revision": "main"}), "model.revision main is no full commit -> pin the 40"),
    "manifest-that-is-not-there": (
        release(model={"manifest": {"file": "/nowhere/m.json", "sha256": "0" * 64}}),
        "model.manifest: /nowhere/m.json is not on the controller; beside it is nothing of its kind",
    ),
    "manifest-of-nobody": (
        {"fleet_model_signers": "fleet@site.test ssh-ed25519 AAAA"},
        "release 2026.11: model.manifest is missing, and fleet_model_signers asks for a signed one -> make, review and sign it",
    ),
    "nothing-to-build": (release(vllm={"target_device": "empty"}), "vllm.target_device empty has no wheel anywhere"),
    "source-of-neither": (built(), "vllm.source names neither sdist nor git -> name one of sdist"),
    "source-of-both": (built(sdist=SDIST, git=GIT), "vllm.source names sdist and git -> name one of sdist"),
    "source-of-a-branch": (
        built(git=GIT | {"revision": "main"}),
        "vllm.source.git.revision main is no full commit -> pin the 40 hexadecimal digits; a tag or branch moves",
    ),
    "source-without-hash": (
        built(sdist=SDIST | {"sha256": "none"}),
        "vllm.source.sdist: sha256 none is none -> write the 64 hexadecimal digits",
    ),
    "source-of-another-vllm": (
        built(sdist=SDIST | {"requirement": "vllm==0.31.0"}),
        "vllm.source.sdist.requirement vllm==0.31.0 is not vllm.version 0.32.0 -> name the same in both",
    ),
    "source-with-tampered-build-lock": (
        built(sdist=SDIST, build_lock=lock("build.txt", vouched_for="whole.txt")),
        "vllm.source.build_lock: ",
    ),
    "source-of-one": (built(sdist=SDIST), ""),
    "source-of-git": (built(git=GIT, sdist=None), ""),
    "shared-port": (
        {"fleet_instances": [{"name": name, "profile": "latency", "port": 8000} for name in ("a", "b")]},
        "fleet_instances share a name or a port",
    ),
    "everything-at-once": (
        release(driver={"version": "570.1"}, uv={"sha256": "x"}, model={"revision": "main"}),
        "name a driver from 580.65.06 on release ours: uv: sha256 x is none -> write the 64 hexadecimal digits that `sha256sum` prints, in quotes release",
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of the role alone prints, with a host for each case; none of them exists, since the role needs none."""
    folder = tmp_path_factory.mktemp("release")
    locks = folder / "locks"
    locks.mkdir()
    for name, text in SITE_LOCKS.items():
        (locks / name).write_text(text, encoding="utf-8")
    hosts = {name: variables for name, (variables, _message) in CASES.items()}
    # JSON, which is YAML: a test that shares a dictionary between cases would write an alias.
    inventory = json.dumps({"all": {"hosts": hosts}}).replace(LOCK_FOLDER, str(locks))
    play = {"hosts": "all", "gather_facts": False, "roles": ["h20.fleet.release"]}
    (folder / "hosts.yml").write_text(inventory, encoding="utf-8")
    (folder / "load.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(program), "-i", "hosts.yml", "load.yml"],
        cwd=folder,
        env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_known_not_whole_or_contradicts_itself_is_refused(loaded: str, name: str) -> None:
    message = CASES[name][1]
    assert message in loaded
    assert re.search(rf"(?<!\S){name} : ok=\d+ changed=0 unreachable=0 failed={int(bool(message))} ", loaded)
