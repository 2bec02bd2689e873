"""The host's way out on real packets. The test's own network namespace plays the host; behind it stands an
"internet", a namespace with public addresses. No packet leaves the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import dnslib
import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world
from tests.patience import PATIENCE

from cloister import host_names
from cloister.dns import Resolvers
from cloister.ids import resource_id
from cloister.kernel import syscalls
from cloister.vpc import addresses as ip
from cloister.vpc import nat_gateways
from cloister.vpc.gateways import INTERNET
from cloister.vpc.model import (
    InternetGateway,
    NatGateway,
    NetworkInterface,
    Route,
    RouteTable,
    RouteTableAssociation,
    Subnet,
    Vpc,
)
from cloister.way_out import WayOut, missing

pytestmark = [
    pytest.mark.fabric,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

#: of the host, of its neighbour that leads on, and of somebody on the internet
HOST, ROUTER, SOMEBODY = "192.0.2.2", "192.0.2.1", "11.22.33.44"


def _ip(text: str) -> None:
    subprocess.run(["ip", *text.split()], check=True, timeout=10 * PATIENCE)


def _leave_the_host(lab: Lab) -> None:
    """Make this process' network a "host" of its own, with `elsewhere` behind it, and no default route."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    elsewhere = lab.namespaces.path("elsewhere")
    lab.namespaces.create("elsewhere")
    for command in (
        "link set lo up",
        "link add out type veth peer name in",
        f"addr add {HOST}/24 dev out",
        "link set out up",
    ):
        _ip(command)
    pid = os.getpid()
    inside = ["nsenter", f"--net={elsewhere}", "ip"]
    with subprocess.Popen(["nsenter", f"--net={elsewhere}", "sleep", "60"]) as sleeper:
        try:
            _wait_in(sleeper.pid, pid)
            _ip(f"link set in netns {sleeper.pid}")
        finally:
            sleeper.kill()
    for command in (
        "link set lo up",
        f"addr add {ROUTER}/24 dev in",
        f"addr add {SOMEBODY}/32 dev lo",
        "link set in up",
    ):
        subprocess.run([*inside, *command.split()], check=True, timeout=10 * PATIENCE)


def _wait_in(pid: int, other: int) -> None:
    """Until a process has entered a network namespace that is not the other's."""
    for _ in range(1000):
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat(f"/proc/{other}/ns/net").st_ino:
            return
    raise TimeoutError


@asynccontextmanager
async def _way_out(lab: Lab) -> AsyncIterator[WayOut]:
    with tempfile.TemporaryDirectory() as folder:
        way_out = WayOut(lab.engine, lab.fabric, lab.namespaces, Path(folder) / "log")
        await way_out.start()
        try:
            yield way_out
        except TimeoutError as error:
            raise AssertionError(way_out.state) from error
        finally:
            await way_out.stop()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(15 * PATIENCE):
        while not true():
            await asyncio.sleep(0.02)


async def _natted(lab: Lab) -> tuple[NetworkInterface, NatGateway]:
    """An interface in a private subnet whose route leads to a NAT gateway in a public one."""
    vpc, private, table_id = await lab.vpc()
    public = Subnet(
        subnet_id=resource_id("subnet"), vpc_id=vpc, cidr="10.0.1.0/24", zone="us-east-1a", zone_id="use1-az1"
    )
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=vpc)
    await lab.put(
        public,
        gateway,
        RouteTable(
            route_table_id=resource_id("rtb"),
            vpc_id=vpc,
            number=1001,
            routes=(Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id),),
            associations=(RouteTableAssociation(association_id="a", subnet_id=public.subnet_id),),
        ),
    )
    group = await lab.group(vpc, ANYWHERE)
    default = replace(group, group_id=resource_id("sg"), name="default")
    await lab.put(default)
    with lab.engine.transaction() as tx:
        nat = nat_gateways.create(tx, public, public_ip="198.51.100.20", now=0)
    table = lab.engine.world.get(RouteTable, table_id)
    assert table is not None
    await lab.put(replace(table, routes=(Route(destination="0.0.0.0/0", target=nat.nat_gateway_id),)))
    return await lab.interface(private, group), nat


@in_world
async def test_what_leaves_a_vpc_reaches_the_internet_and_never_the_host(lab: Lab) -> None:
    _leave_the_host(lab)
    job, nat = await _natted(lab)
    lab.listen("elsewhere", "0.0.0.0", 443)
    on_host = socket.create_server((HOST, 443))
    on_loopback = socket.create_server(("127.0.0.1", 443))
    lab.open += [on_host, on_loopback]
    async with _way_out(lab) as way_out:
        await _until(lambda: "no default route" in way_out.state)
        assert not lab.connects(job, SOMEBODY, 443)
        # the host gets a way out
        _ip(f"route add default via {ROUTER}")
        await _until(lambda: way_out.pid is not None)
        assert await asyncio.to_thread(lab.connects, job, SOMEBODY, 443)
        assert not await asyncio.to_thread(lab.connects, job, SOMEBODY, 444)
        # the host is not the internet: its addresses, its loopback by slirp's names for it
        for address in (HOST, "127.0.0.1", "10.0.2.2", "10.0.2.3", "168.63.129.16"):
            assert not await asyncio.to_thread(lab.connects, job, address, 443), address
        # nor are addresses that it gets later
        _ip("addr add 11.9.9.9/32 dev lo")
        on_new = socket.create_server(("11.9.9.9", 443))
        lab.open.append(on_new)
        async with asyncio.timeout(10 * PATIENCE):
            while "11.9.9.9" not in str(
                lab.reconciler.query(INTERNET, "list set ip cloister host_addresses")
            ):
                await asyncio.sleep(0.05)
        assert not await asyncio.to_thread(lab.connects, job, "11.9.9.9", 443)
        # without its process there is no way out; another one takes its place
        first = way_out.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await _until(lambda: way_out.pid not in (None, first))
        assert await asyncio.to_thread(lab.connects, job, SOMEBODY, 443)
        # the host loses its way out
        _ip("route del default")
        await _until(lambda: way_out.pid is None)
        _ip(f"route add default via {ROUTER}")
        await _until(lambda: way_out.pid is not None)
        # nobody has a public address any more
        last = way_out.pid
        with lab.engine.transaction() as tx:
            nat_gateways.delete(tx, nat, now=1)
        await _until(lambda: way_out.state == "not needed")
        assert not os.path.exists(f"/proc/{last}")


@in_world
async def test_the_way_out_ends_with_the_process_that_opened_it(lab: Lab) -> None:
    _leave_the_host(lab)
    _ip(f"route add default via {ROUTER}")
    await _natted(lab)
    async with _way_out(lab) as way_out:
        await _until(lambda: way_out.pid is not None)
        pid = way_out.pid
        # what the kernel does when the daemon is killed: its end of the pipe is closed
        leash = [
            fd
            for fd in os.listdir("/proc/self/fd")
            if _pipe(f"/proc/self/fd/{fd}") in _pipes(pid) and int(fd) > 2
        ]
        assert len(leash) == 1
        os.close(int(leash[0]))
        await _until(lambda: way_out.pid != pid)
        assert not os.path.exists(f"/proc/{pid}")
        os.open("/dev/null", os.O_RDONLY)  # the number that `stop` will close


@in_world
async def test_names_of_the_internet_resolve_where_the_internet_is_reached(lab: Lab) -> None:
    _leave_the_host(lab)
    _ip(f"route add default via {ROUTER}")
    server = lab.socket("elsewhere", socket.SOCK_DGRAM)
    server.bind((SOMEBODY, 53))
    host_names.servers = lambda: ["192.0.2.77", SOMEBODY]  # type: ignore[assignment]  # the first is silent
    host_names._SECONDS = 0.2
    job, _ = await _natted(lab)
    closed, _, _ = await lab.vpc("10.8.0.0/16")
    lonely = await lab.interface(_subnet_of(lab, closed), await lab.group(closed, ANYWHERE))
    async with _way_out(lab) as way_out:
        await _until(lambda: way_out.pid is not None)
        elsewhere = way_out.name_of_internet
        resolvers = Resolvers(lab.engine, lab.fabric, lab.namespaces, region="us-east-1", elsewhere=elsewhere)
        await resolvers.start()

        async def asked(interface: NetworkInterface, name: str, *found: str) -> tuple[int, list[str]]:
            vpc = lab.engine.world.get(Vpc, interface.vpc_id)
            assert vpc is not None
            client = lab.socket(interface.interface_id, socket.SOCK_DGRAM)
            client.settimeout(5 * PATIENCE)
            query = dnslib.DNSRecord.question(name)
            client.sendto(bytes(query.pack()), (ip.resolver_address(vpc), 53))
            if found:
                server.settimeout(5 * PATIENCE)
                packet, place = await asyncio.to_thread(server.recvfrom, 512)
                said = dnslib.DNSRecord.parse(packet).reply()
                for address in found:
                    said.add_answer(dnslib.RR(name, rdata=dnslib.A(address), ttl=7))
                server.sendto(bytes(said.pack()), place)
            reply = dnslib.DNSRecord.parse(await asyncio.to_thread(client.recv, 512))
            return reply.header.rcode, [str(rr.rdata) for rr in reply.rr]

        assert await asked(job, "somebody.example.com", SOMEBODY) == (0, [SOMEBODY])
        # an address that is not public is no answer
        assert await asked(job, "inside.example.com", "192.168.0.1", "127.0.0.1") == (0, [])
        # who has no way to the internet is told nothing of it, and what is ours is not asked about
        assert await asked(lonely, "somebody.example.com") == (3, [])
        assert await asked(job, "nothing.such.amazonaws.com") == (3, [])
        server.close()
        assert (await asked(job, "silence.example.com"))[0] == 2
        await resolvers.stop()
    assert way_out.name_of_internet(job.vpc_id, "somebody.example.com", 1) is None


def _subnet_of(lab: Lab, vpc_id: str) -> str:
    return next(subnet.subnet_id for subnet in lab.engine.world.where(Subnet, vpc_id=vpc_id))


def _pipe(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _pipes(pid: int | None) -> set[str]:
    found = {_pipe(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return {each for each in found if each.startswith("pipe:")}
