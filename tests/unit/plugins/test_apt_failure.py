# SPDX-License-Identifier: Apache-2.0
"""What apt of Debian 12, Ubuntu 22.04 and 24.04 says, and which kind of failure it is."""

from __future__ import annotations

import pytest
from ansible_collections.h20.fleet.plugins.filter import apt_failure

classify = apt_failure.FilterModule().filters()["apt_failure"]

LOCK = """\
E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 (unattended-upgr)
N: Be aware that removing the lock file is not a solution and may break your system.
E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?"""
HELD = """\
Reading package lists...
The following packages have unmet dependencies:
 nvidia-open : Depends: nvidia-driver-cuda (>= 580.173.02-1) but 580.159.04-1 is to be installed
E: Unable to correct problems, you have held broken packages."""
UNSIGNED = """\
W: GPG error: http://m.test InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY A4B469963BF863CC
E: The repository 'http://m.test InRelease' is not signed."""
SPACE = "E: You don't have enough free space in /var/cache/apt/archives/."
BROKEN_MIRROR = """\
W: Failed to fetch http://mirror.test/x86_64/InRelease  Could not resolve 'mirror.test'
E: Some index files failed to download. They have been ignored, or old ones used instead."""


# Of apt 2.6 on Debian 12, with APT::Update::Error-Mode=any: a repository of another key, one behind a name that is none, and one that is not there.
OTHER_KEY = """\
E: Failed to fetch http://mirror.test/compute/InRelease  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY A25E
E: Some index files failed to download. They have been ignored, or old ones used instead."""
NO_NAME = "E: Failed to fetch http://nowhere.test/x/InRelease  Could not resolve 'nowhere.test'"
NO_FOLDER = "E: Failed to fetch http://mirror.test/nothing/Packages  404  File not found [IP: 172.20.0.3 80]"


@pytest.mark.parametrize(
    ("text", "kind", "evidence"),
    [
        (LOCK, "DPKG-LOCKED", "process 4711 (unattended-upgr)"),
        (
            "Failed to lock apt for exclusive operation: Failed to lock directory /var/lib/apt/lists/",
            "DPKG-LOCKED",
            "lists",
        ),
        ("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 12 (python3)", "DPKG-LOCKED", "12"),
        (
            "E: dpkg was interrupted, you must manually run 'sudo dpkg --configure -a' to correct the problem. ",
            "DPKG-INTERRUPTED",
            "dpkg --configure -a",
        ),
        ("E: Unmet dependencies. Try 'apt --fix-broken install' with no packages", "DPKG-INTERRUPTED", "fix-broken"),
        (
            "E: The package x needs to be reinstalled, but I can't find an archive for it.",
            "DPKG-INTERRUPTED",
            "x needs",
        ),
        (UNSIGNED, "REPOSITORY-KEY", "'http://m.test InRelease' is not signed"),
        (UNSIGNED.splitlines()[0], "REPOSITORY-KEY", "NO_PUBKEY A4B469963BF863CC"),
        ("E: The repository 'http://m.test InRelease' is not signed.", "REPOSITORY-KEY", "m.test"),
        (
            "W: GPG error: http://m.test: The following signatures were invalid: EXPKEYSIG A4B4",
            "REPOSITORY-KEY",
            "EXPKEYSIG",
        ),
        (OTHER_KEY, "REPOSITORY-KEY", "NO_PUBKEY A25E"),
        (NO_NAME, "REPOSITORY-UNREACHABLE", "nowhere.test"),
        (NO_FOLDER, "REPOSITORY-UNREACHABLE", "404"),
        (BROKEN_MIRROR, "REPOSITORY-UNREACHABLE", "index files failed to download"),
        (BROKEN_MIRROR.splitlines()[0], "REPOSITORY-UNREACHABLE", "Could not resolve 'mirror.test'"),
        ("E: Failed to fetch http://m.test/P  Could not connect to m.test:80", "REPOSITORY-UNREACHABLE", "m.test:80"),
        ("E: The repository 'http://m.test Release' does not have a Release file.", "REPOSITORY-UNREACHABLE", "m.test"),
        (
            "Status code was -1 and not [200]: Request failed: <urlopen error [Errno -2] Name or service not known>",
            "REPOSITORY-UNREACHABLE",
            "Errno -2",
        ),
        ("E: Version '580.1-1' for 'nvidia-open' was not found", "PACKAGE-GONE", "580.1-1"),
        ("E: Unable to locate package cuda-nvcc-13-9", "PACKAGE-GONE", "cuda-nvcc-13-9"),
        ("No package matching 'cuda-nvcc-13-9' is available", "PACKAGE-GONE", "cuda-nvcc-13-9"),
        ("E: Package 'x' has no installation candidate", "PACKAGE-GONE", "'x'"),
        (
            "E: Failed to fetch http://m.test/nvidia-open_1_amd64.deb  404  Not Found [IP: 10.0.0.1 80]",
            "PACKAGE-GONE",
            "404",
        ),
        (SPACE, "DISK-FULL", "/var/cache/apt/archives"),
        (
            "dpkg: error processing archive x.deb (--unpack):\n cannot copy data: No space left on device",
            "DISK-FULL",
            "No space",
        ),
        (HELD, "HELD-BROKEN", "held broken packages"),
        ("E: Held packages were changed and -y was used without --allow-change-held-packages.", "HELD-BROKEN", "Held"),
        ("E: Sub-process /usr/bin/dpkg returned an error code (1)", "OTHER", "error code (1)"),
    ],
)
@pytest.mark.parametrize("key", ["stderr", "msg", "stdout"])
def test_kind_and_the_line_that_tells(key: str, text: str, kind: str, evidence: str) -> None:
    other = {"msg": "non-zero return code"} if key == "stderr" else {}
    failure = classify(other | {key: text, "rc": 100})
    assert failure["kind"] == kind
    assert evidence in failure["evidence"]
    assert failure["remedy"]
    assert failure["message"] == f"{kind}: {failure['evidence']} -> {failure['remedy']}"


def test_who_holds_the_lock_is_named_where_apt_says_it_while_it_waits() -> None:
    """As apt 2.6 of Debian 12 says it where DPkg::Lock::Timeout ends."""
    waiting = (
        "Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 735 (python3)..."
    )
    failure = classify({"stderr": LOCK.splitlines()[-1], "stdout": waiting, "rc": 100})
    assert (failure["kind"], failure["evidence"]) == ("DPKG-LOCKED", waiting)


def test_the_item_of_a_loop_that_failed_is_read() -> None:
    results = [{"stderr": BROKEN_MIRROR}, {"stderr": LOCK, "failed": True}]
    failure = classify({"msg": "One or more items failed", "results": results})
    assert (failure["kind"], "4711" in failure["evidence"]) == ("DPKG-LOCKED", True)


def test_the_address_of_a_download_is_named() -> None:
    said = "Status code was -1 and not [200]: Request failed: <urlopen error [Errno 111] Connection refused>"
    failure = classify({"msg": said, "status": -1, "url": "http://m.test:9/k.pub"})
    assert (failure["kind"], failure["evidence"]) == ("REPOSITORY-UNREACHABLE", f"http://m.test:9/k.pub: {said}")


def test_what_explains_the_rest_is_named_first() -> None:
    """A full disk and a key end in a download that failed as well; a lock in anything."""
    for cause, kind in ((LOCK, "DPKG-LOCKED"), (SPACE, "DISK-FULL"), (UNSIGNED, "REPOSITORY-KEY")):
        assert classify({"stderr": f"{BROKEN_MIRROR}\n{cause}\n{HELD}"})["kind"] == kind


def test_a_message_with_its_own_remedy_is_passed_on() -> None:
    said = "REPOSITORY-KEY: the key has fingerprint A, not B -> correct the mirror"
    assert classify({"msg": said, "stderr": LOCK}) == {"kind": "OTHER", "evidence": said, "remedy": "", "message": said}


def test_a_failure_without_a_word_has_a_message_too() -> None:
    assert classify({})["message"] == "OTHER: it failed without a word -> see /var/log/apt/term.log on the host"


def test_evidence_stays_short() -> None:
    assert len(classify({"msg": "E: " + "x" * 5000})["evidence"]) < 500
