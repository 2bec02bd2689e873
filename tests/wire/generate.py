"""Values for any shape of any AWS model, as hypothesis strategies; and botocore as the other end of the wire.

`params_for(shape)` gives what a client could send or a handler return. `request_of` and `read_response` let
botocore write the request and read the answer, so a round trip has only one side that is ours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from botocore.awsrequest import HeadersDict
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.session import get_session
from botocore.utils import percent_encode_sequence
from hypothesis import strategies as st

from cloister.wire import model, patterns
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import Operation, Shape

#: text that every body can carry: XML 1.0 has no control characters and no half surrogates, and botocore
#: does not escape a carriage return in XML, so it arrives as a line feed
BODY_TEXT = st.text(
    st.sampled_from("ab Z09-_./:=+@&<>\"'%,;~*!()[]{}\\$#?\n\téß漢\U0001f600"), min_size=0, max_size=12
)
HEADER_TEXT = st.text(st.sampled_from("abZ09-_./:=+@&<>'%;~*"), min_size=1, max_size=12)
URI_TEXT = st.text(st.sampled_from("abZ09-_.:=+@&<>'%;~* éß漢?#"), min_size=1, max_size=12)
SAMPLES = [
    "a",
    "abc",
    "0",
    "12",
    "123456789012",
    "abc-1",
    "abcdefghijklmnop",
    "a" * 20,
    "A" * 16,
    "a" * 32,
    "a" * 64,
    "/",
    "/a/",
    "/aws/a",
    "s3://bucket/key",
    "https://a.example/b",
    "us-east-1",
    "1.0",
    "vpc-0123456789abcdef0",
    "arn:aws:iam::123456789012:role/a",
    "arn:aws:sagemaker:us-east-1:123456789012:processing-job/a",
    "arn:aws:s3:::bucket",
    "123456789012.dkr.ecr.us-east-1.amazonaws.com/a:b",
    "a@b.example",
    "10.0.0.0/16",
    "2026-01-02T03:04:05Z",
    "AKIAIOSFODNN7EXAMPLE",
    "key=value",
    "%",
    "aGVsbG8=",
    "é漢",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS = st.integers(0, 4_000_000_000).map(lambda s: _EPOCH + timedelta(seconds=s))
MILLISECONDS = st.integers(0, 4_000_000_000_000).map(lambda ms: _EPOCH + timedelta(milliseconds=ms))


def params_for(shape: Shape | None, *, depth: int = 0) -> st.SearchStrategy[Any]:
    """Valid values of this shape: constraints, enums and patterns are kept; a few optional members each."""
    if shape is None:
        return st.just({})
    return _any(shape, None, depth)


def _any(shape: Shape, location: str | None, depth: int) -> st.SearchStrategy[Any]:
    if shape.kind == "structure":
        return _structure(shape, depth)
    if shape.kind == "list":
        return _list(shape, location, depth)
    if shape.kind == "map":
        return _map(shape, location, depth)
    return _scalar(shape, location)


@st.composite
def _structure(draw: Callable[..., Any], shape: Shape, depth: int) -> Any:
    if shape.is_document:
        return {"a": [1, "b", None, True]}
    names = [name for name, member in shape.members.items() if not member.traits.get("eventstream")]
    if shape.traits.get("union"):
        simple = [name for name in names if shape.members[name].kind not in ("structure", "list", "map")]
        chosen = [draw(st.sampled_from(simple if simple and depth > 2 else names))]
    else:
        chosen = [name for name in names if name in shape.required]
        optional = [name for name in names if name not in shape.required]
        if optional and depth < 4:
            more = st.lists(st.sampled_from(optional), max_size=6 if depth == 0 else 3, unique=True)
            chosen += draw(more)
    return {
        name: draw(_any(shape.members[name], shape.members[name].location if depth == 0 else None, depth + 1))
        for name in chosen
    }


def _sizes(shape: Shape, depth: int, default: int) -> tuple[int, int]:
    low = int(shape.minimum or 0)
    high = int(shape.maximum) if shape.maximum is not None else low + default
    return low, max(low, min(high, low + (default if depth < 4 else 0)))


def _list(shape: Shape, location: str | None, depth: int) -> st.SearchStrategy[Any]:
    low, high = _sizes(shape, depth, 3)
    if location is not None:
        low, high = max(low, 1), max(high, 1)
    item = st.deferred(lambda: _any(shape.member, location, depth + 1))
    return st.lists(item, min_size=low, max_size=high)


def _map(shape: Shape, location: str | None, depth: int) -> st.SearchStrategy[Any]:
    low, high = _sizes(shape, depth, 2)
    if location is not None:
        key: st.SearchStrategy[Any] = st.text(st.sampled_from("abc0-"), min_size=1, max_size=6)
        return st.dictionaries(key, HEADER_TEXT, min_size=1, max_size=max(high, 1))
    item = st.deferred(lambda: _any(shape.value, location, depth + 1))
    return st.dictionaries(_scalar(shape.key, None), item, min_size=low, max_size=high)


def _scalar(shape: Shape, location: str | None) -> st.SearchStrategy[Any]:
    kind = shape.kind
    if kind in ("string", "character"):
        return _string(shape, location)
    if kind in ("integer", "long"):
        bits = 31 if kind == "integer" else 63
        low = -(2**bits) if shape.minimum is None else int(shape.minimum)
        high = 2**bits - 1 if shape.maximum is None else int(shape.maximum)
        return st.integers(low, max(low, high))
    if kind in ("float", "double"):
        return st.floats(
            shape.minimum,
            shape.maximum,
            allow_nan=False,
            allow_infinity=shape.minimum is shape.maximum is None,
        )
    if kind == "boolean":
        return st.booleans()
    if kind == "blob":
        low, high = _sizes(shape, 0, 20)
        return st.binary(min_size=low, max_size=high)
    form = shape.traits.get("timestampFormat")
    return SECONDS if form == "rfc822" or location == "header" else MILLISECONDS


def _string(shape: Shape, location: str | None) -> st.SearchStrategy[Any]:
    if shape.enum:
        return st.sampled_from(shape.enum)
    low, high = int(shape.minimum or 0), int(shape.maximum or 10_000)
    base = {None: BODY_TEXT, "uri": URI_TEXT, "querystring": URI_TEXT}.get(location, HEADER_TEXT)
    if location is not None:
        low = max(low, 1)
    if shape.pattern is None:
        return base.map(lambda text: (text + "a" * low)[: max(high, low)] if len(text) < low else text[:high])
    pattern = patterns.compiled(shape.pattern)
    assert pattern is not None
    return _matching(pattern, low, high)


@cache
def _matching(pattern: re.Pattern[str], low: int, high: int) -> st.SearchStrategy[str]:
    padded = [*SAMPLES, *("a" * low for _ in range(low > 0))]
    fitting = [text for text in padded if low <= len(text) <= high and pattern.fullmatch(text)]
    if fitting:
        return st.sampled_from(fitting)
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: low <= len(text) <= high)


def as_carried(protocol: str, shape: Shape | None, value: Any, *, response: bool = False) -> Any:
    """The value without what the protocol has no way to write: ec2's empty lists, empty flattened lists …"""
    if shape is None or value is None:
        return value
    if shape.kind == "structure" and not shape.is_document:
        kept = {}
        for name, item in value.items():
            member = shape.members[name]
            item = as_carried(protocol, member, item, response=response)
            if _is_empty(item) and (
                _vanishes(protocol, member, response)
                or (value[name] and not response and protocol in ("ec2", "query"))
            ):
                continue
            kept[name] = item
        return kept
    if shape.kind == "list":
        items = [as_carried(protocol, shape.member, item, response=response) for item in value]
        if protocol in ("ec2", "query") and not response:
            items = [
                one for one in items if not (_is_empty(one) and _vanishes(protocol, shape.member, False))
            ]
        return items
    if shape.kind == "map":
        return {
            key: as_carried(protocol, shape.value, item, response=response) for key, item in value.items()
        }
    return value


def _is_empty(value: Any) -> bool:
    return isinstance(value, list | dict) and not value


def _vanishes(protocol: str, member: Shape, response: bool) -> bool:
    if protocol == "ec2" and not response:
        return True
    if protocol == "query" and not response:
        return member.kind in ("structure", "map")
    return protocol not in ("json", "rest-json") and member.flattened


# -- botocore, the other end -------------------------------------------------------------------------------


@cache
def botocore_model(service: str) -> ServiceModel:
    return get_session().get_service_model(service)


def operation_of(service: str, name: str) -> Operation:
    found = model.service(service).operation(name)
    assert found is not None
    return found


def request_of(service: str, operation: str, params: dict[str, Any], host: str = "localhost") -> HttpRequest:
    """The (unsigned) request that boto3 sends for these parameters."""
    botocore = botocore_model(service)
    sent = create_serializer(botocore.protocol, include_validation=False).serialize_to_request(
        params, botocore.operation_model(operation)
    )
    query = sent["query_string"]
    query = percent_encode_sequence(query) if not isinstance(query, str) else query
    path, _, literal = sent["url_path"].partition("?")
    query = "&".join(part for part in (literal, query) if part)
    body = sent["body"]
    if isinstance(body, dict):
        body = percent_encode_sequence(body)
    if isinstance(body, str):
        body = body.encode()
    headers = [("Host", host), *((name, str(value)) for name, value in sent["headers"].items())]
    scope = f"AKID/20260101/us-east-1/{botocore.signing_name}/aws4_request"
    headers.append(
        ("Authorization", f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature={'0' * 64}")
    )
    return HttpRequest(sent["method"], path, query, tuple(headers), body)


def read_response(service: str, operation: str, response: HttpResponse) -> dict[str, Any]:
    """What boto3 makes of an answer, without its ResponseMetadata."""
    botocore = botocore_model(service)
    shape = botocore.operation_model(operation).output_shape
    streams = (
        shape is not None
        and "payload" in shape.serialization
        and shape.members[shape.serialization["payload"]].type_name in ("blob", "string")
    )
    headers = HeadersDict(response.headers)
    body: Any = io.BytesIO(response.body) if streams and response.status < 300 else response.body
    parsed = create_parser(botocore.protocol).parse(
        {"status_code": response.status, "headers": headers, "body": body}, shape
    )
    parsed.pop("ResponseMetadata", None)
    if streams and response.status < 300:
        name = shape.serialization["payload"]
        parsed[name] = parsed[name].read()
        if shape.members[name].type_name == "string":
            parsed[name] = parsed[name].decode()
    if shape is not None:
        # botocore gives an empty dict for a map of headers of which there are none.
        for name, member in shape.members.items():
            if member.serialization.get("location") == "headers" and not parsed.get(name):
                parsed.pop(name, None)
    return dict(parsed)
