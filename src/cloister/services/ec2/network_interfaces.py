"""Elastic network interfaces: the customer's own, and those of services, which only services manage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import echo, once
from cloister.services.ec2.parameters import exclusive, on, only, require
from cloister.services.ec2.subnets import SUBNETS
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc import elastic_ips
from cloister.vpc.dns import private_name, public_name
from cloister.vpc.interfaces import check_groups, choose_addresses, create_interface, regroup, release
from cloister.vpc.model import NetworkInterface, PrivateAddress, SecurityGroup, Subnet, Vpc
from cloister.wire.errors import AwsError
from cloister.world import World

#: AWS: attachments of interfaces that a service manages belong to this account alias
_SERVICE_OWNER = "amazon-aws"


def primary(interface: NetworkInterface) -> PrivateAddress:
    return next((one for one in interface.addresses if one.primary), interface.addresses[0])


def _status(interface: NetworkInterface) -> str:
    return "in-use" if interface.attachment_id else "available"


def _subnet(world: World, interface: NetworkInterface) -> Subnet:
    return SUBNETS.find(world, interface.subnet_id)


def _dns_name(call: Call, interface: NetworkInterface, address: str) -> str | None:
    """AWS: interfaces have private names where the VPC has DNS hostnames enabled."""
    vpc = call.tx.get(Vpc, interface.vpc_id)
    return private_name(address, call.region) if vpc and vpc.enable_dns_hostnames else None


def _named(call: Call, interface: NetworkInterface, address: str) -> Params:
    name = _dns_name(call, interface, address)
    return {"PrivateIpAddress": address} | ({"PrivateDnsName": name} if name else {})


def _association(call: Call, interface: NetworkInterface, held: PrivateAddress) -> Params:
    """What of an interface's shape tells the public address of one of its addresses; {} without one."""
    if held.public_ip is None:
        return {}
    vpc = call.tx.get(Vpc, interface.vpc_id)
    named = vpc is not None and vpc.enable_dns_hostnames
    association: Params = {
        "PublicIp": held.public_ip,
        "PublicDnsName": public_name(held.public_ip, call.region) if named else "",
        "IpOwnerId": call.account,
    }
    elastic = elastic_ips.of_interface(call.tx, interface.interface_id).get(held.address)
    if elastic is not None and elastic.association_id:
        association |= {"AllocationId": elastic.allocation_id, "AssociationId": elastic.association_id}
    return {"Association": association}


def _associations(call: Call, interface: NetworkInterface, member: str) -> list[str]:
    found = (_association(call, interface, held).get("Association", {}) for held in interface.addresses)
    return [association[member] for association in found if association.get(member)]


def _groups(call: Call, interface: NetworkInterface) -> list[Params]:
    groups = [call.tx.get(SecurityGroup, group_id) for group_id in interface.group_ids]
    return [{"GroupId": group.group_id, "GroupName": group.name} for group in groups if group]


def _attachment(call: Call, interface: NetworkInterface) -> Params | None:
    if interface.attachment_id is None:
        return None
    attachment: Params = {
        "AttachmentId": interface.attachment_id,
        "DeleteOnTermination": interface.requester_managed,
        "DeviceIndex": 1,
        "InstanceOwnerId": owner(call, interface),
        "Status": "attached",
    }
    if interface.attached is not None:
        attachment["AttachTime"] = interface.attached
    return attachment


def owner(call: Call, interface: NetworkInterface) -> str:
    return _SERVICE_OWNER if interface.requester_managed else call.account


def _shape(call: Call, interface: NetworkInterface) -> Params:
    subnet = _subnet(call.tx, interface)
    shape: Params = {
        "NetworkInterfaceId": interface.interface_id,
        "VpcId": interface.vpc_id,
        "SubnetId": interface.subnet_id,
        "AvailabilityZone": subnet.zone,
        "AvailabilityZoneId": subnet.zone_id,
        "OwnerId": call.account,
        "Description": interface.description,
        "InterfaceType": interface.interface_type,
        "MacAddress": interface.mac,
        **_named(call, interface, primary(interface).address),
        **_association(call, interface, primary(interface)),
        "PrivateIpAddresses": [
            {
                **_named(call, interface, one.address),
                "Primary": one.primary,
                **_association(call, interface, one),
            }
            for one in interface.addresses
        ],
        "Groups": _groups(call, interface),
        "Ipv6Addresses": [],
        "RequesterManaged": interface.requester_managed,
        "SourceDestCheck": interface.source_dest_check,
        "Status": _status(interface),
        "TagSet": tag_set(interface.tags),
    }
    if interface.requester_id is not None:
        shape["RequesterId"] = interface.requester_id
    attachment = _attachment(call, interface)
    if attachment is not None:
        shape["Attachment"] = attachment
    return shape


def time_text(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


INTERFACES: Resource[NetworkInterface] = Resource(
    result="NetworkInterfaces",
    ids="NetworkInterfaceIds",
    key=lambda eni: eni.interface_id,
    all=lambda world: world.all(NetworkInterface),
    get=lambda world, interface_id: world.get(NetworkInterface, interface_id),
    shape=_shape,
    prefix="eni",
    not_found="InvalidNetworkInterfaceID.NotFound",
    malformed="InvalidNetworkInterfaceId.Malformed",
    missing="The networkInterface ID '{}' does not exist",
    filters={
        "addresses.association.owner-id": lambda call, eni: _associations(call, eni, "IpOwnerId"),
        "addresses.association.public-ip": lambda call, eni: _associations(call, eni, "PublicIp"),
        "addresses.primary": lambda call, eni: [one.primary for one in eni.addresses],
        "addresses.private-ip-address": lambda call, eni: [one.address for one in eni.addresses],
        "association.allocation-id": lambda call, eni: _associations(call, eni, "AllocationId"),
        "association.association-id": lambda call, eni: _associations(call, eni, "AssociationId"),
        "association.ip-owner-id": lambda call, eni: _associations(call, eni, "IpOwnerId"),
        "association.public-dns-name": lambda call, eni: _associations(call, eni, "PublicDnsName"),
        "association.public-ip": lambda call, eni: _associations(call, eni, "PublicIp"),
        "attachment.attach-time": lambda call, eni: time_text(eni.attached),
        "attachment.attachment-id": lambda call, eni: eni.attachment_id,
        "attachment.delete-on-termination": lambda call, eni: (
            eni.requester_managed if eni.attachment_id else None
        ),
        "attachment.device-index": lambda call, eni: 1 if eni.attachment_id else None,
        "attachment.instance-id": lambda call, eni: None,
        "attachment.instance-owner-id": lambda call, eni: owner(call, eni) if eni.attachment_id else None,
        "attachment.status": lambda call, eni: "attached" if eni.attachment_id else None,
        "availability-zone": lambda call, eni: _subnet(call.tx, eni).zone,
        "availability-zone-id": lambda call, eni: _subnet(call.tx, eni).zone_id,
        "description": lambda call, eni: eni.description,
        "group-id": lambda call, eni: eni.group_ids,
        "group-name": lambda call, eni: [group["GroupName"] for group in _groups(call, eni)],
        "interface-type": lambda call, eni: eni.interface_type,
        "ipv6-addresses.ipv6-address": lambda call, eni: None,
        "mac-address": lambda call, eni: eni.mac,
        "network-interface-id": lambda call, eni: eni.interface_id,
        "operator.managed": lambda call, eni: False,
        "operator.principal": lambda call, eni: None,
        "owner-id": lambda call, eni: call.account,
        "private-dns-name": lambda call, eni: _dns_name(call, eni, primary(eni).address),
        "private-ip-address": lambda call, eni: [one.address for one in eni.addresses],
        "requester-id": lambda call, eni: eni.requester_id,
        "requester-managed": lambda call, eni: eni.requester_managed,
        "source-dest-check": lambda call, eni: eni.source_dest_check,
        "status": lambda call, eni: _status(eni),
        "subnet-id": lambda call, eni: eni.subnet_id,
        "vpc-id": lambda call, eni: eni.vpc_id,
    },
)


@operation(
    "ec2",
    "CreateNetworkInterface",
    resources=on(network_interface="*", subnet="SubnetId", security_group="Groups"),
)
def create_network_interface(call: Call, params: Params) -> Params:
    """PrivateIpAddresses with one primary, or PrivateIpAddress, or AWS chooses; further ones by count."""
    only(
        params,
        "SubnetId",
        "Description",
        "Groups",
        "PrivateIpAddress",
        "PrivateIpAddresses",
        "SecondaryPrivateIpAddressCount",
        "TagSpecifications",
        "ClientToken",
    )
    exclusive(params, "PrivateIpAddress", "PrivateIpAddresses")
    exclusive(params, "PrivateIpAddresses", "SecondaryPrivateIpAddressCount")
    interface = once(call, "CreateNetworkInterface", params, INTERFACES, lambda: _make(call, params))
    return {"NetworkInterface": _shape(call, interface), **echo(params)}


def _make(call: Call, params: Params) -> NetworkInterface:
    wanted = [one["PrivateIpAddress"] for one in _primary_first(params) if one.get("PrivateIpAddress")]
    if params.get("PrivateIpAddress"):
        wanted = [params["PrivateIpAddress"]]
    SUBNETS.find(call.tx, params["SubnetId"])
    return create_interface(
        call.tx,
        subnet_id=params["SubnetId"],
        group_ids=params.get("Groups", ()),
        now=call.now,
        addresses=wanted,
        count=max(len(params.get("PrivateIpAddresses", ())), 1)
        + params.get("SecondaryPrivateIpAddressCount", 0),
        description=params.get("Description", ""),
        requester_id=call.principal.user_id,
        tags=tag_specifications(params, "network-interface"),
    )


def _primary_first(params: Params) -> list[Params]:
    """AWS: exactly one of the addresses is primary; without any, the first."""
    given: list[Params] = params.get("PrivateIpAddresses", [])
    if sum(bool(one.get("Primary")) for one in given) > 1:
        raise AwsError("InvalidParameterValue", "Only one primary private IP address can be specified.")
    return sorted(given, key=lambda one: not one.get("Primary"))


@operation("ec2", "DescribeNetworkInterfaces")
def describe_network_interfaces(call: Call, params: Params) -> Params:
    """IncludeManagedResources adds hidden ones, of which there are none."""
    return INTERFACES.describe(call, params)


@operation("ec2", "DeleteNetworkInterface", resources=on(network_interface="NetworkInterfaceId"))
def delete_network_interface(call: Call, params: Params) -> Params:
    interface = INTERFACES.find(call.tx, params["NetworkInterfaceId"])
    if interface.attachment_id is not None:
        raise AwsError(
            "InvalidNetworkInterface.InUse",
            f"Network interface '{interface.interface_id}' is currently in use.",
        )
    check_own(interface)
    release(call.tx, interface.interface_id)
    return {}


def check_own(interface: NetworkInterface) -> None:
    """Raises OperationNotPermitted for an interface that a service manages."""
    if interface.requester_managed:
        raise AwsError(
            "OperationNotPermitted",
            f"You are not allowed to manage '{interface.interface_id}': "
            f"the network interface is managed by '{interface.requester_id}'.",
        )


_CHANGEABLE = ("Description", "SourceDestCheck", "Groups")


@operation("ec2", "ModifyNetworkInterfaceAttribute", resources=on(network_interface="NetworkInterfaceId"))
def modify_network_interface_attribute(call: Call, params: Params) -> Params:
    """One attribute a call, as AWS asks."""
    interface = INTERFACES.find(call.tx, params["NetworkInterfaceId"])
    only(params, "NetworkInterfaceId", *_CHANGEABLE)
    given = [name for name in _CHANGEABLE if name in params]
    if len(given) != 1:
        raise AwsError(
            "InvalidParameterCombination",
            "Exactly one attribute of the network interface can be modified in a call, "
            f"{len(given)} are given: [{', '.join(given)}]",
        )
    check_own(interface)
    if given == ["Description"]:
        interface = replace(interface, description=params["Description"].get("Value", ""))
    elif given == ["Groups"]:
        if not params["Groups"]:
            raise AwsError("InvalidParameterValue", "A network interface needs at least one security group")
        groups = check_groups(call.tx, params["Groups"], _subnet(call.tx, interface))
        regroup(call.tx, interface, groups)
        return {}
    else:
        interface = replace(interface, source_dest_check=params["SourceDestCheck"].get("Value", True))
    call.tx.put(interface)
    return {}


@operation("ec2", "DescribeNetworkInterfaceAttribute", resources=on(network_interface="NetworkInterfaceId"))
def describe_network_interface_attribute(call: Call, params: Params) -> Params:
    interface = INTERFACES.find(call.tx, params["NetworkInterfaceId"])
    require(params, "Attribute")
    attachment = _attachment(call, interface)
    values: dict[str, Params] = {
        "description": {"Description": {"Value": interface.description}},
        "groupSet": {"Groups": _groups(call, interface)},
        "sourceDestCheck": {"SourceDestCheck": {"Value": interface.source_dest_check}},
        "attachment": {} if attachment is None else {"Attachment": attachment},
        "associatePublicIpAddress": {"AssociatePublicIpAddress": False},
    }
    if params["Attribute"] not in values:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({params['Attribute']}) for parameter attribute is invalid. Unknown attribute.",
        )
    return {"NetworkInterfaceId": interface.interface_id, **values[params["Attribute"]]}


@operation("ec2", "AssignPrivateIpAddresses", resources=on(network_interface="NetworkInterfaceId"))
def assign_private_ip_addresses(call: Call, params: Params) -> Params:
    """AllowReassignment, which takes an address away from another interface, is refused."""
    only(params, "NetworkInterfaceId", "PrivateIpAddresses", "SecondaryPrivateIpAddressCount")
    exclusive(params, "PrivateIpAddresses", "SecondaryPrivateIpAddressCount")
    interface = INTERFACES.find(call.tx, params["NetworkInterfaceId"])
    check_own(interface)
    wanted = params.get("PrivateIpAddresses", [])
    count = len(wanted) or params.get("SecondaryPrivateIpAddressCount", 0)
    if count < 1:
        raise AwsError(
            "MissingParameter",
            "The request must contain the parameter privateIpAddresses or secondaryPrivateIpAddressCount",
        )
    added = choose_addresses(call.tx, _subnet(call.tx, interface), wanted, count, interface.interface_id)
    held = (*interface.addresses, *(PrivateAddress(address=address) for address in added))
    call.tx.put(replace(interface, addresses=held))
    return {
        "NetworkInterfaceId": interface.interface_id,
        "AssignedPrivateIpAddresses": [{"PrivateIpAddress": address} for address in added],
    }


@operation("ec2", "UnassignPrivateIpAddresses", resources=on(network_interface="NetworkInterfaceId"))
def unassign_private_ip_addresses(call: Call, params: Params) -> Params:
    only(params, "NetworkInterfaceId", "PrivateIpAddresses")
    require(params, "PrivateIpAddresses")
    interface = INTERFACES.find(call.tx, params["NetworkInterfaceId"])
    check_own(interface)
    held = {one.address: one for one in interface.addresses}
    for address in params["PrivateIpAddresses"]:
        if address not in held or held[address].primary:
            raise AwsError(
                "InvalidParameterValue",
                f"Some of the specified addresses are not assigned to interface {interface.interface_id} "
                f"as secondary ones: {address}",
            )
    for private_ip, elastic in elastic_ips.of_interface(call.tx, interface.interface_id).items():
        if private_ip in params["PrivateIpAddresses"]:
            elastic_ips.disassociate(call.tx, elastic.allocation_id)
    interface = INTERFACES.find(call.tx, interface.interface_id)
    kept = tuple(one for one in interface.addresses if one.address not in params["PrivateIpAddresses"])
    call.tx.put(replace(interface, addresses=kept))
    return {}
