"""nftables parts of a plan as nft commands. Pure: text in, text out.

Order within a transaction: sets and chains come first (rules and verdict maps refer to them), then the
rules that change are flushed, elements go and come, rules are added, and what nothing refers to any more
is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloister.kernel.plan import TABLE, Chain, Element, Key, Rule, Set, key

NftPart = Set | Element | Chain

#: nftables' limit for comments of rules and elements
_COMMENT_BYTES = 128

_T = f"ip {TABLE}"


def birth(netns: str) -> dict[Key, NftPart]:
    """The chains of a new namespace, there until a plan has others of their name: all is dropped."""
    chains = [
        Chain(netns=netns, name=hook, hook=f"type filter hook {hook} priority 0; policy drop;")
        for hook in ("input", "forward", "output")
    ]
    return {key(chain): chain for chain in chains}


def build(parts: Iterable[NftPart]) -> str:
    """The whole table, in place of whatever table there is: atomic, and conntrack entries live on."""
    lines = [f"add table {_T}", f"delete table {_T}", f"add table {_T}"]
    return "\n".join(lines + _changes({}, {key(part): part for part in parts}))


def change(old: Mapping[Key, NftPart], new: Mapping[Key, NftPart]) -> str | None:
    """Commands that lead from the changed parts as they were (`old`) to as they shall be (`new`).

    None when that cannot be done in place (a set's type or a base chain's hook changes): use `build`."""
    for identity, was in old.items():
        becomes = new.get(identity)
        if isinstance(was, Set) and becomes is not None and was != becomes:
            return None
        if isinstance(was, Chain) and isinstance(becomes, Chain) and was.hook != becomes.hook:
            return None
    return "\n".join(_changes(old, new))


def _changes(old: Mapping[Key, NftPart], new: Mapping[Key, NftPart]) -> list[str]:
    gone = {identity: part for identity, part in old.items() if new.get(identity) != part}
    come = {identity: part for identity, part in new.items() if old.get(identity) != part}
    gone_sets = {
        part.name for identity, part in gone.items() if isinstance(part, Set) and identity not in new
    }
    lines: list[str] = []
    for identity, part in come.items():
        if isinstance(part, Set) and identity not in old:
            lines.append(_add_set(part))
    for identity, part in come.items():
        if isinstance(part, Chain) and identity not in old:
            hook = f" {{ {part.hook} }}" if part.hook else ""
            lines.append(f"add chain {_T} {part.name}{hook}")
    lines += [f"flush chain {_T} {part.name}" for part in gone.values() if isinstance(part, Chain)]
    # Elements of a set that goes go with it.
    lines += _elements(
        "delete", (p for p in gone.values() if isinstance(p, Element) and p.set not in gone_sets)
    )
    lines += _elements("add", (part for part in come.values() if isinstance(part, Element)))
    for part in come.values():
        if isinstance(part, Chain):
            lines += [f"add rule {_T} {part.name} {_rule(rule)}" for rule in part.rules]
    lines += [
        f"delete {_word(p)} {_T} {p.name}" for i, p in gone.items() if isinstance(p, Set) and i not in new
    ]
    lines += [f"delete chain {_T} {p.name}" for i, p in gone.items() if isinstance(p, Chain) and i not in new]
    return lines


def _word(part: Set) -> str:
    return "map" if part.data else "set"


def _add_set(part: Set) -> str:
    data = f" : {part.data}" if part.data else ""
    flags = " flags interval;" if part.interval else ""
    return f"add {_word(part)} {_T} {part.name} {{ type {part.type}{data};{flags} }}"


def _elements(verb: str, elements: Iterable[Element]) -> list[str]:
    by_set: dict[str, list[str]] = {}
    for element in elements:
        text = element.key
        if verb == "add":
            text += _comment(element.comment)
            text += f" : {element.data}" if element.data else ""
        by_set.setdefault(element.set, []).append(text)
    return [f"{verb} element {_T} {name} {{ {', '.join(texts)} }}" for name, texts in by_set.items()]


def _rule(rule: Rule) -> str:
    return rule.text + _comment(rule.comment)


def _comment(text: str) -> str:
    """nft has no escapes within strings, so what would end the string is left out."""
    clean = "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)
    while len(clean.encode()) > _COMMENT_BYTES:
        clean = clean[:-1]
    return f' comment "{clean}"' if clean else ""
