# SPDX-License-Identifier: Apache-2.0
"""The hub's server: the Hugging Face protocol, ranges and faults, through a plain HTTP client."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from urllib.parse import urlsplit

import pytest
from unit.testbed.hub_client import FIRST, LARGE, NAME, SECOND, TREE, Client


def test_branch_main_is_the_first_revision(client: Client) -> None:
    answer = client.ask(f"/api/models/{NAME}").json()
    assert answer["sha"] == client.revisions[0]
    assert [sibling["rfilename"] for sibling in answer["siblings"]] == sorted(FIRST)
    refs = client.ask(f"/api/models/{NAME}/refs").json()
    assert [(branch["name"], branch["targetCommit"]) for branch in refs["branches"]] == [("main", client.revisions[0])]


def test_revision_is_served_by_its_commit(client: Client) -> None:
    second = client.revisions[1]
    assert client.ask(f"/api/models/{NAME}/revision/{second}").json()["sha"] == second
    answer = client.resolve("config.json", second)
    assert (answer.body, answer.headers["X-Repo-Commit"]) == (SECOND["config.json"], second)


def test_blobs_come_with_sizes_and_hashes(client: Client) -> None:
    siblings = client.ask(f"/api/models/{NAME}?blobs=true").json()["siblings"]
    assert siblings[1]["lfs"] == {"sha256": hashlib.sha256(LARGE).hexdigest(), "size": len(LARGE), "pointerSize": 130}


def test_tree_lists_a_folder_or_all_below(client: Client) -> None:
    def paths(path: str) -> list[tuple[str, str]]:
        return [(line["type"], line["path"]) for line in client.ask(path).json()]

    assert paths(TREE) == [("file", "config.json"), ("file", "model.safetensors"), ("directory", "sub")]
    assert paths(f"{TREE}/sub?recursive=1") == [("directory", "sub/deep"), ("file", "sub/deep/notes.txt")]
    assert {path for kind, path in paths(f"{TREE}?recursive=true") if kind == "file"} == set(FIRST)


def test_tree_comes_in_pages(client: Client) -> None:
    lines, path = [], f"{TREE}?recursive=true&expand=true&limit=2"
    while path:
        answer = client.ask(path)
        lines += answer.json()
        address = urlsplit(answer.headers.get("Link", "").partition(">")[0].lstrip("<"))
        path = f"{address.path}?{address.query}" if address.query else ""
    assert [line["path"] for line in lines] == [
        "config.json",
        "model.safetensors",
        "sub",
        "sub/deep",
        "sub/deep/notes.txt",
    ]
    assert all(line["securityFileStatus"]["status"] == "safe" for line in lines)


def test_small_file_comes_at_once(client: Client) -> None:
    answer = client.resolve("sub/deep/notes.txt")
    assert (answer.status, answer.body) == (200, b"notes\n")
    blob = hashlib.sha1(b"blob 6\0notes\n", usedforsecurity=False).hexdigest()
    assert answer.headers["ETag"] == f'"{blob}"'


def test_large_file_is_behind_a_signed_link(client: Client) -> None:
    answer = client.resolve("model.safetensors", method="HEAD")
    assert answer.status == 302
    assert answer.headers["X-Linked-Size"] == str(len(LARGE))
    assert answer.headers["X-Linked-Etag"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
    assert answer.headers["X-Repo-Commit"] == client.revisions[0]
    link = client.link()
    assert client.ask(link).body == LARGE
    assert client.ask(link[:-1] + ("A" if link[-1] != "A" else "B")).status == 403


def test_link_expires(client: Client) -> None:
    client.hub.link_seconds = -1
    assert client.ask(client.link()).status == 403


def test_content_may_live_under_another_name(client: Client) -> None:
    client.hub.cdn = "http://cdn.hub.test"
    assert client.resolve("model.safetensors").headers["Location"].startswith(f"http://cdn.hub.test/cdn/{NAME}/")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=10200-", 10200, 10240), ("bytes=-5", 10235, 10240), ("bytes=0-99999", 0, 10240)],
)
def test_range_is_served(client: Client, header: str, start: int, end: int) -> None:
    answer = client.ask(client.link(), headers={"Range": header})
    assert (answer.status, answer.body) == (206, LARGE[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(LARGE)}"


@pytest.mark.parametrize("header", ["bytes=0-1,4-5", "bytes=9-2", "lines=1-2", "bytes=-", "bytes"])
def test_range_that_cannot_be_read_gets_the_whole(client: Client, header: str) -> None:
    answer = client.ask(client.link(), headers={"Range": header})
    assert (answer.status, answer.body) == (200, LARGE)


def test_range_behind_the_end_is_refused(client: Client) -> None:
    answer = client.ask(client.link(), headers={"Range": "bytes=10240-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */10240")


def test_range_of_another_content_gets_the_whole(client: Client) -> None:
    assert client.ask(client.link(), headers={"Range": "bytes=5-", "If-Range": '"other"'}).status == 200


@pytest.mark.parametrize(
    ("path", "token", "status", "code"),
    [
        ("/api/models/org/none", None, 401, None),
        ("/api/models/org/none", "any", 404, "RepoNotFound"),
        ("/api/models/../../x", "any", 404, None),
        ("/api/models/org/..", "any", 404, "RepoNotFound"),
        (f"/api/models/{NAME}/revision/none", None, 404, "RevisionNotFound"),
        (f"/api/models/{NAME}/revision/..%2F..%2Fx", None, 404, "RevisionNotFound"),
        (f"/{NAME}/resolve/main/none", None, 404, "EntryNotFound"),
        (f"/{NAME}/resolve/main/../repository.json", None, 404, "EntryNotFound"),
        (f"{TREE}/none", None, 404, "EntryNotFound"),
        (f"{TREE}?limit=x", None, 400, None),
        ("/api/models/org/private", None, 401, None),
        ("/api/models/org/private", "wrong", 401, None),
        ("/api/models/org/private", "secret", 200, None),
        ("/elsewhere", None, 404, None),
        ("/_testbed/elsewhere", None, 404, None),
    ],
)
def test_refusal_has_the_hubs_status_and_code(
    client: Client, path: str, token: str | None, status: int, code: str | None
) -> None:
    answer = client.ask(path, headers={"Authorization": f"Bearer {token}"} if token else {})
    assert (answer.status, answer.headers["X-Error-Code"]) == (status, code)


def test_nothing_can_be_uploaded(client: Client) -> None:
    assert client.ask(f"/api/models/{NAME}", "POST", b"{}").status == 405


def test_corrupt_content_has_the_right_size(client: Client) -> None:
    client.fault(safetensors={"kind": "corrupt", "count": 1})
    assert client.ask(client.link()).body == LARGE[:-1] + bytes([LARGE[-1] ^ 0xFF])
    assert client.ask(client.link()).body == LARGE


def test_truncated_content_can_be_resumed(client: Client) -> None:
    client.fault(safetensors={"kind": "truncate", "count": 1})
    with pytest.raises(http.client.IncompleteRead) as cut:
        client.ask(client.link())
    assert cut.value.partial == LARGE[:5120]
    assert client.ask(client.link(), headers={"Range": "bytes=5120-"}).body == LARGE[5120:]


@pytest.mark.parametrize(("kind", "path"), [("hang", f"/{NAME}/resolve/main/config.json"), ("silent", TREE)])
def test_others_are_served_while_one_hangs(client: Client, kind: str, path: str) -> None:
    client.fault(**{path.rpartition("/")[2]: {"kind": kind, "count": 1}})
    with pytest.raises(TimeoutError):
        client.ask(path)
    assert client.ask(path).status == 200
    assert client.ask("/_testbed/health").json() == {"status": "ok"}


@pytest.mark.parametrize(("kind", "status"), [("429", 429), ("500", 500), ("503", 503)])
def test_refusal_says_when_to_come_back(client: Client, kind: str, status: int) -> None:
    client.fault(config={"kind": kind, "count": 1, "retry_after": 7})
    answer = client.resolve("config.json", method="HEAD")
    assert (answer.status, answer.headers["Retry-After"]) == (status, "7")
    assert client.resolve("config.json").status == 200


def test_fault_may_be_for_one_client_alone(client: Client) -> None:
    for address, status in (("127.0.0.1", 503), ("127.0.0.2", 200)):
        client.ask(
            "/_testbed/faults", "POST", json.dumps({f"{address}/*config*": {"kind": "503", "count": 1}}).encode()
        )
        assert client.resolve("config.json").status == status


def test_who_does_not_wait_as_told_is_found_out(client: Client) -> None:
    client.fault(config={"kind": "429", "count": 1, "retry_after": 60})
    client.resolve("config.json")
    client.resolve("sub/deep/notes.txt")
    assert client.ask("/_testbed/stats").json()["hasty"] == 0
    client.resolve("config.json")
    assert client.ask("/_testbed/stats").json()["hasty"] == 1


def test_missing_lasts_until_cleared(client: Client) -> None:
    client.fault(config="missing")
    for _ in range(2):
        assert client.resolve("config.json").headers["X-Error-Code"] == "EntryNotFound"
    assert client.ask("/_testbed/faults", "DELETE").json() == {}
    assert client.resolve("config.json").status == 200


def test_content_may_be_cut_after_so_many_bytes(client: Client) -> None:
    client.fault(safetensors={"kind": "cut", "bytes": 100, "count": 2})
    for start in (0, 5000):
        with pytest.raises(http.client.IncompleteRead) as cut:
            client.ask(client.link(), headers={"Range": f"bytes={start}-"})
        assert cut.value.partial == LARGE[start : start + 100]
    assert client.ask(client.link()).body == LARGE


@pytest.mark.parametrize(("more", "body"), [(7, LARGE + bytes(7)), (-7, LARGE[:-7])])
def test_content_of_another_size_is_whole_to_http(client: Client, more: int, body: bytes) -> None:
    client.fault(safetensors={"kind": "wrong_size", "bytes": more})
    assert client.resolve("model.safetensors").headers["X-Linked-Size"] == str(len(LARGE))
    assert client.ask(client.link()).body == body
    tail = client.ask(client.link(), headers={"Range": "bytes=10200-"})
    assert (tail.body, tail.headers["Content-Range"]) == (body[10200:], f"bytes 10200-{len(body) - 1}/{len(body)}")


def test_link_is_refused_as_one_that_is_too_old(client: Client) -> None:
    client.fault(safetensors={"kind": "expired", "count": 1})
    assert client.resolve("model.safetensors").status == 302
    assert client.ask(client.link()).status == 403
    assert client.ask(client.link()).status == 200


def test_revised_history_gives_the_name_to_another_commit(client: Client) -> None:
    first, second = client.revisions
    client.fault(config={"kind": "revised", "count": 1}, tree={"kind": "revised", "count": 1})
    answer = client.resolve("config.json", first)
    assert (answer.body, answer.headers["X-Repo-Commit"]) == (SECOND["config.json"], second)
    assert client.ask(TREE).headers["X-Repo-Commit"] == second
    assert client.resolve("config.json", first).body == FIRST["config.json"]


def test_revised_history_without_another_commit_leaves_none(client: Client) -> None:
    client.fault(private="revised")
    answer = client.ask("/api/models/org/private", headers={"Authorization": "Bearer secret"})
    assert answer.headers["X-Error-Code"] == "RevisionNotFound"


def test_rate_is_shared_and_comes_on_top_of_another_fault(client: Client) -> None:
    client.ask(
        "/_testbed/faults",
        "POST",
        json.dumps({"*model*": {"kind": "rate", "bytes": 50_000}, "*.safetensors": "corrupt"}).encode(),
    )
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(client.ask(client.link()).body)) for _ in range(2)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [LARGE[:-1] + bytes([LARGE[-1] ^ 0xFF])] * 2
    assert time.monotonic() - began >= 2 * len(LARGE) / 50_000


def test_token_that_goes_to_another_host_is_found_out(client: Client) -> None:
    token = {"Authorization": "Bearer x"}
    client.ask(client.link(), headers=token)
    assert client.ask("/_testbed/stats").json()["leaks"] == 0
    client.hub.cdn = "http://cdn.hub.test"
    client.ask(client.link())
    client.ask(f"/{NAME}/resolve/main/config.json", headers=token)
    assert client.ask("/_testbed/stats").json()["leaks"] == 0
    client.ask(client.link(), headers=token)
    assert client.ask("/_testbed/stats").json()["leaks"] == 1


@pytest.mark.parametrize("path", ["model.safetensors", "sub/deep/notes.txt"])
def test_plain_files_are_there_for_anybody(client: Client, path: str) -> None:
    answer = client.ask(f"/files/{NAME}/{client.revisions[0]}/{path}", headers={"Range": "bytes=1-3"})
    assert (answer.status, answer.body) == (206, FIRST[path][1:4])
    assert client.ask(f"/files/{NAME}/{client.revisions[0]}/none").status == 404


@pytest.mark.parametrize(
    "wanted",
    [
        {"x": "odd"},
        {"x": {"kind": "hang", "often": 1}},
        {"x": None},
        {"x": "rate"},
        {"x": {"kind": "rate", "bytes": 0}},
        3,
        [1],
    ],
)
def test_fault_that_is_not_understood_sets_nothing(client: Client, wanted: object) -> None:
    assert client.ask("/_testbed/faults", "POST", json.dumps(wanted).encode()).status == 400
    assert client.ask("/_testbed/faults").json() == {}


def test_stats_count_bytes_of_content(client: Client) -> None:
    link = client.link()
    client.ask(link, headers={"Range": "bytes=0-99"})
    client.ask(link, "HEAD")
    stats = client.ask("/_testbed/stats").json()
    assert stats["bytes"] == 100
    assert stats["paths"][urlsplit(link).path] == {"requests": 2, "bytes": 100}
    assert stats["clients"] == {"127.0.0.1": 100}
    assert client.ask("/_testbed/stats", "DELETE").json() == {
        "bytes": 0,
        "leaks": 0,
        "hasty": 0,
        "clients": {},
        "paths": {},
    }


def test_connections_beyond_the_limit_wait_and_are_served(client: Client) -> None:
    answers: list[int] = []
    client.hub._slots = threading.BoundedSemaphore(2)  # noqa: SLF001 (fewer than the server starts with)
    threads = [threading.Thread(target=lambda: answers.append(client.resolve("config.json").status)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 10
