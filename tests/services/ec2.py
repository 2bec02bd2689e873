"""Calling EC2 operations in tests: parameters and results are checked against botocore's model."""

from __future__ import annotations

from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from tests.services.calls import invoke

from cloister import services
from cloister.services.api import Call
from cloister.wire.errors import AwsError

services.load("cloister.services.ec2")


@cache
def model() -> ServiceModel:
    return botocore.session.get_session().get_service_model("ec2")


def check_shape(shape: Any, value: dict[str, Any], what: str) -> None:
    """Only members of the shape, of its types."""
    if shape is None:
        assert value == {}, f"{what} has no result, but this came: {value}"
    else:
        report = ParamValidator().validate(value, shape)
        assert not report.has_errors(), f"{what}: {report.generate_report()}"


def ec2(call: Call, operation: str, /, **params: Any) -> dict[str, Any]:
    """Run one EC2 operation; what goes in and what comes out must fit the model."""
    shapes = model().operation_model(operation)
    check_shape(shapes.input_shape, params, f"{operation}'s request")
    result = invoke(call, "ec2", operation, **params)
    check_shape(shapes.output_shape, result, f"{operation}'s result")
    return result


def refusal(call: Call, operation: str, /, **params: Any) -> AwsError:
    """The error that an operation raises."""
    with pytest.raises(AwsError) as caught:
        ec2(call, operation, **params)
    return caught.value


def ids(found: list[dict[str, Any]], member: str) -> list[str]:
    return [one[member] for one in found]
