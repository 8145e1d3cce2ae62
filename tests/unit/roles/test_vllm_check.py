# SPDX-License-Identifier: Apache-2.0
"""vllm_check with the program of the stage model: what is torn does not start, what cannot be judged does."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "roles/vllm_service/files/vllm_check.py"
SHARDS = ("model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors")


def shard(names: list[str]) -> bytes:
    """A file of safetensors with a tensor of four bytes for each name."""
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]} for at, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4 * len(names))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A whole model of two shards, and beside it the program as the stage model installs it."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = {name: [f"layer.{at}.weight", f"layer.{at}.bias"] for at, name in enumerate(SHARDS)}
    for name, tensors in weights.items():
        (folder / name).write_bytes(shard(tensors))
    index = {"weight_map": {tensor: name for name, tensors in weights.items() for tensor in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "program").mkdir()
    (tmp_path / "program/weights").symlink_to(ROOT / "plugins/module_utils/_weights")
    return folder


def check(model: Path | str, program: Path) -> subprocess.CompletedProcess[str]:
    """Run it as the unit does, with the configuration of an instance, and ``program`` in place of the folder on a host."""
    config = program.with_name("instance.yaml")
    config.write_text(yaml.safe_dump({"model": str(model), "port": 8000}))
    start = (
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import pathlib, vllm_check; "
        f"vllm_check.WEIGHTS = pathlib.Path({str(program / 'weights')!r}); sys.exit(vllm_check.main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-Bc", start, str(config)], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_whole_model_starts(model: Path) -> None:
    done = check(model, model.parent / "program")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(shard(["another.tensor"])),
        lambda path: path.unlink(),
    ],
    ids=["cut off", "empty", "too long", "of another revision", "missing"],
)
def test_a_shard_that_is_not_whole_is_named_and_nothing_starts(model: Path, damage: Callable[[Path], object]) -> None:
    damage(model / SHARDS[1])
    done = check(model, model.parent / "program")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert SHARDS[1] in last
    assert SHARDS[0] not in last
    assert " -> " in last


def test_a_model_that_is_not_there_does_not_start(model: Path) -> None:
    done = check(model.parent / "nowhere", model.parent / "program")
    assert done.returncode == 1
    assert done.stderr == f"error: {model.parent}/nowhere is not there -> run the stage again: --tags model\n"


@pytest.mark.parametrize("content", [{"pytorch_model.bin": b"\0"}, {"one.safetensors": shard(["a"])}])
def test_of_a_model_that_another_has_brought_what_is_there_is_checked(model: Path, content: dict[str, bytes]) -> None:
    other = model.parent / "other"
    other.mkdir()
    for name, data in content.items():
        (other / name).write_bytes(data)
    assert check(other, model.parent / "program").returncode == 0
    (other / "torn.safetensors").write_bytes(shard(["a"])[:-1])
    done = check(other, model.parent / "program")
    assert (done.returncode, "torn.safetensors" in done.stderr) == (1, True)


def test_what_cannot_be_judged_is_said_and_starts(model: Path) -> None:
    name = check("org/model", model.parent / "program")
    assert (name.returncode, name.stdout) == (0, "org/model is no folder of this host: its weights are not checked\n")
    (model / SHARDS[1]).unlink()
    (model.parent / "bare").mkdir()
    bare = check(model, model.parent / "bare")
    assert bare.returncode == 0
    assert bare.stdout.endswith(f"{model} is not checked -> run the stage: --tags model\n")


def rendered_unit(variables: t.Mapping[str, t.Any], replica: str = "", rank: int = 0) -> list[str]:
    """The unit of a host that serves alone, or of one of the two of a replica."""
    path = ROOT / "roles/vllm_service/templates/vllm@.service.j2"
    place = {
        "fleet_replica": replica,
        "__vllm_service_rank": rank,
        "__vllm_service_hosts": ["a", "b"] if replica else ["a"],
    }
    host = {
        "fleet_model_root": "/data/models",
        "__vllm_service_gpu": {"pci_nvswitches": []},
        "vllm_service_start_timeout": 3521,
    }
    text: str = jinja2.Template(path.read_text(encoding="utf-8"), trim_blocks=True).render(
        {**variables, **host, **place}
    )
    return text.splitlines()


def test_the_first_host_of_a_replica_is_proved_and_watched_and_the_other_has_no_api() -> None:
    role = ROOT / "roles/vllm_service"
    variables = {
        name: value
        for path in ("vars/main.yml", "defaults/main.yml")
        for name, value in yaml.safe_load((role / path).read_text(encoding="utf-8")).items()
    }
    alone, first, other = (rendered_unit(variables, *place) for place in ((), ("pair", 0), ("pair", 1)))

    def programs(unit: list[str], kind: str) -> list[str]:
        lines = [line for line in unit if line.startswith(f"{kind}=")]
        return [Path(word).stem for line in lines for word in line.split() if word.endswith(".py")]

    for unit in (alone, first, other):
        assert programs(unit, "ExecStartPre") == ["vllm_clear", "acceptance_gate", "vllm_check"]
        assert {"Restart=always", "RuntimeDirectory=vllm/%i", "ExecStop=/usr/bin/rm --force %t/vllm/%i/ready"} <= {
            *unit
        }
    assert [programs(unit, "ExecStart") for unit in (alone, first, other)] == [[], ["vllm_member"], ["vllm_member"]]
    assert [programs(unit, "ExecStartPost") for unit in (alone, first, other)] == [
        ["vllm_ready", "vllm_warm_up"],
        ["vllm_ready", "vllm_warm_up"],
        [],
    ]
    watchdog = "vllm-watchdog@%i.service"
    wants = [next(line for line in unit if line.startswith("Wants=")) for unit in (alone, first, other)]
    assert [watchdog in line for line in wants] == [True, True, False]
    assert [next(line for line in unit if line.startswith("Type=")) for unit in (alone, first, other)] == [
        "Type=exec",
        "Type=exec",
        "Type=notify",
    ]
    assert ["StartLimitBurst=4" in unit for unit in (alone, first, other)] == [True, False, False]
    assert ["StartLimitBurst=8" in unit for unit in (alone, first, other)] == [False, True, True]


def test_the_unit_asks_it_before_vllm_and_nothing_is_restarted_for_it() -> None:
    role = ROOT / "roles/vllm_service"
    constants = yaml.safe_load((role / "vars/main.yml").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8"))
    unit = rendered_unit(constants | defaults)
    commands = [line for line in unit if line.startswith("Exec")]
    assert commands == [
        "ExecStartPre=+/opt/vllm/current/bin/python /usr/local/lib/h20-fleet/vllm_clear.py /etc/vllm/%i.yaml",
        "ExecStartPre=/usr/bin/python3 /usr/local/lib/h20-fleet/acceptance_gate.py",
        "ExecStartPre=/opt/vllm/current/bin/python /usr/local/lib/h20-fleet/vllm_check.py /etc/vllm/%i.yaml",
        "ExecStart=/opt/vllm/current/bin/vllm serve --config /etc/vllm/%i.yaml",
        "ExecStartPost=/opt/vllm/current/bin/python /usr/local/lib/h20-fleet/vllm_ready.py /etc/vllm/%i.yaml",
        "ExecStartPost=/opt/vllm/current/bin/python /usr/local/lib/h20-fleet/vllm_warm_up.py /etc/vllm/%i.yaml /etc/vllm/%i.proof.json",
        "ExecStop=/usr/bin/rm --force %t/vllm/%i/ready",
    ]
    programs = {Path(word) for command in commands for word in command.split() if word.endswith(".py")}
    roles = [role, ROOT / "roles/acceptance"]
    assert {path.name for path in programs} <= {path.name for each in roles for path in (each / "files").glob("*.py")}
    installed = constants["__vllm_service_files"]
    assert {path.name for path in (role / "files").glob("*.py")} <= {Path(name).name for name in installed}
    assert all((role / "files" / source).is_file() for source in installed.values())
    inputs = constants["__vllm_service_inputs"]
    assert not [name for name in ("check", "clear", "gate", "ready", "warm_up") if f"__vllm_service_{name}" in inputs]
    assert "/.h20-fleet-manifest.json" in inputs
