# SPDX-License-Identifier: Apache-2.0
"""From a connected machine to an answer on hosts that reach nothing: a bundle is written, carried, refused where it was changed, and installed from."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import INSTANCE, ROOT, Api, Run, address_of, play, shell, start

FLEET = "airgap"
STATE = ROOT / ".testbed" / FLEET
INVENTORY = "molecule/airgap/inventory"
BUILDER, MIRROR, OTHER = "h20-31", "h20-32", "h20-33"
WRITTEN, CARRIED = "/var/lib/h20-fleet/bundle", "/srv/h20-fleet/bundle"
KEY = "/root/.ssh/h20-fleet-bundle"
NAMESPACE = "h20-fleet-bundle"
STRANGER = "/var/lib/stranger/key"
API = Api(MIRROR, fleet=FLEET)


def site(*arguments: str) -> Run:
    return play("site", *arguments, inventory=INVENTORY)


def changed(run: Run) -> dict[str, int]:
    """What changed on each host, from the recap."""
    return {
        name: int(count) for name, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", run.output, re.MULTILINE)
    }


def serves() -> bool:
    """Whether anybody answers at the mirror's port."""
    try:
        with urllib.request.urlopen(f"http://{address_of(MIRROR, FLEET)}:8480/", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def make_key(host: str, path: str) -> str:
    """Make a key where there is none, and return the public half."""
    return shell(
        host,
        f"mkdir -p $(dirname {path}); [ -e {path} ] || ssh-keygen -q -t ed25519 -N '' -C test -f {path}; cat {path}.pub",
    )


def kept(host: str, root: str) -> dict[str, str]:
    """Inode and time of every wheel and package below a folder, by path."""
    lines = shell(
        host, f"cd {root}; find . -name '*.whl' -printf '%P|%i %T@\\n' -o -name '*.deb' -printf '%P|%i %T@\\n'"
    ).splitlines()
    return dict(line.split("|", 1) for line in lines)


@pytest.mark.parametrize("name", [MIRROR, OTHER])
def test_an_isolated_host_has_no_way_out_and_no_names(name: str) -> None:
    mirror_test = shell(BUILDER, "getent hosts mirror.test").split()[0]
    assert "default" not in shell(name, "ip route; ip -6 route")
    for unknown in ("mirror.test", "hub.test", "example.org", BUILDER, OTHER if name == MIRROR else MIRROR):
        assert shell(name, f"getent hosts {unknown} || echo unknown") == "unknown"
    for address in (mirror_test, address_of(BUILDER, FLEET), "192.0.2.1"):
        told = shell(name, f"curl --silent --show-error --max-time 5 http://{address}/ 2>&1 || true")
        assert "Failed to connect" in told or "unreachable" in told, told
    assert shell(name, "ls -A /var/cache/h20-fleet 2>/dev/null || true") == ""
    assert "nameserver" not in shell(name, "cat /etc/resolv.conf")


def test_a_bundle_that_was_cut_off_goes_on() -> None:
    public = make_key(BUILDER, KEY)
    (STATE / "allowed_signers").write_text(f'test namespaces="{NAMESPACE}" {public}\n', encoding="utf-8")
    process = start("bundle", inventory=INVENTORY)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if shell(BUILDER, f"find {WRITTEN} -name '*.deb' 2>/dev/null | wc -l || true") > "0":
            break
        time.sleep(0.5)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    shell(BUILDER, "pkill -KILL -u root -f '[a]pt-helper|[A]nsiballZ' || true")
    before = kept(BUILDER, WRITTEN)
    assert len([path for path in before if path.endswith(".whl")]) > 20
    assert shell(BUILDER, f"ls {WRITTEN}/manifest.json 2>/dev/null || echo none") == "none"
    run = play("bundle", inventory=INVENTORY)
    assert run.rc == 0, run.output
    after = kept(BUILDER, WRITTEN)
    assert {path: after.get(path) for path in before} == before
    assert len(after) > len(before)


def test_a_bundle_that_is_whole_stays_as_it_is() -> None:
    run = play("bundle", inventory=INVENTORY)
    assert run.rc == 0, run.output
    assert changed(run) == {BUILDER: 0}, run.output


def test_the_operator_carries_it_over() -> None:
    shell(MIRROR, f"mkdir -p {CARRIED}")
    disk = f"docker exec {BUILDER} tar --create --directory {WRITTEN} . | docker exec --interactive {MIRROR} tar --extract --directory {CARRIED}"
    subprocess.run(["bash", "-o", "pipefail", "-c", disk], check=True)
    listed = json.loads(shell(MIRROR, f"cat {CARRIED}/manifest.json"))["files"]
    assert {file["path"].split("/")[0] for file in listed} >= {
        "wheels",
        "locks",
        "releases",
        "apt",
        "nvidia",
        "models",
        "collections",
    }


def first(pattern: str) -> str:
    return shell(MIRROR, f"cd {CARRIED}; find . -path '{pattern}' -printf '%P\\n' | sort | head -n 1")


def flip(path: str) -> str:
    """A script that changes one bit in the middle of a file, and nothing of its size or its time."""
    return f"touch --reference {path} /var/tmp/time; python3 -c '{FLIP}' {path}; touch --reference /var/tmp/time {path}"


FLIP = """\
import os, sys
with open(sys.argv[1], "r+b") as file:
    middle = os.path.getsize(sys.argv[1]) // 2
    file.seek(middle)
    byte = file.read(1)[0]
    file.seek(middle)
    file.write(bytes([byte ^ 1]))
"""

CASES: dict[str, tuple[str, str]] = {
    # what is changed: (the file, what is told of it)
    "a wheel": ("./wheels/*.whl", "WHEEL: {name} has sha256"),
    "the lock": ("./locks/*.txt", "LOCK: {name} has sha256"),
    "the release": ("./releases/*.yml", "RELEASE: {name} has sha256"),
    "a package": ("./apt/*.deb", "PACKAGE: {name} has sha256"),
    "a package of NVIDIA": ("./nvidia/*.deb", "PACKAGE: {name} has sha256"),
    "an index of packages": ("./apt/*InRelease", "PACKAGE: {name} has sha256"),
    "the weights": ("./models/*.safetensors", "FILE: {name} has sha256"),
    "the collection": ("./collections/*.tar.gz", "FILE: {name} has sha256"),
}


def refused() -> str:
    """What the mirror's stage says as it refuses the bundle; nothing is served and nothing has come to its place then."""
    run = site("--tags", "mirror")
    assert run.rc != 0, run.output
    assert changed(run)[MIRROR] == 0, run.output
    assert not serves()
    assert shell(MIRROR, "ls -d /var/lib/h20-fleet/mirror 2>/dev/null || echo none") == "none"
    return run.words


def test_every_file_that_was_changed_is_refused_by_its_name() -> None:
    names = {what: first(pattern) for what, (pattern, _told) in CASES.items()}
    assert all(names.values()), names
    for name in names.values():
        shell(MIRROR, f"cp --archive {CARRIED}/{name} /var/tmp/$(echo {name} | tr / _); {flip(f'{CARRIED}/{name}')}")
    missing = shell(MIRROR, f"cd {CARRIED}; find ./wheels -name '*.whl' -printf '%P\\n' | sort | tail -n 1")
    shell(MIRROR, f"mv {CARRIED}/wheels/{missing} /var/tmp/; touch {CARRIED}/wheels/extra-1.0-py3-none-any.whl")
    told = refused()
    for what, (_pattern, text) in CASES.items():
        assert text.format(name=names[what]) in told, (what, told)
    assert f"WHEEL: wheels/{missing} is missing" in told
    assert "WHEEL: wheels/extra-1.0-py3-none-any.whl is not in the manifest -> delete it" in told
    for name in names.values():
        shell(MIRROR, f"cp --archive /var/tmp/$(echo {name} | tr / _) {CARRIED}/{name}")
    shell(MIRROR, f"mv /var/tmp/{missing} {CARRIED}/wheels/; rm {CARRIED}/wheels/extra-1.0-py3-none-any.whl")


def test_a_signature_that_was_changed_is_refused() -> None:
    signature = f"{CARRIED}/manifest.json.sig"
    shell(MIRROR, f"cp {signature} /var/tmp/manifest.json.sig; {flip(signature)}")
    assert "SIGNATURE: manifest.json.sig is not one of manifest.json" in refused()
    shell(MIRROR, f"rm {signature}")
    assert "SIGNATURE: manifest.json.sig is missing" in refused()
    shell(MIRROR, f"mv /var/tmp/manifest.json.sig {signature}")


def test_a_manifest_that_fits_changed_files_but_is_signed_by_a_stranger_is_refused() -> None:
    signature = f"{CARRIED}/manifest.json.sig"
    make_key(MIRROR, STRANGER)
    shell(
        MIRROR,
        f"mv {signature} /var/tmp/manifest.json.sig; ssh-keygen -q -Y sign -f {STRANGER} -n {NAMESPACE} {CARRIED}/manifest.json",
    )
    told = refused()
    assert "SIGNER: manifest.json was signed by the key SHA256:" in told
    assert "none of the known signers" in told
    shell(MIRROR, f"mv /var/tmp/manifest.json.sig {signature}")


def test_a_host_is_installed_from_its_own_mirror() -> None:
    run = site("--limit", MIRROR)
    assert run.rc == 0, run.output
    assert serves()


def test_a_second_run_changes_nothing() -> None:
    run = site("--limit", MIRROR)
    assert run.rc == 0, run.output
    assert changed(run) == {MIRROR: 0}, run.output


def test_another_host_gets_its_wheels_over_the_wire() -> None:
    """As far as vLLM, which is what takes long and fetches most; two that serve would take turns on a small machine."""
    run = site("--limit", OTHER, "--tags", "host_tuning,python_venv,vllm")
    assert run.rc == 0, run.output
    assert shell(OTHER, "ls /opt/vllm/releases/demo/release.json")


def test_an_isolated_host_answers_a_chat() -> None:
    assert API.chat()
    body = json.dumps({"model": INSTANCE, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4})
    headers = f"--header 'Content-Type: application/json' --header 'Authorization: Bearer {API.key}'"
    answer = shell(MIRROR, f"curl --silent --fail http://127.0.0.1:8000/v1/chat/completions {headers} --data '{body}'")
    assert json.loads(answer)["usage"]["completion_tokens"] == 4
    assert "default" not in shell(MIRROR, "ip route")


def test_every_stage_is_proved() -> None:
    run = play("verify", "--limit", MIRROR, inventory=INVENTORY)
    assert run.rc == 0, run.output


def test_the_hosts_make_room_for_the_next_scenario(request: pytest.FixtureRequest) -> None:
    """The fleet goes, and its memory with it; where a test failed it stays, to be looked at."""
    if request.session.testsfailed:
        pytest.skip("the hosts stay")
    command = [sys.executable, "-m", "testbed", "down", "--fleet", FLEET]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")}, check=True)
