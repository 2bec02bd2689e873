"""Keys as a tree names them: nothing collides, nothing is lost, and the tree's order is S3's."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.s3.names import TREE
from cloister.wire.errors import AwsError

#: all but what XML cannot carry and sorts before a tab
CHARACTERS = st.one_of(
    st.sampled_from("/.0[]\\a-1\t\n~!"),
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\1\2\3\4\5\6\7\x08"),
)
KEYS = st.text(CHARACTERS, min_size=1, max_size=12)


def place(key: str) -> list[bytes]:
    """Where a tree lists it: folder by folder, by name."""
    return [level.encode() for level in TREE.stored(key).split("/")]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a", "a"),
        ("a/b.csv", "a0/b.csv"),
        ("a/", "a0/\t"),
        ("a//b", "a0/0/b"),
        ("/a", "0/a"),
        ("../x", "..0/x"),
        ("..", "..\t"),
        (".uploads", ".uploads\t"),
        (".uploads/x", ".uploads0/x"),
        ("a/b.versions", "a0/b.versions\t"),
        ("part-00", "part-0000"),
        ("a\\[b", "a[1[0b"),
    ],
)
def test_a_key_has_a_name_that_a_file_can_have(key: str, name: str) -> None:
    assert TREE.stored(key) == name
    assert TREE.key(name) == key


@given(KEYS)
def test_every_key_comes_back_and_no_level_of_its_name_is_special(key: str) -> None:
    name = TREE.stored(key)
    assert TREE.key(name) == key
    for level in name.split("/"):
        assert level not in ("", ".", "..")
        assert "\\" not in level


@given(KEYS, KEYS)
@example("a-b", "a/b")
@example("a", "a/")
@example("a/1", "a0")
@example("[", "\\")
@example(".uploads", ".uploads\t")
@example("a.versions", "a.versions\t")
def test_the_order_of_names_is_the_order_of_keys(one: str, other: str) -> None:
    assert (one.encode() < other.encode()) == (place(one) < place(other))


@given(KEYS, KEYS)
def test_a_prefix_of_keys_is_a_prefix_of_their_names(beginning: str, key: str) -> None:
    assert key.startswith(beginning) == TREE.stored(key).startswith(TREE.stored_prefix(beginning))
    assert TREE.prefix(TREE.stored_prefix(beginning)) == beginning


@given(st.lists(KEYS, min_size=2, max_size=8, unique=True))
def test_no_object_is_in_the_way_of_a_folder(keys: list[str]) -> None:
    names = {TREE.stored(key) for key in keys}
    folders = {name[:end] for name in names for end, char in enumerate(name) if char == "/"}
    assert len(names) == len(keys)
    assert not names & folders


def test_a_key_that_does_not_fit_is_refused_with_what_is_too_long() -> None:
    TREE.check("/".join(["deep"] * 150))
    for key, why in (("k" * 256, "a level of 256 bytes"), ("0" * 128, "256"), ("a/" * 500, "1501 bytes")):
        with pytest.raises(AwsError, match=why):
            TREE.check(key)
