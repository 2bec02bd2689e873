"""What a call of a side service needs: IAM actions on resources, and the condition keys it brings.

A list of what is done: an operation that is not here is refused, and so is a parameter that would set a
resource policy, because what decides here are identity and endpoint policies only. AWS: Service Authorization
Reference, the pages of the services.

Names are checked before they become ARNs, and ARNs are taken apart, so that the resource that is decided on
is the one that moto acts on. Where only moto knows the ARN (a secret by its name, a key by its alias) the
caller of `needs` looks it up first: `lookups` says what.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.services.api import Need
from cloister.wire.errors import AwsError

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Whose and where the resources are. `found` maps what `lookups` asked for to ARNs."""

    service: str
    account: str
    region: str
    found: Mapping[str, str] = field(default_factory=dict)

    def arn(self, resource: str) -> str:
        return f"arn:aws:{self.service}:{self.region}:{self.account}:{resource}"

    def name(self, text: str, stem: str = "", pattern: str = r"[A-Za-z0-9_.-]{1,512}") -> str:
        """The ARN of what `text` names, by name or by ARN. Raises ValidationException."""
        prefix = self.arn(stem)
        name = text.removeprefix(prefix) if text.startswith("arn:") else text
        if not re.fullmatch(pattern, name):
            raise AwsError(
                "ValidationException",
                f"{text[:300]!r} names no {stem.rstrip('/:') or 'resource'} of this account.",
            )
        return prefix + name


Resources = Callable[[Params, Where], Iterable[str]]
Needs = Callable[[Params, Where], Iterable[Need]]


def _any(params: Params, where: Where) -> Iterable[str]:
    return ["*"]


def _named(member: str, stem: str = "", pattern: str = r"[A-Za-z0-9_.-]{1,512}") -> Resources:
    """The resource, or the resources, that a parameter names; everything when it is absent."""

    def resources(params: Params, where: Where) -> Iterable[str]:
        value = params.get(member)
        values = value if isinstance(value, list) else [value] if value else []
        return [where.name(each, stem, pattern) for each in values] or ["*"]

    return resources


# --- secretsmanager --------------------------------------------------------------------------------------

_SECRET = r"[A-Za-z0-9/_+=.@-]{1,512}"


def _secret(params: Params, where: Where) -> Iterable[str]:
    yield secret_arn(params["SecretId"], where)


def secret_arn(text: str, where: Where) -> str:
    """The ARN of a secret; for one that does not exist, with six characters that are nobody's."""
    found = where.found.get(text)
    if found is not None:
        return found
    return where.name(text, "secret:", _SECRET) + ("" if text.startswith("arn:") else "-??????")


def _new_secret(params: Params, where: Where) -> Iterable[str]:
    yield where.name(params["Name"], "secret:", _SECRET) + "-??????"


def _batch_secrets(params: Params, where: Where) -> Iterable[Need]:
    yield Need(action="secretsmanager:BatchGetSecretValue", resource="*")
    listed = params.get("SecretIdList")
    for each in [secret_arn(text, where) for text in listed] if listed else ["*"]:
        yield Need(action="secretsmanager:GetSecretValue", resource=each)


# --- kms -------------------------------------------------------------------------------------------------


def _key(params: Params, where: Where) -> Iterable[str]:
    yield key_arn(params["KeyId"], where)


def key_arn(text: str, where: Where) -> str:
    found = where.found.get(text)
    if found is not None:
        return found
    if text.startswith("alias/"):
        return where.name(text.removeprefix("alias/"), "alias/", r"[A-Za-z0-9/_-]{1,250}")
    if text.startswith(where.arn("alias/")):
        return where.name(text, "alias/", r"[A-Za-z0-9/_-]{1,250}")
    return where.name(text, "key/")


def key_in(blob: bytes) -> str:
    """The key that a ciphertext of moto's was made with: its first 36 bytes name it."""
    return blob[:36].decode("ascii", "replace")


def _key_of(member: str, blob: str) -> Resources:
    """The key named, and the key that the ciphertext names: moto decrypts with the latter."""

    def resources(params: Params, where: Where) -> Iterable[str]:
        if params.get(member):
            yield key_arn(params[member], where)
        yield key_arn(key_in(params[blob]), where)

    return resources


def _alias(params: Params, where: Where) -> Iterable[str]:
    name = params["AliasName"]
    yield where.name(name.removeprefix("alias/"), "alias/", r"[A-Za-z0-9/_-]{1,250}")
    if name in where.found:
        yield where.found[name]
    if params.get("TargetKeyId"):
        yield key_arn(params["TargetKeyId"], where)


def _reencrypt(params: Params, where: Where) -> Iterable[Need]:
    for resource in _key_of("SourceKeyId", "CiphertextBlob")(params, where):
        yield Need(action="kms:ReEncryptFrom", resource=resource)
    yield Need(action="kms:ReEncryptTo", resource=key_arn(params["DestinationKeyId"], where))


# --- ssm -------------------------------------------------------------------------------------------------

_PARAMETER = r"[A-Za-z0-9/_.-]{1,1011}"


def _parameters(member: str) -> Resources:
    def resources(params: Params, where: Where) -> Iterable[str]:
        value = params.get(member)
        for text in value if isinstance(value, list) else [value or "/"]:
            # NAME:VERSION and NAME:LABEL are of NAME; the slash that begins a path is in no ARN
            name = text.removeprefix(where.arn("parameter/"))
            if not name.startswith("arn:"):
                name = name.partition(":")[0].lstrip("/")
            yield where.name(name, "parameter/", _PARAMETER) if name else where.arn("parameter/")

    return resources


def _parameter_tags(params: Params, where: Where) -> Iterable[str]:
    if params["ResourceType"] != "Parameter":
        raise AwsError("InvalidResourceType", "Cloister has tags of the resource type Parameter only.")
    return _parameters("ResourceId")(params, where)


# --- dynamodb --------------------------------------------------------------------------------------------

_TABLE = _named("TableName", "table/", r"[A-Za-z0-9_.-]{3,255}")


def _table(text: str, where: Where) -> str:
    return where.name(text, "table/", r"[A-Za-z0-9_.-]{3,255}")


def _read(params: Params, where: Where) -> Iterable[str]:
    table, index = _table(params["TableName"], where), params.get("IndexName")
    if index and not re.fullmatch(r"[A-Za-z0-9_.-]{3,255}", index):
        raise AwsError("ValidationException", f"{index[:300]!r} is no name of an index.")
    yield f"{table}/index/{index}" if index else table


def _tables(params: Params, where: Where) -> Iterable[str]:
    return [_table(text, where) for text in params["RequestItems"]]


def _transaction(params: Params, where: Where) -> Iterable[Need]:
    """AWS: transactions are permitted by the actions of what they contain."""
    actions = {"Get": "GetItem", "Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem"}
    actions["ConditionCheck"] = "ConditionCheckItem"
    for item in params["TransactItems"]:
        for kind, inner in item.items():
            yield Need(action=f"dynamodb:{actions[kind]}", resource=_table(inner["TableName"], where))


# --- sqs, sns, events, kinesis, ecr ----------------------------------------------------------------------

_QUEUE = r"[A-Za-z0-9_-]{1,80}(?:\.fifo)?"
_TOPIC = r"[A-Za-z0-9_-]{1,256}(?:\.fifo)?"


def _queue(params: Params, where: Where) -> Iterable[str]:
    url = params["QueueUrl"]
    match = re.fullmatch(rf"https?://[A-Za-z0-9.:-]+/{where.account}/({_QUEUE})", url)
    yield where.name(match[1] if match else url, "", _QUEUE)


def _topic(params: Params, where: Where) -> Iterable[str]:
    if params.get("PhoneNumber"):
        raise AwsError("InvalidParameter", "Cloister sends no text messages: PhoneNumber is not supported.")
    yield where.name(params.get("TopicArn") or params.get("TargetArn") or "", "", _TOPIC)


def _buses(params: Params, where: Where) -> Iterable[str]:
    for entry in params["Entries"]:
        yield where.name(entry.get("EventBusName") or "default", "event-bus/")


def _stream(params: Params, where: Where) -> Iterable[str]:
    named = [params[member] for member in ("StreamName", "StreamARN") if params.get(member)]
    if len(named) != 1:
        raise AwsError("ValidationException", "Exactly one of StreamName and StreamARN must be given.")
    yield where.name(named[0], "stream/", r"[A-Za-z0-9_.-]{1,128}")


def _iterated(params: Params, where: Where) -> Iterable[str]:
    """The stream that a shard iterator of moto's names."""
    try:
        name = base64.decodebytes(params["ShardIterator"].encode()).decode().partition(":")[0]
    except ValueError:
        name = ""
    if params.get("StreamARN"):
        raise AwsError("NotImplemented", "Cloister does not implement StreamARN of GetRecords.", 501)
    yield where.name(name, "stream/", r"[A-Za-z0-9_.-]{1,128}")


_REPOSITORY = r"[a-z0-9/_.-]{2,256}"
_of_repository = _named("repositoryName", "repository/", _REPOSITORY)
_of_rule = _named("Name", "rule/")


def _plain(service: str, resources: Resources, *names: str, action: str | None = None) -> dict[str, Needs]:
    def of(name: str) -> Needs:
        def needs(params: Params, where: Where) -> Iterable[Need]:
            return [
                Need(action=f"{service}:{action or name}", resource=each) for each in resources(params, where)
            ]

        return needs

    return {name: of(name) for name in names}


#: service -> operation -> what it needs
OPERATIONS: dict[str, dict[str, Needs]] = {
    "secretsmanager": {
        **_plain(
            "secretsmanager", _secret,
            "GetSecretValue", "DescribeSecret", "PutSecretValue", "UpdateSecret", "DeleteSecret",
            "RestoreSecret", "ListSecretVersionIds", "TagResource", "UntagResource",
            "UpdateSecretVersionStage",
        ),
        **_plain("secretsmanager", _new_secret, "CreateSecret"),
        **_plain("secretsmanager", _any, "ListSecrets", "GetRandomPassword"),
        "BatchGetSecretValue": _batch_secrets,
    },
    "kms": {
        **_plain(
            "kms", _key,
            "DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "Sign", "Verify",
            "GenerateMac", "VerifyMac", "GetPublicKey", "EnableKey", "DisableKey", "ScheduleKeyDeletion",
            "CancelKeyDeletion", "TagResource", "UntagResource", "ListResourceTags", "EnableKeyRotation",
            "DisableKeyRotation", "GetKeyRotationStatus", "UpdateKeyDescription", "GetKeyPolicy",
        ),
        **_plain("kms", _key_of("KeyId", "CiphertextBlob"), "Decrypt"),
        **_plain("kms", _alias, "CreateAlias", "UpdateAlias", "DeleteAlias"),
        **_plain("kms", _any, "CreateKey", "ListKeys", "ListAliases", "GenerateRandom"),
        "ReEncrypt": _reencrypt,
    },
    "ssm": {
        **_plain(
            "ssm", _parameters("Name"),
            "PutParameter", "GetParameter", "DeleteParameter", "GetParameterHistory",
            "LabelParameterVersion",
        ),
        **_plain("ssm", _parameters("Names"), "GetParameters", "DeleteParameters"),
        **_plain("ssm", _parameters("Path"), "GetParametersByPath"),
        **_plain("ssm", _any, "DescribeParameters"),
        **_plain(
            "ssm", _parameter_tags, "AddTagsToResource", "RemoveTagsFromResource", "ListTagsForResource"
        ),
    },
    "dynamodb": {
        **_plain(
            "dynamodb", _TABLE,
            "CreateTable", "DeleteTable", "DescribeTable", "UpdateTable", "PutItem", "GetItem", "UpdateItem",
            "DeleteItem", "DescribeTimeToLive", "UpdateTimeToLive", "DescribeContinuousBackups",
        ),
        **_plain("dynamodb", _read, "Query", "Scan"),
        **_plain("dynamodb", _tables, "BatchGetItem", "BatchWriteItem"),
        **_plain("dynamodb", _any, "ListTables", "DescribeEndpoints"),
        **_plain(
            "dynamodb", _named("ResourceArn", "table/"), "TagResource", "UntagResource", "ListTagsOfResource"
        ),
        "TransactGetItems": _transaction,
        "TransactWriteItems": _transaction,
    },
    "sqs": {
        **_plain(
            "sqs", _queue,
            "SendMessage", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "DeleteQueue",
            "PurgeQueue", "GetQueueAttributes", "SetQueueAttributes", "TagQueue", "UntagQueue",
            "ListQueueTags",
        ),
        **_plain("sqs", _queue, "SendMessageBatch", action="SendMessage"),
        **_plain("sqs", _queue, "DeleteMessageBatch", action="DeleteMessage"),
        **_plain("sqs", _queue, "ChangeMessageVisibilityBatch", action="ChangeMessageVisibility"),
        **_plain("sqs", _named("QueueName", "", _QUEUE), "CreateQueue", "GetQueueUrl"),
        **_plain("sqs", _any, "ListQueues"),
    },
    "sns": {
        **_plain("sns", _topic, "Publish", "DeleteTopic", "GetTopicAttributes", "ListSubscriptionsByTopic"),
        **_plain("sns", _topic, "PublishBatch", action="Publish"),
        **_plain("sns", _named("Name", "", _TOPIC), "CreateTopic"),
        **_plain("sns", _any, "ListTopics", "ListSubscriptions"),
    },
    "events": {
        **_plain("events", _buses, "PutEvents"),
        **_plain("events", _of_rule, "PutRule", "DescribeRule", "DeleteRule", "EnableRule", "DisableRule"),
        **_plain("events", _any, "ListRules", "ListEventBuses"),
    },
    "kinesis": {
        **_plain(
            "kinesis", _stream,
            "CreateStream", "DeleteStream", "DescribeStream", "DescribeStreamSummary", "PutRecord",
            "PutRecords", "GetShardIterator",
        ),
        **_plain("kinesis", _iterated, "GetRecords"),
        **_plain("kinesis", _any, "ListStreams"),
    },
    "cloudwatch": {
        **_plain(
            "cloudwatch", _any, "PutMetricData", "GetMetricData", "GetMetricStatistics", "ListMetrics"
        ),
    },
    "ecr": {
        **_plain(
            "ecr", _of_repository,
            "CreateRepository", "DeleteRepository", "DescribeImages", "ListImages", "BatchGetImage",
            "BatchDeleteImage", "PutImage", "PutLifecyclePolicy", "GetLifecyclePolicy",
            "DeleteLifecyclePolicy", "PutImageTagMutability", "PutImageScanningConfiguration",
        ),
        **_plain("ecr", _named("repositoryNames", "repository/", _REPOSITORY), "DescribeRepositories"),
        **_plain("ecr", _any, "GetAuthorizationToken"),
        **_plain(
            "ecr", _named("resourceArn", "repository/", _REPOSITORY),
            "TagResource", "UntagResource", "ListTagsForResource",
        ),
    },
}  # fmt: skip

#: (service, member) that would be a resource policy, or reach over to another account or service
_REFUSED = {
    "dynamodb": ("ResourcePolicy", "GlobalTableSourceArn"),
    "ecr": ("registryId",),
    "events": ("EventBusName", "EndpointId", "RoleArn"),
    "kms": ("Policy", "GrantTokens", "CustomKeyStoreId"),
    "secretsmanager": ("AddReplicaRegions",),
    "sqs": ("QueueOwnerAWSAccountId",),
}


def lookups(service: str, operation: str, params: Params) -> list[str]:
    """What only moto can say the ARN of: secrets and keys, as the call names them."""
    if service == "secretsmanager":
        one = [params["SecretId"]] if "SecretId" in params else []
        return [*one, *params.get("SecretIdList", ())]
    if service == "kms":
        named = [params[member] for member in _KEYS if params.get(member)]
        return named + ([key_in(params["CiphertextBlob"])] if "CiphertextBlob" in params else [])
    return []


_KEYS = ("KeyId", "TargetKeyId", "SourceKeyId", "DestinationKeyId", "AliasName")


def needs(operation: str, params: Params, where: Where) -> list[Need]:
    """What a call needs; not empty. Raises NotImplemented, ValidationException."""
    known = OPERATIONS[where.service].get(operation)
    if known is None:
        message = f"Cloister does not implement {where.service}:{operation}."
        raise AwsError("NotImplemented", message, 501)
    attributes = params.get("Attributes")
    refused = [member for member in _REFUSED.get(where.service, ()) if params.get(member)]
    if where.service in ("sns", "sqs") and isinstance(attributes, Mapping) and attributes.get("Policy"):
        refused.append("Attributes.Policy")
    if refused:
        raise AwsError(
            "NotImplemented",
            f"Cloister does not implement the parameter {refused[0]} of {where.service}.",
            501,
        )
    found = list(known(params, where))
    if not found:
        raise AwsError("ValidationException", f"{where.service}:{operation} names no resource.")
    return found


def context(service: str, params: Params) -> dict[str, Any]:
    """The condition keys that a call's parameters give."""
    keys: dict[str, Any] = {}
    tags = params.get("Tags") or params.get("tags") or {}
    if isinstance(tags, Mapping):
        pairs = dict(tags)
    else:
        pairs = {
            each.get("Key", each.get("TagKey", "")): each.get("Value", each.get("TagValue", ""))
            for each in tags
        }
    keys |= {f"aws:requesttag/{key.lower()}": value for key, value in pairs.items()}
    removed = params.get("TagKeys") or params.get("tagKeys") or []
    if pairs or removed:
        keys["aws:tagkeys"] = [*pairs, *removed]
    if service == "cloudwatch" and params.get("Namespace"):
        keys["cloudwatch:namespace"] = params["Namespace"]
    return keys


def untold(service: str) -> tuple[str, ...]:
    """Beginnings of the condition keys that only moto could tell: what a table's items are, and tags."""
    fine = ("dynamodb:leadingkeys", "dynamodb:attributes") if service == "dynamodb" else ()
    return (*fine, "aws:resourcetag/", f"{service}:resourcetag/")
