#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read-only description of the GPUs of a host and of all that they need: NVSwitches, fabric, driver, packages, kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_info
short_description: Describe the GPUs, NVSwitches, driver and kernel of a host
version_added: 1.0.0
description:
  - Reads the PCI bus, InfiniBand ports, kernel, kernel modules, packages, the kernel log and C(nvidia-smi) in one round trip, and changes nothing.
  - GPUs are recognised by PCI device id and memory, never by name, so it answers before any driver is installed.
  - With O(capture), or with a O(root) other than V(/), it reads a captured host. No program is run then, and what only programs tell is null or empty.
  - An absent or unreadable source is null or empty and never an error.
options:
  root:
    description: Folder that stands for V(/), with C(sys), C(proc), C(lib/modules), C(usr) and C(var/lib/dpkg) of a captured host below it.
    type: path
    default: /
  capture:
    description:
      - File with what C(nvidia-smi -q -x) printed; C(nvidia-smi) is not run then.
      - Where O(root) is left at V(/), nothing of this machine is read beside it, and RV(pci_gpus) is what the capture says.
    type: path
  kernel_log:
    description: File with the kernel log of a host, as C(journalctl --dmesg), syslog or C(dmesg) print it; the journal is not read then.
    type: path
  profiles:
    description:
      - Hardware profiles of the site by name, added to those of the collection; one by the name of a shipped profile replaces it.
      - >-
        Whoever writes one vouches for the hardware, so each names every figure:
        C(product) (str, what nvidia-smi calls the GPU), C(pci_device) (str, PCI device id, four lowercase hexadecimal digits),
        C(gpus) (int, of a host), C(memory_mib) (int, of a GPU, as nvidia-smi reports its total), C(nvswitches) (int, of a host),
        C(nvswitch_device) (str, their PCI device id; empty where there are none), C(nvlinks) (int, of a GPU), C(link_width) (int, PCIe lanes of a GPU),
        C(allreduce_floor_gb_s) (float, bus bandwidth that all_reduce_perf must reach), C(copy_floor_gb_s) (float, rate of copies between the host and
        each GPU alone), C(load_clock_floor_mhz) (int, clock of each GPU under load), C(source) (str, where the figures come from).
    type: dict
    default: {}
  topology:
    description: Whether to ask how the GPUs are joined as well (C(nvidia-smi nvlink --status) and C(nvidia-smi topo -m)).
    type: bool
    default: false
  nvidia_smi:
    description: Program to ask; a name is looked up in C(PATH). Where it is absent, RV(smi) is null and RV(smi_error) says so.
    type: str
    default: nvidia-smi
  timeout:
    description: Seconds that C(nvidia-smi) may take. One that hangs is killed, and RV(smi_error) says so.
    type: int
    default: 60
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

- name: Describe a host from its support bundle, on the controller
  h20.fleet.gpu_info:
    root: /srv/bundles/h20-07
    capture: /srv/bundles/h20-07/nvidia-smi.xml
    kernel_log: /srv/bundles/h20-07/dmesg.txt
  delegate_to: localhost

- name: Describe hardware that the site vouches for itself
  h20.fleet.gpu_info:
    profiles:
      h200_4:
        product: NVIDIA H200
        pci_device: "2335"
        gpus: 4
        memory_mib: 143771
        nvswitches: 0
        nvswitch_device: ""
        nvlinks: 18
        link_width: 16
        allreduce_floor_gb_s: 300
        source: measured by the platform team in October 2026
"""

RETURN = r"""
profile:
  description: >-
    Name of the hardware profile that all GPUs match by PCI device id and, where the driver answers, by memory within 2 %;
    null where none does, and for mixed GPUs.
  returned: always
  type: str
  sample: h20_141g
profiles:
  description: All profiles by name, shipped and the site's; their fields are described at O(profiles).
  returned: always
  type: dict
pci_gpus:
  description: GPUs on the PCI bus, ordered by address.
  returned: always
  type: list
  elements: dict
  contains: &pci
    address:
      description: PCI address.
      type: str
      sample: "0000:18:00.0"
    device:
      description: PCI device id.
      type: str
      sample: 232c
    numa_node:
      description: NUMA node; null where the bus does not say.
      type: int
    link_width:
      description: PCIe lanes in use.
      type: int
      sample: 16
    link_width_max:
      description: PCIe lanes that the device has.
      type: int
      sample: 16
    driver:
      description: Kernel driver that is bound to the device, such as V(nvidia), V(nouveau) or V(vfio-pci); null where none is.
      type: str
pci_nvswitches:
  description: NVSwitches on the PCI bus, ordered by address.
  returned: always
  type: list
  elements: dict
  contains: *pci
infiniband:
  description: Ports of InfiniBand and RoCE adapters.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description: Name of the adapter.
      type: str
      sample: mlx5_0
    port:
      description: Number of the port.
      type: int
      sample: 1
    link_layer:
      description: V(InfiniBand), or V(Ethernet) for RoCE.
      type: str
    state:
      description: Logical state of the port.
      type: str
      sample: ACTIVE
    physical_state:
      description: Physical state of the port.
      type: str
      sample: LinkUp
    rate_gbps:
      description: Rate in Gbit/s.
      type: float
      sample: 400.0
    numa_node:
      description: NUMA node of the adapter.
      type: int
    netdev:
      description: Network interface of the port; null where there is none.
      type: str
      sample: ibs1
    address:
      description: PCI address of the adapter.
      type: str
      sample: "0000:1a:00.0"
    firmware:
      description: Version of the adapter's firmware; null where it does not say.
      type: str
      sample: 28.43.2566
    mtu:
      description: Largest packet of the port's network interface, in bytes; null where it has none.
      type: int
      sample: 9000
    traffic_class:
      description: Traffic class that the port sends with where the host sets one; null where it sets none.
      type: int
      sample: 106
pcie:
  description: What stands between GPUs and adapters that talk directly over PCIe.
  returned: always
  type: dict
  contains:
    redirecting:
      description: Downstream ports of switches above them that send what they send each other to the root complex (ACS), each with address and redirects.
      type: list
      elements: dict
      sample: [{address: "0000:19:00.0", redirects: [ReqRedir, CmpltRedir]}]
    translated:
      description: GPUs and adapters whose addresses an IOMMU translates.
      type: list
      elements: str
kernel:
  description: The running kernel.
  returned: always
  type: dict
  contains:
    release:
      description: Its release; empty where a captured host does not say.
      type: str
      sample: 6.8.0-45-generic
    headers:
      description: Whether its headers are there, so that a module can be built for it.
      type: bool
    secure_boot:
      description: Whether the firmware enforces Secure Boot; null where it cannot be read.
      type: bool
    metapackages:
      description: Installed metapackages of kernel images and headers, which bring a newer kernel when they are upgraded.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the package.
          type: str
          sample: linux-image-generic
        held:
          description: Whether it is held.
          type: bool
module:
  description: The kernel modules of the GPUs.
  returned: always
  type: dict
  contains:
    loaded_version:
      description: Version of the loaded nvidia module; empty where none is loaded.
      type: str
      sample: 580.173.02
    installed_version:
      description: Version of the nvidia module that would be loaded next; empty where there is none.
      type: str
      sample: 580.173.02
    open:
      description: Whether the loaded module is the open one; null where none is loaded.
      type: bool
    nouveau:
      description: Whether nouveau is loaded.
      type: bool
userspace_version:
  description: Version of the driver's libraries, by the file that C(libnvidia-ml.so.1) leads to; empty where there is none.
  returned: always
  type: str
  sample: 580.173.02
fabric_manager:
  description: The fabric manager.
  returned: always
  type: dict
  contains:
    version:
      description: Its version; empty where it is not installed.
      type: str
      sample: 580.173.02
    active:
      description: Whether its service runs.
      type: bool
packages:
  description: Packages of a driver that dpkg knows, from whichever archive, but those of which only the configuration is left.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name.
      type: str
      sample: nvidia-open
    version:
      description: Version with epoch and revision.
      type: str
      sample: 580.173.02-1ubuntu1
    upstream_version:
      description: Version without epoch and revision.
      type: str
      sample: 580.173.02
    archive:
      description: Whose package it is by its maintainer; V(nvidia), V(ubuntu), V(debian) or V(other).
      type: str
    status:
      description: State as dpkg names it; V(installed) where it is whole.
      type: str
    held:
      description: Whether it is held.
      type: bool
runfile:
  description: Whether a driver of NVIDIA's C(.run) installer is there.
  returned: always
  type: bool
dpkg:
  description: Whether dpkg is ready.
  returned: always
  type: dict
  contains:
    interrupted:
      description: Packages that were not installed or configured to the end, and V((updates pending\)) where dpkg's own updates were not written back.
      type: list
      elements: str
    lock_holder:
      description: Process that holds dpkg's lock; null where none does.
      type: dict
      contains:
        pid:
          description: Its number.
          type: int
        command:
          description: Its name.
          type: str
          sample: unattended-upgr
smi:
  description: >-
    What C(nvidia-smi -q -x) reports; null where it does not answer. A field that is absent or N/A is null;
    words such as V(Yes), V(Enabled) or V(Completed) are its own.
  returned: always
  type: dict
  contains:
    driver_version:
      description: Version of the driver.
      type: str
    cuda_version:
      description: Newest CUDA version that the driver knows.
      type: str
      sample: "13.0"
    gpus:
      description: GPUs that answer.
      type: list
      elements: dict
      contains:
        address:
          description: PCI address as in RV(pci_gpus).
          type: str
        device:
          description: PCI device id.
          type: str
        product:
          description: Name of the product.
          type: str
          sample: NVIDIA H20-3e
        uuid:
          description: UUID of the GPU.
          type: str
        serial:
          description: Serial number.
          type: str
        memory_mib:
          description: Memory in MiB.
          type: int
          sample: 143771
        memory_used_mib:
          description: Memory in use, in MiB.
          type: int
        ecc:
          description: Whether ECC is on.
          type: str
          sample: Enabled
        ecc_pending:
          description: Whether ECC is on after the next reboot.
          type: str
          sample: Enabled
        ecc_uncorrectable:
          description: Uncorrectable memory errors since the driver was loaded, all kinds added.
          type: int
        ecc_uncorrectable_aggregate:
          description: Uncorrectable memory errors in the life of the GPU, all kinds added.
          type: int
        mig:
          description: Whether MIG is on.
          type: str
          sample: Disabled
        persistence:
          description: Whether persistence mode is on.
          type: str
          sample: Enabled
        row_remap_pending:
          description: Whether a remap of memory rows waits for a reset.
          type: str
          sample: "No"
        row_remap_failure:
          description: Whether a remap of memory rows failed.
          type: str
          sample: "No"
        recovery_action:
          description: What the driver asks for to get the GPU back; null or V(None) where nothing.
          type: str
          sample: None
        pcie_width:
          description: PCIe lanes in use.
          type: int
        pcie_width_max:
          description: PCIe lanes that GPU and slot have.
          type: int
        throttle_reasons:
          description: Active reasons for a clock below the highest.
          type: list
          elements: str
          sample: [hw_power_brake_slowdown]
        fabric_state:
          description: State of the registration with the NVLink fabric; V(Completed) when done.
          type: str
        fabric_status:
          description: Outcome of the registration with the NVLink fabric.
          type: str
          sample: Success
        processes:
          description: Processes that use the GPU.
          type: list
          elements: dict
          contains:
            pid:
              description: Process number.
              type: int
            name:
              description: Name of the process.
              type: str
            memory_mib:
              description: GPU memory that it holds, in MiB.
              type: int
        nvlinks:
          description: State of the NVLinks; null without O(topology), or where the GPU has none.
          type: dict
          contains:
            active:
              description: Number of links that are up.
              type: int
              sample: 18
            inactive:
              description: Numbers of the links that are not.
              type: list
              elements: int
smi_error:
  description: Why C(nvidia-smi) does not answer; empty where it does, and for a captured host without O(capture).
  returned: always
  type: str
  sample: nvidia-smi did not answer within 60 s
topology:
  description: Each pair of GPUs and how C(nvidia-smi topo -m) names their connection; empty without O(topology).
  returned: always
  type: list
  elements: list
  sample: [[GPU0, GPU1, NV18]]
xids:
  description: Errors that the driver wrote to the kernel log since boot, newest last.
  returned: always
  type: list
  elements: dict
  contains:
    time:
      description: When, in UTC; in a saved log as it is written there, and empty where it has no time.
      type: str
      sample: "2026-11-23T16:53:08Z"
    kind:
      description: V(xid) of a GPU or V(sxid) of an NVSwitch.
      type: str
    address:
      description: PCI address of the GPU or NVSwitch.
      type: str
      sample: "0000:5d:00.0"
    code:
      description: Number of the error.
      type: int
      sample: 79
    name:
      description: What it means.
      type: str
      sample: GPU has fallen off the bus
    action:
      description: What to do about it.
      type: str
      sample: power-cycle the host; if it returns, have the GPU replaced
    fatal:
      description: Whether the device is out of service until that is done.
      type: bool
    message:
      description: What the driver wrote.
      type: str
"""

import re
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import (
    _dpkg,
    _hardware,
    _kernel_log,
    _nvidia_smi,
    _pcie,
    _programs,
    _sysfs,
)

FABRIC_MANAGER = "nvidia-fabricmanager"
#: A root without anything below it.
NOWHERE = "/nonexistent"


def describe(params: t.Mapping[str, t.Any], run: _programs.Runner | None) -> dict[str, t.Any]:
    """All that gpu_info returns. ``run`` runs programs of the live host; None for a captured one."""
    root = Path(params["root"])
    profiles = _hardware.known_profiles(params["profiles"])
    gpus, nvswitches = _sysfs.pci_devices(root)
    smi, smi_error = read_smi(params, run)
    if params["capture"] and smi and not (root / _sysfs.PCI_DEVICES).is_dir():
        gpus = _nvidia_smi.pci_gpus(smi)
    adapters = _sysfs.infiniband(root)
    packages = _dpkg.parse_packages(run(_dpkg.QUERY, _programs.TIMEOUT).out) if run else []
    return {
        "profile": _hardware.match_profile(profiles, gpus, smi),
        "profiles": profiles,
        "pci_gpus": gpus,
        "pci_nvswitches": nvswitches,
        "infiniband": adapters,
        "pcie": _pcie.peer_to_peer(root, [entry["address"] for entry in (*gpus, *adapters) if entry["address"]]),
        "kernel": _sysfs.kernel(root) | {"metapackages": _dpkg.kernel_metapackages(packages)},
        "module": _sysfs.loaded_module(root) | {"installed_version": installed_module(run)},
        "userspace_version": _sysfs.userspace_version(root),
        "fabric_manager": fabric_manager(root, packages, run),
        "packages": _dpkg.driver_packages(packages),
        "runfile": runfile(root),
        "dpkg": {"interrupted": _dpkg.interrupted(packages, root), "lock_holder": _dpkg.lock_holder(root)},
        "smi": smi,
        "smi_error": smi_error,
        "topology": read_topology(params, smi, run),
        "xids": _kernel_log.parse(kernel_log(params["kernel_log"], run)),
    }


def read_smi(params: t.Mapping[str, t.Any], run: _programs.Runner | None) -> tuple[dict[str, t.Any] | None, str]:
    """What nvidia-smi says, now or in a capture, and why it says nothing."""
    if params["capture"]:
        document = Path(params["capture"]).read_text(encoding="utf-8", errors="replace")
    elif run:
        answer = run([params["nvidia_smi"], "-q", "-x"], params["timeout"])
        if answer.error:
            return None, answer.error
        document = answer.out
    else:
        return None, ""
    try:
        return _nvidia_smi.parse(document), ""
    except ValueError as error:
        return None, str(error)


def read_topology(
    params: t.Mapping[str, t.Any], smi: dict[str, t.Any] | None, run: _programs.Runner | None
) -> list[list[str]]:
    """How the GPUs are joined; writes the state of each one's NVLinks into ``smi``."""
    if not params["topology"] or params["capture"] or smi is None or run is None:
        return []
    links = _nvidia_smi.parse_nvlinks(run([params["nvidia_smi"], "nvlink", "--status"], params["timeout"]).out)
    for gpu in smi["gpus"]:
        gpu["nvlinks"] = links.get(gpu["uuid"])
    return _nvidia_smi.parse_topology(run([params["nvidia_smi"], "topo", "-m"], params["timeout"]).out)


def installed_module(run: _programs.Runner | None) -> str:
    """Version of the nvidia module that modprobe would load, "" where there is none."""
    if run is None:
        return ""
    answer = run(["modinfo", "--field", "version", "nvidia"], _programs.TIMEOUT)
    return "" if answer.error else answer.out.strip()


def fabric_manager(root: Path, packages: list[_dpkg.Package], run: _programs.Runner | None) -> dict[str, t.Any]:
    """Version and state of the fabric manager; the program decides whether there is one, its package tells the version without a further process."""
    program = _sysfs.program(root, "nv-fabricmanager")
    if program is None or run is None:
        return {"version": "", "active": False}
    named = re.compile(rf"{FABRIC_MANAGER}(-\d+)?")
    version = next((package.upstream_version for package in packages if named.fullmatch(package.name)), "")
    if not version:
        # Fabric Manager version is : 580.173.02
        version = run([str(program), "--version"], _programs.TIMEOUT).out.rpartition(":")[2].strip()
    return {"version": version, "active": not run(["systemctl", "is-active", FABRIC_MANAGER], _programs.TIMEOUT).error}


def runfile(root: Path) -> bool:
    """Whether NVIDIA's .run installer was here: it leaves a program of its own, which no package owns."""
    program = _sysfs.program(root, "nvidia-uninstall", "nvidia-installer")
    return program is not None and not _dpkg.owns(root, program)


def kernel_log(path: str | None, run: _programs.Runner | None) -> str:
    """The lines of this boot's kernel log, or of a saved one."""
    if path:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    if run is None:
        return ""
    command = ["journalctl", "--dmesg", "--boot", "--no-pager", "--quiet", "--output=short-unix"]
    answer = run([*command, f"--grep={_kernel_log.PATTERN}"], _programs.TIMEOUT)
    # No match ends with 1 and no word; a word may mean that this journalctl was built without --grep.
    return run(command, _programs.TIMEOUT).out if answer.status and answer.err else answer.out


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "capture": {"type": "path"},
            "kernel_log": {"type": "path"},
            "profiles": {"type": "dict", "default": {}},
            "topology": {"type": "bool", "default": False},
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    live = module.params["root"] == "/"
    params = dict(module.params)
    if live and params["capture"]:
        # The capture is of another host than this one, of which nothing may be mixed in.
        params["root"] = NOWHERE
    try:
        result = describe(params, _programs.run if live and not params["capture"] else None)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
