"""Condition operators.

AWS: IAM user guide, "IAM JSON policy elements: Condition operators" and "Multivalued context keys".

A context maps key names (in lower case here) to a str, bool, number, bytes, or, for a multivalued key, a
tuple or list of them. An empty tuple is a key that is not there.

    key missing:   Null "true" holds; …IfExists and ForAllValues hold; ForAnyValue does not;
                   a negated operator (…Not…) holds; every other does not
    key present:   a positive operator holds when one value of the policy matches,
                   a negated one when none does
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cloister.iam.patterns import Lookup, Patterns, has_variable, resolve

Value = str | bool | int | float | bytes
Context = Mapping[str, Any]
#: does this value of the request match this value of the policy?
Test = Callable[[Value, Lookup], bool]


def text_of(value: Value) -> str:
    """A context value as policies see it: booleans in lower case, numbers without needless '.0'."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def lookup_in(context: Context) -> Lookup:
    """Policy variables read single-valued keys only; a multivalued key has no value there."""

    def lookup(key: str) -> str | None:
        value = context.get(key)
        return None if value is None or isinstance(value, (tuple, list)) else text_of(value)

    return lookup


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# -- one maker per family: the policy's value -> Test; raises ValueError when it cannot be such a value --


def _string(value: str, variables: bool) -> Test:
    if not has_variable(value, variables):
        fixed = resolve(value, variables, lambda key: None)
        return lambda have, lookup: text_of(have) == fixed
    return lambda have, lookup: text_of(have) == resolve(value, variables, lookup)


def _string_ignore_case(value: str, variables: bool) -> Test:
    def test(have: Value, lookup: Lookup) -> bool:
        want = resolve(value, variables, lookup)
        return want is not None and text_of(have).casefold() == want.casefold()

    return test


def _string_like(value: str, variables: bool) -> Test:
    patterns = Patterns((value,), variables=variables)
    return lambda have, lookup: patterns.match(text_of(have), lookup)


def _arn(value: str, variables: bool) -> Test:
    # "Each of the six colon-delimited components of the ARN is checked separately and each can include *
    # or ?"; a lone "*" is any ARN. Variables hold colons of their own, so split only outside of them.
    parts = [
        part.replace("\x00", ":")
        for part in re.sub(r"\$\{[^}]*\}", lambda m: m[0].replace(":", "\x00"), value).split(":", 5)
    ]
    whole = Patterns((value,), variables=variables)
    if len(parts) != 6:
        return lambda have, lookup: whole.match(text_of(have), lookup)
    patterns = [Patterns((part,), variables=variables) for part in parts]

    def test(have: Value, lookup: Lookup) -> bool:
        given = text_of(have).split(":", 5)
        return len(given) == 6 and all(
            pattern.match(part, lookup) for pattern, part in zip(patterns, given, strict=True)
        )

    return test


def _variable(make: Callable[[str, bool], Test], value: str) -> Test:
    """A typed test whose value is only known with the request."""

    def test(have: Value, lookup: Lookup) -> bool:
        want = resolve(value, True, lookup)
        if want is None:
            return False
        try:
            return make(want, False)(have, lookup)
        except ValueError:
            return False

    return test


def _ordered(read: Callable[[Value], float], compare: Callable[[float, float], bool]) -> Any:
    def make(value: str, variables: bool) -> Test:
        if has_variable(value, variables):
            return _variable(make, value)
        want = read(value)

        def test(have: Value, lookup: Lookup) -> bool:
            try:
                return compare(read(have), want)
            except ValueError:
                return False

        return test

    return make


def _number(value: Value) -> float:
    if isinstance(value, (bool, bytes)):
        raise ValueError(f"not a number: {value!r}")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):  # float() also reads "1_000", "inf" and " 1"
        raise ValueError(f"not a number: {value}")
    number = float(value)
    if number != number:
        raise ValueError("not a number: NaN")
    return number


def _instant(value: Value) -> float:
    """POSIX seconds of an ISO 8601 (W3C) date or of a number of seconds."""
    if isinstance(value, (bool, bytes)):
        raise ValueError(f"not a date: {value!r}")
    if not isinstance(value, str):
        return float(value)
    if re.fullmatch(r"\d{4}", value):
        return datetime(int(value), 1, 1, tzinfo=UTC).timestamp()
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value)
    if re.fullmatch(r"\d{4}-\d{2}", value):
        value += "-01"
    when = datetime.fromisoformat(value)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _bool(value: str, variables: bool) -> Test:
    if has_variable(value, variables):
        return _variable(_bool, value)
    want = value.lower()
    if want not in ("true", "false"):
        raise ValueError(f"not a boolean: {value}")
    return lambda have, lookup: text_of(have).lower() == want


def _binary(value: str, variables: bool) -> Test:
    try:
        want = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {value}") from error

    def test(have: Value, lookup: Lookup) -> bool:
        try:
            return (
                have if isinstance(have, bytes) else base64.b64decode(text_of(have), validate=True)
            ) == want
        except (binascii.Error, ValueError):
            return False

    return test


@lru_cache(maxsize=4096)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


def _ip(value: str, variables: bool) -> Test:
    if has_variable(value, variables):
        return _variable(_ip, value)
    network = ipaddress.ip_network(value, strict=False)

    def test(have: Value, lookup: Lookup) -> bool:
        try:
            return _address(text_of(have)) in network
        except ValueError:
            return False

    return test


_MAKERS: dict[str, tuple[Callable[[str, bool], Test], bool]] = {
    # operator: (maker, negated)
    "StringEquals": (_string, False),
    "StringNotEquals": (_string, True),
    "StringEqualsIgnoreCase": (_string_ignore_case, False),
    "StringNotEqualsIgnoreCase": (_string_ignore_case, True),
    "StringLike": (_string_like, False),
    "StringNotLike": (_string_like, True),
    "NumericEquals": (_ordered(_number, lambda a, b: a == b), False),
    "NumericNotEquals": (_ordered(_number, lambda a, b: a == b), True),
    "NumericLessThan": (_ordered(_number, lambda a, b: a < b), False),
    "NumericLessThanEquals": (_ordered(_number, lambda a, b: a <= b), False),
    "NumericGreaterThan": (_ordered(_number, lambda a, b: a > b), False),
    "NumericGreaterThanEquals": (_ordered(_number, lambda a, b: a >= b), False),
    "DateEquals": (_ordered(_instant, lambda a, b: a == b), False),
    "DateNotEquals": (_ordered(_instant, lambda a, b: a == b), True),
    "DateLessThan": (_ordered(_instant, lambda a, b: a < b), False),
    "DateLessThanEquals": (_ordered(_instant, lambda a, b: a <= b), False),
    "DateGreaterThan": (_ordered(_instant, lambda a, b: a > b), False),
    "DateGreaterThanEquals": (_ordered(_instant, lambda a, b: a >= b), False),
    "Bool": (_bool, False),
    "BinaryEquals": (_binary, False),
    "IpAddress": (_ip, False),
    "NotIpAddress": (_ip, True),
    "ArnEquals": (_arn, False),
    "ArnLike": (_arn, False),
    "ArnNotEquals": (_arn, True),
    "ArnNotLike": (_arn, True),
    "Null": (_bool, False),
}
_CANONICAL = {name.lower(): name for name in _MAKERS}
_NAME = re.compile(r"(?:(ForAllValues|ForAnyValue):)?([a-z]+?)(IfExists)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One operator on one key: `("StringEquals", "aws:sourcevpce", ("vpce-1",))`."""

    operator: str  # without prefix and suffix, as AWS spells it
    key: str  # lower case
    values: tuple[str, ...]
    quantifier: str | None = None  # "all" | "any"
    if_exists: bool = False
    negated: bool = False
    tests: tuple[Test, ...] = field(compare=False, repr=False, default=())

    def holds(self, context: Context, lookup: Lookup) -> bool:
        given: Any = context.get(self.key)
        many = isinstance(given, (tuple, list))
        missing = given is None or (many and not given)
        if self.operator == "Null":
            return any((value.lower() == "true") is missing for value in self.values)
        if missing:
            if self.if_exists or self.quantifier == "all":
                return True
            return self.negated and self.quantifier is None
        if not many:
            return self._one(given, lookup)
        if self.quantifier == "all":
            return all(self._one(value, lookup) for value in given)
        if self.quantifier == "any":
            return any(self._one(value, lookup) for value in given)
        # Several values without a quantifier: AWS leaves it open. A negated operator stays the exact
        # opposite of its positive one: it holds when no value matches.
        join = all if self.negated else any
        return join(self._one(value, lookup) for value in given)

    def _one(self, value: Value, lookup: Lookup) -> bool:
        return any(test(value, lookup) for test in self.tests) is not self.negated


def condition(operator: str, key: str, values: tuple[str, ...], *, variables: bool) -> Condition:
    """Compile one condition. Raises LookupError for an unknown operator, ValueError for a value that
    cannot be compared by it."""
    match = _NAME.fullmatch(operator)
    name = _CANONICAL.get(match.group(2).lower()) if match else None
    if match is None or name is None or (name == "Null" and match.group(3)):
        raise LookupError(operator)
    make, negated = _MAKERS[name]
    quantifier = {"forallvalues": "all", "foranyvalue": "any"}.get((match.group(1) or "").lower())
    return Condition(
        operator=name,
        key=key.lower(),
        values=values,
        quantifier=quantifier,
        if_exists=match.group(3) is not None,
        negated=negated,
        tests=tuple(make(value, variables) for value in values),
    )
