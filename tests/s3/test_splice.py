"""Large objects over plain HTTP, which leave asyncio on their way down."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from tests.s3.conftest import Site

from cloister.s3 import splice

Make = Callable[[], str]


def test_large_objects_and_ranges_are_whole_and_their_connection_goes_on(
    site: Site, bucket: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, name = site.client(signature_version="s3v4"), bucket()
    data = os.urandom((20 << 20) + 7)
    s3.put_object(Bucket=name, Key="k", Body=data)
    copies: list[int] = []
    copy = splice._splice

    def counted(source: int, target: int, left: int) -> None:
        copies.append(left)
        copy(source, target, left)

    monkeypatch.setattr(splice, "_splice", counted)
    url = urlsplit(s3.generate_presigned_url("get_object", Params={"Bucket": name, "Key": "k"}))
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    for first, last in ((0, len(data) - 1), (5, len(data) - 3), (10, 19), (0, len(data) - 1)):
        connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={first}-{last}"})
        answer = connection.getresponse()
        assert answer.status == 206
        got = answer.read()
        assert hashlib.sha256(got).digest() == hashlib.sha256(data[first : last + 1]).digest()
    connection.close()
    assert len(copies) == 3


def test_a_client_that_hangs_up_ends_its_copy(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="k", Body=bytes(40 << 20))
    for _ in range(3):
        got = s3.get_object(Bucket=name, Key="k")["Body"]
        assert len(got.read(1 << 20)) == 1 << 20
        got.close()
    got = s3.get_object(Bucket=name, Key="k")["Body"].read()
    assert len(got) == 40 << 20
    for _ in range(100):
        if splice._free._value == splice.COPIES:
            break
        threading.Event().wait(0.05)
    assert splice._free._value == splice.COPIES
