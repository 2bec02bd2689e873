"""What the kernel holds in a namespace, in a canonical form: for tests, and for people who ask.

No indexes, handles, counters or seals, everything in order: namespaces that act alike have equal dumps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloister.kernel import settings
from cloister.kernel.netns import Namespaces
from cloister.kernel.nft import Nft
from cloister.kernel.plan import TABLE, Netns
from cloister.kernel.rtnl import Rtnl


def dump(namespaces: Namespaces, netns: str) -> dict[str, Any]:
    """{"links", "addresses", "neighbours", "routes", "rules", "sysctls", "nft"} of a namespace."""
    return namespaces.call(netns, _dump)


def dump_all(namespaces: Namespaces) -> dict[str, dict[str, Any]]:
    return {name: dump(namespaces, name) for name in namespaces.list()}


def _dump() -> dict[str, Any]:
    here = Rtnl()
    try:
        links = here.links()
        names = {link.index: link.name for link in links}
        return {
            "links": sorted(
                [k.name, k.kind, k.mac, k.mtu, k.group, k.up, k.alias if k.kind else ""] for k in links
            ),
            "addresses": sorted([names.get(index, "?"), cidr] for index, cidr in here.addresses()),
            "neighbours": sorted([names.get(index, "?"), ip, mac] for index, ip, mac in here.neighbours()),
            "routes": sorted(
                [r.table, r.destination, r.type, r.protocol, names.get(r.dev or 0, ""), r.via or ""]
                for r in here.routes()
            ),
            "rules": sorted([r.priority, r.table, r.mark or 0] for r in here.rules()),
            "sysctls": _sysctls(),
            "nft": _nft(),
        }
    finally:
        here.close()


def _sysctls() -> dict[str, str]:
    found = {}
    for path in settings.sysctls(Netns(name="x")):
        file = Path("/proc/sys", path)
        if file.exists():
            found[path] = " ".join(file.read_text().split())
    return found


def _nft() -> dict[str, Any]:
    nft = Nft()
    try:
        entries = nft.query("list ruleset")
    finally:
        nft.close()
    found: dict[str, Any] = {}
    for entry in entries:
        ((kind, body),) = entry.items()
        clean = _clean(body)
        if kind == "rule":
            found.setdefault(f"rules {body['table']} {body['chain']}", []).append(clean)
        elif kind == "table":
            found[f"table {body['family']} {body['name']}"] = clean
        else:
            if "elem" in clean:
                clean["elem"].sort(key=lambda element: json.dumps(element, sort_keys=True))
            found[f"{kind} {body['table']} {body['name']}"] = clean
    return dict(sorted(found.items()))


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: {"packets": 0, "bytes": 0} if k == "counter" and isinstance(v, dict) else _clean(v)
            for k, v in value.items()
            if k != "handle"
        }
    return [_clean(v) for v in value] if isinstance(value, list) else value


def counters(namespaces: Namespaces, netns: str) -> dict[str, tuple[int, int]]:
    """Comment of a rule that counts -> (packets, bytes)."""

    def read() -> dict[str, tuple[int, int]]:
        nft = Nft()
        try:
            entries = nft.query(f"list table ip {TABLE}")
        finally:
            nft.close()
        found: dict[str, tuple[int, int]] = {}
        for entry in entries:
            rule = entry.get("rule", {})
            for expression in rule.get("expr", ()):
                count = expression.get("counter") if isinstance(expression, dict) else None
                if isinstance(count, dict) and rule.get("comment"):
                    packets, size = found.get(rule["comment"], (0, 0))
                    found[rule["comment"]] = packets + count["packets"], size + count["bytes"]
        return found

    return namespaces.call(netns, read)
