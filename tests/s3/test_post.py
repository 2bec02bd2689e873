"""Forms that browsers send, and URLs whose headers are in their query."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.s3.conftest import REGION, Site
from tests.s3.test_checksums import checksum
from tests.s3.test_door import raw

Make = Callable[[], str]
BOUNDARY = "xYzZy"


def form(fields: dict[str, str], file: bytes, *, after: str = "", filename: str = "a b.txt") -> bytes:
    lines = "".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
    return (
        (lines + head + "Content-Type: text/plain\r\n\r\n").encode()
        + file
        + f"\r\n{after}--{BOUNDARY}--\r\n".encode()
    )


def send(site: Site, bucket: str, body: bytes, **more: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    try:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **more}
        connection.request("POST", f"/{bucket}", body, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def presigned(site: Site, bucket: str, key: str, keys: Any = None, **how: Any) -> dict[str, str]:
    fields: dict[str, str] = site.client(keys, signature_version="s3v4").generate_presigned_post(
        bucket, key, **how
    )["fields"]
    return fields


@pytest.mark.parametrize("size", [0, 5, (3 << 20) + 1])
def test_a_form_puts_its_file(site: Site, bucket: Make, size: int) -> None:
    s3, name = site.client(), bucket()
    fields = presigned(
        site, name, "up/${filename}", Fields={"x-amz-meta-who": "me", "Content-Type": "text/x"},
        Conditions=[{"x-amz-meta-who": "me"}, ["starts-with", "$Content-Type", "text/"],
                    ["content-length-range", 0, 4 << 20]],
    )  # fmt: skip
    data = (b"--" + BOUNDARY.encode()[:3] + b"\r\n") * (size // 7) + b"x" * (size % 7)
    status, headers, _ = send(site, name, form(fields, data))
    got = s3.get_object(Bucket=name, Key="up/a b.txt")
    assert (status, headers["etag"], got["Body"].read()) == (204, got["ETag"], data)
    assert (got["Metadata"], got["ContentType"]) == ({"who": "me"}, "text/x")
    assert headers["location"].endswith(f"/{name}/up/a%20b.txt")


def test_a_form_says_how_it_is_answered(site: Site, bucket: Make) -> None:
    name = bucket()
    for how, status in (("200", 200), ("201", 201), ("204", 204), ("999", 204)):
        fields = presigned(site, name, "a&b", Fields={"success_action_status": how},
                           Conditions=[{"success_action_status": how}])  # fmt: skip
        answer = send(site, name, form(fields, b"x", after=""))
        assert answer[0] == status
    fields = presigned(site, name, "a&b", Fields={"success_action_status": "201"},
                       Conditions=[{"success_action_status": "201"}])  # fmt: skip
    body = send(site, name, form(fields, b"x"))[2]
    assert f"<Bucket>{name}</Bucket><Key>a&amp;b</Key>".encode() in body
    there = {"success_action_redirect": "https://example.com/done?x=1"}
    fields = presigned(site, name, "a&b", Fields=there, Conditions=[there])
    status, headers, _ = send(site, name, form(fields, b"x"))
    assert (
        status,
        headers["location"].startswith(f"https://example.com/done?x=1&bucket={name}&key=a%26b"),
    ) == (303, True)


def test_a_form_must_be_as_its_policy_says(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    other = bucket()
    fields = presigned(
        site, name, "k", Conditions=[["content-length-range", 2, 4], ["starts-with", "$acl", ""]]
    )
    old = presigned(site, name, "k", ExpiresIn=-10)
    wrong = fields | {"x-amz-signature": "0" * 64}
    nobody = fields | {"x-amz-credential": fields["x-amz-credential"].replace("AKIA", "AKIB")}
    for sent, data, where, status, told in (
        (fields, b"x", name, 400, b"EntityTooSmall"),
        (fields, b"12345", name, 400, b"EntityTooLarge"),
        (fields | {"key": "other"}, b"123", name, 403, b"Policy Condition failed"),
        (fields, b"123", other, 403, b"Policy Condition failed"),
        (fields | {"x-amz-meta-a": "b"}, b"123", name, 403, b"Extra input fields: x-amz-meta-a"),
        (old, b"123", name, 403, b"Policy expired"),
        (wrong, b"123", name, 403, b"SignatureDoesNotMatch"),
        (nobody, b"123", name, 403, b"InvalidAccessKeyId"),
        (fields | {"policy": "e30="}, b"123", name, 403, b"SignatureDoesNotMatch"),
        (fields | {"acl": "public-read"}, b"123", name, 400, b"AccessControlListNotSupported"),
        ({"key": "k"}, b"123", name, 403, b"AccessDenied"),
        ({"key": "k", "AWSAccessKeyId": "a", "signature": "b"}, b"", name, 400, b"AWS4-HMAC-SHA256"),
    ):
        answer = send(site, where, form(sent, data))
        assert (answer[0], told in answer[2]) == (status, True), answer
    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    for body in (b"", b"nonsense", form(fields, b"123")[:-20], form({}, b"")[:30]):
        answer = send(site, name, body)
        assert answer[0] == 400, answer
    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    assert raw(site, "POST", f"/{name}", b"x")[0] == 412


def test_a_form_cannot_do_more_than_put_its_file(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="secret", Body=b"hidden")
    copy = {"x-amz-copy-source": f"/{name}/secret"}
    fields = presigned(site, name, "k", Fields=copy, Conditions=[copy])
    status, _, body = send(site, name, form(fields, b"x"))
    assert (status, b"x-amz-copy-source" in body) == (501, True)
    broken = {"x-amz-meta-a": "b\r\nx-amz-copy-source: /" + name + "/secret"}
    fields = presigned(site, name, "k", Fields=broken, Conditions=[["starts-with", "$x-amz-meta-a", ""]])
    assert send(site, name, form(fields, b"x"))[0] == 400
    reader = {"Effect": "Allow", "Action": "s3:Get*", "Resource": "*"}
    keys = site.role("reader", json.dumps({"Statement": [reader]}))
    assert send(site, name, form(presigned(site, name, "k", keys), b"x"))[0] == 403
    writer = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "*"}
    when = {"Condition": {"StringEquals": {"s3:authType": "POST"}}}
    keys = site.role("writer", json.dumps({"Statement": [writer | when]}))
    tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
    assert send(site, name, form(presigned(site, name, "k", keys), b"x"))[0] == 204
    fields = presigned(site, name, "k", keys, Fields={"tagging": tags}, Conditions=[{"tagging": tags}])
    assert send(site, name, form(fields, b"x"))[0] == 403
    fields = presigned(site, name, "k", Fields={"tagging": tags}, Conditions=[{"tagging": tags}])
    assert send(site, name, form(fields, b"x"))[0] == 204
    assert s3.get_object_tagging(Bucket=name, Key="k")["TagSet"] == [{"Key": "a", "Value": "b"}]
    value = checksum("CRC64NVME", b"other")
    named = {"x-amz-checksum-crc64nvme": value}
    fields = presigned(site, name, "sum", Fields=named, Conditions=[named])
    status, _, body = send(site, name, form(fields, b"x"))
    assert (status, b"BadDigest" in body) == (400, True)
    assert send(site, name, form(fields, b"other"))[0] == 204


def by_url(site: Site, method: str, path: str, query: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """Presigned with `query` in it, as the SDKs for JavaScript and Go write headers."""
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    request = AWSRequest(method, f"http://127.0.0.1:{site.port}{path}?{text}")
    root = site.credentials
    S3SigV4QueryAuth(
        Credentials(root.root_access_key_id, root.root_secret_access_key), "s3", REGION, 60
    ).add_auth(request)
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    try:
        connection.request(method, request.url.partition(f":{site.port}")[2], body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_headers_in_a_presigned_url_are_headers(site: Site, bucket: Make) -> None:
    s3, path = site.client(), f"/{bucket()}/k"
    which = {"Bucket": path.split("/")[1], "Key": "k"}
    asked = {
        "x-amz-meta-who": "me",
        "X-Amz-Tagging": "a=b",
        "x-amz-checksum-crc32": checksum("CRC32", b"body"),
    }
    assert by_url(site, "PUT", path, asked, b"body")[0] == 200
    assert s3.head_object(**which)["Metadata"] == {"who": "me"}
    assert s3.get_object_tagging(**which)["TagSet"] == [{"Key": "a", "Value": "b"}]
    status, body = by_url(site, "PUT", path, asked, b"other")
    assert (status, b"BadDigest" in body) == (400, True)
    assert by_url(site, "PUT", path, {"x-amz-acl": "public-read"}, b"x")[0] == 400
    status, body = by_url(site, "PUT", path, {"x-amz-server-side-encryption": "aws:fsx"}, b"x")
    assert (status, b"aws:fsx" in body) == (501, True)
    status, body = by_url(site, "PUT", path, {"x-amz-meta-a": "b\r\nx: y"}, b"x")
    assert (status, b"InvalidArgument" in body) == (400, True)
    assert s3.get_object(**which)["Body"].read() == b"body"


def test_a_trailer_that_cannot_come_is_no_checksum(site: Site, bucket: Make) -> None:
    headers = (("x-amz-trailer", "x-amz-checksum-crc32c"),)
    status, told, _ = raw(site, "PUT", f"/{bucket()}/k", b"body", headers=headers)
    assert (status, told["x-amz-checksum-crc32c"]) == (200, checksum("CRC32C", b"body"))
