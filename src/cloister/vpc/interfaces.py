"""Elastic network interfaces: made, attached to namespaces, released.

Used by EC2's CreateNetworkInterface and by processing jobs alike: one set of rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cloister.ids import resource_id
from cloister.vpc import addresses as ip
from cloister.vpc import elastic_ips
from cloister.vpc.model import ElasticIp, NetworkInterface, PrivateAddress, SecurityGroup, Subnet
from cloister.wire.errors import AwsError
from cloister.world import Transaction, World

#: AWS's default quota
GROUPS_PER_INTERFACE = 5
#: the namespaces of a processing instance's two addresses: the container's, the platform agent's
CONTAINER, AGENT = "", "-agent"


def create_interface(
    tx: Transaction,
    *,
    subnet_id: str,
    group_ids: Sequence[str] = (),
    now: float,
    addresses: Sequence[str] = (),
    count: int = 1,
    attach: Sequence[str] = (),
    description: str = "",
    requester_managed: bool = False,
    requester_id: str | None = None,
    interface_type: str = "interface",
    tags: dict[str, str] | None = None,
) -> NetworkInterface:
    """Put a new interface into `tx` and return it.

    `addresses` are wanted ones, the first becomes primary; `count` is how many it has in all. `attach`
    gives, for its first addresses, the suffix of the namespace each is attached to: `(CONTAINER, AGENT)`
    makes `eni-0…` and `eni-0…-agent`. No `group_ids`: the VPC's default group.

    Raises InvalidSubnetID.NotFound, InvalidGroup.NotFound, InvalidParameterValue (another VPC's group; an
    address outside the subnet or reserved), SecurityGroupsPerInterfaceLimitExceeded,
    InvalidIPAddress.InUse, InsufficientFreeAddressesInSubnet."""
    subnet = tx.get(Subnet, subnet_id)
    if subnet is None:
        raise AwsError("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist")
    groups = check_groups(tx, group_ids, subnet)
    interface_id = resource_id("eni")
    chosen = choose_addresses(tx, subnet, addresses, max(count, len(addresses), len(attach), 1), interface_id)
    interface = NetworkInterface(
        interface_id=interface_id,
        vpc_id=subnet.vpc_id,
        subnet_id=subnet_id,
        mac=ip.mac(subnet.vpc_id, chosen[0]),
        addresses=tuple(
            PrivateAddress(
                address=address,
                primary=i == 0,
                netns=interface_id + attach[i] if i < len(attach) else None,
            )
            for i, address in enumerate(chosen)
        ),
        group_ids=groups,
        description=description,
        interface_type=interface_type,
        requester_id=requester_id,
        requester_managed=requester_managed,
        attachment_id=resource_id("eni-attach") if attach else None,
        attached=now if attach else None,
        tags=dict(tags or {}),
    )
    _check_link_group(tx, interface)
    tx.put(interface)
    return interface


def regroup(tx: Transaction, interface: NetworkInterface, group_ids: tuple[str, ...]) -> None:
    """Give an interface other groups, which were checked."""
    interface = replace(interface, group_ids=group_ids)
    _check_link_group(tx, interface)
    tx.put(interface)


def _check_link_group(world: World, interface: NetworkInterface) -> None:
    """The kernel asks for the link group only: two sets of groups may not have one (a chance of 2^-31)."""
    other = next(world.where(NetworkInterface, link_group=interface.link_group), interface)
    if other.alike != interface.alike:
        raise AwsError(
            "InternalError",
            f"Interfaces in {interface.subnet_id} with {', '.join(interface.group_ids)} cannot be told apart "
            f"from those in {other.subnet_id} with {', '.join(other.group_ids)}: use another security group.",
        )


def attach(
    tx: Transaction, interface_id: str, suffixes: Sequence[str] = (CONTAINER,), *, now: float
) -> NetworkInterface:
    """Attach the first addresses of an interface to namespaces named after it. Idempotent.
    Raises InvalidNetworkInterfaceID.NotFound."""
    interface = get(tx, interface_id)
    held = tuple(
        replace(address, netns=interface_id + suffixes[i] if i < len(suffixes) else None)
        for i, address in enumerate(interface.addresses)
    )
    if held == interface.addresses:
        return interface
    interface = replace(
        interface,
        addresses=held,
        attachment_id=interface.attachment_id or resource_id("eni-attach"),
        attached=interface.attached or now,
    )
    tx.put(interface)
    return interface


def detach(tx: Transaction, interface_id: str) -> NetworkInterface:
    """Take the interface out of its namespaces; it stays. Raises InvalidNetworkInterfaceID.NotFound."""
    interface = get(tx, interface_id)
    interface = replace(
        interface,
        addresses=tuple(replace(address, netns=None) for address in interface.addresses),
        attachment_id=None,
        attached=None,
    )
    tx.put(interface)
    return interface


def release(tx: Transaction, interface_id: str) -> None:
    """Detach and delete an interface; one that is gone is no error. Its Elastic IPs are free again."""
    for elastic in list(tx.where(ElasticIp, interface_id=interface_id)):
        elastic_ips.disassociate(tx, elastic.allocation_id)
    tx.delete(NetworkInterface, interface_id)


def get(world: World, interface_id: str) -> NetworkInterface:
    """Raises InvalidNetworkInterfaceID.NotFound."""
    interface = world.get(NetworkInterface, interface_id)
    if interface is None:
        raise AwsError(
            "InvalidNetworkInterfaceID.NotFound", f"The networkInterface ID '{interface_id}' does not exist"
        )
    return interface


def default_group(world: World, vpc_id: str) -> SecurityGroup | None:
    groups = world.where(SecurityGroup, vpc_id=vpc_id)
    return next((group for group in groups if group.name == "default"), None)


def check_groups(world: World, group_ids: Sequence[str], subnet: Subnet) -> tuple[str, ...]:
    """The groups an interface in `subnet` gets, each once, in the order given.
    Raises InvalidGroup.NotFound, InvalidParameterValue, SecurityGroupsPerInterfaceLimitExceeded."""
    wanted = tuple(dict.fromkeys(group_ids))
    if not wanted:
        group = default_group(world, subnet.vpc_id)
        if group is None:
            raise AwsError(
                "InvalidGroup.NotFound", f"The VPC '{subnet.vpc_id}' has no default security group"
            )
        return (group.group_id,)
    for group_id in wanted:
        group = world.get(SecurityGroup, group_id)
        if group is None:
            raise AwsError("InvalidGroup.NotFound", f"The security group '{group_id}' does not exist")
        if group.vpc_id != subnet.vpc_id:
            raise AwsError(
                "InvalidParameterValue",
                f"Security group {group_id} and subnet {subnet.subnet_id} belong to different networks.",
            )
    if len(wanted) > GROUPS_PER_INTERFACE:
        raise AwsError(
            "SecurityGroupsPerInterfaceLimitExceeded",
            f"You have exceeded the number of security groups allowed per network interface: "
            f"{len(wanted)} given, the limit is {GROUPS_PER_INTERFACE}.",
        )
    return wanted


def choose_addresses(world: World, subnet: Subnet, wanted: Sequence[str], count: int, seed: str) -> list[str]:
    """`count` addresses of `subnet` that are free: those wanted, then others. Raises InvalidParameterValue,
    InvalidIPAddress.InUse, InsufficientFreeAddressesInSubnet."""

    def taken(address: str) -> bool:
        return address in chosen or ip.in_use(world, subnet.vpc_id, address)

    chosen: list[str] = []
    for text in wanted:
        address = str(ip.parse_address(text))
        if not ip.contains(subnet.cidr, address):
            raise AwsError(
                "InvalidParameterValue", f"Address {address} does not fall within the subnet's address range"
            )
        if ip.is_reserved(subnet.cidr, address):
            raise AwsError(
                "InvalidParameterValue", f"Address {address} is in subnet's reserved address range"
            )
        if taken(address):
            raise AwsError("InvalidIPAddress.InUse", f"The address {address} is already in use.")
        chosen.append(address)
    chosen += ip.next_free(subnet.cidr, taken, count - len(chosen), seed)
    if len(chosen) < count:
        raise AwsError(
            "InsufficientFreeAddressesInSubnet",
            "The specified subnet does not have enough free addresses to satisfy the request.",
        )
    return chosen
