#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fabric_search
short_description: Decide which hosts measure together next, and name what is to blame
version_added: 1.0.0
description:
  - Takes what the hosts measured in one round (M(h20.fleet.fabric_probe)), and says who measures with whom in the next. All hosts as one ring come first.
    A ring that stays behind is bisected down to a host, a link between two hosts, or an adapter.
  - When nothing is left to measure, it prints one table, writes one JSON file on the controller, and fails where something was found.
  - Runs once for all hosts, on the controller; it never connects to a host.
options:
  hosts:
    description: The hosts, in the order of the ring.
    type: list
    elements: str
    required: true
  lost:
    description: Hosts that were lost before the first round.
    type: list
    elements: str
    default: []
  before:
    description: What this returned after the round before; empty at first.
    type: dict
    default: {}
  answers:
    description: What M(h20.fleet.fabric_probe) returned, by host. A host of the round that is not here, or has an answer of another round, did not answer.
    type: dict
    default: {}
  adapters:
    description: Names of the adapters by host, each of which may be measured alone.
    type: dict
    default: {}
  rates:
    description: Rates of the adapters in Gbit/s by host, for O(floor) where that is V(0).
    type: dict
    default: {}
  differences:
    description: In what hosts differ from most of the others, by host, as the filter P(h20.fleet.nccl_differences#filter) returns it.
    type: dict
    default: {}
  floor:
    description: Bus bandwidth in GB/s that every group has to reach; V(0) is 70 % of the O(rates) of the weakest host.
    type: float
    default: 0
  tolerance:
    description: Share of the best group of its size by which a group may stay behind.
    type: float
    default: 0.1
  pairs:
    description: Whether halves and pairs are measured where the ring of all holds as well.
    type: bool
    default: false
  parallel:
    description: Whether groups without a common host are measured at the same time.
    type: bool
    default: true
  about:
    description: What is measured, for table and report.
    type: str
    default: ""
  name:
    description: Name of the report.
    type: str
    default: fabric
  folder:
    description: Folder of the reports on the controller; the file is C(fabric/<name>.json) below it. A relative one lies below the working directory.
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
- name: Decide what to measure next
  h20.fleet.fabric_search:
    hosts: "{{ ansible_play_hosts_all }}"
    before: "{{ search | default({}) }}"
    answers: "{{ answers }}"
    floor: 300
  run_once: true
  register: search
"""

RETURN = r"""
number:
  description: Number of the round that is next; the last one where nothing is left to measure.
  returned: always
  type: int
seats:
  description: By host that takes part in the next round, its place in its group; empty where nothing is left to measure.
  returned: always
  type: dict
  sample: {h20-01: {nodes: 2, node_rank: 0, master: h20-01, adapter: -1}}
measured:
  description: All that was measured so far; the report has it in the end.
  returned: while something is left to measure
  type: list
  elements: dict
  contains:
    round:
      description: Number of the round.
      type: int
    hosts:
      description: The group.
      type: list
      elements: str
    adapter:
      description: Place of the adapter that was used alone; -1 where all were.
      type: int
    busbw_gb_s:
      description: Bus bandwidth in GB/s as its slowest host saw it; null where a host had none.
      type: float
    errors:
      description: Why a host had none, by host.
      type: dict
silent:
  description: Hosts that did not answer in a round, which are left out of the later ones.
  returned: while something is left to measure
  type: list
  elements: str
findings:
  description: What is to blame, in few words. The report has evidence and remedy of each.
  returned: when nothing is left to measure
  type: list
  elements: str
  sample: [HOST h20-07, LINK h20-11 - h20-12, ADAPTER h20-14 mlx5_3:1]
report_path:
  description: The JSON file on the controller.
  returned: when nothing is left to measure
  type: str
"""
