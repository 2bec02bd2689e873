"""A bucket's lifecycle document, and which objects and uploads are over by it. Pure.

AWS: "Managing the lifecycle of objects" (S3 user guide): an object expires at the first midnight UTC after so
many days of age. There is one version of an object, so rules for older ones never find any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from xml.etree import ElementTree

from cloister.s3.buckets import malformed, parse_xml
from cloister.wire.errors import AwsError

MOST_RULES = 1000
DAY = 86_400
#: actions of which nothing is ever to be done here
_VACUOUS = frozenset({"NoncurrentVersionExpiration", "NoncurrentVersionTransition"})
_REFUSED = frozenset({"Transition"})
_FILTERS = frozenset({"Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`days` of age, or `date` in seconds, from which an object is over; `abort_days` of an upload."""

    prefix: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    larger_than: int = -1
    smaller_than: float = math.inf
    days: int | None = None
    date: float | None = None
    abort_days: int | None = None

    def ends(self, key: str, size: int, modified: float, now: float) -> bool:
        """Whether an object is over, whose tags are the rule's, if it asks for any."""
        if not (key.startswith(self.prefix) and self.larger_than < size < self.smaller_than):
            return False
        if self.days is not None:
            return _midnight(modified + self.days * DAY) <= now
        return self.date is not None and self.date <= now

    def aborts(self, key: str, initiated: float, now: float) -> bool:
        """Whether an upload in parts is."""
        due = self.abort_days is not None and _midnight(initiated + self.abort_days * DAY) <= now
        return due and key.startswith(self.prefix)


def _midnight(seconds: float) -> float:
    """The next one."""
    return math.ceil(seconds / DAY) * DAY


@lru_cache(maxsize=256)
def parse(document: bytes) -> tuple[Rule, ...]:
    """The enabled rules of a LifecycleConfiguration.

    Raises AwsError MalformedXML, InvalidArgument, InvalidRequest, NotImplemented."""
    root = parse_xml(document)
    found = root.findall("Rule")
    if root.tag != "LifecycleConfiguration" or not 1 <= len(found) <= MOST_RULES or len(found) != len(root):
        raise malformed()
    ids = [identity for each in found if (identity := (each.findtext("ID") or "").strip())]
    if len(set(ids)) < len(ids):
        raise _invalid("Rule ID must be unique. Found same ID for more than one rule")
    if any(len(each) > 255 for each in ids):
        raise _invalid("ID length should not exceed allowed limit of 255")
    rules = [(_rule(each), (each.findtext("Status") or "").strip()) for each in found]
    if any(status not in ("Enabled", "Disabled") for _, status in rules):
        raise malformed()
    return tuple(rule for rule, status in rules if status == "Enabled")


def _rule(element: ElementTree.Element) -> Rule:
    actions = {"Expiration", "AbortIncompleteMultipartUpload"} | _VACUOUS | _REFUSED
    names = [each.tag for each in element]
    if not set(names) <= actions | {"ID", "Status", "Filter", "Prefix"} or names.count("Filter") > 1:
        raise malformed()
    if refused := next((each for each in names if each in _REFUSED), None):
        message = f"Cloister does not implement {refused} of a lifecycle rule: there is one storage class."
        raise AwsError("NotImplemented", message, 501)
    if not set(names) & actions:
        raise AwsError("InvalidRequest", "At least one action needs to be specified in a rule")
    where = _filter(element)
    expiration = element.find("Expiration")
    abort = element.find("AbortIncompleteMultipartUpload")
    if abort is not None and (where.tags or where.larger_than >= 0 or where.smaller_than < math.inf):
        raise AwsError(
            "InvalidRequest",
            "AbortIncompleteMultipartUpload cannot be specified with Tags or object sizes of a filter.",
        )
    days, date = None, None
    if expiration is not None:
        given = {each.tag: (each.text or "").strip() for each in expiration}
        if len(given) != 1 or not set(given) <= {"Days", "Date", "ExpiredObjectDeleteMarker"}:
            raise malformed()
        if "Days" in given:
            days = _days(given["Days"], "'Days' for Expiration action must be a positive integer")
        elif "Date" in given:
            date = _date(given["Date"])
    return Rule(
        prefix=where.prefix,
        tags=where.tags,
        larger_than=where.larger_than,
        smaller_than=where.smaller_than,
        days=days,
        date=date,
        abort_days=None
        if abort is None
        else _days(
            abort.findtext("DaysAfterInitiation") or "",
            "'DaysAfterInitiation' for AbortIncompleteMultipartUpload action must be a positive integer",
        ),
    )


def _filter(element: ElementTree.Element) -> Rule:
    """A rule's filter, as a rule without actions."""
    found = element.find("Filter")
    if found is None:
        return Rule(prefix=element.findtext("Prefix") or "")
    both = found.find("And")
    parts = list(found if both is None else both)
    if (both is None and len(parts) > 1) or (both is not None and len(found) > 1):
        raise malformed()
    if not {each.tag for each in parts} <= _FILTERS:
        raise malformed()
    tags: dict[str, str] = {}
    for each in parts:
        if each.tag == "Tag":
            tags[each.findtext("Key") or ""] = each.findtext("Value") or ""
    told = {each.tag: each.text or "" for each in parts if each.tag != "Tag"}
    try:
        larger = int(told.get("ObjectSizeGreaterThan", "-1"))
        smaller = float(int(told["ObjectSizeLessThan"])) if "ObjectSizeLessThan" in told else math.inf
    except ValueError:
        raise malformed() from None
    if smaller <= larger:
        raise _invalid("'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'")
    return Rule(prefix=told.get("Prefix", ""), tags=tags, larger_than=larger, smaller_than=smaller)


def _days(text: str, message: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and 0 < int(text[:11]) < 1 << 31):
        raise _invalid(message)
    return int(text)


def _date(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise malformed() from None
    if found.tzinfo is None or found.timestamp() % DAY:
        raise _invalid("'Date' must be at midnight GMT")
    return found.timestamp()


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidArgument", message)
