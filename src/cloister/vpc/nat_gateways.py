"""NAT gateways: each is one requester-managed interface in a subnet, and for a public one a public address.

Used by EC2's CreateNatGateway and by the network of jobs without a VPC: one set of rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cloister.ids import resource_id
from cloister.vpc import elastic_ips
from cloister.vpc.gateways import NAT_INTERFACE
from cloister.vpc.interfaces import CONTAINER, create_interface, release
from cloister.vpc.model import ElasticIp, NatGateway, Subnet
from cloister.world import Transaction

REQUESTER = "amazon-nat"


def create(
    tx: Transaction,
    subnet: Subnet,
    *,
    elastic: ElasticIp | None = None,
    public_ip: str | None = None,
    addresses: Sequence[str] = (),
    now: float,
    tags: dict[str, str] | None = None,
) -> NatGateway:
    """Put a gateway and its interface into `tx`. With `elastic` or `public_ip` (an address that is no
    customer's Elastic IP) it is public. `addresses` is the private address it shall have, or none.

    Raises InvalidParameterValue, InvalidIPAddress.InUse, InsufficientFreeAddressesInSubnet."""
    nat_gateway_id = resource_id("nat")
    interface = create_interface(
        tx,
        subnet_id=subnet.subnet_id,
        now=now,
        addresses=addresses,
        attach=(CONTAINER,),
        description=f"Interface for NAT Gateway {nat_gateway_id}",
        requester_managed=True,
        requester_id=REQUESTER,
        interface_type=NAT_INTERFACE,
    )
    # AWS: "You cannot associate a security group with a NAT gateway"
    held = replace(interface.addresses[0], public_ip=public_ip)
    tx.put(replace(interface, group_ids=(), addresses=(held,)))
    if elastic is not None:
        elastic_ips.associate(tx, elastic.allocation_id, interface.interface_id, held.address)
    nat = NatGateway(
        nat_gateway_id=nat_gateway_id,
        vpc_id=subnet.vpc_id,
        subnet_id=subnet.subnet_id,
        interface_id=interface.interface_id,
        private_ip=held.address,
        public=bool(elastic or public_ip),
        allocation_id=elastic.allocation_id if elastic else None,
        public_ip=elastic.public_ip if elastic else public_ip,
        created=now,
        tags=dict(tags or {}),
    )
    tx.put(nat)
    return nat


def delete(tx: Transaction, nat: NatGateway, *, now: float) -> None:
    """The gateway is marked as deleted; its interface is gone and its public address free."""
    release(tx, nat.interface_id)
    tx.put(replace(nat, deleted=now))
