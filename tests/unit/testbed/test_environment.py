# SPDX-License-Identifier: Apache-2.0
"""What the test bed reads of the machine it runs on: pip's and uv's settings, CA, proxy, local folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed import environment
from testbed.environment import Environment, read

# As `pip config list` prints it: values as Python literals, several of them on lines or between blanks.
CONFIGURATION = r"""
:env:.find-links='/from/environment'
global.extra-index-url='\nhttps://one.test/simple\nhttps://two.test/simple'
global.find-links='/from/file'
global.index-url='https://site.test/simple'
global.timeout='60'
install.index-url='https://install.test/simple'
"""


def test_a_machine_without_settings_has_none() -> None:
    settings = read({}, "")
    assert settings == Environment()
    assert settings.local_folders() == ()
    assert settings.as_json() == {
        "pip": {"index_url": "", "extra_index_urls": [], "find_links": []},
        "ca_bundle": "",
        "proxy": {"http_proxy": "", "https_proxy": "", "no_proxy": ""},
    }


def test_pip_configuration_is_read_with_its_own_ranks() -> None:
    settings = read({}, CONFIGURATION)
    assert settings.index_url == "https://install.test/simple"
    assert settings.extra_index_urls == ("https://one.test/simple", "https://two.test/simple")
    assert settings.find_links == ("/from/environment",)


def test_variables_win_over_files() -> None:
    settings = read(
        {
            "PIP_INDEX_URL": "https://a.test/simple",
            "PIP_EXTRA_INDEX_URL": "https://b.test/s https://c.test/s",
            "PIP_FIND_LINKS": "",
        },
        "global.index-url='https://file.test/simple'\nglobal.find-links='/wheels'",
    )
    assert settings.index_url == "https://a.test/simple"
    assert settings.extra_index_urls == ("https://b.test/s", "https://c.test/s")
    assert settings.find_links == ("/wheels",)


def test_variables_of_uv_add_what_pip_does_not_name() -> None:
    settings = read(
        {
            "UV_DEFAULT_INDEX": "site=https://uv.test/simple",
            "UV_INDEX": "torch=https://torch.test/whl https://plain.test/simple?x=1",
            "UV_EXTRA_INDEX_URL": "https://plain.test/simple?x=1",
            "UV_FIND_LINKS": "/one,/two",
        },
        "global.find-links='/one'",
    )
    assert settings.index_url == "https://uv.test/simple"
    assert settings.extra_index_urls == ("https://torch.test/whl", "https://plain.test/simple?x=1")
    assert settings.find_links == ("/one", "/two")
    assert (
        read({"UV_INDEX_URL": "https://uv.test/s"}, "global.index-url='https://pip.test/s'").index_url
        == "https://pip.test/s"
    )


def test_the_first_ca_that_exists_is_taken(tmp_path: Path) -> None:
    first, second = tmp_path / "first.pem", tmp_path / "second.pem"
    second.touch()
    variables = {"SSL_CERT_FILE": str(first), "REQUESTS_CA_BUNDLE": str(second)}
    assert read(variables, "").ca_bundle == str(second)
    first.touch()
    assert read(variables, "").ca_bundle == str(first)
    assert read(variables, f"global.cert='{second}'").ca_bundle == str(second)
    assert read({**variables, "PIP_CERT": str(first)}, f"global.cert='{second}'").ca_bundle == str(first)


@pytest.mark.parametrize(
    ("environ", "listing", "http", "https", "no"),
    [
        ({"http_proxy": "http://p:3128", "HTTP_PROXY": "http://q:1"}, "", "http://p:3128", "", ""),
        ({"HTTPS_PROXY": "http://q:1", "NO_PROXY": ".site"}, "", "", "http://q:1", ".site"),
        ({"https_proxy": "http://q:1"}, "global.proxy='http://pip:8080'", "http://pip:8080", "http://q:1", ""),
    ],
)
def test_proxies(environ: dict[str, str], listing: str, http: str, https: str, no: str) -> None:
    settings = read(environ, listing)
    assert (settings.http_proxy, settings.https_proxy, settings.no_proxy) == (http, https, no)


def page(index: Path, project: str, link: str) -> None:
    """Write the page of `project` of a file index, with one link."""
    (index / project).mkdir(parents=True)
    (index / project / "index.html").write_text(f'<!DOCTYPE html><a href="{link}#sha256=00">wheel</a>')


def test_an_index_brings_the_folders_that_its_pages_link_to(tmp_path: Path) -> None:
    index, wheels = tmp_path / "mirror" / "simple", tmp_path / "wheels"
    wheels.mkdir()
    page(index, "six", "../../files/s/six-1-py3-none-any.whl")
    page(index, "rich", "../../files/r/rich-1-py3-none-any.whl")
    settings = read(
        {"PIP_EXTRA_INDEX_URL": index.as_uri(), "PIP_FIND_LINKS": f"{wheels} https://far.test/wheels /nowhere"}, ""
    )
    assert settings.local_folders() == (str(tmp_path / "mirror" / "files"), str(index), str(wheels))


def test_an_index_that_holds_its_files_is_enough(tmp_path: Path) -> None:
    index = tmp_path / "simple index"
    page(index, "six", "six-1-py3-none-any.whl")
    (index / "empty").mkdir()
    (index / "empty" / "index.html").touch()
    page(index, "far", "https://far.test/far-1-py3-none-any.whl")
    assert read({"PIP_INDEX_URL": index.as_uri()}, "").local_folders() == (str(index),)


def test_folders_inside_others_are_left_out() -> None:
    assert environment.outermost(["/a/b", "/a", "/ab", "/a"]) == ("/a", "/ab")


def test_pip_of_this_interpreter_answers() -> None:
    assert isinstance(read(), Environment)
