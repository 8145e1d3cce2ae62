#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Purge the packages that the collection brought."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: package_purge
short_description: Purge the packages that stages brought, and release the holds that they set
version_added: 1.0.0
description:
  - Reads the ledger that M(h20.fleet.package_ledger) wrote. What was asked for and not there before goes, and what apt brought along for that.
  - What was there before stays, and so does what another stage or another package needs, or an operator has asked for since; the latter two become theirs.
  - Services of the packages are stopped and disabled first.
  - apt is asked for exactly these packages. Where it would take others along, nothing is done.
options:
  stages:
    description: Stages that are taken away.
    type: list
    elements: str
    required: true
  holds_only:
    description: Whether the packages stay, and their stages with them, so that only holds are released.
    type: bool
    default: false
  lock_timeout:
    description: Seconds to wait for apt's lock.
    type: int
    default: 600
  archives:
    description: Folder of the packages that apt has fetched; those that went are deleted there as well.
    type: path
    default: /var/cache/apt/archives
  info:
    description: Folder of dpkg's lists of files, which name the services to stop.
    type: path
    default: /var/lib/dpkg/info
  path:
    description: File of the ledger.
    type: path
    default: /var/lib/h20-fleet/packages.json
attributes:
  check_mode:
    description: Says what would go, as apt resolves it.
    support: full
  diff_mode:
    description: Shows packages and holds that go.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Purge what fetched the weights
  h20.fleet.package_purge:
    stages: [model]
"""

RETURN = r"""
purged:
  description: Packages that went, or would go in check mode.
  returned: always
  type: list
  elements: str
  sample: [aria2, libaria2-0]
kept:
  description: Packages that these stages asked for and that stay, because something else needs them. They count as automatically installed from then on.
  returned: always
  type: list
  elements: str
unheld:
  description: Packages whose hold was released.
  returned: always
  type: list
  elements: str
"""

import re
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _ledger, _programs

#: What apt-get says that it would take away.
TAKEN = re.compile(r"^(?:Purg|Remv) (\S+)", re.MULTILINE)
#: A service in a package's list of files that can be stopped by its name: no template.
UNIT = re.compile(r"(?:/usr)?/lib/systemd/system/([^/@]+\.service)")
ENVIRONMENT = {
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",
}


def command(packages: t.Iterable[str], lock_timeout: int, *options: str) -> list[str]:
    """The call of apt-get that takes these away and no others."""
    return [
        "apt-get",
        "purge",
        "--yes",
        f"--option=DPkg::Lock::Timeout={lock_timeout}",
        "--option=APT::Get::AutomaticRemove=false",
        *options,
        *sorted(packages),
    ]


def units(info: Path, packages: t.Collection[str]) -> list[str]:
    """The services that these packages brought, by dpkg's own lists of files: not every package stops its own."""
    lists = [path for path in info.glob("*.list") if path.name.removesuffix(".list").partition(":")[0] in packages]
    lines = {line for path in lists for line in path.read_text(encoding="utf-8", errors="replace").splitlines()}
    return sorted({match[1] for line in lines if (match := UNIT.fullmatch(line))})


def archives(folder: Path, packages: t.Collection[str]) -> list[Path]:
    """The files of these packages that apt has kept from fetching them."""
    return sorted(path for path in folder.glob("*_*_*.deb") if path.name.partition("_")[0] in packages)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "stages": {"type": "list", "elements": "str", "required": True},
            "holds_only": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 600},
            "info": {"type": "path", "default": "/var/lib/dpkg/info"},
            "archives": {"type": "path", "default": "/var/cache/apt/archives"},
            "path": {"type": "path", "default": str(_ledger.PATH)},
        },
        supports_check_mode=True,
    )
    path, stages, patience = Path(module.params["path"]), module.params["stages"], module.params["lock_timeout"]
    try:
        ledger = _ledger.Ledger.load(path) or _ledger.Ledger()
        host = _ledger.Host.read(_programs.run)
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"what the collection brought of packages cannot be told: {error} -> mend that, then run it again"
        )
    rest = ledger.without(stages)
    holds_only = module.params["holds_only"]
    going = set() if holds_only else ledger.going(host, stages)
    staying = set() if holds_only else (ledger.asked.keys() - rest.asked.keys() - going) & host.packages.keys()
    held = sorted((ledger.holds.keys() - rest.holds.keys()) & host.held)
    after = _ledger.Ledger(ledger.before, ledger.asked, rest.holds) if holds_only else rest
    result: dict[str, t.Any] = {
        "changed": bool(going or held or after != ledger),
        "purged": sorted(going),
        "kept": sorted(staying),
        "unheld": held,
        "diff": {
            "before": "".join([f"{name}\n" for name in sorted(going)] + [f"{name} is held\n" for name in held]),
            "after": "",
        },
    }

    def run(arguments: list[str], what: str) -> str:
        rc, out, err = module.run_command(arguments, environ_update=ENVIRONMENT)
        if rc != 0:
            lines = [line.removeprefix("E: ") for line in err.splitlines() if line.startswith("E: ")]
            module.fail_json(
                msg=f"{what}: {'; '.join(lines) or err.strip() or out.strip()} -> mend that on the host (`apt-get check` says more), then run it again"
            )
        return str(out)

    if going:
        # Our own holds are released before the packages go; a hold that somebody else has set is in the way, and apt says so.
        options = ("--allow-change-held-packages",) if going & set(held) else ()
        simulated = run(command(going, patience, "--simulate", *options), "apt cannot take the packages away")
        others = sorted({name.partition(":")[0] for name in TAKEN.findall(simulated)} - going)
        if others:
            module.fail_json(
                msg=f"apt would take along what the collection did not bring: {', '.join(others)}"
                " -> remove that first, or, where it needs the driver, let that stay: -e fleet_remove_driver=false"
            )
    if module.check_mode:
        module.exit_json(**result)
    if held:
        run(["apt-mark", "unhold", *held], "the holds cannot be released")
    if going:
        services = units(Path(module.params["info"]), going)
        if services:
            run(["systemctl", "disable", "--now", *services], "the services of the packages cannot be stopped")
        run(command(going, patience), "apt could not take the packages away")
        for archive in archives(Path(module.params["archives"]), going):
            archive.unlink(missing_ok=True)
    if staying:
        run(["apt-mark", "auto", *sorted(staying)], "what others need cannot be given to them")
    after.save(path)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
