"""Run a program on an interface: `python -m cloister.kernel.attached NETNS RESOLV_CONF UID GID COMMAND…`.

Started inside the holder's world (`holder.enter`). The program sees the host's files, NETNS as its network
and the text RESOLV_CONF in /etc/resolv.conf, and ends when whoever started it ends. UID and GID other than
this process's own are those that the caller has outside: a user namespace of its own gives them back, so that
programs that refuse root run, without any more rights than the caller has.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from cloister.kernel import mounts, syscalls


def main(arguments: list[str]) -> int:
    netns, resolv_conf, uid, gid, *command = arguments
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(fd, syscalls.CLONE_NEWNET)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    _resolve_by(resolv_conf)
    if int(uid) != os.geteuid():
        _be(int(uid), int(gid))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def _resolve_by(resolv_conf: str) -> None:
    target = Path("/etc/resolv.conf").resolve()
    if not target.exists():
        return
    with tempfile.NamedTemporaryFile("w", prefix="cloister-resolv-") as file:
        file.write(resolv_conf)
        file.flush()
        os.chmod(file.name, 0o644)
        mounts.bind(file.name, target)


def _be(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outer_gid} 1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
