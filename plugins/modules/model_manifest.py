#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Write the manifest of a model revision: as the release has it, or as a mirror or the hub's tree API tells it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_manifest
short_description: Write the manifest of one pinned revision of a model
version_added: 1.0.0
description:
  - Writes path, size and digest of every file of the revision as JSON.
  - They come from O(content) where it is given, which has to have O(sha256); else from the mirror, else from the tree API of a Hugging Face compatible hub.
  - A manifest of the same repository and revision that is there already is kept, and nobody is asked, unless O(content) says another.
options:
  path:
    description: Manifest file to write. The folder must exist.
    type: path
    required: true
  endpoint:
    description: Root URL of the hub.
    type: str
    required: true
  mirror:
    description: Root URL of a mirror of plain files, asked for C(<repo>/<revision>.manifest.json) in place of the hub; empty asks the hub.
    type: str
    default: ""
  content:
    description: Text of the manifest, for a release that brings its own; nobody is asked then.
    type: str
    default: ""
  sha256:
    description: What O(content) has to hash to.
    type: str
    default: ""
  name:
    description: What O(content) is called where it is refused.
    type: str
    default: the release's manifest
  repo:
    description: Repository of the model on the hub.
    type: str
    required: true
  revision:
    description: Full commit of the revision. A branch is refused, because it moves.
    type: str
    required: true
  token:
    description: Access token for a gated repository; empty asks without one.
    type: str
    default: ""
  ca_certificates:
    description: PEM text of certificate authorities to trust for this request; empty trusts the host's own store.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for each answer of the hub.
    type: int
    default: 30
attributes:
  check_mode:
    description: Asks and reports, writes nothing.
    support: full
  diff_mode:
    description: Shows the manifest before and after.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Know every file of the revision
  h20.fleet.model_manifest:
    path: /etc/h20-fleet/models/DeepSeek-V3-0324.json
    endpoint: https://huggingface.co
    repo: deepseek-ai/DeepSeek-V3-0324
    revision: e9b33add76883f293d6bf61f6bd89b497e80e335
"""

RETURN = r"""
manifest:
  description: The manifest (repo, revision, files).
  returned: success
  type: dict
bytes:
  description: Sum of the sizes of all files.
  returned: success
  type: int
"""

import hashlib
import json
import os
import tempfile
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _hub


def kept_manifest(path: Path, repo: str, revision: str) -> dict[str, t.Any] | None:
    """The manifest at ``path`` where it is one of this repository and revision, else None."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or (manifest.get("repo"), manifest.get("revision")) != (repo, revision):
        return None
    return manifest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "endpoint": {"type": "str", "required": True},
            "mirror": {"type": "str", "default": ""},
            "content": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "name": {"type": "str", "default": "the release's manifest"},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "ca_certificates": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    if not _hub.is_pinned(module.params["revision"]):
        module.fail_json(
            msg=f"{module.params['revision']!r} is no full commit (40 hexadecimal digits): a branch or tag moves, so it cannot be pinned"
        )
    given = given_manifest(module)
    kept = kept_manifest(path, module.params["repo"], module.params["revision"])
    if given and kept != given:
        kept = None
    manifest = kept or given or ask(module)
    text = json.dumps(manifest, indent=1) + "\n"
    if not kept and not module.check_mode:
        descriptor, temporary = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        module.atomic_move(temporary, str(path))
    module.exit_json(
        changed=not kept,
        manifest=manifest,
        bytes=sum(file["size"] for file in manifest["files"]),
        diff={} if kept else {"before": "", "after": text, "after_header": str(path)},
    )


def given_manifest(module: AnsibleModule) -> dict[str, t.Any] | None:
    """The manifest that the release brings, None where it brings none; one that is not as the release says ends the module."""
    params = module.params
    if not params["content"]:
        return None
    found = hashlib.sha256(params["content"].encode()).hexdigest()
    if found != params["sha256"]:
        module.fail_json(
            msg=f"{params['name']} has sha256 {found}, the release says {params['sha256']} -> restore the file, or correct the release's model.manifest"
        )
    try:
        return _hub.as_manifest(params["content"], params["repo"], params["revision"])
    except ValueError as error:
        return t.cast(
            dict[str, t.Any],
            module.fail_json(msg=f"{params['name']} {error} -> correct the release's model.manifest"),
        )


def ask(module: AnsibleModule) -> dict[str, t.Any]:
    """The manifest that the mirror or the hub tells; what it refuses ends the module."""
    try:
        with _hub.trusting(module.params["ca_certificates"]) as ca_path:
            return _hub.source_of(module.params, ca_path).manifest()
    except _hub.HubError as error:
        return t.cast(dict[str, t.Any], module.fail_json(msg=str(error)))


if __name__ == "__main__":
    main()
