# SPDX-License-Identifier: Apache-2.0
"""A fleet of the test bed: its network, its hosts, the services they talk to, and the files by which Ansible and ssh find them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import yaml
from docker import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool

from testbed import (
    HEARTBEAT,
    LABEL,
    ROOT,
    ROOT_LABEL,
    STATE,
    SetupError,
    Stopwatch,
    engine,
    hardware,
    hub,
    image,
    nvidia,
    say,
)
from testbed.environment import Environment
from testbed.environment import read as read_environment

FLEETS = Path(__file__).parent / "fleets"
SERVICES = STATE / "services"
KEY = STATE / "ssh" / "id_ed25519"
CACHE = "h20-fleet-uv-cache"  # one volume for all hosts, so that a wheel comes once
SPEC_LABEL = "h20.fleet.spec"  # hash of everything a container was made from
SERVICE_NAMES = ("hub.test", "mirror.test")
BOOT_TIMEOUT = 180.0  # seconds
BOOTED = ("running", "degraded")


@dataclass(frozen=True)
class Host:
    """One host of a fleet: the name of its hardware description, and path -> mount options of file systems in memory."""

    name: str
    hardware: str
    tmpfs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fleet:
    """A fleet as its file describes it."""

    name: str
    hosts: tuple[Host, ...]

    @property
    def state(self) -> Path:
        """The folder of what this fleet writes."""
        return STATE / self.name

    @property
    def network(self) -> str:
        """The name of its network."""
        return f"h20-{self.name}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its containers and its network."""
        return {LABEL: self.name, ROOT_LABEL: str(ROOT)}


@dataclass(frozen=True)
class Plan:
    """A container to be: `options` are keyword arguments of the engine's create call."""

    name: str
    address: str
    options: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """A hash of all of it: another hash is another container."""
        return hashlib.sha256(
            json.dumps([self.address, self.options, self.aliases], sort_keys=True).encode()
        ).hexdigest()[:12]


# -- the description -------------------------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of all fleets that there is a file for."""
    return sorted(path.stem for path in FLEETS.glob("*.yml"))


def load(name: str) -> Fleet:
    """Return the fleet of fleets/<name>.yml; SetupError where there is none or the file is not a fleet."""
    path = FLEETS / f"{name}.yml"
    if not path.exists():
        raise SetupError(f"There is no fleet {name!r}; there are: {', '.join(names())}. A fleet is a file in {FLEETS}.")
    return parse(name, path.read_text())


def parse(name: str, text: str) -> Fleet:
    """Return the fleet that the YAML `text` describes: hosts: {<name>: {hardware: <description>, tmpfs: {<path>: <options>}}}."""
    try:
        hosts = yaml.safe_load(text)["hosts"]
        return Fleet(name, tuple(Host(host, **settings) for host, settings in hosts.items()))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(
            f"fleets/{name}.yml is not a fleet ({error}). Each host needs `hardware` and may have `tmpfs`."
        ) from error


# -- the containers --------------------------------------------------------------------------------------------------------------------------


def addresses(fleet: Fleet, subnet: IPv4Network) -> dict[str, str]:
    """Return container name -> address: the services at .2 and .3, the hosts from .11 on in the order of the fleet's file."""
    services = {f"{fleet.name}-hub": str(subnet[2]), f"{fleet.name}-mirror": str(subnet[3])}
    return services | {host.name: str(subnet[11 + number]) for number, host in enumerate(fleet.hosts)}


def host_plan(fleet: Fleet, host: Host, address: str, reference: str, folders: Sequence[str]) -> Plan:
    """Return the container of `host`: it boots systemd, and sees the PCI devices and kernel modules of its description.

    systemd needs the engine's own cgroup tree, writable; its sandboxing of units needs SYS_ADMIN and no syscall filter. With cgroup v1 as with v2 it manages
    the part below the container's own cgroup. SYS_PTRACE lets root see who holds a port, as it does on a real host. vLLM asks for more shared memory than
    the engine's default. `folders` of this machine appear at their own paths.
    """
    parts = fleet.state / "hosts" / host.name
    options = {
        "image": reference,
        "hostname": host.name,
        "labels": fleet.labels,
        "stop_signal": "SIGRTMIN+3",
        "restart_policy": {"Name": "always"},  # makes `systemctl reboot` a reboot
        "cgroupns": "host",
        "cap_add": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"],
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
        "shm_size": "1g",
        "tmpfs": {"/run": "", "/run/lock": "", "/tmp": "exec", **host.tmpfs},  # noqa: S108 - the mount point inside
        "volumes": [
            "/sys/fs/cgroup:/sys/fs/cgroup:rw",
            f"{parts / 'pci'}:/sys/bus/pci/devices:ro",
            f"{parts / 'module'}:/sys/module:rw",
            f"{parts / 'hardware.json'}:/etc/testbed/hardware.json:ro",
            f"{CACHE}:/var/cache/h20-fleet:rw",
            *(f"{folder}:{folder}:ro" for folder in folders),
        ],
    }
    return Plan(host.name, address, options)


def service_plans(fleet: Fleet, where: Mapping[str, str], reference: str) -> list[Plan]:
    """Return the containers of the fleet's hub and mirror."""
    program = Path(hub.__file__).with_name("server.py")
    mirror = ["python3", "-m", "http.server", "80", "--directory", "/srv/root"]
    return [
        service_plan(
            fleet,
            "hub",
            where,
            reference,
            ["python3", "/srv/server.py", "--root", "/srv/root", "--port", "80"],
            [program],
        ),
        service_plan(fleet, "mirror", where, reference, mirror, []),
    ]


def service_plan(
    fleet: Fleet,
    service: str,
    where: Mapping[str, str],
    reference: str,
    command: Sequence[str],
    programs: Sequence[Path],
) -> Plan:
    """Return the container that serves the folder `service` at http://<service>.test; a program that changes makes another container."""
    name = f"{fleet.name}-{service}"
    sources = "".join(program.read_text() for program in programs)
    options = {
        "image": reference,
        "hostname": name,
        "labels": fleet.labels | {"h20.fleet.program": hashlib.sha256(sources.encode()).hexdigest()[:12]},
        "command": list(command),
        "environment": {"PYTHONUNBUFFERED": "1"},
        "stop_signal": "SIGINT",  # Python as PID 1 heeds it, unlike SIGTERM
        "restart_policy": {"Name": "always"},
        "volumes": [
            f"{SERVICES / service}:/srv/root:ro",
            *(f"{program}:/srv/{program.name}:ro" for program in programs),
        ],
    }
    return Plan(name, where[name], options, (f"{service}.test",))


def existing(client: DockerClient, name: str) -> Container | None:
    """Return the container called `name`; SetupError where it is not this test bed's."""
    try:
        container = client.containers.get(name)
    except NotFound:
        return None
    if container.labels.get(ROOT_LABEL) == str(ROOT):
        return container
    owner = container.labels.get(ROOT_LABEL)
    whose = (
        f"belongs to the test bed of {owner}: take that down first"
        if owner
        else f"is not the test bed's: rename it or remove it (docker rm -f {name})"
    )
    raise SetupError(f"The container {name} exists and {whose}.")


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
    return client.containers.create(
        name=plan.name, network=fleet.network, networking_config={fleet.network: endpoint}, **options
    )


def ensure_network(client: DockerClient, fleet: Fleet) -> IPv4Network:
    """Make sure that the fleet's network exists and return its subnet.

    Only in a network with a subnet of its own can containers have an address that survives a reboot, and only the engine knows which subnet is free here.
    """
    for network in client.networks.list(names=[f"^{fleet.network}$"]):
        if labels_of(network).get(ROOT_LABEL) != str(ROOT):
            raise SetupError(
                f"The network {fleet.network} exists and is not this test bed's. Remove it: docker network rm {fleet.network}"
            )
        return subnet_of(network)
    probe = client.networks.create(f"{fleet.network}-probe", labels=fleet.labels)
    try:
        probe.reload()
        subnet = subnet_of(probe)
    finally:
        probe.remove()
    pool = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))])
    client.networks.create(fleet.network, labels=fleet.labels, ipam=pool)
    say("network", f"{fleet.network} {subnet}")
    return subnet


def subnet_of(network: Network) -> IPv4Network:
    """Return the IPv4 subnet of `network`."""
    return next(IPv4Network(pool["Subnet"]) for pool in network.attrs["IPAM"]["Config"] if ":" not in pool["Subnet"])


def labels_of(network: Network) -> dict[str, str]:
    """Return the labels of `network`."""
    return dict(network.attrs["Labels"] or {})


# -- boot ------------------------------------------------------------------------------------------------------------------------------------


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


def wait_for_boot(hosts: Mapping[str, Container], where: Mapping[str, str]) -> None:
    """Wait until systemd has booted each host and its sshd answers; say so, with the failed units where there are any.

    Raises SetupError with the last lines of a host's journal when that takes longer than BOOT_TIMEOUT.
    """
    started = spoken = time.monotonic()
    pending = dict.fromkeys(hosts, "not started")
    while pending:
        for name in list(pending):
            pending[name] = boot_state(hosts[name], where[name])
            if pending[name] in BOOTED:
                report_boot(name, hosts[name], pending.pop(name), time.monotonic() - started)
        now = time.monotonic()
        if pending and now - started > BOOT_TIMEOUT:
            name = next(iter(pending))
            journal = output(hosts[name], "journalctl", "--no-pager", "-n", "15") or last_words(hosts[name])
            raise SetupError(
                f"{name} did not boot in {BOOT_TIMEOUT:.0f} s ({pending[name]}). Look inside: docker exec -it {name} bash. It says:\n{journal}"
            )
        if pending and now - spoken > HEARTBEAT:
            spoken = now
            say(
                "hosts",
                f"{now - started:4.0f} s  "
                + ", ".join(f"{name} {state or 'starting'}" for name, state in pending.items()),
            )
        time.sleep(0.2)


def boot_state(container: Container, address: str) -> str:
    """Return systemd's word for the state of the host, or "waits for sshd" where that alone is missing."""
    state = output(container, "systemctl", "is-system-running")
    return "waits for sshd" if state in BOOTED and not greets(address, 22, b"SSH-") else state


def greets(address: str, port: int, greeting: bytes) -> bool:
    """Tell whether something at `address` takes connections to `port` and begins with `greeting` (b"": says nothing by itself)."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(len(greeting)) == greeting if greeting else True
    except OSError:
        return False


def report_boot(name: str, container: Container, state: str, seconds: float) -> None:
    """Say that `name` has booted, and which units failed."""
    failed = (
        output(container, "systemctl", "list-units", "--failed", "--plain", "--no-legend")
        if state == "degraded"
        else ""
    )
    units = ", ".join(line.split()[0] for line in failed.splitlines())
    say(name, f"{seconds:4.0f} s  booted" + (f", but these units failed: {units}" if units else ""))


def wait_for_service(container: Container, address: str) -> None:
    """Wait until the service takes connections; SetupError with its last words after 20 s."""
    deadline = time.monotonic() + 20
    while not greets(address, 80, b""):
        if time.monotonic() > deadline:
            raise SetupError(f"{container.name} does not answer at {address}:80. It says:\n{last_words(container)}")
        time.sleep(0.1)


# -- access ----------------------------------------------------------------------------------------------------------------------------------


def ensure_key() -> str:
    """Make sure that the test bed has its ssh key and return the public half."""
    if not KEY.exists():
        if shutil.which("ssh-keygen") is None:
            raise SetupError("ssh-keygen is missing. Type: sudo apt-get install openssh-client")
        KEY.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "h20-fleet-testbed", "-f", str(KEY)], check=True
        )
    return KEY.with_suffix(".pub").read_text()


def authorize(container: Container, public_key: str) -> None:
    """Let the owner of `public_key` log in as ops."""
    if output(container, "cat", "/home/ops/.ssh/authorized_keys") == public_key.strip():
        return
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("authorized_keys")
        entry.size, entry.mode, entry.uid, entry.gid = len(public_key.encode()), 0o600, 1000, 1000
        tar.addfile(entry, io.BytesIO(public_key.encode()))
    container.put_archive("/home/ops/.ssh", archive.getvalue())


def known_hosts(hosts: Mapping[str, Container], where: Mapping[str, str]) -> str:
    """Return the known_hosts file of the fleet, from the keys that lie in the hosts themselves."""
    read = ("sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
    keys = [(name, key.split()[:2]) for name, host in hosts.items() for key in output(host, *read).splitlines()]
    return "".join(f"{name},{where[name]} {' '.join(key)}\n" for name, key in keys)


def ssh_config(fleet: Fleet, where: Mapping[str, str]) -> str:
    """Return the ssh configuration of the fleet. How connections are shared is left to who uses it."""
    aliases = "".join(f"Host {host.name}\n    HostName {where[host.name]}\n\n" for host in fleet.hosts)
    return f"""{aliases}Host {" ".join(host.name for host in fleet.hosts)}
    User ops
    IdentityFile "{KEY}"
    IdentitiesOnly yes
    UserKnownHostsFile "{fleet.state / "known_hosts"}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


def limits(container: Container) -> dict[str, int | str]:
    """Return what a unit is granted that asks for infinity: `nofile` in files, `memlock` in bytes, or "infinity".

    systemd starts a unit that asks for more than it may give and grants the highest it may, so only a unit can tell.
    """
    ask = [
        "systemd-run",
        "--quiet",
        "--wait",
        "--collect",
        "--pipe",
        "--property=LimitNOFILE=infinity",
        "--property=LimitMEMLOCK=infinity",
    ]
    granted = output(container, *ask, "cat", "/proc/self/limits")
    return {"nofile": hard_limit(granted, "Max open files"), "memlock": hard_limit(granted, "Max locked memory")}


def hard_limit(table: str, name: str) -> int | str:
    """Return the hard limit called `name` from the text of a /proc/<pid>/limits."""
    match = re.search(rf"^{name}\s+\S+\s+(\S+)", table, re.MULTILINE)
    if match is None:
        raise SetupError(f"A host does not tell its limits ({name}); systemd-run there says: {table or 'nothing'}")
    return "infinity" if match[1] == "unlimited" else int(match[1])


def description(
    fleet: Fleet, settings: Environment, where: Mapping[str, str], fingerprint: str, found: Mapping[str, int | str]
) -> dict[str, Any]:
    """Return environment.json: what an inventory has to know of this fleet and of the machine it runs on."""
    known = settings.as_json()
    if settings.http_proxy or settings.https_proxy:  # what is in the fleet's own network is not behind the proxy
        inside = [
            *filter(None, [settings.no_proxy]),
            *SERVICE_NAMES,
            *(host.name for host in fleet.hosts),
            *where.values(),
        ]
        known["proxy"]["no_proxy"] = ",".join(inside)
    hosts = {host.name: {"address": where[host.name]} for host in fleet.hosts}
    return {
        "fleet": fleet.name,
        **known,
        "nvidia": {"key_fingerprint": fingerprint},
        "limits": dict(found),
        "hosts": hosts,
    }


def write(path: Path, text: str) -> None:
    """Write `text` to `path` for this user alone (an index URL may hold a password), unless it says so already."""
    if path.exists() and path.read_text() == text:
        return
    path.touch(mode=0o600)
    path.write_text(text)


# -- the verbs -------------------------------------------------------------------------------------------------------------------------------


def up(fleet: Fleet, watch: Stopwatch) -> None:
    """Bring the fleet up: whatever exists and runs is left as it is."""
    STATE.mkdir(exist_ok=True)
    with watch.stage("engine"):
        client = engine.ensure()
        refuse_strangers(client, fleet)
    with watch.stage("image"):
        reference = image.ensure(client)
    with watch.stage("services"):
        settings = read_environment()
        fingerprint = build_services()
    with watch.stage("containers"):
        subnet = ensure_network(client, fleet)
        where = addresses(fleet, subnet)
        containers = ensure_containers(client, fleet, where, reference, settings.local_folders())
    with watch.stage("boot"):
        hosts = {host.name: containers[host.name] for host in fleet.hosts}
        wait_for_boot(hosts, where)
        for service in containers.keys() - hosts.keys():
            wait_for_service(containers[service], where[service])
    with watch.stage("access"):
        public_key = ensure_key()
        for container in hosts.values():
            authorize(container, public_key)
        write(fleet.state / "known_hosts", known_hosts(hosts, where))
        write(fleet.state / "ssh_config", ssh_config(fleet, where))
        known = description(fleet, settings, where, fingerprint, limits(next(iter(hosts.values()))))
        write(fleet.state / "environment.json", json.dumps(known, indent=2) + "\n")
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


def ensure_containers(
    client: DockerClient, fleet: Fleet, where: Mapping[str, str], reference: str, folders: Sequence[str]
) -> dict[str, Container]:
    """Make sure that all containers of the fleet run, several at a time, and return them by name."""
    if not client.volumes.list(filters={"name": CACHE}):
        client.volumes.create(CACHE, labels={LABEL: "cache"})
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


def write_hardware(fleet: Fleet, host: Host) -> None:
    """Write the hardware of `host`; SetupError where its description is missing or does not add up."""
    try:
        hardware.write_host(hardware.load(host.hardware), fleet.state / "hosts" / host.name)
    except hardware.DescriptionError as error:
        raise SetupError(
            f"The hardware of {host.name} cannot be made: {error}. See fleets/{fleet.name}.yml and hardware/."
        ) from error


def down(client: DockerClient, name: str) -> None:
    """Remove the containers, the network and the state of the fleet `name`. The image and the caches stay."""
    ours: dict[str, Any] = {"label": [f"{LABEL}={name}", f"{ROOT_LABEL}={ROOT}"]}
    containers = client.containers.list(all=True, filters=ours)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda container: container.remove(force=True, v=True), containers))
    for container in containers:
        say(str(container.name), "removed")
    for network in client.networks.list(filters=ours):
        network.remove()
        say(str(network.name), "removed")
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
    remove_tree(client, STATE)
    for volume in client.volumes.list(filters={"label": f"{LABEL}=cache"}):
        attempt(str(volume.name), volume.remove)
    for built in client.images.list(filters={"label": f"{LABEL}=image"}):
        attempt(", ".join(built.tags), partial(client.images.remove, str(built.id)))
    engine.release(client, known)


def fleets_there(client: DockerClient) -> list[str]:
    """Return the names of the fleets of this working copy that have a container or a network, be there a file for them or not."""
    ours: dict[str, Any] = {"label": f"{ROOT_LABEL}={ROOT}"}
    found = [container.labels for container in client.containers.list(all=True, filters=ours)]
    found += [labels_of(network) for network in client.networks.list(filters=ours)]
    return sorted({labels[LABEL] for labels in found})


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


def status(client: DockerClient, wanted: Sequence[str]) -> str:
    """Return a table of the containers of the fleets `wanted`: fleet, name, state, address, image."""
    rows = [("FLEET", "NAME", "STATE", "ADDRESS", "IMAGE")]
    for name in wanted:
        found = client.containers.list(all=True, filters={"label": [f"{LABEL}={name}", f"{ROOT_LABEL}={ROOT}"]})
        for container in sorted(found, key=lambda one: str(one.name)):
            endpoint = container.attrs["NetworkSettings"]["Networks"].get(f"h20-{name}", {})
            address = endpoint.get("IPAddress") or (endpoint.get("IPAMConfig") or {}).get("IPv4Address", "")
            rows.append((name, str(container.name), container.status, address, container.attrs["Config"]["Image"]))
        if not found:
            rows.append((name, "-", "down", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
