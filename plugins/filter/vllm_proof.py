# SPDX-License-Identifier: Apache-2.0
"""Filter of the serving stage: how an instance is warmed and proved."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vllm_proof
short_description: Say by which load and which question a vLLM instance is warmed and proved after a start
version_added: 1.0.0
description:
  - The load is that of the profile, within the longest context of the instance.
  - The question is that of the instance, else what is known of the release's model, else one to which any answer will do.
positional: repo
options:
  _input:
    description: The instance, one of RV(fleet_instances).
    type: dict
    required: true
  repo:
    description: Repository of the release's model.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show how an instance is proved
  ansible.builtin.debug:
    msg: "{{ {'name': 'deepseek-v3', 'profile': 'latency'} | h20.fleet.vllm_proof('deepseek-ai/DeepSeek-V3-0324') }}"
"""

RETURN = r"""
_value:
  description: C(warm_up) with concurrency, tokens and bounds, and C(canary) with prompt and what is expected.
  type: dict
"""

import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _serving


class FilterModule:
    """Filters of the serving stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"vllm_proof": _serving.proof}
