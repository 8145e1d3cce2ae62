# SPDX-License-Identifier: Apache-2.0
"""The one limit of this machine that many containers meet: every systemd watches files, and all of them count as one user's."""

from __future__ import annotations

from pathlib import Path

from testbed import STATE, SetupError, say

INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
BEFORE = STATE / "inotify"  # the limit that `clean` puts back
#: What a host takes, with room for the services on it, and what all fleets together may want.
EACH, WANTED = 10, 1024


def ensure(hosts: int) -> None:
    """Raise the limit where it is low; SetupError with what to type where this user may not and so many hosts would not boot."""
    limit = int(INSTANCES.read_text(encoding="ascii"))
    if limit >= WANTED:
        return
    try:
        INSTANCES.write_text(f"{WANTED}\n", encoding="ascii")
    except OSError as error:
        if hosts * EACH > limit:
            raise SetupError(
                f"{hosts} hosts need more inotify instances than this machine's {limit}. Type: sudo sysctl -w fs.inotify.max_user_instances={WANTED}"
            ) from error
        return
    BEFORE.write_text(f"{limit}\n", encoding="ascii")
    say("limits", f"fs.inotify.max_user_instances is {WANTED} instead of {limit}, until `clean` or a reboot")


def restore() -> None:
    """Put back what `ensure` found."""
    if BEFORE.exists():
        INSTANCES.write_text(BEFORE.read_text(encoding="ascii"), encoding="ascii")
        BEFORE.unlink()
        say("limits", "fs.inotify.max_user_instances is what it was")
