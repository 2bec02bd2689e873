"""Interface endpoints from inside a job, with stock boto3: reached, refused by policy, refused by the network."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
import json, socket
import boto3, botocore.config, botocore.exceptions
config = botocore.config.Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1})
for service, operation, params, url in CALLS:
    client = boto3.client(service, endpoint_url=url, config=config)
    host = client.meta.endpoint_url.split("//")[1]
    said = {"host": host}
    try:
        said["addresses"] = sorted({i[4][0] for i in socket.getaddrinfo(host, 443, socket.AF_INET)})
    except OSError as error:
        said["addresses"] = []
    try:
        answer = getattr(client, operation)(**params)
        answer.pop("ResponseMetadata")
        said["answer"] = answer
    except botocore.exceptions.ClientError as error:
        said["code"], said["message"] = error.response["Error"]["Code"], error.response["Error"]["Message"]
    except botocore.exceptions.BotoCoreError as error:
        said["failed"] = type(error).__name__
    print("SAID", json.dumps(said, default=str), flush=True)
"""

#: service, operation, parameters, endpoint_url
Asked = tuple[str, str, dict[str, Any], str | None]
WHO: Asked = ("sts", "get_caller_identity", {}, None)


@dataclass(slots=True, kw_only=True)
class Endpoints:
    """A lab whose VPC has private DNS, with two zones and a secret."""

    lab: Lab
    other_subnet: str
    outside: Callable[..., Any]  # a client of a service at Cloister's own address
    secrets: Any
    secret_arn: str

    def make(self, service: str, **params: Any) -> dict[str, Any]:
        ec2, region = self.lab.on.ec2, self.lab.on.region
        wanted = {"SubnetIds": [self.lab.subnet], "SecurityGroupIds": [self.lab.group]} | params
        made: dict[str, Any] = ec2.create_vpc_endpoint(
            VpcId=self.lab.vpc,
            ServiceName=f"com.amazonaws.{region}.{service}",
            VpcEndpointType="Interface",
            **wanted,
        )["VpcEndpoint"]
        assert made["State"] == "pending"
        wait_until(f"{service} is available", lambda: self.describe(made)["State"] == "available", 10)
        return self.describe(made)

    def describe(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        asked = [endpoint["VpcEndpointId"]]
        found: dict[str, Any] = self.lab.on.ec2.describe_vpc_endpoints(VpcEndpointIds=asked)["VpcEndpoints"][
            0
        ]
        return found

    def delete(self, *endpoints: dict[str, Any]) -> None:
        named = [each["VpcEndpointId"] for each in endpoints]
        assert self.lab.on.ec2.delete_vpc_endpoints(VpcEndpointIds=named)["Unsuccessful"] == []

    def addresses(self, endpoint: dict[str, Any]) -> list[str]:
        found = self.lab.on.ec2.describe_network_interfaces(
            NetworkInterfaceIds=endpoint["NetworkInterfaceIds"]
        )["NetworkInterfaces"]
        return sorted(each["PrivateIpAddress"] for each in found)

    def ask(self, *calls: Asked) -> list[dict[str, Any]]:
        """What a job's calls give."""
        name = f"asks-{os.urandom(5).hex()}"
        job = self.lab.outcome(self.lab.scripted(name, f"CALLS = {calls!r}\n{SCRIPT}"))
        assert job["ProcessingJobStatus"] == "Completed", (job, self.lab.log(job))
        lines = [line for line in self.lab.log(job).splitlines() if line.startswith("SAID ")]
        assert len(lines) == len(calls)
        return [json.loads(line.removeprefix("SAID ")) for line in lines]

    def get_secret(self) -> Asked:
        return ("secretsmanager", "get_secret_value", {"SecretId": self.secret_arn}, None)


@pytest.fixture(scope="module")
def endpoints(cloister: Cloister) -> Iterator[Endpoints]:
    on = cloister.stage()
    try:
        lab = make_lab(on, "10.44.0.0/16")
        on.ec2.modify_vpc_attribute(VpcId=lab.vpc, EnableDnsHostnames={"Value": True})
        other = on.ec2.create_subnet(
            VpcId=lab.vpc, CidrBlock="10.44.2.0/24", AvailabilityZone=f"{on.region}b"
        )["Subnet"]["SubnetId"]
        on.undo.append(lambda: on.ec2.delete_subnet(SubnetId=other))
        found = environment(cloister.state, cloister.running())

        def outside(service: str, keys: dict[str, str] | None = None) -> Any:
            key, secret = found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]
            keys = keys or {"AccessKeyId": key, "SecretAccessKey": secret}
            return boto3.client(
                service,
                aws_access_key_id=keys["AccessKeyId"],
                aws_secret_access_key=keys["SecretAccessKey"],
                aws_session_token=keys.get("SessionToken"),
                region_name=on.region,
                endpoint_url=found["AWS_ENDPOINT_URL"],
                verify=found["AWS_CA_BUNDLE"],
            )

        secrets = outside("secretsmanager")
        name = f"lab/{os.urandom(4).hex()}"
        arn = secrets.create_secret(Name=name, SecretString="swordfish")["ARN"]
        on.undo.append(lambda: secrets.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True))
        allow(lab, "secretsmanager:GetSecretValue", arn)
        yield Endpoints(lab=lab, other_subnet=other, outside=outside, secrets=secrets, secret_arn=arn)
    finally:
        strike(on)


def allow(lab: Lab, action: str, resource: str) -> None:
    """Add to the rights of the lab's role."""
    policy = {"Statement": [{"Effect": "Allow", "Action": action, "Resource": resource}]}
    name = f"further-{os.urandom(4).hex()}"
    role = lab.role.rpartition("/")[2]
    lab.on.iam.put_role_policy(
        RoleName=role, PolicyName=name, PolicyDocument=json.dumps({"Version": "2012-10-17"} | policy)
    )
    lab.on.undo.append(lambda: lab.on.iam.delete_role_policy(RoleName=role, PolicyName=name))


def test_a_job_calls_services_by_their_own_names_through_endpoints(endpoints: Endpoints) -> None:
    sts = endpoints.make("sts", SubnetIds=[endpoints.lab.subnet, endpoints.other_subnet])
    secrets = endpoints.make("secretsmanager")
    api = endpoints.make("sagemaker.api")
    try:
        jobs: Asked = ("sagemaker", "list_processing_jobs", {}, None)
        key: Asked = ("kms", "list_keys", {}, None)
        who, secret, listed, none = endpoints.ask(WHO, endpoints.get_secret(), jobs, key)
        role = endpoints.lab.role.rpartition("/")[2]
        assert who["answer"]["Arn"].startswith(
            f"arn:aws:sts::{endpoints.lab.on.account}:assumed-role/{role}/"
        )
        assert who["addresses"] == endpoints.addresses(sts)
        assert len(who["addresses"]) == 2
        assert secret["answer"]["SecretString"] == "swordfish"
        assert secret["addresses"] == endpoints.addresses(secrets)
        assert listed["code"] == "AccessDeniedException"  # it is reached, and the role may not
        assert "no identity-based policy allows the sagemaker:ListProcessingJobs action" in listed["message"]
        assert listed["addresses"] == endpoints.addresses(api)
        assert none["failed"] == "ConnectTimeoutError"  # no endpoint, no way out
        assert none["addresses"][0].startswith("203.0.113.")
    finally:
        endpoints.delete(sts, secrets, api)


def test_an_endpoint_answers_its_own_service_only(endpoints: Endpoints) -> None:
    sts = endpoints.make("sts")
    try:
        url = "https://sts.us-east-1.amazonaws.com"
        asked: Asked = (*endpoints.get_secret()[:3], url)
        plain: Asked = ("sts", "get_caller_identity", {}, "http://sts.us-east-1.amazonaws.com")
        wrong, unencrypted = endpoints.ask(asked, plain)
        assert wrong["code"] == "InvalidSignatureException"
        assert "Credential should be scoped to correct service: 'sts'" in wrong["message"]
        assert unencrypted["failed"] == "ConnectTimeoutError"  # nothing but 443 is open
    finally:
        endpoints.delete(sts)


def test_an_endpoints_policy_is_one_more_gate(endpoints: Endpoints) -> None:
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "secretsmanager:ListSecrets", "Resource": "*"}
        ],
    }
    sts = endpoints.make("sts", PolicyDocument=json.dumps(policy))
    secrets = endpoints.make("secretsmanager", PolicyDocument=json.dumps(policy))
    try:
        who, secret = endpoints.ask(WHO, endpoints.get_secret())
        assert who["code"] == "AccessDenied"
        assert "because no VPC endpoint policy allows the sts:GetCallerIdentity action" in who["message"]
        assert secret["code"] == "AccessDeniedException"
        assert secret["message"].endswith(
            f"is not authorized to perform: secretsmanager:GetSecretValue on resource: {endpoints.secret_arn} "
            "because no VPC endpoint policy allows the secretsmanager:GetSecretValue action"
        )
        endpoints.lab.on.ec2.modify_vpc_endpoint(VpcEndpointId=secrets["VpcEndpointId"], ResetPolicy=True)
        (secret,) = endpoints.ask(endpoints.get_secret())
        assert secret["answer"]["SecretString"] == "swordfish"
    finally:
        endpoints.delete(sts, secrets)


def test_a_policy_of_the_role_can_ask_for_the_endpoint(endpoints: Endpoints) -> None:
    lab = endpoints.lab
    other = endpoints.secrets.create_secret(Name=f"by/{os.urandom(4).hex()}", SecretString="by endpoint")[
        "ARN"
    ]
    secrets = endpoints.make("secretsmanager")
    role, name = lab.role.rpartition("/")[2], "by-endpoint"
    get: Asked = ("secretsmanager", "get_secret_value", {"SecretId": other}, None)
    try:
        for endpoint_id, passes in (("vpce-0123456789abcdef0", False), (secrets["VpcEndpointId"], True)):
            statement = {
                "Effect": "Allow",
                "Action": "secretsmanager:GetSecretValue",
                "Resource": other,
                "Condition": {
                    "StringEquals": {"aws:SourceVpce": endpoint_id, "aws:SourceVpc": lab.vpc},
                    "IpAddress": {"aws:VpcSourceIp": "10.44.1.0/24"},
                },
            }
            document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            lab.on.iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=document)
            (said,) = endpoints.ask(get)
            assert ("answer" in said) is passes, said
    finally:
        lab.on.iam.delete_role_policy(RoleName=role, PolicyName=name)
        endpoints.secrets.delete_secret(SecretId=other, ForceDeleteWithoutRecovery=True)
        endpoints.delete(secrets)


def test_the_groups_of_an_endpoint_must_let_the_job_in(endpoints: Endpoints) -> None:
    lab = endpoints.lab
    made = lab.on.ec2.create_security_group(GroupName="shut", Description="lets nothing in", VpcId=lab.vpc)
    shut = made["GroupId"]
    sts = endpoints.make("sts", SecurityGroupIds=[shut])
    try:
        (who,) = endpoints.ask(WHO)
        assert who["addresses"] == endpoints.addresses(sts)
        assert who["failed"] == "ConnectTimeoutError"
        rule = {
            "IpProtocol": "tcp",
            "FromPort": 443,
            "ToPort": 443,
            "UserIdGroupPairs": [{"GroupId": lab.group}],
        }
        lab.on.ec2.authorize_security_group_ingress(GroupId=shut, IpPermissions=[rule])
        (who,) = endpoints.ask(WHO)
        assert "answer" in who
    finally:
        endpoints.delete(sts)
        lab.on.ec2.delete_security_group(GroupId=shut)


def test_without_private_dns_only_the_endpoints_own_names_lead_to_it(endpoints: Endpoints) -> None:
    sts = endpoints.make(
        "sts", PrivateDnsEnabled=False, SubnetIds=[endpoints.lab.subnet, endpoints.other_subnet]
    )
    try:
        regional, first, second = (entry["DnsName"] for entry in sts["DnsEntries"])
        calls = [("sts", "get_caller_identity", {}, f"https://{name}") for name in (regional, first, second)]
        public, *own = endpoints.ask(WHO, *calls)
        assert public["failed"] == "ConnectTimeoutError"
        assert public["addresses"][0].startswith("203.0.113.")
        assert all("answer" in each for each in own)
        assert own[0]["addresses"] == endpoints.addresses(sts)
        assert sorted(own[1]["addresses"] + own[2]["addresses"]) == endpoints.addresses(sts)
    finally:
        endpoints.delete(sts)


def test_s3_by_an_interface_endpoint_is_subject_to_its_policy(endpoints: Endpoints) -> None:
    lab = endpoints.lab
    lab.put("through.txt", b"by an interface")
    s3 = endpoints.make("s3", PrivateDnsEnabled=False)
    name = s3["DnsEntries"][0]["DnsName"]
    assert name.startswith("*.")
    url = f"https://bucket{name.removeprefix('*')}"
    read: Asked = ("s3", "head_object", {"Bucket": lab.bucket, "Key": "through.txt"}, url)
    try:
        (seen,) = endpoints.ask(read)
        assert seen["answer"]["ContentLength"] == len(b"by an interface")
        nothing = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}],
        }
        lab.on.ec2.modify_vpc_endpoint(VpcEndpointId=s3["VpcEndpointId"], PolicyDocument=json.dumps(nothing))
        (refused,) = endpoints.ask(read)
        assert refused["code"] == "403"
    finally:
        endpoints.delete(s3)


def test_from_outside_the_side_services_are_behind_the_same_policies(endpoints: Endpoints) -> None:
    on = endpoints.lab.on
    keys = on.sts.assume_role(RoleArn=endpoints.lab.role, RoleSessionName="outside")["Credentials"]
    outside = endpoints.outside("secretsmanager", keys)
    assert outside.get_secret_value(SecretId=endpoints.secret_arn)["SecretString"] == "swordfish"
    with pytest.raises(botocore.exceptions.ClientError, match="secretsmanager:DeleteSecret"):
        outside.delete_secret(SecretId=endpoints.secret_arn)
    with pytest.raises(botocore.exceptions.ClientError, match="does not implement"):
        endpoints.secrets.put_resource_policy(SecretId=endpoints.secret_arn, ResourcePolicy="{}")


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
    ecr.create_repository(repositoryName=f"lab/{mark}")
    assert ecr.describe_repositories(repositoryNames=[f"lab/{mark}"])["repositories"]


def test_a_daemon_that_is_killed_finds_its_endpoints_and_secrets_again(
    endpoints: Endpoints, cloister: Cloister
) -> None:
    sts, secrets = endpoints.make("sts"), endpoints.make("secretsmanager")
    try:
        victim = daemon_pid(cloister.state)
        os.kill(victim, signal.SIGKILL)
        wait_until("another daemon", lambda: daemon_pid(cloister.state) not in (0, victim))
        wait_until("it answers", lambda: read_running(cloister.state) is not None)
        who, secret = endpoints.ask(WHO, endpoints.get_secret())
        assert "answer" in who
        assert secret["answer"]["SecretString"] == "swordfish"
        assert endpoints.describe(sts)["State"] == "available"
    finally:
        endpoints.delete(sts, secrets)
