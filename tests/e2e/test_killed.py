"""Any acknowledged call survives `kill -9`, what was not acknowledged is not half there, and the kernel is what
a fresh build of the same resources would be."""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import FUZZ
from tests.e2e.conftest import Cloister, daemon_pid, free_port, traces_of, wait_until
from tests.e2e.walk import Walk

from cloister.cli.lifecycle import environment
from cloister.cli.paths import read_running
from cloister.kernel import holder

pytestmark = pytest.mark.e2e

KILLS = 200 if FUZZ else 6
DUMP = """
import json, sys
from pathlib import Path
from cloister.kernel.dump import dump_all
from cloister.kernel.netns import Namespaces
json.dump(dump_all(Namespaces(Path(sys.argv[1]))), sys.stdout, sort_keys=True)
"""
IN_MODIFY = 2


@pytest.fixture
def own() -> Iterator[Cloister]:
    folder = Path(tempfile.mkdtemp(prefix="cloister-killed-", dir="/var/tmp"))
    found = Cloister(folder, free_port())
    try:
        yield found
    finally:
        found.command("down", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _kernel(state: Path) -> dict[str, Any]:
    enter = [sys.executable, "-m", "cloister.kernel.holder", "--enter", str(state), "--"]
    command = [*enter, sys.executable, "-c", DUMP, str(holder.netns_dir(state))]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found


def _settled(state: Path) -> dict[str, Any]:
    """The kernel's state when it does not change any more."""
    found = _kernel(state)
    for _ in range(60):
        time.sleep(0.5)
        before, found = found, _kernel(state)
        if found == before:
            return found
    raise AssertionError("the kernel's state never comes to rest")


class Killer:
    """Kills the daemon once, at a moment between the calls, in them, or between what they write."""

    def __init__(self, state: Path, dice: random.Random) -> None:
        self.state, self.victim = state, daemon_pid(state)
        self.struck = threading.Event()
        assert self.victim
        self._libc = ctypes.CDLL(None, use_errno=True)
        file = dice.choice([None, "world.sqlite-wal", "world.sqlite-wal", "logs.sqlite-wal"])
        self.how = f"{file or 'any'} moment"
        work = (self._at_a_write, file, dice.randrange(1, 60)) if file else (self._any, dice.uniform(0, 1.5))
        self._again = dice.uniform(0, 2) if dice.random() < 0.3 else None
        self._thread = threading.Thread(target=work[0], args=work[1:], daemon=True)
        self._thread.start()

    def _any(self, seconds: float) -> None:
        time.sleep(seconds)
        self._kill()

    def _at_a_write(self, file: str, count: int) -> None:
        """While it writes for the `count`th time: what follows is the sync, the answer and the kernel."""
        watch = self._libc.inotify_init()
        self._libc.inotify_add_watch(watch, os.fsencode(self.state / file), IN_MODIFY)
        until = time.monotonic() + 3
        while count > 0 and time.monotonic() < until:
            if select.select([watch], [], [], 0.1)[0]:
                count -= len(os.read(watch, 4096)) // 16
        self._kill()
        os.close(watch)

    def _kill(self) -> None:
        os.kill(self.victim, signal.SIGKILL)
        self.struck.set()

    def join(self) -> bool:
        """Wait until it has struck and the daemon answers again; whether it has been killed."""
        self._thread.join()
        self._up_again()
        if self._again is not None:  # a second time, while it starts or just after
            pause, self._again = self._again, None
            time.sleep(pause)
            self.victim = daemon_pid(self.state)
            os.kill(self.victim, signal.SIGKILL)
            self._up_again()
        return True

    def _up_again(self) -> None:
        old = self.victim
        wait_until("the holder starts the daemon again", lambda: daemon_pid(self.state) not in (0, old))
        wait_until("the daemon answers", lambda: read_running(self.state) is not None)


@pytest.mark.timeout(300)
def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_else_is_half_there(own: Cloister) -> None:
    own.up()
    seed = int(os.environ.get("CLOISTER_SEED") or random.randrange(1 << 30))
    dice = random.Random(seed)
    print("seed", seed)
    walk = Walk(environment(own.state, own.running()), dice)
    steps = walk.steps()
    for _ in range(3):
        walk.take(next(steps), killed=lambda: False)
    for round_number in range(KILLS):
        killer = Killer(own.state, dice)
        walk.done.append(f"-- round {round_number}, {killer.how}")
        while not killer.struck.is_set():
            walk.take(next(steps), killed=killer.join)
        killer.join()
        walk.check()
    before = _settled(own.state)
    own.down()
    assert traces_of(own.state) == []
    own.up()
    walk.check()
    assert _settled(own.state) == before, seed
    text = (own.state / "daemon.log").read_text(errors="replace")
    assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:3000]
