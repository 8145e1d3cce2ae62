# SPDX-License-Identifier: Apache-2.0
"""What ssh and an inventory are told of a fleet."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from testbed import SetupError, access
from testbed.environment import Environment
from unit.testbed.sample import DEMO, WHERE


def test_ssh_reads_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(access.ssh_config(DEMO, WHERE))
    answer = subprocess.run(
        ["ssh", "-G", "-F", str(config), "h20-02"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.split(" ", 1) for line in answer.splitlines())
    assert (settings["hostname"], settings["user"], settings["stricthostkeychecking"]) == ("172.30.0.12", "ops", "true")
    assert settings["identityfile"] == str(access.KEY)
    assert settings["userknownhostsfile"] == str(DEMO.state / "known_hosts")


def test_limits_are_read_in_their_own_units() -> None:
    table = "Max locked memory         unlimited            unlimited            bytes     \nMax open files            1024  20000  files"
    assert access.hard_limit(table, "Max locked memory") == "infinity"
    assert access.hard_limit(table, "Max open files") == 20000
    with pytest.raises(SetupError, match="does not tell its limits"):
        access.hard_limit("", "Max open files")


def test_an_inventory_is_told_what_it_needs() -> None:
    known = access.description(DEMO, Environment(), WHERE, "f" * 40, {"nofile": 20000, "memlock": "infinity"})
    assert known == {
        "fleet": "demo",
        **Environment().as_json(),
        "nvidia": {"key_fingerprint": "f" * 40},
        "limits": {"nofile": 20000, "memlock": "infinity"},
        "hosts": {"h20-01": {"address": "172.30.0.11"}, "h20-02": {"address": "172.30.0.12"}},
    }


def test_the_fleet_itself_is_not_behind_the_proxy() -> None:
    behind = Environment(http_proxy="http://p:3128", no_proxy=".site")
    no_proxy = access.description(DEMO, behind, WHERE, "", {})["proxy"]["no_proxy"].split(",")
    assert no_proxy[0] == ".site"
    assert {"hub.test", "mirror.test", "h20-01", "172.30.0.12"} <= set(no_proxy)


def test_files_are_for_their_owner_alone_and_written_once(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    access.write(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600
    os.utime(path, (1, 1))
    access.write(path, "one")
    assert path.stat().st_mtime == 1
    access.write(path, "two")
    assert path.read_text() == "two"
