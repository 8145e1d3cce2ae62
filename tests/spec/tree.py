# SPDX-License-Identifier: Apache-2.0
"""The collection as data: roles with their interfaces, tasks as they nest, playbooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "h20.fleet"


def load(path: Path) -> Any:
    """Parse one YAML file; None where it is empty or absent."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def tasks(items: Any) -> Iterator[dict[str, Any]]:
    """All tasks and blocks of a list of tasks or plays, however they nest."""
    for item in items or []:
        if isinstance(item, dict):
            yield item
            for nested in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers"):
                yield from tasks(item.get(nested))


def action(task: dict[str, Any], *names: str) -> Any:
    """The arguments of the task's module if it is one of `names` (with or without ansible.builtin), else None."""
    for name in names:
        for key in (name, f"ansible.builtin.{name}"):
            if key in task:
                return task[key]
    return None


def included_roles(items: Any) -> Iterator[tuple[str, str]]:
    """(role, entry point) of every role that a list of tasks or plays uses."""
    for task in tasks(items):
        used = action(task, "include_role", "import_role")
        if isinstance(used, dict):
            yield str(used["name"]), str(used.get("tasks_from", "main")).removesuffix(".yml")
        for entry in task.get("roles") or []:
            yield (entry if isinstance(entry, str) else str(entry.get("role") or entry.get("name"))), "main"


@dataclass(frozen=True)
class Role:
    """One role of the collection."""

    path: Path

    @property
    def name(self) -> str:
        """Its short name."""
        return self.path.name

    @cached_property
    def specs(self) -> dict[str, dict[str, Any]]:
        """Entry point -> argument spec."""
        document = load(self.path / "meta" / "argument_specs.yml") or {}
        return dict(document.get("argument_specs") or {})

    @cached_property
    def options(self) -> dict[str, dict[str, Any]]:
        """The options of the entry point `main`."""
        return (self.specs.get("main") or {}).get("options") or {}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The variables of defaults/main.yml."""
        return load(self.path / "defaults" / "main.yml") or {}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The variables of all files below vars/."""
        return {
            name: value
            for path in sorted((self.path / "vars").rglob("*.yml"))
            for name, value in (load(path) or {}).items()
        }

    @cached_property
    def readme(self) -> str:
        """The text of README.md, empty without one."""
        path = self.path / "README.md"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @cached_property
    def tasks(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every task and handler with its file."""
        files = sorted((self.path / "tasks").rglob("*.yml")) + sorted((self.path / "handlers").rglob("*.yml"))
        return [(path, task) for path in files for task in tasks(load(path))]

    @cached_property
    def facts(self) -> set[str]:
        """The names that its set_fact tasks set."""
        found: set[str] = set()
        for _, task in self.tasks:
            arguments = action(task, "set_fact")
            if isinstance(arguments, dict):
                found |= set(arguments) - {"cacheable"}
        return found


ROLES = [Role(path) for path in sorted((ROOT / "roles").glob("*")) if path.is_dir() and any(path.iterdir())]
PLAYBOOKS = [path for path in sorted((ROOT / "playbooks").glob("*.yml")) if not path.name.endswith(".meta.yml")]
MODULES = sorted((ROOT / "plugins" / "modules").glob("*.py"))


def quoted_names(markdown: str) -> set[str]:
    """The variable-like words that a text sets in backquotes; of `a_b.c` and `a_b: c` it is a_b."""
    return {match[1] for match in re.finditer(r"`([a-z_][a-z0-9_]*)(?:[.:=\[ ][^`]*)?`", markdown)}
