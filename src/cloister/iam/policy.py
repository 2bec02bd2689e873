"""Policy documents: from JSON text to compiled statements, validated as AWS validates them on write.

AWS: IAM user guide, "Grammar of the IAM JSON policy language" and the pages of the single elements.

Kinds:  identity, session, boundary   no Principal; a resource in every statement
        resource (bucket), endpoint   Principal and resource in every statement
        trust                         Principal, no resource, only sts actions
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from cloister.iam.conditions import Condition, condition
from cloister.iam.patterns import Patterns
from cloister.wire.errors import AwsError

Kind = Literal["identity", "resource", "trust", "endpoint", "session", "boundary"]

#: characters, as the quota of the kind counts them; IAM does not count white space.
#: AWS: "IAM and AWS STS quotas", "Bucket policies are limited to 20 KB", "Control access to VPC endpoints"
LIMITS: dict[Kind, int] = {
    "identity": 10_240,  # inline policies of a role together; a managed policy: MANAGED_POLICY_LIMIT
    "boundary": 6_144,
    "session": 2_048,
    "trust": 2_048,
    "resource": 20_480,
    "endpoint": 20_480,
}
MANAGED_POLICY_LIMIT = 6_144

_CODES: dict[Kind, str] = {"resource": "MalformedPolicy", "endpoint": "InvalidPolicyDocument"}
_DOCUMENT = {"Version", "Id", "Statement"}
_STATEMENT = {
    *("Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction"),
    *("Resource", "NotResource", "Condition"),
}
_WITH_PRINCIPAL = ("resource", "trust", "endpoint")
_ACCOUNT = re.compile(r"\d{12}")
_PRINCIPAL_ARN = re.compile(
    r"arn:aws[a-z-]*:(?:iam::\d{12}:(?:root|(?:user|role)/[\x21-\x7e]+)"
    r"|sts::\d{12}:(?:assumed-role/[^/\s]+/[^/\s]+|federated-user/\S+))"
)
_UNIQUE_ID = re.compile(r"A[A-Z]{3}[A-Z0-9]{12,124}")
_SERVICE = re.compile(r"[a-z0-9][a-z0-9.-]*\.(?:amazonaws\.com(?:\.cn)?|amazon\.com|aws\.internal)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """`principals` are (type, value) pairs, type AWS, Service, Federated, CanonicalUser or "*"; None when
    the kind has none. `resources` is None in a trust policy: the role itself is the resource."""

    index: int
    sid: str | None
    effect: Literal["Allow", "Deny"]
    principals: tuple[tuple[str, str], ...] | None
    not_principal: bool
    actions: tuple[str, ...]
    not_action: bool
    resources: tuple[str, ...] | None
    not_resource: bool
    conditions: tuple[Condition, ...]
    action_patterns: Patterns = field(compare=False, repr=False)
    resource_patterns: Patterns | None = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """How a person finds it again: its Sid, else its position, "statement 1"."""
        return self.sid or f"statement {self.index + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    kind: Kind
    version: str
    statements: tuple[Statement, ...]
    id: str | None = None


def size_of(text: str) -> int:
    """The document's length as quotas count it: without white space."""
    return sum(not c.isspace() for c in text)


def parse(text: str, kind: Kind, *, code: str | None = None) -> Policy:
    """Compile a document. Equal texts share one Policy.

    Raises AwsError(`code`), by default MalformedPolicyDocument, MalformedPolicy for a bucket's and
    InvalidPolicyDocument for an endpoint's; LimitExceeded when an IAM document passes its quota."""
    try:
        return _parse(text, kind)
    except _Malformed as error:
        raise AwsError(code or _CODES.get(kind, "MalformedPolicyDocument"), str(error)) from None
    except _TooLarge as error:
        if kind in _CODES:
            raise AwsError(code or _CODES[kind], str(error)) from None
        if kind == "session":
            raise AwsError("PackedPolicyTooLarge", str(error)) from None
        raise AwsError("LimitExceeded", str(error), 409) from None


class _Malformed(Exception):
    """AWS's sentence, then the value it is about."""

    def __init__(self, sentence: str, value: object = None) -> None:
        shown = "" if value is None else json.dumps(value, default=str, ensure_ascii=False)
        if len(shown) > 200:
            shown = shown[:197] + "..."
        super().__init__(f"{sentence.rstrip('.')}: {shown}" if shown else sentence)


class _TooLarge(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Malformed("Syntax errors in policy. Duplicate element", key)
        found[key] = value
    return found


def _no_constant(text: str) -> Any:
    raise _Malformed("Syntax errors in policy. Not a JSON value", text)


#: the escape of a UTF-16 surrogate; a pair of them is a character, one alone is nothing
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _is_text(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=4096)
def _parse(text: str, kind: Kind) -> Policy:
    size = len(text.encode("utf-8", "surrogatepass")) if kind in _CODES else size_of(text)
    if size > LIMITS[kind]:
        quota = "ACLSizePerRole" if kind == "trust" else "PolicySize"
        raise _TooLarge(f"Cannot exceed quota for {quota}: {LIMITS[kind]} (the document has {size})")
    try:
        document = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise _Malformed("Syntax errors in policy. Nested too deeply") from None
    except ValueError as error:
        if kind == "resource":  # S3's own words
            raise _Malformed(
                "Policies must be valid JSON and the first byte must be '{'", str(error)
            ) from None
        raise _Malformed("Syntax errors in policy", str(error)) from None
    if _HALF.search(text) and not _is_text(document):
        raise _Malformed("Syntax errors in policy. A \\u escape is half a character")
    if not isinstance(document, dict):
        raise _Malformed("Syntax errors in policy. A policy is a JSON object, not", document)
    for name in document:
        if name not in _DOCUMENT:
            raise _Malformed("Syntax errors in policy. Unknown field", name)
    version = document.get("Version", "2008-10-17")
    if version not in ("2008-10-17", "2012-10-17"):
        raise _Malformed(
            'The policy must contain a valid version string "2012-10-17" or "2008-10-17"', version
        )
    if "Id" in document and not isinstance(document["Id"], str):
        raise _Malformed("Syntax errors in policy. Id must be a string", document["Id"])
    if "Statement" not in document:
        raise _Malformed("Syntax errors in policy. Missing required field Statement")
    raw = document["Statement"]
    blocks = raw if isinstance(raw, list) else [raw]
    if not blocks:
        raise _Malformed("Syntax errors in policy. Statement is empty!")
    statements = tuple(_statement(block, n, kind, version == "2012-10-17") for n, block in enumerate(blocks))
    sids = [statement.sid for statement in statements if statement.sid]
    for sid in sids:
        if sids.count(sid) > 1:
            raise _Malformed("Statement IDs (SID) in a single policy must be unique", sid)
    return Policy(kind=kind, version=version, statements=statements, id=document.get("Id"))


def _texts(block: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = block[name]
    values = value if isinstance(value, list) else [value]
    if not values:
        if "Action" in name:
            raise _Malformed("Policy statement must contain actions.")
        if "Resource" in name:
            raise _Malformed("Policy statement must contain resources.")
        raise _Malformed("Syntax errors in policy. Empty list in", name)
    for one in values:
        if not isinstance(one, str) or not one:
            raise _Malformed(f"Syntax errors in policy. {name} must be a string or a list of strings", one)
    return tuple(values)


def _either(block: Mapping[str, Any], name: str) -> str | None:
    """Which of Name and NotName is there; both are a syntax error."""
    if name in block and f"Not{name}" in block:
        raise _Malformed(f"Syntax errors in policy. A statement has {name} or Not{name}, not both")
    return name if name in block else f"Not{name}" if f"Not{name}" in block else None


def _statement(block: Any, index: int, kind: Kind, variables: bool) -> Statement:
    if not isinstance(block, dict):
        raise _Malformed("Syntax errors in policy. A statement is a JSON object, not", block)
    for name in block:
        if name not in _STATEMENT:
            raise _Malformed("Syntax errors in policy. Unknown field", name)
    sid = block.get("Sid")
    if sid is not None and not isinstance(sid, str):
        raise _Malformed("Syntax errors in policy. Sid must be a string", sid)
    if sid and kind in ("identity", "session", "boundary") and not re.fullmatch(r"[A-Za-z0-9]*", sid):
        raise _Malformed("Statement IDs (SID) must be alpha-numeric", sid)
    if "Effect" not in block:
        raise _Malformed("Missing required field Effect")
    effect = block["Effect"]
    if effect not in ("Allow", "Deny"):
        raise _Malformed("Syntax errors in policy. Invalid effect", effect)

    principal = _either(block, "Principal")
    if kind not in _WITH_PRINCIPAL:
        if principal:
            raise _Malformed("Policy document should not specify a principal.")
    elif not principal:
        raise _Malformed("Missing required field Principal")
    elif kind == "trust" and principal == "NotPrincipal":
        raise _Malformed("Has prohibited field NotPrincipal")

    action = _either(block, "Action")
    if not action:
        raise _Malformed(
            "Policy statement must contain actions."
            if kind not in _WITH_PRINCIPAL
            else "Missing required field Action"
        )
    actions = _texts(block, action)
    for one in actions:
        _check_action(one, kind)

    resource = _either(block, "Resource")
    if kind == "trust":
        if resource:
            raise _Malformed(f"Has prohibited field {resource}")
    elif not resource:
        raise _Malformed(
            "Policy statement must contain resources."
            if kind not in _WITH_PRINCIPAL
            else "Missing required field Resource"
        )
    resources = _texts(block, resource) if resource else None
    for one in resources or ():
        _check_resource(one, kind)
    return Statement(
        index=index,
        sid=sid or None,
        effect=effect,
        principals=_principals(block[principal], kind) if principal else None,
        not_principal=principal == "NotPrincipal",
        actions=actions,
        not_action=action == "NotAction",
        resources=resources,
        not_resource=resource == "NotResource",
        conditions=tuple(_conditions(block.get("Condition", {}), variables)),
        action_patterns=Patterns(actions, ignore_case=True),
        resource_patterns=Patterns(resources, variables=variables) if resources else None,
    )


def _check_action(action: str, kind: Kind) -> None:
    if action != "*":
        vendor, colon, name = action.partition(":")
        if not colon or not vendor or not name:
            raise _Malformed(
                "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc", action
            )
        if ":" in name:
            raise _Malformed("Actions/Condition can contain only one colon", action)
        if not re.fullmatch(r"[A-Za-z0-9-]+", vendor):
            raise _Malformed(f"Vendor {vendor} is not valid", action)
        if not re.fullmatch(r"[\w*?-]+", name, re.ASCII):
            raise _Malformed("The policy failed legacy parsing", action)
    if kind == "trust" and not action.lower().startswith("sts:"):
        raise _Malformed("AssumeRole policy may only specify STS AssumeRole actions", action)


def _check_resource(resource: str, kind: Kind) -> None:
    if resource == "*":
        return
    parts = resource.split(":", 5)
    if (parts[0] == "*" and len(parts) == 1) or re.fullmatch(r"\*+", resource):
        return
    if kind == "resource" and (parts[0] != "arn" or len(parts) < 6):
        raise _Malformed("Policy has invalid resource", resource)
    if parts[0] != "arn":
        raise _Malformed('Resource must be in ARN format or "*"', resource)
    if len(parts) < 6:
        # "arn:aws:s3*" is legal: a wildcard at a segment's end also stands for the segments after it.
        if len(parts) < 3 or not parts[-1].endswith("*"):
            raise _Malformed("The policy failed legacy parsing", resource)
        return
    partition, vendor = parts[1], parts[2]
    if not re.fullmatch(r"aws[a-z-]*|\*", partition):
        raise _Malformed(f'Partition "{partition}" is not valid for resource "{resource}"')
    if not vendor:
        raise _Malformed("Resource vendor must be fully qualified and cannot contain regexes", resource)
    if not parts[5]:
        raise _Malformed("The policy failed legacy parsing", resource)
    if vendor == "iam" and parts[3] not in ("", "*"):
        raise _Malformed("IAM resource cannot contain region information", resource)
    if vendor == "s3" and (parts[3] or parts[4]) and not parts[5].startswith(("accesspoint/", "job/", "*")):
        raise _Malformed("Resource can not contain region information or an account", resource)


def _principals(value: Any, kind: Kind) -> tuple[tuple[str, str], ...]:
    if value == "*":
        return (("*", "*"),)
    if not isinstance(value, dict) or not value:
        raise _Malformed("Invalid principal in policy", value)
    found: list[tuple[str, str]] = []
    for name in value:
        if name not in ("AWS", "Service", "Federated", "CanonicalUser"):
            raise _Malformed("Invalid principal in policy", {name: value[name]})
        for one in _texts(value, name):
            if name == "AWS" and one != "*":
                valid = _ACCOUNT.fullmatch(one) or _PRINCIPAL_ARN.fullmatch(one) or _UNIQUE_ID.fullmatch(one)
                if not valid or "*" in one or "?" in one:
                    raise _Malformed("Invalid principal in policy", {name: one})
            elif {
                "Service": not _SERVICE.fullmatch(one),
                "CanonicalUser": kind == "trust",
            }.get(name, False):
                raise _Malformed("Invalid principal in policy", {name: one})
            found.append(("*", "*") if (name, one) == ("AWS", "*") else (name, one))
    return tuple(found)


def _conditions(block: Any, variables: bool) -> Iterable[Condition]:
    if not isinstance(block, dict):
        raise _Malformed("Syntax errors in policy. Condition must be a JSON object", block)
    for operator, keys in block.items():
        if not isinstance(keys, dict) or not keys:
            raise _Malformed(f"Syntax errors in policy. {operator} must hold condition keys", keys)
        for key, value in keys.items():
            values = value if isinstance(value, list) else [value]
            texts: list[str] = []
            for one in values:
                if isinstance(one, bool):
                    texts.append("true" if one else "false")
                elif isinstance(one, (str, int, float)):
                    texts.append(str(one))
                else:
                    raise _Malformed(f"Syntax errors in policy. Invalid value for {key}", one)
            if not re.fullmatch(r"[A-Za-z0-9-]+:\S.*", key):
                raise _Malformed("Condition keys must be prefaced by a vendor, e.g., aws, s3, ec2, etc", key)
            try:
                yield condition(operator, key, tuple(texts), variables=variables)
            except LookupError:
                raise _Malformed("Invalid Condition type", operator) from None
            except (ValueError, OverflowError):
                raise _Malformed(
                    f"Syntax errors in policy. Invalid value for {operator}", {key: value}
                ) from None
