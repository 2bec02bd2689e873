"""EC2's protocol: the query protocol with names of its own, flat lists and another envelope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.wire import form, xml
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import Operation, Shape
from cloister.wire.query import DECLARATION, parse_tree


def wire_name(member: Shape, name: str) -> str:
    """How a parameter is called: its queryName, else its capitalised locationName, else its own name."""
    query_name: str | None = member.traits.get("queryName")
    if query_name:
        return query_name
    location = member.location_name
    return location[0].upper() + location[1:] if location else name


def _complain(path: str, value: str, wrong: str) -> AwsError:
    return AwsError(
        "InvalidParameterValue", f"Value ({value[:200]}) for parameter {path[:200]} is invalid: {wrong}."
    )


_DIALECT = form.Dialect("ec2 read", wire_name, _complain, lists_are_flat=True)


def parse(operation: Operation, request: HttpRequest) -> dict[str, Any]:
    return parse_tree(operation, form.operands(form.parameters(request.query, request.body)), _DIALECT)


def render(operation: Operation, result: Mapping[str, Any], request_id: str) -> HttpResponse:
    name = operation.name
    out = [DECLARATION, f'<{name}Response xmlns="{operation.service.namespace}/">']
    out.append(f"<requestId>{request_id}</requestId>")
    if operation.output is not None:
        xml.contents_writer(operation.output)(result, out)
    elif result:
        raise TypeError(f"{name} has no output, but the handler returned {result!r}")
    else:
        # AWS answers an operation without output with a plain success.
        out.append("<return>true</return>")
    out.append(f"</{name}Response>")
    return HttpResponse(200, _headers(request_id), "".join(out).encode())


def render_error(error: AwsError, status: int, request_id: str) -> HttpResponse:
    more = "".join(f"<{key}>{xml.escape(value)}</{key}>" for key, value in error.fields.items())
    body = (
        f"{DECLARATION}<Response><Errors><Error><Code>{xml.escape(error.code)}</Code>"
        f"<Message>{xml.escape(error.message)}</Message>{more}</Error></Errors>"
        f"<RequestID>{request_id}</RequestID></Response>"
    )
    return HttpResponse(status, _headers(request_id), body.encode())


def _headers(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("x-amzn-RequestId", request_id), ("Content-Type", "text/xml;charset=UTF-8"))
