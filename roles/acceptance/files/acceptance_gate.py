#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Refuse to start a replica on a host that is not accepted.

    acceptance_gate.py [RECORD]

Run by systemd before the service (ExecStartPre), and by the stage vllm_service before it changes anything. Reads the record that the stage acceptance keeps and
asks nvidia-smi which GPUs are there. The driver may have changed since, the GPUs may not. Exit code 0 with one line that says on what the start rests; 1 with
the reason and the remedy.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import typing as t
from pathlib import Path

RECORD = "/var/lib/h20-fleet/acceptance.json"
#: Seconds after which nvidia-smi counts as hung, as it does where a GPU is broken.
TIMEOUT = 60
AGAIN = "run the stage: ansible-playbook h20.fleet.site --tags acceptance"


class Refusal(Exception):  # noqa: N818 - the answer of this program, not an error of it
    """Why the replica may not start, with the remedy."""


def read(path: Path) -> dict[str, t.Any]:
    try:
        record: dict[str, t.Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["verdict"], str) or not isinstance(record["key"]["gpus"], list):
            raise TypeError  # noqa: TRY301 - as for any other text that is no record
    except FileNotFoundError:
        raise Refusal(f"this host is not accepted: there is no {path} -> {AGAIN}") from None
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"this host is not accepted: {path} is no record of it -> {AGAIN}") from None
    return record


def present() -> list[str]:
    """UUIDs of the GPUs that answer."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise Refusal(
            f"nvidia-smi did not answer within {TIMEOUT} s -> look for an Xid in the kernel log; power-cycle the host"
        ) from None
    except OSError as error:
        raise Refusal(f"nvidia-smi cannot be run: {error.strerror} -> run the stage: --tags nvidia_driver") from error
    if done.returncode:
        told = " ".join((done.stdout + done.stderr).split()) or f"status {done.returncode}"
        raise Refusal(f"nvidia-smi does not answer: {told} -> run the stage: --tags nvidia_driver")
    return sorted(line.strip() for line in done.stdout.splitlines() if line.strip())


def judge(record: dict[str, t.Any], gpus: list[str], today: datetime.date) -> str:
    """On what the start rests; raises Refusal."""
    if record["verdict"] not in ("accepted", "waived"):
        failed = [
            f"{check['name']}: {check['evidence']}"
            for check in record.get("checks", [])
            if check["verdict"] in ("fail", "not_run")
        ]
        told = "; ".join(failed) or "it was measured, but not judged"
        raise Refusal(
            f"this host is not accepted: {told} -> mend it and {AGAIN}; a named waiver (fleet_waivers) bears it"
        )
    accepted = sorted(record["key"]["gpus"])
    if gpus != accepted:
        new, gone = sorted(set(gpus) - set(accepted)), sorted(set(accepted) - set(gpus))
        parts = [f"new are {', '.join(new)}"] if new else []
        parts += [f"gone are {', '.join(gone)}"] if gone else []
        raise Refusal(f"other GPUs were accepted than are there: {'; '.join(parts)} -> {AGAIN}")
    for waiver in record.get("waivers", []):
        if datetime.date.fromisoformat(waiver["until"]) < today:
            raise Refusal(
                f"the waiver {waiver['name']} for {waiver['check']} has expired ({waiver['until']}): {waiver['reason']}"
                f" -> mend the host, or renew the waiver in fleet_waivers, and {AGAIN}"
            )
    waived = [
        f"{waiver['check']} waived by {waiver['name']} until {waiver['until']}: {waiver['reason']}"
        for waiver in record.get("waivers", [])
    ]
    return "; ".join([f"accepted {record['measured']}, {len(gpus)} GPUs", *waived])


def main(arguments: list[str]) -> int:
    try:
        told = judge(
            read(Path(arguments[0] if arguments else RECORD)),
            present(),
            datetime.datetime.now(datetime.timezone.utc).date(),
        )
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    print(told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
