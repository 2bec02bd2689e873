from __future__ import annotations

import pytest
from tests.services.calls import make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.ec2.zones import zones


@pytest.mark.parametrize(
    ("region", "zone_id"),
    [
        ("us-east-1", "use1-az1"),
        ("eu-central-1", "euc1-az1"),
        ("ap-southeast-2", "apse2-az1"),
        ("ap-northeast-1", "apne1-az1"),
        ("us-gov-west-1", "usgw1-az1"),
        ("ca-central-1", "cac1-az1"),
    ],
)
def test_zone_ids_are_made_as_aws_makes_them(region: str, zone_id: str) -> None:
    assert zones(region)[0].zone_id == zone_id


def test_zones_are_chosen_by_name_id_and_filter() -> None:
    call = make_call()

    def found(**params: object) -> list[str]:
        return ids(ec2(call, "DescribeAvailabilityZones", **params)["AvailabilityZones"], "ZoneName")

    assert found() == ["us-east-1a", "us-east-1b", "us-east-1c"]
    assert found(ZoneNames=["us-east-1b"]) == ["us-east-1b"]
    assert found(ZoneIds=["use1-az3"], AllAvailabilityZones=True) == ["us-east-1c"]
    assert found(Filters=filters(zone_type="availability-zone", zone_name="*a")) == ["us-east-1a"]
    assert found(Filters=filters(opt_in_status="not-opted-in")) == []
    assert refusal(call, "DescribeAvailabilityZones", ZoneNames=["eu-west-1a"]).message == (
        "Invalid availabilityZone: [eu-west-1a]"
    )


def test_the_one_region_is_the_one_that_is_served() -> None:
    call = make_call(region="eu-west-1")
    assert ec2(call, "DescribeRegions", AllRegions=True)["Regions"] == [
        {
            "RegionName": "eu-west-1",
            "Endpoint": "ec2.eu-west-1.amazonaws.com",
            "OptInStatus": "opt-in-not-required",
        }
    ]
    assert ec2(call, "DescribeRegions", Filters=filters(region_name="us-*"))["Regions"] == []
    assert refusal(call, "DescribeRegions", RegionNames=["mars-1"]).code == "InvalidParameterValue"


def test_the_default_dhcp_options_name_the_amazon_resolver() -> None:
    call = make_call()
    (options,) = ec2(call, "DescribeDhcpOptions")["DhcpOptions"]
    assert options["DhcpConfigurations"] == [
        {"Key": "domain-name", "Values": [{"Value": "ec2.internal"}]},
        {"Key": "domain-name-servers", "Values": [{"Value": "AmazonProvidedDNS"}]},
    ]
    vpc = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]
    assert vpc["DhcpOptionsId"] == options["DhcpOptionsId"]
    assert ec2(call, "DescribeDhcpOptions", DhcpOptionsIds=[options["DhcpOptionsId"]])["DhcpOptions"]
    assert ec2(call, "DescribeDhcpOptions", Filters=filters(value="AmazonProvidedDNS"))["DhcpOptions"]
    assert ec2(call, "DescribeDhcpOptions", Filters=filters(key="ntp-servers"))["DhcpOptions"] == []
    assert (
        refusal(call, "DescribeDhcpOptions", DhcpOptionsIds=["dopt-1"]).code == "InvalidDhcpOptionID.NotFound"
    )


def test_account_attributes_without_a_default_vpc_say_none() -> None:
    answer = ec2(make_call(), "DescribeAccountAttributes", AttributeNames=["default-vpc"])
    assert answer["AccountAttributes"] == [
        {"AttributeName": "default-vpc", "AttributeValues": [{"AttributeValue": "none"}]}
    ]
