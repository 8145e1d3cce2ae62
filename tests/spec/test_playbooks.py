# SPDX-License-Identifier: Apache-2.0
"""Every playbook and every task: full names, and facts only out of ansible_facts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spec.tree import PLAYBOOKS, ROLES, ROOT, Role, included_roles, load

# The names under which ansible-core injects the facts of `setup`, where it still does.
FACTS = re.compile(
    r"""(?<![\w.'"])ansible_(
    all_ipv[46]_addresses | apparmor | architecture | bios_\w+ | board_\w+ | chassis_\w+ | cmdline | date_time | default_ipv[46] | device_links
    | devices | distribution\w* | dns | domain | effective_\w+ | env | fibre_channel_wwn | fips | form_factor | fqdn | hostname | hostnqn
    | interfaces | is_chroot | iscsi_iqn | kernel\w* | loadavg | local | locally_reachable_ips | lsb | lvm | machine\w* | mem\w+ | mounts
    | nodename | os_family | pkg_mgr | proc_cmdline | processor\w* | product_\w+ | python(_version)? | real_\w+ | selinux\w* | service_mgr
    | services | ssh_host_key\w+ | swap\w+ | system\w* | uptime_seconds | user_\w+ | userspace_\w+ | virtualization_\w+
    )\b(?!\s*:)""",
    re.VERBOSE,
)

SOURCES = sorted(
    path
    for folder in ("roles", "playbooks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".yml", ".j2"} and path.is_file()
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_facts_come_from_ansible_facts(path: Path) -> None:
    """No injected fact is read."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {match[0]}" for number, line in enumerate(lines, start=1) if (match := FACTS.search(line))]


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_playbook_uses_full_role_names(path: Path) -> None:
    """Roles by namespace.collection.role, so that the playbook runs from the installed collection too."""
    assert not [name for name, _ in included_roles(load(path)) if name.count(".") != 2]


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_playbook_plays_have_names(path: Path) -> None:
    """Every play says what it does, and only imports go without hosts."""
    plays = load(path)
    assert plays
    assert not [
        play
        for play in plays
        if not play.get("name") or not ({"hosts", "import_playbook", "ansible.builtin.import_playbook"} & set(play))
    ]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_role_uses_full_role_names(role: Role) -> None:
    """The same inside the roles."""
    assert not [
        name
        for name, _ in included_roles([task for _, task in role.tasks])
        if name.count(".") != 2 and "{{" not in name
    ]
