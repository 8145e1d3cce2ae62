# SPDX-License-Identifier: Apache-2.0
"""Filter that reads an OpenPGP key without gpg."""

from __future__ import annotations

DOCUMENTATION = r"""
name: openpgp_fingerprints
short_description: Read the fingerprints of the keys in an armored file
version_added: 1.0.0
description:
  - Lists the primary keys (version 4, RFC 4880) of an ASCII-armored file. apt trusts every one of them, so a caller compares them all.
  - Computed here, so that a host needs no gpg and nothing is installed before the key is known to be the right one.
options:
  _input:
    description: Text of the file.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show whose keys these are
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'key.asc') | h20.fleet.openpgp_fingerprints }}"
"""

RETURN = r"""
_value:
  description: Fingerprints, 40 hexadecimal digits in capitals each; empty where the text holds no key.
  type: list
  elements: str
"""

import base64
import binascii
import hashlib
import re
import typing as t

ARMOR = re.compile(r"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
PUBLIC_KEY = 6


def openpgp_fingerprints(text: str) -> list[str]:
    """The fingerprints of all primary keys; what cannot be read counts as no key."""
    fingerprints = []
    for block in ARMOR.findall(text):
        # Headers end with an empty line; the line that begins with = is a checksum.
        body = re.split(r"\r?\n\r?\n", block, maxsplit=1)[-1]
        try:
            data = base64.b64decode("".join(line for line in body.split() if not line.startswith("=")), validate=True)
            keys = [packet for tag, packet in _packets(data) if tag == PUBLIC_KEY]
        except (binascii.Error, IndexError, ValueError):
            continue
        # S324: the format says SHA-1, and what it is compared with was taken by the same rule.
        fingerprints += [
            hashlib.sha1(b"\x99" + len(key).to_bytes(2, "big") + key).hexdigest().upper()  # noqa: S324
            for key in keys
            if key[:1] == b"\x04"
        ]
    return fingerprints


def _packets(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    """Tag and body of each packet; raises IndexError or ValueError where the data is cut or no OpenPGP."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("no OpenPGP packet")
        if head & 0x40:
            tag, first = head & 0x3F, data[at + 1]
            if first < 192:
                length, start = first, at + 2
            elif first < 224:
                length, start = ((first - 192) << 8) + data[at + 2] + 192, at + 3
            elif first == 255:
                length, start = int.from_bytes(data[at + 2 : at + 6], "big"), at + 6
            else:
                raise ValueError("a key has no partial length")
        else:
            tag, octets = head >> 2 & 0x0F, 1 << (head & 3)
            if octets == 8:
                raise ValueError("a key has a length")
            length, start = int.from_bytes(data[at + 1 : at + 1 + octets], "big"), at + 1 + octets
        if start + length > len(data):
            raise ValueError("the packet is cut")
        yield tag, data[start : start + length]
        at = start + length


class FilterModule:
    """Filters of the driver stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"openpgp_fingerprints": openpgp_fingerprints}
