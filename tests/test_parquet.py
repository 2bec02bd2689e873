"""Parquet files, read by an independent reader: pyarrow where it is installed, else the one below, which
knows Thrift's compact protocol and the encodings from their specifications, and nothing of the writer."""

from __future__ import annotations

import gzip
import io
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.parquet import BYTE_ARRAY, INT32, INT64, Column, write

COLUMNS = (Column(name="text"), Column(name="small", type=INT32), Column(name="large", type=INT64))
ROWS = st.lists(
    st.tuples(
        st.none() | st.text(st.characters(codec="utf-8")),
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.integers(-(2**63), 2**63 - 1),
    )
)


class Thrift:
    """Structs as {field id: value}, lists as lists."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def value(self, kind: int) -> Any:
        if kind in (5, 6):
            raw = self.varint()
            return (raw >> 1) ^ -(raw & 1)
        if kind == 8:
            size = self.varint()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind == 9:
            head = self.data[self.at]
            self.at += 1
            size = head >> 4 if head >> 4 < 15 else self.varint()
            return [self.value(head & 15) for _ in range(size)]
        assert kind == 12, kind
        return self.struct()

    def struct(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        last = 0
        while head := self.data[self.at]:
            self.at += 1
            last += head >> 4
            found[last] = self.value(head & 15)
        self.at += 1
        return found


def read(data: bytes) -> tuple[list[str], list[tuple[Any, ...]]]:
    assert data[:4] == data[-4:] == b"PAR1"
    (size,) = struct.unpack("<I", data[-8:-4])
    footer = Thrift(data[-8 - size : -8]).struct()
    root, *leaves = footer[2]
    assert root[5] == len(leaves)
    assert all(leaf[3] == 1 for leaf in leaves)  # OPTIONAL
    (group,) = footer[4]
    columns = []
    for leaf, chunk in zip(leaves, group[1], strict=True):
        meta = chunk[3]
        assert (meta[1], meta[3], meta[4], meta[5]) == (leaf[1], [leaf[4]], 2, footer[3])
        reader = Thrift(data, meta[9])
        header = reader.struct()
        assert reader.at + header[3] == meta[9] + meta[7]
        page = gzip.decompress(data[reader.at : reader.at + header[3]])
        assert len(page) == header[2]
        columns.append(_values(page, header[5][1], leaf[1]))
    return [leaf[4].decode() for leaf in leaves], list(zip(*columns, strict=True))


def _values(page: bytes, count: int, kind: int) -> list[Any]:
    (size,) = struct.unpack_from("<I", page)
    levels = Thrift(page[4 : 4 + size])
    present: list[int] = []
    while levels.at < size:
        run = levels.varint()
        assert run & 1 == 0  # RLE, not bit-packed
        present += [levels.data[levels.at]] * (run >> 1)
        levels.at += 1
    assert len(present) == count
    plain = io.BytesIO(page[4 + size :])
    found: list[Any] = []
    for there in present:
        if not there:
            found.append(None)
        elif kind == BYTE_ARRAY:
            found.append(plain.read(struct.unpack("<I", plain.read(4))[0]).decode())
        else:
            found.append(
                struct.unpack("<i" if kind == INT32 else "<q", plain.read(4 if kind == INT32 else 8))[0]
            )
    assert plain.read() == b""
    return found


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read(rows: list[tuple[Any, ...]]) -> None:
    assert read(write(COLUMNS, rows, "test")) == (["text", "small", "large"], rows)


def test_a_table_of_many_columns_is_read() -> None:
    columns = [Column(name=f"column_{i}") for i in range(40)]
    rows = [tuple(f"{i}-{row}" for i in range(40)) for row in range(3)]
    assert read(write(columns, rows, "test"))[1] == rows


def test_pyarrow_reads_it_as_well() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [(f"é{i}" if i % 3 else None, i, i << 40 if i % 5 else None) for i in range(1000)]
    table = pq.read_table(io.BytesIO(write(COLUMNS, rows, "test")))
    assert [tuple(row.values()) for row in table.to_pylist()] == rows
    assert [str(field.type) for field in table.schema] == ["string", "int32", "int64"]
