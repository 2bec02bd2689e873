"""Route tables of internet gateways: for what they bring in, which a table may lead by way of an interface.

AWS (VPC guide, "Gateway route tables"): such a table has the local route and routes to interfaces, for all of
the VPC's block in place of the local route, or for all of a subnet's. It has none to other targets, to a part
of a subnet, to prefix lists or to what is outside of the VPC.
"""

from __future__ import annotations

from cloister.services.api import Call
from cloister.vpc.model import InternetGateway, Route, RouteTable, Subnet, Vpc
from cloister.vpc.route_tables import LOCAL, routes
from cloister.wire.errors import AwsError


def is_for_gateway(table: RouteTable) -> bool:
    return any(one.gateway_id is not None for one in table.associations)


def find(call: Call, table: RouteTable, gateway_id: str) -> InternetGateway:
    """An internet gateway that the table may be for. Raises InvalidGatewayID.NotFound,
    InvalidVpnGatewayID.NotFound, InvalidParameterValue."""
    if gateway_id.startswith("vgw-"):
        raise AwsError("InvalidVpnGatewayID.NotFound", f"The vpnGateway ID '{gateway_id}' does not exist")
    gateway = call.tx.get(InternetGateway, gateway_id)
    if gateway is None:
        raise AwsError("InvalidGatewayID.NotFound", f"The gateway ID '{gateway_id}' does not exist")
    if gateway.vpc_id != table.vpc_id:
        raise AwsError(
            "InvalidParameterValue",
            f"route table {table.route_table_id} and network gateway {gateway_id} belong to different "
            "networks",
        )
    check_table(call, table)
    return gateway


def check_table(call: Call, table: RouteTable) -> None:
    """Raises InvalidParameterValue for a table with a route that a gateway's may not have."""
    for route in routes(call.tx, table):
        check_route(call, table, route)


def check_route(call: Call, table: RouteTable, route: Route) -> None:
    if route.target != LOCAL and not route.target.startswith("eni-"):
        raise AwsError(
            "InvalidParameterValue",
            f"Route table {table.route_table_id} contains unsupported route target: {route.target}. A route "
            "table of an internet gateway has routes to network interfaces and local ones only.",
        )
    vpc = call.tx.get(Vpc, table.vpc_id)
    blocks = {subnet.cidr for subnet in call.tx.where(Subnet, vpc_id=table.vpc_id)}
    if route.destination not in blocks | set(vpc.cidrs if vpc is not None else ()):
        raise AwsError(
            "InvalidParameterValue",
            f"Route table {table.route_table_id} contains unsupported route destination: "
            f"{route.destination}. In a route table of an internet gateway it is a CIDR block of "
            f"{table.vpc_id} or of one of its subnets.",
        )
