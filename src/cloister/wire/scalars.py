"""Scalars as text: booleans, numbers, timestamps and blobs in the forms AWS's protocols give them.

Readers raise `ValueError` whose text says what is wrong; the protocol turns it into its own AwsError.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|z|[+-]\d\d:?\d\d)?)?"
)
INT_RANGE = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}


def read_integer(text: str, kind: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("it must be an integer")
    return check_integer(int(text), kind)


def check_integer(value: int, kind: str) -> int:
    low, high = INT_RANGE[kind]
    if not low <= value <= high:
        raise ValueError(f"it must be between {low} and {high}")
    return value


def read_boolean(text: str) -> bool:
    if text in ("true", "True", "TRUE", "1"):
        return True
    if text in ("false", "False", "FALSE", "0"):
        return False
    raise ValueError("it must be true or false")


def read_float(text: str) -> float:
    special = _SPECIAL.get(text)
    if special is not None:
        return special
    if len(text) > 400 or not _FLOAT.fullmatch(text):
        raise ValueError("it must be a number")
    return float(text)


def read_blob(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it must be base64") from None


def from_epoch(seconds: float) -> datetime:
    """Seconds since 1970 as an aware datetime; exact to the microsecond for numbers with fractions."""
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise ValueError("it must be a timestamp") from None


def read_timestamp(text: str, timestamp_format: str = "iso8601") -> datetime:
    """A timestamp in the named format; ISO 8601 is understood whatever the format says, as AWS does."""
    iso = _ISO.fullmatch(text)
    try:
        if iso:
            return _from_iso(iso)
        if timestamp_format == "rfc822":
            when = parsedate_to_datetime(text)
            return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        if len(text) <= 40 and _FLOAT.fullmatch(text):
            return from_epoch(float(text))
    except (ValueError, OverflowError, IndexError, TypeError):
        pass
    raise ValueError("it must be a timestamp")


def _from_iso(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    micro = int((fraction or "0").ljust(6, "0")[:6])
    when = datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), micro, UTC
    )
    if zone and zone not in "Zz":
        sign = 1 if zone[0] == "+" else -1
        when -= sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
    return when


def as_datetime(value: Any) -> datetime:
    """What a handler may give for a timestamp: an aware datetime, or seconds since 1970."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError(f"a timestamp must know its zone: {value!r}")
        return value.astimezone(UTC)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return from_epoch(value)
    raise TypeError(f"not a timestamp: {value!r}")


def write_iso(value: Any) -> str:
    """Milliseconds are kept, as AWS does; finer is cut."""
    when = as_datetime(value)
    # Not strftime: it does not pad years before 1000.
    return (
        f"{when.year:04}-{when.month:02}-{when.day:02}T{when.hour:02}:{when.minute:02}:{when.second:02}"
        f".{when.microsecond // 1000:03}Z"
    )


def write_iso_seconds(value: Any) -> str:
    """As IAM and STS write: without a fraction, unless there is one."""
    text = write_iso(value)
    return f"{text[:-5]}Z" if text.endswith(".000Z") else text


def write_epoch(value: Any) -> int | float:
    when = as_datetime(value) - _EPOCH
    milliseconds = when // timedelta(milliseconds=1)
    return milliseconds // 1000 if milliseconds % 1000 == 0 else milliseconds / 1000


def write_rfc822(value: Any) -> str:
    return format_datetime(as_datetime(value), usegmt=True)


def write_timestamp(value: Any, timestamp_format: str) -> str:
    if timestamp_format == "rfc822":
        return write_rfc822(value)
    if timestamp_format == "unixTimestamp":
        return str(write_epoch(value))
    return write_iso(value)


def write_boolean(value: Any) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    raise TypeError(f"not a boolean: {value!r}")


def write_integer(value: Any) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"not an integer: {value!r}")
    return str(value)


def write_float(value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"not a number: {value!r}")
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def write_string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a string: {value!r}")
    return value


def write_blob(value: Any) -> str:
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"not bytes: {value!r}")
    return base64.b64encode(value).decode("ascii")


WRITERS: dict[str, Callable[[Any], str]] = {
    "string": write_string,
    "character": write_string,
    "integer": write_integer,
    "long": write_integer,
    "float": write_float,
    "double": write_float,
    "boolean": write_boolean,
    "blob": write_blob,
}


def read_scalar(kind: str, text: str, timestamp_format: str) -> Any:
    """A scalar of this kind from its text; ValueError says what it must be."""
    if kind in ("string", "character"):
        return text
    if kind in INT_RANGE:
        return read_integer(text, kind)
    if kind == "boolean":
        return read_boolean(text)
    if kind in ("float", "double"):
        return read_float(text)
    if kind == "timestamp":
        return read_timestamp(text, timestamp_format)
    return read_blob(text)
