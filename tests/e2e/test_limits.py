"""An instance type's memory is what its container gets."""

from __future__ import annotations

import os

import pytest
from tests.e2e.conftest import Lab

pytestmark = pytest.mark.e2e

GREEDY = """
print("begins", flush=True)
blocks = []
for _ in range(80):
    blocks.append(bytearray(64 << 20))
print("more than an ml.t3.medium has")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are the host's: only root may limit here")
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 7 << 30, reason="needs 7 GiB of memory"
)
def test_a_job_that_needs_more_memory_than_its_type_has_fails_as_on_aws(shared: Lab) -> None:
    request = shared.scripted(f"greedy-{shared.on.mark}", GREEDY)
    request["ProcessingResources"]["ClusterConfig"]["InstanceType"] = "ml.t3.medium"
    ended = shared.outcome(request)
    assert ended["ProcessingJobStatus"] == "Failed"
    assert ended["FailureReason"] == (
        "ClientError: Please use an instance type with more memory, or reduce the size of job data processed "
        "on an instance."
    )
    assert "more than" not in shared.log(ended)
