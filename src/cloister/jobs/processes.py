"""Processes that outlive the daemon: known again after a restart, waited for without being their parent."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process, known again: its number alone may belong to another one by now."""

    pid: int
    identity: str

    @staticmethod
    def of(pid: int) -> Process:
        return Process(pid=pid, identity=_identity(pid))

    @property
    def alive(self) -> bool:
        return self.pid > 0 and self.identity != "" and _identity(self.pid) == self.identity

    def kill(self, number: int) -> None:
        """Send a signal, if it is still this process."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.alive:
                signals.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


#: a process that was not started yet
NOBODY = Process(pid=0, identity="")


def _identity(pid: int) -> str:
    """Boot and start time of a process, "" when there is none (or only its exit status is left)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else f"{_boot()}:{int(fields[19])}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def command_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def started_for(own: str) -> list[Process]:
    """Monitors and runtimes whose command names this container's folder."""
    found = []
    prefix = own.encode() + b"/"
    for entry in os.listdir("/proc"):
        if entry.isdigit() and any(word.startswith(prefix) for word in command_of(int(entry))[1:]):
            process = Process.of(int(entry))
            name = os.path.basename(command_of(process.pid)[:1][0]) if command_of(process.pid) else b""
            if name in (b"conmon", b"runc", b"crun"):
                found.append(process)
    return found


async def ended(process: Process) -> None:
    """Return when this process is gone."""
    try:
        fd = os.pidfd_open(process.pid) if process.pid else -1
    except OSError:
        return
    if fd < 0:
        return
    try:
        if not process.alive:
            return
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, lambda: None if gone.done() else gone.set_result(None))
        try:
            await gone
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)


def join(work: Callable[[], T]) -> T:
    """Do it in a thread that ends afterwards: it may leave its namespaces."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="namespace", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


async def in_thread(work: Callable[[], T]) -> T:
    """`join` for coroutines: not a pool's thread, which would come back in the wrong namespace."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=run, name="container", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        # What was begun is finished before anybody else comes to clear it away.
        await asyncio.wait([done])
        if not done.cancelled():
            done.exception()
        raise
