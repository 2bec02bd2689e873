"""Server-side encryption with KMS keys, as far as it decides what passes. Pure.

Nothing is encrypted here: objects lie on the host's disk as they are. What an AWS user meets is done:
condition keys of policies, the permissions on the key that S3 needs of the caller, and what a HEAD tells.
AWS: "Using server-side encryption with AWS KMS keys" (S3 user guide).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALGORITHM = "x-amz-server-side-encryption"
KEY = "x-amz-server-side-encryption-aws-kms-key-id"
KMS = "aws:kms"
#: metadata in which the store keeps it; clients neither see nor write it
KEPT = "x-amz-meta-cloister-sse"

_MAKING = {
    "PutObject": ("kms:GenerateDataKey",),
    "CopyObject": ("kms:GenerateDataKey",),
    # AWS: "To perform a multipart upload … the requester must have kms:Decrypt and kms:GenerateDataKey"
    "CreateMultipartUpload": ("kms:GenerateDataKey", "kms:Decrypt"),
}


def refused(headers: Mapping[str, str]) -> str | None:
    """The header that asks for what is not done, as the answer names it."""
    key = headers.get(KEY)
    if key is not None and (headers.get(ALGORITHM) != KMS or "alias/" in key):
        return f"{KEY}: {key[:100]}"
    return KEPT if KEPT in headers else None


def key_arn(key: str, region: str, account: str) -> str:
    """Of a key that is named by its id or its ARN."""
    return key if key.startswith("arn:") else f"arn:aws:kms:{region}:{account}:key/{key}"


def permissions(operation: str, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(action, key) that an operation needs beside S3's own. The key of AWS's own, which is meant where none
    is named, is open to who uses S3."""
    key = headers.get(KEY)
    return tuple((action, key) for action in _MAKING.get(operation, ())) if key else ()


def kept(operation: str, headers: Mapping[str, str]) -> str:
    """What the store keeps of an object's encryption, if any was asked for: its algorithm, and after a space
    its key's name."""
    if operation not in _MAKING:
        return ""
    return f"{headers.get(ALGORITHM, '')} {headers.get(KEY, '')}".rstrip()


def shown(text: str, region: str, account: str) -> dict[str, str]:
    """The headers of an answer about an object of which this was kept."""
    algorithm, _, key = text.partition(" ")
    named = {KEY: key_arn(key, region, account)} if key else {}
    return {ALGORITHM: algorithm, **named} if algorithm else {}


def of_key(context: Mapping[str, Any], region: str) -> dict[str, Any]:
    """The condition keys of what S3 asks of KMS for a caller: where the caller is does not show in it."""
    others = ("s3:", "aws:source", "aws:vpc")
    mine = {name: value for name, value in context.items() if not name.startswith(others)}
    return mine | {"kms:viaservice": f"s3.{region}.amazonaws.com", "aws:viaawsservice": True}
