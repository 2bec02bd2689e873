"""Removing folders that a container filled: any depth, any modes, any names.

`shutil.rmtree` recurses and holds a descriptor for each level: a container that nests some thousand folders
would keep its job from ever ending.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def remove_tree(top: Path) -> None:
    """Remove `top` and all below it; links are not followed. What cannot be removed is left, in silence.

    A folder found at any depth is moved up into `top` before it is emptied: so nothing nests, and two
    descriptors are enough."""
    try:
        fd = _open(str(top))
    except FileNotFoundError:
        return
    mark = secrets.token_hex(8)
    names = (f"{mark}-{number}" for number in itertools.count())
    try:
        pending = _empty(fd, fd, names)
        while pending:
            name = pending.pop()
            with suppress(OSError):
                here = _open(name, fd)
                try:
                    pending += _empty(here, fd, names)
                finally:
                    os.close(here)
                os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)
    with suppress(OSError):
        os.rmdir(top)


def _open(name: str, parent: int | None = None) -> int:
    """A folder that we may read and change, whatever modes it was given."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with suppress(OSError):
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _empty(here: int, top: int, names: Iterator[str]) -> list[str]:
    """Remove the files of `here`, and move its folders to `top`; their names there."""
    folders = []
    with os.scandir(here) as entries:
        for entry in entries:
            with suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=here)
                elif here == top:
                    folders.append(entry.name)
                else:
                    os.close(_open(entry.name, here))  # to move a folder one must be allowed to write to it
                    name = next(names)
                    os.rename(entry.name, name, src_dir_fd=here, dst_dir_fd=top)
                    folders.append(name)
    return folders
