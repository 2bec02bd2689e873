"""Which request headers are refused because they would change what happens, and what of a query passes."""

from __future__ import annotations

import pytest

from cloister.s3 import actions, listing, passing
from cloister.s3.forward import DESCRIBED
from cloister.wire.errors import AwsError

REFUSED = [
    ("x-amz-storage-class", "GLACIER", "x-amz-storage-class: GLACIER"),
    ("x-amz-storage-class", "standard", "x-amz-storage-class: standard"),
    ("x-amz-server-side-encryption", "aws:kms:dsse", "x-amz-server-side-encryption: aws:kms:dsse"),
    ("x-amz-server-side-encryption-aws-kms-key-id", "k", "x-amz-server-side-encryption-aws-kms-key-id: k"),
    ("x-amz-meta-cloister-sse", "k", None),
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


def test_every_operation_of_the_backend_has_its_query() -> None:
    assert (
        set(passing._QUERIES)
        == actions.FORWARDED - {"DeleteObjects", "PostObject"} - listing.OPERATIONS - DESCRIBED
    )


def test_of_a_query_only_what_belongs_to_the_operation_passes() -> None:
    asked = {
        "prefix": "a",
        "list-type": "3",
        "tagging": "x",
        "collection": "c",
        "x-id": "ListMultipartUploads",
    }
    assert passing.query("ListMultipartUploads", asked) == {"uploads": "", "prefix": "a"}
    assert passing.query("DeleteObjectTagging", {"tagging": "\n", "uploadId": "u"}) == {"tagging": ""}
    part = {"uploadId": "u", "partNumber": "007"}
    assert passing.query("UploadPart", part) == {"uploadId": "u", "partNumber": "7"}


@pytest.mark.parametrize(
    "number", ["", "0", "10001", "-1", "+1", "1e3", "abc", "1\n", "\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_a_part_is_a_number_that_s3_has(number: str) -> None:
    for operation, more in (("UploadPart", {"uploadId": "u"}), ("UploadPartCopy", {"uploadId": "u"})):
        with pytest.raises(AwsError, match="between 1 and 10000"):
            passing.query(operation, {**more, "partNumber": number})
    with pytest.raises(AwsError, match="between 1 and 10000"):
        passing.query("GetObject", {"partNumber": number})


@pytest.mark.parametrize("upload", ["", "\n", "a\nb", "a b", "\x7f", "\u2028", "u" * 1025])
def test_an_upload_that_the_backend_may_overlook_is_none(upload: str) -> None:
    for operation in ("ListParts", "AbortMultipartUpload", "CompleteMultipartUpload", "UploadPart"):
        with pytest.raises(AwsError, match="NoSuchUpload"):
            passing.query(operation, {"uploadId": upload, "partNumber": "1"})
