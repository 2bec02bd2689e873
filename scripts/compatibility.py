"""Writes docs/compatibility.md from the code: what is implemented, and what is refused by name.

    python scripts/compatibility.py            # write it; tests/test_pages.py fails when it is stale

Operations are those that registered themselves (`services.api.OPERATIONS`), the S3 door's and the side
services' tables. What an EC2 operation takes is what its `only(params, …)` names; everything else of
botocore's model is refused. The other refusals are the sentences of the source that say "Cloister does not
implement" or "has no".
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from cloister import services
from cloister.s3 import actions
from cloister.services.api import OPERATIONS
from cloister.side import actions as side
from cloister.wire import model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
COMMAND = ".venv/bin/python scripts/compatibility.py"
TITLES = {
    "ec2": "EC2 (the network)",
    "sagemaker": "SageMaker",
    "iam": "IAM",
    "sts": "STS",
    "logs": "CloudWatch Logs",
    "route53resolver": "Route 53 Resolver",
}
#: rooms whose refusals a user meets
ROOMS = ("services", "side", "jobs", "s3", "logs_pattern.py")
SAID = ("Cloister does not", "Cloister has no", "is not there yet")


# -- what an operation takes --


def _function(value: Any) -> FunctionType | None:
    return value if isinstance(value, FunctionType) and value.__module__.startswith("cloister.") else None


def _tree(function: FunctionType) -> ast.FunctionDef:
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(body, ast.FunctionDef)
    return body


def _names(node: ast.expr, tree: ast.FunctionDef, scope: dict[str, Any]) -> Iterator[str]:
    """The parameter names that an argument of `only` stands for."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Starred(value=value):
            yield from _names(value, tree, scope)
        case ast.Tuple(elts=elements):
            for each in elements:
                yield from _names(each, tree, scope)
        case ast.Name(id=name) if name in scope:
            yield from scope[name]
        case ast.Name(id=name):
            for statement in ast.walk(tree):
                if isinstance(statement, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id == name for target in statement.targets
                ):
                    yield from _names(statement.value, tree, scope)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            yield from getattr(scope[name], attribute)
        case _:
            raise SystemExit(
                f"`only` in {tree.name} has an argument this script cannot read: {ast.dump(node)}"
            )


def _taken(function: FunctionType, seen: set[FunctionType]) -> set[str] | None:
    """The union over every `only` in the handler and the functions of its module that it calls; None when
    there is none, and so every parameter is taken."""
    seen.add(function)
    tree, scope = _tree(function), function.__globals__
    found: set[str] | None = None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "only":
            found = (found or set()) | {
                name for argument in node.args[1:] for name in _names(argument, tree, scope)
            }
            continue
        called = _function(scope.get(node.func.id))
        if called is not None and called not in seen and called.__module__ == function.__module__:
            more = _taken(called, seen)
            if more is not None:
                found = (found or set()) | more
    return found


def _refused(service: str, name: str) -> list[str]:
    function = _function(OPERATIONS[service, name].handler)
    assert function is not None
    taken = _taken(function, set())
    if taken is None:
        return []
    return sorted(set(model.service(service).operation(name).input.members) - taken - {"DryRun"})


# -- sentences that refuse --


def _sentence(node: ast.expr) -> str | None:
    """A literal's text; what is filled in is shown by its name, in capitals."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else _placeholder(part) for part in node.values
        )
    return None


def _placeholder(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    names = re.findall(r"[A-Za-z_]\w*", ast.unparse(part.value))
    return names[-1].upper() if names else "…"


def _sentences() -> Iterable[tuple[str, str]]:
    """(file, sentence), each sentence once."""
    found: dict[str, str] = {}
    source = ROOT / "src" / "cloister"
    for room in ROOMS:
        files = sorted((source / room).rglob("*.py")) if (source / room).is_dir() else [source / room]
        for file in files:
            tree = ast.parse(file.read_text())
            documentation = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            parts = {id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values}
            for node in ast.walk(tree):
                if id(node) in documentation or id(node) in parts:
                    continue
                text: str | None = None
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == "_not_yet"
                ):
                    what = _sentence(node.args[0])
                    text = None if what is None else f"Cloister does not implement {what} yet"
                elif isinstance(node, ast.Constant | ast.JoinedStr):
                    text = _sentence(node)
                    if text is not None and not any(said in text for said in SAID):
                        text = None
                # `_not_yet`'s own wording, with nothing in it
                if text is not None and "implement WHAT" not in text:
                    text = re.sub(r"^[A-Z]+(?=Cloister )", "", " ".join(text.split()))
                    found.setdefault(text, str(file.relative_to(source)))
    return sorted((file, text) for text, file in found.items())


# -- the page --


def _columns(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def render() -> str:
    services.load()
    out = [
        "# What is implemented",
        "",
        f"Made from the code by `{COMMAND}`; a test fails when it is stale. Do not edit.",
        "",
        "A parameter that asks for what is not done is refused by its name, never ignored. Any other",
        "operation of these services answers 501 `NotImplemented`.",
        "",
    ]
    known = sorted({service for service, _ in OPERATIONS}, key=[*TITLES].index)
    for service in known:
        names = sorted(name for owner, name in OPERATIONS if owner == service)
        total = len(model.service(service).operation_names)
        out += [f"## {TITLES[service]}: {len(names)} of {total} operations", ""]
        refused = {name: _refused(service, name) for name in names}
        if not any(refused.values()):
            out += [_columns(names), ""]
            continue
        out += [_columns(name for name in names if not refused[name]), ""]
        out += ["| operation | its parameters that are refused by name |", "|---|---|"]
        out += [f"| `{name}` | {_columns(refused[name])} |" for name in names if refused[name]]
        out += [""]
    out += _s3()
    out += _side()
    out += [
        "## Refused by name",
        "",
        "The sentences with which a part of a request is refused, by the file that says them. Names in",
        "capitals are filled in.",
        "",
    ]
    file = ""
    for where, text in _sentences():
        if where != file:
            out += ["", f"`{where}`", ""] if file else [f"`{where}`", ""]
            file = where
        out.append(f"- {text}")
    return "\n".join(out) + "\n"


def _s3() -> list[str]:
    names = {name for name, _ in actions._TABLE.values()} | {"CopyObject", "UploadPartCopy"}
    done = actions.ANSWERED | actions.FORWARDED
    return [
        f"## S3, through the door: {len(done)} operations",
        "",
        f"Answered from the World: {_columns(actions.ANSWERED)}",
        "",
        f"Carried out by the object store: {_columns(actions.FORWARDED)}",
        "",
        f"Known, and answered with 501 `NotImplemented`: {_columns(names - done)}",
        "",
    ]


def _side() -> list[str]:
    out = [
        "## Side services, carried out by moto",
        "",
        "Behind the same signatures, identity policies and endpoint policies. Resource policies (of a",
        "secret, a key, a queue …) are not evaluated, and so what would set one is refused. What these",
        "services keep is in memory: it is gone after `cloister down`.",
        "",
    ]
    for service in sorted(side.OPERATIONS):
        out += [f"`{service}`: {_columns(side.OPERATIONS[service])}", ""]
    return out


def main() -> None:
    text = render()
    if not PAGE.exists() or PAGE.read_text() != text:
        PAGE.write_text(text)
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
