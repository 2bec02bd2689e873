"""Runs inside the job: aggregate this instance's shard, exchange partial results over TCP, write the result.

Every instance but the first sends its totals to `algo-1`, which answers with the grand total; `algo-1` writes it.
"""

import csv
import json
import pathlib
import socket
import sys
import time

PORT = 7777
PATIENCE = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
ROOT = pathlib.Path("/opt/ml/processing")
config = json.loads(pathlib.Path("/opt/ml/config/resourceconfig.json").read_text())
me, hosts = config["current_host"], config["hosts"]


def aggregate():
    totals, rows = {}, 0
    for path in sorted((ROOT / "input" / "flights").glob("*.csv")):
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                rows += 1
                if row["arr_delay"] not in ("", "NA"):
                    total = totals.setdefault(row["carrier"], [0, 0])
                    total[0] += 1
                    total[1] += int(float(row["arr_delay"]))
        print(f"{me}: read {path.name}", flush=True)
    print(f"{me}: {rows} rows, {len(totals)} carriers", flush=True)
    return totals


def add(left, right):
    for carrier, (count, delay) in right.items():
        total = left.setdefault(carrier, [0, 0])
        total[0] += count
        total[1] += delay


def give_up(why):
    pathlib.Path("/opt/ml/output").mkdir(parents=True, exist_ok=True)
    pathlib.Path("/opt/ml/output/message").write_text(why)
    print(why, flush=True)
    sys.exit(1)


totals = aggregate()
deadline = time.monotonic() + PATIENCE
if me == hosts[0]:
    peers = []
    with socket.create_server(("", PORT)) as server:
        while len(peers) < len(hosts) - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, address = server.accept()
            except TimeoutError:
                give_up(
                    f"{me}: no word from {len(hosts) - 1 - len(peers)} of the other instances on port {PORT}"
                )
            lines = peer.makefile("rw")
            add(totals, json.loads(lines.readline()))
            print(f"{me}: partial result from {address[0]}", flush=True)
            peers.append(lines)
    for lines in peers:
        lines.write(json.dumps(totals) + "\n")
        lines.flush()
    output = ROOT / "output" / "delays.csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as out:
        out.write("carrier,flights,total_delay\n")
        for carrier, (count, delay) in sorted(totals.items()):
            out.write(f"{carrier},{count},{delay}\n")
else:
    while True:
        try:
            peer = socket.create_connection(
                (hosts[0], PORT), timeout=max(0.01, min(2, deadline - time.monotonic()))
            )
            break
        except OSError as error:
            if time.monotonic() > deadline:
                give_up(f"{me}: could not connect to {hosts[0]}:{PORT}: {error}")
            time.sleep(0.1)
    peer.settimeout(PATIENCE)
    lines = peer.makefile("rw")
    lines.write(json.dumps(totals) + "\n")
    lines.flush()
    print(f"{me}: the grand total has {len(json.loads(lines.readline()))} carriers", flush=True)
