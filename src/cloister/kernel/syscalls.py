"""The few Linux system calls that Python lacks, by ctypes. Errors are OSError with a sentence.

Only the standard library is imported here: the holder process uses this module and stays small.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000

MNT_DETACH = 0x2

FALLOC_FL_KEEP_SIZE = 0x1
FALLOC_FL_PUNCH_HOLE = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

# Numbers from 424 on are the same on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.syscall.restype = ctypes.c_long
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _path(path: str | os.PathLike[str]) -> bytes:
    return os.fsencode(path)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"cannot unshare namespaces ({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """Move this thread into the namespace that `fd` refers to."""
    _check(_libc.setns(fd, kind), f"cannot enter a namespace ({kind:#x})")


def mount(
    source: str, target: str | os.PathLike[str], kind: str | None, flags: int = 0, data: str | None = None
) -> None:
    result = _libc.mount(
        _path(source),
        _path(target),
        kind.encode() if kind else None,
        flags,
        data.encode() if data else None,
    )
    _check(result, f"cannot mount {kind or source} on {os.fspath(target)}")


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    _check(_libc.umount2(_path(target), flags), f"cannot unmount {os.fspath(target)}")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a part of a file back to the file system; it reads as zeros, the length stays."""
    _check(_libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length), "fallocate")


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def set_name(name: str) -> None:
    """The name `ps` shows for this process."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl PR_SET_NAME")


def open_tree(path: str | os.PathLike[str], flags: int = OPEN_TREE_CLONE) -> int:
    """A detached copy of the mount at `path`, as a file descriptor."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(_path(path)),
        ctypes.c_uint(flags | OPEN_TREE_CLOEXEC),
    )
    return _check(result, f"cannot copy the mount of {os.fspath(path)}")


def move_mount(fd: int, target: str | os.PathLike[str]) -> None:
    """Attach a detached mount at `target`."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT),
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(_path(target)),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, f"cannot attach a mount on {os.fspath(target)}")


def mount_setattr(fd: int, *, attr_set: int = 0, attr_clr: int = 0, userns_fd: int = 0) -> None:
    """Change attributes of a detached mount; with MOUNT_ATTR_IDMAP, its id mapping becomes `userns_fd`'s."""
    attr = _MountAttr(attr_set, attr_clr, 0, userns_fd)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(AT_EMPTY_PATH),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _check(result, "cannot change a mount's attributes")


def fsopen(kind: str) -> int:
    result = _libc.syscall(
        ctypes.c_long(_SYS_FSOPEN), ctypes.c_char_p(kind.encode()), ctypes.c_uint(FSOPEN_CLOEXEC)
    )
    return _check(result, f"cannot open file system {kind}")


def fsconfig(
    fd: int, command: int, key: str | None = None, value: str | os.PathLike[str] | None = None
) -> None:
    result = _libc.syscall(
        ctypes.c_long(_SYS_FSCONFIG),
        ctypes.c_int(fd),
        ctypes.c_uint(command),
        ctypes.c_char_p(key.encode() if key else None),
        ctypes.c_char_p(None if value is None else _path(value)),
        ctypes.c_int(0),
    )
    _check(result, f"cannot configure a file system ({key or 'create'}={value})")


def fsmount(fd: int, attributes: int = 0) -> int:
    result = _libc.syscall(
        ctypes.c_long(_SYS_FSMOUNT),
        ctypes.c_int(fd),
        ctypes.c_uint(FSMOUNT_CLOEXEC),
        ctypes.c_uint(attributes),
    )
    return _check(result, "cannot make a mount of a file system")
