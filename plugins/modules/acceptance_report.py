#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: acceptance_report
short_description: Judge what was measured of all hosts of a run, and write the reports
version_added: 1.0.0
description:
  - Holds what M(h20.fleet.acceptance_measurement) returned of each host against its floors and against the other hosts, and applies the waivers of the site.
  - Prints one table, and writes one JSON file a host and one JUnit XML on the controller, in check mode as well; it never connects to a host.
  - Never fails for what it finds. The verdict of each host is in what it returns.
options:
  measured:
    description: RV(h20.fleet.acceptance_measurement#module:found) of each host that was measured or asked, by host.
    type: dict
    required: true
  hosts:
    description: Hosts that began the run, in the order of the table. One that is not in O(measured) is shown as not measured.
    type: list
    elements: str
    required: true
  folder:
    description: Folder of the reports on the controller; C(acceptance/<host>.json) and C(acceptance.xml) below it.
    type: path
    default: reports
attributes:
  check_mode:
    description: Judges as always; a host that is not measured yet has no verdict.
    support: full
  diff_mode:
    description: Reports are no state; no diff is shown.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Judge the hosts
  h20.fleet.acceptance_report:
    measured: "{{ measured }}"
    hosts: "{{ ansible_play_hosts_all }}"
  run_once: true
"""

RETURN = r"""
records:
  description: The record of each host that was judged, as it is to be kept there.
  returned: always
  type: dict
messages:
  description: Why a host is not accepted, with the remedy, for each that is not.
  returned: always
  type: dict
"""
