"""Wildcards and policy variables.

`*` is any run of characters (also across ':' and '/'), `?` exactly one. In documents of version
2012-10-17 `${key}` is the value of a single-valued context key, `${key, 'default'}` the same with a
default, and `${*}` `${?}` `${$}` are the plain characters. A value put in for a variable is never read as
a wildcard. A variable without value and without default matches nothing.
AWS: IAM user guide, "IAM policy elements: variables and tags" and "JSON policy elements: Resource".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

#: the single value of a context key, by its name in lower case; None: not in the request
Lookup = Callable[[str], str | None]

_VARIABLE = re.compile(r"\$\{\s*([^}',]*?)\s*(?:,\s*'([^']*)'\s*)?\}")
_PLAIN = {"*", "?", "$"}

#: a piece of a pattern: literal text, a wildcard, or a variable with its default
Piece = tuple[str, str, str | None]


@lru_cache(maxsize=8192)
def pieces(text: str, variables: bool) -> tuple[Piece, ...]:
    """`text` as ("text", s, None), ("wild", "*" or "?", None) and ("variable", key, default) pieces."""
    found: list[Piece] = []

    def plain(part: str) -> None:
        for run in re.findall(r"[*?]|[^*?]+", part):
            found.append(("wild", run, None) if run in ("*", "?") else ("text", run, None))

    at = 0
    for match in _VARIABLE.finditer(text) if variables else ():
        plain(text[at : match.start()])
        key, default = match.group(1), match.group(2)
        if key in _PLAIN:
            found.append(("text", key, None))
        else:
            found.append(("variable", key.lower(), default))
        at = match.end()
    plain(text[at:])
    return tuple(found)


def has_variable(text: str, variables: bool) -> bool:
    return variables and any(kind == "variable" for kind, _, _ in pieces(text, True))


def resolve(text: str, variables: bool, lookup: Lookup) -> str | None:
    """`text` with its variables replaced and wildcards taken literally; None if a variable has no value."""
    if not variables or "${" not in text:
        return text
    out: list[str] = []
    for kind, value, default in pieces(text, True):
        if kind == "variable":
            known = lookup(value)
            known = default if known is None else known
            if known is None:
                return None
            out.append(known)
        else:
            out.append(value)
    return "".join(out)


def _source(parts: Iterable[tuple[bool, str]]) -> str:
    """A regular expression for wildcards (True, "*") and literals (False, "text").

    Every `*` but the last takes the shortest run before what follows it and never looks back (an atomic
    group): for globs the leftmost match is always as good, and it keeps matching linear, where `.*a.*a.*a`
    would take time exponential in its stars."""
    segments: list[str] = [""]
    for wild, value in parts:
        if wild and value == "*":
            if segments[-1] or len(segments) == 1:
                segments.append("")
        else:
            segments[-1] += "." if wild else re.escape(value)
    if len(segments) == 1:
        return segments[0]
    first, *inner, last = segments
    return first + "".join(f"(?>.*?{part})" for part in inner) + ".*" + last


@lru_cache(maxsize=8192)
def _compiled(source: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(source, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


class Patterns:
    """Several patterns, of which one must match. Those without variables are one regular expression."""

    __slots__ = ("_dynamic", "_static", "anything")

    def __init__(self, texts: Iterable[str], *, variables: bool = False, ignore_case: bool = False) -> None:
        static: list[str] = []
        dynamic: list[tuple[Piece, ...]] = []
        self.anything = False
        for text in texts:
            parts = pieces(text, variables)
            self.anything = self.anything or text == "*"
            if any(kind == "variable" for kind, _, _ in parts):
                dynamic.append(parts)
            else:
                static.append(_source((kind == "wild", value) for kind, value, _ in parts))
        self._static = _compiled("|".join(f"(?:{one})" for one in static), ignore_case) if static else None
        self._dynamic = tuple(dynamic)

    def match(self, value: str, lookup: Lookup) -> bool:
        if self.anything:
            return True
        if self._static is not None and self._static.fullmatch(value):
            return True
        return any(self._match_dynamic(parts, value, lookup) for parts in self._dynamic)

    @staticmethod
    def _match_dynamic(parts: tuple[Piece, ...], value: str, lookup: Lookup) -> bool:
        known: list[tuple[bool, str]] = []
        for kind, text, default in parts:
            if kind == "variable":
                found = lookup(text)
                found = default if found is None else found
                if found is None:
                    return False
                known.append((False, found))
            else:
                known.append((kind == "wild", text))
        return _compiled(_source(known), False).fullmatch(value) is not None
