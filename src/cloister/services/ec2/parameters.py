"""What every EC2 operation does with its parameters before its own work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloister.services.api import Call, Params
from cloister.wire.errors import AwsError


def only(params: Params, *supported: str) -> None:
    """Refuse, by name, every parameter that asks for something this operation does not do.

    A list of what is done, so that a parameter AWS adds later is refused and never ignored. Parameters
    that ask for nothing (false, zero, empty) pass. Raises UnsupportedOperation."""
    for name, value in params.items():
        if name not in supported and name != "DryRun" and _asks(value):
            raise AwsError(
                "UnsupportedOperation",
                f"The parameter {name} is not supported here: Cloister does not implement it.",
            )


def _asks(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_asks(inner) for inner in value.values())
    return bool(value)


def require(params: Params, *names: str) -> None:
    """Raises MissingParameter."""
    for name in names:
        if params.get(name) in (None, ""):
            raise AwsError("MissingParameter", f"The request must contain the parameter {name}")


def exclusive(params: Params, *names: str) -> None:
    """At most one of these. Raises InvalidParameterCombination."""
    given = [name for name in names if params.get(name) not in (None, "", [])]
    if len(given) > 1:
        raise AwsError(
            "InvalidParameterCombination",
            f"The parameter {given[0]} cannot be used with the parameter {given[1]}",
        )


def on(**resources: str | tuple[str, ...]) -> Callable[[Call, Params], list[str]]:
    """The ARNs an operation is authorised on: `on(vpc="VpcId", subnet="*")` is the VPC that the parameter
    names and any subnet; several parameters may name resources of one kind. A parameter that is absent
    names nothing; when nothing is named at all, it is everything ("*")."""

    def arns(call: Call, params: Params) -> list[str]:
        found: list[str] = []
        for kind, members in resources.items():
            for member in (members,) if isinstance(members, str) else members:
                value = "*" if member == "*" else params.get(member)
                names = value if isinstance(value, list) else [value] if value else []
                found += [call.arn("ec2", f"{kind.replace('_', '-')}/{name}") for name in names]
        return found or ["*"]

    return arns
