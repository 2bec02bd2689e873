"""The query protocol (iam, sts): form in, XML out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.wire import form, scalars, xml
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import Operation, Service, Shape

DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


def _name(member: Shape, name: str) -> str:
    if member.kind == "list" and member.flattened and member.member.location_name:
        return member.member.location_name
    return member.location_name or name


def _complain(path: str, value: str, wrong: str) -> AwsError:
    return AwsError("MalformedInput", f"Value '{value[:200]}' at '{path[:200]}' is malformed: {wrong}.")


_DIALECT = form.Dialect("query read", _name, _complain, lists_are_flat=False)


def parse(operation: Operation, request: HttpRequest) -> dict[str, Any]:
    tree = form.operands(form.parameters(request.query, request.body))
    return parse_tree(operation, tree, _DIALECT)


def parse_tree(operation: Operation, tree: dict[str, Any], dialect: form.Dialect) -> dict[str, Any]:
    if operation.input is None:
        for name in tree:
            raise AwsError("UnknownParameter", f"The parameter {name[:200]} is not recognized")
        return {}
    params: dict[str, Any] = dialect.read(operation.input, tree, "")
    return params


def render(operation: Operation, result: Mapping[str, Any], request_id: str) -> HttpResponse:
    name, space = operation.name, operation.service.namespace
    out = [DECLARATION, f'<{name}Response xmlns="{space}">']
    if operation.output is not None:
        wrapper = operation.result_wrapper
        if wrapper:
            out.append(f"<{wrapper}>")
        xml.contents_writer(operation.output, scalars.write_iso_seconds)(result, out)
        if wrapper:
            out.append(f"</{wrapper}>")
    elif result:
        raise TypeError(f"{name} has no output, but the handler returned {result!r}")
    out.append(f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{name}Response>")
    return HttpResponse(200, _headers(request_id), "".join(out).encode())


def render_error(service: Service | None, error: AwsError, status: int, request_id: str) -> HttpResponse:
    space = f' xmlns="{service.namespace}"' if service and service.namespace else ""
    more = "".join(f"<{key}>{xml.escape(value)}</{key}>" for key, value in error.fields.items())
    body = (
        f"<ErrorResponse{space}><Error><Type>{'Sender' if status < 500 else 'Receiver'}</Type>"
        f"<Code>{xml.escape(error.code)}</Code><Message>{xml.escape(error.message)}</Message>{more}</Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    )
    return HttpResponse(status, _headers(request_id), body.encode())


def _headers(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("x-amzn-RequestId", request_id), ("Content-Type", "text/xml"))
