from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.vpc.interfaces import create_interface

ALL_OUT = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


@pytest.fixture
def group_id(call: Call, vpc_id: str) -> str:
    return make(call, vpc_id, "jobs")


def make(call: Call, vpc_id: str, name: str) -> str:
    made = ec2(call, "CreateSecurityGroup", VpcId=vpc_id, GroupName=name, Description="a group")
    found: str = made["GroupId"]
    return found


def described(call: Call, group_id: str) -> dict:
    (group,) = ec2(call, "DescribeSecurityGroups", GroupIds=[group_id])["SecurityGroups"]
    found: dict = group
    return found


def tcp(port: int, *cidrs: str) -> dict:
    return {
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port,
        "IpRanges": [{"CidrIp": cidr} for cidr in cidrs or ("10.0.0.0/8",)],
    }


def test_a_new_group_lets_everything_out_and_nothing_in(call: Call, group_id: str, vpc_id: str) -> None:
    group = described(call, group_id)
    assert group["IpPermissions"] == []
    assert group["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    assert group["SecurityGroupArn"] == f"arn:aws:ec2:us-east-1:{ACCOUNT}:security-group/{group_id}"
    assert (group["VpcId"], group["GroupName"], group["Description"]) == (vpc_id, "jobs", "a group")


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"GroupName": "jobs"}, "InvalidGroup.Duplicate", "jobs"),
        ({"GroupName": "default"}, "InvalidParameterValue", "default"),
        ({"GroupName": "sg-web"}, "InvalidParameterValue", "sg-web"),
        ({"GroupName": "wéb"}, "InvalidParameterValue", "wéb"),
        ({"GroupName": "a" * 256}, "InvalidParameterValue", "255"),
        ({"GroupName": "b", "Description": "tab\t"}, "InvalidParameterValue", "groupDescription"),
        ({"GroupName": "b", "VpcId": "vpc-1"}, "InvalidVpcID.NotFound", "vpc-1"),
        ({"GroupName": ""}, "MissingParameter", "GroupName"),
    ],
)
def test_a_bad_group_is_refused_naming_the_value(
    call: Call, vpc_id: str, group_id: str, params: dict, code: str, named: str
) -> None:
    error = refusal(call, "CreateSecurityGroup", **{"VpcId": vpc_id, "Description": "d", **params})
    assert error.code == code
    assert named in error.message


def test_the_same_name_may_be_used_in_another_vpc(call: Call, group_id: str) -> None:
    other = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    assert make(call, other, "jobs") != group_id


def test_a_group_may_allow_itself(call: Call, group_id: str) -> None:
    allowed = ec2(
        call,
        "AuthorizeSecurityGroupIngress",
        GroupId=group_id,
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}],
    )
    (rule,) = allowed["SecurityGroupRules"]
    assert rule["ReferencedGroupInfo"]["GroupId"] == group_id
    assert (rule["FromPort"], rule["ToPort"], rule["IsEgress"]) == (-1, -1, False)
    (permission,) = described(call, group_id)["IpPermissions"]
    assert permission["UserIdGroupPairs"] == [{"UserId": ACCOUNT, "GroupId": group_id}]
    assert "FromPort" not in permission


def test_rules_of_one_protocol_and_range_are_one_permission(call: Call, group_id: str) -> None:
    permissions = [tcp(22, "10.0.0.7/8", "192.168.0.0/16"), tcp(443)]
    made = ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=permissions)
    assert [rule["CidrIpv4"] for rule in made["SecurityGroupRules"]] == [
        "10.0.0.0/8",
        "192.168.0.0/16",
        "10.0.0.0/8",
    ]
    ssh, https = described(call, group_id)["IpPermissions"]
    assert ids(ssh["IpRanges"], "CidrIp") == ["10.0.0.0/8", "192.168.0.0/16"]
    assert (https["FromPort"], https["ToPort"]) == (443, 443)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"IpProtocol": "6", "FromPort": 1, "ToPort": 2}, ("tcp", 1, 2)),
        ({"IpProtocol": "TCP", "FromPort": 0, "ToPort": 65535}, ("tcp", 0, 65535)),
        ({"IpProtocol": "17", "FromPort": 53, "ToPort": 53}, ("udp", 53, 53)),
        ({"IpProtocol": "1", "FromPort": 8, "ToPort": 0}, ("icmp", 8, 0)),
        ({"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1}, ("icmp", -1, -1)),
        ({"IpProtocol": "-1", "FromPort": 80, "ToPort": 80}, ("-1", None, None)),
        ({"IpProtocol": "50", "FromPort": 80, "ToPort": 80}, ("50", None, None)),
    ],
)
def test_protocols_are_named_and_ports_are_kept_where_they_mean_something(
    call: Call, group_id: str, given: dict, kept: tuple
) -> None:
    permission = {**given, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[permission])
    (found,) = described(call, group_id)["IpPermissions"]
    assert (found["IpProtocol"], found.get("FromPort"), found.get("ToPort")) == kept


@pytest.mark.parametrize(
    ("permission", "code", "named"),
    [
        ({"IpProtocol": "tcp"}, "InvalidParameterValue", "from and to ports"),
        ({"IpProtocol": "tcp", "FromPort": 80}, "InvalidParameterValue", "from and to ports"),
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 22}, "InvalidParameterValue", "from 80 to 22"),
        ({"IpProtocol": "udp", "FromPort": 1, "ToPort": 65536}, "InvalidParameterValue", "65536"),
        ({"IpProtocol": "tcp", "FromPort": -1, "ToPort": -1}, "InvalidParameterValue", "-1"),
        ({"IpProtocol": "icmp", "FromPort": 300, "ToPort": 0}, "InvalidParameterValue", "300"),
        ({"IpProtocol": "icmp", "FromPort": -1, "ToPort": 3}, "InvalidParameterValue", "3"),
        ({"IpProtocol": "256"}, "InvalidParameterValue", "256"),
        ({"IpProtocol": "carrier-pigeon"}, "InvalidParameterValue", "carrier-pigeon"),
        ({"IpProtocol": "icmpv6"}, "UnsupportedOperation", "IPv6"),
        ({"IpRanges": [{"CidrIp": "10.0.0.0/8"}]}, "MissingParameter", "ipProtocol"),
        ({"IpProtocol": "-1", "IpRanges": []}, "MissingParameter", "names no IP range"),
        (
            {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/33"}]},
            "InvalidParameterValue",
            "10.0.0.0/33",
        ),
        ({"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}, "UnsupportedOperation", "Ipv6Ranges"),
        (
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}]},
            "InvalidGroup.NotFound",
            "The security group 'sg-1' does not exist",
        ),
        (
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1", "UserId": "999999999999"}]},
            "InvalidGroup.NotFound",
            "sg-1",
        ),
        (
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "x", "VpcPeeringConnectionId": "pcx-1"}]},
            "InvalidGroupId.Malformed",
            '"x"',
        ),
        (
            {"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": "pl-1"}]},
            "InvalidPrefixListID.NotFound",
            "pl-1",
        ),
        (
            {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "é"}]},
            "InvalidParameterValue",
            "description",
        ),
        (
            {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/8"}, {"CidrIp": "10.1.2.3/8"}]},
            "InvalidParameterValue",
            "multiple times",
        ),
    ],
)
def test_a_bad_permission_is_refused_and_changes_nothing(
    call: Call, group_id: str, permission: dict, code: str, named: str
) -> None:
    source = (
        {} if permission.keys() & {"IpRanges", "Ipv6Ranges", "UserIdGroupPairs", "PrefixListIds"} else None
    )
    whole = permission if source is not None else {**permission, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
    error = refusal(call, "AuthorizeSecurityGroupEgress", GroupId=group_id, IpPermissions=[whole])
    assert error.code == code
    assert named in error.message


def test_a_group_of_another_vpc_cannot_be_referred_to(call: Call, group_id: str) -> None:
    other = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    pair = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": make(call, other, "far")}]}]
    error = refusal(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=pair)
    assert error.message == "You have specified two resources that belong to different networks."


def test_a_rule_that_is_there_is_a_duplicate_whatever_its_description(call: Call, group_id: str) -> None:
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(22)])
    again = tcp(22) | {"IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "again"}]}
    error = refusal(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(23), again])
    assert (error.code, error.message) == (
        "InvalidPermission.Duplicate",
        'the specified rule "peer: 10.0.0.0/8, TCP, from port: 22, to port: 22, ALLOW" already exists',
    )


def test_sixty_rules_in_each_direction_are_the_limit_unless_it_is_raised(call: Call, group_id: str) -> None:
    sixty = [tcp(port) for port in range(60)]
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=sixty)
    one_more: dict = {"GroupId": group_id, "IpPermissions": [tcp(61)]}
    error = refusal(call, "AuthorizeSecurityGroupIngress", **one_more)
    assert error.code == "RulesPerSecurityGroupLimitExceeded"
    ec2(call, "AuthorizeSecurityGroupEgress", **one_more)
    call.deps["limits"] = {"rules_per_security_group": 61}
    ec2(call, "AuthorizeSecurityGroupIngress", **one_more)


def test_flat_parameters_and_permissions_do_not_mix(call: Call, group_id: str) -> None:
    flat: dict = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIp": "10.0.0.0/8"}
    mixed = refusal(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(2)], **flat)
    assert mixed.code == "InvalidParameterCombination"
    egress = refusal(call, "AuthorizeSecurityGroupEgress", GroupId=group_id, **flat)
    assert egress.code == "UnsupportedOperation"
    nothing = refusal(call, "AuthorizeSecurityGroupIngress", GroupId=group_id)
    assert nothing.code == "MissingParameter"
    nobody = refusal(call, "AuthorizeSecurityGroupIngress", IpPermissions=[tcp(2)])
    assert nobody.code == "MissingParameter"


def test_a_rule_is_revoked_by_its_content_or_by_its_id(call: Call, group_id: str) -> None:
    made = ec2(
        call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(1), tcp(2), tcp(3)]
    )["SecurityGroupRules"]
    by_id = ec2(
        call,
        "RevokeSecurityGroupIngress",
        GroupId=group_id,
        SecurityGroupRuleIds=[made[1]["SecurityGroupRuleId"]],
    )
    assert ids(by_id["RevokedSecurityGroupRules"], "FromPort") == [2]
    ec2(call, "RevokeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(1)])
    assert ids(described(call, group_id)["IpPermissions"], "FromPort") == [3]
    ec2(call, "RevokeSecurityGroupEgress", GroupId=group_id, IpPermissions=ALL_OUT)
    assert described(call, group_id)["IpPermissionsEgress"] == []


def test_revoking_what_is_not_there_is_an_error_and_revokes_nothing(call: Call, group_id: str) -> None:
    made = ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(1)])
    rule_id = made["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    for operation, params, code in [
        ("RevokeSecurityGroupIngress", {"IpPermissions": [tcp(1), tcp(9)]}, "InvalidPermission.NotFound"),
        ("RevokeSecurityGroupEgress", {"IpPermissions": [tcp(1)]}, "InvalidPermission.NotFound"),
        (
            "RevokeSecurityGroupIngress",
            {"SecurityGroupRuleIds": [rule_id, "sgr-1"]},
            "InvalidSecurityGroupRuleId.NotFound",
        ),
        (
            "RevokeSecurityGroupEgress",
            {"SecurityGroupRuleIds": [rule_id]},
            "InvalidSecurityGroupRuleId.NotFound",
        ),
        (
            "RevokeSecurityGroupIngress",
            {"SecurityGroupRuleIds": [rule_id], "IpPermissions": [tcp(1)]},
            "InvalidParameterCombination",
        ),
    ]:
        assert refusal(call, operation, GroupId=group_id, **params).code == code
    assert len(described(call, group_id)["IpPermissions"]) == 1


def test_rules_are_described_tagged_and_filtered(call: Call, group_id: str) -> None:
    tags = [{"ResourceType": "security-group-rule", "Tags": [{"Key": "team", "Value": "a"}]}]
    made = ec2(
        call,
        "AuthorizeSecurityGroupIngress",
        GroupId=group_id,
        IpPermissions=[tcp(22)],
        TagSpecifications=tags,
    )["SecurityGroupRules"]
    by_tag = ec2(call, "DescribeSecurityGroupRules", Filters=filters(tag__team="a"))["SecurityGroupRules"]
    assert by_tag == made
    of_group = ec2(call, "DescribeSecurityGroupRules", Filters=filters(group_id=group_id))
    assert len(of_group["SecurityGroupRules"]) == 2
    rule_id = made[0]["SecurityGroupRuleId"]
    assert (
        ec2(call, "DescribeSecurityGroupRules", SecurityGroupRuleIds=[rule_id])["SecurityGroupRules"] == made
    )
    error = refusal(call, "DescribeSecurityGroupRules", SecurityGroupRuleIds=["sgr-1"])
    assert error.code == "InvalidSecurityGroupRuleId.NotFound"


def test_a_rule_is_modified_in_place(call: Call, group_id: str) -> None:
    made = ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(22), tcp(23)])
    first, second = (one["SecurityGroupRuleId"] for one in made["SecurityGroupRules"])

    def update(rule_id: str, **content: object) -> dict:
        return {
            "GroupId": group_id,
            "SecurityGroupRules": [{"SecurityGroupRuleId": rule_id, "SecurityGroupRule": content}],
        }

    change: dict = {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "ReferencedGroupId": group_id}
    ec2(call, "ModifySecurityGroupRules", **update(first, **change, Description="dns"))
    (rule,) = ec2(call, "DescribeSecurityGroupRules", SecurityGroupRuleIds=[first])["SecurityGroupRules"]
    assert (rule["IpProtocol"], rule["Description"], rule["ReferencedGroupInfo"]["GroupId"]) == (
        "udp",
        "dns",
        group_id,
    )
    same = update(second, **change)
    assert refusal(call, "ModifySecurityGroupRules", **same).code == "InvalidPermission.Duplicate"
    none = update(second, IpProtocol="-1")
    assert refusal(call, "ModifySecurityGroupRules", **none).code == "MissingParameter"
    both = update(second, IpProtocol="-1", CidrIpv4="10.0.0.0/8", ReferencedGroupId=group_id)
    assert refusal(call, "ModifySecurityGroupRules", **both).code == "InvalidParameterCombination"
    gone = update("sgr-1", IpProtocol="-1", CidrIpv4="10.0.0.0/8")
    assert refusal(call, "ModifySecurityGroupRules", **gone).code == "InvalidSecurityGroupRuleId.NotFound"


def test_descriptions_of_rules_change_alone(call: Call, group_id: str) -> None:
    made = ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=[tcp(22)])
    rule_id = made["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    named = tcp(22) | {"IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "ssh"}]}
    ec2(call, "UpdateSecurityGroupRuleDescriptionsIngress", GroupId=group_id, IpPermissions=[named])
    (permission,) = described(call, group_id)["IpPermissions"]
    assert permission["IpRanges"] == [{"CidrIp": "10.0.0.0/8", "Description": "ssh"}]
    by_id = [{"SecurityGroupRuleId": rule_id, "Description": "shell"}]
    ec2(
        call,
        "UpdateSecurityGroupRuleDescriptionsIngress",
        GroupId=group_id,
        SecurityGroupRuleDescriptions=by_id,
    )
    (permission,) = described(call, group_id)["IpPermissions"]
    assert permission["IpRanges"][0]["Description"] == "shell"
    wrong = refusal(
        call, "UpdateSecurityGroupRuleDescriptionsEgress", GroupId=group_id, IpPermissions=[named]
    )
    assert wrong.code == "InvalidPermission.NotFound"


def test_a_group_in_use_is_kept(call: Call, vpc_id: str, group_id: str) -> None:
    other = make(call, vpc_id, "other")
    refers = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}]
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=refers)
    ec2(call, "AuthorizeSecurityGroupEgress", GroupId=other, IpPermissions=refers)
    error = refusal(call, "DeleteSecurityGroup", GroupId=group_id)
    assert (error.code, error.message) == (
        "DependencyViolation",
        f"resource {group_id} has a dependent object",
    )
    ec2(call, "RevokeSecurityGroupEgress", GroupId=other, IpPermissions=refers)
    subnet_id = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    interface = create_interface(call.tx, subnet_id=subnet_id, group_ids=[group_id], now=call.now)
    assert refusal(call, "DeleteSecurityGroup", GroupId=group_id).code == "DependencyViolation"
    ec2(call, "DeleteNetworkInterface", NetworkInterfaceId=interface.interface_id)
    assert ec2(call, "DeleteSecurityGroup", GroupId=group_id) == {"Return": True, "GroupId": group_id}
    assert refusal(call, "DeleteSecurityGroup", GroupId=group_id).code == "InvalidGroup.NotFound"


def test_the_default_group_cannot_be_deleted(call: Call, vpc_id: str) -> None:
    named = [*filters(vpc_id=vpc_id), {"Name": "group-name", "Values": ["default"]}]
    (group,) = ec2(call, "DescribeSecurityGroups", Filters=named)["SecurityGroups"]
    error = refusal(call, "DeleteSecurityGroup", GroupId=group["GroupId"])
    assert (error.code, group["GroupId"] in error.message) == ("CannotDelete", True)


def test_groups_are_filtered_by_their_rules(call: Call, vpc_id: str, group_id: str) -> None:
    both = [tcp(22, "10.0.0.0/8"), {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}]
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=both)
    for name, value, expected in [
        ("description", "a *", 1),
        ("group-id", group_id, 1),
        ("group-name", "job?", 1),
        ("ip-permission.cidr", "10.0.0.0/8", 1),
        ("ip-permission.from-port", "22", 1),
        ("ip-permission.to-port", "23", 0),
        ("ip-permission.group-id", group_id, 1),
        ("ip-permission.group-name", "default", 1),
        ("ip-permission.protocol", "tcp", 1),
        ("ip-permission.user-id", ACCOUNT, 2),
        ("ip-permission.ipv6-cidr", "*", 0),
        ("ip-permission.prefix-list-id", "*", 0),
        ("egress.ip-permission.cidr", "0.0.0.0/0", 2),
        ("egress.ip-permission.protocol", "tcp", 0),
        ("vpc-id", vpc_id, 2),
    ]:
        found = ec2(call, "DescribeSecurityGroups", Filters=[{"Name": name, "Values": [value]}])
        assert len(found["SecurityGroups"]) == expected, name


def test_no_peered_vpc_refers_to_a_group(call: Call, group_id: str) -> None:
    assert ec2(call, "DescribeSecurityGroupReferences", GroupId=[group_id])["SecurityGroupReferenceSet"] == []
    assert refusal(call, "DescribeSecurityGroupReferences", GroupId=["sg-1"]).code == "InvalidGroup.NotFound"
