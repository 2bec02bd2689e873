"""Which request headers are refused because they would change what happens."""

from __future__ import annotations

import pytest

from cloister.s3 import passing

REFUSED = [
    ("x-amz-storage-class", "GLACIER", "x-amz-storage-class: GLACIER"),
    ("x-amz-storage-class", "standard", "x-amz-storage-class: standard"),
    ("x-amz-server-side-encryption", "aws:kms", "x-amz-server-side-encryption: aws:kms"),
    ("x-amz-server-side-encryption-aws-kms-key-id", "k", None),
    ("x-amz-server-side-encryption-context", "e30=", None),
    ("x-amz-server-side-encryption-customer-key", "k", None),
    ("x-amz-copy-source-server-side-encryption-customer-algorithm", "AES256", None),
    ("x-amz-object-lock-mode", "GOVERNANCE", None),
    ("x-amz-bypass-governance-retention", "true", None),
    ("x-amz-write-offset-bytes", "5", None),
    ("x-amz-if-match-size", "5", None),
    ("x-amz-mfa", "1 2", None),
    ("x-amz-made-up", "", None),
]
PASSED = [
    *(("x-amz-date", "d"), ("x-amz-content-sha256", "h"), ("x-amz-security-token", "t")),
    *(("x-amz-user-agent", "u"), ("x-amz-checksum-crc32", "c"), ("x-amz-sdk-checksum-algorithm", "CRC32")),
    *(("x-amz-decoded-content-length", "1"), ("x-amz-trailer", "x-amz-checksum-crc32")),
    *(("x-amz-expected-bucket-owner", "1"), ("x-amz-request-payer", "requester")),
    *(("x-amz-server-side-encryption", "AES256"), ("x-amz-storage-class", "STANDARD")),
    *(("x-amz-acl", "private"), ("x-amz-meta-any", "v"), ("x-amz-copy-source", "/b/k")),
    *(("x-amz-copy-source-range", "bytes=0-1"), ("x-amz-copy-source-if-match", "e")),
    *(("x-amz-tagging", "a=b"), ("x-amz-tagging-directive", "COPY"), ("x-amz-metadata-directive", "COPY")),
    *(("x-amz-optional-object-attributes", "RestoreStatus"), ("x-forwarded-for", "10.0.0.9")),
    ("x-amz-website-redirect-location", "/"),
]


@pytest.mark.parametrize(("name", "value", "told"), REFUSED)
def test_a_header_that_asks_for_what_is_not_done_is_refused_by_name(
    name: str, value: str, told: str | None
) -> None:
    assert passing.refused({"host": "h", name: value}) == (told or name)


@pytest.mark.parametrize(("name", "value"), PASSED)
def test_a_header_that_is_done_or_changes_nothing_passes(name: str, value: str) -> None:
    assert passing.refused({name: value}) is None
