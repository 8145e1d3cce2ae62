# SPDX-License-Identifier: Apache-2.0
"""model_revision and model_progress_info: what they write, what they say of a revision, and when the unit is started, with a systemctl that notes its verbs."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _revisions
from ansible_collections.h20.fleet.plugins.module_utils._weights import proof
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import File, Manifest
from unit.plugins.support import run_module, write_program

PACKAGE = Path(__file__).parents[3] / "plugins/module_utils/_weights"
REVISION = "0123456789" * 4
INSTANCE = "tiny-0123456789ab"
UNIT = f"model-fetch@{INSTANCE}.service"
CONTENT = {"config.json": b"{}\n", "model.safetensors": b"weights" * 100}
MANIFEST = Manifest(
    "org/tiny",
    REVISION,
    tuple(File(path, len(data), "sha256", hashlib.sha256(data).hexdigest()) for path, data in CONTENT.items()),
).text()
UNIT_TEXT = "# Managed by h20.fleet: role model\n[Service]\n"
KEPT = "hf_0123"
SITE = {
    "hosts": {name: {"address": f"10.0.0.{number}", "group": ""} for number, name in enumerate(("a", "b"), start=1)},
    "origins": ["a"],
    "port": 8481,
    "processes": 2,
}

SYSTEMCTL = """
if "show" in ARGUMENTS:
    print((HERE / "state").read_text())
else:
    with (HERE / "log").open("a") as log:
        log.write(" ".join(ARGUMENTS) + "\\n")
"""


class Host:
    """A host below a folder: its files, its systemd, and the modules run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        write_program(self.bin / "systemctl", SYSTEMCTL)
        write_program(self.bin / "journalctl", "print((HERE / 'journal').read_text(), end='')")
        (self.bin / "journal").write_text("")
        self.unit("inactive")
        self.destination = folder / "models/org/tiny" / REVISION
        self.job: dict[str, Any] = {
            "host": "a",
            "destination": str(self.destination),
            "distribution": "source",
            "sources": [{"kind": "hub", "url": "http://hub.test"}],
            "limits": {"connections": 2},
            "site": {},
        }

    def unit(self, state: str, *, age: float = 0) -> None:
        """What systemd says of the unit, which was started so many seconds ago."""
        started = round((time.monotonic() - age) * 1e6) if state != "inactive" else 0
        text = f"ActiveState={state}\nExecMainStartTimestampMonotonic={started}\nNeedDaemonReload=no"
        (self.bin / "state").write_text(text)

    @property
    def verbs(self) -> list[str]:
        log = self.bin / "log"
        return log.read_text().splitlines() if log.exists() else []

    def revision(self, *, check: bool = False, **params: Any) -> dict[str, Any]:
        standard: dict[str, Any] = {
            "instance": INSTANCE,
            "repo": "org/tiny",
            "revision": REVISION,
            "job": self.job,
            "unit": UNIT_TEXT,
            "environment": {"https_proxy": 'http://user:pa"ss$@proxy'},
            "secrets": {"HF_TOKEN": KEPT, "AWS_ACCESS_KEY_ID": ""},
            "user": pwd.getpwuid(os.getuid()).pw_name,
        }
        return run_module("model_revision", check=check, **standard | params)

    def info(self, **params: Any) -> dict[str, Any]:
        return run_module("model_progress_info", instance=INSTANCE, **params)

    def bring(self) -> None:
        """All files of the revision, proved."""
        for path, data in CONTENT.items():
            (self.destination / path).parent.mkdir(parents=True, exist_ok=True)
            (self.destination / path).write_bytes(data)
        stamp = proof.stamp_of(self.destination, Manifest.parse(MANIFEST).files)
        (self.destination / _revisions.STAMP).write_text(json.dumps(stamp))

    def say(self, name: str, content: dict[str, Any]) -> None:
        """Write a file of the work's state."""
        folder = _revisions.STATE / INSTANCE
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in ("PROGRAM", "UNIT", "ENVIRONMENT", "JOBS", "STATE"):
        monkeypatch.setattr(_revisions, name, tmp_path / str(getattr(_revisions, name)).lstrip("/"))
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin), prepend=":")
    return made


def test_a_bare_host_is_told_what_would_come_and_nothing_is_touched(host: Host) -> None:
    result = host.revision(check=True)
    assert (result["changed"], result["complete"], result["manifest_missing"], result["running"]) == (
        True,
        False,
        True,
        False,
    )
    assert (result["missing_bytes"], result["altered"]) == (None, [str(host.destination)])
    assert {file["state"] for file in result["files"].values()} == {"absent"}
    assert not (host.folder / "etc").exists()
    assert host.verbs == []


def test_all_is_written_once_and_the_whole_program_with_it(host: Host) -> None:
    first = host.revision(manifest=MANIFEST)
    assert (first["changed"], first["manifest_missing"], first["missing_bytes"]) == (True, False, 703)
    assert {path.name for path in _revisions.PROGRAM.iterdir()} == {path.name for path in PACKAGE.glob("*.py")}
    assert (_revisions.PROGRAM / "job.py").read_bytes() == (PACKAGE / "job.py").read_bytes()
    assert (_revisions.JOBS / f"{INSTANCE}.manifest.json").read_text() == MANIFEST
    assert host.verbs == ["daemon-reload"]
    again = host.revision()
    assert (again["changed"], again["diff"], again["manifest_missing"]) == (False, [], False)
    assert host.verbs == ["daemon-reload"]


def test_a_program_of_another_version_gives_way(host: Host) -> None:
    host.revision()
    (_revisions.PROGRAM / "older.py").touch()
    (_revisions.PROGRAM / "job.py").write_text("")
    checked = host.revision(check=True)
    states = {Path(path).name: file["state"] for path, file in checked["files"].items() if file["state"] != "same"}
    assert states == {"older.py": "strange", "job.py": "other"}
    assert host.revision()["changed"]
    assert not (_revisions.PROGRAM / "older.py").exists()
    assert not host.revision()["changed"]


def test_a_file_that_others_may_write_is_mended(host: Host) -> None:
    host.revision()
    _revisions.ENVIRONMENT.chmod(0o644)
    result = host.revision()
    assert [part["before"] for part in result["diff"]] == ["(other values, owner or mode)\n"]
    assert _revisions.ENVIRONMENT.stat().st_mode & 0o777 == 0o600


def test_secrets_are_for_root_alone_and_in_no_answer(host: Host) -> None:
    result = host.revision()
    assert _revisions.ENVIRONMENT.stat().st_mode & 0o777 == 0o600
    assert _revisions.ENVIRONMENT.read_text().splitlines()[1:] == [
        f'HF_TOKEN="{KEPT}"',
        'https_proxy="http://user:pa\\"ss\\$@proxy"',
    ]
    [shown] = [part["after"] for part in result["diff"] if part["after_header"] == str(_revisions.ENVIRONMENT)]
    assert shown == "HF_TOKEN=(hidden)\nhttps_proxy=(hidden)\n"
    other = host.revision(secrets={"HF_TOKEN": "another"})
    assert "another" not in json.dumps(other | {"invocation": None})
    assert KEPT not in json.dumps(other | {"invocation": None})


@pytest.mark.parametrize(("name", "value"), [("HF TOKEN", "x"), ("HF_TOKEN", "a\nLD_PRELOAD=b")])
def test_what_systemd_would_misread_is_refused(host: Host, name: str, value: str) -> None:
    result = host.revision(secrets={name: value})
    assert result["msg"].startswith(f"{name} is no variable of an environment, or has control characters -> ")


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"manifest": MANIFEST, "sha256": "0" * 64, "manifest_name": "/site/m.json"}, "/site/m.json has sha256 "),
        ({"manifest": "{}"}, "the manifest is no manifest -> correct the release's model.manifest"),
        (
            {"manifest": MANIFEST, "repo": "org/other"},
            f"the manifest is the manifest of org/tiny@{REVISION}, not of org/other@",
        ),
    ],
)
def test_a_manifest_that_is_not_the_one_is_refused_before_anything_is_written(
    host: Host, params: dict[str, Any], told: str
) -> None:
    assert host.revision(**params)["msg"].startswith(told)
    assert not _revisions.JOBS.exists()


def test_a_manifest_of_another_revision_on_the_host_counts_for_nothing(host: Host) -> None:
    host.revision(manifest=MANIFEST)
    assert host.revision(revision="f" * 40)["manifest_missing"]


def test_a_revision_that_was_proved_is_complete_until_it_is_touched(host: Host) -> None:
    host.bring()
    result = host.revision(manifest=MANIFEST)
    assert (result["complete"], result["missing_bytes"], result["altered"]) == (True, 0, [])
    assert host.revision(check=True)["changed"] is False
    os.utime(host.destination / "config.json", ns=(1, 1))
    touched = host.revision(check=True)
    assert (touched["complete"], touched["changed"]) == (False, True)
    assert touched["altered"] == [str(host.destination / "config.json")]


def test_a_manifest_that_says_otherwise_makes_it_incomplete_in_check_mode_too(host: Host) -> None:
    host.bring()
    host.revision(manifest=MANIFEST)
    wanted = json.loads(MANIFEST)
    wanted["files"][0]["digest"] = "0" * 64
    result = host.revision(check=True, manifest=json.dumps(wanted))
    assert (result["complete"], result["changed"]) == (False, True)


def test_a_start_marks_what_is_wanted_and_does_not_wait(host: Host) -> None:
    result = host.revision(manifest=MANIFEST, start=True)
    assert (result["changed"], result["running"]) == (True, False)
    assert (_revisions.STATE / INSTANCE / "wanted").exists()
    assert host.destination.parent.is_dir()
    assert host.verbs == ["daemon-reload", f"--quiet enable {UNIT}", f"--no-block restart {UNIT}"]


def test_check_mode_starts_nothing(host: Host) -> None:
    assert host.revision(check=True, manifest=MANIFEST, start=True)["changed"]
    assert host.verbs == []
    assert not _revisions.STATE.exists()


def test_what_runs_with_the_same_is_joined_and_with_other_settings_restarted(host: Host) -> None:
    host.revision(manifest=MANIFEST, start=True)
    begun = len(host.verbs)
    host.unit("active", age=-10)  # later than whatever was written
    joined = host.revision(manifest=MANIFEST, start=True)
    assert (joined["running"], host.verbs[begun:]) == (True, [])
    host.unit("active", age=5)
    host.job["limits"] = {"connections": 3}
    host.revision(manifest=MANIFEST, start=True)
    assert host.verbs[begun:] == [f"--quiet enable {UNIT}", f"--no-block restart {UNIT}"]


def test_a_job_under_way_keeps_its_hosts_where_nothing_is_started(host: Host) -> None:
    host.job |= {"distribution": "http", "site": SITE}
    host.revision(manifest=MANIFEST, start=True)
    host.unit("active", age=-10)
    host.job |= {"distribution": "source", "site": {}}
    result = host.revision()
    assert (result["changed"], result["running"], result["distribution"]) == (False, True, "http")
    assert result["site"] == SITE


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1024**3
    state = {
        "complete": False,
        "missing_bytes": 100 * gib,
        "free_bytes": 104 * gib,
        "destination": "/data/m",
        "altered": [],
    }
    monkeypatch.setattr(_revisions, "look", lambda _job: state)
    result = host.revision(manifest=MANIFEST, start=True)
    assert result["msg"] == (
        "/data/m needs 105.00 GiB more and its filesystem has 104.00 GiB free -> free 1.00 GiB, or set fleet_model_root to a larger disk"
    )
    assert host.verbs == ["daemon-reload"]
    host.unit("active", age=-10)
    assert "msg" not in host.revision(manifest=MANIFEST, start=True), "what has its files allocated already is joined"


def test_nothing_is_written_on_a_shared_filesystem(host: Host) -> None:
    host.job["distribution"] = "shared"
    host.revision(manifest=MANIFEST, start=True)
    assert not (host.folder / "models").exists()
    job = json.loads((_revisions.JOBS / f"{INSTANCE}.job.json").read_text())
    assert job["stamp"] == str(_revisions.STATE / INSTANCE / "stamp.json")
    assert host.verbs[-1] == f"--no-block restart {UNIT}"


def test_a_start_without_a_manifest_or_an_account_is_refused(host: Host) -> None:
    assert host.revision(start=True)["msg"].startswith(f"nobody has said what {INSTANCE} consists of -> ")
    assert host.revision(manifest=MANIFEST, start=True, user="nobody-here")["msg"].startswith(
        "there is no account nobody-here -> "
    )


def test_a_folder_that_cannot_be_written_is_named(host: Host) -> None:
    (host.folder / "usr").touch()
    assert " cannot be written: Not a directory -> see its disk" in host.revision()["msg"]


def test_a_host_without_a_job_knows_nothing(host: Host) -> None:
    (host.bin / "journal").write_text("x\n")
    result = host.info()
    assert (result["complete"], result["missing_bytes"], result["hosts"], result["running"]) == (False, None, {}, False)
    assert result["error"] == f"{UNIT} is not at work and has left no reason"
    assert result["journal"] == ["x"]


def test_progress_is_that_of_this_start(host: Host) -> None:
    host.revision(manifest=MANIFEST, start=True)
    own = {"host": "a", "phase": "fetching", "bytes": 7, "updated": 1.0}
    host.say("progress.json", own)
    host.unit("active", age=60)
    assert host.info()["hosts"] == {"a": own}
    host.unit("active", age=-60)
    assert host.info()["hosts"] == {}, "it was written by the run before"


def test_the_exchange_tells_of_all_hosts(host: Host) -> None:
    host.job |= {"distribution": "http", "site": SITE}
    host.revision(manifest=MANIFEST, start=True)
    host.unit("active", age=60)
    host.say("hosts.json", {"hosts": {"a": {"phase": "fetching"}, "b": None}, "files": 2, "offered": 0})
    assert host.info()["hosts"] == {"a": {"phase": "fetching"}, "b": None}


@pytest.mark.parametrize(
    ("progress", "journal", "told"),
    [
        ({"phase": "failed", "error": "the hub is gone -> wait"}, "error: other\n", "the hub is gone -> wait"),
        ({"phase": "fetching", "error": ""}, "x\nerror: first\nerror: last -> do\nStopped.\n", "last -> do"),
        ({"phase": "fetching", "error": ""}, "x\n", f"{UNIT} is not at work and has left no reason"),
    ],
)
def test_a_fetch_that_failed_is_told_in_its_own_words(
    host: Host, progress: dict[str, Any], journal: str, told: str
) -> None:
    host.revision(manifest=MANIFEST, start=True)
    host.say("progress.json", {"host": "a", "bytes": 0} | progress)
    (_revisions.STATE / INSTANCE / "wanted").unlink()
    (host.bin / "journal").write_text(journal)
    result = host.info(wait=60)
    assert (result["error"], result["journal"]) == (told, journal.splitlines())


def test_a_fetch_that_says_that_it_failed_is_believed_while_it_tells_the_others(host: Host) -> None:
    host.revision(manifest=MANIFEST, start=True)
    host.unit("active", age=60)
    host.say("progress.json", {"host": "a", "bytes": 0, "phase": "failed", "error": "the hub is gone -> wait"})
    result = host.info(wait=600)
    assert (result["running"], result["error"]) == (True, "the hub is gone -> wait")


def test_a_fetch_without_progress_is_not_waited_for_for_ever(host: Host) -> None:
    host.revision(manifest=MANIFEST, start=True)
    host.unit("active")
    result = host.info(wait=1)
    assert (result["complete"], result["running"], result["error"]) == (False, True, "")


def test_a_complete_revision_is_not_waited_for(host: Host) -> None:
    host.bring()
    host.revision(manifest=MANIFEST, start=True)
    host.unit("active")  # it serves others
    result = host.info(wait=600)
    assert (result["complete"], result["running"], result["error"]) == (True, True, "")
