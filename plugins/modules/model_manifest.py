#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Write the manifest of a model revision: as the release has it, or as the sources of the site tell it; signed, or proved to be."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_manifest
short_description: Write the manifest of one pinned revision of a model
version_added: 1.0.0
description:
  - Writes path, size and digest of every file of the revision as JSON.
  - They come from O(content) where it is given, which has to have O(sha256) and is written as it is; else from the first of O(sources) that can tell.
  - A manifest of the same repository and revision that is there already is kept, and nobody is asked, unless O(content) says another or O(fresh) is set.
  - Where O(signers) names anybody, a manifest that none of them has signed is refused, whoever tells it.
options:
  path:
    description: Manifest file to write. Its folder is made where it is missing.
    type: path
    required: true
  sources:
    description:
      - Sources of the site, asked in this order; the first that can tell is believed. Empty asks nobody.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description:
          - V(hub) is a Hugging Face compatible hub, V(modelscope) is ModelScope, V(http) a mirror of plain files, V(s3) a bucket that anybody may read,
            V(path) a folder of this host.
          - The last three are laid out C(<repo>/<revision>/), with C(<repo>/<revision>.manifest.json) beside it.
        type: str
        required: true
        choices: [hub, modelscope, http, s3, path]
      url:
        description: Root of the source; of V(s3) the endpoint with the bucket, of V(path) the folder.
        type: str
        required: true
      revision:
        description: What ModelScope calls the revision, C(master) where it is empty.
        type: str
        default: ""
      region:
        description: Region of the bucket; it needs none to be read without a key.
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
  signature:
    description: Signature of O(content), as C(ssh-keygen -Y sign) writes it for C(h20-fleet-model).
    type: str
    default: ""
  signers:
    description: Who may sign, as the text of an allowed signers file of C(ssh-keygen); empty asks for no signature.
    type: str
    default: ""
  signing_key:
    description: Private key of SSH without a passphrase, which signs what is written, into a file beside it with the suffix C(.sig); empty signs nothing.
    type: path
    default: ""
  fresh:
    description: Whether the sources are asked even where a manifest of the revision is there; what they tell takes its place.
    type: bool
    default: false
  repo:
    description: Repository of the model on the hub.
    type: str
    required: true
  revision:
    description: Full commit of the revision. A branch is refused, because it moves.
    type: str
    required: true
  token:
    description: Access token for a gated repository of a hub; empty asks without one.
    type: str
    default: ""
  modelscope_token:
    description: Access token for ModelScope; empty asks without one.
    type: str
    default: ""
  ca_certificates:
    description: PEM text of certificate authorities to trust for this request; empty trusts the host's own store.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for each answer of a source.
    type: int
    default: 30
attributes:
  check_mode:
    description: Asks and reports, writes and signs nothing.
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
    sources:
      - {kind: hub, url: https://huggingface.co}
    repo: deepseek-ai/DeepSeek-V3-0324
    revision: e9b33add76883f293d6bf61f6bd89b497e80e335
"""

RETURN = r"""
manifest:
  description: The manifest (repo, revision, files).
  returned: success
  type: dict
text:
  description: The manifest as it is written.
  returned: success
  type: str
sha256:
  description: What RV(text) hashes to.
  returned: success
  type: str
bytes:
  description: Sum of the sizes of all files.
  returned: success
  type: int
signer:
  description: Which of O(signers) signed it, or the fingerprint of O(signing_key); empty where nobody was asked for.
  returned: success
  type: str
"""

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _hub, _signatures
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import Manifest, ManifestError


class RefusedError(Exception):
    """The manifest cannot be told or must not be followed; the text says what to do."""


def there(path: Path) -> str:
    """The text of the file, "" where there is none."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return ""


def is_of(text: str, repo: str, revision: str) -> bool:
    """Whether the text is a manifest of this repository and revision."""
    try:
        _hub.parse_manifest(text, repo, revision)
    except ManifestError:
        return False
    return True


def wanted_text(module: AnsibleModule, before: str) -> str:
    """The manifest that shall be there: the release's, else the one that is there, else what the sources tell."""
    params = module.params
    if params["content"]:
        return given_text(module)
    if params["signers"].strip():
        raise RefusedError(
            f"the manifest of {params['repo']}@{params['revision']} is signed by nobody, and fleet_model_signers asks for a signature"
            " -> make, review and sign it (playbook manifest), and name it as the release's model.manifest"
        )
    if not params["fresh"] and is_of(before, params["repo"], params["revision"]):
        return before
    with _hub.trusting(params["ca_certificates"]) as ca_path:
        return _hub.manifest_of(_hub.sources_of(params, ca_path)).text()


def given_text(module: AnsibleModule) -> str:
    """The manifest that the release brings; RefusedError where it is not as the release says."""
    params = module.params
    text: str = params["content"]
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != params["sha256"]:
        raise RefusedError(
            f"{params['name']} has sha256 {found}, the release says {params['sha256']} -> restore the file, or correct the release's model.manifest"
        )
    try:
        _hub.parse_manifest(text, params["repo"], params["revision"])
    except ManifestError as error:
        raise RefusedError(f"{params['name']} {error} -> correct the release's model.manifest") from error
    return text


def signer_of(module: AnsibleModule, text: str) -> str:
    """Who of the known signers has signed the manifest, "" where the site asks for no signature; raises SignatureError."""
    params = module.params
    if not params["signers"].strip():
        return ""
    program = module.get_bin_path("ssh-keygen", required=True)
    return _signatures.model_signer(params["name"], text, params["signature"], params["signers"], program)


def write(module: AnsibleModule, path: Path, text: str) -> None:
    """Write the file at once, readable by everybody; RefusedError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"the folder {path.parent} cannot be made: {error.strerror} -> name another one, or mend its owner or disk"
        ) from error
    descriptor, temporary = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    module.atomic_move(temporary, str(path))


def sign(module: AnsibleModule, path: Path, text: str, *, changed: bool) -> tuple[bool, str]:
    """Sign the file where this key has not signed this text; whether it signs, and the key's fingerprint. Raises SignatureError."""
    keygen = _signatures.Keygen(_signatures.MODEL, module.get_bin_path("ssh-keygen", required=True))
    fingerprint = keygen.fingerprint(module.params["signing_key"])
    signs = changed or keygen.signed_by(text, path.with_name(f"{path.name}.sig")) != fingerprint
    if signs and not module.check_mode:
        keygen.sign(module.params["signing_key"], path)
    return signs, fingerprint


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "name": {"type": "str", "default": "the release's manifest"},
            "signature": {"type": "str", "default": ""},
            "signers": {"type": "str", "default": ""},
            "signing_key": {"type": "path", "default": "", "no_log": False},
            "fresh": {"type": "bool", "default": False},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "required": True},
            **_hub.OPTIONS,
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    if not _hub.is_pinned(module.params["revision"]):
        module.fail_json(
            msg=f"{module.params['revision']!r} is no full commit (40 hexadecimal digits): a branch or tag moves, so it cannot be pinned"
        )
    before = there(path)
    try:
        text = wanted_text(module, before)
        signer = signer_of(module, text)
        changed = text != before
        if changed and not module.check_mode:
            write(module, path, text)
        signs = False
        if module.params["signing_key"]:
            signs, signer = sign(module, path, text, changed=changed)
    except (RefusedError, _hub.HubError, _signatures.SignatureError) as error:
        module.fail_json(msg=str(error))
    manifest = Manifest.parse(text)
    module.exit_json(
        changed=changed or signs,
        manifest=dataclasses.asdict(manifest),
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        bytes=manifest.bytes,
        signer=signer,
        diff={"before": before, "after": text, "before_header": str(path), "after_header": str(path)}
        if changed
        else {},
    )


if __name__ == "__main__":
    main()
