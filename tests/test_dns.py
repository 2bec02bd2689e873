"""The resolver: what it answers, and how the bytes look."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import dns as resolver
from cloister import forwarding
from cloister.dns import reply
from cloister.s3.model import Bucket
from cloister.vpc import dns
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import (
    NetworkInterface,
    PrivateAddress,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.world import World

WORLD = World.of(
    [
        Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="x"),
        Vpc(vpc_id="vpc-off", cidr="10.0.0.0/16", cidr_association_id="x", enable_dns_support=False),
        Bucket(name="amazonlinux.us-east-1.amazonaws.com", owner_account="1", region="us-east-1", created=0),
    ]
)


def _answer(name: str, qtype: int = dns.A, vpc: str = "vpc-1") -> dns.Answer:
    return dns.answer(WORLD, vpc, name, qtype, region="us-east-1")


@pytest.mark.parametrize(
    "name",
    [
        "s3.us-east-1.amazonaws.com",
        "bucket.s3.us-east-1.amazonaws.com",
        "a.b.S3.us-EAST-1.amazonaws.com.",
        "s3-us-east-1.amazonaws.com",
        "bucket.s3-us-east-1.amazonaws.com",
        "s3.dualstack.us-east-1.amazonaws.com",
        "bucket.s3.dualstack.us-east-1.amazonaws.com",
        "s3.amazonaws.com",
        "bucket.s3.amazonaws.com",
        "amazonlinux.us-east-1.amazonaws.com",
    ],
)
def test_a_name_of_s3_has_addresses_of_its_prefix_list_always_the_same(name: str) -> None:
    found = _answer(name)
    assert found.rcode == dns.NOERROR
    assert len(found.records) == 4
    assert found.records[2].startswith(("52.216.", "52.217."))
    assert found == _answer(name)
    assert _answer(name, dns.AAAA) == dns.Answer(rcode=dns.NOERROR)


@pytest.mark.parametrize(
    ("name", "qtype", "records"),
    [
        ("ip-10-0-0-5.ec2.internal", dns.A, ("10.0.0.5",)),
        ("5.0.0.10.in-addr.arpa", dns.PTR, ("ip-10-0-0-5.ec2.internal",)),
        ("5.0.0.10.in-addr.arpa", dns.A, ()),
    ],
)
def test_an_address_of_the_vpc_has_its_private_name(name: str, qtype: int, records: tuple[str, ...]) -> None:
    assert _answer(name, qtype).rcode == dns.NOERROR
    assert _answer(name, qtype).records == records


@pytest.mark.parametrize(
    "name",
    [
        "example.com", "", "amazonaws.com", "ip-10-9-0-5.ec2.internal", "ip-10-0-0-999.ec2.internal",
        "ip-10-0-0-5.us-east-1.compute.internal", "packages.us-east-1.amazonaws.com", "5.0.9.9.in-addr.arpa",
        "nos3.us-east-1.amazonaws.com", "a..s3.amazonaws.com", "s3.us-east-1.amazonaws.com.evil.org",
    ],
)  # fmt: skip
def test_every_other_name_does_not_exist(name: str) -> None:
    assert _answer(name) == dns.Answer(rcode=dns.NXDOMAIN)


def test_other_services_have_stand_in_addresses() -> None:
    for name in ("sts.us-east-1.amazonaws.com", "sts.amazonaws.com", "1.dkr.ecr.us-east-1.amazonaws.com"):
        assert _answer(name).records[0].startswith("203.0.113.")


def test_a_vpc_without_dns_support_is_refused() -> None:
    assert _answer("s3.us-east-1.amazonaws.com", vpc="vpc-off").rcode == dns.REFUSED


def test_private_names_of_an_endpoint_hide_the_public_ones_and_all_below() -> None:
    tx = WORLD.begin()
    tx.put(replace(WORLD.get(Vpc, "vpc-1"), enable_dns_hostnames=True))
    tx.put(SecurityGroup(group_id="sg-1", vpc_id="vpc-1", name="default", description=""))
    where = {"cidr": "10.0.0.0/24", "zone": "us-east-1a", "zone_id": "use1-az1"}
    tx.put(Subnet(subnet_id="subnet-1", vpc_id="vpc-1", **where))
    interface = create_interface(tx, subnet_id="subnet-1", now=0, addresses=["10.0.0.9"])
    tx.put(
        VpcEndpoint(
            endpoint_id="vpce-0123456789abcdef0",
            vpc_id="vpc-1",
            service_name="com.amazonaws.us-east-1.kms",
            kind="Interface",
            policy="",
            created=0,
            interface_ids=(interface.interface_id,),
            private_dns_enabled=True,
        )
    )
    world = tx.commit()

    def asked(name: str, qtype: int) -> dns.Answer:
        return dns.answer(world, "vpc-1", name, qtype, region="us-east-1")

    said = reply(bytes(dnslib.DNSRecord.question("KMS.us-east-1.amazonaws.com").pack()), asked)
    assert said is not None
    assert [str(record.rdata) for record in dnslib.DNSRecord.parse(said).rr] == ["10.0.0.9"]
    assert asked("kms.us-east-1.amazonaws.com", dns.AAAA) == dns.Answer(rcode=dns.NOERROR)
    assert asked("x.kms.us-east-1.amazonaws.com", dns.A).rcode == dns.NXDOMAIN
    assert asked("kms.eu-west-1.amazonaws.com", dns.A).records[0].startswith("203.0.113.")


def test_the_case_of_a_question_comes_back_as_it_was() -> None:
    said = reply(bytes(dnslib.DNSRecord.question("S3.us-EAST-1.AmazonAWS.com").pack()), _answer)
    assert said is not None
    parsed = dnslib.DNSRecord.parse(said)
    assert str(parsed.q.qname) == str(parsed.rr[0].rname) == "S3.us-EAST-1.AmazonAWS.com."


def test_a_reply_too_long_for_udp_says_so_and_is_whole_over_tcp() -> None:
    def many(name: str, qtype: int) -> dns.Answer:
        return dns.Answer(rcode=0, records=tuple(f"10.0.0.{i}" for i in range(100)))

    query = bytes(dnslib.DNSRecord.question("many.example").pack())
    short = dnslib.DNSRecord.parse(reply(query, many, limit=512))
    assert (short.header.tc, len(short.rr)) == (1, 0)
    assert len(dnslib.DNSRecord.parse(reply(query, many)).rr) == 100


@given(st.binary(max_size=300))
def test_hostile_bytes_get_no_exception(packet: bytes) -> None:
    reply(packet, _answer, limit=512)


@given(st.binary(max_size=40), st.integers(0, 60))
def test_hostile_bytes_within_a_query_get_no_exception(junk: bytes, place: int) -> None:
    query = bytes(dnslib.DNSRecord.question("s3.us-east-1.amazonaws.com").pack())
    reply(query[:place] + junk + query[place + len(junk) :], _answer, limit=512)


def test_names_of_a_peer_resolve_when_it_allows() -> None:
    def world(**options: bool) -> World:
        return World.of(
            [
                *(
                    Vpc(
                        vpc_id=f"vpc-{n}",
                        cidr=f"10.{n}.0.0/16",
                        cidr_association_id="x",
                        enable_dns_hostnames=True,
                    )
                    for n in (0, 1)
                ),
                NetworkInterface(
                    interface_id="eni-1",
                    vpc_id="vpc-1",
                    subnet_id="subnet-1",
                    mac="",
                    group_ids=(),
                    addresses=(PrivateAddress(address="10.1.0.5", primary=True, public_ip="198.51.100.7"),),
                ),
                VpcPeering(
                    peering_id="pcx-1",
                    requester_vpc_id="vpc-0",
                    accepter_vpc_id="vpc-1",
                    status="active",
                    created=0,
                    changed=0,
                    **options,
                ),
            ]
        )

    private, public = "ip-10-1-0-5.ec2.internal", "ec2-198-51-100-7.compute-1.amazonaws.com"

    def asked(world: World, vpc_id: str, name: str, qtype: int = dns.A) -> tuple[str, ...]:
        return dns.answer(world, vpc_id, name, qtype, region="us-east-1").records

    for options in ({}, {"requester_resolves": True}):
        assert asked(world(**options), "vpc-0", private) == ()
        assert asked(world(**options), "vpc-0", public) == ("198.51.100.7",)
        assert asked(world(**options), "vpc-1", public) == ("10.1.0.5",)
    allowed = world(accepter_resolves=True)
    assert asked(allowed, "vpc-0", private) == ("10.1.0.5",)
    assert asked(allowed, "vpc-0", public) == ("10.1.0.5",)
    assert asked(allowed, "vpc-0", "5.0.1.10.in-addr.arpa", dns.PTR) == (private,)
    assert asked(allowed, "vpc-1", "ip-10-0-0-5.ec2.internal") == ()
    assert asked(allowed, "vpc-0", "ec2-198-51-100-9.compute-1.amazonaws.com") == ()


def _pointing(questions: int, answers: int = 0) -> bytes:
    """A question, and names that point to the name before them."""
    packet = bytearray(dnslib.DNSRecord.question("a.example.com").pack())
    packet[4:8] = struct.pack("!2H", questions, answers)
    before = 12
    for _ in range(questions + answers - 1):
        here = len(packet)
        packet += struct.pack("!H", 0xC000 | before) + b"\0\1\0\1" + b"\0\0\0\0\0\0" * (answers > 0)
        before = here
    return bytes(packet)


def test_names_that_point_to_names_without_end_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    query = dnslib.DNSRecord.question("a.example.com")
    said = bytearray(_pointing(1, 2000))
    said[0:4] = struct.pack("!2H", query.header.id, 0x8000)
    assert reply(bytes(query.pack()), _answer) is not None
    monkeypatch.setattr(dnslib.DNSRecord, "parse", None)
    monkeypatch.setattr(dnslib.RR, "parse", None)
    for packet in (_pointing(160), _pointing(1, 3), query.pack() + bytes(2000)):
        assert reply(packet, _answer) is None
    assert forwarding._is_reply(bytes(said), query)
    assert not forwarding._is_reply(_pointing(160), query)


@pytest.mark.parametrize(("labels", "answered"), [(127, True), (128, False), (500, False)])
def test_a_name_that_is_too_long_to_be_one_is_no_query(labels: int, answered: bool) -> None:
    packet = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\1a" * labels + b"\0" + b"\0\1\0\1"
    assert (reply(packet, _answer) is not None) is answered


async def test_one_address_leaves_connections_to_the_resolver_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver, "_OF_ONE", 2)

    def nobody(*_: object) -> None:
        return None

    names = resolver._Names("vpc-1", _answer, nobody, nobody, nobody)
    served, listening = resolver._Resolver(names), socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    await served.start([listening])
    query = dnslib.DNSRecord.question("s3.us-east-1.amazonaws.com").pack()

    async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))

    silent = [await connect("127.0.0.2") for _ in range(2)]
    with pytest.raises(ConnectionResetError):
        await (await connect("127.0.0.2"))[0].read(1)
    reader, writer = await connect("127.0.0.3")
    writer.write(struct.pack("!H", len(query)) + query)
    (size,) = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), 5))
    assert len(dnslib.DNSRecord.parse(await reader.readexactly(size)).rr) == 4
    for each in (*(one for _, one in silent), writer):
        each.close()
    await served.close()
