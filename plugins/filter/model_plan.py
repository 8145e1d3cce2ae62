# SPDX-License-Identifier: Apache-2.0
"""Filter that judges whether a model fits the GPUs of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: model_plan
short_description: Tell what a model takes of each GPU, and what context length and concurrency follow
version_added: 1.0.0
description:
  - Adds up weights, KV cache and headroom from the model's own C(config.json), the hardware profile and the arguments of vLLM.
  - Where it cannot tell, C(fits) is null and C(reason) says why.
positional: profile, arguments, weight_bytes
options:
  _input:
    description: Content of the model's C(config.json), or null where it is not known.
    type: dict
    required: true
  profile:
    description: Hardware profile with C(gpus) and C(memory_mib), one of C(profiles) of M(h20.fleet.gpu_info); null where there is none.
    type: dict
    required: true
  arguments:
    description: Arguments of vLLM, by long option name without its leading dashes.
    type: dict
    required: true
  weight_bytes:
    description: Bytes of the model's weight files, against which the sum of the shapes is checked; null checks nothing.
    type: int
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show what fits
  ansible.builtin.debug:
    msg: "{{ (model.config | h20.fleet.model_plan(gpu.profiles.h20_96g, {'tensor-parallel-size': 8}, model.weight_bytes)).reason }}"
"""

RETURN = r"""
_value:
  description:
    - The plan. C(layout), C(gpus), C(weights_per_gpu_bytes), C(headroom_bytes), C(usable_bytes), C(kv_cache_bytes), C(kv_bytes_per_token), C(kv_tokens),
      C(max_model_len) (the longest that fits), C(max_model_len_wanted), C(concurrency), C(fits) (true, false or null), C(reason) and C(remedy).
    - Figures are those of one GPU; with data parallelism each rank has such a cache.
  type: dict
"""

import dataclasses
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _model_fit


def model_plan(
    config: dict[str, t.Any] | None,
    profile: dict[str, t.Any] | None,
    arguments: dict[str, t.Any],
    weight_bytes: int | None = None,
) -> dict[str, t.Any]:
    """The plan of an instance as a dict; an empty config or profile counts as none."""
    found = _model_fit.plan(config or None, weight_bytes, profile or None, arguments)
    return dataclasses.asdict(found)


class FilterModule:
    """Filters of the arithmetic of models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"model_plan": model_plan}
