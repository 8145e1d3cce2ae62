# SPDX-License-Identifier: Apache-2.0
"""What a lock file of Python packages says: its pins, the CUDA that they are for, and whether they suit a target device."""

from __future__ import annotations

import re
import typing as t

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)

# Three ways in which a package says which CUDA it is for: by its name, by the local label of its version, or by being one of CUDA's own parts,
# whose version is CUDA's.
_BY_NAME = re.compile(r"(?:-cu|cuda)(\d\d)x?$")
_BY_LABEL = re.compile(r"\+cu(\d\d)\d")
_BY_VERSION = re.compile(r"cuda-(?:bindings|python|toolkit)$|nvidia-(?:cuda-(?!.*-cu\d)[a-z-]+|nvjitlink|nvtx|nvvm)$")
# What compiles: PTX of a newer one does not load on a driver that knows the release's CUDA alone.
_COMPILER = re.compile(r"nvidia-(?:cuda-(?:nvcc|nvrtc)|nvvm|nvjitlink)(?:-cu\d\d)?$")


def pins(text: str) -> dict[str, str]:
    """Version by normalized name (lower case, runs of ``-_.`` as one dash) of each pin in a lock file's text."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PIN.findall(text)}


def cuda_majors(locked: t.Mapping[str, str]) -> dict[str, list[str]]:
    """By CUDA major, as "13", the pins that are for it."""
    found: dict[str, list[str]] = {}
    for name, version in locked.items():
        match = _BY_NAME.search(name) or _BY_LABEL.search(version)
        major = match[1] if match else version.split(".")[0] if _BY_VERSION.match(name) else ""
        if major:
            found.setdefault(major, []).append(f"{name}=={version}")
    return found


def unsuitable(locked: t.Mapping[str, str], device: str, cuda: str) -> list[str]:
    """Why the pins are not for this target device (``cuda`` of this version, ``cpu`` or ``empty``): what is wrong, and a remedy."""
    torch = locked.get("torch", "")
    if device == "empty":
        return []
    if not torch:
        return ["pins no torch -> vLLM needs one; resolve the lock from inputs that name vllm"]
    if device == "cpu":
        majors = cuda_majors(locked)
        if torch.endswith("+cpu") and not majors:
            return []
        culprit = f"torch=={torch}" if not torch.endswith("+cpu") else next(iter(majors.values()))[0]
        return [
            f"pins {culprit}, built for CUDA, and target_device is cpu -> pin PyTorch's CPU build, torch=={torch.split('+')[0]}+cpu"
        ]
    return [*_not_for_cuda(torch, cuda_majors(locked), cuda), *_newer_compilers(locked, cuda)]


def _not_for_cuda(torch: str, majors: dict[str, list[str]], cuda: str) -> t.Iterator[str]:
    if torch.endswith("+cpu"):
        yield f"pins torch=={torch}, built without CUDA -> resolve it where no CPU build of torch is found (`make lock` sees to that)"
    if len(majors) > 1:
        mixed = ", ".join(f"CUDA {major} ({names[0]})" for major, names in sorted(majors.items()))
        yield f"mixes {mixed} -> keep all but one out, by pins or overrides of the lock's inputs"
    elif majors.keys() - {cuda.partition(".")[0]}:
        [(major, names)] = majors.items()
        yield f"is for CUDA {major} ({names[0]}), cuda.version is {cuda} -> name a lock for that CUDA, or cuda.version {major}.x"


def _newer_compilers(locked: t.Mapping[str, str], cuda: str) -> t.Iterator[str]:
    major, _dot, minor = cuda.partition(".")
    for name, version in locked.items():
        match = re.match(rf"{re.escape(major)}\.(\d+)", version)
        if match and minor.isdigit() and _COMPILER.match(name) and int(match[1]) > int(minor):
            yield (
                f"pins {name}=={version}, a compiler newer than cuda.version {cuda}, whose output a driver for {cuda} may not load"
                f" -> pin {name}=={cuda}.* in the lock's inputs"
            )
