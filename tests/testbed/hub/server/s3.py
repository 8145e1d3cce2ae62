# SPDX-License-Identifier: Apache-2.0
"""S3 by path-style addresses: objects with ranges, requests signed with AWS Signature Version 4 proved against the one key pair, S3's own refusals."""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from .store import RefusedError

if TYPE_CHECKING:
    from .handler import Handler

PRIVATE, PUBLIC = "weights", "public"
PREFIX = "models"  # every object's key begins with it
ACCESS_KEY = "TESTBEDACCESSKEY"
SECRET_KEY = "testbed/secret+key"  # noqa: S105 (opens a bucket of the test bed)
REGION = "testbed-1"
SKEW = 15 * 60  # seconds
AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+),\s*SignedHeaders=([^,]+),\s*Signature=([0-9a-f]{64})")


class S3Error(RefusedError):
    """A refusal as S3 words it, in XML."""

    content_type = "application/xml"

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(status, "", message)
        self._code = code

    def body(self) -> bytes:
        """Return the document."""
        fields = f"<Code>{self._code}</Code><Message>{escape(str(self))}</Message><RequestId>testbed</RequestId>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{fields}</Error>'.encode()


def answer(request: Handler, bucket: str, key: list[str]) -> None:
    """Serve an object."""
    if bucket == PRIVATE or "Authorization" in request.headers:
        _authorize(request)
    match key:
        case [prefix, org, name, commit, *path] if prefix == PREFIX and path:
            try:
                request.plain(f"{org}/{name}", commit, "/".join(path))
            except RefusedError as error:
                if error.status is not HTTPStatus.NOT_FOUND:
                    raise S3Error(error.status, "InvalidRange", "The requested range is not satisfiable") from error
                raise S3Error(HTTPStatus.NOT_FOUND, "NoSuchKey", "The specified key does not exist.") from error
        case _:
            raise S3Error(HTTPStatus.NOT_FOUND, "NoSuchKey", "The specified key does not exist.")


def _authorize(request: Handler) -> None:
    """Raise S3Error unless the request is signed with the key pair, for this region, within the last minutes."""
    denied = HTTPStatus.FORBIDDEN
    header = request.headers.get("Authorization", "")
    match = AUTHORIZATION.fullmatch(header)
    if not header:
        raise S3Error(denied, "AccessDenied", "Access Denied")
    scope = match[1].split("/") if match else []
    if match is None or len(scope) != 5 or scope[3:] != ["s3", "aws4_request"]:
        raise S3Error(HTTPStatus.BAD_REQUEST, "AuthorizationHeaderMalformed", "The authorization header is malformed")
    if scope[2] != REGION:
        wrong = f"The authorization header is malformed; the region '{scope[2]}' is wrong; expecting '{REGION}'"
        raise S3Error(HTTPStatus.BAD_REQUEST, "AuthorizationHeaderMalformed", wrong)
    if scope[0] != ACCESS_KEY:
        raise S3Error(denied, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    moment = request.headers.get("X-Amz-Date", "")
    if not _recent(moment) or not moment.startswith(scope[1]):
        raise S3Error(
            denied, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
        )
    if not hmac.compare_digest(match[3], signature(_canonical(request, match[2].split(";")), moment, scope)):
        different = "The request signature we calculated does not match the signature you provided. Check your key and signing method."
        raise S3Error(denied, "SignatureDoesNotMatch", different)


def _recent(moment: str) -> bool:
    """Return whether the time of a signature is near enough to now."""
    try:
        signed = calendar.timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return False
    return abs(time.time() - signed) <= SKEW


def _canonical(request: Handler, signed: list[str]) -> str:
    """Return the canonical form of the request. Of host and date a signature cannot do without, so one that leaves them out fits nothing."""
    split = urlsplit(request.path)
    pairs = sorted(
        (quote(key, safe="-_.~"), quote(value, safe="-_.~"))
        for key, value in parse_qsl(split.query, keep_blank_values=True)
    )
    names = signed if {"host", "x-amz-date"} <= set(signed) else []
    headers = "".join(f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in names)
    return "\n".join(
        [
            request.command,
            quote(unquote(split.path), safe="/-_.~"),
            "&".join(f"{key}={value}" for key, value in pairs),
            headers,
            ";".join(names),
            request.headers.get("X-Amz-Content-Sha256", ""),
        ]
    )


def signature(canonical: str, moment: str, scope: list[str]) -> str:
    """Return the signature of a canonical request; `scope` is the credential's: key, day, region, service, "aws4_request"."""
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope[1:]:
        key = hmac.digest(key, part.encode(), "sha256")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", moment, "/".join(scope[1:]), digest])
    return hmac.digest(key, text.encode(), "sha256").hex()
