# SPDX-License-Identifier: Apache-2.0
"""A model hub for the test bed: the Hugging Face protocol, a tiny DeepSeek-V3, and the wheel that completes the CPU build of vLLM."""

from testbed.hub.wheel import build_wheels

__all__ = ["build_wheels"]
