# SPDX-License-Identifier: Apache-2.0
"""The wheel that completes the CPU build of vLLM, and the locks that name it."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from pathlib import Path

import pytest
from testbed import hub
from testbed.hub import wheel

LOCKS = Path(__file__).parents[3] / "roles/vllm/files/locks"
CPU = "vllm-0.32.0-cpu-py311.txt"
GPU = ("vllm-0.32.0-cu130-py311.txt", "vllm-0.32.0-cu130-py312.txt")


def requirements(name: str) -> dict[str, tuple[str, set[str]]]:
    """Return version and sha256 hashes of every package of a lock."""
    text = (LOCKS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            package, _, version = line.split()[0].partition("==")
            found[package] = (version, set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)))
    return found


def test_wheel_has_the_hash_that_stands_in_the_lock(tmp_path: Path) -> None:
    content = wheel.write_shim(tmp_path).read_bytes()
    assert requirements(CPU)["vllm"] == ("0.32.0+cpu", {hashlib.sha256(content).hexdigest()})


def test_wheel_holds_metadata_alone_and_a_true_record(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel.write_shim(tmp_path)) as archive:
        names = archive.namelist()
        record = archive.read("vllm-0.32.0+cpu.dist-info/RECORD").decode()
        for line in record.splitlines()[:-1]:
            path, digest, size = line.split(",")
            content = archive.read(path)
            assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert int(size) == len(content)
    assert {line.split(",")[0] for line in record.splitlines()} == set(names)
    assert {name.split("/")[0] for name in names} == {"vllm-0.32.0+cpu.dist-info"}


def test_building_again_changes_nothing(tmp_path: Path) -> None:
    hub.build_wheels(tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "wheels").iterdir()}
    hub.build_wheels(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "wheels").iterdir()} == first


def test_page_lists_every_wheel_of_the_folder_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/other-1.0-py3-none-any.whl").write_bytes(b"content")
    hub.build_wheels(tmp_path)
    page = (tmp_path / "wheels/index.html").read_text(encoding="utf-8")
    digest = hashlib.sha256(b"content").hexdigest()
    assert f'<a href="other-1.0-py3-none-any.whl#sha256={digest}">' in page
    assert 'href="vllm-0.32.0%2Bcpu-py3-none-any.whl#sha256=' in page


@pytest.mark.parametrize("name", [CPU, *GPU])
def test_lock_pins_every_package_with_hashes_and_names_no_index(name: str) -> None:
    found = requirements(name)
    assert len(found) > 100
    assert all(version and hashes for version, hashes in found.values())
    assert "://" not in (LOCKS / name).read_text(encoding="utf-8")


def test_cpu_lock_brings_no_gpu_software() -> None:
    found = requirements(CPU)
    assert found["torch"][0] == "2.13.0+cpu"
    assert not [name for name in found if re.match(r"nvidia-|cuda-|triton|torch(vision|audio|codec)", name)]


@pytest.mark.parametrize("name", GPU)
def test_gpu_lock_has_one_cuda(name: str) -> None:
    found = requirements(name)
    assert (found["vllm"][0], found["torch"][0]) == ("0.32.0", "2.13.0")
    toolkit = ("runtime", "nvrtc", "nvcc", "crt", "cccl", "cupti")
    assert {found[f"nvidia-cuda-{part}"][0].rpartition(".")[0] for part in toolkit} == {"13.0"}
    assert {found[part][0].rpartition(".")[0] for part in ("nvidia-nvjitlink", "nvidia-nvvm", "cuda-python")} == {
        "13.0"
    }
    assert not [package for package in found if package.endswith(("cu11", "cu12"))]
