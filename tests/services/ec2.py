"""Calling EC2 operations in tests as a client does, without a socket: botocore's serializer writes the
request, `wire` reads it, the handler answers, `wire` writes the response, botocore's parser reads it.
What the handler returned must fit the model's output shape, and come out of the wire as it went in."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlencode

import botocore.session
import pytest
from botocore.model import OperationModel, ServiceModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator
from tests.services.calls import invoke, make_call

from cloister import services
from cloister.services.api import Call
from cloister.wire import protocol
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

services.load("cloister.services.ec2")


@cache
def model() -> ServiceModel:
    return botocore.session.get_session().get_service_model("ec2")


def check_result(operation: OperationModel, result: dict[str, Any]) -> None:
    """A handler's result has only members of the output shape, of the right types."""
    if operation.output_shape is None:
        assert result == {}, f"{operation.name} has no result, but this came: {result}"
    else:
        report = ParamValidator().validate(result, operation.output_shape)
        assert not report.has_errors(), f"{operation.name}: {report.generate_report()}"


def ec2(call: Call, operation_name: str, /, **params: Any) -> dict[str, Any]:
    """Run one EC2 operation through the wire; returns what a client of boto3 gets."""
    operation = model().operation_model(operation_name)
    written = create_serializer("ec2", include_validation=False).serialize_to_request(params, operation)
    request = HttpRequest(
        written["method"],
        written["url_path"],
        "",
        tuple(written["headers"].items()),
        urlencode(written["body"]).encode(),
    )
    target = protocol.identify(request, "ec2")
    result = invoke(call, "ec2", target.operation, **protocol.parse(target, request))
    check_result(operation, result)
    response = protocol.render(target, result, call.request_id)
    parsed: dict[str, Any] = create_parser("ec2").parse(
        {"body": response.body, "headers": dict(response.headers), "status_code": response.status},
        operation.output_shape,
    )
    parsed.pop("ResponseMetadata")
    assert parsed.keys() == result.keys()
    return parsed


def refusal(call: Call, operation: str, /, **params: Any) -> AwsError:
    """The error that an operation raises. Nothing it did before may count: it runs on a copy."""
    scratch = make_call(call.tx.commit(), region=call.region, now=call.now, **call.deps)
    with pytest.raises(AwsError) as caught:
        ec2(scratch, operation, **params)
    return caught.value


def ids(found: list[dict[str, Any]], member: str) -> list[str]:
    return [one[member] for one in found]


def filters(**named: str | list[str]) -> list[dict[str, Any]]:
    """`filters(vpc_id="vpc-1", tag__Name=["a*"])`: one underscore is a dash, two are a colon."""
    return [
        {
            "Name": name.replace("__", ":").replace("_", "-"),
            "Values": value if isinstance(value, list) else [value],
        }
        for name, value in named.items()
    ]
