# SPDX-License-Identifier: Apache-2.0
"""Who may reach the ports of the work."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import addresses, firewall
from ansible_collections.h20.fleet.plugins.module_utils._weights.firewall import FirewallError
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Member, Site
from unit.weights.sites import Neighbours

SITE = Site({"a": Member("10.0.0.10"), "b": Member("10.0.0.9"), "c": Member("nobody.invalid")}, ("a",), 8481, 8)


def test_the_hosts_of_the_site_reach_every_port_of_it_and_nobody_else_does() -> None:
    lines = [line.strip() for line in firewall.rules(SITE).splitlines()]
    accept = lines.index("ip saddr { 10.0.0.9, 10.0.0.10 } tcp dport 8481-8491 accept")
    assert lines[accept - 1 : accept + 2] == ["iifname lo accept", lines[accept], "tcp dport 8481-8491 drop"]
    assert SITE.peer_port(SITE.processes - 1) == 8491


def test_a_table_that_is_there_is_replaced() -> None:
    assert firewall.rules(SITE).splitlines()[:3] == [
        f"table {firewall.TABLE}",
        f"delete table {firewall.TABLE}",
        f"table {firewall.TABLE} {{",
    ]


def test_nothing_is_open_where_no_address_is_known() -> None:
    site = Site({"c": Member("nobody.invalid")}, ("c",), 8481, 1)
    assert "saddr" not in firewall.rules(site)
    assert "tcp dport 8481-8484 drop" in firewall.rules(site)


@pytest.mark.skipif(not shutil.which("nft", path="/usr/sbin:/usr/bin"), reason="nftables is not here")
def test_nft_understands_the_rules() -> None:
    done = subprocess.run(
        ["/usr/sbin/nft", "--check", "-f", "-"], input=firewall.rules(SITE), capture_output=True, text=True, check=False
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("nft needs root even to check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_host_without_nft_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible_collections.h20.fleet.plugins.module_utils._weights.children.SERVERS", "/nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FirewallError, match="-> install nftables"):
        firewall.up(Neighbours(tmp_path, ["a", "b"]).job("a"))


def test_a_host_listens_on_the_address_that_it_was_given(tmp_path: Path) -> None:
    site = Neighbours(tmp_path, ["a", "b"]).job("a").site
    assert site is not None
    assert addresses.own(site, "b") == "127.0.0.3"
    assert addresses.all_of(site) == {"127.0.0.2", "127.0.0.3"}


def test_a_name_that_means_loopback_is_no_address_for_others() -> None:
    site = Site({"a": Member("localhost"), "b": Member("nobody.invalid")}, ("a",), 8481, 1)
    assert addresses.own(site, "a") == ""
