"""XML bodies: written for ec2, query and rest-xml responses, read for rest-xml requests.

Writers are closures made once per shape and tag, so rendering a response is a walk over the result that
appends strings. Reading is safe by refusing every document type declaration: no DTD, no entities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.parsers import expat

from cloister.wire import scalars
from cloister.wire.errors import AwsError
from cloister.wire.model import Shape

Write = Callable[[Any, "list[str]"], None]

_SPECIAL = re.compile('[&<>"\r\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]')
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


def escape(text: str) -> str:
    """Text safe in an element or attribute. Characters that XML 1.0 cannot carry become U+FFFD."""
    if _SPECIAL.search(text):
        return _SPECIAL.sub(lambda found: _ESCAPES.get(found[0], "\ufffd"), text)
    return text


def writer(shape: Shape, tag: str, iso: Callable[[Any], str] = scalars.write_iso) -> Write:
    """A function that appends `<tag>…</tag>` for a value of this shape; TypeError when the value does not
    fit. `iso` is the service's way of writing timestamps."""
    key = ("xml", tag, iso)
    found: Write | None = shape.plans.get(key)
    if found is None:
        found = shape.plans[key] = _make_writer(shape, tag, iso)
    return found


def contents_writer(
    shape: Shape, iso: Callable[[Any], str] = scalars.write_iso
) -> Callable[[Mapping[str, Any], list[str]], None]:
    """A function that appends the members of a structure that travel in the body, without its own tag."""
    key = ("xml contents", iso)
    found: Callable[[Mapping[str, Any], list[str]], None] | None = shape.plans.get(key)
    if found is not None:
        return found
    table: dict[str, Write] = {}

    def write(value: Mapping[str, Any], out: list[str]) -> None:
        if not isinstance(value, Mapping):
            raise TypeError(f"{shape.name} must be a mapping, not {value!r}")
        for name, item in value.items():
            if item is None:
                continue
            write_member = table.get(name)
            if write_member is None:
                write_member = table[name] = _member_writer(shape, name, iso)
            write_member(item, out)

    shape.plans[key] = write
    return write


def _member_writer(shape: Shape, name: str, iso: Callable[[Any], str]) -> Write:
    member = shape.members.get(name)
    if member is None:
        raise TypeError(f"{shape.name} has no member {name!r}")
    if member.location is not None or member.traits.get("xmlAttribute"):
        return lambda _value, _out: None
    return writer(member, wire_name(member, name), iso)


def wire_name(member: Shape, name: str) -> str:
    """The tag of a structure's member. A flattened list goes by its own members' name when they have one."""
    if member.kind == "list" and member.flattened and member.member.location_name:
        return member.member.location_name
    return member.location_name or name


def _make_writer(shape: Shape, tag: str, iso: Callable[[Any], str]) -> Write:
    if shape.kind == "structure":
        return _structure_writer(shape, tag, iso)
    if shape.kind == "list":
        return _list_writer(shape, tag, iso)
    if shape.kind == "map":
        return _map_writer(shape, tag, iso)
    text = _text_writer(shape, iso)
    begin, end = f"<{tag}>", f"</{tag}>"
    if shape.kind in ("string", "character"):

        def write_text(value: Any, out: list[str]) -> None:
            if not isinstance(value, str):
                raise TypeError(f"{tag} must be a string, not {value!r}")
            out.append(begin + (escape(value) if _SPECIAL.search(value) else value) + end)

        return write_text

    def write(value: Any, out: list[str]) -> None:
        out.append(begin + text(value) + end)

    return write


def _text_writer(shape: Shape, iso: Callable[[Any], str]) -> Callable[[Any], str]:
    if shape.kind != "timestamp":
        return scalars.WRITERS[shape.kind]
    form = shape.traits.get("timestampFormat", "iso8601")
    return iso if form == "iso8601" else lambda value: scalars.write_timestamp(value, form)


def _structure_writer(shape: Shape, tag: str, iso: Callable[[Any], str]) -> Write:
    contents = contents_writer(shape, iso)
    attributes = {
        name: member.location_name or name
        for name, member in shape.members.items()
        if member.traits.get("xmlAttribute")
    }
    begin, end = f"<{tag}{_namespace(shape)}>", f"</{tag}>"

    def write(value: Any, out: list[str]) -> None:
        out.append(begin)
        contents(value, out)
        out.append(end)

    def write_with_attributes(value: Any, out: list[str]) -> None:
        given = "".join(
            f' {attribute}="{escape(scalars.write_string(value[name]))}"'
            for name, attribute in attributes.items()
            if value.get(name) is not None
        )
        out.append(f"<{tag}{_namespace(shape)}{given}>")
        contents(value, out)
        out.append(end)

    return write_with_attributes if attributes else write


def _namespace(shape: Shape) -> str:
    space = shape.traits.get("xmlNamespace")
    if not space:
        return ""
    if isinstance(space, str):
        return f' xmlns="{space}"'
    prefix = space.get("prefix")
    return f' xmlns{":" + prefix if prefix else ""}="{space["uri"]}"'


def _list_writer(shape: Shape, tag: str, iso: Callable[[Any], str]) -> Write:
    item_tag = tag if shape.flattened else (shape.member.location_name or "member")
    begin, end = ("", "") if shape.flattened else (f"<{tag}>", f"</{tag}>")

    def write(value: Any, out: list[str]) -> None:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{tag} must be a list, not {value!r}")
        write_item = writer(shape.member, item_tag, iso)
        out.append(begin)
        for item in value:
            write_item(item, out)
        out.append(end)

    return write


def _map_writer(shape: Shape, tag: str, iso: Callable[[Any], str]) -> Write:
    entry = tag if shape.flattened else "entry"
    begin, end = ("", "") if shape.flattened else (f"<{tag}>", f"</{tag}>")

    def write(value: Any, out: list[str]) -> None:
        if not isinstance(value, Mapping):
            raise TypeError(f"{tag} must be a mapping, not {value!r}")
        write_key = writer(shape.key, shape.key.location_name or "key", iso)
        write_value = writer(shape.value, shape.value.location_name or "value", iso)
        out.append(begin)
        for key, item in value.items():
            out.append(f"<{entry}>")
            write_key(key, out)
            write_value(item, out)
            out.append(f"</{entry}>")
        out.append(end)

    return write


# -- reading ----------------------------------------------------------------------------------------------


class Node:
    """An element: its local name, attributes, text and children."""

    __slots__ = ("attributes", "children", "tag", "text")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Node] = []
        self.text = ""


MAX_DEPTH = 64


def malformed(detail: str) -> AwsError:
    return AwsError(
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema: "
        + detail,
    )


def parse(body: bytes) -> Node:
    """The document's root. Raises MalformedXML: not well-formed, a document type, deeper than MAX_DEPTH."""
    parser = expat.ParserCreate(None, None)
    parser.buffer_text = True
    root: list[Node] = []
    stack: list[Node] = []
    texts: list[list[str]] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) >= MAX_DEPTH:
            raise malformed(f"elements are nested deeper than {MAX_DEPTH}.")
        node = Node(tag.rpartition(":")[2], attributes)
        (stack[-1].children if stack else root).append(node)
        stack.append(node)
        texts.append([])

    def end(_tag: str) -> None:
        node = stack.pop()
        node.text = "".join(texts.pop())

    def data(text: str) -> None:
        texts[-1].append(text)

    def refuse(*_: Any) -> None:
        raise malformed("a document type declaration is not allowed.")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise malformed(f"{error}.") from None
    return root[0]


def read(shape: Shape, node: Node) -> Any:
    """The value of this shape that an element holds. Raises MalformedXML."""
    if shape.kind == "structure":
        return _read_structure(shape, node)
    if shape.kind == "list":
        return [read(shape.member, child) for child in node.children]
    if shape.kind == "map":
        return dict(_read_entry(shape, child) for child in node.children)
    if node.children:
        raise malformed(f"{node.tag} holds elements where text belongs.")
    try:
        text = node.text if shape.kind in ("string", "character") else node.text.strip()
        return scalars.read_scalar(shape.kind, text, shape.traits.get("timestampFormat", "iso8601"))
    except ValueError as error:
        raise malformed(f"Value {node.text[:200]!r} of {node.tag} is not valid: {error}.") from None


def _tags(shape: Shape) -> tuple[dict[str, str], dict[str, str]]:
    """(tag -> member, attribute -> member) of a structure."""
    plan: tuple[dict[str, str], dict[str, str]] | None = shape.plans.get("xml read")
    if plan is None:
        tags: dict[str, str] = {}
        attributes: dict[str, str] = {}
        for name, member in shape.members.items():
            if member.location is not None:
                continue
            if member.traits.get("xmlAttribute"):
                attributes[member.location_name or name] = name
            else:
                # botocore writes a flattened list under its own name, AWS's documents under its members'.
                tags.setdefault(wire_name(member, name), name)
                tags.setdefault(member.location_name or name, name)
        plan = shape.plans["xml read"] = (tags, attributes)
    return plan


def _read_structure(shape: Shape, node: Node) -> dict[str, Any]:
    tags, attributes = _tags(shape)
    members = shape.members
    result: dict[str, Any] = {}
    for attribute, name in attributes.items():
        if attribute in node.attributes:
            result[name] = node.attributes[attribute]
    for child in node.children:
        name_or_none = tags.get(child.tag)
        if name_or_none is None:
            raise malformed(f"{node.tag} has no element {child.tag[:200]!r}.")
        member = members[name_or_none]
        if member.flattened and member.kind == "list":
            result.setdefault(name_or_none, []).append(read(member.member, child))
        elif member.flattened and member.kind == "map":
            key, value = _read_entry(member, child)
            result.setdefault(name_or_none, {})[key] = value
        elif name_or_none in result:
            raise malformed(f"{node.tag} repeats {child.tag}.")
        else:
            result[name_or_none] = read(member, child)
    if not node.children and node.text.strip():
        raise malformed(f"{node.tag} holds text where elements belong.")
    return result


def _read_entry(shape: Shape, entry: Node) -> tuple[Any, Any]:
    key_tag = shape.key.location_name or "key"
    value_tag = shape.value.location_name or "value"
    found = {child.tag: child for child in entry.children}
    if key_tag not in found or value_tag not in found:
        raise malformed(f"{entry.tag} must hold {key_tag} and {value_tag}.")
    return read(shape.key, found[key_tag]), read(shape.value, found[value_tag])
