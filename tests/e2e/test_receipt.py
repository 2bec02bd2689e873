"""`cloister receipt` and `cloister why` of an ended job: what it really reached, and what it was refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Cloister, Lab, daemon_pid

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

SCRIPT = """
import socket, sys, time
import boto3, botocore.config, botocore.exceptions
config = botocore.config.Config(connect_timeout=4, retries={"total_max_attempts": 1})
s3 = boto3.client("s3", region_name="us-east-1", config=config)
s3.get_object(Bucket=sys.argv[1], Key="big")["Body"].read()
try:
    s3.get_object(Bucket=sys.argv[2], Key="x")
except botocore.exceptions.ClientError as error:
    print(error)
for place in (("10.40.1.77", 5432), ("198.51.100.7", 443)):
    try:
        socket.create_connection(place, timeout=0.7)
    except OSError as error:
        print(error)
open("/opt/ml/processing/out/result", "w").write("r" * 1000)
"""


def _command(cloister: Cloister, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister.cli.main", "--state", str(cloister.state), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_receipt_tells_what_a_job_reached_and_was_refused_and_cannot_be_altered(
    cloister: Cloister, lab: Lab, tmp_path: Path
) -> None:
    on = lab.on
    other = blocks.make_bucket(on, f"other-{on.mark}")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OneBucket",
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [f"arn:aws:s3:::{lab.bucket}", f"arn:aws:s3:::{lab.bucket}/*"],
            }
        ],
    }
    on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, PolicyDocument=json.dumps(policy))
    lab.put("big", b"b" * 3_000_000)
    name = f"receipt-{on.mark}"
    request = lab.scripted(
        name,
        SCRIPT,
        lab.bucket,
        other,
        ProcessingOutputConfig={
            "Outputs": [lab.output("out", f"s3://{lab.bucket}/o", "/opt/ml/processing/out")]
        },
    )
    job = lab.outcome(request)
    assert job["ProcessingJobStatus"] == "Completed", (job, lab.log(job))

    file = tmp_path / "receipt.json"
    done = _command(cloister, "receipt", name, "-o", str(file), "--json")
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)["receipt"]
    assert body["network"]["subnet"]["id"] == lab.subnet
    assert [group["id"] for group in body["network"]["security_groups"]] == [lab.group]

    # every destination with its bytes, and the way it went
    s3 = [each for each in body["reached"] if each["who"] == "algo-1" and each["port"] == 443]
    assert sum(each["bytes_received"] for each in s3) > 3_000_000, body["reached"]
    assert all(lab.endpoint in each["through"] for each in s3), s3
    assert any(lab.route_table in origin for each in s3 for origin in each["through"])
    agent = [each for each in body["reached"] if each["who"] == "algo-1's agent" and each["port"] == 443]
    assert agent

    assert body["connections_may_be_missing"] == []

    # every decision of the policies, and every packet refused
    requests = {(r["who"], r["action"], r["resource"]): r for r in body["requests"]}
    assert requests["algo-1", "s3:GetObject", f"arn:aws:s3:::{lab.bucket}"]["outcome"] == "allowed"
    refused = requests["algo-1", "s3:GetObject", f"arn:aws:s3:::{other}"]
    assert (refused["outcome"], refused["endpoint"], refused["count"]) == ("refused", lab.endpoint, 1)
    assert "VPC endpoint policy" in refused["why"]
    dropped = {each["to"]: each for each in body["refused"]}
    assert dropped["198.51.100.7"]["gate"] == "route", dropped
    assert lab.route_table in dropped["198.51.100.7"]["by"]
    assert dropped["198.51.100.7"]["packets"] >= 1

    digests = body["data"]["outputs"]["out"]["algo-1"]
    assert (digests["objects"], digests["bytes"]) == (1, 1000)
    assert body["data"]["inputs"]["code"]["algo-1"]["objects"] == 1

    text = _command(cloister, "receipt", name).stdout
    assert lab.endpoint in text
    assert "198.51.100.7" in text

    # anybody can check it, and nobody alter it
    assert _command(cloister, "receipt", "--verify", str(file)).returncode == 0
    file.write_text(file.read_text().replace("198.51.100.7", "198.51.100.8"))
    altered = _command(cloister, "receipt", "--verify", str(file))
    assert (altered.returncode, "something was changed" in altered.stdout) == (1, True)
    assert (cloister.state / "receipt.key").stat().st_mode & 0o777 == 0o600

    # what was refused then is told also when the rules are others, by another daemon
    on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, ResetPolicy=True)
    os.kill(daemon_pid(cloister.state), signal.SIGKILL)
    cloister.up()
    found = json.loads(_command(cloister, "why", name, "--json").stdout)
    whats = {each["what"]: each for each in found["refused"]}
    assert f"algo-1: s3:GetObject arn:aws:s3:::{other}/x" in whats, whats
    assert whats["algo-1 to 198.51.100.7 tcp port 443"]["by"].startswith(lab.route_table)
    said = _command(cloister, "why", name).stdout
    assert "Refused while it ran" in said
    assert "By the rules as they are now" in said


FRUITLESS = """
import socket, sys
try:
    socket.create_connection(("198.51.100.7", 443), timeout=0.7)
except OSError:
    sys.exit(4)
"""


def test_a_failed_job_names_the_policy_or_the_rule_that_stood_in_its_way(
    cloister: Cloister, lab: Lab
) -> None:
    on = lab.on
    other = blocks.make_bucket(on, f"barred-{on.mark}")
    on.s3.put_object(Bucket=other, Key="in/part", Body=b"x")
    lab.put("barred/part", b"x")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "All", "Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"},
            {
                "Sid": "NotThere",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{lab.bucket}/barred/*",
            },
        ],
    }
    on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, PolicyDocument=json.dumps(policy))

    def reading(name: str, uri: str) -> str:
        given = [lab.input("in", uri, "/opt/ml/processing/in")]
        job = lab.outcome(lab.request(f"{name}-{on.mark}", "true", ProcessingInputs=given))
        return str(job["FailureReason"])

    known = "ClientError: Failed to download data. "
    reason = reading("barred", f"s3://{lab.bucket}/barred/")
    assert reason.startswith(f"{known}GetObject failed for s3://{lab.bucket}/barred/part: User: "), reason
    assert f"): NotThere of {lab.endpoint} (aws ec2 modify-vpc-endpoint " in reason, reason
    reason = reading("foreign", f"s3://{other}/in/")
    assert reason.startswith(f"{known}ListObjectsV2 failed for s3://{other}/in/, nextToken:[null]: User: ")
    assert " has no such statement (aws iam put-role-policy " in reason, reason

    reason = lab.outcome(lab.scripted(f"fruitless-{on.mark}", FRUITLESS))["FailureReason"]
    known = "AlgorithmError: , exit code: 4: algo-1 to 198.51.100.7 tcp port 443 was refused: "
    assert reason.startswith(known), reason
    assert "rtb-" in reason.removeprefix(known), reason
