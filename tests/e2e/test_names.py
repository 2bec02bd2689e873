"""Names of the customer's own, from inside a job: by a resolver rule, and by DHCP options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.e2e.conftest import Cloister, Lab, wait_until

from cloister.cli.lifecycle import environment

pytestmark = pytest.mark.e2e

#: knows one name, and refuses to speak about others
SERVER = """
import socket, dnslib
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 53))
print("ready", flush=True)
while True:
    packet, place = udp.recvfrom(4096)
    asked = dnslib.DNSRecord.parse(packet)
    said = asked.reply()
    if str(asked.q.qname) != "db.corp.example.":
        said.header.rcode = 5
    elif asked.q.qtype == dnslib.QTYPE.A:
        said.add_answer(dnslib.RR("db.corp.example", rdata=dnslib.A("10.1.2.3")))
    udp.sendto(said.pack(), place)
"""
LOOK = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print("FOUND", name, socket.getaddrinfo(name, 1, socket.AF_INET)[0][4][0], flush=True)
    except OSError as error:
        print("FOUND", name, "nothing", flush=True)
"""


@contextmanager
def _server(cloister: Cloister, lab: Lab, group: str) -> Iterator[str]:
    command = [sys.executable, "-m", "cloister.cli.main", "--state", str(cloister.state)]
    command += ["attach", "--subnet", lab.subnet, "--security-group", group, "--"]
    with tempfile.NamedTemporaryFile("a") as said:
        server = subprocess.Popen(
            [*command, sys.executable, "-c", SERVER],
            stdout=said,
            stderr=said,
            env={**os.environ, **cloister.environ},
        )

        def output() -> str:
            return Path(said.name).read_text()

        try:
            wait_until("the server is ready", lambda: "ready" in output() or server.poll() is not None)
            assert server.poll() is None, output()
            yield output().partition(" has ")[2].partition("\n")[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
            held = [{"Name": "description", "Values": ["cloister attach:*"]}]
            wait_until(
                "its interface is released",
                lambda: not lab.on.ec2.describe_network_interfaces(Filters=held)["NetworkInterfaces"],
            )


def _found(lab: Lab, name: str, *names: str) -> list[str]:
    done = lab.outcome(lab.scripted(f"{name}-{lab.on.mark}", LOOK, *names))
    assert done["ProcessingJobStatus"] == "Completed", done
    return [line.removeprefix("FOUND ") for line in lab.log(done).splitlines() if line.startswith("FOUND ")]


def test_a_job_finds_names_of_its_own_by_a_resolver_rule_and_by_dhcp_options(
    cloister: Cloister, lab: Lab
) -> None:
    on, ec2 = lab.on, lab.on.ec2
    variables = environment(cloister.state, cloister.running())
    resolver = boto3.client(
        "route53resolver",
        region_name=on.region,
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        verify=variables["AWS_CA_BUNDLE"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )
    with _server(cloister, lab, lab.group) as address:
        endpoint = resolver.create_resolver_endpoint(
            CreatorRequestId=on.mark,
            Direction="OUTBOUND",
            SecurityGroupIds=[lab.group],
            IpAddresses=[{"SubnetId": lab.subnet}, {"SubnetId": lab.subnet}],
        )["ResolverEndpoint"]["Id"]
        rule = resolver.create_resolver_rule(
            CreatorRequestId=on.mark,
            RuleType="FORWARD",
            DomainName="corp.example",
            TargetIps=[{"Ip": address}],
            ResolverEndpointId=endpoint,
        )["ResolverRule"]["Id"]
        try:
            assert _found(lab, "before", "db.corp.example") == ["db.corp.example nothing"]
            resolver.associate_resolver_rule(ResolverRuleId=rule, VPCId=lab.vpc)
            assert _found(lab, "rule", "db.corp.example", "no.corp.example") == [
                "db.corp.example 10.1.2.3",
                "no.corp.example nothing",
            ]
        finally:
            resolver.disassociate_resolver_rule(ResolverRuleId=rule, VPCId=lab.vpc)
            resolver.delete_resolver_rule(ResolverRuleId=rule)
            resolver.delete_resolver_endpoint(ResolverEndpointId=endpoint)
        options: Any = ec2.create_dhcp_options(
            DhcpConfigurations=[
                {"Key": "domain-name", "Values": ["corp.example"]},
                {"Key": "domain-name-servers", "Values": [address, "AmazonProvidedDNS"]},
            ]
        )["DhcpOptions"]["DhcpOptionsId"]
        ec2.associate_dhcp_options(DhcpOptionsId=options, VpcId=lab.vpc)
        try:
            # the agent fetched the script by the second server, because the first refuses
            assert _found(lab, "options", "db", "s3.us-east-1.amazonaws.com")[0] == "db 10.1.2.3"
        finally:
            ec2.associate_dhcp_options(DhcpOptionsId="default", VpcId=lab.vpc)
            ec2.delete_dhcp_options(DhcpOptionsId=options)
