# SPDX-License-Identifier: Apache-2.0
"""Hardware that the collection vouches for, as data.

The PCI device id decides, never a product name: "H20" is a prefix of "H200". One profile describes one host:

product              what nvidia-smi calls the GPU; for people only
pci_device           PCI device id of the GPUs, four hexadecimal digits, vendor 10de
gpus                 GPUs of a host
memory_mib           memory of a GPU as nvidia-smi reports it as total, in MiB
nvswitches           NVSwitches of a host
nvswitch_device      their PCI device id, "" where there are none
nvlinks              NVLinks of a GPU
link_width           PCIe lanes of a GPU
allreduce_floor_gb_s bus bandwidth in GB/s that all_reduce_perf must reach over all GPUs at 4 GiB and above
copy_floor_gb_s      GB/s that pinned memory must be copied at between the host and each GPU alone, either way
load_clock_floor_mhz SM clock in MHz that each GPU must hold under a load of matrix multiplications
source               where the figures come from, and which of them nobody has measured
"""

from __future__ import annotations

import typing as t

#: Line rate of 18 NVLinks of the fourth generation is 450 GB/s; eight Hopper GPUs reach 470 to 480 GB/s with NVLink SHARP (nccl-tests issues 212, 272).
#: 430 leaves room for the spread between boards, and is above what the ring reaches without NVLink SHARP (370).
_ALLREDUCE_FLOOR = 430.0
#: PCIe 5.0 x16 carries 63 GB/s before its own overhead. 40 leaves room for that and for slow CPUs, and is more than eight lanes or PCIe 4.0 can carry (31).
_COPY_FLOOR = 40.0
#: Half of the highest clock of a Hopper GPU (1980 MHz). At its power limit a GPU runs somewhat below that, which is normal; braked or too hot, far below.
_LOAD_CLOCK_FLOOR = 1000
_LOAD_SOURCE = "copy and clock floors: line rate of PCIe 5.0 x16 and half of the highest clock, UNVERIFIED"
_LOAD_SEEN = "copy and clock floors: two H200 copy at 53 to 55 GB/s each way and hold 1460 to 1500 MHz at their power limit (docs/acceptance.md)"
_ALLREDUCE_SOURCE = "all-reduce floor: nccl-tests issues 212 and 272 (H100, H200)"
_BOARD_SOURCE = "NVSwitches, NVLinks: HGX H100 board"

PROFILES: dict[str, dict[str, t.Any]] = {
    "h20_141g": {
        "product": "NVIDIA H20-3e",
        "pci_device": "232c",
        "gpus": 8,
        "memory_mib": 143771,
        "nvswitches": 4,
        "nvswitch_device": "22a3",
        "nvlinks": 18,
        "link_width": 16,
        "allreduce_floor_gb_s": _ALLREDUCE_FLOOR,
        "copy_floor_gb_s": _COPY_FLOOR,
        "load_clock_floor_mhz": _LOAD_CLOCK_FLOOR,
        "source": f"PCI id: pci.ids; name, memory: public captures of nvidia-smi; {_BOARD_SOURCE}; {_ALLREDUCE_SOURCE}, UNVERIFIED on an H20; {_LOAD_SOURCE}",
    },
    "h20_96g": {
        "product": "NVIDIA H20",
        "pci_device": "2329",
        "gpus": 8,
        "memory_mib": 97871,
        "nvswitches": 4,
        "nvswitch_device": "22a3",
        "nvlinks": 18,
        "link_width": 16,
        "allreduce_floor_gb_s": _ALLREDUCE_FLOOR,
        "copy_floor_gb_s": _COPY_FLOOR,
        "load_clock_floor_mhz": _LOAD_CLOCK_FLOOR,
        "source": f"PCI id: pci.ids; name, memory: public captures of nvidia-smi; {_BOARD_SOURCE}; {_ALLREDUCE_SOURCE}, UNVERIFIED on an H20; {_LOAD_SOURCE}",
    },
    "h20_nvl16": {
        "product": "NVIDIA H20 NVL16",
        "pci_device": "230e",
        "gpus": 16,
        "memory_mib": 143771,
        "nvswitches": 8,
        "nvswitch_device": "22a3",
        "nvlinks": 18,
        "link_width": 16,
        "allreduce_floor_gb_s": _ALLREDUCE_FLOOR,
        "copy_floor_gb_s": _COPY_FLOOR,
        "load_clock_floor_mhz": _LOAD_CLOCK_FLOOR,
        "source": "PCI id, name: supported GPUs of NVIDIA's open driver; every other figure is UNVERIFIED (taken for two boards of eight H20-3e)",
    },
    "h200": {
        "product": "NVIDIA H200",
        "pci_device": "2335",
        "gpus": 8,
        "memory_mib": 143771,
        "nvswitches": 4,
        "nvswitch_device": "22a3",
        "nvlinks": 18,
        "link_width": 16,
        "allreduce_floor_gb_s": _ALLREDUCE_FLOOR,
        "copy_floor_gb_s": _COPY_FLOOR,
        "load_clock_floor_mhz": _LOAD_CLOCK_FLOOR,
        "source": f"PCI id, name, memory, link width, NVLinks: own captures, driver 580.159.04; NVSwitches: HGX H100 board; {_ALLREDUCE_SOURCE}; {_LOAD_SEEN}",
    },
    "h100": {
        "product": "NVIDIA H100 80GB HBM3",
        "pci_device": "2330",
        "gpus": 8,
        "memory_mib": 81559,
        "nvswitches": 4,
        "nvswitch_device": "22a3",
        "nvlinks": 18,
        "link_width": 16,
        "allreduce_floor_gb_s": _ALLREDUCE_FLOOR,
        "copy_floor_gb_s": _COPY_FLOOR,
        "load_clock_floor_mhz": _LOAD_CLOCK_FLOOR,
        "source": f"PCI id: pci.ids (SXM5 80GB); name, memory, NVSwitches: public captures of nvidia-smi and lspci; {_ALLREDUCE_SOURCE}; {_LOAD_SOURCE}",
    },
}

#: What a profile has to say, in the form of an argument spec; a site's own profile says all of it.
OPTIONS: dict[str, dict[str, t.Any]] = {
    "product": {"type": "str", "required": True},
    "pci_device": {"type": "str", "required": True},
    "gpus": {"type": "int", "required": True},
    "memory_mib": {"type": "int", "required": True},
    "nvswitches": {"type": "int", "required": True},
    "nvswitch_device": {"type": "str", "required": True},
    "nvlinks": {"type": "int", "required": True},
    "link_width": {"type": "int", "required": True},
    "allreduce_floor_gb_s": {"type": "float", "required": True},
    "copy_floor_gb_s": {"type": "float", "required": True},
    "load_clock_floor_mhz": {"type": "int", "required": True},
    "source": {"type": "str", "required": True},
}
