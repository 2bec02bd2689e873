"""Folders that a container filled are removed, whatever it made of them."""

from __future__ import annotations

import os
from pathlib import Path

from cloister.jobs.remove import remove_tree


def _nest(top: Path, levels: int) -> None:
    """Folders in folders, deeper than a path may be long."""
    top.mkdir(parents=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_folders_nested_by_thousands_are_removed(tmp_path: Path) -> None:
    _nest(tmp_path / "top" / "deep", 3000)
    remove_tree(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o755)
    (tmp_path / "kept" / "file").write_text("kept")
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    for where in (top, top / "d"):
        (where / "folder").symlink_to(tmp_path / "kept")
        (where / "file").symlink_to(tmp_path / "kept" / "file")
        (where / "nowhere").symlink_to("nowhere")
    remove_tree(top)
    assert not top.exists()
    assert (tmp_path / "kept" / "file").read_text() == "kept"
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o755


def test_modes_and_names_of_any_kind_do_not_matter(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "closed" / "within").mkdir(parents=True)
    for name in (b"new\nline", b"no utf-8 \xff", b"x" * 255, b"-rf"):
        os.close(os.open(os.fsencode(top / "closed") + b"/" + name, os.O_CREAT | os.O_WRONLY, 0))
    os.mkfifo(top / "pipe")
    (top / "closed" / "within").chmod(0)
    (top / "closed").chmod(0)
    top.chmod(0)
    remove_tree(top)
    assert not top.exists()


def test_what_is_not_there_needs_no_removal(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []
