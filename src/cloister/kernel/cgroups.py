"""Limits of an instance by control groups: version 1, version 2 and hybrid hosts, where we may write.

Groups are named `cloister-HASH/NAME`, HASH being of the state folder, so that they can be found and removed.
Rootless they lie below the caller's own delegated group, which exists on version 2 hosts with systemd only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds, the kernel's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: not limited. `cpus` may be a fraction, `memory` is in bytes, `pids` counts threads."""

    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The folders of one group: one on version 2, one per controller on version 1.
    `missing` says of each limit that could not be set why."""

    paths: tuple[Path, ...]
    missing: tuple[str, ...] = ()

    def add(self, pid: int) -> None:
        """Move a process (and what it will start) into the group."""
        for path in self.paths:
            (path / "cgroup.procs").write_text(str(pid))


def parent_name(state: str | os.PathLike[str]) -> str:
    return "cloister-" + hashlib.sha256(os.fsencode(os.path.abspath(state))).hexdigest()[:12]


def version() -> str:
    """ "2", "1" (also hybrid: limits are on version 1 there) or "none"."""
    if (ROOT / "cgroup.controllers").exists():
        return "2"
    return "1" if (ROOT / "memory").is_dir() or (ROOT / "pids").is_dir() else "none"


def parents(state: str | os.PathLike[str]) -> dict[str, Path]:
    """Controller -> the folder that groups of this state are made in, where that can be written."""
    name = parent_name(state)
    if version() == "2":
        base = ROOT
        # In a user namespace uid 0 is the caller: only what systemd delegated to him can be written.
        if not os.access(base / "cgroup.procs", os.W_OK):
            with contextlib.suppress(OSError):
                for line in Path("/proc/self/cgroup").read_text().splitlines():
                    if line.startswith("0::"):
                        base = (ROOT / line[3:].lstrip("/")).parent
        if not os.access(base / "cgroup.subtree_control", os.W_OK):
            return {}
        has = (base / "cgroup.controllers").read_text().split()
        return {c: base / name for c in ("cpu", "memory", "pids") if c in has}
    found = {}
    for controller in ("cpu", "memory", "pids"):
        folder = ROOT / controller
        if folder.is_dir() and os.access(folder, os.W_OK):
            found[controller] = folder / name
    return found


def make(state: str | os.PathLike[str], name: str, limits: Limits) -> Cgroup:
    """A group with these limits. What this host does not let us limit is in `missing`; that is no error."""
    where = parents(state)
    v2 = version() == "2"
    paths: dict[Path, None] = {}
    missing = []
    for controller, wish in (("cpu", limits.cpus), ("memory", limits.memory), ("pids", limits.pids)):
        if wish is None:
            continue
        if controller not in where:
            missing.append(f"{controller}: no cgroup that can be written")
            continue
        path = where[controller] / name
        try:
            if v2:
                for above in (where[controller].parent, where[controller]):
                    above.mkdir(exist_ok=True)
                    (above / "cgroup.subtree_control").write_text(f"+{controller}")
            path.mkdir(parents=True, exist_ok=True)
            for file, value in _values(controller, wish, v2):
                (path / file).write_text(value)
        except OSError as error:
            missing.append(f"{controller}: {error.strerror} ({error.filename or path})")
            with contextlib.suppress(OSError):
                if path not in paths:
                    path.rmdir()
            continue
        paths[path] = None
    return Cgroup(paths=tuple(paths), missing=tuple(missing))


def _values(controller: str, wish: float, v2: bool) -> list[tuple[str, str]]:
    quota = max(1000, int(wish * _PERIOD))
    if controller == "cpu":
        if v2:
            return [("cpu.max", f"{quota} {_PERIOD}")]
        return [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota))]
    if controller == "memory":
        return [("memory.max" if v2 else "memory.limit_in_bytes", str(int(wish)))]
    return [("pids.max", str(int(wish)))]


def names(state: str | os.PathLike[str]) -> list[str]:
    """The groups that there are of this state."""
    found = set()
    for parent in set(parents(state).values()):
        if parent.is_dir():
            found |= {entry.name for entry in os.scandir(parent) if entry.is_dir()}
    return sorted(found)


def remove(state: str | os.PathLike[str], name: str, timeout: float = 2.0) -> bool:
    """Remove a group; False when processes still live in it after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    gone = True
    for parent in set(parents(state).values()):
        gone = _remove_folder(parent / name, deadline) and gone
    return gone


def remove_all(state: str | os.PathLike[str]) -> list[str]:
    """Remove every group of this state; returns those that could not be."""
    left = [name for name in names(state) if not remove(state, name)]
    for parent in set(parents(state).values()):
        with contextlib.suppress(OSError):
            parent.rmdir()
    return left


def _remove_folder(path: Path, deadline: float) -> bool:
    while True:
        try:
            # A container runtime may have made groups inside.
            for inner, _, _ in os.walk(path, topdown=False):
                os.rmdir(inner)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
