"""Keys and prefixes that the store behind the door reads in a way of its own are not told it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.s3.conftest import Site
from tests.s3.test_door import code, raw

from cloister.s3.actions import copy_source
from cloister.s3.names import PLAIN
from cloister.wire.errors import AwsError

Make = Callable[[], str]


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def _keys(s3: Any, bucket: str, **more: Any) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket=bucket, **more).get("Contents", ())]


@pytest.mark.parametrize(
    "prefix", ["/secret/", "//secret/", "secret//", "/secret", "./secret/", "secret/../secret/"]
)
def test_a_prefix_that_no_key_has_lists_nothing_and_passes_by_no_condition(
    site: Site, bucket: Make, prefix: str
) -> None:
    name = bucket()
    root = site.client()
    for key in ("secret/a", "secret/sub/b", "open/c"):
        root.put_object(Bucket=name, Key=key, Body=b"x")
    keys = site.role(
        "lister",
        _policy(
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"},
            {
                "Effect": "Deny",
                "Action": "s3:ListBucket",
                "Resource": "*",
                "Condition": {"StringLike": {"s3:prefix": "secret/*"}},
            },
        ),
    )
    s3 = site.client(keys)
    assert _keys(s3, name, Prefix="open/") == ["open/c"]
    assert code(lambda: s3.list_objects_v2(Bucket=name, Prefix="secret/")) == "AccessDenied"
    for caller in [root] if prefix.startswith("secret/") else [s3, root]:
        for found in (
            caller.list_objects_v2(Bucket=name, Prefix=prefix),
            caller.list_objects_v2(Bucket=name, Prefix=prefix, Delimiter="/"),
            caller.list_objects(Bucket=name, Prefix=prefix, Delimiter="/"),
        ):
            assert (found.get("Contents"), found.get("CommonPrefixes")) == (None, None)
            assert (found["Prefix"], found["IsTruncated"]) == (prefix, False)


@pytest.mark.parametrize(
    "prefix", ["", "a", "a/", "a/.", "a/..", "s" * 255, "x.versions", ".uploads", "a/.uploads"]
)
def test_a_prefix_that_a_key_may_have_is_one(prefix: str) -> None:
    assert PLAIN.can_begin(prefix)


OF_THE_STORE = ("a.versions/v_1", "a/b.versions/c/d", ".versions/x", "x/.uploads/y", ".uploads/")


@pytest.mark.parametrize("key", [*OF_THE_STORE, ".uploads/0/0002.part"])
def test_a_store_with_keys_as_they_are_holds_none_in_its_own_folders(key: str) -> None:
    with pytest.raises(AwsError, match="which the store uses itself"):
        PLAIN.check(key)


def test_no_key_is_in_a_folder_of_the_stores_own(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    upload = s3.create_multipart_upload(Bucket=name, Key="big")["UploadId"]
    s3.upload_part(Bucket=name, Key="big", UploadId=upload, PartNumber=1, Body=b"mine")
    s3.put_object(Bucket=name, Key="a", Body=b"a")
    mine = [*OF_THE_STORE, f".uploads/{upload}/0002.part", ".uploads", "a.versions", "x/.uploads"]
    for key in mine:
        assert raw(site, "GET", f"/{name}/{key}")[0] == 404, key
        assert raw(site, "DELETE", f"/{name}/{key}")[0] == 204
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    assert _keys(s3, name) == sorted(["a", *mine])
    for key in mine:
        assert s3.get_object(Bucket=name, Key=key)["Body"].read() == key.encode()
    assert len(s3.list_parts(Bucket=name, Key="big", UploadId=upload)["Parts"]) == 1
    for key in mine:
        s3.delete_object(Bucket=name, Key=key)
    assert len(s3.list_parts(Bucket=name, Key="big", UploadId=upload)["Parts"]) == 1
    s3.abort_multipart_upload(Bucket=name, Key="big", UploadId=upload)


def test_what_is_deleted_is_the_key_that_was_decided_on(site: Site, bucket: Make) -> None:
    name = bucket()
    root = site.client()
    for key in ("a\nb", "a\rb"):
        root.put_object(Bucket=name, Key=key, Body=b"x")
    keys = site.role(
        "deleter",
        _policy(
            {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "*"},
            {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{name}/a\nb"},
        ),
    )
    body = b"<Delete><Object><Key>a&#13;b</Key></Object></Delete>"
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    status, _, answer = raw(
        site, "POST", f"/{name}?delete=", body, keys=keys, headers=(("Content-MD5", digest),)
    )
    assert (status, b"<Deleted><Key>a&#13;b</Key></Deleted>" in answer) == (200, True), answer
    assert _keys(root, name) == ["a\nb"]


def test_a_copy_of_a_version_that_is_not_there_is_refused(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="a", Body=b"now")
    source = {"Bucket": name, "Key": "a", "VersionId": "3HL4kqtJlcpXrof3vjVBH40Nrjfkd"}
    assert code(lambda: s3.copy_object(Bucket=name, Key="b", CopySource=source)) == "NoSuchVersion"
    s3.copy_object(Bucket=name, Key="b", CopySource={**source, "VersionId": "null"})
    with pytest.raises(AwsError, match="Copy Source must mention"):
        copy_source("b/k?other=1")


def test_a_stranger_does_not_say_how_an_object_is_shown(site: Site, bucket: Make) -> None:
    s3, name = site.client(signature_version="s3v4"), bucket()
    s3.put_object(Bucket=name, Key="a", Body=b"a")
    allow = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{name}/*",
    }
    s3.put_bucket_policy(Bucket=name, Policy=_policy(allow))
    status, _, body = raw(site, "GET", f"/{name}/a?response-content-type=text%2Fhtml", anonymous=True)
    assert (status, b"cannot be used for anonymous" in body) == (400, True)
    assert raw(site, "GET", f"/{name}/a", anonymous=True)[0] == 200
    shown = s3.get_object(Bucket=name, Key="a", ResponseContentType="text/html")
    assert shown["ContentType"] == "text/html"


def test_who_may_end_an_upload_or_change_tags_reads_writes_and_deletes_no_object(
    site: Site, bucket: Make
) -> None:
    name = bucket()
    site.client().put_object(Bucket=name, Key="a", Body=b"kept", Tagging="t=1")
    actions = (
        *("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
        *("s3:GetObjectTagging", "s3:PutObjectTagging", "s3:DeleteObjectTagging"),
    )
    allow = {"Effect": "Allow", "Action": actions, "Resource": f"arn:aws:s3:::{name}/*"}
    keys = site.role("no-objects", _policy(allow))
    for query in ("uploadId=%0A", "uploadId=a%0Ab", "uploadId=", "tagging=%0A", "tagging=a%0Ab"):
        for method, body in (("GET", b""), ("PUT", b"<Tagging><TagSet/></Tagging>"), ("DELETE", b"")):
            _, _, answer = raw(site, method, f"/{name}/a?{query}", body, keys=keys)
            assert b"kept" not in answer, (method, query)
            assert site.client().get_object(Bucket=name, Key="a")["Body"].read() == b"kept", (method, query)


def test_a_part_without_a_good_number_is_no_object(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="a", Body=b"kept")
    upload = s3.create_multipart_upload(Bucket=name, Key="a")["UploadId"]
    for query in ("", "&partNumber=0", "&partNumber=-1", "&partNumber=1e3", "&partNumber=10001"):
        for headers in ((), (("x-amz-copy-source", f"{name}/a"),)):
            status, _, body = raw(
                site, "PUT", f"/{name}/a?uploadId={upload}{query}", b"over", headers=headers
            )
            assert (status, b"between 1 and 10000" in body) == (400, True), (query, body)
    assert s3.get_object(Bucket=name, Key="a")["Body"].read() == b"kept"
    s3.abort_multipart_upload(Bucket=name, Key="a", UploadId=upload)
