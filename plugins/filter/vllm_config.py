# SPDX-License-Identifier: Apache-2.0
"""Filter of the serving stage."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vllm_config
short_description: Merge the arguments of a vLLM instance into its configuration file
version_added: 1.0.0
description:
  - Later arguments win over those of the profile.
  - Refuses what vLLM would misread without a word, that is keys with underscores (a false one is dropped) and null (read as the text None).
positional: arguments
options:
  _input:
    description: Arguments of the profile, by long option name without its leading dashes.
    type: dict
    required: true
  arguments:
    description: Arguments that are added to the profile's or replace them.
    type: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the configuration of an instance
  ansible.builtin.debug:
    msg: "{{ {'tensor-parallel-size': 8} | h20.fleet.vllm_config({'max-model-len': 65536}) }}"
"""

RETURN = r"""
_value:
  description: The merged arguments.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError


def vllm_config(profile: dict[str, t.Any], arguments: dict[str, t.Any]) -> dict[str, t.Any]:
    """The arguments of both, ``arguments`` winning; raises AnsibleFilterError for a key or value that vLLM misreads."""
    config = {**profile, **arguments}
    for key, value in config.items():
        if "_" in key or key.startswith("-"):
            wanted = key.lstrip("-").replace("_", "-")
            raise AnsibleFilterError(
                f"vLLM argument {key!r}: write it as {wanted!r}; vLLM drops a misspelt one without a word"
            )
        if value is None:
            raise AnsibleFilterError(
                f"vLLM argument {key!r} is null, which vLLM reads as the text 'None': leave the key out"
            )
    return config


class FilterModule:
    """Filters of the serving stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"vllm_config": vllm_config}
