"""Flow logs on real packets: what is recorded is what the interfaces' own counters say.

A veth counts 14 bytes more for each packet, its Ethernet header. What an interface sends is all recorded, as
accepted or refused; of what it shall receive, what is accepted is what it gets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule

from cloister.flow_readings import Readings, aggregate
from cloister.flowlog import FlowLogs
from cloister.ids import resource_id
from cloister.logs import LogStore
from cloister.vpc import addresses as ip
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import DEFAULT_FORMAT, Counted, Key
from cloister.vpc.model import NetworkInterface

pytestmark = pytest.mark.fabric

ETHERNET = 14
Sum = tuple[int, int]


def _service(lab: Lab, path: Path | str = ":memory:") -> FlowLogs:
    made = FlowLogs(
        path, lab.engine, lab.fabric, lab.reconciler, lab.namespaces, LogStore(":memory:"), None,
        account="123456789012", region="us-east-1",
    )  # fmt: skip
    lab.engine.subscribe(made._committed)
    return made


async def _log(lab: Lab, resource: str, vpc: str, **more: object) -> FlowLog:
    made = FlowLog(
        flow_log_id=resource_id("fl"),
        resource_id=resource,
        vpc_id=vpc,
        created=0,
        **{"log_format": DEFAULT_FORMAT + " ${tcp-flags}", "interval": 60, **more},  # type: ignore[arg-type]
    )
    await lab.put(made)
    return made


def _veth(lab: Lab, interface: NetworkInterface) -> tuple[Sum, Sum]:
    """(packets, bytes) that the router's end received, and sent."""
    name = ip.port(interface.interface_id, 0)

    def read() -> tuple[Sum, Sum]:
        for row in Path("/proc/thread-self/net/dev").read_text().splitlines():
            if row.strip().startswith(f"{name}:"):
                numbers = [int(word) for word in row.split(":")[1].split()]
                return (numbers[1], numbers[0]), (numbers[9], numbers[8])
        raise LookupError(name)

    return lab.namespaces.call(interface.vpc_id, read)


def _less(after: Sum, before: Sum) -> Sum:
    """The difference, without Ethernet headers."""
    packets = after[0] - before[0]
    return packets, after[1] - before[1] - ETHERNET * packets


def _total(flows: dict[Key, Counted], wanted: Callable[[Key], bool]) -> Sum:
    found = [counted for key, counted in flows.items() if wanted(key)]
    return sum(each.packets for each in found), sum(each.bytes for each in found)


def _read(readings: Readings, vpc: str) -> dict[str, dict[Key, Counted]]:
    found = aggregate(readings.between(vpc, 0, 1 << 40), lambda logged: True)
    return {interface_id: traffic.flows for interface_id, traffic in found.items()}


def _ping(lab: Lab, source: NetworkInterface, address: str, count: int) -> None:
    made = lab.namespaces.socket(source.interface_id, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    lab.open.append(made)
    for number in range(count):
        head = bytes([8, 0, 0, 0, 0, 7, 0, number])
        total = sum(int.from_bytes(head[i : i + 2], "big") for i in range(0, 8, 2))
        total = (total & 0xFFFF) + (total >> 16)
        made.sendto(head[:2] + (~total & 0xFFFF).to_bytes(2, "big") + head[4:], (address, 0))


@in_world
async def test_records_are_what_the_interfaces_counters_say(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    out = await lab.group(vpc, rule(egress=True, protocol="tcp", ports=(0, 65535), cidr="0.0.0.0/0"),
                          rule(egress=True, protocol="udp", ports=(0, 999), cidr="0.0.0.0/0"),
                          rule(egress=True, protocol="icmp", cidr="0.0.0.0/0"))  # fmt: skip
    into = await lab.group(vpc, ANYWHERE, rule(protocol="tcp", ports=(80, 80), cidr="0.0.0.0/0"),
                           rule(protocol="udp", ports=(53, 53), cidr="0.0.0.0/0"),
                           rule(protocol="icmp", cidr="0.0.0.0/0"))  # fmt: skip
    one, two = await lab.interface(subnet, out), await lab.interface(subnet, into)
    await _log(lab, vpc, vpc)
    flow_logs = _service(lab)
    await flow_logs.collect(0)
    before = {each.interface_id: _veth(lab, each) for each in (one, two)}
    address = two.addresses[0].address
    # accepted: a megabyte over TCP, an answer, ten datagrams, five echoes
    listener = lab.listen(two.interface_id, "0.0.0.0", 80)
    client = lab.socket(one.interface_id)
    client.connect((address, 80))
    server, _ = listener.accept()
    for _ in range(16):
        client.sendall(b"x" * 65536)
        left = 65536
        while left:
            left -= len(server.recv(65536))
    server.sendall(b"thanks")
    assert client.recv(100) == b"thanks"
    client.close()
    server.close()
    sink = lab.socket(two.interface_id, socket.SOCK_DGRAM)
    sink.bind(("0.0.0.0", 53))
    datagrams = lab.socket(one.interface_id, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", 5000))
    for _ in range(10):
        datagrams.sendto(b"y" * 100, (address, 53))
    _ping(lab, one, address, 5)
    # refused: by the receiver's groups, by the sender's
    assert not lab.connects(one, address, 81)
    for _ in range(3):
        datagrams.sendto(b"z" * 10, (address, 54))
    for _ in range(7):
        datagrams.sendto(b"z" * 10, (address, 2000))
    await asyncio.sleep(0.3)
    after = {each.interface_id: _veth(lab, each) for each in (one, two)}
    await flow_logs.collect(60)
    found = _read(flow_logs.readings, vpc)
    for each in (one, two):
        its = found[each.interface_id]
        sent = _less(after[each.interface_id][0], before[each.interface_id][0])
        got = _less(after[each.interface_id][1], before[each.interface_id][1])
        assert min(sent[0], got[0]) > 20
        assert _total(its, lambda key: key.egress) == sent
        assert _total(its, lambda key: not key.egress and key.accept) == got
    at_one, at_two = found[one.interface_id], found[two.interface_id]
    assert _total(at_one, lambda k: k.destination_port == 53) == (10, 10 * 128)
    assert _total(at_two, lambda k: k.destination_port == 53 and k.accept) == (10, 10 * 128)
    assert _total(at_one, lambda k: k.protocol == 1 and k.egress) == (5, 5 * 28)
    assert _total(at_one, lambda k: k.protocol == 1 and not k.egress) == (5, 5 * 28)
    assert _total(at_one, lambda k: k.destination_port == 2000 and not k.accept) == (7, 7 * 38)
    assert _total(at_two, lambda k: k.destination_port == 2000) == (0, 0)
    assert _total(at_one, lambda k: k.destination_port == 54 and k.accept) == (3, 3 * 38)
    assert _total(at_two, lambda k: k.destination_port == 54 and not k.accept) == (3, 3 * 38)
    assert {k.accept for k in at_one if k.destination_port == 81} == {True}
    assert {k.accept for k in at_two if k.destination_port == 81} == {False}
    (web,) = (counted for key, counted in at_one.items() if key.destination_port == 80)
    assert web.flags == 3  # SYN and FIN
    (back,) = (counted for key, counted in at_one.items() if key.source_port == 80)
    assert back.flags == 19  # SYN-ACK and FIN
    # a second reading has nothing of the first
    await flow_logs.collect(120)
    assert _read(flow_logs.readings, vpc) == found


def _burst(lab: Lab, source: NetworkInterface, address: str, flows: int) -> float:
    """Send one datagram of each of so many flows; the seconds it took."""
    ports = 1000
    began = time.monotonic()
    for source_port in range(20_000, 20_000 + flows // ports):
        made = lab.namespaces.socket(source.interface_id, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", source_port))
        for port in range(1, ports + 1):
            made.sendto(b"", (address, port))
        made.close()
    return time.monotonic() - began


@in_world
async def test_nothing_is_lost_of_100_000_new_flows(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE)
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    await _log(lab, vpc, vpc)
    flow_logs = _service(lab)
    await flow_logs.collect(0)
    before = _veth(lab, one)
    address = two.addresses[0].address
    burst = asyncio.create_task(asyncio.to_thread(_burst, lab, one, address, 100_000))
    now, readings = 0, []
    while not burst.done():  # generations change while packets come
        now += 1
        began = time.monotonic()
        await flow_logs.collect(now)
        readings.append(time.monotonic() - began)
        await asyncio.sleep(0.3)
    seconds = await burst
    began = time.process_time()
    await flow_logs.collect(now + 1)
    print(f"burst {seconds:.2f} s, readings {[round(each, 2) for each in readings]}")
    sent = _less(_veth(lab, one)[0], before[0])
    found = _read(flow_logs.readings, vpc)
    at_one = found[one.interface_id]
    assert sent == (100_000, 100_000 * 28)
    assert _total(at_one, lambda key: key.egress) == sent
    assert len([key for key in at_one if key.egress]) == 100_000
    # the receiver's groups let nothing in
    assert _total(found[two.interface_id], lambda key: not key.accept) == sent
    # once more, in one generation
    before = _veth(lab, one)
    await asyncio.to_thread(_burst, lab, one, address, 100_000)
    wall, cpu = time.monotonic(), time.process_time()
    await flow_logs.collect(now + 2)
    print(f"200,000 counters read in {time.monotonic() - wall:.2f} s, CPU {time.process_time() - cpu:.2f} s")
    sent = _less(_veth(lab, one)[0], before[0])
    last = aggregate(flow_logs.readings.between(vpc, now + 1, now + 2), lambda logged: True)
    assert _total(last[one.interface_id].flows, lambda key: key.egress) == sent == (100_000, 2_800_000)
    assert len(last[one.interface_id].flows) == 100_000
