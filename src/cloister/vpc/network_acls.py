"""Network ACLs: the numbered rules at a subnet's border, and the nftables chains that say so.

AWS ("Network ACLs", VPC guide): stateless, so replies need rules as well (to ephemeral ports); the rule with
the lowest number that matches decides; what none matches is denied. Traffic inside of a subnet never meets
its ACL, nor does traffic with the resolver.

`decide` reads the rules, `acl_parts` renders them: one chain a direction and ACL. A subnet is two chains that
let its own addresses through and else ask its ACL, so that a packet meets its sender's subnet (outbound) and
its receiver's (inbound) in the router's chains `acl_out` and `acl_in`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from cloister.kernel.plan import Chain, Part, Rule
from cloister.vpc.model import AclEntry, NetworkAcl, Subnet
from cloister.vpc.security_groups import ALL, REFUSED_IN, REFUSED_OUT, axis, normal_protocol, protocol_text
from cloister.world import World

#: source ports of a Linux client (net.ipv4.ip_local_port_range): where replies go
EPHEMERAL = (32768, 60999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an ACL says. `entry` is None when no rule matched, or when the subnet has no ACL (`acl_id` "")."""

    allowed: bool
    acl_id: str
    entry: AclEntry | None = None

    @property
    def origin(self) -> str:
        return f"{self.acl_id}/{self.entry.number if self.entry else '*'}"


def in_order(acl: NetworkAcl, *, egress: bool) -> list[AclEntry]:
    return sorted((e for e in acl.entries if e.egress is egress), key=lambda entry: entry.number)


def decide(
    world: World, subnet: Subnet, *, egress: bool, peer: str, protocol: str, ports: tuple[int, int] | None
) -> Decision:
    """Whether the ACL of `subnet` lets packets to (`egress`) or from `peer` through, as to every port of
    `ports` (first, last; for icmp type * 256 + code): the refusal of one is a refusal."""
    if not subnet.network_acl_id:
        return Decision(allowed=True, acl_id="")
    acl = world.get(NetworkAcl, subnet.network_acl_id)
    if acl is None:
        return Decision(allowed=False, acl_id=subnet.network_acl_id)
    protocol, address = normal_protocol(protocol), IPv4Address(peer)
    near = [
        entry
        for entry in in_order(acl, egress=egress)
        if address in IPv4Network(entry.cidr)
        and (entry.protocol == ALL or normal_protocol(entry.protocol) == protocol)
    ]
    decided: Decision | None = None
    for port in _corners(near, ports):
        entry = next((e for e in near if _covers(e, port)), None)
        decided = Decision(allowed=entry is not None and entry.allow, acl_id=acl.network_acl_id, entry=entry)
        if not decided.allowed:
            return decided
    assert decided is not None
    return decided


def _span(entry: AclEntry) -> tuple[int | None, int | None]:
    return axis(normal_protocol(entry.protocol), entry.from_port, entry.to_port)


def _covers(entry: AclEntry, port: int | None) -> bool:
    low, high = _span(entry)
    return low is None or high is None or port is None or low <= port <= high


def _corners(entries: Iterable[AclEntry], ports: tuple[int, int] | None) -> Sequence[int | None]:
    """One port of each stretch of `ports` in which all are decided alike."""
    if ports is None:
        return [None]
    corners = {ports[0]}
    for entry in entries:
        low, high = _span(entry)
        if low is not None and high is not None:
            corners |= {port for port in (low, high + 1) if ports[0] <= port <= ports[1]}
    return sorted(corners)


# --- rendering -------------------------------------------------------------------------------------------


def subnet_chain(subnet_id: str, *, egress: bool) -> str:
    """The chain that packets of the interfaces of a subnet pass at its border."""
    return f"{'so' if egress else 'si'}_{subnet_id.replace('-', '')}"


def acl_chain(acl_id: str, *, egress: bool) -> str:
    return f"{'ao' if egress else 'ai'}_{acl_id.replace('-', '')}"


def subnet_parts(world: World, subnet: Subnet) -> Iterator[Part]:
    acl = world.get(NetworkAcl, subnet.network_acl_id)
    for egress, peer in ((True, "ip daddr"), (False, "ip saddr")):
        rules: tuple[Rule, ...]
        if not subnet.network_acl_id:
            rules = (Rule(text="accept", comment=f"{subnet.subnet_id} has no network ACL"),)
        elif acl is None or acl.vpc_id != subnet.vpc_id:
            rules = (Rule(text="drop", comment=f"{subnet.network_acl_id} is gone"),)
        else:
            rules = (
                Rule(text=f"{peer} {subnet.cidr} accept", comment=f"within {subnet.subnet_id}"),
                Rule(text=f"goto {acl_chain(acl.network_acl_id, egress=egress)}", comment=acl.network_acl_id),
            )
        yield Chain(netns=subnet.vpc_id, name=subnet_chain(subnet.subnet_id, egress=egress), rules=rules)


def acl_parts(acl: NetworkAcl) -> Iterator[Part]:
    for egress, refused in ((True, REFUSED_OUT), (False, REFUSED_IN)):
        rules = [_rule(acl, entry, refused) for entry in in_order(acl, egress=egress)]
        rules.append(Rule(text=f"goto {refused}", comment=f"{acl.network_acl_id}/*"))
        yield Chain(netns=acl.vpc_id, name=acl_chain(acl.network_acl_id, egress=egress), rules=tuple(rules))


def _rule(acl: NetworkAcl, entry: AclEntry, refused: str) -> Rule:
    block = IPv4Network(entry.cidr)
    peer = f"ip {'daddr' if entry.egress else 'saddr'} {block}" if block.prefixlen else ""
    low, high = _span(entry)
    protocol = protocol_text(
        normal_protocol(entry.protocol), -1 if low is None else low, -1 if high is None else high
    )
    verdict = "accept" if entry.allow else f"goto {refused}"
    text = " ".join(part for part in (peer, protocol, verdict) if part)
    return Rule(text=text, comment=f"{acl.network_acl_id}/{entry.number}")
