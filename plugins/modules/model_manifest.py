#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Write the manifest of a model revision, as the hub's tree API tells it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_manifest
short_description: Write the manifest of one pinned revision of a model
version_added: 1.0.0
description:
  - Asks the tree API of a Hugging Face compatible hub for every file of the revision and writes path, size and digest of each as JSON.
  - A manifest of the same repository and revision that is there already is kept, and the hub is not asked.
options:
  path:
    description: Manifest file to write. The folder must exist.
    type: path
    required: true
  endpoint:
    description: Root URL of the hub.
    type: str
    required: true
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
    description: Asks the hub and reports, writes nothing.
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

import json
import os
import re
import tempfile
import typing as t
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

NEXT_PAGE = re.compile(r'<([^>]+)>;\s*rel="next"')


class ManifestError(Exception):
    """The hub did not answer with a tree; the text says what to do."""


def manifest_file(entry: dict[str, t.Any]) -> dict[str, t.Any]:
    """One file of a manifest: large files carry their sha256, small ones the hash that git gives the blob."""
    lfs = entry.get("lfs")
    return {
        "path": entry["path"],
        "size": entry["size"],
        "algorithm": "sha256" if lfs else "git-sha1",
        "digest": lfs["oid"] if lfs else entry["oid"],
    }


def fetch_manifest(params: dict[str, t.Any], ca_path: str | None) -> dict[str, t.Any]:
    """The manifest of ``params['revision']``; raises ManifestError."""
    repo, revision = params["repo"], params["revision"]
    url = f"{params['endpoint'].rstrip('/')}/api/models/{repo}/tree/{quote(revision, safe='')}?recursive=true"
    headers = {"Authorization": f"Bearer {params['token']}"} if params["token"] else {}
    files: list[dict[str, t.Any]] = []
    page: str | None = url
    while page:
        try:
            with open_url(page, headers=headers, timeout=params["timeout"], ca_path=ca_path) as response:
                entries = json.load(response)
                following = NEXT_PAGE.search(response.headers.get("Link") or "")
        except HTTPError as error:
            with error:
                raise ManifestError(_refusal(error, params)) from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            raise ManifestError(
                f"the hub {params['endpoint']} does not answer: {getattr(error, 'reason', error)}"
                " -> check that it is up and reachable from this host, or set fleet_hub_endpoint to another mirror"
            ) from error
        files += [manifest_file(entry) for entry in entries if entry["type"] == "file"]
        page = following.group(1) if following else None
    return {"repo": repo, "revision": revision, "files": sorted(files, key=lambda file: str(file["path"]))}


def _refusal(error: HTTPError, params: dict[str, t.Any]) -> str:
    code = error.headers.get("X-Error-Code", "")
    if code == "RevisionNotFound":
        return (
            f"the hub {params['endpoint']} has no revision {params['revision']} of {params['repo']}"
            " -> correct the release's model.revision, or wait until the mirror has it"
        )
    if code == "RepoNotFound" or error.code in (401, 403, 404):
        return (
            f"the hub {params['endpoint']} has no repository {params['repo']}, or none that this token may read (HTTP {error.code})"
            " -> correct the release's model.repo, or set fleet_hub_token"
        )
    return f"the hub {params['endpoint']} answers HTTP {error.code} {error.reason} -> try again later, or set fleet_hub_endpoint to another mirror"


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
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "ca_certificates": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    if not re.fullmatch(r"[0-9a-f]{40}", module.params["revision"]):
        module.fail_json(
            msg=f"{module.params['revision']!r} is no full commit (40 hexadecimal digits): a branch or tag moves, so it cannot be pinned"
        )
    kept = kept_manifest(path, module.params["repo"], module.params["revision"])
    manifest = kept or ask(module)
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


def ask(module: AnsibleModule) -> dict[str, t.Any]:
    """The manifest that the hub tells; what it refuses ends the module."""
    authorities = module.params["ca_certificates"]
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(authorities)
        file.flush()
        try:
            manifest = fetch_manifest(module.params, file.name if authorities else None)
        except ManifestError as error:
            module.fail_json(msg=str(error))
    return manifest


if __name__ == "__main__":
    main()
