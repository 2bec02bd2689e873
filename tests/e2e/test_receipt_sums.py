"""A receipt's lines add up to what the containers' own interfaces counted, whatever the job's network is."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.conftest import Cloister, Lab
from tests.e2e.receipts import COUNTED, counted, receipt, sums
from tests.patience import PATIENCE

pytestmark = pytest.mark.e2e

#: TCP and UDP to the other instance, to a port where nobody listens and to where no route leads; names, S3 and
#: an API. No ICMP errors: they are of no connection of their own, and a receipt does not count them.
SCRIPT = (
    """
import json, os, socket, sys, threading, time
import boto3, botocore.config
own = json.load(open("/opt/ml/config/resourceconfig.json"))["current_host"]
patience, bucket, outside = float(os.environ["PATIENCE"]), sys.argv[1], sys.argv[2:]
config = botocore.config.Config(connect_timeout=2 * patience, retries={"total_max_attempts": 1})
server = socket.create_server(("0.0.0.0", 7000))
def answer():
    while True:
        connection, _ = server.accept()
        with connection:
            if connection.recv(1000):
                connection.sendall(b"y" * 3000)
threading.Thread(target=answer, daemon=True).start()
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("0.0.0.0", 7001))
def reply():
    while True:
        echo.sendto(*echo.recvfrom(2000))
threading.Thread(target=reply, daemon=True).start()
def attempt(call, *arguments):
    try:
        print(call.__name__, *arguments, call(*arguments), flush=True)
    except Exception as error:
        print(call.__name__, *arguments, type(error).__name__, str(error)[:200], flush=True)
def tcp(*place):
    with socket.create_connection(place, timeout=patience) as made:
        made.sendall(b"x" * 500)
        return len(made.recv(10_000))
def udp(*place):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(patience)
        for _ in range(3):
            made.sendto(b"z" * 700, place)
            made.recv(2000)
def s3():
    made = boto3.client("s3", region_name="us-east-1", config=config)
    made.put_object(Bucket=bucket, Key="big/" + own, Body=b"b" * 300_000)
    made.get_object(Bucket=bucket, Key="big/" + own)["Body"].read()
    made.close()
def sts():
    made = boto3.client("sts", region_name="us-east-1", config=config)
    made.get_caller_identity()
    made.close()
peer = "algo-2" if own == "algo-1" else "algo-1"
while True:
    try:
        socket.create_connection((peer, 7000), timeout=1).close()
        break
    except OSError:
        time.sleep(0.1)
attempt(tcp, peer, 7000)
attempt(udp, peer, 7001)
attempt(tcp, peer, 7999)
for place in outside:
    attempt(tcp, place, 443)
    attempt(udp, place, 53)
attempt(socket.gethostbyname, "nobody.example.internal")
attempt(s3)
attempt(sts)
time.sleep(4 * patience)
"""
    + COUNTED
)


@pytest.mark.parametrize(
    ("kind", "outside"),
    [
        ("in a VPC", ["198.51.100.7", "192.0.2.9"]),
        ("encrypted", ["198.51.100.7"]),
        ("without a VPC", []),
    ],
)
def test_every_packet_is_in_a_line_of_the_receipt(
    cloister: Cloister, lab: Lab, kind: str, outside: list[str]
) -> None:
    name = f"{kind.replace(' ', '-')}-{lab.on.mark}"
    environment = {"PATIENCE": str(PATIENCE)}
    request: dict[str, Any] = lab.scripted(name, SCRIPT, lab.bucket, *outside, Environment=environment)
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 2
    if kind == "encrypted":
        request["NetworkConfig"]["EnableInterContainerTrafficEncryption"] = True
    if kind == "without a VPC":
        del request["NetworkConfig"]
    job = lab.outcome(request)
    log = lab.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job, log)
    body = receipt(cloister, name)
    assert sums(body) == counted(log), (log, body)
    assert body["connections_may_be_missing"] == []
