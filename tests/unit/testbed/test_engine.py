# SPDX-License-Identifier: Apache-2.0
"""The container engine: which process is taken for its daemon."""

from __future__ import annotations

import os

from testbed import engine


def test_only_a_running_daemon_is_taken_for_one() -> None:
    assert not engine.is_dockerd(os.getpid())
    assert not engine.is_dockerd(2**22 + 1)
