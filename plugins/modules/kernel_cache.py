#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Pack what an instance has compiled, or give it what another host has compiled under the same key."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_cache
short_description: Carry the compiled code of a vLLM instance from one host to others
version_added: 1.0.0
description:
  - What vLLM, torch.compile, Triton, FlashInfer and DeepGEMM compile at a first start lies in one folder, whose name is the key of all that it depends on.
  - An archive is taken only under its own key, whole, and where each file has the SHA256 of its manifest. Links, devices, files with
    setuid or setgid, and names that lead out of the folder are refused.
  - Files that hold the environment of a start, with its API key, are in no archive.
options:
  step:
    description:
      - V(describe) tells whether anything was compiled, V(pack) writes an archive of it, V(unpack) fills an empty folder from one.
      - V(unpack) leaves a folder alone that holds anything, since an instance may run from it.
    type: str
    choices: [describe, pack, unpack]
    default: describe
  factors:
    description:
      - What the code depends on; their digest is the key.
      - No secrets, and nothing that differs between hosts which compile the same, such as an address or a port.
    type: dict
    required: true
  root:
    description: Folder of the compiled code of all keys, each in a folder of its key.
    type: path
    default: /var/lib/vllm/cache
  archive:
    description: File to write or to read, for V(pack) and V(unpack).
    type: path
  manifest:
    description: Manifest of the archive, as V(pack) has returned it, for V(unpack).
    type: dict
  owner:
    description: User who runs the instance, and whose the files are.
    type: str
    default: vllm
attributes:
  check_mode:
    description: Reports whether an archive would be written or taken; reads none.
    support: full
  diff_mode:
    description: Has none.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Pack what the canary has compiled
  h20.fleet.kernel_cache:
    step: pack
    factors: &factors
      gpu: {product: NVIDIA H20, pci_device: "2329"}
      driver: 580.173.02
      release: {name: "2026.11", packages: ab5df625bc76dbd4e163bed2dd888df828f90159bb93556525c31821b6541d46}
      model: {repo: deepseek-ai/DeepSeek-V3-0324, revision: e9b33add76883f293d6bf61f6bd89b497e80e335}
      arguments: {tensor-parallel-size: 8}
      environment: {VLLM_USE_DEEP_GEMM: "0"}
    archive: /var/lib/h20-fleet/kernels.tar.gz
  register: packed

- name: Give it to another host
  h20.fleet.kernel_cache:
    step: unpack
    factors: *factors
    archive: /var/lib/h20-fleet/kernels.tar.gz
    manifest: "{{ packed.manifest }}"
"""

RETURN = r"""
key:
  description: Key of the factors.
  returned: always
  type: str
path:
  description: Folder of the key.
  returned: always
  type: str
there:
  description: Whether the folder held anything compiled before this call.
  returned: always
  type: bool
manifest:
  description: Key, factors, SHA256 of the archive, and SHA256 and size of each file.
  returned: step is pack, not in check mode
  type: dict
files:
  description: Number of files that were packed or unpacked.
  returned: step is pack or unpack, not in check mode
  type: int
"""

import pwd
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _kernel_cache


def owner(name: str) -> tuple[int, int]:
    """User and group of the instance's user; raises CacheError where there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise _kernel_cache.CacheError(f"there is no user {name}") from error
    return entry.pw_uid, entry.pw_gid


def carried(params: t.Mapping[str, t.Any], folder: Path, archive: Path) -> dict[str, t.Any]:
    """Pack or unpack; returns what the module tells."""
    if params["step"] == "pack":
        manifest = _kernel_cache.pack(folder, archive, params["factors"])
        return {"manifest": manifest, "files": len(manifest["files"])}
    return {"files": _kernel_cache.unpack(archive, params["manifest"], folder, owner(params["owner"]))}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["describe", "pack", "unpack"], "default": "describe"},
            "factors": {"type": "dict", "required": True},
            "root": {"type": "path", "default": _kernel_cache.ROOT},
            "archive": {"type": "path"},
            "manifest": {"type": "dict"},
            "owner": {"type": "str", "default": "vllm"},
        },
        required_if=[("step", "pack", ["archive"]), ("step", "unpack", ["archive", "manifest"])],
        supports_check_mode=True,
    )
    params, key = module.params, _kernel_cache.key(module.params["factors"])
    folder = Path(params["root"]) / key
    there = _kernel_cache.is_there(folder)
    changed = {"describe": False, "pack": there, "unpack": not there}[params["step"]]
    result: dict[str, t.Any] = {"changed": changed, "key": key, "path": str(folder), "there": there}
    if changed and not module.check_mode:
        try:
            result |= carried(params, folder, Path(params["archive"]))
        except (_kernel_cache.CacheError, OSError) as error:
            module.fail_json(
                msg=f"{params['archive']} is not of use: {error} -> delete the archive of this key; the next cold start makes a new one",
                **(result | {"changed": False}),
            )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
