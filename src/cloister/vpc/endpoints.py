"""Gateway endpoints and the AWS-managed prefix lists they route.

An AWS-managed prefix list is the blocks of a service in a Region. Which blocks S3 has is AWS's to change;
here they only have to be the same everywhere in Cloister. `_KNOWN` gives the list ids that AWS gives and
blocks that S3 has had there; other Regions get a derived id and derived blocks, which is our choice.
"""

from __future__ import annotations

import hashlib
from functools import cache

from cloister.vpc.model import PrefixList, VpcEndpoint
from cloister.world import World

#: Region -> (id of its S3 prefix list, blocks)
_KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "us-east-1": ("pl-63a5400a", ("3.5.0.0/19", "16.182.0.0/16", "52.216.0.0/15", "54.231.0.0/16")),
    "us-east-2": ("pl-7ba54012", ("3.5.128.0/21", "52.219.80.0/20", "52.219.96.0/20")),
    "us-west-1": ("pl-6ba54002", ("3.5.160.0/22", "52.219.112.0/20", "52.219.120.0/22")),
    "us-west-2": ("pl-68a54001", ("3.5.76.0/22", "52.92.128.0/17", "52.218.128.0/17")),
    "ca-central-1": ("pl-7da54014", ("3.5.252.0/22", "52.95.145.0/24", "52.95.146.0/23")),
    "eu-west-1": ("pl-6da54004", ("3.5.64.0/21", "52.92.0.0/17", "52.218.0.0/17")),
    "eu-west-2": ("pl-7ca54015", ("3.5.244.0/22", "52.95.148.0/23", "52.95.150.0/24")),
    "eu-west-3": ("pl-23ad484a", ("3.5.224.0/22", "52.95.154.0/23", "52.95.156.0/24")),
    "eu-central-1": ("pl-6ea54007", ("3.5.136.0/22", "52.219.44.0/22", "52.219.72.0/22", "54.231.192.0/20")),
    "eu-north-1": ("pl-c3aa4faa", ("3.5.216.0/22", "52.95.169.0/24", "52.95.170.0/23")),
    "ap-northeast-1": ("pl-61a54008", ("3.5.152.0/21", "52.219.0.0/20", "52.219.16.0/22")),
    "ap-northeast-2": ("pl-78a54011", ("3.5.140.0/22", "52.219.56.0/22", "52.219.144.0/22")),
    "ap-southeast-1": ("pl-6fa54006", ("3.5.146.0/23", "52.219.32.0/21", "52.219.40.0/22")),
    "ap-southeast-2": ("pl-6ca54005", ("3.5.164.0/22", "52.92.52.0/22", "52.95.128.0/21")),
    "sa-east-1": ("pl-6aa54003", ("3.5.232.0/22", "52.95.163.0/24", "52.95.164.0/23")),
}
#: Regions whose prefix list's id and blocks are derived
_DERIVED = (
    *("af-south-1", "ap-east-1", "ap-northeast-3", "ap-south-1", "ap-south-2", "ap-southeast-3"),
    *("ap-southeast-4", "ap-southeast-5", "ap-southeast-7", "ca-west-1", "cn-north-1", "cn-northwest-1"),
    *("eu-central-2", "eu-south-1", "eu-south-2", "il-central-1", "me-central-1", "me-south-1"),
    *("mx-central-1", "us-gov-east-1", "us-gov-west-1"),
)


def s3_service_name(region: str) -> str:
    return f"com.amazonaws.{region}.s3"


def region_of_service(service_name: str) -> str:
    """The Region in "com.amazonaws.REGION.s3"; "" when it is no such name."""
    parts = service_name.split(".")
    return parts[2] if len(parts) == 4 and parts[:2] == ["com", "amazonaws"] else ""


@cache
def s3_prefix_list(region: str) -> PrefixList:
    """The AWS-managed prefix list of S3 in a Region."""
    name = s3_service_name(region)
    known = _KNOWN.get(region)
    if known is None:
        digest = hashlib.sha256(name.encode()).digest()
        # two blocks out of Amazon's ranges for S3
        known = (
            f"pl-{digest.hex()[:8]}",
            (f"3.5.{digest[4] & 0xFC}.0/22", f"52.219.{digest[5] & 0xFC}.0/22"),
        )
    return PrefixList(prefix_list_id=known[0], name=name, owner_id="AWS", entries=dict.fromkeys(known[1], ""))


def prefix_list_of(world: World, endpoint: VpcEndpoint) -> PrefixList:
    """The prefix list that an endpoint's route names."""
    return s3_prefix_list(region_of_service(endpoint.service_name))


@cache
def managed_prefix_lists() -> tuple[PrefixList, ...]:
    """S3's prefix lists of all Regions."""
    return tuple(s3_prefix_list(region) for region in (*_KNOWN, *_DERIVED))


@cache
def _managed() -> dict[str, PrefixList]:
    return {managed.prefix_list_id: managed for managed in managed_prefix_lists()}


def prefix_list(world: World, prefix_list_id: str) -> PrefixList | None:
    """A prefix list by id: one of the World's, or an AWS-managed one."""
    return world.get(PrefixList, prefix_list_id) or _managed().get(prefix_list_id)


def outer_if(endpoint_id: str) -> str:
    """The router's side of the endpoint's pair."""
    return f"g{endpoint_id[-12:]}"
