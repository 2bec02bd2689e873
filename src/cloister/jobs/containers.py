"""Containers, run by conmon and runc without an engine.

A container outlives the daemon: conmon keeps its log and writes its exit code to a file. What the daemon has
to know of a container is a small record in the state folder, so that the next daemon goes on with it.

    start ─► thread: own mount namespace ─► overlay, binds ─► config.json ─► conmon ─► runc create ─► start
    wait  ─► conmon's pidfd ─► exit file ─► Exit
    remove ─► KILL ─► runc delete ─► cgroup and folder gone (the mounts went with the processes)
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import re
import resource
import select
import shutil
import signal as signals
import subprocess
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cloister.jobs import bundle, rootfs
from cloister.jobs.bundle import Bind, Limits
from cloister.jobs.images import Image
from cloister.jobs.logfile import LogLine, LogPosition, LogReader
from cloister.jobs.processes import NOBODY, Process, command_of, ended, in_thread, join, started_for
from cloister.jobs.remove import remove_tree
from cloister.kernel import cgroups, syscalls
from cloister.kernel.mounts import in_user_namespace

log = logging.getLogger(__name__)

T = TypeVar("T")

#: a line of runc's log as text
_LOGGED = re.compile(r'level=\w+ msg="((?:[^"\\]|\\.)*)"')
_SECCOMP_PROFILES = ("/usr/share/containers/seccomp.json", "/etc/containers/seccomp.json")
_CREATE_SECONDS = 60.0
_POLL_SECONDS = 0.1
#: bytes of a container's log that are kept
MAX_LOG = 256 << 20
#: further than any log is read: its end was told
_FULL = 1 << 50
_LOG_CHUNK = 1 << 20
_OOM_SCORE = 200


class ContainerError(Exception):
    """The container could not be started; `str()` is a sentence. `exit_code` is what a shell would say:
    127 for a command that is not in the image, 126 for one that cannot be run."""

    def __init__(self, sentence: str, exit_code: int = 125) -> None:
        self.exit_code = exit_code
        super().__init__(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder or file shown in the container at the absolute path `target`."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What to run. `folder` is the instance's folder: `folder/container` is ours. `entrypoint` and
    `arguments` follow AWS's rule (`bundle.argv`). `netns` is a path. `hosts`: name -> address."""

    id: str
    folder: Path
    image: Image
    netns: str
    hostname: str
    log_path: Path
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    resolv_conf: str = ""
    limits: Limits = field(default_factory=Limits)
    shm_size: int = 64 << 20
    capabilities: tuple[str, ...] = bundle.CAPABILITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended. `code` is the shell's: 128 + n after signal n. `lost`: nobody saw its end,
    because its monitor was killed or the machine went down; then `code` means nothing. Times: seconds."""

    code: int
    signal: int | None
    oom_killed: bool
    started: float
    ended: float
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What is kept of a container, in `state/run/containers/ID.json`."""

    id: str
    folder: str
    log: str
    cgroup: str
    phase: str  # "starting" | "started"
    monitor: Process = NOBODY
    process: Process = NOBODY
    started: float = 0.0

    @property
    def own(self) -> Path:
        return Path(self.folder) / "container"


class Containers:
    """The containers of one state folder. To be made inside the holder's world, by the one daemon."""

    def __init__(self, state: Path, *, cgroup_parent: str | None = None) -> None:
        """`cgroup_parent`: below which cgroups are made ("/cloister-x"), "" for none; default: found out."""
        self._records = state / "run" / "containers"
        self._runtime_root = state / "run" / "runtime"
        for folder in (self._records, self._runtime_root):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        self._runtime = find_runtime()
        self._conmon = _find("conmon")
        self._ids = rootfs.container_ids(state)
        if self._ids.userns is None and not in_user_namespace():
            log.warning(
                "the file system of %s cannot show other ids: a container's root has root's own", state
            )
        self._seccomp = bundle.seccomp(_seccomp_profile(), platform.machine())
        self._cgroup_parent = cgroups.default_parent(state) if cgroup_parent is None else cgroup_parent
        if not self._cgroup_parent:
            log.warning("no cgroup here is ours to write: containers get no limits of CPU, memory, processes")
        self._locks: dict[str, asyncio.Lock] = {}

    # ---- the life of a container -----------------------------------------------------------------

    async def start(self, spec: ContainerSpec) -> None:
        """Start the container; returns when its process runs. Starting an id that runs, or ran, does
        nothing. Raises ContainerError."""
        async with self._lock(spec.id):
            record = self._read(spec.id)
            if record is not None:
                record = await asyncio.to_thread(self._recover, record)
                if record.phase == "started":
                    return
                await self._remove(record)
            await in_thread(lambda: self._start(spec))

    async def wait(self, container: str) -> Exit:
        """How it ended. Any number of callers, also after a restart of the daemon. LookupError when there
        is no such container."""
        record = self._read(container)
        if record is None:
            raise LookupError(f"there is no container {container}")
        await ended(record.monitor)
        # A container can make its monitor believe that it ended (it asks to be traced, and stops): it has to.
        record.process.kill(signals.SIGKILL)
        await ended(record.process)
        return await asyncio.to_thread(self._exit, record)

    async def kill(self, container: str, signal: int) -> None:
        """Send a signal to its first process; nothing happens when it has ended."""
        record = self._read(container)
        if record is not None:
            record.process.kill(signal)

    async def remove(self, container: str) -> None:
        """Kill it if it runs; leave nothing of it: processes, mounts, cgroup, files. Idempotent."""
        async with self._lock(container):
            record = self._read(container)
            if record is not None:
                await self._remove(record)
        self._locks.pop(container, None)

    def adopt(self) -> tuple[str, ...]:
        """The containers there are, running or ended, also those of a daemon before us."""
        return tuple(sorted(path.stem for path in self._records.glob("*.json")))

    async def follow_log(
        self, container: str, position: LogPosition | None = None
    ) -> AsyncGenerator[tuple[list[LogLine], LogPosition], None]:
        """The container's lines from `position` on as they come, in batches, each with the position after
        it; ends when the container has ended and all is read. What was taken is given back to the file
        system; of a log beyond `MAX_LOG` a line says that it is not kept."""
        record = self._read(container)
        if record is None:
            raise LookupError(f"there is no container {container}")
        reader = LogReader(position=position or LogPosition())
        at = reader.position.offset
        given_back = min(at, MAX_LOG)
        while True:
            alive = record.monitor.alive  # asked before reading: what follows its end is complete
            if at >= MAX_LOG:
                break
            data = await asyncio.to_thread(_read_from, record.log, at)
            at += len(data)
            lines = reader.feed(data)
            if not data and not alive:
                lines += reader.finish()
            if lines:
                yield lines, reader.position
            if reader.position.offset - given_back >= _LOG_CHUNK:
                await asyncio.to_thread(_give_back, record.log, given_back, reader.position.offset)
                given_back = reader.position.offset
            if not data:
                if not alive:
                    return
                await asyncio.sleep(_POLL_SECONDS)
        if reader.position.offset < MAX_LOG + _FULL:
            text = (
                f"[Cloister keeps the first {MAX_LOG >> 20} MiB of a container's log: the rest is not kept]"
            )
            told = LogPosition(offset=MAX_LOG + _FULL, seen=MAX_LOG + _FULL)
            yield [LogLine(time=time.time_ns(), stream="stderr", text=text)], told
        alive = True
        while alive:
            alive = record.monitor.alive
            size = await asyncio.to_thread(_size, record.log)
            if size > given_back:
                await asyncio.to_thread(_give_back, record.log, given_back, size)
                given_back = size
            if alive:
                await asyncio.sleep(_POLL_SECONDS)

    # ---- starting --------------------------------------------------------------------------------

    def _start(self, spec: ContainerSpec) -> None:
        """In a thread of its own, which ends afterwards: it moves into a new mount namespace."""
        cgroup = f"{self._cgroup_parent}/{spec.id}" if self._cgroup_parent else ""
        record = _Record(
            id=spec.id, folder=str(spec.folder), log=str(spec.log_path), cgroup=cgroup, phase="starting"
        )
        argv = bundle.argv(
            spec.image.config.entrypoint, spec.image.config.command, spec.entrypoint, spec.arguments
        )
        if not argv:
            raise ContainerError("Neither the job nor the image says which command to run.", 127)
        self._write(record)
        try:
            record = self._launch(spec, record, argv)
        except (OSError, rootfs.NoSuchUser, subprocess.SubprocessError) as error:
            self._discard(record)
            raise ContainerError(f"The container could not be started: {error}.") from error
        except ContainerError:
            self._discard(record)
            raise
        self._write(replace(record, phase="started"))

    def _launch(self, spec: ContainerSpec, record: _Record, argv: tuple[str, ...]) -> _Record:
        own = record.own
        overlay, etc, out = own / "overlay", own / "etc", own / "bundle"
        for folder in (overlay / "upper", overlay / "work", etc, out, own / "exit"):
            folder.mkdir(parents=True)
        own.chmod(0o700)  # config.json holds the job's environment
        (overlay / "upper").chmod(0o755)
        _write_etc(etc, spec)
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)

        used = [str(own), str(self._records), str(spec.log_path), self._runtime, self._conmon]
        sysfs = join(lambda: rootfs.sysfs(spec.netns))
        try:
            rootfs.private_mounts()
            made = rootfs.assemble(
                spec.image,
                overlay=overlay,
                etc=etc,
                binds=[Bind(source=m.source, target=m.target, read_only=m.read_only) for m in spec.mounts],
                netns=spec.netns,
                sysfs_fd=sysfs,
                ids=self._ids,
                base=rootfs.choose_base(used),
            )
        finally:
            if sysfs is not None:
                os.close(sysfs)
        rootfs.forget_namespaces(made.netns)
        user = rootfs.find_user(made.path, spec.image.config.user)
        config = bundle.config(
            bundle.Bundle(
                rootfs=made.path,
                argv=argv,
                env=bundle.environment(spec.image.config.env, spec.env, user, spec.hostname),
                cwd=spec.image.config.working_dir,
                user=user,
                hostname=spec.hostname,
                netns=made.netns,
                uid_map=self._ids.uid_map,
                gid_map=self._ids.gid_map,
                binds=made.binds,
                cgroup=record.cgroup,
                limits=spec.limits,
                shm_size=spec.shm_size,
                rlimits=_rlimits(),
                seccomp=self._seccomp,
                capabilities=spec.capabilities,
                oom_score=max(_OOM_SCORE, int(Path("/proc/self/oom_score_adj").read_text())),
            )
        )
        (out / "config.json").write_text(json.dumps(config))
        record = self._create(record, out)
        started = time.time()
        self._run_runtime(["start", record.id])
        return replace(record, started=started)

    def _create(self, record: _Record, out: Path) -> _Record:
        """conmon, which has runc create the container; it tells the process's number or what went wrong."""
        own = record.own
        command = [
            self._conmon, "--api-version", "1", "--cid", record.id, "--cuuid", record.id, "--name", record.id,
            "--runtime", self._runtime, "--bundle", str(out), "--full-attach",
            "--conmon-pidfile", str(own / "monitor.pid"), "--container-pidfile", str(own / "process.pid"),
            "--exit-dir", str(own / "exit"), "--log-path", f"k8s-file:{record.log}", "--log-level", "error",
            "--no-sync-log",
            "--runtime-arg", "--root", "--runtime-arg", str(self._runtime_root),
        ]  # fmt: skip
        reading, writing = os.pipe()
        try:
            try:
                monitor = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    pass_fds=(writing,), start_new_session=True, cwd=own,  # where it writes its file `oom`
                    env={**_path(), "_OCI_SYNCPIPE": str(writing)},
                )  # fmt: skip
            finally:
                os.close(writing)
            monitor.wait(_CREATE_SECONDS)
            said = _read_line(reading, _CREATE_SECONDS)
        finally:
            os.close(reading)
        answer = json.loads(said) if said.strip() else {}
        pid = int(answer.get("data", -1))
        if pid <= 0:
            raise _refusal(str(answer.get("message", "")))
        monitor_pid = int((own / "monitor.pid").read_text())
        record = replace(record, monitor=Process.of(monitor_pid), process=Process.of(pid))
        self._write(record)
        return record

    def _recover(self, record: _Record) -> _Record:
        """What became of a start that a killed daemon did not finish: a process that is no longer the
        runtime's own has begun to run the job's command."""
        if record.phase == "started":
            return record
        ran = record.process.alive and not _waits(command_of(record.process.pid), record.id)
        if ran or (record.process.pid and (record.own / "exit" / record.id).exists()):
            record = replace(record, phase="started", started=record.started or time.time())
            self._write(record)
        return record

    def _run_runtime(self, arguments: Sequence[str], *, check: bool = True) -> None:
        done = subprocess.run(
            [self._runtime, "--root", str(self._runtime_root), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
            timeout=_CREATE_SECONDS, env=_path(),
        )  # fmt: skip
        if check and done.returncode != 0:
            raise _refusal(done.stderr.decode(errors="replace"))

    # ---- ending ----------------------------------------------------------------------------------

    def _exit(self, record: _Record) -> Exit:
        file = record.own / "exit" / record.id
        oom = cgroups.oom_kills(record.cgroup) > 0 or (record.own / "oom").exists()
        try:
            code, ended = int(file.read_text()), file.stat().st_mtime
        except (OSError, ValueError):
            record.process.kill(signals.SIGKILL)  # nobody watches it any more
            return Exit(
                code=-1, signal=None, oom_killed=oom, started=record.started, ended=time.time(), lost=True
            )
        return Exit(
            code=code,
            signal=code - 128 if 128 < code < 128 + signals.NSIG else None,
            oom_killed=oom,
            started=record.started,
            ended=ended,
        )

    async def _remove(self, record: _Record) -> None:
        record.process.kill(signals.SIGKILL)
        if record.monitor.alive:
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await ended(record.monitor)
            record.monitor.kill(signals.SIGKILL)
        await asyncio.to_thread(self._discard, record)

    def _discard(self, record: _Record) -> None:
        for process in started_for(str(record.own)):  # a monitor or runtime that no record knows of yet
            process.kill(signals.SIGKILL)
        if (self._runtime_root / record.id).exists():
            with suppress(subprocess.TimeoutExpired):
                self._run_runtime(["delete", "--force", record.id], check=False)
            shutil.rmtree(self._runtime_root / record.id, ignore_errors=True)
        cgroups.remove(record.cgroup)
        remove_tree(record.own)
        with suppress(FileNotFoundError):
            (self._records / f"{record.id}.json").unlink()

    # ---- records ---------------------------------------------------------------------------------

    def _lock(self, container: str) -> asyncio.Lock:
        return self._locks.setdefault(container, asyncio.Lock())

    def _read(self, container: str) -> _Record | None:
        try:
            raw = json.loads((self._records / f"{container}.json").read_bytes())
        except FileNotFoundError:
            return None
        raw["monitor"], raw["process"] = Process(**raw["monitor"]), Process(**raw["process"])
        return _Record(**raw)

    def _write(self, record: _Record) -> None:
        path = self._records / f"{record.id}.json"
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(record)))
        partial.rename(path)


# ------------------------------------------------------------------------------------- what the host has


def find_runtime() -> str:
    """runc, or crun where there is no runc. crun refuses hosts with version 1 and 2 cgroups side by side."""
    for name in ("runc", "crun"):
        with suppress(ContainerError):
            return _find(name)
    raise ContainerError("Neither runc nor crun is installed (Debian: apt install runc).")


def _find(name: str) -> str:
    found = shutil.which(name, path=_path()["PATH"])
    if found is None:
        raise ContainerError(f"{name} is not installed (Debian: apt install {name}).")
    return found


def _waits(command: Sequence[bytes], container: str) -> bool:
    """Whether this is the process of a container that was created and not yet started: runc's calls itself
    `init`, crun's is still the call that created it."""
    return command[1:2] == [b"init"] or {b"create", container.encode()} <= set(command)


def _path() -> dict[str, str]:
    # What a monitor and a runtime get of our environment: no keys.
    return {"PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"}


def _seccomp_profile() -> Mapping[str, Any] | None:
    for path in _SECCOMP_PROFILES:
        try:
            profile: dict[str, Any] = json.loads(Path(path).read_bytes())
        except FileNotFoundError:
            continue
        return profile
    return None


def _rlimits() -> tuple[tuple[str, int, int], ...]:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = min(files, 1 << 20) if files != resource.RLIM_INFINITY else 1 << 20
    return (("RLIMIT_NOFILE", top, top), ("RLIMIT_CORE", 0, 0))


def _write_etc(etc: Path, spec: ContainerSpec) -> None:
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in spec.hosts.items())]
    if spec.hostname not in spec.hosts:
        lines.append(f"127.0.1.1 {spec.hostname}")
    for name, text in {
        "hosts": "\n".join(lines) + "\n",
        "hostname": spec.hostname + "\n",
        "resolv.conf": spec.resolv_conf,
    }.items():
        (etc / name).write_text(text)
        (etc / name).chmod(0o644)
    etc.chmod(0o755)


def _refusal(message: str) -> ContainerError:
    """The runtime's words, as a sentence and a shell's exit code."""
    line = next((text for text in reversed(message.splitlines()) if text.strip()), "no reason was given")
    with suppress(ValueError):  # runc's log as JSON
        line = json.loads(line)["msg"]
    if told := _LOGGED.search(line):  # … or as text
        line = re.sub(r"\\(.)", r"\1", told[1])
    line = line.strip().removeprefix("runc create failed: unable to start container process: ")
    code = 125
    if "executable file not found" in line or "no such file or directory" in line.lower():
        code = 127
    elif "permission denied" in line or "exec format error" in line:
        code = 126
    return ContainerError(f"The container could not be started: {line[:500]}", code)


def _read_line(fd: int, seconds: float) -> bytes:
    """One line from a pipe; what there was when its other end is closed or the time is up."""
    data, deadline = b"", time.monotonic() + seconds
    poll = select.poll()  # select knows no descriptor above 1023
    poll.register(fd, select.POLLIN)
    while not data.endswith(b"\n"):
        ready = poll.poll(1000 * max(0.0, deadline - time.monotonic()))
        chunk = os.read(fd, 65_536) if ready else b""
        if not chunk:
            break
        data += chunk
    return data


def _read_from(path: str, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_LOG_CHUNK)
    except FileNotFoundError:
        return b""


def _size(path: str) -> int:
    with suppress(OSError):
        return os.stat(path).st_size
    return 0


def _give_back(path: str, start: int, end: int) -> None:
    """Free the disk under what was read. Where the file system cannot, the file just stays."""
    with suppress(OSError), open(path, "r+b") as file:
        syscalls.punch_hole(file.fileno(), start, end - start)
