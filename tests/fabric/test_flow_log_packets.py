"""Flow logs on real packets: what is recorded is what the interfaces' own counters say.

A veth counts 14 bytes more for each packet, its Ethernet header. What an interface sends is all recorded, as
accepted or refused; of what it shall receive, what is accepted is what it gets."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from tests.fabric.lab import ANYWHERE, QUIET, Lab, in_world, rule

from cloister.flow_delivery import with_delivery
from cloister.flow_readings import Readings, aggregate
from cloister.flowlog import FlowLogs
from cloister.iam.model import Role
from cloister.ids import resource_id
from cloister.kernel.flows import Counts
from cloister.logs import LogStore
from cloister.s3 import names
from cloister.s3.model import Bucket
from cloister.vpc import addresses as ip
from cloister.vpc import flow_logs as vpc_flow_logs
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import DEFAULT_FORMAT, Counted, Key
from cloister.vpc.interfaces import release
from cloister.vpc.model import AclEntry, NetworkAcl, NetworkInterface, Subnet

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


@in_world
async def test_of_tcps_flags_fin_syn_rst_and_syn_ack_are_recorded(lab: Lab) -> None:
    sent = {0x02: 2, 0x12: 18, 0x11: 1, 0x04: 4, 0x14: 4, 0x10: 0, 0xC2: 2, 0x19: 1, 0x07: 7}
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE)
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    await _log(lab, vpc, vpc)
    flow_logs = _service(lab)
    await flow_logs.collect(0)
    raw = lab.namespaces.socket(one.interface_id, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        for flags in sent:
            segment = struct.pack("!HHIIBBHHH", 7, 1000 + flags, 1, 0, 5 << 4, flags, 100, 0, 0)
            raw.sendto(segment, (two.addresses[0].address, 0))
    await flow_logs.collect(60)
    told = {
        key.destination_port - 1000: counted.flags
        for key, counted in _read(flow_logs.readings, vpc)[one.interface_id].items()
        if key.egress
    }
    assert told == sent


@in_world
async def test_what_goes_to_an_address_that_nobody_has_is_judged_where_it_is_sent(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    udp = rule(egress=True, protocol="udp", ports=(0, 999), cidr="0.0.0.0/0")
    icmp = rule(egress=True, protocol="icmp", cidr="0.0.0.0/0")
    one = await lab.interface(subnet, await lab.group(vpc, udp, icmp))
    acl = NetworkAcl(
        network_acl_id=resource_id("acl"),
        vpc_id=vpc,
        entries=(
            AclEntry(number=1, egress=True, allow=False, protocol="-1", cidr="10.0.7.0/24"),
            AclEntry(number=2, egress=True, allow=True, protocol="-1", cidr="0.0.0.0/0"),
            AclEntry(number=2, egress=False, allow=True, protocol="-1", cidr="0.0.0.0/0"),
        ),
    )
    its_subnet = lab.engine.world.get(Subnet, subnet)
    assert its_subnet is not None
    await lab.put(acl, replace(its_subnet, network_acl_id=acl.network_acl_id))
    await _log(lab, vpc, vpc)
    flow_logs = _service(lab)
    await flow_logs.collect(0)
    before = _veth(lab, one)
    made = lab.socket(one.interface_id, socket.SOCK_DGRAM)
    wanted = {
        ("10.0.0.200", 53): True,  # of the same subnet
        ("10.0.3.200", 53): True,  # of another
        ("10.0.3.200", 2000): False,  # no group lets it out
        ("10.0.7.200", 53): False,  # the ACL does not
    }
    for place in wanted:
        for _ in range(2):
            made.sendto(b"x" * 72, place)
    _ping(lab, one, "10.0.3.201", 3)
    await asyncio.sleep(0.1)
    after = _veth(lab, one)
    await flow_logs.collect(60)
    found = _read(flow_logs.readings, vpc)[one.interface_id]
    told = {
        (key.destination, key.destination_port): (key.accept, counted.packets, counted.bytes)
        for key, counted in found.items()
        if key.protocol == 17
    }
    assert told == {place: (accept, 2, 200) for place, accept in wanted.items()}
    assert _total(found, lambda key: key.protocol == 1 and key.accept) == (3, 3 * 28)
    # all of it, and nothing came back
    assert _total(found, lambda key: True) == _less(after[0], before[0])
    assert _less(after[1], before[1]) == (0, 0)
    # `explain` says the same, and that nobody is there
    for (address, port), accept in wanted.items():
        flow = Flow(source=one.interface_id, destination=address, protocol="udp", port=port)
        *gates, last = explain(lab.engine.world, flow).steps
        assert all(step.allowed for step in gates) is accept
        assert (last.gate, last.allowed) == ("interface", False)
        assert f"has the address {address}" in last.sentence
    # what was let out and came to nobody is noted for the job's receipt, too
    noted = lab.reconciler.query(vpc, "list set ip cloister refused_to")
    assert all(address in str(noted) for address, _ in wanted)
    # somebody who comes gets it, and is nobody again afterwards
    group = await lab.group(vpc, rule(protocol="udp", ports=(53, 53), cidr="0.0.0.0/0"))
    two = await lab.interface(subnet, group, addresses=("10.0.0.200",))
    got = lab.socket(two.interface_id, socket.SOCK_DGRAM)
    got.bind(("0.0.0.0", 53))
    made.sendto(b"hello", ("10.0.0.200", 53))
    assert got.recv(100) == b"hello"


@in_world
async def test_a_log_of_an_interface_counts_that_one_and_a_log_of_the_vpc_all_of_them(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    first, second = one.interface_id, two.interface_id
    await _log(lab, first, vpc)
    flow_logs = _service(lab)
    await flow_logs.collect(0)

    def told(since: int, until: int) -> dict[str, Sum]:
        readings = flow_logs.readings.between(vpc, since, until)
        assert not any(reading.lost for reading in readings)
        found = aggregate(readings, lambda logged: True)
        return {name: _total(its.flows, lambda key: key.protocol == 1) for name, its in found.items()}

    _ping(lab, one, two.addresses[0].address, 3)
    await flow_logs.collect(60)
    assert told(0, 60) == {first: (6, 6 * 28)}  # there and back
    # more of one interval, when the whole VPC is logged, and no more
    _ping(lab, one, two.addresses[0].address, 1)
    whole = await _log(lab, vpc, vpc)
    _ping(lab, one, two.addresses[0].address, 3)
    await flow_logs.collect(120)
    assert told(60, 120) == {first: (8, 8 * 28), second: (6, 6 * 28)}
    with lab.engine.transaction() as tx:
        tx.delete(FlowLog, whole.flow_log_id)
    await lab.settle()
    _ping(lab, one, two.addresses[0].address, 3)
    await flow_logs.collect(180)
    assert told(120, 180) == {first: (6, 6 * 28)}


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
    told = _total(last[one.interface_id].flows, lambda key: key.egress)
    assert told == sent == (100_000, 2_800_000)
    assert len(last[one.interface_id].flows) == 100_000


@in_world
async def test_what_a_full_set_does_not_take_is_skipdata_of_its_interface_alone(lab: Lab) -> None:
    with patch.object(vpc_flow_logs, "SIZE", 64):
        vpc, subnet, _ = await lab.vpc()
        group = await lab.group(vpc, ANYWHERE)
        one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
        quiet = await lab.interface(subnet, group)
        await _log(lab, vpc, vpc)
    flow_logs = _service(lab)
    await flow_logs.collect(0)
    before = _veth(lab, one)
    _burst(lab, one, two.addresses[0].address, 1000)
    _ping(lab, quiet, one.addresses[0].address, 3)
    await flow_logs.collect(60)
    found = aggregate(flow_logs.readings.between(vpc, 0, 60), lambda logged: True)
    told = _total(found[one.interface_id].flows, lambda key: key.egress)
    assert _less(_veth(lab, one)[0], before[0])[0] == 1000
    assert 64 <= told[0] < 1000
    assert found[one.interface_id].skipped
    assert found[two.interface_id].skipped
    assert not found[quiet.interface_id].skipped
    assert _total(found[quiet.interface_id].flows, lambda key: key.egress) == (3, 3 * 28)
    # the next interval has room again
    _burst(lab, one, two.addresses[0].address, 1000 // 1000)
    await flow_logs.collect(120)
    again = aggregate(flow_logs.readings.between(vpc, 60, 120), lambda logged: True)
    assert not any(each.skipped for each in again.values())


TRUST = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",'
    ' "Principal": {"Service": "vpc-flow-logs.amazonaws.com"}}]}'
)
MAY_LOG = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "logs:*", "Resource": "*"}]}'


class Answer:
    status = 200

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Objects:
    """Stands for the object store: the last object that was put."""

    path, body = "", b""
    names = names.PLAIN

    async def request(self, method: str, path: str, *, headers: object, body: bytes) -> Answer:
        self.path, self.body = path, body
        return Answer()


@in_world
async def test_records_are_delivered_for_each_interval_and_each_log(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(protocol="tcp", ports=(80, 80), cidr="0.0.0.0/0"))
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    first, second = one.interface_id, two.interface_id
    role_arn = "arn:aws:iam::123456789012:role/flow"
    role = Role(name="flow", role_id="AROA", trust_policy=TRUST, created=0, inline_policies={"p": MAY_LOG})
    await lab.put(role)
    group_name, more = "flows", {"destination": "flows", "role_arn": role_arn, "log_format": DEFAULT_FORMAT}
    everything = await _log(lab, vpc, vpc, **more)
    refused = await _log(lab, subnet, vpc, **more, traffic_type="REJECT")
    policy = with_delivery(None, "logs", "", "123456789012", "us-east-1")
    await lab.put(
        Bucket(name="logs", owner_account="123456789012", region="us-east-1", created=0, policy=policy)
    )
    in_s3 = {"destination_type": "s3", "destination": "arn:aws:s3:::logs", "interval": 600}
    stored = await _log(lab, second, vpc, **in_s3, log_format="${action} ${dstport} ${packets}")
    flow_logs = _service(lab)
    flow_logs._backend = objects = Objects()  # type: ignore[assignment]
    store = flow_logs._logs

    def lines(interface_id: str, kind: str) -> list[str]:
        return [event.message for event in store.get(group_name, f"{interface_id}-{kind}")]

    await flow_logs.collect(0)
    lab.listen(second, "0.0.0.0", 80)
    assert lab.connects(one, two.addresses[0].address, 80)
    assert not lab.connects(one, two.addresses[0].address, 81)
    await flow_logs.collect(60)
    await flow_logs.deliver(60)
    assert len(lines(first, "all")) == 3  # there, back, and the one that is refused elsewhere
    assert sum(" REJECT OK" in each for each in lines(second, "all")) == 1
    (rejected,) = lines(second, "reject")
    packets, octets = (int(each) for each in rejected.split()[8:10])
    assert octets == 60 * packets
    assert packets == 1 or QUIET > 1  # who waits longer asks again
    assert rejected.endswith(f" 6 {packets} {octets} 0 60 REJECT OK")
    assert lines(first, "reject")[0].endswith(" - - - - - - - 0 60 - NODATA")
    # the same once more is nothing new; an interval without traffic is NODATA
    await flow_logs.deliver(60)
    assert len(lines(first, "all")) == 3
    await flow_logs.collect(120)
    await flow_logs.deliver(120)
    assert lines(second, "all")[-1] == f"2 123456789012 {second} - - - - - - - 60 120 - NODATA"
    # every 600 s, a file with what came before
    await flow_logs.collect(600)
    await flow_logs.deliver(600)
    assert f"_{stored.flow_log_id}_19700101T0010Z_" in objects.path
    header, *rows = gzip.decompress(objects.body).decode().splitlines()
    assert header == "action dstport packets"
    assert {row.split()[0] for row in rows} == {"ACCEPT", "REJECT"}
    assert f"REJECT 81 {packets}" in rows
    # a table that was built anew has lost what it had counted, and says so
    assert not lab.connects(one, two.addresses[0].address, 81)
    lab.reconciler._blind.add(vpc)
    lab.reconciler.apply(lab.fabric.plan)
    await flow_logs.collect(660)
    await flow_logs.deliver(660)
    assert lines(first, "all")[-1].endswith(" SKIPDATA")
    # a role that may no longer write
    await lab.put(replace(role, inline_policies={}))
    await flow_logs.deliver(720)
    now = lab.engine.world.get(FlowLog, everything.flow_log_id)
    assert now is not None
    assert now.error == "Access error"
    await lab.put(role)
    await flow_logs.deliver(780)
    now = lab.engine.world.get(FlowLog, refused.flow_log_id)
    assert now is not None
    assert now.error is None


@in_world
async def test_a_restart_loses_and_repeats_nothing_and_the_gone_are_recorded(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE)
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    await _log(lab, vpc, vpc)
    address = two.addresses[0].address
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flows.sqlite")
        flow_logs = _service(lab, path)
        await flow_logs.collect(0)
        _burst(lab, one, address, 1000)
        # killed after a reading was written and before the sets were emptied
        flush = flow_logs.readings._flush

        async def killed(*_: object) -> None:
            raise LookupError("killed")

        flow_logs.readings._flush = killed  # type: ignore[method-assign]
        await flow_logs.collect(60)
        flow_logs.readings._flush = flush  # type: ignore[method-assign]
        flow_logs.readings.close()
        _burst(lab, one, address, 1000)  # nobody reads, the kernel counts
        # the next daemon believes what it finds: the seal still holds, nothing is built anew
        table = lab.namespaces.call(vpc, lambda: Counts().table())
        lab.reconciler.adopt()
        lab.reconciler.apply(lab.fabric.plan)
        assert lab.namespaces.call(vpc, lambda: Counts().table()) == table
        flow_logs = _service(lab, path)
        with lab.engine.transaction() as tx:
            release(tx, one.interface_id)
        await lab.settle()
        await flow_logs.collect(120)
        found = _read(flow_logs.readings, vpc)
        assert _total(found[one.interface_id], lambda key: key.egress) == (2000, 2000 * 28)
        await flow_logs.collect(180)
        assert _read(flow_logs.readings, vpc) == found
        flow_logs.readings.close()
