# SPDX-License-Identifier: Apache-2.0
"""Run the program that measures collectives as what serves would find it."""

from __future__ import annotations

import json
import os
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _programs

#: Seconds that the program has for ending its ranks itself before it is killed with all of them.
GRACE = 15


def measure(command: t.Sequence[str], timeout: int, user: str) -> dict[str, t.Any]:
    """What the program prints; raises ValueError with its own words where it fails, hangs or prints something else."""
    answer = _programs.run([*command, f"--timeout={timeout}"], timeout + GRACE, environment(os.environ), user)
    if answer.status == _programs.TIMED_OUT:
        raise ValueError(f"the collectives did not end within {timeout} s")
    if answer.status != 0:
        lines = [line for line in answer.err.splitlines() if line.strip()] or ["it said nothing"]
        raise ValueError(lines[-1].removeprefix("error: "))
    document: dict[str, t.Any] = json.loads(answer.out.splitlines()[-1])
    return document


def environment(inherited: t.Mapping[str, str]) -> dict[str, str]:
    """Without what a login of root says to NCCL: what serves reads /etc/nccl.conf alone, so that is what counts."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(("NCCL_", "TORCH_", "TMP"))}
    return kept | {"HOME": "/", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
