"""Parquet files of flat tables: INT32, INT64 and UTF-8 columns that may lack values. Pure.

What is written: one row group of a gzip-compressed page per column chunk, values PLAIN, definition levels
RLE, the footer in Thrift's compact protocol. Why by hand: pyarrow is 100 MB, and this is all of it we need.
Source: apache/parquet-format, README and parquet.thrift.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAGIC = b"PAR1"
#: parquet.thrift: Type
INT32, INT64, BYTE_ARRAY = 1, 2, 6
_PLAIN, _RLE, _GZIP, _OPTIONAL, _UTF8, _DATA_PAGE = 0, 3, 2, 1, 0, 0
#: Thrift's compact protocol: types of fields
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    type: int = BYTE_ARRAY


def write(columns: Sequence[Column], rows: Sequence[Sequence[str | int | None]], created_by: str) -> bytes:
    """The file's bytes; a row has a value, or None, for each column. Numbers must fit their type."""
    out = bytearray(MAGIC)
    chunks = []
    for at, column in enumerate(columns):
        chunk, raw_size = _chunk(column, [row[at] for row in rows])
        chunks.append((len(out), len(chunk), raw_size))
        out += chunk
    footer = _footer(columns, len(rows), chunks, created_by)
    return bytes(out) + footer + struct.pack("<I", len(footer)) + MAGIC


def _chunk(column: Column, values: list[str | int | None]) -> tuple[bytes, int]:
    """A column's one page, header first; and its size with the page not compressed."""
    levels = _levels([value is not None for value in values])
    page = struct.pack("<I", len(levels)) + levels + _plain(column, [v for v in values if v is not None])
    packed = gzip.compress(page, 6, mtime=0)
    data = _struct(
        _i32(1, len(values)), _i32(2, _PLAIN), _i32(3, _RLE), _i32(4, _RLE)
    )  # DataPageHeader: values, their encoding, that of the definition and repetition levels
    header = _struct(_i32(1, _DATA_PAGE), _i32(2, len(page)), _i32(3, len(packed)), _field(5, _STRUCT, data))
    return header + packed, len(header) + len(page)


def _plain(column: Column, values: list[str | int]) -> bytes:
    if column.type == BYTE_ARRAY:
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{'i' if column.type == INT32 else 'q'}", *map(int, values))


def _levels(present: list[bool]) -> bytes:
    """Runs of one bit: (length << 1) and the value in a byte."""
    out = bytearray()
    start = 0
    for end in range(1, len(present) + 1):
        if end == len(present) or present[end] is not present[start]:
            out += _varint((end - start) << 1) + bytes([present[start]])
            start = end
    return bytes(out)


def _footer(
    columns: Sequence[Column], rows: int, chunks: list[tuple[int, int, int]], created_by: str
) -> bytes:
    schema = [_struct(_binary(4, "schema"), _i32(5, len(columns)))]
    groups = []
    for column, (offset, size, raw_size) in zip(columns, chunks, strict=True):
        converted = [_i32(6, _UTF8)] if column.type == BYTE_ARRAY else []
        schema.append(_struct(_i32(1, column.type), _i32(3, _OPTIONAL), _binary(4, column.name), *converted))
        meta = _struct(
            _i32(1, column.type),
            _list(2, _I32, [_zigzag(_PLAIN), _zigzag(_RLE)]),
            _list(3, _BINARY, [_text(column.name)]),
            _i32(4, _GZIP),
            _i64(5, rows),
            _i64(6, raw_size),
            _i64(7, size),
            _i64(9, offset),
        )
        groups.append(_struct(_i64(2, offset), _field(3, _STRUCT, meta)))
    total = sum(raw_size for _, _, raw_size in chunks)
    group = _struct(_list(1, _STRUCT, groups), _i64(2, total), _i64(3, rows))
    return _struct(
        _i32(1, 1),
        _list(2, _STRUCT, schema),
        _i64(3, rows),
        _list(4, _STRUCT, [group]),
        _binary(6, created_by),
    )


# --- Thrift's compact protocol ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    id: int
    type: int
    value: bytes


def _struct(*fields: _Field) -> bytes:
    """Fields in order; each has its distance to the one before, at most 15."""
    out, last = bytearray(), 0
    for field in fields:
        out.append((field.id - last) << 4 | field.type)
        out += field.value
        last = field.id
    return bytes(out) + b"\0"


def _field(number: int, kind: int, value: bytes) -> _Field:
    return _Field(number, kind, value)


def _i32(number: int, value: int) -> _Field:
    return _Field(number, _I32, _zigzag(value))


def _i64(number: int, value: int) -> _Field:
    return _Field(number, _I64, _zigzag(value))


def _binary(number: int, text: str) -> _Field:
    return _Field(number, _BINARY, _text(text))


def _list(number: int, kind: int, items: list[bytes]) -> _Field:
    size = len(items)
    head = bytes([size << 4 | kind]) if size < 15 else bytes([0xF0 | kind]) + _varint(size)
    return _Field(number, _LIST, head + b"".join(items))


def _text(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data)) + data


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
