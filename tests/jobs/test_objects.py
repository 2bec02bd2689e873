"""Keys become files of a channel, and hostile keys do not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.jobs.objects import BadKey, Object, plan_files, shard, under


def _objects(*keys: str, prefix: str = "") -> list[Object]:
    return [Object(key=key, size=1, path=under(key, prefix)) for key in keys]


@pytest.mark.parametrize(
    ("key", "prefix", "path"),
    [
        ("data/a.csv", "data/", "a.csv"),
        ("data/a.csv", "data", "a.csv"),
        ("data/x/a.csv", "data", "x/a.csv"),
        ("data/a.csv", "data/a.csv", "a.csv"),
        ("a.csv", "a.csv", "a.csv"),
        ("data/part-0", "data/part", "part-0"),
        ("data/", "data/", ""),
        ("x/y", "", "x/y"),
    ],
)
def test_an_object_keeps_its_path_below_the_prefix(key: str, prefix: str, path: str) -> None:
    assert under(key, prefix) == path


def test_directory_markers_make_folders_and_no_files() -> None:
    files, folders = plan_files(_objects("d/", "d/e/", "d/f/a", prefix="d/"))
    assert [path for _, path in files] == ["f/a"]
    assert folders == ["e", "f"]


@pytest.mark.parametrize(
    "key",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "a\0b", "s" * 256, "/".join(["d" * 200] * 30)],
)
def test_a_key_that_cannot_be_a_path_is_refused_by_name(key: str) -> None:
    with pytest.raises(BadKey) as refused:
        plan_files(_objects(key))
    assert repr(key)[1:20] in str(refused.value)


def test_a_key_that_is_file_and_folder_is_refused_naming_both() -> None:
    with pytest.raises(BadKey, match=r"'p/a' is a file, and 'p/a/b' needs"):
        plan_files(_objects("p/a", "p/a/b", prefix="p/"))


@given(st.integers(1, 7), st.lists(st.text(st.characters(codec="ascii"), min_size=1), unique=True))
def test_shards_are_disjoint_cover_everything_and_differ_by_one_at_most(n: int, keys: list[str]) -> None:
    objects = [Object(key=key, size=0, path=key.strip("/") or "x") for key in sorted(keys)]
    shards = [shard(objects, i, n) for i in range(n)]
    assert sorted(each.key for part in shards for each in part) == sorted(keys)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


_SEGMENT = st.one_of(
    st.sampled_from(["..", ".", "", "a", "\0", "a\0", "..\0", "%2e%2e", "a" * 256, "é", "\\", "..\\"]),
    st.text(max_size=8),
)


@given(st.lists(_SEGMENT, min_size=1, max_size=6).map("/".join))
def test_whatever_the_key_its_file_stays_below_the_channel(key: str) -> None:
    try:
        files, folders = plan_files(_objects(key))
    except BadKey:
        return
    for path in [path for _, path in files] + folders:
        assert os.path.normpath(os.path.join("/channel", path)) == f"/channel/{path}"
        assert "\0" not in path
        assert path
