"""What a receipt tells of connections on real packets: each is counted once, also one that is gone before the
router's connections are read."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister import witness as witness_module
from cloister.jobs.lifecycle import JobState
from cloister.jobs.model import Instance, ProcessingJob
from cloister.kernel import conntrack
from cloister.vpc import route_tables
from cloister.vpc.model import InternetGateway, NetworkInterface, Route, Subnet
from cloister.witness import Witness

pytestmark = pytest.mark.fabric


async def _pair(lab: Lab) -> tuple[NetworkInterface, NetworkInterface, ProcessingJob]:
    """An interface of a job, somebody it talks to, and the job."""
    vpc, subnet, _ = await lab.vpc()
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    one, two = await lab.interface(subnet, group), await lab.interface(subnet, group)
    instance = Instance(index=1, interface_id=one.interface_id, address=one.addresses[0].address)
    job = ProcessingJob(
        name="job", job_id="1", arn="arn", request={}, instances=(instance,), subnet_id=subnet,
        credentials_path="/x", state=JobState.RUNNING, created=0.0, modified=0.0,
    )  # fmt: skip
    await lab.put(job)
    return one, two, job


async def _listening(witness: Witness) -> None:
    async with asyncio.timeout(10 * PATIENCE):
        while not witness._listeners:
            await asyncio.sleep(0.01)


def _forget(lab: Lab, one: NetworkInterface) -> int:
    return lab.namespaces.call(one.vpc_id, partial(conntrack.forget, [one.addresses[0].address]))


def _send(lab: Lab, one: NetworkInterface, two: NetworkInterface, count: int = 1) -> None:
    made = lab.namespaces.socket(one.interface_id, socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", 5000))
    for port in range(1000, 1000 + count):
        made.sendto(b"x" * 72, (two.addresses[0].address, port))
    made.close()


@in_world
async def test_a_connection_that_is_gone_before_the_next_reading_is_told_with_all_its_bytes(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        witness = Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces)
        await witness.start()
        await _listening(witness)
        # over TCP, never read while it was there
        listener = lab.listen(two.interface_id, "0.0.0.0", 80)
        client = lab.socket(one.interface_id)
        client.connect((two.addresses[0].address, 80))
        server, _ = listener.accept()
        client.sendall(b"x" * 10_000)
        left = 10_000
        while left:
            left -= len(server.recv(left))
        client.close()
        server.close()
        assert _forget(lab, one) == 1
        # one datagram, three times the same ends; of the last the first half was read
        _send(lab, one, two)
        assert _forget(lab, one) == 1
        _send(lab, one, two)
        assert _forget(lab, one) == 1
        _send(lab, one, two)
        await witness._read(one.vpc_id)
        _send(lab, one, two)
        assert _forget(lab, one) >= 1
        await witness.last(job)
        record = witness.record(job)
        tcp, udp = sorted(record["flows"], key=lambda line: line["protocol"])
        assert (tcp["connections"], tcp["port"], tcp["way"]) == (1, 80, "to")
        assert 10_000 < tcp["bytes_sent"] < 12_000
        assert (udp["connections"], udp["packets_sent"], udp["bytes_sent"]) == (3, 4, 400)
        assert record["gaps"] == []
        await witness.stop()


@in_world
async def test_another_daemon_counts_nothing_twice_and_says_that_it_was_away(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        first = Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces)
        await first.start()
        await _listening(first)
        _send(lab, one, two)
        await first._read(one.vpc_id)
        first._keep(job.job_id)  # and then it is killed
        second = Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces)
        await second.start()
        await _listening(second)
        _send(lab, one, two)
        assert _forget(lab, one) >= 1
        await second.last(job)
        record = second.record(job)
        (line,) = record["flows"]
        assert (line["connections"], line["packets_sent"]) == (1, 2)
        assert record["gaps"] == [witness_module._AWAY]
        await second.stop()
        first._store.close()


@in_world
async def test_what_the_kernel_could_not_tell_is_said(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0), patch.object(conntrack, "_BUFFER", 1):
        one, two, job = await _pair(lab)
        witness = Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces)
        await witness.start()
        await _listening(witness)
        _send(lab, one, two, 300)
        assert _forget(lab, one) >= 300
        await witness.last(job)
        assert witness.record(job)["gaps"] == [witness_module._FULL]
        assert len(witness.record(job)["flows"]) < 300
        await witness.stop()


@in_world
async def test_a_router_is_listened_to_while_it_has_a_job_and_the_listener_keeps_no_namespace(
    lab: Lab,
) -> None:
    one, _, job = await _pair(lab)
    witness = Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces)
    await witness.start()
    await _listening(witness)
    assert set(witness._listeners) == {one.vpc_id}
    await lab.put(replace(job, state=JobState.COMPLETED))
    assert not witness._listeners
    await witness.stop()


@in_world
async def test_what_an_internet_gateway_cannot_translate_is_told(lab: Lab) -> None:
    """An interface of a job has no public address: its packets end in front of the gateway."""
    one, _, job = await _pair(lab)
    subnet = lab.engine.world.get(Subnet, one.subnet_id)
    assert subnet is not None
    table = route_tables.of_subnet(lab.engine.world, subnet)
    assert table is not None
    gateway = InternetGateway(internet_gateway_id="igw-00000000000000001", vpc_id=one.vpc_id)
    out = Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id)
    await lab.put(gateway, replace(table, routes=(*table.routes, out)))
    witness = Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces)
    await witness.start()
    try:
        assert not lab.connects(one, "198.51.100.200", 443)
        await witness.last(job)
        (line,) = witness.record(job)["refused"]
        assert (line["to"], line["gate"]) == ("198.51.100.200", "gateway")
        assert "has no public address" in line["why"]
    finally:
        await witness.stop()
