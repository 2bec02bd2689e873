"""Forwarded queries on real packets: from an endpoint's interface in one VPC, for a job in another."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace

import dnslib
import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister.dns import Resolvers
from cloister.forwarding import Forwarder
from cloister.vpc import addresses as ip
from cloister.vpc.model import NetworkInterface, Vpc
from cloister.vpc.resolver_rules import ResolverEndpoint, ResolverRule, ResolverRuleAssociation

pytestmark = pytest.mark.fabric
REGION = "us-east-1"
LONG = [f"word{number:03}" * 20 for number in range(20)]  # 2,800 bytes


def _answer(packet: bytes, most: int | None) -> bytes:
    asked = dnslib.DNSRecord.parse(packet)
    said = asked.reply()
    name = str(asked.q.qname).lower()
    if name.startswith("db."):
        said.add_answer(*dnslib.RR.fromZone(f"{name} 60 CNAME real.{name}\nreal.{name} 60 A 10.1.2.3"))
    elif name.startswith("long."):
        said.add_answer(*(dnslib.RR(name, dnslib.QTYPE.TXT, ttl=60, rdata=dnslib.TXT(each)) for each in LONG))
    else:
        said.header.rcode = 3
    packed = bytes(said.pack())
    if most is not None and len(packed) > most:
        said.rr, said.header.tc = [], 1
        packed = bytes(said.pack())
    return packed


def _serve(udp: socket.socket, tcp: socket.socket) -> None:
    """A DNS server of the customer's, until its sockets close."""

    def datagrams() -> None:
        while True:
            try:
                packet, place = udp.recvfrom(4096)
                udp.sendto(_answer(packet, 512), place)
            except OSError:
                return

    def connections() -> None:
        while True:
            try:
                one, _ = tcp.accept()
                with one:
                    size = int.from_bytes(one.recv(2, socket.MSG_WAITALL), "big")
                    said = _answer(one.recv(size, socket.MSG_WAITALL), None)
                    one.sendall(len(said).to_bytes(2, "big") + said)
            except OSError:
                return

    for each in (datagrams, connections):
        threading.Thread(target=each, daemon=True).start()


@in_world
async def test_a_name_is_asked_of_the_customers_server_as_the_groups_allow(lab: Lab) -> None:
    hub, hub_subnet, _ = await lab.vpc("10.0.0.0/16")
    spoke, spoke_subnet, _ = await lab.vpc("10.0.0.0/16")  # the same addresses: they cannot meet
    out = await lab.group(hub, ANYWHERE)
    ports = [rule(protocol=each, ports=(53, 53), group_id=out.group_id) for each in ("udp", "tcp")]
    inward = await lab.group(hub, *ports)
    server = await lab.interface(hub_subnet, inward)
    sources = [await lab.interface(hub_subnet, out) for _ in range(2)]
    job = await lab.interface(spoke_subnet, await lab.group(spoke, ANYWHERE))
    address = server.addresses[0].address
    udp = lab.socket(server.interface_id, socket.SOCK_DGRAM)
    udp.settimeout(None)
    udp.bind((address, 53))
    tcp = lab.listen(server.interface_id, address, 53)
    tcp.settimeout(None)
    _serve(udp, tcp)
    await lab.put(
        ResolverEndpoint(
            endpoint_id="rslvr-out-1",
            vpc_id=hub,
            creator_request_id="x",
            group_ids=(out.group_id,),
            interface_ids=tuple(each.interface_id for each in sources),
            created=0,
        ),
        ResolverRule(
            rule_id="rslvr-rr-1",
            creator_request_id="x",
            kind="FORWARD",
            domain="corp.example",
            targets=((address, 53),),
            endpoint_id="rslvr-out-1",
            created=0,
            modified=0,
        ),
        ResolverRuleAssociation(association_id="a", rule_id="rslvr-rr-1", vpc_id=spoke),
    )
    forwarder = Forwarder(lab.engine, lab.namespaces, region=REGION)
    resolvers = Resolvers(lab.engine, lab.fabric, lab.namespaces, region=REGION, forward=forwarder.forward)
    await resolvers.start()

    async def ask(
        interface: NetworkInterface, name: str, qtype: str = "A", *, stream: bool = False
    ) -> dnslib.DNSRecord:
        vpc = lab.engine.world.get(Vpc, interface.vpc_id)
        assert vpc is not None
        client = lab.socket(interface.interface_id, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        client.settimeout(8 * PATIENCE)
        packet = bytes(dnslib.DNSRecord.question(name, qtype).pack())

        def talk() -> bytes:
            client.connect((ip.resolver_address(vpc), 53))
            if not stream:
                client.send(packet)
                return client.recv(4096)
            client.sendall(len(packet).to_bytes(2, "big") + packet)
            return client.recv(int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big"), socket.MSG_WAITALL)

        said = dnslib.DNSRecord.parse(await asyncio.to_thread(talk))
        assert said.header.id == int.from_bytes(packet[:2], "big")
        return said

    found = await ask(job, "DB.corp.example")
    assert [str(each.rdata) for each in found.rr] == ["real.db.corp.example.", "10.1.2.3"]
    assert (await ask(job, "nothing.corp.example")).header.rcode == 3
    # more than a datagram holds: the client is told to come by TCP, and so are we
    assert (await ask(job, "long.corp.example", "TXT")).header.tc
    whole = await ask(job, "long.corp.example", "TXT", stream=True)
    assert [each.rdata.data[0].decode() for each in whole.rr] == LONG
    # other names, and VPCs without the rule, are the resolver's own business
    assert (await ask(job, "s3.us-east-1.amazonaws.com")).header.rcode == 0
    other = await lab.interface(hub_subnet, out)
    assert (await ask(other, "db.corp.example")).header.rcode == 3
    # the server's group does not let the endpoint in any more: nobody answers, and it is said so
    await lab.put(replace(inward, rules=()))
    assert (await ask(job, "db.corp.example")).header.rcode == 2
    await resolvers.stop()
    udp.close()
