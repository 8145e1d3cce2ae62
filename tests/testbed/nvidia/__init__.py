# SPDX-License-Identifier: Apache-2.0
"""The stand-in for NVIDIA's package repository: real packages, a real signature, and programs that answer as NVIDIA's do."""

from testbed.nvidia.repository import build_repository

__all__ = ["build_repository"]
