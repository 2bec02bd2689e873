"""Elastic IPs: allocated, associated with a private address of an interface, described, released."""

from __future__ import annotations

from ipaddress import IPv4Address

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, paginate, tag_set
from cloister.services.ec2.network_interfaces import INTERFACES, check_own, owner, primary
from cloister.services.ec2.parameters import exclusive, on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc import addresses
from cloister.vpc.elastic_ips import ADDRESSES_PER_ACCOUNT, associate, disassociate, free, taken
from cloister.vpc.gateways import PUBLIC_POOL, of_vpc
from cloister.vpc.model import ElasticIp, NetworkInterface
from cloister.wire.errors import AwsError
from cloister.world import World


def _shape(call: Call, elastic: ElasticIp) -> Params:
    shape: Params = {
        "AllocationId": elastic.allocation_id,
        "PublicIp": elastic.public_ip,
        "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": call.region,
        "Domain": "vpc",
        "Tags": tag_set(elastic.tags),
    }
    interface = call.tx.get(NetworkInterface, elastic.interface_id)
    if interface is not None and elastic.association_id and elastic.private_ip:
        shape |= {
            "AssociationId": elastic.association_id,
            "NetworkInterfaceId": interface.interface_id,
            "NetworkInterfaceOwnerId": call.account,
            "PrivateIpAddress": elastic.private_ip,
        }
    return shape


ELASTIC_IPS: Resource[ElasticIp] = Resource(
    result="Addresses",
    ids="AllocationIds",
    key=lambda elastic: elastic.allocation_id,
    all=lambda world: world.all(ElasticIp),
    get=lambda world, allocation_id: world.get(ElasticIp, allocation_id),
    shape=_shape,
    prefix="eipalloc",
    not_found="InvalidAllocationID.NotFound",
    missing="The allocation ID '{}' does not exist",
    filters={
        "allocation-id": lambda call, elastic: elastic.allocation_id,
        "association-id": lambda call, elastic: elastic.association_id,
        "domain": lambda call, elastic: "vpc",
        "instance-id": lambda call, elastic: None,
        "network-border-group": lambda call, elastic: call.region,
        "network-interface-id": lambda call, elastic: elastic.interface_id,
        "network-interface-owner-id": lambda call, elastic: call.account if elastic.interface_id else None,
        "private-ip-address": lambda call, elastic: elastic.private_ip,
        "public-ip": lambda call, elastic: elastic.public_ip,
    },
)


def _by_address(world: World, public_ip: str) -> ElasticIp:
    """Raises InvalidAddress.Malformed, InvalidAddress.NotFound."""
    try:
        address = str(IPv4Address(public_ip))
    except ValueError:
        raise AwsError("InvalidAddress.Malformed", f"Invalid IPv4 address: '{public_ip}'") from None
    found = next((one for one in world.all(ElasticIp) if one.public_ip == address), None)
    if found is None:
        raise AwsError("InvalidAddress.NotFound", f"Address '{public_ip}' not found.")
    return found


@operation("ec2", "AllocateAddress", resources=on(elastic_ip="*"))
def allocate_address(call: Call, params: Params) -> Params:
    """A free address of the pool; with `Address`, the one named (AWS: recovering a released one)."""
    if params.get("Domain", "vpc") != "vpc":
        raise AwsError("InvalidParameterValue", f"Invalid value '{params['Domain']}' for domain.")
    if params.get("PublicIpv4Pool", "amazon") != "amazon":
        raise AwsError(
            "InvalidPublicIpv4PoolID.NotFound",
            f"The publicIpv4Pool ID '{params['PublicIpv4Pool']}' does not exist",
        )
    if params.get("NetworkBorderGroup", call.region) != call.region:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({params['NetworkBorderGroup']}) for parameter networkBorderGroup is invalid.",
        )
    only(params, "Domain", "Address", "PublicIpv4Pool", "NetworkBorderGroup", "TagSpecifications")
    if call.tx.count(ElasticIp) >= ADDRESSES_PER_ACCOUNT:
        raise AwsError(
            "AddressLimitExceeded",
            f"The maximum number of addresses has been reached: {ADDRESSES_PER_ACCOUNT}.",
        )
    allocation_id = resource_id("eipalloc")
    public_ip = _wanted(call.tx, params["Address"]) if params.get("Address") else free(call.tx, allocation_id)
    if public_ip is None:
        raise AwsError("InsufficientAddressCapacity", "There is no free public address left.")
    elastic = ElasticIp(
        allocation_id=allocation_id, public_ip=public_ip, tags=tag_specifications(params, "elastic-ip")
    )
    call.tx.put(elastic)
    return {
        "PublicIp": public_ip,
        "AllocationId": allocation_id,
        "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": call.region,
        "Domain": "vpc",
    }


def _wanted(world: World, text: str) -> str:
    address = addresses.parse_address(text, "address")
    usable = address in PUBLIC_POOL and address not in (
        PUBLIC_POOL.network_address,
        PUBLIC_POOL.broadcast_address,
    )
    if not usable or str(IPv4Address(address)) in taken(world):
        raise AwsError(
            "InvalidAddress.NotFound",
            f"The address '{text}' is not free for this account: public addresses are of {PUBLIC_POOL}.",
        )
    return str(address)


def _named(call: Call, params: Params) -> ElasticIp:
    """The Elastic IP that AllocationId or PublicIp names."""
    exclusive(params, "AllocationId", "PublicIp")
    if params.get("PublicIp"):
        return _by_address(call.tx, params["PublicIp"])
    require(params, "AllocationId")
    return ELASTIC_IPS.find(call.tx, params["AllocationId"])


@operation("ec2", "ReleaseAddress", resources=on(elastic_ip="AllocationId"))
def release_address(call: Call, params: Params) -> Params:
    only(params, "AllocationId", "PublicIp", "NetworkBorderGroup")
    if params.get("PublicIp") and not params.get("AllocationId"):
        raise AwsError(
            "InvalidParameterValue",
            "You must specify an allocation id when releasing a VPC elastic IP address",
        )
    elastic = _named(call, params)
    border = params.get("NetworkBorderGroup", call.region)
    if border != call.region:
        raise AwsError(
            "InvalidAddress.NotFound",
            f"Address '{elastic.public_ip}' not found in the network border group '{border}'.",
        )
    if elastic.association_id is not None:
        raise AwsError("InvalidIPAddress.InUse", f"Address {elastic.public_ip} is in use.")
    call.tx.delete(ElasticIp, elastic.allocation_id)
    return {}


@operation(
    "ec2",
    "AssociateAddress",
    resources=on(elastic_ip="AllocationId", network_interface="NetworkInterfaceId"),
)
def associate_address(call: Call, params: Params) -> Params:
    """AWS: an address in use moves, unless AllowReassociation is false; repeating it is no error."""
    only(
        params,
        "AllocationId",
        "PublicIp",
        "InstanceId",
        "NetworkInterfaceId",
        "PrivateIpAddress",
        "AllowReassociation",
    )
    elastic = _named(call, params)
    exclusive(params, "InstanceId", "NetworkInterfaceId")
    if params.get("InstanceId"):
        raise AwsError(
            "InvalidInstanceID.NotFound", f"The instance ID '{params['InstanceId']}' does not exist"
        )
    require(params, "NetworkInterfaceId")
    interface = INTERFACES.find(call.tx, params["NetworkInterfaceId"])
    check_own(interface)
    held = {one.address: one for one in interface.addresses}
    private_ip = primary(interface).address
    if params.get("PrivateIpAddress"):
        private_ip = str(addresses.parse_address(params["PrivateIpAddress"]))
    if private_ip not in held:
        raise AwsError(
            "InvalidParameterValue",
            f"The address '{private_ip}' is not assigned to the interface '{interface.interface_id}'.",
        )
    if (elastic.interface_id, elastic.private_ip) == (interface.interface_id, private_ip):
        return {"AssociationId": elastic.association_id}
    if of_vpc(call.tx, interface.vpc_id) is None:
        raise AwsError(
            "Gateway.NotAttached", f"Network {interface.vpc_id} is not attached to any internet gateway"
        )
    if elastic.association_id is not None:
        _check_not_natted(call, elastic)
    if not params.get("AllowReassociation", True):
        _check_free(elastic, held[private_ip].public_ip)
    made = associate(call.tx, elastic.allocation_id, interface.interface_id, private_ip)
    return {"AssociationId": made.association_id}


def _check_free(elastic: ElasticIp, other: str | None) -> None:
    if elastic.association_id is not None:
        raise AwsError(
            "Resource.AlreadyAssociated",
            f"resource {elastic.allocation_id} is already associated with associate-id "
            f"{elastic.association_id}",
        )
    if other is not None:
        raise AwsError(
            "Resource.AlreadyAssociated", f"the private address is already associated with {other}"
        )


def _check_not_natted(call: Call, elastic: ElasticIp) -> None:
    """A NAT gateway keeps its address while it lives. Raises AuthFailure."""
    interface = call.tx.get(NetworkInterface, elastic.interface_id)
    if interface is not None and owner(call, interface) != call.account:
        raise AwsError(
            "AuthFailure",
            f"You do not have permission to access the specified resource: {elastic.public_ip} is used by "
            f"'{interface.interface_id}', which is managed by '{interface.requester_id}'.",
            403,
        )


def _of_association(call: Call, params: Params) -> list[str]:
    found = [
        one.allocation_id
        for one in call.tx.all(ElasticIp)
        if one.association_id and one.association_id == params.get("AssociationId")
    ]
    return [call.arn("ec2", f"elastic-ip/{allocation_id}") for allocation_id in found] or ["*"]


@operation("ec2", "DisassociateAddress", resources=_of_association)
def disassociate_address(call: Call, params: Params) -> Params:
    only(params, "AssociationId", "PublicIp")
    exclusive(params, "AssociationId", "PublicIp")
    if params.get("PublicIp"):
        elastic = _by_address(call.tx, params["PublicIp"])
    else:
        require(params, "AssociationId")
        wanted = params["AssociationId"]
        known = (one for one in call.tx.all(ElasticIp) if one.association_id == wanted)
        found = next(known, None)
        if found is None:
            raise AwsError("InvalidAssociationID.NotFound", f"The association ID '{wanted}' does not exist")
        elastic = found
    _check_not_natted(call, elastic)
    disassociate(call.tx, elastic.allocation_id)
    return {}


@operation("ec2", "DescribeAddresses")
def describe_addresses(call: Call, params: Params) -> Params:
    wanted = params.get("PublicIps", ())
    if not wanted:
        return ELASTIC_IPS.describe(call, params)
    chosen = {one.allocation_id: one for one in (_by_address(call.tx, text) for text in wanted)}
    chosen |= {one: ELASTIC_IPS.find(call.tx, one) for one in params.get("AllocationIds", ())}
    rest = {name: value for name, value in params.items() if name != "AllocationIds"}
    return ELASTIC_IPS.describe(call, rest, among=chosen.values())


@operation("ec2", "DescribeAddressesAttribute")
def describe_addresses_attribute(call: Call, params: Params) -> Params:
    """Reverse DNS names of Elastic IPs, of which there are none."""
    chosen = [ELASTIC_IPS.find(call.tx, one) for one in params.get("AllocationIds", ())]
    found = chosen or list(call.tx.all(ElasticIp))
    page, token = paginate(found, ELASTIC_IPS.key, params, 1, 1000, scope="AddressesAttribute")
    response: Params = {
        "Addresses": [{"PublicIp": one.public_ip, "AllocationId": one.allocation_id} for one in page]
    }
    return response | ({"NextToken": token} if token else {})
