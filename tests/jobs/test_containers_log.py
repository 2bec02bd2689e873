from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cloister.jobs.logfile import MAX_LINE, LogLine, LogPosition, LogReader

STAMP = "2026-11-23T23:40:01.5+00:00"


def _read(data: bytes, position: LogPosition | None = None) -> list[LogLine]:
    reader = LogReader(position=position or LogPosition())
    return reader.feed(data) + reader.finish()


def test_times_are_nanoseconds_in_utc_whatever_the_zone() -> None:
    zones = ("01.500000001Z", "01.500000001+00:00")
    same = [_read(f"2026-11-23T23:40:{zone} stdout F x\n".encode())[0].time for zone in zones]
    same.append(_read(b"2026-11-24T05:10:01.500000001+05:30 stdout F x\n")[0].time)
    assert set(same) == {1795477201_500000001}


def test_a_line_longer_than_an_event_is_cut() -> None:
    piece = "a" * 8192
    log = f"{STAMP} stdout P {piece}\n" * 40 + f"{STAMP} stdout F end\n"
    texts = [line.text for line in _read(log.encode())]
    assert "".join(texts) == piece * 40 + "end"
    assert max(map(len, texts)) <= MAX_LINE


def test_what_is_no_entry_is_passed_over() -> None:
    log = b"\0\0garbage\n" + f"{STAMP} stderr F ok\n".encode()
    assert [line.text for line in _read(log)] == ["ok"]


_ENTRIES = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.sampled_from("PF"), st.text("ab ", max_size=4)),
    max_size=12,
)


@given(entries=_ENTRIES, cuts=st.lists(st.integers(0, 400), max_size=4), restart=st.integers(0, 400))
def test_reading_in_parts_and_going_on_after_a_restart_gives_every_line_once(
    entries: list[tuple[str, str, str]], cuts: list[int], restart: int
) -> None:
    log = "".join(f"{STAMP} {stream} {tag} {text}\n" for stream, tag, text in entries).encode()
    whole = _read(log)
    reader = LogReader()
    before: list[LogLine] = []
    end = min(restart, len(log))
    marks = sorted({0, end, *(cut for cut in cuts if cut < end)})
    for start, stop in itertools.pairwise(marks):
        before += reader.feed(log[start:stop])
    position = reader.position
    assert before + _read(log[position.offset :], position) == whole
