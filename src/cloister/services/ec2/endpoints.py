"""VPC endpoints: gateway endpoints, and the calls that they share with interface endpoints.

`VpcEndpoint.route_table_ids` is the one record of where an endpoint is routed; the `pl-… → vpce-…` routes
are derived from it (vpc/route_tables.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cloister.iam.policy import parse as parse_policy
from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2 import gateway_tables, interface_endpoints
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import echo, once
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.route_tables import TABLES
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.services.ec2.zones import zones
from cloister.vpc.endpoints import SERVICES as GATEWAY_SERVICES
from cloister.vpc.endpoints import prefix_list_of
from cloister.vpc.interface_endpoints import SERVICES as INTERFACE_SERVICES
from cloister.vpc.model import Route, RouteTable, VpcEndpoint
from cloister.wire.errors import AwsError

#: AWS: what an endpoint without a policy of its own has
FULL_ACCESS = json.dumps(
    {
        "Version": "2008-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}],
    }
)


def _shape(call: Call, endpoint: VpcEndpoint) -> Params:
    return {
        "VpcEndpointId": endpoint.endpoint_id,
        "VpcEndpointType": endpoint.kind,
        "VpcId": endpoint.vpc_id,
        "ServiceName": endpoint.service_name,
        "ServiceRegion": call.region,
        "State": endpoint.state,
        "PolicyDocument": endpoint.policy,
        "RouteTableIds": list(endpoint.route_table_ids),
        "SubnetIds": [],
        "Groups": [],
        "PrivateDnsEnabled": False,
        "RequesterManaged": False,
        "NetworkInterfaceIds": [],
        "DnsEntries": [],
        "CreationTimestamp": endpoint.created,
        "Tags": tag_set(endpoint.tags),
        "OwnerId": call.account,
    } | (interface_endpoints.shape(call, endpoint) if endpoint.kind == "Interface" else {})


ENDPOINTS: Resource[VpcEndpoint] = Resource(
    result="VpcEndpoints",
    ids="VpcEndpointIds",
    key=lambda endpoint: endpoint.endpoint_id,
    all=lambda world: world.all(VpcEndpoint),
    get=lambda world, endpoint_id: world.get(VpcEndpoint, endpoint_id),
    shape=_shape,
    prefix="vpce",
    not_found="InvalidVpcEndpointId.NotFound",
    malformed="InvalidVpcEndpointId.Malformed",
    missing="The Vpc Endpoint Id '{}' does not exist",
    page=(1, 1000),
    filters={
        "ip-address-type": lambda call, endpoint: "ipv4",
        "service-name": lambda call, endpoint: endpoint.service_name,
        "service-region": lambda call, endpoint: call.region,
        "vpc-id": lambda call, endpoint: endpoint.vpc_id,
        "vpc-endpoint-id": lambda call, endpoint: endpoint.endpoint_id,
        "vpc-endpoint-state": lambda call, endpoint: endpoint.state,
        "vpc-endpoint-type": lambda call, endpoint: endpoint.kind,
    },
)


def _policy(text: str) -> str:
    """A policy document, validated, as it was given. Raises InvalidPolicyDocument."""
    parse_policy(text, "endpoint")
    return text


def _tables(call: Call, endpoint: VpcEndpoint, table_ids: Sequence[str]) -> tuple[str, ...]:
    """Route tables that the endpoint may be routed in: of its VPC, with no other endpoint of the service.
    Raises InvalidRouteTableID.NotFound, InvalidParameterValue, RouteAlreadyExists."""
    chosen = tuple(dict.fromkeys(table_ids))
    for table_id in chosen:
        table = TABLES.find(call.tx, table_id)
        if table.vpc_id != endpoint.vpc_id:
            raise AwsError(
                "InvalidParameterValue",
                f"Route table {table_id} and VPC {endpoint.vpc_id} belong to different networks.",
            )
        _check_free(call, endpoint, table)
        if gateway_tables.is_for_gateway(table):
            route = Route(destination=endpoint.service_name, target=endpoint.endpoint_id)
            gateway_tables.check_route(call, table, route)
    return chosen


def _check_free(call: Call, endpoint: VpcEndpoint, table: RouteTable) -> None:
    for other in call.tx.where(VpcEndpoint, vpc_id=endpoint.vpc_id):
        same_service = other.service_name == endpoint.service_name
        if same_service and other != endpoint and table.route_table_id in other.route_table_ids:
            listed = prefix_list_of(endpoint)
            destination = listed.prefix_list_id if listed is not None else endpoint.service_name
            raise AwsError(
                "RouteAlreadyExists",
                f"route table {table.route_table_id} already has a route with destination-prefix-list-id "
                f"{destination}",
            )


def _on(**resources: str | tuple[str, ...]) -> Callable[[Call, Params], list[str]]:
    """`on`, where SubnetConfigurations stands for the subnets that it names."""
    arns = on(**resources)

    def with_configured(call: Call, params: Params) -> list[str]:
        subnet_ids = [each.get("SubnetId") for each in params.get("SubnetConfigurations", ())]
        return arns(call, {**params, "SubnetConfigurations": [one for one in subnet_ids if one]})

    return with_configured


@operation(
    "ec2",
    "CreateVpcEndpoint",
    resources=_on(
        vpc_endpoint="*",
        vpc="VpcId",
        route_table="RouteTableIds",
        subnet=("SubnetIds", "SubnetConfigurations"),
        security_group="SecurityGroupIds",
    ),
    context=lambda call, params: {
        "ec2:VpceServiceName": params.get("ServiceName", ""),
        "ec2:VpceServiceOwner": "amazon",
    },
)
def create_vpc_endpoint(call: Call, params: Params) -> Params:
    if params.get("ServiceRegion") == call.region:
        params = {name: value for name, value in params.items() if name != "ServiceRegion"}
    kind = params.get("VpcEndpointType", "Gateway")
    shared = ("VpcEndpointType", "VpcId", "ServiceName", "PolicyDocument", "TagSpecifications", "ClientToken")
    if kind == "Gateway":
        _only_of_gateways(params)
        only(params, *shared, "RouteTableIds")
        make = _make_endpoint
    elif kind == "Interface":
        _only_of_interfaces(params)
        only(params, *shared, *interface_endpoints.PARAMETERS)
        make = _make_interface_endpoint
    else:
        raise AwsError(
            "UnsupportedOperation",
            f"VpcEndpointType '{kind}' is not supported: Cloister does not implement it, only Gateway and "
            "Interface.",
        )
    require(params, "ServiceName")
    _check_kind(call, params["ServiceName"], kind)
    endpoint = once(call, "CreateVpcEndpoint", params, ENDPOINTS, lambda: make(call, params))
    return {"VpcEndpoint": _shape(call, endpoint), **echo(params)}


def _check_kind(call: Call, service_name: str, kind: str) -> None:
    """Raises InvalidServiceName, InvalidParameter for a service that has no endpoints of this kind."""
    kinds = [service.kind for service in services(call.region) if service.name == service_name]
    if not kinds:
        raise AwsError("InvalidServiceName", f"The Vpc Endpoint Service '{service_name}' does not exist")
    if kind not in kinds:
        raise AwsError(
            "InvalidParameter",
            f"Endpoint type ({kind}) does not match available service types ([{', '.join(kinds)}]) of "
            f"{service_name}.",
        )


def _make_interface_endpoint(call: Call, params: Params) -> VpcEndpoint:
    policy = _policy(params["PolicyDocument"]) if params.get("PolicyDocument") else FULL_ACCESS
    return interface_endpoints.make(call, params, policy)


def _make_endpoint(call: Call, params: Params) -> VpcEndpoint:
    vpc = VPCS.find(call.tx, params["VpcId"])
    if not vpc.enable_dns_support:
        raise AwsError(
            "InvalidParameter",
            f"A gateway endpoint requires enableDnsSupport, which is false for the vpc '{vpc.vpc_id}'.",
        )
    endpoint = VpcEndpoint(
        endpoint_id=resource_id("vpce"),
        vpc_id=vpc.vpc_id,
        service_name=params["ServiceName"],
        policy=_policy(params["PolicyDocument"]) if params.get("PolicyDocument") else FULL_ACCESS,
        created=call.now,
        tags=tag_specifications(params, "vpc-endpoint"),
    )
    endpoint = replace(endpoint, route_table_ids=_tables(call, endpoint, params.get("RouteTableIds", ())))
    call.tx.put(endpoint)
    return endpoint


def _only_of_gateways(params: Params) -> None:
    """Raises InvalidParameter for what belongs to interface endpoints."""
    for name in interface_endpoints.PARAMETERS:
        if params.get(name):
            raise AwsError(
                "InvalidParameter", f"The parameter {name} cannot be used with endpoints of the type Gateway."
            )


def _only_of_interfaces(params: Params) -> None:
    """Raises InvalidParameter for what belongs to gateway endpoints."""
    for name in ("RouteTableIds", "AddRouteTableIds", "RemoveRouteTableIds"):
        if params.get(name):
            raise AwsError(
                "InvalidParameter",
                f"The parameter {name} cannot be used with endpoints of the type Interface.",
            )


@operation("ec2", "DescribeVpcEndpoints")
def describe_vpc_endpoints(call: Call, params: Params) -> Params:
    return ENDPOINTS.describe(call, _capped(params))


def _capped(params: Params) -> Params:
    """AWS: "If the value is greater than 1,000, we return only 1,000 items." """
    wanted = params.get("MaxResults")
    return params if wanted is None else {**params, "MaxResults": min(wanted, ENDPOINTS.page[1])}


@operation(
    "ec2",
    "ModifyVpcEndpoint",
    resources=_on(
        vpc_endpoint="VpcEndpointId",
        route_table=("AddRouteTableIds", "RemoveRouteTableIds"),
        subnet=("AddSubnetIds", "RemoveSubnetIds", "SubnetConfigurations"),
        security_group=("AddSecurityGroupIds", "RemoveSecurityGroupIds"),
    ),
)
def modify_vpc_endpoint(call: Call, params: Params) -> Params:
    endpoint = ENDPOINTS.find(call.tx, params["VpcEndpointId"])
    shared = ("VpcEndpointId", "ResetPolicy", "PolicyDocument")
    if endpoint.kind == "Interface":
        _only_of_interfaces(params)
        only(params, *shared, *interface_endpoints.PARAMETERS)
    else:
        _only_of_gateways(params)
        only(params, *shared, "AddRouteTableIds", "RemoveRouteTableIds")
    if params.get("ResetPolicy") and params.get("PolicyDocument"):
        raise AwsError(
            "InvalidParameterCombination",
            "The parameter ResetPolicy cannot be used with the parameter PolicyDocument",
        )
    policy = endpoint.policy
    if params.get("ResetPolicy"):
        policy = FULL_ACCESS
    elif params.get("PolicyDocument"):
        policy = _policy(params["PolicyDocument"])
    if endpoint.kind == "Interface":
        interface_endpoints.modify(call, endpoint, params, policy)
        return {"Return": True}
    removed = params.get("RemoveRouteTableIds", ())
    for table_id in removed:
        TABLES.find(call.tx, table_id)
        if table_id not in endpoint.route_table_ids:
            raise AwsError(
                "InvalidParameterValue",
                f"The route table '{table_id}' is not associated with the endpoint '{endpoint.endpoint_id}'.",
            )
    kept = [table_id for table_id in endpoint.route_table_ids if table_id not in removed]
    tables = _tables(call, endpoint, [*kept, *params.get("AddRouteTableIds", ())])
    call.tx.put(replace(endpoint, policy=policy, route_table_ids=tables))
    return {"Return": True}


@operation("ec2", "DeleteVpcEndpoints", resources=on(vpc_endpoint="VpcEndpointIds"))
def delete_vpc_endpoints(call: Call, params: Params) -> Params:
    """Deletes what it can; what it cannot is listed, and is no error of the call."""
    unsuccessful: list[Params] = []
    for endpoint_id in dict.fromkeys(params["VpcEndpointIds"]):
        try:
            endpoint = ENDPOINTS.find(call.tx, endpoint_id)
        except AwsError as error:
            unsuccessful.append(
                {"ResourceId": endpoint_id, "Error": {"Code": error.code, "Message": error.message}}
            )
        else:
            interface_endpoints.remove(call, endpoint)
    return {"Unsuccessful": unsuccessful}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that endpoints of a kind can be made for."""

    name: str
    kind: str
    dns_name: str  # under which the endpoints' names are
    private_names: tuple[str, ...] = ()

    @property
    def service_id(self) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.name}".encode()).hexdigest()
        return f"vpce-svc-0{digest[:16]}"


def services(region: str) -> list[Service]:
    return [
        *(
            Service(name=service.name(region), kind="Gateway", dns_name=service.host(region))
            for service in GATEWAY_SERVICES.values()
        ),
        *(
            Service(
                name=service.name(region),
                kind="Interface",
                dns_name=f"{service.host}.{region}.vpce.amazonaws.com",
                private_names=service.private_names(region),
            )
            for service in INTERFACE_SERVICES.values()
        ),
    ]


def _service_shape(call: Call, service: Service) -> Params:
    shape: Params = {
        "ServiceName": service.name,
        "ServiceId": service.service_id,
        "ServiceType": [{"ServiceType": service.kind}],
        "ServiceRegion": call.region,
        "AvailabilityZones": [zone.name for zone in zones(call.region)],
        "AvailabilityZoneIds": [zone.zone_id for zone in zones(call.region)],
        "Owner": "amazon",
        "BaseEndpointDnsNames": [service.dns_name],
        "VpcEndpointPolicySupported": True,
        "AcceptanceRequired": False,
        "ManagesVpcEndpoints": False,
        "PrivateDnsNames": [{"PrivateDnsName": name} for name in service.private_names],
        "Tags": [],
        "SupportedIpAddressTypes": ["ipv4"],
    }
    if service.private_names:
        shape["PrivateDnsName"] = service.private_names[0]
        shape["PrivateDnsNameVerificationState"] = "verified"
    return shape


SERVICES: Resource[Service] = Resource(
    result="ServiceDetails",
    key=lambda service: f"{service.name}/{service.kind}",
    all=lambda world: (),
    shape=_service_shape,
    page=(1, 1000),
    filters={
        "owner": lambda call, service: "amazon",
        "service-name": lambda call, service: service.name,
        "service-region": lambda call, service: call.region,
        "service-type": lambda call, service: service.kind,
        "supported-ip-address-types": lambda call, service: "ipv4",
    },
)


@operation("ec2", "DescribeVpcEndpointServices")
def describe_vpc_endpoint_services(call: Call, params: Params) -> Params:
    """The services of this region that endpoints can be made for."""
    found = services(call.region)
    regions = params.get("ServiceRegions")
    if regions and call.region not in regions:
        found = []
    wanted = params.get("ServiceNames", ())
    unknown = [name for name in wanted if name not in {service.name for service in found}]
    if unknown:
        raise AwsError("InvalidServiceName", f"The Vpc Endpoint Service '{unknown[0]}' does not exist")
    if wanted:
        found = [service for service in found if service.name in wanted]
    response = SERVICES.describe(call, _capped(params), among=found)
    found_names = dict.fromkeys(one["ServiceName"] for one in response["ServiceDetails"])
    return {"ServiceNames": list(found_names), **response}
