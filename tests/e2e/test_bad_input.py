"""What is wrong, malformed or too much: AWS's code and a sentence that names the value, and nothing half-made."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from tests.e2e.conftest import IN, OUT, Cloister, Lab, fresh, refusal

from cloister.cli.lifecycle import environment
from cloister.demo import blocks

pytestmark = pytest.mark.e2e

# ---- bytes on the wire ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    code: str
    text: str


@dataclass(slots=True)
class Wire:
    """A raw TLS socket to the daemon, and requests signed as the root user to send on it."""

    port: int
    keys: dict[str, str]
    context: ssl.SSLContext

    def send(self, raw: bytes, *, end: bool = False) -> Answer:
        """Send these bytes; the answer, its code taken out of JSON or XML. `end`: nothing more will come."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            self.context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            try:
                tls.sendall(raw)
            except OSError:
                pass  # it answers and hangs up before a body that is too large has come
            if end:
                plain.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(tls)
            answer.begin()
            text = answer.read().decode()
        found = re.search(r"<Code>(\w+)</Code>", text) or re.search(r'"__type": ?"(?:[^"#]*#)?(\w+)"', text)
        return Answer(answer.status, found[1] if found else "", text)

    def signed(
        self,
        service: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        region: str = "us-east-1",
        secret: str | None = None,
        key: str | None = None,
        ago: timedelta = timedelta(0),
    ) -> bytes:
        """A request's bytes, signed as botocore signs it, as of `ago`."""
        request = AWSRequest(method, f"https://127.0.0.1:{self.port}{path}", dict(headers or {}), body)
        credentials = Credentials(
            key or self.keys["AWS_ACCESS_KEY_ID"], secret or self.keys["AWS_SECRET_ACCESS_KEY"]
        )
        kind = S3SigV4Auth if service == "s3" else SigV4Auth
        signer = kind(credentials, service, region)
        request.context["timestamp"] = (datetime.now(UTC) - ago).strftime("%Y%m%dT%H%M%SZ")
        request.headers["X-Amz-Date"] = request.context["timestamp"]
        request.headers["Host"] = f"127.0.0.1:{self.port}"
        if service == "s3":
            request.headers["X-Amz-Content-SHA256"] = signer.payload(request)
        signature = signer.signature(
            signer.string_to_sign(request, signer.canonical_request(request)), request
        )
        names = signer.signed_headers(signer.headers_to_sign(request))
        request.headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}, SignedHeaders={names}, Signature={signature}"
        )
        lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in request.headers.items())]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def json(self, operation: str, body: bytes, **how: Any) -> bytes:
        target = {"X-Amz-Target": f"SageMaker.{operation}", "Content-Type": "application/x-amz-json-1.1"}
        return self.signed("sagemaker", body, headers=target, **how)

    def form(self, service: str, body: bytes, **how: Any) -> bytes:
        kind = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        return self.signed(service, body, headers=kind, **how)


@pytest.fixture
def wire(cloister: Cloister) -> Iterator[Wire]:
    """Afterwards the daemon is whole: it answers, and no request was a defect of ours."""
    log = cloister.state / "daemon.log"
    before = log.stat().st_size
    context = ssl.create_default_context(cafile=str(cloister.state / "bundle.pem"))
    found = Wire(cloister.port, environment(cloister.state, cloister.running()), context)
    yield found
    good = found.send(found.form("ec2", b"Action=DescribeVpcs&Version=2016-11-15"))
    assert (good.status, "<vpcSet>" in good.text) == (200, True)
    assert "ERROR" not in log.read_text()[before:], log.read_text()[before:]


DESCRIBE = b"Action=DescribeVpcs&Version=2016-11-15"


def test_bodies_that_are_not_what_they_say_are_refused_in_the_services_own_words(
    wire: Wire, shared: Lab
) -> None:
    tagging = f"/{shared.bucket}?tagging="
    bomb = b'<!DOCTYPE t [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Tagging><TagSet>&b;</TagSet></Tagging>'
    deep = b'{"ProcessingJobName":' + b"[" * 200_000
    cases: list[tuple[str, bytes, int, str]] = [
        ("cut JSON", wire.json("DescribeProcessingJob", b'{"ProcessingJobName": "x'), 400, "SerializationException"),
        ("no JSON", wire.json("DescribeProcessingJob", b"ProcessingJobName=x"), 400, "SerializationException"),
        ("a list", wire.json("DescribeProcessingJob", b"[]"), 400, "SerializationException"),
        ("deep JSON", wire.json("DescribeProcessingJob", deep), 400, "SerializationException"),
        ("no UTF-8 in JSON", wire.json("DescribeProcessingJob", b'{"ProcessingJobName": "\xff"}'), 400, "SerializationException"),
        ("a number for text", wire.json("DescribeProcessingJob", b'{"ProcessingJobName": 5}'), 400, "SerializationException"),
        ("a member of no model", wire.json("DescribeProcessingJob", b'{"Nonsense": 5}'), 400, "SerializationException"),
        ("no such operation", wire.json("MakeCoffee", b"{}"), 400, "UnknownOperationException"),
        ("no UTF-8 in a form", wire.form("ec2", DESCRIBE + b"&VpcId.1=%ff"), 400, "MalformedQueryString"),
        ("an unknown parameter", wire.form("ec2", DESCRIBE + b"&Nonsense=1"), 400, "UnknownParameter"),
        ("no action", wire.form("ec2", b"Version=2016-11-15"), 400, "MissingAction"),
        ("no such action", wire.form("ec2", b"Action=MakeCoffee&Version=2016-11-15"), 400, "InvalidAction"),
        ("no number", wire.form("ec2", DESCRIBE + b"&MaxResults=many"), 400, "InvalidParameterValue"),
        ("cut XML", wire.signed("s3", b"<Tagging><TagSet>", method="PUT", path=tagging), 400, "MalformedXML"),
        ("no UTF-8 in XML", wire.signed("s3", b"<Tagging>\xff</Tagging>", method="PUT", path=tagging), 400, "MalformedXML"),
        ("an XML bomb", wire.signed("s3", bomb, method="PUT", path=tagging), 400, "MalformedXML"),
        ("a bad escape in a key", wire.signed("s3", method="GET", path=f"/{shared.bucket}/%FF"), 400, "InvalidURI"),
        ("a body of 5 MiB", wire.json("DescribeProcessingJob", b" " * (5 << 20)), 413, "RequestEntityTooLarge"),
    ]  # fmt: skip
    wrong = {}
    for what, raw, status, code in cases:
        answer = wire.send(raw)
        if (answer.status, answer.code) != (status, code):
            wrong[what] = (answer.status, answer.code, answer.text[:300])
    assert wrong == {}


def test_requests_that_are_no_http_are_refused_and_hurt_nobody(wire: Wire) -> None:
    host = f"Host: 127.0.0.1:{wire.port}\r\n"
    cases = {
        "noise": b"\x00\x01\x02\x03 garbage\r\n\r\n",
        "no version": b"GET /\r\n\r\n",
        "a negative length": f"POST / HTTP/1.1\r\n{host}Content-Length: -5\r\n\r\n".encode(),
        "a length of letters": f"POST / HTTP/1.1\r\n{host}Content-Length: five\r\n\r\n".encode(),
        "two lengths": f"POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".encode(),
        "a length and chunks": (
            f"POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
        ),
        "a header of 20 KB": f"GET / HTTP/1.1\r\n{host}X-Long: {'x' * 20_000}\r\n\r\n".encode(),
        "a path of 20 KB": f"GET /{'x' * 20_000} HTTP/1.1\r\n{host}\r\n".encode(),
        "headers of 40 KB in all": (
            "GET / HTTP/1.1\r\n" + host + "".join(f"X-{n}: {'x' * 4000}\r\n" for n in range(10)) + "\r\n"
        ).encode(),
        "a NUL in a header": f"GET / HTTP/1.1\r\n{host}X-A: a\0b\r\n\r\n".encode(),
        "a header folded": f"GET / HTTP/1.1\r\n{host}X-A: a\r\n b\r\n\r\n".encode(),
    }
    wrong = {}
    for what, raw in cases.items():
        answer = wire.send(raw)
        if answer.status not in (400, 403, 431):
            wrong[what] = (answer.status, answer.text[:300])
    assert wrong == {}
    with socket.create_connection(("127.0.0.1", wire.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS
        plain.settimeout(5)
        try:
            assert b"200 OK" not in plain.recv(1000)
        except ConnectionError:
            pass
    short = wire.json("DescribeProcessingJob", b"{}").replace(b"Content-Length: 2", b"Content-Length: 200")
    with pytest.raises((http.client.HTTPException, OSError)):
        wire.send(short, end=True)


def test_a_signature_that_is_wrong_in_any_way_is_refused(wire: Wire, shared: Lab) -> None:
    body = DESCRIBE
    good = wire.form("ec2", body)
    assert wire.send(good).status == 200
    old, early = timedelta(minutes=16), timedelta(minutes=-16)
    get = {"method": "GET", "path": f"/{shared.bucket}?list-type=2"}
    put = wire.signed("s3", b"hello", method="PUT", path=f"/{shared.bucket}/signed")
    assert wire.send(put).status == 200
    job = b'{"ProcessingJobName": "x"}'
    cases: list[tuple[str, bytes, str]] = [
        ("a changed body", good.replace(b"DescribeVpcs", b"DescribeTags"), "SignatureDoesNotMatch"),
        ("a changed header", good.replace(b"x-www-form-urlencoded", b"x-www-form-urlencodeD"), "SignatureDoesNotMatch"),
        ("a changed path", good.replace(b"POST / ", b"POST /x "), "SignatureDoesNotMatch"),
        ("the wrong secret", wire.form("ec2", body, secret="w" * 40), "SignatureDoesNotMatch"),
        ("an unknown key", wire.form("ec2", body, key="AKIA" + "X" * 16), "AuthFailure"),
        ("16 minutes old", wire.form("ec2", body, ago=old), "RequestExpired"),
        ("16 minutes early", wire.form("ec2", body, ago=early), "RequestExpired"),
        ("another region", wire.form("ec2", body, region="eu-west-1"), "SignatureDoesNotMatch"),
        ("another service", wire.json("DescribeProcessingJob", job).replace(b"/sagemaker/", b"/ec2/"), "SignatureDoesNotMatch"),
        ("no signature", re.sub(rb"Authorization: .*\r\n", b"", good), "AuthFailure"),
        ("half a signature", re.sub(rb", Signature=.*\r\n", b"\r\n", good), "IncompleteSignature"),
        ("no scheme", re.sub(rb"AWS4-HMAC-SHA256 ", b"", good), "IncompleteSignature"),
        ("JSON, the wrong secret", wire.json("DescribeProcessingJob", job, secret="w" * 40), "InvalidSignatureException"),
        ("JSON, an unknown key", wire.json("DescribeProcessingJob", job, key="AKIA" + "X" * 16), "UnrecognizedClientException"),
        ("IAM, an unknown key", wire.form("iam", b"Action=ListRoles&Version=2010-05-08", key="AKIA" + "X" * 16), "InvalidClientTokenId"),
        ("S3, the wrong secret", wire.signed("s3", secret="w" * 40, **get), "SignatureDoesNotMatch"),
        ("S3, an unknown key", wire.signed("s3", key="AKIA" + "X" * 16, **get), "InvalidAccessKeyId"),
        ("S3, 16 minutes old", wire.signed("s3", ago=old, **get), "RequestTimeTooSkewed"),
        ("S3, another region", wire.signed("s3", region="eu-west-1", **get), "AuthorizationHeaderMalformed"),
        ("S3, a changed body", put.replace(b"\r\n\r\nhello", b"\r\n\r\nHELLO"), "XAmzContentSHA256Mismatch"),
        ("S3, another key", put.replace(b"/signed ", b"/forged "), "SignatureDoesNotMatch"),
    ]  # fmt: skip
    wrong = {}
    for what, raw, code in cases:
        answer = wire.send(raw)
        if answer.code != code or answer.status not in (400, 401, 403):
            wrong[what] = (answer.status, answer.code, answer.text[:300])
    assert wrong == {}
    assert shared.get("signed") == b"hello"
    assert "forged" not in json.dumps(shared.on.s3.list_objects_v2(Bucket=shared.bucket), default=str)


# ---- values that the VPC refuses ---------------------------------------------------------------------

NOBODY = "0123456789abcdef0"


def test_cidrs_ids_and_groups_that_cannot_be_are_refused_by_code_and_value(shared: Lab) -> None:
    on = shared.on
    ec2 = on.ec2
    other = blocks.make_vpc(on, "10.43.0.0/16")
    stranger = blocks.make_group(on, other, fresh("stranger"), allow_itself=False)
    group, vpc, subnet = shared.group, shared.vpc, shared.subnet
    before = everything(on)
    rule = {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80}

    def ingress(**changes: Any) -> dict[str, Any]:
        return {"GroupId": group, "IpPermissions": [rule | changes]}

    allow = ec2.authorize_security_group_ingress
    cases: list[tuple[Callable[..., Any], dict[str, Any], str, str]] = [
        (ec2.create_vpc, {"CidrBlock": "10.0.0.0/8"}, "InvalidVpc.Range", "10.0.0.0/8"),
        (ec2.create_vpc, {"CidrBlock": "10.0.0.0/29"}, "InvalidVpc.Range", "10.0.0.0/29"),
        (ec2.create_vpc, {"CidrBlock": "10.0.0.300/16"}, "InvalidParameterValue", "10.0.0.300/16"),
        (ec2.create_vpc, {"CidrBlock": "ten"}, "InvalidParameterValue", "ten"),
        (ec2.create_subnet, {"VpcId": vpc, "CidrBlock": "10.43.1.0/24"}, "InvalidSubnet.Range", "10.43.1.0/24"),
        (ec2.create_subnet, {"VpcId": vpc, "CidrBlock": "10.42.0.0/15"}, "InvalidSubnet.Range", "10.42.0.0/15"),
        (ec2.create_subnet, {"VpcId": vpc, "CidrBlock": "10.42.1.0/29"}, "InvalidSubnet.Range", "10.42.1.0/29"),
        (ec2.create_subnet, {"VpcId": vpc, "CidrBlock": "10.42.1.128/25"}, "InvalidSubnet.Conflict", "10.42.1.128/25"),
        (ec2.create_subnet, {"VpcId": vpc, "CidrBlock": "10.42.0.0/22"}, "InvalidSubnet.Conflict", "10.42.0.0/22"),
        (ec2.create_subnet, {"VpcId": f"vpc-{NOBODY}", "CidrBlock": "10.0.0.0/24"}, "InvalidVpcID.NotFound", f"vpc-{NOBODY}"),
        (ec2.create_subnet, {"VpcId": vpc, "CidrBlock": "10.42.9.0/24", "AvailabilityZone": "mars-1a"}, "InvalidParameterValue", "mars-1a"),
        (ec2.describe_subnets, {"SubnetIds": [f"subnet-{NOBODY}"]}, "InvalidSubnetID.NotFound", f"subnet-{NOBODY}"),
        (ec2.describe_vpcs, {"VpcIds": ["vpc-XYZ"]}, "InvalidVpcID.NotFound", "vpc-XYZ"),
        (ec2.describe_security_groups, {"GroupIds": [f"sg-{NOBODY}"]}, "InvalidGroup.NotFound", f"sg-{NOBODY}"),
        (ec2.describe_vpcs, {"Filters": [{"Name": "colour", "Values": ["red"]}]}, "InvalidParameterValue", "colour"),
        (ec2.delete_vpc, {"VpcId": vpc}, "DependencyViolation", vpc),
        (allow, ingress(IpRanges=[{"CidrIp": "10.0.0.1/33"}]), "InvalidParameterValue", "10.0.0.1/33"),
        (allow, ingress(IpRanges=[{"CidrIp": "0.0.0.0/0"}], FromPort=99), "InvalidParameterValue", "99"),
        (allow, ingress(IpRanges=[{"CidrIp": "0.0.0.0/0"}], ToPort=70000), "InvalidParameterValue", "70000"),
        (allow, ingress(UserIdGroupPairs=[{"GroupId": f"sg-{NOBODY}"}]), "InvalidGroup.NotFound", f"sg-{NOBODY}"),
        (allow, ingress(UserIdGroupPairs=[{"GroupId": stranger}]), "InvalidGroup.NotFound", "different networks"),
        (allow, ingress(IpProtocol="carrier-pigeon", IpRanges=[{"CidrIp": "0.0.0.0/0"}]), "InvalidParameterValue", "carrier-pigeon"),
        (ec2.create_network_interface, {"SubnetId": subnet, "Groups": [stranger]}, "InvalidParameterValue", stranger),
        (ec2.create_network_interface, {"SubnetId": subnet, "PrivateIpAddress": "10.42.1.3"}, "InvalidParameterValue", "10.42.1.3"),
        (ec2.create_network_interface, {"SubnetId": subnet, "PrivateIpAddress": "10.99.1.9"}, "InvalidParameterValue", "10.99.1.9"),
        (ec2.associate_route_table, {"RouteTableId": f"rtb-{NOBODY}", "SubnetId": subnet}, "InvalidRouteTableID.NotFound", f"rtb-{NOBODY}"),
        (ec2.create_vpc_endpoint, {"VpcId": other, "ServiceName": "com.amazonaws.mars-1.s3"}, "InvalidServiceName", "com.amazonaws.mars-1.s3"),
        (ec2.create_vpc_endpoint, {"VpcId": vpc, "ServiceName": f"com.amazonaws.{on.region}.s3", "RouteTableIds": [shared.route_table]}, "RouteAlreadyExists", "pl-"),
        (ec2.modify_vpc_endpoint, {"VpcEndpointId": shared.endpoint, "PolicyDocument": "{"}, "InvalidPolicyDocument", ""),
    ]  # fmt: skip
    wrong = {}
    for call, parameters, code, value in cases:
        found = refusal(call, **parameters)
        if found[0] != code or value not in found[1]:
            wrong[f"{call.__name__} {parameters}"] = found
    assert wrong == {}
    assert everything(on) == before


def everything(on: blocks.Stage) -> dict[str, Any]:
    """All that a call could have left half-made."""
    return {
        "vpcs": on.ec2.describe_vpcs()["Vpcs"],
        "subnets": on.ec2.describe_subnets()["Subnets"],
        "groups": on.ec2.describe_security_groups()["SecurityGroups"],
        "interfaces": on.ec2.describe_network_interfaces()["NetworkInterfaces"],
        "endpoints": on.ec2.describe_vpc_endpoints()["VpcEndpoints"],
        "tables": on.ec2.describe_route_tables()["RouteTables"],
        "jobs": on.sagemaker.list_processing_jobs()["ProcessingJobSummaries"],
    }


def test_a_job_that_cannot_be_is_refused_at_create_by_code_and_value(shared: Lab) -> None:
    on = shared.on
    other = blocks.make_vpc(on, "10.44.0.0/16")
    far = blocks.make_subnet(on, other, "10.44.1.0/24", f"{on.region}a")
    stranger = blocks.make_group(on, other, fresh("stranger"), allow_itself=False)
    before = everything(on)

    def network(subnets: list[str], groups: list[str]) -> dict[str, Any]:
        return {"NetworkConfig": {"VpcConfig": {"Subnets": subnets, "SecurityGroupIds": groups}}}

    def given(**s3: Any) -> dict[str, Any]:
        uri = s3.pop("S3Uri", "s3://b/k")
        return {"ProcessingInputs": [shared.input("in", uri, s3.pop("LocalPath", IN), **s3)]}

    def cluster(**changes: Any) -> dict[str, Any]:
        normal = {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        return {"ProcessingResources": {"ClusterConfig": normal | changes}}

    twice = {"Outputs": [shared.output("o", "s3://b/k", OUT), shared.output("o", "s3://b/l", f"{OUT}2")]}
    cases: list[tuple[dict[str, Any], str]] = [
        (network([f"subnet-{NOBODY}"], [shared.group]), f"subnet-{NOBODY}"),
        (network([shared.subnet], [f"sg-{NOBODY}"]), f"sg-{NOBODY}"),
        (network([shared.subnet], [stranger]), f"Security group {stranger} and subnet {shared.subnet} belong to different networks."),
        (network([shared.subnet, far], [shared.group]), far),
        (given(LocalPath="/opt/ml/processing/../../../etc"), "/opt/ml/processing/../../../etc"),
        (given(LocalPath="/opt/ml/processing/a/../b"), "/opt/ml/processing/a/../b"),
        (given(LocalPath="/etc"), "/etc"),
        (given(LocalPath="/opt/ml/processing"), "/opt/ml/processing"),
        (given(S3Uri="s3://b/../../etc"), "s3://b/../../etc"),
        (given(S3Uri="file:///etc/passwd"), "file:///etc/passwd"),
        (given(S3Uri="s3://"), "s3://"),
        (given(S3DataType="Everything"), "Everything"),
        ({"ProcessingOutputConfig": twice}, "o is given twice"),
        (cluster(InstanceType="local"), "Value 'local' at 'processingResources.clusterConfig.instanceType'"),
        (cluster(InstanceCount=101), "101"),
        (cluster(InstanceCount=0), "0"),
        (cluster(VolumeSizeInGB=0), "0"),
        ({"ProcessingJobName": "no_underscores"}, "no_underscores"),
        ({"ProcessingJobName": "x" * 64}, "x" * 64),
        ({"RoleArn": f"arn:aws:iam::{on.account}:role/no-such-role"}, "no-such-role"),
        ({"RoleArn": "arn:aws:iam::999999999999:role/theirs"}, "999999999999"),
        ({"Environment": {"not a name": "x"}}, "not a name"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 777601}}, "777601"),
        ({"Tags": [{"Key": "aws:mine", "Value": "x"}]}, "aws:mine"),
    ]  # fmt: skip
    wrong, create = {}, unchecked(on).create_processing_job
    for changes, value in cases:
        code, message = refusal(create, **shared.request(fresh("bad"), "true", **changes))
        if code != "ValidationException" or value not in message:
            wrong[str(changes)] = (code, message)
    assert wrong == {}
    assert everything(on) == before


def unchecked(on: blocks.Stage) -> Any:
    """The sagemaker client, without botocore's own checks of parameters."""
    how = on.sagemaker.meta.config.merge(Config(parameter_validation=False))
    session = boto3.Session(region_name=on.region)
    keys = on.sagemaker._request_signer._credentials
    return session.client(
        "sagemaker",
        endpoint_url=on.sagemaker.meta.endpoint_url,
        verify=on.sagemaker._endpoint.http_session._verify,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        config=how,
    )
