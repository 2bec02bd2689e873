"""The OCI bundle of a container, as a pure function: `config(Bundle) -> config.json`.

What a container may do is decided here and nowhere else: its namespaces, capabilities, seccomp filter,
devices, masked paths. The shape is the OCI runtime specification's (1.0.2), which runc and crun read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OCI_VERSION = "1.0.2"

#: Podman's defaults. No NET_RAW, MKNOD, AUDIT_WRITE, SYS_ADMIN: what a container does not need is not there.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

#: what Docker hides from a container: keys, timers and memory of the machine
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/fs/selinux",
    "/sys/kernel",
    "/sys/module",
)
READONLY_PATHS = (
    *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
    # The devices are the host's own files. Written to they are all the same, but their modes are not changed.
    *("/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"),
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who a container's process is, in the container's own numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """`size` ids from `container` in the container are the ids from `host` in the holder's namespace."""

    container: int
    host: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A folder or file of the holder's mount namespace shown in the container. `target` is absolute."""

    source: str
    target: str
    read_only: bool = False
    recursive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a container may use at most; None is no limit. Memory is in bytes, swap is never added to it."""

    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Everything `config` needs to know."""

    rootfs: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: User
    hostname: str
    netns: str
    uid_map: tuple[IdRange, ...]  # empty: no user namespace of its own
    gid_map: tuple[IdRange, ...]
    binds: tuple[Bind, ...] = ()
    cgroup: str = ""  # "" where the host lets us have none
    limits: Limits = Limits()
    shm_size: int = 64 << 20
    #: (name, soft, hard), from the current hard limits: a host may lack CAP_SYS_RESOURCE
    rlimits: tuple[tuple[str, int, int], ...] = ()
    seccomp: Mapping[str, Any] | None = None
    capabilities: tuple[str, ...] = CAPABILITIES
    oom_score: int | None = None


def argv(
    image_entrypoint: Sequence[str] | None,
    image_command: Sequence[str] | None,
    entrypoint: Sequence[str] | None,
    arguments: Sequence[str] | None,
) -> tuple[str, ...]:
    """AWS: "ContainerEntrypoint" alone drops the image's ENTRYPOINT and CMD; "ContainerArguments" alone
    keep the image's entrypoint and stand in for its CMD (Build your own processing container)."""
    if entrypoint:
        return (*entrypoint, *(arguments or ()))
    return (*(image_entrypoint or ()), *(arguments or image_command or ()))


def environment(
    image_env: Sequence[str], job_env: Mapping[str, str], user: User, hostname: str
) -> dict[str, str]:
    """The image's variables, overridden by the job's; PATH, HOME and HOSTNAME as every engine sets them."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname, "HOME": user.home}
    for entry in image_env:
        name, _, value = entry.partition("=")
        if name:
            env[name] = value
    return {**env, **job_env}


def config(bundle: Bundle) -> dict[str, Any]:
    """The OCI configuration (config.json) of this bundle."""
    process: dict[str, Any] = {
        "terminal": False,
        "user": {
            "uid": bundle.user.uid,
            "gid": bundle.user.gid,
            "umask": 0o022,
            "additionalGids": list(bundle.user.groups),
        },
        "args": list(bundle.argv),
        "env": [f"{name}={value}" for name, value in bundle.env.items()],
        "cwd": bundle.cwd or "/",
        "capabilities": _capabilities(bundle.capabilities, bundle.user),
        "rlimits": [{"type": name, "soft": soft, "hard": hard} for name, soft, hard in bundle.rlimits],
        "noNewPrivileges": True,
    }
    if bundle.oom_score is not None:
        process["oomScoreAdj"] = bundle.oom_score
    linux: dict[str, Any] = {
        "namespaces": _namespaces(bundle),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "rootfsPropagation": "private",
        "resources": _resources(bundle),
    }
    if bundle.uid_map:
        linux["uidMappings"] = [_mapping(r) for r in bundle.uid_map]
        linux["gidMappings"] = [_mapping(r) for r in bundle.gid_map]
    if bundle.cgroup:
        linux["cgroupsPath"] = bundle.cgroup
    if bundle.seccomp is not None:
        linux["seccomp"] = dict(bundle.seccomp)
    return {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": bundle.rootfs, "readonly": False},
        "hostname": bundle.hostname,
        "mounts": _mounts(bundle),
        "linux": linux,
    }


def _capabilities(names: Sequence[str], user: User) -> dict[str, list[str]]:
    # A process that is not root has no effective ones, as with Docker; the bounding set is the same.
    held = list(names) if user.uid == 0 else []
    return {"bounding": list(names), "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def _namespaces(bundle: Bundle) -> list[dict[str, str]]:
    # The network namespace belongs to the holder's user namespace, the rest to the container's own: a
    # capability of the container is none over its network.
    kinds = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    if bundle.uid_map:
        kinds.append({"type": "user"})
    return [*kinds, {"type": "network", "path": bundle.netns}]


def _mapping(r: IdRange) -> dict[str, int]:
    return {"containerID": r.container, "hostID": r.host, "size": r.size}


def _mounts(bundle: Bundle) -> list[dict[str, Any]]:
    nodev = ["nosuid", "noexec", "nodev"]
    mounts: list[dict[str, Any]] = [
        _mount("proc", "proc", "/proc", nodev),
        _mount("tmpfs", "tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "devpts", "devpts", "/dev/pts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
        ),
        _mount("tmpfs", "shm", "/dev/shm", [*nodev, "mode=1777", f"size={bundle.shm_size}"]),
        _mount("mqueue", "mqueue", "/dev/mqueue", nodev),
    ]
    # A parent before what lies in it, else the parent would hide it.
    for bind in sorted(bundle.binds, key=lambda b: b.target.count("/")):
        options = ["rbind" if bind.recursive else "bind", "rprivate", "nosuid", "nodev"]
        mounts.append(_mount("bind", bind.source, bind.target, [*options, "ro" if bind.read_only else "rw"]))
    if bundle.cgroup:
        mounts.append(_mount("cgroup", "cgroup", "/sys/fs/cgroup", [*nodev, "relatime", "ro"]))
    return mounts


def _mount(kind: str, source: str, target: str, options: Sequence[str]) -> dict[str, Any]:
    return {"type": kind, "source": source, "destination": target, "options": list(options)}


def _resources(bundle: Bundle) -> dict[str, Any]:
    # Devices: none but those every runtime gives (null, zero, full, random, urandom, tty, ptmx, pts).
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if not bundle.cgroup:
        return resources
    limits = bundle.limits
    if limits.memory is not None:
        resources["memory"] = {"limit": limits.memory}
    if limits.cpus is not None:
        resources["cpu"] = {"period": 100_000, "quota": max(1_000, int(limits.cpus * 100_000))}
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    return resources


# ---------------------------------------------------------------------------------------------- seccomp

#: machine's name -> (libseccomp's name, the name used in profiles)
ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}

#: Refused whatever the profile says: making namespaces and mounts, kernel keys, io_uring, and the calls
#: that are about the machine and not about the container. (Docker's default refuses them as well.)
REFUSED = (
    "acct",
    "add_key",
    "bpf",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
)
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS … CLONE_NEWNET, CLONE_NEWCGROUP
_AF_NETLINK, _NETLINK_AUDIT = 16, 9
#: fcntl's commands from 1024 on: what would lease a file (F_SETLEASE, F_SETDELEG), and what is known besides
_LEASES, _NO_LEASES = (1024, 1040), range(1025, 1039)


def seccomp(
    profile: Mapping[str, Any] | None, machine: str, capabilities: Sequence[str] = CAPABILITIES
) -> dict[str, Any]:
    """The OCI `linux.seccomp` of a profile in Docker's format (containers-common's seccomp.json).

    With no profile: everything but `REFUSED`. Only the machine's own architecture is allowed, because the
    32-bit `socketcall` cannot be looked into. On top of any profile: no new namespaces; sockets only
    up to AF_NETLINK: AF_VSOCK and AF_ALG reach around the network namespace; no leases: whoever opens a
    leased file waits for up to 45 s, and the shared Python's files are also ours. Raises ValueError for a
    machine unknown here or a profile that is not one: a container never runs without a filter."""
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call filter is known for a machine of type {machine}")
    arch, alias = ARCHITECTURES[machine]
    named = {*REFUSED, "clone", "clone3", "socket", "fcntl"}
    if profile is None:
        default, errno, rules = "SCMP_ACT_ALLOW", None, []
    else:
        default, errno = str(profile["defaultAction"]), profile.get("defaultErrnoRet")
        if default == "SCMP_ACT_ALLOW":
            raise ValueError("the system call profile allows by default")
        rules = _profile_rules(profile["syscalls"], alias, frozenset(capabilities), named)
    allow_all = default == "SCMP_ACT_ALLOW"
    own = [
        _rule(sorted(REFUSED), _EPERM),
        _rule(["clone3"], _ENOSYS),  # its flags lie in memory: C libraries fall back to clone
        _rule(["socket"], _EAFNOSUPPORT, [_arg(0, _AF_NETLINK, "SCMP_CMP_GT")]),
    ]
    if allow_all:
        own += [_rule(["fcntl"], _EPERM, [_arg(1, 0xFFFF_FFFF, "SCMP_CMP_MASKED_EQ", n)]) for n in _LEASES]
        for flag in (1 << bit for bit in range(32) if _NEW_NAMESPACES >> bit & 1):
            own.append(_rule(["clone"], _EPERM, [_arg(0, flag, "SCMP_CMP_MASKED_EQ", flag)]))
    else:
        no_namespace = _arg(0, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ", 0)
        # Commands are allowed one by one: the kernel ignores the upper half of the number, a filter does not.
        own += [_rule(["fcntl"], _EPERM, [_arg(1, number, "SCMP_CMP_EQ")]) for number in _LEASES]
        own += [_rule(["fcntl"], None, [_arg(1, number, "SCMP_CMP_EQ")]) for number in _NO_LEASES]
        own += [
            _rule(["fcntl"], None, [_arg(1, min(_LEASES), "SCMP_CMP_LT")]),
            _rule(["clone"], None, [no_namespace]),
            _rule(["socket"], None, [_arg(0, _AF_NETLINK, "SCMP_CMP_LT")]),
            _rule(
                ["socket"],
                None,
                [_arg(0, _AF_NETLINK, "SCMP_CMP_EQ"), _arg(2, _NETLINK_AUDIT, "SCMP_CMP_NE")],
            ),
        ]
    result: dict[str, Any] = {"defaultAction": default, "architectures": [arch], "syscalls": rules + own}
    if errno is not None:
        result["defaultErrnoRet"] = errno
    return result


def _profile_rules(
    entries: Sequence[Mapping[str, Any]], arch: str, caps: frozenset[str], decided: set[str]
) -> list[dict[str, Any]]:
    rules = []
    for entry in entries:
        names = [name for name in entry.get("names", ()) if name not in decided]
        if names and _applies(entry, arch, caps):
            rule: dict[str, Any] = {"names": names, "action": entry["action"]}
            if entry.get("errnoRet") is not None:
                rule["errnoRet"] = entry["errnoRet"]
            if entry.get("args"):
                rule["args"] = [dict(arg) for arg in entry["args"]]
            rules.append(rule)
    return rules


def _applies(entry: Mapping[str, Any], arch: str, caps: frozenset[str]) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if arch in (excludes.get("arches") or ()):
        return False
    # `minKernel` is always met: Cloister needs 5.11 for its overlays, profiles ask for 4.8 (ptrace).
    return caps.issuperset(includes.get("caps") or ()) and not caps.intersection(excludes.get("caps") or ())


def _rule(names: Sequence[str], errno: int | None, args: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if errno is not None:
        rule |= {"action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    if args:
        rule["args"] = list(args)
    return rule


def _arg(index: int, value: int, op: str, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": op}
