#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Write and sign the manifest of a bundle, or prove a bundle against its signed manifest."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: bundle_manifest
short_description: Sign the manifest of a bundle, or prove a bundle
version_added: 1.0.0
description:
  - The manifest names every file of the folder but itself and its signature, with size and SHA256. It is signed by C(ssh-keygen -Y).
  - A bundle is proved when a known signer has signed its manifest and every file is the manifest's, none missing and none more. What is wrong is named, all of
    it at once.
  - A file that was hashed before and has not changed since, by inode, size and times, is not read again.
options:
  state:
    description: V(written) writes and signs the manifest, V(proved) proves the folder.
    type: str
    choices: [written, proved]
    default: proved
  path:
    description: Folder of the bundle.
    type: path
    required: true
  stamp:
    description: File that remembers what was hashed, outside of the folder.
    type: path
    required: true
  full:
    description: Whether every file is read again, whatever the stamp says.
    type: bool
    default: false
  signing_key:
    description: Private key of SSH without a passphrase, for V(written).
    type: path
  signers:
    description: Who may sign, as the text of an allowed signers file of C(ssh-keygen), for V(proved).
    type: str
    default: ""
  facts:
    description:
      - What the manifest says beside its files, for V(written).
      - Folders of models that C(elsewhere) lists come by another way, so that their files are neither in the manifest nor proved by it.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Reads and compares; writes and signs nothing.
    support: full
  diff_mode:
    description: Has none.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Sign a bundle
  h20.fleet.bundle_manifest:
    state: written
    path: /var/lib/h20-fleet/bundle
    stamp: /var/lib/h20-fleet/bundle.work/stamp.json
    signing_key: /root/.ssh/h20-fleet-bundle
    facts:
      release: "2026.11"

- name: Prove it where it has been carried to
  h20.fleet.bundle_manifest:
    path: /srv/bundle
    stamp: /srv/bundle.work/stamp.json
    signers: fleet@example.org namespaces="h20-fleet-bundle" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHx1vRZ5vhkJb8gJfVZSYD0kQWDuW0MGU2j4AkkF1fhy
"""

RETURN = r"""
files:
  description: Number of files.
  returned: success
  type: int
bytes:
  description: Sum of their sizes.
  returned: success
  type: int
signer:
  description: Who signed the manifest; its key's fingerprint where it was written.
  returned: success
  type: str
facts:
  description: What the manifest says beside its files.
  returned: success
  type: dict
"""

import datetime
import json
import os
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _bundle, _signatures

NAMESPACE = "h20-fleet-bundle"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
CARRY = "carry it over again from the connected machine"


class BundleError(Exception):
    """The bundle cannot be signed or is not as it was signed; the text names each thing and says what to do."""


def tree(root: Path, facts: t.Mapping[str, t.Any]) -> tuple[dict[str, Path], list[str]]:
    """The plain files below the folder but manifest, signature and the weights that come by another way, and whatever is no plain file."""
    elsewhere = tuple(f"{folder}/" for folder in facts.get("elsewhere", []) if folder.startswith("models/"))
    files, other = {}, []
    for folder, folders, names in os.walk(root):
        for name in sorted([*names, *(name for name in folders if (Path(folder) / name).is_symlink())]):
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if relative.startswith(elsewhere):
                continue
            if path.is_symlink() or not path.is_file():
                other.append(relative)
            elif relative not in (MANIFEST, SIGNATURE):
                files[relative] = path
    return files, other


def mark(path: Path) -> list[int]:
    """What a file looks like from outside: inode, bytes, and both times in nanoseconds. Nobody can set the second time."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def hashed(files: t.Mapping[str, Path], stamp: Path, *, full: bool, keep: bool) -> dict[str, str]:
    """SHA256 of each file; of the stamp where the file is as it was then, else read. The stamp is written anew where ``keep``."""
    try:
        known = {} if full else json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    marks = {name: mark(path) for name, path in files.items()}
    new = [name for name in files if not isinstance(known.get(name), list) or known[name][1:] != marks[name]]
    fresh = _bundle.digests({files[name]: "sha256" for name in new})
    found = {name: fresh[files[name]] if files[name] in fresh else str(known[name][0]) for name in files}
    if keep and (new or set(known) != set(files)):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        _bundle.write(stamp, json.dumps({name: [found[name], *marks[name]] for name in files}))
    return found


def keygen_of(module: AnsibleModule) -> _signatures.Keygen:
    """ssh-keygen for signatures of bundles."""
    return _signatures.Keygen(NAMESPACE, module.get_bin_path("ssh-keygen", required=True))


def trouble(keygen: _signatures.Keygen, manifest: Path, signature: Path, signers: str) -> tuple[str, str]:
    """Who signed the manifest, and what is wrong with that."""
    if not signature.is_file():
        return "", f"SIGNATURE: {SIGNATURE} is missing -> {CARRY}; an unsigned bundle is not to be trusted"
    try:
        return keygen.known_signer(manifest.read_text(encoding="utf-8"), signature, signers), ""
    except _signatures.UnsignedError:
        return "", f"SIGNATURE: {SIGNATURE} is not one of {MANIFEST} as it is: one of the two was changed -> {CARRY}"
    except _signatures.UnknownSignerError as error:
        return "", (
            f"SIGNER: {MANIFEST} was signed by the key {error.fingerprint}, which is none of the known signers for {NAMESPACE}"
            " -> use a bundle of a known signer, or add its public key to the variable of the signers once you know whose it is"
        )


def written(module: AnsibleModule) -> dict[str, t.Any]:
    """Write and sign the manifest where it is not that of the folder; returns what the module tells."""
    root, keygen = Path(module.params["path"]), keygen_of(module)
    if not module.params["signing_key"]:
        raise BundleError("no key to sign with -> make one: ssh-keygen -t ed25519 -N '' -C fleet -f KEY, and name it")
    fingerprint = keygen.fingerprint(module.params["signing_key"])
    files, other = tree(root, module.params["facts"])
    if other:
        raise BundleError(f"no plain files, so nobody can carry them: {', '.join(other)} -> delete them below {root}")
    stamp = Path(module.params["stamp"])
    digests = hashed(files, stamp, full=module.params["full"], keep=not module.check_mode)
    listed = [{"path": name, "size": files[name].stat().st_size, "sha256": digests[name]} for name in sorted(files)]
    manifest, signature = root / MANIFEST, root / SIGNATURE
    wanted = {**module.params["facts"], "files": listed}
    before = read(manifest)
    same = before is not None and {key: value for key, value in before.items() if key != "created"} == wanted
    changed = not same or keygen.signed_by(manifest.read_text(encoding="utf-8"), signature) != fingerprint
    if changed and not module.check_mode:
        signature.unlink(missing_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        _bundle.write(manifest, json.dumps({"created": now, **wanted}, indent=1) + "\n")
        keygen.sign(module.params["signing_key"], manifest)
    return {
        "changed": changed,
        "files": len(listed),
        "bytes": sum(path.stat().st_size for path in files.values()),
        "signer": fingerprint,
        "facts": module.params["facts"],
    }


def read(manifest: Path) -> dict[str, t.Any] | None:
    """The manifest, None where there is none or it is not one."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        for file in content["files"]:
            (file["path"], file["size"], file["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return t.cast(dict[str, t.Any], content)


def kind(path: str) -> str:
    """What a file of the bundle is, for the one who reads that it is wrong."""
    kinds = {"wheels": "WHEEL", "locks": "LOCK", "releases": "RELEASE", "apt": "PACKAGE", "nvidia": "PACKAGE"}
    return kinds.get(path.partition("/")[0], "FILE")


def differences(
    listed: t.Sequence[t.Mapping[str, t.Any]], files: t.Mapping[str, Path], digests: t.Mapping[str, str]
) -> list[str]:
    """Each file that is not as the manifest says, by name."""
    lines = []
    for file in listed:
        name = file["path"]
        if name not in files:
            lines.append(f"{kind(name)}: {name} is missing -> {CARRY}")
        elif files[name].stat().st_size != file["size"]:
            lines.append(
                f"{kind(name)}: {name} has {files[name].stat().st_size} bytes, the manifest says {file['size']} -> {CARRY}"
            )
        elif digests[name] != file["sha256"]:
            lines.append(
                f"{kind(name)}: {name} has sha256 {digests[name]}, the manifest says {file['sha256']} -> {CARRY}"
            )
    known = {file["path"] for file in listed}
    lines += [
        f"{kind(name)}: {name} is not in the manifest -> delete it" for name in sorted(files) if name not in known
    ]
    return lines


def proved(module: AnsibleModule) -> dict[str, t.Any]:
    """Prove the folder, or raise BundleError; returns what the module tells."""
    root, keygen = Path(module.params["path"]), keygen_of(module)
    manifest, signature = root / MANIFEST, root / SIGNATURE
    if not manifest.is_file():
        raise BundleError(
            f"{root} is no bundle: {MANIFEST} is missing -> carry the whole folder over, or correct its path"
        )
    signer, reason = trouble(keygen, manifest, signature, module.params["signers"])
    lines = [reason] if reason else []
    content = read(manifest)
    if content is None:
        raise BundleError("\n".join([*lines, f"{root / MANIFEST} is no manifest of a bundle -> {CARRY}"]))
    files, other = tree(root, content)
    lines += [f"FILE: {name} is no plain file -> delete it, then {CARRY}" for name in other]
    digests = hashed(files, Path(module.params["stamp"]), full=module.params["full"], keep=not module.check_mode)
    lines += differences(content["files"], files, digests)
    if lines:
        raise BundleError("\n".join(lines))
    return {
        "changed": False,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files.values()),
        "signer": signer,
        "facts": {key: value for key, value in content.items() if key != "files"},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["written", "proved"], "default": "proved"},
            "path": {"type": "path", "required": True},
            "stamp": {"type": "path", "required": True},
            "full": {"type": "bool", "default": False},
            "signing_key": {"type": "path", "no_log": False},
            "signers": {"type": "str", "default": ""},
            "facts": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        answer = written(module) if module.params["state"] == "written" else proved(module)
    except (BundleError, _signatures.SignatureError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
