"""Checksums of objects: checked while they come, kept by the store, given back."""

from __future__ import annotations

import base64
import hashlib
import http.client
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import awscrt.checksums
import pytest
from tests.s3.conftest import REGION, Site
from tests.s3.test_door import raw

from cloister.s3 import checksums
from cloister.wire import sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

Make = Callable[[], str]


def checksum(name: str, data: bytes) -> str:
    if name == "CRC32":
        return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    if name.startswith("SHA"):
        return base64.b64encode(hashlib.new(name.lower(), data).digest()).decode()
    size, crc = {"CRC32C": (4, awscrt.checksums.crc32c), "CRC64NVME": (8, awscrt.checksums.crc64nvme)}[name]
    return base64.b64encode(crc(data).to_bytes(size, "big")).decode()


def put_with_trailer(
    site: Site, path: str, data: bytes, name: str, value: str, *, chunk: int = 1 << 16
) -> tuple[int, dict[str, str], bytes]:
    """As the SDKs do over HTTPS: an unsigned body in chunks, its checksum behind."""
    trailer = f"x-amz-checksum-{name.lower()}"
    chunks = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (*chunks, b""))
    body = body.removesuffix(b"\r\n") + f"{trailer}:{value}\r\n\r\n".encode()
    bare, _, query = path.partition("?")
    headers = sigv4.sign(
        HttpRequest(
            method="PUT", path=bare, query=query,
            headers=(
                ("Host", f"127.0.0.1:{site.port}"), ("content-encoding", "aws-chunked"),
                ("x-amz-trailer", trailer), ("x-amz-decoded-content-length", str(len(data))),
                ("x-amz-sdk-checksum-algorithm", name),
            ),
        ),
        access_key=site.credentials.root_access_key_id, secret=site.credentials.root_secret_access_key,
        region=REGION, service="s3", now=time.time(), payload_hash=sigv4.STREAMING_UNSIGNED_TRAILER,
    )  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    try:
        connection.request("PUT", path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


DATA = bytes(range(256)) * 40
WANTED = (("x-amz-checksum-mode", "ENABLED"),)


@pytest.mark.parametrize("name", checksums.ALGORITHMS)
def test_a_checksum_is_checked_kept_and_given_back(site: Site, bucket: Make, name: str) -> None:
    path, header = f"/{bucket()}/k", f"x-amz-checksum-{name.lower()}"
    right, wrong = checksum(name, DATA), checksum(name, DATA[1:])
    for put in (
        lambda value: raw(site, "PUT", path, DATA, headers=((header, value),)),
        lambda value: put_with_trailer(site, path, DATA, name, value),
    ):
        status, _, body = put(wrong)
        assert (status, b"<Code>BadDigest</Code>" in body, f"The {name} ".encode() in body) == (
            400,
            True,
            True,
        )
        assert raw(site, "HEAD", path)[0] == 404
        status, headers, body = put("AAAA")
        assert (status, f"Value for {header} header is invalid".encode() in body) == (400, True)
        status, headers, _ = put(right)
        assert (status, headers[header], headers["x-amz-checksum-type"]) == (200, right, "FULL_OBJECT")
        for method in ("GET", "HEAD"):
            status, headers, body = raw(site, method, path, headers=WANTED)
            assert (status, headers[header], headers["x-amz-checksum-type"]) == (200, right, "FULL_OBJECT")
            assert body == (DATA if method == "GET" else b"")
            assert header not in raw(site, method, path)[1]
        assert "content-encoding" not in headers
        assert header not in raw(site, "GET", path, headers=(*WANTED, ("Range", "bytes=0-1")))[1]
        raw(site, "DELETE", path)


@pytest.mark.parametrize("size", [0, 1 << 20, (1 << 20) + 1, 9 << 20])
def test_an_object_of_any_size_comes_with_its_checksum(site: Site, bucket: Make, size: int) -> None:
    path, data = f"/{bucket()}/k", bytes(size)
    value = raw(site, "PUT", path, data)[1]["x-amz-checksum-crc64nvme"]
    assert value == checksum("CRC64NVME", data)
    for trailer in ("CRC64NVME", "CRC32"):
        if trailer == "CRC32":
            value = checksum(trailer, data)
        assert put_with_trailer(site, path, data, trailer, value)[0] == 200
        status, headers, body = raw(site, "GET", path, headers=WANTED)
        assert (status, headers[f"x-amz-checksum-{trailer.lower()}"]) == (200, value)
        assert (headers["content-length"], body) == (str(size), data)


@contextmanager
def upload(site: Site, path: str, *headers: tuple[str, str]) -> Iterator[str]:
    body = raw(site, "POST", f"{path}?uploads=", headers=headers)[2].decode()
    yield body.partition("<UploadId>")[2].partition("<")[0]


@pytest.mark.parametrize(("name", "kind"), [("CRC64NVME", "FULL_OBJECT"), ("CRC32C", "COMPOSITE")])
def test_an_upload_in_parts_has_the_checksum_it_was_begun_with(
    site: Site, bucket: Make, name: str, kind: str
) -> None:
    path, data = f"/{bucket()}/k", [bytes(5 << 20), b"end"]
    begin = (("x-amz-checksum-algorithm", name), ("x-amz-checksum-type", kind))
    with upload(site, path, *begin) as upload_id:
        parts = ""
        for number, each in enumerate(data, 1):
            where = f"{path}?partNumber={number}&uploadId={upload_id}"
            told = raw(site, "PUT", where, each)[1][f"x-amz-checksum-{name.lower()}"]
            status, headers, _ = put_with_trailer(site, where, each, name, told)
            assert status == 200
            parts += (
                f"<Part><PartNumber>{number}</PartNumber><ETag>{headers['etag']}</ETag>"
                f"<Checksum{name}>{told}</Checksum{name}></Part>"
            )
        document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        size = (("x-amz-checksum-type", kind), ("x-amz-mp-object-size", str((5 << 20) + 3)))
        status, _, body = raw(site, "POST", f"{path}?uploadId={upload_id}", document, headers=size)
    assert (status, f"<ChecksumType>{kind}</ChecksumType>" in body.decode()) == (200, True), body
    value = body.decode().partition(f"<Checksum{name}>")[2].partition("<")[0]
    assert value.endswith("-2") == (kind == "COMPOSITE")
    headers = raw(site, "HEAD", path, headers=WANTED)[1]
    assert headers[f"x-amz-checksum-{name.lower()}"] == value
    assert headers["x-amz-checksum-type"] == kind


def test_a_document_s_checksum_is_checked_whichever_it_is(site: Site, bucket: Make) -> None:
    path = f"/{bucket()}?tagging="
    body = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
    for name in checksums.ALGORITHMS:
        header = f"x-amz-checksum-{name.lower()}"
        assert raw(site, "PUT", path, body, headers=((header, checksum(name, body)),))[0] == 204
        status, _, told = raw(site, "PUT", path, body, headers=((header, checksum(name, b"")),))
        assert (status, b"BadDigest" in told) == (400, True)


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        (
            {"x-amz-checksum-crc32": "a", "x-amz-checksum-sha1": "b"},
            "Expecting a single x-amz-checksum- header",
        ),
        ({"x-amz-checksum-crc32": "a", "x-amz-trailer": "x-amz-checksum-sha1"}, "Expecting a single"),
        ({"x-amz-checksum-md4": "a"}, "you specified in x-amz-checksum- header is invalid"),
        ({"x-amz-checksum-xxhash64": "a"}, "Cloister does not implement the checksum algorithm XXHASH64"),
        ({"x-amz-trailer": "x-amz-checksum-sha512"}, "the checksum algorithm SHA512"),
        (
            {"x-amz-checksum-crc32": "a", "x-amz-sdk-checksum-algorithm": "SHA1"},
            "x-amz-sdk-checksum-algorithm",
        ),
    ],
)
def test_checksums_that_cannot_be_are_refused(headers: dict[str, str], refused: str) -> None:
    with pytest.raises(AwsError, match=refused):
        checksums.asked("PutObject", headers, computes=True)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("SHA1", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), ("", "COMPOSITE"), ("CRC32", "X")],
)
def test_a_type_that_an_algorithm_cannot_have_is_refused(algorithm: str, kind: str) -> None:
    headers = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind}
    with pytest.raises(AwsError, match="InvalidRequest"):
        checksums.asked("CreateMultipartUpload", headers, computes=True)


def test_another_store_is_told_what_any_store_understands() -> None:
    headers = {"x-amz-checksum-crc32": "AAAAAA=="}
    assert checksums.asked("PutObject", headers, computes=False) == headers
    assert checksums.asked("PutObject", {}, computes=False) == {}
