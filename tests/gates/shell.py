# SPDX-License-Identifier: Apache-2.0
"""Run the commands of one gate: every line into the gate's log, on the terminal where asked, and no command for ever."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
BIN = ROOT / ".venv" / "bin"

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x1b\x07]*(\x1b\\|\x07))")

# pip says so twice for every package that a configured file:// index lacks; it belongs into the log alone.
_NOISE = re.compile(r"it is neither a file nor a directory")

#: What runs now, in all lanes: each is the leader of a group of processes.
_running: set[int] = set()


class GateError(Exception):
    """A gate did not pass; the message says which command or finding it was."""


def stop() -> None:
    """End what runs now, with all that it started."""
    for leader in tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGTERM)


def environment() -> dict[str, str]:
    """The environment of every gate: the tools of .venv first, this tree's collections, no colours."""
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(CACHE / "collections"),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "COLUMNS": "160",
        "PYTHONUNBUFFERED": "1",
    }


@dataclass
class Shell:
    """The commands of one gate.

    `step` is a pattern whose first group names the step that a line of output begins; `steps` collects (name, start in seconds since
    the epoch), so that a long gate can tell where its time went. `prefix` begins every line on the terminal.
    """

    log: TextIO
    live: bool
    step: re.Pattern[str] | None = None
    prefix: str = ""
    steps: list[tuple[str, float]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Write one line to the log, and to the terminal if the gate is a live one."""
        plain = _ESCAPES.sub("", text)
        self.log.write(plain + "\n")
        self.log.flush()
        if self.live and not _NOISE.search(plain):
            print(f"{self.prefix}{plain}", flush=True)
        if self.step and (match := self.step.search(plain)) and (not self.steps or self.steps[-1][0] != match[1]):
            self.steps.append((match[1], time.time()))

    def run(
        self,
        *command: str | Path,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        limit_s: float = 1800,
    ) -> list[str]:
        """Run a command and return its lines (stdout and stderr together, without escapes); `env` is laid over `environment()`.

        Raises GateError where the command fails, cannot be started, or takes longer than `limit_s` seconds.
        """
        words = [str(word) for word in command]
        self.say(f"$ {shlex.join(words)}")
        shown = shlex.join(words[:5]) + (" ..." if len(words) > 5 else "")
        lines: list[str] = []
        expired = threading.Event()
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env=environment() | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise GateError(f"{shown}: {error}") from error

        def expire() -> None:
            expired.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit_s, expire)
        timer.start()
        _running.add(process.pid)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                self.say(line.rstrip("\n"))
                lines.append(_ESCAPES.sub("", line.rstrip("\n")))
            status = process.wait()
        finally:
            timer.cancel()
            _running.discard(process.pid)
        if expired.is_set():
            raise GateError(f"{shown}: stopped after {limit_s:.0f} s")
        if status:
            raise GateError(f"{shown}: exit status {status}")
        return lines


def files(*patterns: str) -> list[Path]:
    """The files of the tree that git tracks or would track, relative to ROOT, sorted; `patterns` are git's, all files without."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # A file that was deleted but not yet committed is still in the index.
    return sorted({Path(name) for name in listing.split("\0") if name and os.path.lexists(ROOT / name)})


def fail_with(findings: list[str], what: str, shell: Shell) -> None:
    """Say every finding, then raise GateError with their number; do nothing where there is none."""
    for finding in findings:
        shell.say(finding)
    if findings:
        raise GateError(f"{len(findings)} {what}")
