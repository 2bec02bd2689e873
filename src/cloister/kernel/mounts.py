"""Mounts: overlay with any number of layers, bind mounts, mounts with other owners (idmapped)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from cloister.kernel import syscalls

_Path = str | os.PathLike[str]

#: mount(2) takes one page of options
_OPTION_BYTES = 4000
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def overlay(
    target: _Path, lower: Sequence[_Path], upper: _Path | None = None, work: _Path | None = None
) -> None:
    """Mount layers (`lower`, the top one first) on `target`; writable when `upper` and `work` are given,
    which must be on one file system. Inside a user namespace this takes Linux 5.11."""
    if (upper is None) != (work is None):
        raise ValueError("an overlay has both an upper and a work folder, or neither")
    writable = "" if upper is None else f",upperdir={_escape(upper)},workdir={_escape(work or '')}"
    # userxattr: in a user namespace trusted.* attributes cannot be written.
    more = writable + (",userxattr" if in_user_namespace() else "")
    options = "lowerdir=" + ":".join(_escape(path) for path in lower) + more
    if len(options) <= _OPTION_BYTES:
        syscalls.mount("overlay", target, "overlay", 0, options)
        return
    # Too long for one page. Linux 6.5 takes one layer at a time; before, short names in a folder must do.
    try:
        _overlay_by_layers(target, lower, upper, work)
    except OSError:
        common = os.path.commonpath([os.path.abspath(path) for path in lower])
        names = [os.path.relpath(os.path.abspath(path), common) for path in lower]
        options = "lowerdir=" + ":".join(_escape(name) for name in names) + more
        if len(options) > _OPTION_BYTES:
            raise
        _in_folder(common, target, options)


def _overlay_by_layers(
    target: _Path, lower: Sequence[_Path], upper: _Path | None, work: _Path | None
) -> None:
    fs = syscalls.fsopen("overlay")
    try:
        for path in lower:
            syscalls.fsconfig(fs, syscalls.FSCONFIG_SET_STRING, "lowerdir+", path)
        if upper is not None and work is not None:
            syscalls.fsconfig(fs, syscalls.FSCONFIG_SET_STRING, "upperdir", upper)
            syscalls.fsconfig(fs, syscalls.FSCONFIG_SET_STRING, "workdir", work)
        if in_user_namespace():
            syscalls.fsconfig(fs, syscalls.FSCONFIG_SET_FLAG, "userxattr")
        syscalls.fsconfig(fs, syscalls.FSCONFIG_CMD_CREATE)
        mounted = syscalls.fsmount(fs)
    finally:
        os.close(fs)
    try:
        syscalls.move_mount(mounted, target)
    finally:
        os.close(mounted)


def _in_folder(folder: str, target: _Path, options: str) -> None:
    # The working directory belongs to the process, so a child has to mount.
    target = os.path.abspath(target)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            syscalls.mount("overlay", target, "overlay", 0, options)
            code = 0
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, f"cannot mount overlay on {target}: {os.strerror(code)}")


def bind(source: _Path, target: _Path, *, read_only: bool = False) -> None:
    """Make `source` (folder or file) appear at `target`, which must exist, with what is mounted below it."""
    syscalls.mount(os.fspath(source), target, None, syscalls.MS_BIND | syscalls.MS_REC)
    if read_only:
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        # Flags that an outer user namespace locked must be kept.
        locked = os.statvfs(target).f_flag & (syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
        syscalls.mount("none", target, None, flags | locked)


def idmapped(source: _Path, target: _Path, userns_fd: int) -> None:
    """Bind `source` to `target` with the ids of a user namespace: files of uid 0 appear as its uid 0.
    As root only, on file systems that support it (ext4, xfs, btrfs from Linux 5.12 to 5.15, overlay 5.19)."""
    tree = syscalls.open_tree(source)
    try:
        syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


def unmount(target: _Path) -> None:
    """Detach a mount and what is below it. No error when nothing is mounted there."""
    with contextlib.suppress(FileNotFoundError):
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno != 22:  # EINVAL: not a mount point
                raise


def below(folder: _Path) -> list[Path]:
    """The mount points in and below `folder`, deepest first: the order to unmount in."""
    root = os.path.abspath(folder)
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4]
        for code, character in _ESCAPES.items():
            point = point.replace(code, character)
        if point == root or point.startswith(root.rstrip("/") + "/"):
            found.append(Path(point))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def unmount_below(folder: _Path) -> None:
    for point in below(folder):
        unmount(point)


def in_user_namespace() -> bool:
    """Whether our root is not the machine's root."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _escape(path: _Path) -> str:
    text = os.fspath(path)
    return text.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
