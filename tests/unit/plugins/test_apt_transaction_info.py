# SPDX-License-Identifier: Apache-2.0
"""apt_transaction_info: what apt-get would have to fetch, under pins that are not on the host yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.modules import apt_transaction_info
from unit.plugins.support import run_module, write_program

#: Says what it is told to, and notes its arguments and the pins that it would see.
APT = """
folder = pathlib.Path(next(word.rpartition("=")[2] for word in ARGUMENTS if word.startswith("--option=Dir::Etc::PreferencesParts=")))
pins = {path.name: path.read_text() for path in folder.iterdir()}
(HERE / "called.json").write_text(json.dumps({"arguments": ARGUMENTS, "pins": pins}))
told = json.loads((HERE / "told.json").read_text())
print(told["out"], end="")
print(told["err"], end="", file=sys.stderr)
sys.exit(told["rc"])
"""
URIS = """\
Reading package lists...
The following packages will be DOWNGRADED:
  nvidia-open
'http://mirror.test/x86_64/./nvidia-open_580.173.02-1_amd64.deb' nvidia-open_580.173.02-1_amd64.deb 626 MD5Sum:99358febf35653b5de9f161f61ee7301
'file:/usr/share/kernel/./linux-headers_1_all.deb' linux-headers_1_all.deb 626 SHA256:99
'http://mirror.test/x86_64/./datacenter-gpu-manager-4-core_4.5.2-1_amd64.deb' datacenter-gpu-manager-4-core_1%3a4.5.2-1_amd64.deb 1 SHA256:12
"""


class Apt:
    """An apt-get with a folder of pins."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "bin"
        self.pins = root / "preferences.d"
        write_program(self.folder / "apt-get", APT)

    def run(self, out: str = "", err: str = "", rc: int = 0, *, check: bool = False) -> dict[str, Any]:
        (self.folder / "told.json").write_text(json.dumps({"out": out, "err": err, "rc": rc}))
        return run_module(
            "apt_transaction_info",
            check=check,
            command=[str(self.folder / "apt-get"), "install", "--yes", "nvidia-open=580.173.02-1"],
            preferences="Pin: version 580.173.02-*\n",
            preferences_file=str(self.pins / "h20-fleet.pref"),
        )

    @property
    def called(self) -> dict[str, Any]:
        called: dict[str, Any] = json.loads((self.folder / "called.json").read_text())
        return called


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path)


def test_what_would_be_fetched_is_named_and_what_a_local_source_has_is_not() -> None:
    assert apt_transaction_info.missing_files(URIS) == [
        "datacenter-gpu-manager-4-core_1%3a4.5.2-1_amd64.deb",
        "nvidia-open_580.173.02-1_amd64.deb",
    ]
    assert apt_transaction_info.missing_files("Reading package lists...\n") == []


@pytest.mark.parametrize("check", [False, True])
def test_the_new_pins_take_the_place_of_the_old_ones_and_all_others_stay(apt: Apt, *, check: bool) -> None:
    apt.pins.mkdir()
    (apt.pins / "h20-fleet.pref").write_text("Pin: version 595.71.05-*\n")
    (apt.pins / "site.pref").write_text("Pin: origin site\n")
    result = apt.run(URIS, check=check)
    assert result["error"] == ""
    assert (result["changed"], len(result["missing"])) == (False, 2)
    assert apt.called["pins"] == {"h20-fleet.pref": "Pin: version 580.173.02-*\n", "site.pref": "Pin: origin site\n"}
    assert apt.called["arguments"][:4] == ["install", "--yes", "nvidia-open=580.173.02-1", "--print-uris"]
    assert (apt.pins / "h20-fleet.pref").read_text() == "Pin: version 595.71.05-*\n"


def test_a_host_without_pins_is_asked_too(apt: Apt) -> None:
    assert apt.run()["missing"] == []
    assert list(apt.called["pins"]) == ["h20-fleet.pref"]


@pytest.mark.parametrize(
    ("out", "err", "error"),
    [
        ("", "E: Version '580' for 'nvidia-open' was not found\n", "Version '580' for 'nvidia-open' was not found"),
        ("Reading...\n", "W: old\nE: held broken packages.\nE: more\n", "held broken packages."),
        ("", "Killed\n", "Killed"),
    ],
)
def test_what_cannot_be_resolved_is_quoted(apt: Apt, out: str, err: str, error: str) -> None:
    result = apt.run(out, err, 100)
    assert (result["missing"], result["error"]) == ([], error)
