"""What of a request passes to the backend, and what of its answer comes back. Names are in lower case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from cloister.s3 import sse
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
        *("x-amz-decoded-content-length", "x-amz-trailer", "x-amz-api-version", "x-amz-mp-object-size"),
        *("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner", "x-amz-request-payer"),
        sse.KEY,
        *("x-amz-object-attributes", "x-amz-max-parts", "x-amz-part-number-marker"),
        *("x-amz-copy-source", "x-amz-acl", "x-amz-bucket-object-lock-enabled"),
        # AWS asks for the first to lock oneself out; the second only adds to a listing what no object has.
        *("x-amz-confirm-remove-self-bucket-access", "x-amz-optional-object-attributes"),
    }
)
#: beginnings of such names. Of x-amz-copy-source-*, only the conditions: its keys for encryption are refused
HARMLESS_FAMILIES = ("x-amz-meta-", "x-amz-checksum-", "x-amz-sdk-", "x-amz-grant-", "x-amz-copy-source-if-")
#: headers that are done as they say with these values only
ONLY = {
    sse.ALGORITHM: ("AES256", sse.KMS),
    "x-amz-server-side-encryption-bucket-key-enabled": ("false",),
    "x-amz-storage-class": ("STANDARD",),
    "x-amz-object-ownership": ("BucketOwnerEnforced",),
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
DOWN_DROPPED_FAMILIES = ("x-seaweedfs", "seaweed-")
_SHOWN_AS = (
    *("response-cache-control", "response-content-disposition", "response-content-encoding"),
    *("response-content-language", "response-content-type", "response-expires"),
)
#: operation -> the query that makes it this operation for the backend, and the parameters that pass beside it
#: (of listings of objects: `listing.asked`)
_QUERIES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "ListMultipartUploads": (
        {"uploads": ""},
        ("prefix", "delimiter", "encoding-type", "max-uploads", "key-marker", "upload-id-marker"),
    ),
    "GetObject": ({}, ("partNumber", *_SHOWN_AS)),
    "HeadObject": ({}, ("partNumber", *_SHOWN_AS)),
    "PutObject": ({}, ()),
    "CopyObject": ({}, ()),
    "DeleteObject": ({}, ()),
    "CreateMultipartUpload": ({"uploads": ""}, ()),
    "UploadPart": ({"partNumber": "", "uploadId": ""}, ()),
    "UploadPartCopy": ({"partNumber": "", "uploadId": ""}, ()),
    "CompleteMultipartUpload": ({"uploadId": ""}, ()),
    "AbortMultipartUpload": ({"uploadId": ""}, ()),
    "ListParts": ({"uploadId": ""}, ("max-parts", "part-number-marker", "encoding-type")),
    "GetObjectTagging": ({"tagging": ""}, ()),
    "PutObjectTagging": ({"tagging": ""}, ()),
    "DeleteObjectTagging": ({"tagging": ""}, ()),
}
#: what of an object a copy of it over itself keeps, beside x-amz-meta-*
OWN = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
)
#: of which one at least changes by such a copy, if not its metadata
_CHANGING = (
    *("x-amz-storage-class", "x-amz-server-side-encryption", "x-amz-website-redirect-location"),
    *("x-amz-checksum-algorithm",),
)


def changes_itself(headers: Mapping[str, str]) -> bool:
    """Whether a copy over itself, of which the metadata stays, says anything new."""
    copies = headers.get("x-amz-metadata-directive", "COPY").upper() != "REPLACE"
    return copies and any(name in headers for name in _CHANGING)


_UPLOAD = re.compile(r"[\x21-\x7e]{1,1024}")
MAX_PART = 10_000


def query(operation: str, asked: Mapping[str, str]) -> dict[str, str]:
    """The query of this operation for the backend, made anew: it does what was decided on, whatever stood
    beside a parameter's name. (SeaweedFS takes an ?uploadId= with a line break for none: it would read or
    delete the object.)

    Raises AwsError InvalidArgument, NoSuchUpload."""
    made, passed = _QUERIES[operation]
    found = dict(made)
    if "uploadId" in made:
        found["uploadId"] = _upload(asked.get("uploadId", ""))
    if "partNumber" in made or ("partNumber" in passed and "partNumber" in asked):
        found["partNumber"] = _part(asked.get("partNumber", ""))
    return found | {name: asked[name] for name in passed if name in asked and name not in found}


def _upload(text: str) -> str:
    if not _UPLOAD.fullmatch(text):
        raise AwsError(
            "NoSuchUpload",
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have been "
            "aborted or completed.",
            404,
            UploadId=text[:200],
        )
    return text


def _part(text: str) -> str:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= MAX_PART):
        raise AwsError(
            "InvalidArgument",
            f"Part number must be an integer between 1 and {MAX_PART}, inclusive",
            ArgumentName="partNumber",
            ArgumentValue=text[:200],
        )
    return str(int(text))


#: parameters of a presigned URL that are its signature's
_OF_SIGNATURE = frozenset(
    {
        *("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signedheaders"),
        *("x-amz-signature", "x-amz-security-token", "x-amz-content-sha256", "x-amz-user-agent"),
    }
)


def from_query(query: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The headers that who presigned a URL wrote into it: some SDKs put every x-amz-* header there, and S3
    takes them for headers."""
    return tuple(
        (name.lower(), header_text(name, value))
        for name, value in query.items()
        if name.lower().startswith("x-amz-") and name.lower() not in _OF_SIGNATURE
    )


def header_text(name: str, value: str) -> str:
    """What came otherwise, to be a header: it cannot end one. Raises AwsError InvalidArgument."""
    if not (name + value).replace(" ", "").isprintable():
        raise AwsError(
            "InvalidArgument",
            f"The value of {name[:100]} has characters that a header cannot have.",
            ArgumentName=name[:100],
            ArgumentValue=value[:200],
        )
    return value


def refused(headers: Mapping[str, str]) -> str | None:
    """The first header that asks for what is not done here, as the answer names it: nothing that changes what
    happens is dropped in silence."""
    for name, value in headers.items():
        if not name.startswith("x-amz-"):
            continue
        if name in ONLY:
            if value not in ONLY[name]:
                return f"{name}: {value[:50]}"
        elif name not in HARMLESS and name not in UP and not name.startswith(HARMLESS_FAMILIES):
            return name[:100]
    return sse.refused(headers)


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


def check_version(key: str, version: str | None) -> None:
    """There is one version of an object, `null`."""
    if version not in (None, "null"):
        raise AwsError(
            "NoSuchVersion", "The specified version does not exist.", 404, Key=key, VersionId=version
        )
