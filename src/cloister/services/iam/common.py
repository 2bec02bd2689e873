"""What several IAM operations share: finding entities, pages, tags, and the ARN an action is checked on."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from cloister.iam.context import request_tags, resource_tags
from cloister.iam.managed import managed_policy
from cloister.iam.model import ManagedPolicy, Role
from cloister.services.api import NEEDS, Call, Params, needs_on_resources
from cloister.wire.errors import AwsError

T = TypeVar("T")

MAX_TAGS = 50
_PATH = re.compile(r"/|/[\x21-\x7e]+/")
_POLICY_ARN = re.compile(r"arn:aws[a-z-]*:iam::(?:\d{12}|aws):policy/[\x21-\x7e]+")


def no_such(what: str) -> AwsError:
    return AwsError("NoSuchEntity", what, 404)


def find_role(call: Call, name: str) -> Role:
    """Role names are unique without regard to case, and found with regard to it."""
    role = call.tx.get(Role, name)
    if role is None:
        raise no_such(f"The role with name {name} cannot be found.")
    return role


def find_policy(call: Call, arn: str) -> ManagedPolicy:
    if not _POLICY_ARN.fullmatch(arn):
        raise AwsError("InvalidInput", f"ARN {arn} is not valid.")
    policy = managed_policy(call.tx, arn)
    if policy is None:
        raise no_such(f"Policy {arn} does not exist or is not attachable.")
    return policy


def own_policy(call: Call, arn: str) -> ManagedPolicy:
    """A policy that may be changed. AWS refuses to change its own as it refuses a stranger's."""
    policy = find_policy(call, arn)
    if policy.aws_managed:
        raise AwsError("AccessDenied", f"The AWS-managed policy {arn} cannot be changed.", 403)
    return policy


def check_path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise AwsError(
            "ValidationError",
            f"The specified value for path is invalid. It must begin and end with / and contain only "
            f"alphanumeric characters and/or / characters: {path}",
        )
    return path


def role_arn(call: Call, role: Role) -> str:
    return call.arn("iam", f"role{role.path}{role.name}", region="")


def on_role(call: Call, params: Params) -> list[str]:
    """The ARN for the permission check. A role that does not exist has no path."""
    role = call.tx.get(Role, params["RoleName"])
    path = role.path if role else params.get("Path", "/")
    return [call.arn("iam", f"role{path}{params['RoleName']}", region="")]


def on_policy(call: Call, params: Params) -> list[str]:
    return [params["PolicyArn"]]


def encoded(document: str) -> str:
    """IAM returns documents URL-encoded (RFC 3986); botocore decodes them."""
    return quote(document, safe="-_.~")


def page(
    params: Params, items: Sequence[T], name: str, key: Callable[[T], str], show: Callable[[T], Any]
) -> dict[str, Any]:
    """One page of `items` in the order of their key. The marker is the last key shown, so that a page stays
    right when entities come and go between two calls."""
    ordered = sorted(items, key=key)
    marker = params.get("Marker")
    if marker is not None:
        try:
            last = base64.urlsafe_b64decode(marker.encode("ascii")).decode()
        except (binascii.Error, ValueError):
            raise AwsError("ValidationError", f"Invalid Marker: {marker}") from None
        ordered = [item for item in ordered if key(item) > last]
    size = params.get("MaxItems", 100)
    shown = ordered[:size]
    result: dict[str, Any] = {name: [show(item) for item in shown], "IsTruncated": len(ordered) > size}
    if result["IsTruncated"]:
        result["Marker"] = base64.urlsafe_b64encode(key(shown[-1]).encode()).decode()
    return result


def tags_of(given: Sequence[Mapping[str, str]], old: Mapping[str, str] | None = None) -> dict[str, str]:
    """`old` with the tags of a request over it. IAM's tag keys differ by more than case."""
    tags = dict(old or {})
    seen: set[str] = set()
    for tag in given:
        key, value = tag["Key"], tag["Value"]
        if key.lower() in seen:
            raise AwsError(
                "InvalidInput",
                f"Duplicate tag keys found. Please note that Tag keys are case insensitive: {key}",
            )
        if key.lower().startswith("aws:"):
            raise AwsError("InvalidInput", f"Tag keys that begin with aws: are reserved: {key}")
        seen.add(key.lower())
        for known in [k for k in tags if k.lower() == key.lower()]:
            del tags[known]
        tags[key] = value
    if len(tags) > MAX_TAGS:
        raise AwsError("LimitExceeded", f"The number of tags has reached the maximum limit: {MAX_TAGS}", 409)
    return tags


def without_tags(tags: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    gone = {key.lower() for key in keys}
    return {key: value for key, value in tags.items() if key.lower() not in gone}


def shown_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def page_of_tags(params: Params, tags: Mapping[str, str]) -> dict[str, Any]:
    return page(params, list(tags.items()), "Tags", lambda t: t[0], lambda t: {"Key": t[0], "Value": t[1]})


def _keys(call: Call, arn: str) -> dict[str, Any]:
    kind, _, name = arn.rpartition(":")[2].partition("/")
    role = call.tx.get(Role, name.rpartition("/")[2]) if kind == "role" else None
    found: Role | ManagedPolicy | None = role or call.tx.get(ManagedPolicy, arn)
    return resource_tags("iam", found.tags) if found is not None else {}


NEEDS["iam"] = lambda call, operation, params: needs_on_resources(call, operation, params, _keys)


def tag_context(call: Call, params: Params) -> dict[str, Any]:
    """aws:RequestTag/… and aws:TagKeys of a request that brings tags."""
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}
    return request_tags(tags, params.get("TagKeys", []))
