"""DynamoDB's gateway endpoint from inside a job, with stock boto3: no route, a route, and who may do what."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.exceptions
import pytest
from tests.e2e.conftest import Cloister, Lab, make_lab, strike

from cloister.cli.lifecycle import environment

pytestmark = pytest.mark.e2e

#: writes an item and reads it, by HTTPS and by HTTP, and reads one of a table that is not to be read
SCRIPT = """
import json, socket
import boto3, botocore.config, botocore.exceptions
config = botocore.config.Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1})
host = "dynamodb." + boto3.session.Session().region_name + ".amazonaws.com"
said = {"addresses": sorted({i[4][0] for i in socket.getaddrinfo(host, 443, socket.AF_INET)})}
key = {"id": {"S": "1"}}
def ask(name, url, operation, **params):
    try:
        answer = getattr(boto3.client("dynamodb", endpoint_url=url, config=config), operation)(**params)
        said[name] = {"item": answer.get("Item")}
    except botocore.exceptions.ClientError as error:
        said[name] = error.response["Error"]
    except botocore.exceptions.BotoCoreError as error:
        said[name] = {"failed": type(error).__name__}
ask("write", None, "put_item", TableName=OURS, Item={**key, "text": {"S": "from a job"}})
ask("read", None, "get_item", TableName=OURS, Key=key)
ask("read plainly", "http://" + host, "get_item", TableName=OURS, Key=key)
ask("read theirs", None, "get_item", TableName=THEIRS, Key=key)
print("SAID", json.dumps(said), flush=True)
"""


@dataclass(slots=True, kw_only=True)
class Tables:
    """A lab, two tables that its role may read and write through one endpoint only, which lets it to one."""

    lab: Lab
    client: Any  # of the account itself, at Cloister's own address
    outside: Any  # of the lab's role, likewise
    ours: str
    theirs: str
    endpoint: str = ""
    without: dict[str, Any] = field(default_factory=dict)
    through: dict[str, Any] = field(default_factory=dict)

    def ask(self, name: str) -> dict[str, Any]:
        script = f"OURS, THEIRS = {self.ours!r}, {self.theirs!r}\n{SCRIPT}"
        job = self.lab.outcome(self.lab.scripted(f"{name}-{os.urandom(5).hex()}", script))
        assert job["ProcessingJobStatus"] == "Completed", (job, self.lab.log(job))
        line = next(line for line in self.lab.log(job).splitlines() if line.startswith("SAID "))
        said: dict[str, Any] = json.loads(line[5:])
        return said


@pytest.fixture(scope="module")
def tables(cloister: Cloister) -> Iterator[Tables]:
    on = cloister.stage()
    try:
        found = _prepare(make_lab(on, "10.45.0.0/16"), cloister)
        found.without = found.ask("without")
        _open(found)
        found.through = found.ask("through")
        yield found
    finally:
        strike(on)


def _prepare(lab: Lab, cloister: Cloister) -> Tables:
    on, variables = lab.on, environment(cloister.state, cloister.running())

    def client(key: str, secret: str, token: str | None = None) -> Any:
        return boto3.client(
            "dynamodb",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            region_name=on.region,
            endpoint_url=variables["AWS_ENDPOINT_URL"],
            verify=variables["AWS_CA_BUNDLE"],
        )

    own = client(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
    keys = on.sts.assume_role(RoleArn=lab.role, RoleSessionName="outside")["Credentials"]
    outside = client(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
    names = [f"{whose}-{on.mark}" for whose in ("ours", "theirs")]
    for name in names:
        own.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        on.undo.append(lambda name=name: own.delete_table(TableName=name))  # type: ignore[misc]
    return Tables(lab=lab, client=own, outside=outside, ours=names[0], theirs=names[1])


def _open(found: Tables) -> None:
    """The endpoint, which lets to one table only, and the role's right to use it."""
    lab, ec2, arn = found.lab, found.lab.on.ec2, f"arn:aws:dynamodb:*:*:table/{found.ours}"
    made = ec2.create_vpc_endpoint(
        VpcId=lab.vpc,
        ServiceName=f"com.amazonaws.{lab.on.region}.dynamodb",
        RouteTableIds=[lab.route_table],
        PolicyDocument=_policy({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": arn}),
    )["VpcEndpoint"]
    found.endpoint = made["VpcEndpointId"]
    lab.on.undo.append(lambda: ec2.delete_vpc_endpoints(VpcEndpointIds=[found.endpoint]))
    by_endpoint = {"StringEquals": {"aws:SourceVpce": found.endpoint, "aws:SourceVpc": lab.vpc}}
    right = {"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*", "Condition": by_endpoint}
    role = lab.role.rpartition("/")[2]
    lab.on.iam.put_role_policy(RoleName=role, PolicyName="tables", PolicyDocument=_policy(right))
    lab.on.undo.append(lambda: lab.on.iam.delete_role_policy(RoleName=role, PolicyName="tables"))


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def test_without_a_gateway_endpoint_dynamodb_is_out_of_reach(tables: Tables) -> None:
    assert {said.get("failed") for name, said in tables.without.items() if name != "addresses"} == {
        "ConnectTimeoutError"
    }


def test_a_job_reads_and_writes_a_table_through_the_endpoint(tables: Tables) -> None:
    item = {"id": {"S": "1"}, "text": {"S": "from a job"}}
    assert tables.through["read"] == {"item": item}
    assert tables.through["read plainly"] == {"item": item}
    assert tables.client.get_item(TableName=tables.ours, Key={"id": {"S": "1"}})["Item"] == item
    assert tables.through["addresses"] == tables.without["addresses"]


def test_the_route_appears_by_itself_with_the_prefix_list_of_dynamodb(tables: Tables) -> None:
    ec2, region = tables.lab.on.ec2, tables.lab.on.region
    name = f"com.amazonaws.{region}.dynamodb"
    listed = ec2.describe_prefix_lists(Filters=[{"Name": "prefix-list-name", "Values": [name]}])
    (prefix_list,) = [one["PrefixListId"] for one in listed["PrefixLists"]]
    (table,) = ec2.describe_route_tables(RouteTableIds=[tables.lab.route_table])["RouteTables"]
    routes = {one.get("DestinationPrefixListId"): one["GatewayId"] for one in table["Routes"]}
    assert routes[prefix_list] == tables.endpoint


def test_the_policy_of_the_endpoint_refuses_by_name(tables: Tables) -> None:
    refused = tables.through["read theirs"]
    assert refused["Code"] == "AccessDeniedException"
    assert "because no VPC endpoint policy allows the dynamodb:GetItem action" in refused["Message"]


def test_a_right_that_asks_for_the_endpoint_is_none_outside(tables: Tables) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match="no identity-based policy allows"):
        tables.outside.get_item(TableName=tables.ours, Key={"id": {"S": "1"}})


def test_why_and_check_know_the_endpoint(tables: Tables, cloister: Cloister) -> None:
    request = tables.lab.scripted("checked", "")
    path = cloister.state / "checked.json"
    path.write_text(json.dumps(request))
    said = cloister.command("check", str(path), "--service", "dynamodb:GetItem", "--json", check=False)
    (finding,) = [one for one in json.loads(said)["findings"] if one["about"] == "service dynamodb:GetItem"]
    assert any(tables.endpoint in step["sentence"] for step in finding["steps"])
