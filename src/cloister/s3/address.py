"""Which bucket and key a request is about: from its Host and path. Pure.

AWS: "Virtual hosting of buckets" (S3 user guide). The path is decoded here, once; everything after works
with the decoded key, and the backend gets it encoded canonically again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from cloister.wire.errors import AwsError

MAX_KEY = 1024
#: s3.REGION, s3-REGION (legacy), s3.dualstack.REGION, s3 alone, s3-external-1; the bucket in front, if any
_S3_HOST = re.compile(
    r"(?:(?P<bucket>[a-z0-9][a-z0-9.-]*)\.)?s3(?:[.-](?:dualstack\.)?[a-z0-9-]+)?\.amazonaws\.com"
)
#: the names of an interface endpoint of S3 (AWS: S3 user guide, "AWS PrivateLink for Amazon S3")
_VPCE_HOST = re.compile(
    r"(?:(?P<bucket>[a-z0-9][a-z0-9.-]*)\.)?bucket\.vpce-[0-9a-z-]+\.s3\.[a-z0-9-]+\.vpce\.amazonaws\.com"
)
_VPCE = ".vpce.amazonaws.com"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def locate(host: str, path: str, is_bucket: Callable[[str], bool]) -> tuple[str | None, str]:
    """(bucket or None, key, decoded). `is_bucket` tells whether a bucket of this very name exists: a host
    that is a bucket's own name (amazonlinux.us-east-1.amazonaws.com) means that bucket. Names of S3's own
    come first: who makes a bucket that is called like another one's host would get its requests.

    Raises AwsError InvalidURI, KeyTooLongError."""
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise AwsError("InvalidURI", "Couldn't parse the specified URI.", URI=path[:500]) from None
    if not decoded.startswith("/") or "\0" in decoded:
        raise AwsError("InvalidURI", "Couldn't parse the specified URI.", URI=path[:500])
    rest = decoded[1:]
    name = _host_name(host)
    bucket: str | None
    own = _S3_HOST.fullmatch(name) or _VPCE_HOST.fullmatch(name)
    if own is not None and own["bucket"]:
        bucket, key = own["bucket"], rest
    elif name.endswith(".localhost"):
        bucket, key = name.removesuffix(".localhost"), rest
    elif own is None and "." in name and not name.endswith(_VPCE) and is_bucket(name):
        bucket, key = name, rest
    else:
        first, _, key = rest.partition("/")
        bucket = first or None
    if len(key.encode()) > MAX_KEY:
        raise AwsError(
            "KeyTooLongError",
            "Your key is too long",
            Size=str(len(key.encode())),
            MaxSizeAllowed=str(MAX_KEY),
        )
    return bucket, key


def _host_name(host: str) -> str:
    name = host.strip().lower().rstrip(".")
    return name if name.startswith("[") else name.partition(":")[0].rstrip(".")


def check_bucket_name(name: str) -> None:
    """AWS: "Bucket naming rules". Raises AwsError InvalidBucketName."""
    bad = (
        not _BUCKET.fullmatch(name)
        or ".." in name
        or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name)
        or name.startswith(("xn--", "sthree-", "amzn-s3-demo-"))
        or name.endswith(("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"))
    )
    if bad:
        raise AwsError("InvalidBucketName", "The specified bucket is not valid.", BucketName=name[:200])


def encode_path(bucket: str, key: str = "") -> str:
    return "/" + quote(bucket, safe="-.") + ("/" + quote(key, safe="/-_.~") if key else "")


def decode_query(query: str) -> dict[str, str]:
    """Names to values, decoded; the first of a repeated name counts."""
    found: dict[str, str] = {}
    try:
        # "+" stays a plus: S3 reads it as a space only in some parameters, and clients send %20.
        for name, value in parse_qsl(query.replace("+", "%20"), keep_blank_values=True, errors="strict"):
            found.setdefault(name, value)
    except (UnicodeDecodeError, ValueError):
        raise AwsError("InvalidURI", "Couldn't parse the specified URI.", URI=query[:500]) from None
    return found


def encode_query(pairs: dict[str, str]) -> str:
    return "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs.items()
    )
