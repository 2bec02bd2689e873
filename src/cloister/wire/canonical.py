"""Signature Version 4's arithmetic: the canonical request, the string to sign, the keys.

AWS: "Create a signed AWS API request" (IAM User Guide) and "Authenticating Requests" (S3 API Reference).
S3's paths are escaped once and not normalised; the others' are normalised and escaped twice.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING = frozenset({STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER})

_PLAIN_PATH = re.compile(r"[A-Za-z0-9\-._~/]*")
_CODED = r"(?:[A-Za-z0-9\-._~]|%[0-9A-F]{2})"
_CANONICAL_QUERY = re.compile(rf"{_CODED}+={_CODED}*(?:&{_CODED}+={_CODED}*)*")
_SPACES = re.compile(r"\s+")


def canonical_request(
    method: str,
    path: str,
    query: str,
    headers: dict[str, list[str]],
    signed_headers: Iterable[str],
    payload: str,
    *,
    is_s3: bool,
) -> str:
    """`headers` by lower-case name; `query` without X-Amz-Signature."""
    lines = [method.upper(), canonical_path(path, is_s3=is_s3), canonical_query(query)]
    names = list(signed_headers)
    for name in names:
        values = headers.get(name, [""])
        value = values[0].strip() if len(values) == 1 else ",".join(one.strip() for one in values)
        lines.append(f"{name}:{_SPACES.sub(' ', value) if ' ' in value or chr(9) in value else value}")
    lines += ["", ";".join(names), payload]
    return "\n".join(lines)


def canonical_path(path: str, *, is_s3: bool) -> str:
    if path in ("", "/"):
        return "/"
    if is_s3:
        # What a path means is signed: however it was escaped, it is escaped in the one canonical way here.
        return (
            path if "%" not in path and _PLAIN_PATH.fullmatch(path) else _encode(unquote_to_bytes(path), "/")
        )
    return quote(_normalize(path), safe="/~")


def _normalize(path: str) -> str:
    """RFC 3986 section 6: dot segments and empty segments removed; a last slash is kept."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    tail = "/" if parts and path.endswith("/") else ""
    return "/" + "/".join(parts) + tail


def canonical_query(query: str) -> str:
    if not query:
        return ""
    if _CANONICAL_QUERY.fullmatch(query):
        pairs = [part.split("=", 1) for part in query.split("&")] if "&" in query else []
        return "&".join("=".join(pair) for pair in sorted(pairs)) if pairs else query
    split = [part.partition("=") for part in query.split("&") if part]
    return "&".join(
        f"{key}={value}" for key, value in sorted((_requote(key), _requote(value)) for key, _, value in split)
    )


def _requote(text: str) -> str:
    return _encode(unquote_to_bytes(text.replace("+", " ")), "")


def _encode(raw: bytes, safe: str) -> str:
    return quote(raw, safe=safe + "-_.~")


def string_to_sign(stamp: str, scope: str, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"


@lru_cache(maxsize=1024)
def signing_key(secret: str, day: str, region: str, service: str) -> bytes:
    """The key of one day, region and service. Four HMACs, remembered for the last few hundred."""
    key = ("AWS4" + secret).encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def hmac_hex(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


def header_map(headers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Headers by lower-case name."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def write_stamp(seconds: float) -> str:
    """20260102T030405Z"""
    return _stamp(int(seconds))


@lru_cache(maxsize=64)
def _stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")
