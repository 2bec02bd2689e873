"""nftables parts of a plan as nft commands. Pure: text in, text out.

What fits goes into one transaction: sets and chains come first (rules and verdict maps refer to them), then
the rules that change are flushed, elements go and come, rules are added, and what nothing refers to any more
is deleted.

Without root the kernel takes no transaction above net.core.wmem_default (208 KiB, some 1,000 elements), so a
larger change is several, and no state between two of them allows what neither the old nor the new one does.
That rests on the contract of a plan (`kernel.plan`): elements only allow, and what falls off the end of a
chain is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from cloister.kernel.plan import TABLE, Chain, Element, Key, Rule, Set, key

NftPart = Set | Element | Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flush:
    """No part of a plan but of a change: the set is emptied, and filled again with all that it shall hold."""

    set: Set


_Any = NftPart | _Flush

#: nftables' limit for comments of rules and elements
_COMMENT_BYTES = 128
#: of one transaction, as `_weight` counts; the socket takes 212,992
_TRANSACTION_BYTES = 170_000
#: An interval set that loses more than so many elements is filled anew. The kernel (6.18) takes 5 to 20 ms
#: to delete one of 5,000, 0.1 ms to add one.
_FEW = 32

_T = f"ip {TABLE}"


def birth(netns: str) -> dict[Key, NftPart]:
    """The chains of a new namespace, there until a plan has others of their name: all is dropped."""
    chains = [
        Chain(netns=netns, name=hook, hook=f"type filter hook {hook} priority 0; policy drop;")
        for hook in ("input", "forward", "output")
    ]
    return {key(chain): chain for chain in chains}


def build(parts: Iterable[NftPart]) -> list[str]:
    """The whole table, in place of whatever table there is; conntrack entries live on. One transaction, or
    several between which every packet is dropped."""
    new = {key(part): part for part in parts}
    anew = [f"add table {_T}", f"delete table {_T}", f"add table {_T}"]
    if _fits([(i, None, part) for i, part in new.items()]):
        return ["\n".join(anew + _changes({}, new))]
    guards = {hook: f"building_{hook}" for hook in ("input", "forward", "output")}
    shut = [
        f"add chain {_T} {name} {{ type filter hook {hook} priority -400; policy drop; }}"
        for hook, name in guards.items()
    ]
    return [
        "\n".join(anew + shut),
        *(text for step in _steps({}, new) if (text := _text(step))),
        "\n".join(f"delete chain {_T} {name}" for name in guards.values()),
    ]


def change(
    old: Mapping[Key, NftPart],
    new: Mapping[Key, NftPart],
    whole: Callable[[str], tuple[Set | None, Iterable[Element]]] = lambda name: (None, ()),
) -> list[str] | None:
    """Transactions that lead from the changed parts as they were (`old`) to as they shall be (`new`).

    None when that cannot be done in place (a set's type or a base chain's hook changes): use `build`.
    `whole(name)` tells a set and all elements that it shall have; asked for those that lose many."""
    for identity, was in old.items():
        becomes = new.get(identity)
        if isinstance(was, Set) and becomes is not None and was != becomes:
            return None
        if isinstance(was, Chain) and isinstance(becomes, Chain) and was.hook != becomes.hook:
            return None
    before, after = _refilled(old, new, whole)
    if _fits([(i, before.get(i), after.get(i)) for i in {**before, **after}]):
        return [text] if (text := "\n".join(_changes(before, after))) else []
    return [text for step in _steps(before, after) if (text := _text(step))]


def _refilled(
    old: Mapping[Key, NftPart],
    new: Mapping[Key, NftPart],
    whole: Callable[[str], tuple[Set | None, Iterable[Element]]],
) -> tuple[Mapping[Key, _Any], Mapping[Key, _Any]]:
    going = Counter(
        part.set for i, part in old.items() if isinstance(part, Element) and new.get(i) != part
    )  # fmt: skip
    before: dict[Key, _Any] = dict(old)
    after: dict[Key, _Any] = dict(new)
    for name, count in going.items():
        if count <= _FEW:
            continue
        its_set, elements = whole(name)
        if its_set is not None and its_set.interval:
            for identity, part in old.items():
                if isinstance(part, Element) and part.set == name:
                    del before[identity]
            after.update((key(element), element) for element in elements)
            after[("Flush", name)] = _Flush(set=its_set)
    return before, after


# --- changes that are too large for one transaction ------------------------------------------------------

#: one part's change, before and after
_Item = tuple[Key, _Any | None, _Any | None]


def _steps(old: Mapping[Key, _Any], new: Mapping[Key, _Any]) -> Iterator[list[_Item]]:
    """The change in transactions: what nothing refers to yet; what is no longer allowed; the rules; what is
    allowed from now on."""
    items = [(i, old.get(i), new.get(i)) for i in {**old, **new} if old.get(i) != new.get(i)]
    sets_gone = {b.name for _, b, a in items if isinstance(b, Set) and a is None}
    sets_come = {a.name for _, b, a in items if isinstance(a, Set) and b is None}
    unseen: list[_Item] = []
    filled: list[_Item] = []
    less: list[_Item] = []
    chains: list[_Item] = []
    ends: list[_Item] = []
    more: list[_Item] = []
    for identity, before, after in items:
        if isinstance(after, _Flush):
            less.append((identity, None, after))
        elif isinstance(after, Element) and after.set in sets_come:
            filled.append((identity, None, after))
        elif isinstance(before, Element) and before.set in sets_gone:
            continue  # goes with its set
        elif isinstance(before, Element) and isinstance(after, Element) and before.data == after.data:
            more.append((identity, before, after))  # another comment: within one transaction
        elif isinstance(before, Element) or isinstance(after, Element):
            if before is not None:
                less.append((identity, before, None))
            if after is not None:
                more.append((identity, None, after))
        elif isinstance(after, Chain) and before is None and after.hook is None:
            empty = replace(after, rules=())
            unseen.append((identity, None, empty))
            filled += _growing(identity, empty, after)
        elif isinstance(after, Chain):
            chains.append((identity, before, after))
        elif after is not None:
            unseen.append((identity, None, after))
        else:
            ends.append((identity, before, None))
    yield from _packed(unseen)
    # Elements first: a rule may not be there before the set it names, a set may be empty.
    yield from _packed(sorted(filled, key=lambda item: isinstance(item[2], Chain)))
    yield from _packed(less)
    if _fits([*chains, *ends]):
        yield [*chains, *ends]
    else:
        yield from _switch(chains, ends)
    yield from _packed(more)


def _switch(chains: list[_Item], ends: list[_Item]) -> Iterator[list[_Item]]:
    """Rules by the thousand: all changed chains are emptied before one is filled; those with a hook last."""
    shut: list[_Item] = []
    fill: list[_Item] = []
    for identity, before, after in sorted(
        chains, key=lambda item: getattr(item[2], "hook", None) is not None
    ):
        assert isinstance(after, Chain)
        empty = replace(after, rules=())
        if before is not None:
            shut.append((identity, before, empty))
            fill += _growing(identity, empty, after)
        else:
            fill += _growing(identity, None, after)
    still: list[_Item] = []
    for identity, before, _ in ends:
        if isinstance(before, Chain):
            shut.append((identity, before, replace(before, rules=())))
            still.append((identity, replace(before, rules=()), None))
        else:
            still.append((identity, before, None))
    yield from _packed(shut)
    yield from _packed(fill)
    # Sets first: verdict maps refer to chains.
    yield from _packed(sorted(still, key=lambda item: isinstance(item[1], Chain)))


def _growing(identity: Key, before: _Any | None, after: Chain) -> Iterator[_Item]:
    """A chain's rules from none to all, in pieces that a transaction takes."""
    start, weight = 0, 0
    for end, rule in enumerate(after.rules):
        weight += _rule_weight(rule)
        if weight > _TRANSACTION_BYTES // 2 and end > start:
            piece = replace(after, rules=after.rules[:end])
            yield identity, before, piece
            before, start, weight = piece, end, _rule_weight(rule)
    yield identity, before, after


def _packed(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Items in order, in as few transactions as take them."""
    step: list[_Item] = []
    weight = 0
    for item in items:
        if step and weight + _weight(item) > _TRANSACTION_BYTES:
            yield step
            step, weight = [], 0
        step.append(item)
        weight += _weight(item)
    if step:
        yield step


def _fits(items: Iterable[_Item]) -> bool:
    weight = 0
    for item in items:
        weight += _weight(item)
        if weight > _TRANSACTION_BYTES:
            return False
    return True


def _weight(item: _Item) -> int:
    """At most how many bytes of netlink messages a part's change takes (measured with nftables 1.0.6)."""
    _, before, after = item
    if before == after:
        return 0
    if isinstance(after, Element) or isinstance(before, Element):
        weight = 80 if before is not None else 0
        if isinstance(after, Element):
            weight += 80 + len(after.comment.encode()) + (24 + len(after.data) if after.data else 0)
        return weight
    if isinstance(after, Chain):
        known = _kept(before, after)
        return 300 + sum(_rule_weight(rule) for rule in after.rules[known:])
    return 300


def _rule_weight(rule: Rule) -> int:
    return 200 + 8 * len(rule.text) + len(rule.comment.encode())


def _kept(before: _Any | None, after: Chain) -> int:
    """How many of the chain's rules stay in place, because others only follow them."""
    if isinstance(before, Chain) and before.rules == after.rules[: len(before.rules)]:
        return len(before.rules)
    return 0


def _text(step: Iterable[_Item]) -> str:
    old: dict[Key, _Any] = {}
    new: dict[Key, _Any] = {}
    for identity, before, after in step:
        if before is not None and identity not in new:  # else it goes on within this transaction
            old.setdefault(identity, before)
        new.pop(identity, None)
        if after is not None:
            new[identity] = after
    return "\n".join(_changes(old, new))


# --- one transaction -------------------------------------------------------------------------------------


def _changes(old: Mapping[Key, _Any], new: Mapping[Key, _Any]) -> list[str]:
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
    kept = {i: _kept(old.get(i), part) for i, part in come.items() if isinstance(part, Chain)}
    lines += [
        f"flush chain {_T} {part.name}"
        for i, part in gone.items()
        if isinstance(part, Chain) and part.rules and not kept.get(i)
    ]
    lines += [
        f"flush {_word(part.set)} {_T} {part.set.name}" for part in come.values() if isinstance(part, _Flush)
    ]
    # Elements of a set that goes go with it.
    lines += _elements(
        "delete", (p for p in gone.values() if isinstance(p, Element) and p.set not in gone_sets)
    )
    lines += _elements("add", (part for part in come.values() if isinstance(part, Element)))
    for i, part in come.items():
        if isinstance(part, Chain):
            lines += [f"add rule {_T} {part.name} {_rule(rule)}" for rule in part.rules[kept[i] :]]
    lines += [
        f"delete {_word(p)} {_T} {p.name}" for i, p in gone.items() if isinstance(p, Set) and i not in new
    ]
    lines += [f"delete chain {_T} {p.name}" for i, p in gone.items() if isinstance(p, Chain) and i not in new]
    return lines


def refill(chain: Chain) -> list[str]:
    """The chain's rules again in place of themselves: they count from zero."""
    return [
        f"flush chain {_T} {chain.name}",
        *(f"add rule {_T} {chain.name} {_rule(r)}" for r in chain.rules),
    ]


def _word(part: Set) -> str:
    return "map" if part.data else "set"


def _add_set(part: Set) -> str:
    data = f" : {part.data}" if part.data else ""
    flags = " flags interval;" if part.interval else ""
    if part.dynamic:
        flags = f" size {part.dynamic}; flags dynamic;"
        if part.timeout:
            flags = f" size {part.dynamic}; flags dynamic,timeout; timeout {part.timeout}s;"
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
