"""Security group rules: authorised, revoked, changed, described.

A request names rules as IpPermissions (or in the old flat parameters) or by their ids. Both directions do
the same with another flag, so each operation is one function and two registrations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.parameters import only, require
from cloister.services.ec2.security_groups import (
    GROUPS,
    check_text,
    group_named,
    group_of,
    on_group,
    permissions,
    referenced,
)
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc import addresses, gateways
from cloister.vpc.endpoints import prefix_list
from cloister.vpc.model import GroupRule, SecurityGroup, Vpc
from cloister.wire.errors import AwsError
from cloister.world import World

#: AWS's default quota, in each direction; `limits["rules_per_security_group"]` of the daemon raises it
RULES_PER_GROUP = 60
_NUMBERS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6"}
_RANGE = ("IpProtocol", "FromPort", "ToPort")
_FLAT = ("CidrIp", *_RANGE, "SourceSecurityGroupName", "SourceSecurityGroupOwnerId")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A rule with the group it is in."""

    group: SecurityGroup
    rule: GroupRule

    @property
    def vpc_id(self) -> str:
        return self.group.vpc_id

    @property
    def tags(self) -> dict[str, str]:
        return self.rule.tags


def _ports(rule: GroupRule) -> Params:
    # AWS shows -1 for "all" in SecurityGroupRule, and nothing in IpPermission.
    from_port, to_port = rule.from_port, rule.to_port
    return {"FromPort": -1 if from_port is None else from_port, "ToPort": -1 if to_port is None else to_port}


def _common(group: SecurityGroup, rule: GroupRule) -> Params:
    shape: Params = {
        "SecurityGroupRuleId": rule.rule_id,
        "GroupId": group.group_id,
        "IsEgress": rule.egress,
        "IpProtocol": rule.protocol,
        **_ports(rule),
    }
    if rule.cidr is not None:
        shape["CidrIpv4"] = rule.cidr
    if rule.prefix_list_id is not None:
        shape["PrefixListId"] = rule.prefix_list_id
    if rule.description is not None:
        shape["Description"] = rule.description
    return shape


def _shape(call: Call, one: _Rule) -> Params:
    shape = _common(one.group, one.rule) | {
        "GroupOwnerId": call.account,
        "SecurityGroupRuleArn": call.arn("ec2", f"security-group-rule/{one.rule.rule_id}"),
        "Tags": tag_set(one.rule.tags),
    }
    if one.rule.group_id is not None:
        named = referenced(call, one.group, one.rule.group_id)
        shape["ReferencedGroupInfo"] = {"VpcId": one.group.vpc_id, **named}
    return shape


def _all_rules(world: World) -> Iterator[_Rule]:
    for group in world.all(SecurityGroup):
        for rule in group.rules:
            yield _Rule(group=group, rule=rule)


def _get_rule(world: World, rule_id: str) -> _Rule | None:
    return next((one for one in _all_rules(world) if one.rule.rule_id == rule_id), None)


RULES: Resource[_Rule] = Resource(
    result="SecurityGroupRules",
    ids="SecurityGroupRuleIds",
    key=lambda one: one.rule.rule_id,
    all=_all_rules,
    get=_get_rule,
    shape=_shape,
    prefix="sgr",
    not_found="InvalidSecurityGroupRuleId.NotFound",
    malformed="InvalidSecurityGroupRuleId.Malformed",
    missing="The security group rule ID '{}' does not exist",
    filters={
        "group-id": lambda call, one: one.group.group_id,
        "security-group-rule-id": lambda call, one: one.rule.rule_id,
    },
)


@operation("ec2", "DescribeSecurityGroupRules")
def describe_security_group_rules(call: Call, params: Params) -> Params:
    return RULES.describe(call, params)


# What a request asks for


def _wanted(call: Call, group: SecurityGroup, params: Params, *, egress: bool) -> list[GroupRule]:
    """The rules that a request's permissions mean, without ids. Raises InvalidParameterValue,
    InvalidParameterCombination, MissingParameter, InvalidGroup.NotFound, InvalidPrefixListID.NotFound."""
    given = params.get("IpPermissions")
    flat = [name for name in _FLAT if params.get(name) not in (None, "")]
    if given and flat:
        raise AwsError(
            "InvalidParameterCombination",
            f"The parameter ipPermissions cannot be used with the parameter {flat[0]}",
        )
    if flat:
        given = [_flat_permission(params)]
    if not given:
        raise AwsError("MissingParameter", "The request must contain the parameter ipPermissions")
    rules = [rule for one in given for rule in _rules_of(call, group, one, egress=egress)]
    if len({_content(rule) for rule in rules}) < len(rules):
        raise AwsError("InvalidParameterValue", "The same permission must not appear multiple times")
    return rules


def _flat_permission(params: Params) -> Params:
    permission: Params = {name: params[name] for name in _RANGE if name in params}
    if params.get("SourceSecurityGroupName"):
        pair = {"GroupName": params["SourceSecurityGroupName"]}
        if params.get("SourceSecurityGroupOwnerId"):
            pair["UserId"] = params["SourceSecurityGroupOwnerId"]
        permission["UserIdGroupPairs"] = [pair]
        # AWS: a source group without a protocol opens everything to it.
        permission.setdefault("IpProtocol", "-1")
    if params.get("CidrIp"):
        permission["IpRanges"] = [{"CidrIp": params["CidrIp"]}]
    return permission


def _rules_of(call: Call, group: SecurityGroup, given: Params, *, egress: bool) -> Iterator[GroupRule]:
    protocol = _protocol(given.get("IpProtocol"))
    if given.get("Ipv6Ranges"):
        raise AwsError(
            "UnsupportedOperation",
            "The parameter Ipv6Ranges is not supported: Cloister does not implement IPv6.",
        )
    low, high = _range(protocol, given.get("FromPort"), given.get("ToPort"))
    sources: list[tuple[dict[str, Any], Params]] = []
    for one in given.get("IpRanges", ()):
        sources.append(({"cidr": _cidr(one.get("CidrIp", ""))}, one))
    for one in given.get("UserIdGroupPairs", ()):
        sources.append(({"group_id": _referenced(call, group, one)}, one))
    for one in given.get("PrefixListIds", ()):
        sources.append(({"prefix_list_id": _list_id(call.tx, one.get("PrefixListId", ""))}, one))
    if not sources:
        raise AwsError(
            "MissingParameter",
            f"The permission for protocol '{protocol}' names no IP range, security group or prefix list",
        )
    for source, one in sources:
        description = one.get("Description")
        if description is not None:
            check_text(description, "description", may_be_empty=True)
        yield GroupRule(
            rule_id="",
            egress=egress,
            protocol=protocol,
            from_port=low,
            to_port=high,
            description=description or None,
            **source,
        )


def _protocol(text: str | None) -> str:
    if text is None or text == "":
        raise AwsError("MissingParameter", "The request must contain the parameter ipProtocol")
    protocol = _NUMBERS.get(text, text.lower())
    if protocol == "icmpv6":
        raise AwsError(
            "UnsupportedOperation",
            f"The protocol '{text}' is not supported: Cloister does not implement IPv6.",
        )
    known = protocol in ("-1", "tcp", "udp", "icmp")
    if not known and not (protocol.isascii() and protocol.isdigit() and int(protocol) <= 255):
        raise AwsError("InvalidParameterValue", f"Invalid value '{text}' for IP protocol. Unknown protocol.")
    return protocol if known else str(int(protocol))


def _range(protocol: str, low: int | None, high: int | None) -> tuple[int | None, int | None]:
    """AWS, IpPermission: ports for tcp and udp, type and code for icmp; ignored for others."""
    if protocol in ("tcp", "udp"):
        if low is None or high is None:
            raise AwsError(
                "InvalidParameterValue",
                "Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.",
            )
        for port in (low, high):
            if not 0 <= port <= 65535:
                raise AwsError("InvalidParameterValue", f"TCP/UDP port ({port}) out of range")
        if low > high:
            raise AwsError(
                "InvalidParameterValue", f"Invalid {protocol.upper()} port range: from {low} to {high}."
            )
        return low, high
    if protocol == "icmp":
        low, high = -1 if low is None else low, -1 if high is None else high
        if not -1 <= low <= 255 or not -1 <= high <= 255:
            raise AwsError("InvalidParameterValue", f"ICMP type ({low}) or code ({high}) out of range")
        if low == -1 and high != -1:
            raise AwsError("InvalidParameterValue", f"ICMP code ({high}) cannot be given for all types (-1)")
        return low, high
    return None, None


def _cidr(text: str) -> str:
    try:
        return str(addresses.parse_cidr(text))
    except AwsError:
        raise AwsError("InvalidParameterValue", f"CIDR block {text} is malformed") from None


def _referenced(call: Call, group: SecurityGroup, pair: Params) -> str:
    name, group_id = pair.get("GroupName"), pair.get("GroupId")
    if pair.get("UserId", call.account) != call.account:
        raise AwsError("InvalidGroup.NotFound", f"The security group '{group_id or name}' does not exist")
    if group_id and any(rule.group_id == group_id for rule in group.rules):
        return str(group_id)  # a stale rule can still be named, to be revoked
    if group_id:
        other = GROUPS.find(call.tx, group_id)
    elif name:
        other = group_named(call.tx, name)
    else:
        raise AwsError("MissingParameter", "The request must contain the parameter GroupName or GroupId")
    if pair.get("VpcId", other.vpc_id) != other.vpc_id or not _reaches(call, group, other, pair):
        raise AwsError(
            "InvalidGroup.NotFound", "You have specified two resources that belong to different networks."
        )
    return other.group_id


def _check_not_stale(call: Call, group: SecurityGroup, rule: GroupRule) -> None:
    other = call.tx.get(SecurityGroup, rule.group_id)
    if rule.group_id and (other is None or other.vpc_id not in gateways.reach(call.tx, group.vpc_id)):
        raise AwsError("InvalidGroup.NotFound", f"The security group '{rule.group_id}' does not exist")


def _reaches(call: Call, group: SecurityGroup, other: SecurityGroup, pair: Params) -> bool:
    """AWS: a rule names a group of its own VPC, or of a VPC that an active peering joins with it."""
    wanted = pair.get("VpcPeeringConnectionId")
    if other.vpc_id == group.vpc_id:
        return not wanted
    return any(
        peering.other(group.vpc_id) == other.vpc_id and wanted in (None, "", peering.peering_id)
        for peering in gateways.peerings(call.tx, group.vpc_id)
    )


def _list_id(world: World, prefix_list_id: str) -> str:
    if prefix_list(world, prefix_list_id) is None:
        raise AwsError(
            "InvalidPrefixListID.NotFound", f"The prefix list ID '{prefix_list_id}' does not exist"
        )
    return prefix_list_id


def _content(rule: GroupRule) -> tuple[Any, ...]:
    """What makes two rules the same rule."""
    peer = (rule.cidr, rule.group_id, rule.prefix_list_id)
    return (rule.egress, rule.protocol, rule.from_port, rule.to_port, *peer)


def _sentence(rule: GroupRule) -> str:
    """A rule in the words of AWS's errors."""
    peer = rule.cidr or rule.group_id or rule.prefix_list_id
    if rule.protocol == "-1":
        return f"peer: {peer}, ALL, ALLOW"
    protocol = rule.protocol.upper()
    if rule.from_port is None:
        return f"peer: {peer}, {protocol}, ALLOW"
    if rule.protocol == "icmp":
        return f"peer: {peer}, ICMP, type: {rule.from_port}, code: {rule.to_port}, ALLOW"
    return f"peer: {peer}, {protocol}, from port: {rule.from_port}, to port: {rule.to_port}, ALLOW"


def check_limit(call: Call, group: SecurityGroup, *, egress: bool) -> None:
    """Raises RulesPerSecurityGroupLimitExceeded."""
    limit = call.deps.get("limits", {}).get("rules_per_security_group", RULES_PER_GROUP)
    count = sum(_weight(call.tx, rule) for rule in group.rules if rule.egress is egress)
    if count > limit:
        raise AwsError(
            "RulesPerSecurityGroupLimitExceeded",
            f"The maximum number of rules per security group has been reached: '{group.group_id}' would have "
            f"{count}, the limit is {limit}.",
        )


def _weight(world: World, rule: GroupRule) -> int:
    """AWS: a prefix list counts as its maximum number of entries."""
    if rule.prefix_list_id is None:
        return 1
    found = prefix_list(world, rule.prefix_list_id)
    return 1 if found is None else found.max_entries or len(found.entries)


# Operations


def _authorize(call: Call, params: Params, *, egress: bool) -> Params:
    group = group_of(call, params)
    tags = tag_specifications(params, "security-group-rule")
    there = {_content(rule) for rule in group.rules}
    added: list[GroupRule] = []
    for rule in _wanted(call, group, params, egress=egress):
        if _content(rule) in there:
            raise AwsError(
                "InvalidPermission.Duplicate", f'the specified rule "{_sentence(rule)}" already exists'
            )
        _check_not_stale(call, group, rule)
        added.append(replace(rule, rule_id=resource_id("sgr"), tags=tags))
    group = replace(group, rules=(*group.rules, *added))
    check_limit(call, group, egress=egress)
    call.tx.put(group)
    return {
        "Return": True,
        "SecurityGroupRules": [_shape(call, _Rule(group=group, rule=rule)) for rule in added],
    }


@operation("ec2", "AuthorizeSecurityGroupIngress", resources=on_group)
def authorize_security_group_ingress(call: Call, params: Params) -> Params:
    only(params, "GroupId", "GroupName", "IpPermissions", "TagSpecifications", *_FLAT)
    return _authorize(call, params, egress=False)


@operation("ec2", "AuthorizeSecurityGroupEgress", resources=on_group)
def authorize_security_group_egress(call: Call, params: Params) -> Params:
    """AWS takes no flat parameters here either."""
    only(params, "GroupId", "IpPermissions", "TagSpecifications")
    return _authorize(call, params, egress=True)


def _revoke(call: Call, params: Params, *, egress: bool) -> Params:
    """AWS: a permission that is not there is an error, in the default VPC an UnknownIpPermission."""
    group = group_of(call, params)
    ids = params.get("SecurityGroupRuleIds")
    unknown: list[GroupRule] = []
    if ids:
        if params.get("IpPermissions"):
            raise AwsError(
                "InvalidParameterCombination",
                "The parameter ipPermissions cannot be used with the parameter securityGroupRuleIds",
            )
        gone = {_own_rule(group, rule_id, egress=egress).rule_id for rule_id in ids}
    else:
        by_content = {_content(rule): rule.rule_id for rule in group.rules}
        wanted = _wanted(call, group, params, egress=egress)
        unknown = [rule for rule in wanted if _content(rule) not in by_content]
        if unknown and not _in_default_vpc(call, group):
            raise AwsError(
                "InvalidPermission.NotFound",
                "The specified rule does not exist in this security group: "
                f'"{_sentence(unknown[0])}" in {group.group_id}.',
            )
        gone = {by_content[_content(rule)] for rule in wanted if _content(rule) in by_content}
    revoked = [rule for rule in group.rules if rule.rule_id in gone]
    call.tx.put(replace(group, rules=tuple(rule for rule in group.rules if rule.rule_id not in gone)))
    return {
        "Return": True,
        "UnknownIpPermissions": permissions(call, group, unknown),
        "RevokedSecurityGroupRules": [
            _common(group, rule) | ({"ReferencedGroupId": rule.group_id} if rule.group_id else {})
            for rule in revoked
        ],
    }


def _in_default_vpc(call: Call, group: SecurityGroup) -> bool:
    vpc = call.tx.get(Vpc, group.vpc_id)
    return vpc is not None and vpc.is_default


def _own_rule(group: SecurityGroup, rule_id: str, *, egress: bool | None = None) -> GroupRule:
    for rule in group.rules:
        if rule.rule_id == rule_id and egress in (None, rule.egress):
            return rule
    raise AwsError(
        "InvalidSecurityGroupRuleId.NotFound", f"The security group rule ID '{rule_id}' does not exist"
    )


@operation("ec2", "RevokeSecurityGroupIngress", resources=on_group)
def revoke_security_group_ingress(call: Call, params: Params) -> Params:
    only(params, "GroupId", "GroupName", "IpPermissions", "SecurityGroupRuleIds", *_FLAT)
    return _revoke(call, params, egress=False)


@operation("ec2", "RevokeSecurityGroupEgress", resources=on_group)
def revoke_security_group_egress(call: Call, params: Params) -> Params:
    only(params, "GroupId", "IpPermissions", "SecurityGroupRuleIds")
    return _revoke(call, params, egress=True)


@operation("ec2", "ModifySecurityGroupRules", resources=on_group)
def modify_security_group_rules(call: Call, params: Params) -> Params:
    """Each rule named gets the content given, whole; its id, direction and tags stay."""
    group = GROUPS.find(call.tx, params["GroupId"])
    require(params, "SecurityGroupRules")
    changed: dict[str, GroupRule] = {}
    for update in params["SecurityGroupRules"]:
        old = _own_rule(group, update.get("SecurityGroupRuleId", ""))
        if old.rule_id in changed:
            raise AwsError(
                "InvalidParameterValue", f"The security group rule ID '{old.rule_id}' appears multiple times"
            )
        changed[old.rule_id] = _modified(call, group, old, update.get("SecurityGroupRule", {}))
    rules = tuple(changed.get(rule.rule_id, rule) for rule in group.rules)
    seen: set[tuple[Any, ...]] = set()
    for rule in rules:
        if _content(rule) in seen:
            raise AwsError(
                "InvalidPermission.Duplicate", f'the specified rule "{_sentence(rule)}" already exists'
            )
        seen.add(_content(rule))
    group = replace(group, rules=rules)
    check_limit(call, group, egress=False)
    check_limit(call, group, egress=True)
    call.tx.put(group)
    return {"Return": True}


def _modified(call: Call, group: SecurityGroup, old: GroupRule, given: Params) -> GroupRule:
    permission: Params = {name: given[name] for name in _RANGE if name in given}
    note = {"Description": given["Description"]} if "Description" in given else {}
    if given.get("CidrIpv6"):
        permission["Ipv6Ranges"] = [{"CidrIpv6": given["CidrIpv6"]}]
    if given.get("CidrIpv4"):
        permission["IpRanges"] = [{"CidrIp": given["CidrIpv4"], **note}]
    if given.get("PrefixListId"):
        permission["PrefixListIds"] = [{"PrefixListId": given["PrefixListId"], **note}]
    if given.get("ReferencedGroupId"):
        permission["UserIdGroupPairs"] = [{"GroupId": given["ReferencedGroupId"], **note}]
    rules = list(_rules_of(call, group, permission, egress=old.egress))
    if len(rules) != 1:
        raise AwsError(
            "InvalidParameterCombination",
            f"The rule '{old.rule_id}' must have exactly one of CidrIpv4, PrefixListId and ReferencedGroupId",
        )
    _check_not_stale(call, group, rules[0])
    return replace(rules[0], rule_id=old.rule_id, tags=old.tags)


def _describe_anew(call: Call, params: Params, *, egress: bool) -> Params:
    group = group_of(call, params)
    by_id = params.get("SecurityGroupRuleDescriptions")
    notes: dict[str, str | None] = {}
    if by_id and params.get("IpPermissions"):
        raise AwsError(
            "InvalidParameterCombination",
            "The parameter ipPermissions cannot be used with the parameter securityGroupRuleDescriptions",
        )
    for one in by_id or ():
        rule = _own_rule(group, one.get("SecurityGroupRuleId", ""), egress=egress)
        check_text(one.get("Description", ""), "description", may_be_empty=True)
        notes[rule.rule_id] = one.get("Description") or None
    if not by_id:
        there = {_content(rule): rule.rule_id for rule in group.rules}
        for rule in _wanted(call, group, params, egress=egress):
            if _content(rule) not in there:
                raise AwsError(
                    "InvalidPermission.NotFound",
                    "The specified rule does not exist in this security group: "
                    f'"{_sentence(rule)}" in {group.group_id}.',
                )
            notes[there[_content(rule)]] = rule.description
    rules = tuple(
        replace(rule, description=notes[rule.rule_id]) if rule.rule_id in notes else rule
        for rule in group.rules
    )
    call.tx.put(replace(group, rules=rules))
    return {"Return": True}


@operation("ec2", "UpdateSecurityGroupRuleDescriptionsIngress", resources=on_group)
def update_security_group_rule_descriptions_ingress(call: Call, params: Params) -> Params:
    return _describe_anew(call, params, egress=False)


@operation("ec2", "UpdateSecurityGroupRuleDescriptionsEgress", resources=on_group)
def update_security_group_rule_descriptions_egress(call: Call, params: Params) -> Params:
    return _describe_anew(call, params, egress=True)
