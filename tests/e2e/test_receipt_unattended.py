"""A receipt of a job whose daemon was killed tells every packet all the same: its lines add up to what the
containers' own interfaces counted."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.e2e.conftest import Cloister, Lab, daemon_pid, wait_until
from tests.e2e.receipts import COUNTED, counted, receipt, sums
from tests.patience import PATIENCE

from cloister.cli.paths import read_running
from cloister.demo import blocks
from cloister.kernel import holder

pytestmark = pytest.mark.e2e

#: What is tried of each kind: a peer that answers and one port that refuses, UDP, no route, a group that forbids.
#: With "unattended" it is tried once, while nobody answers at the S3 door; with a number, for so many seconds.
SCRIPT = (
    """
import json, os, socket, sys, threading, time
own = json.load(open("/opt/ml/config/resourceconfig.json"))["current_host"]
patience = float(os.environ["PATIENCE"])
done = threading.Event()
server = socket.create_server(("0.0.0.0", 7000))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", 7001))
def answer():
    while True:
        connection, _ = server.accept()
        with connection:
            if connection.recv(100) == b"end":
                done.set()
                continue
            connection.sendall(b"y" * 30_000)
threading.Thread(target=answer, daemon=True).start()
def connect(place, timeout=0.3 * patience):
    try:
        return socket.create_connection(place, timeout=timeout)
    except OSError as error:
        return error
def once(peer):
    with socket.create_connection((peer, 7000), timeout=30 * patience) as connection:
        connection.sendall(b"x" * 50)
        left = 30_000
        while left:
            left -= len(connection.recv(left))
    assert isinstance(connect((peer, 7999)), ConnectionRefusedError)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        for size in (0, 100, 1000):
            made.sendto(b"z" * size, (peer, 7001))
    for place in (("198.51.100.7", 443), (sys.argv[2], 5432)):
        connect(place, 0.05)
def wait_for_door(open):
    end = time.monotonic() + 60 * patience
    while isinstance(made := connect((door, 443)), OSError) == open:
        assert time.monotonic() < end, (open, made)
        time.sleep(0.05)
    if open:
        made.close()
if own == "algo-1":
    door = socket.gethostbyname("s3.us-east-1.amazonaws.com")
    while isinstance(peer := connect(("algo-2", 7000)), OSError):
        time.sleep(0.1)
    peer.close()
    peer = socket.gethostbyname("algo-2")
    if sys.argv[1] == "unattended":
        print("ready", flush=True)
        wait_for_door(False)
        once(peer)
        open_one = socket.create_connection((peer, 7000), timeout=5)  # and one that is open over the change
        print("tried", flush=True)
        wait_for_door(True)
        open_one.sendall(b"x")
        open_one.recv(100_000)
        open_one.close()
    else:
        end = time.monotonic() + float(sys.argv[1])
        while time.monotonic() < end:
            once(peer)
    with socket.create_connection((peer, 7000)) as connection:
        connection.sendall(b"end")
else:
    done.wait(120 * patience)
time.sleep(1)
"""
    + COUNTED
)


@contextmanager
def _without_daemon(cloister: Cloister) -> Iterator[None]:
    """Killed, and not started again while this lasts."""
    found = holder.info(cloister.state)
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)
    try:
        os.kill(daemon_pid(cloister.state), signal.SIGKILL)
        yield
    finally:
        os.kill(found.pid, signal.SIGCONT)


def _create(lab: Lab, name: str, how: str) -> str:
    """The job of two instances; an address that its group lets it not reach."""
    on = lab.on
    group = blocks.make_group(on, lab.vpc, f"closed-{on.mark}", allow_itself=True)
    other = on.ec2.create_network_interface(SubnetId=lab.subnet, Groups=[group])["NetworkInterface"]
    on.undo.append(lambda: on.ec2.delete_network_interface(NetworkInterfaceId=other["NetworkInterfaceId"]))
    address = str(other["PrivateIpAddress"])
    request = lab.scripted(name, SCRIPT, how, address, Environment={"PATIENCE": str(PATIENCE)})
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 2
    lab.create(request)
    return address


@pytest.mark.timeout(240)
def test_what_a_job_reaches_and_is_refused_while_there_is_no_daemon_is_told_to_the_byte(
    cloister: Cloister, lab: Lab
) -> None:
    name = f"unattended-{lab.on.mark}"
    address = _create(lab, name, "unattended")
    wait_until("the job is ready", lambda: "ready" in lab.log({"ProcessingJobName": name}), 60)
    with _without_daemon(cloister):
        time.sleep(6 * PATIENCE)
    wait_until("the daemon answers", lambda: read_running(cloister.state) is not None)
    job = blocks.wait_for(lab.on, name, 120 * PATIENCE)
    assert job["ProcessingJobStatus"] == "Completed", (job, lab.log(job))
    body = receipt(cloister, name)
    assert body["connections_may_be_missing"] == []
    peer = body["network"]["instances"]["algo-2"]["address"]
    reached = {(each["other"], each["port"]): each for each in body["reached"] if each["who"] == "algo-1"}
    refused_port = reached[peer, 7999]  # a SYN and its RST: the kernel forgets such a connection at once
    assert (refused_port["connections"], refused_port["packets_sent"]) == (1, 1), refused_port
    assert (refused_port["bytes_sent"], refused_port["bytes_received"]) == (60, 40), refused_port
    assert (reached[peer, 7001]["packets_sent"], reached[peer, 7001]["bytes_sent"]) == (3, 3 * 28 + 1100)
    dropped = {each["to"]: each for each in body["refused"] if each["who"] == "algo-1"}
    assert dropped["198.51.100.7"]["gate"] == "route"
    assert (dropped["198.51.100.7"]["packets"], dropped["198.51.100.7"]["bytes"]) == (1, 60)
    assert address in dropped
    assert sums(body) == counted(lab.log(job)), body


@pytest.mark.timeout(400)
def test_a_receipt_adds_up_however_often_the_daemon_was_killed(cloister: Cloister, lab: Lab) -> None:
    name = f"harried-{lab.on.mark}"
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    _create(lab, name, "12")
    for _ in range(6):
        time.sleep(dice.uniform(0, 2.5))
        os.kill(daemon_pid(cloister.state), signal.SIGKILL)
        wait_until("the daemon answers", lambda: read_running(cloister.state) is not None)
    job = blocks.wait_for(lab.on, name, 120 * PATIENCE)
    assert job["ProcessingJobStatus"] == "Completed", (seed, job, lab.log(job))
    body = receipt(cloister, name)
    assert sums(body) == counted(lab.log(job)), (seed, body)
    assert body["connections_may_be_missing"] == [], seed
