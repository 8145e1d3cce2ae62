#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read-only description of one pinned revision of a model."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_info
short_description: Read config.json and size of one pinned revision of a model, from disk or from the sources of the site
version_added: 1.0.0
description:
  - Reads the revision on the host where it is complete, and asks nobody then.
  - Else asks the sources for its files and its C(config.json).
  - What they refuse does not fail the task but is told in C(error), so that it can be judged with other findings.
options:
  path:
    description: Folder of the revision on the host, as M(h20.fleet.model_revision) leaves it; empty looks at no disk.
    type: path
    default: ""
  jobs:
    description: Folder of the jobs of M(h20.fleet.model_revision), one of which says where the stamp of a revision on a shared filesystem lies.
    type: path
    default: /etc/h20-fleet/models
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
  repo:
    description: Repository of the model on the hub.
    type: str
    default: ""
  revision:
    description: Full commit of the revision.
    type: str
    default: ""
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
extends_documentation_fragment: [h20.fleet.attributes.read_only]
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Know the model
  h20.fleet.model_info:
    path: /data/models/deepseek-ai/DeepSeek-V3-0324/e9b33add76883f293d6bf61f6bd89b497e80e335
    sources:
      - {kind: hub, url: https://huggingface.co}
    repo: deepseek-ai/DeepSeek-V3-0324
    revision: e9b33add76883f293d6bf61f6bd89b497e80e335
  register: model
"""

RETURN = r"""
present:
  description: Whether the revision is complete on the host.
  returned: always
  type: bool
config:
  description: Content of C(config.json); null where it is not known.
  returned: always
  type: dict
bytes:
  description: Sum of the sizes of all files; null where it is not known.
  returned: always
  type: int
weight_bytes:
  description: Sum of the sizes of the C(.safetensors) files; null where it is not known.
  returned: always
  type: int
source:
  description: Where the answer comes from, V(disk) or the kind of the source; empty where there is none.
  returned: always
  type: str
error:
  description: What stood in the way, as evidence, C( -> ) and remedy; empty where nothing did.
  returned: always
  type: str
"""

import json
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _hub
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job, JobError

#: Written by the fetch program beside a revision that it has proved: digest, inode, size and modification time of every file. Not on a filesystem that
#: hosts share, where each keeps one of its own.
STAMP = ".h20-fleet-manifest.json"
CONFIG = "config.json"
#: A config.json has some kilobytes; what is larger is something else.
CONFIG_LIMIT = 1024**2


def stamp_of(folder: Path, jobs: Path) -> Path:
    """Where the stamp of the revision lies: where its job says, beside the files where there is none."""
    for path in sorted(jobs.glob("*.job.json")):
        try:
            job = Job.load(path)
        except (OSError, JobError):  # of another version of the collection; the stage writes it anew
            continue
        if job.destination == folder:
            return job.stamp
    return folder / STAMP


def stamped_sizes(folder: Path, jobs: Path) -> dict[str, int] | None:
    """Size of each file of a revision that is complete, by path; None where it is not, judged by its stamp as the fetch program does."""
    try:
        stamp = json.loads(stamp_of(folder, jobs).read_text(encoding="utf-8"))
        for path, (_digest, *proved) in stamp.items():
            found = (folder / path).stat()
            if proved != [found.st_ino, found.st_size, found.st_mtime_ns]:
                return None
        return {path: proved[2] for path, proved in stamp.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def sizes(files: dict[str, int]) -> dict[str, int]:
    """The sums that the module returns, from the size of each file."""
    weights = sum(size for path, size in files.items() if path.endswith(".safetensors"))
    return {"bytes": sum(files.values()), "weight_bytes": weights}


def read_disk(folder: Path, files: dict[str, int]) -> dict[str, t.Any]:
    """What a complete revision on the host tells."""
    answer = {"present": True, "source": "disk", **sizes(files)}
    try:
        with (folder / CONFIG).open("rb") as file:
            return answer | read_config(json.loads(file.read(CONFIG_LIMIT)), str(folder / CONFIG))
    except (OSError, ValueError) as error:
        return answer | {
            "error": f"{folder / CONFIG} cannot be read: {error} -> name a revision that has one: release's model.revision"
        }


def read_sources(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """What the first source tells that can; else what one told in part, and ``error`` with what all of them refuse."""
    answers = []
    with _hub.trusting(params["ca_certificates"]) as ca_path:
        for source in _hub.sources_of(params, ca_path):
            answers.append(read_source(source))
            if not answers[-1]["error"]:
                return answers[-1]
    error = _hub.HubError.of([answer["error"] for answer in answers])
    return max(answers, key=len) | {"error": str(error)}


def read_source(source: _hub.Source) -> dict[str, t.Any]:
    """What one source tells; ``error`` says what it refuses."""
    answer: dict[str, t.Any] = {"error": ""}
    try:
        files = {file.path: file.size for file in source.manifest().files}
        answer |= {"source": source.kind, **sizes(files)}
        if CONFIG not in files:
            return answer | {
                "error": f"{source.repo} has no {CONFIG} at {source.revision} -> correct the release's model"
            }
        return answer | read_config(source.document(CONFIG, CONFIG_LIMIT), f"{CONFIG} of {source.repo}")
    except _hub.HubError as error:
        return answer | {"error": str(error)}


def read_config(content: t.Any, name: str) -> dict[str, t.Any]:
    """``config`` of a parsed document, or the error that it is no config."""
    if isinstance(content, dict):
        return {"config": content}
    return {"error": f"{name} is no JSON object -> correct the release's model"}


def describe(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """The answer of the module, less what is not known."""
    folder = Path(params["path"]) if params["path"] else None
    files = stamped_sizes(folder, Path(params["jobs"])) if folder else None
    if folder and files is not None:
        return read_disk(folder, files)
    if not params["sources"]:
        return {
            "error": f"{params['path'] or 'the revision'} is not complete on this host -> run the stage: --tags model"
        }
    if not _hub.is_pinned(params["revision"]):
        return {
            "error": f"{params['revision']!r} is no full commit (40 hexadecimal digits) -> pin one as the release's model.revision"
        }
    return read_sources(params)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": ""},
            "jobs": {"type": "path", "default": "/etc/h20-fleet/models"},
            "repo": {"type": "str", "default": ""},
            "revision": {"type": "str", "default": ""},
            **_hub.OPTIONS,
        },
        supports_check_mode=True,
    )
    unknown = {"present": False, "config": None, "bytes": None, "weight_bytes": None, "source": "", "error": ""}
    module.exit_json(changed=False, **unknown | describe(module.params))


if __name__ == "__main__":
    main()
