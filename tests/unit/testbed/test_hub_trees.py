# SPDX-License-Identifier: Apache-2.0
"""What is known of a repository on disk, to compare a download with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from testbed.hub.repository import write_repository
from testbed.hub.trees import revisions
from unit.testbed.hub_client import FIRST, LARGE, NAME, SECOND


def test_revisions_begin_with_the_branch_and_know_their_files(tmp_path: Path) -> None:
    commits = write_repository(tmp_path, NAME, [FIRST, SECOND])
    first, second = revisions(tmp_path, NAME)
    assert [first.commit, second.commit] == commits
    assert first.digests == {path: hashlib.sha256(content).hexdigest() for path, content in FIRST.items()}
    assert second.size == sum(map(len, SECOND.values()))


def test_manifest_has_the_digests_that_the_hub_tells(tmp_path: Path) -> None:
    write_repository(tmp_path, NAME, [FIRST])
    [revision] = revisions(tmp_path, NAME)
    manifest = json.loads(revision.manifest())
    assert (manifest["repo"], manifest["revision"]) == (NAME, revision.commit)
    files = {file["path"]: file for file in manifest["files"]}
    assert files["model.safetensors"]["digest"] == hashlib.sha256(LARGE).hexdigest()
    assert (files["config.json"]["algorithm"], files["config.json"]["size"]) == ("git-sha1", len(FIRST["config.json"]))
