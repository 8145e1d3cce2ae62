# SPDX-License-Identifier: Apache-2.0
"""Filter of the preflight stage."""

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_verdict
short_description: Judge a host by what was read of it
version_added: 1.0.0
description: Compares what M(h20.fleet.host_info) and M(h20.fleet.gpu_info) returned with what the profile and the release need.
positional: gpu, need, hostname
options:
  _input:
    description: What M(h20.fleet.host_info) returned.
    type: dict
    required: true
  gpu:
    description: What M(h20.fleet.gpu_info) returned.
    type: dict
    required: true
  need:
    description:
      - What the host has to offer, with C(profile) (a name or C(auto)), C(memory_gib), C(model_root), C(model_path), C(model_bytes),
        C(ports) (instance name by port) and C(source_error) (empty where the hub has the revision).
    type: dict
    required: true
  hostname:
    description: Name that the report starts with.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the verdict
  ansible.builtin.debug:
    msg: "{{ (host | h20.fleet.preflight_verdict(gpu, need, inventory_hostname)).report }}"
"""

RETURN = r"""
_value:
  description: C(findings), each with C(id), C(evidence) and C(remedy), and C(report), the text for people.
  type: dict
"""

import dataclasses
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _preflight


def preflight_verdict(
    host: dict[str, t.Any], gpu: dict[str, t.Any], need: dict[str, t.Any], hostname: str
) -> dict[str, t.Any]:
    """``{findings, report}`` of one host; no finding means that it is fit."""
    findings = _preflight.findings(host, gpu, need)
    return {
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "report": _preflight.report(hostname, host, gpu, findings),
    }


class FilterModule:
    """Filters of the preflight stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"preflight_verdict": preflight_verdict}
