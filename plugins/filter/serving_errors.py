# SPDX-License-Identifier: Apache-2.0
"""Filter of the serving stage: what of the instances cannot be served."""

from __future__ import annotations

DOCUMENTATION = r"""
name: serving_errors
short_description: Say what of the instances of a host cannot be served
version_added: 1.0.0
description:
  - Judges settings alone and asks no host. Profiles and the vLLM that they are valid for, options that this vLLM does not have (any more), what the role sets
    itself, GPUs and shares of their memory that overlap.
  - The options of a version are read from O(folder), where somebody has read that version's parser. Those of another version are judged by the host alone.
positional: release, folder, hosts
options:
  _input:
    description: The instances, RV(fleet_instances).
    type: list
    elements: dict
    required: true
  release:
    description: The release, resolved.
    type: dict
    required: true
  folder:
    description: Folder on the controller of the options of vLLM, a file a version.
    type: str
    required: true
  hosts:
    description: Hosts that serve each instance together.
    type: int
    default: 1
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Refuse instances that cannot be served
  ansible.builtin.fail:
    msg: "{{ errors | join('\n') }}"
  when: errors | length > 0
  vars:
    errors: "{{ fleet_instances | h20.fleet.serving_errors(release_definition, role_path ~ '/files/options') }}"
"""

RETURN = r"""
_value:
  description: A sentence with its remedy for each thing that cannot be served.
  type: list
  elements: str
"""

import functools
import json
import typing as t
from pathlib import Path

from ansible_collections.h20.fleet.plugins.module_utils import _serving


@functools.cache
def known_options(path: Path) -> _serving.Options | None:
    """The options of a version of vLLM; None where nobody has read its parser. Read once for all hosts."""
    return t.cast(_serving.Options, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def serving_errors(
    instances: list[dict[str, t.Any]], release: dict[str, t.Any], folder: str, hosts: int = 1
) -> list[str]:
    """A sentence for each thing that cannot be served; see DOCUMENTATION."""
    vllm = release["vllm"]
    options = known_options(Path(folder) / f"{str(vllm['version']).partition('+')[0]}.json")
    return _serving.errors(
        instances, str(vllm["version"]), options, on_gpus=vllm["target_device"] == "cuda", hosts=hosts
    )


class FilterModule:
    """Filters of the serving stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"serving_errors": serving_errors}
