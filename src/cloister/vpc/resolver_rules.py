"""Resolver rules: names that a VPC's resolver asks of DNS servers of the customer's.

AWS ("Resolving outbound DNS queries to your network", "How Resolver determines whether the domain name in a
query matches any rules"): a rule that is associated with a VPC forwards the queries for a domain and all
below it to target addresses, by the interfaces of an outbound endpoint; of several rules the most specific
one decides, and a SYSTEM rule takes names back from a FORWARD rule above it. Resolver has rules of its own
for private hosted zones (here those of interface endpoints), for the private names of VPCs and for the
reverse names of the VPC's addresses: a more specific one of these wins over a rule, a rule for the same
domain wins over it.

Pure, and documents of the World; `cloister/forwarding.py` sends the queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from cloister.vpc import addresses as ip
from cloister.vpc import interface_endpoints
from cloister.vpc.dhcp import private_domain
from cloister.vpc.model import NetworkInterface, Vpc, VpcEndpoint
from cloister.world import World, document

FORWARD, SYSTEM = "FORWARD", "SYSTEM"
_REVERSE = ".in-addr.arpa"


@document("resolver-endpoint", key="endpoint_id", index=("vpc_id",))
@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverEndpoint:
    """An outbound endpoint: requester-managed interfaces that queries leave from."""

    endpoint_id: str  # rslvr-out-…
    vpc_id: str
    creator_request_id: str
    name: str = ""
    group_ids: tuple[str, ...]
    interface_ids: tuple[str, ...]
    created: float
    tags: dict[str, str] = field(default_factory=dict)


@document("resolver-rule", key="rule_id", index=("endpoint_id",))
@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverRule:
    """`domain` is in lower case without the final dot, "" for all names. `targets` are (address, port)."""

    rule_id: str  # rslvr-rr-…
    creator_request_id: str
    kind: str  # FORWARD | SYSTEM
    domain: str
    name: str = ""
    targets: tuple[tuple[str, int], ...] = ()
    endpoint_id: str | None = None
    created: float
    modified: float
    tags: dict[str, str] = field(default_factory=dict)


@document("resolver-rule-association", key="association_id", index=("rule_id", "vpc_id"))
@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverRuleAssociation:
    association_id: str  # rslvr-rrassoc-…
    rule_id: str
    vpc_id: str
    name: str = ""


def rule_for(world: World, vpc_id: str, qname: str, *, region: str) -> ResolverRule | None:
    """The FORWARD rule that a VPC's resolver follows for a name; None: it answers by itself."""
    name = qname.rstrip(".").lower()
    chosen: ResolverRule | None = None
    for association in world.where(ResolverRuleAssociation, vpc_id=vpc_id):
        rule = world.get(ResolverRule, association.rule_id)
        if rule is not None and is_below(name, rule.domain):
            chosen = rule if chosen is None or _depth(rule.domain) > _depth(chosen.domain) else chosen
    vpc = world.get(Vpc, vpc_id)
    if chosen is None or vpc is None or chosen.kind != FORWARD:
        return None
    own = (_depth(zone) for zone in _own_zones(world, vpc, name, region) if is_below(name, zone))
    return None if max(own, default=0) > _depth(chosen.domain) else chosen


def sources(world: World, rule: ResolverRule) -> tuple[NetworkInterface, ...]:
    """The interfaces that a rule's queries leave from."""
    endpoint = world.get(ResolverEndpoint, rule.endpoint_id)
    found = (world.get(NetworkInterface, each) for each in (endpoint.interface_ids if endpoint else ()))
    return tuple(interface for interface in found if interface is not None)


def is_below(name: str, domain: str) -> bool:
    """Whether a name is a domain, or one of its names."""
    return not domain or name == domain or name.endswith(f".{domain}")


def _depth(domain: str) -> int:
    return domain.count(".") + 1 if domain else 0


def _own_zones(world: World, vpc: Vpc, name: str, region: str) -> list[str]:
    """What the resolver has rules of its own for, as far as it matters for this name."""
    found = [private_domain(region)]
    if vpc.enable_dns_hostnames:
        for endpoint in world.where(VpcEndpoint, vpc_id=vpc.vpc_id):
            if not endpoint.private_dns_only_inbound:
                found += interface_endpoints.private_names(endpoint, region)[:1]
    if name.endswith(_REVERSE):
        try:
            address = str(IPv4Address(".".join(reversed(name.removesuffix(_REVERSE).split(".")))))
        except ValueError:
            return found
        found += [name for cidr in vpc.cidrs if ip.contains(cidr, address)]
    return found
