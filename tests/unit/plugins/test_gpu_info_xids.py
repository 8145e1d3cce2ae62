# SPDX-License-Identifier: Apache-2.0
"""Xids and SXids in a kernel log: every form of log is read alike, and each error says what it means and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _kernel_log, _xids

OFF_THE_BUS = "NVRM: Xid (PCI:0000:5d:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
MET = "13 31 32 38 43 45 48 54 61 62 63 64 68 69 74 79 92 94 95 109 110 119 120 121 122 123 136 137 140 143 145 149 151 154 155 156 158 159"
#: What NVIDIA's catalogue wants a reset, a reboot or hands for, and what it does not.
FATAL = {46, 48, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 143, 151, 155, 156, 158}
HARMLESS = {13, 31, 32, 43, 45, 63, 92, 94, 137}


def only(text: str) -> dict[str, Any]:
    found: dict[str, Any]
    [found] = _kernel_log.parse(text)
    return found


@pytest.mark.parametrize(
    ("prefix", "time"),
    [
        ("1763916788.120934 h20-07 kernel: ", "2025-11-23T16:53:08Z"),
        ("Nov 23 16:53:08 h20-07 kernel: ", "Nov 23 16:53:08"),
        ("Nov  3 16:53:08 h20-07 kernel: ", "Nov  3 16:53:08"),
        ("Nov 23 16:53:08 h20-07 kernel: [   12.345678] ", "Nov 23 16:53:08"),
        ("2025-11-23T16:53:08.120934+00:00 h20-07 kernel: ", "2025-11-23T16:53:08.120934+00:00"),
        ("[   12.345678] ", "12.345678"),
        ("[Mon Nov 23 16:53:08 2026] ", "Mon Nov 23 16:53:08 2026"),
        ("2025-11-23T16:53:08,120934+00:00 ", "2025-11-23T16:53:08,120934+00:00"),
        ("kern  :err   : [   12.345678] ", "12.345678"),
        ("", ""),
    ],
    ids=[
        "short-unix",
        "short",
        "short, day 3",
        "syslog",
        "short-iso",
        "dmesg",
        "dmesg -T",
        "dmesg iso",
        "dmesg -x",
        "bare",
    ],
)
def test_a_log_of_any_form_tells_time_address_and_message(prefix: str, time: str) -> None:
    assert only(prefix + OFF_THE_BUS) == {
        "time": time,
        "kind": "xid",
        "address": "0000:5d:00.0",
        "code": 79,
        "name": "GPU has fallen off the bus",
        "action": _xids.XIDS[79].action,
        "fatal": True,
        "message": "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    }


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("PCI:0000:5d:00", "0000:5d:00.0"),
        ("PCI:0000:5D:00", "0000:5d:00.0"),
        ("PCI:0000:5d:00.0", "0000:5d:00.0"),
        ("PCI:00000000:5D:00.0", "0000:5d:00.0"),
        ("PCI:0001:5d:00", "0001:5d:00.0"),
        ("0000:5d:00", "0000:5d:00.0"),
    ],
)
def test_an_address_is_written_as_the_bus_writes_it(written: str, address: str) -> None:
    assert only(f"NVRM: Xid ({written}): 31, pid=1")["address"] == address


@pytest.mark.parametrize(
    ("weight", "fatal"),
    [("Fatal", True), ("Non-fatal", False)],
)
def test_an_nvswitch_says_itself_whether_it_is_fatal(weight: str, fatal: bool) -> None:
    text = f"nvidia-nvswitch3: SXid (PCI:0000:0a:00.0): 12028, {weight}, Link 35 egress non-posted PRIV error (First)"
    found = only(f"1763916788.1 h20-07 kernel: {text}")
    assert (found["kind"], found["address"], found["code"], found["fatal"]) == ("sxid", "0000:0a:00.0", 12028, fatal)
    assert found["message"] == f"{weight}, Link 35 egress non-posted PRIV error (First)"


def test_the_registers_of_an_nvswitch_are_no_errors_of_their_own() -> None:
    assert [found["code"] for found in _kernel_log.parse(SWITCH)] == [20034]


SWITCH = """\
nvidia-nvswitch2: SXid (PCI:0000:09:00.0): 20034, Fatal, Link 30 LTSSM Fault Up
nvidia-nvswitch2: SXid (PCI:0000:09:00.0): 20034, Severity 1 Engine instance 30 Sub-engine instance 00
nvidia-nvswitch2: SXid (PCI:0000:09:00.0): 20034, Data {0x50610002, 0x10100030, 0x00000000}
"""


@pytest.mark.parametrize("code", [int(code) for code in MET.split()])
def test_the_catalogue_knows_what_operators_meet(code: int) -> None:
    entry = _xids.XIDS[code]
    assert entry.name
    assert entry.action


def test_the_catalogue_calls_fatal_what_nvidia_wants_mended() -> None:
    assert {code for code, entry in _xids.XIDS.items() if entry.fatal} == FATAL
    assert {code for code in HARMLESS if _xids.XIDS[code].fatal is False} == HARMLESS


@pytest.mark.parametrize(
    ("now", "fatal"),
    [
        ("0x0 (None)", False),
        ("0x1 (GPU Reset Required)", True),
        ("0x2 (Node Reboot Required)", True),
        ("0x4 (Drain and Reset)", True),
    ],
)
def test_a_changed_recovery_action_is_as_grave_as_what_it_asks_for(now: str, fatal: bool) -> None:
    found = only(f"NVRM: Xid (PCI:0000:5d:00): 154, GPU recovery action changed from 0x3 (Drain P2P) to {now}")
    assert found["fatal"] is fatal
    assert (now.partition("(")[2].rstrip(")") in found["action"]) is fatal


@pytest.mark.parametrize(
    ("code", "message", "fatal"),
    [
        (149, "NETIR_LINK_DOWN Fatal XC0 i0 Link 05 (0x004505c6 0x00000000)", True),
        (145, "RLW_CTRL Nonfatal XC1 i0 Link 05 (0x004505c6 0x00000000)", False),
        (154, "something that nobody has seen yet", True),
        (63, "Fatal", False),
    ],
)
def test_a_message_decides_where_the_code_does_not(code: int, message: str, fatal: bool) -> None:
    assert only(f"NVRM: Xid (PCI:0000:5d:00): {code}, {message}")["fatal"] is fatal


def test_an_unknown_code_is_reported_with_where_to_look() -> None:
    found = only("NVRM: Xid (PCI:0000:5d:00): 999, pid=1, name=vllm")
    assert (found["code"], found["name"], found["fatal"]) == (999, _xids.UNKNOWN.name, False)
    assert "https://docs.nvidia.com/" in found["action"]


LOG = """\
1763916779.0 h20-07 kernel: NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.173.02
1763916780.0 h20-07 kernel: NVRM: Xid (PCI:0000:5d:00): 31, pid=1
1763916781.0 h20-07 sshd[812]: NVRM: Xid (PCI:0000:5d:00): 79, said by another than the kernel
Nov 23 16:53:01 h20-07 vllm: NVRM: Xid (PCI:0000:5d:00): 79, said by another than the kernel
1763916782.0 h20-07 kernel: NVRM: Xid (PCI:0000:5d:00): seventy-nine
\x00\xff
1763916783.0 h20-07 kernel: NVRM: Xid (PCI:0000:9a:00): 95
"""


def test_a_log_is_read_in_its_order_and_other_lines_are_left_out() -> None:
    found = _kernel_log.parse(LOG)
    assert [(entry["code"], entry["address"], entry["message"]) for entry in found] == [
        (31, "0000:5d:00.0", "pid=1"),
        (95, "0000:9a:00.0", ""),
    ]


def test_an_empty_log_holds_nothing() -> None:
    assert _kernel_log.parse("") == []
