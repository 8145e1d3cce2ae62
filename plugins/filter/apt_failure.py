# SPDX-License-Identifier: Apache-2.0
"""Filter of the stages that install packages."""

from __future__ import annotations

DOCUMENTATION = r"""
name: apt_failure
short_description: Say which kind of failure of apt this is and what to do about it
version_added: 1.0.0
description:
  - Reads what a failed M(ansible.builtin.apt) or C(apt-get) printed (in the C locale, apt 2.4 to 2.8) and names the kind of failure.
  - A message that carries its own remedy already is passed on as it is.
options:
  _input:
    description: Result of the failed task; its msg, stderr and stdout are read.
    type: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Say what went wrong
  ansible.builtin.fail:
    msg: "{{ (ansible_failed_result | h20.fleet.apt_failure).message }}"
"""

RETURN = r"""
_value:
  description:
    - kind (DPKG-LOCKED, DPKG-INTERRUPTED, DISK-FULL, REPOSITORY-KEY, REPOSITORY-UNREACHABLE, PACKAGE-GONE, HELD-BROKEN or OTHER),
      evidence (the line that tells), remedy (empty where the evidence has one), and message, which joins the three.
  type: dict
"""

import re
import typing as t

# In this order: what is named first explains what follows it. A mirror that is gone, say, ends in packages that are gone.
KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "DPKG-LOCKED",
        ("could not get lock", "unable to acquire the dpkg frontend lock", "(?:failed|unable) to lock"),
        "let that process end (unattended-upgrades may take minutes; never delete the lock file), then run the stage again",
    ),
    (
        "DPKG-INTERRUPTED",
        ("dpkg was interrupted", "needs? to be reinstalled", "--fix-broken install", "half-(?:installed|configured)"),
        "see `dpkg --audit`, finish with `dpkg --configure -a` and `apt-get --fix-broken install` on the host, then run the stage again",
    ),
    (
        "DISK-FULL",
        ("no space left on device", "don't have enough free space"),
        "make room below /var, /usr and /boot (`apt-get clean`, old kernels), then run the stage again",
    ),
    (
        "REPOSITORY-KEY",
        (
            "NO_PUBKEY",
            "(?:BAD|EXP|EXPKEY|REVKEY)SIG",
            "is not signed",
            "signatures? .*(?:invalid|verified)",
            "missing key",
        ),
        "the mirror is signed by another key than the stage keeps; correct fleet_nvidia_mirror or nvidia_driver_repository_key_fingerprint",
    ),
    (
        "PACKAGE-GONE",
        (
            "version '[^']*' for '[^']*' was not found",
            "unable to locate package",
            r"no package\(?s?\)? matching",
            "no (?:available )?installation candidate",
            r"failed to fetch \S+\.deb\s+404",
        ),
        "name a version that the repository has in the release, or set fleet_nvidia_mirror to a mirror that keeps it",
    ),
    (
        "REPOSITORY-UNREACHABLE",
        (
            "could not resolve|temporary failure resolving",
            "(?:could not|unable to) connect",
            "connection (?:timed out|refused|failed)",
            "does not have a release file",
            "failed to (?:fetch|download)|files failed to download",
            "network is unreachable|no route to host",
            r"url\w+ error|request failed|status code was \S+ and not",
            "failed to update apt cache",
        ),
        "see whether the host reaches fleet_nvidia_mirror (`curl -I`), its DNS and fleet_proxy, then run the stage again",
    ),
    (
        "HELD-BROKEN",
        ("held broken packages", "held packages were changed", "unmet dependencies", "problemresolver"),
        "see `apt-mark showhold` and `apt-cache policy` for the packages that are named; release a hold of yours that is in the way",
    ),
)
# The line to show: who holds a lock, then what apt calls an error or a warning; the rest is progress.
TELLING = tuple(
    re.compile(pattern, re.IGNORECASE) for pattern in ("held by process", "^E: ?", "^W: ?", "^The following")
)
LIMIT = 400


def apt_failure(result: dict[str, t.Any]) -> dict[str, str]:
    """Kind, evidence, remedy and message of a failed task's result."""
    lines = [line.strip() for line in _texts(result) if line.strip()]
    said = next((line for line in lines if " -> " in line), "")
    if said:
        return {"kind": "OTHER", "evidence": said, "remedy": "", "message": said}
    for kind, patterns, remedy in KINDS:
        match = re.compile("|".join(patterns), re.IGNORECASE)
        if found := [line for line in lines if match.search(line)]:
            return _answer(kind, _best(found), remedy)
    return _answer(
        "OTHER", _best(lines) if lines else "it failed without a word", "see /var/log/apt/term.log on the host"
    )


def _texts(result: dict[str, t.Any]) -> t.Iterator[str]:
    for item in result.get("results") or []:
        if item.get("failed"):
            yield from _texts(item)
    # A download that failed names its address apart from its message.
    address = f"{result['url']}: " if result.get("url") else ""
    for key in ("stderr", "msg", "stdout"):
        yield from (address + line for line in str(result.get(key) or "").splitlines())


def _best(lines: list[str]) -> str:
    for pattern in TELLING:
        if found := next((line for line in lines if pattern.search(line)), ""):
            return found
    return lines[0]


def _answer(kind: str, evidence: str, remedy: str) -> dict[str, str]:
    short = evidence if len(evidence) <= LIMIT else f"{evidence[:LIMIT]} ..."
    return {"kind": kind, "evidence": short, "remedy": remedy, "message": f"{kind}: {short} -> {remedy}"}


class FilterModule:
    """Filters of the stages that install packages."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"apt_failure": apt_failure}
