"""Calls through the dispatcher: identity policies and endpoint policies, for handlers and for moto."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from cloister import services
from cloister.credentials import Credentials
from cloister.dispatch import Dispatcher
from cloister.engine import Engine
from cloister.iam.model import Role
from cloister.services.api import Origin
from cloister.side.process import SideServices
from cloister.store import Store
from cloister.vpc.model import VpcEndpoint
from cloister.wire import sigv4
from cloister.wire.http import HttpRequest, HttpResponse

ACCOUNT, REGION = "123456789012", "us-east-1"
ENDPOINT, VPC = "vpce-0aaaaaaaaaaaaaaaa", "vpc-0aaaaaaaaaaaaaaaa"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:x-AbCdEf"
EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}
QUERY_VERSIONS = {"sts": "2011-06-15", "iam": "2010-05-08"}
TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
TARGETS = {"secretsmanager": "secretsmanager", "logs": "Logs_20140328"}


class Recorded(SideServices):
    """Has one secret, and remembers what it was asked to carry out."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    async def call(self, service: str, operation: str, params: Any, protocol: str = "json") -> HttpResponse:
        self.calls.append((service, operation, dict(params)))
        return HttpResponse(200, (("Content-Type", "application/x-amz-json-1.1"),), b'{"SecretString": "s"}')

    async def arns(self, service: str, names: list[str]) -> dict[str, str]:
        return {name: SECRET for name in names if name == "x"}


class Site:
    def __init__(self, folder: Path) -> None:
        services.load()
        self.store = Store(folder / "world.sqlite")
        self.engine = Engine(self.store)
        self.credentials = Credentials(folder, ACCOUNT, {})
        self.side = Recorded()
        self.dispatcher = Dispatcher(
            self.engine,
            self.credentials,
            account=ACCOUNT,
            region=REGION,
            deps={"credentials": self.credentials},
            side=self.side,
        )
        self.role("worker")

    def role(self, name: str, *statements: dict[str, Any]) -> None:
        text = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        with self.engine.transaction() as tx:
            tx.put(
                Role(
                    name=name, role_id="AROAWORKERWORKERWORK", created=0,
                    trust_policy=json.dumps(
                        {"Version": "2012-10-17",
                         "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}]}
                    ),
                    inline_policies={"p": text} if statements else {},
                )
            )  # fmt: skip

    def endpoint(self, *statements: dict[str, Any]) -> None:
        text = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        with self.engine.transaction() as tx:
            tx.put(
                VpcEndpoint(
                    endpoint_id=ENDPOINT, vpc_id=VPC, service_name=f"com.amazonaws.{REGION}.sts",
                    kind="Interface", policy=text, created=0,
                )
            )  # fmt: skip

    def ask(
        self,
        service: str,
        operation: str,
        params: dict[str, Any],
        *,
        through: bool = False,
        only: str | None = None,
    ) -> tuple[int, str]:
        """The worker's call; status and body."""
        role = self.engine.world.get(Role, "worker")
        assert role is not None
        now = self.engine.clock()
        keys = self.credentials.issue(role, "s", 3600, (), {}, now)
        headers: tuple[tuple[str, str], ...]
        if service in QUERY_VERSIONS:
            body = urlencode({"Action": operation, "Version": QUERY_VERSIONS[service], **params}).encode()
            headers = (("Content-Type", "application/x-www-form-urlencoded"),)
        else:
            body = json.dumps(params).encode()
            headers = (
                ("Content-Type", "application/x-amz-json-1.1"),
                ("X-Amz-Target", f"{TARGETS[service]}.{operation}"),
            )
        request = HttpRequest("POST", "/", "", (("Host", "h"), *headers), body)
        signed = sigv4.sign(
            request,
            access_key=keys.access_key_id,
            secret=keys.secret_access_key,
            token=keys.token,
            region=REGION,
            service=service,
            now=now,
        )
        origin = Origin(
            address="10.0.0.9", endpoint_id=ENDPOINT if through else None, vpc_id=VPC if through else None
        )
        request = HttpRequest("POST", "/", "", signed, body)
        answer = asyncio.run(self.dispatcher.handle(request, origin, service=only))
        return answer.status, answer.body.decode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    yield found
    found.store.close()


GET = ("secretsmanager", "GetSecretValue", {"SecretId": "x"})


def test_a_side_services_call_needs_the_callers_policy_on_the_very_resource(site: Site) -> None:
    status, body = site.ask(*GET)
    assert status == 400
    assert f"secretsmanager:GetSecretValue on resource: {SECRET} because no identity-based policy" in body
    assert site.side.calls == []
    site.role(
        "worker", {"Effect": "Allow", "Action": "secretsmanager:Get*", "Resource": f"{SECRET[:-6]}??????"}
    )
    assert site.ask(*GET) == (200, '{"SecretString": "s"}')
    assert site.side.calls == [GET]
    site.role("worker", EVERYTHING, {"Effect": "Deny", "Action": "*", "Resource": SECRET})
    status, body = site.ask(*GET)
    assert "with an explicit deny in an identity-based policy" in body
    assert len(site.side.calls) == 1


def test_through_an_endpoint_its_policy_must_allow_too(site: Site) -> None:
    site.role("worker", EVERYTHING)
    site.endpoint({"Effect": "Allow", "Principal": "*", "Action": "secretsmanager:List*", "Resource": "*"})
    _, body = site.ask(*GET, through=True)
    assert "because no VPC endpoint policy allows the secretsmanager:GetSecretValue action" in body
    assert site.ask(*GET)[0] == 200
    site.endpoint({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": SECRET})
    assert site.ask(*GET, through=True)[0] == 200


def test_a_service_with_handlers_is_subject_to_the_endpoints_policy(site: Site) -> None:
    site.role("worker", EVERYTHING)
    site.endpoint({"Effect": "Deny", "Principal": "*", "Action": "logs:CreateLogGroup", "Resource": "*"})
    status, body = site.ask("logs", "CreateLogGroup", {"logGroupName": "g"}, through=True)
    assert status == 400
    assert "with an explicit deny in a VPC endpoint policy" in body


def test_a_call_that_needs_no_permission_still_needs_the_endpoints(site: Site) -> None:
    assert site.ask("sts", "GetCallerIdentity", {})[0] == 200
    site.endpoint(EVERYTHING | {"Principal": "*"})
    assert site.ask("sts", "GetCallerIdentity", {}, through=True)[0] == 200
    site.endpoint(
        {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole", "Resource": "arn:aws:iam::1:*"}
    )
    status, body = site.ask("sts", "GetCallerIdentity", {}, through=True)
    assert (status, "no VPC endpoint policy allows the sts:GetCallerIdentity action" in body) == (403, True)
    role = {"RoleArn": f"arn%3Aaws%3Aiam%3A%3A{ACCOUNT}%3Arole%2Fworker", "RoleSessionName": "ss"}
    status, body = site.ask("sts", "AssumeRole", role, through=True)
    assert (status, "no VPC endpoint policy allows the sts:AssumeRole action" in body) == (403, True)


def test_an_endpoint_that_is_gone_lets_nothing_pass(site: Site) -> None:
    site.role("worker", EVERYTHING)
    assert "no VPC endpoint policy" in site.ask(*GET, through=True)[1]
    assert "no VPC endpoint policy" in site.ask("sts", "GetCallerIdentity", {}, through=True)[1]


def test_conditions_on_the_endpoint_hold_only_through_it(site: Site) -> None:
    condition = {
        "StringEquals": {"aws:SourceVpce": ENDPOINT},
        "IpAddress": {"aws:VpcSourceIp": "10.0.0.0/24"},
    }
    site.role("worker", EVERYTHING | {"Condition": condition})
    site.endpoint(EVERYTHING | {"Principal": "*"})
    assert site.ask(*GET, through=True)[0] == 200
    assert site.ask(*GET)[0] == 400


def test_where_one_service_is_served_others_are_refused(site: Site) -> None:
    site.role("worker", EVERYTHING)
    _, body = site.ask(*GET, only="sts")
    assert "Credential should be scoped to correct service: 'sts'" in body
    assert site.ask(*GET, only="secretsmanager")[0] == 200
    assert (
        "scoped to correct service: 'sagemaker'"
        in site.ask("sts", "GetCallerIdentity", {}, only="sagemaker")[1]
    )


def test_what_is_not_done_is_told_and_not_forwarded(site: Site) -> None:
    site.role("worker", EVERYTHING)
    asked = {"SecretId": "x", "ResourcePolicy": "{}"}
    status, body = site.ask("secretsmanager", "PutResourcePolicy", asked)
    assert (status, "does not implement" in body) == (501, True)
    assert site.side.calls == []


def test_a_full_disk_is_told_as_such_and_changes_nothing(site: Site) -> None:
    site.role("worker", EVERYTHING)
    (pages,) = site.store._db.execute("PRAGMA page_count").fetchone()
    site.store._db.execute(f"PRAGMA max_page_count = {pages}")
    before = site.engine.world
    for n in range(50):
        name, trust = f"r{n}", json.dumps({"Version": "2012-10-17", "Statement": [TRUST] * 20})
        status, body = site.ask("iam", "CreateRole", {"RoleName": name, "AssumeRolePolicyDocument": trust})
        if status != 200:
            break
        before = site.engine.world
    assert (status, "<Code>InternalFailure</Code>" in body, "No space is left" in body) == (500, True, True)
    assert site.engine.world is before
    site.store._db.execute("PRAGMA max_page_count = 1000000")
    status, _ = site.ask("iam", "CreateRole", {"RoleName": name, "AssumeRolePolicyDocument": trust})
    assert status == 200
