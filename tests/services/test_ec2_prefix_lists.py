from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call


@pytest.fixture
def call() -> Call:
    return make_call()


def make(call: Call, *cidrs: str, name: str = "sites", max_entries: int = 10) -> str:
    made: str = ec2(
        call,
        "CreateManagedPrefixList",
        PrefixListName=name,
        AddressFamily="IPv4",
        MaxEntries=max_entries,
        Entries=[{"Cidr": cidr, "Description": f"site {i}"} for i, cidr in enumerate(cidrs)],
    )["PrefixList"]["PrefixListId"]
    return made


def described(call: Call, list_id: str) -> dict:
    (listed,) = ec2(call, "DescribeManagedPrefixLists", PrefixListIds=[list_id])["PrefixLists"]
    found: dict = listed
    return found


def test_a_list_is_described_with_its_entries(call: Call) -> None:
    list_id = make(call, "10.1.2.3/16", "10.2.0.0/16")
    assert described(call, list_id) == {
        "PrefixListId": list_id,
        "AddressFamily": "IPv4",
        "State": "create-complete",
        "PrefixListArn": f"arn:aws:ec2:us-east-1:{ACCOUNT}:prefix-list/{list_id}",
        "PrefixListName": "sites",
        "MaxEntries": 10,
        "Version": 1,
        "OwnerId": ACCOUNT,
        "Tags": [],
    }
    assert ec2(call, "GetManagedPrefixListEntries", PrefixListId=list_id)["Entries"] == [
        {"Cidr": "10.1.0.0/16", "Description": "site 0"},
        {"Cidr": "10.2.0.0/16", "Description": "site 1"},
    ]
    assert ec2(call, "DescribePrefixLists")["PrefixLists"] == []
    named = filters(prefix_list_name="s*", prefix_list_id=list_id, owner_id=ACCOUNT)
    assert ids(ec2(call, "DescribeManagedPrefixLists", Filters=named)["PrefixLists"], "PrefixListId")


def test_entries_come_in_pages(call: Call) -> None:
    list_id = make(call, *(f"10.{i}.0.0/16" for i in range(7)))
    page = ec2(call, "GetManagedPrefixListEntries", PrefixListId=list_id, MaxResults=4)
    rest = ec2(
        call, "GetManagedPrefixListEntries", PrefixListId=list_id, MaxResults=4, NextToken=page["NextToken"]
    )
    assert (len(page["Entries"]), len(rest["Entries"]), "NextToken" in rest) == (4, 3, False)


def test_a_change_of_entries_makes_a_new_version(call: Call) -> None:
    list_id = make(call, "10.1.0.0/16", "10.2.0.0/16")
    ec2(
        call,
        "ModifyManagedPrefixList",
        PrefixListId=list_id,
        CurrentVersion=1,
        AddEntries=[{"Cidr": "10.3.0.0/16"}, {"Cidr": "10.2.0.0/16", "Description": "moved"}],
        RemoveEntries=[{"Cidr": "10.1.0.0/16"}],
        PrefixListName="places",
    )
    listed = described(call, list_id)
    assert (listed["Version"], listed["PrefixListName"], listed["State"]) == (2, "places", "modify-complete")
    assert ec2(call, "GetManagedPrefixListEntries", PrefixListId=list_id, TargetVersion=2)["Entries"] == [
        {"Cidr": "10.2.0.0/16", "Description": "moved"},
        {"Cidr": "10.3.0.0/16"},
    ]
    old = refusal(call, "GetManagedPrefixListEntries", PrefixListId=list_id, TargetVersion=1)
    assert old.code == "UnsupportedOperation"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"AddEntries": [{"Cidr": "10.9.0.0/16"}]}, "MissingParameter"),
        ({"AddEntries": [{"Cidr": "10.9.0.0/16"}], "CurrentVersion": 2}, "PrefixListVersionMismatch"),
        ({"AddEntries": [{"Cidr": "10.9"}], "CurrentVersion": 1}, "InvalidParameterValue"),
        ({"RemoveEntries": [{"Cidr": "10.9.0.0/16"}], "CurrentVersion": 1}, "InvalidPrefixListModification"),
        (
            {"AddEntries": [{"Cidr": "10.1.0.0/16", "Description": "site 0"}], "CurrentVersion": 1},
            "InvalidPrefixListModification",
        ),
        (
            {"AddEntries": [{"Cidr": "10.8.0.0/16"}, {"Cidr": "10.9.0.0/16"}], "CurrentVersion": 1},
            "PrefixListMaxEntriesExceeded",
        ),
        ({"MaxEntries": 1001}, "InvalidParameterValue"),
        ({"MaxEntries": 5, "AddEntries": [{"Cidr": "10.9.0.0/16"}]}, "InvalidParameterCombination"),
        ({"PrefixListName": "com.amazonaws.mine"}, "InvalidParameterValue"),
        ({"PrefixListId": "pl-1"}, "InvalidPrefixListID.NotFound"),
        ({"IpamPrefixListResolverSyncEnabled": True}, "UnsupportedOperation"),
    ],
)
def test_a_bad_change_is_refused(call: Call, params: dict, code: str) -> None:
    list_id = make(call, "10.1.0.0/16", max_entries=2)
    assert refusal(call, "ModifyManagedPrefixList", **{"PrefixListId": list_id, **params}).code == code


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"AddressFamily": "IPv6"}, "UnsupportedOperation"),
        ({"AddressFamily": "IPX"}, "InvalidParameterValue"),
        ({"MaxEntries": 0}, "InvalidParameterValue"),
        ({"PrefixListName": "com.amazonaws.us-east-1.s3"}, "InvalidParameterValue"),
        ({"Entries": [{"Cidr": "10.0.0.0/8"}, {"Cidr": "10.0.0.1/8"}]}, "InvalidParameterValue"),
        ({"MaxEntries": 1, "Entries": [{"Cidr": "10.0.0.0/8"}, {"Cidr": "11.0.0.0/8"}]}, None),
    ],
)
def test_a_bad_list_is_refused(call: Call, params: dict, code: str | None) -> None:
    good: dict = {"AddressFamily": "IPv4", "MaxEntries": 5, "PrefixListName": "a"}
    error = refusal(call, "CreateManagedPrefixList", **good | params)
    assert error.code == (code or "PrefixListMaxEntriesExceeded")


def test_a_list_in_a_rule_counts_as_its_maximum_and_is_kept(call: Call) -> None:
    list_id = make(call, "10.1.0.0/16", max_entries=60)
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    group_id = ec2(call, "CreateSecurityGroup", VpcId=vpc_id, GroupName="a", Description="a")["GroupId"]
    rule = [{"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": list_id, "Description": "sites"}]}]
    made = ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=rule)
    assert made["SecurityGroupRules"][0]["PrefixListId"] == list_id
    (group,) = ec2(call, "DescribeSecurityGroups", GroupIds=[group_id])["SecurityGroups"]
    assert group["IpPermissions"][0]["PrefixListIds"] == rule[0]["PrefixListIds"]
    assert refusal(call, "DeleteManagedPrefixList", PrefixListId=list_id).code == "DependencyViolation"
    larger = refusal(call, "ModifyManagedPrefixList", PrefixListId=list_id, MaxEntries=61)
    assert larger.code == "RulesPerSecurityGroupLimitExceeded"
    ec2(call, "RevokeSecurityGroupIngress", GroupId=group_id, IpPermissions=rule)
    ec2(call, "DeleteManagedPrefixList", PrefixListId=list_id)
    gone = refusal(call, "GetManagedPrefixListEntries", PrefixListId=list_id)
    assert gone.code == "InvalidPrefixListID.NotFound"
