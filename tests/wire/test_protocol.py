"""Which operation a request is, what malformed requests are answered, and how errors look to boto3."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.awsrequest import HeadersDict
from botocore.parsers import create_parser
from tests.wire.generate import request_of

from cloister.wire import protocol
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest
from cloister.wire.protocol import Target

FORM = ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")


def authorization(service: str) -> tuple[str, str]:
    scope = f"AKID/20260101/us-east-1/{service}/aws4_request"
    return "Authorization", f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature={'0' * 64}"


def form(service: str, body: bytes, query: str = "", method: str = "POST") -> HttpRequest:
    return HttpRequest(method, "/", query, (FORM, authorization(service)), body)


def json(body: bytes, target: str = "SageMaker.CreateProcessingJob") -> HttpRequest:
    return HttpRequest("POST", "/", "", (("X-Amz-Target", target), authorization("sagemaker")), body)


def s3(method: str, path: str, query: str = "", body: bytes = b"", *headers: tuple[str, str]) -> HttpRequest:
    return HttpRequest(method, path, query, (authorization("s3"), *headers), body)


def refused(request: HttpRequest) -> AwsError:
    with pytest.raises(AwsError) as raised:
        protocol.parse(protocol.identify(request), request)
    return raised.value


@pytest.mark.parametrize(
    ("request_", "operation"),
    [
        (form("ec2", b"Action=DescribeVpcs&Version=2016-11-15"), "ec2:DescribeVpcs"),
        (form("ec2", b"", "Action=DescribeVpcs&Version=2016-11-15", "GET"), "ec2:DescribeVpcs"),
        (form("monitoring", b"Action=ListMetrics", ""), "cloudwatch:ListMetrics"),
        (form("sqs", b"Action=ListQueues", ""), None),
        (
            form("elasticloadbalancing", b"Action=DescribeLoadBalancers&Version=2012-06-01"),
            "elb:DescribeLoadBalancers",
        ),
        (
            form("elasticloadbalancing", b"Action=DescribeLoadBalancers&Version=2015-12-01"),
            "elbv2:DescribeLoadBalancers",
        ),
        (json(b"{}"), "sagemaker:CreateProcessingJob"),
        (
            HttpRequest(
                "POST", "/", "", (("x-amz-target", "DynamoDB_20120810.GetItem"), authorization("dynamodb"))
            ),
            "dynamodb:GetItem",
        ),
        (
            HttpRequest("POST", "/", "", (FORM,), b"Action=GetCallerIdentity&Version=2011-06-15"),
            "sts:GetCallerIdentity",
        ),
        (s3("GET", "/"), "s3:ListBuckets"),
        (s3("GET", "/b"), "s3:ListObjects"),
        (s3("GET", "/b/"), "s3:ListObjects"),
        (s3("GET", "/b", "list-type=2&prefix=x"), "s3:ListObjectsV2"),
        (s3("GET", "/b", "lifecycle"), "s3:GetBucketLifecycleConfiguration"),
        (s3("PUT", "/b/k"), "s3:PutObject"),
        (s3("PUT", "/b/k", "", b"", ("X-Amz-Copy-Source", "/b/x")), "s3:CopyObject"),
        (s3("PUT", "/b/k", "partNumber=1&uploadId=u"), "s3:UploadPart"),
        (
            s3("PUT", "/b/k", "partNumber=1&uploadId=u", b"", ("x-amz-copy-source", "/b/x")),
            "s3:UploadPartCopy",
        ),
        (s3("POST", "/b/k", "uploads"), "s3:CreateMultipartUpload"),
        (s3("POST", "/b/k", "uploadId=u"), "s3:CompleteMultipartUpload"),
        (s3("GET", "/b/k", "uploadId=u"), "s3:ListParts"),
        (s3("GET", "/b/a/b/c", "tagging"), "s3:GetObjectTagging"),
        (s3("HEAD", "/b/k"), "s3:HeadObject"),
        (s3("POST", "/b", "delete"), "s3:DeleteObjects"),
    ],
)
def test_a_request_is_recognised(request_: HttpRequest, operation: str | None) -> None:
    if operation is None:
        with pytest.raises(AwsError, match=r"InvalidAction|MissingAction"):
            protocol.identify(request_)
        return
    target = protocol.identify(request_)
    assert f"{target.service}:{target.operation}" == operation


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (form("ec2", b"Action=Nonsense&Version=2016-11-15"), "InvalidAction"),
        (form("iam", b"Action=Nonsense&Version=2010-05-08"), "InvalidAction"),
        (form("ec2", b"Version=2016-11-15"), "MissingAction"),
        (json(b"{}", "SageMaker.Nonsense"), "UnknownOperationException"),
        (json(b"{}", "nonsense"), "UnknownOperationException"),
        (json(b"{}", "SageMaker.__init__"), "UnknownOperationException"),
        (s3("PATCH", "/b/k"), "MethodNotAllowed"),
        (form("../../etc", b"Action=A"), "InvalidAction"),
        (HttpRequest("GET", "/"), "MissingAuthenticationToken"),
    ],
)
def test_an_unknown_operation_is_told_as_aws_does(request_: HttpRequest, code: str) -> None:
    assert refused(request_).code == code
    response = protocol.render_error(protocol.guess(request_), refused(request_), "rid")
    assert code.encode() in response.body


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff",
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"ProcessingJobName":"\\ud800"}',
        b'{"ProcessingJobName":1}',
        b'{"ProcessingJobName":["a"]}',
        b'{"ProcessingResources":"a"}',
        b'{"ProcessingInputs":{}}',
        b'{"Environment":{"a":1}}',
        b'{"Nonsense":1}',
        b'{"StoppingCondition":{"MaxRuntimeInSeconds":"1"}}',
        b'{"StoppingCondition":{"MaxRuntimeInSeconds":1.5}}',
        b'{"StoppingCondition":{"MaxRuntimeInSeconds":true}}',
        b'{"StoppingCondition":{"MaxRuntimeInSeconds":' + b"9" * 5000 + b"}}",
        b'{"StoppingCondition":{"MaxRuntimeInSeconds":3000000000}}',
    ],
)
def test_malformed_json_is_a_serialization_exception(body: bytes) -> None:
    error = refused(json(body))
    assert (error.code, error.status) == ("SerializationException", 400)
    assert len(error.message) < 1000


@pytest.mark.parametrize(
    ("service", "body", "code"),
    [
        ("ec2", b"Action=DescribeVpcs&MaxResults=abc", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&MaxResults=99999999999999999999999", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&DryRun=maybe", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&VpcId=a", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&VpcId.x=a", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&VpcId.1.2=a", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&Filter.1=a", "InvalidParameterValue"),
        ("ec2", b"Action=DescribeVpcs&Nonsense=1", "UnknownParameter"),
        ("ec2", b"Action=DescribeVpcs&VpcId.1=a&VpcId.1=b", "MalformedQueryString"),
        ("ec2", b"Action=DescribeVpcs&VpcId.1=a&VpcId.1.2=b", "MalformedQueryString"),
        ("ec2", b"Action=DescribeVpcs&VpcId.1=%ff", "MalformedQueryString"),
        ("ec2", b"Action=DescribeVpcs&VpcId.1=\xff", "MalformedQueryString"),
        ("ec2", b"Action=DescribeVpcs&A" + b".1" * 1000 + b"=a", "MalformedQueryString"),
        ("ec2", b"Action=DescribeVpcs" + b"&a" * 30_000, "MalformedQueryString"),
        ("iam", b"Action=ListRoles&MaxItems=abc", "MalformedInput"),
        ("iam", b"Action=ListRoles&Nonsense=abc", "UnknownParameter"),
    ],
)
def test_malformed_forms_are_refused_by_name(service: str, body: bytes, code: str) -> None:
    assert refused(form(service, body)).code == code


def test_a_huge_index_costs_nothing_and_keeps_its_order() -> None:
    request = form("ec2", b"Action=DescribeVpcs&VpcId.999999999=z&VpcId.2=b&VpcId.10=c")
    assert protocol.parse(protocol.identify(request), request) == {"VpcIds": ["b", "c", "z"]}


BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    b"<Tagging><TagSet><Tag><Key>&b;</Key><Value>v</Value></Tag></TagSet></Tagging>"
)


@pytest.mark.parametrize(
    "body",
    [
        b"<",
        b"<a>",
        b"<Tagging/><Tagging/>",
        b"not xml",
        b"\xff\xfe<",
        BOMB,
        b"<Wrong/>",
        b"<Tagging><Nonsense/></Tagging>",
        b"<Tagging>text</Tagging>",
        b"<Tagging><TagSet><Tag><Key><a/></Key><Value>v</Value></Tag></TagSet></Tagging>",
        b"<Tagging>" * 200,
        b'<?xml version="1.0" encoding="nonsense"?><Tagging/>',
        b"<Tagging>\x00</Tagging>",
        b"<Tagging><TagSet/><TagSet/></Tagging>",
    ],
)
def test_malformed_xml_is_refused(body: bytes) -> None:
    assert refused(s3("PUT", "/b", "tagging", body)).code == "MalformedXML"


def test_a_deletion_list_is_read_in_order() -> None:
    body = (
        b'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>a&amp;b</Key></Object>'
        b"<Quiet>true</Quiet><Object><Key> c </Key></Object></Delete>"
    )
    request = s3("POST", "/b", "delete", body)
    params = protocol.parse(protocol.identify(request), request)
    assert params == {"Bucket": "b", "Delete": {"Objects": [{"Key": "a&b"}, {"Key": " c "}], "Quiet": True}}


def botocore_error(protocol_name: str, response: Any) -> dict[str, Any]:
    raw = {"status_code": response.status, "headers": HeadersDict(response.headers), "body": response.body}
    parsed: dict[str, Any] = create_parser(protocol_name).parse(raw, None)
    return parsed


@pytest.mark.parametrize(
    ("service", "operation"),
    [("ec2", "CreateVpc"), ("iam", "CreateRole"), ("sagemaker", "AddTags"), ("s3", "GetObject")],
)
def test_boto3_reads_our_errors(service: str, operation: str) -> None:
    target = protocol.identify(
        request_of(service, operation, {"Bucket": "b", "Key": "k"} if service == "s3" else {})
    )
    error = AwsError("SomeCode", "A <sentence> that names 'x' & é.", 409)
    response = protocol.render_error(target, error, "the-request-id")
    parsed = botocore_error(target.protocol, response)
    assert response.status == 409
    assert parsed["Error"]["Code"] == "SomeCode"
    assert parsed["Error"]["Message"] == "A <sentence> that names 'x' & é."
    assert parsed["ResponseMetadata"]["RequestId"] == "the-request-id"


def test_a_modelled_error_has_the_models_status() -> None:
    target = Target(service="iam", operation="GetRole", protocol="query")
    assert protocol.render_error(target, AwsError("NoSuchEntity", "No role."), "r").status == 404


def test_s3_errors_carry_their_fields_and_heads_have_no_body() -> None:
    target = Target(service="s3", operation="GetObject", protocol="rest-xml")
    error = AwsError("NoSuchKey", "The specified key does not exist.", 404, Key="a<b")
    assert botocore_error("rest-xml", protocol.render_error(target, error, "r"))["Error"]["Key"] == "a<b"
    head = protocol.identify(s3("HEAD", "/b/k"))
    assert protocol.render_error(head, error, "r").body == b""


def test_what_is_not_implemented_says_so_and_is_not_retried() -> None:
    error = protocol.not_implemented(Target(service="ec2", operation="CreateFleet", protocol="ec2"))
    assert error.message == "Cloister does not implement ec2:CreateFleet."
    assert error.status not in (429, 500, 502, 503, 504, 509)


@pytest.mark.parametrize(
    ("service", "operation", "result"),
    [
        ("ec2", "DescribeVpcs", {"Nonsense": 1}),
        ("ec2", "DescribeVpcs", {"Vpcs": [{"Nonsense": 1}]}),
        ("ec2", "DescribeVpcs", {"Vpcs": [{"VpcId": 1}]}),
        ("ec2", "DescribeVpcs", {"Vpcs": [{"IsDefault": "true"}]}),
        ("ec2", "DescribeVpcs", {"Vpcs": {}}),
        ("sagemaker", "ListTags", {"Tags": [{"Key": 1}]}),
        ("sagemaker", "ListTags", {"Nonsense": 1}),
        ("iam", "DeleteRole", {"Nonsense": 1}),
        ("s3", "ListBuckets", {"Nonsense": 1}),
    ],
)
def test_a_result_that_does_not_fit_the_model_is_a_defect(
    service: str, operation: str, result: dict[str, Any]
) -> None:
    protocol_name = protocol.load(service).protocol
    with pytest.raises(TypeError):
        protocol.render(Target(service=service, operation=operation, protocol=protocol_name), result, "r")


def test_text_that_xml_cannot_carry_is_replaced_and_a_return_survives() -> None:
    result = {"Vpcs": [{"VpcId": "a\x00b\rc\ud800"}]}
    response = protocol.render(Target(service="ec2", operation="DescribeVpcs", protocol="ec2"), result, "r")
    assert b"a\xef\xbf\xbdb&#13;c\xef\xbf\xbd" in response.body
