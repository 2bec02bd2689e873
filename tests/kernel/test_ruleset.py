"""Parts → nft text."""

from __future__ import annotations

from cloister.kernel.plan import Chain, Element, Key, Rule, Set, key
from cloister.kernel.ruleset import NftPart, build, change

JUMP = Element(netns="v", set="m", key="80", data="jump g_1", comment='a "quoted" name')
MAP = Set(netns="v", name="m", type="inet_service", data="verdict")
CHAIN = Chain(netns="v", name="g_1", rules=(Rule(text="accept", comment="sgr-1"),))


def of(*parts: NftPart) -> dict[Key, NftPart]:
    return {key(part): part for part in parts}


def test_a_table_is_replaced_in_one_transaction_with_what_is_referred_to_first() -> None:
    assert build([JUMP, CHAIN, MAP]).splitlines() == [
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
    assert change(of(JUMP), of(after)) == (
        "delete element ip cloister m { 80 }\nadd element ip cloister m { 80 : drop }"
    )


def test_a_chain_is_deleted_after_what_refers_to_it() -> None:
    assert change(of(CHAIN, JUMP), {}) == (
        "flush chain ip cloister g_1\ndelete element ip cloister m { 80 }\ndelete chain ip cloister g_1"
    )
    assert change(of(CHAIN, JUMP, MAP), {}) == (
        "flush chain ip cloister g_1\ndelete map ip cloister m\ndelete chain ip cloister g_1"
    )


def test_a_set_of_another_type_needs_a_rebuild() -> None:
    assert change(of(MAP), of(Set(netns="v", name="m", type="ipv4_addr", data="verdict"))) is None


def test_equal_parts_need_nothing() -> None:
    assert change(of(CHAIN, MAP), of(CHAIN, MAP)) == ""
