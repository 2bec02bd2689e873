"""One signed API call against moto's server, over plain HTTP and a kept connection.

Twice each: with boto3, whose own time is in both, as users have it; and with requests signed beforehand and
sent by http.client, so that the servers themselves are compared.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import boto3

from bench import cloister_up, measure
from cloister.wire import sigv4
from cloister.wire.http import HttpRequest

BATCH = 60
REGION = "us-east-1"


@contextmanager
def moto() -> Iterator[str]:
    port = cloister_up.free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/moto-api/data.json")
                connection.getresponse().read()
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


class Server:
    """One of the two, with both clients; `numbers` make every group's name a new one."""

    numbers = count()

    def __init__(self, url: str, access_key: str, secret: str) -> None:
        self.url, self._key, self._secret = url, access_key, secret
        self.ec2: Any = boto3.client(
            "ec2",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret,
        )
        found = self.ec2.describe_vpcs()["Vpcs"]
        assert len(found) == 1, "both have one VPC, the default one"
        self.vpc = found[0]["VpcId"]
        place = urllib.parse.urlsplit(url)
        self._host = place.netloc
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)

    def boto_describe(self) -> float:
        return _median_ms([self.ec2.describe_vpcs] * BATCH)

    def boto_create(self) -> float:
        def create() -> None:
            self.ec2.create_security_group(GroupName=self._name(), Description="bench", VpcId=self.vpc)

        try:
            return _median_ms([create] * BATCH)
        finally:
            self._clear()

    def raw_describe(self) -> float:
        return self._raw([{"Action": "DescribeVpcs"}] * BATCH)

    def raw_create(self) -> float:
        group = {"Action": "CreateSecurityGroup", "GroupDescription": "bench", "VpcId": self.vpc}
        try:
            return self._raw([{**group, "GroupName": self._name()} for _ in range(BATCH)])
        finally:
            self._clear()

    def _clear(self) -> None:
        """Not timed: no group but the default one, as before; and the firewall has followed."""
        for group in self.ec2.describe_security_groups()["SecurityGroups"]:
            if group["GroupName"] != "default":
                self.ec2.delete_security_group(GroupId=group["GroupId"])
        time.sleep(0.3)

    def _name(self) -> str:
        return f"bench-{next(self.numbers)}"

    def _raw(self, asked: list[dict[str, str]]) -> float:
        return _median_ms([self._sender({**fields, "Version": "2016-11-15"}) for fields in asked])

    def _sender(self, fields: dict[str, str]) -> Callable[[], None]:
        body = urllib.parse.urlencode(fields).encode()
        request = HttpRequest(
            "POST",
            "/",
            "",
            (
                ("Host", self._host),
                ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
                ("Content-Length", str(len(body))),
            ),
            body,
        )
        headers = dict(
            sigv4.sign(
                request,
                access_key=self._key,
                secret=self._secret,
                region=REGION,
                service="ec2",
                now=time.time(),
            )
        )

        def send() -> None:
            self._connection.request("POST", "/", body, headers)
            answer = self._connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text[:300]

        return send


def _median_ms(calls: list[Callable[[], Any]]) -> float:
    times = []
    for call in calls:
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return measure.percentile(times, 0.5)


def run(rounds: int) -> list[measure.Row]:
    with moto() as moto_url, cloister_up.cloister() as up:
        keys = up.environment
        assert up.running.http_url is not None
        ours = Server(up.running.http_url, keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
        peer = Server(moto_url, "test", "test")
        rows = []
        for what, mine, theirs in (
            ("DescribeVpcs, boto3", ours.boto_describe, peer.boto_describe),
            ("CreateSecurityGroup, boto3", ours.boto_create, peer.boto_create),
            ("DescribeVpcs, servers alone", ours.raw_describe, peer.raw_describe),
            ("CreateSecurityGroup, servers alone", ours.raw_create, peer.raw_create),
        ):
            mine(), theirs()  # lazy imports, connections
            rows.append(
                measure.row(
                    f"api: {what}",
                    "ms",
                    *measure.interleave(mine, theirs, max(5, rounds)),
                    at_least=3.0,
                    inverse=True,
                )
            )
        return rows
