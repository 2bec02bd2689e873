"""Requests and what they need, as AWS documents them."""

from __future__ import annotations

import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.s3 import sse
from cloister.s3.actions import operation
from cloister.s3.address import check_bucket_name, decode_query, encode_path, encode_query, locate
from cloister.wire.errors import AwsError

TABLE = [
    ("GET", None, "", {}, {}, "ListBuckets", ["s3:ListAllMyBuckets *"]),
    ("GET", "b", "", {"list-type": "2"}, {}, "ListObjectsV2", ["s3:ListBucket b"]),
    ("HEAD", "b", "", {}, {}, "HeadBucket", ["s3:ListBucket b"]),
    ("GET", "b", "k", {}, {}, "GetObject", ["s3:GetObject b/k"]),
    ("HEAD", "b", "k", {"versionId": "1"}, {}, "HeadObject", ["s3:GetObjectVersion b/k"]),
    (
        "PUT",
        "b",
        "k",
        {},
        {"x-amz-tagging": "a=b"},
        "PutObject",
        ["s3:PutObject b/k", "s3:PutObjectTagging b/k"],
    ),
    (
        "PUT",
        "b",
        "k",
        {},
        {"x-amz-copy-source": "/s/%41"},
        "CopyObject",
        ["s3:PutObject b/k", "s3:GetObject s/A"],
    ),
    ("PUT", "b", "k", {"partNumber": "1", "uploadId": "u"}, {}, "UploadPart", ["s3:PutObject b/k"]),
    ("DELETE", "b", "k", {"uploadId": "u"}, {}, "AbortMultipartUpload", ["s3:AbortMultipartUpload b/k"]),
    ("PUT", "b", "", {"policy": ""}, {}, "PutBucketPolicy", ["s3:PutBucketPolicy b"]),
    (
        "GET",
        "b",
        "k",
        {"attributes": ""},
        {},
        "GetObjectAttributes",
        ["s3:GetObjectAttributes b/k", "s3:GetObject b/k"],
    ),
    ("GET", "b", "", {"encryption": ""}, {}, "GetBucketEncryption", ["s3:GetEncryptionConfiguration b"]),
    ("PUT", "b", "k", {}, {sse.ALGORITHM: "aws:kms"}, "PutObject", ["s3:PutObject b/k"]),
    (
        "PUT",
        "b",
        "k",
        {},
        {sse.KEY: "1-2"},
        "PutObject",
        ["s3:PutObject b/k", "kms:GenerateDataKey arn:aws:kms:eu-west-1:1:key/1-2"],
    ),
    (
        "POST",
        "b",
        "k",
        {"uploads": ""},
        {sse.KEY: "arn:aws:kms:r:2:key/k"},
        "CreateMultipartUpload",
        [
            "s3:PutObject b/k",
            "kms:GenerateDataKey arn:aws:kms:r:2:key/k",
            "kms:Decrypt arn:aws:kms:r:2:key/k",
        ],
    ),
]


@pytest.mark.parametrize(("method", "bucket", "key", "query", "headers", "name", "needs"), TABLE)
def test_a_request_needs_what_aws_documents(
    method: str, bucket: str | None, key: str, query: dict[str, str], headers: dict[str, str], name: str,
    needs: list[str],
) -> None:  # fmt: skip
    found = operation(method, bucket, key, query, headers, region="eu-west-1", account="1")
    assert found.name == name
    assert [f"{each.action} {each.resource.removeprefix('arn:aws:s3:::')}" for each in found.needs] == needs


#: operations that a request cannot be told from, or that have another name too
_SAME = {
    "GetBucketLifecycle": "GetBucketLifecycleConfiguration",
    "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
    "DeleteBucketLifecycle": "DeleteBucketLifecycleConfiguration",
    "GetBucketNotification": "GetBucketNotificationConfiguration",
    "PutBucketNotification": "PutBucketNotificationConfiguration",
    "ListBucketAnalyticsConfigurations": "GetBucketAnalyticsConfiguration",
    "ListBucketIntelligentTieringConfigurations": "GetBucketIntelligentTieringConfiguration",
    "ListBucketInventoryConfigurations": "GetBucketInventoryConfiguration",
    "ListBucketMetricsConfigurations": "GetBucketMetricsConfiguration",
    "ListObjectAnnotations": "GetObjectAnnotation",
    "ListDirectoryBuckets": "ListBuckets",
}
_S3 = botocore.session.get_session().get_service_model("s3")


@pytest.mark.parametrize("name", [each for each in _S3.operation_names if each != "WriteGetObjectResponse"])
def test_no_operation_of_s3_is_taken_for_another(name: str) -> None:
    model = _S3.operation_model(name)
    path, _, text = model.http["requestUri"].partition("?")
    query = decode_query(text)
    for member in model.input_shape.required_members if model.input_shape else ():
        shape = model.input_shape.members[member]
        if shape.serialization.get("location") == "querystring":
            query[shape.serialization["name"]] = "1"
    bucket, key = ("b" if "{Bucket}" in path else None), ("k" if "{Key" in path else "")
    headers = {"x-amz-copy-source": "s/k"} if name.endswith("Copy") or name == "CopyObject" else {}
    try:
        found = operation(
            model.http["method"], bucket, key, query, headers, region="eu-west-1", account="1"
        ).name
    except AwsError as error:
        found = error.message.rpartition(" implement s3 ")[2].rstrip(".")
    assert found == _SAME.get(name, name)


def test_what_is_not_implemented_says_its_name() -> None:
    with pytest.raises(AwsError, match="PutBucketWebsite") as caught:
        operation("PUT", "b", "", {"website": ""}, {}, region="eu-west-1", account="1")
    assert caught.value.status == 501
    with pytest.raises(AwsError, match="MethodNotAllowed"):
        operation("POST", "b", "k", {"tagging": ""}, {}, region="eu-west-1", account="1")


@pytest.mark.parametrize(
    ("host", "path", "found"),
    [
        ("s3.us-east-1.amazonaws.com", "/b/k", ("b", "k")),
        ("s3-us-east-1.amazonaws.com", "/b/k", ("b", "k")),
        ("s3.amazonaws.com", "/b", ("b", "")),
        ("b.s3.us-east-1.amazonaws.com:443", "/k/l", ("b", "k/l")),
        ("a.b.s3-us-west-2.amazonaws.com", "/k", ("a.b", "k")),
        ("b.s3.dualstack.us-east-1.amazonaws.com", "/", ("b", "")),
        ("127.0.0.1:4566", "/b/%2e%2e/x", ("b", "../x")),
        ("own.us-east-1.amazonaws.com", "/2/x", ("own.us-east-1.amazonaws.com", "2/x")),
    ],
)
def test_host_and_path_tell_bucket_and_key(host: str, path: str, found: tuple[str, str]) -> None:
    assert locate(host, path, lambda name: name == "own.us-east-1.amazonaws.com") == found


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("s3.us-east-1.amazonaws.com", ("b", "k")),
        ("s3-us-east-1.amazonaws.com", ("b", "k")),
        ("s3.amazonaws.com:443", ("b", "k")),
        ("s3.dualstack.us-east-1.amazonaws.com.", ("b", "k")),
        ("data.s3.us-east-1.amazonaws.com", ("data", "b/k")),
        ("DATA.s3-us-east-1.amazonaws.com", ("data", "b/k")),
        ("data.bucket.vpce-0a-1b.s3.us-east-1.vpce.amazonaws.com", ("data", "b/k")),
        ("bucket.vpce-0a-1b.s3.us-east-1.vpce.amazonaws.com", ("b", "k")),
        ("vpce-0a-1b.s3.us-east-1.vpce.amazonaws.com", ("b", "k")),
        ("localhost:4510", ("b", "k")),
        ("data.localhost", ("data", "b/k")),
    ],
)
def test_no_bucket_takes_a_name_of_s3_or_of_another_bucket_by_being_called_so(
    host: str, found: tuple[str, str]
) -> None:
    assert locate(host, "/b/k", lambda _: True) == found


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_every_key_survives_being_encoded(key: str) -> None:
    assert locate("s3.amazonaws.com", encode_path("b", key), lambda _: False) == ("b", key)
    assert decode_query(encode_query({"prefix": key})) == {"prefix": key}


@pytest.mark.parametrize("name", ["ab", "Ab-c", "a..b", "1.2.3.4", "-ab", "a" * 64, "xn--abc", "a_b"])
def test_bad_bucket_names_are_refused(name: str) -> None:
    with pytest.raises(AwsError, match="InvalidBucketName"):
        check_bucket_name(name)
