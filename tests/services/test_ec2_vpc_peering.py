from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.services.ec2.vpc_peering import LISTED_SECONDS
from cloister.vpc.model import PEERING_EXPIRES


@pytest.fixture
def call() -> Call:
    return make_call()


def vpc(call: Call, cidr: str) -> str:
    vpc_id: str = ec2(call, "CreateVpc", CidrBlock=cidr)["Vpc"]["VpcId"]
    return vpc_id


@pytest.fixture
def ends(call: Call) -> tuple[str, str]:
    return vpc(call, "10.0.0.0/16"), vpc(call, "10.1.0.0/16")


def ask(call: Call, here: str, there: str, **more: object) -> str:
    made = ec2(call, "CreateVpcPeeringConnection", VpcId=here, PeerVpcId=there, **more)
    peering_id: str = made["VpcPeeringConnection"]["VpcPeeringConnectionId"]
    return peering_id


def join(call: Call, ends: tuple[str, str]) -> str:
    peering_id = ask(call, *ends)
    ec2(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    return peering_id


def described(call: Call, peering_id: str) -> dict:
    (found,) = ec2(call, "DescribeVpcPeeringConnections", VpcPeeringConnectionIds=[peering_id])[
        "VpcPeeringConnections"
    ]
    peering: dict = found
    return peering


def status(call: Call, peering_id: str) -> str:
    code: str = described(call, peering_id)["Status"]["Code"]
    return code


def test_a_peering_is_asked_for_accepted_and_deleted(call: Call, ends: tuple[str, str]) -> None:
    tags = [{"ResourceType": "vpc-peering-connection", "Tags": [{"Key": "Name", "Value": "p"}]}]
    made = ec2(call, "CreateVpcPeeringConnection", VpcId=ends[0], PeerVpcId=ends[1], TagSpecifications=tags)[
        "VpcPeeringConnection"
    ]
    peering_id = made["VpcPeeringConnectionId"]
    assert made["Status"]["Code"] == "initiating-request"
    assert made["RequesterVpcInfo"]["CidrBlockSet"] == [{"CidrBlock": "10.0.0.0/16"}]
    assert made["ExpirationTime"].timestamp() == call.now + PEERING_EXPIRES
    assert "CidrBlock" not in made["AccepterVpcInfo"]
    assert status(call, peering_id) == "pending-acceptance"
    assert ask(call, *ends) == peering_id
    accepted = ec2(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert accepted["VpcPeeringConnection"]["Status"]["Code"] == "provisioning"
    shown = described(call, peering_id)
    assert shown["Status"] == {"Code": "active", "Message": "Active"}
    assert shown["AccepterVpcInfo"]["CidrBlock"] == "10.1.0.0/16"
    again = refusal(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert again.code == "InvalidStateTransition"
    twice = refusal(call, "CreateVpcPeeringConnection", VpcId=ends[1], PeerVpcId=ends[0])
    assert (twice.code, peering_id in twice.message) == ("VpcPeeringConnectionAlreadyExists", True)
    assert refusal(call, "DeleteVpc", VpcId=ends[1]).code == "DependencyViolation"
    overlapping = refusal(call, "AssociateVpcCidrBlock", VpcId=ends[0], CidrBlock="10.1.128.0/20")
    assert (overlapping.code, ends[1] in overlapping.message) == ("CidrConflict", True)
    ec2(call, "DeleteVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert status(call, peering_id) == "deleted"
    ec2(call, "DeleteVpc", VpcId=ends[1])
    call.now += LISTED_SECONDS
    assert ec2(call, "DescribeVpcPeeringConnections")["VpcPeeringConnections"] == []


def test_what_cannot_be_joined_fails(call: Call, ends: tuple[str, str]) -> None:
    twin = vpc(call, "10.0.0.0/20")
    for here, there in ((ends[0], ends[0]), (ends[0], twin), (ends[0], "vpc-0000")):
        peering_id = ask(call, here, there)
        assert status(call, peering_id) == "failed"
        assert "overlapping CIDR" in described(call, peering_id)["Status"]["Message"]
        error = refusal(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
        assert error.code == "InvalidStateTransition"
    # blocks that overlap only since the request
    peering_id = ask(call, *ends)
    ec2(call, "AssociateVpcCidrBlock", VpcId=ends[1], CidrBlock="10.9.0.0/20")
    ec2(call, "AssociateVpcCidrBlock", VpcId=ends[0], CidrBlock="10.9.0.0/24")
    answer = ec2(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert answer["VpcPeeringConnection"]["Status"]["Code"] == "failed"


def test_a_request_is_rejected_or_expires(call: Call, ends: tuple[str, str]) -> None:
    peering_id = ask(call, *ends)
    ec2(call, "RejectVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert status(call, peering_id) == "rejected"
    late = ask(call, *ends)
    assert late != peering_id
    call.now += PEERING_EXPIRES
    assert status(call, late) == "expired"
    assert "ExpirationTime" not in described(call, late)
    error = refusal(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=late)
    assert "from expired to active" in error.message


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"PeerVpcId": "vpc-1", "VpcId": "vpc-1"}, "InvalidVpcID.NotFound"),
        ({"VpcId": "HERE"}, "MissingParameter"),
        ({"VpcId": "HERE", "PeerVpcId": "vpc-1", "PeerOwnerId": "999999999999"}, "UnsupportedOperation"),
        ({"VpcId": "HERE", "PeerVpcId": "vpc-1", "PeerRegion": "eu-west-1"}, "UnsupportedOperation"),
    ],
)
def test_a_bad_request_is_refused(call: Call, ends: tuple[str, str], params: dict, code: str) -> None:
    named = {name: ends[0] if value == "HERE" else value for name, value in params.items()}
    assert refusal(call, "CreateVpcPeeringConnection", **named).code == code
    for operation in ("Accept", "Reject", "Delete"):
        error = refusal(call, f"{operation}VpcPeeringConnection", VpcPeeringConnectionId="pcx-1")
        assert error.code == "InvalidVpcPeeringConnectionID.NotFound"


def test_dns_across_a_peering_is_each_sides_to_allow(call: Call, ends: tuple[str, str]) -> None:
    peering_id = ask(call, *ends)
    wanted: dict = {
        "VpcPeeringConnectionId": peering_id,
        "RequesterPeeringConnectionOptions": {"AllowDnsResolutionFromRemoteVpc": True},
    }
    assert refusal(call, "ModifyVpcPeeringConnectionOptions", **wanted).code == "OperationNotPermitted"
    ec2(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    error = refusal(call, "ModifyVpcPeeringConnectionOptions", **wanted)
    assert "enableDnsHostnames" in error.message
    for vpc_id in ends:
        ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsHostnames={"Value": True})
    answer = ec2(call, "ModifyVpcPeeringConnectionOptions", **wanted)
    assert answer["RequesterPeeringConnectionOptions"]["AllowDnsResolutionFromRemoteVpc"] is True
    shown = described(call, peering_id)
    assert shown["RequesterVpcInfo"]["PeeringOptions"]["AllowDnsResolutionFromRemoteVpc"] is True
    assert shown["AccepterVpcInfo"]["PeeringOptions"]["AllowDnsResolutionFromRemoteVpc"] is False
    nothing = refusal(call, "ModifyVpcPeeringConnectionOptions", VpcPeeringConnectionId=peering_id)
    assert nothing.code == "MissingParameter"


def test_peerings_are_filtered_by_every_documented_name(call: Call, ends: tuple[str, str]) -> None:
    join(call, ends)
    other = ask(call, ends[1], vpc(call, "10.2.0.0/16"))
    for name, value, count in [
        ("accepter-vpc-info.cidr-block", "10.1.0.0/16", 1),
        ("accepter-vpc-info.owner-id", ACCOUNT, 2),
        ("accepter-vpc-info.vpc-id", ends[1], 1),
        ("expiration-time", "20*", 1),
        ("requester-vpc-info.cidr-block", "10.0.0.0/16", 1),
        ("requester-vpc-info.owner-id", ACCOUNT, 2),
        ("requester-vpc-info.vpc-id", ends[1], 1),
        ("status-code", "active", 1),
        ("status-message", "Pending*", 1),
        ("vpc-peering-connection-id", other, 1),
    ]:
        found = ec2(call, "DescribeVpcPeeringConnections", Filters=[{"Name": name, "Values": [value]}])
        assert len(found["VpcPeeringConnections"]) == count, name


# Groups of a peer


@pytest.fixture
def groups(call: Call, ends: tuple[str, str]) -> tuple[str, str]:
    one, other = (
        ec2(call, "CreateSecurityGroup", GroupName="g", Description="g", VpcId=vpc_id)["GroupId"]
        for vpc_id in ends
    )
    return one, other


def permission(group_id: str, **more: str) -> list[dict]:
    return [
        {
            "IpProtocol": "tcp",
            "FromPort": 5432,
            "ToPort": 5432,
            "UserIdGroupPairs": [{"GroupId": group_id, **more}],
        }
    ]


def test_a_rule_names_a_peers_group_while_they_are_joined(
    call: Call, ends: tuple[str, str], groups: tuple[str, str]
) -> None:
    here, there = groups
    naming: dict = {"GroupId": there, "IpPermissions": permission(here, VpcId=ends[0], UserId=ACCOUNT)}
    assert refusal(call, "AuthorizeSecurityGroupIngress", **naming).code == "InvalidGroup.NotFound"
    peering_id = join(call, ends)
    (rule,) = ec2(call, "AuthorizeSecurityGroupIngress", **naming)["SecurityGroupRules"]
    named = {
        "GroupId": here,
        "UserId": ACCOUNT,
        "VpcId": ends[0],
        "VpcPeeringConnectionId": peering_id,
        "PeeringStatus": "active",
    }
    assert rule["ReferencedGroupInfo"] == named
    (group,) = ec2(call, "DescribeSecurityGroups", GroupIds=[there])["SecurityGroups"]
    assert group["IpPermissions"][0]["UserIdGroupPairs"] == [named]
    wrong = refusal(
        call,
        "AuthorizeSecurityGroupEgress",
        GroupId=there,
        IpPermissions=permission(
            ec2(call, "DescribeSecurityGroups")["SecurityGroups"][0]["GroupId"],
            VpcPeeringConnectionId="pcx-1",
        ),
    )
    assert wrong.code == "InvalidGroup.NotFound"
    references = ec2(call, "DescribeSecurityGroupReferences", GroupId=[here, there])
    assert references["SecurityGroupReferenceSet"] == [
        {"GroupId": here, "ReferencingVpcId": ends[1], "VpcPeeringConnectionId": peering_id}
    ]
    assert ec2(call, "DescribeStaleSecurityGroups", VpcId=ends[1])["StaleSecurityGroupSet"] == []
    # the peering goes: the rule is stale, shown, and can be revoked by its content
    ec2(call, "DeleteVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    (stale,) = ec2(call, "DescribeStaleSecurityGroups", VpcId=ends[1])["StaleSecurityGroupSet"]
    assert (stale["GroupId"], stale["StaleIpPermissionsEgress"]) == (there, [])
    assert stale["StaleIpPermissions"][0]["UserIdGroupPairs"] == [{**named, "PeeringStatus": "deleted"}]
    ec2(call, "DeleteSecurityGroup", GroupId=here)
    ec2(call, "RevokeSecurityGroupIngress", GroupId=there, IpPermissions=permission(here))
    assert ec2(call, "DescribeStaleSecurityGroups", VpcId=ends[1])["StaleSecurityGroupSet"] == []


# Routes


def table_of(call: Call, vpc_id: str) -> str:
    (table,) = ec2(call, "DescribeRouteTables", Filters=filters(vpc_id=vpc_id))["RouteTables"]
    table_id: str = table["RouteTableId"]
    return table_id


def states(call: Call, table_id: str) -> dict[str, str]:
    (table,) = ec2(call, "DescribeRouteTables", RouteTableIds=[table_id])["RouteTables"]
    return {route["DestinationCidrBlock"]: route["State"] for route in table["Routes"]}


def test_a_route_to_a_peering_is_active_with_it(call: Call, ends: tuple[str, str]) -> None:
    peering_id, table = ask(call, *ends), table_of(call, ends[0])
    route: dict = {
        "RouteTableId": table,
        "DestinationCidrBlock": "10.1.0.0/16",
        "VpcPeeringConnectionId": peering_id,
    }
    ec2(call, "CreateRoute", **route)
    assert states(call, table)["10.1.0.0/16"] == "blackhole"
    ec2(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert states(call, table)["10.1.0.0/16"] == "active"
    found = ec2(
        call,
        "DescribeRouteTables",
        Filters=[{"Name": "route.vpc-peering-connection-id", "Values": ["pcx-*"]}],
    )
    assert ids(found["RouteTables"], "RouteTableId") == [table]
    stranger = table_of(call, vpc(call, "10.7.0.0/16"))
    error = refusal(call, "CreateRoute", **{**route, "RouteTableId": stranger})
    assert "different networks" in error.message
    ec2(call, "DeleteVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    assert states(call, table)["10.1.0.0/16"] == "blackhole"
    gone = refusal(call, "ReplaceRoute", **route)
    assert gone.code == "InvalidVpcPeeringConnectionID.NotFound"


def test_a_route_to_an_internet_gateway_is_active_while_it_is_attached(
    call: Call, ends: tuple[str, str]
) -> None:
    gateway = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    table = table_of(call, ends[0])
    route: dict = {"RouteTableId": table, "DestinationCidrBlock": "0.0.0.0/0", "GatewayId": gateway}
    assert "different networks" in refusal(call, "CreateRoute", **route).message
    attached: dict = {"InternetGatewayId": gateway, "VpcId": ends[0]}
    ec2(call, "AttachInternetGateway", **attached)
    ec2(call, "CreateRoute", **route)
    assert states(call, table)["0.0.0.0/0"] == "active"
    ec2(call, "DetachInternetGateway", **attached)
    assert states(call, table)["0.0.0.0/0"] == "blackhole"
    ec2(call, "DeleteInternetGateway", InternetGatewayId=gateway)
    assert states(call, table)["0.0.0.0/0"] == "blackhole"


def test_routes_more_specific_than_local_lead_to_a_nat_gateway_and_fit_a_subnet(
    call: Call, ends: tuple[str, str]
) -> None:
    table = table_of(call, ends[0])
    subnet = ec2(call, "CreateSubnet", VpcId=ends[0], CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    nat = ec2(call, "CreateNatGateway", SubnetId=subnet, ConnectivityType="private")["NatGateway"]
    nat_id = nat["NatGatewayId"]
    gateway = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway, VpcId=ends[0])
    route: dict = {"RouteTableId": table, "DestinationCidrBlock": "10.0.1.0/24"}
    assert "not supported" in refusal(call, "CreateRoute", **route, GatewayId=gateway).message
    other = refusal(
        call, "CreateRoute", RouteTableId=table, DestinationCidrBlock="10.0.1.0/25", NatGatewayId=nat_id
    )
    assert "not the CIDR block of a subnet" in other.message
    ec2(call, "CreateRoute", **route, NatGatewayId=nat_id)
    assert states(call, table)["10.0.1.0/24"] == "active"
    ec2(call, "DeleteNatGateway", NatGatewayId=nat_id)
    assert states(call, table)["10.0.1.0/24"] == "blackhole"
    assert refusal(call, "ReplaceRoute", **route, NatGatewayId=nat_id).code == (
        "InvalidNatGatewayID.NotFound"
    )
