"""NAT gateways, public and private: made, described, deleted.

A gateway that cannot work is made all the same and is `failed`, with AWS's code and sentence ("NAT gateway
creation fails", VPC guide). It becomes `available` when the kernel has it. What was deleted or failed stays
listed for an hour.
"""

from __future__ import annotations

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.elastic_ips import ELASTIC_IPS
from cloister.services.ec2.idempotency import echo, once
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.subnets import SUBNETS
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc import nat_gateways
from cloister.vpc.gateways import of_vpc
from cloister.vpc.model import ElasticIp, NatGateway, Subnet
from cloister.wire.errors import AwsError

#: AWS: "a deleted NAT gateway is visible for about an hour", and a failed one
LISTED_SECONDS = 3600


def _state(call: Call, nat: NatGateway) -> str:
    """`deps["applied"]()` is the World that the kernel holds; without it, what is committed counts."""
    if nat.failure_code is not None:
        return "failed"
    applied = call.deps["applied"]() if "applied" in call.deps else call.tx
    held = applied.get(NatGateway, nat.nat_gateway_id)
    if nat.deleted is None:
        return "available" if held is not None else "pending"
    return "deleting" if held is not None and held.deleted is None else "deleted"


def _addresses(call: Call, nat: NatGateway) -> list[Params]:
    shape: Params = {"IsPrimary": True, "Status": "succeeded"}
    if nat.failure_code is not None:
        shape |= {"Status": "failed", "FailureMessage": nat.failure_message}
    if nat.allocation_id is not None:
        shape["AllocationId"] = nat.allocation_id
    if nat.public_ip is not None:
        shape["PublicIp"] = nat.public_ip
    if nat.interface_id:
        shape |= {"NetworkInterfaceId": nat.interface_id, "PrivateIp": nat.private_ip}
    elastic = call.tx.get(ElasticIp, nat.allocation_id)
    if elastic is not None and elastic.association_id and elastic.interface_id == nat.interface_id:
        shape["AssociationId"] = elastic.association_id
    return [shape]


def _shape(call: Call, nat: NatGateway) -> Params:
    shape: Params = {
        "NatGatewayId": nat.nat_gateway_id,
        "VpcId": nat.vpc_id,
        "SubnetId": nat.subnet_id,
        "State": _state(call, nat),
        "ConnectivityType": "public" if nat.public else "private",
        "AvailabilityMode": "zonal",
        "NatGatewayAddresses": _addresses(call, nat),
        "CreateTime": nat.created,
        "Tags": tag_set(nat.tags),
    }
    if nat.deleted is not None:
        shape["DeleteTime"] = nat.deleted
    if nat.failure_code is not None:
        shape |= {"FailureCode": nat.failure_code, "FailureMessage": nat.failure_message}
    return shape


NAT_GATEWAYS: Resource[NatGateway] = Resource(
    result="NatGateways",
    ids="NatGatewayIds",
    key=lambda nat: nat.nat_gateway_id,
    all=lambda world: world.all(NatGateway),
    get=lambda world, nat_gateway_id: world.get(NatGateway, nat_gateway_id),
    shape=_shape,
    prefix="nat",
    not_found="NatGatewayNotFound",
    malformed="NatGatewayMalformed",
    missing="The Nat Gateway {} was not found",
    filters={
        "nat-gateway-id": lambda call, nat: nat.nat_gateway_id,
        "state": _state,
        "subnet-id": lambda call, nat: nat.subnet_id,
        "vpc-id": lambda call, nat: nat.vpc_id,
    },
)


def _is_listed(call: Call, nat: NatGateway) -> bool:
    return nat.deleted is None or call.now - nat.deleted < LISTED_SECONDS


@operation(
    "ec2", "CreateNatGateway", resources=on(natgateway="*", subnet="SubnetId", elastic_ip="AllocationId")
)
def create_nat_gateway(call: Call, params: Params) -> Params:
    """Regional gateways and secondary addresses are refused by name."""
    if params.get("AvailabilityMode") == "zonal":
        params = {name: value for name, value in params.items() if name != "AvailabilityMode"}
    only(
        params,
        "SubnetId",
        "AllocationId",
        "ConnectivityType",
        "PrivateIpAddress",
        "TagSpecifications",
        "ClientToken",
    )
    nat = once(call, "CreateNatGateway", params, NAT_GATEWAYS, lambda: _make(call, params))
    state = "pending" if nat.failure_code is None and nat.deleted is None else _state(call, nat)
    return {"NatGateway": {**_shape(call, nat), "State": state}, **echo(params)}


def _make(call: Call, params: Params) -> NatGateway:
    require(params, "SubnetId")
    for old in [nat for nat in call.tx.all(NatGateway) if not _is_listed(call, nat)]:
        call.tx.delete(NatGateway, old.nat_gateway_id)
    subnet = SUBNETS.find(call.tx, params["SubnetId"])
    public = params.get("ConnectivityType", "public") == "public"
    elastic: ElasticIp | None = None
    if public:
        require(params, "AllocationId")
        elastic = ELASTIC_IPS.find(call.tx, params["AllocationId"])
    elif params.get("AllocationId"):
        raise AwsError(
            "InvalidParameterCombination",
            "The parameter AllocationId cannot be used with the connectivity type private",
        )
    tags = tag_specifications(params, "natgateway")
    why = _unable(call, subnet, elastic)
    if why is not None:
        return _failed(call, subnet, elastic, why, tags)
    wanted = [params["PrivateIpAddress"]] if params.get("PrivateIpAddress") else []
    try:
        return nat_gateways.create(
            call.tx, subnet, elastic=elastic, addresses=wanted, now=call.now, tags=tags
        )
    except AwsError as error:
        if error.code != "InsufficientFreeAddressesInSubnet":
            raise
        message = "Subnet has insufficient free addresses to create this NAT gateway"
        return _failed(call, subnet, elastic, (error.code, message), tags)


def _unable(call: Call, subnet: Subnet, elastic: ElasticIp | None) -> tuple[str, str] | None:
    """Why a public gateway fails in this subnet, as code and sentence; None: it does not."""
    if elastic is None:
        return None
    if elastic.association_id is not None:
        sentence = f"Elastic IP address [{elastic.allocation_id}] is already associated"
        return "Resource.AlreadyAssociated", sentence
    if of_vpc(call.tx, subnet.vpc_id) is None:
        return "Gateway.NotAttached", f"Network {subnet.vpc_id} has no Internet gateway attached"
    return None


def _failed(
    call: Call, subnet: Subnet, elastic: ElasticIp | None, why: tuple[str, str], tags: dict[str, str]
) -> NatGateway:
    nat = NatGateway(
        nat_gateway_id=resource_id("nat"),
        vpc_id=subnet.vpc_id,
        subnet_id=subnet.subnet_id,
        interface_id="",
        private_ip="",
        public=elastic is not None,
        allocation_id=elastic.allocation_id if elastic else None,
        created=call.now,
        deleted=call.now,
        failure_code=why[0],
        failure_message=why[1],
        tags=tags,
    )
    call.tx.put(nat)
    return nat


@operation("ec2", "DescribeNatGateways")
def describe_nat_gateways(call: Call, params: Params) -> Params:
    """The one Describe whose filters are called `Filter`."""
    listed = [nat for nat in call.tx.all(NatGateway) if _is_listed(call, nat)]
    filtered = {**params, "Filters": params.get("Filter", ())}
    return NAT_GATEWAYS.describe(call, filtered, among=listed)


@operation("ec2", "DeleteNatGateway", resources=on(natgateway="NatGatewayId"))
def delete_nat_gateway(call: Call, params: Params) -> Params:
    """Its Elastic IP is the account's again; routes to it stay, as black holes. Repeating it is no error."""
    nat = NAT_GATEWAYS.find(call.tx, params["NatGatewayId"])
    if nat.deleted is None:
        nat_gateways.delete(call.tx, nat, now=call.now)
    return {"NatGatewayId": nat.nat_gateway_id}
