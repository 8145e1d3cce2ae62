# SPDX-License-Identifier: Apache-2.0
"""The release: what a site says of its hardware is whole and known before anything else happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.module_utils import _profiles

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = yaml.safe_load((ROOT / "roles/release/vars/main.yml").read_text(encoding="utf-8"))
WHOLE = _profiles.PROFILES["h200"] | {"gpus": 4, "nvswitches": 0, "source": "measured by us"}


def test_the_role_names_what_is_shipped() -> None:
    """The role refuses a name before a module could be asked, so it has a list of its own."""
    assert VARIABLES["__release_hardware_profiles"] == list(_profiles.PROFILES)
    assert VARIABLES["__release_hardware_shape"] == _profiles.OPTIONS


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"fleet_hardware_profile": "b300"},
        "fleet_hardware_profile b300 is not known; known are auto, h100, h200, h20_141g, h20_96g, h20_nvl16 -> name one of them",
    ),
    "partial": (
        {"fleet_hardware_profiles": {"ours": {"gpus": 4}}},
        "missing required arguments: allreduce_floor_gb_s, link_width",
    ),
    "type": ({"fleet_hardware_profiles": {"ours": WHOLE | {"gpus": "many"}}}, "'gpus' is of type"),
    "number": (
        {"fleet_hardware_profiles": {"ours": WHOLE | {"pci_device": 2335}}},
        "ours has pci_device 2335 -> write the four",
    ),
    "vendor": (
        {"fleet_hardware_profiles": {"ours": WHOLE | {"pci_device": "10de:2335"}}},
        "ours has pci_device 10de:2335",
    ),
    "whole": ({"fleet_hardware_profile": "ours", "fleet_hardware_profiles": {"ours": WHOLE}}, ""),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of the role alone prints, with a host for each case; none of them exists, since the role needs none."""
    folder = tmp_path_factory.mktemp("release")
    inventory = {"all": {"hosts": {name: variables for name, (variables, _message) in CASES.items()}}}
    play = {"hosts": "all", "gather_facts": False, "roles": ["h20.fleet.release"]}
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    (folder / "load.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(program), "-i", "hosts.yml", "load.yml"],
        cwd=folder,
        env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("name", CASES)
def test_hardware_that_is_not_known_or_vouched_for_in_part_is_refused(loaded: str, name: str) -> None:
    message = CASES[name][1]
    assert message in loaded
    assert re.search(rf"\b{name} : ok=\d+ changed=0 unreachable=0 failed={int(bool(message))} ", loaded)
