# SPDX-License-Identifier: Apache-2.0
"""Filter of the stage nccl: what a program of nccl-tests printed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nccl_tests_result
short_description: Read the table that a program of nccl-tests prints
version_added: 1.0.0
description:
  - Takes the row of the largest size, and of its two measurements, out of place and in place, the slower one.
options:
  _input:
    description: What the program printed.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the bus bandwidth
  ansible.builtin.debug:
    msg: "{{ (answer.stdout | h20.fleet.nccl_tests_result).busbw_gb_s }} GB/s"
"""

RETURN = r"""
_value:
  description: bytes, busbw_gb_s and wrong (how many numbers were wrong); empty where there is no such row.
  type: dict
"""

import typing as t

#: Columns of a row: size, count, type, redop, root, then time, algbw, busbw and #wrong of each measurement.
COLUMNS = 13
BUSBW = (7, 11)
WRONG = (8, 12)


def nccl_tests_result(text: str) -> dict[str, t.Any]:
    """The row of the largest size."""
    rows = [fields for line in text.splitlines() if len(fields := line.split()) == COLUMNS and fields[0].isdecimal()]
    if not rows:
        return {}
    row = max(rows, key=lambda fields: int(fields[0]))
    # N/A where the program was told not to check.
    wrong = sum(int(row[column]) for column in WRONG if row[column].isdecimal())
    return {"bytes": int(row[0]), "busbw_gb_s": min(float(row[column]) for column in BUSBW), "wrong": wrong}


class FilterModule:
    """Filters of the stage nccl."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"nccl_tests_result": nccl_tests_result}
