#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: benchmark_report
short_description: Hold what was measured of all hosts of a run against the baseline, and write the reports
version_added: 1.0.0
description:
  - Takes what M(h20.fleet.benchmark_measurement) returned of each replica. A round with failed requests, or during which the replica answered somebody else,
    says nothing and is refused; any other is held against the baseline of the same profile, model, GPUs and load.
  - Prints one table, and writes one JSON file a host, one SVG and one JUnit XML on the controller; it never connects to a host.
  - Never fails for what it finds. What it found of each host is in what it returns.
options:
  measured:
    description: RV(h20.fleet.benchmark_measurement#module:found) of each replica, a list by host.
    type: dict
    required: true
  hosts:
    description: Hosts that began the run, in the order of the table. One that is not in O(measured) is shown as not measured.
    type: list
    elements: str
    required: true
  store:
    description: Whether what was measured becomes the baseline. It is not held against the one before then.
    type: bool
    default: false
  folder:
    description: Folder of the reports on the controller; C(benchmark/<host>.json), C(benchmark.svg) and C(benchmark.xml) below it.
    type: path
    default: reports
attributes:
  check_mode:
    description: Judges as always; a replica that is not measured has no verdict.
    support: full
  diff_mode:
    description: Reports are no state; no diff is shown.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Judge the replicas
  h20.fleet.benchmark_report:
    measured: "{{ measured }}"
    hosts: "{{ ansible_play_hosts_all }}"
  run_once: true
"""

RETURN = r"""
messages:
  description: What is wrong with a host's replicas, with the remedy, for each where something is.
  returned: always
  type: dict
baseline:
  description: The baseline as it is to be kept, where O(store) is set; of hosts in RV(messages) nothing is in it.
  returned: always
  type: list
  elements: dict
"""
