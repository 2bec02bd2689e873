"""Form bodies of the query and ec2 protocols: `A=1&Filter.1.Name=x` into nested parameters.

Index numbers are only keys of a dict here, sorted when a list is read, so `Filter.999999999.Name` costs
one entry and not a billion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from cloister.wire import scalars
from cloister.wire.errors import AwsError
from cloister.wire.model import Shape

#: text at a leaf, a dict of the next parts of the name elsewhere
Tree: TypeAlias = "str | dict[str, Any]"
Read: TypeAlias = Callable[[Tree, str], Any]
#: (code, parameter's name, value, what is wrong) -> the protocol's error
Complain: TypeAlias = Callable[[str, str, str], AwsError]

MAX_DEPTH = 32
MAX_FIELDS = 20_000


def fields(text: str) -> list[tuple[str, str]]:
    """Names and values, percent-decoded as UTF-8. Raises AwsError MalformedQueryString."""
    if text.count("&") >= MAX_FIELDS:
        raise AwsError("MalformedQueryString", f"The request holds more than {MAX_FIELDS} parameters.")
    found = []
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            found.append((_decode(name), _decode(value)))
    return found


def _decode(text: str) -> str:
    if "%" not in text and "+" not in text:
        if text.isascii():
            return text
        raise AwsError(
            "MalformedQueryString", "The request's parameters hold characters that are not encoded."
        )
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeError:
        raise AwsError("MalformedQueryString", f"The parameter {text[:200]!r} is not UTF-8.") from None


def tree(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Names split at their dots into nested dicts. Raises AwsError when two parameters contradict."""
    root: dict[str, Any] = {}
    for name, value in pairs:
        at = root
        parts = name.split(".")
        if len(parts) > MAX_DEPTH:
            raise AwsError("MalformedQueryString", f"The parameter {name[:200]!r} is nested too deeply.")
        for part in parts[:-1]:
            below = at.setdefault(part, {})
            if not isinstance(below, dict):
                raise AwsError(
                    "MalformedQueryString", f"The parameter {name[:200]!r} contradicts another one."
                )
            at = below
        if parts[-1] in at:
            raise AwsError("MalformedQueryString", f"The parameter {name[:200]!r} is given twice.")
        at[parts[-1]] = value
    return root


class Dialect:
    """How one of the two protocols names things, and how it complains."""

    def __init__(
        self,
        key: str,
        name: Callable[[Shape, str], str],
        complain: Complain,
        *,
        lists_are_flat: bool,
    ) -> None:
        self.key = key
        self.name = name
        self.complain = complain
        self.lists_are_flat = lists_are_flat

    def read(self, shape: Shape, node: Tree, path: str) -> Any:
        kind = shape.kind
        if kind == "structure":
            return self._structure(shape, node, path)
        if kind == "list":
            return self._list(shape, node, path)
        if kind == "map":
            return self._map(shape, node, path)
        if isinstance(node, dict):
            raise self.complain(path, next(iter(node), ""), "a single value belongs there")
        if kind == "string":
            return node
        try:
            return scalars.read_scalar(kind, node, shape.traits.get("timestampFormat", "iso8601"))
        except ValueError as error:
            raise self.complain(path, node, str(error)) from None

    def _names(self, shape: Shape) -> dict[str, tuple[str, Shape]]:
        names: dict[str, tuple[str, Shape]] | None = shape.plans.get(self.key)
        if names is None:
            names = {}
            for name, member in shape.members.items():
                names.setdefault(self.name(member, name), (name, member))
            shape.plans[self.key] = names
        return names

    def _structure(self, shape: Shape, node: Tree, path: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            if node == "":
                return {}
            raise self.complain(path, node, "a structure belongs there")
        names = self._names(shape)
        result: dict[str, Any] = {}
        for part, below in node.items():
            known = names.get(part)
            if known is None:
                where = f"{path}.{part}" if path else part
                # Never dropped in silence: what is asked for and not done must be said.
                raise AwsError("UnknownParameter", f"The parameter {where[:200]} is not recognized")
            name, member = known
            result[name] = self.read(member, below, f"{path}.{part}" if path else part)
        return result

    def _list(self, shape: Shape, node: Tree, path: str) -> list[Any]:
        if node == "":
            return []
        if isinstance(node, dict) and not (self.lists_are_flat or shape.flattened):
            item = shape.member.location_name or "member"
            if list(node) == [item]:
                node, path = node[item], f"{path}.{item}"
            if node == "":
                return []
        return [self.read(shape.member, below, where) for _, below, where in self._numbered(node, path)]

    def _map(self, shape: Shape, node: Tree, path: str) -> dict[Any, Any]:
        if node == "":
            return {}
        if isinstance(node, dict) and not shape.flattened and list(node) == ["entry"]:
            node, path = node["entry"], f"{path}.entry"
        key_name = shape.key.location_name or "key"
        value_name = shape.value.location_name or "value"
        result: dict[Any, Any] = {}
        for _, entry, where in self._numbered(node, path):
            if not isinstance(entry, dict) or set(entry) != {key_name, value_name}:
                raise self.complain(where, "", f"{key_name} and {value_name} belong there")
            key = self.read(shape.key, entry[key_name], f"{where}.{key_name}")
            result[key] = self.read(shape.value, entry[value_name], f"{where}.{value_name}")
        return result

    def _numbered(self, node: Tree, path: str) -> list[tuple[int, Tree, str]]:
        if not isinstance(node, dict):
            raise self.complain(path, node, "a list belongs there")
        found: list[tuple[int, Tree, str]] = []
        for part, below in node.items():
            if not (part.isascii() and part.isdigit() and len(part) <= 10):
                raise self.complain(f"{path}.{part[:40]}", "", "a list's entries are numbered")
            found.append((int(part), below, f"{path}.{part}"))
        found.sort(key=lambda one: one[0])
        return found


#: parameters of the query string that belong to the call and its signature, not to the operation
_ENVELOPE = frozenset(
    {"Action", "Version", "AWSAccessKeyId", "Signature", "SignatureMethod", "SignatureVersion"}
)


def parameters(query: str, body: bytes) -> list[tuple[str, str]]:
    """The parameters of a call, from its query string (without a presigned signature's) and its form body."""
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        raise AwsError("MalformedQueryString", "The request's parameters are not percent-encoded.") from None
    pairs = [pair for pair in fields(query) if not pair[0].startswith("X-Amz-")] if query else []
    return pairs + fields(text)


def action(pairs: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """(Action, Version) of a call."""
    found = dict(pairs)
    return found.get("Action"), found.get("Version")


def operands(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The tree of an operation's own parameters."""
    return tree([pair for pair in pairs if pair[0] not in _ENVELOPE])
