# SPDX-License-Identifier: Apache-2.0
"""Host descriptions: which GPUs and NVSwitches a test host has, and what is wrong with them.

A description is a YAML file beside this module. ``base`` names another one that it changes. ``faults`` says what is not as it should be:

    faults:
      gpus: {"<PCI address>": {<field of GpuState>: value}}    one more where the base has none there and numa_node is named; null: one less
      fabric: {state: "In Progress", status: "N/A"}     in place of what the fabric manager brings about
      phb_pairs: [["<PCI address>", "<PCI address>"]]   two GPUs that see each other over PCIe only
      dcgm: {level: 2, failure: "memtest: ..."}         what its diagnosis says of GPU 0 from this level on; hangs: true
      nouveau_loaded: true                              as after the installation of a bare distribution
      secure_boot: true                                 null: the host did not boot by UEFI
      kernel_log: ["NVRM: Xid (PCI:0000:18:00): 79, ..."]    what the kernel has said, verbatim
      infiniband: [{device: mlx5_0, <field of Port>: value}]
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from testbed.hardware import pci, sysfs

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
    throttle: str = ""
    """Reason for which it runs at a lower clock, as nvidia-smi names it, say ``hw_thermal_slowdown``."""
    clock_mhz: int = 0
    """Its clock, where something runs on it; nothing: idle."""
    memory_used_mib: int = 0
    """Held by a process that outlived its service."""
    held_by: str = ""
    """A part of the command line of the processes of the host that hold it; nothing: of one that the host does not show."""
    nvlinks_down: list[int] = field(default_factory=list)
    hangs: bool = False
    """The driver does not return from a question about it, so nvidia-smi does not either."""
    model: str = ""
    """Of another model than the rest, as are ``pci_id`` and ``memory_mib``; nothing: the same."""
    pci_id: str = ""
    memory_mib: int = 0
    driver: str = ""
    """The kernel driver that has taken it, say ``vfio-pci``."""


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
class Diagnosis:
    """What DCGM's diagnosis comes to from a level on; a longer one sees more."""

    level: int = 1
    failure: str = ""
    hangs: bool = False


@dataclass(frozen=True)
class Port:
    """A port of an InfiniBand or RoCE card: one card a port. The defaults are those of a ConnectX-7 that is connected."""

    device: str
    address: str
    numa_node: int = 0
    port: int = 1
    link_layer: str = "InfiniBand"
    state: str = "4: ACTIVE"
    phys_state: str = "5: LinkUp"
    rate: str = "400 Gb/sec (4X NDR)"
    netdev: str = ""
    pci_id: str = "15b3:1021"
    subsystem_id: str = "15b3:0041"
    firmware: str = "28.43.2566"
    traffic_class: int | None = None
    gids: dict[int, str] = field(default_factory=dict)
    """Addresses of the port by their index, all of RoCE v2."""


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
    dcgm: Diagnosis = field(default_factory=Diagnosis)
    nouveau_loaded: bool = False
    secure_boot: bool | None = False
    kernel_log: list[str] = field(default_factory=list)
    infiniband: list[Port] = field(default_factory=list)


def names() -> list[str]:
    """All descriptions there are."""
    return sorted(path.stem for path in HERE.glob("*.yml"))


def load(name: str) -> Description:
    """The description of that name; DescriptionError where there is none or it does not add up."""
    return compose(name, _read(name))


def compose(name: str, document: Mapping[str, Any]) -> Description:
    """The description that the document is, as a file would hold it; ``name`` is what it is called in errors."""
    try:
        return _parse(name, _based(dict(document)))
    except (TypeError, KeyError, AttributeError) as error:
        raise DescriptionError(f"{name}: {type(error).__name__}: {error}") from error


def write_host(description: Description, directory: Path, *, renew: bool = False) -> None:
    """Write ``pci/``, ``module/``, ``sys/`` and ``hardware.json`` of the host that the directory is named after.

    All four are bind mounts of a container that may be running: they are changed in place. What is in ``module/`` is the host's own, so nouveau is written
    into a new one alone, or where ``renew`` says that the host changes its hardware.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pci.write_tree(_devices(description), directory / "pci")
    sysfs.write_firmware(description.secure_boot, directory / "sys/firmware")
    sysfs.write_infiniband(description.infiniband, directory / "sys/class/infiniband")
    module = directory / "module"
    if renew or not module.exists():
        module.mkdir(exist_ok=True)
        shutil.rmtree(module / "nouveau", ignore_errors=True)
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
    return document


def _based(document: dict[str, Any]) -> dict[str, Any]:
    """The document with everything that it takes over from its base."""
    if "base" not in document:
        return document
    base = _based(_read(document.pop("base")))
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
        if state is None:
            del healthy[address]
        else:
            more = GpuState(address=address, numa_node=state["numa_node"]) if "numa_node" in state else None
            healthy[address] = replace(more or healthy[address], **state)
    if "fabric" in faults:
        faults["fabric"] = Fabric(**faults["fabric"])
    faults["dcgm"] = Diagnosis(**faults.get("dcgm", {}))
    faults["infiniband"] = [Port(**port) for port in faults.get("infiniband", [])]
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
            pci_id=state.pci_id or gpu.pci_id,
            subsystem_id=gpu.subsystem_id,
            device_class=pci.CLASS_3D_CONTROLLER,
            numa_node=state.numa_node,
            cpus=description.cpus[state.numa_node],
            generation=gpu.pcie_generation,
            width=gpu.pcie_width,
            current_width=state.pcie_width,
            driver=state.driver,
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
    cards = [
        pci.Device(
            address=port.address,
            pci_id=port.pci_id,
            subsystem_id=port.subsystem_id,
            device_class=pci.CLASS_INFINIBAND if port.link_layer == "InfiniBand" else pci.CLASS_ETHERNET,
            numa_node=port.numa_node,
            cpus=description.cpus[port.numa_node],
            generation=5,
            width=16,
            current_width=16,
            netdev=port.netdev,
        )
        for port in description.infiniband
    ]
    return gpus + switches + cards


def _write_nouveau(directory: Path) -> None:
    directory.mkdir()
    (directory / "initstate").write_text("live\n", encoding="ascii")
