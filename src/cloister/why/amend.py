"""The smallest change of a policy document that lets a request through. Pure.

What no statement allows gets a statement. A statement that denies is narrowed: the request is spared by what
the statement spares already (a condition such as StringNotEquals on aws:SourceVpce, NotAction, NotResource),
else one of several actions, resources or principals is taken out; only a statement of which nothing would be
left goes. Each way is tried out on the request before it is proposed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cloister.iam.decide import Gate, Policies, Request, decide
from cloister.iam.policy import Kind, parse

Document = dict[str, Any]

#: conditions of a Deny that spare what they list
_SPARING = ("StringNotEquals", "StringNotLike", "ArnNotEquals", "ArnNotLike", "NotIpAddress")
#: where a request comes from: the first of these that a request has is what it is let in by
_PLACES = ("aws:sourcevpce", "aws:sourcevpc", "aws:vpcsourceip", "aws:sourceip")
_VERSION = "2012-10-17"


def allowing(text: str, statement: Document) -> Document:
    """The document with a statement more."""
    document: Document = json.loads(text) if text else {"Version": _VERSION, "Statement": []}
    return {**document, "Statement": [*_statements(document), statement]}


def sparing(text: str, index: int, gate: Gate, request: Request) -> Document | None:
    """The document with its statement `index`, which denies `request`, narrowed or gone. None: the statement
    is for what comes from elsewhere, and the request comes from nowhere that it could name."""
    document: Document = json.loads(text)
    found = _statements(document)
    statement = found[index]
    for narrower in _narrower(statement, request):
        if not _denies(narrower, document.get("Version"), gate, request):
            found[index] = narrower
            return {**document, "Statement": found}
    if any(key.lower() in _PLACES for _, key, _ in _spared(statement)):
        return None
    del found[index]
    return {**document, "Statement": found}


def condition_of(text: str, index: int) -> str:
    """A statement's condition as it is written; "" when it has none."""
    condition = _statements(json.loads(text))[index].get("Condition")
    return json.dumps(condition) if condition else ""


def _statements(document: Document) -> list[Document]:
    given = document.get("Statement", [])
    return list(given) if isinstance(given, list) else [given]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _denies(statement: Document, version: str | None, gate: Gate, request: Request) -> bool:
    kind: Kind = gate
    text = json.dumps({"Version": version or _VERSION, "Statement": [statement]})
    policies = Policies(**{gate: (("", parse(text, kind)),)})
    return decide(request, policies).reason == "EXPLICIT_DENY"


def _narrower(statement: Document, request: Request) -> Iterator[Document]:
    context = {key.lower(): value for key, value in request.context.items()}
    spared = sorted(_spared(statement), key=lambda each: _rank(each[1]))
    for operator, key, values in spared:
        if (value := context.get(key.lower())) is not None and isinstance(value, str):
            condition: Mapping[str, Any] = statement["Condition"]
            changed = {**condition, operator: {**condition[operator], key: [*values, value]}}
            yield {**statement, "Condition": changed}
    for member, value in (("NotAction", request.action), ("NotResource", request.resource)):
        if member in statement:
            yield {**statement, member: [*_listed(statement[member]), value]}
    exact = (request.action.lower(), request.resource.lower())
    for plain in (True, False):  # what names the request itself, then patterns
        for member in ("Action", "Resource"):
            values = _listed(statement.get(member, []))
            for value in values:
                if len(values) > 1 and (str(value).lower() in exact) is plain:
                    yield {**statement, member: [each for each in values if each != value]}
    principals = statement.get("Principal")
    if isinstance(principals, dict):
        listed = _listed(principals.get("AWS", []))
        for value in listed if len(listed) > 1 else ():
            rest = [each for each in listed if each != value]
            yield {**statement, "Principal": {**principals, "AWS": rest}}


def _spared(statement: Document) -> Iterator[tuple[str, str, list[Any]]]:
    """(operator, key, values) of the conditions that except something from a Deny."""
    for operator, keys in (statement.get("Condition") or {}).items():
        if operator.removesuffix("IfExists") in _SPARING:
            for key, values in keys.items():
                yield operator, key, _listed(values)


def _rank(key: str) -> int:
    lower = key.lower()
    return _PLACES.index(lower) if lower in _PLACES else len(_PLACES)
