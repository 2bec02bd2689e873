"""The seal of a namespace: what says after a restart that it holds just what a plan wants.

It is the alias of its loopback: "cloister DIGEST SUM GENERATION". DIGEST is of what the namespace is set to,
SUM of the digests of its nftables parts, so that a change costs what changed. GENERATION is how often the
ruleset was changed by anybody: after a change that was broken off, or by somebody else, it is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cloister.kernel.nft import Generation
from cloister.kernel.plan import Part
from cloister.kernel.rtnl import Link, RouteEntry, Rtnl, RuleEntry

ALIAS = "cloister"
_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    settings: str
    total: int

    def text(self, generation: int) -> str:
        return f"{ALIAS} {self.settings} {self.total:032x} {generation}"


def parse(alias: str, generation: int) -> Seal | None:
    """The seal, if it holds at this generation of the ruleset."""
    words = alias.split(" ")
    if len(words) != 4 or words[0] != ALIAS or words[3] != str(generation):
        return None
    return Seal(settings=words[1], total=int(words[2], 16))


def digest(part: Part) -> str:
    return hashlib.sha256(repr(part).encode()).hexdigest()[:32]


def total(parts: Iterable[Part]) -> int:
    return sum(int(digest(part), 16) for part in parts) % _MODULUS


def follow(before: int, old: Part | None, new: Part | None) -> int:
    """The sum after one part became another, came or went."""
    gone = 0 if old is None else int(digest(old), 16)
    come = 0 if new is None else int(digest(new), 16)
    return (before - gone + come) % _MODULUS


def all_there_is() -> tuple[list[Link], list[RouteEntry], list[RuleEntry], int]:
    """In the namespace of this thread; the last is the generation of its ruleset."""
    here, generation = Rtnl(), Generation()
    try:
        return here.links(), here.routes(), here.rules(), generation.read()
    finally:
        here.close()
        generation.close()
