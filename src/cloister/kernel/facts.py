"""What this host can do, found out by trying: for `cloister doctor`.

The trials run in a short-lived private world (`holder --exec`), so they meet what a daemon would meet.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.kernel import cgroups, id_maps, mounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """`fix` is a command to run when not `ok`; `needed`: without it Cloister cannot work here."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


#: The oldest tried that do. runc 1.0 does not know what seccomp profiles say now, and starts nothing.
_OLDEST = {"podman": (3, 0), "conmon": (2, 0, 25), "runc": (1, 1)}
_APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


def host_facts(state: Path) -> list[Fact]:
    """All facts, quick ones first, for a Cloister with this state folder, which need not be there. Changes
    nothing on the host; takes about half a second."""
    return [*_host(), *_programs(), *_trials(state), _cgroups()]


def _host() -> list[Fact]:
    root = os.geteuid() == 0
    user = os.environ.get("USER") or str(os.getuid())
    release = platform.release()
    numbers = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in release.split(".")[:2])
    facts = [
        Fact(name="user", ok=True, detail="root" if root else f"rootless, uid {os.getuid()}"),
        Fact(name="kernel", ok=numbers >= (5, 15), detail=release, fix="apt-get install linux-image-amd64"),
    ]
    if not root:
        ranges = id_maps.sub_ids("/etc/subuid")
        count = sum(number for _, number in ranges)
        facts.append(
            Fact(
                name="subordinate ids",
                ok=bool(ranges and id_maps.sub_ids("/etc/subgid")),
                detail=f"{count} ids"
                if ranges
                else "none: only images whose files all belong to root can run",
                fix=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
                needed=False,
            )
        )
        facts.append(_program("newuidmap", "uidmap", needed=False))
        if os.path.exists(_APPARMOR):
            restricted = Path(_APPARMOR).read_text().strip() == "1"
            facts.append(
                Fact(
                    name="unprivileged user namespaces",
                    ok=not restricted,
                    detail="restricted by AppArmor" if restricted else "allowed",
                    fix="sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
                )
            )
    effective = int(next(v for k, v in _status() if k == "CapEff"), 16)
    facts.append(
        Fact(
            name="CAP_SYS_RESOURCE",
            ok=bool(effective & 1 << 24),
            detail="limits can be raised" if effective & 1 << 24 else "limits (ulimit) stay as they are",
            needed=False,
        )
    )
    return facts


def _status() -> list[tuple[str, str]]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _programs() -> list[Fact]:
    facts = [_program(name, name) for name in ("podman", "conmon")]
    runtimes = [_program(name, name, needed=False) for name in ("runc", "crun")]
    found = [fact for fact in runtimes if fact.ok]
    facts += runtimes
    if not found:
        facts.append(Fact(name="container runtime", ok=False, detail="neither", fix="apt-get install runc"))
    try:
        from cloister.kernel.nft import SONAME, library

        library()
        facts.append(Fact(name="libnftables", ok=True, detail=SONAME))
    except OSError as error:
        facts.append(
            Fact(name="libnftables", ok=False, detail=str(error), fix="apt-get install libnftables1")
        )
    return facts


def _program(name: str, package: str, *, needed: bool = True) -> Fact:
    fix = f"apt-get install {package}"
    # /usr/sbin is not in the PATH of users on Debian, and runc lies there.
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        return Fact(name=name, ok=False, detail="not installed", fix=fix, needed=needed)
    if name == "newuidmap":
        return Fact(name=name, ok=True, detail=path, needed=needed)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Fact(name=name, ok=False, detail=f"{path}: {error}", fix=fix, needed=needed)
    line = "".join((done.stdout.strip() or done.stderr.strip()).splitlines()[:1])
    oldest = _OLDEST.get(name, ())
    if done.returncode == 0 and _version(line) < oldest:
        wanted = ".".join(map(str, oldest))
        return Fact(name=name, ok=False, detail=f"{path} {line}: older than {wanted}", fix=fix)
    return Fact(name=name, ok=done.returncode == 0, detail=f"{path} {line}", needed=needed)


def _version(line: str) -> tuple[int, ...]:
    """Of what a program says of itself; that of a build from no release is newer than all."""
    found = re.search(r"\d+(\.\d+)+", line)
    return tuple(map(int, found[0].split("."))) if found else (sys.maxsize,)


_ESP = "ESP in the kernel"
_FIXES = {
    _ESP: "modprobe esp4",
    "private world": "see the detail; in a container, run it with --privileged or --security-opt unmask=ALL",
    "network namespaces": "modprobe veth",
    "nftables": "modprobe nf_tables",
    "conntrack": "modprobe nf_conntrack",
    "overlay": (
        "modprobe overlay; and a state folder on a file system that can hold a layer (in a container: a "
        "volume): cloister --state FOLDER"
    ),
}


def _trials(state: Path) -> list[Fact]:
    source = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-m", "cloister.kernel.holder", "--exec", sys.executable, "-m", __name__]
    command.append(str(state.absolute()))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        results: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
        problem = done.stderr.strip()[-500:] or f"exit code {done.returncode}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        results, problem = {}, str(error)
    if not results:
        return [Fact(name="private world", ok=False, detail=problem, fix=_FIXES["private world"])]
    facts = [Fact(name="private world", ok=True, detail=id_maps.plan_ids().mode)]
    for name, failure in results.items():
        fix = _FIXES.get(name, "") if failure else ""
        needed = name != _ESP
        detail = failure if needed or not failure else f"{failure}: a process encrypts, slower"
        facts.append(Fact(name=name, ok=not failure, detail=detail or "works", fix=fix, needed=needed))
    return facts


def _cgroups() -> Fact:
    limited = bool(cgroups.default_parent("/"))
    return Fact(
        name="cgroup limits",
        ok=limited,
        detail=f"version {cgroups.version()}"
        + ("" if limited else "; not ours to write: jobs get no limits of CPU, memory and processes"),
        fix="" if limited else "run as root where containers must not use up the machine",
        needed=False,
    )


# ---- inside the trial's world --------------------------------------------------------------------


def _try_network(folder: Path) -> None:
    from cloister.kernel.netns import Namespaces
    from cloister.kernel.plan import Netns, Part, Veth, key
    from cloister.kernel.reconcile import Reconciler

    parts: list[Part] = [
        Netns(name="a", forward=True),
        Netns(name="b"),
        Veth(
            outer="a",
            outer_if="e0",
            outer_mac="02:00:00:00:00:01",
            inner="b",
            inner_if="eth0",
            inner_mac="02:00:00:00:00:02",
            addresses=("10.0.0.4",),
            gateway="10.0.0.1",
        ),
    ]
    with Namespaces(folder) as namespaces:
        reconciler = Reconciler(namespaces)
        reconciler.apply({key(part): part for part in parts})
        reconciler.apply({})
        reconciler.close()


def _try_nft(commands: str) -> Callable[[Path], None]:
    def trial(folder: Path) -> None:
        from cloister.kernel.netns import Namespaces
        from cloister.kernel.nft import Nft

        with Namespaces(folder) as namespaces:
            namespaces.create("a")
            try:
                namespaces.call("a", Nft).run(commands)
            finally:
                namespaces.delete("a")

    return trial


def _try_overlay(folder: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    (folder / "lower" / "file").write_text("below")
    mounts.overlay(folder / "merged", [folder / "lower"], folder / "upper", folder / "work")
    (folder / "merged" / "file").write_text("above")
    mounts.unmount(folder / "merged")
    if (folder / "lower" / "file").read_text() != "below":
        raise OSError(5, "the lower layer was changed")


def _try_esp(folder: Path) -> None:
    from cloister.kernel import xfrm

    if trouble := xfrm.trouble():
        raise OSError(trouble)


def _ground(folder: Path) -> Path | None:
    """The folder, or the first one above that is there; None when nothing can be written in it."""
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    return there if os.access(there, os.W_OK) else None


def _main(state: Path) -> None:
    trials: dict[str, Callable[[Path], None]] = {
        "network namespaces": _try_network,
        "nftables": _try_nft(
            "add table ip t; add map ip t m { type inet_proto . inet_service . ipv4_addr : verdict;"
            " flags interval; }; add element ip t m { tcp . 80-90 . 10.0.0.0/8 : accept }"
        ),
        "conntrack": _try_nft(
            "add table ip t; add chain ip t c; add rule ip t c ct state established accept"
        ),
        "overlay": _try_overlay,
        _ESP: _try_esp,
    }
    results = {}
    for name, trial in trials.items():
        # what containers write lies in the state folder, and not every file system can be a layer
        where = _ground(state) if name == "overlay" else None
        with tempfile.TemporaryDirectory(dir=where, ignore_cleanup_errors=True) as folder:
            try:
                trial(Path(folder))
                results[name] = ""
            except Exception as error:  # whatever it is, it is the answer
                results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
