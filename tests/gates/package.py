# SPDX-License-Identifier: Apache-2.0
"""The tarball: built, installed elsewhere without a network, verified, and used from there."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tarfile
from pathlib import Path

from gates.shell import CACHE, ROOT, GateError, Shell, fail_with, files

BUILD = CACHE / "build"
SHIPPED = {
    "CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md",
    "changelogs", "docs", "examples", "inventories", "meta", "playbooks", "plugins", "roles",
}  # fmt: skip


def _contents(tarball: Path) -> list[str]:
    with tarfile.open(tarball) as archive:
        return sorted(member.name for member in archive.getmembers() if not member.isdir())


def check(shell: Shell) -> None:
    """Build, inspect, install, verify; then syntax-check every playbook by its full name and read every role's and module's manual."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    shell.run("ansible-galaxy", "collection", "build", "--output-path", BUILD)
    (tarball,) = BUILD.glob("h20-fleet-*.tar.gz")
    names = _contents(tarball)
    known = {str(path) for path in files()} | {"FILES.json", "MANIFEST.json"}
    strays = [
        f"{name}: does not belong into the tarball"
        for name in names
        if name.split("/")[0] not in SHIPPED or name not in known
    ]
    fail_with(strays, "stray files in the tarball", shell)
    shell.say(f"{tarball.name}: {len(names)} files, {tarball.stat().st_size / 1024:.0f} KiB")

    # Dependencies come from the ansible bundle; the clone itself must not be on the path.
    installed = BUILD / "installed"
    bundle = sysconfig.get_path("purelib")
    settings = BUILD / "ansible.cfg"
    settings.touch()
    elsewhere = {"ANSIBLE_CONFIG": str(settings), "ANSIBLE_COLLECTIONS_PATH": f"{installed}{os.pathsep}{bundle}"}
    shell.run(
        "ansible-galaxy", "collection", "install", tarball, "-p", installed, "--offline", env=elsewhere, cwd=BUILD
    )
    shell.run("ansible-galaxy", "collection", "verify", "h20.fleet", "--offline", env=elsewhere, cwd=BUILD)

    fleet = installed / "ansible_collections" / "h20" / "fleet"
    playbooks = sorted(path.stem for path in (fleet / "playbooks").glob("*.yml"))
    if "site" not in playbooks:
        raise GateError("the tarball holds no playbooks/site.yml")
    shell.run(
        "ansible-playbook",
        "--syntax-check",
        "-i",
        "localhost,",
        *[f"h20.fleet.{name}" for name in playbooks],
        env=elsewhere,
        cwd=BUILD,
    )
    _manuals(shell, fleet, elsewhere)


def _manuals(shell: Shell, fleet: Path, env: dict[str, str]) -> None:
    roles = sorted(path.name for path in (fleet / "roles").iterdir() if path.is_dir())
    modules = sorted(path.stem for path in (fleet / "plugins" / "modules").glob("*.py"))
    for kind, names in (("role", roles), ("module", modules)):
        if not names:
            continue
        full = [f"h20.fleet.{name}" for name in names]
        lines = shell.run("ansible-doc", "--json", "-t", kind, *full, env=env, cwd=BUILD)
        # Warnings share the stream; the document begins at the first brace of its own.
        document = json.loads("\n".join(lines[lines.index("{") :])) if "{" in lines else {}
        fail_with(
            [f"{name}: ansible-doc finds no documentation" for name in full if name not in document], f"{kind}s", shell
        )


def changelog(shell: Shell) -> None:
    """Lint the fragments, and the changelog itself once there is one."""
    shell.run("antsibull-changelog", "lint")
    if (ROOT / "changelogs" / "changelog.yaml").exists():
        shell.run("antsibull-changelog", "lint-changelog-yaml", "changelogs/changelog.yaml")
