"""What a job reached is counted once, however often it is read, and by whichever daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.jobs.worlds import documents, request

from cloister.engine import Engine
from cloister.iam.decide import Policies, Request, decide
from cloister.iam.model import Principal
from cloister.jobs.allocation import allocate
from cloister.jobs.lifecycle import JobState
from cloister.jobs.model import Instance, ProcessingJob
from cloister.kernel.conntrack import Connection
from cloister.kernel.netns import Namespaces, NoNamespace
from cloister.receipt_key import signing_key
from cloister.records import LIMIT
from cloister.services.api import Origin
from cloister.store import Store
from cloister.vpc import addresses, nat_gateways
from cloister.vpc.model import GroupRule, Route, RouteTable, RouteTableAssociation, SecurityGroup, Subnet
from cloister.why.receipt import refused
from cloister.witness import Witness
from cloister.world import Transaction


class Nowhere:
    """There are no namespaces."""

    def number(self, name: str) -> None:
        return None

    def call(self, name: str, function: object) -> None:
        raise NoNamespace(name)


async def steer(vpc_id: str, commands: str) -> None:
    raise AssertionError


class House:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "world.sqlite")
        self.engine = Engine(self.store)
        with self.engine.transaction() as tx:
            for document in documents():
                tx.put(document)
            self.job = allocate(tx, _job(), clock=0.0, region="us-east-1")
            tx.put(self.job)
        self.own = str(self.job.instances[0].address)
        self.port = addresses.port(str(self.job.instances[0].interface_id), 0)

    def witnessing(self, use: Callable[[Witness], None]) -> None:
        async def run() -> None:
            witness = Witness(self.folder / "witness.sqlite", self.engine, cast(Namespaces, Nowhere()), steer)
            await witness.start()
            await witness.first(self.job)
            use(witness)
            await witness.stop()

        asyncio.run(run())

    def connection(self, number: int, sent: int, received: int, **more: Any) -> Connection:
        values: dict[str, Any] = {
            "number": number,
            "protocol": 6,
            "source": self.own,
            "destination": "10.0.3.200",
            "port": 443,
            "sent": (1, sent),
            "received": (1, received),
        }
        return Connection(**values | more)


def _job() -> ProcessingJob:
    return ProcessingJob(
        name="job", job_id="1", arn="arn", request=request(), instances=(Instance(index=1),),
        credentials_path="/x", created=0.0, modified=0.0,
    )  # fmt: skip


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def test_a_connection_counts_once_however_often_it_is_read_also_by_the_next_daemon(house: House) -> None:
    def first(witness: Witness) -> None:
        for size in (10, 100, 100):
            witness._take("vpc-1", [house.connection(7, size, 2 * size)], [], 1)
        witness._take("vpc-1", [house.connection(7, 100, 200), house.connection(8, 1, 1)], [], 1)

    def second(witness: Witness) -> None:
        witness._take("vpc-1", [house.connection(7, 150, 200)], [], 1)
        (line,) = witness.record(house.job)["flows"]
        assert (line["connections"], line["bytes_sent"], line["bytes_received"]) == (2, 151, 201)
        assert (line["who"], line["way"], line["other"]) == ("algo-1", "to", "10.0.3.200")
        witness._take("vpc-1", [], [], 1)
        witness._take("vpc-1", [house.connection(7, 5, 5)], [], 1)  # the number is used again
        (line,) = witness.record(house.job)["flows"]
        assert (line["connections"], line["bytes_sent"]) == (3, 156)

    house.witnessing(first)
    house.witnessing(second)


def test_the_final_counts_of_a_connection_that_ended_are_told_once(house: House) -> None:
    def use(witness: Witness) -> None:
        def flow() -> tuple[int, int, int]:
            (line,) = witness.record(house.job)["flows"]
            return line["connections"], line["bytes_sent"], line["bytes_received"]

        # read, and ended afterwards with more
        witness._take("vpc-1", [house.connection(7, 10, 20)], [], 1)
        witness._ended("vpc-1", [house.connection(7, 100, 200)])
        assert flow() == (1, 100, 200)
        # begun and ended between two readings, twice under the same number
        witness._ended("vpc-1", [house.connection(7, 100, 200), house.connection(7, 150, 250)])
        assert flow() == (3, 350, 650)
        # read while the kernel told of its end, which comes after
        witness._take("vpc-1", [house.connection(8, 1, 1)], [], 1)
        witness._ended("vpc-1", [house.connection(8, 1, 1)])
        witness._miss("vpc-1", witness._take("vpc-1", [], [], 1))
        assert flow() == (4, 351, 651)
        # not the job's
        witness._ended("vpc-1", [house.connection(9, 5, 5, source="10.0.9.9")])
        assert flow() == (4, 351, 651)
        assert witness.record(house.job)["gaps"] == []

    house.witnessing(use)


def test_a_connection_that_one_reading_missed_is_not_counted_again(house: House) -> None:
    def use(witness: Witness) -> None:
        def read(*found: Connection) -> None:
            witness._miss("vpc-1", witness._take("vpc-1", list(found), [], 1))

        read(house.connection(7, 10, 10))
        read()
        read(house.connection(7, 30, 10))
        read()
        assert witness.record(house.job)["gaps"] == []
        read()  # it is gone, and its end was not told
        record = witness.record(house.job)
        (line,) = record["flows"]
        assert (line["connections"], line["bytes_sent"]) == (1, 30)
        assert len(record["gaps"]) == 1

    house.witnessing(use)


def test_a_refusal_is_told_with_the_rule_of_its_time(house: House) -> None:
    def use(witness: Witness) -> None:
        for packets in (1, 3):
            witness._take("vpc-1", [], [(house.port, "8.8.8.8", 17, 53, packets, 60 * packets)], 1)
        witness._take("vpc-1", [], [(house.port, "8.8.8.8", 17, 53, 1, 60)], 1)  # the set was made anew
        (line,) = witness.record(house.job)["refused"]
        assert (line["packets"], line["bytes"], line["protocol"], line["port"]) == (4, 240, "udp", 53)
        assert (line["gate"], line["by"]) == ("route", "rtb-1")

    house.witnessing(use)


def test_a_request_from_elsewhere_is_its_jobs_by_the_keys_that_signed_it(house: House) -> None:
    who = Principal(
        arn="arn:aws:sts::1:assumed-role/jobs/x", account="1", user_id="A:x", access_key_id="ASIA7"
    )
    asked = Request(principal=who, action="s3:GetObject", resource="arn:aws:s3:::b/k")
    outside = Origin(address="198.51.100.9", secure=True)

    def first(witness: Witness) -> None:
        witness.decided(outside, "s3:GetObject", "arn:aws:s3:::b/k", decide(asked, Policies()))
        assert witness.record(house.job)["requests"] == []
        witness.issued(house.job, "algo-1", "ASIA7")

    def next_daemon(witness: Witness) -> None:
        witness.decided(outside, "s3:GetObject", "arn:aws:s3:::b/k", decide(asked, Policies()))
        (line,) = witness.record(house.job)["requests"]
        assert (line["who"], line["outcome"], line["endpoint"]) == ("algo-1", "refused", None)

    house.witnessing(first)
    house.witnessing(next_daemon)


def test_a_killed_daemons_last_decision_and_the_name_that_was_asked_for_are_told_by_the_next(
    house: House,
) -> None:
    who = Principal(
        arn="arn:aws:sts::1:assumed-role/jobs/x", account="1", user_id="A:x", access_key_id="ASIA7"
    )
    asked = Request(principal=who, action="s3:GetObject", resource="arn:aws:s3:::b/k")
    inside = Origin(address=house.own, secure=True, vpc_id="vpc-1", endpoint_id="vpce-1")

    def killed(witness: Witness) -> None:
        witness.decided(inside, "s3:GetObject", "arn:aws:s3:::b/k", decide(asked, Policies()))
        witness.told("vpc-1", house.own, "db.corp", ())
        witness._changed.clear()  # it comes to nothing more

    def next_daemon(witness: Witness) -> None:
        record = witness.record(house.job)
        assert [(line["action"], line["outcome"]) for line in record["requests"]] == [
            ("s3:GetObject", "refused")
        ]
        assert [line["name"] for line in record["unknown_names"]] == ["db.corp"]

    house.witnessing(killed)
    house.witnessing(next_daemon)


def test_a_record_is_bounded_and_says_what_it_left_out(house: House) -> None:
    def use(witness: Witness) -> None:
        noted = [(house.port, "8.8.8.8", 17, port, 1, 60) for port in range(1, LIMIT + 6)]
        for _ in range(3):
            witness._take("vpc-1", [], noted, 1)
        record = witness.record(house.job)
        assert (len(record["refused"]), record["left_out"]) == (LIMIT, 5)

    house.witnessing(use)


def test_of_connections_beyond_the_bound_it_is_told_what_they_carried_together(house: House) -> None:
    def use(witness: Witness) -> None:
        for size in (10, 30):
            found = [
                house.connection(n, size, 1, destination=f"10.9.{n >> 8}.{n & 255}") for n in range(LIMIT + 7)
            ]
            witness._take("vpc-1", found, [], 1)
        record = witness.record(house.job)
        assert (len(record["flows"]), record["left_out"]) == (LIMIT + 1, 7)
        assert sum(line["bytes_sent"] for line in record["flows"]) == 30 * (LIMIT + 7)
        line = record["flows"][-1]
        assert (line["other"], line["connections"], line["bytes_sent"]) == ("others", 7, 210)

    house.witnessing(use)


def test_a_record_goes_with_its_job_and_outlives_its_end(house: House) -> None:
    def use(witness: Witness) -> None:
        witness._take("vpc-1", [house.connection(7, 10, 10)], [], 1)
        ended = replace(house.job, state=JobState.COMPLETED)
        with house.engine.transaction() as tx:
            tx.put(ended)
        assert not witness._records
        assert len(witness.record(ended)["flows"]) == 1
        assert witness.record(ended)["network"]["subnet"]["id"] == "subnet-1"
        with house.engine.transaction() as tx:
            tx.delete(ProcessingJob, "job")
        assert witness.record(ended)["flows"] == []

    house.witnessing(use)


def test_the_key_of_receipts_is_made_once_and_private(tmp_path: Path) -> None:
    first = signing_key(tmp_path).public_key().public_bytes_raw()
    assert signing_key(tmp_path).public_key().public_bytes_raw() == first
    assert (tmp_path / "receipt.key").stat().st_mode & 0o777 == 0o600


def test_what_was_witnessed_is_private_also_in_the_databases_log(house: House) -> None:
    def use(witness: Witness) -> None:
        found = {path.name: path.stat().st_mode & 0o777 for path in house.folder.glob("witness.sqlite*")}
        assert "witness.sqlite-wal" in found
        assert set(found.values()) == {0o600}

    house.witnessing(use)


def test_a_connection_that_ends_at_a_gateway_is_a_refusal_by_the_name_that_was_asked_for(
    house: House,
) -> None:
    """The router lets it out to the NAT gateway, whose own subnet leads nowhere."""
    with house.engine.transaction() as tx:
        tx.put(SecurityGroup(group_id="sg-d", vpc_id="vpc-1", name="default", description="", rules=()))
        gateway = nat_gateways.create(tx, _subnet(tx), public_ip="198.51.100.9", now=0)
        to_nat = Route(destination="203.0.113.0/24", target=gateway.nat_gateway_id)
        own = RouteTableAssociation(association_id="own", subnet_id=house.job.subnet_id, main=False)
        table = RouteTable(
            route_table_id="rtb-9", vpc_id="vpc-1", number=9, associations=(own,), routes=(to_nat,)
        )
        tx.put(table)
        group = tx.get(SecurityGroup, "sg-1")
        assert group is not None
        everywhere = GroupRule(rule_id="sgr-all", egress=True, protocol="-1", cidr="0.0.0.0/0")
        tx.put(replace(group, rules=(*group.rules, everywhere)))

    def use(witness: Witness) -> None:
        witness.told("vpc-1", house.own, "sts.us-east-1.amazonaws.com", ("203.0.113.108",))
        lost = replace(house.connection(1, 60, 0, destination="203.0.113.108"), received=(0, 0))
        witness._take("vpc-1", [lost], [], 1)
        record = witness.record(house.job)
        assert record["flows"] == []
        (line,) = record["refused"]
        assert (line["to"], line["name"]) == ("203.0.113.108", "sts.us-east-1.amazonaws.com")
        assert (line["gate"], line["packets"], line["bytes"]) == ("route", 1, 60)
        (told,) = refused(record)
        assert told["what"] == "algo-1 to sts.us-east-1.amazonaws.com (203.0.113.108) tcp port 443"

    house.witnessing(use)


def _subnet(tx: Transaction) -> Subnet:
    subnet = Subnet(subnet_id="subnet-9", vpc_id="vpc-1", cidr="10.0.9.0/24", zone="us-east-1a", zone_id="1")
    tx.put(subnet)
    return subnet


def test_a_service_without_an_endpoint_is_refused_by_its_name_with_the_endpoint_that_lacks(
    house: House,
) -> None:
    def use(witness: Witness) -> None:
        witness.told("vpc-1", house.own, "sts.us-east-1.amazonaws.com", ("203.0.113.108",))
        witness._take("vpc-1", [], [(house.port, "203.0.113.108", 6, 443, 1, 60)], 1)
        (line,) = witness.record(house.job)["refused"]
        assert "has no route to 203.0.113.108 (sts.us-east-1.amazonaws.com): " in line["why"]
        assert "vpc-1 has no interface endpoint for com.amazonaws.us-east-1.sts" in line["why"]
        assert line["fix"] == "aws ec2 modify-vpc-attribute --vpc-id vpc-1 --enable-dns-hostnames"

    house.witnessing(use)


def test_a_name_that_does_not_exist_is_told_once_and_not_again_with_the_search_domain(house: House) -> None:
    def use(witness: Witness) -> None:
        for name in ("db.corp", "db.corp.ec2.internal", "db.corp"):
            witness.told("vpc-1", house.own, name, ())
        (line,) = witness.record(house.job)["unknown_names"]
        assert (line["name"], line["questions"]) == ("db.corp", 2)
        assert line["why"].startswith("db.corp does not exist in vpc-1: ")
        assert refused(witness.record(house.job))[0]["what"] == "algo-1: the name db.corp"

    house.witnessing(use)
