# SPDX-License-Identifier: Apache-2.0
"""What this machine needs to reach packages - an index, a CA, a proxy, local folders - read from its own settings, so that the hosts can have it too."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "cert", "proxy")
PIP_VARIABLES = {option: f"PIP_{option.upper().replace('-', '_')}" for option in PIP_OPTIONS}
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True)
class Environment:
    """Package settings of this machine; "" and () mean that the client's own default is used."""

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    ca_bundle: str = ""  # path of a PEM file on this machine
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the part of environment.json that speaks of this machine."""
        return {
            "pip": {
                "index_url": self.index_url,
                "extra_index_urls": list(self.extra_index_urls),
                "find_links": list(self.find_links),
            },
            "ca_bundle": self.ca_bundle,
            "proxy": {"http_proxy": self.http_proxy, "https_proxy": self.https_proxy, "no_proxy": self.no_proxy},
        }

    def local_folders(self) -> tuple[str, ...]:
        """Return the folders of this machine that the settings name: what has to be at the same path in a host."""
        indexes = [path for url in (self.index_url, *self.extra_index_urls) if (path := local_path(url))]
        links = [str(path) for url in self.find_links if (path := local_path(url)) and path.is_dir()]
        return outermost([*links, *(folder for index in indexes if index.is_dir() for folder in index_folders(index))])


def read(environ: Mapping[str, str] = os.environ, pip_list: str | None = None) -> Environment:
    """Return this machine's settings, from `environ` and from `pip_list` (the text of `pip config list`; None: ask pip).

    pip's settings come first, as pip itself ranks them; uv's variables add what pip's do not name.
    """
    pip = pip_settings(pip_config_list() if pip_list is None else pip_list)
    pip |= {option: environ[name] for option, name in PIP_VARIABLES.items() if environ.get(name)}
    index_url = pip.get("index-url") or environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL") or ""
    uv_indexes = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}".split()
    authorities = (pip.get("cert", ""), *(environ.get(name, "") for name in CA_VARIABLES))
    proxies = {
        scheme: environ.get(f"{scheme}_proxy") or environ.get(f"{scheme.upper()}_PROXY") or ""
        for scheme in ("http", "https", "no")
    }
    return Environment(
        index_url=unnamed(index_url),
        extra_index_urls=unique([*pip.get("extra-index-url", "").split(), *map(unnamed, uv_indexes)]),
        find_links=unique([*pip.get("find-links", "").split(), *re.split(r"[,\s]+", environ.get("UV_FIND_LINKS", ""))]),
        ca_bundle=next((path for path in authorities if path and Path(path).is_file()), ""),
        http_proxy=proxies["http"] or pip.get("proxy", ""),
        https_proxy=proxies["https"] or pip.get("proxy", ""),
        no_proxy=proxies["no"],
    )


def pip_config_list() -> str:
    """Return the text of `pip config list` of this interpreter, of the pip on PATH where this one has none, "" without any pip."""
    commands = [[sys.executable, "-m", "pip"], *([pip] for pip in [shutil.which("pip3"), shutil.which("pip")] if pip)]
    for command in commands:
        answer = subprocess.run([*command, "config", "list"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout
    return ""


def pip_settings(pip_list: str) -> dict[str, str]:
    """Return option -> value from the text of `pip config list`; environment wins over [install], that over [global], as in pip."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in pip_list.splitlines():
        if match := re.match(r"(global|install|:env:)\.([\w-]+)=(.+)$", line):
            section, option, value = match.groups()
            sections[section][option] = str(ast.literal_eval(value))
    return sections["global"] | sections["install"] | sections[":env:"]


def unnamed(index: str) -> str:
    """Return the URL of an index that uv's variables may give as name=URL."""
    return re.sub(r"^[\w.-]+=(?=\w+:)", "", index)


def unique(values: Iterable[str]) -> tuple[str, ...]:
    """Return `values` without the empty ones and the repetitions, in order."""
    return tuple(dict.fromkeys(value for value in values if value))


def local_path(location: str) -> Path | None:
    """Return the path that a file: URL or an absolute path names, None for anything else."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


def index_folders(index: Path) -> tuple[str, ...]:
    """Return the folders that the package index at `index` needs: itself, and those beside it that its pages link to.

    Only the first link of each project's page is read: an index keeps its files in one tree.
    """
    targets = [target for page in sorted(index.glob("*/index.html")) if (target := first_link(page))]
    common = Path(os.path.commonpath([index, *targets]))
    if common == index:
        return (str(index),)
    return unique(str(common / path.relative_to(common).parts[0]) for path in (index, *targets) if path != common)


def first_link(page: Path) -> Path | None:
    """Return the local file that the first link of the index page `page` names, None where it has none."""
    match = re.search(r"""href=["']([^"'#]+)""", page.read_text(errors="replace"))
    return local_path(urljoin(page.as_uri(), match[1])) if match else None


def outermost(folders: Iterable[str]) -> tuple[str, ...]:
    """Return `folders` without those that lie inside another of them, sorted."""
    kept: list[str] = []
    for folder in sorted(set(folders)):
        if not any(Path(folder).is_relative_to(outer) for outer in kept):
            kept.append(folder)
    return tuple(kept)
