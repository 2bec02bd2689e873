"""Route 53 Resolver: outbound endpoints, rules that forward names to DNS servers, and their VPCs.

Our choices: `CreatorRequestId` answers a repeated create with what the first one made. The Region's
autodefined rule for the internet is not listed. Inbound endpoints, DNS over HTTPS and IPv6 are refused by
name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from cloister.iam.context import request_tags, resource_tags
from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import paginate
from cloister.vpc import addresses
from cloister.vpc.interfaces import check_groups, create_interface, release
from cloister.vpc.model import NetworkInterface, Subnet, Vpc
from cloister.vpc.resolver_rules import (
    FORWARD,
    SYSTEM,
    ResolverEndpoint,
    ResolverRule,
    ResolverRuleAssociation,
    sources,
)
from cloister.vpc.service_network import hidden
from cloister.wire.errors import AwsError
from cloister.world import World

#: AWS: the requester of an endpoint's interfaces
REQUESTER = "amazon-route53-resolver"
DNS_PORT = 53
TAGS_PER_RESOURCE = 200
#: AWS's default quotas
TARGETS_PER_RULE, ENDPOINTS, RULES = 6, 4, 1000
_LABEL = re.compile(r"[a-z0-9_*-]{1,63}")
D = TypeVar("D")
Filters = Mapping[str, Callable[[Call, D], Iterable[str]]]


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidParameterException", message)


def _unknown(kind: str, number: str) -> AwsError:
    return AwsError("ResourceNotFoundException", f"Resolver {kind} with ID '{number}' does not exist.")


def _refuse(params: Params, **only: Any) -> None:
    """Parameters that may have one value here, or none."""
    for name, value in only.items():
        if params.get(name) and params[name] != value:
            raise _invalid(f"{name} {params[name]!r} is not supported: Cloister does not implement it.")


@contextmanager
def _of_ec2() -> Iterator[None]:
    """What EC2 refuses is an invalid parameter of this service."""
    try:
        yield
    except AwsError as error:
        raise _invalid(error.message) from error


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _tags(given: Sequence[Params]) -> dict[str, str]:
    for each in given:
        if each["Key"].lower().startswith("aws:"):
            raise AwsError("InvalidTagException", f"The tag key {each['Key']!r} is reserved for AWS.")
    return {each["Key"]: each["Value"] for each in given}


def _listed(
    call: Call,
    params: Params,
    member: str,
    documents: Iterable[D],
    key: Callable[[D], str],
    shape: Callable[[Call, D], Params],
    filters: Filters[D],
) -> Params:
    """A page of what all filters admit; of one filter any value. Names may have underscores, in any case."""
    known = {name.lower(): compare for name, compare in filters.items()}
    found = list(documents)
    for each in params.get("Filters", ()):
        compare = known.get(each.get("Name", "").replace("_", "").lower())
        if compare is None:
            raise _invalid(f"The filter {each.get('Name')!r} is invalid. Filters are {', '.join(filters)}.")
        wanted = set(each.get("Values", ()))
        found = [document for document in found if wanted & set(compare(call, document))]
    try:
        page, token = paginate(found, key, {"MaxResults": 10, **params}, 1, 100, scope=member)
    except AwsError as error:
        raise AwsError("InvalidNextTokenException", error.message) from error
    answer: Params = {"MaxResults": params.get("MaxResults", 10), member: [shape(call, one) for one in page]}
    return {**answer, "NextToken": token} if token else answer


# Endpoints


def _endpoint_arn(call: Call, number: str) -> str:
    return call.arn("route53resolver", f"resolver-endpoint/{number}")


def _tag_keys(call: Call, params: Params) -> dict[str, Any]:
    """The condition keys of the request's tags, and of those that the endpoint or rule it names has."""
    found = (
        call.tx.get(ResolverEndpoint, params.get("ResolverEndpointId"))
        or call.tx.get(ResolverRule, params.get("ResolverRuleId"))
        or _with_arn(call, params.get("ResourceArn"))
    )
    return {
        **(resource_tags("route53resolver", found.tags) if found is not None else {}),
        **request_tags(_tags(params.get("Tags", ())), params.get("TagKeys", ())),
    }


def _of_endpoint(call: Call, params: Params) -> list[str]:
    return [_endpoint_arn(call, params.get("ResolverEndpointId") or "*")]


def _endpoint(world: World, number: str) -> ResolverEndpoint:
    found = world.get(ResolverEndpoint, number)
    if found is None:
        raise _unknown("endpoint", number)
    return found


def _is_held(call: Call, endpoint: ResolverEndpoint) -> bool:
    """Whether the kernel has all its interfaces; `deps["applied"]` as in EC2's NAT gateways."""
    applied = call.deps["applied"]() if "applied" in call.deps else call.tx
    return all(applied.get(NetworkInterface, each) is not None for each in endpoint.interface_ids)


def _endpoint_shape(call: Call, endpoint: ResolverEndpoint) -> Params:
    held = _is_held(call, endpoint)
    return {
        "Id": endpoint.endpoint_id,
        "CreatorRequestId": endpoint.creator_request_id,
        "Arn": _endpoint_arn(call, endpoint.endpoint_id),
        "Name": endpoint.name,
        "SecurityGroupIds": list(endpoint.group_ids),
        "Direction": "OUTBOUND",
        "IpAddressCount": len(endpoint.interface_ids),
        "HostVPCId": endpoint.vpc_id,
        "Status": "OPERATIONAL" if held else "CREATING",
        "StatusMessage": "This Resolver Endpoint is operational."
        if held
        else "Creating the Resolver Endpoint.",
        "CreationTime": _time(endpoint.created),
        "ModificationTime": _time(endpoint.created),
        "ResolverEndpointType": "IPV4",
        "Protocols": ["Do53"],
    }


_ENDPOINT_FILTERS: Filters[ResolverEndpoint] = {
    "CreatorRequestId": lambda call, one: (one.creator_request_id,),
    "Direction": lambda call, one: ("OUTBOUND",),
    "HostVPCId": lambda call, one: (one.vpc_id,),
    "IpAddressCount": lambda call, one: (str(len(one.interface_ids)),),
    "Name": lambda call, one: (one.name,),
    "SecurityGroupIds": lambda call, one: one.group_ids,
    "Status": lambda call, one: (_endpoint_shape(call, one)["Status"],),
}


@operation("route53resolver", "CreateResolverEndpoint", resources=_of_endpoint, context=_tag_keys)
def create_resolver_endpoint(call: Call, params: Params) -> Params:
    if params["Direction"] != "OUTBOUND":
        raise _invalid(f"Direction {params['Direction']} is not supported: Cloister does not implement it.")
    _refuse(
        params,
        OutpostArn="",
        PreferredInstanceType="",
        ResolverEndpointType="IPV4",
        Protocols=["Do53"],
        RniEnhancedMetricsEnabled=False,
        TargetNameServerMetricsEnabled=False,
        Dns64Enabled=False,
        Ipv6InternetAccessEnabled=False,
    )
    for known in call.tx.all(ResolverEndpoint):
        if known.creator_request_id == params["CreatorRequestId"]:
            return {"ResolverEndpoint": _endpoint_shape(call, known)}
    if call.tx.count(ResolverEndpoint) >= ENDPOINTS:
        raise AwsError("LimitExceededException", f"There are {ENDPOINTS} Resolver endpoints already.")
    number = resource_id("rslvr-out")
    wanted = params["IpAddresses"]
    _refuse({name: value for each in wanted for name, value in each.items() if name == "Ipv6"}, Ipv6="")
    subnets = [_subnet(call, each["SubnetId"]) for each in wanted]
    vpc_ids = {subnet.vpc_id for subnet in subnets}
    if len(vpc_ids) > 1:
        raise _invalid(
            f"The subnets of a Resolver endpoint are of one VPC; these are of {', '.join(vpc_ids)}."
        )
    with _of_ec2():
        groups = check_groups(call.tx, params["SecurityGroupIds"], subnets[0])
        interfaces = [
            create_interface(
                call.tx,
                subnet_id=subnet.subnet_id,
                group_ids=groups,
                now=call.now,
                addresses=[each["Ip"]] if each.get("Ip") else (),
                attach=("",),
                description=f"Route 53 Resolver: {number}",
                requester_managed=True,
                requester_id=REQUESTER,
            ).interface_id
            for each, subnet in zip(wanted, subnets, strict=True)
        ]
    endpoint = ResolverEndpoint(
        endpoint_id=number,
        vpc_id=subnets[0].vpc_id,
        creator_request_id=params["CreatorRequestId"],
        name=params.get("Name", ""),
        group_ids=groups,
        interface_ids=tuple(interfaces),
        created=call.now,
        tags=_tags(params.get("Tags", ())),
    )
    call.tx.put(endpoint)
    return {"ResolverEndpoint": _endpoint_shape(call, endpoint)}


def _subnet(call: Call, subnet_id: str) -> Subnet:
    found = call.tx.get(Subnet, subnet_id)
    if found is None or hidden(call.tx, found):
        raise _invalid(f"The subnet ID '{subnet_id}' does not exist")
    return found


@operation("route53resolver", "GetResolverEndpoint", resources=_of_endpoint, context=_tag_keys)
def get_resolver_endpoint(call: Call, params: Params) -> Params:
    endpoint = _endpoint(call.tx, params["ResolverEndpointId"])
    return {"ResolverEndpoint": _endpoint_shape(call, endpoint)}


@operation("route53resolver", "ListResolverEndpoints", resources=_of_endpoint, context=_tag_keys)
def list_resolver_endpoints(call: Call, params: Params) -> Params:
    found = call.tx.all(ResolverEndpoint)
    return _listed(
        call,
        params,
        "ResolverEndpoints",
        found,
        lambda one: one.endpoint_id,
        _endpoint_shape,
        _ENDPOINT_FILTERS,
    )


@operation("route53resolver", "ListResolverEndpointIpAddresses", resources=_of_endpoint, context=_tag_keys)
def list_resolver_endpoint_ip_addresses(call: Call, params: Params) -> Params:
    endpoint = _endpoint(call.tx, params["ResolverEndpointId"])
    status = "ATTACHED" if _is_held(call, endpoint) else "ATTACHING"

    def shape(call: Call, interface: NetworkInterface) -> Params:
        return {
            "IpId": interface.interface_id.replace("eni-", "rni-"),
            "SubnetId": interface.subnet_id,
            "Ip": interface.addresses[0].address,
            "Status": status,
            "StatusMessage": "This IP address is operational." if status == "ATTACHED" else "",
            "CreationTime": _time(endpoint.created),
            "ModificationTime": _time(endpoint.created),
        }

    found = (call.tx.get(NetworkInterface, each) for each in endpoint.interface_ids)
    held = [interface for interface in found if interface is not None]
    return _listed(call, params, "IpAddresses", held, lambda one: one.interface_id, shape, {})


@operation("route53resolver", "DeleteResolverEndpoint", resources=_of_endpoint, context=_tag_keys)
def delete_resolver_endpoint(call: Call, params: Params) -> Params:
    """Not while rules use it."""
    endpoint = _endpoint(call.tx, params["ResolverEndpointId"])
    users = [rule.rule_id for rule in call.tx.where(ResolverRule, endpoint_id=endpoint.endpoint_id)]
    if users:
        raise AwsError(
            "InvalidRequestException",
            f"The Resolver endpoint {endpoint.endpoint_id} cannot be deleted: it is used by the rules "
            f"{', '.join(users)}.",
        )
    shape = _endpoint_shape(call, endpoint)
    for interface_id in endpoint.interface_ids:
        release(call.tx, interface_id)
    call.tx.delete(ResolverEndpoint, endpoint.endpoint_id)
    return {"ResolverEndpoint": {**shape, "Status": "DELETING"}}


# Rules


def _rule_arn(call: Call, number: str) -> str:
    return call.arn("route53resolver", f"resolver-rule/{number}")


def _of_rule(call: Call, params: Params) -> list[str]:
    return [_rule_arn(call, params.get("ResolverRuleId") or "*")]


def _rule(world: World, number: str) -> ResolverRule:
    found = world.get(ResolverRule, number)
    if found is None:
        raise _unknown("rule", number)
    return found


def _rule_shape(call: Call, rule: ResolverRule) -> Params:
    shape: Params = {
        "Id": rule.rule_id,
        "CreatorRequestId": rule.creator_request_id,
        "Arn": _rule_arn(call, rule.rule_id),
        "DomainName": f"{rule.domain}.",
        "Status": "COMPLETE",
        "StatusMessage": "",
        "RuleType": rule.kind,
        "Name": rule.name,
        "OwnerId": call.account,
        "ShareStatus": "NOT_SHARED",
        "CreationTime": _time(rule.created),
        "ModificationTime": _time(rule.modified),
    }
    if rule.kind == FORWARD:
        shape["TargetIps"] = [{"Ip": each, "Port": port, "Protocol": "Do53"} for each, port in rule.targets]
        shape["ResolverEndpointId"] = rule.endpoint_id
    return shape


_RULE_FILTERS: Filters[ResolverRule] = {
    "CreatorRequestId": lambda call, one: (one.creator_request_id,),
    "DomainName": lambda call, one: (f"{one.domain}.", one.domain),
    "Name": lambda call, one: (one.name,),
    "ResolverEndpointId": lambda call, one: (one.endpoint_id or "",),
    "Status": lambda call, one: ("COMPLETE",),
    "Type": lambda call, one: (one.kind,),
}


def _domain(text: str) -> str:
    """As it is kept. Raises InvalidParameterException."""
    domain = text.lower().removesuffix(".")
    if len(domain) > 253 or not (text == "." or all(_LABEL.fullmatch(each) for each in domain.split("."))):
        raise _invalid(f"The domain name {text!r} is invalid.")
    return domain


def _targets(given: Sequence[Params]) -> tuple[tuple[str, int], ...]:
    if not 1 <= len(given) <= TARGETS_PER_RULE:
        raise _invalid(
            f"A rule of the type FORWARD has 1 to {TARGETS_PER_RULE} target IPs, not {len(given)}."
        )
    for each in given:
        _refuse(each, Ipv6="", Protocol="Do53", ServerNameIndication="")
    with _of_ec2():
        return tuple(
            (str(addresses.parse_address(each.get("Ip", ""), "Ip")), each.get("Port") or DNS_PORT)
            for each in given
        )


@operation("route53resolver", "CreateResolverRule", resources=_of_rule, context=_tag_keys)
def create_resolver_rule(call: Call, params: Params) -> Params:
    kind = params["RuleType"]
    if kind not in (FORWARD, SYSTEM):
        raise _invalid(f"RuleType {kind} is not supported: Cloister does not implement it.")
    _refuse(params, DelegationRecord="")
    for known in call.tx.all(ResolverRule):
        if known.creator_request_id == params["CreatorRequestId"]:
            return {"ResolverRule": _rule_shape(call, known)}
    if call.tx.count(ResolverRule) >= RULES:
        raise AwsError("LimitExceededException", f"There are {RULES} Resolver rules already.")
    if not params.get("DomainName"):
        raise _invalid("DomainName is required.")
    if kind == SYSTEM and (params.get("TargetIps") or params.get("ResolverEndpointId")):
        raise _invalid("A rule of the type SYSTEM has neither TargetIps nor a ResolverEndpointId.")
    if kind == FORWARD and not params.get("ResolverEndpointId"):
        raise _invalid("A rule of the type FORWARD needs a ResolverEndpointId.")
    endpoint = _endpoint(call.tx, params["ResolverEndpointId"]) if kind == FORWARD else None
    rule = ResolverRule(
        rule_id=resource_id("rslvr-rr"),
        creator_request_id=params["CreatorRequestId"],
        kind=kind,
        domain=_domain(params["DomainName"]),
        name=params.get("Name", ""),
        targets=_targets(params.get("TargetIps", ())) if endpoint else (),
        endpoint_id=endpoint.endpoint_id if endpoint else None,
        created=call.now,
        modified=call.now,
        tags=_tags(params.get("Tags", ())),
    )
    call.tx.put(rule)
    return {"ResolverRule": _rule_shape(call, rule)}


@operation("route53resolver", "GetResolverRule", resources=_of_rule, context=_tag_keys)
def get_resolver_rule(call: Call, params: Params) -> Params:
    return {"ResolverRule": _rule_shape(call, _rule(call.tx, params["ResolverRuleId"]))}


@operation("route53resolver", "ListResolverRules", resources=_of_rule, context=_tag_keys)
def list_resolver_rules(call: Call, params: Params) -> Params:
    found = call.tx.all(ResolverRule)
    return _listed(call, params, "ResolverRules", found, lambda one: one.rule_id, _rule_shape, _RULE_FILTERS)


@operation("route53resolver", "UpdateResolverRule", resources=_of_rule, context=_tag_keys)
def update_resolver_rule(call: Call, params: Params) -> Params:
    rule, config = _rule(call.tx, params["ResolverRuleId"]), params["Config"]
    if rule.kind == SYSTEM and (config.get("TargetIps") or config.get("ResolverEndpointId")):
        raise _invalid("A rule of the type SYSTEM has neither TargetIps nor a ResolverEndpointId.")
    if config.get("ResolverEndpointId"):
        rule = replace(rule, endpoint_id=_endpoint(call.tx, config["ResolverEndpointId"]).endpoint_id)
    if "TargetIps" in config:
        rule = replace(rule, targets=_targets(config["TargetIps"]))
    rule = replace(rule, name=config.get("Name", rule.name), modified=call.now)
    call.tx.put(rule)
    return {"ResolverRule": _rule_shape(call, rule)}


@operation("route53resolver", "DeleteResolverRule", resources=_of_rule, context=_tag_keys)
def delete_resolver_rule(call: Call, params: Params) -> Params:
    """Not while it is associated with a VPC."""
    rule = _rule(call.tx, params["ResolverRuleId"])
    held = [each.vpc_id for each in call.tx.where(ResolverRuleAssociation, rule_id=rule.rule_id)]
    if held:
        raise AwsError(
            "ResourceInUseException",
            f"Please disassociate this resolver rule from VPC first before deleting: {', '.join(held)}",
        )
    call.tx.delete(ResolverRule, rule.rule_id)
    return {"ResolverRule": {**_rule_shape(call, rule), "Status": "DELETING"}}


# Rules and VPCs


def _association_shape(call: Call, association: ResolverRuleAssociation) -> Params:
    rule = call.tx.get(ResolverRule, association.rule_id)
    bad = rule is not None and rule.kind == FORWARD and not sources(call.tx, rule)
    return {
        "Id": association.association_id,
        "ResolverRuleId": association.rule_id,
        "Name": association.name,
        "VPCId": association.vpc_id,
        "Status": "FAILED" if bad else "COMPLETE",
        "StatusMessage": "",
    }


_ASSOCIATION_FILTERS: Filters[ResolverRuleAssociation] = {
    "Name": lambda call, one: (one.name,),
    "ResolverRuleId": lambda call, one: (one.rule_id,),
    "Status": lambda call, one: (_association_shape(call, one)["Status"],),
    "VPCId": lambda call, one: (one.vpc_id,),
}


@operation("route53resolver", "AssociateResolverRule", resources=_of_rule, context=_tag_keys)
def associate_resolver_rule(call: Call, params: Params) -> Params:
    """AWS: one rule for a domain in a VPC."""
    rule = _rule(call.tx, params["ResolverRuleId"])
    vpc = call.tx.get(Vpc, params["VPCId"])
    if vpc is None or hidden(call.tx, vpc):
        raise _invalid(f"The vpc ID '{params['VPCId']}' does not exist")
    for known in call.tx.where(ResolverRuleAssociation, vpc_id=vpc.vpc_id):
        other = call.tx.get(ResolverRule, known.rule_id)
        if other is not None and other.domain == rule.domain:
            raise AwsError(
                "ResourceExistsException",
                f"The VPC {vpc.vpc_id} has a rule for '{rule.domain}.' already, {other.rule_id}.",
            )
    made = ResolverRuleAssociation(
        association_id=resource_id("rslvr-rrassoc"),
        rule_id=rule.rule_id,
        vpc_id=vpc.vpc_id,
        name=params.get("Name", ""),
    )
    call.tx.put(made)
    return {"ResolverRuleAssociation": _association_shape(call, made)}


@operation("route53resolver", "DisassociateResolverRule", resources=_of_rule, context=_tag_keys)
def disassociate_resolver_rule(call: Call, params: Params) -> Params:
    rule_id, vpc_id = params["ResolverRuleId"], params["VPCId"]
    for known in call.tx.where(ResolverRuleAssociation, rule_id=rule_id):
        if known.vpc_id == vpc_id:
            shape = _association_shape(call, known)
            call.tx.delete(ResolverRuleAssociation, known.association_id)
            return {"ResolverRuleAssociation": {**shape, "Status": "DELETING"}}
    raise AwsError(
        "ResourceNotFoundException",
        f"Resolver rule with ID '{rule_id}' is not associated with VPC ID '{vpc_id}'.",
    )


@operation("route53resolver", "GetResolverRuleAssociation")
def get_resolver_rule_association(call: Call, params: Params) -> Params:
    number = params["ResolverRuleAssociationId"]
    found = call.tx.get(ResolverRuleAssociation, number)
    if found is None:
        raise _unknown("rule association", number)
    return {"ResolverRuleAssociation": _association_shape(call, found)}


@operation("route53resolver", "ListResolverRuleAssociations")
def list_resolver_rule_associations(call: Call, params: Params) -> Params:
    found = call.tx.all(ResolverRuleAssociation)
    return _listed(
        call,
        params,
        "ResolverRuleAssociations",
        found,
        lambda one: one.association_id,
        _association_shape,
        _ASSOCIATION_FILTERS,
    )


# Tags


def _tagged(call: Call, arn: str) -> ResolverEndpoint | ResolverRule:
    found = _with_arn(call, arn)
    if found is None:
        raise AwsError("ResourceNotFoundException", f"The resource '{arn}' does not exist.")
    return found


def _with_arn(call: Call, arn: str | None) -> ResolverEndpoint | ResolverRule | None:
    for endpoint in call.tx.all(ResolverEndpoint):
        if arn == _endpoint_arn(call, endpoint.endpoint_id):
            return endpoint
    for rule in call.tx.all(ResolverRule):
        if arn == _rule_arn(call, rule.rule_id):
            return rule
    return None


def _of_arn(call: Call, params: Params) -> list[str]:
    return [params["ResourceArn"]]


@operation("route53resolver", "TagResource", resources=_of_arn, context=_tag_keys)
def tag_resource(call: Call, params: Params) -> Params:
    found = _tagged(call, params["ResourceArn"])
    tags = {**found.tags, **_tags(params["Tags"])}
    if len(tags) > TAGS_PER_RESOURCE:
        raise AwsError("LimitExceededException", f"{len(tags)} tags; the limit is {TAGS_PER_RESOURCE}.")
    call.tx.put(replace(found, tags=tags))
    return {}


@operation("route53resolver", "UntagResource", resources=_of_arn, context=_tag_keys)
def untag_resource(call: Call, params: Params) -> Params:
    found = _tagged(call, params["ResourceArn"])
    kept = {key: value for key, value in found.tags.items() if key not in params["TagKeys"]}
    call.tx.put(replace(found, tags=kept))
    return {}


@operation("route53resolver", "ListTagsForResource", resources=_of_arn, context=_tag_keys)
def list_tags_for_resource(call: Call, params: Params) -> Params:
    tags = _tagged(call, params["ResourceArn"]).tags
    return _listed(
        call,
        {**params, "MaxResults": 100} if "MaxResults" not in params else params,
        "Tags",
        tags.items(),
        lambda one: one[0],
        lambda call, one: {"Key": one[0], "Value": one[1]},
        {},
    )
