# SPDX-License-Identifier: Apache-2.0
"""Filter of the release: by its name, and whole."""

from __future__ import annotations

DOCUMENTATION = r"""
name: release_resolved
short_description: Find a release by its name and combine it over its base
version_added: 1.0.0
description:
  - A release of the site wins over the shipped one of the same name. One that names itself as its base stands over the shipped one.
positional: releases, folder
options:
  _input:
    description: Name of the release.
    type: str
    required: true
  releases:
    description: Releases of the site, by name.
    type: dict
    required: true
  folder:
    description: Folder on the controller of the releases that are shipped, a YAML file each.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the release
  ansible.builtin.debug:
    msg: "{{ (fleet_release | h20.fleet.release_resolved(fleet_releases, '/site/releases')).release }}"
"""

RETURN = r"""
_value:
  description:
    - release (without C(base)), and errors (a sentence with its remedy for each name that is not known).
    - Where there are errors the release means nothing.
  type: dict
"""

import typing as t
from collections.abc import Mapping
from pathlib import Path

from ansible.module_utils.common.yaml import yaml_load


def release_resolved(name: str, releases: Mapping[str, t.Any], folder: str) -> dict[str, t.Any]:
    """Release and errors; see RETURN."""
    shipped = {path.stem: path for path in Path(folder).glob("*.yml")}

    def find(wanted: str, among: t.Collection[str]) -> Mapping[str, t.Any]:
        found = releases[wanted] if wanted in among else yaml_load(shipped[wanted].read_text(encoding="utf-8"))
        return found if isinstance(found, Mapping) else {}

    known = {*shipped, *releases}
    if name not in known:
        remedy = "name one of them, or add it to fleet_releases"
        return _refused(f"fleet_release {name} is not known; known are {', '.join(sorted(known))} -> {remedy}")
    own = find(name, releases)
    base = own.get("base") or ""
    if not base:
        return {"release": _without_base(own), "errors": []}

    # What the site calls by this name is the release itself; below it stands what is shipped.
    others = set(releases) - {name}
    known = {*shipped, *others} - ({name} if name not in releases else set())
    if base not in known:
        remedy = "name one of them, or write the release out without a base"
        return _refused(
            f"release {name}: its base {base} is not known; known are {', '.join(sorted(known))} -> {remedy}"
        )
    below = find(base, others)
    if below.get("base"):
        remedy = "a base stands alone: name that one, and write here what differs"
        return _refused(f"release {name}: its base {base} has a base itself, {below['base']} -> {remedy}")
    return {"release": _without_base(_combined(below, own)), "errors": []}


def _refused(sentence: str) -> dict[str, t.Any]:
    return {"release": {}, "errors": [sentence]}


def _without_base(release: Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {key: value for key, value in release.items() if key != "base"}


def _combined(below: Mapping[str, t.Any], above: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Both, mappings key by key however deep, everything else as `above` has it."""
    both = dict(below)
    for key, value in above.items():
        deeper = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _combined(both[key], value) if deeper else value
    return both


class FilterModule:
    """Filters of the release."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"release_resolved": release_resolved}
