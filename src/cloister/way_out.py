"""The host's way out: what leaves a VPC by an internet gateway goes on to the real internet, if there is one.

slirp4netns carries the packets of the namespace `INTERNET` out through plain sockets of the host, which needs
no right on the host and changes nothing there. It runs while a public address is in use and the host has a
default route, and ends with the daemon (a pipe tells it); the next daemon starts it again. The host itself is
no part of the internet: its addresses are kept in the World, and refused by the namespace's rules before a
packet gets here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.host_names import HostNames, is_public
from cloister.kernel.netns import Namespaces
from cloister.vpc import dns
from cloister.vpc.gateways import INTERNET, OUTSIDE, of_vpc
from cloister.vpc.model import ElasticIp, HostAddress, InternetGateway, NatGateway
from cloister.world import World

log = logging.getLogger(__name__)

PROGRAM = "slirp4netns"
_TUN = "/dev/net/tun"
#: more than any packet that comes along: the namespace could not tell a sender to send smaller ones
MTU = 65520
_READY_SECONDS = 10.0
#: what the kernel has not refused by then makes the way out close: TimeoutError is an OSError
_SETTLED_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
#: rtnetlink's groups of changed IPv4 addresses and routes
_GROUPS = 0x10 | 0x40
_UP, _REJECT = 0x1, 0x200


def program() -> str | None:
    """Where slirp4netns is installed."""
    return shutil.which(PROGRAM, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def missing() -> str | None:
    """What this host lacks to have a way out for namespaces, apart from a default route; None: nothing."""
    if program() is None:
        return f"{PROGRAM} is not installed"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} cannot be opened"
    return None


def default_route(table: str | None = None) -> str | None:
    """The link of this network namespace's default route; None: no way out. `table` is /proc/net/route."""
    text = Path("/proc/self/net/route").read_text() if table is None else table
    for line in text.splitlines()[1:]:
        link, destination, _, flags, _, _, _, mask, *_ = line.split()
        wanted = int(flags, 16) & (_UP | _REJECT) == _UP and link != "lo"
        if wanted and int(destination, 16) == 0 and int(mask, 16) == 0:
            return link
    return None


def host_addresses(trie: str | None = None) -> set[str]:
    """Every IPv4 address that this network namespace answers to. `trie` is /proc/net/fib_trie."""
    text = Path("/proc/self/net/fib_trie").read_text() if trie is None else trie
    found: set[str] = set()
    last = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words[1:3] == ["host", "LOCAL"]:
            found.add(last)
    return found


class WayOut:
    """`state` says what there is, in a word or two: for `cloister status`."""

    def __init__(
        self, engine: Engine, fabric: Fabric, namespaces: Namespaces, log_path: Path, *, enabled: bool = True
    ) -> None:
        self._engine = engine
        self._fabric = fabric
        self._namespaces = namespaces
        self._log_path = log_path
        self._enabled = enabled
        self._names = HostNames()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._monitor: socket.socket | None = None
        self.state = "off" if not enabled else "not needed"
        self.pid: int | None = None

    async def start(self) -> None:
        """Follow the World and the host. Returns at once."""
        if not self._enabled:
            return
        self._fabric.follow(lambda world: self._wake.set())
        self._monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._monitor.bind((0, _GROUPS))
        self._monitor.setblocking(False)
        asyncio.get_running_loop().add_reader(self._monitor, self._host_changed)
        self._task = asyncio.create_task(self._run(), name="way out")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor)
            self._monitor.close()
            self._monitor = None

    def _host_changed(self) -> None:
        assert self._monitor is not None
        with contextlib.suppress(BlockingIOError, OSError):  # ENOBUFS: changes were lost; looked up anyway
            while self._monitor.recv(1 << 16):
                pass
        self._wake.set()

    def name_of_internet(self, vpc_id: str, name: str, qtype: int) -> Awaitable[dns.Answer] | None:
        """Who answers for a name that does not exist inside of a VPC: the host's DNS servers, when the way
        out is open and the VPC has an internet gateway, by which it could reach what the name stands for."""
        if self.pid is None or not is_public(name) or of_vpc(self._engine.world, vpc_id) is None:
            return None
        return self._names.ask(name, qtype)

    # ---- what is wanted ------------------------------------------------------------------------

    def _obstacle(self) -> str | None:
        """Why nothing is to run now; None: it is."""
        if not wanted(self._engine.world):
            return "not needed"
        if default_route() is None:
            return "the host has no default route"
        return missing()

    async def _refuse_host(self) -> None:
        """Let the kernel refuse this host's own addresses, before anything can be sent to them."""
        addresses = host_addresses()
        known = {each.address for each in self._engine.world.all(HostAddress)}
        if addresses != known:
            with self._engine.transaction() as tx:
                for address in sorted(known - addresses):
                    tx.delete(HostAddress, address)
                for address in sorted(addresses - known):
                    tx.put(HostAddress(address=address))
        async with asyncio.timeout(_SETTLED_SECONDS):
            await self._fabric.settled()

    async def _run(self) -> None:
        pause = 0.0
        while True:
            self._wake.clear()
            obstacle = self._obstacle()
            if obstacle is not None:
                self.state = obstacle
                await self._wake.wait()
                continue
            began = time.monotonic()
            try:
                await self._refuse_host()
                await self._serve()
            except (OSError, LookupError) as error:
                self.state = f"{PROGRAM} does not work: {error}"
                log.warning("no way out: %s", error)
            if self._obstacle() is None:
                pause = 0.0 if time.monotonic() - began > 30 else min(2 * pause, _LONGEST_PAUSE)
                pause = max(pause, _FIRST_PAUSE)
                await asyncio.sleep(pause)

    async def _serve(self) -> None:
        """Run it, until it ends by itself or is not wanted any more."""
        place = self._namespace()
        async with self._running() as process:
            ending = asyncio.create_task(process.wait())
            try:
                self.state, self.pid = f"by {default_route()}", process.pid
                log.info("the way out is open, by %s (pid %s)", PROGRAM, process.pid)
                while self._obstacle() is None and self._namespace() == place:
                    waking = asyncio.create_task(self._wake.wait())
                    await asyncio.wait((ending, waking), return_when=asyncio.FIRST_COMPLETED)
                    waking.cancel()
                    self._wake.clear()
                    if ending.done():
                        log.warning("%s (pid %s) ended; see %s", PROGRAM, process.pid, self._log_path)
                        return
                    await self._refuse_host()
            finally:
                self.pid = None
                ending.cancel()

    def _namespace(self) -> int | None:
        """Which namespace `INTERNET` is now: it may go and come again."""
        return self._namespaces.number(INTERNET)

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """slirp4netns, ready, until the block ends. It ends itself when we do: it reads a pipe of ours.
        Raises OSError."""
        ready, ready_inside = os.pipe2(os.O_CLOEXEC)
        leash_inside, leash = os.pipe2(os.O_CLOEXEC)
        argv = [
            *(
                program() or PROGRAM,
                "--configure",
                f"--mtu={MTU}",
                "--disable-host-loopback",
                "--disable-dns",
            ),
            *("--enable-sandbox", "--netns-type=path"),
            *(f"--ready-fd={ready_inside}", f"--exit-fd={leash_inside}"),
            *(str(self._namespaces.path(INTERNET)), OUTSIDE),
        ]
        process: asyncio.subprocess.Process | None = None
        try:
            try:
                with self._log_path.open("wb") as written:
                    process = await asyncio.create_subprocess_exec(
                        *argv,
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=written,
                        stderr=written,
                        pass_fds=(ready_inside, leash_inside),
                    )
            finally:
                os.close(ready_inside)
                os.close(leash_inside)
            if not await _readable(ready):
                last = self._log_path.read_text(errors="replace").strip().splitlines()[-1:]
                raise ChildProcessError(f"{last[0] if last else 'it ended'} (see {self._log_path})")
            yield process
        finally:
            os.close(ready)
            os.close(leash)
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


async def _readable(descriptor: int) -> bool:
    """Whether a byte comes, and not the end. Raises TimeoutError."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, came.set)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await came.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1) != b""


def wanted(world: World) -> bool:
    """Whether anything can leave: a public address in a VPC with an internet gateway."""
    public = [elastic.association_id for elastic in world.all(ElasticIp)]
    public += [nat.public_ip for nat in world.all(NatGateway) if nat.deleted is None]
    return any(public) and any(gateway.vpc_id for gateway in world.all(InternetGateway))
