"""Network isolation and encryption between instances, on real packets."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from tests.fabric.lab import ANYWHERE, QUIET, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister.jobs.tunnel import Spec, ready_path
from cloister.kernel import xfrm
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.isolation import tunnel_netns
from cloister.vpc.model import NetworkInterface

pytestmark = pytest.mark.fabric


def _primary(interface: NetworkInterface, **changes: object) -> NetworkInterface:
    own = replace(interface.addresses[0], **changes)  # type: ignore[arg-type]
    return replace(interface, addresses=(own, *interface.addresses[1:]))


def _address(interface: NetworkInterface) -> str:
    return interface.addresses[0].address


async def _answers(lab: Lab, source: NetworkInterface, address: str, port: int, server: str) -> bool:
    """Whether a datagram arrives at `server`, which says nothing back."""
    receiver, sender = (lab.socket(netns, socket.SOCK_DGRAM) for netns in (server, source.interface_id))
    receiver.bind((address, port))
    try:
        sender.sendto(b"x", (address, port))
        receiver.settimeout(QUIET)
        return receiver.recv(1) == b"x"
    except OSError:
        return False
    finally:
        receiver.close()


@in_world
async def test_an_isolated_container_reaches_its_peers_and_nobody_else_and_nobody_else_it(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one, two, other = [await lab.interface(subnet, group) for _ in range(3)]
    assert lab.reaches(one, other, 80)
    assert lab.reaches(other, one, 80)
    one, two = _primary(one, only=(_address(two),)), _primary(two, only=(_address(one),))
    await lab.put(one, two)

    assert lab.reaches(one, two, 80)
    assert lab.reaches(two, one, 80)
    assert not lab.reaches(one, other, 80)
    assert not lab.reaches(other, one, 80)
    assert not await _answers(lab, other, _address(one), 5000, one.interface_id)
    assert await _answers(lab, two, _address(one), 5000, one.interface_id)
    # not even the resolver, which every other port may ask
    assert not lab.connects(one, "10.0.0.2", 53)
    verdict = explain(
        lab.engine.world,
        Flow(source=one.interface_id, destination="10.0.0.2", protocol="udp", port=53),
    )
    assert "network isolation" in verdict.reason


@in_world
async def test_an_isolated_container_without_peers_has_a_loopback_and_no_other_link(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one, other = [await lab.interface(subnet, group) for _ in range(2)]
    await lab.put(_primary(one, only=()))

    links = lab.namespaces.call(one.interface_id, socket.if_nameindex)
    assert [name for _, name in links] == ["lo"]
    assert lab.connects(one, "127.0.0.1", 9) is False  # refused at once, by its own loopback
    assert not lab.connects(one, _address(other), 80)
    assert not explain(
        lab.engine.world, Flow(source=other.interface_id, destination=one.interface_id, port=80)
    ).allowed
    await lab.put(one)  # and back
    assert lab.reaches(one, other, 80)


@in_world
async def test_instances_that_encrypt_send_each_other_nothing_in_the_clear(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one, two, other = [await lab.interface(subnet, group) for _ in range(3)]
    await lab.put(
        _primary(one, encrypted_with=(_address(two),)), _primary(two, encrypted_with=(_address(one),))
    )
    assert lab.reaches(one, other, 80)
    assert lab.reaches(other, one, 80)
    # Nobody takes the packets of the second link here. And a container's root that goes around it:
    assert not lab.connects(one, _address(two), 80)
    around = lab.socket(one.interface_id, socket.SOCK_DGRAM)
    around.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    for port, arrives in ((5000, False), (500, True)):
        receiver = lab.socket(two.interface_id, socket.SOCK_DGRAM)
        receiver.bind((_address(two), port))
        around.sendto(b"x", (_address(two), port))
        try:
            assert receiver.recv(1) == b"x"
            assert arrives
        except TimeoutError:
            assert not arrives


def _tunnel(
    lab: Lab, own: NetworkInterface, *peers: NetworkInterface, in_kernel: bool = False
) -> subprocess.Popen[bytes]:
    spec = lab.folder / f"{own.interface_id}.json"
    spec.write_text(
        Spec(
            address=_address(own),
            peers=tuple(_address(each) for each in peers),
            netns=str(lab.namespaces.path(own.interface_id)),
            tunnel_netns=str(lab.namespaces.path(tunnel_netns(own.interface_id))),
            secret="ab" * 32,
            in_kernel=in_kernel,
        ).to_json()
    )
    ready_path(spec).unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "cloister.jobs.tunnel", str(spec)])
    lab.processes.append(process)
    deadline = time.monotonic() + 20
    while not ready_path(spec).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def _exchange(lab: Lab, source: NetworkInterface, target: NetworkInterface, data: bytes) -> bool:
    """Send `data` over TCP, and have it back."""
    listener = lab.listen(target.interface_id, _address(target), 7000)
    listener.settimeout(2 * PATIENCE)

    def echo() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                left = len(data)
                while left and (piece := connection.recv(65536)):
                    connection.sendall(piece)
                    left -= len(piece)

    thread = threading.Thread(target=echo)
    thread.start()
    client = lab.socket(source.interface_id)
    client.settimeout(1.5 * PATIENCE)
    received = b""
    try:
        client.connect((_address(target), 7000))
        sender = threading.Thread(target=lambda: client.sendall(data))
        sender.start()
        while len(received) < len(data) and (piece := client.recv(65536)):
            received += piece
        sender.join()
    except OSError:
        pass
    finally:
        client.close()
        listener.close()
        thread.join()
    return received == data


@in_world
async def test_traffic_between_instances_is_ipsec_on_the_wire_and_needs_its_two_rules(lab: Lab) -> None:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc)
    one, two = [await lab.interface(subnet, group) for _ in range(2)]
    one = _primary(one, encrypted_with=(_address(two),))
    two = _primary(two, encrypted_with=(_address(one),))
    await lab.put(one, two)
    _tunnel(lab, one, two)
    second = _tunnel(lab, two, one)
    ways = [
        (rule(egress=True, protocol=protocol, ports=ports, group_id=group.group_id),
         rule(protocol=protocol, ports=ports, group_id=group.group_id))
        for protocol, ports in (("udp", (500, 500)), ("50", None), ("tcp", (7000, 7000)))
    ]  # fmt: skip
    flow = Flow(source=one.interface_id, destination=two.interface_id, protocol="tcp", port=7000)
    for allowed in ([ways[1], ways[2]], [ways[0], ways[2]]):  # without keys first: those once made stay
        await lab.put(replace(group, rules=tuple(each for pair in allowed for each in pair)))
        assert not _exchange(lab, one, two, b"x")
        verdict = explain(lab.engine.world, flow)
        assert ("ESP" if allowed[0] is ways[0] else "udp port 500") in verdict.reason
    # what the groups say of the port itself does not matter: nobody outside sees it
    await lab.put(replace(group, rules=(*ways[0], *ways[1])))
    assert explain(lab.engine.world, flow).allowed

    wire = lab.namespaces.call(
        vpc, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    )
    wire.setblocking(False)
    lab.open.append(wire)
    secret = b"a secret that nobody may read on the wire" * 5000
    assert _exchange(lab, one, two, secret)
    captured = []
    with contextlib.suppress(BlockingIOError):
        while True:
            captured.append(wire.recv(65536))
    assert {packet[9] for packet in captured} <= {50, 17}
    assert any(packet[9] == 50 for packet in captured)
    assert all(packet[22:24] == b"\x01\xf4" for packet in captured if packet[9] == 17)
    assert not any(b"secret" in packet for packet in captured)

    # A tunnel that dies takes the connection's packets with it, none is sent otherwise; the next one goes on.
    second.kill()
    second.wait()
    assert not _exchange(lab, one, two, b"x")
    _tunnel(lab, two, one)
    assert _exchange(lab, one, two, b"x")


#: some hosts' kernels have no ESP; `make kernels` runs these under one that has
in_kernel = pytest.mark.skipif(bool(xfrm.trouble()), reason="the kernel has no ESP")
_KEYS_AND_ESP = [
    rule(egress=egress, protocol=protocol, ports=ports, cidr="10.0.0.0/16")
    for egress in (False, True)
    for protocol, ports in (("udp", (500, 500)), ("50", None))
]


class _Two:
    """Two instances that encrypt, with a capture of what is on the wire between them."""

    def __init__(self, lab: Lab, vpc: str, one: NetworkInterface, two: NetworkInterface) -> None:
        self.lab, self.one, self.two = lab, one, two
        self._wire = lab.namespaces.call(
            vpc, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        )
        self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._wire.setblocking(False)
        lab.open.append(self._wire)

    def exchange(self, data: bytes, *, back: bool = False) -> bool:
        return _exchange(self.lab, *((self.two, self.one) if back else (self.one, self.two)), data)

    def captured(self) -> list[bytes]:
        """Since the last time; checked to be keys and sealed packets only."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._wire.recv(65536))
        assert {packet[9] for packet in found} <= {50, 17}
        assert all(packet[22:24] == b"\x01\xf4" for packet in found if packet[9] == 17)
        assert not any(b"secret" in packet for packet in found)
        return found

    def datagram(self, size: int) -> bool:
        receiver = self.lab.socket(self.two.interface_id, socket.SOCK_DGRAM)
        receiver.bind((_address(self.two), 7001))
        receiver.settimeout(3 * PATIENCE)
        data = b"secret" + bytes(size - 6)
        try:
            self.lab.socket(self.one.interface_id, socket.SOCK_DGRAM).sendto(data, (_address(self.two), 7001))
            return receiver.recv(65536) == data
        except TimeoutError:
            return False
        finally:
            receiver.close()

    def states(self, end: NetworkInterface) -> list[tuple[str, int, int]]:
        """The target, SPI and packets of every state."""
        return self.lab.namespaces.call(end.interface_id, xfrm.states)


async def _two(lab: Lab) -> _Two:
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, *_KEYS_AND_ESP)
    one, two = [await lab.interface(subnet, group) for _ in range(2)]
    one = _primary(one, encrypted_with=(_address(two),))
    two = _primary(two, encrypted_with=(_address(one),))
    await lab.put(one, two)
    return _Two(lab, vpc, one, two)


async def _ends_understand_each_other(lab: Lab, first: bool, second: bool) -> None:
    """Whichever of the two the kernel seals for."""
    here = await _two(lab)
    _tunnel(lab, here.one, here.two, in_kernel=first)
    other = _tunnel(lab, here.two, here.one, in_kernel=second)
    secret = b"a secret that nobody may read on the wire" * 5000
    assert here.exchange(secret)
    assert sum(packet[9] == 50 for packet in here.captured()) > 20
    for end, kernel in ((here.one, first), (here.two, second)):
        assert len(here.states(end)) == (2 if kernel else 0)
        assert all(packets > 10 for _, _, packets in here.states(end))
    for size in (8900, 8918, 8919, 20_000):  # the second just fits into one packet
        assert here.datagram(size), size
    assert here.exchange(secret, back=True)
    here.captured()
    # One that lost its keys has new ones, whoever speaks first.
    for back in (False, True):
        other.kill()
        other.wait()
        other = _tunnel(lab, here.two, here.one, in_kernel=second)
        assert here.exchange(secret, back=back)
        assert here.exchange(secret, back=not back)
        here.captured()


@in_kernel
@in_world
async def test_two_ends_for_which_the_kernel_seals(lab: Lab) -> None:
    await _ends_understand_each_other(lab, True, True)


@in_kernel
@in_world
async def test_the_kernel_at_one_end_and_a_process_at_the_other(lab: Lab) -> None:
    await _ends_understand_each_other(lab, True, False)


@in_kernel
@in_world
async def test_a_process_at_one_end_and_the_kernel_at_the_other(lab: Lab) -> None:
    await _ends_understand_each_other(lab, False, True)


@in_world
async def test_two_ends_of_processes(lab: Lab) -> None:
    await _ends_understand_each_other(lab, False, False)


@in_kernel
@in_world
async def test_what_the_kernel_seals_goes_on_without_the_tunnel_and_without_states_nothing_goes(
    lab: Lab,
) -> None:
    here = await _two(lab)
    tunnels = [_tunnel(lab, here.one, here.two, in_kernel=True)]
    tunnels.append(_tunnel(lab, here.two, here.one, in_kernel=True))
    assert here.exchange(b"secret")
    for each in tunnels:
        each.kill()
        each.wait()
    assert here.exchange(b"secret")
    here.captured()
    # As when they are worn: the policies stay.
    flush = xfrm.flush()[1:]
    for end in (here.one, here.two):
        lab.namespaces.call(end.interface_id, lambda: xfrm.Xfrm().send(flush))
    assert not here.exchange(b"secret")
    assert not here.datagram(100)
    assert not here.captured()
    # A tunnel that begins anew first takes the route away, then the policies.
    _tunnel(lab, here.one, here.two, in_kernel=True)
    _tunnel(lab, here.two, here.one, in_kernel=True)
    assert here.exchange(b"secret")
    here.captured()


@in_kernel
@in_world
async def test_the_kernel_asks_for_keys_when_it_has_none_left(lab: Lab) -> None:
    here = await _two(lab)
    _tunnel(lab, here.one, here.two, in_kernel=True)
    _tunnel(lab, here.two, here.one, in_kernel=True)
    assert here.exchange(b"secret")
    before = here.states(here.one)
    outbound = next(spi for target, spi, _ in before if target == _address(here.two))
    lab.namespaces.call(
        here.one.interface_id,
        lambda: xfrm.Xfrm().send([xfrm.delete_state(_address(here.two), outbound)]),
    )
    here.exchange(b"secret")
    assert here.exchange(b"secret")
    assert outbound not in {spi for _, spi, _ in here.states(here.one)}
    here.captured()


@in_kernel
@in_world
async def test_a_containers_root_reads_no_keys_and_makes_no_exception(lab: Lab) -> None:
    here = await _two(lab)
    _tunnel(lab, here.one, here.two, in_kernel=True)
    _tunnel(lab, here.two, here.one, in_kernel=True)
    assert here.exchange(b"secret")
    code = """
import errno, os, socket, sys
from cloister.kernel import syscalls, xfrm
syscalls.setns(os.open(sys.argv[1], os.O_RDONLY), syscalls.CLONE_NEWNET)
syscalls.unshare(syscalls.CLONE_NEWUSER)
tries = [
    xfrm.states,
    xfrm.Events,
    lambda: xfrm.Xfrm().send(xfrm.flush()),
    lambda: xfrm.exempt(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
]
for each in tries:
    try:
        each()
        sys.exit(f"{each} is allowed")
    except OSError as error:
        assert error.errno == errno.EPERM, error
"""
    path = str(lab.namespaces.path(here.one.interface_id))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@in_kernel
@in_world
async def test_the_kernel_says_which_keys_are_worn(lab: Lab) -> None:
    here = await _two(lab)
    state = xfrm.State(
        source="10.0.0.4", target="10.0.0.5", spi=300, key=bytes(36), soft_seconds=1, hard_seconds=60
    )

    def worn() -> list[str]:
        events = xfrm.Events()
        xfrm.Xfrm().send([xfrm.add_state(state)])
        deadline = time.monotonic() + 5
        while not (found := list(events.read())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    assert lab.namespaces.call(here.one.interface_id, worn) == ["10.0.0.5"]
