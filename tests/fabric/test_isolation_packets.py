"""Network isolation and encryption between instances, on real packets."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from tests.fabric.lab import ANYWHERE, QUIET, Lab, in_world, rule

from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
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
