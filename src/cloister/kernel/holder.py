"""The holder: PID 1 of Cloister's private world. It outlives the daemon and restarts it.

    python -m cloister.kernel.holder --state DIR --log FILE -- DAEMON…    used by `ensure`
    python -m cloister.kernel.holder --enter DIR -- COMMAND…              run COMMAND in a holder's world
    python -m cloister.kernel.holder --exec COMMAND…                      run COMMAND in a throw-away world

The world has a mount namespace (nothing mounted in it is seen outside), a pid namespace (ending the
holder ends everything in it: the kernel does that), its own /proc and, when not started by root, a user
namespace in which the caller is uid 0 and his subordinate ids follow. It stays in the host's network.

Only the standard library, `syscalls` and `id_maps` are imported: a holder costs about 10 MB.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloister.kernel import syscalls
from cloister.kernel.id_maps import IdMaps, plan_ids, unshare_user

#: exit code by which the daemon says that starting it again is of no use (sysexits: EX_CONFIG)
GIVE_UP = 78
#: set in every process of a private world; its value is the state folder, or "exec"
WORLD_VARIABLE = "CLOISTER_WORLD"
#: set in the daemon: the two ends of what keeps open files for the next daemon (`kernel/shelf.py`)
SHELF_VARIABLE = "CLOISTER_SHELF"

_BACK_OFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the n-th restart in a row
_STEADY = 3.0  # a daemon that lived so long starts again without back-off
_GRACE = 20.0  # seconds the daemon has to end after SIGTERM
_TELLER, _ENDED = " holder: ", "daemon ended with "
_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class HolderError(RuntimeError):
    """The private world could not be made, joined or ended; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderInfo:
    """holder.json. `uid_map` rows are (inside, outside, count); `started` is in clock ticks since boot.

    `mode` is "root", "rootless" or "rootless-single" (one id only: images with other users cannot run)."""

    pid: int
    started: int
    boot_id: str
    mode: str
    uid_map: list[list[int]]
    gid_map: list[list[int]]
    #: False when `ensure` found it running
    fresh: bool = True


def netns_dir(state: str | os.PathLike[str]) -> Path:
    """Where namespaces are pinned. Outside of the holder's world this folder is empty."""
    return Path(state) / "run" / "netns"


# ---- from outside --------------------------------------------------------------------------------


def ensure(
    state: str | os.PathLike[str],
    argv: Sequence[str],
    log: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
) -> HolderInfo:
    """Start the holder of `state`, which runs `argv` as its daemon; or return the one that is running.

    The daemon gets CLOISTER_STATE in its environment, and its output goes to `log`. Returns when the world is
    set up (the daemon is about to start), raises HolderError with the reason when that fails. A lock on
    `holder.lock`, held for as long as the holder lives, makes a second holder of one state impossible."""
    import subprocess

    where = Path(state).absolute()
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_path = Path(log).absolute() if log else where / "daemon.log"
    deadline = time.monotonic() + timeout
    lock = os.open(where / "holder.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if (running := info(where)) is not None:
                    return running
            if time.monotonic() > deadline:
                raise HolderError(f"another process holds {where / 'holder.lock'} but is no holder")
            time.sleep(0.02)
        (where / "holder.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "cloister.kernel.holder", "--state", str(where)]
        command += ["--log", str(log_path), "--lock", str(lock), "--", *argv]
        with open(where / "holder.log", "ab") as holder_log:
            starter = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=holder_log,
                env=_environment(),
                start_new_session=True,
                pass_fds=(lock,),
            )
        try:
            out, _ = starter.communicate(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            starter.kill()
            starter.communicate()
            raise HolderError(
                f"the holder was not ready in {timeout:g} s; see {where / 'holder.log'}"
            ) from None
        if starter.returncode != 0:
            reason = out.decode(errors="replace").strip() or f"see {where / 'holder.log'}"
            raise HolderError(f"cannot make the private world: {reason}")
    finally:
        os.close(lock)
    found = info(where)
    if found is None:
        raise HolderError(f"the holder ended at once; see {where / 'holder.log'}")
    return HolderInfo(**{**asdict(found), "fresh": True})


def info(state: str | os.PathLike[str]) -> HolderInfo | None:
    """The running holder of `state`, or None: also when its file is left from a crash or an earlier boot."""
    try:
        found = HolderInfo(**{**json.loads((Path(state) / "holder.json").read_text()), "fresh": False})
    except (OSError, ValueError, TypeError):
        return None
    if found.boot_id != _boot_id() or start_time(found.pid) != found.started:
        return None
    return found


def ends(state: str | os.PathLike[str], since: int) -> int:
    """How often the daemon has ended, as told by holder.log after this many bytes of it."""
    try:
        return (Path(state) / "holder.log").read_bytes()[since:].count(f"{_TELLER}{_ENDED}".encode())
    except FileNotFoundError:
        return 0


def stop(state: str | os.PathLike[str], timeout: float = 30.0) -> bool:
    """End the holder and with it everything in its world. Gently first; after `timeout` seconds by SIGKILL.

    Returns whether there was one. When it returns, every process of the world has ended."""
    found = info(state)
    if found is None:
        return False
    try:
        pidfd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(found.pid) != found.started:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not _gone(found, timeout):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not _gone(found, 10.0):
            raise HolderError(f"the holder (pid {found.pid}) does not end")
    finally:
        os.close(pidfd)
    (Path(state) / "holder.json").unlink(missing_ok=True)
    return True


def enter(
    state: str | os.PathLike[str], argv: Sequence[str], environment: dict[str, str] | None = None
) -> int:
    """Run `argv` inside the holder's user, mount and pid namespaces; returns its exit code (128+N: signal N).
    Signals that ask this process to end are passed on to it; it is asked to end when this process is gone.

    The caller must be who started the holder, or root."""
    found = info(state)
    if found is None:
        raise HolderError(f"no Cloister is running with the state {state}")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _leave(lambda: _enter(found, Path(state), argv, environment))
    with _passing_on(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def _passing_on(child: int) -> Iterator[None]:
    """What asks this process to end asks `child`; Ctrl-C reaches it by the terminal anyway."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    handlers: dict[int, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), pass_on)
    handlers[signal.SIGINT] = signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _enter(found: HolderInfo, state: Path, argv: Sequence[str], environment: dict[str, str] | None) -> int:
    kinds = [("mnt", syscalls.CLONE_NEWNS), ("pid", syscalls.CLONE_NEWPID)]
    if found.mode != "root":
        kinds.insert(0, ("user", syscalls.CLONE_NEWUSER))
    files = [(os.open(f"/proc/{found.pid}/ns/{name}", os.O_RDONLY), kind) for name, kind in kinds]
    for fd, kind in files:
        syscalls.setns(fd, kind)
    if found.mode != "root":
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    absolute = str(state.absolute())
    env = {**(environment or _environment()), "CLOISTER_STATE": absolute, WORLD_VARIABLE: absolute}
    return _run(argv, env)


def _gone(found: HolderInfo, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while start_time(found.pid) == found.started:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    after_name = text[text.rindex(")") + 2 :].split()
    return None if after_name[0] in "ZX" else int(after_name[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _environment() -> dict[str, str]:
    """The caller's environment, with Cloister importable also when it is not installed."""
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


# ---- making a world ------------------------------------------------------------------------------


def _make_world() -> IdMaps:
    """Unshare; the next child of this process is PID 1 of the world and must call `_settle`."""
    ids = plan_ids()
    try:
        if ids.mode != "root":
            unshare_user(ids, _leave)
        syscalls.unshare(syscalls.CLONE_NEWPID)
    except OSError as error:
        raise HolderError(_explain(error)) from error
    return ids


def _settle() -> None:
    """As PID 1: mounts of our own, and a /proc which shows this pid namespace only."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        # Mounts made outside later (a USB disk, /home) arrive; ours never leave.
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        syscalls.mount("proc", "/proc", "proc", flags)
    except OSError as error:
        raise HolderError(_explain(error)) from error


def _explain(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EACCES) and os.path.exists(_APPARMOR) and _read(_APPARMOR) == "1":
        return (
            f"{text} (kernel.apparmor_restrict_unprivileged_userns is 1: `cloister doctor` says what to do)"
        )
    if error.errno == errno.ENOSPC:
        return f"{text} (user.max_user_namespaces or another limit in /proc/sys/user is used up)"
    return text


_APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


# ---- the holder ----------------------------------------------------------------------------------


def _start(state: Path, log: Path, lock: int, argv: list[str]) -> int:
    """The starter: makes the world, leaves PID 1 running in it, writes holder.json and exits."""
    os.set_inheritable(lock, False)
    ids = _make_world()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready[0])
        os.close(go[1])
        _leave(lambda: _hold(state, log, argv, ready[1], go[0]))
    os.close(ready[1])
    os.close(go[0])
    problem = os.read(ready[0], 4096).decode(errors="replace")
    if problem != "ok":
        os.waitpid(child, 0)
        raise HolderError(problem or "the holder ended while it set up its world")
    started = start_time(child)
    if started is None:
        raise HolderError("the holder ended at once")
    found = HolderInfo(
        pid=child, started=started, boot_id=_boot_id(), mode=ids.mode, uid_map=ids.uids, gid_map=ids.gids
    )
    write_atomically(state / "holder.json", json.dumps(asdict(found)))
    os.write(go[1], b"go")
    return 0


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _hold(state: Path, log: Path, argv: list[str], ready: int, go: int) -> int:
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)  # the starter's pipe; 2 is holder.log
        os.close(null)
        os.chdir(state)
        os.umask(0o022)
        _settle()
        pins = netns_dir(state)
        pins.mkdir(parents=True, exist_ok=True)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("cloister", pins, "tmpfs", flags, "mode=0755")
        syscalls.set_name("cloister-holder")
    except (OSError, HolderError) as error:
        os.write(ready, str(error)[:4000].encode() or b"?")
        return 1
    os.write(ready, b"ok")
    os.close(ready)
    if os.read(go, 2) != b"go":
        return 1
    os.close(go)
    env = {**os.environ, "CLOISTER_STATE": str(state), WORLD_VARIABLE: str(state)}
    return _supervise(argv, env, log)


def _supervise(argv: list[str], env: dict[str, str], log: Path) -> int:
    """Keep a daemon running and reap orphans, until SIGTERM or the daemon exits with 0 or GIVE_UP."""
    # Blocked signals queue up for sigtimedwait, and reach PID 1 although it has no handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    failures = 0
    # Both ends stay open here, so what waits in between outlives every daemon.
    shelf = [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    env = {**env, SHELF_VARIABLE: ",".join(map(str, shelf))}
    while True:
        born = time.monotonic()
        daemon = _spawn(argv, env, log, shelf)
        _say(f"daemon started (pid {daemon} inside)")
        ended, status = _wait_for(daemon, None)
        if not ended:
            _say("ending")
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGTERM)
            if not _wait_for(daemon, _GRACE)[0]:
                _say(f"the daemon did not end in {_GRACE:g} s")
            break
        code = os.waitstatus_to_exitcode(status)
        _say(f"{_ENDED}{code}")
        if code in (0, GIVE_UP):
            break
        failures = 0 if time.monotonic() - born > _STEADY else failures
        pause = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
        failures += 1
        if _wait_for(0, pause)[1] == signal.SIGTERM:
            break
    _end_the_rest()
    return 0


def _wait_for(pid: int, timeout: float | None) -> tuple[bool, int]:
    """Reap children until `pid` ended: (True, its status). (False, SIGTERM) when told to end — only without
    a timeout or without a pid —, (False, 0) when the time is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if child == 0:
                break
            if child == pid:
                return True, status
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False, 0
        got = signal.sigtimedwait(_WATCHED, left)
        if got and got.si_signo in (signal.SIGTERM, signal.SIGINT) and (pid == 0 or deadline is None):
            return False, signal.SIGTERM


def _end_the_rest() -> None:
    """Ask what is left to end, for two seconds. The kernel kills the others when PID 1 exits."""
    deadline = time.monotonic() + 2.0
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGTERM)
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                signal.sigtimedwait({signal.SIGCHLD}, 0.05)
        except ChildProcessError:
            # Processes that joined from outside are no children of ours; they end with us.
            return


def _spawn(argv: list[str], env: dict[str, str], log: Path, files: Sequence[int]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        os.setsid()
        for fd in files:
            os.set_inheritable(fd, True)
        _exec(argv, env)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error}\n".encode())
    os._exit(GIVE_UP)


def _exec(argv: Sequence[str], env: dict[str, str]) -> None:
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.execvpe(argv[0], list(argv), env)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}{_TELLER}{text}", file=sys.stderr, flush=True)


# ---- a throw-away world --------------------------------------------------------------------------


def run_in_new_world(argv: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Run `argv` in a fresh private world that ends with it; returns its exit code (128+N: signal N).

    Must be called in a process of its own (it unshares): `python -m cloister.kernel.holder --exec`."""
    _make_world()
    starter = os.getpid()
    env = {**(environment or dict(os.environ)), WORLD_VARIABLE: "exec"}
    child = os.fork()
    if child == 0:

        def first() -> int:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            _settle()
            code = _run(argv, env)
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            return code

        _leave(first)

    def pass_on(number: int, _: object) -> None:
        if os.getpid() == starter:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command as well
    return _code(os.waitpid(child, 0)[1])


def _run(argv: Sequence[str], env: dict[str, str]) -> int:
    """Run a command in a child, reap all that ends meanwhile, return the command's exit code."""
    command = os.fork()
    if command == 0:
        try:
            _exec(argv, env)
        except OSError as error:
            os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
        os._exit(127)
    with _passing_on(command):
        while True:
            child, status = os.waitpid(-1, 0)
            if child == command:
                return _code(status)


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _leave(main: Callable[[], int]) -> None:
    """The end of a forked child: run, report, and never return into the parent's code."""
    code = 1
    try:
        code = main()
    except (OSError, HolderError) as error:
        os.write(2, f"{error}\n".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def main(arguments: list[str]) -> int:
    import argparse

    if arguments[:1] == ["--exec"] and len(arguments) > 1:
        return run_in_new_world(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m cloister.kernel.holder")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--lock", type=int)
    parser.add_argument("--enter", type=Path)
    parser.add_argument("argv", nargs="+", help="after --")
    options = parser.parse_args(arguments)
    if options.enter:
        return enter(options.enter, options.argv)
    if not (options.state and options.log and options.lock):
        parser.error("give --enter DIR, or --state, --log and --lock (as `ensure` does)")
    try:
        return _start(options.state, options.log, options.lock, options.argv)
    except (HolderError, OSError) as error:
        print(error)
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HolderError as error:
        sys.exit(f"cloister: {error}")
