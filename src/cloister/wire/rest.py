"""REST bindings: parameters in the path, the query string and headers; rest-xml and rest-json bodies."""

from __future__ import annotations

import base64
import binascii
import json as stdlib_json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from cloister.wire import json, scalars, xml
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import Operation, Service, Shape
from cloister.wire.query import DECLARATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation's HTTP binding, ready to match. `score` is how much of a request it pins down."""

    operation: str
    method: str
    path: re.Pattern[str]
    #: query parameters that must be there, with this value when it is not None
    query: tuple[tuple[str, str | None], ...]
    headers: tuple[str, ...]
    score: tuple[int, int, int]


def routes(service: Service) -> list[Route]:
    """The service's routes, the most particular first."""
    found: list[Route] | None = service.plans.get("routes")
    if found is None:
        found = [_route(service, name) for name in service.operation_names]
        found.sort(key=lambda route: (route.score, route.operation), reverse=False)
        service.plans["routes"] = found
    return found


def _route(service: Service, name: str) -> Route:
    http = service.http_of(name)
    uri, _, literal = http.get("requestUri", "/").partition("?")
    query: list[tuple[str, str | None]] = []
    for part in literal.split("&") if literal else ():
        key, equals, value = part.partition("=")
        # "x-id" only tells a log which operation was meant; a client may leave it out.
        if key != "x-id":
            query.append((key, value if equals else None))
    literals = len(query)
    headers = []
    members, required = service.input_members(name)
    for member in required:
        traits = members[member]
        if traits.get("location") == "querystring":
            query.append((traits["locationName"], None))
        elif traits.get("location") == "header":
            headers.append(traits["locationName"].lower())
    labels = uri.count("{")
    pattern = re.sub(r"\\{([^}+]*)(\\\+)?\\}", lambda m: _label(m[1], bool(m[2])), re.escape(uri))
    deprecated = 1 if service.is_deprecated(name) else 0
    score = (-len(query) - literals - len(headers), labels, deprecated)
    return Route(
        operation=name,
        method=http.get("method", "POST"),
        path=re.compile(pattern.rstrip("/") + "/?", re.DOTALL),
        query=tuple(query),
        headers=tuple(headers),
        score=score,
    )


def _label(name: str, greedy: bool) -> str:
    safe = re.sub(r"\W", "_", name.replace("\\", ""))
    return f"(?P<{safe}>{'.+' if greedy else '[^/]+'})"


def match(service: Service, request: HttpRequest) -> str | None:
    """The operation that a request's method, path, query and headers bind to."""
    query = _query(request)
    names = {key.lower() for key, _ in request.headers}
    for route in routes(service):
        if (
            route.method == request.method
            and all(key in query and (want is None or want in query[key]) for key, want in route.query)
            and all(header in names for header in route.headers)
            and route.path.fullmatch(request.path)
        ):
            return route.operation
    return None


def _query(request: HttpRequest) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in request.query.split("&") if request.query else ():
        key, _, value = part.partition("=")
        found.setdefault(_decode(key, plus=True), []).append(_decode(value, plus=True))
    return found


def _decode(text: str, *, plus: bool = False) -> str:
    if plus:
        text = text.replace("+", " ")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeError:
        raise AwsError(
            "InvalidURI", f"Couldn't parse the specified URI: {text[:200]!r} is not UTF-8."
        ) from None


# -- requests ---------------------------------------------------------------------------------------------


def parse(operation: Operation, request: HttpRequest) -> dict[str, Any]:
    shape = operation.input
    if shape is None:
        return {}
    route = next(one for one in routes(operation.service) if one.operation == operation.name)
    found = route.path.fullmatch(request.path)
    labels = found.groupdict() if found else {}
    query = _query(request)
    bound_query = {
        member.location_name for member in shape.members.values() if member.location == "querystring"
    }
    params: dict[str, Any] = {}
    for name, member in shape.members.items():
        where, wire = member.location, member.location_name or name
        if where == "uri":
            text = labels.get(re.sub(r"\W", "_", wire))
            if text is not None:
                params[name] = _scalar(member, _decode(text), name)
        elif where == "querystring":
            if member.kind == "map":
                rest = {key: values for key, values in query.items() if key not in bound_query}
                flat = member.value.kind != "list"
                params[name] = {key: values[0] if flat else values for key, values in rest.items()}
            elif wire in query:
                values = query[wire]
                if member.kind == "list":
                    params[name] = [_scalar(member.member, value, name) for value in values]
                else:
                    params[name] = _scalar(member, values[0], name)
        elif where == "header":
            text = request.header(wire)
            if text is not None:
                params[name] = _header_value(member, text, name)
        elif where == "headers":
            prefix = wire.lower()
            given = {
                key[len(prefix) :]: value for key, value in request.headers if key.lower().startswith(prefix)
            }
            if given:
                params[name] = given
    params.update(_parse_body(operation, shape, request))
    return params


def _parse_body(operation: Operation, shape: Shape, request: HttpRequest) -> dict[str, Any]:
    payload: str | None = shape.traits.get("payload")
    is_json = operation.service.protocol == "rest-json"
    if payload is not None:
        member = shape.members[payload]
        if member.kind == "blob":
            return {payload: request.body}
        if not request.body:
            return {}
        if member.kind == "string":
            try:
                return {payload: request.body.decode("utf-8")}
            except UnicodeDecodeError:
                raise AwsError("InvalidArgument", f"{payload} is not UTF-8.") from None
        if is_json:
            return {payload: json.read(member, json.load(request.body), payload)}
        return {payload: _read_root(member, request.body, member.location_name)}
    if not request.body.strip() or all(member.location for member in shape.members.values()):
        return {}
    if is_json:
        value = json.read(shape, json.load(request.body), "")
        return value if isinstance(value, dict) else {}
    body: dict[str, Any] = _read_root(shape, request.body, shape.location_name)
    return body


def _read_root(shape: Shape, body: bytes, expected: str | None) -> Any:
    root = xml.parse(body)
    if expected and root.tag != expected:
        raise xml.malformed(f"the document must be a {expected}, not a {root.tag[:100]}.")
    return xml.read(shape, root)


def _scalar(shape: Shape, text: str, name: str, default_format: str = "iso8601") -> Any:
    try:
        return scalars.read_scalar(shape.kind, text, shape.traits.get("timestampFormat", default_format))
    except ValueError as error:
        raise AwsError(
            "InvalidArgument",
            f"Value '{text[:200]}' of {name} is not valid: {error}.",
            ArgumentName=name,
            ArgumentValue=text[:200],
        ) from None


def _header_value(shape: Shape, text: str, name: str) -> Any:
    if shape.kind == "list":
        return [_scalar(shape.member, item, name, "rfc822") for item in split_list(text)]
    if shape.traits.get("jsonvalue"):
        try:
            return stdlib_json.loads(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError, RecursionError):
            raise AwsError("InvalidArgument", f"{name} is not base64 of JSON.") from None
    return _scalar(shape, text, name, "rfc822")


_LIST_ITEM = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^,]*))\s*(?:,|$)')


def split_list(text: str) -> list[str]:
    """The entries of a header that is a comma-separated list, quoted where they hold commas."""
    if '"' not in text:
        return [item.strip() for item in text.split(",")]
    items = []
    at = 0
    while at < len(text):
        found = _LIST_ITEM.match(text, at)
        if found is None:
            raise AwsError("InvalidArgument", f"The header value {text[:200]!r} is not a list.")
        quoted = found[1]
        items.append(found[2].strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = found.end()
    return items


# -- responses --------------------------------------------------------------------------------------------


def render(operation: Operation, result: Mapping[str, Any], request_id: str) -> HttpResponse:
    shape = operation.output
    status: int = operation.service.http_of(operation.name).get("responseCode", 200)
    headers = [("x-amz-request-id", request_id)]
    body = b""
    is_json = operation.service.protocol == "rest-json"
    if shape is None:
        if result:
            raise TypeError(f"{operation.name} has no output, but the handler returned {result!r}")
        return HttpResponse(status, tuple(headers), body)
    for name, value in result.items():
        member = shape.members.get(name)
        if member is None:
            raise TypeError(f"{shape.name} has no member {name!r}")
        where, wire = member.location, member.location_name or name
        if value is None or where is None:
            continue
        if where == "header":
            headers.append((wire, _render_header(member, value)))
        elif where == "headers":
            headers.extend((wire + key, scalars.write_string(item)) for key, item in value.items())
        elif where == "statusCode":
            status = value
    payload: str | None = shape.traits.get("payload")
    content_type = "application/json" if is_json else "application/xml"
    if payload is not None:
        value, member = result.get(payload), shape.members[payload]
        if value is None:
            return HttpResponse(status, tuple(headers), b"")
        if member.kind in ("blob", "string"):
            body = value.encode() if isinstance(value, str) else bytes(value)
            return HttpResponse(status, tuple(headers), body)
        body = (
            json.dump(json.converter(member)(value))
            if is_json
            else _document(operation, member, value, payload)
        )
    elif any(member.location is None for member in shape.members.values()):
        if is_json:
            body = json.dump(json.converter(shape)(_in_body(shape, result)))
        elif operation.name == "GetBucketLocation":
            body = _location(result.get("LocationConstraint"))
        else:
            body = _document(operation, shape, result, shape.location_name or f"{operation.name}Result")
    if body and operation.method != "HEAD":
        headers.append(("Content-Type", content_type))
        return HttpResponse(status, tuple(headers), body)
    return HttpResponse(status, tuple(headers), b"")


def _in_body(shape: Shape, result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if shape.members[name].location is None}


#: S3's documents whose root the model does not name; SDKs that do not read the model expect these
_ROOTS = {
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketCors": "CORSConfiguration",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketLogging": "BucketLoggingStatus",
    "GetBucketTagging": "Tagging",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetBucketWebsite": "WebsiteConfiguration",
    "GetObjectAcl": "AccessControlPolicy",
    "GetObjectTagging": "Tagging",
    "ListBuckets": "ListAllMyBucketsResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListObjectVersions": "ListVersionsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "ListParts": "ListPartsResult",
}


def _document(operation: Operation, shape: Shape, value: Any, name: str) -> bytes:
    tag = shape.location_name or _ROOTS.get(operation.name, name)
    space = operation.service.namespace or "http://s3.amazonaws.com/doc/2006-03-01/"
    out = [DECLARATION, f'<{tag} xmlns="{space}">']
    xml.contents_writer(shape)(value, out)
    out.append(f"</{tag}>")
    return "".join(out).encode()


def _location(region: str | None) -> bytes:
    """GetBucketLocation's document is its root's text; us-east-1 is the empty one."""
    text = xml.escape(region or "")
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'{DECLARATION}<LocationConstraint xmlns="{space}">{text}</LocationConstraint>'.encode()


def _render_header(shape: Shape, value: Any) -> str:
    if shape.kind == "timestamp":
        return scalars.write_timestamp(value, shape.traits.get("timestampFormat", "rfc822"))
    if shape.kind == "list":
        return ",".join(_quote(_render_header(shape.member, item)) for item in value)
    if shape.traits.get("jsonvalue"):
        return base64.b64encode(stdlib_json.dumps(value, separators=(",", ":")).encode()).decode("ascii")
    return scalars.WRITERS[shape.kind](value)


def _quote(text: str) -> str:
    if "," not in text and '"' not in text:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def render_error(error: AwsError, status: int, request_id: str, *, head: bool) -> HttpResponse:
    """S3's error document; a HEAD's answer and a 304 have no body."""
    headers = (("x-amz-request-id", request_id), ("Content-Type", "application/xml"))
    if head or status in (204, 304):
        return HttpResponse(status, headers[:1], b"")
    more = "".join(f"<{key}>{xml.escape(value)}</{key}>" for key, value in error.fields.items())
    body = (
        f"{DECLARATION}<Error><Code>{xml.escape(error.code)}</Code>"
        f"<Message>{xml.escape(error.message)}</Message>{more}<RequestId>{request_id}</RequestId></Error>"
    )
    return HttpResponse(status, headers, body.encode())
