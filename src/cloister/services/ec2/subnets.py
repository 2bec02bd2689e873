"""Subnets."""

from __future__ import annotations

from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.services.ec2.zones import Zone, zone_of
from cloister.vpc import addresses
from cloister.vpc.model import NetworkAcl, NetworkInterface, RouteTable, Subnet, Vpc
from cloister.wire.errors import AwsError
from cloister.world import Transaction


def subnet_shape(call: Call, subnet: Subnet) -> Params:
    return {
        "SubnetId": subnet.subnet_id,
        "SubnetArn": _arn(call, subnet),
        "OwnerId": call.account,
        "VpcId": subnet.vpc_id,
        "State": "available",
        "CidrBlock": subnet.cidr,
        "AvailableIpAddressCount": addresses.free_count(call.tx, subnet),
        "AvailabilityZone": subnet.zone,
        "AvailabilityZoneId": subnet.zone_id,
        "DefaultForAz": subnet.default_for_az,
        "MapPublicIpOnLaunch": subnet.map_public_ip_on_launch,
        "MapCustomerOwnedIpOnLaunch": False,
        "AssignIpv6AddressOnCreation": False,
        "Ipv6CidrBlockAssociationSet": [],
        "Ipv6Native": False,
        "EnableDns64": False,
        "PrivateDnsNameOptionsOnLaunch": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": False,
            "EnableResourceNameDnsAAAARecord": False,
        },
        "Tags": tag_set(subnet.tags),
    }


def _arn(call: Call, subnet: Subnet) -> str:
    return call.arn("ec2", f"subnet/{subnet.subnet_id}")


SUBNETS: Resource[Subnet] = Resource(
    result="Subnets",
    ids="SubnetIds",
    key=lambda subnet: subnet.subnet_id,
    all=lambda world: world.all(Subnet),
    get=lambda world, subnet_id: world.get(Subnet, subnet_id),
    shape=subnet_shape,
    prefix="subnet",
    not_found="InvalidSubnetID.NotFound",
    malformed="InvalidSubnetID.Malformed",
    missing="The subnet ID '{}' does not exist",
    filters={
        "availability-zone": lambda call, subnet: subnet.zone,
        "availabilityZone": lambda call, subnet: subnet.zone,
        "availability-zone-id": lambda call, subnet: subnet.zone_id,
        "availabilityZoneId": lambda call, subnet: subnet.zone_id,
        "available-ip-address-count": lambda call, subnet: addresses.free_count(call.tx, subnet),
        "cidr-block": lambda call, subnet: subnet.cidr,
        "cidr": lambda call, subnet: subnet.cidr,
        "cidrBlock": lambda call, subnet: subnet.cidr,
        "customer-owned-ipv4-pool": lambda call, subnet: None,
        "default-for-az": lambda call, subnet: subnet.default_for_az,
        "defaultForAz": lambda call, subnet: subnet.default_for_az,
        "enable-dns64": lambda call, subnet: False,
        "enable-lni-at-device-index": lambda call, subnet: None,
        "ipv6-cidr-block-association.ipv6-cidr-block": lambda call, subnet: None,
        "ipv6-cidr-block-association.association-id": lambda call, subnet: None,
        "ipv6-cidr-block-association.state": lambda call, subnet: None,
        "ipv6-native": lambda call, subnet: False,
        "map-customer-owned-ip-on-launch": lambda call, subnet: False,
        "map-public-ip-on-launch": lambda call, subnet: subnet.map_public_ip_on_launch,
        "outpost-arn": lambda call, subnet: None,
        "owner-id": lambda call, subnet: call.account,
        "private-dns-name-options-on-launch.hostname-type": lambda call, subnet: "ip-name",
        "private-dns-name-options-on-launch.enable-resource-name-dns-a-record": lambda call, subnet: False,
        "private-dns-name-options-on-launch.enable-resource-name-dns-aaaa-record": lambda call, subnet: False,
        "state": lambda call, subnet: "available",
        "subnet-arn": _arn,
        "subnet-id": lambda call, subnet: subnet.subnet_id,
        "vpc-id": lambda call, subnet: subnet.vpc_id,
    },
)


def make_subnet(
    tx: Transaction,
    vpc: Vpc,
    cidr: str,
    zone: Zone,
    *,
    default_for_az: bool = False,
    tags: dict[str, str] | None = None,
) -> Subnet:
    """A new subnet, with the VPC's default network ACL.
    Raises InvalidParameterValue, InvalidSubnet.Range, InvalidSubnet.Conflict."""
    acl = next(acl for acl in tx.where(NetworkAcl, vpc_id=vpc.vpc_id) if acl.is_default)
    subnet = Subnet(
        subnet_id=resource_id("subnet"),
        vpc_id=vpc.vpc_id,
        cidr=addresses.subnet_cidr(cidr, vpc, tx.where(Subnet, vpc_id=vpc.vpc_id)),
        zone=zone.name,
        zone_id=zone.zone_id,
        default_for_az=default_for_az,
        map_public_ip_on_launch=default_for_az,
        network_acl_id=acl.network_acl_id,
        network_acl_association_id=resource_id("aclassoc"),
        tags=tags or {},
    )
    tx.put(subnet)
    return subnet


@operation("ec2", "CreateSubnet", resources=on(subnet="*", vpc="VpcId"))
def create_subnet(call: Call, params: Params) -> Params:
    only(params, "VpcId", "CidrBlock", "AvailabilityZone", "AvailabilityZoneId", "TagSpecifications")
    vpc = VPCS.find(call.tx, params["VpcId"])
    require(params, "CidrBlock")
    zone = zone_of(call.region, params.get("AvailabilityZone"), params.get("AvailabilityZoneId"))
    tags = tag_specifications(params, "subnet")
    subnet = make_subnet(call.tx, vpc, params["CidrBlock"], zone, tags=tags)
    return {"Subnet": subnet_shape(call, subnet)}


@operation("ec2", "DescribeSubnets")
def describe_subnets(call: Call, params: Params) -> Params:
    return SUBNETS.describe(call, params)


@operation("ec2", "DeleteSubnet", resources=on(subnet="SubnetId"))
def delete_subnet(call: Call, params: Params) -> Params:
    """Its association with a route table goes with it; an interface keeps it."""
    subnet = SUBNETS.find(call.tx, params["SubnetId"])
    if any(call.tx.where(NetworkInterface, subnet_id=subnet.subnet_id)):
        raise AwsError(
            "DependencyViolation", f"The subnet '{subnet.subnet_id}' has dependencies and cannot be deleted."
        )
    for table in list(call.tx.where(RouteTable, vpc_id=subnet.vpc_id)):
        kept = tuple(one for one in table.associations if one.subnet_id != subnet.subnet_id)
        if kept != table.associations:
            call.tx.put(replace(table, associations=kept))
    call.tx.delete(Subnet, subnet.subnet_id)
    return {}


@operation("ec2", "ModifySubnetAttribute", resources=on(subnet="SubnetId"))
def modify_subnet_attribute(call: Call, params: Params) -> Params:
    """MapPublicIpOnLaunch; the attributes of IPv6, Outposts and resource names only as what they are."""
    subnet = SUBNETS.find(call.tx, params["SubnetId"])
    if params.get("PrivateDnsHostnameTypeOnLaunch") == "ip-name":
        params = {name: value for name, value in params.items() if name != "PrivateDnsHostnameTypeOnLaunch"}
    only(params, "SubnetId", "MapPublicIpOnLaunch")
    if "MapPublicIpOnLaunch" in params:
        value = bool(params["MapPublicIpOnLaunch"].get("Value", False))
        call.tx.put(replace(subnet, map_public_ip_on_launch=value))
    return {}
