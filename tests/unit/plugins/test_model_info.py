# SPDX-License-Identifier: Apache-2.0
"""model_info on a revision that the fetch program left on disk, and against the test bed's hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _hub
from testbed.hub.repository import write_repository
from unit.plugins.hubs import ABSENT, FILES, NAME, PRIVATE, TOKEN, WEIGHTS, Hub, mirror, running, source
from unit.plugins.support import run_module

STAMP = ".h20-fleet-manifest.json"
NOTHING: dict[str, Any] = {"present": False, "config": None, "bytes": None, "weight_bytes": None, "source": ""}
SIZES = {"bytes": sum(map(len, FILES.values())), "weight_bytes": len(WEIGHTS)}
FOUND = {"config": {"a": 1}, **SIZES, "error": ""}
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(tmp_path, monkeypatch) as running_hub:
        yield running_hub


@pytest.fixture
def revision(tmp_path: Path) -> Path:
    """The folder of a revision as the fetch program leaves it."""
    folder = tmp_path / "model"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    prove(folder)
    return folder


def prove(folder: Path) -> None:
    """Write the stamp that says of each file what it looked like when it was proved."""
    status = {path: (folder / path).stat() for path in FILES}
    stamp = {path: ["digest", s.st_ino, s.st_size, s.st_mtime_ns] for path, s in status.items()}
    (folder / STAMP).write_text(json.dumps(stamp))


def ask(**params: Any) -> dict[str, Any]:
    result = run_module("model_info", **params)
    assert result.pop("changed") is False
    del result["invocation"]
    return result


def ask_hub(hub: Hub, **params: Any) -> dict[str, Any]:
    return ask(**{"sources": [source(hub.endpoint)], "repo": NAME, "revision": hub.revision} | params)


def test_a_complete_revision_is_read_from_disk_and_nobody_is_asked(revision: Path) -> None:
    answer = ask(path=str(revision), sources=[source(NOBODY)], repo=NAME, revision=ABSENT, timeout=1)
    assert answer == {"present": True, "source": "disk", **FOUND}


def test_the_stamp_of_a_shared_filesystem_lies_where_the_host_s_job_says(revision: Path, tmp_path: Path) -> None:
    jobs, stamp = tmp_path / "jobs", tmp_path / "state/stamp.json"
    jobs.mkdir()
    stamp.parent.mkdir()
    (revision / STAMP).rename(stamp)
    known = {"manifest": "m", "stamp": str(stamp), "state": "s", "host": "a", "distribution": "shared", "sources": []}
    (jobs / "a-torn.job.json").write_text("{")
    (jobs / "another.job.json").write_text(json.dumps(known | {"destination": str(tmp_path / "another")}))
    assert ask(path=str(revision), jobs=str(jobs))["present"] is False
    (jobs / "this.job.json").write_text(json.dumps(known | {"destination": str(revision)}))
    assert ask(path=str(revision), jobs=str(jobs)) == {"present": True, "source": "disk", **FOUND}


def break_stamp(folder: Path) -> None:
    (folder / STAMP).write_text('{"model.safetensors": 1}')


def change_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS + b"1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / STAMP).unlink(),
        lambda folder: (folder / STAMP).write_text("["),
        lambda folder: (folder / STAMP).write_text("[]"),
        break_stamp,
        change_file,
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
    ],
    ids=["no stamp", "torn stamp", "a list", "another stamp", "a changed file", "a lost file", "no folder"],
)
def test_a_revision_that_is_not_complete_is_asked_for(hub: Hub, revision: Path, damage: Any) -> None:
    damage(revision)
    assert ask_hub(hub, path=str(revision)) == {"present": False, "source": "hub", **FOUND}
    offline = ask(path=str(revision))
    assert offline.pop("error") == f"{revision} is not complete on this host -> run the stage: --tags model"
    assert offline == NOTHING


@pytest.mark.parametrize(("content", "told"), [(b"[1]", "is no JSON object"), (b"{", "cannot be read")])
def test_a_config_that_is_none_is_an_error_and_the_rest_is_told(revision: Path, content: bytes, told: str) -> None:
    (revision / "config.json").write_bytes(content)
    prove(revision)
    answer = ask(path=str(revision))
    assert told in answer["error"]
    assert " -> " in answer["error"]
    assert (answer["present"], answer["config"], answer["weight_bytes"]) == (True, None, len(WEIGHTS))


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"revision": ABSENT}, f"has no revision {ABSENT} of {NAME} -> "),
        ({"repo": "org/absent"}, "has no repository org/absent, or none that this token may read (HTTP 401) -> "),
        ({"repo": PRIVATE}, f"has no repository {PRIVATE}, or none that this token may read (HTTP 401) -> "),
        ({"sources": [source(NOBODY)]}, f"the hub {NOBODY} does not answer: "),
        ({"revision": "main"}, "'main' is no full commit (40 hexadecimal digits) -> "),
        ({"sources": []}, "the revision is not complete on this host -> "),
    ],
)
def test_what_the_hub_refuses_is_told_and_does_not_fail(hub: Hub, params: dict[str, Any], told: str) -> None:
    answer = ask_hub(hub, **params)
    error = answer.pop("error")
    assert told in error
    assert " -> " in error
    assert answer == NOTHING


def test_a_token_opens_what_is_private(hub: Hub) -> None:
    assert ask_hub(hub, repo=PRIVATE, token=TOKEN)["config"] == {"a": 1}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"model.safetensors": WEIGHTS}, "org/odd has no config.json at "),
        ({"config.json": b"[]", "model.safetensors": WEIGHTS}, "config.json of org/odd is no JSON object -> "),
        ({"config.json": b"{", "model.safetensors": WEIGHTS}, "does not answer: "),
        (
            {"config.json": b'{"a": "' + b"a" * 1024**2 + b'"}', "model.safetensors": WEIGHTS},
            "/config.json has more than 1,048,576 bytes -> ",
        ),
    ],
    ids=["none", "a list", "torn", "too large"],
)
def test_a_repository_without_a_config_is_told_with_its_size(
    hub: Hub, tmp_path: Path, files: dict[str, bytes], told: str
) -> None:
    [commit] = write_repository(tmp_path, "org/odd", [files])
    answer = ask_hub(hub, repo="org/odd", revision=commit)
    assert told in answer["error"]
    assert (answer["config"], answer["weight_bytes"], answer["source"]) == (None, len(WEIGHTS), "hub")


@pytest.mark.parametrize("kind", ["429", "503"])
def test_a_hub_in_trouble_half_way_tells_what_it_told(hub: Hub, kind: str) -> None:
    hub.served.faults.set({"*resolve*": {"kind": kind}})
    answer = ask_hub(hub)
    hub.served.faults.clear()
    assert f"answers HTTP {kind}" in answer["error"]
    assert (answer["bytes"], answer["config"]) == (SIZES["bytes"], None)


def test_a_mirror_is_asked_in_place_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "mirror"
    place = root / NAME / hub.revision
    for path, content in FILES.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    manifest = hub.ask()["manifest"]
    place.with_name(f"{hub.revision}.manifest.json").write_text(json.dumps(manifest))
    asked = hub.requests
    with mirror(root) as url:
        assert ask_hub(hub, sources=[source(url, "http")]) == {"present": False, "source": "http", **FOUND}
        (place / "config.json").write_text("{")
        broken = ask_hub(hub, sources=[source(url, "http")])
        (place / "config.json").write_text("1" * 2_000_000)
        large = ask_hub(hub, sources=[source(url, "http")])
        absent = ask_hub(hub, sources=[source(url, "http")], revision=ABSENT)
    assert (
        broken["error"] == f"{url}/{NAME}/{hub.revision}/config.json is no JSON -> put the revision on the mirror again"
    )
    assert "has more than 1,048,576 bytes -> " in large["error"]
    assert absent["error"].startswith(f"the mirror has no {url}/{NAME}/{ABSENT}.manifest.json (HTTP 404) -> ")
    assert ask_hub(hub, sources=[source(url, "http")])["error"].startswith(f"the mirror {url} does not answer: ")
    assert hub.requests == asked


def test_the_next_source_is_asked_where_one_tells_nothing(hub: Hub) -> None:
    gone = source(NOBODY)
    assert ask_hub(hub, sources=[gone, source(hub.endpoint, "modelscope")]) == {
        "present": False,
        "source": "modelscope",
        **FOUND,
    }
    hub.served.faults.set({"*resolve*": {"kind": "503"}})
    answer = ask_hub(hub, sources=[gone, source(hub.endpoint)])
    assert (answer["source"], answer["bytes"], answer["config"]) == ("hub", SIZES["bytes"], None)
    evidence = answer["error"].partition(" -> ")[0]
    assert f"the hub {NOBODY} does not answer: " in evidence
    assert f"; the hub {hub.endpoint} answers HTTP 503" in evidence


@pytest.mark.parametrize("kind", ["hub", "modelscope"])
def test_a_token_goes_to_no_host_that_its_own_redirects_to(hub: Hub, kind: str) -> None:
    hub.served.cdn = hub.endpoint.replace("127.0.0.1", "localhost")
    params = {"sources": [source(hub.endpoint, kind, revision="")], "repo": PRIVATE, "revision": hub.revision}
    options = {"token": TOKEN, "modelscope_token": TOKEN, "timeout": 5}
    [asked] = _hub.sources_of(params | options, None)
    with pytest.raises(_hub.HubError, match="does not answer"):  # they came, and are no JSON
        asked.document("model.safetensors", 1024**2)
    stats = hub.served.stats.public()
    assert isinstance(stats["paths"], dict)
    assert any(path.startswith("/cdn/") for path in stats["paths"])
    assert stats["leaks"] == 0
