"""`python -m bench [--only NAME] [--rounds N] [--json FILE]`: every group's ratios, one table."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench import measure

GROUPS = ("job_start", "s3_door", "network", "flow_logs", "api", "scale")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group only (repeatable)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each pair [default: 5]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    rows: list[measure.Row] = []
    failed = False
    print(f"{time.strftime('%Y-%m-%d %H:%M')}  {os.cpu_count()} cores  Linux {platform.release()}  {_load()}")
    for name in options.only or GROUPS:
        began = time.monotonic()
        try:
            found = importlib.import_module(f"bench.{name}").run(options.rounds)
        except Exception as error:  # a group that fails must not hide the others' numbers
            failed = True
            print(f"\n{name} could not be measured: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        rows += found
        print(f"\n{name}: {time.monotonic() - began:.0f} s, {_load()}\n{measure.table(found)}", flush=True)
    if len(options.only or GROUPS) > 1:
        print(f"\nall\n{measure.table(rows)}")
    if options.json:
        report = {
            "time": time.time(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "rows": [asdict(each) | {"met": each.met} for each in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
