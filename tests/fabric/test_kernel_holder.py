from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloister.kernel import holder

pytestmark = pytest.mark.fabric

SLEEPER = ["/bin/sh", "-c", "echo started $$ >> starts; exec sleep 1000"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    holder.stop(tmp_path, 5)


def wait_until(happened: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds * PATIENCE
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def starts(state: Path) -> list[str]:
    return (state / "starts").read_text().split("\n")[:-1] if (state / "starts").exists() else []


def test_a_daemon_that_is_killed_starts_again_in_the_same_world(state: Path) -> None:
    holder.ensure(state, SLEEPER)
    for count in range(1, 4):
        wait_until(lambda count=count: len(starts(state)) == count)
        pid = starts(state)[-1].split()[1]
        assert holder.enter(state, ["kill", "-9", pid]) == 0
    wait_until(lambda: len(starts(state)) == 4)


def test_how_often_the_daemon_ended_is_told_and_forgotten_at_the_next_start(state: Path) -> None:
    holder.ensure(state, ["/bin/sh", "-c", "exit 3"])
    wait_until(lambda: holder.ends(state, 0) >= 3)
    holder.stop(state, 5)
    since = (state / "holder.log").stat().st_size
    holder.ensure(state, SLEEPER)
    wait_until(lambda: len(starts(state)) == 1)
    assert holder.ends(state, since) == 0


def test_one_state_has_one_holder_however_many_start_it(state: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: holder.ensure(state, SLEEPER), range(4)))
    assert len({info.pid for info in found}) == 1
    assert [info.fresh for info in found].count(True) == 1


def test_stopping_ends_every_process_of_the_world(state: Path) -> None:
    info = holder.ensure(state, ["/bin/sh", "-c", "(trap '' TERM; setsid sleep 1000) & exec sleep 1000"])
    assert holder.stop(state, 10)
    assert holder.start_time(info.pid) is None
    assert holder.info(state) is None
    assert not holder.stop(state)


def test_a_file_of_a_dead_holder_is_not_believed(state: Path) -> None:
    first = holder.ensure(state, SLEEPER)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: holder.info(state) is None)
    second = holder.ensure(state, SLEEPER)
    assert second.fresh
    assert second.pid != first.pid


def test_a_daemon_that_gives_up_ends_its_holder(state: Path) -> None:
    holder.ensure(
        state, [sys.executable, "-c", f"import time; time.sleep(0.3); raise SystemExit({holder.GIVE_UP})"]
    )
    wait_until(lambda: holder.info(state) is None)


def test_what_is_mounted_inside_is_not_seen_outside_and_files_belong_to_the_caller(state: Path) -> None:
    holder.ensure(state, SLEEPER)
    pins = holder.netns_dir(state)
    assert holder.enter(state, ["touch", str(pins / "inside"), str(state / "file")]) == 0
    assert holder.enter(state, ["test", "-e", str(pins / "inside")]) == 0
    assert not (pins / "inside").exists()
    assert (state / "file").stat().st_uid == os.getuid()
    assert holder.enter(state, ["sh", "-c", "exit 7"]) == 7
