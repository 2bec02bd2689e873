"""What Cloister proposes is run as it is printed, wall after wall, until the job completes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import IN, OUT, Cloister, Lab

from cloister.cli.lifecycle import environment
from cloister.cli.paths import ask
from cloister.demo.blocks import Stage

pytestmark = pytest.mark.e2e

AWS = Path("/usr/bin/aws")
COPY = ["sh", "-c", f"cp {IN}/* {OUT}/"]


def _carry_out(cloister: Cloister, command: str, folder: Path) -> None:
    """A printed command, in a shell. Debian 12's AWS CLI does not know AWS_ENDPOINT_URL yet."""
    shim = folder / "bin" / "aws"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nexec {AWS} --endpoint-url "$AWS_ENDPOINT_URL" "$@"\n')
    shim.chmod(0o755)
    shown = environment(cloister.state, cloister.running())
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": f"{shim.parent}:{os.environ['PATH']}", "HOME": str(folder), "AWS_PAGER": "", **shown},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def _proposed(found: dict[str, Any]) -> str:
    """The first change that `cloister why` proposes."""
    fixes = [each["fix"] for each in found["refused"]]
    fixes += [step["fix"] for each in found["answers"] for step in each["steps"] if not step["allowed"]]
    return str(next(fix for fix in fixes if fix))


def _wall_in(on: Stage, lab: Lab) -> None:
    """Six walls between a job and its data, each of another kind."""
    on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, RemoveRouteTableIds=[lab.route_table])
    everywhere = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    on.ec2.revoke_security_group_egress(GroupId=lab.group, IpPermissions=everywhere)
    only = [{"Name": "vpc-id", "Values": [lab.vpc]}]
    acl = on.ec2.describe_network_acls(Filters=only)["NetworkAcls"][0]["NetworkAclId"]
    on.ec2.delete_network_acl_entry(NetworkAclId=acl, RuleNumber=100, Egress=False)
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:DeleteObject"],
        "Resource": "*",
    }
    allowed = {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed, denied]})
    on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, PolicyDocument=policy)
    other = {"StringNotEquals": {"aws:SourceVpce": "vpce-00000000000000000"}}
    closed = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{lab.bucket}/*",
        "Condition": other,
    }
    on.s3.put_bucket_policy(
        Bucket=lab.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [closed]})
    )
    name = lab.role.rsplit("/", 1)[-1]
    document = on.iam.get_role_policy(RoleName=name, PolicyName="job")["PolicyDocument"]
    document["Statement"][0]["Action"] = ["s3:GetObject", "s3:PutObject"]
    on.iam.put_role_policy(RoleName=name, PolicyName="job", PolicyDocument=json.dumps(document))
    on.undo.append(lambda: on.iam.delete_role_policy(RoleName=name, PolicyName="allow-s3-ListBucket"))


@pytest.mark.skipif(not AWS.exists(), reason="this distribution has no package awscli")
def test_every_change_that_is_proposed_takes_one_wall_away_and_the_check_knows_when_all_are_gone(
    cloister: Cloister, lab: Lab, tmp_path: Path
) -> None:
    on = lab.on
    for name in ("a.csv", "b.csv"):
        lab.put(f"in/{name}", b"1,2\n")
    _wall_in(on, lab)
    given = [lab.input("in", f"s3://{lab.bucket}/in/", IN)]
    results = {"Outputs": [lab.output("out", f"s3://{lab.bucket}/out", OUT)]}
    gates: list[str] = []
    reasons: list[str] = []
    for number in range(8):
        name = f"walls-{number}-{on.mark}"
        request = lab.request(name, *COPY, ProcessingInputs=given, ProcessingOutputConfig=results)
        passes = ask(cloister.state, "POST", "/check", {"request": request})["ok"]
        job = lab.outcome(request)
        completed = job["ProcessingJobStatus"] == "Completed"
        assert passes is completed, (job.get("FailureReason"), gates)
        if completed:
            break
        found = ask(cloister.state, "POST", "/why", {"job": name})
        refused = [step for each in found["answers"] for step in each["steps"] if not step["allowed"]]
        gates.append(refused[0]["gate"])
        reasons.append(job["FailureReason"])
        _carry_out(cloister, _proposed(found), tmp_path)
    assert completed, reasons
    # "acl" hides behind "route" until there is one; each is gone after one command
    assert gates == ["route", "egress", "acl", "identity policy", "endpoint policy", "bucket policy"]
    assert lab.get("out/b.csv") == b"1,2\n"
    # what was no wall of this job's stands: the bucket's policy, and the endpoint's other denial
    policy = json.loads(on.s3.get_bucket_policy(Bucket=lab.bucket)["Policy"])
    spared = policy["Statement"][0]["Condition"]["StringNotEquals"]["aws:SourceVpce"]
    assert spared == ["vpce-00000000000000000", lab.endpoint]
    endpoint = on.ec2.describe_vpc_endpoints(VpcEndpointIds=[lab.endpoint])["VpcEndpoints"][0]
    assert json.loads(endpoint["PolicyDocument"])["Statement"][1]["Action"] == ["s3:DeleteObject"]


@pytest.mark.skipif(not AWS.exists(), reason="this distribution has no package awscli")
def test_a_key_that_the_role_may_not_use_is_told_before_and_after_and_the_change_helps(
    cloister: Cloister, lab: Lab, tmp_path: Path
) -> None:
    lab.put("in/a.csv", b"1,2\n")
    key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    results = {"Outputs": [lab.output("out", f"s3://{lab.bucket}/out", OUT)], "KmsKeyId": key}
    given = [lab.input("in", f"s3://{lab.bucket}/in/", IN)]
    role = lab.role.rsplit("/", 1)[-1]
    what = {"ProcessingInputs": given, "ProcessingOutputConfig": results}

    request = lab.request(f"locked-{lab.on.mark}", *COPY, **what)
    (finding,) = [
        each
        for each in ask(cloister.state, "POST", "/check", {"request": request})["findings"]
        if not each["ok"]
    ]
    assert f"kms:GenerateDataKey on resource: {key}" in finding["sentence"]
    job = lab.outcome(request)
    assert job["ProcessingJobStatus"] == "Failed"
    assert f"not authorized to perform: kms:GenerateDataKey on resource: {key}" in job["FailureReason"]
    lab.on.undo.append(
        lambda: lab.on.iam.delete_role_policy(RoleName=role, PolicyName="allow-kms-GenerateDataKey")
    )
    assert finding["fix"] in job["FailureReason"] or "prints the change" in job["FailureReason"]
    _carry_out(cloister, finding["fix"], tmp_path)
    request = lab.request(f"opened-{lab.on.mark}", *COPY, **what)
    assert ask(cloister.state, "POST", "/check", {"request": request})["ok"]
    assert lab.outcome(request)["ProcessingJobStatus"] == "Completed"
    head = lab.on.s3.head_object(Bucket=lab.bucket, Key="out/a.csv")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)
