"""Listings of objects: what the store is asked for, and the client's answer made of its. Pure.

AWS: "Amazon S3 API Reference", ListObjects, ListObjectsV2, ListObjectVersions. The store lists its own names
(`names.py`), always percent-encoded, as XML cannot carry every character of a key.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote_plus, unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from cloister.s3.buckets import XMLNS, parse_xml
from cloister.s3.names import Names
from cloister.wire.errors import AwsError

OPERATIONS = frozenset({"ListObjects", "ListObjectsV2", "ListObjectVersions"})
MOST = 1000
#: the request's parameter that says after which key, and the answer's members for it and for the next page
_AFTER = {
    "ListObjects": ("marker", "Marker", "NextMarker"),
    "ListObjectsV2": ("start-after", "StartAfter", ""),
    "ListObjectVersions": ("key-marker", "KeyMarker", "NextKeyMarker"),
}
_ROOTS = {"ListObjectVersions": "ListVersionsResult"}
#: what no XML 1.0 document has as it is
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\r\ufffe\uffff]")


def asked(operation: str, query: Mapping[str, str], names: Names) -> dict[str, str]:
    """The query for the store. Raises InvalidArgument."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if query.get("encoding-type", "url") != "url":
        raise _invalid(
            "encoding-type", query["encoding-type"], "Invalid Encoding Method specified in Request"
        )
    found = {
        **({"list-type": "2"} if operation == "ListObjectsV2" else {}),
        "encoding-type": "url",
        "prefix": names.stored_prefix(prefix),
        "delimiter": names.stored_prefix(delimiter),
        "max-keys": str(_limit(query)),
        **({"fetch-owner": query["fetch-owner"]} if "fetch-owner" in query else {}),
    }
    after = query.get(_AFTER[operation][0], "")
    token = query.get("continuation-token") if operation == "ListObjectsV2" else None
    if token is not None:
        kind, after = _opened(token)
        if kind == _THEIRS:
            found["continuation-token"] = after
            after = ""
    if after:
        whole = delimiter == "/" and after.endswith("/") and after != prefix and after.startswith(prefix)
        name = "start-after" if operation == "ListObjectsV2" else "marker"
        found[name] = names.after(after, whole)
    return {name: value for name, value in found.items() if value or name == "max-keys"}


def answer(
    operation: str, query: Mapping[str, str], listed: ElementTree.Element, names: Names, owner: str
) -> bytes:
    """The client's listing. `listed` is the store's, its tags without namespace; `owner` a canonical user."""
    url = query.get("encoding-type") == "url"

    def said(value: str) -> str:
        return quote_plus(value, safe="/") if url else text(value)

    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    rows = [
        (key, _object(operation, query, each, said(key), owner))
        for key, each in objects(listed, prefix, names)
    ]
    decode = _decoding(listed)
    for each in listed.findall("CommonPrefixes"):
        common = names.prefix(decode(each.findtext("Prefix") or ""))
        # SeaweedFS, asked to start inside of a common prefix, tells those below it too.
        if not delimiter or delimiter not in common[len(prefix) : -len(delimiter)]:
            row = f"<CommonPrefixes><Prefix>{said(common)}</Prefix></CommonPrefixes>"
            rows.append((common, row))
    name, shown, following = _AFTER[operation]
    truncated = listed.findtext("IsTruncated") == "true"
    their_token = listed.findtext("NextContinuationToken") or ""
    last = max((key for key, _ in rows), key=str.encode, default="")
    more = ""
    if operation == "ListObjectsV2":
        more = f"<KeyCount>{len(rows)}</KeyCount>"
        if "continuation-token" in query:
            more += f"<ContinuationToken>{text(query['continuation-token'])}</ContinuationToken>"
        if truncated:
            token = _sealed(_OURS, last) if names.in_order else _sealed(_THEIRS, their_token)
            more += f"<NextContinuationToken>{token}</NextContinuationToken>"
    elif truncated and (delimiter or operation == "ListObjectVersions"):
        more = f"<{following}>{said(last)}</{following}>"
        if operation == "ListObjectVersions":
            more += "<NextVersionIdMarker>null</NextVersionIdMarker>"
    if name in query or operation != "ListObjectsV2":
        more += f"<{shown}>{said(query.get(name, ''))}</{shown}>"
    if delimiter:
        more += f"<Delimiter>{said(delimiter)}</Delimiter>"
    if url:
        more += "<EncodingType>url</EncodingType>"
    root = _ROOTS.get(operation, "ListBucketResult")
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {XMLNS}>'
        f"<Name>{escape(listed.findtext('Name') or '')}</Name><Prefix>{said(prefix)}</Prefix>"
        f"<MaxKeys>{_limit(query)}</MaxKeys><IsTruncated>{str(truncated).lower()}</IsTruncated>{more}"
        f"{''.join(row for _, row in rows)}</{root}>"
    ).encode()


def objects(
    listed: ElementTree.Element, prefix: str, names: Names
) -> Iterator[tuple[str, ElementTree.Element]]:
    """The keys that begin with `prefix` in a listing of the store's, each with what it says of the object."""
    decode = _decoding(listed)
    for each in listed.findall("Contents"):
        key = names.key(decode(each.findtext("Key") or ""))
        if key is not None and key.startswith(prefix):
            yield key, each


def _decoding(listed: ElementTree.Element) -> Callable[[str], str]:
    return unquote_plus if listed.findtext("EncodingType") == "url" else str


def _object(operation: str, query: Mapping[str, str], each: ElementTree.Element, key: str, owner: str) -> str:
    tag, more = ("Version", "<VersionId>null</VersionId><IsLatest>true</IsLatest>")
    if operation != "ListObjectVersions":
        tag, more = "Contents", ""
    if operation != "ListObjectsV2" or query.get("fetch-owner") == "true":
        more += f"<Owner><ID>{owner}</ID></Owner>"
    members = "".join(
        f"<{member}>{escape(each.findtext(member) or '')}</{member}>"
        for member in ("LastModified", "ETag", "Size", "StorageClass")
    )
    return f"<{tag}><Key>{key}</Key>{members}{more}</{tag}>"


def text(value: str) -> str:
    """Text of an XML document, whatever characters are in it."""
    return _CONTROL.sub(lambda found: f"&#{ord(found[0])};", escape(value))


def _limit(query: Mapping[str, str], name: str = "max-keys") -> int:
    value = query.get(name, str(MOST))
    if not (value.isascii() and value.isdigit() and int(value) < 1 << 31):
        said = re.sub("-(.)", lambda found: found[1].upper(), name)
        raise _invalid(name, value, f"Argument {said} must be an integer between 0 and 2147483647")
    return min(int(value), MOST)


#: what a page's token is: the store's, or the last key or common prefix of the page before
_THEIRS, _OURS = "1", "2"


def _sealed(kind: str, text: str) -> str:
    return base64.urlsafe_b64encode((kind + text).encode()).decode()


def _opened(token: str) -> tuple[str, str]:
    try:
        opened = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        if opened[:1] not in (_THEIRS, _OURS) or not opened[1:]:
            raise ValueError
        return opened[0], opened[1:]
    except (ValueError, binascii.Error):
        raise _invalid("continuation-token", token, "The continuation token provided is incorrect") from None


def _invalid(name: str, value: str, message: str) -> AwsError:
    return AwsError("InvalidArgument", message, ArgumentName=name, ArgumentValue=value[:200])


# -- uploads in parts ---------------------------------------------------------------------------------------

_KEY, _LOCATION = (re.compile(f"<{member}>[^<]*</{member}>") for member in ("Key", "Location"))
_BARE_ETAG = re.compile(r"<ETag>(?!&#34;|&quot;|\")([^<]*)</ETag>")


def asked_for_uploads(query: Mapping[str, str], names: Names) -> dict[str, str]:
    """The query of ListMultipartUploads for the store. SeaweedFS is asked for all: its order is its own."""
    if not names.in_order:
        return dict(query)
    prefix = names.stored_prefix(query.get("prefix", ""))
    return {"uploads": "", "max-uploads": "10000", **({"prefix": prefix} if prefix else {})}


def uploads(query: Mapping[str, str], body: bytes, names: Names, owner: str) -> bytes:
    """The client's answer to ListMultipartUploads: in the order of keys, those of one key as they began."""
    if not names.in_order:
        return body
    url = query.get("encoding-type") == "url"

    def said(value: str) -> str:
        return quote_plus(value, safe="/") if url else text(value)

    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    marker, upload_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    most = _limit(query, "max-uploads")
    found: list[tuple[str, str, str]] = []
    for each in parse_xml(body).findall("Upload"):
        key = names.key(each.findtext("Key") or "")
        if key is not None and key.startswith(prefix):
            found.append((key, each.findtext("Initiated") or "", each.findtext("UploadId") or ""))
    found.sort(key=lambda one: (one[0].encode(), *one[1:]))
    if marker:
        of_marker = [one[2] for one in found if one[0] == marker]
        done = set(
            of_marker[: of_marker.index(upload_marker) + 1] if upload_marker in of_marker else of_marker
        )
        found = [one for one in found if one[0].encode() >= marker.encode() and one[2] not in done]
    rows: dict[str, str] = {}
    last = ("", "")
    truncated = False
    for key, initiated, upload_id in found:
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        common = key[: end + len(delimiter)] if end >= 0 else ""
        name = common or upload_id
        if common and marker.startswith(common):
            continue
        if name not in rows and len(rows) == most:
            truncated = True
            break
        last = (common, "") if common else (key, upload_id)
        rows[name] = (
            f"<CommonPrefixes><Prefix>{said(common)}</Prefix></CommonPrefixes>"
            if common
            else f"<Upload><Key>{said(key)}</Key><UploadId>{upload_id}</UploadId><Initiator><ID>{owner}</ID>"
            f"</Initiator><Owner><ID>{owner}</ID></Owner><StorageClass>STANDARD</StorageClass>"
            f"<Initiated>{initiated}</Initiated></Upload>"
        )
    following = (
        f"<NextKeyMarker>{said(last[0])}</NextKeyMarker><NextUploadIdMarker>{last[1]}</NextUploadIdMarker>"
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListMultipartUploadsResult {XMLNS}>'
        f"<Bucket>{escape(parse_xml(body).findtext('Bucket') or '')}</Bucket>"
        f"<KeyMarker>{said(marker)}</KeyMarker>"
        f"<UploadIdMarker>{escape(upload_marker)}</UploadIdMarker>{following if truncated else ''}"
        f"<Prefix>{said(prefix)}</Prefix>{f'<Delimiter>{said(delimiter)}</Delimiter>' if delimiter else ''}"
        f"{'<EncodingType>url</EncodingType>' if url else ''}<MaxUploads>{most}</MaxUploads>"
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{''.join(rows.values())}"
        "</ListMultipartUploadsResult>"
    ).encode()


def of_one_key(body: bytes, key: str, location: str) -> bytes:
    """The store's answer about one object, with its key, the client's way to it, and ETags in quotes."""
    changed = _KEY.sub(lambda _: f"<Key>{text(key)}</Key>", body.decode())
    changed = _BARE_ETAG.sub(r'<ETag>"\1"</ETag>', changed)
    return _LOCATION.sub(lambda _: f"<Location>{text(location)}</Location>", changed).encode()
