"""CloudWatch Logs filter patterns: text -> predicate over a message. Pure.

AWS: "Filter pattern syntax". Done: terms, quoted phrases, `?optional`, `-excluded` terms, and JSON patterns
`{ ($.a.b = "x*" || $.n >= 3) && $.list[0] IS NULL }`. Regular expressions (%…%) and space-delimited
patterns ([a, b]) are refused by name. A term matches anywhere in the message, by case (choice of ours:
AWS does not say where words end). As in AWS, `?` is ignored when there are other terms.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from typing import Any

Predicate = Callable[[str], bool]
_Test = Callable[[Any], bool]


class BadPattern(ValueError):
    """The pattern is malformed, or uses what Cloister does not implement; the text says which."""


def compile_pattern(text: str | None) -> Predicate:
    """Raises BadPattern."""
    text = (text or "").strip()
    if not text:
        return lambda message: True
    if text.startswith("{"):
        return _json_pattern(text)
    if text.startswith("["):
        raise BadPattern("Cloister does not implement space-delimited filter patterns ([...]) yet")
    return _term_pattern(text)


_TERM = re.compile(r'\s*([?-]?)(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))')


def _term_pattern(text: str) -> Predicate:
    required: list[str] = []
    optional: list[str] = []
    excluded: list[str] = []
    place = 0
    while place < len(text):
        found = _TERM.match(text, place)
        if found is None:
            raise BadPattern("Invalid filter pattern: a quotation mark is not closed")
        mark, phrase, word = found.groups()
        if word is not None and len(word) > 1 and word.startswith("%") and word.endswith("%"):
            raise BadPattern("Cloister does not implement regular expressions (%...%) in filter patterns yet")
        term = word if phrase is None else re.sub(r"\\(.)", r"\1", phrase)
        {"": required, "?": optional, "-": excluded}[mark].append(term)
        place = found.end()
        if not text[place:].strip():
            break

    def matches(message: str) -> bool:
        if any(term in message for term in excluded) or not all(term in message for term in required):
            return False
        # AWS: '?' terms are ignored when they are combined with other terms
        if optional and not required and not excluded:
            return any(term in message for term in optional)
        return True

    return matches


_TOKEN = re.compile(
    r'\s*(?:(?P<op>\|\||&&|!=|<=|>=|=|<|>|\(|\))|(?P<path>\$[^\s=<>!()&|]*)|"(?P<text>(?:[^"\\]|\\.)*)"'
    r"|(?P<word>[^\s()=<>!&|\"]+))"
)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\"[^\"]*\"|'[^']*')\]")
_MISSING = object()


def _json_pattern(text: str) -> Predicate:
    if not text.endswith("}"):
        raise BadPattern("Invalid filter pattern: '}' is missing")
    tokens = _tokens(text[1:-1].strip())
    test = _either(tokens)
    if tokens:
        raise BadPattern(f"Invalid filter pattern: unexpected {tokens[0][1]!r}")

    def matches(message: str) -> bool:
        try:
            document = json.loads(message)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, (dict, list)) and test(document)

    return matches


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None or found.lastgroup is None:
            raise BadPattern(f"Invalid filter pattern: cannot read {text[place:]!r}")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        place = found.end()
    if not tokens:
        raise BadPattern("Invalid filter pattern: no condition in { }")
    if sum(token == ("op", "(") for token in tokens) > 50:
        raise BadPattern("Invalid filter pattern: too many parentheses")
    return tokens


def _either(tokens: list[tuple[str, str]]) -> _Test:
    tests = [_both(tokens)]
    while tokens and tokens[0] == ("op", "||"):
        tokens.pop(0)
        tests.append(_both(tokens))
    return lambda document: any(test(document) for test in tests)


def _both(tokens: list[tuple[str, str]]) -> _Test:
    tests = [_condition(tokens)]
    while tokens and tokens[0] == ("op", "&&"):
        tokens.pop(0)
        tests.append(_condition(tokens))
    return lambda document: all(test(document) for test in tests)


def _condition(tokens: list[tuple[str, str]]) -> _Test:
    kind, value = _take(tokens)
    if (kind, value) == ("op", "("):
        inner = _either(tokens)
        if not tokens or tokens.pop(0) != ("op", ")"):
            raise BadPattern("Invalid filter pattern: ')' is missing")
        return inner
    if kind != "path":
        raise BadPattern(f"Invalid filter pattern: a selector like $.name is expected, not {value!r}")
    select = _selector(value)
    kind, operator = _take(tokens)
    if kind == "word":
        word = f"{operator} {_take(tokens)[1]}".upper()
        special: dict[str, _Test] = {
            "IS NULL": lambda value: value is None,
            "IS TRUE": lambda value: value is True,
            "IS FALSE": lambda value: value is False,
            "NOT EXISTS": lambda value: value is _MISSING,
        }
        if word not in special:
            raise BadPattern(f"Invalid filter pattern: unknown condition {word!r}")
        return lambda document: special[word](select(document))
    if kind != "op" or operator not in ("=", "!=", "<", "<=", ">", ">="):
        raise BadPattern(f"Invalid filter pattern: an operator is expected, not {operator!r}")
    kind, literal = _take(tokens)
    if kind not in ("text", "word"):
        raise BadPattern(f"Invalid filter pattern: a value is expected, not {literal!r}")
    compare = _comparison(operator, literal, quoted=kind == "text")
    return lambda document: compare(select(document))


def _take(tokens: list[tuple[str, str]]) -> tuple[str, str]:
    if not tokens:
        raise BadPattern("Invalid filter pattern: it ends too early")
    return tokens.pop(0)


def _selector(path: str) -> _Test:
    steps: list[str | int] = []
    place = 1
    while place < len(path):
        found = _STEP.match(path, place)
        if found is None:
            raise BadPattern(f"Invalid filter pattern: cannot read the selector {path!r}")
        name, index = found.groups()
        steps.append(name if name is not None else int(index) if index.isdigit() else index[1:-1])
        place = found.end()

    def select(document: Any) -> Any:
        for step in steps:
            if isinstance(step, int):
                if not isinstance(document, list) or step >= len(document):
                    return _MISSING
            elif not isinstance(document, dict) or step not in document:
                return _MISSING
            document = document[step]
        return document

    return select


def _comparison(operator: str, literal: str, *, quoted: bool) -> _Test:
    number: float | None = None
    if not quoted:
        if literal.startswith("%"):
            raise BadPattern("Cloister does not implement regular expressions (%...%) in filter patterns yet")
        try:
            number = float(literal)
        except ValueError:
            number = None
    if operator in ("=", "!="):
        text = re.sub(r"\\(.)", r"\1", literal) if quoted else literal
        glob = re.compile(fnmatch.translate(text.replace("[", "[[]").replace("?", "[?]")))

        def equal(value: Any) -> bool:
            if isinstance(value, bool) or value is None or value is _MISSING:
                return False
            if isinstance(value, (int, float)):
                return number is not None and value == number
            return isinstance(value, str) and glob.match(value) is not None

        if operator == "=":
            return equal
        return lambda value: value is not _MISSING and not equal(value)
    if number is None:
        raise BadPattern(f"Invalid filter pattern: {operator} compares with a number, not {literal!r}")
    limit = number
    compare: dict[str, Callable[[float], bool]] = {
        "<": lambda value: value < limit,
        "<=": lambda value: value <= limit,
        ">": lambda value: value > limit,
        ">=": lambda value: value >= limit,
    }
    return lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and compare[operator](value)
    )
