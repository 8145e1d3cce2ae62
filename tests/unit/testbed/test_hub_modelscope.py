# SPDX-License-Identifier: Apache-2.0
"""The hub's server as ModelScope, through a plain HTTP client."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

import pytest
from unit.testbed.hub_client import FIRST, LARGE, NAME, PRIVATE, SECOND, TOKEN, Client

API = "/api/v1/models"
BOTH = [{"Authorization": f"Bearer {TOKEN}"}, {"Cookie": f"a=b; m_session_id={TOKEN}"}]


def lines(client: Client, query: str = "") -> dict[str, str]:
    """Return path and type of what a listing has."""
    answer = client.ask(f"{API}/{NAME}/repo/files?{query}").json()
    assert (answer["Code"], answer["Success"]) == (200, True)
    return {line["Path"]: line["Type"] for line in answer["Data"]["Files"]}


def test_branch_master_is_the_first_revision(client: Client) -> None:
    branches = client.ask(f"{API}/{NAME}/revisions").json()["Data"]["RevisionMap"]["Branches"]
    assert [(branch["Revision"], branch["CommitId"]) for branch in branches] == [("master", client.revisions[0])]
    assert client.ask(f"{API}/{NAME}").json()["Data"]["Name"] == "model"


def test_files_are_listed_by_folder_or_all(client: Client) -> None:
    assert lines(client, "Revision=master") == {"config.json": "blob", "model.safetensors": "blob", "sub": "tree"}
    assert lines(client, "Recursive=True") == {
        **dict.fromkeys(FIRST, "blob"),
        "sub": "tree",
        "sub/deep": "tree",
    }
    assert lines(client, "Recursive=True&Root=sub") == {"sub/deep": "tree", "sub/deep/notes.txt": "blob"}


def test_every_file_has_its_digest(client: Client) -> None:
    files = client.ask(f"{API}/{NAME}/repo/files?Recursive=True").json()["Data"]["Files"]
    found = {line["Path"]: (line["Size"], line["Sha256"], line["IsLFS"]) for line in files if line["Type"] == "blob"}
    assert found == {
        path: (len(content), hashlib.sha256(content).hexdigest(), content is LARGE) for path, content in FIRST.items()
    }


@pytest.mark.parametrize("revision", [0, 1])
def test_small_file_comes_at_once_and_knows_no_ranges(client: Client, revision: int) -> None:
    query = f"Revision={client.revisions[revision]}&FilePath=config.json"
    answer = client.ask(f"{API}/{NAME}/repo?{query}", headers={"Range": "bytes=2-"})
    assert (answer.status, answer.body) == (200, [FIRST, SECOND][revision]["config.json"])


def test_large_file_is_behind_a_signed_link(client: Client) -> None:
    answer = client.ask(f"{API}/{NAME}/repo?Revision=master&FilePath=model.safetensors")
    address = urlsplit(answer.headers["Location"])
    assert (answer.status, address.path) == (302, f"/cdn/{NAME}/{client.revisions[0]}/model.safetensors")
    part = client.ask(f"{address.path}?{address.query}", headers={"Range": "bytes=100-"})
    assert (part.status, part.body) == (206, LARGE[100:])


@pytest.mark.parametrize("headers", BOTH)
def test_token_opens_what_is_private(client: Client, headers: dict[str, str]) -> None:
    assert client.ask(f"{API}/{PRIVATE}/repo/files", headers=headers).status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("org/none/repo/files", 404),
        (f"{NAME}/elsewhere", 404),
        (f"{NAME}/repo/files?Revision=none", 404),
        (f"{NAME}/repo?FilePath=none", 404),
        (f"{NAME}/repo", 404),
        (f"{PRIVATE}/repo/files", 403),
    ],
)
def test_refusal_is_worded_as_the_service_does(client: Client, path: str, status: int) -> None:
    answer = client.ask(f"{API}/{path}")
    assert (answer.status, answer.json()["Success"]) == (status, False)
    assert answer.json()["Message"]


def test_path_of_the_query_counts_for_faults_and_statistics(client: Client) -> None:
    client.fault(config={"kind": "503", "count": 1})
    path = f"{API}/{NAME}/repo?Revision=master&FilePath=config.json"
    assert [client.ask(path).status for _ in range(2)] == [503, 200]
    stats = client.ask("/_testbed/stats").json()
    assert stats["paths"][f"{API}/{NAME}/repo/config.json"] == {"requests": 2, "bytes": len(FIRST["config.json"])}


def test_revised_history_gives_master_to_another_commit(client: Client) -> None:
    client.fault(config="revised")
    assert client.ask(f"{API}/{NAME}/repo?FilePath=config.json").body == SECOND["config.json"]
