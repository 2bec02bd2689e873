"""Route tables, their associations and their routes.

A table's document holds only the routes made by calls. `local` routes and those of gateway endpoints are
derived (vpc/route_tables.py), here for describing and there for the kernel, from the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2 import gateway_tables
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import echo, once
from cloister.services.ec2.network_interfaces import INTERFACES, owner
from cloister.services.ec2.parameters import exclusive, on, only, require
from cloister.services.ec2.subnets import SUBNETS
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import FIRST_TABLE, VPCS
from cloister.vpc import addresses
from cloister.vpc.endpoints import prefix_list
from cloister.vpc.model import (
    InternetGateway,
    NatGateway,
    NetworkInterface,
    Route,
    RouteTable,
    RouteTableAssociation,
    Subnet,
    VpcEndpoint,
    VpcPeering,
)
from cloister.vpc.route_tables import LOCAL, OF_TABLE, device, routes
from cloister.wire.errors import AwsError
from cloister.world import World

#: target's id prefix -> member of the Route shape
_TARGET_MEMBERS = {
    "nat": "NatGatewayId",
    "eni": "NetworkInterfaceId",
    "pcx": "VpcPeeringConnectionId",
    "tgw": "TransitGatewayId",
    "eigw": "EgressOnlyInternetGatewayId",
}


def _target_member(route: Route) -> str:
    # AWS shows `local`, internet gateways and VPC endpoints alike as GatewayId.
    return _TARGET_MEMBERS.get(route.target.partition("-")[0], "GatewayId")


def _state(world: World, table: RouteTable, route: Route) -> str:
    """AWS: "The blackhole state indicates that the route's target isn't available"."""
    there = route.target == LOCAL or device(world, table.vpc_id, route.target) is not None
    return "active" if there else "blackhole"


def _route_shape(call: Call, table: RouteTable, route: Route) -> Params:
    destination = "DestinationPrefixListId" if _is_list(route.destination) else "DestinationCidrBlock"
    shape: Params = {destination: route.destination, _target_member(route): route.target}
    interface = call.tx.get(NetworkInterface, route.target)
    if interface is not None and interface.attachment_id is not None:
        shape["InstanceOwnerId"] = owner(call, interface)
    return {**shape, "Origin": route.origin, "State": _state(call.tx, table, route)}


def _is_list(destination: str) -> bool:
    return destination.startswith("pl-")


def _shape(call: Call, table: RouteTable) -> Params:
    return {
        "RouteTableId": table.route_table_id,
        "VpcId": table.vpc_id,
        "OwnerId": call.account,
        "Associations": [_association_shape(table, one) for one in table.associations],
        "PropagatingVgws": [],
        "Routes": [_route_shape(call, table, route) for route in routes(call.tx, table)],
        "Tags": tag_set(table.tags),
    }


def _association_shape(table: RouteTable, association: RouteTableAssociation) -> Params:
    shape: Params = {
        "RouteTableAssociationId": association.association_id,
        "RouteTableId": table.route_table_id,
        "Main": association.main,
        "AssociationState": {"State": "associated"},
    }
    if association.subnet_id is not None:
        shape["SubnetId"] = association.subnet_id
    if association.gateway_id is not None:
        shape["GatewayId"] = association.gateway_id
    return shape


def _targets(member: str) -> Callable[[Call, RouteTable], list[str]]:
    return lambda call, table: [
        route.target for route in routes(call.tx, table) if _target_member(route) == member
    ]


def _destinations(lists: bool) -> Callable[[Call, RouteTable], list[str]]:
    return lambda call, table: [
        route.destination for route in routes(call.tx, table) if _is_list(route.destination) is lists
    ]


TABLES: Resource[RouteTable] = Resource(
    result="RouteTables",
    ids="RouteTableIds",
    key=lambda table: table.route_table_id,
    all=lambda world: world.all(RouteTable),
    get=lambda world, route_table_id: world.get(RouteTable, route_table_id),
    shape=_shape,
    prefix="rtb",
    not_found="InvalidRouteTableID.NotFound",
    malformed="InvalidRouteTableId.Malformed",
    missing="The routeTable ID '{}' does not exist",
    page=(5, 100),
    filters={
        "association.gateway-id": lambda call, table: [one.gateway_id for one in table.associations],
        "association.route-table-association-id": lambda call, table: [
            one.association_id for one in table.associations
        ],
        "association.route-table-id": lambda call, table: (
            table.route_table_id if table.associations else None
        ),
        "association.subnet-id": lambda call, table: [one.subnet_id for one in table.associations],
        "association.main": lambda call, table: [one.main for one in table.associations],
        "owner-id": lambda call, table: call.account,
        "route-table-id": lambda call, table: table.route_table_id,
        "route.destination-cidr-block": _destinations(lists=False),
        "route.destination-ipv6-cidr-block": lambda call, table: None,
        "route.destination-prefix-list-id": _destinations(lists=True),
        "route.egress-only-internet-gateway-id": _targets("EgressOnlyInternetGatewayId"),
        "route.gateway-id": _targets("GatewayId"),
        "route.instance-id": lambda call, table: None,
        "route.nat-gateway-id": _targets("NatGatewayId"),
        "route.transit-gateway-id": _targets("TransitGatewayId"),
        "route.origin": lambda call, table: [route.origin for route in routes(call.tx, table)],
        "route.state": lambda call, table: [
            _state(call.tx, table, route) for route in routes(call.tx, table)
        ],
        "route.vpc-peering-connection-id": _targets("VpcPeeringConnectionId"),
        "vpc-id": lambda call, table: table.vpc_id,
    },
)


@operation("ec2", "CreateRouteTable", resources=on(route_table="*", vpc="VpcId"))
def create_route_table(call: Call, params: Params) -> Params:
    only(params, "VpcId", "TagSpecifications", "ClientToken")
    table = once(call, "CreateRouteTable", params, TABLES, lambda: _make_table(call, params))
    return {"RouteTable": _shape(call, table), **echo(params)}


def _make_table(call: Call, params: Params) -> RouteTable:
    vpc = VPCS.find(call.tx, params["VpcId"])
    taken = {table.number for table in call.tx.where(RouteTable, vpc_id=vpc.vpc_id)}
    table = RouteTable(
        route_table_id=resource_id("rtb"),
        vpc_id=vpc.vpc_id,
        number=next(n for n in range(FIRST_TABLE, FIRST_TABLE + len(taken) + 1) if n not in taken),
        tags=tag_specifications(params, "route-table"),
    )
    call.tx.put(table)
    return table


@operation("ec2", "DescribeRouteTables")
def describe_route_tables(call: Call, params: Params) -> Params:
    return TABLES.describe(call, params)


@operation("ec2", "DeleteRouteTable", resources=on(route_table="RouteTableId"))
def delete_route_table(call: Call, params: Params) -> Params:
    """A table with associations stays. Gateway endpoints forget a table that goes."""
    table = TABLES.find(call.tx, params["RouteTableId"])
    if table.associations:
        raise AwsError(
            "DependencyViolation",
            f"The routeTable '{table.route_table_id}' has dependencies and cannot be deleted.",
        )
    for endpoint in list(call.tx.where(VpcEndpoint, vpc_id=table.vpc_id)):
        kept = tuple(one for one in endpoint.route_table_ids if one != table.route_table_id)
        if kept != endpoint.route_table_ids:
            call.tx.put(replace(endpoint, route_table_ids=kept))
    call.tx.delete(RouteTable, table.route_table_id)
    return {}


# Associations


def _find_association(world: World, association_id: str) -> tuple[RouteTable, RouteTableAssociation]:
    for table in world.all(RouteTable):
        for association in table.associations:
            if association.association_id == association_id:
                return table, association
    raise AwsError("InvalidAssociationID.NotFound", f"The association ID '{association_id}' does not exist")


@operation(
    "ec2",
    "AssociateRouteTable",
    resources=on(route_table="RouteTableId", subnet="SubnetId", internet_gateway="GatewayId"),
)
def associate_route_table(call: Call, params: Params) -> Params:
    """Of a subnet, or of an internet gateway. Repeating it returns the association there is."""
    only(params, "RouteTableId", "SubnetId", "GatewayId")
    exclusive(params, "SubnetId", "GatewayId")
    if not params.get("GatewayId"):
        require(params, "SubnetId")
    table = TABLES.find(call.tx, params["RouteTableId"])
    made = RouteTableAssociation(
        association_id=resource_id("rtbassoc"),
        subnet_id=params.get("SubnetId") or None,
        gateway_id=params.get("GatewayId") or None,
    )
    if made.gateway_id is not None:
        gateway_tables.find(call, table, made.gateway_id)
    else:
        subnet = SUBNETS.find(call.tx, params["SubnetId"])
        if subnet.vpc_id != table.vpc_id:
            raise AwsError(
                "InvalidParameterValue",
                f"route table {table.route_table_id} and subnet {subnet.subnet_id} belong to different "
                "networks",
            )
    for other in call.tx.where(RouteTable, vpc_id=table.vpc_id):
        for one in other.associations:
            if one.main or (one.subnet_id, one.gateway_id) != (made.subnet_id, made.gateway_id):
                continue
            if other is not table:
                raise AwsError(
                    "Resource.AlreadyAssociated",
                    f"the specified association for route table {table.route_table_id} conflicts with an "
                    "existing association",
                )
            return {"AssociationId": one.association_id, "AssociationState": {"State": "associated"}}
    call.tx.put(replace(table, associations=(*table.associations, made)))
    return {"AssociationId": made.association_id, "AssociationState": {"State": "associated"}}


def _of_association(call: Call, params: Params) -> list[str]:
    """The table and the subnet or gateway that an association joins, and the table it is moved to."""
    found = on(route_table="RouteTableId")(call, params) if params.get("RouteTableId") else []
    for table in call.tx.all(RouteTable):
        for one in table.associations:
            if one.association_id == params.get("AssociationId"):
                found.append(call.arn("ec2", f"route-table/{table.route_table_id}"))
                if one.subnet_id is not None:
                    found.append(call.arn("ec2", f"subnet/{one.subnet_id}"))
                if one.gateway_id is not None:
                    found.append(call.arn("ec2", f"internet-gateway/{one.gateway_id}"))
    return found or ["*"]


@operation("ec2", "DisassociateRouteTable", resources=_of_association)
def disassociate_route_table(call: Call, params: Params) -> Params:
    table, association = _find_association(call.tx, params["AssociationId"])
    if association.main:
        raise AwsError(
            "InvalidParameterValue",
            f"cannot disassociate the main route table association {association.association_id}",
        )
    call.tx.put(replace(table, associations=tuple(one for one in table.associations if one != association)))
    return {}


@operation("ec2", "ReplaceRouteTableAssociation", resources=_of_association)
def replace_route_table_association(call: Call, params: Params) -> Params:
    """Moves the association of a subnet or gateway, or the main one, to another table of the VPC, under a new
    id."""
    old, association = _find_association(call.tx, params["AssociationId"])
    new = TABLES.find(call.tx, params["RouteTableId"])
    if new.vpc_id != old.vpc_id:
        raise AwsError(
            "InvalidParameterValue",
            f"route tables {new.route_table_id} and {old.route_table_id} belong to different networks",
        )
    if association.gateway_id is not None:
        gateway_tables.check_table(call, new)
    kept = tuple(one for one in old.associations if one != association)
    call.tx.put(replace(old, associations=kept))
    new = TABLES.find(call.tx, new.route_table_id)
    moved = replace(association, association_id=resource_id("rtbassoc"))
    call.tx.put(replace(new, associations=(*new.associations, moved)))
    return {"NewAssociationId": moved.association_id, "AssociationState": {"State": "associated"}}


# Routes

_DESTINATIONS = ("DestinationCidrBlock", "DestinationPrefixListId")


def _destination(call: Call, params: Params) -> str:
    """The canonical destination of a route call. Raises MissingParameter, InvalidParameterCombination,
    InvalidParameterValue, InvalidPrefixListID.NotFound."""
    given = [name for name in _DESTINATIONS if params.get(name)]
    if not given:
        raise AwsError("MissingParameter", "The request must contain the parameter destinationCidrBlock")
    if len(given) > 1:
        raise AwsError(
            "InvalidParameterCombination",
            "The parameter destinationCidrBlock cannot be used with the parameter destinationPrefixListId",
        )
    text: str = params[given[0]]
    if given == ["DestinationCidrBlock"]:
        return str(addresses.parse_cidr(text, "destinationCidrBlock"))
    if prefix_list(call.tx, text) is None:
        raise AwsError("InvalidPrefixListID.NotFound", f"The prefix list ID '{text}' does not exist")
    return text


def _gateway(call: Call, table: RouteTable, target: str) -> str:
    """An internet gateway; endpoints route themselves."""
    if target.startswith("igw-"):
        gateway = call.tx.get(InternetGateway, target)
        if gateway is not None:
            return _same_network(table, gateway.vpc_id, "network gateway", target)
    endpoint = call.tx.get(VpcEndpoint, target)
    if endpoint is not None:
        raise AwsError(
            "InvalidParameterValue",
            f"Routes to the gateway endpoint '{target}' are made and removed with ModifyVpcEndpoint.",
        )
    if target.startswith("vpce-"):
        raise AwsError("InvalidVpcEndpointId.NotFound", f"The Vpc Endpoint Id '{target}' does not exist")
    if target == LOCAL:
        raise AwsError("InvalidParameterValue", "The gateway ID 'local' cannot be the target of this route.")
    raise AwsError("InvalidGatewayID.NotFound", f"The gateway ID '{target}' does not exist")


def _nat_gateway(call: Call, table: RouteTable, target: str) -> str:
    nat = call.tx.get(NatGateway, target)
    if nat is None or nat.deleted is not None:
        raise AwsError("InvalidNatGatewayID.NotFound", f"The natGateway ID '{target}' does not exist")
    return _same_network(table, nat.vpc_id, "NAT gateway", target)


def _peering(call: Call, table: RouteTable, target: str) -> str:
    """AWS: a route to a connection that waits to be accepted is possible, and a black hole until then."""
    peering = call.tx.get(VpcPeering, target)
    if peering is None or not peering.open_at(call.now):
        raise AwsError(
            "InvalidVpcPeeringConnectionID.NotFound",
            f"The vpcPeeringConnection ID '{target}' does not exist",
        )
    ends = (peering.requester_vpc_id, peering.accepter_vpc_id)
    here = table.vpc_id if table.vpc_id in ends else ends[0]
    return _same_network(table, here, "VPC peering connection", target)


def _same_network(table: RouteTable, vpc_id: str | None, what: str, target: str) -> str:
    if vpc_id != table.vpc_id:
        raise AwsError(
            "InvalidParameterValue",
            f"route table {table.route_table_id} and {what} {target} belong to different networks",
        )
    return target


def _interface(call: Call, table: RouteTable, target: str) -> str:
    """AWS: its source/destination check may be on, and the interface attached to nothing (a black hole)."""
    interface = INTERFACES.find(call.tx, target)
    return _same_network(table, interface.vpc_id, "interface", target)


def _missing(code: str, sentence: str) -> Callable[[Call, RouteTable, str], str]:
    def find(call: Call, table: RouteTable, target: str) -> str:
        raise AwsError(code, sentence.format(target))

    return find


#: parameter -> how its target is found: returns the id to route to, or raises
_TARGETS: dict[str, Callable[[Call, RouteTable, str], str]] = {
    "GatewayId": _gateway,
    "VpcEndpointId": _gateway,
    "NetworkInterfaceId": _interface,
    "NatGatewayId": _nat_gateway,
    "InstanceId": _missing("InvalidInstanceID.NotFound", "The instance ID '{}' does not exist"),
    "VpcPeeringConnectionId": _peering,
    "TransitGatewayId": _missing(
        "InvalidTransitGatewayID.NotFound", "The transitGateway ID '{}' does not exist"
    ),
    "EgressOnlyInternetGatewayId": _missing(
        "InvalidGatewayID.NotFound", "The egress only internet gateway ID '{}' does not exist"
    ),
}
#: AWS ("Routing to a middlebox appliance"): what may be the target of a route more specific than `local`
_INSIDE_TARGETS = ("nat", "eni")


def _target(call: Call, table: RouteTable, destination: str, params: Params) -> str:
    given = [name for name in _TARGETS if params.get(name)]
    if not given:
        raise AwsError("MissingParameter", "The request must contain exactly one target of the route")
    if len(given) > 1:
        raise AwsError(
            "InvalidParameterCombination",
            f"The parameter {given[0]} cannot be used with the parameter {given[1]}",
        )
    target = _TARGETS[given[0]](call, table, params[given[0]])
    if gateway_tables.is_for_gateway(table):
        gateway_tables.check_route(call, table, Route(destination=destination, target=target))
    _check_inside(call, table, destination, target)
    return target


def _check_inside(call: Call, table: RouteTable, destination: str, target: str) -> None:
    """AWS: a route more specific than `local` is for all of a subnet's block, to a NAT gateway or an
    interface; these may take the place of `local` itself, too. Raises InvalidParameterValue."""
    vpc = VPCS.find(call.tx, table.vpc_id)
    if _is_list(destination) or not any(addresses.within(destination, cidr) for cidr in vpc.cidrs):
        return
    if target.partition("-")[0] not in _INSIDE_TARGETS:
        raise AwsError(
            "InvalidParameterValue",
            f"Route target is not supported. The destination {destination} is within the VPC, where only NAT "
            "gateways, network interfaces and Gateway Load Balancer endpoints can be targets.",
        )
    subnets = call.tx.where(Subnet, vpc_id=vpc.vpc_id)
    if destination not in vpc.cidrs and not any(subnet.cidr == destination for subnet in subnets):
        raise AwsError(
            "InvalidParameterValue",
            f"The destination CIDR block {destination} is more specific than the local route and is not the "
            f"CIDR block of a subnet of '{vpc.vpc_id}'.",
        )


def _existing(call: Call, table: RouteTable, destination: str) -> Route | None:
    return next((route for route in routes(call.tx, table) if route.destination == destination), None)


@operation("ec2", "CreateRoute", resources=on(route_table="RouteTableId"))
def create_route(call: Call, params: Params) -> Params:
    only(params, "RouteTableId", *_DESTINATIONS, *_TARGETS)
    table = TABLES.find(call.tx, params["RouteTableId"])
    destination = _destination(call, params)
    if _existing(call, table, destination) is not None:
        raise AwsError("RouteAlreadyExists", f"The route identified by {destination} already exists.")
    made = Route(destination=destination, target=_target(call, table, destination, params))
    call.tx.put(replace(table, routes=(*table.routes, made)))
    return {"Return": True}


@operation("ec2", "ReplaceRoute", resources=on(route_table="RouteTableId"))
def replace_route(call: Call, params: Params) -> Params:
    """LocalTarget gives a local route its own target back."""
    only(params, "RouteTableId", "LocalTarget", *_DESTINATIONS, *_TARGETS)
    table, old = _editable(call, params, "replace")
    kept = tuple(one for one in table.routes if one != old)
    if params.get("LocalTarget"):
        given = [name for name in _TARGETS if params.get(name)]
        if given:
            raise AwsError(
                "InvalidParameterCombination",
                f"The parameter LocalTarget cannot be used with the parameter {given[0]}",
            )
        if old.origin != OF_TABLE:
            raise AwsError(
                "InvalidParameterValue", f"The route identified by {old.destination} is not a local route."
            )
        call.tx.put(replace(table, routes=kept))
        return {}
    new = replace(old, target=_target(call, table, old.destination, params))
    if old in table.routes:
        call.tx.put(replace(table, routes=tuple(new if one == old else one for one in table.routes)))
    else:
        call.tx.put(replace(table, routes=(*kept, new)))
    return {}


@operation("ec2", "DeleteRoute", resources=on(route_table="RouteTableId"))
def delete_route(call: Call, params: Params) -> Params:
    only(params, "RouteTableId", *_DESTINATIONS)
    table, old = _editable(call, params, "remove")
    call.tx.put(replace(table, routes=tuple(one for one in table.routes if one != old)))
    return {}


def _editable(call: Call, params: Params, verb: str) -> tuple[RouteTable, Route]:
    """The table and its route to this destination. Raises InvalidRoute.NotFound, and InvalidParameterValue
    for routes that calls cannot touch: a gateway endpoint's; a local one can be replaced, not removed."""
    table = TABLES.find(call.tx, params["RouteTableId"])
    destination = _destination(call, params)
    route = _existing(call, table, destination)
    if route is None and verb == "replace":
        raise AwsError(
            "InvalidParameterValue",
            f"There is no route defined for '{destination}' in the route table. Use CreateRoute instead.",
        )
    if route is None:
        raise AwsError(
            "InvalidRoute.NotFound",
            f"no route with destination {destination} in route table {table.route_table_id}",
        )
    if route.origin == OF_TABLE and verb == "remove":
        raise AwsError(
            "InvalidParameterValue",
            f"cannot {verb} local route {destination} in route table {table.route_table_id}",
        )
    if route.origin != OF_TABLE and route not in table.routes:
        raise AwsError(
            "InvalidParameterValue",
            f"cannot {verb} VPC endpoint route {route.target} in route table {table.route_table_id}",
        )
    return table, route
