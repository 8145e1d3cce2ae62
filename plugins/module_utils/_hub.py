# SPDX-License-Identifier: Apache-2.0
"""Where one pinned revision of a model comes from, a Hugging Face compatible hub or a mirror of plain files: its files, and small documents among them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import typing as t
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from ansible.module_utils.urls import open_url

NEXT_PAGE = re.compile(r'<([^>]+)>;\s*rel="next"')


#: A manifest names some hundred files.
MANIFEST_LIMIT = 16 * 1024**2


class HubError(Exception):
    """The hub or mirror did not answer with what was asked for; the text says what to do."""


def is_pinned(revision: str) -> bool:
    """Whether a revision is a full commit: a branch or tag moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@contextlib.contextmanager
def trusting(authorities: str) -> t.Iterator[str | None]:
    """Path of a file with the PEM text ``authorities`` while the block runs; None for the host's own store where there are none."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(authorities)
        file.flush()
        yield file.name if authorities else None


def manifest_file(entry: dict[str, t.Any]) -> dict[str, t.Any]:
    """One file of a manifest: large files carry their sha256, small ones the hash that git gives the blob."""
    lfs = entry.get("lfs")
    return {
        "path": entry["path"],
        "size": entry["size"],
        "algorithm": "sha256" if lfs else "git-sha1",
        "digest": lfs["oid"] if lfs else entry["oid"],
    }


@dataclasses.dataclass(frozen=True)
class Hub:
    """One revision of one repository of a hub, and how to ask for it."""

    endpoint: str
    repo: str
    revision: str
    token: str
    timeout: int
    ca_path: str | None

    @classmethod
    def of(cls, params: dict[str, t.Any], ca_path: str | None) -> Hub:
        """The hub that a module's parameters name."""
        names = ("endpoint", "repo", "revision", "token", "timeout")
        return cls(**{name: params[name] for name in names}, ca_path=ca_path)

    def manifest(self) -> dict[str, t.Any]:
        """Repository, revision and files, ordered by path; raises HubError."""
        root = self.endpoint.rstrip("/")
        files: list[dict[str, t.Any]] = []
        page: str | None = f"{root}/api/models/{self.repo}/tree/{quote(self.revision, safe='')}?recursive=true"
        while page:
            entries, following = self._get(page)
            files += [manifest_file(entry) for entry in entries if entry["type"] == "file"]
            page = following
        return {
            "repo": self.repo,
            "revision": self.revision,
            "files": sorted(files, key=lambda file: str(file["path"])),
        }

    def document(self, path: str, limit: int) -> t.Any:
        """The content of a JSON file of at most ``limit`` bytes; raises HubError."""
        url = f"{self.endpoint.rstrip('/')}/{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(path)}"
        return self._get(url, limit)[0]

    def _get(self, url: str, limit: int | None = None) -> tuple[t.Any, str | None]:
        """The JSON at ``url``, and the page after it."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            with open_url(url, headers=headers, timeout=self.timeout, ca_path=self.ca_path) as response:
                text = response.read() if limit is None else response.read(limit + 1)
                following = NEXT_PAGE.search(response.headers.get("Link") or "")
            if limit is not None and len(text) > limit:
                raise HubError(
                    f"{url} has more than {limit:,} bytes -> it is no such document: correct the release's model, or use another mirror"
                )
            return json.loads(text), following.group(1) if following else None
        except HTTPError as error:
            with error:
                raise HubError(self._refusal(error)) from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            raise HubError(
                f"the hub {self.endpoint} does not answer: {getattr(error, 'reason', error)}"
                " -> check that it is up and reachable from this host, or set fleet_hub_endpoint to another mirror"
            ) from error

    def _refusal(self, error: HTTPError) -> str:
        code = error.headers.get("X-Error-Code", "")
        if code == "RevisionNotFound":
            return (
                f"the hub {self.endpoint} has no revision {self.revision} of {self.repo}"
                " -> correct the release's model.revision, or wait until the mirror has it"
            )
        if code == "RepoNotFound" or error.code in (401, 403, 404):
            return (
                f"the hub {self.endpoint} has no repository {self.repo}, or none that this token may read (HTTP {error.code})"
                " -> correct the release's model.repo, or set fleet_hub_token"
            )
        return f"the hub {self.endpoint} answers HTTP {error.code} {error.reason} -> try again later, or set fleet_hub_endpoint to another mirror"


@dataclasses.dataclass(frozen=True)
class Mirror:
    """One revision on a mirror of plain files: ``<root>/<repo>/<revision>/``, its manifest beside that folder."""

    root: str
    repo: str
    revision: str
    timeout: int
    ca_path: str | None

    @property
    def place(self) -> str:
        """URL of the revision's folder."""
        return f"{self.root.rstrip('/')}/{self.repo}/{self.revision}"

    def manifest(self) -> dict[str, t.Any]:
        """Repository, revision and files; raises HubError."""
        url = f"{self.place}.manifest.json"
        try:
            return as_manifest(self._get(url, MANIFEST_LIMIT), self.repo, self.revision)
        except ValueError as error:
            raise HubError(f"{url} {error} -> put the revision on the mirror again") from error

    def document(self, path: str, limit: int) -> t.Any:
        """The content of a JSON file of at most ``limit`` bytes; raises HubError."""
        url = f"{self.place}/{quote(path)}"
        try:
            return json.loads(self._get(url, limit))
        except ValueError as error:
            raise HubError(f"{url} is no JSON -> put the revision on the mirror again") from error

    def _get(self, url: str, limit: int) -> str:
        try:
            with open_url(url, timeout=self.timeout, ca_path=self.ca_path) as response:
                text = response.read(limit + 1)
        except HTTPError as error:
            with error:
                raise HubError(
                    f"the mirror has no {url} (HTTP {error.code}) -> put the revision of the model there, or correct fleet_model_mirror"
                ) from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            raise HubError(
                f"the mirror {self.root} does not answer: {getattr(error, 'reason', error)}"
                " -> check that it is up and reachable from this host, or correct fleet_model_mirror"
            ) from error
        if len(text) > limit:
            raise HubError(
                f"{url} has more than {limit:,} bytes -> it is no such document: correct the release's model"
            )
        return str(text, "utf-8", "replace")


def source_of(params: dict[str, t.Any], ca_path: str | None) -> Hub | Mirror:
    """Who is asked, by a module's parameters: the mirror where there is one, else the hub."""
    if params["mirror"]:
        names = ("repo", "revision", "timeout")
        return Mirror(root=params["mirror"], ca_path=ca_path, **{name: params[name] for name in names})
    return Hub.of(params, ca_path)


def as_manifest(text: str, repo: str, revision: str) -> dict[str, t.Any]:
    """The manifest that ``text`` holds; ValueError says why it is none of this revision."""
    try:
        manifest = json.loads(text)
        found = (manifest["repo"], manifest["revision"])
        whole = all(
            {"path", "size", "algorithm", "digest"} == set(file) and isinstance(file["size"], int)
            for file in manifest["files"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("is no manifest") from error
    if not whole or not manifest["files"]:
        raise ValueError("is no manifest")
    if found != (repo, revision):
        raise ValueError(f"is the manifest of {found[0]}@{found[1]}, not of {repo}@{revision}")
    return t.cast(dict[str, t.Any], manifest)
