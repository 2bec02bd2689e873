"""Keys and listings are S3's, whatever the store behind the door makes of a slash."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.s3.conftest import Site

from cloister.s3 import names
from cloister.s3.backend import SeaweedFS

Make = Callable[[], str]


def code(action: Callable[..., Any], **parameters: Any) -> str:
    with pytest.raises(ClientError) as caught:
        action(**parameters)
    return str(caught.value.response["Error"]["Code"])


def put(s3: Any, bucket: str, *keys: str) -> None:
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())


def listed(s3: Any, operation: str, bucket: str, size: int = 1000, **parameters: Any) -> list[str]:
    pages = s3.get_paginator(operation).paginate(
        Bucket=bucket, PaginationConfig={"PageSize": size}, **parameters
    )
    return [
        each.get("Key") or each["Prefix"]
        for page in pages
        for member in ("Contents", "Versions", "CommonPrefixes")
        for each in page.get(member, [])
    ]


@pytest.mark.parametrize(
    "keys",
    [
        ("a", "a/", "a/1"),
        ("a/1", "a/", "a"),
        ("a/", "a"),
        ("a//b", "/", "//", "a\\b", "../x", "./.", "a/.", "a/..", "..", ".", "\t"),
        ("0", "00", "0/0", "a0", "a0/", "a/0", "[", "[0", "[1", "\\0"),
    ],
)
def test_no_object_is_in_the_way_of_another(site: Site, bucket: Make, keys: tuple[str, ...]) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, *keys)
    for key in keys:
        assert s3.get_object(Bucket=name, Key=key)["Body"].read() == key.encode(), key
    assert listed(s3, "list_objects_v2", name) == sorted(keys)
    for number, key in enumerate(keys):
        s3.delete_object(Bucket=name, Key=key)
        assert listed(s3, "list_objects_v2", name) == sorted(keys[number + 1 :])
    s3.delete_bucket(Bucket=name)


def test_a_folder_of_keys_is_no_object(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "a/b/c")
    for key in ("a", "a/", "a/b", "a/b/"):
        assert code(s3.get_object, Bucket=name, Key=key) == "NoSuchKey"
        assert code(s3.head_object, Bucket=name, Key=key) == "404"
        s3.delete_object(Bucket=name, Key=key)
    assert listed(s3, "list_objects_v2", name) == ["a/b/c"]


@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2", "list_object_versions"])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_listing_is_in_the_order_of_the_keys_bytes(
    site: Site, bucket: Make, operation: str, size: int
) -> None:
    s3, name = site.client(), bucket()
    keys = ["a!x", "a-b", "a.txt", "a/1", "a/2/3", "a", "a0", "ab", "é", "b/c", "b", "😀", "\ufffd"]
    put(s3, name, *keys)
    assert listed(s3, operation, name, size) == sorted(keys, key=str.encode)
    assert sorted(listed(s3, operation, name, size, Delimiter="/")) == sorted(
        {key.partition("/")[0] + "/" if "/" in key else key for key in keys}
    )
    assert listed(s3, operation, name, size, Prefix="a/", Delimiter="/") == ["a/1", "a/2/"]


def test_a_listing_starts_after_any_text(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "a-b", "a/1", "a/2", "a/b/3", "b", "c/d/e", "z")

    def after(text: str, **parameters: Any) -> list[str]:
        return listed(s3, "list_objects_v2", name, StartAfter=text, **parameters)

    assert after("a/1") == ["a/2", "a/b/3", "b", "c/d/e", "z"]
    assert after("a/") == ["a/1", "a/2", "a/b/3", "b", "c/d/e", "z"]
    assert after("a", Delimiter="/") == ["a-b", "b", "z", "a/", "c/"]
    assert after("a/1", Delimiter="/") == ["b", "z", "a/", "c/"]
    assert after("a/2", Prefix="a/", Delimiter="/") == ["a/b/"]
    assert after("", Delimiter="d") == ["a-b", "a/1", "a/2", "a/b/3", "b", "z", "c/d"]


def test_a_listing_says_what_it_was_asked_and_refuses_what_it_was_not_told(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "a b+c", "d")
    page = s3.list_objects_v2(Bucket=name, MaxKeys=1, FetchOwner=True, Prefix="a")
    (only,) = page["Contents"]
    assert only["Key"] == "a b+c"
    assert only["Owner"] == {"ID": s3.list_buckets()["Owner"]["ID"]}
    assert (page["KeyCount"], page["MaxKeys"], page["Prefix"], page["IsTruncated"]) == (1, 1, "a", False)
    assert s3.list_objects_v2(Bucket=name, MaxKeys=5000)["MaxKeys"] == 1000
    for parameters in ({"ContinuationToken": "x"}, {"EncodingType": "x"}, {"MaxKeys": -1}):
        assert code(s3.list_objects_v2, Bucket=name, **parameters) == "InvalidArgument"


def test_a_bucket_is_emptied_by_what_it_lists(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "a", "a/", "a//", "x\\y", "0/[", "\n")
    versions = s3.list_object_versions(Bucket=name)["Versions"]
    assert all(each["VersionId"] == "null" and each["IsLatest"] for each in versions)
    wanted = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in versions]
    done = s3.delete_objects(Bucket=name, Delete={"Objects": wanted})
    assert sorted(each["Key"] for each in done["Deleted"]) == sorted(each["Key"] for each in wanted)
    s3.delete_bucket(Bucket=name)


def test_a_version_that_is_not_there_deletes_and_copies_nothing(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "k")
    done = s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "k", "VersionId": "old"}]})
    assert [(each["Key"], each["Code"]) for each in done["Errors"]] == [("k", "NoSuchVersion")]
    source = {"Bucket": name, "Key": "k", "VersionId": "old"}
    assert code(s3.copy_object, Bucket=name, Key="copy", CopySource=source) == "NoSuchVersion"
    assert listed(s3, "list_objects_v2", name) == ["k"]


def test_uploads_in_parts_are_named_by_their_keys(site: Site, bucket: Make) -> None:
    s3, name, key = site.client(), bucket(), "m/0\\p/"
    upload = s3.create_multipart_upload(Bucket=name, Key=key)
    assert upload["Key"] == key
    which = {"Bucket": name, "Key": key, "UploadId": upload["UploadId"]}
    assert [each["Key"] for each in s3.list_multipart_uploads(Bucket=name, Prefix="m/")["Uploads"]] == [key]
    etag = s3.upload_part(**which, PartNumber=1, Body=b"part")["ETag"]
    assert s3.list_parts(**which)["Key"] == key
    done = s3.complete_multipart_upload(**which, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert done["Key"] == key
    assert done["Location"] == f"http://127.0.0.1:{site.port}/{name}/m/0%5Cp/"
    assert s3.get_object(Bucket=name, Key=key)["Body"].read() == b"part"


def test_uploads_in_parts_are_listed_by_key_and_in_pages(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    keys = ["q", "a/z", "a-b", "a/b/c0", "q"]
    begun = [(key, s3.create_multipart_upload(Bucket=name, Key=key)["UploadId"]) for key in keys]
    found = [(each["Key"], each["UploadId"]) for each in s3.list_multipart_uploads(Bucket=name)["Uploads"]]
    assert [key for key, _ in found] == sorted(keys)
    assert sorted(found) == sorted(begun)
    for size in (1, 2, 3):
        pages = s3.get_paginator("list_multipart_uploads").paginate(
            Bucket=name, PaginationConfig={"PageSize": size}
        )
        assert [(each["Key"], each["UploadId"]) for page in pages for each in page["Uploads"]] == found

    def listed(**parameters: Any) -> tuple[list[str], list[str]]:
        page = s3.list_multipart_uploads(Bucket=name, **parameters)
        return (
            [each["Key"] for each in page.get("Uploads", [])],
            [each["Prefix"] for each in page.get("CommonPrefixes", [])],
        )

    assert listed(Delimiter="/") == (["a-b", "q", "q"], ["a/"])
    assert listed(Prefix="a/", Delimiter="/") == (["a/z"], ["a/b/"])
    assert listed(Delimiter="/", MaxUploads=2) == (["a-b"], ["a/"])
    assert listed(Delimiter="/", KeyMarker="a/") == (["q", "q"], [])
    for key, upload in begun:
        s3.abort_multipart_upload(Bucket=name, Key=key, UploadId=upload)
    assert listed() == ([], [])


def test_metadata_and_tags_of_objects_have_their_limits(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()

    def put_with(**parameters: Any) -> str:
        return code(s3.put_object, Bucket=name, Key="k", Body=b"x", **parameters)

    def tag_with(*tags: tuple[str, str]) -> str:
        tag_set = [{"Key": key, "Value": value} for key, value in tags]
        return code(s3.put_object_tagging, Bucket=name, Key="k", Tagging={"TagSet": tag_set})

    many = [(f"k{n}", "v") for n in range(11)]
    assert put_with(Metadata={"m": "x" * 2048}) == "MetadataTooLarge"
    assert put_with(Tagging="&".join("=".join(tag) for tag in many)) == "BadRequest"
    assert put_with(Tagging="aws:a=1") == put_with(Tagging="a=1&a=2") == "InvalidTag"
    put(s3, name, "k")
    assert tag_with(*many) == "BadRequest"
    assert tag_with(("a", "1"), ("a", "2")) == tag_with(("a" * 129, "")) == "InvalidTag"
    s3.put_object(Bucket=name, Key="k", Body=b"x", Metadata={"m": "x" * 2047}, Tagging="a=1&b=")
    assert len(s3.get_object_tagging(Bucket=name, Key="k")["TagSet"]) == 2


def test_a_copy_tells_its_etag_as_the_object_does(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "k")
    etag = s3.head_object(Bucket=name, Key="k")["ETag"]
    assert s3.copy_object(Bucket=name, Key="c", CopySource=f"{name}/k")["CopyObjectResult"]["ETag"] == etag
    which = {"Bucket": name, "Key": "p"}
    which["UploadId"] = s3.create_multipart_upload(**which)["UploadId"]
    part = s3.upload_part_copy(**which, PartNumber=1, CopySource=f"{name}/k")["CopyPartResult"]
    assert part["ETag"] == etag
    for number in (0, 10_001):
        assert code(s3.upload_part, **which, PartNumber=number, Body=b"x") == "InvalidArgument"


def test_an_error_names_the_key_and_not_what_the_store_calls_it(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=name, Key="no/such")
    assert caught.value.response["Error"]["Key"] == "no/such"


def test_an_object_without_a_type_is_of_s3s_default_type(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    put(s3, name, "text.html")
    assert s3.head_object(Bucket=name, Key="text.html")["ContentType"] == "binary/octet-stream"


def test_an_object_is_written_only_if_none_is_there_and_no_other_such_condition(
    site: Site, bucket: Make
) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=b"1", IfNoneMatch="*")
    assert code(s3.put_object, Bucket=name, Key="k", Body=b"2", IfNoneMatch="*") == "PreconditionFailed"
    assert code(s3.put_object, Bucket=name, Key="k", Body=b"2", IfNoneMatch='"x"') == "NotImplemented"
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"1"


def test_a_store_that_was_filled_before_keys_had_names_keeps_them_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "objects" / "filerldb2").mkdir(parents=True)
    assert SeaweedFS(tmp_path).names is names.PLAIN
    assert SeaweedFS(tmp_path).names is names.PLAIN
    fresh = tmp_path / uuid.uuid4().hex
    assert SeaweedFS(fresh).names is names.TREE
    (fresh / "objects" / "filerldb2").mkdir()
    assert SeaweedFS(fresh).names is names.TREE
