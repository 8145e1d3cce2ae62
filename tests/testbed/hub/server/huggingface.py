# SPDX-License-Identifier: Apache-2.0
"""The protocol of Hugging Face: what a repository is, its trees in pages, its files, large ones behind a redirect."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from .store import Entry, RefusedError, find_entry

if TYPE_CHECKING:
    from .handler import Handler

PAGE, PAGE_EXPANDED = 1000, 50  # lines of a tree in one answer: the real hub's numbers
EPOCH = "2026-01-01T00:00:00.000Z"  # the date of everything: nothing here depends on when it was built


def answer(request: Handler, parts: list[str]) -> None:
    """Serve the hub's own addresses."""
    match parts:
        case ["api", "models", org, name]:
            _describe(request, f"{org}/{name}", "main")
        case ["api", "models", org, name, "revision", revision]:
            _describe(request, f"{org}/{name}", revision)
        case ["api", "models", org, name, "refs"]:
            refs = _repository(request, f"{org}/{name}")["refs"]
            branches = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit} for ref, commit in refs.items()
            ]
            request.json({"branches": branches, "tags": [], "converts": [], "pullRequests": []})
        case ["api", "models", org, name, "tree", revision, *path]:
            _tree(request, f"{org}/{name}", revision, "/".join(path))
        case [org, name, "resolve", revision, *path]:
            _resolve(request, f"{org}/{name}", revision, "/".join(path))
        case _:
            raise RefusedError(HTTPStatus.NOT_FOUND, "", "Sorry, we can't find the page you are looking for.")


def _repository(request: Handler, name: str) -> Entry:
    """Return repository.json of a repository that this request may see."""
    return request.server.store.repository(name, request.headers.get("Authorization"))


def _describe(request: Handler, name: str, revision: str) -> None:
    """Serve what a repository is."""
    repository = _repository(request, name)
    commit, entries = request.tree(repository, revision)
    request.json(describe(repository, commit, entries, blobs=request.flag("blobs")))


def _tree(request: Handler, name: str, revision: str, folder: str) -> None:
    """Serve a page of a folder's lines; a `Link` header leads to the next page."""
    commit, entries = request.tree(_repository(request, name), revision)
    lines = list_folder(entries, folder, recursive=request.flag("recursive"))
    page = PAGE_EXPANDED if request.flag("expand") else PAGE
    page = min(page, request.number("limit", page))
    start = request.number("cursor", 0)
    headers = {"X-Repo-Commit": commit}
    if start + page < len(lines):
        following = urlencode({**request.query, "cursor": start + page})
        headers["Link"] = f'<{request.base}{quote(request.route)}?{following}>; rel="next"'
    shown = lines[start : start + page]
    request.json([expand(line) for line in shown] if request.flag("expand") else shown, headers=headers)


def _resolve(request: Handler, name: str, revision: str, path: str) -> None:
    """Serve a small file, or lead to a large one as the hub does: by a signed address that expires."""
    repository = _repository(request, name)
    commit, entries = request.tree(repository, revision)
    entry = find_entry(entries, path)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
    if "lfs" not in entry:
        request.send_file(request.server.store.file(repository, commit, entry), headers)
        return
    headers |= {
        "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
        "X-Linked-Size": str(entry["size"]),
        "Accept-Ranges": "bytes",
    }
    request.redirect(name, commit, path, headers)


def list_folder(entries: list[Entry], folder: str, *, recursive: bool) -> list[Entry]:
    """Return the lines of `folder` ("" for the root): its files and folders, or all that lies below. Raise RefusedError where there is none."""
    prefix = f"{folder}/" if folder else ""
    inside = [entry for entry in entries if entry["path"].startswith(prefix)]
    if not inside:
        raise RefusedError(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
    lines: dict[str, Entry] = {}
    for entry in inside:
        parts = entry["path"].removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            if recursive or depth == 1:
                path = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
                lines.setdefault(path, {"type": "directory", "oid": oid, "size": 0, "path": path})
        if recursive or len(parts) == 1:
            lines[entry["path"]] = entry
    return list(lines.values())


def expand(entry: Entry) -> Entry:
    """Return an entry with what `expand` adds: the last commit and the security scan."""
    scan = {"status": "safe"}
    security = {"status": "safe", "avScan": scan, "pickleImportScan": scan, "jFrogScan": scan, "protectAiScan": scan}
    commit = {"id": entry["oid"], "title": "Upload", "date": EPOCH}
    return {**entry, "lastCommit": commit, "securityFileStatus": security}


def describe(repository: Entry, commit: str, entries: list[Entry], *, blobs: bool) -> Entry:
    """Return the answer of /api/models/{repo}: the commit and the names of its files, with `blobs` their sizes and hashes as well."""
    siblings = []
    for entry in entries:
        sibling: Entry = {"rfilename": entry["path"]}
        if blobs:
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                lfs = entry["lfs"]
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    name = repository["id"]
    return {
        "_id": commit[:24],
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": commit,
        "lastModified": EPOCH,
        "createdAt": EPOCH,
        "private": repository["token"] is not None,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
        "usedStorage": sum(entry["size"] for entry in entries),
    }
