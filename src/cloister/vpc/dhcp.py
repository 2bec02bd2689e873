"""DHCP options: what a VPC tells those that join it about names.

AWS ("DHCP option sets in Amazon VPC"): a VPC has one set or none. The default set names AmazonProvidedDNS,
the resolver at base + 2, and the Region's private domain. A set is never changed: another one is associated.

Our choices: what runs in a VPC has no DHCP client, it gets /etc/resolv.conf when it starts, so another set is
seen by the next job or attached program (on AWS: when a lease is renewed). The platform's agent, which moves
a job's data, asks the same servers. Options other than names and their servers are kept and shown, nothing
here reads them. Without a set there is no DNS server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

from cloister.vpc import addresses as ip
from cloister.vpc.model import DhcpOptions, Vpc
from cloister.world import World

AMAZON_DNS = "AmazonProvidedDNS"
DOMAIN_NAME, SERVERS = "domain-name", "domain-name-servers"
_SERVERS_EACH = 4
#: option -> how many values it may have
_MOST = {
    DOMAIN_NAME: 1,
    SERVERS: _SERVERS_EACH,
    "ntp-servers": _SERVERS_EACH,
    "netbios-name-servers": _SERVERS_EACH,
    "netbios-node-type": 1,
    "ipv6-address-preferred-lease-time": 1,
}
_NODE_TYPES = ("1", "2", "4", "8")
_LEASE_SECONDS = range(140, 2147483648)


def default_id(region: str, account: str) -> str:
    """The default set's id: the same for the life of an account in a Region, without being stored."""
    return "dopt-0" + hashlib.sha256(f"{account}/{region}/default".encode()).hexdigest()[:16]


def private_domain(region: str) -> str:
    """The domain of private DNS names."""
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def default_options(region: str) -> dict[str, tuple[str, ...]]:
    return {DOMAIN_NAME: (private_domain(region),), SERVERS: (AMAZON_DNS,)}


def options_of(world: World, vpc: Vpc, region: str) -> Mapping[str, tuple[str, ...]]:
    """The options of a VPC; {} without a set."""
    if vpc.dhcp_options_id == "default":
        return default_options(region)
    chosen = world.get(DhcpOptions, vpc.dhcp_options_id)
    return chosen.options if chosen is not None else {}


def servers(world: World, vpc: Vpc, region: str) -> tuple[str, ...]:
    """The addresses of the DNS servers that what runs in a VPC asks, first to last."""
    named = options_of(world, vpc, region).get(SERVERS, ())
    return tuple(ip.resolver_address(vpc) if each == AMAZON_DNS else each for each in named)


def resolv_conf(world: World, vpc: Vpc, region: str) -> str:
    """/etc/resolv.conf of what runs in a VPC: nothing of the host's."""
    domains = options_of(world, vpc, region).get(DOMAIN_NAME, ())
    lines = [f"search {each}" for each in domains]
    lines += [f"nameserver {each}" for each in servers(world, vpc, region)]
    return "".join(f"{line}\n" for line in lines)


def problem(key: str, values: Sequence[str]) -> str | None:
    """What is wrong with one option of a set, as a sentence; None: nothing."""
    if key not in _MOST:
        return f"Invalid DHCP option '{key}'. The options are {', '.join(_MOST)}."
    if not 1 <= len(values) <= _MOST[key]:
        return f"The DHCP option '{key}' takes 1 to {_MOST[key]} values, {len(values)} are given."
    wrong = next((each for each in values if not _valid(key, each)), None)
    return None if wrong is None else f"Value ({wrong}) for the DHCP option '{key}' is invalid."


def _valid(key: str, value: str) -> bool:
    if key == SERVERS and value == AMAZON_DNS:
        return True
    if key.endswith("-servers"):
        return _is_address(value)
    if key == "netbios-node-type":
        return value in _NODE_TYPES
    if key == "ipv6-address-preferred-lease-time":
        return value.isascii() and value.isdigit() and int(value) in _LEASE_SECONDS
    # some Linux systems take several domains, separated by spaces
    labels = [label for domain in value.split(" ") for label in domain.removesuffix(".").split(".")]
    return len(value) <= 255 and all(
        0 < len(label) < 64 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        for label in labels
    )


def _is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
