# SPDX-License-Identifier: Apache-2.0
"""The filter that names what contradicts itself in a release, and what a lock is for. (The role runs it: tests/unit/roles/test_release.py.)"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.filter import release_errors
from ansible_collections.h20.fleet.plugins.module_utils import _locks

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ROOT / "roles/vllm/files/locks"
SHIPPED = sorted((ROOT / "roles/release/files/releases").glob("*.yml"))
errors = release_errors.FilterModule().filters()["release_errors"]


def shipped() -> dict[str, Any]:
    release: dict[str, Any] = yaml.safe_load(SHIPPED[-1].read_text(encoding="utf-8"))
    return release


def test_the_shipped_release_is_sound_for_every_python_that_it_has_a_lock_for() -> None:
    release = shipped()
    for python in release["vllm"]["locks"]:
        assert errors(release | {"python": {"version": python}}, str(LOCKS), "", minimum_driver="580.65.06") == []


def test_a_recorded_release_needs_no_file_of_the_controller() -> None:
    assert errors(shipped(), "/nowhere", "", minimum_driver="580.65.06", recorded=True) == []
    assert "is not on the controller" in errors(shipped(), "/nowhere", "", minimum_driver="580.65.06")[0]


def test_every_contradiction_is_named_at_once() -> None:
    release = shipped() | {"driver": {"version": "570.1"}, "python": {"version": "3.10"}}
    found = errors(release, str(LOCKS), "", minimum_driver="580.65.06")
    assert [sentence.split(" -> ")[0] for sentence in found] == [
        "CUDA 13.0 does not run on driver 570.1",
        "vLLM 0.32.0 does not run on Python 3.10",
        "python.version 3.10 has no lock; vllm.locks has 3.11, 3.12",
    ]


@pytest.mark.parametrize(
    ("vllm", "python", "runs"),
    [("0.33.0", "3.11", True), ("0.32.0", "3.15", False), ("0.31.0", "3.10", True), ("0.13.0", "3.14", False)],
)
def test_pythons_are_a_fact_of_the_version_of_vllm(vllm: str, python: str, runs: bool) -> None:
    release = shipped() | {"python": {"version": python}}
    release["vllm"] |= {"version": vllm, "locks": {python: {"file": "l", "sha256": "0" * 64}}}
    found = errors(release, "", "", minimum_driver="580.65.06", recorded=True)
    assert any("does not run on Python" in sentence for sentence in found) is not runs


@pytest.mark.parametrize(
    ("pins", "majors"),
    [
        ({"nvidia-cuda-runtime": "13.0.96", "nvidia-nccl-cu13": "2.29.7", "nvidia-cudnn-frontend": "1.32.0"}, {"13"}),
        ({"nvidia-cuda-nvrtc-cu12": "12.8.93", "torch": "2.11.0+cu128"}, {"12"}),
        ({"cuda-python": "13.0.3", "cuda-core": "1.2.2", "cuda-pathfinder": "1.9.0"}, {"13"}),
        ({"nvidia-cublas": "13.1.1.3", "nvidia-ml-py": "13.615.71", "cuda-tile": "1.7.0"}, set()),
        ({"cupy-cuda12x": "14.0.1", "nvidia-cutlass-dsl-libs-cu13": "4.8.0"}, {"12", "13"}),
    ],
)
def test_cuda_majors_of_pins(pins: dict[str, str], majors: set[str]) -> None:
    assert _locks.cuda_majors(pins).keys() == majors


@pytest.mark.parametrize(
    ("pins", "device", "reason"),
    [
        ({"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96"}, "cuda", ""),
        ({"torch": "2.13.0+cpu"}, "cpu", ""),
        ({}, "empty", ""),
        ({}, "cuda", "pins no torch"),
        ({"torch": "2.13.0+cpu"}, "cuda", "pins torch==2.13.0+cpu, built without CUDA"),
        (
            {"torch": "2.13.0", "nvidia-nccl-cu13": "2.29.7", "nvidia-cudnn-cu12": "9.1"},
            "cuda",
            "mixes CUDA 12 (nvidia-cudnn-cu12==9.1), CUDA 13 (nvidia-nccl-cu13==2.29.7)",
        ),
        ({"torch": "2.13.0+cu129"}, "cuda", "is for CUDA 12 (torch==2.13.0+cu129), cuda.version is 13.0"),
        (
            {"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96", "nvidia-cuda-nvcc": "13.5.37"},
            "cuda",
            "pins nvidia-cuda-nvcc==13.5.37, a compiler newer than cuda.version 13.0",
        ),
        ({"torch": "2.13.0"}, "cpu", "pins torch==2.13.0, built for CUDA"),
        ({"torch": "2.13.0+cpu", "nvidia-nccl-cu13": "2.29.7"}, "cpu", "pins nvidia-nccl-cu13==2.29.7, built for CUDA"),
    ],
)
def test_what_a_lock_may_hold(pins: dict[str, str], device: str, reason: str) -> None:
    found = _locks.unsuitable(pins, device, "13.0")
    assert len(found) == int(bool(reason))
    assert all(sentence.startswith(reason) and " -> " in sentence for sentence in found)


@pytest.fixture
def signers(tmp_path: Path) -> str:
    """The one whom the site knows; the keys of her and of a stranger lie beside the manifests."""
    for name in ("own", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    return f'fleet@site.test namespaces="h20-fleet-model" {(tmp_path / "own.pub").read_text()}'


def with_manifest(folder: Path, key: str = "own", **fields: str) -> dict[str, Any]:
    """The shipped release with a manifest below ``folder``, which ``key`` has signed."""
    release = shipped()
    file = {"path": "config.json", "size": 2, "algorithm": "sha256", "digest": "0" * 64}
    named = {"repo": release["model"]["repo"], "revision": release["model"]["revision"]} | fields
    path = folder / "manifest.json"
    path.write_text(json.dumps({**named, "files": [file]}))
    path.with_name("manifest.json.sig").unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-q", "-n", "h20-fleet-model", "-f", str(folder / key), str(path)],
        check=True,
        capture_output=True,
    )
    manifest = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    release["model"]["manifest"] = manifest | {"signature": "manifest.json.sig"}
    return release


def judged(release: dict[str, Any], folder: Path, signers: str = "") -> list[str]:
    found = errors(release, str(LOCKS), str(folder), minimum_driver="580.65.06", signers=signers)
    assert all(" -> " in sentence for sentence in found)
    return [sentence.partition(" -> ")[0] for sentence in found]


def test_a_signed_manifest_of_the_revision_is_sound(tmp_path: Path, signers: str) -> None:
    release = with_manifest(tmp_path)
    assert judged(release, tmp_path, signers) == []
    del release["model"]["manifest"]["signature"]
    assert judged(release, tmp_path) == []


def test_where_the_site_names_signers_the_release_needs_a_signature_of_theirs(tmp_path: Path, signers: str) -> None:
    asks = "and fleet_model_signers asks for"
    assert judged(shipped(), tmp_path, signers) == [f"model.manifest is missing, {asks} a signed one"]
    release = with_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    for signature in (None, "", "nowhere.sig"):
        release["model"]["manifest"]["signature"] = signature
        assert judged(release, tmp_path, signers) == [f"model.manifest: {path} has no signature, {asks} one"]
    [stranger] = judged(with_manifest(tmp_path, key="other"), tmp_path, signers)
    assert stranger.startswith(f"model.manifest: {path} was signed by the key SHA256:")
    release = with_manifest(tmp_path)
    path.write_text(path.read_text() + "\n")
    release["model"]["manifest"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    [changed] = judged(release, tmp_path, signers)
    assert changed.startswith(f"model.manifest: the signature of {path} is not one of it as it is")


def test_a_manifest_of_another_revision_is_refused(tmp_path: Path, signers: str) -> None:
    [other] = judged(with_manifest(tmp_path, revision="0" * 40), tmp_path, signers)
    model = shipped()["model"]
    assert other.endswith(f"is the manifest of {model['repo']}@{'0' * 40}, not of {model['repo']}@{model['revision']}")
