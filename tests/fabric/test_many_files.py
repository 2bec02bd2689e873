"""A daemon with more than 1,024 open files: select(2) knows no descriptor of theirs."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys

import pytest

from cloister.jobs.containers import _read_line

pytestmark = pytest.mark.fabric

#: makes a context early, opens files, then makes more contexts than one and uses them all
SCRIPT = """
import os
from cloister.kernel import syscalls
from cloister.kernel.nft import Nft
syscalls.unshare(syscalls.CLONE_NEWNET)
first = Nft()
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1200)]
assert files[-1] > 1024
others = [Nft() for _ in range(100)]
for each in (first, *others):
    each.run("add table ip many; delete table ip many")
for each in others:
    each.close()
again = [Nft() for _ in range(100)]
for each in again:
    each.run("add table ip many; delete table ip many")
print("whole")
"""


def test_libnftables_gets_descriptors_that_it_can_wait_for() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2000:
        pytest.skip("this host lets nobody open so many files")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (2000, most)),
    )
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_a_line_is_read_from_a_pipe_with_any_number() -> None:
    reader, writer = os.pipe()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2000:
        pytest.skip("this host lets nobody open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), most))
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1500)
    try:
        os.write(writer, b"4711\nrest")
        assert _read_line(high, 5) == b"4711\nrest"
        assert _read_line(high, 0.01) == b""
    finally:
        for each in (reader, writer, high):
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
