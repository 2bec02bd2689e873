"""Conditions of writes, copies over themselves, and what an answer must not show."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.s3.conftest import Site
from tests.s3.test_door import code, raw

Make = Callable[[], str]


def test_a_write_can_ask_for_the_object_that_is_there(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    etag = s3.put_object(Bucket=name, Key="k", Body=b"one")["ETag"]
    s3.put_object(Bucket=name, Key="k", Body=b"two", IfMatch=etag)
    assert code(lambda: s3.put_object(Bucket=name, Key="k", Body=b"x", IfMatch=etag)) == "PreconditionFailed"
    assert code(lambda: s3.put_object(Bucket=name, Key="none", Body=b"x", IfMatch=etag)) == "NoSuchKey"
    status, _, body = raw(site, "PUT", f"/{name}/k", b"x", headers=(("If-None-Match", "*"),))
    assert (status, b"<Condition>If-None-Match</Condition>" in body) == (412, True)
    assert code(lambda: s3.delete_object(Bucket=name, Key="k", IfMatch=etag)) == "PreconditionFailed"
    s3.delete_object(Bucket=name, Key="none", IfMatch=etag)
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"two"
    began = s3.create_multipart_upload(Bucket=name, Key="k")["UploadId"]
    part = s3.upload_part(Bucket=name, Key="k", UploadId=began, PartNumber=1, Body=b"three")
    which = {"Bucket": name, "Key": "k", "UploadId": began}
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}]}
    for how in ({"IfNoneMatch": "*"}, {"IfMatch": etag}):
        with pytest.raises(Exception, match="PreconditionFailed"):
            s3.complete_multipart_upload(**which, MultipartUpload=parts, **how)
    writer = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "*"}
    blind = site.client(site.role("blind", json.dumps({"Statement": [writer]})))
    blind.put_object(Bucket=name, Key="new", Body=b"", IfNoneMatch="*")
    assert code(lambda: blind.put_object(Bucket=name, Key="k", Body=b"", IfMatch=etag)) == "AccessDenied"


def test_a_copy_over_itself_keeps_the_metadata_and_must_change_something(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(
        Bucket=name, Key="a/k", Body=b"x", Metadata={"who": "me"}, ContentType="text/x",
        CacheControl="no-store", Tagging="a=b",
    )  # fmt: skip
    own = {"Bucket": name, "Key": "a/k", "CopySource": {"Bucket": name, "Key": "a/k"}}
    assert code(lambda: s3.copy_object(**own)) == "InvalidRequest"
    for how in (
        {"StorageClass": "STANDARD"},
        {"ServerSideEncryption": "AES256"},
        {"ChecksumAlgorithm": "SHA256"},
    ):
        s3.copy_object(**own, **how)
        got = s3.head_object(Bucket=name, Key="a/k", ChecksumMode="ENABLED")
        assert (got["Metadata"], got["ContentType"], got["CacheControl"]) == (
            {"who": "me"},
            "text/x",
            "no-store",
        )
        assert s3.get_object_tagging(Bucket=name, Key="a/k")["TagSet"] == [{"Key": "a", "Value": "b"}]


def test_a_copy_over_itself_may_say_that_the_metadata_stays(site: Site, bucket: Make) -> None:
    """As rclone's settier does."""
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="t", Body=b"", Metadata={"mtime": "1"})
    asked = (
        ("x-amz-acl", "private"), ("x-amz-copy-source", f"{name}/t"), ("x-amz-metadata-directive", "COPY"),
        ("x-amz-storage-class", "STANDARD"),
    )  # fmt: skip
    status, _, body = raw(site, "PUT", f"/{name}/t", headers=asked)
    assert status == 200, body
    assert s3.head_object(Bucket=name, Key="t")["Metadata"] == {"mtime": "1"}


def test_an_answer_shows_no_tags(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=b"x", Tagging="secret=hidden")
    s3.copy_object(
        Bucket=name, Key="copy", CopySource={"Bucket": name, "Key": "k"}, TaggingDirective="REPLACE",
        Tagging="secret=hidden",
    )  # fmt: skip
    for key in ("k", "copy"):
        for method in ("GET", "HEAD"):
            headers = raw(site, method, f"/{name}/{key}")[1]
            assert headers["x-amz-tagging-count"] == "1"
            assert "secret" not in str(headers)
            assert "hidden" not in str(headers)


@pytest.mark.parametrize(
    "document",
    [
        "<CompleteMultipartUpload></CompleteMultipartUpload>",
        "<CompleteMultipartUpload><Part><PartNumber>0</PartNumber><ETag>a</ETag></Part></CompleteMultipartUpload>",
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
        "<Complete><Part><PartNumber>1</PartNumber><ETag>a</ETag></Part></Complete>",
    ],
)
def test_a_document_that_names_no_parts_is_malformed(site: Site, bucket: Make, document: str) -> None:
    path = f"/{bucket()}/k?uploadId=x"
    status, _, body = raw(site, "POST", path, document.encode())
    assert (status, b"MalformedXML" in body) == (400, True)


def test_there_are_no_locks_of_objects(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=b"x")
    for ask in (s3.get_object_legal_hold, s3.get_object_retention):
        with pytest.raises(Exception, match="Bucket is missing Object Lock Configuration"):
            ask(Bucket=name, Key="k")
