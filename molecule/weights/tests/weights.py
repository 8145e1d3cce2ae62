# SPDX-License-Identifier: Apache-2.0
"""What the scenario acts with: the hub and its faults, hosts and theirs, variables for a run, and what a run and a host say afterwards."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import re
import subprocess
import time
import typing as t
import urllib.request

import conftest
import docker
import yaml
from conftest import ROOT, Run, play, shell
from testbed import hub
from testbed.hub.server import s3
from testbed.hub.trees import Revision, revisions

FLEET = "weights"
INVENTORY = "molecule/weights/inventory"
STATE = ROOT / ".testbed" / FLEET
SERVED = ROOT / ".testbed/services/hub"
HOSTS = ("h20-41", "h20-42", "h20-43", "h20-44")
MODELS = "/data/models"
DISK = "/srv/disk"  # where a carried disk is mounted
SMALL = "/small"  # of h20-44: a disk that the larger model does not fit on
STAMP = ".h20-fleet-manifest.json"
MIB = 1 << 20
WAIT_SECONDS = 120
PAUSE = 0.2

[GATED] = revisions(SERVED, hub.GATED)
SHARDED, NEXT = revisions(SERVED, hub.SHARDED)
RELEASES = {"gated": GATED, "sharded": SHARDED, "sharded-next": NEXT}

#: The hub, by the kinds of source that it plays.
HUB = {"kind": "hub", "url": "http://hub.test"}
MODELSCOPE = {"kind": "modelscope", "url": "http://hub.test"}
HTTP = {"kind": "http", "url": "http://hub.test/files"}
S3 = {"kind": "s3", "url": f"http://hub.test/{s3.PRIVATE}/{s3.PREFIX}", "region": s3.REGION}
PUBLIC = {"kind": "s3", "url": f"http://hub.test/{s3.PUBLIC}/{s3.PREFIX}"}
PATH = {"kind": "path", "url": DISK}

KEYS = {
    "fleet_hub_token": hub.TOKEN,
    "fleet_modelscope_token": hub.TOKEN,
    "fleet_s3_access_key": s3.ACCESS_KEY,
    "fleet_s3_secret_key": s3.SECRET_KEY,
}

FLIP = """\
import os, sys
with open(sys.argv[1], "r+b") as file:
    middle = os.path.getsize(sys.argv[1]) // 2
    file.seek(middle)
    byte = file.read(1)[0]
    file.seek(middle)
    file.write(bytes([byte ^ 1]))
"""
HASHES = f"""\
import hashlib, json, pathlib, sys
root = pathlib.Path(sys.argv[1])
files = [path for path in root.rglob("*") if path.is_file() and path.name != "{STAMP}"]
print(json.dumps({{str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}))
"""

address_of = functools.partial(conftest.address_of, fleet=FLEET)


# The hub.


@functools.cache
def hub_address() -> str:
    """Where this machine reaches it."""
    networks = docker.from_env().containers.get(f"{FLEET}-hub").attrs["NetworkSettings"]["Networks"]
    return str(next(iter(networks.values()))["IPAddress"])


def control(what: str, method: str = "GET", body: t.Any = None) -> dict[str, t.Any]:
    """Ask it for its faults or its statistics, or set them."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"http://{hub_address()}/_testbed/{what}", data, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, t.Any] = json.load(response)
    return answer


@contextlib.contextmanager
def hub_with(faults: t.Mapping[str, t.Any]) -> t.Iterator[None]:
    """The hub with faults, and statistics that begin now. Whatever happens, nobody may take a token elsewhere, or come back before it was told to."""
    control("faults", "DELETE")
    control("stats", "DELETE")
    control("faults", "POST", dict(faults))
    try:
        yield
    finally:
        control("faults", "DELETE")
    stats = control("stats")
    assert (stats["leaks"], stats["hasty"]) == (0, 0)


def sent_to(*hosts: str) -> int:
    """Bytes of content that it has sent to hosts."""
    clients = control("stats")["clients"]
    return sum(clients.get(address_of(host), 0) for host in hosts)


def bytes_flow(host: str, size: int) -> t.Callable[[], bool]:
    """Whether it has sent more than so many bytes to a host."""
    return lambda: sent_to(host) > size


# Hosts.


def destination(tree: Revision, root: str = MODELS) -> str:
    """Where a revision becomes visible."""
    return f"{root}/{tree.repo}/{tree.commit}"


def carry(host: str, target: str, tree: Revision) -> None:
    """Bring a revision on to a host, as a disk would."""
    shell(host, f"mkdir -p {target}")
    subprocess.run(["docker", "cp", "--quiet", f"{tree.folder}/.", f"{host}:{target}"], check=True)
    shell(host, f"chown -R root:root {target}")


def flip(host: str, path: str, *, unseen: bool) -> None:
    """Change one bit of a file; `unseen`: so that neither size nor time tell."""
    restore = f"touch --reference /var/tmp/time {path}" if unseen else "true"
    shell(host, f"touch --reference {path} /var/tmp/time; python3 -c '{FLIP}' {path}; {restore}")


def kill(host: str) -> None:
    """Kill the fetch and all that belongs to it."""
    shell(host, "systemctl kill --signal=KILL 'model-fetch@*'")


def reboot(host: str) -> None:
    """Cut the power, and give it back."""
    container = docker.from_env().containers.get(host)
    container.kill()
    container.start()


def fill(host: str) -> None:
    """Leave no room on the small disk."""
    shell(host, f"cat /dev/zero > {SMALL}/full || true")


def make_room(host: str) -> None:
    """Undo `fill`."""
    shell(host, f"rm -f {SMALL}/full")


def lock_disk(host: str) -> None:
    """The disk of the models turns read-only, as a failing one does."""
    shell(host, f"mkdir -p {MODELS} && mount -t tmpfs -o ro,mode=0755 tmpfs {MODELS}")


def unlock_disk(host: str) -> None:
    """Undo `lock_disk`."""
    shell(host, f"while mountpoint -q {MODELS}; do umount {MODELS}; done")


def found(host: str, folder: str) -> dict[str, str]:
    """The sha256 of every file in a folder of a host by path, {} where there is no such folder."""
    digests: dict[str, str] = json.loads(shell(host, f"python3 -c '{HASHES}' {folder}"))
    return digests


def reset(host: str) -> None:
    """Leave nothing of earlier fetches but packages."""
    unlock_disk(host)
    shell(host, "systemctl stop 'model-fetch@*' && systemctl reset-failed")
    shell(host, f"rm -rf {MODELS} {SMALL}/* {DISK} /var/lib/model-fetch /etc/h20-fleet/models")


def until(what: str, holds: t.Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {WAIT_SECONDS} s"
        time.sleep(PAUSE)


# Runs.


@functools.cache
def releases() -> dict[str, t.Any]:
    """Releases that differ from the demo's in the model alone; each brings its manifest."""
    text = (ROOT / "inventories/local/group_vars/all/release.yml").read_text(encoding="utf-8")
    demo = yaml.safe_load(text)["fleet_releases"]["demo"]
    folder = STATE / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for name, tree in RELEASES.items():
        file = folder / f"{name}.json"
        file.write_text(tree.manifest(), encoding="utf-8")
        manifest = {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        model = {"repo": tree.repo, "revision": tree.commit, "bytes": tree.size, "manifest": manifest}
        named[name] = demo | {"description": f"The demo with the model {name}", "model": model}
    return named


def inventory(
    name: str, common: t.Mapping[str, t.Any], of_hosts: t.Mapping[str, t.Mapping[str, t.Any]]
) -> tuple[str, str]:
    """Arguments that add variables to the inventory, for all hosts and for each. All of them are hosts' own: those win over what groups have."""
    folder = STATE / "inventories"
    folder.mkdir(exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', name)}.yml"
    variables = {"fleet_releases": releases(), **KEYS, **common}
    content = {"all": {"hosts": {host: variables | dict(of_hosts.get(host, {})) for host in HOSTS}}}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ("-i", str(file))


def fetch_model(*arguments: str) -> Run:
    """Run the playbook to its end."""
    return play("fetch_model", *arguments, inventory=INVENTORY)


def counts(output: str, host: str) -> collections.Counter[str]:
    """A host's line of the recap."""
    match = re.search(rf"^{host}\s+: (.*)$", output, re.MULTILINE)
    assert match, output
    return collections.Counter({key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[1])})


def told(output: str, host: str) -> str:
    """What a run says as it fails on a host."""
    end = r"(?=^(?:fatal|failed|ok|changed|skipping|TASK|PLAY|\[ERROR\]))"
    failures = re.findall(rf"^(?:fatal|failed): \[{host}\b.*?{end}", output, re.DOTALL | re.MULTILINE)
    return " ".join(" ".join(failures).split())
