# SPDX-License-Identifier: Apache-2.0
"""Containers in the engine: what runs is left alone, what is missing is made, what is someone else's is not touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker import DockerClient
from docker.errors import NotFound
from testbed import ROOT, ROOT_LABEL, SetupError, containers
from testbed.plans import Plan
from unit.testbed.sample import DEMO

PLAN = Plan("h20-01", "172.30.0.11", {"image": "i", "labels": DEMO.labels})
OURS = {**DEMO.labels, containers.SPEC_LABEL: PLAN.spec}


class Box:
    """A container of the engine as far as `ensure_container` looks at it."""

    def __init__(self, labels: Mapping[str, str], status: str) -> None:
        self.labels, self.status, self.calls = labels, status, list[str]()

    def start(self) -> None:
        self.calls.append("start")

    def remove(self, force: bool) -> None:
        self.calls.append(f"remove {force}")


def engine_with(box: Box | None) -> tuple[DockerClient, list[dict[str, Any]]]:
    """Return an engine in which every container is `box`, and the list of what is created in it."""
    created: list[dict[str, Any]] = []

    def get(name: str) -> Box:
        if box is None:
            raise NotFound(name)
        return box

    def create(**options: Any) -> Box:
        created.append(options)
        return Box({}, "created")

    api = SimpleNamespace(create_endpoint_config=lambda **options: options)
    return cast(DockerClient, SimpleNamespace(api=api, containers=SimpleNamespace(get=get, create=create))), created


@pytest.mark.parametrize(
    ("labels", "status", "renew", "said", "calls"),
    [
        (OURS, "running", False, "running", []),
        (OURS, "exited", False, "started again", ["start"]),
        (OURS, "running", True, "running", []),
        (DEMO.labels, "running", True, "renewed", ["remove True"]),
    ],
)
def test_what_runs_is_left_alone(labels: dict[str, str], status: str, renew: bool, said: str, calls: list[str]) -> None:
    box = Box(labels, status)
    client, created = engine_with(box)
    assert containers.ensure_container(client, DEMO, PLAN, renew) == said
    assert box.calls == calls
    assert bool(created) == (said == "renewed")


def test_a_host_of_another_recipe_stays_and_is_named() -> None:
    box = Box(DEMO.labels, "running")
    assert "earlier recipe" in containers.ensure_container(engine_with(box)[0], DEMO, PLAN, renew=False)
    assert box.calls == []


def test_a_missing_container_is_created_at_its_address() -> None:
    client, created = engine_with(None)
    assert containers.ensure_container(client, DEMO, PLAN, renew=False) == "created"
    assert created[0]["networking_config"] == {"h20-demo": {"ipv4_address": "172.30.0.11", "aliases": []}}
    assert created[0]["labels"] == OURS


@pytest.mark.parametrize(("owner", "message"), [(None, "is not the test bed's"), ("another", "test bed of .*another")])
def test_a_name_that_someone_else_uses_stops_the_test_bed(owner: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    box = Box({ROOT_LABEL: str(tmp_path / owner)} if owner else {}, "running")
    with pytest.raises(SetupError, match=message):
        containers.existing(engine_with(box)[0], "h20-01")
    assert box.calls == []


def test_what_a_deleted_working_copy_left_is_removed(tmp_path: Path) -> None:
    box = Box({ROOT_LABEL: str(tmp_path / "deleted")}, "running")
    assert containers.existing(engine_with(box)[0], "h20-01") is None
    assert box.calls == ["remove True"]


class Folder:
    """A volume of the engine as far as `ensure_volume` looks at it."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.attrs, self.name, self.removed = {"Labels": dict(labels)}, "h20-demo-opt-vllm", False

    def remove(self) -> None:
        self.removed = True


@pytest.mark.parametrize(
    ("there", "created", "removed"), [(None, True, False), (str(ROOT), False, False), ("/deleted/copy", True, True)]
)
def test_a_shared_folder_is_made_once(there: str | None, created: bool, removed: bool) -> None:
    folder, made = Folder({ROOT_LABEL: there} if there else {}), list[str]()
    volumes = SimpleNamespace(list=lambda **_: [folder] if there else [], create=lambda name, **_: made.append(name))
    containers.ensure_volume(cast(DockerClient, SimpleNamespace(volumes=volumes)), DEMO, folder.name)
    assert (made == [folder.name], folder.removed) == (created, removed)


def test_a_volume_of_someone_else_stops_the_test_bed() -> None:
    volumes = SimpleNamespace(list=lambda **_: [Folder({})])
    with pytest.raises(SetupError, match="docker volume rm h20-demo-opt-vllm"):
        containers.ensure_volume(cast(DockerClient, SimpleNamespace(volumes=volumes)), DEMO, "h20-demo-opt-vllm")
