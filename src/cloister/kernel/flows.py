"""Reads sets whose elements count (`Set.dynamic`): netlink's own form, because libnftables takes 30 times as
long, and as much memory, for 100,000 elements.

An element is (its key's bytes, packets, bytes), without a counter (key, 0, 0). A key's parts are in the
order of the set's type, each filled up to a multiple of four bytes; addresses and ports are in network order.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from cloister.kernel.netlink import Netlink, NetlinkError, attribute, attributes
from cloister.kernel.plan import TABLE

#: linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_…
_GET_TABLE, _GET_RULES, _GET_ELEMENTS = 10 << 8 | 1, 10 << 8 | 7, 10 << 8 | 13
_HEAD = struct.pack("=BBH", socket.AF_INET, 0, 0)
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT_KEY, _ELEMENT_EXPRESSION, _DATA_VALUE = 1, 7, 1
_EXPRESSION_DATA, _BYTES, _PACKETS = 2, 1, 2
_NETFILTER = 12  # the netlink protocol
_TABLE_HANDLE = 4
_RULE_EXPRESSIONS, _LIST_ELEMENT = 4, 1

Count = tuple[bytes, int, int]


class Counts:
    """Reads in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETFILTER)

    def close(self) -> None:
        self._netlink.close()

    def table(self) -> int | None:
        """The handle of the namespace's table: another when it was built anew, and all counts with it."""
        name = attribute(1, TABLE.encode() + b"\0")
        try:
            answer = self._netlink.ask(_GET_TABLE, _HEAD + name)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return int.from_bytes(attributes(answer, len(_HEAD))[_TABLE_HANDLE], "big")

    def leads_to(self, chain: str, candidates: Iterable[str]) -> str | None:
        """Which of these chains the rules of `chain` name."""
        body = attribute(1, TABLE.encode() + b"\0") + attribute(2, chain.encode() + b"\0")
        rules = b"".join(self._netlink.dump(_GET_RULES, _HEAD + body))
        return next((name for name in candidates if name.encode() + b"\0" in rules), None)

    def packets(self, chain: str) -> int | None:
        """How many packets the counter in the first rule of a chain has seen."""
        body = attribute(1, TABLE.encode() + b"\0") + attribute(2, chain.encode() + b"\0")
        for rule in self._netlink.dump(_GET_RULES, _HEAD + body):
            expressions = attributes(rule, len(_HEAD)).get(_RULE_EXPRESSIONS, b"")
            first = attributes(attributes(expressions, 0).get(_LIST_ELEMENT, b""), 0)
            counter = attributes(first.get(_EXPRESSION_DATA, b""), 0)
            return int.from_bytes(counter[_PACKETS], "big") if _PACKETS in counter else None
        return None

    def read(self, name: str) -> list[Count]:
        """A set's elements; none when there is no such set. Read it while no rule leads to it."""
        body = attribute(_LIST_TABLE, TABLE.encode() + b"\0") + attribute(_LIST_SET, name.encode() + b"\0")
        try:
            messages = self._netlink.dump(_GET_ELEMENTS, _HEAD + body)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        found: list[Count] = []
        for message in messages:
            if elements := attributes(message, len(_HEAD)).get(_LIST_ELEMENTS):
                found += parse(elements)
        return found


def parse(elements: bytes) -> list[Count]:
    """All elements of a set are alike: where things are in the first one, they are in the others."""
    if not elements:
        return []
    length = struct.unpack_from("=H", elements)[0]
    size = (length + 3) & ~3
    first = _places(elements[:length])
    if first is not None and len(elements) % size == 0:
        key_at, key_size, counts_at = first
        key_end = key_at + key_size
        if counts_at is None:
            bare = struct.Struct(f"{key_at}s{key_size}s{size - key_end}s")
            before, after = elements[:key_at], elements[key_end:size]
            keys = list(bare.iter_unpack(elements))
            if all(one[0] == before and one[2] == after for one in keys):
                return [(key, 0, 0) for _, key, _ in keys]
            return _slowly(elements)
        # The bytes (8), a header (4), the packets (8).
        layout = struct.Struct(f">{key_at}s{key_size}s{counts_at - key_end}sQ4xQ{size - counts_at - 20}x")
        before, between = elements[:key_at], elements[key_end:counts_at]
        found = list(layout.iter_unpack(elements))
        if all(one[0] == before and one[2] == between for one in found):
            return [(key, packets, total) for _, key, _, total, packets in found]
    return _slowly(elements)


def _places(element: bytes) -> tuple[int, int, int | None] | None:
    """Where the key is in an element, how long it is, and where its counter's bytes are, if it has one."""
    found = _slowly(element)
    if not found:
        return None
    key, packets, size = found[0]
    key_at = element.find(struct.pack("=HH", len(key) + 4, _DATA_VALUE) + key)
    if key_at < 0:
        return None
    if _ELEMENT_EXPRESSION not in attributes(element, 4):
        return key_at + 4, len(key), None
    head = struct.Struct("=HH")
    counter = head.pack(12, _BYTES) + size.to_bytes(8, "big") + head.pack(12, _PACKETS)
    at = element.find(counter + packets.to_bytes(8, "big"), key_at)
    return (key_at + 4, len(key), at + 4) if at >= 0 else None


def _slowly(elements: bytes) -> list[Count]:
    found: list[Count] = []
    offset = 0
    while offset + 4 <= len(elements):
        length = struct.unpack_from("=H", elements, offset)[0]
        element = attributes(elements[offset + 4 : offset + length], 0)
        key = attributes(element.get(_ELEMENT_KEY, b""), 0).get(_DATA_VALUE)
        expression = attributes(element.get(_ELEMENT_EXPRESSION, b""), 0)
        counter = attributes(expression.get(_EXPRESSION_DATA, b""), 0)
        if key is not None:
            packets, size = counter.get(_PACKETS, b""), counter.get(_BYTES, b"")
            found.append((key, int.from_bytes(packets, "big"), int.from_bytes(size, "big")))
        offset += (length + 3) & ~3
    return found
