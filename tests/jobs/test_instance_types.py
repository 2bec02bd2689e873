"""What instance types have, against the API's own list of names."""

from __future__ import annotations

import botocore.session
import pytest

from cloister.jobs.instance_types import instance_type
from cloister.jobs.staging import limits

GIB = 1 << 30


def test_every_type_that_the_api_names_is_known() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    names = model.shape_for("ProcessingInstanceType").enum
    assert [name for name in names if instance_type(name) is None] == []


@pytest.mark.parametrize(
    ("name", "vcpus", "gib"),
    [
        ("ml.t3.medium", 2, 4),
        ("ml.m5.large", 2, 8),
        ("ml.m5.xlarge", 4, 16),
        ("ml.m5.24xlarge", 96, 384),
        ("ml.c4.xlarge", 4, 7.5),
        ("ml.c5.18xlarge", 72, 144),
        ("ml.r5.4xlarge", 16, 128),
        ("ml.p3.8xlarge", 32, 244),
        ("ml.g4dn.12xlarge", 48, 192),
        ("ml.g5.48xlarge", 192, 768),
    ],
)
def test_a_type_has_what_aws_says(name: str, vcpus: int, gib: float) -> None:
    found = instance_type(name)
    assert found is not None
    assert (found.vcpus, found.memory) == (vcpus, int(gib * GIB))


def test_a_container_gets_no_more_than_the_host_has_and_an_unknown_type_no_limit() -> None:
    small, large = limits("ml.t3.medium"), limits("ml.m5.24xlarge")
    assert small.memory is not None
    assert large.memory is not None
    assert small.memory <= 4 * GIB
    assert small.memory <= large.memory < 384 * GIB
    assert limits("ml.none.large").memory is None
