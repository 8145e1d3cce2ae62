# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of keys, compared with packets whose fingerprint the format gives."""

from __future__ import annotations

import base64
import hashlib

import pytest
from ansible_collections.h20.fleet.plugins.filter import openpgp_fingerprints

fingerprints = openpgp_fingerprints.FilterModule().filters()["openpgp_fingerprints"]

KEY = b"\x04" + bytes(range(1, 5)) + b"\x01" + b"\x08\x00" + b"\xab" * 256 + b"\x00\x11\x01\x00\x01"
USER = b"\xb4\x04name"


def old_format(tag: int, body: bytes) -> bytes:
    return bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body


def new_format(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 192:
        return bytes([0xC0 | tag, size]) + body
    if size < 8384:
        return bytes([0xC0 | tag, (size - 192 >> 8) + 192, size - 192 & 0xFF]) + body
    return bytes([0xC0 | tag, 255]) + size.to_bytes(4, "big") + body


def armor(data: bytes, header: str = "") -> str:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n{header}\n{text}=AbCd\n-----END PGP PUBLIC KEY BLOCK-----\n"


def fingerprint(key: bytes) -> str:
    return hashlib.sha1(b"\x99" + len(key).to_bytes(2, "big") + key).hexdigest().upper()  # noqa: S324 (the format's own)


@pytest.mark.parametrize("packet", [old_format, new_format])
@pytest.mark.parametrize("size", [10, 300, 9000])
def test_primary_keys_of_every_form(packet: object, size: int) -> None:
    key = b"\x04" + b"\x07" * size
    assert callable(packet)
    subkey = packet(14, b"\x04" + b"\x09" * size)
    assert fingerprints(armor(packet(6, key) + USER + subkey)) == [fingerprint(key)]


def test_every_key_counts_wherever_it_stands() -> None:
    """A mirror could add a key of its own, in the same block or in another."""
    other = KEY[:-1] + b"\x03"
    both = [fingerprint(KEY), fingerprint(other)]
    assert fingerprints(armor(old_format(6, KEY) + USER + old_format(6, other))) == both
    assert fingerprints(armor(old_format(6, KEY)) + armor(new_format(6, other), "Version: 1\n")) == both


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----",
        armor(old_format(6, KEY)[:40]),
        armor(b"text"),
        armor(old_format(6, b"\x03old")),
    ],
    ids=["empty", "page", "cut", "short", "other", "version-3"],
)
def test_what_is_no_key(text: str) -> None:
    assert fingerprints(text) == []


def test_windows_line_ends() -> None:
    assert fingerprints(armor(old_format(6, KEY)).replace("\n", "\r\n")) == [fingerprint(KEY)]
