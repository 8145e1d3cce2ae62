# SPDX-License-Identifier: Apache-2.0
"""Xids of GPUs and SXids of NVSwitches in a kernel log, with what they mean."""

from __future__ import annotations

import datetime
import re
import typing as t

from ._xids import SXID_FATAL, SXID_NON_FATAL, UNKNOWN, XIDS, Entry

_ADDRESS = r"\((?:PCI:)?(?P<address>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)\)"
_XID = re.compile(rf"NVRM: Xid {_ADDRESS}: (?P<code>\d+)(?:, (?P<message>.*))?$")
#: The first line of an SXid says whether it is fatal; the lines after it, of the same number, hold registers.
_SXID = re.compile(rf"nvidia-nvswitch\d+: SXid {_ADDRESS}: (?P<code>\d+), (?P<message>(?P<weight>Fatal|Non-fatal),.*)$")
#: What dmesg writes before a line, and what syslog and journalctl write before it: who said it.
_STAMP = re.compile(r"\[ *([^\]]+)\] ?$")
_SPEAKER = re.compile(r"(\S+?)(?:\[\d+\])?: $")
#: Xid 154 names the action itself: GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required).
_RECOVERY = re.compile(r"changed from \S+ \(.*?\) to \S+ \((.*?)\)")
#: What journalctl is asked to look for: faster than reading the whole log here.
PATTERN = r"NVRM: Xid|: SXid"


def parse(text: str) -> list[dict[str, t.Any]]:
    """All Xids and SXids of a kernel log in its order: ``{time, kind, address, code, name, action, fatal, message}``.

    ``time`` is ISO 8601 in UTC where the log has seconds since 1970, else as the log has it, "" where it has none.
    """
    found: list[dict[str, t.Any]] = []
    for line in text.splitlines():
        if match := _XID.search(line):
            kind, entry = "xid", _xid(int(match["code"]), match["message"] or "")
        elif match := _SXID.search(line):
            kind, entry = "sxid", SXID_FATAL if match["weight"] == "Fatal" else SXID_NON_FATAL
        else:
            continue
        time = _time(line[: match.start()])
        if time is not None:
            found.append({"time": time, "kind": kind} | _event(match, entry))
    return found


def _xid(code: int, message: str) -> Entry:
    """The catalogue's entry, completed by what the message itself says."""
    entry = XIDS.get(code, UNKNOWN)
    recovery = _RECOVERY.search(message)
    if code == 154 and recovery:
        needed = recovery[1] != "None"
        return entry._replace(action=f"the driver asks for: {recovery[1]}" if needed else "none", fatal=needed)
    if entry.fatal is None:
        return entry._replace(fatal=bool(re.search(r"\bFatal\b", message)) or code == 154)
    return entry


def _event(match: re.Match[str], entry: Entry) -> dict[str, t.Any]:
    address = match["address"].lower()
    return {
        # Xids are written without the function of the device, and both with four or eight digits of domain.
        "address": address[-12:] if "." in address else f"{address[-10:]}.0",
        "code": int(match["code"]),
        "name": entry.name,
        "action": entry.action,
        "fatal": bool(entry.fatal),
        "message": (match["message"] or "").strip(),
    }


def _time(before: str) -> str | None:
    """When a line was written, by what it has before the kernel's own words; None where another than the kernel wrote it."""
    stamp = _STAMP.search(before)
    rest = before[: stamp.start()] if stamp else before
    speaker = _SPEAKER.search(rest)
    if speaker is None:
        return stamp[1] if stamp else rest.strip()
    if speaker[1] != "kernel":
        return None
    # What is left is the time and the name of the host.
    time = rest[: speaker.start()].strip().rpartition(" ")[0]
    if re.fullmatch(r"\d{9,}\.\d+", time):
        return datetime.datetime.fromtimestamp(int(float(time)), tz=datetime.timezone.utc).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
    return time
