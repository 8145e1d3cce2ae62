# SPDX-License-Identifier: Apache-2.0
"""Run a program that may hang: nvidia-smi of a broken GPU can stay in the kernel for good."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import typing as t

#: Seconds that any other program than nvidia-smi may take; they read files only.
TIMEOUT = 60
#: Seconds until a killed program is given up: one that the kernel does not let go cannot be waited for.
PATIENCE = 2.0
#: Status of a program that was killed for that, as timeout(1) ends.
TIMED_OUT = 124


class Answer(t.NamedTuple):
    """How a program ended and what it said; one that could not be run or was killed has said why in its place."""

    name: str
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Why it did not do its work, "" where it did."""
        if self.status == 0:
            return ""
        return (
            "\n".join(filter(None, (self.out.strip(), self.err.strip())))
            or f"{self.name} ended with status {self.status}"
        )


#: Runs a command line for at most so many seconds.
Runner = t.Callable[[t.Sequence[str], int], Answer]


def run(
    command: t.Sequence[str],
    timeout: int = TIMEOUT,
    environment: t.Mapping[str, str] | None = None,
    user: str | None = None,
) -> Answer:
    """Run the command in the C locale; one that takes longer than ``timeout`` seconds is killed with all that it started.

    ``environment`` replaces the inherited one. Root runs it as ``user``; whoever is not root stays what he is.
    """
    name = os.path.basename(command[0])  # noqa: PTH119 (a command, which may be a bare name)
    # A user's PATH may lack the folders of modinfo and others.
    inherited = os.environ if environment is None else environment
    path = os.pathsep.join([inherited.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    try:
        process = subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**inherited, "PATH": path, "LC_ALL": "C", "LANGUAGE": "C"},
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            **_identity(user),
        )
    except FileNotFoundError:
        return Answer(name, 127, "", f"{command[0]} is not installed")
    except OSError as error:
        return Answer(name, 126, "", f"{command[0]} cannot be run: {error.strerror}")
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()
        return Answer(name, TIMED_OUT, "", f"{name} did not answer within {timeout} s")
    return Answer(name, process.returncode, out, err)


def _identity(user: str | None) -> dict[str, t.Any]:
    """Popen's arguments for an account."""
    if user is None or os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
