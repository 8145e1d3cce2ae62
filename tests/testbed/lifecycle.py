# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line, each a sequence of steps that the other modules take: up, describe, down, clean, status."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from docker import DockerClient
from docker.errors import APIError

from testbed import (
    LABEL,
    ROOT,
    ROOT_LABEL,
    STATE,
    SetupError,
    Stopwatch,
    access,
    engine,
    hardware,
    hub,
    image,
    interpreter,
    kernel_log,
    limits,
    nvidia,
    say,
)
from testbed.boot import wait_for_boot, wait_for_service
from testbed.containers import ensure_containers, ensure_networks, existing, fleets_there
from testbed.environment import read as read_environment
from testbed.fleet import Fleet, addresses
from testbed.plans import SERVICES


def up(fleet: Fleet, watch: Stopwatch, bare: bool = False) -> None:
    """Bring the fleet up: whatever exists and runs is left as it is, or with `bare` made anew."""
    STATE.mkdir(exist_ok=True)
    with watch.stage("engine"):
        client = engine.ensure()
        if bare:
            down(client, fleet.name)
        refuse_strangers(client, fleet)
        limits.ensure(len(fleet.hosts))
    with watch.stage("image"):
        reference = image.ensure(client)
    with watch.stage("services"):
        settings = read_environment()
        fingerprint = build_services()
        interpreter.build(client, reference, SERVICES / "mirror")
    with watch.stage("containers"):
        where = addresses(fleet, *ensure_networks(client, fleet))
        containers = ensure_containers(client, fleet, where, reference, settings.local_folders())
    with watch.stage("boot"):
        hosts = {host.name: containers[host.name] for host in fleet.hosts}
        wait_for_boot(hosts, where)
        for service in containers.keys() - hosts.keys():
            wait_for_service(containers[service], where[service])
    with watch.stage("access"):
        public_key = access.ensure_key()
        for container in hosts.values():
            access.authorize(container, public_key)
        access.write(fleet.state / "known_hosts", access.known_hosts(hosts, where))
        access.write(fleet.state / "ssh_config", access.ssh_config(fleet, where))
        known = access.description(fleet, settings, where, fingerprint, access.limits(next(iter(hosts.values()))))
        access.write(fleet.state / "environment.json", json.dumps(known, indent=2) + "\n")
    say(
        "fleet",
        f"{fleet.name} is up: ssh -F {shlex.quote(str((fleet.state / 'ssh_config').relative_to(ROOT)))} {fleet.hosts[0].name}",
    )


def refuse_strangers(client: DockerClient, fleet: Fleet) -> None:
    """Raise SetupError where a name of the fleet is taken, or where a host outlived the state that it mounts."""
    for name in (f"{fleet.name}-hub", f"{fleet.name}-mirror", *(host.name for host in fleet.hosts)):
        existing(client, name)
    for host in fleet.hosts:
        if existing(client, host.name) and not (fleet.state / "hosts" / host.name).exists():
            raise SetupError(
                f"{host.name} exists, but its state under {fleet.state} is gone. Take the fleet down first: python -m testbed down --fleet {fleet.name}"
            )


def build_services() -> str:
    """Make sure that what the hub and the mirror serve is there; return the fingerprint of the repository's signing key."""
    for folder in (SERVICES / "hub", SERVICES / "mirror"):
        folder.mkdir(parents=True, exist_ok=True)
    hub.build(SERVICES / "hub")
    hub.build_wheels(SERVICES / "mirror")
    return nvidia.build_repository(SERVICES / "mirror")


def describe(client: DockerClient, fleet: Fleet, name: str, text: str) -> None:
    """Give a host that runs other hardware, in place: `text` is the name of a description, or one as YAML (it has a colon)."""
    if name not in {host.name for host in fleet.hosts}:
        raise SetupError(f"{fleet.name} has no host {name!r}; it has {', '.join(host.name for host in fleet.hosts)}")
    container = existing(client, name)
    if container is None or container.status != "running":
        raise SetupError(f"{name} does not run. Bring it up first: python -m testbed up --fleet {fleet.name}")
    try:
        known = hardware.compose(name, yaml.safe_load(text)) if ":" in text else hardware.load(text)
    except (hardware.DescriptionError, yaml.YAMLError) as error:
        raise SetupError(f"{name} cannot be described so: {error}") from error
    hardware.write_host(known, fleet.state / "hosts" / name, renew=True)
    kernel_log.write(container, known.kernel_log)


def down(client: DockerClient, name: str) -> None:
    """Remove the containers, the networks, the shared folders and the state of the fleet `name`. The image and the caches stay."""
    ours: dict[str, Any] = {"label": [f"{LABEL}={name}", f"{ROOT_LABEL}={ROOT}"]}
    containers = client.containers.list(all=True, filters=ours)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda container: container.remove(force=True, v=True), containers))
    for container in containers:
        say(str(container.name), "removed")
    for network in client.networks.list(filters=ours):
        network.remove()
        say(str(network.name), "removed")
    for volume in client.volumes.list(filters=ours):
        volume.remove()
        say(str(volume.name), "removed")
    remove_tree(client, STATE / name)
    if not containers:
        say("fleet", f"{name} is not up")


def clean(client: DockerClient | None) -> None:
    """Remove every fleet, the images, the caches, all state, and stop the engine if it was started here.

    Without an engine that answers (None) there is only state to remove.
    """
    if client is None:
        say(
            "engine", f"none answers: containers and images, if there are any, stay in it; only {STATE.name} is removed"
        )
        if STATE.exists():
            shutil.rmtree(STATE)
        return
    known = engine.recorded()
    for name in fleets_there(client):
        down(client, name)
    limits.restore()
    remove_tree(client, STATE)
    for volume in client.volumes.list(filters={"label": f"{LABEL}=cache"}):
        attempt(str(volume.name), volume.remove)
    for built in client.images.list(filters={"label": f"{LABEL}=image"}):
        attempt(", ".join(built.tags), partial(client.images.remove, str(built.id)))
    engine.release(client, known)


def status(client: DockerClient, wanted: Sequence[str]) -> str:
    """Return a table of the containers of the fleets `wanted`: fleet, name, state, address, image."""
    rows = [("FLEET", "NAME", "STATE", "ADDRESS", "IMAGE")]
    for name in wanted:
        found = client.containers.list(all=True, filters={"label": [f"{LABEL}={name}", f"{ROOT_LABEL}={ROOT}"]})
        for container in sorted(found, key=lambda one: str(one.name)):
            endpoint: dict[str, Any] = next(iter(container.attrs["NetworkSettings"]["Networks"].values()), {})
            address = endpoint.get("IPAddress") or (endpoint.get("IPAMConfig") or {}).get("IPv4Address", "")
            rows.append((name, str(container.name), container.status, address, container.attrs["Config"]["Image"]))
        if not found:
            rows.append((name, "-", "down", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def attempt(subject: str, remove: Callable[[], object]) -> None:
    """Call `remove`, and say whether `subject` is gone or who keeps it."""
    try:
        remove()
    except APIError as error:
        if error.status_code != 409:
            raise
        say(subject, "stays: containers use it that are not this test bed's")
    else:
        say(subject, "removed")


def remove_tree(client: DockerClient, tree: Path) -> None:
    """Remove a folder of state; what root wrote in a host and this user may not remove is removed by a container."""
    try:
        shutil.rmtree(tree)
    except FileNotFoundError:
        return
    except PermissionError:
        client.containers.run(
            image.ensure(client),
            ["find", "/state", "-mindepth", "1", "-delete"],
            volumes=[f"{tree}:/state:rw"],
            network_mode="none",
            remove=True,
        )
        shutil.rmtree(tree)
