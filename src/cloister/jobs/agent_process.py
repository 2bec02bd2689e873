"""Agent processes: start one, wait for it, end it. They outlive the daemon (see `jobs/agent.py`).

A task is a pair of files: NAME.json (the spec, 0600: it holds a session's keys) and NAME.result.
Starting a task again is always right: the second process waits for the first one's lock and finds its result.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from cloister.jobs.agent import Result, Spec, lock_path, result_path

#: the reason of a task that was ended from outside
ENDED = "the task was ended"


async def perform(spec: Spec, path: Path) -> Result:
    """The result of a task, begun now or before. `path` is where its spec is kept. Cancelling leaves the
    process alone; `end` ends it.

    A task begun by an earlier daemon may have failed because nobody stood at the door while that daemon was
    gone. Its failure says nothing of the VPC, so the task, which may be repeated, is done again."""
    if path.exists():
        await run(path)
        result = read_result(path)
        if result is not None and (result.ok or result.reason == ENDED):
            return result
        result_path(path).unlink(missing_ok=True)
        path.unlink()
    for _ in range(3):
        result = read_result(path)
        if result is not None:
            return result
        if not path.exists():
            write_private(path, spec.to_json())
        await run(path)
    return read_result(path) or Result(
        ok=False, reason="InternalServerError: the platform's agent ended without a result, three times"
    )


def read_result(path: Path) -> Result | None:
    try:
        return Result(**json.loads(result_path(path).read_text()))
    except FileNotFoundError:
        return None


def end(path: Path) -> None:
    """End a task: a process that works on it is killed, one that is about to begin does nothing."""
    if not path.exists():
        return
    if not result_path(path).exists():
        try:
            write_private(result_path(path), json.dumps(asdict(Result(ok=False, reason=ENDED))))
        except OSError:  # a full disk must not keep a job from ending; a task without its spec does nothing
            path.unlink(missing_ok=True)
    try:
        with open(lock_path(path)) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # held: so the pid in it is the holder's, alive
                text = lock.read().strip()
                if text:
                    os.kill(int(text), signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass


def write_private(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    temporary.rename(path)


#: processes that were left alone; polled now and then, so that they do not stay as zombies
_left: list[subprocess.Popen[bytes]] = []


async def run(path: Path, module: str = "cloister.jobs.agent") -> None:
    """Run a module of this package on a task to its end. Cancelling leaves the process alone."""
    _left[:] = [process for process in _left if process.poll() is None]
    with open(path.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", module, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    # Not asyncio's own subprocess: its transport kills the process when the loop ends.
    fd = os.pidfd_open(process.pid)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        if process.poll() is None:
            _left.append(process)
