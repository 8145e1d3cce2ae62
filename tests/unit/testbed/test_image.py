# SPDX-License-Identifier: Apache-2.0
"""The recipe of the host image."""

from __future__ import annotations

import subprocess
from dataclasses import replace

from testbed.image import KERNEL_SIGNATURE, SETUP, Recipe, apt_proxies

PLAIN = Recipe("bookworm", "", "x86_64", (), "6.1.0-1-amd64")


def test_the_reference_names_the_recipe() -> None:
    assert PLAIN.reference == Recipe("bookworm", "", "x86_64", (), "6.1.0-1-amd64").reference
    others = [
        replace(PLAIN, suite="noble"),
        replace(PLAIN, mirror="http://mirror.test/ubuntu"),
        replace(PLAIN, apt_options=('Acquire::http::Proxy "http://p:3142";',)),
        replace(PLAIN, setup="true"),
        replace(PLAIN, kernel="6.8.0-1-generic"),
    ]
    assert len({recipe.reference for recipe in [PLAIN, *others]}) == 6


def test_suite_mirror_and_proxy_reach_mmdebstrap() -> None:
    assert PLAIN.command("/x/root.tar")[-2:] == ["bookworm", "/x/root.tar"]
    command = Recipe(
        "noble", "http://mirror.test/ubuntu", "x86_64", ('Acquire::http::Proxy "http://p:3142";',), "6.1.0-1-amd64"
    ).command("/x/root.tar")
    assert command[-3:] == ["noble", "/x/root.tar", "http://mirror.test/ubuntu"]
    assert '--aptopt=Acquire::http::Proxy "http://p:3142";' in command


def test_the_setup_is_a_shell_script() -> None:
    hooks = [option for option in PLAIN.command("x") if option.startswith("--customize-hook=")]
    assert len(hooks) == 2
    for script in (SETUP, KERNEL_SIGNATURE, *(hook.partition("=")[2] for hook in hooks)):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_apt_proxy_comes_from_apt_and_else_from_the_variables() -> None:
    dump = 'Acquire "";\nAcquire::http "";\nAcquire::http::Proxy "http://p:3142";\nAcquire::https::Proxy::mirror.test "DIRECT";\nAcquire::Retries "3";\n'
    lines = ('Acquire::http::Proxy "http://p:3142";', 'Acquire::https::Proxy::mirror.test "DIRECT";')
    assert apt_proxies(dump, {"http_proxy": "http://q:1"}) == lines
    assert apt_proxies("", {"http_proxy": "http://q:1", "https_proxy": ""}) == ('Acquire::http::Proxy "http://q:1";',)
    assert apt_proxies("", {}) == ()
