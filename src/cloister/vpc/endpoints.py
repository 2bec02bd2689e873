"""Gateway endpoints, the services that have them, and the AWS-managed prefix lists they route.

An AWS-managed prefix list is the blocks of a service in a Region. Which blocks a service has is AWS's to
change; here they only have to be the same everywhere in Cloister. `known` gives the list ids that AWS gives
and blocks that the service has had there; other Regions get a derived id and derived blocks, which is our
choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Network

from cloister.vpc.model import PrefixList, VpcEndpoint
from cloister.world import World

#: what a gateway endpoint answers: HTTP and HTTPS
PORTS = (80, 443)

#: Region -> (id of its prefix list, blocks)
_Lists = Mapping[str, tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatewayService:
    """A service that gateway endpoints can be made for."""

    suffix: str  # "s3" in com.amazonaws.REGION.s3
    title: str  # as sentences call it
    service: str  # botocore's name
    label: str  # what flow logs call its addresses (pkt-dst-aws-service)
    known: _Lists = field(repr=False)
    #: where the blocks of other Regions are derived from: a /16 each, of which a Region has a /22
    ranges: tuple[str, ...]

    def name(self, region: str) -> str:
        return f"com.amazonaws.{region}.{self.suffix}"

    def host(self, region: str) -> str:
        return f"{self.suffix}.{region}.amazonaws.com"


_S3 = GatewayService(
    suffix="s3",
    title="S3",
    service="s3",
    label="S3",
    ranges=("3.5", "52.219"),
    known={
        "us-east-1": ("pl-63a5400a", ("3.5.0.0/19", "16.182.0.0/16", "52.216.0.0/15", "54.231.0.0/16")),
        "us-east-2": ("pl-7ba54012", ("3.5.128.0/21", "52.219.80.0/20", "52.219.96.0/20")),
        "us-west-1": ("pl-6ba54002", ("3.5.160.0/22", "52.219.112.0/20", "52.219.120.0/22")),
        "us-west-2": ("pl-68a54001", ("3.5.76.0/22", "52.92.128.0/17", "52.218.128.0/17")),
        "ca-central-1": ("pl-7da54014", ("3.5.252.0/22", "52.95.145.0/24", "52.95.146.0/23")),
        "eu-west-1": ("pl-6da54004", ("3.5.64.0/21", "52.92.0.0/17", "52.218.0.0/17")),
        "eu-west-2": ("pl-7ca54015", ("3.5.244.0/22", "52.95.148.0/23", "52.95.150.0/24")),
        "eu-west-3": ("pl-23ad484a", ("3.5.224.0/22", "52.95.154.0/23", "52.95.156.0/24")),
        "eu-central-1": (
            "pl-6ea54007",
            ("3.5.136.0/22", "52.219.44.0/22", "52.219.72.0/22", "54.231.192.0/20"),
        ),
        "eu-north-1": ("pl-c3aa4faa", ("3.5.216.0/22", "52.95.169.0/24", "52.95.170.0/23")),
        "ap-northeast-1": ("pl-61a54008", ("3.5.152.0/21", "52.219.0.0/20", "52.219.16.0/22")),
        "ap-northeast-2": ("pl-78a54011", ("3.5.140.0/22", "52.219.56.0/22", "52.219.144.0/22")),
        "ap-southeast-1": ("pl-6fa54006", ("3.5.146.0/23", "52.219.32.0/21", "52.219.40.0/22")),
        "ap-southeast-2": ("pl-6ca54005", ("3.5.164.0/22", "52.92.52.0/22", "52.95.128.0/21")),
        "sa-east-1": ("pl-6aa54003", ("3.5.232.0/22", "52.95.163.0/24", "52.95.164.0/23")),
    },
)
# AWS (DynamoDB developer guide, "Using VPC endpoints"): not for DynamoDB Streams
_DYNAMODB = GatewayService(
    suffix="dynamodb",
    title="DynamoDB",
    service="dynamodb",
    label="DYNAMODB",
    ranges=("52.94", "52.119"),
    known={
        "us-east-1": ("pl-02cd2c6b", ("3.218.180.0/22", "52.94.0.0/22", "52.119.224.0/20")),
        "us-east-2": ("pl-4ca54025", ("52.94.4.0/24",)),
        "us-west-2": ("pl-00a54069", ("52.94.10.0/24", "52.94.28.0/23", "52.119.252.0/22")),
    },
)
SERVICES = {each.suffix: each for each in (_S3, _DYNAMODB)}
#: Regions other than those whose S3 list is known
_REGIONS = (
    *_S3.known,
    *("af-south-1", "ap-east-1", "ap-northeast-3", "ap-south-1", "ap-south-2", "ap-southeast-3"),
    *("ap-southeast-4", "ap-southeast-5", "ap-southeast-7", "ca-west-1", "cn-north-1", "cn-northwest-1"),
    *("eu-central-2", "eu-south-1", "eu-south-2", "il-central-1", "me-central-1", "me-south-1"),
    *("mx-central-1", "us-gov-east-1", "us-gov-west-1"),
)


def service_named(service_name: str) -> GatewayService | None:
    """The service of "com.amazonaws.REGION.s3"."""
    parts = service_name.split(".")
    return SERVICES.get(parts[3]) if len(parts) == 4 and parts[:2] == ["com", "amazonaws"] else None


def service_of(endpoint: VpcEndpoint) -> GatewayService | None:
    """The service of a gateway endpoint."""
    return service_named(endpoint.service_name) if endpoint.kind == "Gateway" else None


def s3_service_name(region: str) -> str:
    return _S3.name(region)


@cache
def prefix_list_in(service: GatewayService, region: str) -> PrefixList:
    """The AWS-managed prefix list of a service in a Region."""
    name = service.name(region)
    known = service.known.get(region)
    if known is None:
        digest = hashlib.sha256(name.encode()).digest()
        blocks = (f"{start}.{digest[4 + i] & 0xFC}.0/22" for i, start in enumerate(service.ranges))
        known = f"pl-{digest.hex()[:8]}", tuple(blocks)
    return PrefixList(prefix_list_id=known[0], name=name, owner_id="AWS", entries=dict.fromkeys(known[1], ""))


def s3_prefix_list(region: str) -> PrefixList:
    """The AWS-managed prefix list of S3 in a Region."""
    return prefix_list_in(_S3, region)


def prefix_lists_in(region: str) -> list[PrefixList]:
    """The AWS-managed prefix lists of a Region."""
    return [prefix_list_in(service, region) for service in SERVICES.values()]


def service_at(address: str, region: str) -> GatewayService | None:
    """The service whose address this is, in this Region."""
    return next((service for service in SERVICES.values() if _has(service, region, address)), None)


@lru_cache(maxsize=4096)
def service_in_any_region(address: str) -> GatewayService | None:
    """The service whose address this is: what one has, no other has anywhere."""
    return next((s for s in SERVICES.values() if any(_has(s, region, address) for region in _REGIONS)), None)


def _has(service: GatewayService, region: str, address: str) -> bool:
    return any(IPv4Address(address) in block for block in _blocks(service, region))


@cache
def _blocks(service: GatewayService, region: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(cidr) for cidr in prefix_list_in(service, region).entries)


def prefix_list_of(endpoint: VpcEndpoint) -> PrefixList | None:
    """The prefix list that a gateway endpoint's route names."""
    service = service_of(endpoint)
    return prefix_list_in(service, endpoint.service_name.split(".")[2]) if service is not None else None


@cache
def managed_prefix_lists() -> tuple[PrefixList, ...]:
    """The AWS-managed prefix lists of all Regions."""
    return tuple(listed for region in _REGIONS for listed in prefix_lists_in(region))


@cache
def _managed() -> dict[str, PrefixList]:
    return {managed.prefix_list_id: managed for managed in managed_prefix_lists()}


def prefix_list(world: World, prefix_list_id: str) -> PrefixList | None:
    """A prefix list by id: one of the World's, or an AWS-managed one."""
    return world.get(PrefixList, prefix_list_id) or _managed().get(prefix_list_id)


def outer_if(endpoint_id: str) -> str:
    """The router's side of the endpoint's pair."""
    return f"g{endpoint_id[-12:]}"
