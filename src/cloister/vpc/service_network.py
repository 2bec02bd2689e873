"""The network of jobs that name no VPC: a service's own, with a way to the internet.

AWS ("Give SageMaker AI Processing Jobs Access to Resources in Your Amazon VPC"): without a VpcConfig a job
runs in a VPC of the service, by whose internet access it reaches S3. Here it is a VPC like any other, of a
block that is nobody's (RFC 6598), with a private subnet, a NAT gateway and an internet gateway, made for the
first such job and kept: its public address, which bucket policies may name, stays the same. It is
`service_owned`: nobody but the service sees it. Each job has a security group of its own, so that its
instances talk to each other, and to no other job's.
"""

from __future__ import annotations

from cloister.ids import resource_id
from cloister.vpc import elastic_ips, nat_gateways
from cloister.vpc.model import (
    GroupRule,
    InternetGateway,
    NetworkInterface,
    Route,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
)
from cloister.wire.errors import AwsError
from cloister.world import Transaction, World

CIDR = "100.64.0.0/16"
#: where jobs are, and where the NAT gateway is
JOBS_CIDR, GATEWAY_CIDR = "100.64.0.0/17", "100.64.128.0/28"
_ANYWHERE = "0.0.0.0/0"


def hidden(world: World, document: object) -> bool:
    """Whether no customer may see, name or count this: it is, or is in, a VPC of a service."""
    if isinstance(document, Vpc):
        return document.service_owned
    vpc_id = getattr(document, "vpc_id", None)
    vpc = world.get(Vpc, vpc_id) if isinstance(vpc_id, str) else None
    return vpc is not None and vpc.service_owned


def jobs_subnet(tx: Transaction, *, region: str, now: float) -> Subnet:
    """The subnet of jobs without a VPC; the network is made if there is none yet."""
    vpc = next((vpc for vpc in tx.all(Vpc) if vpc.service_owned), None) or _make(tx, region, now)
    return next(subnet for subnet in tx.where(Subnet, vpc_id=vpc.vpc_id) if subnet.cidr == JOBS_CIDR)


def job_group(tx: Transaction, subnet: Subnet, name: str) -> SecurityGroup:
    """A job's own group: out to anywhere, in from its own members alone."""
    group_id = resource_id("sg")
    group = SecurityGroup(
        group_id=group_id,
        vpc_id=subnet.vpc_id,
        name=name,
        description="of one job",
        rules=(
            GroupRule(rule_id=resource_id("sgr"), egress=True, protocol="-1", cidr=_ANYWHERE),
            GroupRule(rule_id=resource_id("sgr"), egress=False, protocol="-1", group_id=group_id),
        ),
    )
    tx.put(group)
    return group


def forget_group(tx: Transaction, group_id: str) -> None:
    """Delete a job's own group when no interface has it; a group of a customer is left alone."""
    group = tx.get(SecurityGroup, group_id)
    if group is not None and hidden(tx, group) and not any(tx.where(NetworkInterface, group_ids=group_id)):
        tx.delete(SecurityGroup, group_id)


def _make(tx: Transaction, region: str, now: float) -> Vpc:
    vpc = Vpc(
        vpc_id=resource_id("vpc"),
        cidr=CIDR,
        cidr_association_id=resource_id("vpc-cidr-assoc"),
        service_owned=True,
    )
    gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=vpc.vpc_id)
    jobs, public = (
        Subnet(
            subnet_id=resource_id("subnet"),
            vpc_id=vpc.vpc_id,
            cidr=cidr,
            zone=f"{region}a",
            zone_id=f"{region}-service",
        )
        for cidr in (JOBS_CIDR, GATEWAY_CIDR)
    )
    closed = SecurityGroup(
        group_id=resource_id("sg"), vpc_id=vpc.vpc_id, name="default", description="nothing"
    )
    for document in (vpc, gateway, jobs, public, closed):
        tx.put(document)
    public_ip = elastic_ips.free(tx, "the network of jobs without a VPC")
    if public_ip is None:
        raise AwsError("InsufficientAddressCapacity", "There is no free public address left.")
    nat = nat_gateways.create(tx, public, public_ip=public_ip, now=now)
    for number, subnet, target in (
        (1000, jobs, nat.nat_gateway_id),
        (1001, public, gateway.internet_gateway_id),
    ):
        tx.put(
            RouteTable(
                route_table_id=resource_id("rtb"),
                vpc_id=vpc.vpc_id,
                number=number,
                routes=(Route(destination=_ANYWHERE, target=target),),
                associations=(
                    RouteTableAssociation(association_id=resource_id("rtbassoc"), subnet_id=subnet.subnet_id),
                ),
            )
        )
    return vpc
