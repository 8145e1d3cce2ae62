#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which leads the work from the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: acceptance_measurement
short_description: Measure whether a host may serve, and show how far it is
version_added: 1.0.0
description:
  - Reads the GPUs (M(h20.fleet.gpu_info)), has the host measured where that is due (M(h20.fleet.acceptance_job)), and reads the GPUs again after it.
  - The measurement is a unit of the host. It goes on where the connection is lost or the run is ended; the same command joins it.
  - Judges nothing; M(h20.fleet.acceptance_report) does.
options:
  job:
    description: Options of M(h20.fleet.acceptance_job), but for what the GPUs say of themselves.
    type: dict
    required: true
  need:
    description: What the host is judged by; returned as it is, since M(h20.fleet.acceptance_report) runs once for all hosts, each of which may need another.
    type: dict
    default: {}
  profiles:
    description: Hardware profiles of the site, as in M(h20.fleet.gpu_info).
    type: dict
    default: {}
  interval:
    description: Seconds between two looks at a measurement under way.
    type: int
    default: 5
  patience:
    description: Seconds that a host may be out of reach while it measures.
    type: int
    default: 600
attributes:
  check_mode:
    description: Says whether a measurement would be made.
    support: full
  diff_mode:
    description: Shows what would be written of the programs.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See what is kept of the host
  h20.fleet.acceptance_measurement:
    job:
      measure: never
      program: /opt/vllm/tools/acceptance.py
      python: /opt/vllm/releases/2026.11/bin/python
      record: /var/lib/h20-fleet/acceptance.json
      collectives: /var/lib/h20-fleet/nccl-bandwidth.json
      release: "2026.11"
      model: /data/models/deepseek-ai/DeepSeek-V3-0324/e9b33add
"""

RETURN = r"""
status:
  description: As of M(h20.fleet.acceptance_job), without those of a unit under way.
  returned: always
  type: str
reason:
  description: Why a measurement was made, is due or was put off; empty where the record holds.
  returned: always
  type: str
gpu:
  description: What M(h20.fleet.gpu_info) returned, topology included; after a measurement, that of after it.
  returned: always
  type: dict
found:
  description: What M(h20.fleet.acceptance_report) needs of the host, that is record, collectives, topology, hardware profile and O(need).
  returned: always
  type: dict
"""
