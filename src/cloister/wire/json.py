"""The JSON protocols, 1.0 and 1.1 (sagemaker, logs …), and the bodies of rest-json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

from cloister.wire import scalars
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import Operation, Service, Shape

Convert: TypeAlias = Callable[[Any], Any]

_ARTICLE = {
    "string": "a String",
    "character": "a Character",
    "integer": "an Integer",
    "long": "a Long",
    "float": "a Float",
    "double": "a Double",
    "boolean": "a Boolean",
    "timestamp": "a Timestamp",
    "blob": "a Blob",
    "structure": "a structure",
    "list": "a list",
    "map": "a map",
}


def _refuse(message: str, path: str) -> NoReturn:
    where = f" (at '{path[:300]}')" if path else ""
    raise AwsError("SerializationException", message + where)


def _unfit(value: Any, shape: Shape, path: str) -> NoReturn:
    if isinstance(value, dict):
        _refuse("Start of structure or map found where not expected", path)
    if isinstance(value, list):
        _refuse("Start of list found where not expected", path)
    token = {True: "TRUE_VALUE", False: "FALSE_VALUE"}.get(value) if isinstance(value, bool) else None
    token = token or ("STRING_VALUE" if isinstance(value, str) else "NUMBER_VALUE")
    _refuse(f"{token} can not be converted to {_ARTICLE[shape.kind]}", path)


def parse(operation: Operation, request: HttpRequest) -> dict[str, Any]:
    if operation.input is None:
        return {}
    value = load(request.body) if request.body else {}
    params = read(operation.input, value, "")
    if not isinstance(params, dict):
        _refuse("null can not be converted to a structure", "")
    return params


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def load(body: bytes) -> Any:
    """The JSON document. Raises SerializationException: not JSON, not UTF-8, nested too deeply."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        if b"\\u" in body:
            # An escaped half of a surrogate pair is a string that cannot be written as UTF-8 again.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise AwsError("SerializationException", "The request's body is not UTF-8.") from None
    except RecursionError:
        raise AwsError("SerializationException", "The request's body is nested too deeply.") from None
    except ValueError as error:
        raise AwsError("SerializationException", f"The request's body is not JSON: {error}.") from None
    return value


def read(shape: Shape, value: Any, path: str) -> Any:
    """A parsed JSON value as this shape's Python value; null members are left out."""
    kind = shape.kind
    if kind == "string":
        if isinstance(value, str):
            return value
        if isinstance(value, dict | list) and shape.traits.get("jsonvalue"):
            return value
    elif kind == "structure":
        if isinstance(value, dict):
            return value if shape.is_document else _read_structure(shape, value, path)
        if shape.is_document:
            return value
    elif kind == "list":
        if isinstance(value, list):
            member = shape.member
            return [
                None if item is None else read(member, item, f"{path}[{index}]")
                for index, item in enumerate(value)
            ]
    elif kind == "map":
        if isinstance(value, dict):
            item_shape = shape.value
            return {
                key: None if item is None else read(item_shape, item, f"{path}.{key}")
                for key, item in value.items()
            }
    else:
        return _read_scalar(shape, value, path)
    _unfit(value, shape, path)


def _read_scalar(shape: Shape, value: Any, path: str) -> Any:
    kind = shape.kind
    try:
        if kind in ("integer", "long"):
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool):
                return scalars.check_integer(value, kind)
        elif kind == "boolean":
            if isinstance(value, bool):
                return value
        elif kind in ("float", "double"):
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if value in ("NaN", "Infinity", "-Infinity"):
                return scalars.read_float(value)
        elif kind == "timestamp":
            if isinstance(value, str):
                return scalars.read_timestamp(value, shape.traits.get("timestampFormat", "unixTimestamp"))
            if isinstance(value, int | float) and not isinstance(value, bool):
                return scalars.from_epoch(value)
        elif isinstance(value, str):
            return scalars.read_blob(value) if kind == "blob" else value
    except (ValueError, OverflowError) as error:
        _refuse(f"{value!r:.200} can not be converted to {_ARTICLE[kind]}: {error}", path)
    _unfit(value, shape, path)


def _read_structure(shape: Shape, value: dict[str, Any], path: str) -> dict[str, Any]:
    names: dict[str, tuple[str, Shape]] | None = shape.plans.get("json read")
    if names is None:
        names = shape.plans["json read"] = {
            member.location_name or name: (name, member)
            for name, member in shape.members.items()
            if member.location is None
        }
    result: dict[str, Any] = {}
    for key, item in value.items():
        known = names.get(key)
        if known is None:
            if key == "__type":
                continue
            # Never dropped in silence: what is asked for and not done must be said.
            where = f"{path}.{key}" if path else key
            _refuse(f"The member '{key[:200]}' is not recognized", where)
        if item is not None:
            name, member = known
            result[name] = read(member, item, f"{path}.{name}" if path else name)
    return result


# -- writing ----------------------------------------------------------------------------------------------


def converter(shape: Shape) -> Convert:
    """A function that turns a result's value of this shape into what json.dumps takes; TypeError if it
    does not fit the shape."""
    found: Convert | None = shape.plans.get("json write")
    if found is None:
        found = shape.plans["json write"] = _make_converter(shape)
    return found


def _make_converter(shape: Shape) -> Convert:
    kind = shape.kind
    if kind == "structure":
        return (lambda value: value) if shape.is_document else _structure_converter(shape)
    if kind == "list":

        def convert_list(value: Any) -> Any:
            if not isinstance(value, list | tuple):
                raise TypeError(f"{shape.name} must be a list, not {value!r}")
            convert = converter(shape.member)
            return [None if item is None else convert(item) for item in value]

        return convert_list
    if kind == "map":

        def convert_map(value: Any) -> Any:
            if not isinstance(value, Mapping):
                raise TypeError(f"{shape.name} must be a mapping, not {value!r}")
            convert = converter(shape.value)
            return {scalars.write_string(key): None if v is None else convert(v) for key, v in value.items()}

        return convert_map
    if kind == "timestamp":
        form = shape.traits.get("timestampFormat", "unixTimestamp")
        if form == "unixTimestamp":
            return scalars.write_epoch
        return lambda value: scalars.write_timestamp(value, form)
    if kind in ("float", "double"):

        def convert_float(value: Any) -> Any:
            text = scalars.write_float(value)
            return value if math.isfinite(value) else text

        return convert_float
    if kind == "blob":
        return scalars.write_blob
    if kind == "string" and shape.traits.get("jsonvalue"):
        return lambda value: value
    check = scalars.WRITERS[kind]

    def convert_scalar(value: Any) -> Any:
        check(value)
        return value

    return convert_scalar


def _structure_converter(shape: Shape) -> Convert:
    table: dict[str, tuple[str, Convert]] = {}

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{shape.name} must be a mapping, not {value!r}")
        result: dict[str, Any] = {}
        for name, item in value.items():
            if item is None:
                continue
            known = table.get(name)
            if known is None:
                member = shape.members.get(name)
                if member is None:
                    raise TypeError(f"{shape.name} has no member {name!r}")
                known = table[name] = (member.location_name or name, converter(member))
            result[known[0]] = known[1](item)
        return result

    return convert


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def render(operation: Operation, result: Mapping[str, Any], request_id: str) -> HttpResponse:
    if operation.output is None:
        if result:
            raise TypeError(f"{operation.name} has no output, but the handler returned {result!r}")
        # AWS answers operations that have no output shape with an empty body.
        return HttpResponse(200, _headers(operation.service, request_id), b"")
    body = dump(converter(operation.output)(result))
    return HttpResponse(200, _headers(operation.service, request_id), body)


def render_error(
    service: Service | None, operation: Operation | None, error: AwsError, status: int, request_id: str
) -> HttpResponse:
    modelled = operation.errors.get(error.code) if operation else None
    key = "Message" if modelled is not None and "Message" in modelled.members else "message"
    body = dump({"__type": error.code, key: error.message, **error.fields})
    return HttpResponse(status, _headers(service, request_id), body)


def _headers(service: Service | None, request_id: str) -> tuple[tuple[str, str], ...]:
    version = service.json_version if service else "1.1"
    return (("x-amzn-RequestId", request_id), ("Content-Type", f"application/x-amz-json-{version}"))
