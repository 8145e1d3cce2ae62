#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which leads the work from the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: benchmark_measurement
short_description: Measure a replica, and show how far it is
version_added: 1.0.0
description:
  - Has a replica measured (M(h20.fleet.benchmark_job)), shows a line a round, and reads what it was measured on (M(h20.fleet.gpu_info) and
    M(h20.fleet.replica_info)).
  - The benchmark is a unit of the host. It goes on where the connection is lost or the run is ended; the same command joins it while it runs.
  - Judges nothing; M(h20.fleet.benchmark_report) does.
options:
  job:
    description: Options of M(h20.fleet.benchmark_job).
    type: dict
    required: true
  profile:
    description: Serving profile of the instance; empty where none is known.
    type: str
    default: ""
  model:
    description: What the model is called in the reports. Empty for the repository of the release that serves.
    type: str
    default: ""
  measured_by:
    description: The host that measures in place of this one, which has a part of a replica and no API. Empty where this one does.
    type: str
    default: ""
  need:
    description: What the replica is judged by; returned as it is, since M(h20.fleet.benchmark_report) runs once for all hosts, each of which may need another.
    type: dict
    default: {}
  interval:
    description: Seconds between two looks at a benchmark under way.
    type: int
    default: 2
  patience:
    description: Seconds that a host may be out of reach meanwhile.
    type: int
    default: 600
attributes:
  check_mode:
    description: Judges whether the replica can be measured, and says that it would be.
    support: full
  diff_mode:
    description: Nothing stays on the host, so there is no diff.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Measure the replica
  h20.fleet.benchmark_measurement:
    job:
      program: "{{ lookup('ansible.builtin.file', 'benchmark.py') }}"
      url: http://127.0.0.1:8000
      model: deepseek-v3
      instance: deepseek-v3
      concurrencies: [1, 16]
      requests: 4
      input_tokens: 1024
      output_tokens: 256
      timeout: 600
"""

RETURN = r"""
found:
  description: The record of the replica, that is what it is, figures of each round, and O(need); empty in check mode and where another host measures.
  returned: always
  type: dict
"""
