"""Real packets through compiled VPCs."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace

import dnslib
import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister.dns import Resolvers
from cloister.fabric import Fabric
from cloister.kernel.reconcile import Reconciler
from cloister.vpc import interfaces
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.interfaces import regroup
from cloister.vpc.model import NetworkInterface

pytestmark = pytest.mark.fabric

S3 = "52.216.0.10"


@in_world
async def test_members_of_a_group_that_allows_itself_talk_and_without_the_rule_they_do_not(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE)
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    assert not lab.reaches(one, two, 5000)
    await lab.put(replace(group, rules=(ANYWHERE, rule(group_id=group.group_id))))
    assert lab.reaches(one, two, 5000)
    assert lab.reaches(two, one, 5001)
    stranger = await lab.interface(subnet, await lab.group(vpc, ANYWHERE))
    assert not lab.reaches(stranger, one, 5000)
    await lab.put(group)
    assert not lab.reaches(one, two, 5002)


@in_world
async def test_an_interface_with_other_groups_is_judged_by_them_on_the_same_link(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    opened, closed = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0")), await lab.group(vpc, ANYWHERE)
    client, beside = await lab.interface(subnet, opened), await lab.interface(subnet, opened)
    server = await lab.interface(subnet, opened)
    listener = lab.listen(server.interface_id, "0.0.0.0", 6000)
    connection = lab.socket(client.interface_id)
    connection.connect((server.addresses[0].address, 6000))
    served, _ = listener.accept()
    for groups, let_in in (((closed,), False), ((opened, closed), True), ((closed,), False)):
        with lab.engine.transaction() as tx:
            regroup(tx, interfaces.get(tx, server.interface_id), tuple(g.group_id for g in groups))
        await lab.settle()
        assert lab.reaches(client, server, 5000) is let_in
        assert lab.reaches(client, beside, 5000)
    served.close()


@in_world
async def test_rules_by_address_and_port_let_through_exactly_those(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    client = await lab.interface(subnet, await lab.group(vpc, ANYWHERE), addresses=("10.0.0.50",))
    other = await lab.interface(subnet, await lab.group(vpc, ANYWHERE), addresses=("10.0.0.99",))
    group = await lab.group(
        vpc,
        rule(protocol="tcp", ports=(80, 90), cidr="10.0.0.48/29"),
        rule(protocol="tcp", ports=(85, 95), cidr="10.0.0.50/32"),
        rule(protocol="tcp", ports=(80, 90), cidr="10.0.0.48/29"),
        rule(protocol="tcp", ports=(8000, 8000), cidr="0.0.0.0/0"),
        rule(protocol="udp", ports=(0, 65535), cidr="0.0.0.0/0"),
    )
    server = await lab.interface(subnet, group)
    assert [port for port in (79, 80, 90, 95, 96, 8000) if lab.reaches(client, server, port)] == [
        80, 90, 95, 8000,
    ]  # fmt: skip
    assert [port for port in (80, 8000) if lab.reaches(other, server, port)] == [8000]


@in_world
async def test_the_senders_egress_must_allow_as_well(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    open_to_all = await lab.group(vpc, rule(cidr="0.0.0.0/0"))
    server = await lab.interface(subnet, open_to_all)
    silent = await lab.interface(subnet, await lab.group(vpc))
    narrow = await lab.interface(
        subnet,
        await lab.group(vpc),
        await lab.group(vpc, rule(True, "tcp", (443, 443), group_id=open_to_all.group_id)),
    )
    assert not lab.reaches(silent, server, 443)
    assert lab.reaches(narrow, server, 443)
    assert not lab.reaches(narrow, server, 444)


@in_world
async def test_two_vpcs_with_the_same_addresses_do_not_reach_each_other(lab: Lab) -> None:
    ends = []
    for address in ("10.0.0.10", "10.0.0.20"):
        vpc, subnet, _ = await lab.vpc()
        group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
        ends.append(await lab.interface(subnet, group, addresses=(address,)))
    assert not lab.reaches(ends[0], ends[1], 5000)
    assert not lab.reaches(ends[1], ends[0], 5000)


@in_world
async def test_s3_is_reached_by_an_endpoint_only_and_sees_the_private_address(lab: Lab) -> None:
    vpc, subnet, table = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE)
    job = await lab.interface(subnet, group)
    assert not lab.connects(job, S3, 443)
    to_s3 = Flow(source=job.interface_id, destination=S3, port=443)
    refusal = explain(lab.engine.world, to_s3).refusal
    assert refusal is not None
    assert refusal.gate == "route"
    endpoint = await lab.endpoint(vpc, table)
    door = lab.listen(endpoint.endpoint_id, "0.0.0.0", 443)
    lab.listen(endpoint.endpoint_id, "0.0.0.0", 22)
    assert lab.connects(job, S3, 443)
    assert explain(lab.engine.world, to_s3).allowed
    connection, (seen, _) = door.accept()
    assert seen == job.addresses[0].address
    assert connection.getsockname() == (S3, 443)
    connection.close()
    assert not lab.connects(job, S3, 22)
    assert not lab.connects(job, "8.8.8.8", 443)
    await lab.put(replace(group, rules=(rule(True, "tcp", (443, 443), prefix_list_id="pl-63a5400a"),)))
    assert lab.connects(job, S3, 443)
    await lab.put(replace(group, rules=(rule(True, "tcp", (443, 443), cidr="10.0.0.0/8"),)))
    assert not lab.connects(job, S3, 443)
    refusal = explain(lab.engine.world, to_s3).refusal
    assert refusal is not None
    assert refusal.gate == "egress"
    await lab.put(group, replace(endpoint, route_table_ids=()))
    assert not lab.connects(job, S3, 443)


@in_world
async def test_a_packet_with_another_source_address_is_dropped(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one = await lab.interface(subnet, group, addresses=("10.0.0.10",))
    two = await lab.interface(subnet, group, addresses=("10.0.0.20",))
    listener = lab.socket(two.interface_id, socket.SOCK_DGRAM)
    listener.bind(("10.0.0.20", 7000))
    raw = lab.namespaces.socket(one.interface_id, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for source, arrives in (("10.0.0.10", True), ("10.0.0.30", False), ("10.0.0.20", False)):
        udp = struct.pack("!HHHH", 7001, 7000, 8 + 5, 0) + source[-5:].encode()
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0)
        raw.sendto(head + socket.inet_aton(source) + socket.inet_aton("10.0.0.20") + udp, ("10.0.0.20", 0))
        if arrives:
            assert listener.recvfrom(100)[1][0] == source
        else:
            with pytest.raises(TimeoutError):
                listener.recvfrom(100)
    raw.close()


@in_world
async def test_the_resolver_answers_every_interface_and_the_routers_other_ports_nobody(lab: Lab) -> None:
    resolvers = Resolvers(lab.engine, lab.fabric, lab.namespaces, region="us-east-1")
    await resolvers.start()
    vpc, subnet, _ = await lab.vpc()
    deaf, deaf_subnet, _ = await lab.vpc(enable_dns_support=False)
    job = await lab.interface(subnet, await lab.group(vpc))  # no rules: DNS needs none
    mute = await lab.interface(deaf_subnet, await lab.group(deaf, ANYWHERE))
    lab.listen(vpc, "0.0.0.0", 80)
    await asyncio.sleep(0.2 * PATIENCE)
    for address in ("10.0.0.2", "169.254.169.253"):
        for tcp in (False, True):
            answer = await asyncio.to_thread(_answer, lab, job, address, "S3.us-EAST-1.amazonaws.com", tcp)
            assert str(answer.q.qname) == "S3.us-EAST-1.amazonaws.com."
            assert {rr.rname for rr in answer.rr} == {answer.q.qname}
            assert any(str(rr.rdata).startswith("52.21") for rr in answer.rr)
        assert not await asyncio.to_thread(lab.connects, job, address, 80)
    with pytest.raises(OSError):
        await asyncio.to_thread(_ask, lab, mute, "10.0.0.2", "s3.us-east-1.amazonaws.com", False)
    await resolvers.stop()


def _answer(lab: Lab, job: NetworkInterface, address: str, name: str, tcp: bool) -> dnslib.DNSRecord:
    """It must come, however busy the machine is; asked again, as resolvers do."""
    for _ in range(20):
        try:
            return _ask(lab, job, address, name, tcp)
        except OSError:
            pass
    return _ask(lab, job, address, name, tcp)


def _ask(lab: Lab, job: NetworkInterface, address: str, name: str, tcp: bool) -> dnslib.DNSRecord:
    client = lab.socket(job.interface_id, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    client.connect((address, 53))
    query = bytes(dnslib.DNSRecord.question(name).pack())
    client.send(struct.pack("!H", len(query)) + query if tcp else query)
    said = client.recv(4096)
    client.close()
    return dnslib.DNSRecord.parse(said[2:] if tcp else said)


@in_world
async def test_five_thousand_overlapping_rules_apply_in_one_go(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    client = await lab.interface(subnet, await lab.group(vpc, ANYWHERE), addresses=("10.0.0.10",))
    blocks = ("10.0.0.0/24", "10.0.0.8/29", "10.0.0.10/32", "11.0.0.0/8", "11.1.0.0/16")
    rules = [
        rule(protocol="tcp", ports=(1000 + i, 1000 + i + i % 7), cidr=blocks[i % 5])
        for i in range(5000)
        if i % 100 != 50
    ]
    group = await lab.group(vpc, *rules)
    server = await lab.interface(subnet, group)
    assert lab.reaches(client, server, 1000)
    assert not lab.reaches(client, server, 999)
    assert lab.reaches(client, server, 5990)
    await lab.put(replace(group, rules=tuple(rules[:2500])))
    assert lab.reaches(client, server, 1000)
    assert not lab.reaches(client, server, 5990)


@in_world
async def test_a_new_fabric_over_the_same_kernel_changes_nothing_and_follows_on(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    listener = lab.listen(two.interface_id, "0.0.0.0", 5000)
    client = lab.socket(one.interface_id)
    client.connect((two.addresses[0].address, 5000))
    served, _ = listener.accept()
    await lab.fabric.stop()
    lab.fabric = Fabric(lab.engine, lab.namespaces, Reconciler(lab.namespaces))
    await lab.fabric.start()
    assert lab.fabric.problem is None
    client.send(b"still here")
    assert served.recv(100) == b"still here"
    served.close()
    await lab.put(replace(group, rules=(ANYWHERE,)))
    assert not lab.reaches(one, two, 5001)
    with lab.engine.transaction() as tx:
        for interface in (one, two):
            tx.delete(NetworkInterface, interface.interface_id)
    await lab.settle()
    assert one.interface_id not in lab.namespaces.list()


@in_world
async def test_a_tracked_connection_survives_its_rule_and_an_untracked_one_does_not(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    client = await lab.interface(subnet, await lab.group(vpc, ANYWHERE))
    for by, survives in (("10.0.0.0/16", True), ("0.0.0.0/0", False)):
        lets_in = rule(protocol="tcp", ports=(5000, 5000), cidr=by)
        group = await lab.group(vpc, ANYWHERE, lets_in)
        server = await lab.interface(subnet, group)
        listener = lab.listen(server.interface_id, "0.0.0.0", 5000)
        connection = lab.socket(client.interface_id)
        connection.connect((server.addresses[0].address, 5000))
        served, _ = listener.accept()
        served.settimeout(PATIENCE)
        connection.send(b"before")
        assert served.recv(10) == b"before"
        # another rule in its place: the flow was let in by one that is gone
        await lab.put(replace(group, rules=(ANYWHERE, rule(protocol="tcp", ports=(5001, 5001), cidr=by))))
        connection.send(b"after")
        if survives:
            assert served.recv(10) == b"after"
        else:
            with pytest.raises(TimeoutError):
                served.recv(10)
            await lab.put(group)
            assert served.recv(10) == b"after"  # sent again
        served.close()
