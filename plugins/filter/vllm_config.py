# SPDX-License-Identifier: Apache-2.0
"""Filter of the serving stage: the configuration file of an instance."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vllm_config
short_description: Merge the profile and the arguments of a vLLM instance into its configuration file
version_added: 1.0.0
description:
  - The arguments of the instance win over those of its profile, and O(own) over both.
  - What is false is written as its C(no-) form, since C(vllm serve --config) drops a false one without a word.
  - Refuses what vLLM would misread, that is keys with underscores and null (read as the text None).
positional: own
options:
  _input:
    description: The instance, one of RV(fleet_instances).
    type: dict
    required: true
  own:
    description: Arguments that the role sets itself.
    type: dict
    default: {}
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the configuration of an instance
  ansible.builtin.debug:
    msg: "{{ {'name': 'deepseek-v3', 'profile': 'latency', 'arguments': {'max-model-len': 131072}} | h20.fleet.vllm_config }}"
"""

RETURN = r"""
_value:
  description: The merged arguments, by long option name without its leading dashes.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.h20.fleet.plugins.module_utils import _serving


def vllm_config(instance: dict[str, t.Any], own: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    """The options of an instance; raises AnsibleFilterError for a key or value that vLLM misreads."""
    try:
        return _serving.arguments(instance, own)
    except _serving.SettingError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters of the serving stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"vllm_config": vllm_config}
