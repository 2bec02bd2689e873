from __future__ import annotations

from pathlib import Path

import pytest

from cloister.kernel import facts, mounts

pytestmark = pytest.mark.fabric


def layers(folder: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        # Names of a real storage are 64 digits long.
        layer = folder / f"{number:064x}" / "diff"
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text(str(number))
        (layer / "top").write_text(str(number))
        made.append(layer)
    return made


@pytest.mark.parametrize("count", [1, 40])
def test_an_overlay_takes_more_layers_than_a_page_of_options(tmp_path: Path, count: int) -> None:
    lower = layers(tmp_path / "with:colon, and comma", count)
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    merged = tmp_path / "merged"
    mounts.overlay(merged, lower, tmp_path / "upper", tmp_path / "work")
    try:
        assert (merged / f"file{count - 1}").read_text() == str(count - 1)
        assert (merged / "top").read_text() == "0"
        (merged / "top").write_text("written")
        assert (tmp_path / "upper" / "top").read_text() == "written"
        assert mounts.below(tmp_path) == [merged]
    finally:
        mounts.unmount_below(tmp_path)
    assert mounts.below(tmp_path) == []
    assert (lower[0] / "top").read_text() == "0"


def test_a_read_only_bind_mount_cannot_be_written(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target with space"
    source.mkdir()
    target.mkdir()
    mounts.bind(source, target, read_only=True)
    try:
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").write_text("x")
        assert mounts.below(tmp_path) == [target]
    finally:
        mounts.unmount(target)
    mounts.unmount(target)  # nothing there: no error


def test_a_state_folder_that_can_hold_no_layer_is_found_by_the_doctor(tmp_path: Path) -> None:
    def told(state: Path) -> bool:
        return next(fact.ok for fact in facts.host_facts(state) if fact.name == "overlay")

    assert told(tmp_path / "state to be")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    mounts.overlay(tmp_path / "merged", [tmp_path / "lower"], tmp_path / "upper", tmp_path / "work")
    try:  # as in a container: an overlay takes no layer of another one to write in
        assert not told(tmp_path / "merged" / "state")
    finally:
        mounts.unmount_below(tmp_path)
