#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: drift_report
short_description: Compare a host with its release, and write the report
version_added: 1.0.0
description:
  - Renders on the controller what the files of the stages should hold, from the same templates and variables as the stages, so that there is no second truth.
  - Reads the host by M(h20.fleet.drift_info), and takes what the modules of the stages said in check mode.
  - Prints one table and writes one JSON file on the controller, in check mode as well; it changes nothing on the host. Fails where anything differs.
options:
  release:
    description: Name of the release.
    type: str
    required: true
  definition:
    description: The release as the role release resolved it.
    type: dict
    required: true
  files:
    description:
      - Files that the stages write. Each has C(stage), C(path) and one of C(template) (a file of the controller), C(source) (likewise, taken as it is),
        C(content) (text) or C(absent) (V(true)).
      - With C(each), a list of dictionaries, it stands for one file an entry.
        C(path), C(template) and C(source) have fields of the entry in braces, what is rendered has the entry as C(item).
    type: list
    elements: dict
    default: []
  packages:
    description: Names of further packages that have to be installed, by stage.
    type: dict
    default: {}
  held:
    description: Those of O(packages) that have to be held.
    type: list
    elements: str
    default: []
  uv:
    description: The release's uv on the host.
    type: str
    required: true
  venv_path:
    description: The release's environment on the host.
    type: str
    required: true
  revision:
    description: What M(h20.fleet.model_revision) returned in check mode.
    type: dict
    required: true
  gpu:
    description: What M(h20.fleet.gpu_info) returned.
    type: dict
    required: true
  driver:
    description: What the filter P(h20.fleet.driver_plan#filter) says of O(gpu).
    type: dict
    required: true
  venv:
    description: What M(h20.fleet.venv_packages) returned in check mode.
    type: dict
    required: true
  kernel:
    description: What M(h20.fleet.kernel_settings) returned in check mode.
    type: dict
    required: true
  instances:
    description: What M(h20.fleet.vllm_instance) returned in check mode, an entry an instance.
    type: list
    elements: dict
    default: []
  folder:
    description: Folder of the reports on the controller; the file is C(drift/<host>.json) below it. A relative one lies below the working directory.
    type: path
    default: reports
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
- name: Compare the host with its release
  h20.fleet.drift_report:
    release: "{{ fleet_release }}"
    definition: "{{ release_definition }}"
    files:
      - {stage: nccl, path: /etc/nccl.conf, content: "NCCL_DEBUG=WARN\n"}
    uv: "{{ release_uv }}"
    venv_path: "{{ release_venv }}"
    revision: "{{ revision }}"
    gpu: "{{ gpu }}"
    driver: "{{ gpu | h20.fleet.driver_plan(release_definition, {'replace': false, 'secure_boot_enrolled': false, 'kernel': 'hold'}) }}"
    venv: "{{ venv }}"
    kernel: "{{ kernel }}"
    instances: "{{ instances.results }}"
"""

RETURN = r"""
differences:
  description: Identifier of each difference. The report has id, evidence, stage and remedy of each.
  returned: always
  type: list
  elements: str
  sample: [PACKAGE, FILE]
report_path:
  description: The JSON file on the controller.
  returned: always
  type: str
msg:
  description: What differs, in one line, with the command that mends it; the table is printed before it.
  returned: always
  type: str
"""
