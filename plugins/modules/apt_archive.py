#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Write partial mirrors of the archives that a host's apt knows: their own signed indexes, and the packages that are asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apt_archive
short_description: Write partial mirrors of Debian archives with their own signed indexes
version_added: 1.0.0
description:
  - Computes everything that the packages need, as on a host with no package at all, by the host's own apt, and fetches it through that apt, so that its
    proxy, certificate authorities, mirrors and credentials are honoured.
  - Each archive keeps the signed release file and the package index of its upstream, so that a host that trusts the upstream trusts the partial mirror.
  - An archive that nobody signs is left out; a package that only such an archive has is refused by name.
  - Nothing of the host's own apt is changed; lists and half-fetched files lie in a folder of their own.
options:
  state:
    description:
      - V(planned) asks the archives, writes the plan and returns the archives.
      - V(written) fetches what one archive of the plan lacks, and deletes what is there and not in the plan.
    type: str
    choices: [planned, written]
    default: written
  path:
    description: Folder of the tree that the archives are written below.
    type: path
    required: true
  work:
    description: Folder for lists, plan and half-fetched files, on the same filesystem.
    type: path
    required: true
  requests:
    description: What is to be installable, for V(planned); each is resolved by itself.
    type: list
    elements: dict
    default: []
    suboptions:
      packages:
        description: Names as apt-get takes them, also as name=version with V(*) for any part of it.
        type: list
        elements: str
        required: true
      recommends:
        description: Whether recommended packages come too.
        type: bool
        default: false
      optional:
        description: Whether packages that no archive has are left out.
        type: bool
        default: false
  sources:
    description: Files of sources beside the host's own. A source of the host for the same repository gives way to them.
    type: list
    elements: path
    default: []
  folders:
    description: Folder below O(path) for a repository by its root URL. Others lie in V(apt/), named after host and path.
    type: dict
    default: {}
  preferences:
    description: File of pins, as the hosts will have it.
    type: path
    default: /dev/null
  archive:
    description: Folder of the archive to fetch, one of those that V(planned) returned.
    type: str
    default: ""
attributes:
  check_mode:
    description: Is skipped, because the lists that it asks have to be fetched.
    support: none
  diff_mode:
    description: Has none.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See what is needed
  h20.fleet.apt_archive:
    state: planned
    path: /var/lib/h20-fleet/bundle
    work: /var/lib/h20-fleet/bundle.work
    requests:
      - packages: [python3-venv, libnuma1]
  register: plan

- name: Fetch it
  h20.fleet.apt_archive:
    path: /var/lib/h20-fleet/bundle
    work: /var/lib/h20-fleet/bundle.work
    archive: "{{ item.folder }}"
  loop: "{{ plan.archives }}"
"""

RETURN = r"""
archives:
  description:
    - Each archive (folder, uri, packages, bytes, sources).
    - Each of the sources is a source of apt below that folder (folder, suites, components, architectures).
  returned: success
  type: list
  elements: dict
unsigned:
  description: Archives of the host that nobody signs, which were left out.
  returned: when planned
  type: list
  elements: str
fetched:
  description: Files that were fetched.
  returned: when written
  type: int
fetched_bytes:
  description: Their size.
  returned: when written
  type: int
"""

import fnmatch
import json
import os
import re
import shutil
import typing as t
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _bundle

HELPER = "/usr/lib/apt/apt-helper"
#: Files that one run of apt-helper fetches: it opens its connections once, and a command line has an end.
BATCH = 50
#: Endings of a compressed index, by apt's name for the compression.
ENDINGS = {"uncompressed": "", "gz": ".gz", "xz": ".xz", "bz2": ".bz2", "lzma": ".lzma", "lz4": ".lz4", "zst": ".zst"}
#: Strongest first, as apt names the files of Acquire-By-Hash.
HASHES = ("SHA512", "SHA256")


class ArchiveError(Exception):
    """The archives cannot be written; the text says why and what to do."""


class File(t.NamedTuple):
    """A file of an archive: where it lies below the archive's folder, where it comes from, its size in bytes and digest (hexadecimal)."""

    path: str
    uri: str
    size: int
    algorithm: str
    digest: str


def parse_targets(text: str) -> list[dict[str, str]]:
    """The stanzas of ``apt-get indextargets``, keys in lower case."""
    stanzas = [stanza.splitlines() for stanza in text.split("\n\n") if stanza.strip()]
    return [
        {key.lower(): value.strip() for key, has, value in (line.partition(":") for line in stanza) if has}
        for stanza in stanzas
    ]


def parse_uris(text: str) -> list[str]:
    """The addresses of ``apt-get install --print-uris``, each once and in order."""
    return list(dict.fromkeys(re.findall(r"^'([^']+)' \S+ \d+", text, re.MULTILINE)))


def parse_madison(text: str) -> list[str]:
    """The versions that ``apt-cache madison`` tells of a package, the newest first."""
    return list(dict.fromkeys(line.split("|")[1].strip() for line in text.splitlines() if line.count("|") == 2))


def parse_release(text: str) -> tuple[bool, dict[str, dict[str, tuple[int, str]]]]:
    """Whether a release file offers its indexes by hash, and for each hash the indexes: path -> (bytes, digest)."""
    by_hash = re.search(r"^Acquire-By-Hash:\s*yes\s*$", text, re.MULTILINE | re.IGNORECASE) is not None
    sections: dict[str, dict[str, tuple[int, str]]] = {}
    section = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            section = line.rstrip().rstrip(":") if line.rstrip().endswith(":") else ""
        elif section in HASHES and len(line.split()) == 3:
            digest, size, path = line.split()
            sections.setdefault(section, {})[path] = (int(size), digest)
    return by_hash, sections


def choose_index(release: str, key: str, compressions: t.Sequence[str]) -> tuple[str, int, str, str]:
    """The form of the index ``key`` that apt would ask for: (its path as served, bytes, hash, digest)."""
    by_hash, sections = parse_release(release)
    algorithm = next((name for name in HASHES if any(path.startswith(key) for path in sections.get(name, {}))), "")
    for compression in compressions:
        path = key + ENDINGS.get(compression, f".{compression}")
        if algorithm and path in sections[algorithm]:
            size, digest = sections[algorithm][path]
            served = f"{path.rpartition('/')[0]}/by-hash/{algorithm}/{digest}".lstrip("/") if by_hash else path
            return served, size, algorithm.lower(), digest
    raise ArchiveError(f"the signed release file does not name {key} by a strong hash -> ask who keeps that archive")


def parse_packages(text: str) -> t.Iterator[tuple[str, int, str]]:
    """Path in the archive, bytes and SHA256 of each package of an index."""
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Filename|Size|SHA256): (.+)$", stanza, re.MULTILINE))
        if len(fields) == 3:
            yield fields["Filename"], int(fields["Size"]), fields["SHA256"]


def folder_of(repository: str, folders: t.Mapping[str, str]) -> str:
    """Folder of a repository: as told for its root, else named after its host and path."""
    for root, folder in folders.items():
        if repository.rstrip("/") == root.rstrip("/"):
            return folder.strip("/")
    parts = urlsplit(repository)
    return "apt/" + re.sub(r"[^A-Za-z0-9.-]+", "_", f"{parts.hostname or ''}/{unquote(parts.path)}").strip("_.")


def local_path(path: str) -> str:
    """A path below a folder, with what apt escapes and leading ``./`` taken away; ArchiveError where it leads out of it."""
    plain = os.path.normpath(unquote(path))
    if plain.startswith(("/", "..")):
        raise ArchiveError(f"an archive names a path outside of itself: {path} -> ask who keeps it")
    return plain


class Apt:
    """The host's own apt with its own proxies, authorities and credentials, but lists, sources and pins of its own."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.work = Path(module.params["work"])
        for name in ("lists/partial", "cache/archives/partial", "sources.list.d", "partial"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        (self.work / "status").write_text("", encoding="utf-8")
        self.options = [
            f"--option={name}={value}"
            for name, value in {
                "Dir::State::Lists": self.work / "lists",
                "Dir::State::Status": self.work / "status",
                "Dir::State::Extended_States": "/dev/null",
                "Dir::Cache": self.work / "cache",
                "Dir::Etc::SourceList": "/dev/null",
                "Dir::Etc::SourceParts": self.work / "sources.list.d",
                "Dir::Etc::Preferences": module.params["preferences"],
                "Dir::Etc::PreferencesParts": "/dev/null",
                "Acquire::Languages": "none",
                "Acquire::GzipIndexes": "false",
                "APT::Update::Error-Mode": "any",
            }.items()
        ]

    def run(self, *arguments: str) -> str:
        """What apt-get says; ArchiveError with its last lines where it fails."""
        program = "apt-cache" if arguments[0] == "madison" else "apt-get"
        status, out, err = self.module.run_command(
            [program, *self.options, *arguments], environ_update={"LC_ALL": "C", "LANGUAGE": "C"}
        )
        if status:
            lines = [line for line in (out + err).splitlines() if line[:2] in ("E:", "W:")] or err.splitlines()
            raise ArchiveError(f"{program} {arguments[0]}: {'; '.join(lines)[:2000]}")
        return t.cast(str, out)

    def link_sources(self, extra: t.Sequence[str], replaced: t.Sequence[str]) -> None:
        """Give it the host's own sources but those of the repositories in ``replaced``, and ``extra``."""
        folder = self.work / "sources.list.d"
        for path in folder.iterdir():
            path.unlink()
        etc = Path("/etc/apt")
        own = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
        own += sorted((etc / "sources.list.d").glob("*.sources"))
        for path in (path for path in own if path.is_file()):
            text = path.read_text(encoding="utf-8", errors="replace")
            if not any(root.rstrip("/") in text for root in replaced):
                (folder / f"host-{path.name.replace('sources.list', 'own.list')}").symlink_to(path)
        for name in extra:
            (folder / f"more-{Path(name).name}").symlink_to(name)

    def targets(self) -> tuple[list[dict[str, str]], list[str]]:
        """The package indexes of signed archives, and the names of archives that nobody signs."""
        everything = [
            target for target in parse_targets(self.run("indextargets")) if target["created-by"] == "Packages"
        ]
        signed, unsigned = [], []
        native = self.run("--version").partition("(")[2].partition(")")[0]
        for target in everything:
            target["native"] = native
            release = release_files(target)
            if release:
                signed.append(target)
            else:
                unsigned.append(f"{target['repo-uri']} {target['release']}")
        return signed, list(dict.fromkeys(unsigned))

    def closure(self, request: dict[str, t.Any]) -> list[str]:
        """Addresses of all packages that a host without any needs for a request."""
        packages = request["packages"]
        if request["optional"]:
            packages = [name for name in packages if parse_madison(self.run("madison", name))]
        if not packages:
            return []
        return parse_uris(
            self.run(
                "install",
                "--print-uris",
                "--quiet=2",
                "--yes",
                f"--option=APT::Install-Recommends={'true' if request['recommends'] else 'false'}",
                *map(self.exact, packages),
            )
        )

    def exact(self, package: str) -> str:
        """A package as apt-get takes it: of a version with a star, the newest there is; ArchiveError where there is none."""
        name, _equals, pattern = package.partition("=")
        if "*" not in pattern:
            return package
        versions = parse_madison(self.run("madison", name))
        for version in versions:
            if fnmatch.fnmatchcase(version, pattern):
                return f"{name}={version}"
        raise ArchiveError(
            f"PACKAGE-GONE: no archive has {name} {pattern} (there: {', '.join(versions) or 'none'})"
            " -> name a version that is there in the release, or a mirror that keeps it (fleet_nvidia_mirror)"
        )

    def download(self, files: t.Sequence[File], root: Path) -> None:
        """Fetch files through apt, which checks each by its digest and goes on where a cut-off run stopped; then put them at their places."""
        partial = self.work / "partial"
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            triples = [
                part
                for file in batch
                for part in (
                    re.sub(r"^file:/*", "copy:/", file.uri),
                    str(partial / file.digest),
                    f"{file.algorithm.upper()}:{file.digest}",
                )
            ]
            status, out, err = self.module.run_command(
                [HELPER, "download-file", *triples], environ_update={"LC_ALL": "C", "LANGUAGE": "C"}
            )
            wrong = []
            for file in batch:
                fetched = partial / file.digest
                if fetched.is_file() and _bundle.digest(fetched, file.algorithm) == file.digest:
                    place = root / file.path
                    place.parent.mkdir(parents=True, exist_ok=True)
                    fetched.chmod(0o644)
                    if os.geteuid() == 0:  # apt downloads as a user of its own
                        os.chown(fetched, 0, 0)
                    fetched.replace(place)
                else:
                    wrong.append(file)
            if wrong:
                said = [line for line in (out + err).splitlines() if line[:2] in ("E:", "W:")]
                raise ArchiveError(
                    f"apt-helper (status {status}) did not fetch {', '.join(file.uri for file in wrong[:5])}"
                    f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}: {'; '.join(said)[:1500]}"
                    " -> run the playbook again: it goes on; where the archive has changed meanwhile, it is planned anew"
                )


def release_files(target: t.Mapping[str, str]) -> list[tuple[str, Path]]:
    """Name and place of the signed release file(s) of an index in apt's lists; none where nobody signs it."""
    key = target["metakey"].replace("/", "_")
    filename = target["filename"]
    stem = filename[: filename.rindex(key)]
    inline = Path(f"{stem}InRelease")
    if inline.is_file():
        return [("InRelease", inline)]
    pair = [("Release", Path(f"{stem}Release")), ("Release.gpg", Path(f"{stem}Release.gpg"))]
    return pair if all(path.is_file() for _name, path in pair) else []


def plan(module: AnsibleModule) -> dict[str, t.Any]:
    """Ask the archives and write the plan; returns what the module tells."""
    apt = Apt(module)
    apt.link_sources(module.params["sources"], list(module.params["folders"]))
    apt.run("update")
    targets, unsigned = apt.targets()
    kept = apt.work / "unsigned.list"
    kept.write_text("\n".join(unsigned), encoding="utf-8")
    uris = list(dict.fromkeys(uri for request in module.params["requests"] for uri in apt.closure(request)))
    wanted = {plain(uri): uri for uri in uris}
    archives: dict[str, dict[str, t.Any]] = {}
    for target in targets:
        text = Path(target["filename"]).read_text(encoding="utf-8", errors="replace")
        found = [
            (path, size, digest)
            for path, size, digest in parse_packages(text)
            if plain(target["repo-uri"] + path) in wanted
        ]
        # Two suites may have the same package; one of them is enough.
        files = [
            File(local_path(path), uri, size, "sha256", digest)
            for path, size, digest in found
            if (uri := wanted.pop(plain(target["repo-uri"] + path), ""))
        ]
        if files:
            add(archives, target, files, module.params["folders"])
    if wanted:
        raise ArchiveError(
            f"no signed archive of this machine has {', '.join(wanted.values())}; archives that nobody signs: {', '.join(unsigned) or 'none'}"
            " -> sign that archive (InRelease), or do without the package"
        )
    answer = list(archives.values())
    _bundle.write(apt.work / "plan.json", json.dumps(answer, indent=1))
    return {"changed": False, "archives": [summary(archive) for archive in answer], "unsigned": unsigned}


def plain(uri: str) -> str:
    """An address as it is compared: unescaped, without ``/./``."""
    return unquote(uri).replace("/./", "/")


def add(
    archives: dict[str, dict[str, t.Any]],
    target: t.Mapping[str, str],
    packages: t.Sequence[File],
    folders: t.Mapping[str, str],
) -> None:
    """Add an index and the packages that are wanted of it to the plan."""
    folder = folder_of(target["repo-uri"], folders)
    archive = archives.setdefault(
        folder,
        {"folder": folder, "uri": target["repo-uri"], "indexes": [], "releases": {}, "files": [], "packages": 0},
    )
    base = local_path(target["base-uri"][len(target["repo-uri"]) :] or ".")
    releases = release_files(target)
    text = releases[0][1].read_text(encoding="utf-8", errors="replace")
    served, size, algorithm, digest = choose_index(text, target["metakey"], target["compressiontypes"].split())
    index = File(os.path.normpath(f"{base}/{served}"), target["base-uri"] + served, size, algorithm, digest)
    archive["files"] += [index, *packages]
    archive["packages"] += len(packages)
    archive["indexes"].append(
        [target["release"], target.get("component", ""), target.get("architecture", "") or target["native"]]
    )
    for name, place in releases:
        archive["releases"][os.path.normpath(f"{base}/{name}")] = str(place)


def sources(archive: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Entries of apt's sources: suites that have the same components and architectures together."""
    suites: dict[str, tuple[set[str], set[str]]] = {}
    for suite, component, architecture in archive["indexes"]:
        components, architectures = suites.setdefault(suite, (set(), set()))
        components.update(filter(None, [component]))
        architectures.add(architecture)
    entries: list[dict[str, t.Any]] = []
    for suite, (components, architectures) in suites.items():
        parts = {"components": sorted(components), "architectures": sorted(architectures)}
        same = next((entry for entry in entries if all(entry[key] == parts[key] for key in parts)), None)
        if same:
            same["suites"].append(suite)
        else:
            entries.append({"folder": archive["folder"], "suites": [suite], **parts})
    return entries


def summary(archive: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What is told of an archive."""
    return {
        "folder": archive["folder"],
        "uri": archive["uri"],
        "packages": archive["packages"],
        "bytes": sum(File(*file).size for file in archive["files"]),
        "sources": sources(archive),
    }


def write(module: AnsibleModule) -> dict[str, t.Any]:
    """Fetch what an archive of the plan lacks; returns what the module tells."""
    apt = Apt(module)
    try:
        plans = json.loads((apt.work / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArchiveError(f"there is no plan in {apt.work}: {error} -> run the module with state: planned") from error
    archive = next((entry for entry in plans if entry["folder"] == module.params["archive"]), None)
    if archive is None:
        known = ", ".join(entry["folder"] for entry in plans) or "none"
        raise ArchiveError(f"the plan has no archive {module.params['archive']}; it has {known} -> name one of them")
    root = Path(module.params["path"]) / archive["folder"]
    files = [File(*file) for file in archive["files"]]
    digests = _bundle.digests(
        {root / file.path: file.algorithm for file in files if size_of(root / file.path) == file.size}
    )
    missing = [file for file in files if digests.get(root / file.path) != file.digest]
    needed = sum(file.size - min(file.size, size_of(apt.work / "partial" / file.digest)) for file in missing)
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ArchiveError(
            f"{archive['folder']} takes {needed} more bytes, {existing} has {free} free -> make room, or set bundle_path to a larger disk"
        )
    apt.download(missing, root)
    # The release file last: what it names is there when it is.
    changed = bool(missing)
    for name, source in archive["releases"].items():
        content = Path(source).read_bytes()
        place = root / name
        if not place.is_file() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            _bundle.write(place, content)
            changed = True
    wanted = {root / file.path for file in files} | {root / name for name in archive["releases"]}
    for path in root.rglob("*"):
        if path.is_file() and path not in wanted and path.suffix != ".pub":
            path.unlink()
            changed = True
    return {
        "changed": changed,
        "archives": [summary(archive)],
        "fetched": len(missing),
        "fetched_bytes": sum(file.size for file in missing),
    }


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["planned", "written"], "default": "written"},
            "path": {"type": "path", "required": True},
            "work": {"type": "path", "required": True},
            "requests": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "packages": {"type": "list", "elements": "str", "required": True},
                    "recommends": {"type": "bool", "default": False},
                    "optional": {"type": "bool", "default": False},
                },
            },
            "sources": {"type": "list", "elements": "path", "default": []},
            "folders": {"type": "dict", "default": {}},
            "preferences": {"type": "path", "default": "/dev/null"},
            "archive": {"type": "str", "default": ""},
        },
        supports_check_mode=False,
    )
    os.umask(0o022)
    try:
        answer = plan(module) if module.params["state"] == "planned" else write(module)
    except (ArchiveError, OSError) as error:
        note = ""
        unsigned = Path(module.params["work"]) / "unsigned.list"
        if "nable to locate" in str(error) and size_of(unsigned):
            note = (
                f"; left out, because nobody signs them: {', '.join(unsigned.read_text(encoding='utf-8').splitlines())}"
                " -> sign that archive, or do without the package (for headers of a kernel: bundle_kernels)"
            )
        module.fail_json(msg=f"{error}{note}")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
