"""Real packets through what the reconciler made: two containers' namespaces and a router."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloister.kernel.dump import counters
from cloister.kernel.netns import Namespaces
from cloister.kernel.plan import Chain, Element, Netns, Part, PolicyRule, Route, Rule, Set, Veth, key
from cloister.kernel.reconcile import Reconciler

pytestmark = pytest.mark.fabric

A, B = "10.0.0.4", "10.0.0.5"
OPEN = [
    Chain(netns=name, name=hook, hook=f"type filter hook {hook} priority 0; policy accept;")
    for name in ("a", "b", "door")
    for hook in ("input", "output")
] + [Chain(netns="vpc", name="output", hook="type filter hook output priority 0; policy accept;")]


@pytest.fixture
def reconciler(tmp_path: Path) -> Iterator[Reconciler]:
    with Namespaces(tmp_path / "netns") as namespaces:
        reconciler = Reconciler(namespaces)
        yield reconciler
        reconciler.apply({})
        reconciler.close()


def pair(inner: str, number: int, address: str) -> Veth:
    return Veth(
        outer="vpc",
        outer_if=f"e{number}",
        outer_mac="02:00:00:00:00:01",
        inner=inner,
        inner_if="eth0",
        inner_mac=f"02:00:00:00:01:{number:02x}",
        addresses=(address,),
        gateway="10.0.0.1",
    )


def world(*more: Part) -> dict[tuple[str, ...], Part]:
    parts: list[Part] = [
        Netns(name="vpc", forward=True, loopback=("10.0.0.2/32",)),
        Netns(name="a"),
        Netns(name="b"),
        pair("a", 1, A),
        pair("b", 2, B),
        *(chain for chain in OPEN if chain.netns != "door"),
        Set(netns="vpc", name="source", type="ifname . ipv4_addr"),
        Element(netns="vpc", set="source", key=f"e1 . {A}", comment="eni-1"),
        Element(netns="vpc", set="source", key=f"e2 . {B}", comment="eni-2"),
        Set(netns="vpc", name="into", type="inet_service . ipv4_addr", data="verdict", interval=True),
        Chain(
            netns="vpc",
            name="forward",
            hook="type filter hook forward priority 0; policy drop;",
            rules=(
                Rule(text="iifname . ip saddr != @source counter drop", comment="spoofed"),
                Rule(text="ct state established,related accept"),
                Rule(text="tcp dport . ip saddr vmap @into"),
                Rule(text="ip protocol tcp reject with tcp reset", comment="refused"),
            ),
        ),
        *more,
    ]
    return {key(part): part for part in parts}


def connect(reconciler: Reconciler, name: str, where: tuple[str, int], source: str | None = None) -> str:
    """What happens to a TCP connection from inside a namespace."""
    with reconciler.namespaces.socket(name, socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(0.5 * PATIENCE)
        if source:
            client.bind((source, 0))
        try:
            client.connect(where)
            return client.recv(100).decode()
        except TimeoutError:
            return "dropped"
        except OSError as error:
            return errno.errorcode[error.errno or 0]


@pytest.fixture
def server(reconciler: Reconciler) -> Iterator[None]:
    reconciler.apply(world())
    with reconciler.namespaces.socket("b", socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("0.0.0.0", 80))
        listener.listen()
        listener.settimeout(10 * PATIENCE)

        def serve() -> None:
            while True:
                try:
                    client, address = listener.accept()
                except OSError:
                    return
                with client:
                    client.sendall(f"hello {address[0]}".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_connection_is_refused_until_an_element_allows_it(reconciler: Reconciler, server: None) -> None:
    assert connect(reconciler, "a", (B, 80)) == "ECONNREFUSED"
    allow = Element(netns="vpc", set="into", key="80-81 . 10.0.0.0/29", data="accept", comment="sgr-1")
    reconciler.apply(world(allow), [key(allow)])
    assert connect(reconciler, "a", (B, 80)) == f"hello {A}"
    reconciler.apply(world(), [key(allow)])
    assert connect(reconciler, "a", (B, 80)) == "ECONNREFUSED"


def test_a_spoofed_source_is_dropped(reconciler: Reconciler, server: None) -> None:
    allow = Element(netns="vpc", set="into", key="80 . 0.0.0.0/0", data="accept")
    reconciler.apply(world(allow), [key(allow)])
    assert connect(reconciler, "a", (B, 80)) == f"hello {A}"
    # As a root process in the container could: give oneself another address.
    thief = Netns(name="a", loopback=("10.0.0.9/32",))
    reconciler.apply(world(allow, thief), [key(thief)])
    assert connect(reconciler, "a", (B, 80), source="10.0.0.9") == "dropped"
    assert counters(reconciler.namespaces, "vpc")["spoofed"][0] > 0


def test_a_namespace_without_chains_in_the_plan_drops_everything(reconciler: Reconciler) -> None:
    reconciler.apply({key(part): part for part in [Netns(name="a")]})
    assert connect(reconciler, "a", ("127.0.0.1", 80)) == "dropped"


def test_a_marked_packet_takes_the_route_table_of_its_mark(reconciler: Reconciler, server: None) -> None:
    """A gateway endpoint: its namespace owns 52.216.0.0/15; only the marked sender has a route to it."""
    door = [
        Netns(name="door", local=("52.216.0.0/15",)),
        replace_gateway(pair("door", 3, "169.254.9.9")),
        *(chain for chain in OPEN if chain.netns == "door"),
        Route(netns="door", table=254, destination="10.0.0.0/24", dev="eth0"),
        Element(netns="vpc", set="source", key="e3 . 52.216.0.0/15"),
        Set(netns="vpc", name="route_table", type="ifname", data="mark"),
        Element(netns="vpc", set="route_table", key="e1", data="1000"),
        Chain(
            netns="vpc",
            name="marking",
            hook="type filter hook prerouting priority mangle; policy accept;",
            rules=(Rule(text="meta mark set iifname map @route_table"),),
        ),
        PolicyRule(netns="vpc", priority=100, table=1000, mark=1000),
        Route(netns="vpc", table=1000, destination="52.216.0.0/15", dev="e3"),
        Element(netns="vpc", set="into", key="443 . 0.0.0.0/0", data="accept"),
    ]
    parts = [part for part in door if "52.216" not in str(getattr(part, "key", ""))]
    reconciler.apply(world(*parts))
    with reconciler.namespaces.socket("door", socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("0.0.0.0", 443))
        listener.listen()
        with reconciler.namespaces.socket("a", socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE)
            # Answers come from the prefix, which the source check of this test does not know: allow by state.
            reconciler.apply(world(*parts, state_first()), [key(state_first())])
            client.connect(("52.217.1.2", 443))
            accepted, address = listener.accept()
            accepted.close()
            assert address[0] == A
        assert connect(reconciler, "b", ("52.217.1.2", 443)) == "ENETUNREACH"


def state_first() -> Chain:
    chain = world()[("Chain", "vpc", "forward")]
    assert isinstance(chain, Chain)
    return Chain(
        netns="vpc", name="forward", hook=chain.hook, rules=(chain.rules[1], chain.rules[0], *chain.rules[2:])
    )


def replace_gateway(veth: Veth) -> Veth:
    return replace(veth, gateway=None)


@pytest.mark.parametrize("restarted", [False, True])
def test_the_next_owner_of_an_address_inherits_no_connection(reconciler: Reconciler, restarted: bool) -> None:
    udp = Rule(text=f"ip saddr {A} udp dport 7000 accept")
    before = world()
    forward = before[("Chain", "vpc", "forward")]
    assert isinstance(forward, Chain)
    before[key(forward)] = replace(forward, rules=(*forward.rules[:2], udp))
    reconciler.apply(before)
    client = reconciler.namespaces.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    first = reconciler.namespaces.socket("b", socket.AF_INET, socket.SOCK_DGRAM)
    bystander = reconciler.namespaces.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    with client, first, bystander:
        for each, address in ((client, (A, 5000)), (first, (B, 7000)), (bystander, (A, 5001))):
            each.settimeout(0.5 * PATIENCE)
            each.bind(address)
        client.sendto(b"hello", (B, 7000))
        first.sendto(b"yes?", first.recvfrom(10)[1])
        assert client.recv(10) == b"yes?"
        # Its interface goes and another one comes with the address, which nobody is allowed to reach.
        thief = {key(p): p for p in (Netns(name="c"), pair("c", 3, B))}
        accept = {key(p): p for p in (replace(chain, netns="c") for chain in OPEN if chain.netns == "a")}
        after = {**before, **thief, **accept, key(forward): replace(forward, rules=forward.rules[:2])}
        for gone in [i for i in after if "b" in i or i == ("Veth", "vpc", "e2") or f"e2 . {B}" in i]:
            del after[gone]
        source = Element(netns="vpc", set="source", key=f"e3 . {B}")
        after[key(source)] = source
        if restarted:
            reconciler.adopt()
            reconciler.apply(after)
        else:
            reconciler.apply(after, before.keys() ^ after.keys() | {key(forward)})
        with reconciler.namespaces.socket("c", socket.AF_INET, socket.SOCK_DGRAM) as second:
            second.settimeout(0.5 * PATIENCE)
            second.bind((B, 7000))
            client.sendto(b"hello", (B, 7000))
            with pytest.raises(TimeoutError):
                second.recv(10)
