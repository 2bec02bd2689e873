"""Log groups, streams and events, in an SQLite file of their own (WAL).

CloudWatch Logs' words and units: times are milliseconds since the epoch. Events of a stream are ordered by
(timestamp, number); a number never repeats, so a position in a stream stays valid while events arrive.

A followed container log is written with `append`, which stores the events and the position reached in the
container's log file in one transaction: a daemon that is killed in between neither loses nor repeats a line.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log_group (
    name TEXT PRIMARY KEY,
    created INTEGER NOT NULL,
    class TEXT NOT NULL DEFAULT 'STANDARD',
    protected INTEGER NOT NULL DEFAULT 0,
    retention INTEGER,
    tags TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS log_stream (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_name TEXT NOT NULL REFERENCES log_group (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    created INTEGER NOT NULL,
    first_event INTEGER,
    last_event INTEGER,
    last_ingestion INTEGER,
    stored INTEGER NOT NULL DEFAULT 0,
    position TEXT NOT NULL DEFAULT '',
    UNIQUE (group_name, name)
);
CREATE TABLE IF NOT EXISTS log_event (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    stream INTEGER NOT NULL REFERENCES log_stream (id) ON DELETE CASCADE,
    time INTEGER NOT NULL,
    ingested INTEGER NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS log_event_order ON log_event (stream, time, number);
"""
#: AWS counts 26 bytes of overhead for each event (PutLogEvents)
EVENT_OVERHEAD = 26


class UnknownLog(LookupError):
    """There is no such group or stream; `what` is "group" or "stream"."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The specified log {what} does not exist.")
        self.what = what


class LogExists(Exception):
    """A group or stream of this name exists already; `what` is "group" or "stream"."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The specified log {what} already exists")
        self.what = what


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGroup:
    name: str
    created: int
    log_class: str = "STANDARD"
    protected: bool = False
    retention: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    stored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStream:
    id: int
    group: str
    name: str
    created: int
    first_event: int | None
    last_event: int | None
    last_ingestion: int | None
    stored: int
    #: how far the followed file is in the stream (`append`); only the follower knows what it means
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    number: int
    stream: str
    time: int
    ingested: int
    message: str

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the order of events."""
        return (self.time, self.number)


Place = tuple[int, int]


class LogStore:
    """Used from one thread. Calls are short; every write is durable when it returns."""

    def __init__(self, path: Path | str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        if str(path) != ":memory:":
            Path(path).chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(
            "PRAGMA synchronous = NORMAL"
        )  # survives kill -9; a power cut may lose the last lines
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # Groups

    def create_group(
        self,
        name: str,
        *,
        created: int,
        log_class: str = "STANDARD",
        protected: bool = False,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Raises LogExists."""
        try:
            self._db.execute(
                "INSERT INTO log_group (name, created, class, protected, tags) VALUES (?, ?, ?, ?, ?)",
                (name, created, log_class, protected, json.dumps(tags or {})),
            )
        except sqlite3.IntegrityError as error:
            raise LogExists("group") from error

    def delete_group(self, name: str) -> None:
        if not self._db.execute("DELETE FROM log_group WHERE name = ?", (name,)).rowcount:
            raise UnknownLog("group")

    def group(self, name: str) -> LogGroup:
        for found in self._groups("WHERE g.name = ?", (name,)):
            return found
        raise UnknownLog("group")

    def groups(self) -> list[LogGroup]:
        """All groups, ordered by name."""
        return list(self._groups("", ()))

    def _groups(self, where: str, values: tuple[object, ...]) -> Iterable[LogGroup]:
        rows = self._db.execute(
            "SELECT g.name, g.created, g.class, g.protected, g.retention, g.tags,"
            " COALESCE((SELECT SUM(s.stored) FROM log_stream s WHERE s.group_name = g.name), 0)"
            f" FROM log_group g {where} ORDER BY g.name",
            values,
        )
        for name, created, log_class, protected, retention, tags, stored in rows:
            yield LogGroup(
                name=name,
                created=created,
                log_class=log_class,
                protected=bool(protected),
                retention=retention,
                tags=json.loads(tags),
                stored=stored,
            )

    def set_retention(self, name: str, days: int | None) -> None:
        if not self._db.execute("UPDATE log_group SET retention = ? WHERE name = ?", (days, name)).rowcount:
            raise UnknownLog("group")

    def set_tags(self, name: str, tags: dict[str, str]) -> None:
        if not self._db.execute(
            "UPDATE log_group SET tags = ? WHERE name = ?", (json.dumps(tags), name)
        ).rowcount:
            raise UnknownLog("group")

    # Streams

    def create_stream(self, group: str, name: str, *, created: int) -> None:
        """Raises UnknownLog, LogExists."""
        self.group(group)
        try:
            self._db.execute(
                "INSERT INTO log_stream (group_name, name, created) VALUES (?, ?, ?)", (group, name, created)
            )
        except sqlite3.IntegrityError as error:
            raise LogExists("stream") from error

    def delete_stream(self, group: str, name: str) -> None:
        found = self.stream(group, name)
        self._db.execute("DELETE FROM log_stream WHERE id = ?", (found.id,))

    def stream(self, group: str, name: str) -> LogStream:
        for found in self._streams("group_name = ? AND name = ?", (group, name)):
            return found
        self.group(group)
        raise UnknownLog("stream")

    def streams(self, group: str, prefix: str = "") -> list[LogStream]:
        """The streams of a group whose names start with `prefix`, ordered by name."""
        self.group(group)
        return list(self._streams("group_name = ? AND substr(name, 1, ?) = ?", (group, len(prefix), prefix)))

    def _streams(self, where: str, values: tuple[object, ...]) -> Iterable[LogStream]:
        rows = self._db.execute(
            "SELECT id, group_name, name, created, first_event, last_event, last_ingestion, stored, position"
            f" FROM log_stream WHERE {where} ORDER BY name",
            values,
        )
        for number, group, name, created, first, last, ingestion, stored, position in rows:
            yield LogStream(
                id=number,
                group=group,
                name=name,
                created=created,
                first_event=first,
                last_event=last,
                last_ingestion=ingestion,
                stored=stored,
                position=position,
            )

    # Events

    def put(
        self,
        group: str,
        name: str,
        events: Sequence[tuple[int, str]],
        *,
        now: int,
        position: str | None = None,
    ) -> None:
        """Store (time, message) pairs, all or none. With `position`, the followed file's position is stored
        in the same transaction. Raises UnknownLog."""
        stream = self.stream(group, name)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(
                "INSERT INTO log_event (stream, time, ingested, message) VALUES (?, ?, ?, ?)",
                [(stream.id, time, now, message) for time, message in events],
            )
            if events:
                times = [time for time, _ in events]
                size = sum(len(message.encode()) + EVENT_OVERHEAD for _, message in events)
                self._db.execute(
                    # by names: Python 3.12.0 to 3.12.3 (Ubuntu 24.04's) warn of numbers
                    "UPDATE log_stream SET first_event = MIN(COALESCE(first_event, :first), :first),"
                    " last_event = MAX(COALESCE(last_event, :last), :last),"
                    " last_ingestion = :now, stored = stored + :size WHERE id = :stream",
                    {"first": min(times), "last": max(times), "now": now, "size": size, "stream": stream.id},
                )
            if position is not None:
                self._db.execute("UPDATE log_stream SET position = ? WHERE id = ?", (position, stream.id))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                self._db.execute("ROLLBACK")
            raise

    def append(
        self, group: str, name: str, events: Sequence[tuple[int, str]], *, now: int, position: str
    ) -> None:
        """`put` for a followed container log: makes the group and the stream when they are not there yet."""
        try:
            self.stream(group, name)
        except UnknownLog as unknown:
            if unknown.what == "group":
                self.create_group(group, created=now)
            self.create_stream(group, name, created=now)
        self.put(group, name, events, now=now, position=position)

    def position(self, group: str, name: str) -> str:
        """Where to go on following a container's log; "" when nothing is stored yet."""
        try:
            return self.stream(group, name).position
        except UnknownLog:
            return ""

    def get(
        self,
        group: str,
        name: str,
        *,
        start: int | None = None,
        end: int | None = None,
        after: Place | None = None,
        before: Place | None = None,
        limit: int = 10000,
        forward: bool = True,
        max_bytes: int | None = None,
    ) -> list[LogEvent]:
        """Events of one stream with start <= time < end, strictly after and before the given places, at most
        `limit` of them and `max_bytes` together: the first ones (`forward`), or the last ones. In order."""
        stream = self.stream(group, name)
        where, values = ["stream = ?"], [stream.id]
        if start is not None:
            where.append("time >= ?")
            values.append(start)
        if end is not None:
            where.append("time < ?")
            values.append(end)
        if after is not None:
            where.append("(time, number) > (?, ?)")
            values.extend(after)
        if before is not None:
            where.append("(time, number) < (?, ?)")
            values.extend(before)
        direction = "ASC" if forward else "DESC"
        rows = self._db.execute(
            f"SELECT number, time, ingested, message FROM log_event WHERE {' AND '.join(where)}"
            f" ORDER BY time {direction}, number {direction} LIMIT ?",
            (*values, limit),
        )
        found: list[LogEvent] = []
        size = 0
        for number, time, ingested, message in rows:
            size += len(message.encode()) + EVENT_OVERHEAD
            if found and max_bytes is not None and size > max_bytes:
                break
            found.append(
                LogEvent(number=number, stream=stream.name, time=time, ingested=ingested, message=message)
            )
        return found if forward else found[::-1]

    def filter(
        self,
        streams: Sequence[LogStream],
        match: Callable[[str], bool],
        *,
        start: int | None = None,
        end: int | None = None,
        after: Place | None = None,
        limit: int = 10000,
        scan: int = 100_000,
        max_bytes: int = 1_000_000,
    ) -> tuple[list[LogEvent], Place | None]:
        """Events of several streams, interleaved in order, whose message matches; and the place to go on
        after, None at the end. A call looks at `scan` events at most, so that it stays short."""
        names = {stream.id: stream.name for stream in streams}
        if not names:
            return [], None
        where = [f"stream IN ({','.join('?' * len(names))})"]
        values: list[int] = list(names)
        for text, value in (("time >= ?", start), ("time < ?", end)):
            if value is not None:
                where.append(text)
                values.append(value)
        if after is not None:
            where.append("(time, number) > (?, ?)")
            values.extend(after)
        rows = self._db.execute(
            "SELECT number, stream, time, ingested, message FROM log_event"
            f" WHERE {' AND '.join(where)} ORDER BY time, number LIMIT ?",
            (*values, scan + 1),
        )
        found: list[LogEvent] = []
        size = 0
        last: Place | None = after
        for seen, (number, stream, time, ingested, message) in enumerate(rows):
            if seen == scan:
                return found, last
            if match(message):
                size += len(message.encode()) + EVENT_OVERHEAD
                if found and (len(found) == limit or size > max_bytes):
                    return found, last
                found.append(
                    LogEvent(
                        number=number, stream=names[stream], time=time, ingested=ingested, message=message
                    )
                )
            last = (time, number)
        return found, None

    def expire(self, now: int) -> int:
        """Delete events older than their group's retention; returns how many."""
        return self._db.execute(
            "DELETE FROM log_event WHERE EXISTS (SELECT 1 FROM log_stream s JOIN log_group g"
            " ON g.name = s.group_name WHERE s.id = log_event.stream AND g.retention IS NOT NULL"
            " AND log_event.time < ? - g.retention * 86400000)",
            (now,),
        ).rowcount
