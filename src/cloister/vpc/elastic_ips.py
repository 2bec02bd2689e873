"""Elastic IPs: public addresses of the account, each carried by one private address at a time.

AWS ("Elastic IP addresses", VPC guide): an address is associated with a private address of an interface in a
VPC that has an internet gateway; an interface that goes gives its addresses back to the account.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cloister.ids import resource_id
from cloister.vpc.gateways import PUBLIC_POOL
from cloister.vpc.model import ElasticIp, NatGateway, NetworkInterface
from cloister.world import Transaction, World

#: AWS's default quota is 5, which it raises on request; here it is what the pool has to give, less a few for
#: the networks of services
ADDRESSES_PER_ACCOUNT = 200


def taken(world: World) -> set[str]:
    """The public addresses that are in use, also by networks of services."""
    gateways = {nat.public_ip for nat in world.all(NatGateway) if nat.public_ip and nat.deleted is None}
    return gateways | {address.public_ip for address in world.all(ElasticIp)}


def free(world: World, seed: str) -> str | None:
    """A public address that nobody has; None: there is none. `seed` decides where the search starts, so that
    an address is not handed to a stranger right after it was released."""
    used, size = taken(world), PUBLIC_POOL.num_addresses - 2
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    candidates = (str(PUBLIC_POOL[1 + (start + step) % size]) for step in range(size))
    return next((address for address in candidates if address not in used), None)


def associate(tx: Transaction, allocation_id: str, interface_id: str, private_ip: str) -> ElasticIp:
    """Let `private_ip` of an interface carry this Elastic IP, and nothing else carry it, and no other one."""
    disassociate(tx, allocation_id)
    for other in list(tx.where(ElasticIp, interface_id=interface_id)):
        if other.private_ip == private_ip:
            disassociate(tx, other.allocation_id)
    elastic, interface = tx.get(ElasticIp, allocation_id), tx.get(NetworkInterface, interface_id)
    assert elastic is not None
    assert interface is not None
    elastic = replace(
        elastic, association_id=resource_id("eipassoc"), interface_id=interface_id, private_ip=private_ip
    )
    tx.put(elastic)
    _carry(tx, interface, private_ip, elastic.public_ip)
    return elastic


def disassociate(tx: Transaction, allocation_id: str) -> None:
    """Nothing carries this Elastic IP any more. Idempotent."""
    elastic = tx.get(ElasticIp, allocation_id)
    if elastic is None or elastic.association_id is None:
        return
    interface = tx.get(NetworkInterface, elastic.interface_id)
    if interface is not None and elastic.private_ip is not None:
        _carry(tx, interface, elastic.private_ip, None)
    tx.put(replace(elastic, association_id=None, interface_id=None, private_ip=None))


def of_interface(world: World, interface_id: str) -> dict[str, ElasticIp]:
    """The Elastic IPs of an interface by the private address that carries them."""
    return {
        elastic.private_ip: elastic
        for elastic in world.where(ElasticIp, interface_id=interface_id)
        if elastic.private_ip is not None
    }


def _carry(tx: Transaction, interface: NetworkInterface, private_ip: str, public_ip: str | None) -> None:
    held = tuple(
        replace(one, public_ip=public_ip) if one.address == private_ip else one for one in interface.addresses
    )
    tx.put(replace(interface, addresses=held))
