"""Security groups: which packets their rules admit, and the nftables chains that say so.

AWS ("Security groups", VPC guide): rules only allow; a packet that starts a connection needs a rule of
one of the sender's groups (egress) *and* of one of the receiver's (ingress); replies need none. A rule that
names a group means the addresses of that group's interfaces.

`matches` resolves a group's rules once; `admits` reads the result, `chain_parts` renders it. One group is
two chains, `i_…` (ingress) and `e_…` (egress), and its members a set, `m_…`. Interfaces with the same groups
share a pair of chains `I_…`, `E_…` that jump to their groups' chains.

Rules become elements of interval sets, so a packet costs the same with 1 and with 5,000 rules. nftables
(1.0.6, kernel 6.18) refuses an element that begins inside another of its set, so overlapping rules go to
different sets, *layers*: a rule's layer is how many blocks of its set's kind contain its own block. Blocks
of one layer are disjoint; there are at most 33 layers, one or two in practice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from cloister.kernel.plan import Chain, Element, Part, Rule, Set
from cloister.vpc import gateways
from cloister.vpc.endpoints import prefix_list
from cloister.vpc.model import GroupRule, NetworkInterface, SecurityGroup, place
from cloister.vpc.tracking import UNTRACKED
from cloister.world import World

ALL = "-1"
_NAMES = {"6": "tcp", "17": "udp", "1": "icmp"}
_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1}
COMMENT_BYTES = 128
#: the router's chains where packets go that a gate of the sender, of the receiver refuses
REFUSED_OUT, REFUSED_IN = "refused_out", "refused_in"
#: connection marks: the groups of its sender, of its receiver, keep no track of the connection
UNTRACKED_BY_SENDER, UNTRACKED_BY_RECEIVER = 0x1, 0x2


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What one rule admits: peers in `cidr`, or members of group `member_of`.

    `low`..`high` is an interval on the protocol's axis: ports for tcp and udp; type * 256 + code for icmp;
    None for others. `protocol` is "-1" for all, "tcp", "udp", "icmp" or a number."""

    protocol: str
    low: int | None
    high: int | None
    cidr: IPv4Network | None
    member_of: str | None
    group_id: str
    rule: GroupRule

    @property
    def origin(self) -> str:
        return f"{self.group_id}/{self.rule.rule_id}"


def _covers(covered: str, low: int | None, high: int | None, protocol: str, port: int | None) -> bool:
    """Whether a rule's protocol and interval admit this protocol and port (for icmp: type * 256 + code;
    None: any)."""
    if covered == ALL:
        return True
    if covered != protocol:
        return False
    return low is None or high is None or port is None or low <= port <= high


def normal_protocol(protocol: str) -> str:
    return _NAMES.get(protocol, protocol)


def axis(protocol: str, low: int | None, high: int | None) -> tuple[int | None, int | None]:
    """A rule's ports, or its icmp type and code, as an interval on the protocol's axis (see `Match`)."""
    if protocol in ("tcp", "udp"):
        return (0, 65535) if low is None or low < 0 else (low, low if high is None else high)
    if protocol == "icmp":
        if low is None or low < 0:
            return 0, 0xFFFF
        return (low << 8, low << 8 | 0xFF) if high is None or high < 0 else (low << 8 | high,) * 2
    return None, None


@lru_cache(maxsize=65536)
def _block(cidr: str) -> IPv4Network:
    return IPv4Network(cidr, strict=False)


def matches(world: World, group: SecurityGroup, *, egress: bool) -> list[Match]:
    """The group's rules of one direction, prefix lists replaced by their blocks. A rule that names a group
    or list that is not there (AWS: a stale rule) admits nobody."""
    return [
        match
        for rule in group.rules
        if rule.egress is egress
        for match in _rule_matches(world, group, rule, *_span(rule))
    ]


def _span(rule: GroupRule) -> tuple[str, int | None, int | None]:
    """A rule's protocol and its interval on the protocol's axis."""
    protocol = normal_protocol(rule.protocol)
    return protocol, *axis(protocol, rule.from_port, rule.to_port)


def _rule_matches(
    world: World, group: SecurityGroup, rule: GroupRule, protocol: str, low: int | None, high: int | None
) -> Iterator[Match]:
    blocks: list[IPv4Network | None] = []
    if rule.cidr is not None:
        blocks = [_block(rule.cidr)]
    elif rule.prefix_list_id is not None:
        listed = prefix_list(world, rule.prefix_list_id)
        blocks = [_block(cidr) for cidr in listed.entries] if listed else []
    elif rule.group_id is not None:
        named = world.get(SecurityGroup, rule.group_id)
        blocks = [None] if named is not None and named.vpc_id in gateways.reach(world, group.vpc_id) else []
    for block in blocks:
        yield Match(
            protocol=protocol,
            low=low,
            high=high,
            cidr=block,
            member_of=rule.group_id if block is None else None,
            group_id=group.group_id,
            rule=rule,
        )


def is_member(world: World, group_id: str, address: str) -> bool:
    group = world.get(SecurityGroup, group_id)
    return group is not None and any(
        group_id in interface.group_ids and held.netns is not None and held.address == address
        for interface in world.where(NetworkInterface, places=place(group.vpc_id, address))
        for held in interface.addresses
    )


def admits(
    world: World,
    group_ids: Iterable[str],
    *,
    egress: bool,
    peer: str,
    protocol: str,
    port: int | None,
    forwarded: bool = False,
) -> Match | None:
    """The first match of these groups that admits `peer`, or None: refused. `forwarded`: an interface passes
    it on for others, so that AWS does not know it for a member of a group."""
    address = IPv4Address(peer)
    protocol = normal_protocol(protocol)
    groups = [group for group_id in group_ids if (group := world.get(SecurityGroup, group_id)) is not None]
    for group in groups:
        for rule in group.rules:
            # What is about another protocol or port is most of a large group: it is not looked at closely.
            if rule.egress is not egress:
                continue
            covered, low, high = _span(rule)
            if not _covers(covered, low, high, protocol, port):
                continue
            for match in _rule_matches(world, group, rule, covered, low, high):
                if match.cidr is not None:
                    if address in match.cidr:
                        return match
                elif (
                    match.member_of is not None and not forwarded and is_member(world, match.member_of, peer)
                ):
                    return match
    return None


# --- names -----------------------------------------------------------------------------------------------


def _short(group_id: str) -> str:
    return group_id.replace("-", "")


def members_set(group_id: str) -> str:
    return f"m_{_short(group_id)}"


def group_chain(group_id: str, *, egress: bool) -> str:
    return f"{'e' if egress else 'i'}_{_short(group_id)}"


def shared_chain(group_ids: Sequence[str], *, egress: bool) -> str:
    """The chain of all interfaces with exactly these groups."""
    digest = hashlib.sha256(",".join(sorted(group_ids)).encode()).hexdigest()[:24]
    return f"{'E' if egress else 'I'}_{digest}"


def comment(origins: Sequence[str]) -> str:
    """The first origin and how many more there are, within what nftables keeps."""
    more = f" +{len(origins) - 1}" if len(origins) > 1 else ""
    return origins[0].encode()[: COMMENT_BYTES - len(more)].decode(errors="ignore") + more


# --- rendering -------------------------------------------------------------------------------------------


def open_ports(group: SecurityGroup, *, egress: bool) -> frozenset[tuple[str, int, int]]:
    """What the group's rules let through to or from everybody, 0.0.0.0/0: (tcp or udp, first, last port)."""
    found: set[tuple[str, int, int]] = set()
    for rule in group.rules:
        if rule.egress is egress and rule.cidr == "0.0.0.0/0":
            protocol = normal_protocol(rule.protocol)
            low, high = axis(protocol, rule.from_port, rule.to_port)
            if protocol == ALL:
                found |= {("tcp", 0, 65535), ("udp", 0, 65535)}
            elif protocol in ("tcp", "udp") and low is not None and high is not None:
                found.add((protocol, low, high))
    return frozenset(found)


def _untracked(groups: Sequence[SecurityGroup], *, egress: bool) -> Iterator[Rule]:
    """AWS ("Untracked connections"): a TCP or UDP flow that a rule lets through for everybody, while another
    lets through everything the other way, is not tracked: it ends when the rule goes. Such flows get a mark,
    and the router asks the groups about each of their packets. ICMP is always tracked."""
    ways = [open_ports(group, egress=egress) for group in groups]
    back = frozenset[tuple[str, int, int]]().union(
        *(open_ports(group, egress=not egress) for group in groups)
    )
    mark = UNTRACKED_BY_SENDER if egress else UNTRACKED_BY_RECEIVER
    for protocol, low, high in sorted(frozenset[tuple[str, int, int]]().union(*ways)):
        if (protocol, 0, 65535) in back:
            ports = "" if (low, high) == (0, 65535) else f" th dport {_interval(low, high)}"
            text = f"ct state new meta l4proto {protocol}{ports} ct mark set ct mark or {mark:#x}"
            yield Rule(text=text, comment="open to everybody both ways: not tracked")


def _unknown(groups: Sequence[SecurityGroup], *, egress: bool) -> Iterator[Rule]:
    """The same where interfaces have their connections in sets (`vpc/tracking.py`): each packet of such a
    flow gets a mark, also those that go back."""
    for way, side in ((egress, "dport"), (not egress, "sport")):
        open_here = frozenset[tuple[str, int, int]]().union(*(open_ports(g, egress=way) for g in groups))
        open_back = frozenset[tuple[str, int, int]]().union(*(open_ports(g, egress=not way) for g in groups))
        for protocol, low, high in sorted(open_here):
            if (protocol, 0, 65535) in open_back:
                ports = "" if (low, high) == (0, 65535) else f" th {side} {_interval(low, high)}"
                text = f"meta l4proto {protocol}{ports} meta mark set {UNTRACKED}"
                yield Rule(text=text, comment="open to everybody both ways: not tracked")


def shared_parts(
    world: World, netns: str, group_ids: Sequence[str], *, forwards: bool = False
) -> Iterator[Part]:
    """The chains of interfaces with exactly these groups. `forwards` as in `chain_parts`."""
    found = (world.get(SecurityGroup, group_id) for group_id in sorted(group_ids))
    groups = [group for group in found if group is not None and group.vpc_id == netns]
    present = [group.group_id for group in groups]
    for egress in (True, False):
        yield Chain(
            netns=netns,
            name=shared_chain(group_ids, egress=egress),
            rules=(
                *_untracked(groups, egress=egress),
                *(_unknown(groups, egress=egress) if forwards else ()),
                *(Rule(text=f"jump {group_chain(g, egress=egress)}", comment=g) for g in present),
                Rule(
                    text=f"goto {REFUSED_OUT if egress else REFUSED_IN}",
                    comment=f"no {'egress' if egress else 'ingress'} rule matched",
                ),
            ),
        )


def chain_parts(world: World, group: SecurityGroup, *, forwards: bool = False) -> Iterator[Part]:
    """The set of a group's members, also in the VPCs that can name it (empty: interfaces add themselves),
    its two chains and their sets. `forwards`: interfaces of the VPC pass packets on for others; a rule that
    names a group does not mean these, which are tracked in a zone other than 0."""
    for netns in gateways.reach(world, group.vpc_id):
        yield Set(netns=netns, name=members_set(group.group_id), type="ipv4_addr")
    for egress in (True, False):
        yield from _direction(group, matches(world, group, egress=egress), egress=egress, forwards=forwards)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """One kind of set: which matches go there, how nftables looks them up."""

    letter: str
    type: str
    lookup: str  # {peer} is "ip saddr" or "ip daddr"


_ANY = _Shape(letter="a", type="ipv4_addr", lookup="{peer}")
# The kernel looks fields up one after another and carries on with every element that matched so far: 50
# microseconds for 5,000 (6.18, AVX2). So the field that tells most apart comes first.
_PORTS = _Shape(
    letter="t", type="inet_service . inet_proto . ipv4_addr", lookup="th dport . meta l4proto . {peer}"
)
_BLOCKS = _Shape(
    letter="b", type="ipv4_addr . inet_service . inet_proto", lookup="{peer} . th dport . meta l4proto"
)
_ICMP = _Shape(letter="c", type="icmp_type . icmp_code . ipv4_addr", lookup="icmp type . icmp code . {peer}")
_OTHER = _Shape(letter="p", type="ipv4_addr . inet_proto", lookup="{peer} . meta l4proto")
_SHAPES = (_ANY, _PORTS, _ICMP, _OTHER)


def _shape(match: Match) -> _Shape:
    if match.protocol == ALL:
        return _ANY
    return {"tcp": _PORTS, "udp": _PORTS, "icmp": _ICMP}.get(match.protocol, _OTHER)


def _direction(group: SecurityGroup, found: list[Match], *, egress: bool, forwards: bool) -> Iterator[Part]:
    chain = group_chain(group.group_id, egress=egress)
    peer = "ip daddr" if egress else "ip saddr"
    rules: list[Rule] = []
    for shape in _SHAPES:
        of_shape = [m for m in found if m.cidr is not None and _shape(m) is shape]
        for layer, blocks in enumerate(_layers(of_shape)):
            form = _ordered(blocks) if shape is _PORTS else shape
            name = f"{chain}_{form.letter}{layer}"
            yield Set(netns=group.vpc_id, name=name, type=form.type, interval=True)
            for block, in_block in blocks.items():
                for key, origins in _keys(form, block, in_block):
                    yield Element(netns=group.vpc_id, set=name, key=key, comment=comment(origins))
            text = f"{form.lookup.format(peer=peer)} @{name} accept"
            rules.append(Rule(text=text, comment=f"{group.group_id} rules by address"))
    by_reference: dict[tuple[str, str, int, int], list[str]] = {}
    for m in found:
        if m.member_of is not None:
            spot = (m.member_of, m.protocol, -1 if m.low is None else m.low, -1 if m.high is None else m.high)
            by_reference.setdefault(spot, []).append(m.origin)
    for (member_of, protocol, low, high), origins in sorted(by_reference.items()):
        text = " ".join(
            part
            for part in (
                f"{peer} @{members_set(member_of)}",
                protocol_text(protocol, low, high),
                "ct zone 0" if forwards else "",
                "accept",
            )
            if part
        )
        rules.append(Rule(text=text, comment=comment(origins)))
    yield Chain(netns=group.vpc_id, name=chain, rules=tuple(rules))


def protocol_text(protocol: str, low: int, high: int) -> str:
    """The nftables match of a protocol and an interval on its axis; "" for all protocols."""
    if protocol == ALL:
        return ""
    if protocol in ("tcp", "udp"):
        return f"{protocol} dport {_interval(low, high)}"
    if protocol == "icmp":
        if (low, high) == (0, 0xFFFF):
            return "meta l4proto icmp"
        kind = f"icmp type {low >> 8}"
        return kind if high - low == 0xFF else f"{kind} icmp code {low & 0xFF}"
    return f"meta l4proto {protocol}"


def _interval(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def block_text(block: IPv4Network) -> str:
    """As nftables prints it: a single address has no length."""
    return str(block.network_address) if block.prefixlen == 32 else str(block)


def _layers(found: Iterable[Match]) -> list[dict[IPv4Network, list[Match]]]:
    """Matches by block, blocks by how many of the others contain them."""
    by_block: dict[IPv4Network, list[Match]] = {}
    for match in found:
        assert match.cidr is not None
        by_block.setdefault(match.cidr, []).append(match)
    layers: list[dict[IPv4Network, list[Match]]] = []
    inside: list[int] = []  # the last addresses of the blocks that contain the place reached
    for block in sorted(by_block):  # a block sorts before those it contains
        first, last = int(block.network_address), int(block.broadcast_address)
        while inside and inside[-1] < first:
            inside.pop()
        if len(inside) == len(layers):
            layers.append({})
        layers[len(inside)][block] = by_block[block]
        inside.append(last)
    return layers


def _ordered(blocks: dict[IPv4Network, list[Match]]) -> _Shape:
    """Ports first, unless more rules share their ports than share their block."""
    of_a_port = Counter((m.low, m.high) for found in blocks.values() for m in found)
    of_a_block = max(len(found) for found in blocks.values())
    return _PORTS if max(of_a_port.values()) <= of_a_block else _BLOCKS


def _keys(shape: _Shape, block: IPv4Network, found: list[Match]) -> Iterator[tuple[str, list[str]]]:
    """The elements of one block: its intervals, those that overlap made one."""
    text = block_text(block)
    if shape is _ANY:
        yield text, [m.origin for m in found]
        return
    by_protocol: dict[str, list[Match]] = {}
    for match in found:
        by_protocol.setdefault(match.protocol, []).append(match)
    for protocol, of_protocol in sorted(by_protocol.items()):
        if shape is _OTHER:
            yield f"{text} . {protocol}", [m.origin for m in of_protocol]
            continue
        for low, high, origins in _merge(of_protocol):
            if shape is _PORTS:
                yield f"{_interval(low, high)} . {protocol} . {text}", origins
            elif shape is _BLOCKS:
                yield f"{text} . {_interval(low, high)} . {protocol}", origins
            else:  # an icmp interval is everything, one whole type, or one code
                types, codes = _interval(low >> 8, high >> 8), _interval(low & 0xFF, high & 0xFF)
                yield f"{types} . {codes} . {text}", origins


def _merge(found: list[Match]) -> Iterator[tuple[int, int, list[str]]]:
    spans = sorted(((m.low or 0, m.high or 0, m.origin) for m in found), key=lambda s: (s[0], -s[1]))
    low, high, origins = spans[0][0], spans[0][1], [spans[0][2]]
    for next_low, next_high, origin in spans[1:]:
        if next_low <= high:
            high = max(high, next_high)
            origins.append(origin)
        else:
            yield low, high, origins
            low, high, origins = next_low, next_high, [origin]
    yield low, high, origins
