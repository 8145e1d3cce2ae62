# SPDX-License-Identifier: Apache-2.0
"""What the tests of the test bed share: a fleet of two hosts and its addresses."""

from __future__ import annotations

from ipaddress import IPv4Network

from testbed.fleet import Fleet, Host, addresses

DEMO = Fleet("demo", (Host("h20-01", "h20_141g"), Host("h20-02", "h20_141g", {"/small": "size=8m"})))
WHERE = addresses(DEMO, IPv4Network("172.30.0.0/16"))
