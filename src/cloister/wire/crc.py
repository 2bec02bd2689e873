"""CRC-32C and CRC-64/NVME, of which Python has none of its own: byte by byte, for documents. Pure.

Some 10 MB/s: those of objects are better computed elsewhere (`s3/checksums.py`)."""

from __future__ import annotations


def _table(polynomial: int) -> list[int]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        found.append(value)
    return found


class _Reflected:
    """A CRC of `size` bytes that begins and ends with all bits set; its polynomial is written backwards."""

    size: int
    table: list[int]

    def __init__(self) -> None:
        self._all = (1 << 8 * self.size) - 1
        self._value = self._all

    def update(self, data: bytes | memoryview) -> None:
        value, table = self._value, self.table
        for byte in data:
            value = table[(value ^ byte) & 0xFF] ^ value >> 8
        self._value = value

    def digest(self) -> bytes:
        return (self._value ^ self._all).to_bytes(self.size, "big")


class Crc32c(_Reflected):
    size, table = 4, _table(0x82F63B78)


class Crc64Nvme(_Reflected):
    size, table = 8, _table(0x9A6C9329AC4BC9B5)
