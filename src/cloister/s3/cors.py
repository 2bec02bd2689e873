"""Cross-origin requests: a bucket's CORS document, and what a browser is told by it. Pure.

AWS: "Using cross-origin resource sharing (CORS)" (S3 user guide). The first rule that matches counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from xml.etree import ElementTree

from cloister.s3.buckets import malformed, parse_xml
from cloister.wire.errors import AwsError

MOST_RULES = 100
METHODS = ("GET", "PUT", "HEAD", "POST", "DELETE")
_VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    exposed: tuple[str, ...]
    max_age: str


@lru_cache(maxsize=256)
def parse(document: bytes) -> tuple[Rule, ...]:
    """The rules of a CORSConfiguration. Raises AwsError MalformedXML, InvalidRequest."""
    root = parse_xml(document)
    rules = tuple(_rule(each) for each in root)
    if root.tag != "CORSConfiguration" or not 1 <= len(rules) <= MOST_RULES:
        raise malformed()
    return rules


def _rule(element: ElementTree.Element) -> Rule:
    told: dict[str, list[str]] = {}
    for each in element:
        told.setdefault(each.tag, []).append((each.text or "").strip())
    known = {"ID", "AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader", "MaxAgeSeconds"}
    age = told.get("MaxAgeSeconds", [""])
    if (
        element.tag != "CORSRule"
        or not set(told) <= known
        or not (told.get("AllowedOrigin") and told.get("AllowedMethod"))
        or len(age) != 1
        or not (age[0] == "" or (age[0].isascii() and age[0].isdigit()))
    ):
        raise malformed()
    for method in told["AllowedMethod"]:
        if method not in METHODS:
            raise AwsError(
                "InvalidRequest",
                f"Found unsupported HTTP method in CORS config. Unsupported method is {method[:50]}",
            )
    for what in ("AllowedOrigin", "AllowedHeader"):
        for value in told.get(what, ()):
            if value.count("*") > 1:
                raise AwsError(
                    "InvalidRequest", f'{what} "{value[:200]}" can not have more than one wildcard.'
                )
    for value in told.get("ExposeHeader", ()):
        if "*" in value:
            raise AwsError(
                "InvalidRequest",
                f'ExposeHeader "{value[:200]}" contains wildcard. We currently do not support wildcard for '
                "ExposeHeader.",
            )
    return Rule(
        origins=tuple(told["AllowedOrigin"]),
        methods=tuple(told["AllowedMethod"]),
        headers=tuple(each.lower() for each in told.get("AllowedHeader", ())),
        exposed=tuple(told.get("ExposeHeader", ())),
        max_age=age[0],
    )


def told(rules: tuple[Rule, ...], origin: str, method: str, headers: tuple[str, ...]) -> dict[str, str]:
    """What is said to a browser at `origin` that may use this method and these headers, by their lower-case
    names; nothing when no rule lets it."""
    for rule in rules:
        allowed = next((each for each in rule.origins if _matches(origin, each)), None)
        if (
            allowed is not None
            and method in rule.methods
            and all(any(_matches(name, each) for each in rule.headers) for name in headers)
        ):
            anybody = allowed == "*"
            found = {
                "Access-Control-Allow-Origin": "*" if anybody else origin,
                "Access-Control-Allow-Methods": ", ".join(rule.methods),
                "Access-Control-Allow-Headers": ", ".join(headers),
                "Access-Control-Expose-Headers": ", ".join(rule.exposed),
                "Access-Control-Max-Age": rule.max_age,
                "Access-Control-Allow-Credentials": "" if anybody else "true",
                "Vary": _VARY,
            }
            return {name: value for name, value in found.items() if value}
    return {}


def _matches(value: str, pattern: str) -> bool:
    return fnmatchcase(value, pattern.replace("[", "[[]").replace("?", "[?]"))


def preflight(document: bytes | None, origin: str | None, method: str | None, headers: str) -> dict[str, str]:
    """The answer to OPTIONS. Raises AwsError BadRequest, AccessForbidden."""
    if not origin:
        raise AwsError("BadRequest", "Insufficient information. Origin request header needed.")
    if method not in METHODS:
        raise AwsError("BadRequest", f"Invalid Access-Control-Request-Method: {str(method or 'null')[:50]}")
    names = tuple(each.strip().lower() for each in headers.split(",") if each.strip())
    fields = {"Method": method, "ResourceType": "OBJECT"}
    if document is None:
        raise AwsError("AccessForbidden", "CORSResponse: CORS is not enabled for this bucket.", 403, **fields)
    found = told(parse(document), origin, method, names)
    if not found:
        raise AwsError(
            "AccessForbidden",
            "CORSResponse: This CORS request is not allowed. This is usually because the evalution of "
            "Origin, request method / Access-Control-Request-Method or Access-Control-Request-Headers are "
            "not whitelisted by the resource's CORS spec.",
            403,
            **fields,
        )
    return found
