"""A container's root file system, assembled in a mount namespace of its own.

`assemble` runs in a thread that has just made itself a mount namespace (`private_mounts`). The monitor
started from that thread lives there, so every mount of a container is gone with the container, whatever
kills it, and the holder's mount table never grows. All of it lies under one short folder (`/mnt` of that
namespace), because the path must be open to a container's root, who is nobody on the host, and because an
overlay's options must fit one page.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cloister.jobs.bundle import Bind, IdRange, User
from cloister.jobs.hostimage import HostBind
from cloister.jobs.images import Image
from cloister.kernel import syscalls
from cloister.kernel.mounts import in_user_namespace

_PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")
#: where root's containers get their ids when /etc/subuid has no range for us
_HIGH_IDS = 2_130_706_432
_IDS = 65_536
#: files of a container's /etc that are ours
ETC_FILES = ("hosts", "hostname", "resolv.conf")
_CPUS = "/sys/devices/system/cpu"
_AT_SYMLINK_NOFOLLOW = 0x100
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_LARGEST_PASSWD = 4 << 20


class NoSuchUser(LookupError):
    """The image says to run as a user that the image does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """The ids of containers. `userns` is a user namespace with this mapping for idmapped mounts, or None
    where the ids inside are those outside (inside the holder's user namespace)."""

    uid_map: tuple[IdRange, ...]
    gid_map: tuple[IdRange, ...]
    userns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rootfs:
    """Paths in the private mount namespace: the root, and what the bundle has to name."""

    path: str
    netns: str
    binds: tuple[Bind, ...]


# ------------------------------------------------------------------------------------------------- ids


def container_ids(probe: Path) -> Ids:
    """The id mapping for containers started from here.

    As the machine's root: ids that belong to nobody, and files shown as root's by idmapped mounts; `probe` is
    a folder on the file system of the state, to see whether it can do that. In the holder's user
    namespace, or where idmapped mounts are not possible: the same ids, in a user namespace of the
    container's own, so that its capabilities hold over nothing outside of it."""
    if not in_user_namespace():
        ids = _unprivileged_ids()
        try:
            fd = syscalls.open_tree(probe)
            try:
                syscalls.mount_setattr(fd, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=ids.userns or 0)
                return ids
            finally:
                os.close(fd)
        except OSError:
            if ids.userns is not None:
                os.close(ids.userns)
    return Ids(uid_map=_identity("/proc/self/uid_map"), gid_map=_identity("/proc/self/gid_map"))


def _identity(path: str) -> tuple[IdRange, ...]:
    ranges = []
    for line in Path(path).read_text().splitlines():
        inside, _, size = (int(word) for word in line.split())
        ranges.append(IdRange(container=inside, host=inside, size=min(size, 2**31 - inside)))
    return tuple(ranges)


def _unprivileged_ids() -> Ids:
    ranges = tuple(
        IdRange(container=0, host=_subordinate(file), size=_IDS) for file in ("/etc/subuid", "/etc/subgid")
    )
    uid_map, gid_map = ranges[:1], ranges[1:]
    return Ids(uid_map=uid_map, gid_map=gid_map, userns=_user_namespace(uid_map, gid_map))


def _subordinate(file: str) -> int:
    with suppress(OSError):
        for owner in ("cloister", "root"):
            for line in Path(file).read_text().splitlines():
                name, _, rest = line.partition(":")
                first, _, size = rest.partition(":")
                if name == owner and first.isdigit() and size.isdigit() and int(size) >= _IDS and int(first):
                    return int(first)
    return _HIGH_IDS


def _user_namespace(uid_map: Sequence[IdRange], gid_map: Sequence[IdRange]) -> int:
    """A user namespace with these mappings, as a descriptor. A process with threads cannot make one
    itself: a child does, for a moment."""
    child = subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        own, theirs = os.readlink("/proc/self/ns/user"), f"/proc/{child.pid}/ns/user"
        deadline = time.monotonic() + 10
        while os.readlink(theirs) == own:
            if time.monotonic() > deadline or child.poll() is not None:
                raise OSError("a user namespace for containers could not be made")
            time.sleep(0.001)
        for name, ranges in (("uid_map", uid_map), ("gid_map", gid_map)):
            text = "".join(f"{r.container} {r.host} {r.size}\n" for r in ranges)
            Path(f"/proc/{child.pid}/{name}").write_text(text)
        return os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        child.kill()
        child.communicate()


# ---------------------------------------------------------------------------------------------- mounts


def private_mounts() -> None:
    """Give the calling thread, and what it starts, a mount namespace of its own."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def forget_namespaces(keep: str) -> None:
    """Drop our copies of pinned namespaces but `keep`: else a container holds other jobs' networks alive."""
    with open("/proc/thread-self/mountinfo", "rb") as file:
        pins = [line.split(b" ", 5)[4] for line in file if b" - nsfs " in line]
    for pin in pins:
        path = os.fsdecode(pin.decode("unicode_escape").encode("latin-1"))
        if path != keep:
            with suppress(OSError):
                syscalls.umount(path, syscalls.MNT_DETACH)


def sysfs(netns: str) -> int | None:
    """A detached /sys that shows this network namespace's interfaces, or None where the kernel refuses
    (the host's own /sys is partly hidden). The calling thread stays in the namespace: use a fresh one."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    finally:
        os.close(fd)
    try:
        context = syscalls.fsopen("sysfs")
    except OSError:
        return None
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, 0)
    except OSError:
        return None
    finally:
        os.close(context)


def choose_base(used: Sequence[str]) -> str:
    """A folder of the host to cover in our private mount namespace: one that nothing we use is in."""
    for place in _PLACES:
        info = os.lstat(place) if os.path.lexists(place) else None
        if info is None or not stat.S_ISDIR(info.st_mode) or not info.st_mode & stat.S_IXOTH:
            continue
        if not any(path == place or path.startswith(place + "/") for path in used):
            return place
    raise OSError(f"none of {', '.join(_PLACES)} is a folder that could carry a container's root")


def assemble(
    image: Image,
    *,
    overlay: Path,
    etc: Path,
    binds: Sequence[Bind],
    netns: str,
    sysfs_fd: int | None,
    ids: Ids,
    base: str,
) -> Rootfs:
    """Mount everything under `base` and say what is where. `overlay` holds `upper` and `work`, `etc`
    the files hosts, resolv.conf and hostname. Raises OSError with a sentence."""
    with ExitStack() as open_mounts:

        def copy(path: str, userns: int | None, *, recursive: bool = False) -> int:
            fd = _copy(path, userns, recursive=recursive)
            open_mounts.callback(os.close, fd)
            return fd

        def copy_of_host(bind: HostBind) -> int:
            # A network's or a container's own file system may not be able to; most of it everybody may read.
            if bind.ours and ids.userns is not None:
                with suppress(OSError):
                    return copy(bind.path, ids.userns, recursive=True)
            return copy(bind.path, None, recursive=True)

        # Copies are taken before `base` is covered: a source may lie anywhere.
        layers = [copy(layer, ids.userns) for layer in image.layers]
        # The upper layer holds the containers' true ids: the kernel makes `work` as us, not in the map.
        top = copy(str(overlay), None)
        if ids.userns is not None:
            os.chown(overlay / "upper", ids.uid_map[0].host, ids.gid_map[0].host)
        own = copy(str(etc), ids.userns)
        theirs = [copy_of_host(bind) for bind in image.binds]
        sources = [copy(b.source, ids.userns, recursive=True) for b in binds]
        net = copy(netns, None)

        syscalls.mount("tmpfs", base, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=1m")
        root = _overlay(base, layers, top)
        ours = _attach(own, f"{base}/etc")
        made = [Bind(source=f"{ours}/{name}", target=f"/etc/{name}") for name in ETC_FILES]
        if sysfs_fd is not None:
            made.append(Bind(source=_attach(sysfs_fd, f"{base}/sys"), target="/sys", read_only=True))
        else:
            made.append(Bind(source=_CPUS, target=_CPUS, read_only=True))
        for number, (host, fd) in enumerate(zip(image.binds, theirs, strict=True)):
            source = _attach(fd, f"{base}/h{number}")
            made.append(Bind(source=source, target=host.path, read_only=True, recursive=True))
        for number, (bind, fd) in enumerate(zip(binds, sources, strict=True)):
            source = _attach(fd, f"{base}/m{number}")
            made.append(replace(bind, source=source, recursive=True))
        return Rootfs(path=root, netns=_attach(net, f"{base}/net"), binds=tuple(made))


def _overlay(base: str, layers: Sequence[int], top: int) -> str:
    """The root: `layers` below `top`'s upper."""
    lower = [_attach(fd, f"{base}/l{number}") for number, fd in enumerate(layers)]
    lower = lower or [_folder(f"{base}/empty")]
    _attach(top, f"{base}/top")
    root = _folder(f"{base}/root")
    # `volatile`: nobody needs this root after a crash of the machine, so nothing waits for the disk
    options = f"lowerdir={':'.join(lower)},upperdir={base}/top/upper,workdir={base}/top/work,volatile"
    if in_user_namespace():
        options += ",userxattr"
    # nodev: a layer may hold a device of the host
    syscalls.mount("overlay", root, "overlay", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    for path in (*lower, f"{base}/top"):  # the overlay holds them
        with suppress(OSError):
            syscalls.umount(path, syscalls.MNT_DETACH)
    return root


def _copy(path: str, userns: int | None, *, recursive: bool = False) -> int:
    flags = syscalls.OPEN_TREE_CLONE | _AT_SYMLINK_NOFOLLOW | (syscalls.AT_RECURSIVE if recursive else 0)
    fd = syscalls.open_tree(path, flags)
    if userns is not None:
        try:
            syscalls.mount_setattr(fd, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)
        except OSError as error:
            os.close(fd)
            raise OSError(
                error.errno, f"the file system of {path} cannot show a container's ids: {error.strerror}"
            ) from None
    return fd


def _attach(fd: int, target: str) -> str:
    """Attach a detached copy at a new folder, or file when it is one."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        _folder(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    syscalls.move_mount(fd, target)
    return target


def _folder(path: str) -> str:
    os.mkdir(path)
    os.chmod(path, 0o755)
    return path


# ---------------------------------------------------------------------------------------------- who runs


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def read_inside(root: str, path: str) -> bytes:
    """A file of the image. Its links are followed as the container would: an image must not make us read
    the host's files. b"" when there is none."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(
            os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY,
            0,
            _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS,
        )
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        fd = libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(base), ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
        )  # fmt: skip
    finally:
        os.close(base)
    if fd < 0:
        return b""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read(_LARGEST_PASSWD)


def find_user(root: str, wanted: str) -> User:
    """The image's USER (`name`, `uid`, `name:group`, `uid:gid`) by the image's own passwd and group."""
    name, _, group = wanted.partition(":")
    name = name or "0"
    if name in ("0", "root") and not group:
        return User()
    people = _table(read_inside(root, "etc/passwd"), 7)
    groups = _table(read_inside(root, "etc/group"), 4)
    person = next((p for p in people if name in (p[0], p[2])), None)
    if person is None and not name.isdigit():
        raise NoSuchUser(f"the image's user {name} is not in its /etc/passwd")
    uid = int(person[2]) if person else int(name)
    gid = int(person[3]) if person else 0
    login = person[0] if person else ""
    if group:
        entry = next((g for g in groups if group in (g[0], g[2])), None)
        if entry is None and not group.isdigit():
            raise NoSuchUser(f"the image's group {group} is not in its /etc/group")
        return User(uid=uid, gid=int(entry[2]) if entry else int(group), home=person[5] if person else "/")
    more = tuple(int(g[2]) for g in groups if login and login in g[3].split(",") and int(g[2]) != gid)
    return User(uid=uid, gid=gid, groups=more, home=(person[5] if person else "") or "/")


def _table(content: bytes, columns: int) -> list[list[str]]:
    rows = [line.split(":") for line in content.decode(errors="replace").splitlines()]
    return [r for r in rows if len(r) == columns and r[2].isdigit() and (columns == 4 or r[3].isdigit())]
