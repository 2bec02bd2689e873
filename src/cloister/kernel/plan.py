"""What the kernel should hold, as data. No AWS word here.

A Plan is a mapping from key to part; the key of a part is `key(part)`. `kernel.reconcile` makes the
kernel equal to a plan: it creates before use, deletes last, and applies all nftables parts of one
namespace in one transaction. Every namespace of a plan lives inside the holder's private world.

Every namespace is born with one nftables table, `ip cloister`, whose base chains all have policy drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: routes made by Cloister carry this protocol number, so that they are known again after a crash
ROUTE_PROTOCOL = 201
#: the only nftables table: `table ip cloister`
TABLE = "cloister"


@dataclass(frozen=True, slots=True, kw_only=True)
class Netns:
    """A network namespace: loopback up, IPv6 off, forwarding as told. `loopback` are further addresses
    (CIDR) on lo; `local` are prefixes it answers for (`ip route add local P dev lo`)."""

    name: str
    forward: bool = False
    loopback: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()  # ("net/ipv4/ip_forward", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Veth:
    """A pair between two namespaces. Pure L3: no ARP happens, both ends have permanent neighbours.

    The `outer` end is in a forwarding namespace, named `outer_if`, with a /32 route to each of `addresses`
    in its main table. The `inner` end is `inner_if`, carries `addresses` as /32 and, when `gateway` is
    set, a default route by it (on-link, permanent neighbour with `outer_mac`). It goes up last.
    `group` is the outer end's link group, which rules may ask for (`iifgroup`); 0 is none."""

    outer: str
    outer_if: str
    outer_mac: str
    inner: str
    inner_if: str
    inner_mac: str
    addresses: tuple[str, ...]
    gateway: str | None = None
    mtu: int = 9001
    group: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route in table `table`: out of interface `dev`, or of type throw or blackhole.

    Out of an end of a pair and without `via` it leads to the other end: the reconciler finds the next hop,
    as nothing answers ARP."""

    netns: str
    table: int
    destination: str
    type: str = "unicast"  # unicast | throw | blackhole
    dev: str | None = None
    via: str | None = None  # on-link gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """`ip rule add priority P [fwmark M] lookup TABLE`."""

    netns: str
    priority: int
    table: int
    mark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """An nftables set, or a map when `data` is given. `type` is the key's type
    ("inet_proto . inet_service . ipv4_addr"), `data` e.g. "verdict" or "mark". A `dynamic` set takes its
    elements from rules, at most so many; they are not the plan's, and live until somebody flushes it.

    A key has at most five parts: with six nftables 1.0.2 aborts, and the process with it."""

    netns: str
    name: str
    type: str
    interval: bool = False
    data: str | None = None
    dynamic: int = 0
    timeout: int = 0  # seconds after which a dynamic set forgets an element that is not updated; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """A member of a set or map, in nftables' syntax: key "tcp . 80-90 . 10.0.0.0/8", data "jump g_1".
    `comment` (at most 128 bytes) says which resource and rule it comes from. Elements of an interval set
    must not overlap, also in concatenations: with 10.0.0.0/8 there, the kernel refuses 10.0.1.0/24.

    Elements only allow, what is not in a set is refused: changes too large for one transaction rest on it."""

    netns: str
    set: str
    key: str
    data: str | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    text: str
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """An nftables chain and its rules in order.

    `hook` e.g. "type filter hook forward priority 0; policy drop;". What falls off the end is refused, by
    the chain's policy or by its caller: a chain of thousands of rules is filled in order, in several
    transactions."""

    netns: str
    name: str
    rules: tuple[Rule, ...] = ()
    hook: str | None = None


Part = Netns | Veth | Route | PolicyRule | Set | Element | Chain
Key = tuple[str, ...]
Plan = Mapping[Key, Part]

_KEYS: dict[type, tuple[str, ...]] = {
    Netns: ("name",),
    Veth: ("outer", "outer_if"),
    Route: ("netns", "table", "destination"),
    PolicyRule: ("netns", "priority", "table"),
    Set: ("netns", "name"),
    Element: ("netns", "set", "key"),
    Chain: ("netns", "name"),
}


def key(part: Part) -> Key:
    """The identity of a part: two parts with one key are two versions of the same thing."""
    cls = type(part)
    return (cls.__name__, *(str(getattr(part, name)) for name in _KEYS[cls]))
