"""The log a container's monitor writes (conmon's `k8s-file` format), read into lines.

One entry: `2026-11-23T23:40:01.123456789+00:00 stdout F text`. `P` marks a piece of a line that goes on, `F`
its end. A container writes what it likes: bytes that are no UTF-8, lines without end, both streams at once.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass, field

#: CloudWatch Logs: "The maximum event size is 256 KiB". A longer line is cut into several.
MAX_LINE = 256 * 1024

_ENTRY = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{1,9})(Z|[+-]\d\d:\d\d) (stdout|stderr) ([PF]) ?(.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line a container wrote. `time` is in nanoseconds since 1970 UTC, of the line's end."""

    time: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """How far a log was read: entries before `offset` are done with, and of those that follow, lines that
    end at or before `seen` were given already (a piece of another stream's line holds `offset` back)."""

    offset: int = 0
    seen: int = 0


@dataclass(slots=True)
class LogReader:
    """Assembles lines from bytes; does no I/O. Feed it what follows `position.offset` at its creation."""

    position: LogPosition = field(default_factory=LogPosition)
    _rest: bytes = b""
    _at: int = -1
    #: stream -> (offset of the first piece, pieces, their length)
    _open: dict[str, tuple[int, list[bytes], int]] = field(default_factory=dict)
    _last: int = 0

    def feed(self, data: bytes) -> list[LogLine]:
        if self._at < 0:
            self._at = self.position.offset
        lines: list[LogLine] = []
        *entries, self._rest = (self._rest + data).split(b"\n")
        for entry in entries:
            start, end = self._at, self._at + len(entry) + 1
            self._at = end
            self._take(entry, start, end, lines)
        self._move()
        return lines

    def finish(self) -> list[LogLine]:
        """What is left when nothing will follow: lines without an end."""
        lines = [_line(self._last, stream, pieces) for stream, (_, pieces, _) in self._open.items()]
        self._open.clear()
        self._move()
        return lines

    def _take(self, entry: bytes, start: int, end: int, lines: list[LogLine]) -> None:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            return  # not an entry: a torn write after a crash of the machine
        seconds, fraction, zone, stream_name, tag, text = match.groups()
        stamp = _nanoseconds(seconds, fraction, zone)
        self._last = stamp
        stream = stream_name.decode()
        first, pieces, length = self._open.pop(stream, (start, [], 0))
        pieces.append(text)
        length += len(text)
        if tag == b"P" and length < MAX_LINE:
            self._open[stream] = (first, pieces, length)
        elif end > self.position.seen:
            whole = b"".join(pieces)
            for at in range(0, max(len(whole), 1), MAX_LINE):
                lines.append(_line(stamp, stream, [whole[at : at + MAX_LINE]]))

    def _move(self) -> None:
        offset = min((first for first, _, _ in self._open.values()), default=max(self._at, 0))
        self.position = LogPosition(offset=offset, seen=max(self._at, self.position.seen))


def _line(stamp: int, stream: str, pieces: list[bytes]) -> LogLine:
    return LogLine(time=stamp, stream=stream, text=b"".join(pieces).decode(errors="replace"))


def _nanoseconds(seconds: bytes, fraction: bytes, zone: bytes) -> int:
    whole = calendar.timegm(time.strptime(seconds.decode(), "%Y-%m-%dT%H:%M:%S"))
    if zone != b"Z":
        sign = -1 if zone[:1] == b"-" else 1
        whole -= sign * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
    return whole * 1_000_000_000 + int(fraction.ljust(9, b"0"))
