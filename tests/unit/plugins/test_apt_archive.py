# SPDX-License-Identifier: Apache-2.0
"""apt_archive: what apt says is read right, and a stand-in of apt lets it plan, fetch, go on and refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.modules import apt_archive
from unit.plugins.support import run_module, write_program

# As apt 2.6 of Debian 12 printed it; the addresses are those of a site's mirror.
URIS = """\
'http://archive.test/debian-security/pool/updates/main/o/openssl/libssl3_3.0.22-1%7edeb12u2_amd64.deb' libssl3_3.0.22-1~deb12u2_amd64.deb 2039888
'http://archive.test/debian/pool/main/g/gcc-12/g%2b%2b-12_12.2.0-14%2bdeb12u1_amd64.deb' g++-12_12.2.0-14+deb12u1_amd64.deb 10700000 SHA256:00ff
'http://mirror.test/compute/cuda/repos/debian12/x86_64/./cuda-nvcc-13-0_13.0.88-1_amd64.deb' cuda-nvcc-13-0_13.0.88-1_amd64.deb 1154
'http://archive.test/debian-security/pool/updates/main/o/openssl/libssl3_3.0.22-1%7edeb12u2_amd64.deb' libssl3_3.0.22-1~deb12u2_amd64.deb 2039888
"""
TARGETS = """\
MetaKey: main/binary-amd64/Packages
ShortDesc: Packages
Description: http://archive.test/debian bookworm/main amd64 Packages
URI: http://archive.test/debian/dists/bookworm/main/binary-amd64/Packages
Filename: /var/lib/apt/lists/archive.test_debian_dists_bookworm_main_binary-amd64_Packages
Trusted: yes
Created-By: Packages
CompressionTypes: xz bz2 lzma gz lz4 zst uncompressed
Fallback-Of:

MetaKey: main/i18n/Translation-en
Created-By: Translations
"""
XZ = "9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5"
GZ = "2f3d4b2a5d0f8a6a5cb7bbd4a0c9d2a8f2a1b8f1a9f5d7b6c3e2d1f0a9b8c7d6"
RELEASE = f"""\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

Origin: Debian
Suite: oldstable
Codename: bookworm
Date: Sat, 11 Jul 2026 10:16:37 UTC
Acquire-By-Hash: yes
Components: main contrib
MD5Sum:
 0ed6d4c8891eb86358b94bb35d9e4da4  1484322 main/binary-amd64/Packages.xz
SHA256:
 {GZ} 11709128 main/binary-amd64/Packages.gz
 {XZ}  8790184 main/binary-amd64/Packages.xz
 {XZ[::-1]}  1790184 main/binary-amd64/Packages.xz.old
-----BEGIN PGP SIGNATURE-----
"""


def test_addresses_are_each_named_once() -> None:
    uris = apt_archive.parse_uris(URIS)
    assert len(uris) == 3
    assert uris[1] == "http://archive.test/debian/pool/main/g/gcc-12/g%2b%2b-12_12.2.0-14%2bdeb12u1_amd64.deb"
    assert apt_archive.plain(uris[1]).endswith("/g++-12_12.2.0-14+deb12u1_amd64.deb")
    assert apt_archive.plain(uris[2]).endswith("/x86_64/cuda-nvcc-13-0_13.0.88-1_amd64.deb")


def test_targets_are_stanzas() -> None:
    first, second = apt_archive.parse_targets(TARGETS)
    assert first["metakey"] == "main/binary-amd64/Packages"
    assert first["uri"] == "http://archive.test/debian/dists/bookworm/main/binary-amd64/Packages"
    assert (first["fallback-of"], second["created-by"]) == ("", "Translations")


def test_the_index_is_the_one_that_apt_asks_for() -> None:
    key = "main/binary-amd64/Packages"
    choose = apt_archive.choose_index
    by_hash = f"main/binary-amd64/by-hash/SHA256/{XZ}"
    assert choose(RELEASE, key, ["xz", "gz", "uncompressed"]) == (by_hash, 8790184, "sha256", XZ)
    plain = RELEASE.replace("Acquire-By-Hash: yes\n", "")
    assert choose(plain, key, ["zst", "gz", "xz"]) == (f"{key}.gz", 11709128, "sha256", GZ)
    strong = RELEASE.replace("SHA256:", f"SHA512:\n {XZ}{GZ} 8790184 {key}.xz\nSHA256:")
    assert choose(strong, key, ["xz"])[0] == f"main/binary-amd64/by-hash/SHA512/{XZ}{GZ}"
    flat = choose(f"SHA256:\n {GZ} 13 Packages.gz\n", "Packages", ["xz", "gz"])
    assert flat == ("Packages.gz", 13, "sha256", GZ)


@pytest.mark.parametrize(
    "release", ["", "Suite: x\n", RELEASE.partition("SHA256:\n")[0]], ids=["empty", "bare", "weak"]
)
def test_an_index_without_a_strong_hash_is_refused(release: str) -> None:
    with pytest.raises(apt_archive.ArchiveError, match="by a strong hash -> "):
        apt_archive.choose_index(release, "main/binary-amd64/Packages", ["xz"])


def test_packages_without_a_strong_hash_are_no_packages() -> None:
    text = "Package: a\nFilename: pool/a.deb\nSize: 3\nSHA256: 00\n\nPackage: b\nFilename: pool/b.deb\nSize: 3\nMD5sum: 00\n"
    assert list(apt_archive.parse_packages(text)) == [("pool/a.deb", 3, "00")]


@pytest.mark.parametrize(
    ("repository", "folder"),
    [
        ("http://deb.site.test/debian/", "apt/deb.site.test_debian"),
        ("http://user:secret@deb.site.test:8080/debian-security/", "apt/deb.site.test_debian-security"),
        ("file:/usr/share/testbed/kernel/", "apt/usr_share_testbed_kernel"),
        ("http://mirror.test/compute/cuda/repos/debian12/x86_64/", "nvidia/compute"),
    ],
)
def test_an_archive_has_a_folder_of_its_own(repository: str, folder: str) -> None:
    told = {"http://mirror.test/compute/cuda/repos/debian12/x86_64": "nvidia/compute/"}
    assert apt_archive.folder_of(repository, told) == folder


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "pool/%2e%2e/%2e%2e/%2e%2e/x"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(apt_archive.ArchiveError, match="outside of itself"):
        apt_archive.local_path(path)
    assert apt_archive.local_path("./a%2bb.deb") == "a+b.deb"


APT = """\
options = dict(part[len("--option="):].split("=", 1) for part in ARGUMENTS if part.startswith("--option="))
words = [part for part in ARGUMENTS if not part.startswith("--")]
with (HERE / "asked").open("a") as log:
    log.write(f"{words}\\n")
settings = json.loads((HERE / "settings.json").read_text())
if words[:1] == ["update"]:
    for name, text in settings["lists"].items():
        (pathlib.Path(options["Dir::State::Lists"]) / name).write_text(text)
elif words[:1] == ["indextargets"]:
    print(settings["targets"].replace("LISTS", options["Dir::State::Lists"]))
elif words[:1] == ["madison"]:
    print(settings["madison"])
elif words[:1] == ["install"]:
    if "absent" in words:
        sys.exit("E: Unable to locate package absent")
    print(settings["uris"])
elif words[:1] == ["download-file"]:
    for start in range(1, len(words), 3):
        uri, place, digest = words[start:start + 3]
        content = settings["served"].get(uri)
        if content is None:
            sys.exit(f"E: Failed to fetch {uri}  404  Not Found")
        pathlib.Path(place).write_text(content)
else:
    print("apt 2.6.1 (amd64)")
"""


@dataclass
class Apt:
    """A stand-in of apt and apt-helper with one archive, and a bundle that grows from it."""

    programs: Path
    root: Path
    settings: dict[str, Any]

    def run(self, **params: Any) -> dict[str, Any]:
        (self.programs / "settings.json").write_text(json.dumps(self.settings))
        return run_module("apt_archive", path=str(self.root / "bundle"), work=str(self.root / "work"), **params)

    def plan(self, *packages: str) -> dict[str, Any]:
        return self.run(state="planned", requests=[{"packages": packages or ("a",)}])

    def write(self) -> dict[str, Any]:
        return self.run(archive="apt/archive.test_debian")

    def there(self) -> list[str]:
        root = self.root / "bundle/apt/archive.test_debian"
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def asked(self, verb: str) -> list[str]:
        return [line for line in (self.programs / "asked").read_text().splitlines() if line.startswith(f"['{verb}'")]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    programs = tmp_path / "bin"
    for name in ("apt-get", "apt-cache", "apt-helper"):
        write_program(programs / name, APT)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(apt_archive, "HELPER", str(programs / "apt-helper"))
    index = "".join(
        f"Package: {name}\nFilename: pool/{name}.deb\nSize: 5\nSHA256: {sha256(f'deb {name}')}\n\n" for name in "abc"
    )
    release = f"Suite: stable\nSHA256:\n {sha256('index')} 5 main/binary-amd64/Packages.gz\n"
    base = "http://archive.test/debian/"
    settings = {
        "lists": {
            "archive.test_debian_dists_stable_InRelease": release,
            "archive.test_debian_dists_stable_main_binary-amd64_Packages": index,
            "srv_packages_._Packages": "",
        },
        "targets": "MetaKey: main/binary-amd64/Packages\nCreated-By: Packages\nCompressionTypes: xz gz\nArchitecture: amd64\nComponent: main\n"
        f"Base-URI: {base}dists/stable/\nRepo-URI: {base}\nRelease: stable\n"
        "Filename: LISTS/archive.test_debian_dists_stable_main_binary-amd64_Packages\n\n"
        "MetaKey: Packages\nCreated-By: Packages\nRepo-URI: file:/srv/packages/\nRelease: ./\nFilename: LISTS/srv_packages_._Packages\n",
        "madison": " a | 2:1.5-1 | http://archive.test/debian stable/main amd64 Packages\n a | 1.4-1 | http://archive.test/debian x",
        "uris": f"'{base}pool/a.deb' a.deb 5\n'{base}pool/b.deb' b.deb 5 SHA256:00",
        "served": {
            f"{base}dists/stable/main/binary-amd64/Packages.gz": "index",
            **{f"{base}pool/{name}.deb": f"deb {name}" for name in "abc"},
        },
    }
    return Apt(programs, tmp_path, settings)


def test_an_archive_is_written_as_apt_will_ask_for_it(apt: Apt) -> None:
    plan = apt.plan()
    assert plan["unsigned"] == ["file:/srv/packages/ ./"]
    (archive,) = plan["archives"]
    assert (archive["packages"], archive["bytes"]) == (2, 15)
    assert archive["sources"] == [
        {"folder": "apt/archive.test_debian", "suites": ["stable"], "components": ["main"], "architectures": ["amd64"]}
    ]
    assert apt.there() == []
    written = apt.write()
    assert (written["changed"], written["fetched"], written["fetched_bytes"]) == (True, 3, 15)
    assert apt.there() == [
        "dists/stable/InRelease",
        "dists/stable/main/binary-amd64/Packages.gz",
        "pool/a.deb",
        "pool/b.deb",
    ]


def test_a_second_run_fetches_nothing(apt: Apt) -> None:
    apt.plan()
    apt.write()
    apt.plan()
    again = apt.write()
    assert (again["changed"], again["fetched"]) == (False, 0)
    assert len(apt.asked("download-file")) == 1


def test_a_run_that_was_cut_off_goes_on(apt: Apt) -> None:
    apt.plan()
    gone = "http://archive.test/debian/pool/b.deb"
    content = apt.settings["served"].pop(gone)
    refused = apt.write()
    assert refused["failed"]
    assert f"did not fetch {gone}: E: Failed to fetch {gone}  404  Not Found -> " in refused["msg"]
    assert apt.there() == ["dists/stable/main/binary-amd64/Packages.gz", "pool/a.deb"]
    apt.settings["served"][gone] = content
    assert apt.write()["fetched"] == 1


def test_a_damaged_package_is_fetched_again_and_an_old_one_goes(apt: Apt) -> None:
    apt.plan()
    apt.write()
    folder = apt.root / "bundle/apt/archive.test_debian"
    (folder / "pool/a.deb").write_text("evil!")
    apt.settings["uris"] = apt.settings["uris"].replace("b.deb", "c.deb")
    apt.plan()
    assert apt.write()["fetched"] == 2
    assert (folder / "pool/a.deb").read_text() == "deb a"
    assert [name for name in apt.there() if name.startswith("pool")] == ["pool/a.deb", "pool/c.deb"]


def test_other_bytes_than_the_signed_index_names_never_get_their_name(apt: Apt) -> None:
    apt.settings["served"]["http://archive.test/debian/pool/a.deb"] = "evil!"
    apt.plan()
    assert "did not fetch http://archive.test/debian/pool/a.deb" in apt.write()["msg"]
    assert "pool/a.deb" not in apt.there()


def test_a_package_of_an_archive_that_nobody_signs_is_refused_by_name(apt: Apt) -> None:
    apt.settings["uris"] += "\n'file:/srv/packages/./own.deb' own.deb 5"
    refused = apt.plan()["msg"]
    assert "no signed archive of this machine has file:/srv/packages/./own.deb" in refused
    assert "archives that nobody signs: file:/srv/packages/ ./ -> " in refused
    located = apt.plan("absent")["msg"]
    assert "Unable to locate package absent; left out, because nobody signs them: file:/srv/packages/ ./ -> " in located


def test_a_version_is_the_newest_that_fits(apt: Apt) -> None:
    apt.plan("a=*:1.5-*")
    assert apt.asked("install")[-1] == "['install', 'a=2:1.5-1']"
    apt.plan("a=1.*", "b=7")
    assert apt.asked("install")[-1] == "['install', 'a=1.4-1', 'b=7']"
    refused = apt.plan("a=1.6-*")["msg"]
    assert refused.startswith("PACKAGE-GONE: no archive has a 1.6-* (there: 2:1.5-1, 1.4-1) -> ")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    apt: Apt, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 10

    apt.plan()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Full)
    assert "takes 15 more bytes" in apt.write()["msg"]
    assert apt.asked("download-file") == []


def test_an_archive_that_was_not_planned_is_refused(apt: Apt) -> None:
    assert "there is no plan in" in apt.write()["msg"]
    apt.plan()
    assert "has no archive apt/other; it has apt/archive.test_debian" in apt.run(archive="apt/other")["msg"]


def test_check_mode_is_skipped(apt: Apt) -> None:
    assert apt.run(state="planned", check=True)["skipped"] is True
