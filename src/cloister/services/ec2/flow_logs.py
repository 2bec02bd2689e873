"""Flow logs: made, described, deleted.

AWS: EC2 API reference, CreateFlowLogs; a request that names several resources makes a log for each, and what
cannot be made is told in Unsuccessful.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloister.authorize import call_keys, decide_call, denied
from cloister.flow_delivery import SERVICE, may_put, with_delivery
from cloister.iam.decide import Request
from cloister.ids import resource_id
from cloister.s3.model import Bucket
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import ClientToken, _digest
from cloister.services.ec2.network_interfaces import INTERFACES
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.subnets import SUBNETS
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import DEFAULT_FORMAT, bucket_and_prefix, fields_of, object_key
from cloister.wire.errors import AwsError

_TRAFFIC = ("ACCEPT", "REJECT", "ALL")
_RESOURCES: dict[str, Resource[Any]] = {"VPC": VPCS, "Subnet": SUBNETS, "NetworkInterface": INTERFACES}
CLOUDWATCH, S3 = "cloud-watch-logs", "s3"
#: AWS, CreateFlowLogs, ResourceIds: "Maximum of 300 for the other resource types" than transit gateways
RESOURCES_PER_CALL = 300
_DAY = 86_400


def _shape(call: Call, log: FlowLog) -> Params:
    shape: Params = {
        "FlowLogId": log.flow_log_id,
        "ResourceId": log.resource_id,
        "TrafficType": log.traffic_type,
        "LogDestinationType": log.destination_type,
        "LogFormat": log.log_format,
        "MaxAggregationInterval": log.interval,
        "FlowLogStatus": "ACTIVE",
        "DeliverLogsStatus": "FAILED" if log.error else "SUCCESS",
        "CreationTime": log.created,
        "Tags": tag_set(log.tags),
    }
    if log.error:
        shape["DeliverLogsErrorMessage"] = log.error
    if log.destination_type == S3:
        shape["LogDestination"] = log.destination
        shape["DestinationOptions"] = {
            "FileFormat": log.file_format,
            "HiveCompatiblePartitions": log.hive_partitions,
            "PerHourPartition": log.hour_partitions,
        }
    else:
        shape |= {"LogGroupName": log.destination, "DeliverLogsPermissionArn": log.role_arn}
    return shape


FLOW_LOGS: Resource[FlowLog] = Resource(
    result="FlowLogs",
    ids="FlowLogIds",
    key=lambda log: log.flow_log_id,
    all=lambda world: world.all(FlowLog),
    get=lambda world, flow_log_id: world.get(FlowLog, flow_log_id),
    shape=_shape,
    prefix="fl",
    not_found="InvalidFlowLogId.NotFound",
    malformed="InvalidFlowLogId.Malformed",
    missing="The flow log id {} does not exist",
    filters={
        "deliver-log-status": lambda call, log: "FAILED" if log.error else "SUCCESS",
        "log-destination-type": lambda call, log: log.destination_type,
        "flow-log-id": lambda call, log: log.flow_log_id,
        "log-group-name": lambda call, log: log.destination if log.destination_type == CLOUDWATCH else None,
        "resource-id": lambda call, log: log.resource_id,
        "traffic-type": lambda call, log: log.traffic_type,
    },
)


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidParameter", message)


def _arns(call: Call, params: Params) -> list[str]:
    kind = {"VPC": "vpc", "Subnet": "subnet", "NetworkInterface": "network-interface"}.get(
        params.get("ResourceType", ""), "vpc"
    )
    named = [call.arn("ec2", f"{kind}/{one}") for one in params.get("ResourceIds", ())]
    return [call.arn("ec2", "vpc-flow-log/*"), *named]


@operation("ec2", "CreateFlowLogs", resources=_arns)
def create_flow_logs(call: Call, params: Params) -> Params:
    """Kinesis Data Firehose, transit gateways and delivery to other accounts are refused by name."""
    only(
        params, "ResourceIds", "ResourceType", "TrafficType", "LogDestinationType", "LogGroupName",
        "LogDestination", "DeliverLogsPermissionArn", "LogFormat", "MaxAggregationInterval",
        "DestinationOptions", "TagSpecifications", "ClientToken",
    )  # fmt: skip
    require(params, "ResourceIds", "ResourceType")
    token = params.get("ClientToken")
    known = call.tx.get(ClientToken, f"CreateFlowLogs/{token}") if token else None
    if known is not None and known.expires > call.now:
        if known.request != _digest(params):
            raise AwsError(
                "IdempotentParameterMismatch",
                f"The client token '{token}' was used before, with other parameters.",
            )
        return {"FlowLogIds": known.resource_id.split(), "ClientToken": token, "Unsuccessful": []}
    described = _description(call, params)
    made: list[str] = []
    unsuccessful: list[Params] = []
    for wanted in dict.fromkeys(params["ResourceIds"]):
        try:
            made.append(_make(call, params["ResourceType"], wanted, described))
        except AwsError as error:
            problem = {"Code": error.code, "Message": error.message}
            unsuccessful.append({"ResourceId": wanted, "Error": problem})
    answer: Params = {"FlowLogIds": made, "Unsuccessful": unsuccessful}
    if token:
        answer["ClientToken"] = token
        if made:
            call.tx.put(
                ClientToken(
                    key=f"CreateFlowLogs/{token}",
                    request=_digest(params),
                    resource_id=" ".join(made),
                    expires=call.now + _DAY,
                )
            )
    return answer


def _description(call: Call, params: Params) -> dict[str, Any]:
    """What the logs of a request have in common. Raises for what no resource could have."""
    resource_type = params["ResourceType"]
    if resource_type not in _RESOURCES:
        raise AwsError(
            "UnsupportedOperation", f"Flow logs of {resource_type} are not supported: no such thing here."
        )
    if len(params["ResourceIds"]) > RESOURCES_PER_CALL:
        raise _invalid(f"At most {RESOURCES_PER_CALL} resources can be given")
    traffic = params.get("TrafficType")
    if traffic is None:
        raise AwsError("MissingParameter", "The request must contain the parameter TrafficType")
    if traffic not in _TRAFFIC:
        raise _invalid(f"Invalid value for TrafficType: {traffic}")
    interval = params.get("MaxAggregationInterval", 600)
    if interval not in (60, 600):
        raise _invalid("Invalid Flow Log Max Aggregation Interval")
    log_format = params.get("LogFormat") or DEFAULT_FORMAT
    fields_of(log_format)
    return {
        "traffic_type": traffic,
        "interval": interval,
        "log_format": log_format,
        "created": call.now,
        "tags": tag_specifications(params, "vpc-flow-log"),
        **_destination(call, params),
    }


def _destination(call: Call, params: Params) -> dict[str, Any]:
    kind = params.get("LogDestinationType", CLOUDWATCH)
    where, group = params.get("LogDestination"), params.get("LogGroupName")
    options = params.get("DestinationOptions") or {}
    if kind == CLOUDWATCH:
        if where and group:
            raise _invalid("Please only provide LogGroupName or only provide LogDestination.")
        if where:
            prefix = call.arn("logs", "log-group:")
            if not where.startswith(prefix):
                raise _invalid(f"LogDestination: {where} is not a log group of this account and region.")
            group = where.removeprefix(prefix).removesuffix(":*")
        if not group:
            raise _invalid("LogDestination can't be empty if LogGroupName is not provided.")
        if any(options.values()):
            raise _invalid("DestinationOptions can only be given for the destination type s3.")
        role = params.get("DeliverLogsPermissionArn")
        if not role:
            raise _invalid(
                "DeliverLogsPermissionArn can't be empty if LogDestinationType is cloud-watch-logs."
            )
        if not role.startswith(f"arn:{call.partition}:iam::{call.account}:role/"):
            raise _invalid(f"Invalid DeliverLogsPermissionArn: {role}")
        passing = Request(
            principal=call.principal,
            action="iam:PassRole",
            resource=role,
            context={**call_keys(call), "iam:PassedToService": SERVICE},
        )
        decision = decide_call(call.tx, passing, endpoint_id=None)
        if not decision.allowed:
            raise denied("ec2", decision.sentence())
        return {"destination_type": CLOUDWATCH, "destination": group, "role_arn": role}
    if kind != S3:
        raise AwsError(
            "UnsupportedOperation", f"The LogDestinationType {kind} is not supported: Cloister has no such."
        )
    if group or params.get("DeliverLogsPermissionArn"):
        given = "LogGroupName" if group else "DeliverLogsPermissionArn"
        raise _invalid(f"{given} cannot be given with the destination type s3.")
    if not where:
        raise _invalid("LogDestination can't be empty.")
    if not where.startswith("arn:aws:s3:::") or not bucket_and_prefix(where)[0]:
        raise _invalid(f"LogDestination: {where} is not the ARN of a bucket or folder.")
    name, prefix = bucket_and_prefix(where)
    if "AWSLogs" in prefix.split("/"):
        raise _invalid("LogDestination cannot have a folder named AWSLogs: it is a reserved term.")
    if call.tx.get(Bucket, name) is None:
        raise _invalid(f"LogDestination: {name} does not exist")
    file_format = options.get("FileFormat") or "plain-text"
    if file_format not in ("plain-text", "parquet"):
        raise _invalid(f"Invalid FileFormat: {file_format}")
    return {
        "destination_type": S3,
        "destination": where,
        "file_format": file_format,
        "hive_partitions": bool(options.get("HiveCompatiblePartitions")),
        "hour_partitions": bool(options.get("PerHourPartition")),
    }


def _make(call: Call, resource_type: str, wanted: str, described: dict[str, Any]) -> str:
    found = _RESOURCES[resource_type].find(call.tx, wanted)
    log = FlowLog(flow_log_id=resource_id("fl"), resource_id=wanted, vpc_id=found.vpc_id, **described)
    for other in call.tx.where(FlowLog, resource_id=wanted):
        if (other.destination, other.traffic_type, other.log_format) == (
            log.destination, log.traffic_type, log.log_format,
        ):  # fmt: skip
            raise AwsError(
                "FlowLogAlreadyExists",
                "Error. There is an existing Flow Log with the same configuration and log destination.",
            )
    if log.destination_type == S3:
        _admit(call, log)
    call.tx.put(log)
    return log.flow_log_id


def _admit(call: Call, log: FlowLog) -> None:
    """AWS: the bucket's policy must let the service deliver; for a user who may change it, EC2 adds what is
    missing."""
    key = object_key(log, account=call.account, region=call.region, end=call.now)
    if may_put(call.tx, log, key, call.account, call.region):
        return
    name, prefix = bucket_and_prefix(log.destination)
    bucket = call.tx.get(Bucket, name)
    assert bucket is not None
    may = decide_call(
        call.tx,
        Request(principal=call.principal, action="s3:PutBucketPolicy", resource=f"arn:aws:s3:::{name}"),
        endpoint_id=None,
    ).allowed
    if may:
        policy = with_delivery(bucket.policy, name, prefix, call.account, call.region)
        call.tx.put(replace(bucket, policy=policy))
    if not may_put(call.tx, log, key, call.account, call.region):
        raise AwsError(
            "400", f"Access Denied for LogDestination: {name}. Please check LogDestination permission"
        )


@operation("ec2", "DescribeFlowLogs")
def describe_flow_logs(call: Call, params: Params) -> Params:
    """Its filters are called `Filter`."""
    return FLOW_LOGS.describe(call, {**params, "Filters": params.get("Filter", ())})


@operation("ec2", "DeleteFlowLogs", resources=on(vpc_flow_log="FlowLogIds"))
def delete_flow_logs(call: Call, params: Params) -> Params:
    """What was not delivered yet is not delivered any more."""
    unsuccessful: list[Params] = []
    for flow_log_id in dict.fromkeys(params["FlowLogIds"]):
        try:
            FLOW_LOGS.find(call.tx, flow_log_id)
        except AwsError as error:
            problem = {"Code": error.code, "Message": error.message}
            unsuccessful.append({"ResourceId": flow_log_id, "Error": problem})
            continue
        call.tx.delete(FlowLog, flow_log_id)
    return {"Unsuccessful": unsuccessful}
