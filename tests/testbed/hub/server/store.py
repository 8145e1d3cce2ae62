# SPDX-License-Identifier: Apache-2.0
"""The repositories on disk, as repository.py writes them, and what of them a request may see."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class RefusedError(Exception):
    """A request that is answered with an error: status, the hub's error code, message, further headers. Its body is JSON, as the hub's."""

    content_type = "application/json; charset=utf-8"

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}

    def body(self) -> bytes:
        """Return what is sent with it."""
        return json.dumps({"error": str(self)}).encode()


class Store:
    """The repositories under a root; nothing is kept in memory, so that a new revision is there at once."""

    def __init__(self, root: Path) -> None:
        self._models = root / "models"

    def find(self, name: str) -> Entry | None:
        """Return repository.json of `name`, or None."""
        file = self._models / name / "repository.json"
        if any(part.startswith(".") for part in name.split("/")) or not file.is_file():
            return None
        repository: Entry = json.loads(file.read_bytes())
        return repository

    def repository(self, name: str, authorization: str | None) -> Entry:
        """Return repository.json of `name`, or raise RefusedError as the real hub does: it does not tell the missing from the private."""
        repository = self.find(name)
        if repository is None:
            if authorization is None:
                raise RefusedError(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
            raise RefusedError(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        if repository["token"] is None or authorization == f"Bearer {repository['token']}":
            return repository
        if authorization is None:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")

    def tree(self, repository: Entry, revision: str, *, revised: bool = False) -> tuple[str, list[Entry]]:
        """Return the commit that a branch or a commit id names, and its files. Raise RefusedError for one that is not there.

        `revised`: history was written anew, and the name is that of another commit, or of none where the repository has but one.
        """
        commit = repository["refs"].get(revision, revision)
        if revised:
            others = sorted(
                {file.stem for file in (self._models / repository["id"]).glob("*.json")} - {commit, "repository"}
            )
            commit = others[0] if others else ""
        file = self._models / repository["id"] / f"{commit}.json"
        if not commit.isalnum() or not file.is_file():
            raise RefusedError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, json.loads(file.read_bytes())

    def file(self, repository: Entry, commit: str, entry: Entry) -> Path:
        """Return where the content of a tree's entry lies."""
        return self._models / str(repository["id"]) / commit / str(entry["path"])


def find_entry(entries: list[Entry], path: str) -> Entry:
    """Return the file `path` of a tree, or raise RefusedError."""
    for entry in entries:
        if entry["path"] == path:
            return entry
    raise RefusedError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
