from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.services.ec2.default_vpc import add_prefix_lists, seed
from cloister.vpc.model import PrefixList


@pytest.fixture
def call() -> Call:
    call = make_call(region="eu-central-1")
    seed(call.tx, "eu-central-1", ACCOUNT)
    return call


def test_a_new_account_has_a_default_vpc_with_a_subnet_in_each_zone(call: Call) -> None:
    (vpc,) = ec2(call, "DescribeVpcs", Filters=filters(is_default="true"))["Vpcs"]
    assert vpc["CidrBlock"] == "172.31.0.0/16"
    subnets = ec2(call, "DescribeSubnets", Filters=filters(default_for_az="true"))["Subnets"]
    assert [(one["AvailabilityZoneId"], one["CidrBlock"]) for one in subnets] == [
        ("euc1-az1", "172.31.0.0/20"),
        ("euc1-az2", "172.31.16.0/20"),
        ("euc1-az3", "172.31.32.0/20"),
    ]
    assert all(one["MapPublicIpOnLaunch"] for one in subnets)
    hostnames = ec2(call, "DescribeVpcAttribute", VpcId=vpc["VpcId"], Attribute="enableDnsHostnames")
    assert hostnames["EnableDnsHostnames"] == {"Value": True}
    attributes = ec2(call, "DescribeAccountAttributes")["AccountAttributes"]
    assert attributes[1]["AttributeValues"] == [{"AttributeValue": vpc["VpcId"]}]
    (gateway,) = ec2(call, "DescribeInternetGateways")["InternetGateways"]
    assert gateway["Attachments"] == [{"VpcId": vpc["VpcId"], "State": "available"}]
    (table,) = ec2(call, "DescribeRouteTables", Filters=filters(vpc_id=vpc["VpcId"]))["RouteTables"]
    assert table["Routes"][1] == {
        "DestinationCidrBlock": "0.0.0.0/0",
        "GatewayId": gateway["InternetGatewayId"],
        "Origin": "CreateRoute",
        "State": "active",
    }


def test_there_is_one_default_vpc_and_it_can_be_made_again(call: Call) -> None:
    assert refusal(call, "CreateDefaultVpc").code == "DefaultVpcAlreadyExists"
    for subnet_id in ids(ec2(call, "DescribeSubnets")["Subnets"], "SubnetId"):
        ec2(call, "DeleteSubnet", SubnetId=subnet_id)
    (vpc,) = ec2(call, "DescribeVpcs")["Vpcs"]
    (gateway,) = ec2(call, "DescribeInternetGateways")["InternetGateways"]
    ec2(
        call,
        "DetachInternetGateway",
        InternetGatewayId=gateway["InternetGatewayId"],
        VpcId=vpc["VpcId"],
    )
    ec2(call, "DeleteVpc", VpcId=vpc["VpcId"])
    assert (
        refusal(call, "CreateDefaultSubnet", AvailabilityZone="eu-central-1a").code
        == "DefaultVpcDoesNotExist"
    )
    assert refusal(call, "CreateSecurityGroup", GroupName="a", Description="a").code == "VPCIdNotSpecified"
    assert ec2(call, "CreateDefaultVpc")["Vpc"]["IsDefault"]


def test_a_default_subnet_takes_the_free_block(call: Call) -> None:
    error = refusal(call, "CreateDefaultSubnet", AvailabilityZone="eu-central-1b")
    assert error.code == "DefaultSubnetAlreadyExistsInAvailabilityZone"
    (second,) = ec2(call, "DescribeSubnets", Filters=filters(availability_zone="eu-central-1b"))["Subnets"]
    ec2(call, "DeleteSubnet", SubnetId=second["SubnetId"])
    made = ec2(call, "CreateDefaultSubnet", AvailabilityZone="eu-central-1b")["Subnet"]
    assert made["CidrBlock"] == second["CidrBlock"]
    assert refusal(call, "CreateDefaultSubnet").code == "MissingParameter"


def test_a_group_of_the_default_vpc_goes_by_its_name(call: Call) -> None:
    ec2(call, "CreateSecurityGroup", GroupName="web", Description="web")
    ec2(
        call,
        "AuthorizeSecurityGroupIngress",
        GroupName="web",
        IpProtocol="tcp",
        FromPort=80,
        ToPort=80,
        CidrIp="0.0.0.0/0",
    )
    ec2(call, "AuthorizeSecurityGroupIngress", GroupName="web", SourceSecurityGroupName="default")
    (group,) = ec2(call, "DescribeSecurityGroups", GroupNames=["web"])["SecurityGroups"]
    assert [one["IpProtocol"] for one in group["IpPermissions"]] == ["tcp", "-1"]
    unknown = [{"IpProtocol": "udp", "FromPort": 1, "ToPort": 1, "IpRanges": [{"CidrIp": "1.0.0.0/8"}]}]
    answer = ec2(call, "RevokeSecurityGroupIngress", GroupName="web", IpPermissions=unknown)
    assert answer["UnknownIpPermissions"][0]["IpProtocol"] == "udp"
    ec2(call, "DeleteSecurityGroup", GroupName="web")
    assert refusal(call, "DeleteSecurityGroup", GroupName="web").code == "InvalidGroup.NotFound"


@pytest.mark.parametrize("service", ["dynamodb", "s3"])
def test_the_prefix_list_of_a_service_belongs_to_aws(call: Call, service: str) -> None:
    name = f"com.amazonaws.eu-central-1.{service}"
    (listed,) = ec2(call, "DescribePrefixLists", Filters=filters(prefix_list_name=name))["PrefixLists"]
    assert listed["PrefixListName"] == name
    assert listed["Cidrs"]
    among = filters(owner_id="AWS", prefix_list_name=name)
    (managed,) = ec2(call, "DescribeManagedPrefixLists", Filters=among)["PrefixLists"]
    assert managed["PrefixListId"] == listed["PrefixListId"]
    entries = ec2(call, "GetManagedPrefixListEntries", PrefixListId=listed["PrefixListId"])["Entries"]
    assert ids(entries, "Cidr") == listed["Cidrs"]
    error = refusal(call, "DeleteManagedPrefixList", PrefixListId=listed["PrefixListId"])
    assert error.code == "OperationNotPermitted"


def test_a_store_of_before_gets_the_prefix_list_of_a_service_that_is_new(call: Call) -> None:
    before = {one["PrefixListId"] for one in ec2(call, "DescribePrefixLists")["PrefixLists"]}
    gone = next(iter(before))
    call.tx.delete(PrefixList, gone)
    add_prefix_lists(call.tx, "eu-central-1")
    assert {one["PrefixListId"] for one in ec2(call, "DescribePrefixLists")["PrefixLists"]} == before
