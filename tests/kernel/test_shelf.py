"""What is put on the shelf is there for the next process, whenever the one before was killed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from cloister.kernel.shelf import Shelf

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for end in pair:
        end.close()


def shelf_of(ends: Ends) -> Shelf:
    one, other = (os.dup(end.fileno()) for end in ends)
    return Shelf((one, other))


def file_with(text: str) -> int:
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    return fd


def texts(shelf: Shelf) -> dict[str, list[str]]:
    found = shelf.look()
    said = {name: [os.pread(fd, 99, 0).decode() for fd in files] for name, files in found.items()}
    assert not any(os.get_inheritable(fd) for files in found.values() for fd in files)
    for fd in (fd for files in found.values() for fd in files):
        os.close(fd)
    return said


def test_files_are_found_by_name_by_the_next_process_also_when_this_one_is_killed(ends: Ends) -> None:
    shelf = shelf_of(ends)
    assert shelf.look() == {}
    shelf.close()
    child = os.fork()
    if child == 0:
        shelf_of(ends).keep({"a": [file_with("1"), file_with("2")], "b": [file_with("3")]})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    shelf = shelf_of(ends)
    for _ in range(2):  # looking takes nothing away
        assert texts(shelf) == {"a": ["1", "2"], "b": ["3"]}
    shelf.keep({"c": [file_with("4")]})
    assert texts(shelf) == {"c": ["4"]}
    shelf.close()
    shelf = shelf_of(ends)
    assert texts(shelf) == {"c": ["4"]}
    shelf.close()


def test_of_two_the_newer_counts_when_a_process_was_killed_between_putting_and_taking_away(
    ends: Ends,
) -> None:
    shelf = shelf_of(ends)
    shelf.keep({"a": [file_with("old")]})
    shelf._waiting = 0  # it does not come to take the old one away
    shelf.keep({"a": [file_with("new")]})
    shelf.close()
    shelf = shelf_of(ends)
    assert texts(shelf) == {"a": ["new"]}
    shelf.keep({})
    assert shelf.look() == {}
    shelf.close()


def test_what_a_message_does_not_take_is_left_out(ends: Ends) -> None:
    shelf = shelf_of(ends)
    fd = file_with("x")
    shelf.keep({str(number): [fd, fd] for number in range(200)})
    assert len(texts(shelf)) == 126
    shelf.close()


def test_what_is_no_longer_kept_is_closed(ends: Ends) -> None:
    shelf = shelf_of(ends)
    reader, writer = os.pipe()
    shelf.keep({"pipe": [writer]})
    os.close(writer)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    shelf.keep({})
    assert os.read(reader, 1) == b""
    shelf.close()
    os.close(reader)
