from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.flow_delivery import may_put, session
from cloister.iam.model import Principal, Role
from cloister.s3.model import Bucket
from cloister.services.api import Call
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import DEFAULT_FORMAT, object_key
from cloister.wire.errors import AwsError

ROLE = f"arn:aws:iam::{ACCOUNT}:role/flow"
TO_LOGS = {"LogGroupName": "flows", "DeliverLogsPermissionArn": ROLE, "TrafficType": "ALL"}
TO_S3 = {"LogDestinationType": "s3", "LogDestination": "arn:aws:s3:::logs/under", "TrafficType": "REJECT"}


@pytest.fixture
def call() -> Call:
    made = make_call()
    made.tx.put(Bucket(name="logs", owner_account=ACCOUNT, region="us-east-1", created=0))
    return made


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


def test_a_flow_log_to_cloudwatch_logs_is_described_as_it_was_asked_for(call: Call, vpc_id: str) -> None:
    tags = [{"ResourceType": "vpc-flow-log", "Tags": [{"Key": "Name", "Value": "all"}]}]
    wanted: dict = {"ResourceIds": [vpc_id], "ResourceType": "VPC", "TagSpecifications": tags, **TO_LOGS}
    made = ec2(call, "CreateFlowLogs", **wanted, ClientToken="t")
    assert made["Unsuccessful"] == []
    (flow_log_id,) = made["FlowLogIds"]
    assert ec2(call, "CreateFlowLogs", **wanted, ClientToken="t")["FlowLogIds"] == [flow_log_id]
    (found,) = ec2(call, "DescribeFlowLogs", FlowLogIds=[flow_log_id])["FlowLogs"]
    found.pop("CreationTime")
    assert found == {
        "FlowLogId": flow_log_id,
        "ResourceId": vpc_id,
        "TrafficType": "ALL",
        "LogDestinationType": "cloud-watch-logs",
        "LogGroupName": "flows",
        "DeliverLogsPermissionArn": ROLE,
        "LogFormat": DEFAULT_FORMAT,
        "MaxAggregationInterval": 600,
        "FlowLogStatus": "ACTIVE",
        "DeliverLogsStatus": "SUCCESS",
        "Tags": [{"Key": "Name", "Value": "all"}],
    }
    again = ec2(call, "CreateFlowLogs", **{**wanted, "ClientToken": "other"})
    assert again["FlowLogIds"] == []
    assert again["Unsuccessful"][0]["Error"]["Code"] == "FlowLogAlreadyExists"
    changed = refusal(call, "CreateFlowLogs", **{**wanted, "ClientToken": "t", "TrafficType": "ACCEPT"})
    assert changed.code == "IdempotentParameterMismatch"


def test_a_delivery_that_failed_is_described_with_its_reason_and_is_over_afterwards(
    call: Call, vpc_id: str
) -> None:
    (made,) = ec2(call, "CreateFlowLogs", ResourceIds=[vpc_id], ResourceType="VPC", **TO_LOGS)["FlowLogIds"]
    log = call.tx.get(FlowLog, made)
    assert log is not None
    for error, status in (("Access error", "FAILED"), (None, "SUCCESS")):
        call.tx.put(replace(log, error=error))
        (found,) = ec2(call, "DescribeFlowLogs", FlowLogIds=[made])["FlowLogs"]
        assert found["DeliverLogsStatus"] == status
        assert found.get("DeliverLogsErrorMessage") == error
        assert found["FlowLogStatus"] == "ACTIVE"
        failed = [{"Name": "deliver-log-status", "Values": ["FAILED"]}]
        assert len(ec2(call, "DescribeFlowLogs", Filter=failed)["FlowLogs"]) == (status == "FAILED")


def test_what_cannot_be_made_or_deleted_is_told_by_resource(call: Call, vpc_id: str) -> None:
    made = ec2(call, "CreateFlowLogs", ResourceIds=[vpc_id, "vpc-0bad"], ResourceType="VPC", **TO_LOGS)
    (wrong,) = made["Unsuccessful"]
    assert (wrong["ResourceId"], wrong["Error"]["Code"]) == ("vpc-0bad", "InvalidVpcID.NotFound")
    gone = ec2(call, "DeleteFlowLogs", FlowLogIds=[*made["FlowLogIds"], "fl-0bad"])
    (wrong,) = gone["Unsuccessful"]
    assert (wrong["ResourceId"], wrong["Error"]["Code"]) == ("fl-0bad", "InvalidFlowLogId.NotFound")
    assert ec2(call, "DescribeFlowLogs")["FlowLogs"] == []


def test_interfaces_and_subnets_are_logged_too_and_filters_find_them(call: Call, vpc_id: str) -> None:
    subnet_id = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    interface = ec2(call, "CreateNetworkInterface", SubnetId=subnet_id)["NetworkInterface"]
    interface_id = interface["NetworkInterfaceId"]
    for kind, one, how in (
        ("Subnet", subnet_id, {**TO_LOGS, "MaxAggregationInterval": 60}),
        ("NetworkInterface", interface_id, TO_S3),
    ):
        assert ec2(call, "CreateFlowLogs", ResourceIds=[one], ResourceType=kind, **how)["Unsuccessful"] == []
    for named, expected in (
        ({"resource_id": subnet_id}, [subnet_id]),
        ({"traffic_type": "REJECT"}, [interface_id]),
        ({"log_destination_type": "s3"}, [interface_id]),
        ({"log_group_name": "flows"}, [subnet_id]),
        ({"deliver_log_status": "SUCCESS"}, [subnet_id, interface_id]),
        ({"deliver_log_status": "FAILED"}, []),
    ):
        found = ec2(call, "DescribeFlowLogs", Filter=filters(**named))["FlowLogs"]
        assert ids(found, "ResourceId") == expected, named
    assert {log.vpc_id for log in call.tx.all(FlowLog)} == {vpc_id}


def test_what_a_flow_log_cannot_be_is_refused(call: Call, vpc_id: str) -> None:
    base: dict = {"ResourceIds": [vpc_id], "ResourceType": "VPC", **TO_LOGS}
    for changes, code in (
        ({"ResourceType": "TransitGateway"}, "UnsupportedOperation"),
        ({"LogDestinationType": "kinesis-data-firehose"}, "UnsupportedOperation"),
        ({"DeliverCrossAccountRole": ROLE}, "UnsupportedOperation"),
        ({"MaxAggregationInterval": 61}, "InvalidParameter"),
        ({"LogFormat": "${version} ${colour}"}, "InvalidParameter"),
        ({"LogFormat": "version"}, "InvalidParameter"),
        ({"DeliverLogsPermissionArn": ""}, "InvalidParameter"),
        ({"LogGroupName": ""}, "InvalidParameter"),
        ({"LogDestination": f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:x"}, "InvalidParameter"),
        ({"DestinationOptions": {"PerHourPartition": True}}, "InvalidParameter"),
        ({"LogDestinationType": "s3"}, "InvalidParameter"),
        ({"TrafficType": None}, "MissingParameter"),
    ):
        params = {name: value for name, value in {**base, **changes}.items() if value is not None}
        assert refusal(call, "CreateFlowLogs", **params).code == code, changes
    for destination in ("arn:aws:s3:::nowhere", "arn:aws:s3:::logs/AWSLogs", "logs", "arn:aws:s3:::"):
        params = {"ResourceIds": [vpc_id], "ResourceType": "VPC", **TO_S3, "LogDestination": destination}
        assert refusal(call, "CreateFlowLogs", **params).code == "InvalidParameter", destination


def test_the_buckets_policy_gets_the_statements_of_log_delivery(call: Call, vpc_id: str) -> None:
    options = {"FileFormat": "parquet", "HiveCompatiblePartitions": True, "PerHourPartition": True}
    wanted: dict = {"ResourceIds": [vpc_id], "ResourceType": "VPC", **TO_S3, "DestinationOptions": options}
    assert ec2(call, "CreateFlowLogs", **wanted)["Unsuccessful"] == []
    (found,) = ec2(call, "DescribeFlowLogs")["FlowLogs"]
    assert found["DestinationOptions"] == options
    (log,) = call.tx.all(FlowLog)
    key = object_key(log, account=ACCOUNT, region="us-east-1", end=1_700_000_400)
    assert key.startswith(
        f"under/AWSLogs/aws-account-id={ACCOUNT}/aws-service=vpcflowlogs/aws-region=us-east-1/"
        f"year=2023/month=11/day=14/hour=22/{ACCOUNT}_vpcflowlogs_us-east-1_{log.flow_log_id}_20231114T2220Z_"
    )
    assert key.endswith(".log.parquet")
    bucket = call.tx.get(Bucket, "logs")
    assert bucket is not None
    assert bucket.policy is not None
    assert len(json.loads(bucket.policy)["Statement"]) == 2
    assert may_put(call.tx, log, key, ACCOUNT, "us-east-1")
    assert not may_put(call.tx, log, "under/other", ACCOUNT, "us-east-1")
    assert not may_put(call.tx, log, key, "999999999999", "us-east-1")
    call.tx.put(replace(bucket, policy=None))
    assert not may_put(call.tx, log, key, ACCOUNT, "us-east-1")


def test_a_caller_who_may_not_change_the_buckets_policy_makes_no_log_to_it(call: Call, vpc_id: str) -> None:
    call.tx.put(Role(name="r", role_id="AROA1", trust_policy="{}", created=0))
    call.principal = Principal(
        arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/r/s", account=ACCOUNT, user_id="AROA1:s",
        access_key_id="ASIA", role_name="r", session_name="s",
    )  # fmt: skip
    with pytest.raises(AwsError, match="iam:PassRole"):
        ec2(call, "CreateFlowLogs", ResourceIds=[vpc_id], ResourceType="VPC", **TO_LOGS)
    made = ec2(call, "CreateFlowLogs", ResourceIds=[vpc_id], ResourceType="VPC", **TO_S3)
    assert made["FlowLogIds"] == []
    assert "Access Denied for LogDestination: logs" in made["Unsuccessful"][0]["Error"]["Message"]


def test_only_a_role_that_trusts_the_service_delivers(call: Call) -> None:
    log = FlowLog(
        flow_log_id="fl-1", resource_id="vpc-1", vpc_id="vpc-1", log_format="", created=0, role_arn=ROLE
    )
    assert session(call.tx, log, ACCOUNT, "us-east-1") is None
    for service, trusted in (("ec2.amazonaws.com", False), ("vpc-flow-logs.amazonaws.com", True)):
        statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
        trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        call.tx.put(Role(name="flow", role_id="AROA2", trust_policy=trust, created=0))
        assert (session(call.tx, log, ACCOUNT, "us-east-1") is not None) is trusted
