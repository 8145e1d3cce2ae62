# SPDX-License-Identifier: Apache-2.0
"""Where one pinned revision of a model comes from, as the sources of a site tell it: its manifest, and small documents among its files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import typing as t
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode

from ansible.module_utils.urls import open_url
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import Manifest, ManifestError

NEXT_PAGE = re.compile(r'<([^>]+)>;\s*rel="next"')

#: A manifest names some hundred files.
MANIFEST_LIMIT = 16 * 1024**2
#: ModelScope cuts a longer list of files off without a word (its client's REPO_FILES_TRUNCATION_LIMIT).
MODELSCOPE_LIMIT = 3000

#: What a module that asks sources takes; the names of `sources` are those of the site's fleet_model_sources.
OPTIONS: dict[str, t.Any] = {
    "sources": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "kind": {"type": "str", "required": True, "choices": ["hub", "modelscope", "http", "s3", "path"]},
            "url": {"type": "str", "required": True},
            "revision": {"type": "str", "default": ""},
            "region": {"type": "str", "default": ""},
        },
    },
    "token": {"type": "str", "default": "", "no_log": True},
    "modelscope_token": {"type": "str", "default": "", "no_log": True},
    "ca_certificates": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 30},
}


class HubError(Exception):
    """A source did not answer with what was asked for; the text says what to do."""

    @classmethod
    def of(cls, errors: t.Sequence[str]) -> HubError:
        """One error of those of several sources: the evidence of each, then the remedies."""
        parts = [error.partition(" -> ") for error in errors]
        remedies = dict.fromkeys(remedy for _evidence, _arrow, remedy in parts)
        return cls(f"{'; '.join(part[0] for part in parts)} -> {'; or '.join(remedies)}")


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


def parse_manifest(text: str, repo: str, revision: str) -> Manifest:
    """The manifest that ``text`` holds; ManifestError says why it is none of this revision."""
    manifest = Manifest.parse(text)
    if (manifest.repo, manifest.revision) != (repo, revision):
        raise ManifestError(f"is the manifest of {manifest.repo}@{manifest.revision}, not of {repo}@{revision}")
    return manifest


@dataclasses.dataclass(frozen=True)
class Source:
    """One revision of one repository as one source has it; ``name`` is the revision's there."""

    kind: t.ClassVar[str]
    root: str
    repo: str
    revision: str
    name: str
    token: str
    timeout: int
    ca_path: str | None

    def manifest(self) -> Manifest:
        """Repository, revision and files; raises HubError."""
        raise NotImplementedError

    def document(self, path: str, limit: int) -> t.Any:
        """The content of a JSON file of at most ``limit`` bytes; raises HubError."""
        raise NotImplementedError

    def _manifest(self, files: t.Sequence[dict[str, t.Any]]) -> Manifest:
        """The manifest of the files that a source lists; HubError where they make none."""
        content = {"repo": self.repo, "revision": self.revision, "files": files}
        try:
            return Manifest.parse(json.dumps(content))
        except ManifestError as error:
            raise HubError(f"the list of files of {self.repo} at {self.root} {error} -> use another source") from error

    def _open(self, url: str, limit: int, headers: dict[str, str]) -> tuple[bytes, str]:
        """What lies at ``url``, and its header Link; raises HubError, or one of TROUBLE where there was no proper answer."""
        asked = {"headers": headers, "unredirected_headers": list(headers), "timeout": self.timeout}
        with open_url(url, ca_path=self.ca_path, **asked) as response:
            content, link = response.read(limit + 1), response.headers.get("Link") or ""
        if len(content) > limit:
            raise HubError(
                f"{url} has more than {limit:,} bytes -> it is no such document: correct the release's model, or use another mirror"
            )
        return content, link


#: How a server fails to answer. HTTPError is one of them and has to be caught before.
TROUBLE = (URLError, OSError, HTTPException, ValueError)


@dataclasses.dataclass(frozen=True)
class Hub(Source):
    """A Hugging Face compatible hub."""

    kind = "hub"

    def manifest(self) -> Manifest:
        files: list[dict[str, t.Any]] = []
        page = f"{self.root}/api/models/{self.repo}/tree/{quote(self.name, safe='')}?recursive=true"
        while page:
            entries, page = self._get(page, MANIFEST_LIMIT)
            files += [_hub_file(entry) for entry in entries if entry["type"] == "file"]
        return self._manifest(files)

    def document(self, path: str, limit: int) -> t.Any:
        return self._get(f"{self.root}/{self.repo}/resolve/{quote(self.name, safe='')}/{quote(path)}", limit)[0]

    def _get(self, url: str, limit: int) -> tuple[t.Any, str]:
        """The JSON at ``url``, and the address of the page after it, "" where there is none."""
        try:
            text, link = self._open(url, limit, {"Authorization": f"Bearer {self.token}"} if self.token else {})
            following = NEXT_PAGE.search(link)
            return json.loads(text), following[1] if following else ""
        except HTTPError as error:
            with error:
                raise HubError(self._refusal(error)) from error
        except TROUBLE as error:
            raise HubError(
                f"the hub {self.root} does not answer: {getattr(error, 'reason', error)}"
                " -> check that it is up and reachable from this host, or set fleet_hub_endpoint to another mirror"
            ) from error

    def _refusal(self, error: HTTPError) -> str:
        code = error.headers.get("X-Error-Code", "")
        if code == "RevisionNotFound":
            return (
                f"the hub {self.root} has no revision {self.name} of {self.repo}"
                " -> correct the release's model.revision, or wait until the mirror has it"
            )
        if code == "RepoNotFound" or error.code in (401, 403, 404):
            return (
                f"the hub {self.root} has no repository {self.repo}, or none that this token may read (HTTP {error.code})"
                " -> correct the release's model.repo, or set fleet_hub_token"
            )
        return f"the hub {self.root} answers HTTP {error.code} {error.reason} -> try again later, or set fleet_hub_endpoint to another mirror"


def _hub_file(entry: dict[str, t.Any]) -> dict[str, t.Any]:
    """One file of a manifest: large files carry their sha256, small ones the hash that git gives the blob."""
    lfs = entry.get("lfs")
    return {
        "path": entry["path"],
        "size": entry["size"],
        "algorithm": "sha256" if lfs else "git-sha1",
        "digest": lfs["oid"] if lfs else entry["oid"],
    }


@dataclasses.dataclass(frozen=True)
class ModelScope(Source):
    """ModelScope, which knows the sha256 of every file but no commit of the hub's: the revision has a name of its own there."""

    kind = "modelscope"

    def manifest(self) -> Manifest:
        entries = self._files()
        if len(entries) >= MODELSCOPE_LIMIT:
            raise HubError(
                f"ModelScope lists {len(entries):,} files of {self.repo} and no more, so some may be missing"
                " -> make the manifest from a hub"
            )
        return self._manifest([_modelscope_file(entry) for entry in entries if entry.get("Type") != "tree"])

    def document(self, path: str, limit: int) -> t.Any:
        return self._get("repo", limit, FilePath=path)

    def _files(self) -> list[dict[str, t.Any]]:
        answer = self._get("repo/files", MANIFEST_LIMIT, Recursive="True")
        try:
            return [dict(entry) for entry in answer["Data"]["Files"]]
        except (KeyError, TypeError, ValueError) as error:
            raise HubError(
                f"ModelScope at {self.root} lists no files of {self.repo} -> check the source's url, or use another one"
            ) from error

    def _get(self, verb: str, limit: int, **query: str) -> t.Any:
        """The JSON that the API answers about the repository."""
        url = f"{self.root}/api/v1/models/{self.repo}/{verb}?{urlencode({'Revision': self.name, **query})}"
        # As the real client does: older parts of the API read the cookie, newer ones the header.
        token = {"Authorization": f"Bearer {self.token}", "Cookie": f"m_session_id={self.token}"}
        try:
            return json.loads(self._open(url, limit, token if self.token else {})[0])
        except HTTPError as error:
            with error:
                raise HubError(
                    f"ModelScope at {self.root} has no {self.repo} at {self.name}, or none that this token may read (HTTP {error.code})"
                    " -> correct the release's model.repo or the source's revision, or set fleet_modelscope_token"
                ) from error
        except TROUBLE as error:
            raise HubError(
                f"ModelScope at {self.root} does not answer: {getattr(error, 'reason', error)}"
                " -> check that it is up and reachable from this host, or use another source"
            ) from error


def _modelscope_file(entry: dict[str, t.Any]) -> dict[str, t.Any]:
    """One file of a manifest; one without a digest is refused as a manifest's."""
    digest = entry.get("Sha256") or ""
    return {"path": entry.get("Path"), "size": entry.get("Size"), "algorithm": "sha256", "digest": digest}


@dataclasses.dataclass(frozen=True)
class Mirror(Source):
    """Plain files over HTTP: ``<root>/<repo>/<revision>/``, the manifest beside that folder. A bucket that anybody may read is one, too."""

    kind = "http"

    #: What to do where it has no such file.
    remedy: t.ClassVar[str] = "put the revision of the model there, or correct fleet_model_mirror"

    def address(self, below: str) -> str:
        """Address of what follows the revision's name."""
        return f"{self.root}/{self.repo}/{self.revision}{quote(below)}"

    def manifest(self) -> Manifest:
        below = ".manifest.json"
        try:
            return parse_manifest(self._text(below, MANIFEST_LIMIT), self.repo, self.revision)
        except ManifestError as error:
            raise HubError(f"{self.address(below)} {error} -> put the revision on the mirror again") from error

    def document(self, path: str, limit: int) -> t.Any:
        try:
            return json.loads(self._text(f"/{path}", limit))
        except ValueError as error:
            raise HubError(f"{self.address(f'/{path}')} is no JSON -> put the revision on the mirror again") from error

    def _text(self, below: str, limit: int) -> str:
        url = self.address(below)
        try:
            return str(self._open(url, limit, {})[0], "utf-8", "replace")
        except HTTPError as error:
            with error:
                raise HubError(f"the mirror has no {url} (HTTP {error.code}) -> {self.remedy}") from error
        except TROUBLE as error:
            raise HubError(
                f"the mirror {self.root} does not answer: {getattr(error, 'reason', error)}"
                " -> check that it is up and reachable from this host, or correct fleet_model_mirror"
            ) from error


@dataclasses.dataclass(frozen=True)
class Bucket(Mirror):
    """S3-compatible storage, as far as anybody may read it; what needs a key is fetched by the program on the hosts alone."""

    kind = "s3"
    remedy = "let anybody read that manifest, or give the release a model.manifest, so that no source is asked for it"


@dataclasses.dataclass(frozen=True)
class Disk(Mirror):
    """A folder of this host, laid out like a mirror."""

    kind = "path"

    def address(self, below: str) -> str:
        return f"{self.root}/{self.repo}/{self.revision}{below}"

    def _text(self, below: str, limit: int) -> str:
        path = Path(self.address(below))
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise HubError(
                f"{path} cannot be read on this host: {error.strerror} -> mount the disk, or correct the source's url"
            ) from error
        if len(content) > limit:
            raise HubError(f"{path} has more than {limit:,} bytes -> it is no such document: correct the source's url")
        return str(content, "utf-8", "replace")


_KINDS = {source.kind: source for source in (Hub, ModelScope, Mirror, Bucket, Disk)}


def sources_of(params: dict[str, t.Any], ca_path: str | None) -> list[Source]:
    """Who is asked, in this order, by the parameters of OPTIONS and `repo` and `revision`."""
    tokens = {"hub": params["token"], "modelscope": params["modelscope_token"]}
    return [
        _KINDS[source["kind"]](
            root=source["url"].rstrip("/"),
            repo=params["repo"],
            revision=params["revision"],
            name=(source["revision"] or "master") if source["kind"] == "modelscope" else params["revision"],
            token=tokens.get(source["kind"], ""),
            timeout=params["timeout"],
            ca_path=ca_path,
        )
        for source in params["sources"]
    ]


def manifest_of(sources: t.Sequence[Source]) -> Manifest:
    """The manifest that the first of the sources tells that can; raises HubError with what all of them said."""
    errors = []
    for source in sources:
        try:
            return source.manifest()
        except HubError as error:  # noqa: PERF203 (each of the few is a server's answer)
            errors.append(str(error))
    raise HubError.of(errors or ["no source is named -> set fleet_model_sources"])
