# SPDX-License-Identifier: Apache-2.0
"""What the Xids of the NVIDIA driver mean and what an operator does about each, as data.

Follows NVIDIA's page "Analyzing Xid Errors with the Xid Catalog" (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html): its description and
its immediate action for Hopper, in words for a fleet that serves one model on all GPUs of a host. ``fatal`` is true where the catalogue wants the GPU reset,
the host rebooted or the hardware seen to: what runs on the GPU until then cannot be trusted. It is None where the message itself says whether it is.
"""

from __future__ import annotations

import typing as t


class Entry(t.NamedTuple):
    """One code: what it means, what to do, and whether the GPU is out of service until that is done."""

    name: str
    action: str
    fatal: bool | None


_RESTART = "restart what ran on the GPU; if it returns with other programs as well, run dcgmi diag -r 3"
_RESET = "reset the GPU or reboot the host; if it returns, have the GPU replaced"
_FIRMWARE = "reboot the host; if it returns, take another driver release and report it to NVIDIA"
_FOLLOW = "none by itself: follow the Xid before it"
_WATCH = "none; watch how often it comes"
_NVLINK5 = "reboot the host where it says Fatal; decode it with NVIDIA's catalogue (Blackwell and later only)"
_SUPPORT = "not used by Hopper: ask NVIDIA's support"

XIDS: dict[int, Entry] = {
    8: Entry("GPU stopped processing", _RESTART, fatal=False),
    13: Entry("graphics engine exception", _RESTART, fatal=False),
    31: Entry("GPU memory page fault", _RESTART, fatal=False),
    32: Entry("invalid or corrupted push buffer stream", _RESTART, fatal=False),
    37: Entry("driver firmware error", _WATCH, fatal=False),
    38: Entry("driver firmware error", _WATCH, fatal=False),
    43: Entry("GPU stopped processing a program", _FOLLOW, fatal=False),
    44: Entry("graphics engine fault during context switch", _WATCH, fatal=False),
    45: Entry(
        "programs removed from the GPU after another error",
        f"{_FOLLOW}; where there is none, restart nvidia-fabricmanager",
        fatal=False,
    ),
    46: Entry("GPU stopped processing", _RESET, fatal=True),
    48: Entry(
        "uncorrectable (double bit) ECC error",
        "reboot the host so that the row is remapped; if it returns, have the GPU replaced",
        fatal=True,
    ),
    54: Entry(
        "GPU runs at reduced clocks for lack of power",
        "check the power supplies and power cables of the GPU board",
        fatal=False,
    ),
    61: Entry("internal micro-controller breakpoint", _SUPPORT, fatal=False),
    62: Entry("internal micro-controller halt", _RESET, fatal=True),
    63: Entry("memory row remapped", "none; where a remap is pending, reset the GPU when it is idle", fatal=False),
    64: Entry("memory row could not be remapped", "reset the GPU; if it returns, have the GPU replaced", fatal=True),
    68: Entry("video decoder exception", _RESTART, fatal=False),
    69: Entry("graphics engine class error", _RESTART, fatal=False),
    74: Entry(
        "NVLink error",
        "reboot the host; if it returns on the same link, have the GPU or the board replaced",
        fatal=True,
    ),
    79: Entry("GPU has fallen off the bus", "power-cycle the host; if it returns, have the GPU replaced", fatal=True),
    80: Entry("corrupted data sent to the GPU", _RESTART, fatal=False),
    92: Entry("high rate of corrected ECC errors", f"{_WATCH}, and for Xids 48 and 64", fatal=False),
    94: Entry("contained memory error", "restart what ran on the GPU; reset the GPU when it is idle", fatal=False),
    95: Entry("uncontained memory error", _RESET, fatal=True),
    109: Entry("context switch timeout", _RESET, fatal=True),
    110: Entry("security fault", _FIRMWARE, fatal=True),
    119: Entry("GPU system processor (GSP) does not answer", _FIRMWARE, fatal=True),
    120: Entry("GPU system processor (GSP) error", _FIRMWARE, fatal=True),
    121: Entry("chip-to-chip link error", _WATCH, fatal=False),
    122: Entry("GPU's flash memory cannot be read", _SUPPORT, fatal=False),
    123: Entry("GPU's flash memory cannot be written", _SUPPORT, fatal=False),
    136: Entry(
        "NVLink training failed", "reboot the host; if it returns, have the GPU or the board replaced", fatal=True
    ),
    137: Entry(
        "illegal access over NVLink",
        "none for the hardware: what ran reached for memory that is not its own; restart it",
        fatal=False,
    ),
    140: Entry("uncorrectable ECC error that was not recovered", _RESET, fatal=True),
    141: Entry("fast path error", _WATCH, fatal=False),
    143: Entry("GPU did not initialise", _RESET, fatal=True),
    144: Entry("NVLink SAW error", _NVLINK5, fatal=None),
    145: Entry("NVLink RLW error", _NVLINK5, fatal=None),
    146: Entry("NVLink TLW error", _NVLINK5, fatal=None),
    147: Entry("NVLink TREX error", _NVLINK5, fatal=None),
    148: Entry("NVLink NVLPW_CTRL error", _NVLINK5, fatal=None),
    149: Entry("NVLink NETIR error", _NVLINK5, fatal=None),
    150: Entry("NVLink MSE error", _NVLINK5, fatal=None),
    151: Entry("key rotation error", "restart the virtual machine or reboot the host", fatal=True),
    154: Entry("recovery action changed", "do what the message says", fatal=None),
    155: Entry("NVLink error defined by software", _RESET, fatal=True),
    156: Entry("part of the GPU retired", "reset the GPU or reboot the host, which completes it", fatal=True),
    157: Entry(
        "part of the GPU could not be retired", "none now; have the GPU replaced when it can be spared", fatal=False
    ),
    158: Entry("fatal timeout", _RESET, fatal=True),
    159: Entry(
        "CHI non-data error", "reset the GPU where unified memory is in use (Blackwell and later only)", fatal=False
    ),
    171: Entry(
        "uncorrectable DRAM error", "see the Xid 48 beside it: reboot the host so that the row is remapped", fatal=False
    ),
    172: Entry(
        "uncorrectable SRAM error",
        "see the Xid 48 beside it: have the GPU replaced where nvidia-smi says that the SRAM threshold is exceeded",
        fatal=False,
    ),
}

UNKNOWN = Entry(
    "not in the catalogue of this collection",
    "look it up: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html",
    fatal=False,
)

#: SXids of NVSwitches say themselves whether they are fatal; their codes are in the appendix of the Fabric Manager User Guide.
SXID_FATAL = Entry(
    "NVSwitch error, fatal", "reboot the host; if it returns, have the NVSwitch's board replaced", fatal=True
)
SXID_NON_FATAL = Entry("NVSwitch error, not fatal", _WATCH, fatal=False)
