"""`why` and `check` over small Worlds: who decides is named, with the command that would change it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

from cloister.iam.model import ManagedPolicy, Principal, Role
from cloister.jobs.execution_role import VPC_ACTIONS
from cloister.s3.model import Bucket
from cloister.services.api import Call, Origin
from cloister.vpc.endpoints import s3_prefix_list
from cloister.vpc.flow import Step, Verdict
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import (
    AclEntry,
    GroupRule,
    NetworkAcl,
    NetworkInterface,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
)
from cloister.why.preflight import Facts, Finding, ImageFacts, preflight
from cloister.why.request import session_of, why_request
from cloister.world import World

REGION, ACCOUNT = "us-east-1", "123456789012"
ALL_ALLOWED = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}],
    }
)
TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
)
ROLE = Role(
    name="runner",
    role_id="AROA1",
    trust_policy=TRUST,
    inline_policies={
        "all": json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": ["s3:*", *VPC_ACTIONS], "Resource": "*"}],
            }
        )
    },
    created=0,
)
ENDPOINT = VpcEndpoint(
    endpoint_id="vpce-1",
    vpc_id="vpc-1",
    service_name="com.amazonaws.us-east-1.s3",
    policy=ALL_ALLOWED,
    route_table_ids=("rtb-1",),
    created=0,
)
GROUP = SecurityGroup(
    group_id="sg-1",
    vpc_id="vpc-1",
    name="g",
    description="",
    rules=(
        GroupRule(rule_id="sgr-1", egress=True, protocol="-1", cidr="0.0.0.0/0"),
        GroupRule(rule_id="sgr-2", egress=False, protocol="-1", group_id="sg-1"),
    ),
)


def _world(*changed: object) -> World:
    world = World.of(
        [
            Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="a"),
            Subnet(
                subnet_id="subnet-1",
                vpc_id="vpc-1",
                cidr="10.0.0.0/28",
                zone="us-east-1a",
                zone_id="use1-az1",
            ),
            RouteTable(
                route_table_id="rtb-1",
                vpc_id="vpc-1",
                number=1000,
                associations=(RouteTableAssociation(association_id="m", subnet_id=None, main=True),),
            ),
            GROUP,
            ENDPOINT,
            ROLE,
            Bucket(name="data", region=REGION, owner_account=ACCOUNT, created=0),
        ]
    )
    tx = world.begin()
    for doc in changed:
        tx.put(doc)
    return tx.commit()


def _why(world: World, method: str, url: str, principal: Principal | None = None) -> Verdict:
    tx = world.begin()
    interface: NetworkInterface = create_interface(
        tx, subnet_id="subnet-1", group_ids=["sg-1"], now=0, attach=("",)
    )
    return why_request(
        tx.commit(),
        interface,
        method,
        url,
        principal=principal or session_of(ROLE, ACCOUNT),
        region=REGION,
        account=ACCOUNT,
        now=0,
    )


def _refusal(verdict: Verdict) -> Step:
    assert verdict.refusal is not None, verdict
    return verdict.refusal


def test_a_request_that_passes_names_every_gate_in_order() -> None:
    verdict = _why(_world(), "GET", "s3://data/part.csv")
    assert verdict.allowed
    assert [step.gate for step in verdict.steps] == [
        *("dns", "route", "egress", "endpoint", "endpoint policy", "identity policy"),
    ]


def test_an_endpoint_policy_that_denies_is_named_with_its_statement_and_the_document_without_it() -> None:
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"},
            {"Sid": "NoData", "Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"},
        ],
    }
    refusal = _refusal(_why(_world(replace(ENDPOINT, policy=json.dumps(policy))), "GET", "s3://data/x"))
    assert (refusal.gate, refusal.origin) == ("endpoint policy", "vpce-1/NoData")
    assert refusal.sentence.endswith("with an explicit deny in a VPC endpoint policy: NoData of vpce-1")
    assert refusal.fix is not None
    words = shlex.split(refusal.fix)
    assert words[:5] == ["aws", "ec2", "modify-vpc-endpoint", "--vpc-endpoint-id", "vpce-1"]
    assert json.loads(words[-1])["Statement"] == policy["Statement"][:1]


def test_a_role_that_may_not_gets_the_statement_that_would_allow_it() -> None:
    refusal = _refusal(_why(_world(replace(ROLE, inline_policies={})), "PUT", "s3://data/x"))
    assert refusal.gate == "identity policy"
    assert refusal.fix is not None
    words = shlex.split(refusal.fix)
    assert words[:3] == ["aws", "iam", "put-role-policy"]
    assert json.loads(words[-1])["Statement"] == [
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::data/x"}
    ]


def test_following_the_fixes_one_by_one_leads_to_a_request_that_passes() -> None:
    """Each refusal's command, carried out on the World, is enough for its gate."""
    closed = replace(ENDPOINT, policy=ALL_ALLOWED.replace('"Action": "*"', '"Action": "s3:List*"'))
    world = _world(closed, replace(ROLE, inline_policies={}))
    for _ in range(5):
        verdict = _why(world, "GET", "s3://data/x")
        if verdict.allowed:
            break
        words = shlex.split(_refusal(verdict).fix or "")
        if words[2] == "modify-vpc-endpoint":
            world = _world(replace(closed, policy=words[-1]), world.get(Role, "runner"))
        else:
            assert words[2] == "put-role-policy"
            name = words[words.index("--policy-name") + 1]
            role = world.get(Role, "runner")
            assert role is not None
            role = replace(role, inline_policies={name: words[-1]})
            world = _world(world.get(VpcEndpoint, "vpce-1"), role)
    assert verdict.allowed


# --- check -------------------------------------------------------------------------------------------------


def _request(**network: Any) -> dict[str, Any]:
    return {
        "ProcessingJobName": "job",
        "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/runner",
        "AppSpecification": {"ImageUri": "cloister/host"},
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": 2, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        },
        "ProcessingInputs": [
            {
                "InputName": "in",
                "S3Input": {
                    "S3Uri": "s3://data/in/",
                    "S3DataType": "S3Prefix",
                    "LocalPath": "/opt/ml/processing/in",
                },
            }
        ],
        "NetworkConfig": {"VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]} | network},
    }


def _check(
    world: World, request: dict[str, Any], *services: str, facts: Facts | None = None
) -> dict[str, Finding]:
    call = Call(
        tx=world.begin(),
        principal=Principal(
            arn=f"arn:aws:iam::{ACCOUNT}:root", account=ACCOUNT, user_id=ACCOUNT, access_key_id="AKIA"
        ),
        account=ACCOUNT,
        region=REGION,
        now=0,
        request_id="r",
        origin=Origin(address="127.0.0.1"),
    )
    return {finding.about: finding for finding in preflight(call, request, services, facts)}


def test_a_job_that_would_work_has_only_good_findings() -> None:
    findings = _check(_world(), _request())
    assert all(finding.ok for finding in findings.values()), findings
    assert {"addresses", "algo-1 to algo-2", "input in: read objects of s3://data/in/"} <= findings.keys()


def test_instances_without_a_rule_for_themselves_are_told_the_rule() -> None:
    finding = _check(_world(replace(GROUP, rules=GROUP.rules[:1])), _request())["algo-1 to algo-2"]
    assert not finding.ok
    assert finding.fix == (
        "aws ec2 authorize-security-group-ingress --group-id sg-1 --protocol tcp --port 0-65535 "
        "--source-group sg-1"
    )


def test_instances_that_encrypt_are_told_the_two_rules_of_ipsec() -> None:
    request = _request()
    request["NetworkConfig"]["EnableInterContainerTrafficEncryption"] = True
    group = replace(GROUP, rules=GROUP.rules[:1])
    finding = _check(_world(group), request)["algo-1 to algo-2"]
    assert "udp port 500" in finding.sentence
    keys = GroupRule(
        rule_id="sgr-k", egress=False, protocol="udp", from_port=500, to_port=500, group_id="sg-1"
    )
    finding = _check(_world(replace(group, rules=(*group.rules, keys))), request)["algo-1 to algo-2"]
    assert "protocol 50 (ESP)" in finding.sentence
    assert finding.fix is not None
    assert "IpProtocol=50," in finding.fix


def test_an_isolated_job_reaches_its_data_and_no_service() -> None:
    request = _request()
    request["NetworkConfig"]["EnableNetworkIsolation"] = True
    findings = _check(_world(), request, "sts")
    refused = [about for about, finding in findings.items() if not finding.ok]
    assert refused == ["service sts"]


def test_a_subnet_that_is_too_small_is_named_with_need_and_what_is_free() -> None:
    request = _request()
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 6
    finding = _check(_world(), request)["addresses"]
    assert not finding.ok
    assert "needs 12 addresses" in finding.sentence
    assert "subnet-1 in us-east-1a has 11 free" in finding.sentence


def test_no_way_to_s3_is_found_before_the_job_runs() -> None:
    findings = _check(_world(replace(ENDPOINT, route_table_ids=())), _request())
    finding = findings["input in: read objects of s3://data/in/"]
    assert not finding.ok
    assert finding.fix == ("aws ec2 modify-vpc-endpoint --vpc-endpoint-id vpce-1 --add-route-table-ids rtb-1")


def test_a_role_without_the_permissions_of_a_vpc_is_told_which() -> None:
    poor = replace(ROLE, inline_policies={})
    finding = _check(_world(poor), _request())["permissions"]
    assert not finding.ok
    assert "ec2:CreateNetworkInterface," in finding.sentence


def test_a_service_without_endpoint_or_way_out_is_unreachable() -> None:
    finding = _check(_world(), _request(), "sts")["service sts"]
    assert not finding.ok
    assert "no route" in finding.sentence


def test_a_job_without_a_vpc_is_asked_about_in_the_services_network() -> None:
    request = _request()
    del request["NetworkConfig"]
    world = _world()
    findings = _check(world, request)
    assert all(finding.ok for finding in findings.values()), findings
    assert {"algo-1 to algo-2", "input in: read objects of s3://data/in/"} <= findings.keys()
    assert "permissions" not in findings
    assert not any(vpc.service_owned for vpc in world.all(Vpc))
    # a bucket that wants the VPC refuses it
    only_vpc = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:GetObject",
                    "Resource": "arn:aws:s3:::data/*",
                    "Condition": {"StringNotEquals": {"aws:SourceVpc": "vpc-1"}},
                }
            ],
        }
    )
    bucket = Bucket(name="data", region=REGION, owner_account=ACCOUNT, created=0, policy=only_vpc)
    refused = _check(_world(bucket), request)["input in: read objects of s3://data/in/"]
    assert not refused.ok
    assert "data" in refused.sentence


def test_what_lacks_is_allowed_for_all_that_the_job_asks_for_and_the_check_then_passes() -> None:
    world = _world(replace(ROLE, inline_policies={"vpc": _allowing(*VPC_ACTIONS, "s3:ListBucket")}))
    about = "input in: read objects of s3://data/in/"
    finding = _check(world, _request())[about]
    assert not finding.ok
    assert finding.fix is not None
    words = shlex.split(finding.fix)
    assert json.loads(words[-1])["Statement"][-1]["Resource"] == "arn:aws:s3:::data/in/*"
    role = world.get(Role, "runner")
    assert role is not None
    policies = {**role.inline_policies, words[words.index("--policy-name") + 1]: words[-1]}
    assert _check(_world(replace(role, inline_policies=policies)), _request())[about].ok


def _allowing(*actions: str) -> str:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def test_policies_are_put_to_the_objects_that_are_there() -> None:
    narrow = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": [*VPC_ACTIONS, "s3:ListBucket"], "Resource": "*"},
                {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::data/in/*.csv"},
            ],
        }
    )
    world = _world(replace(ROLE, inline_policies={"narrow": narrow}))
    about = "input in: read objects of s3://data/in/"

    def check(*keys: str) -> Finding:
        return _check(world, _request(), facts=Facts(keys={"s3://data/in/": keys}))[about]

    assert check("in/a.csv", "in/b.csv").ok
    assert not check("in/a.csv", "in/b.json").ok
    assert "in/b.json" in check("in/a.csv", "in/b.json").sentence


def test_an_input_without_an_object_or_manifest_and_an_image_that_cannot_be_had_fail() -> None:
    request = _request()
    request["ProcessingInputs"].append(
        {
            "InputName": "list",
            "S3Input": {"S3Uri": "s3://data/list", "S3DataType": "ManifestFile", "LocalPath": "/opt/ml/p/l"},
        }
    )
    facts = Facts(
        keys={"s3://data/in/": [], "s3://data/list": ["list-of-others"]}, image=ImageFacts(trouble="No x.")
    )
    findings = _check(_world(), request, facts=facts)
    assert not findings["input in: objects"].ok
    assert findings["input list: objects"].sentence == "There is no manifest s3://data/list."
    assert findings["image"].fix == "podman pull cloister/host"


def test_an_image_that_cannot_start_the_command_fails_and_what_was_seen_is_said() -> None:
    def found(facts: ImageFacts) -> tuple[bool, str, str | None]:
        finding = _check(_world(), _request(), facts=Facts(image=facts))["image"]
        return finding.ok, finding.sentence, finding.fix

    assert found(ImageFacts(command_trouble="It has no /run.")) == (False, "It has no /run.", None)
    assert found(ImageFacts(seen="It has /run.")) == (True, "It has /run.", None)


def test_a_role_that_sagemaker_may_not_assume_is_told_and_nothing_is_opened_for_it() -> None:
    findings = _check(_world(replace(ROLE, trust_policy=TRUST.replace("sagemaker", "ec2"))), _request())
    assert [about for about, finding in findings.items() if not finding.ok] == ["role"]
    fix = findings["role"].fix
    assert fix is not None
    words = shlex.split(fix)
    assert words[:5] == ["aws", "iam", "update-assume-role-policy", "--role-name", "runner"]
    role = replace(ROLE, trust_policy=words[-1])
    assert all(finding.ok for finding in _check(_world(role), _request()).values())


def test_an_anonymous_request_is_offered_no_public_bucket() -> None:
    tx = _world().begin()
    interface = create_interface(tx, subnet_id="subnet-1", group_ids=["sg-1"], now=0, attach=("",))
    verdict = why_request(
        tx.commit(), interface, "GET", "s3://data/x", principal=None, region=REGION, account=ACCOUNT, now=0
    )
    assert _refusal(verdict).fix is None


def test_a_finding_tells_no_interface_and_no_address_that_nobody_will_find() -> None:
    findings = _check(_world(replace(GROUP, rules=GROUP.rules[:1])), _request())
    sentence = findings["algo-1 to algo-2"].sentence
    assert sentence.startswith("No ingress rule of sg-1 (the interface of algo-2) allows tcp from algo-1.")


def test_an_action_of_a_service_is_put_to_the_policies() -> None:
    request = _request()
    del request["NetworkConfig"]
    findings = _check(_world(), request, "kms", "kms:Decrypt", "s3.us-east-1.amazonaws.com:5432")
    assert findings["service kms"].ok
    finding = findings["service kms:Decrypt"]
    assert not finding.ok
    assert finding.fix is not None
    assert "--policy-name allow-kms-Decrypt" in finding.fix
    assert not findings["service s3.us-east-1.amazonaws.com:5432"].ok


def test_a_subnet_that_is_too_small_gets_a_larger_one_with_the_same_routes() -> None:
    table = RouteTable(
        route_table_id="rtb-2",
        vpc_id="vpc-1",
        number=1001,
        associations=(RouteTableAssociation(association_id="s", subnet_id="subnet-1", main=False),),
    )
    request = _request()
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 6
    fix = _check(_world(table), request)["addresses"].fix
    assert fix is not None
    assert "--cidr-block 10.0.0.32/27 --availability-zone us-east-1a" in fix
    assert "associate-route-table --route-table-id rtb-2 --subnet-id $subnet" in fix


# --- network ACLs and S3, which has many addresses ----------------------------------------------------------


def _acl(*entries: AclEntry) -> tuple[NetworkAcl, Subnet]:
    subnet = Subnet(
        subnet_id="subnet-1",
        vpc_id="vpc-1",
        cidr="10.0.0.0/28",
        zone="us-east-1a",
        zone_id="use1-az1",
        network_acl_id="acl-1",
    )
    return NetworkAcl(network_acl_id="acl-1", vpc_id="vpc-1", entries=entries), subnet


def _entry(number: int, egress: bool, allow: bool, cidr: str = "0.0.0.0/0") -> AclEntry:
    return AclEntry(number=number, egress=egress, protocol="-1", cidr=cidr, allow=allow)


def test_an_acl_gets_an_entry_for_every_block_that_s3_answers_from() -> None:
    world = _world(*_acl(_entry(100, True, True)))
    fix = _refusal(_why(world, "GET", "s3://data/x")).fix
    assert fix is not None
    commands = [shlex.split(each) for each in fix.split(" && ")]
    blocks = {words[words.index("--cidr-block") + 1] for words in commands}
    numbers = {words[words.index("--rule-number") + 1] for words in commands}
    assert blocks == set(s3_prefix_list(REGION).entries)
    assert len(numbers) == len(blocks)


def test_an_entry_that_nothing_can_come_before_is_what_has_to_go() -> None:
    world = _world(*_acl(_entry(1, True, False), _entry(100, True, True), _entry(100, False, True)))
    fix = _refusal(_why(world, "GET", "s3://data/x")).fix
    assert fix == "aws ec2 delete-network-acl-entry --network-acl-id acl-1 --rule-number 1 --egress"


def test_one_of_a_names_addresses_is_enough_as_clients_try_them_all() -> None:
    last = list(s3_prefix_list(REGION).entries)[-1]
    world = _world(*_acl(_entry(100, True, True, last), _entry(100, False, True)))
    assert _why(world, "GET", "s3://data/x").allowed


def test_a_bucket_is_asked_by_the_name_that_clients_use() -> None:
    assert (
        _why(_world(), "GET", "s3://data/x").steps[0].sentence.startswith(f"data.s3.{REGION}.amazonaws.com")
    )
    dotted = _why(
        _world(Bucket(name="a.b", region=REGION, owner_account=ACCOUNT, created=0)), "GET", "s3://a.b/x"
    )
    assert dotted.steps[0].sentence.startswith(f"s3.{REGION}.amazonaws.com")


def test_a_role_that_is_denied_what_a_vpc_needs_gets_the_denial_narrowed_and_no_statement_more() -> None:
    no_interface = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Deny",
                    "Action": ["ec2:CreateNetworkInterface", "ec2:CreateVpc"],
                    "Resource": "*",
                }
            ],
        }
    )
    role = replace(ROLE, inline_policies={**ROLE.inline_policies, "deny": no_interface})
    finding = _check(_world(role), _request())["permissions"]
    assert "statement 1 of role/runner/policy/deny" in finding.sentence
    assert finding.fix is not None
    words = shlex.split(finding.fix)
    assert words[words.index("--policy-name") + 1] == "deny"
    assert json.loads(words[-1])["Statement"][0]["Action"] == ["ec2:CreateVpc"]


def test_a_boundary_that_leaves_out_what_a_vpc_needs_is_what_must_change() -> None:
    boundary = ManagedPolicy(
        arn=f"arn:aws:iam::{ACCOUNT}:policy/b",
        name="b",
        policy_id="ANPA1",
        versions={"v1": _allowing("s3:*")},
        created=0,
        updated=0,
    )
    finding = _check(_world(boundary, replace(ROLE, boundary_arn=boundary.arn)), _request())["permissions"]
    assert finding.fix is not None
    assert finding.fix.startswith(f"aws iam create-policy-version --policy-arn {boundary.arn} ")


def test_a_policy_that_has_all_the_versions_it_may_have_loses_its_oldest() -> None:
    versions = {f"v{number}": _allowing("s3:*") for number in (3, 4, 5, 6, 7)}
    boundary = ManagedPolicy(
        arn=f"arn:aws:iam::{ACCOUNT}:policy/b",
        name="b",
        policy_id="ANPA1",
        versions=versions,
        default_version="v3",
        created=0,
        updated=0,
    )
    finding = _check(_world(boundary, replace(ROLE, boundary_arn=boundary.arn)), _request())["permissions"]
    assert boundary.arn in finding.sentence
    remove, make = (finding.fix or "").split(" && ")
    assert remove == f"aws iam delete-policy-version --policy-arn {boundary.arn} --version-id v4"
    # all that is missing, with one statement
    words = shlex.split(make)
    document = json.loads(words[words.index("--policy-document") + 1])
    assert document["Statement"][-1]["Action"] == list(VPC_ACTIONS)


def test_a_rule_of_some_ports_between_the_instances_is_told_with_its_ports() -> None:
    https = GroupRule(
        rule_id="sgr-3", egress=False, protocol="tcp", from_port=443, to_port=443, group_id="sg-1"
    )
    finding = _check(_world(replace(GROUP, rules=(GROUP.rules[0], https))), _request())["algo-1 to algo-2"]
    assert finding.ok
    assert finding.sentence == "Ingress rule sgr-3 of sg-1 allows it on port 443 from sg-1."


def test_the_subnet_that_a_tag_chooses_is_the_one_that_is_checked() -> None:
    other = Subnet(
        subnet_id="subnet-2", vpc_id="vpc-1", cidr="10.0.9.0/28", zone="us-east-1b", zone_id="use1-az2"
    )
    request = _request(Subnets=["subnet-1", "subnet-2"])
    request["Tags"] = [{"Key": "cloister:subnet", "Value": "subnet-2"}]
    finding = _check(_world(other), request)["addresses"]
    assert "subnet-2 in us-east-1b has 11 free" in finding.sentence
    assert "subnet-1" not in finding.sentence
