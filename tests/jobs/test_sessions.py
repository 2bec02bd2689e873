"""Sessions of a job's role: a container has one at a time, an agent one for each transfer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.jobs.worlds import documents, request, role

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.jobs.model import Instance, ProcessingJob
from cloister.jobs.sessions import SECONDS, Sessions
from cloister.store import Store

ONE, TWO = Instance(index=1), Instance(index=2)
JOB = ProcessingJob(
    name="job", job_id="1", arn="arn", request=request(), instances=(ONE, TWO),
    credentials_path="/x", created=0.0, modified=0.0,
)  # fmt: skip


class House:
    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.store = Store(folder / "world.sqlite")
        self.engine = Engine(self.store, clock=lambda: self.now)
        self.put(role(), *documents())
        self.told: list[tuple[str, str]] = []
        self.sessions = Sessions(
            self.engine, Credentials(folder), lambda job, who, key: self.told.append((who, key))
        )

    def put(self, *docs: object) -> None:
        with self.engine.transaction() as tx:
            for doc in docs:
                tx.put(doc)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def test_however_often_a_container_asks_it_gets_one_session_until_half_its_time_is_over(house: House) -> None:
    first = house.sessions.of_container(JOB, ONE)
    assert first is not None
    assert [house.sessions.of_container(JOB, ONE) for _ in range(100)] == 100 * [first]
    assert house.sessions.of_container(JOB, TWO) != first
    house.now += SECONDS / 2 + 1
    later = house.sessions.of_container(JOB, ONE)
    assert later is not None
    assert later.expiration > first.expiration
    assert [who for who, _ in house.told] == ["algo-1", "algo-2", "algo-1"]
    assert house.told[-1][1] == later.access_key_id


def test_an_agent_gets_a_session_for_each_transfer(house: House) -> None:
    keys = [house.sessions.of_agent(JOB, ONE) for _ in range(2)]
    assert keys[0] != keys[1]
    assert [who for who, _ in house.told] == 2 * ["algo-1's agent"]


def test_a_role_that_may_not_be_assumed_any_more_gives_no_keys_and_another_of_its_name_new_ones(
    house: House,
) -> None:
    first = house.sessions.of_container(JOB, ONE)
    house.put(role(service="ec2.amazonaws.com"))
    assert house.sessions.of_container(JOB, ONE) is None
    assert house.sessions.of_agent(JOB, ONE) is None
    house.put(replace(role(), role_id="AROAOTHEROTHEROTHERX"))
    assert house.sessions.of_container(JOB, ONE) not in (None, first)


def test_a_job_that_is_released_is_forgotten(house: House) -> None:
    first = house.sessions.of_container(JOB, ONE)
    house.sessions.forget(JOB)
    assert house.sessions.of_container(JOB, ONE) != first
