from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.kernel.netns import MAX_THREADS, Namespaces, NoNamespace

pytestmark = pytest.mark.fabric


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Namespaces]:
    with Namespaces(tmp_path) as found:
        yield found
        for name in found.list():
            found.delete(name)


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_work_runs_inside_and_the_caller_stays_where_it_was(namespaces: Namespaces) -> None:
    before = here()
    namespaces.create("a")
    namespaces.create("b")
    seen = {namespaces.call("a", here), namespaces.call("b", here)}
    assert len(seen | {before}) == 3
    assert here() == before
    assert namespaces.call("a", lambda: (namespaces.call("b", here), here())) == (
        namespaces.call("b", here),
        namespaces.call("a", here),
    )


def test_a_new_namespace_without_a_name_leaves_nothing_however_its_work_ends(namespaces: Namespaces) -> None:
    def breaks_off() -> None:
        raise KeyboardInterrupt

    assert namespaces.anew(here) not in (here(), namespaces.anew(here))
    with pytest.raises(KeyboardInterrupt):
        namespaces.anew(breaks_off)
    assert namespaces.list() == []


def test_a_deleted_namespace_ends_although_work_was_done_in_it(namespaces: Namespaces) -> None:
    namespaces.create("a")
    with namespaces.opened("a") as fd:
        inode = os.fstat(fd).st_ino
    namespaces.call("a", here)
    namespaces.delete("a")
    namespaces.delete("a")  # nothing there: no error
    threads = [os.stat(f"/proc/self/task/{task}/ns/net").st_ino for task in os.listdir("/proc/self/task")]
    assert inode not in threads
    with pytest.raises(NoNamespace, match="no network namespace a"):
        namespaces.call("a", here)


def test_many_callers_share_a_bounded_number_of_threads(namespaces: Namespaces) -> None:
    namespaces.create("a")
    results: list[str] = []
    callers = [
        threading.Thread(target=lambda: results.append(namespaces.call("a", here))) for _ in range(100)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert len(results) == 100
    assert len(set(results)) == 1
    assert sum(thread.name.startswith("netns-") for thread in threading.enumerate()) <= MAX_THREADS


def test_errors_reach_the_caller(namespaces: Namespaces) -> None:
    namespaces.create("a")
    with pytest.raises(ZeroDivisionError):
        namespaces.call("a", lambda: 1 // 0)
    with pytest.raises(FileExistsError, match="exists"):
        namespaces.create("a")
    with pytest.raises(ValueError, match="cannot be the name"):
        namespaces.create("../a")


def test_a_socket_made_inside_works_outside(namespaces: Namespaces) -> None:
    namespaces.create("a")
    made = namespaces.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    # Loopback is down in a new namespace: nothing of the host is reachable from it.
    with made, pytest.raises(OSError, match="unreachable"):
        made.connect(("127.0.0.1", 9))
