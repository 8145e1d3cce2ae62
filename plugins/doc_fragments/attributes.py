# SPDX-License-Identifier: Apache-2.0
"""Attributes that several modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments for ``extends_documentation_fragment``."""

    #: A module that only reads.
    READ_ONLY = r"""
options: {}
attributes:
  check_mode:
    description: Reads only, so it answers the same in check mode.
    support: full
  diff_mode:
    description: Nothing changes, so there is no diff.
    support: none
"""
