#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read-only description of the GPUs of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_info
short_description: Describe the GPUs, NVSwitches and driver of a host
version_added: 1.0.0
description:
  - Reads the PCI bus, the loaded kernel module and C(nvidia-smi), in one round trip, and changes nothing.
  - GPUs are recognised by PCI device id, so it answers before any driver is installed.
options:
  sysfs:
    description: Root of sysfs; another folder reads a captured host instead of the live one.
    type: path
    default: /sys
  nvidia_smi:
    description: Program to ask; a name is looked up in C(PATH). Where it is absent, C(smi) is null and C(smi_error) says so.
    type: str
    default: nvidia-smi
  topology:
    description: Whether to ask how the GPUs are joined as well.
    type: bool
    default: false
extends_documentation_fragment: [h20.fleet.attributes.read_only]
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Describe the GPUs
  h20.fleet.gpu_info:
  register: gpu

- name: Show which profile the hardware has
  ansible.builtin.debug:
    msg: "{{ gpu.profile | default('unknown', true) }}: {{ gpu.pci_gpus | length }} GPUs"
"""

RETURN = r"""
profile:
  description: Name of the hardware profile that all GPUs match by PCI device id; null where none does.
  returned: always
  type: str
  sample: h20_141g
profiles:
  description: All profiles the collection knows, by name.
  returned: always
  type: dict
pci_gpus:
  description: GPUs on the PCI bus, each with address, device, numa_node, link_width and link_width_max.
  returned: always
  type: list
  elements: dict
pci_nvswitches:
  description: NVSwitches on the PCI bus, shaped like C(pci_gpus).
  returned: always
  type: list
  elements: dict
module_version:
  description: Version of the loaded nvidia kernel module; empty where none is loaded.
  returned: always
  type: str
  sample: 580.173.02
nouveau_loaded:
  description: Whether the nouveau kernel module is loaded.
  returned: always
  type: bool
smi:
  description: What nvidia-smi reports (driver_version, cuda_version, gpus); null where it does not answer.
  returned: always
  type: dict
topology:
  description: Each pair of GPUs and how nvidia-smi names their connection; empty where it was not asked for or nvidia-smi does not answer.
  returned: always
  type: list
  elements: list
  sample: [[GPU0, GPU1, NV18]]
smi_error:
  description: Why nvidia-smi does not answer; empty where it does.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _hardware


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sysfs": {"type": "path", "default": "/sys"},
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
            "topology": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    sysfs = Path(module.params["sysfs"])
    gpus, nvswitches = _hardware.pci_devices(sysfs)
    smi, smi_error, topology = None, "", []
    program = module.get_bin_path(module.params["nvidia_smi"])
    if program is None:
        smi_error = f"{module.params['nvidia_smi']} is not installed"
    else:
        rc, out, err = module.run_command([program, "-q", "-x"])
        try:
            smi = _hardware.parse_nvidia_smi(out) if rc == 0 else None
            smi_error = "" if rc == 0 else (out + err).strip()
        except ValueError as error:
            smi_error = str(error)
        if smi is not None and module.params["topology"]:
            topology = _hardware.parse_topology(module.run_command([program, "topo", "-m"], check_rc=True)[1])
    module.exit_json(
        changed=False,
        profile=_hardware.match_profile(gpus),
        profiles=_hardware.PROFILES,
        pci_gpus=gpus,
        pci_nvswitches=nvswitches,
        module_version=_hardware.read_text(sysfs / "module/nvidia/version"),
        nouveau_loaded=(sysfs / "module/nouveau").is_dir(),
        smi=smi,
        smi_error=smi_error,
        topology=topology,
    )


if __name__ == "__main__":
    main()
