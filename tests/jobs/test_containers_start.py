"""What the runtime says of a start is read, however many files are open; and a start that was cut off is
known by the process that waits for it."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from cloister.jobs import containers


def test_a_pipe_of_any_number_is_read_to_its_line_or_its_end() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this host lets nobody open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        for said in (b'{"data": 7}\n', b"broken off"):
            reading, writing = os.pipe()
            high = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, 1500)
            os.write(writing, said)
            os.close(writing)
            assert containers._read_line(high, 5) == said
            os.close(high)
            os.close(reading)
        reading, writing = os.pipe()
        assert containers._read_line(reading, 0.01) == b""  # in vain
        os.close(reading)
        os.close(writing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("command", "waits"),
    [
        ("runc init", True),
        (
            "/usr/bin/crun --root /state/run/runtime create --bundle /state/b --pid-file /state/p job-algo-1",
            True,
        ),
        ("python3 create", False),
        ("sleep 60", False),
        ("", False),
    ],
)
def test_a_process_that_still_waits_for_its_start_is_told_from_the_jobs_own(
    command: str, waits: bool
) -> None:
    words = [word.encode() for word in (*command.split(), "")]
    assert containers._waits(words, "job-algo-1") is waits
