# SPDX-License-Identifier: Apache-2.0
"""The hub's server as S3: signatures of version 4, of which the one of AWS's own example is right."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from testbed.hub.server import s3
from unit.testbed.hub_client import FIRST, LARGE, NAME, Client

EMPTY = hashlib.sha256(b"").hexdigest()


def key(client: Client, path: str = "model.safetensors", bucket: str = s3.PRIVATE) -> str:
    """Return the address of an object."""
    return f"/{bucket}/{s3.PREFIX}/{NAME}/{client.revisions[0]}/{path}"


def signed(client: Client, path: str, **changes: str) -> dict[str, str]:
    """Return the headers that sign a GET of `path`; `changes` name a part of it that is another: access, region, service, moment, host, address."""
    moment = changes.get("moment", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    scope = [
        changes.get("access", s3.ACCESS_KEY),
        moment[:8],
        changes.get("region", s3.REGION),
        changes.get("service", "s3"),
        "aws4_request",
    ]
    host = changes.get("host", client.url.removeprefix("http://"))
    names = "host;x-amz-content-sha256;x-amz-date"
    headers = f"host:{host}\nx-amz-content-sha256:{EMPTY}\nx-amz-date:{moment}\n"
    canonical = "\n".join(["GET", changes.get("address", path), "", headers, names, EMPTY])
    proof = s3.signature(canonical, moment, scope)
    authorization = f"AWS4-HMAC-SHA256 Credential={'/'.join(scope)}, SignedHeaders={names}, Signature={proof}"
    return {"Authorization": authorization, "X-Amz-Date": moment, "X-Amz-Content-Sha256": EMPTY}


def test_signature_is_the_one_of_the_published_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """GET Object of the S3 API reference, "Signature Calculations for the Authorization Header"."""
    monkeypatch.setattr(s3, "SECRET_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    canonical = "\n".join(
        [
            "GET",
            "/test.txt",
            "",
            f"host:examplebucket.s3.amazonaws.com\nrange:bytes=0-9\nx-amz-content-sha256:{EMPTY}\nx-amz-date:20130524T000000Z\n",
            "host;range;x-amz-content-sha256;x-amz-date",
            EMPTY,
        ]
    )
    scope = ["AKIAIOSFODNN7EXAMPLE", "20130524", "us-east-1", "s3", "aws4_request"]
    assert s3.signature(canonical, "20130524T000000Z", scope) == (
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_object_comes_whole_or_in_part(client: Client) -> None:
    path = key(client)
    assert client.ask(path, headers=signed(client, path)).body == LARGE
    part = client.ask(path, headers=signed(client, path) | {"Range": "bytes=10230-"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, LARGE[10230:], "bytes 10230-10239/10240")


def test_public_bucket_is_for_anybody(client: Client) -> None:
    assert client.ask(key(client, "sub/deep/notes.txt", s3.PUBLIC)).body == FIRST["sub/deep/notes.txt"]
    wrong = signed(client, "/elsewhere")
    assert client.ask(key(client, bucket=s3.PUBLIC), headers=wrong).status == 403


REFUSALS: dict[str, tuple[dict[str, str], int, str]] = {
    "another key": ({"access": "SOMEBODY"}, 403, "InvalidAccessKeyId"),
    "another region": ({"region": "elsewhere"}, 400, "AuthorizationHeaderMalformed"),
    "another service": ({"service": "ec2"}, 400, "AuthorizationHeaderMalformed"),
    "another host": ({"host": "example.test"}, 403, "SignatureDoesNotMatch"),
    "another object": ({"address": "/weights/models/other"}, 403, "SignatureDoesNotMatch"),
    "long ago": ({"moment": "20130524T000000Z"}, 403, "RequestTimeTooSkewed"),
    "at no time": ({"moment": "yesterday"}, 403, "RequestTimeTooSkewed"),
}


@pytest.mark.parametrize(("changes", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_signature_that_does_not_fit_is_refused(
    client: Client, changes: dict[str, str], status: int, code: str
) -> None:
    path = key(client)
    answer = client.ask(path, headers=signed(client, path, **changes))
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/xml")
    assert f"<Code>{code}</Code>".encode() in answer.body


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [({}, 403, "AccessDenied"), ({"Authorization": "Bearer x"}, 400, "AuthorizationHeaderMalformed")],
)
def test_request_without_a_signature_is_refused(
    client: Client, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.ask(key(client), headers=headers)
    assert (answer.status, f"<Code>{code}</Code>".encode() in answer.body) == (status, True)


def test_signature_needs_host_and_date(client: Client) -> None:
    path = key(client)
    headers: dict[str, Any] = signed(client, path)
    headers["Authorization"] = headers["Authorization"].replace(
        "host;x-amz-content-sha256;x-amz-date", "x-amz-content-sha256"
    )
    assert b"SignatureDoesNotMatch" in client.ask(path, headers=headers).body


@pytest.mark.parametrize("path", ["none", "../repository.json"])
def test_object_that_is_not_there(client: Client, path: str) -> None:
    answer = client.ask(key(client, path, s3.PUBLIC))
    assert (answer.status, b"<Code>NoSuchKey</Code>" in answer.body) == (404, True)
    assert client.ask(f"/{s3.PUBLIC}/elsewhere").status == 404


def test_range_behind_the_end_is_refused(client: Client) -> None:
    answer = client.ask(key(client, bucket=s3.PUBLIC), headers={"Range": "bytes=10240-"})
    assert (answer.status, b"<Code>InvalidRange</Code>" in answer.body) == (416, True)
