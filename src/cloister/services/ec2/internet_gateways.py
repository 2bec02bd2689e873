"""Internet gateways: made, attached to a VPC, detached, described."""

from __future__ import annotations

from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.parameters import on, only
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.vpc import route_tables
from cloister.vpc.gateways import of_vpc
from cloister.vpc.model import InternetGateway, NetworkInterface
from cloister.wire.errors import AwsError


def _shape(call: Call, gateway: InternetGateway) -> Params:
    # AWS: an attached gateway is "available", where a VPN gateway would be "attached"
    attachments = [{"VpcId": gateway.vpc_id, "State": "available"}] if gateway.vpc_id else []
    return {
        "InternetGatewayId": gateway.internet_gateway_id,
        "OwnerId": call.account,
        "Attachments": attachments,
        "Tags": tag_set(gateway.tags),
    }


INTERNET_GATEWAYS: Resource[InternetGateway] = Resource(
    result="InternetGateways",
    ids="InternetGatewayIds",
    key=lambda gateway: gateway.internet_gateway_id,
    all=lambda world: world.all(InternetGateway),
    get=lambda world, gateway_id: world.get(InternetGateway, gateway_id),
    shape=_shape,
    prefix="igw",
    not_found="InvalidInternetGatewayID.NotFound",
    malformed="InvalidInternetGatewayId.Malformed",
    missing="The internetGateway ID '{}' does not exist",
    filters={
        "attachment.state": lambda call, gateway: "available" if gateway.vpc_id else None,
        "attachment.vpc-id": lambda call, gateway: gateway.vpc_id,
        "internet-gateway-id": lambda call, gateway: gateway.internet_gateway_id,
        "owner-id": lambda call, gateway: call.account,
    },
)


@operation("ec2", "CreateInternetGateway", resources=on(internet_gateway="*"))
def create_internet_gateway(call: Call, params: Params) -> Params:
    only(params, "TagSpecifications")
    gateway = InternetGateway(
        internet_gateway_id=resource_id("igw"), tags=tag_specifications(params, "internet-gateway")
    )
    call.tx.put(gateway)
    return {"InternetGateway": _shape(call, gateway)}


@operation("ec2", "DescribeInternetGateways")
def describe_internet_gateways(call: Call, params: Params) -> Params:
    return INTERNET_GATEWAYS.describe(call, params)


@operation("ec2", "DeleteInternetGateway", resources=on(internet_gateway="InternetGatewayId"))
def delete_internet_gateway(call: Call, params: Params) -> Params:
    """Routes to it stay, as black holes."""
    gateway = INTERNET_GATEWAYS.find(call.tx, params["InternetGatewayId"])
    if gateway.vpc_id is not None:
        raise AwsError(
            "DependencyViolation",
            f"The internetGateway '{gateway.internet_gateway_id}' has dependencies and cannot be deleted.",
        )
    call.tx.delete(InternetGateway, gateway.internet_gateway_id)
    return {}


@operation("ec2", "AttachInternetGateway", resources=on(internet_gateway="InternetGatewayId", vpc="VpcId"))
def attach_internet_gateway(call: Call, params: Params) -> Params:
    """One gateway for one VPC."""
    gateway = INTERNET_GATEWAYS.find(call.tx, params["InternetGatewayId"])
    vpc = VPCS.find(call.tx, params["VpcId"])
    if gateway.vpc_id is not None:
        raise AwsError(
            "Resource.AlreadyAssociated",
            f"resource {gateway.internet_gateway_id} is already attached to network {gateway.vpc_id}",
        )
    if of_vpc(call.tx, vpc.vpc_id) is not None:
        raise AwsError(
            "InvalidParameterValue", f"Network {vpc.vpc_id} already has an internet gateway attached"
        )
    call.tx.put(replace(gateway, vpc_id=vpc.vpc_id))
    return {}


@operation("ec2", "DetachInternetGateway", resources=on(internet_gateway="InternetGatewayId", vpc="VpcId"))
def detach_internet_gateway(call: Call, params: Params) -> Params:
    """Not while an interface of the VPC has a public address, or the gateway a route table. Routes to it
    stay, as black holes."""
    gateway = INTERNET_GATEWAYS.find(call.tx, params["InternetGatewayId"])
    vpc = VPCS.find(call.tx, params["VpcId"])
    if gateway.vpc_id != vpc.vpc_id:
        raise AwsError(
            "Gateway.NotAttached",
            f"resource {gateway.internet_gateway_id} is not attached to network {vpc.vpc_id}",
        )
    interfaces = call.tx.where(NetworkInterface, vpc_id=vpc.vpc_id)
    if any(held.public_ip for interface in interfaces for held in interface.addresses):
        raise AwsError(
            "DependencyViolation",
            f"Network {vpc.vpc_id} has some mapped public address(es). "
            "Please unmap those public address(es) before detaching the gateway.",
        )
    table = route_tables.of_gateway(call.tx, gateway)
    if table is not None:
        raise AwsError(
            "DependencyViolation",
            f"The internetGateway '{gateway.internet_gateway_id}' is associated with the routeTable "
            f"'{table.route_table_id}' and cannot be detached.",
        )
    call.tx.put(replace(gateway, vpc_id=None))
    return {}
