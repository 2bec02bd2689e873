"""A store that an earlier daemon started is gone on with, at whatever moment that daemon was killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from cloister.s3 import backend
from cloister.s3.backend import SeaweedFS


def test_a_store_is_found_before_its_number_was_written_down_and_before_it_is_weed(tmp_path: Path) -> None:
    """Else a second one is started beside it, which finds the ports taken, again and again."""
    store = SeaweedFS(tmp_path)
    assert store._left_behind() is None
    script = "sleep 60; :"  # a shell with a child in the same folder, as while it mounts
    argv = ["sh", "-c", script, "weed", "server", backend._OURS]
    shell = subprocess.Popen(argv, cwd=tmp_path / "objects", start_new_session=True)
    try:
        assert store._left_behind() == shell.pid
        found = store._adopt()
        assert found is not None
        store._reap(found)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait(10)
    assert store._left_behind() is None


def test_the_shell_of_a_person_in_the_stores_folder_is_no_store(tmp_path: Path) -> None:
    """It would be adopted as one at the next start, and killed by `cloister down`."""
    store = SeaweedFS(tmp_path)
    shell = subprocess.Popen(["sh", "-c", "sleep 60; :"], cwd=tmp_path / "objects", start_new_session=True)
    try:
        assert store._left_behind() is None
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait(10)
