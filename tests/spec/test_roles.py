# SPDX-License-Identifier: Apache-2.0
"""Every role: complete, and its defaults, its argument specs and its README say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from spec.tree import COLLECTION, PLAYBOOKS, ROLES, ROOT, Role, action, included_roles, load, quoted_names

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)

PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "dict": dict,
    "float": (float, int),
    "int": int,
    "list": list,
    "path": str,
    "str": str,
}


@each_role
def test_is_complete(role: Role) -> None:
    """The files that every role has, and a task file for every entry point."""
    wanted = ["README.md", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml", "tasks/verify.yml"]
    missing = [name for name in wanted if not (role.path / name).exists()]
    missing += [f"tasks/{entry}.yml" for entry in role.specs if not (role.path / "tasks" / f"{entry}.yml").exists()]
    assert not missing


@each_role
def test_entry_points_have_specs(role: Role) -> None:
    """main, verify, remove where there is one, and whatever a playbook or another role calls."""
    called = {"main", "verify"} | ({"remove"} if (role.path / "tasks" / "remove.yml").exists() else set())
    callers = [load(path) for path in PLAYBOOKS] + [[task for _, task in other.tasks] for other in ROLES]
    called |= {
        entry for caller in callers for name, entry in included_roles(caller) if name == f"{COLLECTION}.{role.name}"
    }
    assert called <= set(role.specs)


def _undescribed(options: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, option in options.items():
        if not option.get("description") or not option.get("type"):
            yield prefix + name
        if option.get("type") == "list" and not option.get("elements"):
            yield f"{prefix}{name} (elements)"
        yield from _undescribed(option.get("options") or {}, f"{prefix}{name}.")


@each_role
def test_specs_describe_everything(role: Role) -> None:
    """Every entry point and every option, however deep, says what it is; every option has a type."""
    silent = [
        entry for entry, spec in role.specs.items() if not spec.get("short_description") or not spec.get("description")
    ]
    for entry, spec in role.specs.items():
        silent += _undescribed(spec.get("options") or {}, f"{entry}: ")
    assert not silent


@each_role
def test_defaults_are_the_spec(role: Role) -> None:
    """The same names in defaults/main.yml and in the spec of `main`; a required option has a value in neither, any other the same in both."""
    required = {name for name, option in role.options.items() if option.get("required")}
    assert set(role.defaults) == set(role.options) - required
    assert not [name for name in required if "default" in role.options[name]]
    assert not [name for name in role.defaults if "default" not in role.options[name]]
    assert {name: role.options[name]["default"] for name in role.defaults} == role.defaults


@each_role
def test_defaults_have_their_type(role: Role) -> None:
    """A default that is no template is of the option's type and one of its choices."""
    wrong = []
    for name, value in role.defaults.items():
        option = role.options.get(name, {})
        if isinstance(value, str) and "{{" in value:
            continue
        boolean_as_number = isinstance(value, bool) and option.get("type") != "bool"
        if boolean_as_number or not isinstance(value, PYTHON_TYPES.get(option.get("type", ""), object)):
            wrong.append(f"{name}: {value!r} is no {option.get('type')}")
        if option.get("choices") and value not in option["choices"]:
            wrong.append(f"{name}: {value!r} is no choice")
    assert not wrong


@each_role
def test_defaults_give_reasons(role: Role) -> None:
    """A comment right above every default."""
    path = role.path / "defaults" / "main.yml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    bare = []
    for number, line in enumerate(lines):
        name = line.partition(":")[0]
        above = lines[number - 1] if number else ""
        if name in role.defaults and (not above.startswith("# ") or "SPDX-License-Identifier" in above):
            bare.append(name)
    assert not bare


@each_role
def test_names_carry_the_prefix(role: Role) -> None:
    """Options: <role>_ or fleet_; whatever else has a name: __<role>_, or <role>_ where it is for others."""
    public = (f"{role.name}_", "fleet_")
    own = (f"{role.name}_", f"__{role.name}_")
    wrong = [name for name in role.options | role.defaults if not name.startswith(public)]
    wrong += [name for name in role.facts | set(role.constants) if not name.startswith(own)]
    for path, task in role.tasks:
        names = {str(task[key]) for key in ("register",) if key in task}
        names |= {
            str(value) for key, value in (task.get("loop_control") or {}).items() if key in ("loop_var", "index_var")
        }
        if action(task, "include_role", "import_role") is None:
            names |= {name for name in task.get("vars") or {} if not name.startswith("ansible_")}
        wrong += [f"{path.name}: {name}" for name in names if not name.startswith(own)]
    assert not wrong


@each_role
def test_readme_names_every_option(role: Role) -> None:
    """Every option of every entry point, and what the role derives or sets for others, stands in README.md in backquotes."""
    names = {name for spec in role.specs.values() for name in spec.get("options") or {}}
    names |= {name for name in role.facts | set(role.constants) if not name.startswith("__")}
    assert names <= quoted_names(role.readme)


@each_role
def test_readme_names_nothing_else(role: Role) -> None:
    """What README.md names in backquotes like a variable of the role is one of a role, or the name of a role, plugin or file."""
    known = {name for other in ROLES for spec in other.specs.values() for name in spec.get("options") or {}}
    known |= {name for other in ROLES for name in other.facts | set(other.constants)} | {other.name for other in ROLES}
    known |= {path.stem for folder in ("plugins", "roles", "playbooks") for path in (ROOT / folder).rglob("*.*")}
    mine = {name for name in quoted_names(role.readme) if name.startswith((f"{role.name}_", "fleet_"))}
    assert mine <= known


@each_role
def test_templates_parse(role: Role) -> None:
    """Every template is Jinja2."""
    environment = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])  # noqa: S701 (parsed, never rendered)
    for path in sorted((role.path / "templates").rglob("*.j2")):
        environment.parse(path.read_text(encoding="utf-8"), filename=str(path))


@each_role
def test_meta(role: Role) -> None:
    """meta/main.yml says what galaxy shows, and depends on roles by their full names."""
    meta = load(role.path / "meta" / "main.yml") or {}
    info = meta.get("galaxy_info") or {}
    assert info.get("license") == "Apache-2.0"
    assert info.get("description")
    assert str(info.get("min_ansible_version")).startswith("2.19")
    dependencies = [
        entry if isinstance(entry, str) else entry.get("role", entry.get("name"))
        for entry in meta.get("dependencies") or []
    ]
    assert all(str(name).count(".") == 2 for name in dependencies)


def test_site_variables_are_declared_and_documented() -> None:
    """Every fleet_* name that a role uses is an option of exactly one role, and described in docs/site_variables.md or that role's README."""
    documents = ROOT / "docs" / "site_variables.md"
    described = quoted_names(documents.read_text(encoding="utf-8")) if documents.exists() else set()
    owners: dict[str, list[Role]] = {}
    for role in ROLES:
        for name in role.defaults:
            if name.startswith("fleet_"):
                owners.setdefault(name, []).append(role)
    wrong = [f"{name}: declared by {[role.name for role in roles]}" for name, roles in owners.items() if len(roles) > 1]
    wrong += [
        f"{name}: not described"
        for name, (role, *_) in owners.items()
        if name not in described | quoted_names(role.readme)
    ]
    for role in ROLES:
        used = {name for path in _yaml_and_templates(role) for name in _fleet_names(path)}
        wrong += [f"{name}: used by {role.name}, declared nowhere" for name in used - set(owners)]
    assert not wrong


def _yaml_and_templates(role: Role) -> Iterator[str]:
    for folder in ("defaults", "vars", "tasks", "handlers", "templates"):
        for path in sorted((role.path / folder).rglob("*")):
            if path.suffix in {".yml", ".j2"}:
                yield path.read_text(encoding="utf-8")


def _fleet_names(text: str) -> Iterator[str]:
    # Not __fleet_x, not h20_fleet_x, no path such as /var/lib/fleet_x.
    yield from re.findall(
        r"(?<![\w/.-])fleet_[a-z0-9_]+",
        "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")),
    )
