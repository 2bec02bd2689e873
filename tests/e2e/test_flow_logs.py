"""Flow logs end to end: a job's traffic, in CloudWatch Logs and in S3, as stock clients read them."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.conftest import Cloister, Lab, wait_until

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

FORMAT = (
    "${interface-id} ${srcaddr} ${dstaddr} ${dstport} ${protocol} ${packets} ${bytes} ${action} ${log-status}"
)
#: one connection to S3, and one to an interface whose group lets nobody in
SCRIPT = """
import socket, sys
socket.create_connection(("s3.us-east-1.amazonaws.com", 443), timeout=4).close()
try:
    socket.create_connection((sys.argv[1], 9), timeout=0.5)
except OSError as error:
    print(error)
"""


@contextmanager
def _closed(cloister: Cloister, lab: Lab) -> Iterator[str]:
    """The address of a program's interface that nobody may reach."""
    group = blocks.make_group(lab.on, lab.vpc, f"closed-{lab.on.mark}", allow_itself=False)
    command = [sys.executable, "-m", "cloister.cli.main", "--state", str(cloister.state)]
    command += ["attach", "--subnet", lab.subnet, "--security-group", group, "--", "sleep", "200"]
    with tempfile.NamedTemporaryFile("a") as said:
        program = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, **cloister.environ}, cwd="/"
        )
        try:
            wait_until("it is attached", lambda: "\n" in Path(said.name).read_text())
            yield Path(said.name).read_text().partition(" has ")[2].partition("\n")[0]
        finally:
            program.send_signal(signal.SIGTERM)
            program.wait(20)
            held = [{"Name": "group-id", "Values": [group]}]
            wait_until(
                "its interface is released",
                lambda: not lab.on.ec2.describe_network_interfaces(Filters=held)["NetworkInterfaces"],
            )


def test_a_jobs_traffic_is_in_cloudwatch_logs_and_in_s3_within_a_minute(cloister: Cloister, lab: Lab) -> None:
    on = lab.on
    bucket = blocks.make_bucket(on, f"flows-{on.mark}")
    service = {"Service": "vpc-flow-logs.amazonaws.com"}
    role = f"flows-{on.mark}"
    trust = {"Effect": "Allow", "Principal": service, "Action": "sts:AssumeRole"}
    on.iam.create_role(
        RoleName=role, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    write = {"Effect": "Allow", "Action": "logs:*", "Resource": "*"}
    on.iam.put_role_policy(
        RoleName=role,
        PolicyName="write",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [write]}),
    )
    group = f"flows-{on.mark}"
    given = {"ResourceType": "VPC", "TrafficType": "ALL", "MaxAggregationInterval": 60, "LogFormat": FORMAT}
    made = [
        on.ec2.create_flow_logs(
            ResourceIds=[lab.vpc],
            LogGroupName=group,
            DeliverLogsPermissionArn=f"arn:aws:iam::{on.account}:role/{role}",
            **given,
        ),
        on.ec2.create_flow_logs(
            ResourceIds=[lab.vpc],
            LogDestinationType="s3",
            LogDestination=f"arn:aws:s3:::{bucket}/under",
            **given,
        ),
        on.ec2.create_flow_logs(
            ResourceIds=[lab.vpc],
            LogDestinationType="s3",
            LogDestination=f"arn:aws:s3:::{bucket}/hive",
            DestinationOptions={
                "FileFormat": "parquet", "HiveCompatiblePartitions": True, "PerHourPartition": True
            },
            **given,
        ),
    ]  # fmt: skip
    assert [each["Unsuccessful"] for each in made] == [[], [], []]
    numbers = [number for each in made for number in each["FlowLogIds"]]
    try:
        with _closed(cloister, lab) as address:
            done = lab.outcome(lab.scripted(f"flows-{on.mark}", SCRIPT, address))
        assert done["ProcessingJobStatus"] == "Completed", (done, lab.log(done))
        began = time.monotonic()

        def in_logs() -> list[str]:
            try:
                found = on.logs.filter_log_events(logGroupName=group)["events"]
            except on.logs.exceptions.ResourceNotFoundException:
                return []
            return [each["message"] for each in found]

        def in_s3() -> list[str]:
            listed = on.s3.list_objects_v2(Bucket=bucket, Prefix=f"under/AWSLogs/{on.account}/vpcflowlogs/")
            bodies = [
                on.s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
                for one in listed.get("Contents", ())
            ]
            return [line for body in bodies for line in gzip.decompress(body).decode().splitlines()[1:]]

        for what in (in_logs, in_s3):
            wait_until(f"{what.__name__}", lambda what=what: any(" REJECT " in one for one in what()), 80)
            lines = [line.split() for line in what()]
            refused = [each for each in lines if each[7] == "REJECT"]
            assert {(each[2], each[3], each[4]) for each in refused} == {(address, "9", "6")}, lines
            assert any(each[3] == "443" and each[7] == "ACCEPT" for each in lines), lines
            assert all(each[8] in ("OK", "NODATA") for each in lines), lines
        wait_until("both say the same", lambda: sorted(in_logs()) == sorted(in_s3()), 20)
        described = on.ec2.describe_flow_logs(FlowLogIds=numbers)["FlowLogs"]
        assert [each["FlowLogStatus"] for each in described] == 3 * ["ACTIVE"]
        keys = [one["Key"] for one in on.s3.list_objects_v2(Bucket=bucket, Prefix="hive/")["Contents"]]
        hive = (
            f"hive/AWSLogs/aws-account-id={on.account}/aws-service=vpcflowlogs/aws-region={on.region}/year="
        )
        for key in keys:
            assert key.startswith(hive), key
            assert "/hour=" in key, key
            assert key.endswith(".log.parquet"), key
            body = on.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            assert (body[:4], body[-4:]) == (b"PAR1", b"PAR1")
        bodies = b"".join(on.s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys)
        pages = b"".join(
            zlib.decompressobj(31).decompress(bodies[each.start() :])
            for each in re.finditer(b"\x1f\x8b\x08\0", bodies)
        )
        for value in (address, "REJECT", "ACCEPT"):
            assert value.encode() in pages
        assert time.monotonic() - began < 90
    finally:
        on.ec2.delete_flow_logs(FlowLogIds=numbers)
        on.iam.delete_role_policy(RoleName=role, PolicyName="write")
        on.iam.delete_role(RoleName=role)
        on.logs.delete_log_group(logGroupName=group)
