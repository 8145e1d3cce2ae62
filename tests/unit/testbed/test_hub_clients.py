# SPDX-License-Identifier: Apache-2.0
"""The services' own clients find the same bytes at the stand-in: huggingface_hub, ModelScope's and AWS's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from testbed.hub.server import s3
from unit.testbed.hub_client import FIRST, NAME, PRIVATE, SECOND, TOKEN, Client

WHY = "is not installed; requirements/test.in names it"


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a client has written, its own notes aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def huggingface(client: Client, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their client without the protocol of its own that real storage speaks."""
    monkeypatch.setenv("HF_ENDPOINT", client.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return pytest.importorskip("huggingface_hub", reason=f"huggingface-hub {WHY}")


@pytest.fixture
def modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their client, which keeps nothing outside the test."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    return pytest.importorskip("modelscope_hub", reason=f"modelscope-hub {WHY}")


@pytest.mark.parametrize(("revision", "files"), [(0, FIRST), (1, SECOND)])
def test_huggingface_hub_downloads_a_revision(
    client: Client, huggingface: Any, tmp_path: Path, revision: int, files: dict[str, bytes]
) -> None:
    commit = client.revisions[revision]
    huggingface.snapshot_download(NAME, revision=commit, local_dir=tmp_path / "local", endpoint=client.url)
    assert contents(tmp_path / "local") == files


def test_huggingface_hub_opens_what_is_private(client: Client, huggingface: Any, tmp_path: Path) -> None:
    ask = {"repo_id": PRIVATE, "local_dir": tmp_path / "local", "endpoint": client.url}
    with pytest.raises(huggingface.errors.HfHubHTTPError, match="401"):
        huggingface.snapshot_download(**ask, token=False)
    huggingface.snapshot_download(**ask, token=TOKEN)
    assert contents(tmp_path / "local") == FIRST


@pytest.mark.parametrize(("revision", "files"), [("master", FIRST), (1, SECOND)])
def test_modelscope_downloads_a_revision(
    client: Client, modelscope: Any, tmp_path: Path, revision: str | int, files: dict[str, bytes]
) -> None:
    commit = client.revisions[revision] if isinstance(revision, int) else revision
    modelscope.HubApi(endpoint=client.url).download_repo(NAME, "model", revision=commit, local_dir=tmp_path / "local")
    assert contents(tmp_path / "local") == files


def test_modelscope_lists_what_there_is(client: Client, modelscope: Any) -> None:
    api = modelscope.HubApi(endpoint=client.url)
    files = {file.path: file.sha256 for file in api.list_repo_files(NAME, "model") if file.sha256}
    assert files == {path: hashlib.sha256(content).hexdigest() for path, content in FIRST.items()}


def test_modelscope_opens_what_is_private(client: Client, modelscope: Any, tmp_path: Path) -> None:
    with pytest.raises(modelscope.errors.PermissionDeniedError):
        modelscope.HubApi(endpoint=client.url).download_repo(PRIVATE, "model", local_dir=tmp_path / "local")
    modelscope.HubApi(endpoint=client.url, token=TOKEN).download_repo(PRIVATE, "model", local_dir=tmp_path / "local")
    assert contents(tmp_path / "local") == FIRST


def test_modelscope_finds_wrong_bytes_out(client: Client, modelscope: Any, tmp_path: Path) -> None:
    """What it compares with is the sha256 of the listing, for small files as for large ones."""
    client.fault(safetensors={"kind": "corrupt", "count": 1})
    modelscope.HubApi(endpoint=client.url).download_repo(NAME, "model", local_dir=tmp_path / "local")
    assert contents(tmp_path / "local") == FIRST


@pytest.fixture
def bucket(client: Client) -> Any:
    """AWS's client, with keys that fit unless others are given."""
    session = pytest.importorskip("botocore.session", reason=f"botocore {WHY}")
    config = pytest.importorskip("botocore.config")

    def make(access: str = s3.ACCESS_KEY, secret: str = s3.SECRET_KEY, region: str = s3.REGION) -> Any:
        return session.Session().create_client(
            "s3",
            region_name=region,
            endpoint_url=client.url,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=config.Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    return make


@pytest.mark.parametrize("path", FIRST)
def test_botocore_gets_an_object(client: Client, bucket: Any, path: str) -> None:
    key = f"{s3.PREFIX}/{NAME}/{client.revisions[0]}/{path}"
    assert bucket().get_object(Bucket=s3.PRIVATE, Key=key)["Body"].read() == FIRST[path]
    assert bucket().get_object(Bucket=s3.PRIVATE, Key=key, Range="bytes=2-4")["Body"].read() == FIRST[path][2:5]
    assert bucket().head_object(Bucket=s3.PRIVATE, Key=key)["ContentLength"] == len(FIRST[path])


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"access": "SOMEBODY"}, "InvalidAccessKeyId"),
        ({"secret": "wrong"}, "SignatureDoesNotMatch"),
        ({"region": "elsewhere"}, "AuthorizationHeaderMalformed"),
    ],
)
def test_botocore_understands_why_it_is_refused(client: Client, bucket: Any, keys: dict[str, str], code: str) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    with pytest.raises(exceptions.ClientError) as refused:
        bucket(**keys).get_object(Bucket=s3.PRIVATE, Key=f"{s3.PREFIX}/{NAME}/{client.revisions[0]}/config.json")
    assert refused.value.response["Error"]["Code"] == code


def test_botocore_quotes_as_the_stand_in_reads(client: Client, bucket: Any) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    with pytest.raises(exceptions.ClientError) as refused:  # the signature fits: what is missing is the object
        bucket().get_object(Bucket=s3.PRIVATE, Key=f"{s3.PREFIX}/{NAME}/{client.revisions[0]}/100 % of ü+β~(1).txt")
    assert refused.value.response["Error"]["Code"] == "NoSuchKey"
