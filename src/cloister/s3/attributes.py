"""GetObjectAttributes: its document, made of what the store says of an object. Pure.

AWS: "Amazon S3 API Reference", GetObjectAttributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

from cloister.s3.buckets import XMLNS
from cloister.s3.checksums import ALGORITHMS, PREFIX
from cloister.wire.errors import AwsError

NAMES = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")


def wanted(headers: Mapping[str, str]) -> frozenset[str]:
    """The attributes that are asked for. Raises AwsError InvalidRequest, InvalidArgument."""
    text = headers.get("x-amz-object-attributes", "")
    found = frozenset(each.strip() for each in text.split(",") if each.strip())
    if not found:
        raise AwsError(
            "InvalidRequest",
            "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing "
            "or empty",
        )
    if unknown := next(iter(found - set(NAMES)), None):
        raise AwsError(
            "InvalidArgument",
            "Invalid attribute name specified.",
            ArgumentName="x-amz-object-attributes",
            ArgumentValue=unknown[:200],
        )
    return found


def document(
    asked: frozenset[str], head: Mapping[str, str], parts: ElementTree.Element | None = None
) -> bytes:
    """`head`: the store's headers of the object, with its checksum. `parts`: its ObjectParts, of an upload in
    parts."""
    checksums = "".join(
        f"<Checksum{each}>{head[PREFIX + each.lower()]}</Checksum{each}>"
        for each in ALGORITHMS
        if PREFIX + each.lower() in head
    )
    if checksums:
        checksums += f"<ChecksumType>{head.get(PREFIX + 'type', 'FULL_OBJECT')}</ChecksumType>"
    found = {
        "ETag": head.get("etag", "").strip('"'),
        "Checksum": checksums,
        "StorageClass": "STANDARD",
        "ObjectSize": head.get("content-length", "0"),
    }
    rows = "".join(f"<{name}>{text}</{name}>" for name, text in found.items() if name in asked and text)
    if parts is not None:
        rows += ElementTree.tostring(parts, encoding="unicode")
    root = "GetObjectAttributesResponse"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {XMLNS}>{rows}</{root}>'.encode()
