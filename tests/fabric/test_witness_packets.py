"""What a receipt tells of connections on real packets: each is counted once, also one that is gone before the
router's connections are read, and by whichever daemon."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister import refused_packets
from cloister import witness as witness_module
from cloister.jobs.lifecycle import JobState
from cloister.jobs.model import Instance, ProcessingJob
from cloister.kernel import conntrack
from cloister.kernel import endings as endings_module
from cloister.kernel.endings import Endings
from cloister.kernel.shelf import Shelf
from cloister.vpc import route_tables
from cloister.vpc.model import InternetGateway, NetworkInterface, Route, SecurityGroup, Subnet
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


def _witness(lab: Lab, shelf: Shelf | None = None) -> Witness:
    async def steer(vpc_id: str, commands: str) -> None:
        await lab.fabric.in_turn(partial(lab.reconciler.steer, vpc_id, commands))

    return Witness(lab.folder / "witness.sqlite", lab.engine, lab.namespaces, steer, shelf)


class Daemons:
    """Witnesses one after another, each killed, and what the holder leaves to each."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def next(self) -> Witness:
        one, other = (os.dup(end.fileno()) for end in self._ends)
        witness = _witness(self._lab, Shelf((one, other)))
        await witness.start()
        return witness

    async def kill(self, witness: Witness) -> None:
        """What is left of a process that is gone: its files are closed, and nothing more is kept."""
        assert witness._task is not None
        assert witness._shelf is not None
        witness._task.cancel()
        await asyncio.gather(witness._task, return_exceptions=True)
        for vpc_id in list(witness._listeners):
            witness._close(vpc_id)
        witness._shelf.close()
        witness._store.close()


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
        witness = _witness(lab)
        await witness.start()
        await witness.first(job)
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
async def test_a_daemon_that_finds_nothing_on_the_shelf_counts_nothing_twice_and_says_it_was_away(
    lab: Lab,
) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        first = _witness(lab)
        await first.start()
        await first.first(job)
        _send(lab, one, two)
        await first._read(one.vpc_id)
        first._keep()  # and then it is killed
        second = _witness(lab)
        await second.start()
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
async def test_connections_that_begin_and_end_without_a_daemon_are_told_by_the_next(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        daemons = Daemons(lab)
        witness = await daemons.next()
        await witness.first(job)
        total = 0
        for round_number in range(4):
            # one that is read half, and ends without a daemon
            _send(lab, one, two)
            await witness._read(one.vpc_id)
            if round_number % 2:
                witness._keep()
            _send(lab, one, two)
            # one that ends with a daemon, which has heard of it and kept nothing
            assert _forget(lab, one) >= 1
            _send(lab, one, two)
            assert _forget(lab, one) >= 1
            witness._told(one.vpc_id)
            await daemons.kill(witness)
            # and ones that nobody hears of
            _send(lab, one, two, 5)
            assert _forget(lab, one) >= 5
            witness = await daemons.next()
            total += 8
            (line,) = [each for each in witness.record(job)["flows"] if each["port"] == 1000]
            rounds = round_number + 1
            assert (line["connections"], line["packets_sent"]) == (3 * rounds, 4 * rounds), (rounds, line)
        await witness.last(job)
        record = witness.record(job)
        assert sum(line["packets_sent"] for line in record["flows"]) == total
        assert sum(line["bytes_sent"] for line in record["flows"]) == 100 * total
        assert record["gaps"] == []
        await witness.stop()


@in_world
async def test_what_was_kept_is_not_counted_again_and_what_was_not_is_however_a_daemon_is_killed(
    lab: Lab,
) -> None:
    """Between the transaction and the clearing of what it covers, and in the midst of the latter."""
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        daemons = Daemons(lab)
        witness = await daemons.next()
        await witness.first(job)

        def half(endings: Endings) -> None:
            middle = (endings_module._START + endings._end) // 2
            endings._memory[endings_module._START : middle] = bytes(middle - endings_module._START)

        for count, settle in enumerate((lambda endings: None, half, Endings.settle), start=1):
            _send(lab, one, two, 3)
            assert _forget(lab, one) >= 3
            witness._told(one.vpc_id)
            with patch.object(Endings, "settle", settle):
                witness._keep()
            _send(lab, one, two, 3)
            assert _forget(lab, one) >= 3
            witness._told(one.vpc_id)
            await daemons.kill(witness)
            witness = await daemons.next()
            flows = witness.record(job)["flows"]
            assert sum(line["packets_sent"] for line in flows) == 6 * count, (count, flows)
        await witness.stop()


@in_world
async def test_what_finds_no_room_with_the_listener_is_told_later(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0), patch.object(endings_module, "_BUFFER", 10_000):
        one, two, job = await _pair(lab)
        daemons = Daemons(lab)
        witness = await daemons.next()
        await witness.first(job)
        await daemons.kill(witness)
        _send(lab, one, two, 500)
        assert _forget(lab, one) >= 500
        witness = await daemons.next()
        async with asyncio.timeout(20 * PATIENCE):
            while len(witness.record(job)["flows"]) < 500:
                await witness._read(one.vpc_id)
                await asyncio.sleep(0.02)
        record = witness.record(job)
        assert {line["packets_sent"] for line in record["flows"]} == {1}
        assert record["gaps"] == []
        await witness.stop()


@in_world
async def test_the_last_packets_are_told_also_when_the_interfaces_are_gone(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        daemons = Daemons(lab)
        witness = await daemons.next()
        await witness.first(job)
        _send(lab, one, two)
        await witness.last(job)
        _send(lab, one, two)
        with lab.engine.transaction() as tx:
            tx.delete(NetworkInterface, one.interface_id)
        await lab.settle()
        await daemons.kill(witness)
        witness = await daemons.next()
        await witness.gone(job)
        record = witness.record(job)
        (line,) = record["flows"]
        assert (line["connections"], line["packets_sent"], record["gaps"]) == (1, 2, [])
        await witness.stop()


@in_world
async def test_the_packets_of_who_had_an_address_before_are_not_the_next_ones(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        witness = _witness(lab)
        await witness.start()
        await witness.first(job)
        _send(lab, one, two)
        await witness.last(job)
        with lab.engine.transaction() as tx:
            tx.delete(NetworkInterface, one.interface_id)
        group = lab.engine.world.get(SecurityGroup, one.group_ids[0])
        assert group is not None
        heir = await lab.interface(one.subnet_id, group, addresses=[one.addresses[0].address])
        assert heir.addresses[0].address == one.addresses[0].address
        instance = replace(job.instances[0], interface_id=heir.interface_id)
        next_job = replace(job, name="next", job_id="2", instances=(instance,))
        await lab.put(next_job)
        await witness.first(next_job)
        await witness.gone(job)
        await lab.put(replace(job, state=JobState.COMPLETED))
        assert [line["packets_sent"] for line in witness.record(job)["flows"]] == [1]
        assert witness.record(next_job)["flows"] == []
        await witness.stop()


@in_world
async def test_refusals_without_a_daemon_are_told_and_it_is_said_when_rules_were_built_anew(lab: Lab) -> None:
    with patch.object(witness_module, "_EVERY", 3600.0):
        one, two, job = await _pair(lab)
        daemons = Daemons(lab)
        witness = await daemons.next()
        await witness.first(job)
        group = lab.engine.world.get(SecurityGroup, one.group_ids[0])
        assert group is not None
        await lab.put(replace(group, rules=()))

        def packets(witness: Witness) -> int:
            return sum(line["packets"] for line in witness.record(job)["refused"])

        _send(lab, one, two, 3)
        await witness._read(one.vpc_id)
        assert packets(witness) == 3
        await daemons.kill(witness)
        _send(lab, one, two, 3)
        witness = await daemons.next()
        assert (packets(witness), witness.record(job)["gaps"]) == (6, [])
        # clearing leaves the router's rules known to be those of the plan
        await witness.last(job)
        assert lab.reconciler._sealed[one.vpc_id] == lab.reconciler._handles(one.vpc_id).generation.read()
        table = lab.namespaces.call(one.vpc_id, refused_packets.table)
        lab.reconciler.steer(one.vpc_id, "add chain ip cloister strange")
        await lab.fabric.in_turn(lab.reconciler.adopt)
        await lab.fabric.in_turn(partial(lab.reconciler.apply, lab.fabric.plan))
        lab.reconciler._blind.add(one.vpc_id)
        await lab.fabric.in_turn(partial(lab.reconciler.apply, lab.fabric.plan, set()))
        assert lab.namespaces.call(one.vpc_id, refused_packets.table) != table
        _send(lab, one, two, 3)
        await witness._read(one.vpc_id)
        assert (packets(witness), witness.record(job)["gaps"]) == (9, [witness_module._ANEW])
        await witness.stop()


@in_world
async def test_a_router_is_listened_to_while_it_has_a_job_and_the_listener_keeps_no_namespace(
    lab: Lab,
) -> None:
    one, _, job = await _pair(lab)
    witness = _witness(lab)
    await witness.start()
    await witness.first(job)
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
    witness = _witness(lab)
    await witness.start()
    await witness.first(job)
    try:
        assert not lab.connects(one, "198.51.100.200", 443)
        await witness.last(job)
        (line,) = witness.record(job)["refused"]
        assert (line["to"], line["gate"]) == ("198.51.100.200", "gateway")
        assert "has no public address" in line["why"]
    finally:
        await witness.stop()
