"""Objects that a KMS key encrypts on AWS: what decides about them is done, though nothing is encrypted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.s3.conftest import ACCOUNT, REGION, Site

Make = Callable[[], str]
KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY}"
S3: dict[str, Any] = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        action()
    error = caught.value.response["Error"]
    return f"{error['Code']}: {error['Message']}"


def test_the_key_of_awss_own_is_taken_told_and_asks_nothing_more(site: Site, bucket: Make) -> None:
    name = bucket()
    s3 = site.client(site.role("plain", json.dumps({"Statement": [S3]})))
    put = s3.put_object(Bucket=name, Key="k", Body=b"x", ServerSideEncryption="aws:kms")
    assert put["ServerSideEncryption"] == "aws:kms"
    head = s3.head_object(Bucket=name, Key="k")
    assert (head["ServerSideEncryption"], head["Metadata"]) == ("aws:kms", {})
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"x"
    s3.put_object(Bucket=name, Key="bare", Body=b"x")
    assert "ServerSideEncryption" not in s3.head_object(Bucket=name, Key="bare")


def test_a_key_that_is_named_takes_permissions_to_write_and_to_read(site: Site, bucket: Make) -> None:
    name = bucket()
    how = {"Bucket": name, "Key": "k", "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KEY}
    via = {"StringEquals": {"kms:ViaService": f"s3.{REGION}.amazonaws.com"}}
    may = {"Effect": "Allow", "Action": "kms:GenerateDataKey", "Resource": ARN, "Condition": via}
    writer = site.client(site.role("writer", json.dumps({"Statement": [S3, may]})))
    decrypt = json.dumps({"Statement": [S3, {**may, "Action": "kms:Decrypt"}]})
    reader = site.client(site.role("reader", decrypt))
    denied = refused(lambda: reader.put_object(**how, Body=b"x"))
    assert f"perform: kms:GenerateDataKey on resource: {ARN}" in denied
    assert writer.put_object(**how, Body=b"x" * (2 << 20))["SSEKMSKeyId"] == ARN
    denied = refused(lambda: writer.get_object(Bucket=name, Key="k"))
    assert f"perform: kms:Decrypt on resource: {ARN}" in denied
    source = {"Bucket": name, "Key": "k"}
    assert "kms:Decrypt" in refused(lambda: writer.copy_object(Bucket=name, Key="c", CopySource=source))
    assert "kms:Decrypt" in refused(lambda: writer.create_multipart_upload(**how))
    assert reader.get_object(Bucket=name, Key="k")["Body"].read() == b"x" * (2 << 20)
    assert reader.head_object(Bucket=name, Key="k")["SSEKMSKeyId"] == ARN


def test_an_endpoint_to_s3_has_no_say_about_the_key(site: Site, bucket: Make) -> None:
    name = bucket()
    site.endpoint_policy(json.dumps({"Statement": [{**S3, "Principal": "*"}]}))
    s3 = site.client(vpc=True)
    s3.put_object(Bucket=name, Key="k", Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=KEY)
    assert s3.get_object(Bucket=name, Key="k")["SSEKMSKeyId"] == ARN


def test_what_of_it_is_not_done_is_refused_by_name(site: Site, bucket: Make) -> None:
    s3, how = site.client(), {"Bucket": bucket(), "Key": "k", "Body": b"x"}
    aliased = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/mine"}
    assert "key-id: alias/mine" in refused(lambda: s3.put_object(**how, **aliased))
    assert f"key-id: {KEY}" in refused(lambda: s3.put_object(**how, SSEKMSKeyId=KEY))
    forged = {"cloister-sse": "aws:kms x"}
    assert "x-amz-meta-cloister-sse" in refused(lambda: s3.put_object(**how, Metadata=forged))


def test_a_bucket_policy_can_ask_for_encryption_by_kms(site: Site, bucket: Make) -> None:
    name, s3 = bucket(), site.client()
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{name}/*",
        "Condition": {"StringNotEquals": {"s3:x-amz-server-side-encryption": "aws:kms"}},
    }
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    assert "AccessDenied" in refused(lambda: s3.put_object(Bucket=name, Key="k", Body=b"x"))
    s3.put_object(Bucket=name, Key="k", Body=b"x", ServerSideEncryption="aws:kms")
