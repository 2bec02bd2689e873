"""A veth pair of the plan, in the kernel: how it is made, finished, and given other addresses.

Outer and inner end are each reached by the handle of the namespace it is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from errno import EEXIST

from cloister.kernel import rtnl, seal
from cloister.kernel.netlink import Message, NetlinkError
from cloister.kernel.netns import Namespaces
from cloister.kernel.plan import Veth
from cloister.kernel.rtnl import Rtnl

#: the next hop of an inner end that has no gateway; permanent neighbour with the outer end's MAC
PEER = "169.254.0.1"


def make(namespaces: Namespaces, outer: Rtnl, inner: Rtnl, pair: Veth) -> None:
    """The pair, the outer end up with all that leads to it; the inner end stays down."""
    with namespaces.opened(pair.inner) as fd:
        add = rtnl.add_veth(
            pair.outer_if, pair.outer_mac, pair.mtu, pair.group, pair.inner_if, pair.inner_mac, fd
        )
        try:
            outer.send([add])
        except NetlinkError as error:
            if error.errno != EEXIST:
                raise
            # An unknown pair of this name: half-made, or its namespace is still being torn down.
            outer.send([rtnl.delete_link(pair.outer_if)])
            inner.send([rtnl.delete_link(pair.inner_if)])
            outer.send([add])
    index = index_of(outer, pair.outer_if)
    messages = [rtnl.set_up(index)]
    for address in pair.addresses:
        messages += _towards(index, address, pair.inner_mac)
    outer.send(messages)
    inner_index = index_of(inner, pair.inner_if)
    inner.send([rtnl.add_address(inner_index, f"{address}/32") for address in pair.addresses])


def finish(outer: Rtnl, inner: Rtnl, pair: Veth, routes: Iterable[Message]) -> None:
    """The inner end up, with the routes that have waited for that, and the marks of a whole pair."""
    index = index_of(inner, pair.inner_if)
    hop = pair.gateway or PEER
    messages = [rtnl.set_up(index), rtnl.add_neighbour(index, hop, pair.outer_mac)]
    if pair.gateway:
        messages.append(rtnl.add_route("0.0.0.0/0", dev=index, via=hop, protocol=rtnl.OWNED_PROTOCOL))
    messages += routes
    inner.send([*messages, rtnl.set_alias(index, seal.ALIAS)])
    outer.send([rtnl.set_alias(index_of(outer, pair.outer_if), _alias(pair))])


def amend(outer: Rtnl, inner: Rtnl, was: Veth, becomes: Veth) -> None:
    """Other addresses or another group of the same pair, without interrupting it."""
    index, inner_index = index_of(outer, becomes.outer_if), index_of(inner, becomes.inner_if)
    gone = [address for address in was.addresses if address not in becomes.addresses]
    come = [address for address in becomes.addresses if address not in was.addresses]
    outer.send([rtnl.set_alias(index, "")])
    messages = [rtnl.set_group(index, becomes.group)] if was.group != becomes.group else []
    for address in gone:
        messages.append(rtnl.delete_route(f"{address}/32", protocol=rtnl.OWNED_PROTOCOL))
        messages.append(rtnl.delete_neighbour(index, address))
    for address in come:
        messages += _towards(index, address, becomes.inner_mac)
    outer.send(messages)
    inner.send(
        [rtnl.add_address(inner_index, f"{address}/32") for address in come]
        + [rtnl.delete_address(inner_index, f"{address}/32") for address in gone]
    )
    outer.send([rtnl.set_alias(index, _alias(becomes))])


def amends(old: object, new: object) -> bool:
    """Whether a pair can become another while it is up: only its addresses and its group differ."""
    return (
        isinstance(old, Veth)
        and isinstance(new, Veth)
        and replace(old, addresses=new.addresses, group=new.group) == new
    )


def _alias(pair: Veth) -> str:
    return f"{seal.ALIAS} {seal.digest(pair)} {pair.inner} {pair.inner_if}"


def parse(alias: str) -> tuple[str, str, str]:
    """Digest, inner namespace and inner end that an outer end's alias tells; "": it does not."""
    digest, inner, inner_if = [*alias.removeprefix(seal.ALIAS + " ").split(" "), "", "", ""][:3]
    return digest, inner, inner_if


def index_of(here: Rtnl, name: str) -> int:
    index = here.index(name)
    if index is None:
        raise LookupError(f"there is no link {name}")
    return index


def _towards(index: int, address: str, mac: str) -> list[Message]:
    return [
        rtnl.add_neighbour(index, address, mac),
        rtnl.add_route(f"{address}/32", dev=index, protocol=rtnl.OWNED_PROTOCOL),
    ]
