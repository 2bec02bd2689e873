"""DeleteObjects: the documents of a request that names many keys, the client's and the store's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

from cloister.s3.buckets import XMLNS, malformed, parse_xml
from cloister.s3.listing import text

_MOST = 1000


def parse(body: bytes) -> tuple[list[tuple[str, str]], bool]:
    """The keys to be deleted, each with its version or "", and whether only errors are to be told.
    Raises MalformedXML."""
    root = parse_xml(body)
    found = [
        (each.findtext("Key") or "", each.findtext("VersionId") or "") for each in root.findall("Object")
    ]
    if root.tag != "Delete" or not 1 <= len(found) <= _MOST:
        raise malformed()
    return found, (root.findtext("Quiet") or "").lower() == "true"


def document(names: Iterable[str]) -> bytes:
    """The request for the store, of its own names."""
    rows = "".join(f"<Object><Key>{text(name)}</Key></Object>" for name in names)
    return f"<Delete>{rows}</Delete>".encode()


def told(answer: bytes) -> Iterator[tuple[str, str | None, str]]:
    """(name, code, message) of what the store answers; no code: it is deleted."""
    for each in parse_xml(answer):
        name = each.findtext("Key") or ""
        if each.tag == "Deleted":
            yield name, None, ""
        elif each.tag == "Error":
            yield name, each.findtext("Code") or "", each.findtext("Message") or ""


def deleted(key: str) -> str:
    return f"<Deleted><Key>{text(key)}</Key></Deleted>"


def error(key: str, code: str, message: str, version: str = "") -> str:
    which = f"<VersionId>{escape(version)}</VersionId>" if version else ""
    told = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    return f"<Error><Key>{text(key)}</Key>{which}{told}</Error>"


def answer(rows: Iterable[str]) -> bytes:
    """Of `deleted` and `error`."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult {XMLNS}>{"".join(rows)}</DeleteResult>'
    ).encode()
