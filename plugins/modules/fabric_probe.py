#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Take part in one measurement of a collective over several hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fabric_probe
short_description: Take part in one measurement of all-reduce over several hosts
version_added: 1.0.0
description:
  - Runs a program that measures collectives, by the interpreter of a release, as one of several hosts that do so at the same time.
  - So the task has to run on all hosts of a group at once. C(forks) has to be at least their number, and the strategy linear.
  - A measurement that comes to nothing is a result as well, with RV(error) saying why. Nothing is kept on the host and nothing changes.
  - Ends within O(timeout) and a quarter of a minute, whatever the other hosts do. Run by root, the program runs as O(user).
options:
  program:
    description: Program on the host that measures.
    type: path
    required: true
  python:
    description: Interpreter of the release, in whose environment torch is.
    type: path
    required: true
  number:
    description: Number of the round, which is returned.
    type: int
    required: true
  nodes:
    description: Hosts that take part.
    type: int
    required: true
  node_rank:
    description: Which of them this host is, from 0.
    type: int
    required: true
  master:
    description: Address of the first host, at which the ranks meet.
    type: str
    required: true
  port:
    description: Port of it, which is open to the network for as long as the measurement takes.
    type: int
    default: 29500
  ranks:
    description: Processes of this host that take part.
    type: int
    required: true
  backend:
    description: Backend of torch.distributed.
    type: str
    choices: [nccl, gloo]
    default: nccl
  interfaces:
    description: Interfaces that the ranks meet over.
    type: list
    elements: str
    required: true
  hcas:
    description: Adapters that the ranks send over; empty, and they send over O(interfaces).
    type: list
    elements: str
    default: []
  adapter:
    description: Place of the one among O(hcas), or else O(interfaces), that is used alone, from 0; V(-1) uses all.
    type: int
    default: -1
  max_bytes:
    description: Size that is measured, in bytes.
    type: int
    default: 1073741824
  timeout:
    description: Seconds after which a measurement that hangs is ended.
    type: int
    default: 120
  user:
    description: Account without rights under which the program runs.
    type: str
    default: nobody
attributes:
  check_mode:
    description: Measures nothing in check mode.
    support: full
  diff_mode:
    description: Nothing changes, so there is no diff.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Measure what two hosts reach between them
  h20.fleet.fabric_probe:
    program: /opt/vllm/tools/collectives.py
    python: /opt/vllm/current/bin/python
    number: 1
    nodes: 2
    node_rank: "{{ ansible_play_hosts.index(inventory_hostname) }}"
    master: 10.0.0.7
    ranks: 8
    interfaces: [bond0]
"""

RETURN = r"""
number:
  description: Number of the round.
  returned: always
  type: int
busbw_gb_s:
  description: Bus bandwidth of all-reduce in GB/s, as this host saw it, of the slower way round; null where there is none.
  returned: always
  type: float
  sample: 341.2
error:
  description: Why there is none; empty where there is.
  returned: always
  type: str
measurement:
  description: What the program printed; null where it failed.
  returned: always
  type: dict
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _collectives

Params = t.Mapping[str, t.Any]


def command(params: Params) -> list[str]:
    """The program as one of several hosts."""
    master = f"[{params['master']}]" if ":" in params["master"] else params["master"]
    interfaces, hcas = params["interfaces"], params["hcas"]
    if params["adapter"] >= 0:
        # Those that hosts meet over stay as they are where others carry the data.
        interfaces, hcas = (
            (interfaces, hcas[params["adapter"] :][:1]) if hcas else (interfaces[params["adapter"] :][:1], [])
        )
    line = [params["python"], params["program"], f"--ranks={params['ranks']}", f"--backend={params['backend']}"]
    line += [f"--nodes={params['nodes']}", f"--node-rank={params['node_rank']}", f"--master={master}:{params['port']}"]
    line += [f"--interface={','.join(interfaces)}", *([f"--hca={','.join(hcas)}"] if hcas else [])]
    size = params["max_bytes"]
    return [*line, "--collective=all_reduce", f"--min-bytes={size}", f"--max-bytes={size}"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "number": {"type": "int", "required": True},
            "nodes": {"type": "int", "required": True},
            "node_rank": {"type": "int", "required": True},
            "master": {"type": "str", "required": True},
            "port": {"type": "int", "default": 29500},
            "ranks": {"type": "int", "required": True},
            "backend": {"type": "str", "choices": ["nccl", "gloo"], "default": "nccl"},
            "interfaces": {"type": "list", "elements": "str", "required": True},
            "hcas": {"type": "list", "elements": "str", "default": []},
            "adapter": {"type": "int", "default": -1},
            "max_bytes": {"type": "int", "default": 1024**3},
            "timeout": {"type": "int", "default": 120},
            "user": {"type": "str", "default": "nobody"},
        },
        supports_check_mode=True,
    )
    params: Params = module.params
    result: dict[str, t.Any] = {"changed": False, "number": params["number"], "busbw_gb_s": None, "measurement": None}
    if module.check_mode:
        module.exit_json(error="nothing is measured in check mode", **result)
    try:
        result["measurement"] = _collectives.measure(command(params), params["timeout"], params["user"])
        # Forth and back.
        result["busbw_gb_s"] = min(each["busbw_gb_s"] for each in result["measurement"]["results"])
    except (OSError, KeyError, ValueError) as error:
        module.exit_json(error=str(error), **result)
    module.exit_json(error="", **result)


if __name__ == "__main__":
    main()
