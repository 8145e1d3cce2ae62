# SPDX-License-Identifier: Apache-2.0
"""What the stand-in programs share: the hardware of the host, the kernel module, and which daemons run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("TESTBED_ROOT", "/"))
HARDWARE = ROOT / "etc/testbed/hardware.json"
MODULES = ROOT / "sys/module"
LIBRARIES = ROOT / "usr/lib/x86_64-linux-gnu/nvidia"
FABRIC_MANAGER = ROOT / "run/nvidia-fabricmanager/nv-fabricmanager.pid"
PERSISTENCED = ROOT / "run/nvidia-persistenced/nvidia-persistenced.pid"
HOST_ENGINE = ROOT / "run/nvidia-dcgm/nv-hostengine.pid"


def hardware() -> dict[str, Any]:
    """The description of this host."""
    document: dict[str, Any] = json.loads(HARDWARE.read_text(encoding="utf-8"))
    return document


def answering_gpus() -> list[dict[str, Any]]:
    """The GPUs that the driver reaches."""
    return [gpu for gpu in hardware()["gpus"] if gpu["answers"]]


def model_of(gpu: dict[str, Any]) -> dict[str, Any]:
    """The model of a GPU: the one of this host, but for what the GPU has of another."""
    model: dict[str, Any] = hardware()["gpu"]
    return model | {key: gpu[key] for key in ("model", "pci_id", "memory_mib") if gpu[key]}


def module_version() -> str | None:
    """The version of the loaded kernel module; None where none is loaded."""
    try:
        return (MODULES / "nvidia/version").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def library_version() -> str | None:
    """The version of the installed NVML library, as its file is named; None where there is none."""
    try:
        return str((LIBRARIES / "libnvidia-ml.so.1").readlink()).removeprefix("libnvidia-ml.so.")
    except OSError:
        return None


def bus_id(address: str) -> str:
    """A PCI address as NVIDIA's tools write it: an eight-digit domain, in capitals."""
    return f"0000{address}".upper()


def is_running(pid_file: Path) -> bool:
    """Whether a daemon holds the lock of its PID file."""
    try:
        with pid_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def detach(pid_file: Path) -> int:
    """Go on in the background until a signal ends this process; the parent returns 0 once the lock is held."""
    ready, announce = os.pipe()
    if os.fork():
        os.close(announce)
        return 0 if os.read(ready, 1) else 1
    os.setsid()
    serve(pid_file, announce)
    return 0


def serve(pid_file: Path, announce: int | None = None) -> None:
    """Hold the lock of the PID file until SIGTERM or SIGINT."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with pid_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        if announce is not None:
            os.write(announce, b"1")
            os.close(announce)
        try:
            while True:
                signal.pause()
        finally:
            pid_file.unlink(missing_ok=True)
