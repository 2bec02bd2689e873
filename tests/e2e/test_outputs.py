"""Outputs that go to S3 while a job runs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.conftest import OUT, Lab, fresh, wait_until

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

#: writes, waits until somebody has put the object `go`, and writes again
SCRIPT = f"""
import sys, time, boto3
s3, bucket, go = boto3.client("s3"), *sys.argv[1:]
open("{OUT}/first", "w").write("1")
while not s3.list_objects_v2(Bucket=bucket, Prefix=go).get("KeyCount"):
    open("{OUT}/log", "a").write("still waiting\\n")
    time.sleep(0.5)
open("{OUT}/last", "w").write("2")
"""


def test_a_continuous_output_is_in_s3_while_the_job_runs_and_whole_at_its_end(shared: Lab) -> None:
    name = fresh("continuous")
    output: dict[str, Any] = shared.output("out", f"s3://{shared.bucket}/{name}/out", OUT)
    output["S3Output"]["S3UploadMode"] = "Continuous"
    results = {"Outputs": [output]}
    go = f"{name}/go"
    shared.create(shared.scripted(name, SCRIPT, shared.bucket, go, ProcessingOutputConfig=results))

    def there() -> set[str]:
        listed = shared.on.s3.list_objects_v2(Bucket=shared.bucket, Prefix=f"{name}/out/")
        return {each["Key"].rpartition("/")[2] for each in listed.get("Contents", ())}

    wait_until("the first files are in S3", lambda: there() >= {"first", "log"})
    job = shared.on.sagemaker.describe_processing_job(ProcessingJobName=name)
    assert job["ProcessingJobStatus"] == "InProgress"
    shared.put(go, b"")
    job = blocks.wait_for(shared.on, name)
    assert job["ProcessingJobStatus"] == "Completed", job
    assert there() == {"first", "log", "last"}
    assert set(shared.get(f"{name}/out/log").splitlines()) == {b"still waiting"}
