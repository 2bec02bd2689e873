from __future__ import annotations

import json

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call

S3 = "com.amazonaws.us-east-1.s3"
DYNAMODB = "com.amazonaws.us-east-1.dynamodb"
POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}
        ],
    }
)


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


@pytest.fixture
def table_id(call: Call, vpc_id: str) -> str:
    made: str = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    return made


def make(call: Call, vpc_id: str, **params: object) -> dict:
    wanted = {"VpcId": vpc_id, "ServiceName": S3} | params
    made: dict = ec2(call, "CreateVpcEndpoint", **wanted)["VpcEndpoint"]
    return made


def described(call: Call, endpoint_id: str) -> dict:
    (endpoint,) = ec2(call, "DescribeVpcEndpoints", VpcEndpointIds=[endpoint_id])["VpcEndpoints"]
    found: dict = endpoint
    return found


def test_an_endpoint_without_a_policy_has_the_full_access_one(call: Call, vpc_id: str, table_id: str) -> None:
    made = make(call, vpc_id, RouteTableIds=[table_id, table_id])
    assert json.loads(made["PolicyDocument"])["Statement"] == [
        {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}
    ]
    assert (made["VpcEndpointType"], made["State"], made["OwnerId"]) == ("Gateway", "available", ACCOUNT)
    assert made["RouteTableIds"] == [table_id]
    assert described(call, made["VpcEndpointId"]) == made


def test_a_policy_is_kept_as_it_was_given_replaced_and_reset(call: Call, vpc_id: str) -> None:
    endpoint_id = make(call, vpc_id, PolicyDocument=POLICY)["VpcEndpointId"]
    assert described(call, endpoint_id)["PolicyDocument"] == POLICY
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, ResetPolicy=True)
    assert '"Action": "*"' in described(call, endpoint_id)["PolicyDocument"]
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, PolicyDocument=POLICY)
    assert described(call, endpoint_id)["PolicyDocument"] == POLICY
    both = refusal(
        call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, ResetPolicy=True, PolicyDocument=POLICY
    )
    assert both.code == "InvalidParameterCombination"
    for bad in ("{", "[]", '{"Statement": [{"Effect": "Maybe"}]}'):
        error = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, PolicyDocument=bad)
        assert error.code == "InvalidPolicyDocument"


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"VpcId": "vpc-1"}, "InvalidVpcID.NotFound", "vpc-1"),
        ({"ServiceName": "com.amazonaws.us-east-1.lex"}, "InvalidServiceName", "lex"),
        ({"ServiceName": "com.amazonaws.us-east-1.sqs"}, "InvalidParameter", "Interface"),
        ({"ServiceName": "com.amazonaws.eu-west-1.s3"}, "InvalidServiceName", "eu-west-1"),
        ({"ServiceName": ""}, "MissingParameter", "ServiceName"),
        ({"ServiceRegion": "eu-west-1"}, "UnsupportedOperation", "ServiceRegion"),
        ({"VpcEndpointType": "GatewayLoadBalancer"}, "UnsupportedOperation", "GatewayLoadBalancer"),
        ({"SubnetIds": ["subnet-1"]}, "InvalidParameter", "SubnetIds"),
        ({"PrivateDnsEnabled": True}, "InvalidParameter", "PrivateDnsEnabled"),
        ({"RouteTableIds": ["rtb-1"]}, "InvalidRouteTableID.NotFound", "rtb-1"),
        ({"PolicyDocument": "no json"}, "InvalidPolicyDocument", ""),
        ({"ResourceConfigurationArn": "arn:x"}, "UnsupportedOperation", "ResourceConfigurationArn"),
    ],
)
def test_a_bad_endpoint_is_refused_naming_the_value(
    call: Call, vpc_id: str, params: dict, code: str, named: str
) -> None:
    error = refusal(call, "CreateVpcEndpoint", **{"VpcId": vpc_id, "ServiceName": S3, **params})
    assert error.code == code
    assert named in error.message


def test_an_endpoint_needs_dns_support(call: Call, vpc_id: str) -> None:
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsSupport={"Value": False})
    error = refusal(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=S3)
    assert (error.code, "enableDnsSupport" in error.message) == ("InvalidParameter", True)


def test_a_table_has_one_endpoint_of_a_service(call: Call, vpc_id: str, table_id: str) -> None:
    make(call, vpc_id, RouteTableIds=[table_id])
    other = make(call, vpc_id)["VpcEndpointId"]
    error = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=other, AddRouteTableIds=[table_id])
    assert (error.code, table_id in error.message) == ("RouteAlreadyExists", True)


def test_a_table_has_a_gateway_endpoint_of_each_service(call: Call, vpc_id: str, table_id: str) -> None:
    s3 = make(call, vpc_id, RouteTableIds=[table_id])["VpcEndpointId"]
    dynamodb = make(call, vpc_id, ServiceName=DYNAMODB, RouteTableIds=[table_id])["VpcEndpointId"]
    (table,) = ec2(call, "DescribeRouteTables", RouteTableIds=[table_id])["RouteTables"]
    routes = {one.get("DestinationPrefixListId"): one["GatewayId"] for one in table["Routes"]}
    lists = {s3: "pl-63a5400a", dynamodb: "pl-02cd2c6b"}
    assert {routes[lists[endpoint_id]]: endpoint_id for endpoint_id in (s3, dynamodb)} == {
        s3: s3,
        dynamodb: dynamodb,
    }


def test_a_table_of_another_vpc_is_refused(call: Call, vpc_id: str) -> None:
    far = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    table_id = ec2(call, "CreateRouteTable", VpcId=far)["RouteTable"]["RouteTableId"]
    error = refusal(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=S3, RouteTableIds=[table_id])
    assert "belong to different networks" in error.message


def test_tables_are_added_and_removed(call: Call, vpc_id: str, table_id: str) -> None:
    endpoint_id = make(call, vpc_id)["VpcEndpointId"]
    other = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, AddRouteTableIds=[table_id, other])
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, RemoveRouteTableIds=[table_id])
    assert described(call, endpoint_id)["RouteTableIds"] == [other]
    error = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, RemoveRouteTableIds=[table_id])
    assert (error.code, table_id in error.message) == ("InvalidParameterValue", True)


def test_deleting_lists_what_could_not_be_deleted(call: Call, vpc_id: str) -> None:
    endpoint_id = make(call, vpc_id)["VpcEndpointId"]
    answer = ec2(call, "DeleteVpcEndpoints", VpcEndpointIds=[endpoint_id, "vpce-1"])
    assert answer["Unsuccessful"] == [
        {
            "ResourceId": "vpce-1",
            "Error": {
                "Code": "InvalidVpcEndpointId.NotFound",
                "Message": "The Vpc Endpoint Id 'vpce-1' does not exist",
            },
        }
    ]
    assert ec2(call, "DescribeVpcEndpoints")["VpcEndpoints"] == []


def test_endpoints_are_filtered_by_every_documented_name(call: Call, vpc_id: str) -> None:
    tags = [{"ResourceType": "vpc-endpoint", "Tags": [{"Key": "k", "Value": "v"}]}]
    made = make(call, vpc_id, TagSpecifications=tags)
    for name, value, expected in [
        ("service-name", "*.s3", 1),
        ("service-region", "us-east-1", 1),
        ("vpc-id", vpc_id, 1),
        ("vpc-endpoint-id", made["VpcEndpointId"], 1),
        ("vpc-endpoint-state", "available", 1),
        ("vpc-endpoint-type", "Interface", 0),
        ("ip-address-type", "ipv4", 1),
        ("tag:k", "v", 1),
        ("tag-key", "x", 0),
    ]:
        found = ec2(call, "DescribeVpcEndpoints", Filters=[{"Name": name, "Values": [value]}])
        assert len(found["VpcEndpoints"]) == expected, name


def test_the_services_that_endpoints_can_be_made_for(call: Call) -> None:
    answer = ec2(call, "DescribeVpcEndpointServices", ServiceNames=[S3])
    assert answer["ServiceNames"] == [S3]
    kinds = [one["ServiceType"][0]["ServiceType"] for one in answer["ServiceDetails"]]
    assert kinds == ["Gateway", "Interface"]
    gateways = ec2(call, "DescribeVpcEndpointServices", Filters=filters(service_type="Gateway"))
    assert ids(gateways["ServiceDetails"], "ServiceName") == [S3, DYNAMODB]
    both = ec2(call, "DescribeVpcEndpointServices", ServiceNames=[DYNAMODB])["ServiceDetails"]
    assert [one["ServiceType"][0]["ServiceType"] for one in both] == ["Gateway", "Interface"]
    assert both[0]["BaseEndpointDnsNames"] == ["dynamodb.us-east-1.amazonaws.com"]
    interfaces = ec2(call, "DescribeVpcEndpointServices", Filters=filters(service_type="Interface"))
    found = {one["ServiceName"]: one for one in interfaces["ServiceDetails"]}
    api = found["com.amazonaws.us-east-1.sagemaker.api"]
    assert api["PrivateDnsName"] == "api.sagemaker.us-east-1.amazonaws.com"
    assert api["BaseEndpointDnsNames"] == ["api.sagemaker.us-east-1.vpce.amazonaws.com"]
    assert "us-east-1a" in api["AvailabilityZones"]
    assert "PrivateDnsName" not in found["com.amazonaws.us-east-1.dynamodb"]
    services = {name.removeprefix("com.amazonaws.us-east-1.") for name in found}
    assert services >= {
        "sagemaker.api",
        "sts",
        "logs",
        "ec2",
        "s3",
        "secretsmanager",
        "kms",
        "ssm",
        "ecr.api",
    }
    unknown = refusal(call, "DescribeVpcEndpointServices", ServiceNames=["com.amazonaws.us-east-1.lex"])
    assert unknown.code == "InvalidServiceName"
