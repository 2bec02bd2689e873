"""What the calls of side services need, and that names cannot be made to mean another resource."""

from __future__ import annotations

import base64
import json

import pytest

from cloister.iam.decide import Policies, Request, decide
from cloister.iam.model import Principal
from cloister.iam.policy import parse
from cloister.services.api import Need
from cloister.side import actions
from cloister.side.actions import Where
from cloister.wire.errors import AwsError
from cloister.wire.model import service as load

A = "us-east-1:123456789012"
SECRET = f"arn:aws:secretsmanager:{A}:secret:db/main-AbCdEf"
KEY = f"arn:aws:kms:{A}:key/11111111-2222-3333-4444-555555555555"
FOUND = {"db/main": SECRET, SECRET: SECRET, "alias/main": KEY, KEY.rpartition("/")[2]: KEY}
BLOB = KEY.rpartition("/")[2].encode() + b"\0" * 40


def where(service: str) -> Where:
    return Where(service=service, account="123456789012", region="us-east-1", found=FOUND)


def needs(service: str, operation: str, **params: object) -> set[tuple[str, str]]:
    found = actions.needs(operation, params, where(service))
    assert all(isinstance(each, Need) for each in found)
    return {(need.action, need.resource) for need in found}


@pytest.mark.parametrize(
    ("service", "operation", "params", "needed"),
    [
        ("secretsmanager", "GetSecretValue", {"SecretId": "db/main"}, {("GetSecretValue", SECRET)}),
        ("secretsmanager", "GetSecretValue", {"SecretId": SECRET}, {("GetSecretValue", SECRET)}),
        (
            "secretsmanager", "GetSecretValue", {"SecretId": "none"},
            {("GetSecretValue", f"arn:aws:secretsmanager:{A}:secret:none-??????")},
        ),
        (
            "secretsmanager", "BatchGetSecretValue", {"SecretIdList": ["db/main"]},
            {("BatchGetSecretValue", "*"), ("GetSecretValue", SECRET)},
        ),
        (
            "secretsmanager", "BatchGetSecretValue", {"Filters": []},
            {("BatchGetSecretValue", "*"), ("GetSecretValue", "*")},
        ),
        ("secretsmanager", "ListSecrets", {}, {("ListSecrets", "*")}),
        ("kms", "Encrypt", {"KeyId": "alias/main"}, {("Encrypt", KEY)}),
        ("kms", "Encrypt", {"KeyId": "alias/no"}, {("Encrypt", f"arn:aws:kms:{A}:alias/no")}),
        ("kms", "Decrypt", {"CiphertextBlob": BLOB}, {("Decrypt", KEY)}),
        (
            "kms", "Decrypt", {"CiphertextBlob": BLOB, "KeyId": "other"},
            {("Decrypt", KEY), ("Decrypt", f"arn:aws:kms:{A}:key/other")},
        ),
        (
            "kms", "ReEncrypt", {"CiphertextBlob": BLOB, "DestinationKeyId": "alias/main"},
            {("ReEncryptFrom", KEY), ("ReEncryptTo", KEY)},
        ),
        (
            "kms", "UpdateAlias", {"AliasName": "alias/main", "TargetKeyId": "new"},
            {
                ("UpdateAlias", f"arn:aws:kms:{A}:alias/main"),
                ("UpdateAlias", KEY),
                ("UpdateAlias", f"arn:aws:kms:{A}:key/new"),
            },
        ),
        ("ssm", "GetParameter", {"Name": "/a/b:3"}, {("GetParameter", f"arn:aws:ssm:{A}:parameter/a/b")}),
        (
            "ssm", "GetParameters", {"Names": ["x", f"arn:aws:ssm:{A}:parameter/a/b"]},
            {
                ("GetParameters", f"arn:aws:ssm:{A}:parameter/x"),
                ("GetParameters", f"arn:aws:ssm:{A}:parameter/a/b"),
            },
        ),
        (
            "ssm", "GetParametersByPath", {"Path": "/"},
            {("GetParametersByPath", f"arn:aws:ssm:{A}:parameter/")},
        ),
        (
            "dynamodb", "Query", {"TableName": "tab", "IndexName": "idx"},
            {("Query", f"arn:aws:dynamodb:{A}:table/tab/index/idx")},
        ),
        (
            "dynamodb", "BatchGetItem", {"RequestItems": {"one": {}, "two": {}}},
            {
                ("BatchGetItem", f"arn:aws:dynamodb:{A}:table/one"),
                ("BatchGetItem", f"arn:aws:dynamodb:{A}:table/two"),
            },
        ),
        (
            "dynamodb", "TransactWriteItems",
            {"TransactItems": [{"Put": {"TableName": "one"}}, {"ConditionCheck": {"TableName": "two"}}]},
            {
                ("PutItem", f"arn:aws:dynamodb:{A}:table/one"),
                ("ConditionCheckItem", f"arn:aws:dynamodb:{A}:table/two"),
            },
        ),
        (
            "sqs", "SendMessageBatch", {"QueueUrl": "https://sqs.us-east-1.amazonaws.com/123456789012/q"},
            {("SendMessage", f"arn:aws:sqs:{A}:q")},
        ),
        ("sns", "Publish", {"TopicArn": f"arn:aws:sns:{A}:t"}, {("Publish", f"arn:aws:sns:{A}:t")}),
        ("events", "PutEvents", {"Entries": [{}]}, {("PutEvents", f"arn:aws:events:{A}:event-bus/default")}),
        (
            "ecr", "DescribeImages", {"repositoryName": "a/b"},
            {("DescribeImages", f"arn:aws:ecr:{A}:repository/a/b")},
        ),
        ("ecr", "DescribeRepositories", {}, {("DescribeRepositories", "*")}),
        (
            "kinesis", "GetRecords", {"ShardIterator": base64.b64encode(b"st:shardId-0:1").decode()},
            {("GetRecords", f"arn:aws:kinesis:{A}:stream/st")},
        ),
        ("cloudwatch", "PutMetricData", {"Namespace": "n"}, {("PutMetricData", "*")}),
    ],
)  # fmt: skip
def test_a_call_needs(service: str, operation: str, params: dict, needed: set[tuple[str, str]]) -> None:
    assert needs(service, operation, **params) == {(f"{service}:{name}", arn) for name, arn in needed}


@pytest.mark.parametrize(
    ("service", "operation", "params"),
    [
        # another account's, another Region's, another service's, and an ARN that hides a second name
        ("dynamodb", "GetItem", {"TableName": "arn:aws:dynamodb:us-east-1:999999999999:table/tab"}),
        ("dynamodb", "GetItem", {"TableName": "arn:aws:dynamodb:eu-west-1:123456789012:table/tab"}),
        ("dynamodb", "GetItem", {"TableName": f"arn:aws:dynamodb:{A}:table/a:table/secret"}),
        ("dynamodb", "GetItem", {"TableName": "a/../secret"}),
        ("dynamodb", "Query", {"TableName": "tab", "IndexName": "x/../../y"}),
        ("dynamodb", "BatchGetItem", {"RequestItems": {}}),
        ("ssm", "GetParameter", {"Name": "arn:aws:ssm:us-east-1:999999999999:parameter/x"}),
        ("sqs", "SendMessage", {"QueueUrl": "https://sqs.us-east-1.amazonaws.com/123456789012/q?x=/r"}),
        ("sns", "Publish", {"TopicArn": "arn:aws:sns:us-east-1:999999999999:t"}),
        ("sns", "Publish", {}),
        ("secretsmanager", "GetSecretValue", {"SecretId": "arn:aws:secretsmanager:us-east-1:9:secret:x"}),
        ("kinesis", "PutRecord", {"StreamName": "st", "StreamARN": f"arn:aws:kinesis:{A}:stream/other"}),
        ("kinesis", "GetRecords", {"ShardIterator": "no iterator"}),
        ("kms", "Decrypt", {"CiphertextBlob": b"\xff\xfe: not one of ours"}),
    ],
)
def test_what_names_nothing_of_the_account_is_refused(service: str, operation: str, params: dict) -> None:
    with pytest.raises(AwsError, match="ValidationException"):
        needs(service, operation, **params)


@pytest.mark.parametrize(
    ("service", "operation", "params"),
    [
        ("secretsmanager", "PutResourcePolicy", {"SecretId": "x"}),
        ("kms", "CreateKey", {"Policy": "{}"}),
        ("sqs", "SetQueueAttributes", {"QueueUrl": "q", "Attributes": {"Policy": "{}"}}),
        ("sns", "CreateTopic", {"Name": "t", "Attributes": {"Policy": "{}"}}),
        ("sns", "Subscribe", {"TopicArn": f"arn:aws:sns:{A}:t"}),
        ("dynamodb", "ExecuteStatement", {"Statement": "SELECT"}),
    ],
)
def test_a_resource_policy_or_what_cannot_be_decided_on_is_not_done(
    service: str, operation: str, params: dict
) -> None:
    with pytest.raises(AwsError, match="NotImplemented"):
        needs(service, operation, **params)


def test_every_operation_and_every_refused_parameter_is_one_of_botocores() -> None:
    for name, operations in actions.OPERATIONS.items():
        model = load(name)
        assert set(operations) <= set(model.operation_names)
        members = {
            member for operation in model.operation_names for member in model.input_members(operation)[0]
        }
        assert set(actions._REFUSED.get(name, ())) <= members


def test_a_calls_tags_are_condition_keys() -> None:
    pairs = [{"Key": "Team", "Value": "a"}]
    assert actions.context("secretsmanager", {"Tags": pairs}) == {
        "aws:requesttag/team": "a",
        "aws:tagkeys": ["Team"],
    }
    assert actions.context("kms", {"Tags": [{"TagKey": "T", "TagValue": "a"}]})["aws:requesttag/t"] == "a"
    assert actions.context("sqs", {"tags": {"T": "a"}})["aws:tagkeys"] == ["T"]
    assert actions.context("dynamodb", {"TagKeys": ["T"]})["aws:tagkeys"] == ["T"]


@pytest.mark.parametrize("key", ["dynamodb:LeadingKeys", "dynamodb:Attributes", "aws:ResourceTag/team"])
def test_a_condition_on_what_cannot_be_told_lets_nothing_pass_and_stops_what_it_may_stop(key: str) -> None:
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}

    def allowed(**statement: object) -> bool:
        written = [everything | statement] + [everything] * ("Effect" in statement)
        policy = parse(json.dumps({"Version": "2012-10-17", "Statement": written}), "identity")
        request = Request(
            principal=Principal(
                arn="arn:aws:sts::1:assumed-role/r/s", account="1", user_id="A:s", access_key_id="ASIA"
            ),
            action="dynamodb:GetItem",
            resource="arn:aws:dynamodb:us-east-1:1:table/t",
            context=actions.context("dynamodb", {}),
            untold=actions.untold("dynamodb"),
        )
        return decide(request, Policies(identity=(("p", policy),))).allowed

    for operator in ("ForAllValues:StringEquals", "StringEqualsIfExists", "StringNotEquals"):
        assert not allowed(Condition={operator: {key: "a"}})
    for operator in ("ForAnyValue:StringEquals", "StringEquals", "StringLike"):
        assert not allowed(Effect="Deny", Condition={operator: {key: "a"}})
    assert allowed(Effect="Deny", Condition={"StringEquals": {"aws:SourceIp": "a"}})
