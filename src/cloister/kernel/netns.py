"""Network namespaces by name, and work done inside them without forking.

A namespace is a bind mount on `run_dir/NAME`. `setns` is per thread, so work in a namespace is done by
a small pool of threads that enter it, run one function and go back to an empty namespace of their own
(the lobby): an idle thread must not keep a deleted namespace alive, and inside a user namespace a
thread could never return to the host's network anyway. Objects made inside (a socket, a libnftables
context) belong to that namespace for good and may be used from any thread.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cloister.kernel import syscalls

T = TypeVar("T")

#: threads that may be inside namespaces at once; more calls wait their turn
MAX_THREADS = 16

_OWN_NET = "/proc/thread-self/ns/net"


class NoNamespace(LookupError):
    """No network namespace has this name."""


class Namespaces:
    """The network namespaces pinned in `run_dir`. Safe to use from any thread.

    `run_dir` must be in a mount namespace of our own (see `kernel.holder`): the pins are bind mounts."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._device = self.run_dir.stat().st_dev
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._lobby: int | None = None
        self._inside = threading.local()
        self._closed = False

    # ---- what there is -------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where the namespace is pinned: what `setns`, `nsenter --net=` and OCI's `path` take."""
        if not name or name in {".", ".."} or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} cannot be the name of a network namespace")
        return self.run_dir / name

    def exists(self, name: str) -> bool:
        # A plain file is a pin that was never mounted (a crash between two calls): not a namespace.
        try:
            return os.stat(self.path(name)).st_dev != self._device
        except FileNotFoundError:
            return False

    def number(self, name: str) -> int | None:
        """Which namespace has this name now: the kernel's number for it, None when there is none. One that is
        made anew under the same name has another number while anything keeps the old one."""
        try:
            found = os.stat(self.path(name))
        except FileNotFoundError:
            return None
        return found.st_ino if found.st_dev != self._device else None

    def list(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.run_dir) if self.exists(entry.name))

    # ---- making and removing -------------------------------------------------------------------

    def create(self, name: str) -> None:
        """A new, empty network namespace; FileExistsError when the name is taken."""
        path = self.path(name)
        if self.exists(name):
            raise FileExistsError(f"the network namespace {name} exists")

        def make() -> None:
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o444))
            try:
                syscalls.unshare(syscalls.CLONE_NEWNET)
                syscalls.mount(_OWN_NET, path, None, syscalls.MS_BIND)
            except OSError:
                path.unlink(missing_ok=True)
                raise

        self._submit(make)

    def delete(self, name: str) -> None:
        """Unpin a namespace; it ends with its last process and socket. No error when there is none."""
        path = self.path(name)
        if self.exists(name):
            syscalls.umount(path, syscalls.MNT_DETACH)
        path.unlink(missing_ok=True)

    # ---- work inside ---------------------------------------------------------------------------

    def call(self, name: str, function: Callable[[], T]) -> T:
        """Run `function` on a thread that is inside the namespace; returns or raises what it does.

        The thread belongs to the pool: keep the function short, and leave nothing in thread-locals."""
        fd = self.open(name)
        try:
            return self._submit(lambda: self._enter_and_run(fd, function))
        finally:
            os.close(fd)

    def anew(self, function: Callable[[], T]) -> T:
        """Run `function` as `call` does, inside a new namespace that has no name and ends with this."""

        def run() -> T:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            return function()

        return self._submit(run)

    def bound(
        self, name: str, port: int, address: str = "0.0.0.0", kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """A socket in the namespace that is bound to `address` and `port`, and does not block."""
        made = self.socket(name, socket.AF_INET, kind)
        try:
            made.setblocking(False)
            if kind == socket.SOCK_STREAM:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def socket(self, name: str, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives in the namespace, usable from any thread and by asyncio."""
        return self.call(name, lambda: socket.socket(family, kind, proto))

    def open(self, name: str) -> int:
        """A file descriptor of the namespace; the caller closes it."""
        if not self.exists(name):
            raise NoNamespace(f"there is no network namespace {name}")
        return os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        fd = self.open(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        """End the threads. The namespaces stay."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
            for _ in threads:
                self._work.put(None)
        for thread in threads:
            thread.join(5)
        if self._lobby is not None:
            os.close(self._lobby)
            self._lobby = None

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the pool ------------------------------------------------------------------------------

    def _enter_and_run(self, fd: int, function: Callable[[], T]) -> T:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        return function()

    def _submit(self, work: Callable[[], T]) -> T:
        if getattr(self._inside, "yes", False):
            # A call within a call: this thread is ours already, and waiting for another could deadlock.
            before = os.open(_OWN_NET, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return work()
            finally:
                syscalls.setns(before, syscalls.CLONE_NEWNET)
                os.close(before)
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("these namespaces are closed")
            if not self._idle.acquire(blocking=False) and len(self._threads) < MAX_THREADS:
                thread = threading.Thread(target=self._run, name=f"netns-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._work.put((future, work))
        return future.result()

    def _run(self) -> None:
        self._inside.yes = True
        while (item := self._work.get()) is not None:
            future, work = item
            error: BaseException | None = None
            result: Any = None
            try:
                self._enter_lobby()
                result = work()
            except BaseException as raised:  # it belongs to the caller, whatever it is
                error = raised
            # Back before the caller hears of it: a namespace it now deletes must not live on in this thread.
            try:
                self._enter_lobby()
            except OSError as raised:
                error = error or raised
            self._idle.release()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
            del item, future, work, error, result

    def _enter_lobby(self) -> None:
        with self._lock:
            if self._lobby is None:
                syscalls.unshare(syscalls.CLONE_NEWNET)
                self._lobby = os.open(_OWN_NET, os.O_RDONLY | os.O_CLOEXEC)
                return
        syscalls.setns(self._lobby, syscalls.CLONE_NEWNET)
