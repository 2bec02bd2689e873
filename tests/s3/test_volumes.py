"""Large objects whose bytes come from the volume server of our own SeaweedFS."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.s3.conftest import Site

from cloister.s3 import splice, volumes
from cloister.s3.volumes import Chunk, chunks

Make = Callable[[], str]
ETAG = "cd573cfaace07e7949bc0c46028904ff"


def _entry(*listed: dict[str, Any], etag: str = ETAG) -> dict[str, Any]:
    return {
        "Extended": {"Seaweed-X-Amz-ETag": base64.b64encode(etag.encode()).decode()},
        "chunks": list(listed),
    }


A = {"file_id": "1,a", "size": 8, "e_tag": "", "fid": {}, "modified_ts_ns": 1}
B = {"file_id": "2,b", "offset": 8, "size": 4}


@pytest.mark.parametrize(
    ("entry", "start", "length", "found"),
    [
        (_entry(A, B), 0, 12, [Chunk("1,a", 0, 8, 8), Chunk("2,b", 0, 4, 4)]),
        (_entry(B, A), 3, 12, [Chunk("1,a", 3, 5, 8), Chunk("2,b", 0, 4, 4)]),
        (_entry(A, B), 8, 12, [Chunk("2,b", 0, 4, 4)]),
        (_entry(A, B), 0, 13, None),
        (_entry(A, B, etag="another"), 0, 12, None),
        (_entry(A, {**B, "offset": 7}), 0, 11, None),
        (_entry(A, {**B, "is_chunk_manifest": True}), 0, 12, None),
        (_entry(A, {**B, "cipher_key": "k"}), 0, 12, None),
        ({"Extended": None, "chunks": [A]}, 0, 8, None),
        ({**_entry(), "chunks": None}, 0, 8, None),
        ([], 0, 8, None),
    ],
)
def test_chunks_are_used_only_when_they_are_plainly_the_object(
    entry: Any, start: int, length: int, found: list[Chunk] | None
) -> None:
    assert chunks(entry, f'"{ETAG}"', start, length) == found


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what came from the volume server."""
    sizes: list[int] = []
    runs = volumes.Volumes.runs

    def counted(self: volumes.Volumes) -> Any:
        for end, size in runs(self):
            sizes.append(size)
            yield end, size

    monkeypatch.setattr(volumes.Volumes, "runs", counted)
    return sizes


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (4 << 20) + 1, (9 << 20) + 7])
@pytest.mark.parametrize("parts", [False, True], ids=["one PUT", "parts of 5 MiB"])
def test_objects_of_any_size_are_whole_with_their_own_head(
    site: Site, bucket: Make, monkeypatch: pytest.MonkeyPatch, size: int, parts: bool
) -> None:
    s3, name = site.client(), bucket()
    data, sizes = os.urandom(size), _counted(monkeypatch)
    if parts:
        upload = s3.create_multipart_upload(Bucket=name, Key="ä k", Metadata={"m": "1"})["UploadId"]
        step, done = 5 << 20, []
        for number, at in enumerate(range(0, size, step), 1):
            where = {"Bucket": name, "Key": "ä k", "UploadId": upload, "PartNumber": number}
            etag = s3.upload_part(**where, Body=data[at : at + step])["ETag"]
            done.append({"PartNumber": number, "ETag": etag})
        s3.complete_multipart_upload(Bucket=name, Key="ä k", UploadId=upload, MultipartUpload={"Parts": done})
    else:
        s3.put_object(Bucket=name, Key="ä k", Body=data, Metadata={"m": "1"})
    got = s3.get_object(Bucket=name, Key="ä k")
    head = s3.head_object(Bucket=name, Key="ä k")
    body = got["Body"].read()
    assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert "ContentRange" not in got
    assert got["ContentLength"] == head["ContentLength"] == size
    assert got["ETag"] == head["ETag"]
    assert got["Metadata"] == {"m": "1"}
    assert sum(sizes) == size - volumes.FIRST


def test_an_empty_object_and_one_that_did_not_change_are_answered_as_ever(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="empty", Body=b"")
    assert s3.get_object(Bucket=name, Key="empty")["Body"].read() == b""
    etag = s3.put_object(Bucket=name, Key="large", Body=bytes(5 << 20))["ETag"]
    with pytest.raises(s3.exceptions.ClientError) as refused:
        s3.get_object(Bucket=name, Key="large", IfNoneMatch=etag)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 304
    with pytest.raises(s3.exceptions.ClientError, match="PreconditionFailed"):
        s3.get_object(Bucket=name, Key="large", IfMatch='"0"')


def test_without_a_direct_way_the_rest_is_asked_of_the_gateway(
    site: Site, bucket: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, name = site.client(), bucket()
    data, sizes = os.urandom((9 << 20) + 7), _counted(monkeypatch)
    s3.put_object(Bucket=name, Key="k", Body=data)

    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(site.backend, "direct", none)
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == data
    assert sizes == []


def test_a_client_that_hangs_up_ends_the_reading_of_chunks(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=bytes(40 << 20))
    for _ in range(3):
        got = s3.get_object(Bucket=name, Key="k")["Body"]
        assert len(got.read(2 << 20)) == 2 << 20
        got.close()
    for _ in range(100):
        if splice._free._value == splice.COPIES:
            break
        threading.Event().wait(0.05)
    assert splice._free._value == splice.COPIES


def test_a_chunk_that_is_gone_breaks_the_connection_off(
    site: Site, bucket: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=bytes(9 << 20))
    listed = volumes.chunks

    def wrong(*asked: Any) -> list[Chunk]:
        found = listed(*asked) or []
        return [*found[:-1], Chunk("1,00000000000", 0, found[-1].size, found[-1].whole)]

    monkeypatch.setattr(volumes, "chunks", wrong)
    with pytest.raises(Exception, match=r"(?i)connection|incomplete|truncated|read"):
        s3.get_object(Bucket=name, Key="k")["Body"].read()
