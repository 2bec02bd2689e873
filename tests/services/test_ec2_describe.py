"""What holds for every Describe operation, read from botocore's model."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.services.calls import make_call
from tests.services.ec2 import ec2, model, refusal

from cloister.services.api import OPERATIONS
from cloister.services.ec2 import (
    describe,
    dhcp_options,
    elastic_ips,
    endpoints,
    flow_logs,
    internet_gateways,
    nat_gateways,
    network_acls,
    network_insights,
    network_interfaces,
    prefix_lists,
    route_tables,
    security_group_rules,
    security_groups,
    subnets,
    tags,
    vpc_peering,
    vpcs,
    zones,
)

DESCRIBED: dict[str, describe.Resource[Any]] = {
    "DescribeVpcs": vpcs.VPCS,
    "DescribeSubnets": subnets.SUBNETS,
    "DescribeSecurityGroups": security_groups.GROUPS,
    "DescribeSecurityGroupRules": security_group_rules.RULES,
    "DescribeRouteTables": route_tables.TABLES,
    "DescribeFlowLogs": flow_logs.FLOW_LOGS,
    "DescribeNetworkAcls": network_acls.ACLS,
    "DescribeNetworkInsightsPaths": network_insights.PATHS,
    "DescribeNetworkInsightsAnalyses": network_insights.ANALYSES,
    "DescribeVpcEndpoints": endpoints.ENDPOINTS,
    "DescribeVpcEndpointServices": endpoints.SERVICES,
    "DescribePrefixLists": prefix_lists.SERVICE_LISTS,
    "DescribeManagedPrefixLists": prefix_lists.LISTS,
    "DescribeNetworkInterfaces": network_interfaces.INTERFACES,
    "DescribeAvailabilityZones": zones.ZONES,
    "DescribeRegions": zones.REGIONS,
    "DescribeInternetGateways": internet_gateways.INTERNET_GATEWAYS,
    "DescribeAddresses": elastic_ips.ELASTIC_IPS,
    "DescribeNatGateways": nat_gateways.NAT_GATEWAYS,
    "DescribeVpcPeeringConnections": vpc_peering.PEERINGS,
    "DescribeDhcpOptions": dhcp_options.DHCP_OPTIONS,
    "DescribeTags": tags.TAGS,
}


def member(operation: str) -> str:
    return "Filter" if operation in ("DescribeNatGateways", "DescribeFlowLogs") else "Filters"


def test_every_operation_with_filters_is_in_the_table_above() -> None:
    filtered = {
        name
        for service, name in OPERATIONS
        if service == "ec2" and {"Filters", "Filter"} & set(model().operation_model(name).input_shape.members)
    }
    assert filtered == set(DESCRIBED)


@pytest.mark.parametrize("operation", DESCRIBED)
def test_every_documented_filter_is_done(operation: str) -> None:
    text = model().operation_model(operation).input_shape.members[member(operation)].documentation
    documented = set(re.findall(r"<li> <p> ?(?:<code>)?([a-z0-9.-]+)(?:</code>| ?:| - )", text))
    documented -= {"tag", "tag-key"}
    assert documented
    assert documented - set(DESCRIBED[operation].filters) == set()


@pytest.mark.parametrize("operation", DESCRIBED)
def test_an_empty_world_is_described_and_an_unknown_filter_refused(operation: str) -> None:
    call = make_call()
    ec2(call, operation)

    def refused(*given: dict[str, Any]) -> Any:
        return refusal(call, operation, **{member(operation): list(given)})

    error = refused({"Name": "colour", "Values": ["red"]})
    assert error.message == "The filter 'colour' is invalid"
    empty = refused({"Name": next(iter(DESCRIBED[operation].filters))})
    assert "has no values" in empty.message
    many = {"Name": "colour", "Values": [str(i) for i in range(201)]}
    assert refused(many).code == "FilterLimitExceeded"


#: AWS, "Error codes for the Amazon EC2 API": the words differ from those of what is not found
MALFORMED = {
    "DescribeVpcs": "InvalidVpcID.Malformed",
    "DescribeSubnets": "InvalidSubnetID.Malformed",
    "DescribeSecurityGroups": "InvalidGroupId.Malformed",
    "DescribeSecurityGroupRules": "InvalidSecurityGroupRuleId.Malformed",
    "DescribeRouteTables": "InvalidRouteTableId.Malformed",
    "DescribeNetworkAcls": "InvalidNetworkAclId.Malformed",
    "DescribeVpcEndpoints": "InvalidVpcEndpointId.Malformed",
    "DescribePrefixLists": "InvalidPrefixListId.Malformed",
    "DescribeManagedPrefixLists": "InvalidPrefixListId.Malformed",
    "DescribeNetworkInterfaces": "InvalidNetworkInterfaceId.Malformed",
    "DescribeInternetGateways": "InvalidInternetGatewayId.Malformed",
    "DescribeAddresses": "InvalidAllocationID.NotFound",
    "DescribeNatGateways": "NatGatewayMalformed",
    "DescribeVpcPeeringConnections": "InvalidVpcPeeringConnectionId.Malformed",
}


@pytest.mark.parametrize("operation", MALFORMED)
def test_what_cannot_be_an_id_is_malformed_as_the_list_of_codes_has_it(operation: str) -> None:
    ids = DESCRIBED[operation].ids
    assert ids
    error = refusal(make_call(), operation, **{ids: ["colour"]})
    assert (error.code, "colour" in error.message) == (MALFORMED[operation], True)


def test_what_cannot_be_an_id_of_dhcp_options_or_a_public_address_is_malformed() -> None:
    call = make_call()
    for operation, params, code in [
        ("DescribeDhcpOptions", {"DhcpOptionsIds": ["colour"]}, "InvalidDhcpOptionsId.Malformed"),
        ("DescribeAddresses", {"PublicIps": ["1.2.3"]}, "InvalidAddress.Malformed"),
        ("DescribeAddresses", {"PublicIps": ["192.0.2.1"]}, "InvalidAddress.NotFound"),
        ("DeleteSecurityGroup", {"GroupId": "colour"}, "InvalidGroupId.Malformed"),
        ("DeleteNatGateway", {"NatGatewayId": "colour"}, "NatGatewayMalformed"),
    ]:
        assert refusal(call, operation, **params).code == code


@pytest.mark.parametrize(("size", "bound"), [(4, "5"), (1001, "1000"), (0, "5"), (-1, "5")])
def test_a_page_size_out_of_bounds_is_refused(size: int, bound: str) -> None:
    with pytest.raises(describe.AwsError, match=bound):
        vpcs.VPCS.describe(make_call(), {"MaxResults": size})


#: parameters beside ids, Filters and pages that a Describe operation reads
FURTHER = {
    "DescribeAddresses": {"PublicIps"},
    "DescribeSecurityGroups": {"GroupNames"},
    "DescribeNetworkInsightsAnalyses": {"NetworkInsightsPathId", "AnalysisStartTime", "AnalysisEndTime"},
    "DescribeVpcEndpointServices": {"ServiceNames", "ServiceRegions"},
    "DescribeNetworkInterfaces": {"IncludeManagedResources"},
    "DescribeAvailabilityZones": {"ZoneNames", "ZoneIds", "AllAvailabilityZones"},
    "DescribeRegions": {"RegionNames", "AllRegions"},
    "DescribeDhcpOptions": {"DhcpOptionsIds"},
}


@pytest.mark.parametrize("operation", DESCRIBED)
def test_every_parameter_is_read(operation: str) -> None:
    # A parameter that a newer botocore adds must be done or refused, not ignored: it fails here first.
    read = {member(operation), "MaxResults", "NextToken", "DryRun", DESCRIBED[operation].ids}
    members = set(model().operation_model(operation).input_shape.members)
    assert members - read - FURTHER.get(operation, set()) == set()


def test_every_operation_is_one_of_ec2s() -> None:
    names = set(model().operation_names)
    assert {name for service, name in OPERATIONS if service == "ec2"} <= names


@given(st.text(max_size=20))
def test_a_value_without_wildcards_matches_itself_alone(text: str) -> None:
    escaped = re.sub(r"([*?\\])", r"\\\1", text)
    admits = describe._matcher({"Values": [escaped]})
    assert admits(text)
    assert not admits(text + "x")


@given(st.text(max_size=10), st.text(max_size=10), st.text(max_size=10))
def test_a_star_stands_for_anything(before: str, middle: str, after: str) -> None:
    def escape(text: str) -> str:
        return re.sub(r"([*?\\])", r"\\\1", text)

    admits = describe._matcher({"Values": [f"{escape(before)}*{escape(after)}"]})
    assert admits(before + middle + after)


def test_a_hostile_pattern_costs_no_time() -> None:
    assert not describe._matcher({"Values": ["*a" * 60 + "b"]})("a" * 255)
