"""Which ids a private world has, and moving into a user namespace that has them.

Only the standard library and `syscalls` are imported: the holder process uses this module and stays small.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.kernel import syscalls


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMaps:
    mode: str
    uids: list[list[int]]
    gids: list[list[int]]


def sub_ids(file: str = "/etc/subuid", uid: int | None = None) -> list[tuple[int, int]]:
    """The subordinate id ranges (first, count) of a user, from /etc/subuid or /etc/subgid."""
    uid = os.getuid() if uid is None else uid
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    found = []
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            owner, _, rest = line.partition(":")
            first, _, count = rest.partition(":")
            if owner in names and first.isdigit() and count.isdigit() and int(count) > 0:
                found.append((int(first), int(count)))
    return found


def plan_ids() -> IdMaps:
    """Which ids a world started by this caller will have."""
    if os.geteuid() == 0:
        whole = [[0, 0, 4294967295]]
        return IdMaps(mode="root", uids=whole, gids=whole)
    uids, gids = [[0, os.getuid(), 1]], [[0, os.getgid(), 1]]
    ranges = sub_ids("/etc/subuid"), sub_ids("/etc/subgid")
    if not all(ranges) or not shutil.which("newuidmap") or not shutil.which("newgidmap"):
        return IdMaps(mode="rootless-single", uids=uids, gids=gids)
    for rows, found in zip((uids, gids), ranges, strict=True):
        for first, count in found:
            rows.append([rows[-1][0] + rows[-1][2], first, count])
    return IdMaps(mode="rootless", uids=uids, gids=gids)


def unshare_user(ids: IdMaps, leave: Callable[[Callable[[], int]], None]) -> IdMaps:
    """Move this (single-threaded) process into a new user namespace with these ids, as its uid 0.

    `leave` runs what a forked child has to do and ends it."""
    if ids.mode == "rootless":
        # newuidmap must run outside of the new namespace, so a child is left behind to run it.
        unshared, mapped = os.pipe(), os.pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(unshared[1])
            leave(lambda: _map_ids(parent, ids, unshared[0], mapped[1]))
        os.close(unshared[0])
        os.close(mapped[1])
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(unshared[1], b"x")
        finally:
            os.close(unshared[1])
            problem = os.read(mapped[0], 4096).decode(errors="replace")
            os.close(mapped[0])
            os.waitpid(child, 0)
        if problem != "ok":
            raise OSError(problem or "newuidmap did not answer")
    else:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(_rows(ids.uids))
        Path("/proc/self/gid_map").write_text(_rows(ids.gids))
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if ids.mode == "rootless":
        os.setgroups([])
    return ids


def _map_ids(pid: int, ids: IdMaps, unshared: int, mapped: int) -> int:
    import subprocess

    if os.read(unshared, 1) != b"x":
        return 1
    for program, rows in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
        numbers = [str(number) for row in rows for number in row]
        done = subprocess.run([program, str(pid), *numbers], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            os.write(mapped, f"{program}: {done.stderr.strip() or done.returncode}"[:4000].encode())
            return 1
    os.write(mapped, b"ok")
    return 0


def _rows(rows: list[list[int]]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)
