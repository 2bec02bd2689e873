"""The cgroup of a container, in version 1, version 2 and hybrid hierarchies: found, read and removed.

The runtime makes it and writes the limits; here is what remains to be done around that. Groups are below
`/cloister-HASH`, HASH being of the state folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from cloister.kernel.mounts import in_user_namespace

_ROOT = Path("/sys/fs/cgroup")


def parent_name(state: str | os.PathLike[str]) -> str:
    return "cloister-" + hashlib.sha256(os.fsencode(os.path.abspath(state))).hexdigest()[:12]


def version() -> str:
    """ "2", "1" (also hybrid: limits are on version 1 there) or "none"."""
    if (_ROOT / "cgroup.controllers").exists():
        return "2"
    return "1" if (_ROOT / "memory").is_dir() or (_ROOT / "pids").is_dir() else "none"


def default_parent(state: str | os.PathLike[str]) -> str:
    """Where we may limit containers: as root, below a group of ours. "" where we may not: in a user
    namespace the host's cgroups are not ours."""
    if in_user_namespace() or version() == "none" or not all(os.access(each, os.W_OK) for each in _tops()):
        return ""
    return f"/{parent_name(state)}"


def _tops() -> list[Path]:
    """Where groups are made: of version 1 each controller's hierarchy, whose common folder systemd mounts
    read-only."""
    if version() == "2":
        return [_ROOT]
    return [each for each in _ROOT.iterdir() if each.is_dir() and not each.is_symlink()]


def _folders(cgroup: str) -> list[Path]:
    return [top / cgroup.lstrip("/") for top in _tops()]


def oom_kills(cgroup: str) -> int:
    if not cgroup:
        return 0
    for folder in _folders(cgroup):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError):
                for line in (folder / name).read_text().splitlines():
                    word, _, count = line.partition(" ")
                    if word == "oom_kill" and int(count):
                        return int(count)
    return 0


def remove(cgroup: str) -> None:
    """The container's group and, with the last one, the parent."""
    if not cgroup:
        return
    for folder in _folders(cgroup):
        with suppress(OSError):
            folder.rmdir()
        with suppress(OSError):
            folder.parent.rmdir()


def remove_all(state: Path, timeout: float = 2.0) -> list[str]:
    """All groups of this state's containers, when none runs any more: what `cloister down` and `gc` do
    last. Waits up to `timeout` seconds for processes that are just ending; returns the folders left."""
    parent = default_parent(state)
    folders = [folder for folder in _folders(parent) if folder.is_dir()] if parent else []
    deadline = time.monotonic() + timeout
    while folders:
        for folder in folders:
            for inner, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):
                    os.rmdir(inner)
        folders = [folder for folder in folders if folder.is_dir()]
        if time.monotonic() > deadline:
            break
        if folders:
            time.sleep(0.02)
    return [str(folder) for folder in folders]
