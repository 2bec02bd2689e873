"""What breaks half-way or is refused at the door before anything is done."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError
from tests.s3.conftest import REGION, Site

from cloister.wire import sigv4
from cloister.wire.http import HttpRequest

Make = Callable[[], str]
SIZE = 64 << 20


@pytest.mark.parametrize("secure", [False, True], ids=["spliced", "over TLS"])
def test_a_store_that_dies_under_a_download_breaks_it_and_never_makes_it_look_whole(
    site: Site, bucket: Make, secure: bool
) -> None:
    s3, name = site.client(signature_version="s3v4"), bucket()
    s3.put_object(Bucket=name, Key="k", Body=bytes(SIZE))
    port = site.tls_port if secure else site.port
    head = sigv4.sign(
        HttpRequest(method="GET", path=f"/{name}/k", headers=(("Host", f"127.0.0.1:{port}"),)),
        access_key=site.credentials.root_access_key_id,
        secret=site.credentials.root_secret_access_key,
        region=REGION,
        service="s3",
        now=time.time(),
    )
    if secure:
        context = ssl._create_unverified_context()  # the door's own authority, by address
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=30, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/{name}/k", headers=dict(head))
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Length")) == (200, str(SIZE))
    assert len(answer.read(1 << 20)) == 1 << 20
    assert site.backend.pid is not None
    os.kill(site.backend.pid, signal.SIGKILL)
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
        answer.read()
    connection.close()
    deadline = time.monotonic() + 20
    while True:  # and the next one is whole
        try:
            assert len(s3.get_object(Bucket=name, Key="k")["Body"].read()) == SIZE
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_client_that_expects_to_be_told_is_told_to_go_on_or_refused_before_it_sends(
    site: Site, bucket: Make
) -> None:
    name = bucket()
    for secret, first in (
        (site.credentials.root_secret_access_key, b"HTTP/1.1 100 "),
        ("wrong", b"HTTP/1.1 403 "),
    ):
        head = sigv4.sign(
            HttpRequest(method="PUT", path=f"/{name}/k", headers=(("Host", f"127.0.0.1:{site.port}"),)),
            access_key=site.credentials.root_access_key_id,
            secret=secret,
            region=REGION,
            service="s3",
            now=time.time(),
            payload_hash=sigv4.UNSIGNED_PAYLOAD,
        )
        lines = "".join(f"{key}: {value}\r\n" for key, value in head)
        # A store that another test just killed takes its time to have room for a new bucket.
        with socket.create_connection(("127.0.0.1", site.port), timeout=60) as client:
            ask = f"PUT /{name}/k HTTP/1.1\r\n{lines}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            client.sendall(ask.encode())
            told = client.recv(4096)
            assert told.startswith(first), told
            if first == b"HTTP/1.1 100 ":
                client.sendall(b"hello")
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    s3 = site.client()
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"hello"


def test_a_listing_of_more_than_a_thousand_keys_comes_in_pages(site: Site, bucket: Make) -> None:
    s3, name = site.client(max_pool_connections=1), bucket()
    for number in range(1005):
        s3.put_object(Bucket=name, Key=f"k/{number:04d}", Body=b"")
    first = s3.list_objects_v2(Bucket=name, Prefix="k/")
    assert (first["KeyCount"], first["IsTruncated"]) == (1000, True)
    second = s3.list_objects_v2(Bucket=name, Prefix="k/", ContinuationToken=first["NextContinuationToken"])
    keys = [each["Key"] for page in (first, second) for each in page["Contents"]]
    assert keys == [f"k/{number:04d}" for number in range(1005)]


@pytest.mark.parametrize(
    ("action", "resource", "fault"),
    [
        ("ec2:RunInstances", "arn:aws:s3:::{name}", "Policy has invalid action"),
        ("s3:GetObject", "arn:aws:s3:::another", "Policy has invalid resource"),
        ("s3:GetObject", "arn:aws:s3:::another-*/*", "Policy has invalid resource"),
        ("s3:GetObject", "arn:aws:s3:::{name}/*", None),
        ("*", "arn:aws:s3:::b-*", None),
        ("s3:*", "*", None),
    ],
)
def test_a_bucket_policy_is_about_s3_and_its_bucket(
    site: Site, bucket: Make, action: str, resource: str, fault: str | None
) -> None:
    s3, name = site.client(), bucket()
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": action,
        "Resource": resource.format(name=name),
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    if fault is None:
        s3.put_bucket_policy(Bucket=name, Policy=policy)
        s3.delete_bucket_policy(Bucket=name)
        return
    with pytest.raises(ClientError) as refused:
        s3.put_bucket_policy(Bucket=name, Policy=policy)
    assert refused.value.response["Error"]["Code"] == "MalformedPolicy"
    assert refused.value.response["Error"]["Message"] == fault
