# SPDX-License-Identifier: Apache-2.0
"""ansible-test sanity with a virtual environment: no containers, and nothing but a Python package index to reach."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gates.package import SHIPPED
from gates.shell import CACHE, ROOT, GateError, Shell, files

HOME = CACHE / "home"
TREE = CACHE / "sanity" / "ansible_collections" / "h20" / "fleet"

# ansible-test would download pip's installer from Ansible's own server; Python brings one. ansible-test names the version of pip that it wants.
GET_PIP = """\
import subprocess
import sys

arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"], stdout=subprocess.DEVNULL)
subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *arguments])
"""


def copy_tree() -> None:
    """Bring TREE up to date with the collection's own files; unchanged ones keep their times. (Tests have gates of their own.)"""
    wanted = set(files("galaxy.yml", "tests/sanity", *sorted(SHIPPED)))
    for present in [path for path in TREE.rglob("*") if not path.is_dir() or path.is_symlink()]:
        relative = present.relative_to(TREE)
        if relative not in wanted and relative.parts[0] != ".git" and relative.parts[:2] != ("tests", "output"):
            present.unlink()
    for relative in wanted:
        source, target = ROOT / relative, TREE / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() or target.is_symlink():
            target.unlink(missing_ok=True)
        if not target.exists() or _differs(source, target):
            shutil.copy2(source, target, follow_symlinks=False)
    # ansible-test asks git for the files, and would ask the clone around the copy, which ignores it, were the copy not a repository too.
    subprocess.run(["git", "init", "--quiet", str(TREE)], check=True)
    (TREE / ".git" / "info" / "exclude").write_text("/tests/output/\n", encoding="utf-8")


def _differs(source: Path, target: Path) -> bool:
    one, other = source.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns, one.st_mode) != (other.st_size, other.st_mtime_ns, other.st_mode)


def write_pip_config() -> None:
    """Write pip's effective configuration into HOME, because ansible-test hands neither PIP_* variables nor proxies on to pip."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    config = configparser.RawConfigParser()
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        level, _, option = name.rpartition(".")
        section = "global" if level == ":env:" else level
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, option, value.strip("'\"").replace("\\n", "\n"))
    if not config.has_section("global"):
        config.add_section("global")
    for option, variables in {
        "cert": ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"),
        "proxy": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    }.items():
        given = [os.environ[name] for name in variables if os.environ.get(name)]
        if given and not config.has_option("global", option):
            config.set("global", option, given[0])
    path = HOME / ".config" / "pip" / "pip.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A proxy's address can hold a password.
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8") as stream:
        config.write(stream)


def write_get_pip() -> None:
    """Put GET_PIP where ansible-test keeps the installer that it has downloaded before; raises GateError if it no longer says which."""
    spec = importlib.util.find_spec("ansible_test._internal")
    if spec is None or not spec.submodule_search_locations:
        raise GateError("ansible-test is not installed beside ansible-core")
    source = Path(spec.submodule_search_locations[0]) / "python_requirements.py"
    version = re.search(r"\bpip='([0-9.]+)'", source.read_text(encoding="utf-8"))
    if version is None:
        raise GateError(f"{source.name} of ansible-test names no version of pip any more")
    path = HOME / ".ansible" / "test" / "cache" / f"get_pip_{version[1].replace('.', '_')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(GET_PIP, encoding="utf-8")


def check(shell: Shell) -> None:
    """Run every sanity test of the ansible-core in use under the Python in use."""
    copy_tree()
    write_pip_config()
    write_get_pip()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Not this tree's collections: the copy is one, and ansible-test finds it by its own path.
    variables = {"HOME": str(HOME), "ANSIBLE_COLLECTIONS_PATH": str(CACHE / "sanity")}
    lines = shell.run("ansible-test", "sanity", "--venv", "--python", python, "--color", "no", env=variables, cwd=TREE)
    if any("All targets skipped" in line for line in lines):
        raise GateError("ansible-test found no files to test")
