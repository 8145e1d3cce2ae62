# SPDX-License-Identifier: Apache-2.0
"""The stand-in packages: packages.yml read, and each made a .deb that is the same byte for byte every time."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PROGRAMS = HERE / "files"
UNITS = HERE / "units"
EPOCH = 1_767_225_600  # every file in every package: 2026-01-01T00:00:00Z
LAUNCHER = """\
#!/usr/bin/python3 -IB
import sys
sys.path.insert(0, "/usr/share/{name}")
from standin.{module} import {function}
sys.exit({function}("{version}"))
"""
CUDA_SUFFIX = "-13-0"
# Pinned are the names that follow the driver's version; "libnvidia-*" alone would catch the container toolkit's libraries.
PINNED = "nvidia-open nvidia-driver* nvidia-kernel-* nvidia-modprobe nvidia-persistenced nvidia-fabricmanager* firmware-nvidia-gsp libcuda1 libnvidia-*"


@dataclass(frozen=True)
class Package:
    """One package; see packages.yml for the meaning of the fields."""

    name: str
    version: str
    description: str
    architecture: str = "amd64"
    maintainer: str = "NVIDIA <cudatools@nvidia.com>"
    depends: str = ""
    recommends: str = ""
    conflicts: str = ""
    provides: str = ""
    replaces: str = ""
    commands: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    files: dict[str, str | bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    kernel_module: str = ""
    postinst: str = ""
    prerm: str = ""

    @property
    def upstream(self) -> str:
        """The version without epoch and revision."""
        return self.version.rpartition(":")[2].rpartition("-")[0]

    @property
    def file_name(self) -> str:
        """The name of the .deb."""
        return f"{self.name}_{self.version.rpartition(':')[2]}_{self.architecture}.deb"


def plan() -> list[Package]:
    """The packages of NVIDIA's repository."""
    document = _document()
    packages = [*_family(document["driver"]), *_family(document["dcgm"])]
    packages += [_pinning(name, version) for name, version in document["pinning"].items()]
    packages += [_package(name, fields.pop("version"), fields) for name, fields in document["other"].items()]
    packages += [_cuda(name, version, needs) for name, (version, needs) in document["cuda"].items()]
    return packages


def ubuntu() -> list[Package]:
    """The packages of Ubuntu's archive that are a driver of NVIDIA's, too."""
    return _family(_document()["ubuntu"])


def build(package: Package, scratch: Path, destination: Path) -> Path:
    """Write the package's .deb to `destination` and return its path; `scratch` is an empty folder to lay it out in."""
    root = scratch / f"{package.name}_{package.version}"
    for path, text in _contents(package).items():
        _write(root / path.lstrip("/"), text, executable=path in package.commands)
    for path, target in package.links.items():
        link = root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    _write(root / "DEBIAN/control", control(package))
    for name, script in _scripts(package).items():
        _write(root / "DEBIAN" / name, script, executable=True)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    deb = destination / package.file_name
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(root), str(deb)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    shutil.rmtree(root)
    return deb


def control(package: Package) -> str:
    """The control file."""
    fields = {
        "Package": package.name,
        "Version": package.version,
        "Architecture": package.architecture,
        "Maintainer": package.maintainer,
        "Section": "NVIDIA",
        "Priority": "optional",
        "Depends": package.depends,
        "Recommends": package.recommends,
        "Conflicts": package.conflicts,
        "Provides": package.provides,
        "Replaces": package.replaces,
        "Description": f"{package.description}\n A stand-in of the h20.fleet test bed: nothing in it is NVIDIA's.",
    }
    return "".join(f"{name}: {text}\n" for name, text in fields.items() if text)


def kernel_module(version: str) -> bytes:
    """An object file with nothing but the section that modinfo reads."""
    modinfo = b"".join(
        f"{line}\0".encode()
        for line in (f"version={version}", "license=Dual MIT/GPL", "description=stand-in", "name=nvidia")
    )
    names = b"\0.modinfo\0.shstrtab\0"
    header_size, section_size, relocatable, x86_64 = 64, 64, 1, 62
    program_bits, string_table, allocated = 1, 3, 2
    names_at = header_size + len(modinfo)
    sections_at = (names_at + len(names) + 7) // 8 * 8
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", relocatable, x86_64, 1, 0, 0, sections_at, 0, header_size, 0, 0, section_size, 3, 2
    )
    sections = bytes(section_size)
    sections += struct.pack(
        "<IIQQQQIIQQ", names.index(b".modinfo"), program_bits, allocated, 0, header_size, len(modinfo), 0, 0, 1, 0
    )
    sections += struct.pack(
        "<IIQQQQIIQQ", names.index(b".shstrtab"), string_table, 0, 0, names_at, len(names), 0, 0, 1, 0
    )
    return (header + modinfo + names).ljust(sections_at, b"\0") + sections


def _document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((HERE / "packages.yml").read_text(encoding="utf-8"))
    return document


def _family(family: dict[str, Any]) -> list[Package]:
    """Packages that come in the same versions."""
    return [
        _package(name, version, fields) for version in family["versions"] for name, fields in family["packages"].items()
    ]


def _package(name: str, version: str, fields: dict[str, Any]) -> Package:
    bare = Package(name=name, version=version, description="")

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {fill(key): fill(item) for key, item in value.items()}
        return value.replace("{v}", version).replace("{u}", bare.upstream)

    return Package(name=name, version=version, **{key: fill(value) for key, value in fields.items()})


def _cuda(name: str, version: str, needs: list[str]) -> Package:
    depends = ", ".join(need if need.endswith("-common") else need + CUDA_SUFFIX for need in needs)
    return Package(
        name=name + CUDA_SUFFIX, version=version, description=f"{name} of the CUDA toolkit 13.0", depends=depends
    )


def _pinning(name: str, version: str) -> Package:
    pinned = name.rpartition("-")[2]
    kind, pattern = ("version", f"{pinned}-*") if "." in pinned else ("branch", f"{pinned}.*")
    preferences = f"Package: {PINNED}\nPin: version {pattern}\nPin-Priority: 1000\n"
    others = "nvidia-driver-pinning"
    return Package(
        name=name,
        version=version,
        architecture="all",
        description=f"APT driver pinning file for driver {kind} {pinned}",
        provides=others,
        conflicts=others,
        replaces=others,
        # apt reads a file whose name has a dot in it only as *.pref.
        files={f"/etc/apt/preferences.d/{name}.pref": preferences},
    )


def _contents(package: Package) -> dict[str, str | bytes]:
    """Every file of the package: path -> text."""
    contents = dict(package.files)
    for path, command in package.commands.items():
        module, function = command.split(" ")
        contents[path] = LAUNCHER.format(name=package.name, module=module, function=function, version=package.upstream)
    if package.commands:
        modules = {command.split(" ")[0] for command in package.commands.values()} | {"__init__", "common"}
        data = {"gpu.xml", "fields.txt"} if "smi" in modules else set()
        for name in sorted({f"{module}.py" for module in modules} | data):
            contents[f"/usr/share/{package.name}/standin/{name}"] = (PROGRAMS / name).read_text(encoding="utf-8")
    for unit in package.units:
        contents[f"/lib/systemd/system/{unit}"] = (UNITS / unit).read_text(encoding="utf-8")
    if package.kernel_module:
        contents[package.kernel_module] = kernel_module(package.upstream)
    return contents


def _scripts(package: Package) -> dict[str, str]:
    """The maintainer scripts that the package needs: name -> text."""
    install, remove, purge = package.postinst.splitlines(), package.prerm.splitlines(), []
    if package.units:
        install.append("[ ! -d /run/systemd/system ] || systemctl daemon-reload")
    for unit, state in package.units.items():
        if state == "enabled":
            install.append(f"deb-systemd-helper enable {unit} >/dev/null")
        remove.append(f'[ "$1" != remove ] || [ ! -d /run/systemd/system ] || deb-systemd-invoke stop {unit}')
        purge.append(f'[ "$1" != purge ] || deb-systemd-helper purge {unit} >/dev/null')
    scripts = {
        "postinst": ['[ "$1" = configure ] || exit 0', *install] if install else [],
        "prerm": remove,
        "postrm": purge,
    }
    return {name: "\n".join(["#!/bin/sh", "set -e", *lines]) + "\n" for name, lines in scripts.items() if lines}


def _write(path: Path, text: str | bytes, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o755 if executable else 0o644)
