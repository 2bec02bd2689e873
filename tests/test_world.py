"""The World's laws: snapshots never change, indexes equal a scan, what is committed comes back."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engine import Engine
from cloister.store import Store
from cloister.vpc.model import NetworkInterface, PrivateAddress
from cloister.world import Change, World


def interface(number: int, subnet: str, groups: tuple[str, ...]) -> NetworkInterface:
    return NetworkInterface(
        interface_id=f"eni-{number}",
        vpc_id="vpc-1",
        subnet_id=subnet,
        mac="02:00:00:00:00:01",
        addresses=(PrivateAddress(address=f"10.0.0.{number}", primary=True),),
        group_ids=groups,
    )


group_sets = st.lists(st.sampled_from(["sg-a", "sg-b", "sg-c"]), max_size=3, unique=True).map(tuple)
steps = st.lists(
    st.one_of(
        st.builds(interface, st.integers(0, 5), st.sampled_from(["subnet-a", "subnet-b"]), group_sets),
        st.integers(0, 5).map(lambda n: f"eni-{n}"),
    ),
    max_size=12,
)


def play(world: World, script: list[NetworkInterface | str]) -> World:
    tx = world.begin()
    for step in script:
        if isinstance(step, str):
            tx.delete(NetworkInterface, step)
        else:
            tx.put(step)
    return tx.commit()


@given(steps, steps)
def test_an_index_always_equals_a_scan_and_old_snapshots_never_change(
    first: list[NetworkInterface | str], second: list[NetworkInterface | str]
) -> None:
    world = play(World(), first)
    frozen = list(world.all(NetworkInterface))
    later = play(world, second)
    for snapshot in (world, later):
        for group in ("sg-a", "sg-b", "sg-c"):
            scan = {e.interface_id for e in snapshot.all(NetworkInterface) if group in e.group_ids}
            assert {e.interface_id for e in snapshot.where(NetworkInterface, group_ids=group)} == scan
    assert list(world.all(NetworkInterface)) == frozen


@given(steps, steps)
def test_what_is_committed_is_what_the_next_start_loads(
    first: list[NetworkInterface | str], second: list[NetworkInterface | str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.sqlite"
        store = Store(path)
        engine = Engine(store)
        for script in (first, second):
            with engine.transaction() as tx:
                for step in script:
                    if isinstance(step, str):
                        tx.delete(NetworkInterface, step)
                    else:
                        tx.put(step)
        store.close()
        again = Store(path)
        assert {e.interface_id: e for e in again.load().all(NetworkInterface)} == {
            e.interface_id: e for e in engine.world.all(NetworkInterface)
        }
        again.close()


def test_a_transaction_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "world.sqlite")
    engine = Engine(store)

    def fail_after_a_put() -> None:
        with engine.transaction() as tx:
            tx.put(interface(1, "subnet-a", ()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_put()
    assert engine.world.count(NetworkInterface) == 0
    assert store.load().count(NetworkInterface) == 0
    store.close()


def test_followers_see_before_and_after_of_each_change(tmp_path: Path) -> None:
    store = Store(tmp_path / "world.sqlite")
    engine = Engine(store)
    seen: list[Change] = []
    engine.subscribe(lambda before, after, changes: seen.extend(changes))
    one = interface(1, "subnet-a", ())
    with engine.transaction() as tx:
        tx.put(one)
    with engine.transaction() as tx:
        tx.put(replace(one, description="x"))
    with engine.transaction() as tx:
        tx.delete(NetworkInterface, "eni-1")
    assert [(c.before is None, c.after is None) for c in seen] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    store.close()


def test_an_index_that_is_not_declared_is_a_programming_error() -> None:
    with pytest.raises(LookupError, match="no index on mac"):
        list(World().where(NetworkInterface, mac="x"))


def test_the_log_has_its_size_from_the_start_and_a_copy_of_a_killed_process_loads(tmp_path: Path) -> None:
    folder, copy = tmp_path / "one", tmp_path / "copy"
    folder.mkdir()
    store = Store(folder / "world.sqlite")
    log = folder / "world.sqlite-wal"
    size = log.stat().st_size
    docs = [interface(number, "subnet-a", ()) for number in range(200)]
    for doc in docs:
        store.save([Change(kind="network-interface", key=doc.interface_id, before=None, after=doc)])
    assert log.stat().st_size == size
    shutil.copytree(folder, copy)  # as a kill would leave it: never closed
    for where in (copy, copy):
        again = Store(where / "world.sqlite")
        assert list(again.load().all(NetworkInterface)) == docs
        again.close()
    store.close()


def test_a_transaction_that_sqlite_ended_by_itself_tells_why(tmp_path: Path) -> None:
    """As it does when the disk is full; here by a trigger."""
    store = Store(tmp_path / "world.sqlite")
    store._db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON document WHEN new.key = 'eni-2'"
        " BEGIN SELECT RAISE(ROLLBACK, 'no space'); END"
    )

    def created(number: int) -> Change:
        doc = interface(number, "subnet-a", ())
        return Change(kind="network-interface", key=doc.interface_id, before=None, after=doc)

    with pytest.raises(sqlite3.Error, match="no space"):
        store.save([created(1), created(2)])
    store.save([created(3)])
    assert [one.interface_id for one in store.load().all(NetworkInterface)] == ["eni-3"]
    store.close()
