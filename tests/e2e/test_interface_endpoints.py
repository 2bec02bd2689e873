"""Interface endpoints from inside a job, with stock boto3: reached, refused by policy, refused by the network.

One VPC has an endpoint for every case. A job asks all of them, the network and the policies are changed, another
job asks again; the tests read what came of it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.exceptions
import pytest
from tests.e2e.conftest import Cloister, Lab, daemon_pid, make_lab, strike, wait_until

from cloister.cli.lifecycle import environment
from cloister.cli.paths import read_running

pytestmark = pytest.mark.e2e

#: does each call of CALLS with a client that knows nothing of Cloister, prints what came of it
SCRIPT = """
import concurrent.futures, json, socket
import boto3, botocore.config, botocore.exceptions
config = botocore.config.Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1})
def ask(named):
    name, (service, operation, params, url) = named
    client = clients[name]
    host = client.meta.endpoint_url.split("//")[1]
    said = {"name": name}
    try:
        said["addresses"] = sorted({i[4][0] for i in socket.getaddrinfo(host, 443, socket.AF_INET)})
    except OSError:
        said["addresses"] = []
    try:
        answer = getattr(client, operation)(**params)
        answer.pop("ResponseMetadata")
        said["answer"] = answer
    except botocore.exceptions.ClientError as error:
        said["code"], said["message"] = error.response["Error"]["Code"], error.response["Error"]["Message"]
    except botocore.exceptions.BotoCoreError as error:
        said["failed"] = type(error).__name__
    return said
clients = {name: boto3.client(asked[0], endpoint_url=asked[3], config=config) for name, asked in CALLS.items()}
with concurrent.futures.ThreadPoolExecutor() as pool:
    for said in pool.map(ask, CALLS.items()):
        print("SAID", json.dumps(said, default=str), flush=True)
"""

#: service, operation, parameters, endpoint_url
Asked = tuple[str, str, dict[str, Any], str | None]
#: what came of a call: "addresses" and "answer", "code" and "message", or "failed"
Said = dict[str, Any]
SHUT_OUT = "ConnectTimeoutError"


@dataclass(slots=True, kw_only=True)
class Endpoints:
    """A lab whose VPC has private DNS, two zones, a secret, a parameter, and endpoints."""

    lab: Lab
    other_subnet: str
    shut: str  # a group that lets nothing in
    outside: Callable[..., Any]  # a client of a service at Cloister's own address
    secret: str
    parameter: str
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, Said] = field(default_factory=dict)
    after: dict[str, Said] = field(default_factory=dict)

    def make(self, service: str, **params: Any) -> None:
        ec2, region = self.lab.on.ec2, self.lab.on.region
        wanted = {"SubnetIds": [self.lab.subnet], "SecurityGroupIds": [self.lab.group]} | params
        made: dict[str, Any] = ec2.create_vpc_endpoint(
            VpcId=self.lab.vpc,
            ServiceName=f"com.amazonaws.{region}.{service}",
            VpcEndpointType="Interface",
            **wanted,
        )["VpcEndpoint"]
        assert made["State"] == "pending"
        self.made[service] = made
        named = [made["VpcEndpointId"]]
        self.lab.on.undo.append(lambda: ec2.delete_vpc_endpoints(VpcEndpointIds=named))

    def states(self) -> set[str]:
        named = [each["VpcEndpointId"] for each in self.made.values()]
        found = self.lab.on.ec2.describe_vpc_endpoints(VpcEndpointIds=named)["VpcEndpoints"]
        return {each["State"] for each in found}

    def modify(self, service: str, **params: Any) -> None:
        endpoint_id = self.made[service]["VpcEndpointId"]
        self.lab.on.ec2.modify_vpc_endpoint(VpcEndpointId=endpoint_id, **params)

    def addresses(self, service: str) -> list[str]:
        found = self.lab.on.ec2.describe_network_interfaces(
            NetworkInterfaceIds=self.made[service]["NetworkInterfaceIds"]
        )["NetworkInterfaces"]
        return sorted(each["PrivateIpAddress"] for each in found)

    def names(self, service: str) -> list[str]:
        return [entry["DnsName"] for entry in self.made[service]["DnsEntries"]]

    def calls(self) -> dict[str, Asked]:
        own = self.names("kms")
        s3 = "https://bucket" + self.names("s3")[0].removeprefix("*")
        sts = "sts.us-east-1.amazonaws.com"
        return {
            "sts": ("sts", "get_caller_identity", {}, None),
            "sts unencrypted": ("sts", "get_caller_identity", {}, f"http://{sts}"),
            "not sts": ("secretsmanager", "list_secrets", {}, f"https://{sts}"),
            "sagemaker": ("sagemaker", "list_processing_jobs", {}, None),
            "secretsmanager": ("secretsmanager", "get_secret_value", {"SecretId": self.secret}, None),
            "ssm": ("ssm", "get_parameter", {"Name": self.parameter}, None),
            "logs": ("logs", "describe_log_groups", {}, None),
            "kms": ("kms", "list_keys", {}, None),
            **{f"kms {n}": ("kms", "list_keys", {}, f"https://{name}") for n, name in enumerate(own)},
            "s3": ("s3", "head_object", {"Bucket": self.lab.bucket, "Key": "through.txt"}, s3),
            "sqs": ("sqs", "list_queues", {}, None),
        }

    def ask(self) -> dict[str, Said]:
        """What a job's calls give."""
        calls, name = self.calls(), f"asks-{os.urandom(5).hex()}"
        job = self.lab.outcome(self.lab.scripted(name, f"CALLS = {calls!r}\n{SCRIPT}"))
        assert job["ProcessingJobStatus"] == "Completed", (job, self.lab.log(job))
        lines = [line for line in self.lab.log(job).splitlines() if line.startswith("SAID ")]
        found = {said["name"]: said for said in map(json.loads, (line[5:] for line in lines))}
        assert found.keys() == calls.keys()
        return found

    def allow(self, name: str, *statements: dict[str, Any]) -> None:
        """Give the job's role these rights under this name."""
        role, iam = self.lab.role.rpartition("/")[2], self.lab.on.iam
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=policy(*statements))

    def disallow(self, name: str) -> None:
        self.lab.on.iam.delete_role_policy(RoleName=self.lab.role.rpartition("/")[2], PolicyName=name)


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


@pytest.fixture(scope="module")
def endpoints(cloister: Cloister) -> Iterator[Endpoints]:
    on = cloister.stage()
    try:
        found = prepare(make_lab(on, "10.44.0.0/16"), cloister)
        build(found)
        found.before = found.ask()
        change(found)
        found.after = found.ask()
        yield found
    finally:
        strike(on)


def prepare(lab: Lab, cloister: Cloister) -> Endpoints:
    on, variables = lab.on, environment(cloister.state, cloister.running())
    own = {
        "AccessKeyId": variables["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": variables["AWS_SECRET_ACCESS_KEY"],
    }

    def outside(service: str, keys: dict[str, str] = own) -> Any:
        return boto3.client(
            service,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys.get("SessionToken"),
            region_name=on.region,
            endpoint_url=variables["AWS_ENDPOINT_URL"],
            verify=variables["AWS_CA_BUNDLE"],
        )

    on.ec2.modify_vpc_attribute(VpcId=lab.vpc, EnableDnsHostnames={"Value": True})
    where = {"CidrBlock": "10.44.2.0/24", "AvailabilityZone": f"{on.region}b"}
    other = on.ec2.create_subnet(VpcId=lab.vpc, **where)["Subnet"]["SubnetId"]
    on.undo.append(lambda: on.ec2.delete_subnet(SubnetId=other))
    named = {"GroupName": "shut", "Description": "lets nothing in"}
    shut = on.ec2.create_security_group(VpcId=lab.vpc, **named)["GroupId"]
    on.undo.append(lambda: on.ec2.delete_security_group(GroupId=shut))
    secrets, ssm, name = outside("secretsmanager"), outside("ssm"), f"lab/{os.urandom(4).hex()}"
    secret = secrets.create_secret(Name=name, SecretString="swordfish")["ARN"]
    on.undo.append(lambda: secrets.delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True))
    ssm.put_parameter(Name=f"/{name}", Value="one", Type="String")
    on.undo.append(lambda: ssm.delete_parameter(Name=f"/{name}"))
    lab.put("through.txt", b"by an interface")
    return Endpoints(
        lab=lab, other_subnet=other, shut=shut, outside=outside, secret=secret, parameter=f"/{name}"
    )


def build(found: Endpoints) -> None:
    both = [found.lab.subnet, found.other_subnet]
    found.make("sts", SubnetIds=both)
    found.make("sagemaker.api")
    list_only = {"Effect": "Allow", "Principal": "*", "Action": "secretsmanager:ListSecrets", "Resource": "*"}
    found.make("secretsmanager", PolicyDocument=policy(list_only))
    found.make("ssm")
    found.make("logs", SecurityGroupIds=[found.shut])
    found.make("kms", SubnetIds=both, PrivateDnsEnabled=False)
    found.make("s3", PrivateDnsEnabled=False)
    found.allow(
        "calls",
        {"Effect": "Allow", "Action": ["kms:ListKeys", "logs:DescribeLogGroups"], "Resource": "*"},
        {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": found.secret},
    )
    found.lab.on.undo.append(lambda: found.disallow("calls"))
    found.allow("by-endpoint", by_endpoint(found, "vpce-0123456789abcdef0"))
    found.lab.on.undo.append(lambda: found.disallow("by-endpoint"))
    wait_until("the endpoints are available", lambda: found.states() == {"available"}, 10)


def change(found: Endpoints) -> None:
    nothing = {"Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*"}
    found.modify("secretsmanager", ResetPolicy=True)
    found.modify("s3", PolicyDocument=policy(nothing))
    found.modify("sts", PolicyDocument=policy(nothing | {"Effect": "Allow", "Action": "sts:AssumeRole"}))
    found.allow("by-endpoint", by_endpoint(found, found.made["ssm"]["VpcEndpointId"]))
    pair = [{"GroupId": found.lab.group}]
    rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "UserIdGroupPairs": pair}
    found.lab.on.ec2.authorize_security_group_ingress(GroupId=found.shut, IpPermissions=[rule])


def by_endpoint(found: Endpoints, endpoint_id: str) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Action": "ssm:GetParameter",
        "Resource": f"arn:aws:ssm:*:*:parameter{found.parameter}",
        "Condition": {
            "StringEquals": {"aws:SourceVpce": endpoint_id, "aws:SourceVpc": found.lab.vpc},
            "IpAddress": {"aws:VpcSourceIp": "10.44.1.0/24"},
        },
    }


def test_a_job_calls_services_by_their_own_names_through_endpoints(endpoints: Endpoints) -> None:
    who, secret, jobs = (
        endpoints.before["sts"],
        endpoints.after["secretsmanager"],
        endpoints.before["sagemaker"],
    )
    role = endpoints.lab.role.rpartition("/")[2]
    assert f":assumed-role/{role}/" in who["answer"]["Arn"]
    assert who["addresses"] == endpoints.addresses("sts")
    assert len(who["addresses"]) == 2  # one in each zone
    assert secret["answer"]["SecretString"] == "swordfish"
    assert secret["addresses"] == endpoints.addresses("secretsmanager")
    assert jobs["addresses"] == endpoints.addresses("sagemaker.api")
    assert jobs["code"] == "AccessDeniedException"  # it is reached, and the role may not
    assert "no identity-based policy allows the sagemaker:ListProcessingJobs action" in jobs["message"]


def test_a_service_without_an_endpoint_is_out_of_reach(endpoints: Endpoints) -> None:
    said = endpoints.before["sqs"]
    assert said["failed"] == SHUT_OUT
    assert said["addresses"][0].startswith("203.0.113.")


def test_an_endpoint_answers_its_own_service_on_443_only(endpoints: Endpoints) -> None:
    wrong = endpoints.before["not sts"]
    assert wrong["code"] == "InvalidSignatureException"
    assert "Credential should be scoped to correct service: 'sts'" in wrong["message"]
    assert endpoints.before["sts unencrypted"]["failed"] == SHUT_OUT


def test_an_endpoints_policy_is_one_more_gate(endpoints: Endpoints) -> None:
    secret, who = endpoints.before["secretsmanager"], endpoints.after["sts"]
    assert secret["code"] == "AccessDeniedException"
    assert secret["message"].endswith(
        f"is not authorized to perform: secretsmanager:GetSecretValue on resource: {endpoints.secret} "
        "because no VPC endpoint policy allows the secretsmanager:GetSecretValue action"
    )
    assert "answer" in endpoints.after["secretsmanager"]
    assert who["code"] == "AccessDenied"
    assert "because no VPC endpoint policy allows the sts:GetCallerIdentity action" in who["message"]


def test_a_policy_of_the_role_can_ask_for_the_endpoint(endpoints: Endpoints) -> None:
    refused = endpoints.before["ssm"]
    assert refused["code"] == "AccessDeniedException"
    assert "no identity-based policy allows the ssm:GetParameter action" in refused["message"]
    assert endpoints.after["ssm"]["answer"]["Parameter"]["Value"] == "one"


def test_the_groups_of_an_endpoint_must_let_the_job_in(endpoints: Endpoints) -> None:
    assert endpoints.before["logs"]["addresses"] == endpoints.addresses("logs")
    assert endpoints.before["logs"]["failed"] == SHUT_OUT
    assert "answer" in endpoints.after["logs"]


def test_without_private_dns_only_the_endpoints_own_names_lead_to_it(endpoints: Endpoints) -> None:
    said = endpoints.before
    assert said["kms"]["failed"] == SHUT_OUT
    assert said["kms"]["addresses"][0].startswith("203.0.113.")
    regional, first, second = (said[f"kms {n}"] for n in range(3))
    assert all("answer" in each for each in (regional, first, second))
    assert regional["addresses"] == endpoints.addresses("kms")
    assert sorted(first["addresses"] + second["addresses"]) == endpoints.addresses("kms")


def test_s3_by_an_interface_endpoint_is_subject_to_its_policy(endpoints: Endpoints) -> None:
    assert endpoints.before["s3"]["answer"]["ContentLength"] == len(b"by an interface")
    assert endpoints.before["s3"]["addresses"] == endpoints.addresses("s3")
    assert endpoints.after["s3"]["code"] == "403"


def test_from_outside_the_side_services_are_behind_the_same_policies(endpoints: Endpoints) -> None:
    on = endpoints.lab.on
    keys = on.sts.assume_role(RoleArn=endpoints.lab.role, RoleSessionName="outside")["Credentials"]
    outside = endpoints.outside("secretsmanager", keys)
    assert outside.get_secret_value(SecretId=endpoints.secret)["SecretString"] == "swordfish"
    with pytest.raises(botocore.exceptions.ClientError, match="secretsmanager:DeleteSecret"):
        outside.delete_secret(SecretId=endpoints.secret)
    with pytest.raises(botocore.exceptions.ClientError, match="does not implement"):
        endpoints.outside("secretsmanager").put_resource_policy(
            SecretId=endpoints.secret, ResourcePolicy="{}"
        )


def test_every_side_service_does_its_work(endpoints: Endpoints) -> None:
    """Stock clients at Cloister's own address: what moto keeps is found again."""
    mark = os.urandom(4).hex()
    kms, ssm, dynamodb = (endpoints.outside(name) for name in ("kms", "ssm", "dynamodb"))
    sqs, sns, events, ecr = (endpoints.outside(name) for name in ("sqs", "sns", "events", "ecr"))
    region, account = endpoints.lab.on.region, endpoints.lab.on.account

    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName=f"alias/{mark}", TargetKeyId=key)
    blob = kms.encrypt(KeyId=f"alias/{mark}", Plaintext=b"text")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"text"

    ssm.put_parameter(Name=f"/{mark}/a", Value="one", Type="SecureString")
    assert ssm.get_parameters_by_path(Path=f"/{mark}", WithDecryption=True)["Parameters"][0]["Value"] == "one"

    dynamodb.create_table(
        TableName=mark,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    item = {"id": {"S": "1"}, "blob": {"B": b"\x00\xff"}}
    dynamodb.put_item(TableName=mark, Item=item)
    assert dynamodb.get_item(TableName=mark, Key={"id": {"S": "1"}})["Item"] == item
    with pytest.raises(dynamodb.exceptions.ResourceNotFoundException):
        dynamodb.describe_table(TableName=f"{mark}-none")

    queue = sqs.create_queue(QueueName=mark)["QueueUrl"]
    assert queue == f"https://sqs.{region}.amazonaws.com/{account}/{mark}"
    sqs.send_message(QueueUrl=queue, MessageBody="hello")
    assert sqs.receive_message(QueueUrl=queue)["Messages"][0]["Body"] == "hello"

    topic = sns.create_topic(Name=mark)["TopicArn"]
    assert sns.publish(TopicArn=topic, Message="hello")["MessageId"]
    entry = {"Source": "lab", "DetailType": "t", "Detail": "{}"}
    assert events.put_events(Entries=[entry])["FailedEntryCount"] == 0
    kinesis, metrics = endpoints.outside("kinesis"), endpoints.outside("cloudwatch")
    kinesis.create_stream(StreamName=mark, ShardCount=1)
    shard = kinesis.put_record(StreamName=mark, Data=b"data", PartitionKey="k")["ShardId"]
    iterator = kinesis.get_shard_iterator(StreamName=mark, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    records = kinesis.get_records(ShardIterator=iterator["ShardIterator"])["Records"]
    assert [record["Data"] for record in records] == [b"data"]
    metrics.put_metric_data(Namespace=mark, MetricData=[{"MetricName": "rows", "Value": 3}])
    assert metrics.list_metrics(Namespace=mark)["Metrics"][0]["MetricName"] == "rows"
    ecr.create_repository(repositoryName=f"lab/{mark}")
    assert ecr.describe_repositories(repositoryNames=[f"lab/{mark}"])["repositories"]


def test_a_daemon_that_is_killed_finds_its_endpoints_and_secrets_again(
    endpoints: Endpoints, cloister: Cloister
) -> None:
    victim = daemon_pid(cloister.state)
    os.kill(victim, signal.SIGKILL)
    wait_until("another daemon", lambda: daemon_pid(cloister.state) not in (0, victim))
    wait_until("it answers", lambda: read_running(cloister.state) is not None)
    again = endpoints.ask()
    assert again["secretsmanager"] == endpoints.after["secretsmanager"]
    for name, said in again.items():
        assert said.keys() == endpoints.after[name].keys(), said
    assert endpoints.states() == {"available"}
