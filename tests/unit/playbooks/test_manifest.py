# SPDX-License-Identifier: Apache-2.0
"""The verb that makes a manifest, run for real without an inventory, against the test bed's hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from unit.plugins.hubs import FILES, NAME, WEIGHTS, Hub, running

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Site:
    """The folder that ansible-playbook is called from, and the hub."""

    hub: Hub
    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "manifests" / f"{NAME.replace('/', '--')}@{self.hub.revision}.json"

    def make(self, *arguments: str, **variables: Any) -> str:
        """What the verb prints; the task that it fails in ends with 2."""
        release = {"base": "2026.11", "model": {"repo": NAME, "revision": self.hub.revision}}
        standard = {
            "fleet_release": "ours",
            "fleet_releases": {"ours": release},
            "fleet_hub_endpoint": self.hub.endpoint,
        }
        program = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run(
            [str(program), "h20.fleet.manifest", *arguments, "-e", json.dumps(standard | variables)],
            cwd=self.folder,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        text = " ".join((done.stdout + done.stderr).split())
        assert f"failed={int(done.returncode == 2)} " in text
        assert done.returncode in (0, 2), text
        return text


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with running(tmp_path / "hub", monkeypatch) as hub:
        folder = tmp_path / "site"
        folder.mkdir()
        yield Site(hub, folder)


def test_a_manifest_is_made_signed_and_told_and_the_next_run_changes_nothing(site: Site) -> None:
    key = site.folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    assert "failed=0" in site.make("--check")
    assert not site.manifest.exists()
    told = site.make(fleet_manifest_signing_key=str(key))
    manifest = json.loads(site.manifest.read_text())
    assert {file["path"] for file in manifest["files"]} == set(FILES)
    assert (
        f"{len(FILES)} files, 1 of them safetensors, {sum(map(len, FILES.values()))} bytes, signed by SHA256:" in told
    )
    digest = hashlib.sha256(site.manifest.read_bytes()).hexdigest()
    for line in (f"file: {site.manifest}", f"sha256: {digest}", f"signature: {site.manifest}.sig"):
        assert line in told
    assert Path(f"{site.manifest}.sig").read_text().startswith("-----BEGIN SSH SIGNATURE-----")
    assert " changed=0 " in site.make(fleet_manifest_signing_key=str(key))


def test_another_one_is_shown_and_replaced_only_where_that_is_wanted(site: Site) -> None:
    site.make()
    whole = site.manifest.read_text()
    other = whole.replace(hashlib.sha256(WEIGHTS).hexdigest(), "0" * 64)
    site.manifest.write_text(other)
    refused = site.make()
    assert f'- "digest": "{"0" * 64}"' in refused
    assert f'+ "digest": "{hashlib.sha256(WEIGHTS).hexdigest()}"' in refused
    assert f"{site.manifest} is there, and {site.hub.endpoint} tells another manifest of the same revision" in refused
    assert site.manifest.read_text() == other
    site.make(fleet_manifest_replace=True)
    assert site.manifest.read_text() == whole


def test_the_sites_signers_do_not_stand_before_the_manifest_that_they_are_to_sign(site: Site) -> None:
    folder = site.folder / "elsewhere"
    told = site.make(fleet_model_signers="fleet@site.test ssh-ed25519 AAAA", fleet_manifest_folder=str(folder))
    assert " failed=0 " in told
    assert (folder / site.manifest.name).is_file()


def test_a_hub_that_refuses_is_told_and_nothing_is_written(site: Site) -> None:
    told = site.make(fleet_hub_endpoint="http://127.0.0.1:9")
    assert "the hub http://127.0.0.1:9 does not answer: " in told
    assert not site.manifest.parent.exists()


def test_the_inventory_s_settings_count_on_the_controller_and_its_way_to_the_hosts_does_not(site: Site) -> None:
    folder = site.folder / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "hosts.yml").write_text(json.dumps({"h20": {"hosts": {"h20-01.test": None}}}))
    settings = {
        "ansible_become": True,
        "ansible_become_exe": "/nowhere/sudo",
        "ansible_connection": "ssh",
        "ansible_user": "nobody",
        "ansible_python_interpreter": "/nowhere/python3",
        "fleet_manifest_folder": str(site.folder / "kept"),
    }
    (folder / "group_vars/all.yml").write_text(json.dumps(settings))
    assert " failed=0 " in site.make("-i", str(folder))
    assert (site.folder / "kept" / site.manifest.name).is_file()
