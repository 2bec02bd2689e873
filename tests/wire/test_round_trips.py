"""Our readers against botocore's writers, our writers against botocore's readers, over generated values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.wire.generate import as_carried, operation_of, params_for, read_response, request_of

from cloister.wire import model, protocol
from cloister.wire.model import Shape

SERVICES = ["ec2", "sagemaker", "iam", "sts", "logs", "s3"]
#: answers that are event streams; GetBucketLocation, which boto3 reads by a handler of its own; and
#: operations that only their host tells from another
ODD = {
    "ListDirectoryBuckets",
    "StartLiveTail",
    "SelectObjectContent",
    "GetBucketLocation",
    "WriteGetObjectResponse",
    "GetLogObject",
}
QUIET = settings(suppress_health_check=list(HealthCheck))


def operations(service: str) -> list[str]:
    # A deprecated twin shares its route with the one that replaced it.
    loaded = model.service(service)
    return [n for n in loaded.operation_names if n not in ODD and not loaded.is_deprecated(n)]


@pytest.mark.parametrize("service", SERVICES)
def test_what_boto3_sends_is_what_is_parsed(service: str) -> None:
    @QUIET
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(operations(service)))
        operation = operation_of(service, name)
        params = data.draw(params_for(operation.input))
        request = request_of(service, name, params)
        target = protocol.identify(request)
        assert (target.service, target.operation) == (service, name)
        expected = as_carried(target.protocol, operation.input, params)
        assert _parse(target, request) == _without_empty_payload(operation.input, expected)

    check()


def _parse(target: protocol.Target, request: Any) -> dict[str, Any]:
    """Parsed without validating: what the protocol drops may have been required."""
    module = {"ec2": protocol.ec2, "query": protocol.query, "json": protocol.json}.get(
        target.protocol, protocol.rest
    )
    operation = operation_of(target.service, target.operation)
    params: dict[str, Any] = module.parse(operation, request)  # type: ignore[attr-defined]
    return _without_empty_payload(operation.input, params)


def _without_empty_payload(shape: Shape | None, params: dict[str, Any]) -> dict[str, Any]:
    """A body that is not sent and one that is empty are the same bytes."""
    payload = shape.traits.get("payload") if shape is not None else None
    return {name: value for name, value in params.items() if name != payload or value not in (b"", "", {})}


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_rendered_is_what_boto3_reads(service: str) -> None:
    @QUIET
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(operations(service)))
        operation = operation_of(service, name)
        result = data.draw(params_for(operation.output))
        target = protocol.Target(service=service, operation=name, protocol=operation.service.protocol)
        response = protocol.render(target, result, "a-request-id")
        expected = as_carried(target.protocol, operation.output, result, response=True)
        found = _without_empty_payload(operation.output, read_response(service, name, response))
        assert found == _without_empty_payload(operation.output, expected)

    check()
