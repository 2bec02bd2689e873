"""Tags: of every EC2 document whose id has a prefix, and of security group rules.

AWS ("Tag your Amazon EC2 resources"): at most 50 on a resource, keys to 128 and values to 256 characters,
keys are case-sensitive, `aws:` is reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import BY_PREFIX, Resource, tags_of
from cloister.vpc.model import SecurityGroup
from cloister.vpc.service_network import hidden
from cloister.wire.errors import AwsError
from cloister.world import KINDS, Transaction, World

TAGS_PER_RESOURCE = 50
LONGEST_KEY, LONGEST_VALUE = 128, 256
_RULE = "security-group-rule"


def check_tags(tags: Sequence[Params]) -> dict[str, str]:
    """The tags of a request as a mapping. Raises InvalidParameterValue, TagLimitExceeded."""
    found: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key", ""), tag.get("Value", "")
        if not key:
            raise AwsError("InvalidParameterValue", "Tag key cannot be empty")
        if key.lower().startswith("aws:"):
            raise AwsError(
                "InvalidParameterValue",
                f"Tag keys starting with 'aws:' are reserved for internal use: '{key}'",
            )
        if len(key) > LONGEST_KEY:
            raise AwsError(
                "InvalidParameterValue",
                f"Tag key '{key}' exceeds the maximum length of {LONGEST_KEY} characters",
            )
        if len(value) > LONGEST_VALUE:
            raise AwsError(
                "InvalidParameterValue",
                f"Tag value '{value}' exceeds the maximum length of {LONGEST_VALUE} characters",
            )
        if key in found:
            raise AwsError("InvalidParameterValue", f"Duplicate tag key '{key}' specified.")
        found[key] = value
    if len(found) > TAGS_PER_RESOURCE:
        raise AwsError("TagLimitExceeded", f"More than {TAGS_PER_RESOURCE} tags specified: {len(found)}.")
    return found


def tag_specifications(params: Params, *resource_types: str) -> dict[str, str]:
    """The tags a Create operation gives to what it makes. Raises InvalidParameterValue."""
    given: list[Params] = []
    seen: set[str] = set()
    for specification in params.get("TagSpecifications", ()):
        resource_type = specification.get("ResourceType", "")
        if resource_type not in resource_types:
            raise AwsError(
                "InvalidParameterValue",
                f"'{resource_type}' is not a valid taggable resource type for this operation.",
            )
        if resource_type in seen:
            raise AwsError(
                "InvalidParameterValue", f"The resource type '{resource_type}' appears more than once."
            )
        seen.add(resource_type)
        given += specification.get("Tags", ())
    return check_tags(given)


def _arns(call: Call, params: Params) -> list[str]:
    return [call.arn("ec2", f"{resource_type(one)}/{one}") for one in params.get("Resources", ())]


@operation("ec2", "CreateTags", resources=_arns)
def create_tags(call: Call, params: Params) -> Params:
    tags = check_tags(params.get("Tags", ()))
    if not tags:
        raise AwsError("MissingParameter", "The request must contain the parameter Tags")
    for resource_id in dict.fromkeys(params["Resources"]):
        old = _get(call.tx, resource_id)
        new = {**old, **tags}
        if len(new) > TAGS_PER_RESOURCE:
            raise AwsError(
                "TagLimitExceeded",
                f"The resource '{resource_id}' would have {len(new)} tags, the limit is {TAGS_PER_RESOURCE}.",
            )
        _set(call.tx, resource_id, new)
    return {}


@operation("ec2", "DeleteTags", resources=_arns)
def delete_tags(call: Call, params: Params) -> Params:
    """Without tags, all of them; with a key alone, whatever its value; with a value, only that one
    (AWS: an empty string deletes the tag only when its value is the empty string)."""
    given = params.get("Tags")
    for tag in given or ():
        if tag.get("Key", "").lower().startswith("aws:"):
            raise AwsError(
                "InvalidParameterValue",
                f"Tag keys starting with 'aws:' are reserved for internal use: '{tag['Key']}'",
            )
    for resource_id in dict.fromkeys(params["Resources"]):
        tags = dict(_get(call.tx, resource_id))
        if given is None:
            tags = {}
        for tag in given or ():
            key = tag.get("Key", "")
            if key in tags and tag.get("Value", tags[key]) == tags[key]:
                del tags[key]
        _set(call.tx, resource_id, tags)
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tag:
    resource_id: str
    resource_type: str
    key: str
    value: str

    @property
    def tags(self) -> dict[str, str]:
        """What `tag:KEY` filters by."""
        return {self.key: self.value}


def _all_tags(world: World) -> Iterator[_Tag]:
    for resource_type, resource_id, tags in _tagged(world):
        for key, value in tags.items():
            yield _Tag(resource_id=resource_id, resource_type=resource_type, key=key, value=value)


def _tagged(world: World) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    for kind in KINDS.values():
        if kind.prefix:
            documents: Iterable[Any] = world.all(kind.cls)
            for document in documents:
                if hidden(world, document):
                    continue
                yield kind.name, getattr(document, kind.key), tags_of(document)
    for group in world.all(SecurityGroup):
        for rule in group.rules:
            yield _RULE, rule.rule_id, rule.tags


TAGS: Resource[_Tag] = Resource(
    result="Tags",
    key=lambda tag: f"{tag.resource_id}\0{tag.key}",
    all=_all_tags,
    shape=lambda call, tag: {
        "ResourceId": tag.resource_id,
        "ResourceType": tag.resource_type,
        "Key": tag.key,
        "Value": tag.value,
    },
    filters={
        "key": lambda call, tag: tag.key,
        "value": lambda call, tag: tag.value,
        "resource-id": lambda call, tag: tag.resource_id,
        "resource-type": lambda call, tag: tag.resource_type,
    },
)


@operation("ec2", "DescribeTags")
def describe_tags(call: Call, params: Params) -> Params:
    return TAGS.describe(call, params)


def _kind(resource_id: str) -> Any:
    prefix = resource_id.rpartition("-")[0]
    return next((kind for kind in KINDS.values() if kind.prefix and kind.prefix == prefix), None)


def resource_type(resource_id: str) -> str:
    """The kind of resource, as ARNs have it, that has ids like this one; "*": none has."""
    kind = _kind(resource_id)
    return kind.name if kind else _RULE if resource_id.startswith("sgr-") else "*"


def _owner_of_rule(world: World, rule_id: str) -> SecurityGroup | None:
    groups = world.all(SecurityGroup)
    return next((group for group in groups if any(rule.rule_id == rule_id for rule in group.rules)), None)


def document_of(world: World, resource_id: str) -> Any:
    """What has this id, and carries its tags; None: nothing has. A security group's rule is no document."""
    if resource_id.startswith("sgr-"):
        group = _owner_of_rule(world, resource_id)
        rules = group.rules if group is not None else ()
        return next((rule for rule in rules if rule.rule_id == resource_id), None)
    kind = _kind(resource_id)
    found = world.get(kind.cls, resource_id) if kind else None
    return None if found is None or hidden(world, found) else found


def _get(world: World, resource_id: str) -> Mapping[str, str]:
    found = document_of(world, resource_id)
    if found is not None:
        return tags_of(found)
    kind = BY_PREFIX.get(resource_id.rpartition("-")[0])
    if kind is not None:
        raise kind.absent(resource_id)
    raise AwsError("InvalidID", f"The ID '{resource_id}' is not valid")


def _set(tx: Transaction, resource_id: str, tags: dict[str, str]) -> None:
    if resource_id.startswith("sgr-"):
        group = cast(SecurityGroup, _owner_of_rule(tx, resource_id))
        rules = tuple(
            replace(rule, tags=tags) if rule.rule_id == resource_id else rule for rule in group.rules
        )
        tx.put(replace(group, rules=rules))
    else:
        document: Any = tx.get(_kind(resource_id).cls, resource_id)
        tx.put(replace(document, tags=tags))
