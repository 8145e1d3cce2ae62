# SPDX-License-Identifier: Apache-2.0
"""Host descriptions: which GPUs and NVSwitches a test host has, and what is wrong with them.

A description is a YAML file beside this module. ``base`` names another one that it changes. ``faults`` says what is not as it should be:

    faults:
      gpus: {"<PCI address>": {<field of GpuState>: value}}
      fabric: {state: "In Progress", status: "N/A"}     in place of what the fabric manager brings about
      phb_pairs: [["<PCI address>", "<PCI address>"]]   two GPUs that see each other over PCIe only
      nouveau_loaded: true                              as after the installation of a bare distribution
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from testbed.hardware import pci

HERE = Path(__file__).parent


class DescriptionError(ValueError):
    """A description that cannot be read; the message names the file and what is wrong in it."""


@dataclass(frozen=True)
class Gpu:
    """The model that all GPUs of a host have in common."""

    model: str
    pci_id: str
    subsystem_id: str
    architecture: str
    compute_capability: str
    memory_mib: int
    power_limit_w: int
    pcie_generation: int
    pcie_width: int
    nvlinks: int


@dataclass(frozen=True)
class GpuState:
    """One GPU; the defaults are those of a healthy one."""

    address: str
    numa_node: int
    answers: bool = True
    """False: on the PCI bus, but gone for the driver (Xid 79)."""
    pcie_width: int = 16
    ecc: bool = True
    mig: bool = False
    row_remap_pending: bool = False
    row_remap_failed: bool = False
    uncorrectable_errors: int = 0
    power_brake: bool = False
    """The power supply holds the GPU at its lowest clock."""
    memory_used_mib: int = 0
    """Held by a process that outlived its service."""
    nvlinks_down: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Switch:
    """The model that all NVSwitches of a host have in common."""

    pci_id: str
    subsystem_id: str


@dataclass(frozen=True)
class Fabric:
    """What the GPUs say of the NVLink fabric."""

    state: str
    status: str


@dataclass(frozen=True)
class Description:
    """A host. Addresses are full PCI addresses (``0000:18:00.0``); ``nvswitches`` and ``cpus`` go by NUMA node."""

    name: str
    gpu: Gpu
    gpus: list[GpuState]
    nvswitch: Switch
    nvswitches: dict[str, int]
    cpus: dict[int, str]
    fabric: Fabric | None = None
    phb_pairs: list[list[str]] = field(default_factory=list)
    nouveau_loaded: bool = False


def names() -> list[str]:
    """All descriptions there are."""
    return sorted(path.stem for path in HERE.glob("*.yml"))


def load(name: str) -> Description:
    """The description of that name; DescriptionError where there is none or it does not add up."""
    document = _read(name)
    try:
        return _parse(name, document)
    except (TypeError, KeyError, AttributeError) as error:
        raise DescriptionError(f"{name}.yml: {error}") from error


def write_host(description: Description, directory: Path) -> None:
    """Write ``pci/``, ``module/`` and ``hardware.json`` of the host that the directory is named after.

    All three are bind mounts of a container that may be running: they are changed in place, and what is in ``module/`` is the host's own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pci.write_tree(_devices(description), directory / "pci")
    module = directory / "module"
    if not module.exists():
        module.mkdir()
        if description.nouveau_loaded:
            _write_nouveau(module / "nouveau")
    document = asdict(description)
    for index, gpu in enumerate(document["gpus"]):
        identity = uuid.uuid5(uuid.NAMESPACE_URL, f"testbed:{directory.name}/{gpu['address']}")
        gpu["uuid"] = f"GPU-{identity}"
        gpu["serial"] = str(1_650_000_000_000 + identity.int % 1_000_000_000)
        gpu["index"] = index
    # A file that is a bind mount must keep its inode: no rename here.
    (directory / "hardware.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read(name: str) -> dict[str, Any]:
    path = HERE / f"{name}.yml"
    if not path.is_file():
        raise DescriptionError(f"no hardware description {name!r}; there are {', '.join(names())}")
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "base" not in document:
        return document
    base = _read(document.pop("base"))
    base["gpu"] = base["gpu"] | document.pop("gpu", {})
    return base | document


def _parse(name: str, document: dict[str, Any]) -> Description:
    faults = dict(document.pop("faults", {}))
    gpu = Gpu(**document.pop("gpu"))
    healthy = {
        address: GpuState(address=address, numa_node=node, pcie_width=gpu.pcie_width)
        for address, node in document.pop("gpus").items()
    }
    for address, state in faults.pop("gpus", {}).items():
        healthy[address] = replace(healthy[address], **state)
    if "fabric" in faults:
        faults["fabric"] = Fabric(**faults["fabric"])
    return Description(
        name=name,
        gpu=gpu,
        gpus=list(healthy.values()),
        nvswitch=Switch(**document.pop("nvswitch")),
        **document,
        **faults,
    )


def _devices(description: Description) -> list[pci.Device]:
    gpu, switch = description.gpu, description.nvswitch
    gpus = [
        pci.Device(
            address=state.address,
            pci_id=gpu.pci_id,
            subsystem_id=gpu.subsystem_id,
            device_class=pci.CLASS_3D_CONTROLLER,
            numa_node=state.numa_node,
            cpus=description.cpus[state.numa_node],
            generation=gpu.pcie_generation,
            width=gpu.pcie_width,
            current_width=state.pcie_width,
        )
        for state in description.gpus
    ]
    switches = [
        pci.Device(
            address=address,
            pci_id=switch.pci_id,
            subsystem_id=switch.subsystem_id,
            device_class=pci.CLASS_BRIDGE,
            numa_node=node,
            cpus=description.cpus[node],
            generation=4,
            width=2,
            current_width=2,
        )
        for address, node in description.nvswitches.items()
    ]
    return gpus + switches


def _write_nouveau(directory: Path) -> None:
    directory.mkdir()
    (directory / "initstate").write_text("live\n", encoding="ascii")
