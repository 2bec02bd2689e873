"""The models' regular expressions, which are Java's, as Python's.

Translated: `\\p{…}` outside and inside brackets, a `[` inside brackets, `-` after a class such as `\\w`
(Java takes it literally), surrogate pairs written as `\\uD800\\uDC00`, and quantifiers on an anchor
(`${1,128}`). Matching is anchored at both ends, as AWS's is, whatever the pattern says.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_POSIX = {
    "Alnum": "a-zA-Z0-9",
    "Alpha": "a-zA-Z",
    "Digit": "0-9",
    "Lower": "a-z",
    "Upper": "A-Z",
    "Punct": r"!-/:-@\[-`{-~",
    "Space": r" \t\n\x0b\f\r",
    "ASCII": r"\x00-\x7f",
    "XDigit": "0-9a-fA-F",
    "Print": r"\x20-\x7e",
    "Graph": r"\x21-\x7e",
    "Blank": r" \t",
    "Cntrl": r"\x00-\x1f\x7f",
}


#: the planes that have characters; beyond them everything is unassigned or for private use
_ASSIGNED = (range(0x40000), range(0xE0000, 0xE0200))


@cache
def _all_categories() -> dict[str, str]:
    """Category ("Lu", and "L" for all that begin so) -> the inside of a character class."""
    ranges: dict[str, list[list[int]]] = {}
    for codes in _ASSIGNED:
        for code in codes:
            name = unicodedata.category(chr(code))
            if name[0] == "C":
                continue
            for category in (name, name[0]):
                spans = ranges.setdefault(category, [])
                if spans and spans[-1][1] == code - 1:
                    spans[-1][1] = code
                else:
                    spans.append([code, code])
    return {category: "".join(_span(low, high) for low, high in spans) for category, spans in ranges.items()}


def _span(low: int, high: int) -> str:
    first = f"\\U{low:08x}"
    return first if low == high else f"{first}-\\U{high:08x}"


def _property(name: str) -> str:
    """The inside of a class for `\\p{name}`; LookupError when it is not known."""
    if name in _POSIX:
        return _POSIX[name]
    return _all_categories()[name.removeprefix("Is")]


_PIECE = re.compile(
    r"""\\[pP]\{\^?(?P<name>\w+)\}          # a property
    | \\[pP](?P<letter>[A-Z])               # a property of one letter
    | \\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})   # a surrogate pair
    | \\u(?P<odd>10[0-9a-fA-F]{4})          # a code point of six digits, as sts's "\u10FFFF" means
    | \\[wdsWDS]-(?=[^\]])                  # a range cannot begin with a class: the "-" is itself
    | \\.                                   # any other escape
    | \$\{ | \$(?=[*+?])                    # a quantifier on an anchor
    | \[ | \] | .
    """,
    re.VERBOSE | re.DOTALL,
)


def translate(pattern: str) -> str:
    """A Java pattern in Python's notation."""
    out: list[str] = []
    inside = False
    first = False
    for found in _PIECE.finditer(pattern):
        piece = found[0]
        name = found["name"] or found["letter"]
        was_first, first = first, False
        if name:
            negated = piece[1] == "P" or "{^" in piece
            if inside and negated:
                raise ValueError(f"a negated property inside a class: {pattern}")
            members = _property(name)
            out.append(members if inside else f"[{'^' if negated else ''}{members}]")
        elif found["high"]:
            high, low = int(found["high"], 16), int(found["low"], 16)
            out.append(f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}")
        elif found["odd"]:
            out.append(f"\\U{int(found['odd'], 16):08x}")
        elif piece[0] == "\\" and len(piece) == 3:
            out.append(f"{piece[:2]}\\-" if inside else piece)
        elif piece == "${":
            out.append("(?:$){")
        elif piece == "$" and not inside:
            # Java's and Python's "$" both also stand before a last newline; anchoring decides here.
            out.append(
                r"\Z" if found.end() == len(pattern) else "(?:$)" if _quantified(pattern, found) else "$"
            )
        elif piece == "[":
            if inside:
                out.append(r"\[")
            else:
                inside = first = True
                out.append(piece)
        elif piece == "^" and was_first:
            first = True
            out.append(piece)
        elif piece == "]" and inside and not was_first:
            inside = False
            out.append(piece)
        else:
            out.append(piece)
    return "".join(out)


def _quantified(pattern: str, found: re.Match[str]) -> bool:
    return pattern[found.end() : found.end() + 1] in ("*", "+", "?")


@cache
def compiled(pattern: str) -> re.Pattern[str] | None:
    """The pattern ready for `fullmatch`; None when it cannot be said in Python, and so is not checked."""
    try:
        return re.compile(translate(pattern), re.ASCII)  # Java's \d, \w and \s are ASCII's
    except (re.error, ValueError, LookupError):
        return None
