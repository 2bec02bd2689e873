"""Names of the internet: which are asked for, and what of a reply is believed."""

from __future__ import annotations

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import host_names, way_out
from cloister.vpc import dns


@pytest.mark.parametrize(
    "name", ["example.com", "A.Example.COM.", "_sip._tcp.example.org", "xn--bcher-kva.example"]
)
def test_a_public_name_is_asked_for(name: str) -> None:
    assert host_names.is_public(name)


@pytest.mark.parametrize(
    "name",
    [
        "host",
        "a.local",
        "ip-10-0-0-9.ec2.internal",
        "x.s3.amazonaws.com",
        "amazonaws.com",
        "1.0.0.10.in-addr.arpa",
        "a b.example.com",
        "a..example.com",
        "-.example",
        "x" * 64 + ".com",
        ".".join(["abcdefgh"] * 30),
        "",
    ],
)
def test_a_name_that_is_ours_or_nobodys_is_not(name: str) -> None:
    assert not host_names.is_public(name)


def _reply(name: str, *records: dnslib.RR, rcode: int = 0) -> bytes:
    said = dnslib.DNSRecord.question(name).reply()
    said.header.rcode = rcode
    for record in records:
        said.add_answer(record)
    return bytes(said.pack())


def test_only_public_addresses_of_a_reply_count_also_behind_an_alias() -> None:
    found = host_names.read(
        _reply(
            "a.example.com",
            dnslib.RR("a.example.com", dnslib.QTYPE.CNAME, rdata=dnslib.CNAME("b.example.com"), ttl=9),
            dnslib.RR("b.example.com", rdata=dnslib.A("11.22.33.44"), ttl=60),
            dnslib.RR("b.example.com", rdata=dnslib.A("10.0.0.1"), ttl=1),
            dnslib.RR("b.example.com", rdata=dnslib.A("169.254.169.254"), ttl=1),
        ),
        "a.example.com",
    )
    assert found == dns.Answer(rcode=0, records=("11.22.33.44",), ttl=60)
    assert host_names.read(_reply("a.example.com", rcode=3), "a.example.com").rcode == dns.NXDOMAIN


def test_a_reply_to_another_question_is_none() -> None:
    with pytest.raises(ValueError, match="another"):
        host_names.read(_reply("b.example.com"), "a.example.com")
    with pytest.raises(ValueError, match="another"):
        host_names.read(bytes(dnslib.DNSRecord.question("a.example.com").pack()), "a.example.com")


@given(st.binary(max_size=200))
def test_hostile_bytes_are_no_reply(packet: bytes) -> None:
    with pytest.raises(ValueError, match="reply"):
        host_names.read(packet, "a.example.com")


def test_the_hosts_servers_are_read_from_its_configuration() -> None:
    text = "# x\nsearch a.b\nnameserver 192.0.2.1\nnameserver fd00::1\nnameserver 127.0.0.53\nnameserver\n"
    assert host_names.servers(text) == ["192.0.2.1", "127.0.0.53"]


_TABLE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.parametrize(
    ("line", "link"),
    [
        ("", None),
        ("eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "eth0"),
        ("eth0\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n", None),
        ("*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n", None),
        ("lo\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n", None),
        ("eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n", None),
    ],
)
def test_a_way_out_is_a_default_route_that_is_up(line: str, link: str | None) -> None:
    assert way_out.default_route(_TABLE + line) == link


def test_every_address_that_the_host_answers_to_is_its_own() -> None:
    trie = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
"""
    assert way_out.host_addresses(trie) == {"192.0.2.2", "127.0.0.0", "127.0.0.1"}
    assert "127.0.0.1" in way_out.host_addresses()
