"""The VPC as data: one frozen document per resource, in EC2's words.

These are the documents of the `World` that `compile` turns into a kernel plan and `explain` reads.
Times are POSIX seconds. Sequences are tuples. Mappings are never mutated after construction.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from cloister.world import document


@document("vpc", key="vpc_id", prefix="vpc")
@dataclass(frozen=True, slots=True, kw_only=True)
class Vpc:
    vpc_id: str
    cidr: str
    #: further IPv4 blocks (AssociateVpcCidrBlock): association id -> CIDR
    more_cidrs: dict[str, str] = field(default_factory=dict)
    cidr_association_id: str
    is_default: bool = False
    enable_dns_support: bool = True
    enable_dns_hostnames: bool = False
    instance_tenancy: str = "default"
    #: "default" is the account's default set (vpc/dhcp.py), "" is none
    dhcp_options_id: str = "default"
    #: it belongs to a service: no customer sees it, names it or pays for it, nor anything in it
    service_owned: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def cidrs(self) -> tuple[str, ...]:
        return (self.cidr, *self.more_cidrs.values())


@document("dhcp-options", key="options_id", prefix="dopt")
@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpOptions:
    """A set of DHCP options. `options` is as in the API: "domain-name-servers" -> values, in their order."""

    options_id: str
    options: dict[str, tuple[str, ...]]
    tags: dict[str, str] = field(default_factory=dict)


@document("subnet", key="subnet_id", index=("vpc_id", "network_acl_id"), prefix="subnet")
@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    subnet_id: str
    vpc_id: str
    cidr: str
    zone: str  # "us-east-1a"
    zone_id: str  # "use1-az1"
    map_public_ip_on_launch: bool = False
    default_for_az: bool = False
    #: the subnet's one network ACL; "" in a World without any: nothing is filtered at its border
    network_acl_id: str = ""
    network_acl_association_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def region(self) -> str:
        return self.zone.rstrip("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """One security group rule. Exactly one of `cidr`, `group_id`, `prefix_list_id` is set.

    `protocol` is "-1" (all), "tcp", "udp", "icmp" or a number as text. For tcp and udp `from_port` and
    `to_port` are a port range; for icmp they are type and code, -1 meaning any; else both are None."""

    rule_id: str  # sgr-…
    egress: bool
    protocol: str
    from_port: int | None = None
    to_port: int | None = None
    cidr: str | None = None
    group_id: str | None = None
    prefix_list_id: str | None = None
    description: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


@document("security-group", key="group_id", index=("vpc_id", "folded_name"), prefix="sg")
@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroup:
    group_id: str
    vpc_id: str
    name: str
    description: str
    rules: tuple[GroupRule, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def folded_name(self) -> str:
        """AWS: "names are case-insensitive"."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route. `destination` is a CIDR or a prefix list id; `target` is "local" or a resource id
    (vpce-, igw-, nat-, eni-, pcx-). `origin` is CreateRouteTable or CreateRoute; a table's own route of
    CreateRouteTable is a `local` one whose target was replaced."""

    destination: str
    target: str
    origin: str = "CreateRoute"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTableAssociation:
    """What takes this table: a subnet, an internet gateway for what it brings in, or, as the main one, every
    subnet that has none of its own."""

    association_id: str  # rtbassoc-…
    subnet_id: str | None
    main: bool = False
    gateway_id: str | None = None


@document("route-table", key="route_table_id", index=("vpc_id",), prefix="rtb")
@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """`number` is the Linux routing table and mark of this route table, unique within the VPC, from 1000."""

    route_table_id: str
    vpc_id: str
    number: int
    routes: tuple[Route, ...] = ()
    associations: tuple[RouteTableAssociation, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AclEntry:
    """One numbered rule of a network ACL. `protocol`, `from_port` and `to_port` are as in GroupRule."""

    number: int  # 1 to 32766, lowest first
    egress: bool
    allow: bool
    cidr: str
    protocol: str
    from_port: int | None = None
    to_port: int | None = None


@document("network-acl", key="network_acl_id", index=("vpc_id",), prefix="acl")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAcl:
    """`entries` in any order; what none of them matches is denied. Subnets name their ACL."""

    network_acl_id: str
    vpc_id: str
    is_default: bool = False
    entries: tuple[AclEntry, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


@document("vpc-endpoint", key="endpoint_id", index=("vpc_id",), prefix="vpce")
@dataclass(frozen=True, slots=True, kw_only=True)
class VpcEndpoint:
    """An endpoint. `kind` is "Gateway", with route tables, or "Interface", with one requester-managed
    interface in each of its subnets: `interface_ids` in the order of `subnet_ids`.
    `policy` is the document's text as the user gave it."""

    endpoint_id: str
    vpc_id: str
    service_name: str  # com.amazonaws.REGION.s3
    kind: str = "Gateway"
    policy: str
    route_table_ids: tuple[str, ...] = ()
    created: float
    state: str = "available"  # "pending" until the kernel holds an interface endpoint
    tags: dict[str, str] = field(default_factory=dict)
    subnet_ids: tuple[str, ...] = ()
    interface_ids: tuple[str, ...] = ()
    group_ids: tuple[str, ...] = ()
    private_dns_enabled: bool = False
    #: S3's: private names are for resolvers outside of the VPC, within it the gateway endpoint serves
    private_dns_only_inbound: bool = False


@document("prefix-list", key="prefix_list_id", prefix="pl")
@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixList:
    prefix_list_id: str
    name: str  # com.amazonaws.REGION.s3 for AWS-managed ones
    owner_id: str  # "AWS" or the account
    entries: dict[str, str] = field(default_factory=dict)  # CIDR -> description
    max_entries: int | None = None
    version: int = 1
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateAddress:
    """An address of an interface. `netns` names the network namespace that holds it; None: not attached."""

    address: str
    primary: bool = False
    netns: str | None = None
    #: the public address that an internet gateway translates it to, one to one
    public_ip: str | None = None
    #: what it may reach at all: None for whatever its groups allow, else these addresses (network isolation)
    only: tuple[str, ...] | None = None
    #: the addresses that it speaks with by IPsec only
    encrypted_with: tuple[str, ...] = ()


@document(
    "network-interface",
    key="interface_id",
    index=("vpc_id", "subnet_id", "group_ids", "source_dest_check", "places", "link_group"),
    prefix="eni",
)
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInterface:
    """An ENI. Each of its addresses may be attached to a namespace of its own (a job's container and
    its platform agent share one interface, and are told apart by address)."""

    interface_id: str
    vpc_id: str
    subnet_id: str
    mac: str
    addresses: tuple[PrivateAddress, ...]
    group_ids: tuple[str, ...]
    description: str = ""
    interface_type: str = "interface"
    requester_id: str | None = None
    requester_managed: bool = False
    source_dest_check: bool = True
    attachment_id: str | None = None
    attached: float | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def places(self) -> tuple[str, ...]:
        """Its addresses as `place` writes them: no other interface has one of these."""
        return tuple(place(self.vpc_id, held.address) for held in self.addresses)

    @property
    def alike(self) -> tuple[str, ...]:
        """Its subnet and its groups: interfaces in which these are the same are judged alike."""
        return (self.subnet_id, *sorted(self.group_ids))

    @property
    def link_group(self) -> int:
        """The number by which the kernel knows those alike (1 to 2^31 - 1): Linux's group of a link."""
        return _link_group(self.alike)


@lru_cache(maxsize=4096)
def _link_group(alike: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(alike).encode()).digest()[:4], "big") >> 1 or 1


def place(vpc_id: str, address: str) -> str:
    """An address of a VPC: two VPCs may have the same addresses."""
    return f"{vpc_id}/{address}"


@document("internet-gateway", key="internet_gateway_id", index=("vpc_id",), prefix="igw")
@dataclass(frozen=True, slots=True, kw_only=True)
class InternetGateway:
    internet_gateway_id: str
    vpc_id: str | None = None  # None: detached
    tags: dict[str, str] = field(default_factory=dict)


@document("elastic-ip", key="allocation_id", index=("interface_id",), prefix="eipalloc")
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticIp:
    """A public address of the account. Associated, the interface's address carries it as `public_ip`."""

    allocation_id: str
    public_ip: str
    association_id: str | None = None
    interface_id: str | None = None
    private_ip: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


@document("natgateway", key="nat_gateway_id", index=("vpc_id", "subnet_id"), prefix="nat")
@dataclass(frozen=True, slots=True, kw_only=True)
class NatGateway:
    """`interface_id` is its own, requester-managed interface. `deleted` is when it was deleted or failed: it
    stays listed for a while, as AWS does. One that failed has neither interface nor addresses."""

    nat_gateway_id: str
    vpc_id: str
    subnet_id: str
    interface_id: str
    private_ip: str
    public: bool = True
    allocation_id: str | None = None
    public_ip: str | None = None
    created: float
    deleted: float | None = None
    failure_code: str | None = None
    failure_message: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


#: AWS: seconds after which a request for a peering that nobody accepted is no more
PEERING_EXPIRES = 7 * 86_400


@document(
    "vpc-peering-connection", key="peering_id", index=("requester_vpc_id", "accepter_vpc_id"), prefix="pcx"
)
@dataclass(frozen=True, slots=True, kw_only=True)
class VpcPeering:
    """`status` is "pending-acceptance", "active", "rejected", "failed" or "deleted"; `changed` is since
    when."""

    peering_id: str
    requester_vpc_id: str
    accepter_vpc_id: str
    status: str
    created: float
    changed: float
    requester_resolves: bool = False  # AllowDnsResolutionFromRemoteVpc of each side
    accepter_resolves: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    def open_at(self, now: float) -> bool:
        """Active, or waiting to be accepted, which a request does not for ever."""
        waits = self.status == "pending-acceptance" and now < self.created + PEERING_EXPIRES
        return waits or self.status == "active"

    def other(self, vpc_id: str) -> str:
        return self.accepter_vpc_id if vpc_id == self.requester_vpc_id else self.requester_vpc_id


@document("host-address", key="address")
@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """An IPv4 address of the host Cloister runs on: nothing inside a VPC reaches it by the way out."""

    address: str
