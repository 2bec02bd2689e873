"""The gates of an interface and of its subnet, read for `explain`: groups and network ACLs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cloister.vpc import fixes, gateways, network_acls, security_groups
from cloister.vpc.flow import Flow, Step
from cloister.vpc.model import NetworkInterface, PrivateAddress, SecurityGroup, Subnet
from cloister.vpc.steps import allowed, either, refused, traffic
from cloister.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """An interface and which of its addresses."""

    interface: NetworkInterface
    address: str

    @property
    def held(self) -> PrivateAddress | None:
        """None where `address` is a public one."""
        return next((held for held in self.interface.addresses if held.address == self.address), None)


def egress_step(
    world: World,
    sender: NetworkInterface,
    destination: str,
    target: End | None,
    flow: Flow,
    *,
    forwarded: bool = False,
) -> Step:
    found = admitted(world, sender, destination, flow, egress=True, forwarded=forwarded)
    other = None if forwarded else target
    return found or _group_refusal(world, sender, destination, other, flow, egress=True)


def ingress_step(
    world: World, receiver: NetworkInterface, source: End, flow: Flow, *, forwarded: bool = False
) -> Step:
    found = admitted(world, receiver, source.address, flow, egress=False, forwarded=forwarded)
    other = None if forwarded else source
    return found or _group_refusal(world, receiver, source.address, other, flow, egress=False)


def there_ports(flow: Flow) -> tuple[int, int] | None:
    return None if flow.port is None else (flow.port, flow.port)


def reply_ports(flow: Flow) -> tuple[int, int] | None:
    if flow.protocol in ("tcp", "udp"):
        return network_acls.EPHEMERAL if flow.source_port is None else (flow.source_port, flow.source_port)
    return (0, 0) if flow.protocol == "icmp" else None  # an echo's reply


def acl_step(
    world: World,
    subnet: Subnet,
    flow: Flow,
    *,
    egress: bool,
    peer: str,
    ports: tuple[int, int] | None,
    reply: bool = False,
) -> Iterator[Step]:
    decision = network_acls.decide(
        world, subnet, egress=egress, peer=peer, protocol=flow.protocol, ports=ports
    )
    if not decision.acl_id:
        return
    way = "outbound" if egress else "inbound"
    what = f"the replies of {traffic(flow)}" if reply else traffic(flow)
    whom = f"{'to' if egress else 'from'} {peer}"
    rule = f"{way} rule {decision.entry.number if decision.entry else '*'} of {decision.acl_id}"
    if decision.allowed:
        yield allowed(
            "acl", decision.origin, f"{rule.capitalize()} ({subnet.subnet_id}) allows {what} {whom}."
        )
        return
    sentence = f"{rule.capitalize()} ({subnet.subnet_id}) denies {what} {whom}."
    fix = fixes.of_acl(world, subnet, decision, flow, egress=egress, peer=peer, ports=ports)
    direction = "egress" if egress else "ingress"
    yield refused("acl", decision.origin, sentence, fix, direction=direction)


def admitted(
    world: World,
    owner: NetworkInterface,
    peer: str,
    flow: Flow,
    *,
    egress: bool,
    forwarded: bool = False,
) -> Step | None:
    match = security_groups.admits(
        world,
        owner.group_ids,
        egress=egress,
        peer=peer,
        protocol=flow.protocol,
        port=flow.port,
        forwarded=forwarded,
    )
    if match is None:
        return None
    gate, way = ("egress", "to") if egress else ("ingress", "from")
    whom = match.member_of or match.rule.prefix_list_id or match.rule.cidr
    ports = ""
    if flow.port is None and match.rule.from_port is not None and flow.protocol in ("tcp", "udp"):
        low, high = match.rule.from_port, match.rule.to_port
        if (low, high) != (0, 65535):  # of some ports that is all that can be said
            ports = f" on port {low}" if low == high else f" on ports {low} to {high}"
    rule = f"{gate.capitalize()} rule {match.rule.rule_id} of {match.group_id}"
    sentence = f"{rule} allows it{ports} {way} {whom}."
    return allowed(gate, match.origin, sentence)


def _group_refusal(
    world: World, owner: NetworkInterface, peer: str, other: End | None, flow: Flow, *, egress: bool
) -> Step:
    gate, way = ("egress", "to") if egress else ("ingress", "from")
    present = [group_id for group_id in owner.group_ids if world.get(SecurityGroup, group_id)]
    rules = f"{gate} rule of {either(owner.group_ids)} ({owner.interface_id})"
    sentence = f"No {rules} allows {traffic(flow)} {way} {fixes.named(world, owner, peer)}."
    if not present:
        return refused(gate, owner.interface_id, sentence)
    # AWS: a rule may name a group of a peer as well
    near = other is not None and other.interface.vpc_id in gateways.reach(world, owner.vpc_id)
    whom = other.interface.group_ids[0] if near and other is not None and other.interface.group_ids else None
    fix = fixes.of_groups(world, owner, present[0], peer, flow, egress=egress, whom=whom)
    return refused(gate, present[0], sentence, fix)
