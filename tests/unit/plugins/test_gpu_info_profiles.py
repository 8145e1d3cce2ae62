# SPDX-License-Identifier: Apache-2.0
"""Profiles: the shipped ones say all that they have to, hardware is matched by id and memory, a site's own is whole or refused."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _hardware
from ansible_collections.h20.fleet.plugins.module_utils._profiles import OPTIONS, PROFILES
from testbed import hardware

H20_3E, H20, H200, L40S = "232c", "2329", "2335", "26b9"
MEMORY = 143771


def gpus_of(*devices: str) -> list[dict[str, Any]]:
    return [{"address": f"0000:{number:02x}:00.0", "device": device} for number, device in enumerate(devices)]


def smi_of(*sizes: int | None) -> dict[str, Any]:
    return {"gpus": [{"memory_mib": size} for size in sizes]}


def own(**changes: Any) -> dict[str, Any]:
    """A site's own profile: four H200s without NVSwitches."""
    profile = PROFILES["h200"] | {"gpus": 4, "nvswitches": 0, "nvswitch_device": "", "source": "measured here"}
    return {key: value for key, value in (profile | changes).items() if value is not None}


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_stands_the_test_for_a_sites_own(name: str) -> None:
    assert PROFILES[name].keys() == OPTIONS.keys()
    assert _hardware.known_profiles({"copy": PROFILES[name]})["copy"] == PROFILES[name]


def test_no_two_shipped_profiles_are_of_one_device() -> None:
    assert len({profile["pci_device"] for profile in PROFILES.values()}) == len(PROFILES)


@pytest.mark.parametrize("name", ["h20_141g", "h20_96g"])
def test_a_profile_says_what_its_hardware_says(name: str) -> None:
    described = hardware.load(name)
    said = {
        "product": described.gpu.model,
        "pci_device": described.gpu.pci_id.removeprefix("10de:"),
        "gpus": len(described.gpus),
        "memory_mib": described.gpu.memory_mib,
        "nvswitches": len(described.nvswitches),
        "nvswitch_device": described.nvswitch.pci_id.removeprefix("10de:"),
        "nvlinks": described.gpu.nvlinks,
        "link_width": described.gpu.pcie_width,
    }
    assert {key: PROFILES[name][key] for key in said} == said


@pytest.mark.parametrize(
    ("devices", "profile"),
    [
        ([H20_3E] * 8, "h20_141g"),
        ([H20_3E] * 7, "h20_141g"),
        ([H20] * 8, "h20_96g"),
        (["230e"] * 16, "h20_nvl16"),
        ([H200], "h200"),
        (["2330"] * 8, "h100"),
        ([H20_3E] * 7 + [H20], None),
        ([H20_3E] * 7 + [H200], None),
        ([L40S] * 8, None),
        ([], None),
    ],
)
def test_hardware_is_known_by_the_device_id_of_every_gpu(devices: list[str], profile: str | None) -> None:
    assert _hardware.match_profile(PROFILES, gpus_of(*devices), None) == profile


@pytest.mark.parametrize(
    ("sizes", "matches"),
    [
        ([MEMORY] * 8, True),
        ([round(MEMORY * 1.019)] * 8, True),
        ([round(MEMORY * 0.981)] * 8, True),
        ([round(MEMORY * 1.021)] * 8, False),
        ([MEMORY] * 7 + [round(MEMORY * 0.979)], False),
        ([MEMORY] * 7 + [None], True),
        ([None] * 8, True),
        ([], True),
        ([97871] * 8, False),
    ],
)
def test_memory_has_a_say_where_the_driver_answers(sizes: list[int | None], matches: bool) -> None:
    found = _hardware.match_profile(PROFILES, gpus_of(*[H20_3E] * 8), smi_of(*sizes))
    assert found == ("h20_141g" if matches else None)


def test_a_sites_own_profile_goes_before_a_shipped_one_of_the_same_id() -> None:
    profiles = _hardware.known_profiles({"h200_4": own()})
    assert profiles.keys() == PROFILES.keys() | {"h200_4"}
    assert _hardware.match_profile(profiles, gpus_of(*[H200] * 4), None) == "h200_4"


def test_a_sites_own_profile_replaces_the_shipped_one_of_its_name() -> None:
    profiles = _hardware.known_profiles({"h200": own()})
    assert (profiles.keys(), profiles["h200"]["source"]) == (PROFILES.keys(), "measured here")
    assert PROFILES["h200"]["gpus"] == 8


def test_memory_tells_two_profiles_of_one_id_apart() -> None:
    profiles = _hardware.known_profiles({"half": own(memory_mib=71000)})
    assert _hardware.match_profile(profiles, gpus_of(H200), smi_of(71000)) == "half"
    assert _hardware.match_profile(profiles, gpus_of(H200), smi_of(MEMORY)) == "h200"


def test_figures_are_taken_in_their_types() -> None:
    profile = _hardware.known_profiles({"own": own(gpus="4", pci_device=2335, allreduce_floor_gb_s=300)})["own"]
    assert (profile["gpus"], profile["pci_device"], profile["allreduce_floor_gb_s"]) == (4, "2335", 300.0)


@pytest.mark.parametrize("field", OPTIONS)
def test_a_profile_without_a_figure_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"profile own: .*{field}.* -> "):
        _hardware.known_profiles({"own": own(**{field: None})})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpus": "many"}, "gpus"),
        ({"gpus": 0}, "gpus is below 1: 0"),
        ({"memory_mib": -1}, "memory_mib is below 1: -1"),
        ({"pci_device": "0x2335"}, "pci_device is not four lowercase hexadecimal digits: '0x2335'"),
        ({"pci_device": "10de:2335"}, "pci_device is not four"),
        ({"pci_device": "232C"}, "pci_device is not four"),
        ({"nvswitches": 4}, "nvswitch_device is not four"),
        ({"nvswitch_device": "nvswitch"}, "nvswitch_device is not four"),
        ({"source": " "}, "source is empty"),
        ({"gpu": 4}, "gpu"),
    ],
)
def test_a_profile_that_does_not_add_up_is_refused_with_what_is_wrong(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match="profile own: ") as refusal:
        _hardware.known_profiles({"own": own(**changes)})
    assert reason in str(refusal.value)
    assert " -> " in str(refusal.value)


@pytest.mark.parametrize("profile", [None, "h200", ["h200"], 8])
def test_what_is_no_dictionary_is_no_profile(profile: object) -> None:
    with pytest.raises(ValueError, match="profile own is not a dictionary -> give it product, pci_device"):
        _hardware.known_profiles({"own": profile})
