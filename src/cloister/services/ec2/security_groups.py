"""Security groups. Their rules are in security_group_rules.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, paginate, tag_set
from cloister.services.ec2.parameters import exclusive, on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import vpc_or_default
from cloister.vpc import gateways
from cloister.vpc.model import GroupRule, NetworkInterface, SecurityGroup, Vpc, VpcPeering
from cloister.wire.errors import AwsError
from cloister.world import World

#: AWS, CreateSecurityGroup: what a name or a description in a VPC may hold
_TEXT = re.compile(r"[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}")
_CHARACTERS = "a-z, A-Z, 0-9, spaces, and ._-:/()#,@[]+=&;{}!$*"


def check_text(text: str, what: str, *, may_be_empty: bool = False) -> None:
    """A group's name, its description or a rule's. Raises InvalidParameterValue."""
    if not (_TEXT.fullmatch(text) or (may_be_empty and not text)):
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({text}) for parameter {what} is invalid. "
            f"Up to 255 characters are allowed: {_CHARACTERS}.",
        )


def group_arn(call: Call, group: SecurityGroup) -> str:
    return call.arn("ec2", f"security-group/{group.group_id}")


def _shape(call: Call, group: SecurityGroup) -> Params:
    return {
        "GroupId": group.group_id,
        "GroupName": group.name,
        "Description": group.description,
        "OwnerId": call.account,
        "VpcId": group.vpc_id,
        "SecurityGroupArn": group_arn(call, group),
        "IpPermissions": permissions(call, group, (one for one in group.rules if not one.egress)),
        "IpPermissionsEgress": permissions(call, group, (one for one in group.rules if one.egress)),
        "Tags": tag_set(group.tags),
    }


def referenced(call: Call, group: SecurityGroup, group_id: str) -> Params:
    """Whose group a rule of `group` names; in another VPC, also by which peering."""
    other = call.tx.get(SecurityGroup, group_id)
    shape: Params = {"UserId": call.account, "GroupId": group_id}
    if other is None or other.vpc_id == group.vpc_id:
        return shape
    shape["VpcId"] = other.vpc_id
    peering = peering_between(call.tx, group.vpc_id, other.vpc_id)
    if peering is not None:
        shape |= {"VpcPeeringConnectionId": peering.peering_id, "PeeringStatus": peering.status}
    return shape


def peering_between(world: World, vpc_id: str, other: str) -> VpcPeering | None:
    """The connection of two VPCs: an active one, else the last there was."""
    found = [
        *world.where(VpcPeering, requester_vpc_id=vpc_id),
        *world.where(VpcPeering, accepter_vpc_id=vpc_id),
    ]
    between = [peering for peering in found if peering.other(vpc_id) == other]
    return max(between, key=lambda peering: (peering.status == "active", peering.changed), default=None)


def permissions(call: Call, group: SecurityGroup, rules: Iterable[GroupRule]) -> list[Params]:
    """Rules of a group as IpPermissions: those of one protocol and port range are one permission."""
    found: dict[tuple[str, int | None, int | None], Params] = {}
    for rule in rules:
        key = (rule.protocol, rule.from_port, rule.to_port)
        permission = found.get(key)
        if permission is None:
            permission = {
                "IpProtocol": rule.protocol,
                "IpRanges": [],
                "Ipv6Ranges": [],
                "PrefixListIds": [],
                "UserIdGroupPairs": [],
            }
            if rule.from_port is not None:
                permission |= {"FromPort": rule.from_port, "ToPort": rule.to_port}
            found[key] = permission
        note = {} if rule.description is None else {"Description": rule.description}
        if rule.cidr is not None:
            permission["IpRanges"].append({"CidrIp": rule.cidr, **note})
        elif rule.group_id is not None:
            permission["UserIdGroupPairs"].append({**referenced(call, group, rule.group_id), **note})
        else:
            permission["PrefixListIds"].append({"PrefixListId": rule.prefix_list_id, **note})
    return list(found.values())


def _of_rules(
    egress: bool, value: Callable[[Call, GroupRule], str | int | None]
) -> Callable[[Call, SecurityGroup], list[str | int | None]]:
    return lambda call, group: [value(call, rule) for rule in group.rules if rule.egress is egress]


def _name_of(world: World, group_id: str | None) -> str | None:
    group = world.get(SecurityGroup, group_id)
    return group.name if group else None


_RULE_FILTERS: dict[str, Callable[[Call, GroupRule], str | int | None]] = {
    "ip-permission.cidr": lambda call, rule: rule.cidr,
    "ip-permission.from-port": lambda call, rule: rule.from_port,
    "ip-permission.to-port": lambda call, rule: rule.to_port,
    "ip-permission.group-id": lambda call, rule: rule.group_id,
    "ip-permission.group-name": lambda call, rule: _name_of(call.tx, rule.group_id),
    "ip-permission.ipv6-cidr": lambda call, rule: None,
    "ip-permission.prefix-list-id": lambda call, rule: rule.prefix_list_id,
    "ip-permission.protocol": lambda call, rule: rule.protocol,
    "ip-permission.user-id": lambda call, rule: call.account if rule.group_id else None,
}

GROUPS: Resource[SecurityGroup] = Resource(
    result="SecurityGroups",
    ids="GroupIds",
    key=lambda group: group.group_id,
    all=lambda world: world.all(SecurityGroup),
    get=lambda world, group_id: world.get(SecurityGroup, group_id),
    shape=_shape,
    prefix="sg",
    not_found="InvalidGroup.NotFound",
    malformed="InvalidGroupId.Malformed",
    missing="The security group '{}' does not exist",
    filters={
        "description": lambda call, group: group.description,
        "group-id": lambda call, group: group.group_id,
        "group-name": lambda call, group: group.name,
        "owner-id": lambda call, group: call.account,
        "vpc-id": lambda call, group: group.vpc_id,
        **{name: _of_rules(False, value) for name, value in _RULE_FILTERS.items()},
        **{f"egress.{name}": _of_rules(True, value) for name, value in _RULE_FILTERS.items()},
    },
)


def group_named(world: World, name: str) -> SecurityGroup:
    """A group of the default VPC by its name: names alone mean nothing elsewhere."""
    for vpc in world.all(Vpc):
        if vpc.is_default:
            for group in world.where(SecurityGroup, vpc_id=vpc.vpc_id):
                if group.name.lower() == name.lower():
                    return group
    raise AwsError("InvalidGroup.NotFound", f"The security group '{name}' does not exist in default VPC")


def group_of(call: Call, params: Params) -> SecurityGroup:
    """The group that GroupId or GroupName names. Raises InvalidGroup.NotFound, MissingParameter."""
    if params.get("GroupId"):
        return GROUPS.find(call.tx, params["GroupId"])
    if params.get("GroupName"):
        return group_named(call.tx, params["GroupName"])
    raise AwsError("MissingParameter", "The request must contain the parameter GroupName or GroupId")


def on_group(call: Call, params: Params) -> list[str]:
    """The ARN of the group that GroupId or GroupName names, so that a policy about the group holds
    however it is named."""
    group_id = params.get("GroupId")
    if not group_id and params.get("GroupName"):
        try:
            group_id = group_named(call.tx, params["GroupName"]).group_id
        except AwsError:
            group_id = None
    return [call.arn("ec2", f"security-group/{group_id or '*'}")]


def _on_vpc(call: Call, params: Params) -> list[str]:
    defaults = [vpc.vpc_id for vpc in call.tx.all(Vpc) if vpc.is_default]
    vpc_id = params.get("VpcId") or next(iter(defaults), "*")
    return [call.arn("ec2", "security-group/*"), call.arn("ec2", f"vpc/{vpc_id}")]


@operation("ec2", "CreateSecurityGroup", resources=_on_vpc)
def create_security_group(call: Call, params: Params) -> Params:
    only(params, "GroupName", "Description", "VpcId", "TagSpecifications")
    require(params, "GroupName", "Description")
    # AWS: spaces at a name's end are trimmed; "names are case-insensitive and must be unique within the VPC"
    name, description = params["GroupName"].rstrip(" "), params["Description"]
    check_text(name, "groupName")
    check_text(description, "groupDescription")
    if name.lower().startswith("sg-"):
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({name}) for parameter groupName is invalid. Group names may not be in the format sg-*.",
        )
    if name == "default":
        raise AwsError("InvalidParameterValue", "Cannot use reserved security group name: default")
    vpc = vpc_or_default(call, params.get("VpcId"))
    same = call.tx.where(SecurityGroup, folded_name=name.lower())
    if any(group.vpc_id == vpc.vpc_id for group in same):
        raise AwsError(
            "InvalidGroup.Duplicate",
            f"The security group '{name}' already exists for VPC '{vpc.vpc_id}'",
        )
    group = SecurityGroup(
        group_id=resource_id("sg"),
        vpc_id=vpc.vpc_id,
        name=name,
        description=description,
        # AWS: a new group lets everything out and nothing in
        rules=(GroupRule(rule_id=resource_id("sgr"), egress=True, protocol="-1", cidr="0.0.0.0/0"),),
        tags=tag_specifications(params, "security-group"),
    )
    call.tx.put(group)
    return {
        "GroupId": group.group_id,
        "SecurityGroupArn": group_arn(call, group),
        "Tags": tag_set(group.tags),
    }


@operation("ec2", "DescribeSecurityGroups")
def describe_security_groups(call: Call, params: Params) -> Params:
    names = params.get("GroupNames", ())
    if not names:
        return GROUPS.describe(call, params)
    exclusive(params, "GroupNames", "MaxResults")
    chosen = {group.group_id: group for group in (group_named(call.tx, name) for name in names)}
    chosen |= {one: GROUPS.find(call.tx, one) for one in params.get("GroupIds", ())}
    rest = {name: value for name, value in params.items() if name != "GroupIds"}
    return GROUPS.describe(call, rest, among=chosen.values())


@operation("ec2", "DeleteSecurityGroup", resources=on_group)
def delete_security_group(call: Call, params: Params) -> Params:
    group = group_of(call, params)
    if group.name == "default":
        raise AwsError(
            "CannotDelete",
            f'the specified group: "{group.group_id}" name: "default" cannot be deleted by a user',
        )
    used = any(call.tx.where(NetworkInterface, group_ids=group.group_id))
    if used or any(_refer_to(group, call.tx)):
        raise AwsError("DependencyViolation", f"resource {group.group_id} has a dependent object")
    call.tx.delete(SecurityGroup, group.group_id)
    return {"Return": True, "GroupId": group.group_id}


def _refer_to(group: SecurityGroup, world: World) -> Iterable[SecurityGroup]:
    """The other groups of its VPC with a rule that names this one. AWS: a rule of a peer's group does not
    keep it, and is stale afterwards."""
    for other in world.where(SecurityGroup, vpc_id=group.vpc_id):
        if other != group and any(rule.group_id == group.group_id for rule in other.rules):
            yield other


@operation("ec2", "DescribeSecurityGroupReferences")
def describe_security_group_references(call: Call, params: Params) -> Params:
    """The VPCs on the other side of an active peering whose groups name one of these."""
    found: list[Params] = []
    for group_id in dict.fromkeys(params.get("GroupId", ())):
        group = GROUPS.find(call.tx, group_id)
        for peering in gateways.peerings(call.tx, group.vpc_id):
            peer = peering.other(group.vpc_id)
            others = call.tx.where(SecurityGroup, vpc_id=peer)
            if any(rule.group_id == group_id for other in others for rule in other.rules):
                found.append(
                    {
                        "GroupId": group_id,
                        "ReferencingVpcId": peer,
                        "VpcPeeringConnectionId": peering.peering_id,
                    }
                )
    return {"SecurityGroupReferenceSet": found}


@operation("ec2", "DescribeStaleSecurityGroups", resources=on(vpc="VpcId"))
def describe_stale_security_groups(call: Call, params: Params) -> Params:
    """Groups with rules that name a group which is gone, or is in a VPC that is no active peer any more."""
    vpc = vpc_or_default(call, params["VpcId"])
    stale = [group for group in call.tx.where(SecurityGroup, vpc_id=vpc.vpc_id) if _stale(call.tx, group)]
    page, token = paginate(stale, GROUPS.key, params, 5, 1000, scope="StaleSecurityGroupSet")
    response: Params = {"StaleSecurityGroupSet": [_stale_shape(call, group) for group in page]}
    return response | ({"NextToken": token} if token else {})


def _stale(world: World, group: SecurityGroup) -> list[GroupRule]:
    reachable = gateways.reach(world, group.vpc_id)

    def is_stale(rule: GroupRule) -> bool:
        other = world.get(SecurityGroup, rule.group_id)
        return rule.group_id is not None and (other is None or other.vpc_id not in reachable)

    return [rule for rule in group.rules if is_stale(rule)]


def _stale_shape(call: Call, group: SecurityGroup) -> Params:
    def shown(egress: bool) -> list[Params]:
        rules = [rule for rule in _stale(call.tx, group) if rule.egress is egress]
        dropped = ("Ipv6Ranges", "IpRanges", "PrefixListIds")
        found = permissions(call, group, rules)
        return [{name: value for name, value in one.items() if name not in dropped} for one in found]

    return {
        "GroupId": group.group_id,
        "GroupName": group.name,
        "Description": group.description,
        "VpcId": group.vpc_id,
        "StaleIpPermissions": shown(False),
        "StaleIpPermissionsEgress": shown(True),
    }
