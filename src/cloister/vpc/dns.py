"""What the Amazon DNS resolver of a VPC answers. Pure: a question and the World give the answer.

AWS ("DNS attributes for your VPC"): the resolver knows the public names of AWS services and the private names
of the VPC's addresses, `ip-10-0-0-5.ec2.internal` in us-east-1, else `ip-10-0-0-5.REGION.compute.internal`.
A VPC without DNS support has no resolver. Private names of interface endpoints come first, and hide the
public ones below them.

Our choices: a name of S3 or DynamoDB has one address in each of up to four blocks of its Region's prefix
list, always the same ones; every address of the VPC has its private name; other AWS services have stand-in
addresses in 203.0.113.0/24 (RFC 5737), which lead nowhere without a route; every other name does not exist.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from cloister.s3.model import Bucket
from cloister.vpc import addresses as ip
from cloister.vpc import gateways, interface_endpoints
from cloister.vpc.dhcp import private_domain
from cloister.vpc.endpoints import SERVICES, prefix_list_in, s3_prefix_list
from cloister.vpc.model import NetworkInterface, Vpc, VpcPeering
from cloister.world import World

NOERROR, NXDOMAIN, REFUSED = 0, 3, 5
A, PTR, AAAA, ANY = 1, 12, 28, 255
TTL = 60
_MOST_ADDRESSES = 4
_GLOBAL = "us-east-1"
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")
_PRIVATE = re.compile(r"ip-(\d{1,3})-(\d{1,3})-(\d{1,3})-(\d{1,3})")
_PUBLIC = re.compile(_PRIVATE.pattern.replace("ip", "ec2"))
#: first labels of AWS endpoints, as botocore's endpoint prefixes have them; S3 is not among them
_SERVICE_NAMES = """
acm api apigateway application-autoscaling appconfig athena autoscaling batch bedrock bedrock-runtime
cloudformation cloudtrail codeartifact codebuild codecommit codedeploy codepipeline cognito-identity
cognito-idp comprehend config dlm dms dynamodb ec2 ec2messages ecr ecs eks elasticache elasticfilesystem
elasticloadbalancing elasticmapreduce email es events execute-api firehose fsx glue guardduty iam
imagebuilder kafka kinesis kms lakeformation lambda logs monitoring oidc organizations portal rds
rds-data redshift redshift-data rekognition route53 runtime.sagemaker sagemaker scheduler secretsmanager
servicecatalog servicediscovery ses sns sqs ssm ssmmessages states streams.dynamodb sts support
synthetics tagging textract transcribe transfer translate xray
"""
_SERVICES = frozenset(_SERVICE_NAMES.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`rcode` is DNS's. `records` are the data of records of type `rtype`: addresses, or names for PTR."""

    rcode: int
    rtype: int = A
    records: tuple[str, ...] = ()
    ttl: int = TTL


_NO_SUCH_NAME = Answer(rcode=NXDOMAIN)


def answer(world: World, vpc_id: str, qname: str, qtype: int, *, region: str) -> Answer:
    """The resolver's answer to `qname` (any case, with or without the final dot) of `qtype` (a number)."""
    vpc = world.get(Vpc, vpc_id)
    if vpc is None or not vpc.enable_dns_support:
        return Answer(rcode=REFUSED)
    name = qname.rstrip(".").lower()
    if name.endswith(".in-addr.arpa"):
        pointed = _pointer(_known(world, vpc), name, region)
        if pointed is None:
            return _NO_SUCH_NAME
        return Answer(rcode=NOERROR, rtype=PTR, records=(pointed,) if qtype in (PTR, ANY) else ())
    found = interface_endpoints.resolve_private(world, vpc, name, region)
    if found is None:
        found = _addresses(world, vpc, name, region)
    if not found:
        return _NO_SUCH_NAME
    return Answer(rcode=NOERROR, records=found if qtype in (A, ANY) else ())


def private_name(address: str, region: str) -> str:
    """The private DNS name of an address of a VPC."""
    return f"ip-{address.replace('.', '-')}.{private_domain(region)}"


def _addresses(world: World, vpc: Vpc, name: str, region: str) -> tuple[str, ...]:
    private = _private(_known(world, vpc), name, region)
    if private is not None:
        return (private,)
    public = _public(world, vpc, name, region)
    if public is not None:
        return (public,)
    if name.endswith(".vpce.amazonaws.com"):
        return interface_endpoints.resolve_own(world, name, region)
    for suffix in (".amazonaws.com", ".amazonaws.com.cn"):
        if name.endswith(suffix):
            labels = name.removesuffix(suffix).split(".")
            break
    else:
        return ()
    if not all(labels):
        return ()
    s3 = _s3_region(world, labels)
    if s3 is not None:
        return _spread(name, [IPv4Network(cidr) for cidr in s3_prefix_list(s3).entries])
    dynamodb = _dynamodb_region(labels)
    if dynamodb is not None:
        listed = prefix_list_in(SERVICES["dynamodb"], dynamodb)
        return _spread(name, [IPv4Network(cidr) for cidr in listed.entries])
    if _is_service(labels):
        return _spread(name, [gateways.STAND_IN])
    # AWS keeps package repositories in buckets named like hosts: amazonlinux.REGION.amazonaws.com
    bucket = world.get(Bucket, name)
    if bucket is not None:
        return _spread(name, [IPv4Network(cidr) for cidr in s3_prefix_list(bucket.region).entries])
    return ()


def _s3_region(world: World, labels: list[str]) -> str | None:
    """The Region of an S3 endpoint's name, bucket label or not; None: it is none."""
    match labels:
        case [*_, "s3", "dualstack", region] if _REGION.fullmatch(region):
            return region
        case [*_, "s3", region] if _REGION.fullmatch(region):
            return region
        case ["s3"]:
            return _GLOBAL
        case [*bucket, "s3"]:
            known = world.get(Bucket, ".".join(bucket))
            return known.region if known is not None else _GLOBAL
        case [*_, last] if last.startswith("s3-") and _REGION.fullmatch(last[3:]):
            return last[3:]
    return None


def _dynamodb_region(labels: list[str]) -> str | None:
    """The Region of DynamoDB's name, or of an account's own one; None: it is none. Streams have another."""
    match labels:
        case ["dynamodb", region] if _REGION.fullmatch(region):
            return region
        case [_, "ddb", region] if _REGION.fullmatch(region):
            return region
    return None


def _is_service(labels: list[str]) -> bool:
    """PREFIX.REGION, X.PREFIX.REGION (an account's registry, an API) or a global service's PREFIX."""
    if _REGION.fullmatch(labels[-1]):
        labels = labels[:-1]
    elif len(labels) > 1:
        return False
    return any(".".join(labels[start:]) in _SERVICES for start in range(len(labels)))


def _spread(name: str, blocks: list[IPv4Network]) -> tuple[str, ...]:
    digest = hashlib.sha256(name.encode()).digest()
    count = min(_MOST_ADDRESSES, len(blocks))
    found: list[str] = []
    for i in range(count):
        offset = int.from_bytes(digest[4 * i : 4 * i + 4], "big")
        found.append(str(blocks[i][1 + offset % (blocks[i].num_addresses - 2)]))
    return tuple(found)


def _known(world: World, vpc: Vpc) -> list[Vpc]:
    """The VPCs whose private names the resolver of `vpc` knows: its own, and those of peers that allow it
    (AllowDnsResolutionFromRemoteVpc)."""
    found = [vpc]
    for peering in gateways.peerings(world, vpc.vpc_id):
        asks = peering.requester_vpc_id == vpc.vpc_id
        peer = world.get(Vpc, peering.other(vpc.vpc_id))
        if peer is not None and (peering.accepter_resolves if asks else peering.requester_resolves):
            found.append(peer)
    return found


def silent_peering(world: World, vpc: Vpc, name: str, region: str) -> VpcPeering | None:
    """The peering by which `vpc` would know a private name, if it resolved any."""
    for peering in gateways.peerings(world, vpc.vpc_id):
        peer = world.get(Vpc, peering.other(vpc.vpc_id))
        if peer is not None and _private([peer], name, region) is not None:
            return peering
    return None


def _in_vpcs(vpcs: list[Vpc], address: str) -> bool:
    return any(ip.contains(cidr, address) for vpc in vpcs for cidr in vpc.cidrs)


def _address(labels: Iterable[str]) -> str | None:
    try:
        return str(IPv4Address(".".join(labels)))
    except ValueError:
        return None


def _private(vpcs: list[Vpc], name: str, region: str) -> str | None:
    match = _PRIVATE.fullmatch(name.partition(".")[0])
    address = _address(match.groups()) if match is not None else None
    if address is None or name != private_name(address, region) or not _in_vpcs(vpcs, address):
        return None
    return address


def public_name(public_ip: str, region: str) -> str:
    """The public DNS name of a public address."""
    zone = "compute-1" if region == _GLOBAL else f"{region}.compute"
    return f"ec2-{public_ip.replace('.', '-')}.{zone}.amazonaws.com"


def _public(world: World, vpc: Vpc, name: str, region: str) -> str | None:
    """AWS: a public name resolves to the private address inside of the VPC, and of a peer if it is allowed;
    to the public address elsewhere."""
    match = _PUBLIC.fullmatch(name.partition(".")[0])
    public_ip = _address(match.groups()) if match is not None else None
    if public_ip is None or name != public_name(public_ip, region):
        return None
    named = {one.vpc_id for one in _known(world, vpc)}
    for interface in world.all(NetworkInterface):
        for held in interface.addresses:
            owner = world.get(Vpc, interface.vpc_id) if held.public_ip == public_ip else None
            if owner is not None and owner.enable_dns_hostnames:
                return held.address if owner.vpc_id in named else public_ip
    return None


def _pointer(vpcs: list[Vpc], name: str, region: str) -> str | None:
    address = _address(reversed(name.removesuffix(".in-addr.arpa").split(".")))
    return private_name(address, region) if address is not None and _in_vpcs(vpcs, address) else None
