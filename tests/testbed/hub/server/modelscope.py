# SPDX-License-Identifier: Apache-2.0
"""The protocol of ModelScope, as its own client uses it: everything below /api/v1/models/, answers wrapped in Code, Data and Message.

Branch `master` is the hub's `main`, and a commit answers to its id as well. A token comes as a bearer's or as the cookie m_session_id; the client sends
both. Small files come at once and know no ranges; large ones are redirected to the store of objects.
"""

from __future__ import annotations

import hashlib
import http.cookies
import json
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .store import Entry, RefusedError, find_entry

if TYPE_CHECKING:
    from .handler import Handler

MASTER = "master"
EPOCH = 1767225600  # the hub's EPOCH in seconds
NOT_FOUND = 10010205001  # the service's own code for a record that is not there
DENIED = 10010104001


class ModelScopeError(RefusedError):
    """A refusal as ModelScope words it."""

    def __init__(self, status: HTTPStatus, code: int, message: str) -> None:
        super().__init__(status, "", message)
        self._code = code

    def body(self) -> bytes:
        """Return the wrapper without data."""
        return json.dumps({"Code": self._code, "Message": str(self), "RequestId": "testbed", "Success": False}).encode()


def answer(request: Handler, parts: list[str]) -> None:
    """Serve an address below /api/v1/models/."""
    match parts:
        case [org, name]:
            repository = _repository(request, f"{org}/{name}")
            _data(
                request,
                {"Id": 1, "Name": name, "Path": org, "Revision": MASTER, "Visibility": 1 if repository["token"] else 5},
            )
        case [org, name, "revisions"]:
            _revisions(request, _repository(request, f"{org}/{name}"))
        case [org, name, "repo", "files"]:
            _files(request, _repository(request, f"{org}/{name}"))
        case [org, name, "repo", *_path]:  # the path is FilePath, see Handler.route
            _file(request, _repository(request, f"{org}/{name}"))
        case _:
            raise ModelScopeError(HTTPStatus.NOT_FOUND, NOT_FOUND, "record not found")


def _data(request: Handler, data: object) -> None:
    """Send an answer in its wrapper."""
    request.json({"Code": 200, "Data": data, "Message": "success", "RequestId": "testbed", "Success": True})


def _token(request: Handler) -> str | None:
    """Return the token that the request bears."""
    cookie = http.cookies.SimpleCookie(request.headers.get("Cookie", "")).get("m_session_id")
    return cookie.value if cookie else (request.headers.get("Authorization") or "").removeprefix("Bearer ") or None


def _repository(request: Handler, name: str) -> Entry:
    """Return repository.json of a repository that this request may see."""
    repository = request.server.store.find(name)
    if repository is None:
        raise ModelScopeError(HTTPStatus.NOT_FOUND, NOT_FOUND, "record not found")
    if repository["token"] not in {None, _token(request)}:
        raise ModelScopeError(HTTPStatus.FORBIDDEN, DENIED, "access denied")
    return repository


def _tree(request: Handler, repository: Entry) -> tuple[str, list[Entry]]:
    """Return the commit and the files that the query's Revision names."""
    revision = request.query.get("Revision", MASTER)
    try:
        return request.tree(repository, "main" if revision == MASTER else revision)
    except RefusedError as error:
        raise ModelScopeError(error.status, NOT_FOUND, f"revision {revision} not found") from error


def _revisions(request: Handler, repository: Entry) -> None:
    """Serve the branches; there are no tags."""
    commit, _ = request.tree(repository, "main")
    branch = {"Revision": MASTER, "CommitId": commit, "CreatedAt": EPOCH}
    _data(request, {"RevisionMap": {"Branches": [branch], "Tags": []}})


def _files(request: Handler, repository: Entry) -> None:
    """Serve the lines of a folder (Root), or with Recursive of all that lies below. Every file has its sha256, be it small or large."""
    commit, entries = _tree(request, repository)
    root = request.query.get("Root", "").strip("/")
    inside = [entry for entry in entries if not root or entry["path"].startswith(f"{root}/")]
    folders = sorted({str(parent) for entry in inside for parent in PurePosixPath(entry["path"]).parents[:-1]})
    lines = [
        _line(commit, folder, 0, "") | {"Type": "tree"}
        for folder in folders
        if folder != root and not f"{root}/".startswith(f"{folder}/")
    ]
    for entry in inside:
        content = request.server.store.file(repository, commit, entry).read_bytes()
        lines.append(
            _line(commit, entry["path"], entry["size"], hashlib.sha256(content).hexdigest()) | {"IsLFS": "lfs" in entry}
        )
    if not request.flag("Recursive"):
        lines = [line for line in lines if str(PurePosixPath(str(line["Path"])).parent) == (root or ".")]
    _data(request, {"Files": lines})


def _line(commit: str, path: str, size: int, digest: str) -> Entry:
    """Return a file's or a folder's line."""
    return {
        "CommitMessage": "Upload",
        "CommittedDate": EPOCH,
        "CommitterName": "testbed",
        "InCheck": False,
        "IsLFS": False,
        "Mode": "33188",
        "Name": PurePosixPath(path).name,
        "Path": path,
        "Revision": commit,
        "Sha256": digest,
        "Size": size,
        "Type": "blob",
    }


def _file(request: Handler, repository: Entry) -> None:
    """Serve the file that the query names."""
    commit, entries = _tree(request, repository)
    try:
        entry = find_entry(entries, request.query.get("FilePath", ""))
    except RefusedError as error:
        raise ModelScopeError(error.status, NOT_FOUND, "file not found") from error
    if "lfs" in entry:
        request.redirect(repository["id"], commit, entry["path"], {})
    else:
        request.send_file(
            request.server.store.file(repository, commit, entry), {"ETag": f'"{entry["oid"]}"'}, ranges=False
        )
