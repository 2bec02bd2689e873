"""Parts → nft text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.kernel import ruleset
from cloister.kernel.plan import Chain, Element, Key, Rule, Set, key
from cloister.kernel.ruleset import NftPart, build, change

JUMP = Element(netns="v", set="m", key="80", data="jump g_1", comment='a "quoted" name')
MAP = Set(netns="v", name="m", type="inet_service", data="verdict")
CHAIN = Chain(netns="v", name="g_1", rules=(Rule(text="accept", comment="sgr-1"),))


def of(*parts: NftPart) -> dict[Key, NftPart]:
    return {key(part): part for part in parts}


def test_a_table_is_replaced_in_one_transaction_with_what_is_referred_to_first() -> None:
    assert build([JUMP, CHAIN, MAP])[0].splitlines() == [
        "add table ip cloister",
        "delete table ip cloister",
        "add table ip cloister",
        "add map ip cloister m { type inet_service : verdict; }",
        "add chain ip cloister g_1",
        'add element ip cloister m { 80 comment "a ?quoted? name" : jump g_1 }',
        'add rule ip cloister g_1 accept comment "sgr-1"',
    ]


def test_a_changed_element_goes_and_comes_in_one_transaction() -> None:
    after = Element(netns="v", set="m", key="80", data="drop")
    assert change(of(JUMP), of(after)) == [
        "delete element ip cloister m { 80 }\nadd element ip cloister m { 80 : drop }"
    ]


def test_a_chain_is_deleted_after_what_refers_to_it() -> None:
    assert change(of(CHAIN, JUMP), {}) == [
        "flush chain ip cloister g_1\ndelete element ip cloister m { 80 }\ndelete chain ip cloister g_1"
    ]
    assert change(of(CHAIN, JUMP, MAP), {}) == [
        "flush chain ip cloister g_1\ndelete map ip cloister m\ndelete chain ip cloister g_1"
    ]


def test_a_set_of_another_type_needs_a_rebuild() -> None:
    assert change(of(MAP), of(Set(netns="v", name="m", type="ipv4_addr", data="verdict"))) is None


def test_equal_parts_need_nothing() -> None:
    assert change(of(CHAIN, MAP), of(CHAIN, MAP)) == []


def test_a_rule_that_only_follows_leaves_the_others_in_place() -> None:
    longer = Chain(netns="v", name="g_1", rules=(*CHAIN.rules, Rule(text="drop")))
    assert change(of(CHAIN), of(longer)) == ["add rule ip cloister g_1 drop"]
    assert change(of(longer), of(CHAIN)) == [
        'flush chain ip cloister g_1\nadd rule ip cloister g_1 accept comment "sgr-1"'
    ]


def test_an_interval_set_that_loses_many_elements_is_filled_anew() -> None:
    its_set = Set(netns="v", name="s", type="ipv4_addr", interval=True)
    elements = [Element(netns="v", set="s", key=f"10.0.0.{i}") for i in range(100)]
    stay = elements[98:]
    assert change(of(*elements[:98]), of(elements[99]), lambda name: (its_set, stay)) == [
        "flush set ip cloister s\nadd element ip cloister s { 10.0.0.99, 10.0.0.98 }"
    ]
    few = change(of(*elements[:3]), {}, lambda name: (its_set, elements[3:]))
    assert few == ["delete element ip cloister s { 10.0.0.0, 10.0.0.1, 10.0.0.2 }"]


def test_thousands_of_elements_are_several_transactions_below_the_sockets_limit() -> None:
    elements = [
        Element(netns="v", set="s", key=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", comment="x" * 128)
        for i in range(10_000)
    ]
    parts = [Set(netns="v", name="s", type="ipv4_addr"), *elements, CHAIN]
    built = build(parts)
    assert 10 < len(built) < 20
    assert all(len(text) < 212_992 for text in built)
    first, last = built[0], built[-1]
    assert first.count("policy drop") == 3
    assert last.count("delete chain ip cloister building_") == 3


# --- a law: whatever is split, nothing opens between two transactions ------------------------------------


class Table:
    """What nft commands make of a table. The chain `in` has a hook; rules are "KEY accept", "@SET accept" or
    "jump CHAIN", or look a key up in a map: "vmap @MAP"."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, str]] = {}
        self.chains: dict[str, list[str]] = {}
        self.shut = False

    def run(self, transaction: str) -> None:
        for line in transaction.splitlines():
            self._do(line.replace(" ip cloister", "", 1))
        referred = set(re.findall(r"jump (\w+)", repr((self.sets, self.chains))))
        assert referred <= self.chains.keys()
        assert set(re.findall(r"@(\w+)", repr(self.chains))) <= self.sets.keys()

    def _do(self, line: str) -> None:
        verb, kind, *rest = line.split(" ", 3)
        name = rest[0] if rest else ""
        if kind == "table":
            self.__init__()  # type: ignore[misc]
        elif name.startswith("building_"):
            self.shut = verb == "add"
        elif kind in ("set", "map"):
            if verb == "add":
                assert name not in self.sets
                self.sets[name] = {}
            elif verb == "flush":
                self.sets[name].clear()
            else:
                del self.sets[name]
        elif kind == "chain":
            if verb == "add":
                assert name not in self.chains
                self.chains[name] = []
            elif verb == "flush":
                self.chains[name].clear()
            else:
                del self.chains[name]
        elif kind == "rule":
            self.chains[name].append(rest[1])
        else:
            for text in rest[1].strip("{ }").split(", "):
                found, _, data = text.partition(" : ")
                value = found.split(" ")[0]
                if verb == "add":
                    assert value not in self.sets[name]
                    self.sets[name][value] = data
                else:
                    del self.sets[name][value]

    def allowed(self) -> set[str]:
        return set() if self.shut or "in" not in self.chains else self._accepted("in")

    def _accepted(self, chain: str) -> set[str]:
        found: set[str] = set()
        for rule in self.chains[chain]:
            what, name = rule.split(" ")[0], rule.split(" ")[1].lstrip("@")
            if what == "jump":
                found |= self._accepted(name)
            elif what == "vmap":
                for value, data in self.sets[name].items():
                    found |= {f"{value}>{key}" for key in self._accepted(data.split(" ")[1])}
            else:
                found |= set(self.sets[what[1:]]) if what.startswith("@") else {what}
        return found


KEYS = st.sets(st.integers(0, 12), max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> dict[Key, NftPart]:
    parts: list[NftPart] = []
    rules: list[Rule] = []
    sets = draw(st.sets(st.sampled_from(["s1", "s2"])))
    for name in sorted(sets):
        parts.append(Set(netns="v", name=name, type="mark", interval=name == "s1"))
        comment = draw(st.sampled_from(["", "one", "two"]))
        parts += [Element(netns="v", set=name, key=str(k), comment=comment) for k in sorted(draw(KEYS))]
        rules.append(Rule(text=f"@{name} accept"))
    chains = draw(st.sets(st.sampled_from(["c1", "c2"])))
    for name in sorted(chains):
        own = tuple(Rule(text=f"{k} accept") for k in sorted(draw(KEYS)))
        parts.append(Chain(netns="v", name=name, rules=own))
        rules.append(Rule(text=f"jump {name}"))
    if chains and draw(st.booleans()):
        parts.append(Set(netns="v", name="m", type="mark", data="verdict"))
        for k in sorted(draw(KEYS)):
            data = f"jump {draw(st.sampled_from(sorted(chains)))}"
            parts.append(Element(netns="v", set="m", key=str(k), data=data))
        rules.append(Rule(text="vmap @m"))
    if draw(st.booleans()):
        chosen = tuple(draw(st.permutations(rules)))
        hook = "type filter hook forward priority 0; policy drop;"
        parts.append(Chain(netns="v", name="in", hook=hook, rules=chosen))
    return {key(part): part for part in draw(st.permutations(parts))}


@given(tables(), tables(), st.sampled_from([700, 1500, 4000]))
def test_no_state_between_two_transactions_allows_what_neither_end_does(
    old: dict[Key, NftPart], new: dict[Key, NftPart], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole, table = Table(), Table()
        for transaction in build(new.values()):
            whole.run(transaction)
        patch.setattr(ruleset, "_TRANSACTION_BYTES", limit)
        for transaction in build(old.values()):
            assert not table.allowed()
            table.run(transaction)
        before = table.allowed()
        patch.setattr(ruleset, "_FEW", 3)

        def whole_set(name: str) -> tuple[Set | None, list[Element]]:
            found = new.get(("Set", "v", name))
            elements = [p for p in new.values() if isinstance(p, Element) and p.set == name]
            return found if isinstance(found, Set) else None, elements

        for transaction in change(old, new, whole_set) or []:
            table.run(transaction)
            assert table.allowed() <= before | whole.allowed()
        assert (table.sets, table.chains, table.shut) == (whole.sets, whole.chains, False)
