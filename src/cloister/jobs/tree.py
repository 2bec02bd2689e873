"""A folder that a container filled, walked and read without trust in it: no link is followed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from io import BufferedReader

from cloister.jobs.objects import KEY_LIMIT


class NoFile(Exception):
    """What was a regular file is none any more; `str()` is its path."""


def tree(root: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """The regular files below `root` as (path segments, size), in order. Symbolic links, sockets, pipes and
    devices are left out, and never followed (AWS: symbolic links are not uploaded). A folder too deep for a
    key is told as if it were a file, and not looked into."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    # A list, not recursion: the container may nest as deep as the kernel lets it. And no deeper than a key is
    # long, because each folder is opened by way of all above it.
    pending: list[tuple[str, ...]] = [()]
    try:
        while pending:
            at = pending.pop()
            here = _descend(fd, at)
            try:
                with os.scandir(here) as entries:
                    found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
                folders = []
                for entry in found:
                    info = os.stat(entry.name, dir_fd=here, follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        folders.append((*at, entry.name))
                        if len(os.fsencode("/".join(folders[-1]))) > KEY_LIMIT:
                            yield folders.pop(), 0
                    elif stat.S_ISREG(info.st_mode):
                        yield (*at, entry.name), info.st_size
                pending.extend(reversed(folders))
            finally:
                os.close(here)
    finally:
        os.close(fd)


def _descend(root: int, parts: Sequence[str]) -> int:
    """A descriptor of the folder `parts` below `root`; no segment may be a symbolic link."""
    here = os.dup(root)
    for part in parts:
        try:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        here = deeper
    return here


@contextlib.contextmanager
def opened(root: str, parts: tuple[str, ...]) -> Iterator[BufferedReader]:
    """A file that `tree` told of, to be read. Raises NoFile."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        folder = _descend(top, parts[:-1])
    finally:
        os.close(top)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NoFile("/".join(parts))
        yield file
