#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Have on a host what fetches one revision of a model, say whether the revision is complete, and start the fetch."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_revision
short_description: Have what fetches one revision of a model, say whether it is complete, and start the fetch
version_added: 1.0.0
description:
  - Writes the fetch program (which comes with this module), its unit, its environment, the manifest of the revision and the job, each where it differs.
  - Says whether the revision is complete, judged by what the files look like from outside since every byte was proved.
  - With O(start), starts the unit and does not wait. One that runs already with the same program and job is joined, one that runs with another is restarted
    and goes on where it stood. A disk that is too small is refused before the first byte.
  - Without O(start), a job that is on the disk keeps the hosts that it names, so that work under way is left alone.
options:
  instance:
    description: Name of the revision on the host, and of the instance of the unit C(model-fetch@.service).
    type: str
    required: true
  repo:
    description: Repository of the model.
    type: str
    required: true
  revision:
    description: Full commit of the revision.
    type: str
    required: true
  job:
    description:
      - C(destination), C(host), C(distribution), C(sources), C(limits) and C(site) of the job, as the program has them.
    type: dict
    required: true
  unit:
    description: Text of the unit.
    type: str
    required: true
  environment:
    description: Environment of the program, into a file that root alone reads.
    type: dict
    default: {}
  secrets:
    description: The same for what must not be shown. Empty values are left out.
    type: dict
    default: {}
  manifest:
    description: Text of the manifest, written as it is; empty keeps the one that the host has of this repository and revision.
    type: str
    default: ""
  manifest_name:
    description: What O(manifest) is called where it is refused.
    type: str
    default: the manifest
  sha256:
    description: What O(manifest) has to hash to; empty takes any.
    type: str
    default: ""
  start:
    description: Whether the fetch is started.
    type: bool
    default: false
  user:
    description: Account that the unit runs as. It has to be there where the fetch is started.
    type: str
    default: model-fetch
attributes:
  check_mode:
    description: Says what would be written, and whether the revision would have to be fetched.
    support: full
  diff_mode:
    description: Shows the files without what the environment holds, of the program names alone.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Start the fetch of a revision from a mirror
  h20.fleet.model_revision:
    instance: deepseek-v3-0324-e9b33add7688
    repo: deepseek-ai/DeepSeek-V3-0324
    revision: e9b33add76883f293d6bf61f6bd89b497e80e335
    manifest: "{{ lookup('ansible.builtin.file', '/site/manifest.json', rstrip=false) }}"
    job:
      destination: /data/models/deepseek-ai/DeepSeek-V3-0324/e9b33add76883f293d6bf61f6bd89b497e80e335
      host: h20-01
      distribution: source
      sources:
        - {kind: http, url: http://mirror.example.internal/models}
    unit: "{{ lookup('ansible.builtin.template', 'model-fetch@.service.j2') }}"
    start: true
"""

RETURN = r"""
instance:
  description: Name of the revision, as it was given.
  returned: always
  type: str
complete:
  description: Whether the revision is there and as it was proved.
  returned: always
  type: bool
manifest_missing:
  description: Whether nobody has told yet what the revision consists of.
  returned: always
  type: bool
missing_bytes:
  description: Bytes that are still to come; null where there is no manifest.
  returned: always
  type: int
free_bytes:
  description: Bytes that the revision's filesystem has free; null where there is no manifest.
  returned: always
  type: int
altered:
  description: Files that are not what was proved, or the revision's folder.
  returned: always
  type: list
  elements: str
running:
  description: Whether the unit was at work when the task began. Not asked of a host that has the revision, unless the fetch is to be started.
  returned: always
  type: bool
distribution:
  description: How the job that is on the disk gets the revision.
  returned: always
  type: str
site:
  description: The hosts that get it together, by the job that is on the disk; empty where the host is alone.
  returned: always
  type: dict
files:
  description: Of each file that is written, whether it was C(same), C(other) or C(absent), and when it was changed (in UTC).
  returned: always
  type: dict
"""

import dataclasses
import hashlib
import json
import os
import pkgutil
import pwd
import re
import tempfile
import typing as t
from datetime import datetime, timezone
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _revisions, _weights
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import Manifest, ManifestError

#: Share of the missing bytes that must stay free beside them, for the filesystem's own needs.
MARGIN = 0.05
GIB = 1024**3
HEADER = "# Managed by h20.fleet: role model\n"
VARIABLE = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)


class RefusedError(Exception):
    """What stands against it; the text says what to do."""


def plain(content: bytes) -> str:
    """All of it, for a diff."""
    return content.decode("utf-8", "replace")


def digest(content: bytes) -> str:
    """Its sha256, for a diff of what nobody would read."""
    return f"sha256 {hashlib.sha256(content).hexdigest()}\n"


def names(content: bytes) -> str:
    """The names of variables without their values."""
    return "".join(f"{name}=(hidden)\n" for name in VARIABLE.findall(plain(content)))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A file as it should be; ``reveal`` makes of a content what a diff may show of it."""

    path: Path
    content: bytes
    reveal: t.Callable[[bytes], str] = plain
    mode: int = 0o644

    def state(self) -> str:
        """Whether the file on the disk is the "same", an "other" one, or "absent"."""
        try:
            status = self.path.lstat()
            same = (status.st_mode & 0o7777, status.st_uid) == (self.mode, os.geteuid())
            return "same" if same and self.path.read_bytes() == self.content else "other"
        except FileNotFoundError:
            return "absent"

    def changed(self) -> str:
        """When the file on the disk was changed, in UTC; "" where it is not there."""
        if not self.path.exists():
            return ""
        return datetime.fromtimestamp(self.path.stat().st_mtime, timezone.utc).strftime("%Y-%m-%d %H:%M")

    def diff(self) -> dict[str, str]:
        before = self.reveal(self.path.read_bytes()) if self.path.exists() else ""
        after = self.reveal(self.content)
        if before == after:
            before = "(other values, owner or mode)\n"
        return {"before_header": str(self.path), "after_header": str(self.path), "before": before, "after": after}

    def write(self) -> None:
        """Replace the file at once."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.content)
        Path(name).chmod(self.mode)
        Path(name).replace(self.path)


def program_files() -> list[Wanted]:
    """The modules of the fetch program, out of the package that this module has brought along."""
    modules = ["__init__", *sorted(module.name for module in pkgutil.iter_modules(_weights.__path__))]
    sources = {name: pkgutil.get_data(_weights.__name__, f"{name}.py") for name in modules}
    return [Wanted(_revisions.PROGRAM / f"{name}.py", text, digest) for name, text in sources.items() if text]


def environment_file(values: t.Mapping[str, t.Any]) -> Wanted:
    """What systemd gives to the program, for root alone; raises RefusedError for what systemd could not read."""
    lines = []
    for name, value in sorted(values.items()):
        escaped = re.sub(r'([\\"$`])', r"\\\1", str(value))
        lines.append(f'{name}="{escaped}"\n')
        if not VARIABLE.match(lines[-1]) or re.search(r"[\x00-\x1f]", escaped):
            raise RefusedError(
                f"{name} is no variable of an environment, or has control characters -> correct fleet_proxy or the token"
            )
    return Wanted(_revisions.ENVIRONMENT, (HEADER + "".join(lines)).encode(), names, 0o600)


def given_manifest(params: dict[str, t.Any]) -> str:
    """The manifest that the task gives, which has to be the one of the revision; "" where it gives none."""
    text, name = str(params["manifest"]), params["manifest_name"]
    if not text:
        return ""
    found = hashlib.sha256(text.encode()).hexdigest()
    if params["sha256"] not in ("", found):
        raise RefusedError(
            f"{name} has sha256 {found}, the release says {params['sha256']} -> restore the file, or correct the release's model.manifest"
        )
    try:
        manifest = Manifest.parse(text)
    except ManifestError as error:
        raise RefusedError(f"{name} {error} -> correct the release's model.manifest") from error
    if (manifest.repo, manifest.revision) != (params["repo"], params["revision"]):
        raise RefusedError(
            f"{name} is the manifest of {manifest.repo}@{manifest.revision}, not of {params['repo']}@{params['revision']}"
            " -> correct the release's model.manifest"
        )
    return text


def kept_manifest(path: Path, repo: str, revision: str) -> str:
    """The manifest that the host has, where it is one of this very revision; else ""."""
    try:
        text = path.read_text(encoding="utf-8")
        manifest = Manifest.parse(text)
    except (OSError, UnicodeDecodeError, ManifestError):
        return ""
    return text if (manifest.repo, manifest.revision) == (repo, revision) else ""


def whole_job(params: dict[str, t.Any], revision: _revisions.Revision) -> dict[str, t.Any]:
    """The job with the host's own paths. Where nothing is started, how and with whom stays as the job on the disk has it."""
    given = params["job"]
    shared = given["distribution"] == "shared"
    stamp = revision.state / "stamp.json" if shared else Path(given["destination"]) / _revisions.STAMP
    job: dict[str, t.Any] = given | {
        "manifest": str(revision.manifest),
        "stamp": str(stamp),
        "state": str(revision.state),
    }
    known = _revisions.read_job(revision)
    if known and not params["start"] and (known.distribution == "shared") == shared:
        kept = _revisions.read_json(revision.job)
        job |= {key: kept.get(key) for key in ("distribution", "site")}
    return job


def refuse_small_disk(state: t.Mapping[str, t.Any]) -> None:
    """Raise RefusedError where what is missing and its margin do not fit."""
    needed, free = int(state["missing_bytes"] * (1 + MARGIN)), state["free_bytes"]
    if free < needed:
        raise RefusedError(
            f"{state['destination']} needs {needed / GIB:.2f} GiB more and its filesystem has {free / GIB:.2f} GiB free"
            f" -> free {(needed - free) / GIB:.2f} GiB, or set fleet_model_root to a larger disk"
        )


def own(job: Job, user: str) -> None:
    """Give the unit's account the folders that it writes in, and the files that it may have to mend, whoever has brought them."""
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise RefusedError(
            f"there is no account {user} -> make it, as the role model does before it starts the fetch"
        ) from error
    shared = job.distribution == "shared"
    folders = [job.state] if shared else [job.state, job.destination.parent]
    trees = [] if shared else [job.destination, job.partial]
    for folder in folders:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    inside = [path for tree in trees if tree.is_dir() for path in (tree, *tree.rglob("*"))]
    for path in (*folders, *inside):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


class Revision:
    """The revision as the task wants it, against what the host has of it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, params = module, module.params
        self.names = _revisions.Revision(params["instance"])
        kept = kept_manifest(self.names.manifest, params["repo"], params["revision"])
        self.manifest = given_manifest(params) or kept
        content = whole_job(params, self.names)
        self.job = Job.of(content)
        secrets = {name: value for name, value in params["secrets"].items() if value}
        self.files = [
            *program_files(),
            Wanted(_revisions.UNIT, params["unit"].encode()),
            environment_file(params["environment"] | secrets),
            Wanted(self.names.job, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()),
            *([Wanted(self.names.manifest, self.manifest.encode(), digest)] if self.manifest else []),
        ]
        self.differing = [file for file in self.files if file.state() != "same"]
        paths = {file.path for file in self.files}
        #: Modules of another version of the program.
        self.strange = [path for path in sorted(_revisions.PROGRAM.glob("*.py")) if path not in paths]

    def report(self) -> dict[str, t.Any]:
        """Of each file its state and when it was changed; one of another version of the program should not be there."""
        known = {str(file.path): {"state": file.state(), "changed": file.changed()} for file in self.files}
        return known | {
            str(path): {"state": "strange", "changed": Wanted(path, b"").changed()} for path in self.strange
        }

    def diff(self) -> list[dict[str, str]]:
        """A part a file, and one for the whole program."""
        parts = {file.path: file.diff() for file in self.differing}
        program = {path: part for path, part in parts.items() if path.parent == _revisions.PROGRAM}
        program |= {path: {"before": "of another version\n", "after": ""} for path in self.strange}
        folder = {"before_header": str(_revisions.PROGRAM), "after_header": str(_revisions.PROGRAM)}
        whole = {
            side: "".join(f"{path.name} {part[side]}" for path, part in program.items() if part[side])
            for side in ("before", "after")
        }
        return ([folder | whole] if program else []) + [part for path, part in parts.items() if path not in program]

    def write(self) -> None:
        for path in self.strange:
            path.unlink()
        for file in self.differing:
            file.write()
        if any(file.path == _revisions.UNIT for file in self.differing):
            self.systemctl("daemon-reload")

    def look(self) -> dict[str, t.Any]:
        """How far the revision is by the manifest that is wanted, be it on the disk already or not."""
        with tempfile.NamedTemporaryFile("w", dir=self.module.tmpdir, suffix=".json") as file:
            file.write(self.manifest)
            file.flush()
            return _revisions.look(dataclasses.replace(self.job, manifest=Path(file.name)))

    def start(self, unit: _revisions.Unit) -> bool:
        """Have the unit at work with what is on the disk now; whether that took anything."""
        if unit.running and max(file.path.stat().st_mtime for file in self.files) <= unit.started:
            return False
        own(self.job, self.module.params["user"])
        self.names.wanted.touch()
        if unit.stale:
            self.systemctl("daemon-reload")
        self.systemctl("--quiet", "enable", self.names.unit)
        self.systemctl("--no-block", "restart", self.names.unit)
        return True

    def systemctl(self, *arguments: str) -> None:
        self.module.run_command([self.module.get_bin_path("systemctl", required=True), *arguments], check_rc=True)


def converge(module: AnsibleModule) -> dict[str, t.Any]:
    """Write, look, and start where that is asked for; what the module returns."""
    revision = Revision(module)
    files, diff = revision.report(), revision.diff()
    changed, start = bool(diff), module.params["start"]
    if changed and not module.check_mode:
        revision.write()
    state = revision.look()
    unit = _revisions.unit_of(module, revision.names) if start or not state["complete"] else None
    running = unit is not None and unit.running
    if not state["complete"] and (start or module.check_mode):
        changed = True
        diff.append({"before": f"{_missing(state)}\n", "after": f"{state['destination']} is complete\n"})
    if start and unit and not module.check_mode:
        if not revision.manifest:
            raise RefusedError(
                f"nobody has said what {revision.names.instance} consists of -> give the manifest with start"
            )
        if not state["complete"] and not running and revision.job.distribution != "shared":
            refuse_small_disk(state)
        changed = revision.start(unit) or changed
    site = revision.job.site
    return {
        "changed": changed,
        "diff": diff,
        "instance": module.params["instance"],
        **{key: state[key] for key in ("complete", "missing_bytes", "free_bytes", "altered")},
        "manifest_missing": not revision.manifest,
        "running": running,
        "distribution": revision.job.distribution,
        "site": dataclasses.asdict(site) if site else {},
        "files": files,
    }


def _missing(state: t.Mapping[str, t.Any]) -> str:
    if state["missing_bytes"] is None:
        return f"{state['destination']}: the manifest has not been asked for yet"
    return f"{state['destination']}: {state['missing_bytes']} bytes are missing or not proved"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "required": True},
            "job": {"type": "dict", "required": True},
            "unit": {"type": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "manifest": {"type": "str", "default": ""},
            "manifest_name": {"type": "str", "default": "the manifest"},
            "sha256": {"type": "str", "default": ""},
            "start": {"type": "bool", "default": False},
            "user": {"type": "str", "default": "model-fetch"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**converge(module))
    except RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename} cannot be written: {error.strerror} -> see its disk, then run the stage again: --tags model"
        )


if __name__ == "__main__":
    main()
