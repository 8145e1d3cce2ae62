# SPDX-License-Identifier: Apache-2.0
"""One revision of a model on this host.

    python3 -m weights fetch JOB               make it complete and visible, then serve it to the site while others need it
    python3 -m weights inspect JOB             print as JSON what is there, by size and modification time only
    python3 -m weights prove JOB               reread every byte of the visible revision
    python3 -m weights check FOLDER            see by their headers whether the safetensors in FOLDER are whole and of one revision
    python3 -m weights firewall JOB up|down    let the hosts of the site alone reach the ports of the work, or end that

Exit code 0: done. 1: refused or failed for good; the last line of stderr says why. 2: not understood.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from . import firewall
from .fetch import FetchError, fetch, inspect, prove
from .firewall import FirewallError
from .headers import problems
from .job import Job, JobError
from .manifest import ManifestError


class _EndedError(BaseException):
    """Somebody wants this process to end; the argument is the signal's number."""


def main(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit code. A signal ends the work in good order, and then the process, so that systemd sees it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    try:
        return _run(arguments)
    except _EndedError as ended:
        [number] = ended.args
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        raise


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _EndedError(number)


def _run(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["fetch", job]:
                fetch(Job.load(Path(job)))
            case ["inspect", job]:
                sys.stdout.write(json.dumps(inspect(Job.load(Path(job)))) + "\n")
            case ["prove", job]:
                prove(Job.load(Path(job)))
            case ["check", folder]:
                _check(Path(folder))
            case ["firewall", job, "up"]:
                firewall.up(Job.load(Path(job)))
            case ["firewall", job, "down"]:
                firewall.down(Job.load(Path(job)))
            case _:
                sys.stderr.write(f"{__doc__}\n")
                return 2
    except (FetchError, FirewallError, JobError, ManifestError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _check(folder: Path) -> None:
    """Raise FetchError where the headers of the safetensors say that something is wrong."""
    if found := problems(folder):
        raise FetchError(
            f"{folder}: {'; '.join(found)} -> prove it (verify.yml -e model_verify_deep=true), then run the stage again"
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
