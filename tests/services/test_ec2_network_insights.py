"""Reachability Analyzer's calls: the codes are AWS's, the answers those of `explain`."""

from __future__ import annotations

from typing import Any

from tests.services.calls import make_call
from tests.services.ec2 import ec2, refusal

from cloister.services.api import Call
from cloister.vpc import interfaces, service_network


def _interface(call: Call, subnet_id: str) -> str:
    made: str = ec2(call, "CreateNetworkInterface", SubnetId=subnet_id)["NetworkInterface"][
        "NetworkInterfaceId"
    ]
    interfaces.attach(call.tx, made, now=0)
    return made


def _analysis(call: Call, path_id: str) -> dict[str, Any]:
    started = ec2(call, "StartNetworkInsightsAnalysis", NetworkInsightsPathId=path_id, ClientToken=path_id)
    analysis_id = started["NetworkInsightsAnalysis"]["NetworkInsightsAnalysisId"]
    found = ec2(call, "DescribeNetworkInsightsAnalyses", NetworkInsightsAnalysisIds=[analysis_id])
    analysis: dict[str, Any] = found["NetworkInsightsAnalyses"][0]
    return analysis


def test_a_path_is_found_until_a_rule_goes_and_the_analysis_keeps_what_it_found() -> None:
    call = make_call()
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet_id = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    one, two = _interface(call, subnet_id), _interface(call, subnet_id)
    path = ec2(
        call,
        "CreateNetworkInsightsPath",
        Source=one,
        Destination=two,
        Protocol="tcp",
        DestinationPort=5432,
        ClientToken="t",
    )["NetworkInsightsPath"]
    path_id = path["NetworkInsightsPathId"]
    first = _analysis(call, path_id)
    assert first["NetworkPathFound"]
    group = ec2(call, "DescribeSecurityGroups", Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])[
        "SecurityGroups"
    ]
    group_id = group[0]["GroupId"]
    assert [each["Component"]["Id"][:3] for each in first["ForwardPathComponents"]] == ["rtb", "sg-", "sg-"]
    ec2(
        call,
        "RevokeSecurityGroupIngress",
        GroupId=group_id,
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}],
    )
    ec2(call, "DescribeNetworkInsightsPaths", NetworkInsightsPathIds=[path_id])
    started = ec2(call, "StartNetworkInsightsAnalysis", NetworkInsightsPathId=path_id, ClientToken="other")
    found = started["NetworkInsightsAnalysis"]
    assert not found["NetworkPathFound"]
    [explanation] = found["Explanations"]
    assert explanation["ExplanationCode"] == "ENI_SG_RULES_MISMATCH"
    assert explanation["Direction"] == "ingress"
    assert explanation["SecurityGroup"]["Id"] == group_id
    both = ec2(call, "DescribeNetworkInsightsAnalyses", NetworkInsightsPathId=path_id)[
        "NetworkInsightsAnalyses"
    ]
    assert sorted(each["NetworkPathFound"] for each in both) == [False, True]
    assert (
        refusal(call, "DeleteNetworkInsightsPath", NetworkInsightsPathId=path_id).code
        == "AnalysisExistsForNetworkInsightsPath"
    )
    for each in both:
        analysis_id = each["NetworkInsightsAnalysisId"]
        ec2(call, "DeleteNetworkInsightsAnalysis", NetworkInsightsAnalysisId=analysis_id)
    ec2(call, "DeleteNetworkInsightsPath", NetworkInsightsPathId=path_id)
    assert refusal(call, "DescribeNetworkInsightsPaths", NetworkInsightsPathIds=[path_id]).code == (
        "InvalidNetworkInsightsPathId.NotFound"
    )


def test_no_route_and_an_acl_have_codes_of_their_own() -> None:
    call = make_call()
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    near, far = (
        ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock=f"10.0.{n}.0/24")["Subnet"]["SubnetId"]
        for n in (0, 1)
    )
    one, two = _interface(call, near), _interface(call, far)
    acl = ec2(call, "DescribeNetworkAcls", Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["NetworkAcls"][0]
    ec2(
        call,
        "CreateNetworkAclEntry",
        NetworkAclId=acl["NetworkAclId"],
        RuleNumber=50,
        Protocol="6",
        PortRange={"From": 22, "To": 22},
        CidrBlock="0.0.0.0/0",
        RuleAction="deny",
        Egress=True,
    )

    def explanations(**path: Any) -> list[dict[str, Any]]:
        made = ec2(call, "CreateNetworkInsightsPath", Source=one, Protocol="tcp", **path)[
            "NetworkInsightsPath"
        ]
        found: list[dict[str, Any]] = _analysis(call, made["NetworkInsightsPathId"])["Explanations"]
        return found

    def codes(**path: Any) -> list[str]:
        return [each["ExplanationCode"] for each in explanations(**path)]

    assert codes(Destination=two, DestinationPort=22, ClientToken="a") == ["SUBNET_ACL_RESTRICTION"]
    assert codes(Destination=two, DestinationPort=80, ClientToken="b") == []
    ec2(call, "DeleteNetworkAclEntry", NetworkAclId=acl["NetworkAclId"], RuleNumber=100, Egress=True)
    last, *_ = explanations(Destination=two, DestinationPort=80, ClientToken="e")
    assert last["AclRule"]["RuleNumber"] == 32767  # AWS's number of the rule "*"
    assert codes(DestinationIp="8.8.8.8", DestinationPort=80, ClientToken="c") == ["NO_ROUTE_TO_DESTINATION"]
    assert refusal(
        call,
        "CreateNetworkInsightsPath",
        Source="igw-1",
        Protocol="tcp",
        DestinationIp="8.8.8.8",
        ClientToken="d",
    ).code == ("InvalidParameterValue")


def test_an_interface_of_the_services_own_network_is_none_of_the_callers() -> None:
    call = make_call()
    subnet = service_network.jobs_subnet(call.tx, region="us-east-1", now=0)
    group = service_network.job_group(call.tx, subnet, "job")
    hidden = interfaces.create_interface(
        call.tx, subnet_id=subnet.subnet_id, group_ids=[group.group_id], now=0
    ).interface_id
    path = {"Source": hidden, "Destination": hidden, "Protocol": "tcp", "ClientToken": "t"}
    assert refusal(call, "CreateNetworkInsightsPath", **path).code == "InvalidParameterValue"
    given: dict[str, Any] = {"ResourceType": "NetworkInterface", "TrafficType": "ALL"}
    given |= {"LogGroupName": "g", "DeliverLogsPermissionArn": "arn:aws:iam::123456789012:role/r"}
    made = ec2(call, "CreateFlowLogs", ResourceIds=[hidden], **given)
    assert [each["Error"]["Code"] for each in made["Unsuccessful"]] == ["InvalidNetworkInterfaceID.NotFound"]
    assert made["FlowLogIds"] == []


def test_a_middlebox_is_on_the_path_and_its_check_is_the_explanation() -> None:
    call = make_call()
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock=f"10.0.{number}.0/24")["Subnet"]["SubnetId"]
        for number in range(3)
    ]
    one, two, middlebox = (_interface(call, subnet_id) for subnet_id in subnets)
    for subnet_id, far in ((subnets[0], "10.0.1.0/24"), (subnets[1], "10.0.0.0/24")):
        table_id = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
        ec2(call, "AssociateRouteTable", RouteTableId=table_id, SubnetId=subnet_id)
        route: dict[str, Any] = {"RouteTableId": table_id, "DestinationCidrBlock": far}
        ec2(call, "CreateRoute", **route, NetworkInterfaceId=middlebox)
    (group,) = ec2(call, "DescribeSecurityGroups", Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])[
        "SecurityGroups"
    ]
    anywhere = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}]
    question: dict[str, Any] = {"Source": one, "Destination": two, "Protocol": "tcp", "DestinationPort": 443}
    checked = _analysis(call, _path(call, question, "checked"))
    assert not checked["NetworkPathFound"]
    (explanation,) = checked["Explanations"]
    assert explanation["ExplanationCode"] == "ENI_SOURCE_DEST_CHECK_RESTRICTION"
    assert explanation["NetworkInterface"]["Id"] == middlebox
    off = {"NetworkInterfaceId": middlebox, "SourceDestCheck": {"Value": False}}
    ec2(call, "ModifyNetworkInterfaceAttribute", **off)
    # the default group lets in its own members, and does not mean what comes by way of a middlebox
    refused = _analysis(call, _path(call, question, "members"))
    assert {each["ExplanationCode"] for each in refused["Explanations"]} == {"ENI_SG_RULES_MISMATCH"}
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=group["GroupId"], IpPermissions=anywhere)
    found = _analysis(call, _path(call, question, "open"))
    assert found["NetworkPathFound"], found
    assert middlebox in [each["Component"]["Id"] for each in found["ForwardPathComponents"]]


def _path(call: Call, question: dict[str, Any], token: str) -> str:
    made = ec2(call, "CreateNetworkInsightsPath", **question, ClientToken=token)
    path_id: str = made["NetworkInsightsPath"]["NetworkInsightsPathId"]
    return path_id
