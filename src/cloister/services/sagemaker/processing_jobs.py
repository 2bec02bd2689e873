"""CreateProcessingJob and its siblings: they write and read a job's document. Running it is `cloister.jobs`.

Texts and codes are AWS's where they are known (docs: choices of ours where AWS is unknown).
"""

from __future__ import annotations

import base64
import copy
import json
import secrets
from dataclasses import replace
from datetime import datetime
from typing import Any

from cloister.iam.context import request_tags, resource_tags
from cloister.jobs.lifecycle import JobEvent, after
from cloister.jobs.model import Instance, ProcessingJob
from cloister.services.api import Call, Params, operation
from cloister.services.sagemaker import checks
from cloister.services.sagemaker.checks import invalid
from cloister.services.sagemaker.tags import tags_of
from cloister.wire.errors import AwsError

#: AWS: "The default maximum runtime is one day"
DEFAULT_RUNTIME = 86400
PAGE = 100


def _arn(call: Call, name: str) -> str:
    # AWS: names of jobs are lower-cased in their ARNs.
    return call.arn("sagemaker", f"processing-job/{name.lower()}")


def _arns(call: Call, params: Params) -> list[str]:
    return [_arn(call, params["ProcessingJobName"])]


def _guardrails(call: Call, params: Params) -> dict[str, Any]:
    """The condition keys of CreateProcessingJob (Service Authorization Reference, SageMaker). Keys whose
    member was not given are absent, so that `Null` conditions see it."""
    cluster = params["ProcessingResources"]["ClusterConfig"]
    network = params.get("NetworkConfig") or {}
    vpc = network.get("VpcConfig") or {}
    tags = tags_of(params.get("Tags"))
    keys: dict[str, Any] = {
        "sagemaker:VpcSubnets": vpc.get("Subnets"),
        "sagemaker:VpcSecurityGroupIds": vpc.get("SecurityGroupIds"),
        "sagemaker:NetworkIsolation": _flag(network.get("EnableNetworkIsolation")),
        "sagemaker:InterContainerTrafficEncryption": _flag(
            network.get("EnableInterContainerTrafficEncryption")
        ),
        "sagemaker:InstanceTypes": [cluster["InstanceType"]] if cluster.get("InstanceType") else None,
        "sagemaker:VolumeKmsKey": cluster.get("VolumeKmsKeyId"),
        "sagemaker:OutputKmsKey": (params.get("ProcessingOutputConfig") or {}).get("KmsKeyId"),
        **request_tags(tags),
    }
    return {key: value for key, value in keys.items() if value is not None}


def _flag(value: bool | None) -> str | None:
    return None if value is None else "true" if value else "false"


def _resource_tags(call: Call, params: Params) -> dict[str, Any]:
    job = call.tx.get(ProcessingJob, params["ProcessingJobName"])
    return {} if job is None else resource_tags("sagemaker", job.tags)


def _job(call: Call, params: Params) -> ProcessingJob:
    job = call.tx.get(ProcessingJob, params["ProcessingJobName"])
    if job is None:
        raise invalid(f"Could not find requested job with name: {params['ProcessingJobName']}")
    return job


# AWS: "sagemaker:AddTags" is needed too when the request brings tags
@operation(
    "sagemaker",
    "CreateProcessingJob",
    resources=_arns,
    context=_guardrails,
    tagging="sagemaker:AddTags",
)
def create_processing_job(call: Call, params: Params) -> Params:
    name = params["ProcessingJobName"]
    tags = tags_of(params.get("Tags"))
    checks.check(call, params)
    arn = _arn(call, name)
    same = call.tx.get(ProcessingJob, name) or next(call.tx.where(ProcessingJob, arn=arn), None)
    if same is not None:
        raise AwsError(
            "ResourceInUse",
            "Job name must be unique within an AWS account and region, and a job with this name already "
            f"exists ({same.arn})",
        )
    request = effective(params)
    count = request["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    call.tx.put(
        ProcessingJob(
            name=name,
            job_id=secrets.token_hex(6),
            arn=arn,
            request=request,
            instances=tuple(Instance(index=index) for index in range(1, count + 1)),
            credentials_path=f"/v2/credentials/{secrets.token_urlsafe(32)}",
            traffic_key=secrets.token_hex(32),
            created=call.now,
            modified=call.now,
            tags=tags,
        )
    )
    return {"ProcessingJobArn": arn}


def effective(params: Params) -> Params:
    """The request with AWS's defaults filled in: what Describe shows, and what is run."""
    request = {key: value for key, value in copy.deepcopy(params).items() if key != "Tags"}
    request["ProcessingResources"]["ClusterConfig"].setdefault("InstanceCount", 1)
    request.setdefault("StoppingCondition", {"MaxRuntimeInSeconds": DEFAULT_RUNTIME})
    for each in request.get("ProcessingInputs") or ():
        each.setdefault("AppManaged", False)
        s3 = each["S3Input"]
        s3.setdefault("S3InputMode", "File")
        s3.setdefault("S3DataDistributionType", "FullyReplicated")
        s3.setdefault("S3CompressionType", "None")
    for each in (request.get("ProcessingOutputConfig") or {}).get("Outputs") or ():
        each.setdefault("AppManaged", False)
    return request


@operation("sagemaker", "DescribeProcessingJob", resources=_arns, context=_resource_tags)
def describe_processing_job(call: Call, params: Params) -> Params:
    job = _job(call, params)
    shown = {
        **job.request,
        "ProcessingJobArn": job.arn,
        "ProcessingJobStatus": job.status,
        "ExitMessage": job.exit_message,
        "FailureReason": job.failure_reason if job.terminal else None,
        "CreationTime": job.created,
        "ProcessingStartTime": job.started,
        "ProcessingEndTime": job.ended,
        "LastModifiedTime": job.modified,
    }
    return {member: value for member, value in shown.items() if value is not None}


@operation("sagemaker", "ListProcessingJobs")
def list_processing_jobs(call: Call, params: Params) -> Params:
    """AWS: sorted by CreationTime, ascending, unless told otherwise. A token is a place in the order, so
    jobs that are made or end between two pages neither shift nor repeat others."""
    by = params.get("SortBy", "CreationTime")
    descending = params.get("SortOrder", "Ascending") == "Descending"

    def place(job: ProcessingJob) -> tuple[Any, ...]:
        first = {"Name": job.name, "CreationTime": job.created, "Status": job.status}[by]
        return (first, job.created, job.name)

    found = sorted((job for job in call.tx.all(ProcessingJob) if _wanted(job, params)), key=place)
    if descending:
        found.reverse()
    token = params.get("NextToken")
    if token:
        start = _read_token(token, by)
        found = [job for job in found if (place(job) < start if descending else place(job) > start)]
    limit = params.get("MaxResults", PAGE)
    page = found[:limit]
    result: Params = {"ProcessingJobSummaries": [_summary(job) for job in page]}
    if len(found) > limit:
        place_text = json.dumps([by, *place(page[-1])])
        result["NextToken"] = base64.urlsafe_b64encode(place_text.encode()).decode()
    return result


def _wanted(job: ProcessingJob, params: Params) -> bool:
    for member, value, later in (
        ("CreationTimeAfter", job.created, True),
        ("CreationTimeBefore", job.created, False),
        ("LastModifiedTimeAfter", job.modified, True),
        ("LastModifiedTimeBefore", job.modified, False),
    ):
        if params.get(member) is not None:
            limit = _seconds(params[member])
            if not (value > limit if later else value < limit):
                return False
    return params.get("NameContains", "") in job.name and params.get("StatusEquals", job.status) == job.status


def _seconds(value: datetime | float) -> float:
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _read_token(token: str, by: str) -> tuple[Any, ...]:
    try:
        sorted_by, first, created, name = json.loads(base64.urlsafe_b64decode(token.encode()))
        kind = float if by == "CreationTime" else str
        if sorted_by != by:
            raise ValueError
        return (kind(first), float(created), str(name))
    except (ValueError, TypeError):
        raise invalid(
            "The NextToken is invalid, or was made for a request that is sorted otherwise"
        ) from None


def _summary(job: ProcessingJob) -> Params:
    shown = {
        "ProcessingJobName": job.name,
        "ProcessingJobArn": job.arn,
        "CreationTime": job.created,
        "ProcessingEndTime": job.ended,
        "LastModifiedTime": job.modified,
        "ProcessingJobStatus": job.status,
        "FailureReason": job.failure_reason if job.terminal else None,
        "ExitMessage": job.exit_message,
    }
    return {member: value for member, value in shown.items() if value is not None}


@operation("sagemaker", "StopProcessingJob", resources=_arns, context=_resource_tags)
def stop_processing_job(call: Call, params: Params) -> Params:
    """The job's new state tells the supervisor. Stopping a job that is stopping changes nothing."""
    job = _job(call, params)
    if job.terminal:
        raise invalid(f"The request was rejected because the processing job is in status {job.status}.")
    state = after(job.state, JobEvent.STOP)
    if state is not job.state:
        call.tx.put(replace(job, state=state, modified=call.now))
    return {}


@operation("sagemaker", "DeleteProcessingJob", resources=_arns, context=_resource_tags)
def delete_processing_job(call: Call, params: Params) -> Params:
    """The name is free afterwards. The job's logs stay."""
    job = call.tx.get(ProcessingJob, params["ProcessingJobName"])
    if job is None:
        raise AwsError(
            "ResourceNotFound", f"Could not find requested job with name: {params['ProcessingJobName']}"
        )
    if not job.terminal:
        raise AwsError(
            "ResourceInUse",
            f"The processing job {job.name} is in status {job.status}: only a job that is Completed, Failed "
            "or Stopped can be deleted",
        )
    call.tx.delete(ProcessingJob, job.name)
    return {}
