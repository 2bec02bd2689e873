"""Settings of buckets: kept and done, or refused by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.s3.conftest import Site
from tests.s3.test_door import code, raw

from cloister.s3 import expiry, lifecycle
from cloister.wire.errors import AwsError

Make = Callable[[], str]
DAY = 86_400
AES = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": True}


def test_encryption_is_aes256_and_nothing_else(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()

    def rules() -> Any:
        return s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]

    assert rules() == [{**AES, "BucketKeyEnabled": False}]
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [AES]})
    assert rules() == [AES]
    kms = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}]}
    wanted = "Cloister does not implement SSEAlgorithm aws:kms"
    with pytest.raises(Exception, match=wanted):
        s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration=kms)
    s3.delete_bucket_encryption(Bucket=name)
    assert rules() == [{**AES, "BucketKeyEnabled": False}]
    how = {"ServerSideEncryption": "AES256"}
    assert s3.put_object(Bucket=name, Key="k", Body=b"", **how)["ServerSideEncryption"] == "AES256"
    assert s3.head_object(Bucket=name, Key="k")["ServerSideEncryption"] == "AES256"


def test_versioning_can_be_suspended_and_not_enabled(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    assert "Status" not in s3.get_bucket_versioning(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Suspended"
    enable = {"Status": "Enabled"}
    assert (
        code(lambda: s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=enable))
        == "NotImplemented"
    )


def test_what_is_not_set_can_be_deleted_and_what_says_nothing_be_put(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    for what in (
        "cors",
        "encryption",
        "lifecycle",
        "ownership_controls",
        "policy",
        "replication",
        "tagging",
        "website",
    ):
        answer = getattr(s3, f"delete_bucket_{what}")(Bucket=name)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration={})
    s3.put_bucket_logging(Bucket=name, BucketLoggingStatus={})
    s3.put_bucket_request_payment(Bucket=name, RequestPaymentConfiguration={"Payer": "BucketOwner"})
    s3.put_bucket_accelerate_configuration(Bucket=name, AccelerateConfiguration={"Status": "Suspended"})
    topic = {"TopicArn": "arn:aws:sns:us-east-1:123456789012:t", "Events": ["s3:ObjectCreated:*"]}
    target = {"TargetBucket": name, "TargetPrefix": ""}
    for refused in (
        lambda: s3.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"TopicConfigurations": [topic]}
        ),
        lambda: s3.put_bucket_logging(Bucket=name, BucketLoggingStatus={"LoggingEnabled": target}),
        lambda: s3.put_bucket_request_payment(
            Bucket=name, RequestPaymentConfiguration={"Payer": "Requester"}
        ),
        lambda: s3.put_bucket_accelerate_configuration(
            Bucket=name, AccelerateConfiguration={"Status": "Enabled"}
        ),
    ):
        assert code(refused) == "NotImplemented"
    for kind in ("analytics", "inventory", "metrics", "intelligent_tiering"):
        listed = getattr(s3, f"list_bucket_{kind}_configurations")(Bucket=name)
        assert listed["IsTruncated"] is False
        get = getattr(s3, f"get_bucket_{kind}_configuration")
        assert code(lambda get=get: get(Bucket=name, Id="one")) == "NoSuchConfiguration"


# -- CORS ---------------------------------------------------------------------------------------------------

RULES = {
    "CORSRules": [
        {"AllowedOrigins": ["https://*.example.com"], "AllowedMethods": ["PUT", "GET"],
         "AllowedHeaders": ["x-amz-*"], "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 30},
        {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]},
    ]
}  # fmt: skip


def asks(
    site: Site, path: str, origin: str, method: str, headers: str = ""
) -> tuple[int, dict[str, str], bytes]:
    asked = (("Origin", origin), ("Access-Control-Request-Method", method))
    more = (("Access-Control-Request-Headers", headers),) if headers else ()
    return raw(site, "OPTIONS", path, headers=asked + more, anonymous=True)


def test_a_browser_is_told_what_the_bucket_s_rules_let_it_do(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    path, here = f"/{name}/k", "https://a.example.com"
    status, _, body = asks(site, path, here, "GET")
    assert (status, b"CORS is not enabled for this bucket" in body) == (403, True)
    s3.put_bucket_cors(Bucket=name, CORSConfiguration=RULES)
    assert s3.get_bucket_cors(Bucket=name)["CORSRules"] == RULES["CORSRules"]
    status, headers, _ = asks(site, path, here, "PUT", "X-Amz-Date, x-amz-acl")
    told = {name.removeprefix("access-control-"): value for name, value in headers.items()}
    assert (status, told["allow-origin"], told["allow-methods"]) == (200, here, "PUT, GET")
    assert (told["allow-headers"], told["expose-headers"], told["max-age"]) == (
        "x-amz-date, x-amz-acl",
        "ETag",
        "30",
    )
    assert (told["allow-credentials"], "Origin" in headers["vary"]) == ("true", True)
    assert asks(site, path, "https://b.org", "GET")[1]["access-control-allow-origin"] == "*"
    for origin, method, wanted in (
        ("https://b.org", "PUT", ""),
        (here, "PUT", "content-type"),
        (here, "DELETE", ""),
    ):
        status, headers, body = asks(site, path, origin, method, wanted)
        assert (status, b"AccessForbidden" in body) == (403, True)
        assert "access-control-allow-origin" not in headers
    assert asks(site, path, here, "PATCH")[0] == 400
    # a request itself, and its refusal
    for method, status in (("PUT", 200), ("GET", 200)):
        answer = raw(site, method, path, b"", headers=(("Origin", here),))
        assert (answer[0], answer[1]["access-control-allow-origin"]) == (status, here)
    answer = raw(site, "GET", f"/{name}/none", headers=(("Origin", here),))
    assert (answer[0], answer[1]["access-control-allow-origin"]) == (404, here)
    assert "access-control-allow-origin" not in raw(site, "GET", path)[1]
    s3.delete_bucket_cors(Bucket=name)
    assert code(lambda: s3.get_bucket_cors(Bucket=name)) == "NoSuchCORSConfiguration"


@pytest.mark.parametrize(
    ("rule", "refused"),
    [
        ({"AllowedOrigins": ["*"], "AllowedMethods": ["PATCH"]}, "Unsupported method is PATCH"),
        ({"AllowedOrigins": ["http://*.*"], "AllowedMethods": ["GET"]}, "more than one wildcard"),
        ({"AllowedOrigins": ["*"], "AllowedMethods": ["GET"], "ExposeHeaders": ["x-*"]}, "contains wildcard"),
    ],
)
def test_rules_that_cannot_be_are_refused(
    site: Site, bucket: Make, rule: dict[str, Any], refused: str
) -> None:
    s3, name = site.client(), bucket()
    with pytest.raises(Exception, match=refused):
        s3.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": [rule]})


# -- lifecycle ----------------------------------------------------------------------------------------------


def test_objects_and_uploads_end_as_the_rules_say(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    rules = [
        {"ID": "old", "Filter": {"Prefix": "tmp/"}, "Status": "Enabled", "Expiration": {"Days": 2}},
        {"Filter": {"And": {"Prefix": "", "Tags": [{"Key": "keep", "Value": "no"}]}}, "Status": "Enabled",
         "Expiration": {"Days": 1}},
        {"Filter": {"ObjectSizeGreaterThan": 10}, "Status": "Enabled", "Expiration": {"Days": 5}},
        {"Filter": {"Prefix": "off/"}, "Status": "Disabled", "Expiration": {"Days": 1}},
        {"Filter": {"Prefix": "up/"}, "Status": "Enabled",
         "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
         "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
    ]  # fmt: skip
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    told = s3.get_bucket_lifecycle_configuration(Bucket=name)
    assert [each["ID"] for each in told["Rules"]] == ["old", "rule-2", "rule-3", "rule-4", "rule-5"]
    assert [{**each, "ID": ""} for each in told["Rules"]] == [{**each, "ID": ""} for each in rules]
    for key, tags in (
        ("tmp/a", ""),
        ("tmp0", ""),
        ("tagged", "keep=no"),
        ("other", "keep=yes"),
        ("off/x", ""),
        ("0[/a", ""),
    ):
        s3.put_object(Bucket=name, Key=key, Body=b"x", Tagging=tags)
    s3.put_object(Bucket=name, Key="large", Body=b"x" * 11)
    for key in ("up/1", "elsewhere"):
        s3.create_multipart_upload(Bucket=name, Key=key)
    parsed = lifecycle.parse(site.engine.world.get(expiry.Bucket, name).settings["lifecycle"].encode())
    now = site.engine.clock()

    def after(days: float) -> set[str]:
        site.run(expiry.carry_out(site.backend, name, parsed, now + days * DAY))
        return {each["Key"] for each in s3.list_objects_v2(Bucket=name)["Contents"]}

    everything = {"tmp/a", "tmp0", "tagged", "other", "off/x", "0[/a", "large"}
    assert after(0) == everything
    assert len(s3.list_multipart_uploads(Bucket=name)["Uploads"]) == 2
    assert after(2) == everything - {"tagged"}
    assert [each["Key"] for each in s3.list_multipart_uploads(Bucket=name)["Uploads"]] == ["elsewhere"]
    assert after(3) == everything - {"tagged", "tmp/a"}
    assert after(6) == {"tmp0", "other", "off/x", "0[/a"}


def test_an_object_that_was_written_over_meanwhile_stays(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=b"old")
    request = site.backend.request

    async def late(method: str, *rest: Any, **more: Any) -> Any:
        if method == "DELETE":
            async with await request("PUT", f"/{name}/k", "", (), b"new") as answer:
                assert answer.status == 200
        return await request(method, *rest, **more)

    site.backend.request = late  # type: ignore[method-assign]
    try:
        rules = (lifecycle.Rule(days=1),)
        assert site.run(expiry.carry_out(site.backend, name, rules, site.engine.clock() + 3 * DAY)) == 0
    finally:
        site.backend.request = request  # type: ignore[method-assign]
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"new"


def test_a_day_ends_at_midnight() -> None:
    rule = lifecycle.Rule(days=1)
    assert [rule.ends("k", 0, 0.5 * DAY, at * DAY) for at in (1.0, 1.9, 2.0)] == [False, False, True]
    assert [rule.ends("k", 0, 0.0, at * DAY) for at in (0.9, 1.0)] == [False, True]


@pytest.mark.parametrize(
    ("rule", "refused"),
    [
        (
            "<Filter/><Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>",
            "Transition",
        ),
        (
            "<Filter/><Expiration><Days>0</Days></Expiration>",
            "'Days' for Expiration action must be a positive",
        ),
        (
            "<Filter/><Expiration><Days>x</Days></Expiration>",
            "'Days' for Expiration action must be a positive",
        ),
        ("<Filter/><Expiration><Date>2030-01-01T01:00:00Z</Date></Expiration>", "midnight GMT"),
        ("<Filter/><Expiration><Date>tomorrow</Date></Expiration>", "MalformedXML"),
        ("<Filter/>", "At least one action"),
        ("<Filter><Prefix>a</Prefix><Tag/></Filter><Expiration><Days>1</Days></Expiration>", "MalformedXML"),
        ("<Filter/><Restore/><Expiration><Days>1</Days></Expiration>", "MalformedXML"),
    ],
)
def test_lifecycle_rules_that_are_not_done_are_refused(rule: str, refused: str) -> None:
    document = f"<LifecycleConfiguration><Rule><Status>Enabled</Status>{rule}</Rule></LifecycleConfiguration>"
    with pytest.raises(AwsError, match=refused):
        lifecycle.parse(document.encode())


# -- of objects ---------------------------------------------------------------------------------------------


def test_an_object_s_attributes_and_acl_are_told_to_who_may_know_them(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=b"12345", ChecksumAlgorithm="SHA1")
    asked = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]
    told = s3.get_object_attributes(Bucket=name, Key="k", ObjectAttributes=asked)
    assert (told["ObjectSize"], told["StorageClass"]) == (5, "STANDARD")
    assert told["ETag"] == s3.head_object(Bucket=name, Key="k")["ETag"].strip('"')
    assert told["Checksum"] == {"ChecksumSHA1": "jLIjfQZ5yojbZGTqxg2pY0VROWQ=", "ChecksumType": "FULL_OBJECT"}
    assert "ObjectParts" not in told
    told = s3.get_object_attributes(Bucket=name, Key="k", ObjectAttributes=["ObjectSize"])
    assert set(told) == {"LastModified", "ObjectSize", "ResponseMetadata"}
    owner = s3.get_bucket_acl(Bucket=name)
    acl = s3.get_object_acl(Bucket=name, Key="k")
    assert (acl["Owner"], acl["Grants"]) == (owner["Owner"], owner["Grants"])
    path = f"/{name}/k?attributes="
    for headers, wanted in (
        ((), b"is either missing or empty"),
        ((("x-amz-object-attributes", "Tags"),), b"Tags"),
    ):
        status, _, body = raw(site, "GET", path, headers=headers)
        assert (status, wanted in body) == (400, True)

    def reader(*actions: str) -> Any:
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        return site.client(site.role("reader", json.dumps({"Statement": [statement]})))

    def of(client: Any, key: str) -> str:
        return code(lambda: client.get_object_attributes(Bucket=name, Key=key, ObjectAttributes=asked))

    assert of(reader("s3:GetObject"), "k") == "AccessDenied"
    assert of(reader("s3:GetObjectAttributes"), "k") == "AccessDenied"
    assert of(reader("s3:GetObject*"), "none") == "AccessDenied"
    assert of(reader("s3:GetObject*", "s3:ListBucket"), "none") == "NoSuchKey"
    assert code(lambda: s3.get_object_acl(Bucket=name, Key="none")) == "NoSuchKey"


def test_the_parts_of_an_object_are_told(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    began = s3.create_multipart_upload(
        Bucket=name, Key="k", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    other = {"Bucket": name, "Key": "k", "UploadId": began["UploadId"], "PartNumber": 1}
    with pytest.raises(Exception, match="Checksum Type mismatch occurred"):
        s3.upload_part(**other, Body=b"x", ChecksumAlgorithm="SHA1")
    parts = []
    for number, data in enumerate((bytes(5 << 20), b"end"), 1):
        which = {"Bucket": name, "Key": "k", "UploadId": began["UploadId"], "PartNumber": number}
        done = s3.upload_part(**which, Body=data)
        parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumCRC32": done["ChecksumCRC32"]})
    s3.complete_multipart_upload(
        Bucket=name,
        Key="k",
        UploadId=began["UploadId"],
        MultipartUpload={"Parts": parts},
        ChecksumType="FULL_OBJECT",
    )
    told = s3.get_object_attributes(Bucket=name, Key="k", ObjectAttributes=["ObjectParts", "Checksum"])
    assert told["Checksum"]["ChecksumType"] == "FULL_OBJECT"
    assert told["ObjectParts"]["TotalPartsCount"] == 2
    assert [each["Size"] for each in told["ObjectParts"]["Parts"]] == [5 << 20, 3]
    got = s3.get_object(Bucket=name, Key="k", PartNumber=2)
    assert (got["Body"].read(), got["PartsCount"], got["ContentRange"]) == (
        b"end",
        2,
        "bytes 5242880-5242882/5242883",
    )
    s3.put_object(Bucket=name, Key="one", Body=b"x")
    assert "PartsCount" not in s3.head_object(Bucket=name, Key="one", PartNumber=1)


def test_a_copy_takes_tags_along_only_for_who_may_read_and_write_them(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="tagged", Body=b"x", Tagging="a=b&open=yes")
    s3.put_object(Bucket=name, Key="plain", Body=b"x")
    copying = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "*"}
    writes = {**copying, "Action": "s3:PutObjectTagging"}
    reads = {**copying, "Action": "s3:GetObjectTagging"}
    reads_open = {**reads, "Condition": {"StringEquals": {"s3:ExistingObjectTag/open": "yes"}}}
    reads_other = {**reads, "Condition": {"StringEquals": {"s3:ExistingObjectTag/open": "no"}}}
    for more, allowed in (
        ((), False), ((writes,), False), ((reads,), False), ((reads, writes), True),
        ((reads_open, writes), True), ((reads_other, writes), False),
    ):  # fmt: skip
        client = site.client(site.role("copier", json.dumps({"Statement": [copying, *more]})))

        def copy(key: str, client: Any = client, **how: Any) -> Any:
            return client.copy_object(Bucket=name, Key="copy", CopySource={"Bucket": name, "Key": key}, **how)

        copy("plain")
        copy("tagged", TaggingDirective="REPLACE")
        assert s3.get_object_tagging(Bucket=name, Key="copy")["TagSet"] == []
        if allowed:
            copy("tagged")
            assert len(s3.get_object_tagging(Bucket=name, Key="copy")["TagSet"]) == 2
        else:
            assert code(lambda copy=copy: copy("tagged")) == "AccessDenied"
    only = site.client(site.role("only", json.dumps({"Statement": [copying]})))
    assert "TagCount" not in only.get_object(Bucket=name, Key="tagged")
    assert s3.get_object(Bucket=name, Key="tagged")["TagCount"] == 2
