"""Objects may be kept in any S3 that one has, instead of the embedded SeaweedFS: here in moto's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
from tests.s3.conftest import ALLOW_ALL, Site

from cloister.s3.backend import Backend, SeaweedFS

KEYS = {"aws_access_key_id": "theirs", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def over(elsewhere: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("over"), Backend(elsewhere, "theirs", "secret"))
    made.endpoint_policy(ALLOW_ALL)
    yield made
    made.stop()


def test_objects_are_kept_there_and_read_back_whole(over: Site, elsewhere: str) -> None:
    s3 = over.client()
    s3.create_bucket(Bucket="kept")
    s3.put_object(Bucket="kept", Key="a/b c+d", Body=b"text", ContentType="text/x", Metadata={"m": "1"})
    found = s3.get_object(Bucket="kept", Key="a/b c+d")
    assert (found["Body"].read(), found["ContentType"], found["Metadata"]) == (b"text", "text/x", {"m": "1"})
    listed = s3.list_objects_v2(Bucket="kept", Prefix="a/")["Contents"]
    assert [each["Key"] for each in listed] == ["a/b c+d"]
    there = boto3.client("s3", endpoint_url=elsewhere, **KEYS)
    assert there.get_object(Bucket="kept", Key="a/b c+d")["Body"].read() == b"text"
    s3.delete_object(Bucket="kept", Key="a/b c+d")
    assert "Contents" not in there.list_objects_v2(Bucket="kept")


def test_a_large_object_goes_up_in_parts_and_comes_down_the_fast_way(over: Site, tmp_path: Path) -> None:
    s3 = over.client()
    s3.create_bucket(Bucket="large")
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(range(256)) * (20 << 12))
    s3.upload_file(str(whole), "large", "it")
    s3.download_file("large", "it", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == whole.read_bytes()


def test_policies_are_ours_there_too(over: Site) -> None:
    over.client().create_bucket(Bucket="guarded")
    over.client().put_object(Bucket="guarded", Key="k", Body=b"x")
    with pytest.raises(ClientError) as refused:
        over.client(over.role("nobody", None)).get_object(Bucket="guarded", Key="k")
    assert refused.value.response["Error"]["Code"] == "AccessDenied"


def test_where_objects_are_is_told_as_a_person_finds_them(over: Site, elsewhere: str, tmp_path: Path) -> None:
    assert over.backend.place == elsewhere
    assert SeaweedFS(tmp_path).place == f"{tmp_path}/objects (SeaweedFS)", (
        "its URL is of a namespace of its own"
    )
