# SPDX-License-Identifier: Apache-2.0
"""Filter of the serving stage: the environment of an instance."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vllm_environment
short_description: Merge the variables of a vLLM instance
version_added: 1.0.0
description:
  - The profile's variables, the GPUs that the instance may see, and its own variables, of which the later win.
options:
  _input:
    description: The instance, one of RV(fleet_instances).
    type: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the variables of an instance
  ansible.builtin.debug:
    msg: "{{ {'name': 'left', 'profile': 'latency', 'gpus': [0, 1, 2, 3]} | h20.fleet.vllm_environment }}"
"""

RETURN = r"""
_value:
  description: The variables by name.
  type: dict
"""

import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _serving


class FilterModule:
    """Filters of the serving stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"vllm_environment": _serving.environment}
