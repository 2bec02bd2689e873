"""What a namespace is set to: sysctls, loopback, and the addresses and prefixes that it answers for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from cloister.kernel import rtnl, syscalls
from cloister.kernel.netlink import Message
from cloister.kernel.netns import Namespaces
from cloister.kernel.plan import Netns
from cloister.kernel.rtnl import Rtnl

LOOPBACK = 1  # the index of lo in every namespace
_LOCAL_TABLE = 255
_QUIET = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC

#: per interface. Neighbours are permanent: ARP is neither answered nor learned from, so it cannot be spoofed.
#: The source of packets is checked by nftables; rp_filter cannot follow routing by marks.
_INTERFACE = {
    "rp_filter": "0",
    "arp_ignore": "8",
    "arp_announce": "2",
    "arp_accept": "0",
    "drop_gratuitous_arp": "1",
    "accept_local": "0",
    "route_localnet": "0",
    "accept_redirects": "0",
    "secure_redirects": "0",
    "send_redirects": "0",
    "accept_source_route": "0",
}


@cache
def _last_gid() -> int:
    """The last group id of this user namespace: ping_group_range takes no unmapped one."""
    last = 0
    for line in Path("/proc/self/gid_map").read_text().splitlines():
        inside, _, count = map(int, line.split())
        last = max(last, inside + count - 1)
    return min(last, 2147483647)


def sysctls(netns: Netns) -> dict[str, str]:
    """Path below /proc/sys -> value, in the order of writing (ip_forward resets others)."""
    values = {"net/ipv4/ip_forward": "1" if netns.forward else "0"}
    for interface in ("all", "default", "lo"):
        values |= {f"net/ipv4/conf/{interface}/{name}": value for name, value in _INTERFACE.items()}
    values["net/ipv4/ping_group_range"] = f"0 {_last_gid()}"
    values["net/ipv6/conf/all/disable_ipv6"] = "1"
    values["net/ipv6/conf/default/disable_ipv6"] = "1"
    return values | dict(netns.sysctls)


def configure(namespaces: Namespaces, here: Rtnl, old: Netns | None, new: Netns, *, fresh: bool) -> None:
    """Set a namespace up as `new` says. `old`: what it was set to, when known; `fresh`: it was just made."""
    dropped = {path for path, _ in old.sysctls} - {path for path, _ in new.sysctls} if old else set()
    values = (_defaults(namespaces, dropped) if dropped else {}) | sysctls(new)
    namespaces.call(new.name, lambda: _write(values))
    have_addresses: set[str] = set()
    have_local: set[str] = set()
    if not fresh:
        have_addresses = {cidr for index, cidr in here.addresses() if index == LOOPBACK} - {"127.0.0.1/8"}
        have_local = {
            route.destination
            for route in here.routes()
            if route.type == "local" and route.protocol == rtnl.OWNED_PROTOCOL
        }
    messages: list[Message] = [rtnl.set_up(LOOPBACK)]
    # A router's links have no addresses. For each of its routes the kernel looks for one on all of them,
    # unless it finds one on the loopback: among 1,000 that is a tenth of what attaching one takes.
    messages += [
        rtnl.add_address(LOOPBACK, cidr, own=not new.forward)
        for cidr in new.loopback
        if cidr not in have_addresses
    ]
    messages += [_local(prefix) for prefix in new.local if prefix not in have_local]
    messages += [rtnl.delete_address(LOOPBACK, cidr) for cidr in sorted(have_addresses - set(new.loopback))]
    messages += [
        rtnl.delete_route(prefix, table=_LOCAL_TABLE, protocol=rtnl.OWNED_PROTOCOL)
        for prefix in sorted(have_local - set(new.local))
    ]
    here.send(messages)


def _local(prefix: str) -> Message:
    return rtnl.add_route(
        prefix, table=_LOCAL_TABLE, type="local", dev=LOOPBACK, protocol=rtnl.OWNED_PROTOCOL
    )


def _write(values: Mapping[str, str]) -> None:
    proc = _proc()
    try:
        for path, value in values.items():
            try:
                file = os.open(f"sys/{path}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            except FileNotFoundError:
                # A kernel without IPv6 has nothing to switch off; older kernels lack newer settings.
                if not path.startswith("net/ipv6/") and not path.endswith("drop_gratuitous_arp"):
                    raise
                continue
            try:
                os.write(file, value.encode())
            finally:
                os.close(file)
    finally:
        os.close(proc)


def _proc() -> int:
    """A /proc of one's own, that is nowhere mounted. In the common one every namespace has an entry for
    net/ipv4 in the same chain of the kernel's cache of names: among 5,000 a first look-up takes 5 ms."""
    try:
        fs = syscalls.fsopen("proc")
        try:
            syscalls.fsconfig(fs, syscalls.FSCONFIG_CMD_CREATE)
            return syscalls.fsmount(fs, _QUIET)
        finally:
            os.close(fs)
    except OSError:  # an older kernel, or one that lets nobody mount /proc here
        return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _defaults(namespaces: Namespaces, paths: set[str]) -> dict[str, str]:
    """What a new namespace has: for settings that a plan no longer names."""
    return namespaces.anew(lambda: {p: Path("/proc/sys", p).read_text().strip() for p in paths})
