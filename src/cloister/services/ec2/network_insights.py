"""Reachability Analyzer: paths, and analyses of them by the same `explain` that `cloister why` prints.

An analysis is done when it is started; it keeps what it found, as the network was at that moment. Ours is a
question about one connection: forward components are the gates it passes, explanations those that refuse it.
AWS (Reachability Analyzer guide): no packets are sent, no policies are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import once
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Step
from cloister.vpc.model import NetworkInterface, SecurityGroup
from cloister.vpc.service_network import hidden
from cloister.wire.errors import AwsError
from cloister.world import document

_KINDS = {
    "acl": "network-acl",
    "eni": "network-interface",
    "igw": "internet-gateway",
    "nat": "natgateway",
    "pcx": "vpc-peering-connection",
    "rtb": "route-table",
    "sg": "security-group",
    "subnet": "subnet",
    "vpc": "vpc",
    "vpce": "vpc-endpoint",
}


@document("network-insights-path", key="path_id", prefix="nip")
@dataclass(frozen=True, slots=True, kw_only=True)
class InsightsPath:
    path_id: str
    source: str
    destination: str | None
    source_ip: str | None = None
    destination_ip: str | None = None
    protocol: str
    port: int | None = None
    created: float
    tags: dict[str, str] = field(default_factory=dict)


@document("network-insights-analysis", key="analysis_id", index=("path_id",), prefix="nia")
@dataclass(frozen=True, slots=True, kw_only=True)
class InsightsAnalysis:
    """`components` and `explanations` are as the API shows them."""

    analysis_id: str
    path_id: str
    started: float
    found: bool
    components: tuple[dict[str, Any], ...] = ()
    explanations: tuple[dict[str, Any], ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


def _arn(call: Call, resource: str) -> str:
    kind = resource.partition("-")[0]
    return call.arn("ec2", f"{_KINDS.get(kind, kind)}/{resource}")


def _component(call: Call, resource: str) -> Params:
    return {"Id": resource, "Arn": _arn(call, resource)}


# Paths


def _path_shape(call: Call, path: InsightsPath) -> Params:
    shape: Params = {
        "NetworkInsightsPathId": path.path_id,
        "NetworkInsightsPathArn": call.arn("ec2", f"network-insights-path/{path.path_id}"),
        "CreatedDate": path.created,
        "Source": path.source,
        "SourceArn": _arn(call, path.source),
        "Destination": path.destination,
        "DestinationArn": _arn(call, path.destination) if path.destination else None,
        "SourceIp": path.source_ip,
        "DestinationIp": path.destination_ip,
        "Protocol": path.protocol,
        "DestinationPort": path.port,
        "Tags": tag_set(path.tags),
    }
    return {name: value for name, value in shape.items() if value is not None}


PATHS: Resource[InsightsPath] = Resource(
    result="NetworkInsightsPaths",
    ids="NetworkInsightsPathIds",
    key=lambda path: path.path_id,
    all=lambda world: world.all(InsightsPath),
    get=lambda world, path_id: world.get(InsightsPath, path_id),
    shape=_path_shape,
    prefix="nip",
    not_found="InvalidNetworkInsightsPathId.NotFound",
    malformed="InvalidNetworkInsightsPathId.Malformed",
    missing="The network insights path ID '{}' does not exist",
    page=(1, 100),
    filters={
        "destination": lambda call, path: path.destination,
        "filter-at-source.source-address": lambda call, path: path.source_ip,
        "filter-at-source.source-port-range": lambda call, path: None,
        "filter-at-source.destination-address": lambda call, path: path.destination_ip,
        "filter-at-source.destination-port-range": lambda call, path: path.port,
        "filter-at-destination.source-address": lambda call, path: None,
        "filter-at-destination.source-port-range": lambda call, path: None,
        "filter-at-destination.destination-address": lambda call, path: None,
        "filter-at-destination.destination-port-range": lambda call, path: None,
        "protocol": lambda call, path: path.protocol,
        "source": lambda call, path: path.source,
    },
)


@operation("ec2", "CreateNetworkInsightsPath", resources=on(network_insights_path="*"))
def create_network_insights_path(call: Call, params: Params) -> Params:
    """From an interface to an interface, or to an address. AWS also takes gateways and instances."""
    only(
        params,
        *("Source", "Destination", "SourceIp", "DestinationIp", "Protocol", "DestinationPort"),
        *("TagSpecifications", "ClientToken"),
    )
    path = once(call, "CreateNetworkInsightsPath", params, PATHS, lambda: _make_path(call, params))
    return {"NetworkInsightsPath": _path_shape(call, path)}


def _make_path(call: Call, params: Params) -> InsightsPath:
    source = _interface_named(call, params["Source"])
    destination = params.get("Destination")
    if not destination:
        require(params, "DestinationIp")
    path = InsightsPath(
        path_id=resource_id("nip"),
        source=source,
        destination=_interface_named(call, destination) if destination else None,
        source_ip=params.get("SourceIp"),
        destination_ip=params.get("DestinationIp"),
        protocol=params["Protocol"],
        port=params.get("DestinationPort"),
        created=call.now,
        tags=tag_specifications(params, "network-insights-path"),
    )
    call.tx.put(path)
    return path


def _interface_named(call: Call, text: str) -> str:
    """The id of an interface given by id or ARN. Raises InvalidParameterValue."""
    resource = text.rsplit("/", 1)[-1]
    interface = call.tx.get(NetworkInterface, resource)
    if interface is None or hidden(call.tx, interface):
        raise AwsError(
            "InvalidParameterValue",
            f"The resource '{text}' is not a network interface there is: Cloister analyses paths from and to "
            "network interfaces, and to addresses (DestinationIp).",
        )
    return resource


@operation("ec2", "DescribeNetworkInsightsPaths")
def describe_network_insights_paths(call: Call, params: Params) -> Params:
    return PATHS.describe(call, params)


@operation("ec2", "DeleteNetworkInsightsPath", resources=on(network_insights_path="NetworkInsightsPathId"))
def delete_network_insights_path(call: Call, params: Params) -> Params:
    path = PATHS.find(call.tx, params["NetworkInsightsPathId"])
    if any(call.tx.where(InsightsAnalysis, path_id=path.path_id)):
        raise AwsError(
            "AnalysisExistsForNetworkInsightsPath",
            f"The network insights path '{path.path_id}' has analyses and cannot be deleted.",
        )
    call.tx.delete(InsightsPath, path.path_id)
    return {"NetworkInsightsPathId": path.path_id}


# Analyses


def _analysis_shape(call: Call, analysis: InsightsAnalysis) -> Params:
    return {
        "NetworkInsightsAnalysisId": analysis.analysis_id,
        "NetworkInsightsAnalysisArn": call.arn("ec2", f"network-insights-analysis/{analysis.analysis_id}"),
        "NetworkInsightsPathId": analysis.path_id,
        "StartDate": analysis.started,
        "Status": "succeeded",
        "NetworkPathFound": analysis.found,
        "ForwardPathComponents": list(analysis.components),
        "Explanations": list(analysis.explanations),
        "Tags": tag_set(analysis.tags),
    }


ANALYSES: Resource[InsightsAnalysis] = Resource(
    result="NetworkInsightsAnalyses",
    ids="NetworkInsightsAnalysisIds",
    key=lambda analysis: analysis.analysis_id,
    all=lambda world: world.all(InsightsAnalysis),
    get=lambda world, analysis_id: world.get(InsightsAnalysis, analysis_id),
    shape=_analysis_shape,
    prefix="nia",
    not_found="InvalidNetworkInsightsAnalysisId.NotFound",
    malformed="InvalidNetworkInsightsAnalysisId.Malformed",
    missing="The network insights analysis ID '{}' does not exist",
    page=(1, 100),
    filters={
        "path-found": lambda call, analysis: analysis.found,
        "status": lambda call, analysis: "succeeded",
    },
)


@operation(
    "ec2",
    "StartNetworkInsightsAnalysis",
    resources=on(network_insights_path="NetworkInsightsPathId", network_insights_analysis="*"),
)
def start_network_insights_analysis(call: Call, params: Params) -> Params:
    only(params, "NetworkInsightsPathId", "TagSpecifications", "ClientToken")
    analysis = once(call, "StartNetworkInsightsAnalysis", params, ANALYSES, lambda: _analyse(call, params))
    shape = _analysis_shape(call, analysis)
    return {"NetworkInsightsAnalysis": {**shape, "Status": "running"}}


def _analyse(call: Call, params: Params) -> InsightsAnalysis:
    path = PATHS.find(call.tx, params["NetworkInsightsPathId"])
    interface = call.tx.get(NetworkInterface, path.source)
    flow = Flow(
        source=path.source_ip or path.source,
        destination=path.destination_ip or path.destination or "",
        protocol=path.protocol,
        port=path.port,
        vpc_id=interface.vpc_id if interface else None,
    )
    verdict = explain(call.tx, flow)
    passed = [step for step in verdict.steps if step.allowed]
    analysis = InsightsAnalysis(
        analysis_id=resource_id("nia"),
        path_id=path.path_id,
        started=call.now,
        found=verdict.allowed,
        components=tuple(_path_component(call, number, step) for number, step in enumerate(passed, 1))
        if verdict.allowed
        else (),
        explanations=tuple(_explanation(call, step) for step in verdict.steps if not step.allowed),
        tags=tag_specifications(params, "network-insights-analysis"),
    )
    call.tx.put(analysis)
    return analysis


def _path_component(call: Call, number: int, step: Step) -> Params:
    resource, _, rule = step.origin.partition("/")
    shape: Params = {"SequenceNumber": number, "Component": _component(call, resource)}
    if step.gate in ("egress", "ingress"):
        shape["SecurityGroupRule"] = _group_rule(call, resource, rule, step.gate)
    elif step.gate == "route":
        shape["RouteTableRoute"] = {"DestinationCidr": rule, "State": "active"}
    return shape


def _group_rule(call: Call, group_id: str, rule_id: str, direction: str) -> Params:
    group = call.tx.get(SecurityGroup, group_id)
    rule = next((one for one in group.rules if one.rule_id == rule_id), None) if group else None
    shape: Params = {"Direction": direction, "SecurityGroupId": group_id}
    if rule is not None:
        shape["Protocol"] = "all" if rule.protocol == "-1" else rule.protocol
        if rule.cidr is not None:
            shape["Cidr"] = rule.cidr
        if rule.prefix_list_id is not None:
            shape["PrefixListId"] = rule.prefix_list_id
        if rule.from_port is not None:
            shape["PortRange"] = {"From": rule.from_port, "To": rule.to_port}
    return shape


#: the number of an ACL's rule "*", as DescribeNetworkAcls has it
_LAST_RULE = 32767
#: gate -> member of Explanation that names the resource
_MEMBERS = {
    "route": "RouteTable",
    "egress": "SecurityGroup",
    "ingress": "SecurityGroup",
    "acl": "Acl",
    "endpoint": "VpcEndpoint",
}


def _explanation(call: Call, step: Step) -> Params:
    resource, _, rule = step.origin.partition("/")
    component = _component(call, resource)
    shape: Params = {"ExplanationCode": step.code or "NO_POSSIBLE_DESTINATION", "Component": component}
    if step.direction is not None:
        shape["Direction"] = step.direction
    member = _MEMBERS.get(step.gate)
    if member is not None:
        shape[member] = component
    if resource.startswith("eni-"):
        shape["NetworkInterface"] = component
    if step.gate in ("egress", "ingress"):
        shape["SecurityGroups"] = [component]
    if step.gate == "acl" and rule:
        shape["AclRule"] = {
            "RuleNumber": int(rule) if rule.isdigit() else _LAST_RULE,
            "Egress": step.direction == "egress",
            "RuleAction": "deny",
        }
    return shape


def _seconds(value: datetime | float) -> float:
    return value.timestamp() if isinstance(value, datetime) else float(value)


@operation("ec2", "DescribeNetworkInsightsAnalyses")
def describe_network_insights_analyses(call: Call, params: Params) -> Params:
    path_id = params.get("NetworkInsightsPathId")
    start, end = params.get("AnalysisStartTime"), params.get("AnalysisEndTime")
    among = [
        analysis
        for analysis in call.tx.all(InsightsAnalysis)
        if (not path_id or analysis.path_id == path_id)
        and (start is None or analysis.started >= _seconds(start))
        and (end is None or analysis.started <= _seconds(end))
    ]
    return ANALYSES.describe(call, params, among)


@operation(
    "ec2",
    "DeleteNetworkInsightsAnalysis",
    resources=on(network_insights_analysis="NetworkInsightsAnalysisId"),
)
def delete_network_insights_analysis(call: Call, params: Params) -> Params:
    analysis = ANALYSES.find(call.tx, params["NetworkInsightsAnalysisId"])
    call.tx.delete(InsightsAnalysis, analysis.analysis_id)
    return {"NetworkInsightsAnalysisId": analysis.analysis_id}
