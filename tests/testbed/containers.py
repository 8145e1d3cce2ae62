# SPDX-License-Identifier: Apache-2.0
"""A fleet in the engine: its networks, its containers and the volumes they share are made and found here, and asked what they print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool

from testbed import LABEL, ROOT, ROOT_LABEL, SetupError, hardware, say
from testbed.fleet import Fleet, Host
from testbed.plans import CACHE, Plan, host_plan, service_plans

SPEC_LABEL = "h20.fleet.spec"  # hash of everything a container was made from


def ensure_networks(client: DockerClient, fleet: Fleet) -> tuple[IPv4Network, IPv4Network | None]:
    """Make sure that the fleet's networks exist and return their subnets: the common one, and that of isolated hosts where it has any.

    The engine gives nobody in an internal network a way out; this machine reaches it all the same.
    """
    common = ensure_network(client, fleet, fleet.network)
    isolated = ensure_network(client, fleet, fleet.isolated_network, internal=True) if fleet.has_isolated else None
    return common, isolated


def ensure_network(client: DockerClient, fleet: Fleet, name: str, internal: bool = False) -> IPv4Network:
    """Make sure that the fleet's network `name` exists and return its subnet.

    Only in a network with a subnet of its own can containers have an address that survives a reboot, and only the engine knows which subnet is free here.
    """
    for network in client.networks.list(names=[f"^{name}$"]):
        owner = labels_of(network).get(ROOT_LABEL)
        if is_gone(owner):
            network.remove()
            say("network", f"{name} removed: its working copy {owner} is gone")
            break
        if owner != str(ROOT):
            raise SetupError(
                f"The network {name} exists and is not this test bed's. Remove it: docker network rm {name}"
            )
        return subnet_of(network)
    probe = client.networks.create(f"{name}-probe", labels=fleet.labels)
    try:
        probe.reload()
        subnet = subnet_of(probe)
    finally:
        probe.remove()
    pool = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))])
    client.networks.create(name, labels=fleet.labels, ipam=pool, internal=internal)
    say("network", f"{name} {subnet}")
    return subnet


def subnet_of(network: Network) -> IPv4Network:
    """Return the IPv4 subnet of `network`."""
    return next(IPv4Network(pool["Subnet"]) for pool in network.attrs["IPAM"]["Config"] if ":" not in pool["Subnet"])


def labels_of(network: Network) -> dict[str, str]:
    """Return the labels of `network`."""
    return dict(network.attrs["Labels"] or {})


def ensure_containers(
    client: DockerClient, fleet: Fleet, where: Mapping[str, str], reference: str, folders: Sequence[str]
) -> dict[str, Container]:
    """Make sure that all containers of the fleet run, several at a time, and return them by name."""
    if not client.volumes.list(filters={"name": CACHE}):
        client.volumes.create(CACHE, labels={LABEL: "cache"})
    for name in fleet.volumes:
        ensure_volume(client, fleet, name)
    for host in fleet.hosts:
        write_hardware(fleet, host)
    services = service_plans(fleet, where, reference)
    hosts = [host_plan(fleet, host, where[host.name], reference, folders) for host in fleet.hosts]
    with ThreadPoolExecutor(max_workers=4) as pool:
        done = {
            plan.name: pool.submit(ensure_container, client, fleet, plan, plan in services)
            for plan in [*services, *hosts]
        }
    for name, result in done.items():
        say(name, result.result())
    return {name: client.containers.get(name) for name in done}


def ensure_volume(client: DockerClient, fleet: Fleet, name: str) -> None:
    """Make sure that the volume `name`, which the fleet's hosts share, exists and is the fleet's."""
    for volume in client.volumes.list(filters={"name": f"^{name}$"}):
        owner = (volume.attrs["Labels"] or {}).get(ROOT_LABEL)
        if owner == str(ROOT):
            return
        if not is_gone(owner):
            raise SetupError(f"The volume {name} exists and is not this test bed's. Remove it: docker volume rm {name}")
        volume.remove()
        say(name, f"removed: its working copy {owner} is gone")
    client.volumes.create(name, labels=fleet.labels)


def write_hardware(fleet: Fleet, host: Host) -> None:
    """Write the hardware of `host`; SetupError where its description is missing or does not add up."""
    try:
        hardware.write_host(hardware.load(host.hardware), fleet.state / "hosts" / host.name)
    except hardware.DescriptionError as error:
        raise SetupError(
            f"The hardware of {host.name} cannot be made: {error}. See fleets/{fleet.name}.yml and hardware/."
        ) from error


def ensure_container(client: DockerClient, fleet: Fleet, plan: Plan, renew: bool) -> str:
    """Make sure that the container of `plan` runs and return what was done, in a word.

    One that was made from another plan is made anew where `renew` allows it (a service keeps nothing), else left as it is.
    """
    container = existing(client, plan.name)
    changed = container is not None and container.labels.get(SPEC_LABEL) != plan.spec
    if container is not None and changed and renew:
        container.remove(force=True)
        container = None
    if container is None:
        create(client, fleet, plan).start()
        return "renewed" if changed else "created"
    remark = " (made by an earlier recipe: `down`, then `up` makes it new)" if changed else ""
    if container.status == "running":
        return "running" + remark
    container.start()
    return "started again" + remark


def create(client: DockerClient, fleet: Fleet, plan: Plan) -> Container:
    """Create the container of `plan` at its address."""
    endpoint = client.api.create_endpoint_config(ipv4_address=plan.address, aliases=list(plan.aliases))
    options = {**plan.options, "labels": {**plan.options["labels"], SPEC_LABEL: plan.spec}}
    network = fleet.network_of(plan.name)
    return client.containers.create(name=plan.name, network=network, networking_config={network: endpoint}, **options)


def is_gone(owner: str | None) -> bool:
    """Whether a label names a working copy that was deleted since; what it left in the engine is nobody's."""
    return owner is not None and not Path(owner).exists()


def existing(client: DockerClient, name: str) -> Container | None:
    """Return the container called `name`; SetupError where it is not this test bed's. What a deleted working copy left is removed."""
    try:
        container = client.containers.get(name)
    except NotFound:
        return None
    if container.labels.get(ROOT_LABEL) == str(ROOT):
        return container
    owner = container.labels.get(ROOT_LABEL)
    if is_gone(owner):
        container.remove(force=True)
        say(name, f"removed: its working copy {owner} is gone")
        return None
    whose = (
        f"belongs to the test bed of {owner}: take that down first"
        if owner
        else f"is not the test bed's: rename it or remove it (docker rm -f {name})"
    )
    raise SetupError(f"The container {name} exists and {whose}.")


def fleets_there(client: DockerClient) -> list[str]:
    """Return the names of the fleets of this working copy that have a container, a network or a volume, be there a file for them or not."""
    ours: dict[str, Any] = {"label": f"{ROOT_LABEL}={ROOT}"}
    found = [container.labels for container in client.containers.list(all=True, filters=ours)]
    found += [labels_of(network) for network in client.networks.list(filters=ours)]
    found += [dict(volume.attrs["Labels"]) for volume in client.volumes.list(filters=ours)]
    return sorted({labels[LABEL] for labels in found})


def output(container: Container, *command: str) -> str:
    """Return what `command` prints inside; "" where the container does not run (it may be between two boots)."""
    try:
        printed = container.exec_run(list(command)).output
    except APIError as error:
        if error.status_code in (404, 409):
            return ""
        raise
    return text(printed)


def last_words(container: Container) -> str:
    """Return the last lines that the container's first process wrote."""
    return text(container.logs(tail=15))


def text(printed: bytes | Iterable[bytes]) -> str:
    """Return what the engine hands over as bytes or as a stream of them."""
    return (printed if isinstance(printed, bytes) else b"".join(printed)).decode(errors="replace").strip()
