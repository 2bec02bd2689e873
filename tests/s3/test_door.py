"""The door, driven by boto3 and by hand-made requests."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from tests.s3.conftest import ENDPOINT, REGION, Site

from cloister.wire import sigv4
from cloister.wire.http import HttpRequest

Make = Callable[[], str]


def code(action: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        action()
    return str(caught.value.response["Error"]["Code"])


def raw(
    site: Site,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    sent: bytes | None = None,
    vpc: bool = False,
    now: float | None = None,
    secret: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    anonymous: bool = False,
    keys: tuple[str, str, str | None] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One request signed by hand; `sent` is the body that really goes; `keys`, if not the root's."""
    access_key, own_secret, token = keys or (
        site.credentials.root_access_key_id,
        site.credentials.root_secret_access_key,
        None,
    )
    port = site.vpc_port if vpc else site.port
    bare, _, query = path.partition("?")
    base = (
        headers if any(n.lower() == "host" for n, _ in headers) else (("Host", f"127.0.0.1:{port}"), *headers)
    )
    signed = (
        base
        if anonymous
        else sigv4.sign(
            HttpRequest(method=method, path=bare, query=query, headers=base, body=body),
            access_key=access_key,
            secret=secret or own_secret,
            token=token,
            region=REGION,
            service="s3",
            now=now or time.time(),
        )
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in signed:
            connection.putheader(name, value)
        data = body if sent is None else sent
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        connection.send(data)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_an_object_comes_back_as_it_was_put(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="a/b c+d%é", Body=b"hello", Metadata={"who": "me"}, ContentType="text/x")
    got = s3.get_object(Bucket=name, Key="a/b c+d%é")
    assert got["Body"].read() == b"hello"
    assert got["Metadata"] == {"who": "me"}
    assert got["ContentType"] == "text/x"
    assert "seaweed" not in str(got["ResponseMetadata"]["HTTPHeaders"]).lower()
    assert s3.get_object(Bucket=name, Key="a/b c+d%é", Range="bytes=1-2")["Body"].read() == b"el"
    assert s3.head_object(Bucket=name, Key="a/b c+d%é")["ContentLength"] == 5
    s3.delete_object(Bucket=name, Key="a/b c+d%é")
    assert code(lambda: s3.get_object(Bucket=name, Key="a/b c+d%é")) == "NoSuchKey"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_every_checksum_that_clients_choose_by_themselves_is_taken(
    site: Site, bucket: Make, algorithm: str
) -> None:
    """AWS CLI 2 sends a CRC64NVME with every upload."""
    s3, name = site.client(request_checksum_calculation="when_supported"), bucket()
    content = bytes(range(256)) * 25_000  # two parts
    s3.put_object(Bucket=name, Key="one", Body=b"hello", ChecksumAlgorithm=algorithm)
    assert s3.get_object(Bucket=name, Key="one", ChecksumMode="ENABLED")["Body"].read() == b"hello"
    parts = TransferConfig(multipart_threshold=1 << 20, multipart_chunksize=5 << 20)
    extra = {"ChecksumAlgorithm": algorithm}
    s3.upload_fileobj(io.BytesIO(content), name, "many", ExtraArgs=extra, Config=parts)
    assert s3.get_object(Bucket=name, Key="many")["Body"].read() == content


def test_a_body_that_was_changed_is_refused_and_nothing_is_stored(site: Site, bucket: Make) -> None:
    name = bucket()
    for size in (10, 3_000_000):
        status, _, body = raw(site, "PUT", f"/{name}/k", b"a" * size, sent=b"a" * (size - 1) + b"b")
        assert status == 400
        assert b"XAmzContentSHA256Mismatch" in body
        assert raw(site, "GET", f"/{name}/k")[0] == 404
    assert raw(site, "PUT", f"/{name}/k", b"true")[0] == 200


def test_wrong_keys_old_signatures_and_strangers_are_refused(site: Site, bucket: Make) -> None:
    name = bucket()
    assert b"SignatureDoesNotMatch" in raw(site, "GET", f"/{name}/k", secret="wrong")[2]
    assert b"RequestTimeTooSkewed" in raw(site, "GET", f"/{name}/k", now=time.time() - 1000)[2]
    assert raw(site, "GET", f"/{name}/k", anonymous=True)[0] == 403
    assert code(lambda: site.client(("AKIANOBODY", "x", None)).list_buckets()) == "InvalidAccessKeyId"


def test_a_bucket_policy_on_the_endpoint_cannot_be_met_by_headers(site: Site, bucket: Make) -> None:
    name = bucket()
    root = site.client()
    root.put_object(Bucket=name, Key="k", Body=b"x")
    keys = site.role("reader", '{"Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}')
    role_arn = "arn:aws:iam::123456789012:role/reader"
    deny = {
        "Effect": "Deny",
        "Principal": {"AWS": role_arn},
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{name}/*",
        "Condition": {"StringNotEquals": {"aws:SourceVpce": ENDPOINT}},
    }
    allow = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{name}/*",
        "Condition": {"StringEquals": {"aws:SourceVpce": ENDPOINT}},
    }
    root.put_bucket_policy(
        Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny, allow]})
    )
    assert site.client(keys, vpc=True).get_object(Bucket=name, Key="k")["Body"].read() == b"x"
    with pytest.raises(ClientError, match="explicit deny in a resource-based policy"):
        site.client(keys).get_object(Bucket=name, Key="k")
    forged = (("x-amz-source-vpce", ENDPOINT), ("X-Forwarded-For", "10.0.0.9"), ("aws:SourceVpce", ENDPOINT))
    assert raw(site, "GET", f"/{name}/k", anonymous=True, headers=forged[:2])[0] == 403
    assert raw(site, "GET", f"/{name}/k", anonymous=True, vpc=True)[0] == 200


def test_a_policy_can_ask_for_the_tags_that_an_object_has(site: Site, bucket: Make) -> None:
    name, root = bucket(), site.client()
    for key, tags in (("secret", "class=secret"), ("open", "class=open"), ("a/none", "")):
        root.put_object(Bucket=name, Key=key, Body=b"x", Tagging=tags)
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    tagged = {"StringEquals": {"s3:ExistingObjectTag/class": "secret"}}
    deny = {**allow, "Effect": "Deny", "Action": "s3:GetObject*", "Condition": tagged}
    most = site.client(site.role("most", json.dumps({"Statement": [allow, deny]})))
    only = {
        **allow,
        "Action": "s3:GetObject",
        "Condition": {"StringEquals": {"s3:ExistingObjectTag/class": "open"}},
    }
    some = site.client(site.role("some", json.dumps({"Statement": [only]})))

    for s3, readable in ((most, {"open", "a/none"}), (some, {"open"})):
        for key in ("secret", "open", "a/none"):
            if key in readable:
                assert s3.get_object(Bucket=name, Key=key)["Body"].read() == b"x"
            else:
                assert code(partial(s3.get_object, Bucket=name, Key=key)) == "AccessDenied"
    unless = {**allow, "Condition": {"StringNotEquals": {"s3:ExistingObjectTag/class": "secret"}}}
    careful = site.client(site.role("careful", json.dumps({"Statement": [unless]})))
    assert careful.get_object(Bucket=name, Key="open")["Body"].read() == b"x"
    assert code(lambda: careful.get_object(Bucket=name, Key="secret")) == "AccessDenied"
    escaped = json.dumps({"Statement": [allow, deny]}).replace("Existing", "\\u0045xisting")
    again = site.client(site.role("again", escaped))
    assert code(lambda: again.get_object(Bucket=name, Key="secret")) == "AccessDenied"
    source = {"Bucket": name, "Key": "secret"}
    assert code(lambda: most.copy_object(Bucket=name, Key="copy", CopySource=source)) == "AccessDenied"
    assert code(lambda: most.get_object_tagging(Bucket=name, Key="secret")) == "AccessDenied"
    assert code(lambda: most.get_object(Bucket=name, Key="missing")) == "NoSuchKey"


def test_the_tags_of_what_is_written_over_do_not_stand_for_those_of_what_is_copied(
    site: Site, bucket: Make
) -> None:
    name = bucket()
    root = site.client()
    root.put_object(Bucket=name, Key="secret", Body=b"hidden", Tagging="class=secret")
    root.put_object(Bucket=name, Key="mine", Body=b"mine")
    every = {"Action": "s3:*", "Resource": "*"}
    tagged = {"StringEquals": {"s3:ExistingObjectTag/class": "secret"}}
    deny = {"Effect": "Deny", **every, "Condition": tagged}
    keys = site.role("copier", json.dumps({"Statement": [{"Effect": "Allow", **every}, deny]}))
    headers = (("x-amz-copy-source", f"{name}/secret"), ("x-amz-tagging", "a=b"))
    status, _, body = raw(site, "PUT", f"/{name}/mine", keys=keys, headers=headers)
    assert (status, b"AccessDenied" in body) == (403, True), body
    assert root.get_object(Bucket=name, Key="mine")["Body"].read() == b"mine"
    headers = (("x-amz-copy-source", f"{name}/mine"), ("x-amz-tagging", "a=b"))
    assert raw(site, "PUT", f"/{name}/other", keys=keys, headers=headers)[0] == 200


def test_public_access_can_be_blocked(site: Site, bucket: Make) -> None:
    name, root = bucket(), site.client()
    root.put_object(Bucket=name, Key="k", Body=b"x")
    everybody = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{name}/*",
    }
    public = json.dumps({"Version": "2012-10-17", "Statement": [everybody]})
    within = {**everybody, "Condition": {"StringEquals": {"aws:SourceVpce": ENDPOINT}}}
    private = json.dumps({"Version": "2012-10-17", "Statement": [within]})
    root.put_bucket_policy(Bucket=name, Policy=public)
    assert raw(site, "GET", f"/{name}/k", anonymous=True)[0] == 200
    assert code(lambda: root.get_public_access_block(Bucket=name)) == "NoSuchPublicAccessBlockConfiguration"
    given = {"RestrictPublicBuckets": True, "BlockPublicPolicy": True}
    root.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=given)
    shown = root.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert shown == {"BlockPublicAcls": False, "IgnorePublicAcls": False, **given}
    assert raw(site, "GET", f"/{name}/k", anonymous=True)[0] == 403
    assert site.client(site.role("ours", None)).get_object(Bucket=name, Key="k")["Body"].read() == b"x"
    assert code(lambda: root.put_bucket_policy(Bucket=name, Policy=public)) == "AccessDenied"
    root.put_bucket_policy(Bucket=name, Policy=private)
    assert raw(site, "GET", f"/{name}/k", anonymous=True, vpc=True)[0] == 200
    root.delete_public_access_block(Bucket=name)
    root.put_bucket_policy(Bucket=name, Policy=public)
    assert raw(site, "GET", f"/{name}/k", anonymous=True)[0] == 200


def test_ownership_is_the_buckets_owners_and_acls_are_off(site: Site, bucket: Make) -> None:
    name, root = bucket(), site.client()
    root.put_object(Bucket=name, Key="k", Body=b"x")

    def own(how: str) -> None:
        rules = {"Rules": [{"ObjectOwnership": how}]}
        root.put_bucket_ownership_controls(Bucket=name, OwnershipControls=rules)

    own("BucketOwnerEnforced")
    with pytest.raises(ClientError, match="ObjectOwnership ObjectWriter"):
        own("ObjectWriter")
    for refused in (
        lambda: root.put_bucket_acl(Bucket=name, ACL="private"),
        lambda: root.put_object_acl(Bucket=name, Key="k", ACL="public-read"),
    ):
        assert code(refused) == "AccessControlListNotSupported"


def test_the_root_is_never_locked_out_of_a_buckets_policy(site: Site, bucket: Make) -> None:
    name, root = bucket(), site.client()
    everything = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": everything}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    root.put_bucket_policy(Bucket=name, Policy=policy)
    assert code(lambda: root.list_objects_v2(Bucket=name)) == "AccessDenied"
    admin = site.client(site.role("admin", '{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}'))
    assert code(lambda: admin.delete_bucket_policy(Bucket=name)) == "AccessDenied"
    assert root.get_bucket_policy(Bucket=name)["Policy"] == policy
    root.put_bucket_policy(Bucket=name, Policy=policy)
    root.delete_bucket_policy(Bucket=name)
    assert root.list_objects_v2(Bucket=name)["KeyCount"] == 0


def test_the_guides_package_repository_policy_refuses_through_the_endpoint(site: Site) -> None:
    repository = f"amazonlinux.{REGION}.amazonaws.com"
    root = site.client()
    root.create_bucket(Bucket=repository)
    root.put_object(Bucket=repository, Key="2/core/x.rpm", Body=b"rpm")
    public = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{repository}/*",
    }
    root.put_bucket_policy(
        Bucket=repository, Policy=json.dumps({"Version": "2012-10-17", "Statement": [public]})
    )
    host = (("Host", repository),)
    assert raw(site, "GET", "/2/core/x.rpm", anonymous=True, vpc=True, headers=host)[2] == b"rpm"
    deny = {
        "Sid": "AmazonLinux2AMIRepositoryAccess",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Effect": "Deny",
        "Resource": ["arn:aws:s3:::amazonlinux.*.amazonaws.com/*"],
    }
    allow = {"Principal": "*", "Action": "*", "Effect": "Allow", "Resource": "*"}
    try:
        site.endpoint_policy(json.dumps({"Statement": [deny, allow]}))
        assert raw(site, "GET", "/2/core/x.rpm", anonymous=True, vpc=True, headers=host)[0] == 403
        assert raw(site, "GET", "/2/core/x.rpm", anonymous=True, headers=host)[0] == 200
    finally:
        site.endpoint_policy(json.dumps({"Statement": [allow]}))


def test_a_bucket_called_like_another_ones_host_gets_nothing_of_it(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    host = f"{name}.s3.{REGION}.amazonaws.com"
    s3.create_bucket(Bucket=host)
    assert raw(site, "PUT", "/k", b"mine", headers=(("Host", host),))[0] == 200
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"mine"
    assert "Contents" not in s3.list_objects_v2(Bucket=host)
    s3.delete_bucket(Bucket=host)


def test_multipart_presigned_copy_tags_and_batch_delete_work(site: Site, bucket: Make) -> None:
    s3, name = site.client(signature_version="s3v4"), bucket()
    data = bytes(range(256)) * 50_000  # 12.8 MB: multipart by s3transfer
    s3.upload_fileobj(io.BytesIO(data), name, "big")
    got = s3.get_object(Bucket=name, Key="big")["Body"].read()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    pool = urllib3.PoolManager(retries=False)
    assert len(
        pool.request("GET", s3.generate_presigned_url("get_object", {"Bucket": name, "Key": "big"})).data
    ) == len(data)
    url = s3.generate_presigned_url("put_object", {"Bucket": name, "Key": "up"})
    assert pool.request("PUT", url, body=b"by url").status == 200
    pool.clear()
    s3.copy_object(Bucket=name, Key="copy", CopySource={"Bucket": name, "Key": "up"})
    assert s3.get_object(Bucket=name, Key="copy")["Body"].read() == b"by url"
    s3.put_object_tagging(Bucket=name, Key="copy", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert s3.get_object_tagging(Bucket=name, Key="copy")["TagSet"] == [{"Key": "a", "Value": "b"}]
    assert code(lambda: s3.delete_bucket(Bucket=name)) == "BucketNotEmpty"
    gone = s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": k} for k in ("big", "up", "copy")]})
    assert len(gone["Deleted"]) == 3
    s3.delete_bucket(Bucket=name)
    assert code(lambda: s3.list_objects_v2(Bucket=name)) == "NoSuchBucket"


def test_listings_page(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    keys = [f"p/{n:03}" for n in range(60)]
    for key in keys:
        s3.put_object(Bucket=name, Key=key, Body=b"")
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=name, Prefix="p/", PaginationConfig={"PageSize": 25}
    )
    assert [each["Key"] for page in pages for each in page["Contents"]] == keys
    found = s3.list_objects_v2(Bucket=name, Delimiter="/")
    assert [each["Prefix"] for each in found["CommonPrefixes"]] == ["p/"]


def test_an_acknowledged_object_survives_a_killed_seaweedfs(site: Site, bucket: Make) -> None:
    import os
    import signal

    s3, name = site.client(), bucket()
    s3.put_object(Bucket=name, Key="kept", Body=b"kept" * 1000)
    before = site.backend.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while True:
        try:
            assert s3.get_object(Bucket=name, Key="kept")["Body"].read() == b"kept" * 1000
            break
        except ClientError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert site.backend.pid != before


def test_what_cannot_be_held_or_is_not_implemented_is_refused_by_name(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    for path in ("s" * 300, "x/" + "k" * 255 + "/y", "/".join("a" * 500)):
        status, _, body = raw(site, "PUT", f"/{name}/{path}", b"x")
        assert status == 400, path
        assert b"cannot hold the key" in body
    assert code(lambda: s3.put_bucket_website(Bucket=name, WebsiteConfiguration={})) == "NotImplemented"
    assert code(lambda: s3.get_bucket_policy(Bucket=name)) == "NoSuchBucketPolicy"
    assert code(lambda: s3.create_bucket(Bucket="Bad_Name")) in ("InvalidBucketName",)
    assert s3.head_bucket(Bucket=name)["BucketRegion"] == REGION
    assert code(lambda: s3.head_bucket(Bucket=name, ExpectedBucketOwner="999999999999")) == "403"


def test_https_names_get_certificates_of_their_own(site: Site, bucket: Make) -> None:
    import ssl

    name = bucket()
    site.client().put_object(Bucket=name, Key="k", Body=b"x")
    trusting = ssl.create_default_context(cafile=str(site.authority.bundle_path))
    for host in (f"{name}.s3.{REGION}.amazonaws.com", f"s3-{REGION}.amazonaws.com", "localhost"):
        pool = urllib3.HTTPSConnectionPool(
            "127.0.0.1",
            site.tls_port,
            ssl_context=trusting,
            server_hostname=host,
            assert_hostname=host,
            retries=False,
        )
        assert pool.request("GET", "/", headers={"Host": host}).status == 403
        pool.close()


def test_a_client_that_breaks_off_leaves_nothing(site: Site, bucket: Make) -> None:
    import socket

    name = bucket()
    host = f"127.0.0.1:{site.port}"
    for size in (100, 20_000_000):
        head = sigv4.sign(
            HttpRequest(method="PUT", path=f"/{name}/half", headers=(("Host", host),)),
            access_key=site.credentials.root_access_key_id,
            secret=site.credentials.root_secret_access_key,
            region=REGION,
            service="s3",
            now=time.time(),
            payload_hash=sigv4.UNSIGNED_PAYLOAD,
        )
        lines = "".join(f"{key}: {value}\r\n" for key, value in head)
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.sendall(
                f"PUT /{name}/half HTTP/1.1\r\n{lines}Content-Length: {size}\r\n\r\n".encode()
                + b"x" * (size // 2)
            )
        time.sleep(0.3)
        assert raw(site, "GET", f"/{name}/half")[0] == 404


def test_a_gzip_body_is_stored_as_it_was_sent(site: Site, bucket: Make) -> None:
    import gzip

    name = bucket()
    packed = gzip.compress(b"hello" * 100)
    site.client().put_object(Bucket=name, Key="z", Body=packed, ContentEncoding="gzip")
    got = site.client().get_object(Bucket=name, Key="z")
    assert got["ContentEncoding"] == "gzip"
    assert got["Body"].read() == packed


def test_a_storage_class_that_is_not_kept_is_refused_and_nothing_is_stored(site: Site, bucket: Make) -> None:
    s3, name = site.client(), bucket()
    assert (
        code(lambda: s3.put_object(Bucket=name, Key="k", Body=b"x", StorageClass="GLACIER"))
        == "NotImplemented"
    )
    assert code(lambda: s3.head_object(Bucket=name, Key="k")) == "404"
    s3.put_object(Bucket=name, Key="k", Body=b"x", StorageClass="STANDARD")
    status, _, body = raw(site, "PUT", f"/{name}/k", b"y", headers=(("x-amz-made-up", "1"),))
    assert (status, b"x-amz-made-up" in body) == (501, True)
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"x"
