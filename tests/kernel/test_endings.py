"""A reader of connections that end is followed by another one at any moment, and each is told once."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from cloister.kernel import endings
from cloister.kernel.endings import Endings
from cloister.kernel.netlink import attribute, pack

DELETED = 1 << 8 | 2


def message(number: int) -> bytes:
    """The kernel's word that this connection ended."""
    ends = attribute(1, socket.inet_aton("10.0.0.4")) + attribute(2, socket.inet_aton("10.0.0.5"))
    protocol = attribute(1, b"\x11") + attribute(2, b"\0\1") + attribute(3, struct.pack("!H", number))
    way = attribute(1, attribute(1, ends) + attribute(2, protocol))
    return pack(DELETED, 0, 0, struct.pack("=BBH", socket.AF_INET, 0, 0) + way + attribute(12, bytes(4)))


class Kernel:
    """In place of the kernel's, a socket whose other end the test holds."""

    def __init__(self) -> None:
        self.end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.setblocking(False)
        memory = os.memfd_create("test")
        os.ftruncate(memory, endings._MEMORY)
        os.pwrite(memory, (7).to_bytes(8, "big"), 0)
        self.files = (other.detach(), memory)
        self._readers: list[Endings] = []

    def tell(self, *numbers: int) -> None:
        for number in numbers:
            self.end.send(message(number))

    def reader(self) -> Endings:
        self._readers.append(Endings([os.dup(fd) for fd in self.files]))
        return self._readers[-1]

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self.end.close()
        for fd in self.files:
            os.close(fd)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def ports(reader: Endings) -> list[int]:
    return [each.port for each in reader.tell()]


def test_what_one_only_read_the_next_one_tells(kernel: Kernel) -> None:
    first = kernel.reader()
    kernel.tell(1, 2)
    assert first.read() == (True, False)
    assert ports(first) == [1, 2]
    kept = first.position
    kernel.tell(3)
    first.read()
    assert ports(first) == [3]
    kernel.tell(4)
    first.read()
    kernel.tell(5)
    second = kernel.reader()
    second.go_on(kept)
    assert ports(second) == [3, 4]
    second.read()
    assert ports(second) == [5]
    assert second.read() == (False, False)


def test_a_position_of_before_it_was_settled_means_nothing_after(kernel: Kernel) -> None:
    first = kernel.reader()
    kernel.tell(1, 2)
    first.read()
    first.tell()
    kept = first.position
    first.settle()
    kernel.tell(3)
    first.read()
    second = kernel.reader()
    second.go_on(kept)
    assert ports(second) == [3]


def test_nothing_is_settled_that_was_not_told(kernel: Kernel) -> None:
    reader = kernel.reader()
    kernel.tell(1)
    reader.read()
    reader.settle()
    assert ports(reader) == [1]


def test_full_memory_is_not_read_into_and_room_is_made_by_settling(kernel: Kernel) -> None:
    reader = kernel.reader()
    reader._end = reader._told = endings._MEMORY - 100
    kernel.tell(1)
    assert reader.full
    assert reader.read() == (False, False)
    reader.settle()
    assert not reader.full
    reader.read()
    assert ports(reader) == [1]
