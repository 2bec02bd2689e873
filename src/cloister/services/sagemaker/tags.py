"""Tags of SageMaker resources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cloister.iam.context import request_tags, resource_tags
from cloister.jobs.model import ProcessingJob
from cloister.services.api import Call, Params, operation
from cloister.wire.errors import AwsError

TAGS_PER_RESOURCE = 50


def tags_of(given: Iterable[dict[str, str]] | None) -> dict[str, str]:
    """Tag lists as mappings. Raises ValidationException for what AWS reserves or refuses."""
    tags: dict[str, str] = {}
    for tag in given or ():
        if tag["Key"].lower().startswith("aws:"):
            raise AwsError("ValidationException", f"Tag key {tag['Key']} is reserved: it begins with aws:")
        if tag["Key"] in tags:
            raise AwsError("ValidationException", f"Duplicate tag key {tag['Key']} found")
        tags[tag["Key"]] = tag.get("Value", "")
    return tags


def _shown(tags: dict[str, str]) -> list[Params]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _arns(call: Call, params: Params) -> list[str]:
    return [params["ResourceArn"]]


def _context(call: Call, params: Params) -> dict[str, Any]:
    job = next(call.tx.where(ProcessingJob, arn=params["ResourceArn"]), None)
    keys = resource_tags("sagemaker", job.tags) if job is not None else {}
    given = {tag["Key"]: tag.get("Value", "") for tag in params.get("Tags") or ()}
    return keys | request_tags(given, params.get("TagKeys") or ())


def _tagged(call: Call, arn: str) -> ProcessingJob:
    prefix = call.arn("sagemaker", "processing-job/")
    if not arn.startswith(prefix):
        raise AwsError(
            "ValidationException", f"Cloister does not implement tags of {arn} yet: only of processing jobs"
        )
    for job in call.tx.where(ProcessingJob, arn=arn):
        return job
    raise AwsError("ResourceNotFound", f"Could not find requested resource: {arn}")


@operation("sagemaker", "AddTags", resources=_arns, context=_context)
def add_tags(call: Call, params: Params) -> Params:
    job = _tagged(call, params["ResourceArn"])
    tags = {**job.tags, **tags_of(params["Tags"])}
    if len(tags) > TAGS_PER_RESOURCE:
        raise AwsError(
            "ResourceLimitExceeded",
            f"{job.arn} would have {len(tags)} tags; the limit is {TAGS_PER_RESOURCE}",
        )
    call.tx.put(replace(job, tags=tags))
    return {"Tags": _shown(tags)}


@operation("sagemaker", "ListTags", resources=_arns, context=_context)
def list_tags(call: Call, params: Params) -> Params:
    # A resource has at most 50 tags and a page at least 50: there is no second page.
    if params.get("NextToken"):
        raise AwsError("ValidationException", "The NextToken is invalid")
    return {"Tags": _shown(_tagged(call, params["ResourceArn"]).tags)}


@operation("sagemaker", "DeleteTags", resources=_arns, context=_context)
def delete_tags(call: Call, params: Params) -> Params:
    job = _tagged(call, params["ResourceArn"])
    call.tx.put(
        replace(job, tags={key: value for key, value in job.tags.items() if key not in params["TagKeys"]})
    )
    return {}
