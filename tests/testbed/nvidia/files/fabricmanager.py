# SPDX-License-Identifier: Apache-2.0
"""nv-fabricmanager: while it runs, the NVSwitches route between the GPUs."""

from __future__ import annotations

import sys

from .common import FABRIC_MANAGER, detach, hardware, module_version


def main(version: str) -> int:
    """Start the daemon; refuse without NVSwitches, without a driver, or with a driver of another version."""
    if {"-v", "--version"} & set(sys.argv[1:]):
        print(f"Fabric Manager version is : {version}")
        return 0
    driver = module_version()
    if driver is None:
        print(
            "request to query NVSwitch device information from NVSwitch driver failed with error:driver is not loaded",
            file=sys.stderr,
        )
        return 1
    if driver != version:
        print(
            f"fabric manager NVIDIA GPU driver interface version {version} don't match with driver version {driver}. "
            "Please update with matching NVIDIA driver package.",
            file=sys.stderr,
        )
        return 1
    print("Detected Pre-NVL5 system")
    if not hardware()["nvswitches"]:
        print(
            "request to query NVSwitch device information from NVSwitch driver failed with error:WARNING Nothing to do [NV_WARN_NOTHING_TO_DO]",
            file=sys.stderr,
        )
        return 1
    print("Connected to 1 node.")
    print(
        "Successfully configured all the available NVSwitches to route GPU NVLink traffic. NVLink Peer-to-Peer support will be enabled "
        "once the GPUs are successfully registered with the NVLink fabric.",
        flush=True,
    )
    return detach(FABRIC_MANAGER)
