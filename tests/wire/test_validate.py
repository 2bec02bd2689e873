"""The model's constraints, in the words AWS uses for them."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import pytest
from tests.wire.generate import request_of

from cloister.wire import model, patterns, protocol
from cloister.wire.errors import AwsError

JOB: dict[str, Any] = {
    "ProcessingJobName": "job",
    "RoleArn": "arn:aws:iam::123456789012:role/role",
    "AppSpecification": {"ImageUri": "cloister/host"},
    "ProcessingResources": {
        "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
    },
}


def refusal(service: str, operation: str, params: dict[str, Any]) -> AwsError:
    request = request_of(service, operation, params)
    with pytest.raises(AwsError) as raised:
        protocol.parse(protocol.identify(request), request)
    return raised.value


def job(**changes: Any) -> dict[str, Any]:
    return {**JOB, **changes}


def cluster(**changes: Any) -> dict[str, Any]:
    config = {**JOB["ProcessingResources"]["ClusterConfig"], **changes}
    return job(ProcessingResources={"ClusterConfig": {k: v for k, v in config.items() if v is not None}})


def test_a_valid_job_passes() -> None:
    request = request_of("sagemaker", "CreateProcessingJob", JOB)
    assert protocol.parse(protocol.identify(request), request) == JOB


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            cluster(InstanceType="local"),
            "1 validation error detected: Value 'local' at 'processingResources.clusterConfig.instanceType' "
            "failed to satisfy constraint: Member must satisfy enum value set: [",
        ),
        (
            cluster(VolumeSizeInGB=None),
            "1 validation error detected: Value null at 'processingResources.clusterConfig.volumeSizeInGB' "
            "failed to satisfy constraint: Member must not be null",
        ),
        (
            cluster(InstanceCount=0),
            "Value '0' at 'processingResources.clusterConfig.instanceCount' failed to satisfy constraint: "
            "Member must have value greater than or equal to 1",
        ),
        (
            cluster(VolumeSizeInGB=16385),
            "Member must have value less than or equal to 16384",
        ),
        (
            job(ProcessingJobName="a" * 64),
            f"Value '{'a' * 64}' at 'processingJobName' failed to satisfy constraint: Member must have "
            "length less than or equal to 63",
        ),
        (
            job(ProcessingJobName="a_b"),
            "Value 'a_b' at 'processingJobName' failed to satisfy constraint: Member must satisfy regular "
            "expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
        ),
        (
            job(ProcessingJobName="a\n"),
            "Member must satisfy regular expression pattern",
        ),
        (
            job(NetworkConfig={"VpcConfig": {"Subnets": [], "SecurityGroupIds": ["sg-1"]}}),
            "Value '[]' at 'networkConfig.vpcConfig.subnets' failed to satisfy constraint: Member must have "
            "length greater than or equal to 1",
        ),
        (
            job(NetworkConfig={"VpcConfig": {"Subnets": ["subnet_1"], "SecurityGroupIds": ["sg-1"]}}),
            "Value '[subnet_1]' at 'networkConfig.vpcConfig.subnets' failed to satisfy constraint: Member "
            "must satisfy constraint: [Member must have length less than or equal to 32, Member must have "
            "length greater than or equal to 0, Member must satisfy regular expression pattern: "
            "[-0-9a-zA-Z]+]",
        ),
        (
            job(ProcessingInputs=[{"InputName": "a"}, {"S3Input": {"S3Uri": "s3://b/k"}}]),
            "Value null at 'processingInputs.2.member.inputName' failed to satisfy constraint",
        ),
    ],
)
def test_sagemaker_words(params: dict[str, Any], said: str) -> None:
    error = refusal("sagemaker", "CreateProcessingJob", params)
    assert (error.code, error.status) == ("ValidationException", 400)
    assert said in error.message


def test_every_violation_is_told_at_once() -> None:
    error = refusal(
        "sagemaker", "CreateProcessingJob", {**cluster(InstanceCount=0), "ProcessingJobName": "-"}
    )
    assert error.message.startswith("2 validation errors detected: Value '")
    assert error.message.count("failed to satisfy constraint") == 2
    assert "; Value '" in error.message


@pytest.mark.parametrize(
    ("service", "operation", "params", "code", "said"),
    [
        (
            "iam",
            "CreateRole",
            {"RoleName": "a b", "AssumeRolePolicyDocument": "{}"},
            "ValidationError",
            "1 validation error detected: Value 'a b' at 'roleName' failed to satisfy constraint: Member "
            "must satisfy regular expression pattern: [\\w+=,.@-]+",
        ),
        (
            "sts",
            "AssumeRole",
            {"RoleSessionName": "abc"},
            "ValidationError",
            "Value null at 'roleArn' failed to satisfy constraint: Member must not be null",
        ),
        (
            "logs",
            "CreateLogGroup",
            {"logGroupName": "a?"},
            "InvalidParameterException",
            "Value 'a?' at 'logGroupName' failed to satisfy constraint",
        ),
        (
            "ec2",
            "CreateSubnet",
            {"CidrBlock": "10.0.0.0/24"},
            "MissingParameter",
            "The request must contain the parameter VpcId",
        ),
        (
            "ec2",
            "CreateVpc",
            {"CidrBlock": "10.0.0.0/16", "InstanceTenancy": "x"},
            "InvalidParameterValue",
            "Value (x) for parameter instanceTenancy is invalid.",
        ),
        (
            "ec2",
            "CreateVpc",
            {"CidrBlock": "10.0.0.0/16", "TagSpecifications": [{"ResourceType": "x"}]},
            "InvalidParameterValue",
            "Value (x) for parameter tagSpecification.1.ResourceType is invalid.",
        ),
        (
            "ec2",
            "DescribeVpcs",
            {"MaxResults": 4},
            "InvalidParameterValue",
            "Value (4) for parameter maxResults is invalid. Expecting a value greater than or equal to 5.",
        ),
        (
            "s3",
            "PutBucketVersioning",
            {"Bucket": "b", "VersioningConfiguration": {"Status": "x"}},
            "MalformedXML",
            "Member must satisfy enum value set",
        ),
    ],
)
def test_each_service_has_its_words(
    service: str, operation: str, params: dict[str, Any], code: str, said: str
) -> None:
    error = refusal(service, operation, params)
    assert error.code == code
    assert said in error.message


@pytest.mark.parametrize("service", ["ec2", "sagemaker", "iam", "sts", "logs", "s3"])
def test_every_pattern_of_the_models_is_understood(service: str) -> None:
    loaded = model.service(service)
    found = {traits["pattern"] for traits in loaded._shape_models.values() if "pattern" in traits}
    assert found
    assert [one for one in found if patterns.compiled(one) is None] == []


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[\p{L}\p{Z}\p{N}_.:/=+\-@]*", ["é漢 9_", "", "a-b@c"], ["a,b", "a\n", "\u0301"]),
        (r"[\p{L}\p{M}\p{Z}\p{S}\p{N}\p{P}]*", ["e\u0301 €!", "\U0001f600"], ["\t"]),
        (r"arn:[\p{Alnum}\-]+:x", ["arn:a-1:x"], ["arn:é:x"]),
        (r"([\p{L}\p{Z}\p{N}_.:\/=+\-@]*)${1,128}", ["abc", ""], ["a,"]),
        (r"[\w-_]*", ["a-b_c"], ["a.b"]),
        (r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDC00-\uDBFF\uDFFF\t]*", ["a\té\U0001f600"], ["\x01"]),
        (r"\d{2}\w", ["12a"], ["\u0661\u0662a", "12é"]),
        (r"^[a-z]+$", ["abc"], ["abc\n", "ABC"]),
        (r"\p{Lu}\P{Lu}", ["Aa", "Éé"], ["AA", "aa"]),
        (r"[^\p{L}[]+", ["123"], ["a", "["]),
    ],
)
def test_java_patterns_match_as_java_does(pattern: str, good: list[str], bad: list[str]) -> None:
    compiled = patterns.compiled(pattern)
    assert compiled is not None
    assert [text for text in good if not compiled.fullmatch(text)] == []
    assert [text for text in bad if compiled.fullmatch(text)] == []


def test_categories_are_unicodes_own() -> None:
    letters = patterns.compiled(r"\p{L}")
    assert letters is not None
    for code in range(0, 0x30000, 7):
        if not 0xD800 <= code < 0xE000:
            assert bool(letters.fullmatch(chr(code))) == (unicodedata.category(chr(code))[0] == "L")


def test_a_long_value_is_cut_in_the_message() -> None:
    error = refusal("sagemaker", "CreateProcessingJob", job(ProcessingJobName="a" * 100_000))
    assert len(error.message) < 5_000
    assert re.search(r"a\.\.\.'", error.message)
