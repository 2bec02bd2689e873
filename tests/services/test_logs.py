"""CloudWatch Logs: order, tokens, limits, filters."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.services.calls import ACCOUNT, invoke, make_call

import cloister.services.logs  # noqa: F401
from cloister.logs import LogStore
from cloister.logs_pattern import BadPattern, compile_pattern
from cloister.services.api import Call
from cloister.wire.errors import AwsError

NOW = 1_700_000_000_000


class Logs:
    """Calls on one group `g` with one stream `s`."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.call: Call = make_call(logs=store)
        self("CreateLogGroup")
        self("CreateLogStream", logStreamName="s")

    def __call__(self, name: str, **given: Any) -> dict[str, Any]:
        return invoke(self.call, "logs", name, **{"logGroupName": "g", **given})

    def put(self, *events: tuple[int, str], stream: str = "s") -> dict[str, Any]:
        return self(
            "PutLogEvents",
            logStreamName=stream,
            logEvents=[{"timestamp": time, "message": message} for time, message in events],
        )

    def get(self, **given: Any) -> tuple[list[str], str, str]:
        page = self("GetLogEvents", logStreamName="s", **given)
        return [e["message"] for e in page["events"]], page["nextForwardToken"], page["nextBackwardToken"]

    def refused(self, name: str, **given: Any) -> AwsError:
        with pytest.raises(AwsError) as error:
            self(name, **given)
        return error.value


@pytest.fixture
def logs() -> Any:
    store = LogStore(":memory:")
    yield Logs(store)
    store.close()


def test_the_end_of_a_stream_gives_the_same_token_until_more_arrives(logs: Logs) -> None:
    logs.put((NOW, "a"), (NOW, "b"), (NOW + 1, "c"))
    first, token, _ = logs.get(startFromHead=True, limit=2)
    assert first == ["a", "b"]
    second, token, _ = logs.get(nextToken=token)
    assert second == ["c"]
    assert logs.get(nextToken=token)[:2] == ([], token)
    logs.put((NOW + 1, "d"))
    assert logs.get(nextToken=token)[0] == ["d"]


def test_an_empty_stream_has_tokens_that_go_on_when_events_come(logs: Logs) -> None:
    events, forward, _ = logs.get(startFromHead=True)
    assert events == []
    logs.put((NOW, "a"))
    assert logs.get(nextToken=forward)[0] == ["a"]


def test_without_start_from_head_the_last_events_come_in_order(logs: Logs) -> None:
    logs.put(*((NOW + n, str(n)) for n in range(5)))
    events, forward, backward = logs.get(limit=2)
    assert events == ["3", "4"]
    assert logs.get(nextToken=backward, limit=2)[0] == ["1", "2"]
    assert logs.get(nextToken=forward)[0] == []


def test_start_is_included_and_end_is_not(logs: Logs) -> None:
    logs.put(*((NOW + n, str(n)) for n in range(5)))
    assert logs.get(startTime=NOW + 1, endTime=NOW + 3)[0] == ["1", "2"]


def test_an_answer_holds_one_mebibyte_at_most(logs: Logs) -> None:
    for n in range(5):
        logs.put((NOW + n, "x" * 250_000))
    assert len(logs.get(startFromHead=True)[0]) == 4


@pytest.mark.parametrize(
    "token", ["x", "f/1", "f/" + "x" * 56, "g/" + "0" * 56, "f/" + "9" * 56, "b/" + "9" * 56]
)
def test_a_forged_token_is_refused(logs: Logs, token: str) -> None:
    error = logs.refused("GetLogEvents", logStreamName="s", nextToken=token)
    assert error.code == "InvalidParameterException"


@pytest.mark.parametrize(
    "written",
    [
        *(
            "{}",
            "null",
            "[]",
            "1",
            '"a"',
            "[1]",
            '["a", "b"]',
            "[null, null]",
            "[true, true]",
            "[1.5, 1]",
            "[",
        ),
        *("[1e999, 1]", f"[1, {1 << 63}]", "[-1, -1]", '[-1, "a"]', "[" * 100_000, '["a", 1]', "[[1], [2]]"),
    ],
)
def test_a_token_that_was_never_given_is_refused_and_no_defect(logs: Logs, written: str) -> None:
    token = base64.urlsafe_b64encode(written.encode()).decode()
    for name in ("DescribeLogGroups", "DescribeLogStreams", "FilterLogEvents"):
        given = {} if name == "DescribeLogGroups" else {"logGroupName": "g"}
        with pytest.raises(AwsError) as error:
            invoke(logs.call, "logs", name, **given, nextToken=token)
        assert error.value.code == "InvalidParameterException", (name, written)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.text(min_size=1, max_size=3)), max_size=40), st.integers(1, 9)
)
def test_pages_forward_and_backward_give_every_event_once_in_order(
    events: list[tuple[int, str]], limit: int
) -> None:
    store = LogStore(":memory:")
    store.create_group("g", created=0)
    store.create_stream("g", "s", created=0)
    store.put("g", "s", events, now=0)
    wanted = [message for _, message in sorted(events, key=lambda event: event[0])]
    forward: list[str] = []
    place = None
    while page := store.get("g", "s", after=place, limit=limit):
        forward += [event.message for event in page]
        place = page[-1].place
    backward: list[str] = []
    place = None
    while page := store.get("g", "s", before=place, limit=limit, forward=False):
        backward = [event.message for event in page] + backward
        place = page[0].place
    store.close()
    assert forward == wanted
    assert backward == wanted


def test_missing_groups_and_streams_are_told_apart(logs: Logs) -> None:
    error = logs.refused("GetLogEvents", logGroupName="none", logStreamName="s")
    assert (error.code, error.message) == (
        "ResourceNotFoundException",
        "The specified log group does not exist.",
    )
    assert logs.refused("GetLogEvents", logStreamName="x").message == (
        "The specified log stream does not exist."
    )
    assert logs.refused("CreateLogGroup").code == "ResourceAlreadyExistsException"
    assert logs.refused("CreateLogStream", logStreamName="s").code == "ResourceAlreadyExistsException"
    assert logs.refused("DescribeLogStreams", logGroupName="none").code == "ResourceNotFoundException"


def test_events_out_of_order_or_too_large_are_refused_whole(logs: Logs) -> None:
    with pytest.raises(AwsError, match=r"chronological order"):
        logs.put((NOW, "a"), (NOW - 1, "b"))
    with pytest.raises(AwsError, match=r"span more than 24 hours"):
        logs.put((NOW - 90_000_000, "a"), (NOW, "b"))
    with pytest.raises(AwsError, match=r"Upload too large: 1049100 bytes exceeds limit of 1048576"):
        logs.put(*[(NOW, "x" * 104_884)] * 10)
    assert logs.get()[0] == []


def test_events_too_old_and_too_new_are_rejected_and_told(logs: Logs) -> None:
    day = 86_400_000
    assert logs.put((NOW - 15 * day, "old"), (NOW - 14 * day, "ok"))["rejectedLogEventsInfo"] == {
        "tooOldLogEventEndIndex": 1
    }
    assert logs.put((NOW, "now"), (NOW + 7_200_001, "new"))["rejectedLogEventsInfo"] == {
        "tooNewLogEventStartIndex": 1
    }
    logs("PutRetentionPolicy", retentionInDays=1)
    assert logs.put((NOW - 2 * day, "gone"), (NOW - day, "kept"))["rejectedLogEventsInfo"] == {
        "expiredLogEventEndIndex": 1
    }
    assert logs.get()[0] == ["ok", "kept", "now"]


def test_the_pages_of_describe_log_streams_end(logs: Logs) -> None:
    for n in range(4):
        logs("CreateLogStream", logStreamName=f"job/{n}")
    found, more = [], {}
    for _ in range(10):
        page = logs("DescribeLogStreams", logStreamNamePrefix="job/", limit=2, **more)
        found += [stream["logStreamName"] for stream in page["logStreams"]]
        if "nextToken" not in page:
            break
        more = {"nextToken": page["nextToken"]}
    assert found == ["job/0", "job/1", "job/2", "job/3"]


def test_streams_are_ordered_by_their_last_event(logs: Logs) -> None:
    logs("CreateLogStream", logStreamName="a")
    logs.put((NOW, "x"), stream="a")
    logs.put((NOW + 1, "x"))
    page = logs("DescribeLogStreams", orderBy="LastEventTime", descending=True)
    assert [stream["logStreamName"] for stream in page["logStreams"]] == ["s", "a"]
    assert page["logStreams"][0]["lastEventTimestamp"] == NOW + 1
    assert logs.refused("DescribeLogStreams", orderBy="LastEventTime", logStreamNamePrefix="a").code


def test_groups_are_described_and_paged(logs: Logs) -> None:
    logs("CreateLogGroup", logGroupName="h", tags={"a": "1"})
    page = invoke(logs.call, "logs", "DescribeLogGroups", limit=1)
    assert [group["logGroupName"] for group in page["logGroups"]] == ["g"]
    page = invoke(logs.call, "logs", "DescribeLogGroups", nextToken=page["nextToken"])
    assert [group["arn"] for group in page["logGroups"]] == [
        f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:h:*"
    ]
    assert "nextToken" not in page


def test_tags_by_arn_and_by_name_are_the_same(logs: Logs) -> None:
    arn = f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:g"
    invoke(logs.call, "logs", "TagResource", resourceArn=arn, tags={"a": "1", "b": "2"})
    logs("UntagLogGroup", tags=["a"])
    assert logs("ListTagsLogGroup") == {"tags": {"b": "2"}}
    assert invoke(logs.call, "logs", "ListTagsForResource", resourceArn=arn) == {"tags": {"b": "2"}}


def test_filtered_events_of_several_streams_are_interleaved_and_paged(logs: Logs) -> None:
    logs("CreateLogStream", logStreamName="t")
    logs.put((NOW, "ERROR 1"), (NOW + 2, "fine"), (NOW + 4, "ERROR 3"))
    logs.put((NOW + 1, "ERROR 2"), (NOW + 5, "ERROR 4"), stream="t")
    found, more = [], {}
    for _ in range(10):
        page = logs("FilterLogEvents", filterPattern="ERROR", limit=1, **more)
        found += [(event["logStreamName"], event["message"]) for event in page["events"]]
        if "nextToken" not in page:
            break
        more = {"nextToken": page["nextToken"]}
    assert found == [("s", "ERROR 1"), ("t", "ERROR 2"), ("s", "ERROR 3"), ("t", "ERROR 4")]


@pytest.mark.parametrize(
    ("pattern", "message", "matches"),
    [
        ("", "anything", True),
        ("ERROR", "an ERROR here", True),
        ("ERROR", "an error here", False),
        ("ERROR disk", "disk ERROR", True),
        ("ERROR disk", "ERROR", False),
        ('"disk full"', "the disk full", True),
        ('"disk full"', "full disk", False),
        ("?a ?b", "b", True),
        ("?a ?b", "c", False),
        ("ERROR -expected", "ERROR expected", False),
        ("ERROR -expected", "ERROR", True),
        ('{ $.level = "ERROR" }', '{"level": "ERROR"}', True),
        ('{ $.level = "ERR*" }', '{"level": "ERROR"}', True),
        ('{ $.level != "ERROR" }', '{"level": "INFO"}', True),
        ('{ $.level != "ERROR" }', "{}", False),
        ("{ $.n >= 3 && $.n < 5 }", '{"n": 4}', True),
        ("{ $.n >= 3 && $.n < 5 }", '{"n": 5}', False),
        ('{ ($.a.b = "x") || ($.c[0] = 1) }', '{"c": [1]}', True),
        ("{ $.a IS NULL }", '{"a": null}', True),
        ("{ $.a NOT EXISTS }", '{"b": 1}', True),
        ("{ $.a IS TRUE }", '{"a": true}', True),
        ('{ $.a = "x" }', "not json", False),
        ("{ $.n = 1 }", '{"n": true}', False),
    ],
)
def test_filter_patterns(pattern: str, message: str, matches: bool) -> None:
    assert compile_pattern(pattern)(message) is matches


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("[ip, user]", "space-delimited"),
        ("%re%", "regular expressions"),
        ("{ $.a = %re% }", "regular expressions"),
        ("{ $.a", "'}' is missing"),
        ("{ }", "no condition"),
        ('{ $.a < "x" }', "compares with a number"),
        ("{ a = 1 }", "a selector"),
        ("{ ($.a = 1 }", "')' is missing"),
        ('"open', "not closed"),
    ],
)
def test_patterns_that_are_wrong_or_not_implemented_are_refused_by_name(pattern: str, said: str) -> None:
    with pytest.raises(BadPattern) as error:
        compile_pattern(pattern)
    assert said in str(error.value)


@given(st.text(alphabet='$.ab"[]{}()=!<>&|*%-? \\1', max_size=20))
def test_no_pattern_breaks_the_parser(pattern: str) -> None:
    try:
        compile_pattern(pattern)('{"a": {"b": 1}}')
    except BadPattern:
        pass


def test_a_followed_log_and_its_position_are_stored_together(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs.sqlite")
    assert store.position("g", "s") == ""
    store.append("g", "s", [(1, "a")], now=5, position="10:10")
    store.append("g", "s", [(2, "b")], now=6, position="20:20")
    store.close()
    store = LogStore(tmp_path / "logs.sqlite")
    assert store.position("g", "s") == "20:20"
    assert [event.message for event in store.get("g", "s")] == ["a", "b"]
    assert store.stream("g", "s").last_ingestion == 6
    store.close()


def test_expired_events_are_deleted() -> None:
    store = LogStore(":memory:")
    store.append("g", "s", [(0, "old"), (86_400_000 * 2, "new")], now=0, position="")
    store.set_retention("g", 1)
    assert store.expire(86_400_000 * 2) == 1
    assert [event.message for event in store.get("g", "s")] == ["new"]
    store.close()
