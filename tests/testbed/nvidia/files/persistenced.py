# SPDX-License-Identifier: Apache-2.0
"""nvidia-persistenced: while it runs, persistence mode is on."""

from __future__ import annotations

import sys

from .common import PERSISTENCED, answering_gpus, detach, module_version


def main(version: str) -> int:
    """Start the daemon; refuse without a driver of its own version."""
    if module_version() != version or not answering_gpus():
        print(
            "nvidia-persistenced failed to initialize. Failed to query NVIDIA devices. Please ensure that the NVIDIA device files "
            "(/dev/nvidia*) exist, and that user 0 has read and write permissions for those files.",
            file=sys.stderr,
        )
        return 1
    return detach(PERSISTENCED)
