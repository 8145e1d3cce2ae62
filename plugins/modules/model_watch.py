#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_watch
short_description: Watch how a revision of a model comes to its hosts
version_added: 1.0.0
description:
  - Asks the host that the others report to every few seconds by M(h20.fleet.model_progress_info), and prints a line a host, or a summary of many hosts
    with a line for each that is in trouble. One connection and one fork, however many hosts there are.
  - Ends when every host has ended or has been silent for long, or when the host that is asked is at work no more. It does not judge; a host that failed does
    not fail the task.
  - A connection that is lost is tried again. Interrupting it leaves the transfer as it is.
options:
  instance:
    description: Name of the revision on the host.
    type: str
    required: true
  hosts:
    description: Names of the hosts to wait for.
    type: list
    elements: str
    required: true
  title:
    description: Line to print at the beginning.
    type: str
    required: true
  interval:
    description: Seconds between two prints.
    type: int
    default: 30
  patience:
    description: Seconds for which a host that cannot be asked is tried again.
    type: int
    default: 1800
attributes:
  check_mode:
    description: Reads only, so it does the same in check mode.
    support: full
  diff_mode:
    description: Nothing changes, so there is no diff.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Watch the transfer
  h20.fleet.model_watch:
    instance: deepseek-v3-0324-e9b33add7688
    hosts: [h20-01, h20-02]
    title: DeepSeek-V3-0324 @e9b33add, 2 hosts from h20-01
"""

RETURN = r"""
over:
  description: Whether every host had ended or was silent; false where the host that is asked could not tell any more.
  returned: always
  type: bool
seconds:
  description: How long it was watched.
  returned: always
  type: int
"""
