"""Network ACLs, their numbered entries, and which subnet has which."""

from __future__ import annotations

from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import echo, once
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.vpc import addresses
from cloister.vpc.model import AclEntry, NetworkAcl, Subnet
from cloister.wire.errors import AwsError
from cloister.world import World

#: AWS's default quota, in each direction
ENTRIES_PER_DIRECTION = 20
LAST_NUMBER = 32766
_NUMBERS = {"all": "-1", "icmp": "1", "tcp": "6", "udp": "17"}


def _entry(entry: AclEntry) -> Params:
    shape: Params = {
        "CidrBlock": entry.cidr,
        "Egress": entry.egress,
        "Protocol": entry.protocol,
        "RuleAction": "allow" if entry.allow else "deny",
        "RuleNumber": entry.number,
    }
    if entry.protocol == "1":
        shape["IcmpTypeCode"] = {"Type": entry.from_port, "Code": entry.to_port}
    elif entry.from_port is not None:
        shape["PortRange"] = {"From": entry.from_port, "To": entry.to_port}
    return shape


def _entries(acl: NetworkAcl) -> list[AclEntry]:
    """By direction and number, with the implicit denials (`*`) that AWS shows as 32767."""
    implicit = [
        AclEntry(number=LAST_NUMBER + 1, egress=egress, allow=False, cidr="0.0.0.0/0", protocol="-1")
        for egress in (True, False)
    ]
    return sorted([*acl.entries, *implicit], key=lambda entry: (not entry.egress, entry.number))


def _subnets(world: World, acl: NetworkAcl) -> list[Subnet]:
    return list(world.where(Subnet, network_acl_id=acl.network_acl_id))


def _shape(call: Call, acl: NetworkAcl) -> Params:
    return {
        "NetworkAclId": acl.network_acl_id,
        "VpcId": acl.vpc_id,
        "OwnerId": call.account,
        "IsDefault": acl.is_default,
        "Entries": [_entry(entry) for entry in _entries(acl)],
        "Associations": [
            {
                "NetworkAclAssociationId": subnet.network_acl_association_id,
                "NetworkAclId": acl.network_acl_id,
                "SubnetId": subnet.subnet_id,
            }
            for subnet in _subnets(call.tx, acl)
        ],
        "Tags": tag_set(acl.tags),
    }


ACLS: Resource[NetworkAcl] = Resource(
    result="NetworkAcls",
    ids="NetworkAclIds",
    key=lambda acl: acl.network_acl_id,
    all=lambda world: world.all(NetworkAcl),
    get=lambda world, acl_id: world.get(NetworkAcl, acl_id),
    shape=_shape,
    prefix="acl",
    not_found="InvalidNetworkAclID.NotFound",
    malformed="InvalidNetworkAclId.Malformed",
    missing="The networkAcl ID '{}' does not exist",
    filters={
        "association.association-id": lambda call, acl: [
            subnet.network_acl_association_id for subnet in _subnets(call.tx, acl)
        ],
        "association.network-acl-id": lambda call, acl: (
            acl.network_acl_id if _subnets(call.tx, acl) else None
        ),
        "association.subnet-id": lambda call, acl: [s.subnet_id for s in _subnets(call.tx, acl)],
        "default": lambda call, acl: acl.is_default,
        "entry.cidr": lambda call, acl: [entry.cidr for entry in _entries(acl)],
        "entry.egress": lambda call, acl: [entry.egress for entry in _entries(acl)],
        "entry.icmp.code": lambda call, acl: [e.to_port for e in acl.entries if e.protocol == "1"],
        "entry.icmp.type": lambda call, acl: [e.from_port for e in acl.entries if e.protocol == "1"],
        "entry.ipv6-cidr": lambda call, acl: None,
        "entry.port-range.from": lambda call, acl: [e.from_port for e in acl.entries if e.protocol != "1"],
        "entry.port-range.to": lambda call, acl: [e.to_port for e in acl.entries if e.protocol != "1"],
        "entry.protocol": lambda call, acl: [entry.protocol for entry in _entries(acl)],
        "entry.rule-action": lambda call, acl: [
            "allow" if entry.allow else "deny" for entry in _entries(acl)
        ],
        "entry.rule-number": lambda call, acl: [entry.number for entry in _entries(acl)],
        "network-acl-id": lambda call, acl: acl.network_acl_id,
        "owner-id": lambda call, acl: call.account,
        "vpc-id": lambda call, acl: acl.vpc_id,
    },
)


@operation("ec2", "CreateNetworkAcl", resources=on(network_acl="*", vpc="VpcId"))
def create_network_acl(call: Call, params: Params) -> Params:
    """A custom ACL denies everything until entries allow."""
    only(params, "VpcId", "TagSpecifications", "ClientToken")
    acl = once(call, "CreateNetworkAcl", params, ACLS, lambda: _make(call, params))
    return {"NetworkAcl": _shape(call, acl), **echo(params)}


def _make(call: Call, params: Params) -> NetworkAcl:
    vpc = VPCS.find(call.tx, params["VpcId"])
    acl = NetworkAcl(
        network_acl_id=resource_id("acl"),
        vpc_id=vpc.vpc_id,
        tags=tag_specifications(params, "network-acl"),
    )
    call.tx.put(acl)
    return acl


@operation("ec2", "DescribeNetworkAcls")
def describe_network_acls(call: Call, params: Params) -> Params:
    return ACLS.describe(call, params)


@operation("ec2", "DeleteNetworkAcl", resources=on(network_acl="NetworkAclId"))
def delete_network_acl(call: Call, params: Params) -> Params:
    acl = ACLS.find(call.tx, params["NetworkAclId"])
    if acl.is_default:
        raise AwsError("InvalidParameterValue", f"cannot delete default network ACL {acl.network_acl_id}")
    if _subnets(call.tx, acl):
        raise AwsError(
            "DependencyViolation",
            f"The networkAcl '{acl.network_acl_id}' has dependencies and cannot be deleted.",
        )
    call.tx.delete(NetworkAcl, acl.network_acl_id)
    return {}


def _of_association(call: Call, params: Params) -> list[str]:
    found = on(network_acl="NetworkAclId")(call, params)
    for subnet in call.tx.all(Subnet):
        if subnet.network_acl_association_id == params.get("AssociationId"):
            found.append(call.arn("ec2", f"subnet/{subnet.subnet_id}"))
    return found


@operation("ec2", "ReplaceNetworkAclAssociation", resources=_of_association)
def replace_network_acl_association(call: Call, params: Params) -> Params:
    """A subnet always has one ACL: it changes to another of its VPC, under a new association id."""
    association_id = params["AssociationId"]
    acl = ACLS.find(call.tx, params["NetworkAclId"])
    subnet = next(
        (one for one in call.tx.all(Subnet) if one.network_acl_association_id == association_id), None
    )
    if subnet is None or not association_id:
        raise AwsError(
            "InvalidAssociationID.NotFound", f"The association ID '{association_id}' does not exist"
        )
    if subnet.vpc_id != acl.vpc_id:
        raise AwsError(
            "InvalidParameterValue",
            f"network ACL {acl.network_acl_id} and subnet {subnet.subnet_id} belong to different networks",
        )
    new_id = resource_id("aclassoc")
    call.tx.put(replace(subnet, network_acl_id=acl.network_acl_id, network_acl_association_id=new_id))
    return {"NewAssociationId": new_id}


# Entries

_ENTRY = ("NetworkAclId", "RuleNumber", "Protocol", "RuleAction", "Egress", "CidrBlock")


def _wanted(params: Params) -> AclEntry:
    """The entry that a request describes. Raises MissingParameter, InvalidParameterValue."""
    only(params, *_ENTRY, "IcmpTypeCode", "PortRange")
    require(params, "CidrBlock")
    number = params["RuleNumber"]
    if not 1 <= number <= LAST_NUMBER:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({number}) for parameter ruleNumber is invalid. It must be from 1 to {LAST_NUMBER}.",
        )
    protocol = str(_NUMBERS.get(params["Protocol"].lower(), params["Protocol"]))
    if protocol != "-1" and not (protocol.isascii() and protocol.isdigit() and int(protocol) <= 255):
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({params['Protocol']}) for parameter protocol is invalid. Unknown protocol.",
        )
    first: int | None = None
    last: int | None = None
    if protocol in ("6", "17"):
        require(params, "PortRange")
        first, last = params["PortRange"].get("From"), params["PortRange"].get("To")
        if first is None or last is None or not 0 <= first <= last <= 65535:
            raise AwsError(
                "InvalidParameterValue",
                f"Value ({first}-{last}) for parameter portRange is invalid. "
                "It must be a range of ports from 0 to 65535.",
            )
    elif protocol == "1":
        require(params, "IcmpTypeCode")
        first, last = params["IcmpTypeCode"].get("Type", -1), params["IcmpTypeCode"].get("Code", -1)
        if not -1 <= first <= 255 or not -1 <= last <= 255:
            raise AwsError(
                "InvalidParameterValue",
                f"Value ({first}, {last}) for parameter icmpTypeCode is invalid. "
                "Type and code are from 0 to 255, or -1 for all.",
            )
    return AclEntry(
        number=number,
        egress=params["Egress"],
        allow=params["RuleAction"] == "allow",
        cidr=str(addresses.parse_cidr(params["CidrBlock"])),
        protocol=protocol,
        from_port=first,
        to_port=last,
    )


def _without(acl: NetworkAcl, number: int, egress: bool) -> tuple[AclEntry, ...]:
    return tuple(e for e in acl.entries if (e.number, e.egress) != (number, egress))


def _missing(number: int, acl: NetworkAcl) -> AwsError:
    return AwsError(
        "InvalidNetworkAclEntry.NotFound",
        f"The network acl entry identified by {number} does not exist in {acl.network_acl_id}.",
    )


@operation("ec2", "CreateNetworkAclEntry", resources=on(network_acl="NetworkAclId"))
def create_network_acl_entry(call: Call, params: Params) -> Params:
    acl, entry = ACLS.find(call.tx, params["NetworkAclId"]), _wanted(params)
    if len(_without(acl, entry.number, entry.egress)) < len(acl.entries):
        raise AwsError(
            "NetworkAclEntryAlreadyExists",
            f"The network acl entry identified by {entry.number} already exists.",
        )
    if sum(one.egress is entry.egress for one in acl.entries) >= ENTRIES_PER_DIRECTION:
        raise AwsError(
            "NetworkAclEntryLimitExceeded",
            f"The network ACL '{acl.network_acl_id}' has {ENTRIES_PER_DIRECTION} entries in this direction, "
            "the most there can be.",
        )
    call.tx.put(replace(acl, entries=(*acl.entries, entry)))
    return {}


@operation("ec2", "ReplaceNetworkAclEntry", resources=on(network_acl="NetworkAclId"))
def replace_network_acl_entry(call: Call, params: Params) -> Params:
    acl, entry = ACLS.find(call.tx, params["NetworkAclId"]), _wanted(params)
    kept = _without(acl, entry.number, entry.egress)
    if len(kept) == len(acl.entries):
        raise _missing(entry.number, acl)
    call.tx.put(replace(acl, entries=(*kept, entry)))
    return {}


@operation("ec2", "DeleteNetworkAclEntry", resources=on(network_acl="NetworkAclId"))
def delete_network_acl_entry(call: Call, params: Params) -> Params:
    acl = ACLS.find(call.tx, params["NetworkAclId"])
    kept = _without(acl, params["RuleNumber"], params["Egress"])
    if len(kept) == len(acl.entries):
        raise _missing(params["RuleNumber"], acl)
    call.tx.put(replace(acl, entries=kept))
    return {}
