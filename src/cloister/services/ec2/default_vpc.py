"""What an account has before anybody asked: the default VPC and the AWS-managed prefix lists."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.parameters import exclusive, on, only
from cloister.services.ec2.subnets import make_subnet, subnet_shape
from cloister.services.ec2.vpcs import VPCS, make_vpc
from cloister.services.ec2.zones import zone_of, zones
from cloister.vpc import addresses
from cloister.vpc.endpoints import prefix_lists_in
from cloister.vpc.model import InternetGateway, PrefixList, Route, RouteTable, Subnet, Vpc
from cloister.wire.errors import AwsError
from cloister.world import Transaction

CIDR = "172.31.0.0/16"
SUBNET_LENGTH = 20


def make_default_vpc(tx: Transaction, region: str) -> Vpc:
    """172.31.0.0/16 with a /20 in each zone, an internet gateway, and the main route table's route to it
    (AWS: "Default VPC components")."""
    vpc = make_vpc(tx, CIDR, is_default=True)
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=vpc.vpc_id)
    tx.put(gateway)
    (main,) = tx.where(RouteTable, vpc_id=vpc.vpc_id)
    tx.put(replace(main, routes=(Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id),)))
    for zone, block in zip(zones(region), IPv4Network(CIDR).subnets(new_prefix=SUBNET_LENGTH), strict=False):
        make_subnet(tx, vpc, str(block), zone, default_for_az=True)
    return vpc


def seed(tx: Transaction, region: str, account: str) -> None:
    """What a new account finds in its region. Called once, at the first start."""
    add_prefix_lists(tx, region)
    make_default_vpc(tx, region)


def add_prefix_lists(tx: Transaction, region: str) -> None:
    """AWS's prefix lists of the region, as far as they are missing: those of a service that is new."""
    for listed in prefix_lists_in(region):
        if tx.get(PrefixList, listed.prefix_list_id) is None:
            tx.put(listed)


@operation("ec2", "CreateDefaultVpc", resources=on(vpc="*"))
def create_default_vpc(call: Call, params: Params) -> Params:
    if any(vpc.is_default for vpc in call.tx.all(Vpc)):
        raise AwsError(
            "DefaultVpcAlreadyExists", "A Default VPC already exists for this account in this region."
        )
    return {"Vpc": {**VPCS.shape(call, make_default_vpc(call.tx, call.region)), "State": "pending"}}


@operation("ec2", "CreateDefaultSubnet", resources=on(subnet="*"))
def create_default_subnet(call: Call, params: Params) -> Params:
    """The next free /20 of the default VPC, in a zone that has no default subnet."""
    only(params, "AvailabilityZone", "AvailabilityZoneId")
    exclusive(params, "AvailabilityZone", "AvailabilityZoneId")
    if not params.get("AvailabilityZone") and not params.get("AvailabilityZoneId"):
        raise AwsError("MissingParameter", "The request must contain the parameter AvailabilityZone")
    zone = zone_of(call.region, params.get("AvailabilityZone"), params.get("AvailabilityZoneId"))
    vpc = next((vpc for vpc in call.tx.all(Vpc) if vpc.is_default), None)
    if vpc is None:
        raise AwsError("DefaultVpcDoesNotExist", "There is no default VPC for this account in this region.")
    siblings = list(call.tx.where(Subnet, vpc_id=vpc.vpc_id))
    for subnet in siblings:
        if subnet.default_for_az and subnet.zone == zone.name:
            raise AwsError(
                "DefaultSubnetAlreadyExistsInAvailabilityZone",
                f"'{subnet.subnet_id}' is already the default subnet in {zone.name}.",
            )
    for block in IPv4Network(vpc.cidr).subnets(new_prefix=SUBNET_LENGTH):
        if not any(addresses.overlap(str(block), sibling.cidr) for sibling in siblings):
            made = make_subnet(call.tx, vpc, str(block), zone, default_for_az=True)
            return {"Subnet": subnet_shape(call, made)}
    raise AwsError(
        "InsufficientCidrBlocks",
        f"There is no free /{SUBNET_LENGTH} block in the default VPC '{vpc.vpc_id}'.",
    )
