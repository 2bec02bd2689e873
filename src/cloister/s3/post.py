"""PostObject: a browser's form with a file, and the policy that its maker signed.

AWS: "Browser-Based Uploads Using POST" (S3 API Reference). What the policy does not speak of may not be in
the form; its signature is the maker's, with whose permissions the object is put.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web

from cloister.s3 import buckets, passing
from cloister.s3.listing import text
from cloister.wire import canonical
from cloister.wire.errors import AwsError

MOST = 20_000  # AWS: bytes of a form, its file aside
UNIT = 1 << 20
#: fields that no condition has to speak of
_FREE = frozenset({"policy", "x-amz-signature", "file", "awsaccesskeyid", "signature"})
#: fields that are the headers of PutObject of the same name
_HEADERS = frozenset(
    {
        "cache-control",
        "content-type",
        "content-disposition",
        "content-encoding",
        "content-language",
        "expires",
    }
)
_FAMILIES = (
    *("x-amz-meta-", "x-amz-checksum-", "x-amz-server-side-encryption", "x-amz-storage-class"),
    *("x-amz-sdk-checksum-algorithm", "x-amz-website-redirect-location"),
)
_OURS = frozenset({"x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """`fields` by lower-case name, `file` still to be read."""

    fields: dict[str, str]
    file: AsyncIterator[bytes]


async def read(request: web.BaseRequest) -> Form:
    """Up to the file, which AWS wants last. Raises AwsError."""
    try:
        reader = await request.multipart()
    except (ValueError, AssertionError):
        raise _malformed() from None
    fields: dict[str, str] = {}
    size = 0
    while (part := await _next(reader)) is not None:
        name = (part.name or "").lower()
        if name == "file":
            if "key" in fields:
                fields["key"] = fields["key"].replace("${filename}", part.filename or "")
            return Form(fields=fields, file=_pieces(part))
        value = b""
        async for piece in _pieces(part):
            value += piece
            if size + len(value) > MOST:
                raise AwsError(
                    "MaxPostPreDataLengthExceededError",
                    "Your POST request fields preceding the upload file were too large.",
                )
        size += len(value)
        if name in fields:
            raise AwsError(
                "InvalidArgument", "POST requires exactly one of each field per request.",
                ArgumentName=name[:100], ArgumentValue="",
            )  # fmt: skip
        fields[name] = value.decode("utf-8", "replace")
    raise AwsError(
        "InvalidArgument", "POST requires exactly one file upload per request.",
        ArgumentName="file", ArgumentValue="0",
    )  # fmt: skip


async def _next(reader: aiohttp.MultipartReader) -> aiohttp.BodyPartReader | None:
    try:
        part = await reader.next()
    except (ValueError, AssertionError):
        raise _malformed() from None
    if part is not None and not isinstance(part, aiohttp.BodyPartReader):
        raise _malformed()
    return part


async def _pieces(part: aiohttp.BodyPartReader) -> AsyncIterator[bytes]:
    while not part.at_eof():
        try:
            piece = await part.read_chunk(UNIT)
        except (ValueError, AssertionError):
            raise _malformed() from None
        if piece:
            yield piece


def _malformed() -> AwsError:
    return AwsError(
        "MalformedPOSTRequest", "The body of your POST request is not well-formed multipart/form-data."
    )


# -- who made the form --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    access_key_id: str
    token: str | None
    day: str
    policy: str
    signature: str


def signed(fields: Mapping[str, str], region: str) -> Signed | None:
    """What the form says of its signature; None: it has none. Raises AwsError."""
    if "awsaccesskeyid" in fields or "signature" in fields:
        raise AwsError(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
        )
    if "policy" not in fields and "x-amz-signature" not in fields:
        return None
    for name in ("policy", *sorted(_OURS)):
        if not fields.get(name):
            raise AwsError(
                "InvalidArgument", f"Bucket POST must contain a field named '{name}'.",
                ArgumentName=name, ArgumentValue="",
            )  # fmt: skip
    if fields["x-amz-algorithm"] != "AWS4-HMAC-SHA256":
        raise _invalid("x-amz-algorithm", fields, "AWS4-HMAC-SHA256 is the only algorithm that is supported.")
    parts = fields["x-amz-credential"].split("/")
    if len(parts) != 5 or parts[2:] != [region, "s3", "aws4_request"] or parts[1] != fields["x-amz-date"][:8]:
        raise _invalid(
            "x-amz-credential", fields, "The credential's scope is not the date's, the Region's and s3's."
        )
    return Signed(
        access_key_id=parts[0],
        token=fields.get("x-amz-security-token"),
        day=parts[1],
        policy=fields["policy"],
        signature=fields["x-amz-signature"],
    )


def verify(made: Signed, secret: str, region: str) -> None:
    """Raises AwsError SignatureDoesNotMatch."""
    key = canonical.signing_key(secret, made.day, region, "s3")
    actual = canonical.hmac_hex(key, made.policy)
    if not hmac.compare_digest(actual.encode(), made.signature.encode("utf-8", "replace")):
        raise AwsError(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your "
            "key and signing method.",
            403,
            AWSAccessKeyId=made.access_key_id,
            StringToSign=made.policy,
            SignatureProvided=made.signature[:200],
        )


def _invalid(name: str, fields: Mapping[str, str], message: str) -> AwsError:
    return AwsError("InvalidArgument", message, ArgumentName=name, ArgumentValue=fields[name][:200])


# -- what it lets the form be -------------------------------------------------------------------------------


def check(policy: str, fields: Mapping[str, str], bucket: str, now: float) -> tuple[int, int | None]:
    """The least and the most bytes that the file may have.

    Raises AwsError AccessDenied, InvalidPolicyDocument."""
    document = _document(policy)
    if _expires(document) <= now:
        raise _denied("Policy expired.")
    told = {**fields, "bucket": bucket}
    spoken: set[str] = set()
    least, most = 0, None
    for condition in _conditions(document):
        how, name, value = condition
        if how == "content-length-range":
            least, most = max(least, int(name)), int(value) if most is None else min(most, int(value))
            continue
        spoken.add(name)
        given = told.get(name, "")
        if not (given == value if how == "eq" else given.startswith(value)):
            shown = json.dumps([how, f"${name}", value])
            raise _denied(f"Policy Condition failed: {shown}")
    for name in fields:
        if name not in _FREE | spoken and not name.startswith("x-ignore-"):
            raise _denied(f"Extra input fields: {name[:200]}")
    return least, most


def _document(policy: str) -> dict[str, Any]:
    try:
        found = json.loads(base64.b64decode(policy, validate=True).decode())
    except (binascii.Error, ValueError, RecursionError):
        raise _bad_policy("Invalid JSON.") from None
    if not isinstance(found, dict) or not isinstance(found.get("conditions"), list):
        raise _bad_policy("Policy missing conditions.")
    return found


def _expires(document: Mapping[str, Any]) -> float:
    try:
        at = datetime.fromisoformat(document["expiration"])
    except (KeyError, TypeError, ValueError):
        raise _bad_policy("Policy missing expiration.") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _conditions(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(eq or starts-with, field, value), or (content-length-range, least, most)."""
    found: list[tuple[str, str, str]] = []
    for each in document["conditions"]:
        if isinstance(each, dict):
            found += [("eq", name.lower(), value) for name, value in each.items() if isinstance(value, str)]
            if all(isinstance(value, str) for value in each.values()):
                continue
        elif isinstance(each, list) and len(each) == 3 and isinstance(each[0], str):
            how, name, value = each[0].lower(), each[1], each[2]
            if how == "content-length-range" and _size(name) and _size(value):
                found.append((how, str(name), str(value)))
                continue
            texts = isinstance(name, str) and isinstance(value, str) and name.startswith("$")
            if how in ("eq", "starts-with") and texts:
                found.append((how, name[1:].lower(), value))
                continue
        raise _bad_policy(f"Invalid condition: {json.dumps(each)[:200]}")
    return found


def _size(value: object) -> bool:
    return str(value).isascii() and str(value).isdigit() and len(str(value)) <= 16


def _denied(why: str) -> AwsError:
    return AwsError("AccessDenied", f"Invalid according to Policy: {why}", 403)


def _bad_policy(why: str) -> AwsError:
    return AwsError("InvalidPolicyDocument", f"Invalid Policy: {why}")


# -- the object ---------------------------------------------------------------------------------------------


def headers(fields: Mapping[str, str]) -> dict[str, str]:
    """The form's fields as the headers of PutObject. Raises AwsError."""
    found: dict[str, str] = {}
    for name, value in fields.items():
        if name in _HEADERS or name.startswith(_FAMILIES):
            found[name] = passing.header_text(name, value)
        elif name.startswith("x-amz-") and name not in _OURS | {"x-amz-security-token"}:
            raise AwsError(
                "NotImplemented", f"Cloister does not implement the field {name[:100]} of a form.", 501
            )
    if fields.get("acl"):
        found["x-amz-acl"] = passing.header_text("acl", fields["acl"])
    if fields.get("tagging"):
        tags = buckets.parse_tags(fields["tagging"].encode())
        found["x-amz-tagging"] = "&".join(
            f"{quote(tag, safe='')}={quote(tags[tag], safe='')}" for tag in tags
        )
    return found


async def limited(file: AsyncIterator[bytes], least: int, most: int) -> AsyncIterator[bytes]:
    """The file, whose last piece comes only when its size is one of those allowed. Raises AwsError."""
    size, held = 0, b""
    async for piece in file:
        size += len(piece)
        if size > most:
            raise AwsError(
                "EntityTooLarge",
                "Your proposed upload exceeds the maximum allowed size",
                ProposedSize=str(size),
                MaxSizeAllowed=str(most),
            )
        if held:
            yield held
        held = piece
    if size < least:
        raise AwsError(
            "EntityTooSmall",
            "Your proposed upload is smaller than the minimum allowed size",
            ProposedSize=str(size),
            MinSizeAllowed=str(least),
        )
    if held:
        yield held


def answer(
    fields: Mapping[str, str], bucket: str, key: str, etag: str, location: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, as the form asks for them."""
    told = {"ETag": etag, "Location": location}
    redirect = fields.get("success_action_redirect") or fields.get("redirect", "")
    if redirect.startswith(("http://", "https://")) and redirect.isprintable() and redirect.isascii():
        pairs = {"bucket": bucket, "key": key, "etag": etag}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs.items())
        joined = f"{redirect}{'&' if '?' in redirect else '?'}{query}"
        return 303, {**told, "Location": joined}, b""
    status = fields.get("success_action_status", "204")
    if status != "201":
        return (200 if status == "200" else 204), told, b""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<PostResponse>'
        f"<Location>{text(location)}</Location><Bucket>{escape(bucket)}</Bucket><Key>{text(key)}</Key>"
        f"<ETag>{escape(etag)}</ETag></PostResponse>"
    )
    return 201, {**told, "Content-Type": "application/xml"}, body.encode()
