"""IPv4 blocks and addresses as a VPC rules them.

AWS (VPC guide, "VPC CIDR blocks" and "Subnet CIDR blocks"): blocks are /16 to /28; in every subnet the
first four addresses (network, router, DNS, future use) and the last (broadcast) are reserved.
Blocks given with host bits set are canonicalised: 100.68.0.18/18 becomes 100.68.0.0/18.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address, IPv4Network

from cloister.vpc.model import NetworkInterface, Subnet, Vpc, place
from cloister.wire.errors import AwsError
from cloister.world import World

RESERVED_FIRST = 4
RESERVED_LAST = 1
#: the resolver's second address, the same in every VPC
LINK_LOCAL_RESOLVER = "169.254.169.253"
#: how the names of interfaces' ports begin in a router, and no others'
PORT_PREFIX = "e"

_RFC1918 = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_BENCHMARK = IPv4Network("198.19.0.0/16")
#: blocks that no VPC may use
_UNUSABLE = tuple(
    IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)


def parse_cidr(text: str, parameter: str = "cidrBlock") -> IPv4Network:
    """The IPv4 network of "10.0.0.0/16", canonicalised. Raises InvalidParameterValue."""
    address, slash, length = text.partition("/")
    try:
        if not (slash and text.isascii() and length.isdigit()):
            raise ValueError
        return IPv4Network(f"{IPv4Address(address)}/{int(length)}", strict=False)
    except ValueError:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({text}) for parameter {parameter} is invalid. This is not a valid CIDR block.",
        ) from None


def parse_address(text: str, parameter: str = "privateIpAddress") -> IPv4Address:
    """Raises InvalidParameterValue."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({text}) for parameter {parameter} is invalid. Invalid IPv4 address.",
        ) from None


def vpc_cidr(text: str) -> str:
    """The canonical block of a new VPC. Raises InvalidParameterValue, InvalidVpc.Range."""
    network = parse_cidr(text)
    if not 16 <= network.prefixlen <= 28 or any(network.overlaps(bad) for bad in _UNUSABLE):
        raise AwsError("InvalidVpc.Range", f"The CIDR '{text}' is invalid.")
    return str(network)


def additional_vpc_cidr(text: str, existing: Collection[str]) -> str:
    """The canonical block of AssociateVpcCidrBlock: not overlapping, and of the same family as the
    VPC's own ("IPv4 CIDR block association restrictions"). Raises InvalidVpc.Range, CidrConflict."""
    network = IPv4Network(vpc_cidr(text))
    blocks = [IPv4Network(cidr) for cidr in existing]
    if any(network.overlaps(block) for block in blocks):
        raise AwsError("CidrConflict", f"The CIDR '{network}' conflicts with another block of the VPC.")
    if network.subnet_of(_BENCHMARK) and not blocks[0].subnet_of(_BENCHMARK):
        raise AwsError("InvalidVpc.Range", f"The CIDR '{network}' is restricted.")
    family = next((private for private in _RFC1918 if network.subnet_of(private)), None)
    if family is not None and not any(block.subnet_of(family) for block in blocks):
        raise AwsError(
            "InvalidVpc.Range",
            f"The CIDR '{network}' is restricted. Use a CIDR from the same private address range as the "
            "current VPC CIDR, or use a publicly-routable CIDR.",
        )
    return str(network)


def subnet_cidr(text: str, vpc: Vpc, siblings: Iterable[Subnet]) -> str:
    """The canonical block of a new subnet of `vpc`. Raises InvalidParameterValue, InvalidSubnet.Range
    (size, or outside of the VPC), InvalidSubnet.Conflict (overlaps a sibling)."""
    network = parse_cidr(text)
    if not 16 <= network.prefixlen <= 28 or not any(
        network.subnet_of(IPv4Network(cidr)) for cidr in vpc.cidrs
    ):
        raise AwsError("InvalidSubnet.Range", f"The CIDR '{text}' is invalid.")
    if any(network.overlaps(IPv4Network(other.cidr)) for other in siblings):
        raise AwsError("InvalidSubnet.Conflict", f"The CIDR '{text}' conflicts with another subnet")
    return str(network)


def overlap(one: str, other: str) -> bool:
    return IPv4Network(one).overlaps(IPv4Network(other))


def within(inner: str, outer: str) -> bool:
    """Whether the one block is all in the other."""
    return IPv4Network(inner).subnet_of(IPv4Network(outer))


def contains(cidr: str, address: str) -> bool:
    return IPv4Address(address) in IPv4Network(cidr)


def router_address(subnet: Subnet) -> str:
    """The subnet's base + 1: the default gateway of its interfaces."""
    return str(IPv4Network(subnet.cidr)[1])


def resolver_address(vpc: Vpc) -> str:
    """The primary block's base + 2: the Amazon DNS server."""
    return str(IPv4Network(vpc.cidr)[2])


def capacity(cidr: str) -> int:
    """How many addresses of a subnet's block interfaces may use: 11 in a /28."""
    return IPv4Network(cidr).num_addresses - RESERVED_FIRST - RESERVED_LAST


def is_reserved(cidr: str, address: str) -> bool:
    network = IPv4Network(cidr)
    offset = int(IPv4Address(address)) - int(network.network_address)
    return not RESERVED_FIRST <= offset < network.num_addresses - RESERVED_LAST


def in_use(world: World, vpc_id: str, address: str) -> bool:
    return any(world.where(NetworkInterface, places=place(vpc_id, address)))


def free_count(world: World, subnet: Subnet) -> int:
    """AvailableIpAddressCount."""
    held = sum(len(eni.addresses) for eni in world.where(NetworkInterface, subnet_id=subnet.subnet_id))
    return capacity(subnet.cidr) - held


def next_free(cidr: str, taken: Callable[[str], bool], count: int, seed: str = "") -> list[str]:
    """`count` addresses of a subnet's block that are not `taken`, fewer when it has fewer.

    The search starts at a place that `seed` decides and wraps around: like AWS's, addresses look random,
    so an address is not handed to a stranger right after it was released."""
    network = IPv4Network(cidr)
    size = capacity(cidr)
    first = int(network.network_address) + RESERVED_FIRST
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") % size if seed else 0
    found: list[str] = []
    for step in range(size):
        if len(found) == count:
            break
        address = str(IPv4Address(first + (start + step) % size))
        if not taken(address):
            found.append(address)
    return found


def mac(vpc_id: str, address: str, prefix: int = 0x0A) -> str:
    """A locally administered MAC for the holder of `address`, unique within its VPC by construction:
    the address, masked by a number that the VPC's id decides. `prefix` tells ports from interfaces."""
    digest = hashlib.sha256(vpc_id.encode()).digest()
    masked = int(IPv4Address(address)) ^ int.from_bytes(digest[:4], "big")
    return ":".join(f"{byte:02x}" for byte in (prefix, digest[4], *masked.to_bytes(4, "big")))


def port(interface_id: str, index: int) -> str:
    """The router's side of the pair of an interface's address."""
    return f"{PORT_PREFIX}{interface_id[-12:]}{index:x}"
