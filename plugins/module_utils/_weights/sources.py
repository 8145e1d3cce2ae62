# SPDX-License-Identifier: Apache-2.0
"""Where the bytes come from: what each kind of source calls a file, what it wants to know of us, and what its answers mean.

    hub         <url>/<repo>/resolve/<revision>/<path>, a Hugging Face compatible hub; token from HF_TOKEN
    modelscope  <url>/api/v1/models/<repo>/repo?Revision=<revision of the source, or master>&FilePath=<path>; token from MODELSCOPE_API_TOKEN
    http        <url>/<repo>/<revision>/<path>, a tree of plain files on a web server
    s3          <url>/<repo>/<revision>/<path>, the url being endpoint/bucket[/prefix]; signed where AWS_ACCESS_KEY_ID is set
    path        the same tree below a folder of this host, or the revision's files in that folder itself

None is trusted: the manifest alone says which bytes are right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import os
import ssl
import time
import typing as t
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .job import Source
from .manifest import File, Manifest

BLOCK = 1024**2


class SourceError(ValueError):
    """The source cannot be asked at all; the text says what is wrong with it."""


class OutError(Exception):
    """The source will not give this file, however often it is asked; the text says why."""


class LaterError(Exception):
    """Asked again, the source may give the file. `wait` is for how many seconds it wants no request at all, 0 where it says nothing."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class SilentError(LaterError):
    """The source sends nothing for too long: it may, but one that answers is better."""


class _Readable(t.Protocol):
    def read1(self, count: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """The bytes of a file as they come, from byte `start` on: a server without ranges begins at 0 whatever it was asked."""

    start: int
    stream: _Readable

    def read(self) -> bytes:
        """What has come, b"" at the end; raises LaterError when the connection dies or is silent for too long."""
        try:
            return self.stream.read1(BLOCK)
        except (OSError, HTTPException) as error:
            raise _interruption(error) from error


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a source has a file. The headers are for that host alone: a redirect takes them nowhere else."""

    url: str
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


def name(source: Source) -> str:
    """The source as messages call it."""
    return f"{source.kind} {source.url}"


def check(source: Source) -> None:
    """Raise SourceError for a source that could never answer."""
    if source.kind not in (*ADDRESSES, "path"):
        raise SourceError(f"the source {name(source)} is of no kind that is known: {', '.join((*ADDRESSES, 'path'))}")
    url = urlsplit(source.url)
    if source.kind == "path" and not source.url.startswith("/"):
        raise SourceError(f"the source {name(source)} is no absolute path")
    if source.kind != "path" and (url.scheme not in ("http", "https") or not url.hostname):
        raise SourceError(f"the source {name(source)} is no address that begins with http:// or https://")
    if url.username is not None:
        raise SourceError(
            f"the source {source.kind} at {url.hostname} has a password in its address, where it would be shown"
        )
    if source.kind == "s3":
        _s3_headers(source, source.url)


@contextlib.contextmanager
def asked(source: Source, manifest: Manifest, file: File, start: int, patience: float) -> t.Iterator[Answer]:
    """The answer of a source that is asked for a file from byte `start` on; silence of `patience` seconds ends it. Raises OutError and LaterError."""
    if source.kind == "path":
        answer = _local(Path(source.url), manifest, file, start)
    else:
        answer = _remote(ADDRESSES[source.kind](source, manifest, file), file, start, patience)
    with answer as opened:
        yield opened


def _hub(source: Source, manifest: Manifest, file: File) -> Address:
    token = os.environ.get("HF_TOKEN")
    url = f"{_root(source)}/{quote(manifest.repo)}/resolve/{quote(manifest.revision, safe='')}/{quote(file.path)}"
    return Address(url, {"Authorization": f"Bearer {token}"} if token else {})


def _modelscope(source: Source, manifest: Manifest, file: File) -> Address:
    """Its revisions are its own: a branch or tag is as good, for the manifest says whether the bytes are the same."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    query = urlencode({"Revision": source.revision or "master", "FilePath": file.path}, quote_via=quote)
    url = f"{_root(source)}/api/v1/models/{quote(manifest.repo)}/repo?{query}"
    return Address(url, {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {})


def _http(source: Source, manifest: Manifest, file: File) -> Address:
    return Address(f"{_root(source)}/{quote(manifest.repo)}/{quote(manifest.revision, safe='')}/{quote(file.path)}")


def _s3(source: Source, manifest: Manifest, file: File) -> Address:
    url = _http(source, manifest, file).url
    return Address(url, _s3_headers(source, url))


#: How the kinds that speak HTTP call a file.
ADDRESSES: dict[str, t.Callable[[Source, Manifest, File], Address]] = {
    "hub": _hub,
    "modelscope": _modelscope,
    "http": _http,
    "s3": _s3,
}


def _root(source: Source) -> str:
    return source.url.rstrip("/")


def _s3_headers(source: Source, url: str) -> dict[str, str]:
    """A signature that is good for some minutes, {} for storage that anybody may read."""
    key, secret = (os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    if not key:
        return {}
    try:
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 (where storage is signed for alone)
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415
    except ImportError as error:
        raise SourceError(
            f"{name(source)} wants signed requests, and botocore is not here -> install python3-botocore"
        ) from error
    request = AWSRequest("GET", url)
    S3SigV4Auth(Credentials(key, secret), "s3", source.region or "us-east-1").add_auth(request)
    return dict(request.headers.items())


@contextlib.contextmanager
def _local(folder: Path, manifest: Manifest, file: File, start: int) -> t.Iterator[Answer]:
    places = (folder / manifest.repo / manifest.revision / file.path, folder / file.path)
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise OutError(f"neither {places[0]} nor {places[1]} is a file")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise OutError(f"{path}: {error.strerror}") from error
    with stream:
        _expect(file, os.fstat(stream.fileno()).st_size)
        stream.seek(start)
        yield Answer(start, stream)


@contextlib.contextmanager
def _remote(address: Address, file: File, start: int, patience: float) -> t.Iterator[Answer]:
    request = Request(
        address.url, headers={"User-Agent": "h20-fleet"} | ({"Range": f"bytes={start}-"} if start else {})
    )
    for header, value in address.headers.items():
        request.add_unredirected_header(header, value)
    try:
        response = _OPENER.open(request, timeout=patience)
    except HTTPError as error:
        with error:
            raise _refusal(error, redirected=error.url != address.url) from error
    except (OSError, HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            raise OutError(f"{error}; the host trusts no authority that stands behind it") from error
        raise _interruption(error) from error
    with response:
        yield Answer(_begin(response.status, response.headers, file, start), response)


def _begin(status: int, headers: Message, file: File, start: int) -> int:
    """The first byte that an answer brings; OutError where it is about a file of another size, or another part than was asked for."""
    if status == 206:
        span, _slash, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if total.isdigit():
            _expect(file, int(total))
        if span.partition("-")[0] != str(start):
            raise OutError(f"asked for byte {start} it answers with {headers.get('Content-Range')}")
        return start
    length = headers.get("Content-Length", "")
    if length.isdigit():
        _expect(file, int(length))
    return 0


def _expect(file: File, size: int) -> None:
    if size != file.size:
        raise OutError(f"it has {size} bytes, the manifest says {file.size}")


def _refusal(error: HTTPError, *, redirected: bool) -> OutError | LaterError:
    """What an answer of status 300 and above means."""
    if error.code in (408, 425, 429) or error.code >= 500:
        return LaterError(f"HTTP {error.code}", _retry_after(error.headers))
    if error.code in (401, 403) and redirected:
        return LaterError(f"HTTP {error.code} behind a redirect: its address has expired")
    meaning = {
        401: "it wants a token, or another one",
        403: "it does not allow this, perhaps for want of a token",
        404: "it has no such file or revision",
        410: "it has no such file any more",
        416: "its file is shorter",
    }
    return OutError(f"HTTP {error.code}: {meaning.get(error.code, error.reason)}")


def _retry_after(headers: Message) -> float:
    """Seconds that the answer asks us to stay away, given as such or as a date; 0 where it does not."""
    text = headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0


def _interruption(error: Exception) -> LaterError:
    """What an error of the network means."""
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, TimeoutError):
        return SilentError("no byte for too long")
    return LaterError(f"{type(cause).__name__}: {cause}")


class _Redirects(HTTPRedirectHandler):
    """Follows from host to host; what was meant for the first alone (a token, a signature) stays with it."""

    def redirect_request(
        self,
        req: Request,
        fp: t.Any,
        code: int,
        msg: str,  # noqa: ARG002 (named by the base class)
        headers: Message,
        newurl: str,
    ) -> Request:
        target = urljoin(req.full_url, newurl)
        if urlsplit(target).scheme not in ("http", "https"):
            raise HTTPError(req.full_url, code, f"redirected to {target}", headers, fp)
        following = Request(target, headers=req.headers)
        if _host(target) == _host(req.full_url):
            for header, value in req.unredirected_hdrs.items():
                following.add_unredirected_header(header, value)
        return following

    http_error_308 = HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


_OPENER = build_opener(_Redirects)
