"""Jobs with EnableNetworkIsolation and EnableInterContainerTrafficEncryption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Cloister, Lab, daemon_pid, make_lab, strike, traces_of, wait_until
from tests.patience import PATIENCE

from cloister.demo import blocks
from cloister.kernel import holder

pytestmark = pytest.mark.e2e

#: tells what it can reach, by which links; and exchanges a text with every other instance by name
SCRIPT = """
import json, os, socket, sys, threading, time
host = json.load(open("/opt/ml/config/resourceconfig.json"))
own, peers = host["current_host"], [each for each in host["hosts"] if each != host["current_host"]]
said = {"host": own, "links": [name for _, name in socket.if_nameindex()],
        "credentials": "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in os.environ,
        "input": open("/opt/ml/processing/in/data").read()}
def reach(place):
    try:
        socket.create_connection(place, timeout=1.5).close()
        return "reached"
    except OSError as error:
        return type(error).__name__
server = socket.create_server(("0.0.0.0", 7000))
patience, heard = float(os.environ["PATIENCE"]), set()
def answer():
    while True:
        connection, _ = server.accept()
        with connection:
            asked = connection.recv(64)
            connection.sendall(own.encode() + b": " + asked)
            heard.add(asked.decode().removeprefix("hello from "))
threading.Thread(target=answer, daemon=True).start()
for place in sys.argv[1:]:
    address, _, port = place.rpartition(":")
    said[place] = reach((address, int(port)))
for peer in peers:
    end = time.monotonic() + 4 * patience
    while time.monotonic() < end:
        try:
            with socket.create_connection((peer, 7000), timeout=max(0.5, patience / 4)) as connection:
                connection.sendall(b"hello from " + own.encode())
                said[peer] = connection.recv(64).decode()
            break
        except OSError as error:
            said[peer] = type(error).__name__
            time.sleep(0.25)
json.dump(said, open(f"/opt/ml/processing/out/{own}.json", "w"))
time.sleep(2 * patience if peers else 0)
if not all(said[peer].startswith(peer) for peer in peers):
    sys.exit(3)
end = time.monotonic() + 4 * patience
while heard < set(peers) and time.monotonic() < end:
    time.sleep(0.1)
"""


#: inside Cloister's world: what trouble the kernel has with ESP, and the packets of each state of each container
STATES = """
import json, os, sys
from cloister.kernel import syscalls, xfrm
packets = []
for name in os.listdir(sys.argv[1]):
    if name.startswith("eni-") and name.count("-") == 1:
        syscalls.setns(os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY), syscalls.CLONE_NEWNET)
        packets += [each for _, _, each in xfrm.states()] if not xfrm.trouble() else []
json.dump([xfrm.trouble(), packets], sys.stdout)
"""


def _kernels_part(state: Path) -> tuple[str, list[int]]:
    enter = [sys.executable, "-m", "cloister.kernel.holder", "--enter", str(state), "--"]
    command = [*enter, sys.executable, "-c", STATES, str(holder.netns_dir(state))]
    trouble, packets = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return trouble, packets


def _request(lab: Lab, name: str, instances: int, *places: str, **network: bool) -> dict[str, Any]:
    data = lab.input("data", lab.put(f"{name}/in/data", b"text"), "/opt/ml/processing/in")
    out = lab.output("out", f"s3://{lab.bucket}/{name}/out", "/opt/ml/processing/out")
    request = lab.scripted(
        name, SCRIPT, *places, ProcessingInputs=[data], ProcessingOutputConfig={"Outputs": [out]}
    )
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = instances
    request["NetworkConfig"] |= network
    request["Environment"] = {"PATIENCE": str(PATIENCE)}
    return request


def _said(lab: Lab, name: str, instance: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.get(f"{name}/out/algo-{instance}.json"))
    return found


def test_an_isolated_job_has_its_data_and_no_network_no_credentials(lab: Lab) -> None:
    places = ("169.254.170.2:80", "10.40.0.2:53", "198.51.100.1:443")
    for name, in_vpc in (("alone-in-vpc", True), ("alone", False)):
        name = f"{name}-{lab.on.mark}"
        request = _request(lab, name, 1, *places, EnableNetworkIsolation=True)
        if not in_vpc:
            del request["NetworkConfig"]["VpcConfig"]
        job = lab.outcome(request)
        assert job["ProcessingJobStatus"] == "Completed", (job, lab.log(job))
        assert job["NetworkConfig"]["EnableNetworkIsolation"] is True
        said = _said(lab, name)
        assert (said["links"], said["credentials"], said["input"]) == (["lo"], False, "text")
        assert "reached" not in {said[place] for place in places}


def test_isolated_instances_reach_each_other_and_nobody_else_also_encrypted(lab: Lab) -> None:
    for encrypted in (False, True):
        name = f"peers-{'encrypted-' if encrypted else ''}{lab.on.mark}"
        job = lab.outcome(
            _request(
                lab,
                name,
                2,
                "10.40.0.2:53",
                EnableNetworkIsolation=True,
                EnableInterContainerTrafficEncryption=encrypted,
            )
        )
        assert job["ProcessingJobStatus"] == "Completed", (job, lab.log(job))
        for instance, other in ((1, 2), (2, 1)):
            said = _said(lab, name, instance)
            assert said[f"algo-{other}"] == f"algo-{other}: hello from algo-{instance}"
            assert (said["10.40.0.2:53"], said["credentials"]) != ("reached", True)
            assert ("esp0" in said["links"]) is encrypted


def test_encrypted_instances_need_the_two_rules_and_survive_the_daemon(cloister: Cloister) -> None:
    on = cloister.stage()
    try:
        lab = make_lab(on, "10.45.0.0/16")
        pair = [{"GroupId": lab.group}]
        rules = on.ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [lab.group]}])[
            "SecurityGroupRules"
        ]
        own = [r["SecurityGroupRuleId"] for r in rules if "ReferencedGroupInfo" in r and not r["IsEgress"]]
        on.ec2.revoke_security_group_ingress(GroupId=lab.group, SecurityGroupRuleIds=own)
        tcp = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535, "UserIdGroupPairs": pair}
        on.ec2.authorize_security_group_ingress(GroupId=lab.group, IpPermissions=[tcp])

        refused = _request(lab, f"no-rules-{on.mark}", 2, EnableInterContainerTrafficEncryption=True)
        job = lab.outcome(refused)
        assert job["ProcessingJobStatus"] == "Failed", (job, lab.log(job))
        assert job["FailureReason"].startswith("AlgorithmError: , exit code: 3: algo-1 to algo-2: "), job
        assert f"No ingress rule of {lab.group}" in job["FailureReason"], job
        assert "udp port 500" in job["FailureReason"], job

        keys = {"IpProtocol": "udp", "FromPort": 500, "ToPort": 500, "UserIdGroupPairs": pair}
        on.ec2.authorize_security_group_ingress(
            GroupId=lab.group, IpPermissions=[keys, {"IpProtocol": "50", "UserIdGroupPairs": pair}]
        )
        name = f"rules-{on.mark}"
        lab.create(_request(lab, name, 3, EnableInterContainerTrafficEncryption=True))
        tunnels = lambda: [t for t in traces_of(cloister.state) if "cloister.jobs.tunnel" in t]  # noqa: E731
        wait_until("three tunnels run", lambda: len(tunnels()) == 3)
        if not _kernels_part(cloister.state)[0]:  # each of three seals for and opens of two others
            wait_until("the kernel seals", lambda: sum(n > 0 for n in _kernels_part(cloister.state)[1]) >= 4)
        os.kill(daemon_pid(cloister.state), signal.SIGKILL)
        cloister.up()
        job = blocks.wait_for(on, name)
        assert job["ProcessingJobStatus"] == "Completed", (job, lab.log(job))
        assert {f"algo-{n}" for n in (1, 2)} <= set(_said(lab, name, 3))
        time.sleep(0.1)
        assert not tunnels()
    finally:
        strike(on)
