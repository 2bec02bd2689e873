"""What of a request passes to the backend, and what of its answer comes back. Names are in lower case."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from cloister.wire.errors import AwsError

#: request headers that the backend gets, beside x-amz-meta-* and x-amz-copy-source-if-*
UP = frozenset(
    {
        *("content-type", "cache-control", "content-disposition", "content-language", "expires"),
        *("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
        *("x-amz-metadata-directive", "x-amz-tagging-directive", "x-amz-tagging"),
        *("x-amz-copy-source-range", "x-amz-website-redirect-location"),
    }
)
#: x-amz-* request headers that the door itself reads, or that change nothing here: the rest is refused
HARMLESS = frozenset(
    {
        *("x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-user-agent"),
        *("x-amz-decoded-content-length", "x-amz-trailer", "x-amz-api-version"),
        *("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner", "x-amz-request-payer"),
        *("x-amz-copy-source", "x-amz-acl", "x-amz-bucket-object-lock-enabled"),
        # AWS asks for the first to lock oneself out; the second only adds to a listing what no object has.
        *("x-amz-confirm-remove-self-bucket-access", "x-amz-optional-object-attributes"),
    }
)
#: beginnings of such names. Of x-amz-copy-source-*, only the conditions: its keys for encryption are refused
HARMLESS_FAMILIES = ("x-amz-meta-", "x-amz-checksum-", "x-amz-sdk-", "x-amz-grant-", "x-amz-copy-source-if-")
#: headers that are done as they say with one value only, which is also what happens without them
ONLY = {
    "x-amz-server-side-encryption": "AES256",
    "x-amz-server-side-encryption-bucket-key-enabled": "false",
    "x-amz-storage-class": "STANDARD",
    "x-amz-object-ownership": "BucketOwnerEnforced",
}
#: response headers that are the backend's own affair
DOWN_DROPPED = frozenset(
    {
        *(
            "server",
            "date",
            "connection",
            "keep-alive",
            "transfer-encoding",
            "x-amz-request-id",
            "x-amz-id-2",
        ),
        *("content-length", "access-control-allow-origin", "access-control-expose-headers", "vary"),
        *("access-control-allow-methods", "access-control-allow-headers", "access-control-allow-credentials"),
    }
)
#: query parameters that belong to the signature or override response headers (handled by the backend)
UNSENT_QUERY = frozenset(
    {
        *("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders"),
        *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Content-Sha256", "x-id", "versionId"),
    }
)


def refused(headers: Mapping[str, str]) -> str | None:
    """The first header that asks for what is not done here, as the answer names it: nothing that changes what
    happens is dropped in silence."""
    for name, value in headers.items():
        if not name.startswith("x-amz-"):
            continue
        if name in ONLY:
            if value != ONLY[name]:
                return f"{name}: {value[:50]}"
        elif name not in HARMLESS and name not in UP and not name.startswith(HARMLESS_FAMILIES):
            return name[:100]
    return None


#: AWS (S3 user guide): "User-defined object metadata", "Categorizing your storage using tags"
MOST_METADATA, MOST_TAGS, LONGEST_TAG_KEY, LONGEST_TAG_VALUE = 2048, 10, 128, 256


def check_metadata(headers: Mapping[str, str]) -> None:
    """Metadata and tags of an object that is written. Raises MetadataTooLarge, InvalidTag, BadRequest."""
    prefix = "x-amz-meta-"
    size = sum(
        len(name) - len(prefix) + len(value) for name, value in headers.items() if name.startswith(prefix)
    )
    if size > MOST_METADATA:
        raise AwsError(
            "MetadataTooLarge",
            "Your metadata headers exceed the maximum allowed metadata size",
            Size=str(size),
            MaxSizeAllowed=str(MOST_METADATA),
        )
    if headers.get("x-amz-tagging"):
        pairs = parse_qsl(headers["x-amz-tagging"], keep_blank_values=True)
        if len(dict(pairs)) < len(pairs):
            raise AwsError("InvalidTag", "Cannot provide multiple Tags with the same key")
        check_tags(dict(pairs))


def check_tags(tags: Mapping[str, str]) -> None:
    """Of an object. Raises InvalidTag, BadRequest."""
    for key, value in tags.items():
        if not 1 <= len(key) <= LONGEST_TAG_KEY or key.lower().startswith("aws:"):
            raise AwsError(
                "InvalidTag", "The TagKey you have provided is invalid", TagKey=key[:LONGEST_TAG_KEY]
            )
        if len(value) > LONGEST_TAG_VALUE:
            raise AwsError("InvalidTag", "The TagValue you have provided is invalid", TagKey=key)
    if len(tags) > MOST_TAGS:
        raise AwsError("BadRequest", f"Object tags cannot be greater than {MOST_TAGS}")


def check_part(number: str) -> None:
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 10_000):
        raise AwsError(
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000, inclusive",
            ArgumentName="partNumber",
            ArgumentValue=number[:50],
        )


def check_version(key: str, version: str | None) -> None:
    """There is one version of an object, `null`."""
    if version not in (None, "null"):
        raise AwsError(
            "NoSuchVersion", "The specified version does not exist.", 404, Key=key, VersionId=version
        )
