# SPDX-License-Identifier: Apache-2.0
"""Which profile a host's hardware has, among those of the collection and those that a site vouches for itself."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.h20.fleet.plugins.module_utils._profiles import OPTIONS, PROFILES

#: How far the memory that nvidia-smi reports may be from the profile's, as a share of it: ECC and firmware reserve a little more or less.
MEMORY_TOLERANCE = 0.02


def known_profiles(site: t.Mapping[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    """The shipped profiles and the site's, of which one by a shipped name replaces that one; ValueError where one is not whole."""
    return PROFILES | {str(name): _checked(str(name), profile) for name, profile in site.items()}


def match_profile(
    profiles: t.Mapping[str, t.Mapping[str, t.Any]],
    pci_gpus: t.Sequence[t.Mapping[str, t.Any]],
    smi: t.Mapping[str, t.Any] | None,
) -> str | None:
    """The profile that all GPUs match by PCI device id and, where the driver answers, by memory.

    None for no GPU, mixed GPUs, or an id or memory that no profile names. A site's own profile goes before a shipped one of the same id.
    """
    devices = {gpu["device"] for gpu in pci_gpus}
    sizes = [gpu["memory_mib"] for gpu in smi["gpus"] if gpu["memory_mib"] is not None] if smi else []
    for name, profile in sorted(profiles.items(), key=lambda item: item[0] in PROFILES):
        wanted = profile["memory_mib"]
        if devices == {profile["pci_device"]} and all(
            abs(size - wanted) <= wanted * MEMORY_TOLERANCE for size in sizes
        ):
            return name
    return None


def _checked(name: str, profile: object) -> dict[str, t.Any]:
    """The profile with its fields in their types; ValueError says all that is wrong with it."""
    if not isinstance(profile, dict):
        raise ValueError(f"profile {name} is not a dictionary -> give it {', '.join(OPTIONS)}")  # noqa: TRY004 (one kind of error for one caller)
    result = ArgumentSpecValidator(OPTIONS).validate(profile)
    wrong = list(result.error_messages)
    values: dict[str, t.Any] = result.validated_parameters
    if not wrong:
        wrong += [f"{key} is below {least}: {values[key]}" for key, least in _LEAST.items() if values[key] < least]
        wrong += [
            f"{key} is not four lowercase hexadecimal digits: {values[key]!r}"
            for key, needed in (("pci_device", True), ("nvswitch_device", values["nvswitches"] > 0))
            if (needed or values[key]) and not re.fullmatch("[0-9a-f]{4}", values[key])
        ]
        wrong += [f"{key} is empty" for key in ("product", "source") if not values[key].strip()]
    if wrong:
        raise ValueError(
            f"profile {name}: {'; '.join(wrong)} -> a profile vouches for hardware, so it names every figure"
        )
    return values


_LEAST = {
    "gpus": 1,
    "memory_mib": 1,
    "nvswitches": 0,
    "nvlinks": 0,
    "link_width": 1,
    "allreduce_floor_gb_s": 0,
    "copy_floor_gb_s": 0,
    "load_clock_floor_mhz": 0,
}
