"""Input checked against the model's constraints, in AWS's words.

The json and query services report every violation in one message; EC2 and S3 report the first, in sentences
of their own. Wording: SageMaker ("1 validation error detected: Value 'local' at
'processingResources.clusterConfig.instanceType' failed to satisfy constraint: Member must satisfy enum value
set: […]", sagemaker-python-sdk#1278) and the EC2 API's error pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloister.wire import patterns
from cloister.wire.errors import AwsError
from cloister.wire.model import Shape

MAX_VIOLATIONS = 100
MAX_ECHO = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """`rule` is one of required, enum, length, range, pattern, union; `constraint` AWS's wording of it."""

    path: tuple[str, ...]
    value: Any
    rule: str
    constraint: str
    sensitive: bool = False
    #: (smallest, largest) of length and range
    limits: tuple[float | None, float | None] = (None, None)


def violations(shape: Shape, value: Any, path: tuple[str, ...] = ()) -> Iterator[Violation]:
    """What is wrong with a parsed value. Null (absent) members are only looked at for being required."""
    kind = shape.kind
    if kind == "structure":
        if shape.is_document:
            return
        for name in shape.required:
            if value.get(name) is None:
                yield Violation(
                    path=(*path, name), value=None, rule="required", constraint="Member must not be null"
                )
        if shape.traits.get("union") and sum(item is not None for item in value.values()) != 1:
            yield Violation(
                path=path, value=value, rule="union", constraint="Member must have exactly one member set"
            )
        members = shape.members
        for name, item in value.items():
            if item is not None:
                member = members[name]
                if _constrained(member):
                    yield from violations(member, item, (*path, name))
        return
    if kind == "list":
        yield from _own(shape, value, path)
        yield from _items(shape, value, path)
        return
    if kind == "map":
        yield from _own(shape, value, path)
        yield from _entries(shape, value, path)
        return
    yield from _own(shape, value, path)


def _items(shape: Shape, value: list[Any], path: tuple[str, ...]) -> Iterator[Violation]:
    member = shape.member
    if not _constrained(member):
        return
    if member.kind in ("structure", "list", "map"):
        for number, item in enumerate(value, 1):
            if item is not None:
                yield from violations(member, item, (*path, str(number), "member"))
    elif any(True for item in value if item is not None for _ in _own(member, item, path)):
        # One violation for a list of scalars, as AWS reports it: the whole list and all its rules.
        text = f"Member must satisfy constraint: [{', '.join(_rules(member))}]"
        yield Violation(path=path, value=value, rule=_first_rule(member, value), constraint=text)


def _first_rule(member: Shape, value: list[Any]) -> str:
    return next(found.rule for item in value if item is not None for found in _own(member, item, ()))


def _entries(shape: Shape, value: dict[Any, Any], path: tuple[str, ...]) -> Iterator[Violation]:
    if any(True for key in value for _ in _own(shape.key, key, path)):
        text = f"Map keys must satisfy constraint: [{', '.join(_rules(shape.key))}]"
        yield Violation(path=path, value=value, rule="pattern", constraint=text)
    item_shape = shape.value
    if not _constrained(item_shape):
        return
    if item_shape.kind in ("structure", "list", "map"):
        for key, item in value.items():
            if item is not None:
                yield from violations(item_shape, item, (*path, str(key), "member"))
    elif any(True for item in value.values() if item is not None for _ in _own(item_shape, item, path)):
        text = f"Map value must satisfy constraint: [{', '.join(_rules(item_shape))}]"
        yield Violation(path=path, value=value, rule="pattern", constraint=text)


def _own(shape: Shape, value: Any, path: tuple[str, ...]) -> Iterator[Violation]:
    """Violations of the constraints that stand on this shape itself."""
    if not _has_rules(shape):
        return
    sensitive = bool(shape.traits.get("sensitive"))

    def violation(rule: str, constraint: str) -> Violation:
        limits = (shape.minimum, shape.maximum)
        return Violation(
            path=path, value=value, rule=rule, constraint=constraint, sensitive=sensitive, limits=limits
        )

    if shape.enum and value not in shape.enum:
        yield violation("enum", _enum_rule(shape))
    sized = shape.kind in ("string", "blob", "list", "map")
    measure = _length(value) if sized else value
    rule = "length" if sized else "range"
    if isinstance(measure, int | float):
        if shape.maximum is not None and measure > shape.maximum:
            yield violation(rule, _limit_rule(rule, "less", shape.maximum))
        if shape.minimum is not None and measure < shape.minimum:
            yield violation(rule, _limit_rule(rule, "greater", shape.minimum))
    if shape.pattern and isinstance(value, str):
        pattern = patterns.compiled(shape.pattern)
        # Too long is already said; a pattern is not tried on more than the model could ever allow.
        too_long = shape.maximum is not None and len(value) > shape.maximum
        if pattern is not None and not too_long and not pattern.fullmatch(value):
            yield violation("pattern", _pattern_rule(shape))


def _length(value: Any) -> int:
    """AWS counts UTF-16 units; that differs from characters only beyond the basic plane."""
    if isinstance(value, str) and not value.isascii():
        return len(value.encode("utf-16-le", "surrogatepass")) // 2
    return len(value)


def _enum_rule(shape: Shape) -> str:
    return f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"


def _limit_rule(rule: str, side: str, limit: float) -> str:
    return f"Member must have {'length' if rule == 'length' else 'value'} {side} than or equal to {limit}"


def _pattern_rule(shape: Shape) -> str:
    return f"Member must satisfy regular expression pattern: {shape.pattern}"


def _rules(shape: Shape) -> list[str]:
    """Every rule that stands on a scalar, in the order AWS lists them."""
    rule = "length" if shape.kind in ("string", "blob") else "range"
    rules = []
    if shape.maximum is not None:
        rules.append(_limit_rule(rule, "less", shape.maximum))
    if shape.minimum is not None:
        rules.append(_limit_rule(rule, "greater", shape.minimum))
    if shape.pattern:
        rules.append(_pattern_rule(shape))
    if shape.enum:
        rules.append(_enum_rule(shape))
    return rules


def _has_rules(shape: Shape) -> bool:
    return bool(shape.enum or shape.pattern or shape.minimum is not None or shape.maximum is not None)


def _constrained(shape: Shape) -> bool:
    """Whether anything at or below this shape can be violated. Recursive shapes count as constrained."""
    known: bool | None = shape.plans.get("constrained")
    if known is None:
        shape.plans["constrained"] = True  # the answer while we are below it
        kind = shape.kind
        known = _has_rules(shape)
        if kind == "structure":
            known = bool(
                shape.required or shape.traits.get("union") or any(map(_constrained, shape.members.values()))
            )
        elif kind == "list":
            known = known or _constrained(shape.member)
        elif kind == "map":
            known = known or _constrained(shape.key) or _constrained(shape.value)
        shape.plans["constrained"] = known
    return known


# -- as an error ------------------------------------------------------------------------------------------

#: services whose error code differs from their protocol's
_CODES = {"logs": "InvalidParameterException"}
_PROTOCOL_CODES = {
    "json": "ValidationException",
    "rest-json": "ValidationException",
    "query": "ValidationError",
}


def check(service: str, protocol: str, shape: Shape | None, params: dict[str, Any]) -> None:
    """Raises the AwsError that this service answers when `params` break the model's constraints."""
    if shape is None:
        return
    first = next(found := violations(shape, params), None)
    if first is None:
        return
    if protocol == "ec2":
        raise _ec2_error(shape, first)
    if protocol == "rest-xml":
        raise _s3_error(first)
    every = [first]
    for violation in found:
        every.append(violation)
        if len(every) == MAX_VIOLATIONS:
            break
    count = len(every)
    message = f"{count} validation error{'s' if count > 1 else ''} detected: " + "; ".join(map(_say, every))
    raise AwsError(_CODES.get(service) or _PROTOCOL_CODES[protocol], message)


def _say(violation: Violation) -> str:
    where = ".".join(_camel(part) for part in violation.path)
    if violation.value is None:
        value = "Value null at"
    elif violation.sensitive:
        value = "Value at"
    else:
        value = f"Value '{show(violation.value)}' at"
    return f"{value} '{where}' failed to satisfy constraint: {violation.constraint}"


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]


def show(value: Any) -> str:
    """A value as AWS's (Java's) messages show it, cut at MAX_ECHO characters."""
    text = _show(value)
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "..."


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(_show(item) for item in value[:MAX_ECHO])}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_show(item)}" for key, item in list(value.items())[:MAX_ECHO]) + "}"
    return str(value)


def _ec2_path(shape: Shape, path: tuple[str, ...]) -> str:
    """The parameter's name as it goes over EC2's wire: TagSpecification.1.ResourceType."""
    from cloister.wire.ec2 import wire_name

    parts = []
    for part in path:
        if shape.kind == "structure":
            shape, part = shape.members[part], wire_name(shape.members[part], part)
        elif part == "member":
            shape = shape.member
            continue
        parts.append(part)
    return ".".join(parts)


def _ec2_error(shape: Shape, violation: Violation) -> AwsError:
    name = _ec2_path(shape, violation.path)
    if violation.rule == "required":
        return AwsError("MissingParameter", f"The request must contain the parameter {name}")
    value = "" if violation.sensitive else show(violation.value)
    message = f"Value ({value}) for parameter {_camel(name)} is invalid."
    if violation.rule == "range":
        low, high = violation.limits
        if high is not None and violation.value > high:
            message += f" Expecting a value less than or equal to {high}."
        elif low is not None:
            message += f" Expecting a value greater than or equal to {low}."
    elif violation.rule in ("length", "pattern"):
        message += f" {violation.constraint}."
    return AwsError("InvalidParameterValue", message)


def _s3_error(violation: Violation) -> AwsError:
    name = violation.path[-1] if violation.path else ""
    if len(violation.path) > 1:
        return AwsError(
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema: "
            f"{_say(violation)}",
        )
    if violation.rule == "required":
        return AwsError("InvalidRequest", f"Missing required parameter {name}", ArgumentName=name)
    value = show(violation.value)
    return AwsError(
        "InvalidArgument",
        f"Value '{value}' of {name} is not valid: {violation.constraint}",
        ArgumentName=name,
        ArgumentValue=value,
    )
