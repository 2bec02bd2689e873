"""Every operation that Cloister implements, there and back through botocore."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.wire.generate import as_carried, operation_of, params_for, read_response, request_of

from cloister import services
from cloister.services.api import OPERATIONS
from cloister.wire import protocol

services.load()
#: for each of some hundred operations, so a share of what other laws get
SHARE = settings(
    max_examples=settings.default.max_examples // 15,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(("service", "name"), sorted(OPERATIONS))
def test_an_implemented_operation_goes_there_and_back(service: str, name: str) -> None:
    @SHARE
    @given(st.data())
    def check(data: st.DataObject) -> None:
        operation = operation_of(service, name)
        params = data.draw(params_for(operation.input))
        request = request_of(service, name, params)
        target = protocol.identify(request)
        assert (target.service, target.operation) == (service, name)
        # What the protocol cannot carry (an empty list over ec2) may be a required member: not valid then.
        if as_carried(target.protocol, operation.input, params) == params:
            assert protocol.parse(target, request) == params
        result = data.draw(params_for(operation.output))
        answer = read_response(service, name, protocol.render(target, result, "a-request-id"))
        assert answer == as_carried(target.protocol, operation.output, result, response=True)

    check()
