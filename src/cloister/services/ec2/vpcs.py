"""VPCs and their address blocks."""

from __future__ import annotations

from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc import addresses, dhcp, gateways
from cloister.vpc.model import (
    AclEntry,
    GroupRule,
    InternetGateway,
    NetworkAcl,
    NetworkInterface,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.vpc.resolver_rules import ResolverRuleAssociation
from cloister.vpc.route_tables import OF_TABLE
from cloister.wire.errors import AwsError
from cloister.world import Transaction, World

#: AWS's default quota of IPv4 blocks per VPC
CIDRS_PER_VPC = 5
#: the number of a VPC's first route table
FIRST_TABLE = 1000
#: AWS's word for no set of DHCP options at all; the default set has an id
NO_DHCP_OPTIONS = "default"


def _shape(call: Call, vpc: Vpc) -> Params:
    return {
        "VpcId": vpc.vpc_id,
        "OwnerId": call.account,
        "State": "available",
        "CidrBlock": vpc.cidr,
        "CidrBlockAssociationSet": [
            _association(association_id, cidr) for association_id, cidr in _blocks(vpc).items()
        ],
        "Ipv6CidrBlockAssociationSet": [],
        "DhcpOptionsId": _dhcp_options_id(call, vpc),
        "InstanceTenancy": vpc.instance_tenancy,
        "IsDefault": vpc.is_default,
        "Tags": tag_set(vpc.tags),
    }


def _dhcp_options_id(call: Call, vpc: Vpc) -> str:
    if vpc.dhcp_options_id == "default":
        return dhcp.default_id(call.region, call.account)
    return vpc.dhcp_options_id or NO_DHCP_OPTIONS


def _blocks(vpc: Vpc) -> dict[str, str]:
    return {vpc.cidr_association_id: vpc.cidr, **vpc.more_cidrs}


def _association(association_id: str, cidr: str, state: str = "associated") -> Params:
    return {"AssociationId": association_id, "CidrBlock": cidr, "CidrBlockState": {"State": state}}


VPCS: Resource[Vpc] = Resource(
    result="Vpcs",
    ids="VpcIds",
    key=lambda vpc: vpc.vpc_id,
    all=lambda world: world.all(Vpc),
    get=lambda world, vpc_id: world.get(Vpc, vpc_id),
    shape=_shape,
    prefix="vpc",
    not_found="InvalidVpcID.NotFound",
    malformed="InvalidVpcID.Malformed",
    missing="The vpc ID '{}' does not exist",
    filters={
        "cidr": lambda call, vpc: vpc.cidr,
        "cidr-block": lambda call, vpc: vpc.cidr,
        "cidr-block-association.cidr-block": lambda call, vpc: vpc.cidrs,
        "cidr-block-association.association-id": lambda call, vpc: tuple(_blocks(vpc)),
        "cidr-block-association.state": lambda call, vpc: "associated",
        "dhcp-options-id": lambda call, vpc: _dhcp_options_id(call, vpc),
        "ipv6-cidr-block-association.ipv6-cidr-block": lambda call, vpc: None,
        "ipv6-cidr-block-association.ipv6-pool": lambda call, vpc: None,
        "ipv6-cidr-block-association.association-id": lambda call, vpc: None,
        "ipv6-cidr-block-association.state": lambda call, vpc: None,
        "is-default": lambda call, vpc: vpc.is_default,
        "isDefault": lambda call, vpc: vpc.is_default,
        "owner-id": lambda call, vpc: call.account,
        "state": lambda call, vpc: "available",
        "vpc-id": lambda call, vpc: vpc.vpc_id,
    },
)


def make_vpc(
    tx: Transaction, cidr: str, *, is_default: bool = False, tags: dict[str, str] | None = None
) -> Vpc:
    """A new VPC with its main route table, its default group and its default network ACL.

    `local` routes are derived from the VPC's blocks (vpc/route_tables.py), a table only holds routes made
    by calls.
    Raises InvalidParameterValue, InvalidVpc.Range."""
    vpc = Vpc(
        vpc_id=resource_id("vpc"),
        cidr=addresses.vpc_cidr(cidr),
        cidr_association_id=resource_id("vpc-cidr-assoc"),
        is_default=is_default,
        # AWS: the default VPC resolves the public names of its instances, others do not
        enable_dns_hostnames=is_default,
        tags=tags or {},
    )
    group_id = resource_id("sg")
    main = RouteTableAssociation(association_id=resource_id("rtbassoc"), subnet_id=None, main=True)
    tx.put(vpc)
    tx.put(
        RouteTable(
            route_table_id=resource_id("rtb"),
            vpc_id=vpc.vpc_id,
            number=FIRST_TABLE,
            associations=(main,),
        )
    )
    tx.put(
        SecurityGroup(
            group_id=group_id,
            vpc_id=vpc.vpc_id,
            name="default",
            description="default VPC security group",
            rules=(
                GroupRule(rule_id=resource_id("sgr"), egress=False, protocol="-1", group_id=group_id),
                GroupRule(rule_id=resource_id("sgr"), egress=True, protocol="-1", cidr="0.0.0.0/0"),
            ),
        )
    )
    tx.put(
        NetworkAcl(
            network_acl_id=resource_id("acl"),
            vpc_id=vpc.vpc_id,
            is_default=True,
            entries=tuple(
                AclEntry(number=100, egress=egress, allow=True, cidr="0.0.0.0/0", protocol="-1")
                for egress in (True, False)
            ),
        )
    )
    return vpc


@operation("ec2", "CreateVpc", resources=on(vpc="*"))
def create_vpc(call: Call, params: Params) -> Params:
    only(params, "CidrBlock", "InstanceTenancy", "TagSpecifications")
    if not params.get("CidrBlock"):
        raise AwsError("MissingParameter", "Either 'cidrBlock' or 'ipv4IpamPoolId' should be provided.")
    if params.get("InstanceTenancy", "default") != "default":
        raise AwsError(
            "UnsupportedOperation",
            f"InstanceTenancy '{params['InstanceTenancy']}' is not supported: "
            "Cloister does not implement dedicated hosts.",
        )
    vpc = make_vpc(call.tx, params["CidrBlock"], tags=tag_specifications(params, "vpc"))
    return {"Vpc": {**_shape(call, vpc), "State": "pending"}}


@operation("ec2", "DescribeVpcs")
def describe_vpcs(call: Call, params: Params) -> Params:
    return VPCS.describe(call, params)


@operation("ec2", "DeleteVpc", resources=on(vpc="VpcId"))
def delete_vpc(call: Call, params: Params) -> Params:
    """The main route table, the default group and ACL go with the VPC; anything else keeps it."""
    tx = call.tx
    vpc = VPCS.find(tx, params["VpcId"])
    tables = list(tx.where(RouteTable, vpc_id=vpc.vpc_id))
    groups = list(tx.where(SecurityGroup, vpc_id=vpc.vpc_id))
    acls = list(tx.where(NetworkAcl, vpc_id=vpc.vpc_id))
    others = [
        *tx.where(Subnet, vpc_id=vpc.vpc_id),
        *tx.where(NetworkInterface, vpc_id=vpc.vpc_id),
        *tx.where(VpcEndpoint, vpc_id=vpc.vpc_id),
        *tx.where(InternetGateway, vpc_id=vpc.vpc_id),
        *(one for one in _peerings(tx, vpc.vpc_id) if one.open_at(call.now)),
        *(table for table in tables if not any(one.main for one in table.associations)),
        *(group for group in groups if group.name != "default"),
        *(acl for acl in acls if not acl.is_default),
    ]
    if others:
        raise AwsError(
            "DependencyViolation", f"The vpc '{vpc.vpc_id}' has dependencies and cannot be deleted."
        )
    for table in tables:
        tx.delete(RouteTable, table.route_table_id)
    for group in groups:
        tx.delete(SecurityGroup, group.group_id)
    for acl in acls:
        tx.delete(NetworkAcl, acl.network_acl_id)
    for rule in list(tx.where(ResolverRuleAssociation, vpc_id=vpc.vpc_id)):
        tx.delete(ResolverRuleAssociation, rule.association_id)
    tx.delete(Vpc, vpc.vpc_id)
    return {}


def _peerings(world: World, vpc_id: str) -> list[VpcPeering]:
    return [
        *world.where(VpcPeering, requester_vpc_id=vpc_id),
        *world.where(VpcPeering, accepter_vpc_id=vpc_id),
    ]


_ATTRIBUTES = {"EnableDnsSupport": "enable_dns_support", "EnableDnsHostnames": "enable_dns_hostnames"}


@operation("ec2", "ModifyVpcAttribute", resources=on(vpc="VpcId"))
def modify_vpc_attribute(call: Call, params: Params) -> Params:
    """One attribute a call, as AWS asks."""
    vpc = VPCS.find(call.tx, params["VpcId"])
    only(params, "VpcId", *_ATTRIBUTES)
    given = [name for name in (*_ATTRIBUTES, "EnableNetworkAddressUsageMetrics") if name in params]
    if len(given) != 1:
        raise AwsError(
            "InvalidParameterCombination",
            f"Exactly one attribute of the vpc can be modified in a call, {len(given)} are given: "
            f"[{', '.join(given)}]",
        )
    if given[0] in _ATTRIBUTES:
        value = bool(params[given[0]].get("Value", False))
        if given == ["EnableDnsHostnames"] and value and not vpc.enable_dns_support:
            raise AwsError(
                "InvalidParameterValue",
                f"enableDnsHostnames cannot be true: enableDnsSupport is false for the vpc '{vpc.vpc_id}'.",
            )
        vpc = (
            replace(vpc, enable_dns_support=value)
            if given[0] == "EnableDnsSupport"
            else replace(vpc, enable_dns_hostnames=value)
        )
        call.tx.put(vpc)
    return {}


@operation("ec2", "DescribeVpcAttribute", resources=on(vpc="VpcId"))
def describe_vpc_attribute(call: Call, params: Params) -> Params:
    vpc = VPCS.find(call.tx, params["VpcId"])
    require(params, "Attribute")
    values = {
        "enableDnsSupport": ("EnableDnsSupport", vpc.enable_dns_support),
        "enableDnsHostnames": ("EnableDnsHostnames", vpc.enable_dns_hostnames),
        "enableNetworkAddressUsageMetrics": ("EnableNetworkAddressUsageMetrics", False),
    }
    if params["Attribute"] not in values:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({params['Attribute']}) for parameter attribute is invalid. Unknown attribute.",
        )
    member, value = values[params["Attribute"]]
    return {"VpcId": vpc.vpc_id, member: {"Value": value}}


@operation("ec2", "AssociateVpcCidrBlock", resources=on(vpc="VpcId"))
def associate_vpc_cidr_block(call: Call, params: Params) -> Params:
    only(params, "VpcId", "CidrBlock")
    require(params, "CidrBlock")
    vpc = VPCS.find(call.tx, params["VpcId"])
    cidr = addresses.additional_vpc_cidr(params["CidrBlock"], vpc.cidrs)
    if len(vpc.cidrs) >= CIDRS_PER_VPC:
        raise AwsError(
            "CidrLimitExceeded",
            f"This network '{vpc.vpc_id}' has met its maximum number of allowed CIDRs: {CIDRS_PER_VPC}",
        )
    for table in call.tx.where(RouteTable, vpc_id=vpc.vpc_id):
        # AWS ("Add or remove a CIDR block from your VPC"): no block "that's the same or larger than a
        # destination CIDR range in a route" of the VPC's tables, which would be more specific than `local`.
        for route in table.routes:
            if not route.destination.startswith("pl-") and addresses.within(route.destination, cidr):
                raise AwsError(
                    "CidrConflict",
                    f"The CIDR '{cidr}' is the same as, or larger than, the destination {route.destination} "
                    f"of a route in '{table.route_table_id}'.",
                )
    for peering in gateways.peerings(call.tx, vpc.vpc_id):
        peer = call.tx.get(Vpc, peering.other(vpc.vpc_id))
        if peer is not None and any(addresses.overlap(cidr, block) for block in peer.cidrs):
            raise AwsError(
                "CidrConflict",
                f"The CIDR '{cidr}' conflicts with a block of '{peer.vpc_id}', which is joined by the VPC "
                f"peering connection '{peering.peering_id}'.",
            )
    association_id = resource_id("vpc-cidr-assoc")
    call.tx.put(replace(vpc, more_cidrs={**vpc.more_cidrs, association_id: cidr}))
    return {"VpcId": vpc.vpc_id, "CidrBlockAssociation": _association(association_id, cidr, "associating")}


def _of_association(call: Call, params: Params) -> list[str]:
    found = [vpc.vpc_id for vpc in call.tx.all(Vpc) if params.get("AssociationId") in _blocks(vpc)]
    return [call.arn("ec2", f"vpc/{vpc_id}") for vpc_id in found] or ["*"]


@operation("ec2", "DisassociateVpcCidrBlock", resources=_of_association)
def disassociate_vpc_cidr_block(call: Call, params: Params) -> Params:
    association_id = params["AssociationId"]
    vpc = next((vpc for vpc in call.tx.all(Vpc) if association_id in _blocks(vpc)), None)
    if vpc is None:
        raise AwsError(
            "InvalidVpcCidrBlockAssociationID.NotFound",
            f"The vpc CIDR block association ID '{association_id}' does not exist",
        )
    if association_id == vpc.cidr_association_id:
        raise AwsError(
            "OperationNotPermitted",
            f"The vpc CIDR block with association ID {association_id} may not be disassociated. "
            "It is the primary IPv4 CIDR block of the VPC",
        )
    cidr = vpc.more_cidrs[association_id]
    if any(addresses.overlap(subnet.cidr, cidr) for subnet in call.tx.where(Subnet, vpc_id=vpc.vpc_id)):
        raise AwsError(
            "InvalidCidrBlock.InUse",
            f"The vpc {vpc.vpc_id} currently has a subnet within CIDR block {cidr}",
        )
    kept = {key: block for key, block in vpc.more_cidrs.items() if key != association_id}
    call.tx.put(replace(vpc, more_cidrs=kept))
    for table in list(call.tx.where(RouteTable, vpc_id=vpc.vpc_id)):
        # The block's local route goes, and with it what replaced its target.
        others = tuple(one for one in table.routes if (one.origin, one.destination) != (OF_TABLE, cidr))
        if others != table.routes:
            call.tx.put(replace(table, routes=others))
    return {
        "VpcId": vpc.vpc_id,
        "CidrBlockAssociation": _association(association_id, cidr, "disassociating"),
    }


def vpc_or_default(call: Call, vpc_id: str | None) -> Vpc:
    """The VPC asked for, else the default one. Raises InvalidVpcID.NotFound, VPCIdNotSpecified."""
    if vpc_id:
        return VPCS.find(call.tx, vpc_id)
    vpc = next((vpc for vpc in call.tx.all(Vpc) if vpc.is_default), None)
    if vpc is None:
        raise AwsError("VPCIdNotSpecified", "No default VPC for this user")
    return vpc
