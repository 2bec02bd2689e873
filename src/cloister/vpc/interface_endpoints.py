"""Interface endpoints: which services have them, what they are called, where they are.

AWS (PrivateLink guide, "Access an AWS service using an interface VPC endpoint"): an endpoint has an
interface in each subnet chosen, one subnet a zone. Its own names, one of the Region and one for each zone,
`vpce-ID-RANDOM[-ZONE].SERVICE.REGION.vpce.amazonaws.com`, are public names of private addresses: every
resolver knows them. With private DNS the VPC has a hosted zone for the service's own name, which hides the
public one and all names below it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cloister.kernel.plan import Chain, Part, Rule
from cloister.vpc.model import NetworkInterface, Subnet, Vpc, VpcEndpoint
from cloister.world import World

#: the interface type of an endpoint's interfaces
ENDPOINT_INTERFACE = "vpc_endpoint"
HTTP, HTTPS = 80, 443
_VPCE = re.compile(r"(vpce-[0-9a-f]{17})-([0-9a-z]{8})(?:-([a-z0-9-]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceService:
    """A service of ours that interface endpoints can be made for."""

    suffix: str  # "sagemaker.api" in com.amazonaws.REGION.sagemaker.api
    host: str  # "api.sagemaker" in api.sagemaker.REGION.amazonaws.com
    service: str  # botocore's name: "sagemaker"
    has_private_names: bool = True
    #: S3's endpoints are called with the bucket, or "bucket", before their name, and answer plain HTTP too
    wildcard: bool = False
    ports: tuple[int, ...] = (HTTPS,)

    def name(self, region: str) -> str:
        return f"com.amazonaws.{region}.{self.suffix}"

    def private_names(self, region: str) -> tuple[str, ...]:
        """The names that private DNS answers; "*." stands for one or more labels."""
        if not self.has_private_names:
            return ()
        zone = f"{self.host}.{region}.amazonaws.com"
        return (zone, f"*.{zone}") if self.wildcard else (zone,)


_ALL = (
    InterfaceService(suffix="ec2", host="ec2", service="ec2"),
    InterfaceService(suffix="logs", host="logs", service="logs"),
    InterfaceService(suffix="s3", host="s3", service="s3", wildcard=True, ports=(HTTP, HTTPS)),
    InterfaceService(suffix="sagemaker.api", host="api.sagemaker", service="sagemaker"),
    InterfaceService(suffix="sts", host="sts", service="sts"),
    # AWS (DynamoDB developer guide, "AWS PrivateLink for DynamoDB"): no private DNS
    InterfaceService(suffix="dynamodb", host="dynamodb", service="dynamodb", has_private_names=False),
    InterfaceService(suffix="ecr.api", host="api.ecr", service="ecr"),
    InterfaceService(suffix="events", host="events", service="events"),
    InterfaceService(suffix="kinesis-streams", host="kinesis", service="kinesis"),
    InterfaceService(suffix="kms", host="kms", service="kms"),
    InterfaceService(suffix="monitoring", host="monitoring", service="cloudwatch"),
    InterfaceService(suffix="secretsmanager", host="secretsmanager", service="secretsmanager"),
    InterfaceService(suffix="sns", host="sns", service="sns"),
    InterfaceService(suffix="sqs", host="sqs", service="sqs"),
    InterfaceService(suffix="ssm", host="ssm", service="ssm"),
)
SERVICES = {each.suffix: each for each in _ALL}


def service_named(service_name: str, region: str) -> InterfaceService | None:
    """The service of "com.amazonaws.REGION.sagemaker.api"."""
    prefix = f"com.amazonaws.{region}."
    return SERVICES.get(service_name.removeprefix(prefix)) if service_name.startswith(prefix) else None


def service_of(endpoint: VpcEndpoint) -> InterfaceService | None:
    """The service of an interface endpoint."""
    parts = endpoint.service_name.split(".", 3)
    return SERVICES.get(parts[3]) if endpoint.kind == "Interface" and len(parts) == 4 else None


def endpoint_of(world: World, interface: NetworkInterface) -> VpcEndpoint | None:
    """The endpoint that an interface belongs to."""
    if interface.interface_type != ENDPOINT_INTERFACE:
        return None
    for endpoint in world.where(VpcEndpoint, vpc_id=interface.vpc_id):
        if interface.interface_id in endpoint.interface_ids:
            return endpoint
    return None


def ports_of(world: World, interface: NetworkInterface) -> tuple[int, ...]:
    """The TCP ports that an endpoint's interface answers."""
    endpoint = endpoint_of(world, interface)
    service = service_of(endpoint) if endpoint is not None else None
    return service.ports if service is not None else ()


def chains(netns: str, ports: tuple[int, ...]) -> Iterator[Part]:
    """An endpoint's namespace answers its service's ports, and opens nothing."""
    listed = ", ".join(str(port) for port in ports)
    rules = [Rule(text="ct state invalid drop", comment="belongs to no connection")]
    if ports:
        rules.append(Rule(text=f'iifname "eth0" tcp dport {{ {listed} }} accept', comment="the service"))
    yield Chain(
        netns=netns,
        name="input",
        hook="type filter hook input priority 0; policy drop;",
        rules=tuple(rules),
    )
    yield Chain(
        netns=netns,
        name="output",
        hook="type filter hook output priority 0; policy drop;",
        rules=(
            Rule(text='oifname "eth0" ct state established ct direction reply accept', comment="a reply"),
        ),
    )


# --- names -----------------------------------------------------------------------------------------------


def label(endpoint_id: str) -> str:
    """The first label of an endpoint's own name: its id and eight characters that AWS draws."""
    digest = hashlib.sha256(endpoint_id.encode()).digest()
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return endpoint_id + "-" + "".join(letters[byte % 36] for byte in digest[:8])


def own_names(world: World, endpoint: VpcEndpoint, region: str) -> list[str]:
    """The regional name, then one for each zone."""
    service = service_of(endpoint)
    if service is None:
        return []
    star = "*." if service.wildcard else ""
    domain = f"{service.host}.{region}.vpce.amazonaws.com"
    zones = [subnet.zone for subnet in _subnets(world, endpoint)]
    first = label(endpoint.endpoint_id)
    return [f"{star}{first}.{domain}", *(f"{star}{first}-{zone}.{domain}" for zone in zones)]


def private_names(endpoint: VpcEndpoint, region: str) -> tuple[str, ...]:
    """The private names that an endpoint has; none when its private DNS is off."""
    service = service_of(endpoint)
    return service.private_names(region) if service and endpoint.private_dns_enabled else ()


def addresses(world: World, endpoint: VpcEndpoint, zone: str | None = None) -> tuple[str, ...]:
    """The addresses of an endpoint's interfaces, all or those in one zone."""
    found: list[str] = []
    for interface_id in endpoint.interface_ids:
        interface = world.get(NetworkInterface, interface_id)
        subnet = world.get(Subnet, interface.subnet_id) if interface is not None else None
        if interface is not None and subnet is not None and zone in (None, subnet.zone):
            found.append(interface.addresses[0].address)
    return tuple(found)


def resolve_own(world: World, name: str, region: str) -> tuple[str, ...]:
    """The addresses of an endpoint's own name, in any VPC; none when it is no such name."""
    domain = f".{region}.vpce.amazonaws.com"
    labels = name.removesuffix(domain).split(".") if name.endswith(domain) else []
    for at, text in enumerate(labels):
        match = _VPCE.fullmatch(text)
        if match is None:
            continue
        endpoint = world.get(VpcEndpoint, match[1])
        service = service_of(endpoint) if endpoint is not None else None
        if endpoint is None or service is None or not text.startswith(label(endpoint.endpoint_id)):
            return ()
        if ".".join(labels[at + 1 :]) != service.host or bool(at) != service.wildcard:
            return ()
        return addresses(world, endpoint, match[3])
    return ()


def resolve_private(world: World, vpc: Vpc, name: str, region: str) -> tuple[str, ...] | None:
    """The addresses of a name by private DNS. Empty: its hosted zone has no such name; None: it has none."""
    if not vpc.enable_dns_hostnames:
        return None
    for endpoint in world.where(VpcEndpoint, vpc_id=vpc.vpc_id):
        if endpoint.private_dns_only_inbound:
            continue
        names = private_names(endpoint, region)
        if not names:
            continue
        if name == names[0]:
            return addresses(world, endpoint)
        if name.endswith(f".{names[0]}"):
            return addresses(world, endpoint) if len(names) > 1 else ()
    return None


def lack(world: World, interface: NetworkInterface, host: str, region: str) -> tuple[str, str] | None:
    """Why no endpoint in the VPC of `interface` answers by `host`, a service's own name, and the next AWS CLI
    command towards it. None: the service has no endpoints that answer by that name."""
    service = next((one for one in SERVICES.values() if host in one.private_names(region)), None)
    vpc = world.get(Vpc, interface.vpc_id)
    if service is None or vpc is None:
        return None
    there = (one for one in world.where(VpcEndpoint, vpc_id=vpc.vpc_id) if service_of(one) is service)
    endpoint = next(there, None)
    name = service.name(region)
    why = f"{vpc.vpc_id} has no interface endpoint for {name}"
    if endpoint is not None:
        why = f"{endpoint.endpoint_id} for {name} does not answer by that name"
    if not vpc.enable_dns_hostnames:
        why += f", and DNS hostnames of {vpc.vpc_id}, which private DNS needs, are off"
        return why, f"aws ec2 modify-vpc-attribute --vpc-id {vpc.vpc_id} --enable-dns-hostnames"
    if endpoint is not None:
        why += " without private DNS"
        return why, (
            f"aws ec2 modify-vpc-endpoint --vpc-endpoint-id {endpoint.endpoint_id} --private-dns-enabled"
        )
    groups = f" --security-group-ids {' '.join(interface.group_ids)}" if interface.group_ids else ""
    return why, (
        f"aws ec2 create-vpc-endpoint --vpc-endpoint-type Interface --vpc-id {vpc.vpc_id} "
        f"--service-name {name} --subnet-ids {interface.subnet_id}{groups} --private-dns-enabled"
    )


def _subnets(world: World, endpoint: VpcEndpoint) -> list[Subnet]:
    found = (world.get(Subnet, subnet_id) for subnet_id in endpoint.subnet_ids)
    return [subnet for subnet in found if subnet is not None]
