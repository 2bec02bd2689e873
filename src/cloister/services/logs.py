"""CloudWatch Logs. The events are in `call.deps["logs"]`, a `cloister.logs.LogStore`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cloister.iam.context import request_tags
from cloister.logs import (
    EVENT_OVERHEAD,
    LogEvent,
    LogExists,
    LogGroup,
    LogStore,
    LogStream,
    Place,
    UnknownLog,
)
from cloister.logs_pattern import BadPattern, compile_pattern
from cloister.services.api import Call, Params, operation
from cloister.wire.errors import AwsError

#: AWS: PutLogEvents quotas
BATCH_BYTES = 1_048_576
DAY = 86_400_000  # milliseconds
OLDEST, NEWEST, SPAN = 14 * DAY, 7_200_000, DAY
RETENTIONS = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
)  # fmt: skip
TAGS_PER_GROUP = 50


def _store(call: Call) -> LogStore:
    store: LogStore = call.deps["logs"]
    return store


def _ms(call: Call) -> int:
    return int(call.now * 1000)


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidParameterException", message)


@contextmanager
def _aws_errors() -> Iterator[None]:
    try:
        yield
    except UnknownLog as error:
        raise AwsError("ResourceNotFoundException", str(error)) from error
    except LogExists as error:
        raise AwsError("ResourceAlreadyExistsException", str(error)) from error
    except BadPattern as error:
        raise _invalid(str(error)) from error


def _arn(call: Call, group: str, stream: str | None = None) -> str:
    # As AWS's own AccessDenied messages spell it: group operations name an empty stream.
    return call.arn("logs", f"log-group:{group}:log-stream:{stream or ''}")


def _group_arn(call: Call, params: Params) -> list[str]:
    return [_arn(call, _group_name(call, params))]


def _stream_arn(call: Call, params: Params) -> list[str]:
    return [_arn(call, _group_name(call, params), params.get("logStreamName"))]


def _any_group(call: Call, params: Params) -> list[str]:
    return [_arn(call, "")]


def _group_name(call: Call, params: Params) -> str:
    """By logGroupName or logGroupIdentifier (a name or an ARN); one of them is needed, not both."""
    name, identifier = params.get("logGroupName"), params.get("logGroupIdentifier")
    if (name is None) == (identifier is None):
        raise _invalid("Exactly one of logGroupName and logGroupIdentifier must be specified")
    if name is not None:
        return str(name)
    assert identifier is not None
    return _name_of_arn(call, identifier) if identifier.startswith("arn:") else str(identifier)


def _name_of_arn(call: Call, arn: str) -> str:
    prefix = call.arn("logs", "log-group:")
    if not arn.startswith(prefix):
        raise _invalid(f"The ARN {arn} does not name a log group of this account and region")
    return arn[len(prefix) :].removesuffix(":*")


def _tagged_arn(call: Call, params: Params) -> list[str]:
    return [_arn(call, _name_of_arn(call, params["resourceArn"]))]


def _tag_context(call: Call, params: Params) -> dict[str, Any]:
    """aws:RequestTag/… and aws:TagKeys of a request that brings tags, or names those that are to go."""
    tags = params.get("tags") or {}
    if isinstance(tags, list):  # UntagLogGroup: keys alone
        return request_tags({}, tags)
    return request_tags(tags, params.get("tagKeys") or ())


def _token(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def _untoken(token: str | None, *kinds: type) -> Any:
    """What `_token` was given, of these kinds; None of no token. Anybody can write a token."""
    if token is None:
        return None
    try:
        parts = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise _invalid("The specified nextToken is invalid.")
    return [_position(part) if isinstance(part, int) else part for part in parts]


def _position(number: int) -> int:
    if not 0 <= number < 1 << 63:  # the store's numbers are
        raise _invalid("The specified nextToken is invalid.")
    return number


def _present(**members: Any) -> Params:
    return {name: value for name, value in members.items() if value is not None}


# Groups


@operation("logs", "CreateLogGroup", resources=_group_arn, context=_tag_context, tagging="logs:TagResource")
def create_log_group(call: Call, params: Params) -> Params:
    if params.get("kmsKeyId"):
        raise _invalid("Cloister does not implement kmsKeyId of a log group yet")
    name = params["logGroupName"]
    if name.startswith("aws/"):
        raise _invalid("Log groups starting with AWS/ are reserved for AWS.")
    with _aws_errors():
        _store(call).create_group(
            name,
            created=_ms(call),
            log_class=params.get("logGroupClass", "STANDARD"),
            protected=params.get("deletionProtectionEnabled", False),
            tags=params.get("tags"),
        )
    return {}


@operation("logs", "DeleteLogGroup", resources=_group_arn)
def delete_log_group(call: Call, params: Params) -> Params:
    with _aws_errors():
        name = params["logGroupName"]
        if _store(call).group(name).protected:
            raise AwsError(
                "OperationAbortedException", f"The log group {name} has deletion protection enabled"
            )
        _store(call).delete_group(name)
    return {}


@operation("logs", "DescribeLogGroups", resources=_any_group)
def describe_log_groups(call: Call, params: Params) -> Params:
    prefix, pattern = params.get("logGroupNamePrefix"), params.get("logGroupNamePattern")
    if prefix is not None and pattern is not None:
        raise _invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
    wanted = params.get("logGroupIdentifiers")
    names = None if wanted is None else {_name_of_arn(call, w) if w.startswith("arn:") else w for w in wanted}
    log_class = params.get("logGroupClass")
    found = [
        group
        for group in _store(call).groups()
        if group.name.startswith(prefix or "")
        # AWS: the pattern is a case-insensitive substring
        and (pattern or "").lower() in group.name.lower()
        and (names is None or group.name in names)
        and (log_class is None or group.log_class == log_class)
    ]
    after = _untoken(params.get("nextToken"), str)
    rest = [group for group in found if after is None or group.name > after[0]]
    limit = params.get("limit", 50)
    page = rest[:limit]
    return _present(
        logGroups=[_show_group(call, group) for group in page],
        nextToken=_token([page[-1].name]) if len(rest) > limit else None,
    )


def _show_group(call: Call, group: LogGroup) -> Params:
    arn = call.arn("logs", f"log-group:{group.name}")
    return _present(
        logGroupName=group.name,
        creationTime=group.created,
        retentionInDays=group.retention,
        metricFilterCount=0,
        arn=arn + ":*",
        logGroupArn=arn,
        storedBytes=group.stored,
        logGroupClass=group.log_class,
        deletionProtectionEnabled=group.protected,
    )


@operation("logs", "PutRetentionPolicy", resources=_group_arn)
def put_retention_policy(call: Call, params: Params) -> Params:
    days = params["retentionInDays"]
    if days not in RETENTIONS:
        raise _invalid(
            f"1 validation error detected: Value '{days}' at 'retentionInDays' failed to satisfy constraint: "
            f"Member must satisfy enum value set: [{', '.join(map(str, RETENTIONS))}]"
        )
    with _aws_errors():
        _store(call).set_retention(params["logGroupName"], days)
    return {}


@operation("logs", "DeleteRetentionPolicy", resources=_group_arn)
def delete_retention_policy(call: Call, params: Params) -> Params:
    with _aws_errors():
        _store(call).set_retention(params["logGroupName"], None)
    return {}


# Tags


def _add_tags(call: Call, name: str, tags: dict[str, str]) -> None:
    with _aws_errors():
        merged = {**_store(call).group(name).tags, **tags}
        if len(merged) > TAGS_PER_GROUP:
            raise AwsError("TooManyTagsException", f"A log group has at most {TAGS_PER_GROUP} tags")
        _store(call).set_tags(name, merged)


def _remove_tags(call: Call, name: str, keys: list[str]) -> None:
    with _aws_errors():
        tags = _store(call).group(name).tags
        _store(call).set_tags(name, {key: value for key, value in tags.items() if key not in keys})


def _tags(call: Call, name: str) -> Params:
    with _aws_errors():
        return {"tags": _store(call).group(name).tags}


@operation("logs", "TagResource", resources=_tagged_arn, context=_tag_context)
def tag_resource(call: Call, params: Params) -> Params:
    _add_tags(call, _name_of_arn(call, params["resourceArn"]), params["tags"])
    return {}


@operation("logs", "UntagResource", resources=_tagged_arn, context=_tag_context)
def untag_resource(call: Call, params: Params) -> Params:
    _remove_tags(call, _name_of_arn(call, params["resourceArn"]), params["tagKeys"])
    return {}


@operation("logs", "ListTagsForResource", resources=_tagged_arn)
def list_tags_for_resource(call: Call, params: Params) -> Params:
    return _tags(call, _name_of_arn(call, params["resourceArn"]))


@operation("logs", "TagLogGroup", resources=_group_arn, context=_tag_context)
def tag_log_group(call: Call, params: Params) -> Params:
    _add_tags(call, params["logGroupName"], params["tags"])
    return {}


@operation("logs", "UntagLogGroup", resources=_group_arn, context=_tag_context)
def untag_log_group(call: Call, params: Params) -> Params:
    _remove_tags(call, params["logGroupName"], params["tags"])
    return {}


@operation("logs", "ListTagsLogGroup", resources=_group_arn)
def list_tags_log_group(call: Call, params: Params) -> Params:
    return _tags(call, params["logGroupName"])


# Streams


@operation("logs", "CreateLogStream", resources=_stream_arn)
def create_log_stream(call: Call, params: Params) -> Params:
    with _aws_errors():
        _store(call).create_stream(params["logGroupName"], params["logStreamName"], created=_ms(call))
    return {}


@operation("logs", "DeleteLogStream", resources=_stream_arn)
def delete_log_stream(call: Call, params: Params) -> Params:
    with _aws_errors():
        _store(call).delete_stream(params["logGroupName"], params["logStreamName"])
    return {}


@operation("logs", "DescribeLogStreams", resources=_group_arn)
def describe_log_streams(call: Call, params: Params) -> Params:
    by_time = params.get("orderBy", "LogStreamName") == "LastEventTime"
    prefix = params.get("logStreamNamePrefix", "")
    if by_time and prefix:
        raise _invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
    descending = params.get("descending", False)
    with _aws_errors():
        streams = _store(call).streams(_group_name(call, params), prefix)

    def order(stream: LogStream) -> tuple[int, str]:
        return (stream.last_event or 0 if by_time else 0, stream.name)

    streams.sort(key=order, reverse=descending)
    after = _untoken(params.get("nextToken"), int, str)
    if after is not None:
        place = tuple(after)
        streams = [s for s in streams if (order(s) < place if descending else order(s) > place)]
    limit = params.get("limit", 50)
    page = streams[:limit]
    return _present(
        logStreams=[_show_stream(call, stream) for stream in page],
        nextToken=_token(order(page[-1])) if len(streams) > limit else None,
    )


def _show_stream(call: Call, stream: LogStream) -> Params:
    return _present(
        logStreamName=stream.name,
        creationTime=stream.created,
        firstEventTimestamp=stream.first_event,
        lastEventTimestamp=stream.last_event,
        lastIngestionTime=stream.last_ingestion,
        # AWS: "The sequence token is now ignored"; still shown
        uploadSequenceToken=f"{stream.id:056d}",
        arn=call.arn("logs", f"log-group:{stream.group}:log-stream:{stream.name}"),
        storedBytes=0,  # AWS: "From June 17, 2019, this parameter is deprecated … its value is zero"
    )


# Events


@operation("logs", "PutLogEvents", resources=_stream_arn)
def put_log_events(call: Call, params: Params) -> Params:
    group, stream = params["logGroupName"], params["logStreamName"]
    events = [(int(event["timestamp"]), str(event["message"])) for event in params["logEvents"]]
    size = sum(len(message.encode()) + EVENT_OVERHEAD for _, message in events)
    if size > BATCH_BYTES:
        raise _invalid(f"Upload too large: {size} bytes exceeds limit of {BATCH_BYTES}")
    times = [time for time, _ in events]
    if times != sorted(times):
        raise _invalid("Log events in a single PutLogEvents request must be in chronological order.")
    if times[-1] - times[0] > SPAN:
        raise _invalid(
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
        )
    now = _ms(call)
    with _aws_errors():
        store = _store(call)
        store.stream(group, stream)
        retention = store.group(group).retention
        old = sum(time < now - OLDEST for time in times)
        expired = 0 if retention is None else sum(time < now - retention * DAY for time in times)
        new = sum(time > now + NEWEST for time in times)
        store.put(group, stream, events[max(old, expired) : len(events) - new], now=now)
    rejected = _present(
        tooNewLogEventStartIndex=len(events) - new if new else None,
        tooOldLogEventEndIndex=old or None,
        expiredLogEventEndIndex=expired or None,
    )
    return _present(nextSequenceToken=f"{now:056d}", rejectedLogEventsInfo=rejected or None)


def _forward(place: Place) -> str:
    return f"f/{place[0]:020d}{place[1]:036d}"


def _backward(place: Place) -> str:
    return f"b/{place[0]:020d}{place[1]:036d}"


def _place(token: str) -> Place:
    digits = token[2:]
    if token[:2] not in ("f/", "b/") or len(digits) != 56 or not (digits.isascii() and digits.isdigit()):
        raise _invalid("The specified nextToken is invalid.")
    return (_position(int(digits[:20])), _position(int(digits[20:])))


@operation("logs", "GetLogEvents", resources=_stream_arn)
def get_log_events(call: Call, params: Params) -> Params:
    """AWS: "If you have reached the end of the stream, it returns the same token you passed in." """
    token = params.get("nextToken")
    forward = params.get("startFromHead", False) if token is None else token.startswith("f/")
    place = None if token is None else _place(token)
    with _aws_errors():
        events = _store(call).get(
            _group_name(call, params),
            params["logStreamName"],
            start=params.get("startTime"),
            end=params.get("endTime"),
            after=place if forward else None,
            before=None if forward else place,
            limit=params.get("limit", 10000),
            forward=forward,
            max_bytes=BATCH_BYTES,
        )
    here: Place = place or (0, 0)
    return {
        "events": [
            {"timestamp": event.time, "message": event.message, "ingestionTime": event.ingested}
            for event in events
        ],
        "nextForwardToken": _forward(events[-1].place if events else here),
        "nextBackwardToken": _backward(events[0].place if events else here),
    }


@operation("logs", "FilterLogEvents", resources=_group_arn)
def filter_log_events(call: Call, params: Params) -> Params:
    names, prefix = params.get("logStreamNames"), params.get("logStreamNamePrefix")
    if names is not None and prefix is not None:
        raise _invalid("Only one of logStreamNames and logStreamNamePrefix may be specified")
    if params.get("startFromHead") is False:
        raise _invalid("Cloister does not implement startFromHead=false of FilterLogEvents yet")
    after = _untoken(params.get("nextToken"), int, int)
    with _aws_errors():
        match: Callable[[str], bool] = compile_pattern(params.get("filterPattern"))
        store, group = _store(call), _group_name(call, params)
        streams = (
            store.streams(group, prefix or "")
            if names is None
            else [store.stream(group, name) for name in dict.fromkeys(names)]
        )
        events, place = store.filter(
            streams,
            match,
            start=params.get("startTime"),
            end=params.get("endTime"),
            after=None if after is None else (after[0], after[1]),
            limit=params.get("limit", 10000),
        )
    return _present(
        events=[_show_match(event) for event in events],
        searchedLogStreams=[],  # AWS: "Starting on May 15, 2020, this parameter is deprecated", and empty
        nextToken=None if place is None else _token(place),
    )


def _show_match(event: LogEvent) -> Params:
    return {
        "logStreamName": event.stream,
        "timestamp": event.time,
        "message": event.message,
        "ingestionTime": event.ingested,
        "eventId": f"{event.time:020d}{event.number:036d}",
    }
