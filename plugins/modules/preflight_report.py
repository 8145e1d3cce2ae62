#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: preflight_report
short_description: Judge a host by what was read of it, and write the report
version_added: 1.0.0
description:
  - Compares what M(h20.fleet.gpu_info), M(h20.fleet.host_info) and M(h20.fleet.model_info) returned with what profile and release need.
  - Prints one table and writes one JSON file on the controller, in check mode as well; it never connects to the host.
  - Ends well for a fit host, fails for one that is not, and ends as unreachable where what matters could not be told, so that C(ansible-playbook)
    exits with 0, 2 and 4. Where hosts of both kinds are in one run, it is 4.
options:
  gpu:
    description: What M(h20.fleet.gpu_info) returned.
    type: dict
    required: true
  host:
    description: What M(h20.fleet.host_info) returned; empty, and system, disk and ports are not judged, as for a capture.
    type: dict
    default: {}
  model:
    description: What M(h20.fleet.model_info) returned; empty, and neither the model's source nor its fit is judged.
    type: dict
    default: {}
  name:
    description: Name of the host in the report; the inventory's where it is left out.
    type: str
  folder:
    description: Folder of the reports on the controller; the file is C(preflight/<name>.json) below it. A relative one lies below the working directory.
    type: path
    default: reports
  need:
    description: What the host has to offer.
    type: dict
    default: {}
    suboptions:
      release:
        description: Name of the release, for the report alone.
        type: str
        default: ""
      profile:
        description: Name of the hardware profile that is vouched for, or V(auto).
        type: str
        default: auto
      driver_version:
        description: Driver of the release. Where another one is loaded, what the driver stage mends is a warning. Empty judges the driver as it is.
        type: str
        default: ""
      minimum_driver:
        description: Oldest driver that runs the release's CUDA; empty accepts any.
        type: str
        default: ""
      driver_replace:
        description: Whether a foreign driver may be replaced.
        type: bool
        default: false
      secure_boot_enrolled:
        description: Whether the key that DKMS signs with is enrolled.
        type: bool
        default: false
      memory_gib:
        description: Least RAM in GiB.
        type: int
        default: 0
      nodes:
        description: Hosts that a replica spans. What keeps GPUs and adapters from talking directly matters to V(multi) alone.
        type: str
        choices: [single, multi]
        default: single
      model_root:
        description: Folder of the weights, one of the filesystems of O(host).
        type: str
        default: ""
      model_path:
        description: Folder of the revision; it and the same name with C(.partial) are trees of O(host).
        type: str
        default: ""
      model_bytes:
        description: Size of the model.
        type: int
        default: 0
      instances:
        description: Replicas of the host, as C(fleet_instances) has them.
        type: list
        elements: dict
        default: []
attributes:
  check_mode:
    description: A report is no change, so it is written in check mode as well.
    support: full
  diff_mode:
    description: Nothing changes, so there is no diff.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Read a support bundle
  h20.fleet.gpu_info:
    capture: /srv/bundles/h20-07/nvidia-smi.xml
  register: gpu

- name: Judge it
  h20.fleet.preflight_report:
    name: h20-07
    gpu: "{{ gpu }}"
"""

RETURN = r"""
verdict:
  description: V(fit), V(not_fit) or V(unknown).
  returned: always
  type: str
  sample: not_fit
findings:
  description: Identifiers of the findings, in the order to mend them. The report has all of each.
  returned: always
  type: list
  elements: str
  sample: [GPU-COUNT, DISK]
report_path:
  description: The JSON file on the controller.
  returned: always
  type: str
msg:
  description: What stands in the way, in one line; the table is printed before it.
  returned: always
  type: str
"""
