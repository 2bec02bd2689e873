"""A job's receipt beside what its containers say that their interfaces counted: lines of a log with
"COUNTED HOST JSON", which a script prints with `COUNTED`."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.conftest import Cloister

#: the end of a script; `own` is the host, and nothing may be under way any more. Frames have 14 bytes of their own
COUNTED = """
each = next(line for line in open("/proc/net/dev") if "eth0:" in line).split()[1:]
each = [int(number) for number in each]
print("COUNTED", own, json.dumps({
    "packets_received": each[1], "bytes_received": each[0] - 14 * each[1],
    "packets_sent": each[9], "bytes_sent": each[8] - 14 * each[9]}), flush=True)
"""

Counts = dict[str, dict[str, int]]


def receipt(cloister: Cloister, name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(cloister.command("receipt", name, "--json"))["receipt"]
    return body


def counted(log: str) -> Counts:
    """By host."""
    found = (line.split(" ", 2) for line in log.splitlines() if line.startswith("COUNTED "))
    return {host: json.loads(counts) for _, host, counts in found}


def sums(body: dict[str, Any]) -> Counts:
    """Of both containers' lines."""
    names = ("packets_received", "bytes_received", "packets_sent", "bytes_sent")
    found = {host: dict.fromkeys(names, 0) for host in ("algo-1", "algo-2")}
    for line in body["reached"]:
        if line["who"] in found:
            for name in names:
                found[line["who"]][name] += line[name]
    for line in body["refused"]:
        if line["who"] in found:
            found[line["who"]]["packets_sent"] += line["packets"]
            found[line["who"]]["bytes_sent"] += line["bytes"]
    return found
