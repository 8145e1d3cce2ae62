# SPDX-License-Identifier: Apache-2.0
"""Messages of a host's kernel: what a host is asked to run, and what it may answer."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker.models.containers import Container
from testbed import SetupError, kernel_log


def host(answer: bytes, asked: list[list[str]]) -> Container:
    def exec_run(command: list[str]) -> Any:
        asked.append(command)
        return SimpleNamespace(output=answer)

    return cast(Container, SimpleNamespace(name="h20-01", exec_run=exec_run))


def test_every_line_reaches_the_program_as_it_is() -> None:
    asked: list[list[str]] = []
    lines = ["NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>'", 'and "this"']
    kernel_log.write(host(b"", asked), lines)
    assert asked == [["python3", "-c", kernel_log.PROGRAM, *lines]]
    ast.parse(kernel_log.PROGRAM)


def test_a_host_that_takes_none_is_named() -> None:
    with pytest.raises(SetupError, match=r"h20-01 .*: journald does not read"):
        kernel_log.write(host(b"journald does not read /dev/kmsg\n", []), ["x"])
