"""What a VPC's router refuses is noted: by whom, to where, how much. It costs nothing that is let through.

Noted are packets that no rule of a group or ACL lets pass (`compile`'s chains of what is refused), and first
packets that no route leads anywhere, and what goes to an address of the VPC that nobody has. The sets count
until their elements are deleted, `SIZE` each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloister.kernel.plan import Chain, Part, Rule, Set
from cloister.vpc.route_tables import NOWHERE

#: the sets, with the destination's port and without
BY_PORT, BY_PROTOCOL = "refused_to", "refused_others"
SIZE = 16384
_NOTE = "note_refused"

#: the rule for the chains of what is refused
NOTED = Rule(text=f"jump {_NOTE}", comment="for the receipt of a job")

#: for packets that their sender's gates let out, to an address that nobody has (`route_tables.nobody_parts`)
NOBODY = Rule(text=f'oifname "{NOWHERE}" jump {_NOTE}', comment="nobody has the address")


def unrouted(own: Sequence[str]) -> Rule:
    """For what has its route table's mark. `own` are the resolver's addresses, which no route leads to."""
    but = f"ip daddr != {{ {', '.join(own)} }} " if own else ""
    return Rule(text=f"ct state new {but}fib daddr . mark oif missing jump {_NOTE}", comment="no route")


def parts(vpc_id: str) -> Iterator[Part]:
    yield Set(netns=vpc_id, name=BY_PORT, type="ifname . ipv4_addr . inet_proto . inet_service", dynamic=SIZE)
    yield Set(netns=vpc_id, name=BY_PROTOCOL, type="ifname . ipv4_addr . inet_proto", dynamic=SIZE)
    to = "iifname . ip daddr . meta l4proto"
    yield Chain(
        netns=vpc_id,
        name=_NOTE,
        rules=(
            Rule(text=f"meta l4proto {{ tcp, udp }} update @{BY_PORT} {{ {to} . th dport counter }}"),
            Rule(text=f"meta l4proto != {{ tcp, udp }} update @{BY_PROTOCOL} {{ {to} counter }}"),
        ),
    )
