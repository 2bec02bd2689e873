"""Data that cannot be staged or is too much: the job fails and says why, and nothing is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.exceptions
import pytest
from tests.e2e.conftest import IN, OUT, Cloister, Lab, fresh, refusal

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

# ---- data that cannot be staged -----------------------------------------------------------------------


@contextmanager
def leaving_nothing(cloister: Cloister, lab: Lab) -> Iterator[None]:
    """When the jobs of this block have ended, no address is taken, no file, interface or namespace is left."""
    ec2 = lab.on.ec2

    def seen() -> dict[str, Any]:
        return {
            "interfaces": ec2.describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [lab.vpc]}])[
                "NetworkInterfaces"
            ],
            "free": ec2.describe_subnets(SubnetIds=[lab.subnet])["Subnets"][0]["AvailableIpAddressCount"],
            "files": inside(cloister, "find", "jobs", "run/netns", "-name", "eni-*", "-o", "-path", "jobs/*"),
        }

    before = seen()
    yield
    assert seen() == before


def inside(cloister: Cloister, *command: str) -> list[str]:
    """What a command prints, run in the state folder as the daemon sees it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cloister.kernel.holder",
            "--enter",
            str(cloister.state),
            "--",
            "env",
            "-C",
            str(cloister.state),
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_inputs_that_cannot_be_staged_fail_the_job_with_their_name_and_leave_nothing(
    cloister: Cloister, shared: Lab
) -> None:
    top = fresh("stage")
    shared.put(f"{top}/a", b"a")
    prefix = {"prefix": f"s3://{shared.bucket}/{top}/"}
    cases: dict[str, tuple[str, str]] = {}

    def manifest(what: str, text: str, said: str) -> None:
        cases[what] = (shared.put(f"{top}-manifests/{what}", text.encode()), said)

    manifest("up", json.dumps([prefix, "../../../etc/passwd"]), "../../../etc/passwd")
    manifest("absolute", json.dumps([prefix, "/etc/passwd"]), "/etc/passwd")
    manifest("missing", json.dumps([prefix, "a", "no-such-object"]), f"{top}/no-such-object")
    manifest("no-json", "prefix,a,b", "it is not JSON")
    manifest("no-prefix", json.dumps(["a", "b"]), "it must be a list that begins with")
    manifest("elsewhere", json.dumps([{"prefix": "s3://another-bucket/"}, "a"]), "another-bucket")
    manifest("one-prefix-only", json.dumps([prefix]), "No S3 objects found")
    manifest("both", json.dumps([prefix, "a", "a/b"]), f"{top}/a/b")
    nothing, missing = f"s3://{shared.bucket}/{top}/nothing/here/", f"s3://{fresh('no-such-bucket')}/x"
    for key in ("a", "a/b"):
        shared.put(f"{top}-tree/{key}", b"x")
    needs = f"The key '{top}-tree/a' is a file, and '{top}-tree/a/b' needs a folder of that name"
    cases["file-and-folder"] = (f"s3://{shared.bucket}/{top}-tree/", needs)
    cases["an-empty-prefix"] = (nothing, f'No S3 objects found under S3 URL "{nothing}"')
    cases["no-such-bucket"] = (missing, missing.split("/")[2])
    wrong = {}
    with leaving_nothing(cloister, shared):
        requests = {}
        for what, (uri, _) in cases.items():
            kind = "ManifestFile" if "-manifests/" in uri else "S3Prefix"
            requests[what] = shared.request(
                fresh("stage"), "true", ProcessingInputs=[shared.input("in", uri, IN, S3DataType=kind)]
            )
            shared.create(requests[what])
        for what, request in requests.items():
            job = blocks.wait_for(shared.on, request["ProcessingJobName"])
            reason = job.get("FailureReason", "")
            known = reason.startswith("ClientError: Failed to download data. ")
            if job["ProcessingJobStatus"] != "Failed" or not known or cases[what][1] not in reason:
                wrong[what] = (job["ProcessingJobStatus"], reason)
    assert wrong == {}


def test_a_job_whose_container_cannot_start_or_tells_nonsense_fails_with_the_reason(
    cloister: Cloister, shared: Lab
) -> None:
    image = f"{shared.on.account}.dkr.ecr.{shared.on.region}.amazonaws.com/nowhere:7"
    cases: list[tuple[list[str], str, str]] = [
        (["no-such-command"], blocks.IMAGE, "no-such-command"),
        (["/etc/passwd"], blocks.IMAGE, "/etc/passwd"),
        (["sh", "-c", "printf '\\377\\376' >/opt/ml/output/message"], blocks.IMAGE, "ClientError: The exit message in /opt/ml/output/message is not UTF-8"),
        (["true"], image, f"ClientError: API error (404): manifest for {image} not found"),
    ]  # fmt: skip
    with leaving_nothing(cloister, shared):
        for command, uri, said in cases:
            request = shared.request(fresh("start"), *command)
            request["AppSpecification"]["ImageUri"] = uri
            job = shared.outcome(request)
            assert job["ProcessingJobStatus"] == "Failed", command
            assert said in job["FailureReason"], job["FailureReason"]


#: every kind of character S3 allows in a key, in names that the object store can hold
ODD = [
    "plain.txt",
    *(f"c{ord(c):02x} {c}" for c in map(chr, range(0x21, 0x7F)) if c not in "/\\"),
    *(f"control {c}" for c in "\t\n\r\x01\x1f\x7f"),
    "a space, and at the end ",
    " leading",
    ".hidden",
    "..two dots",
    "...",
    "-rf",
    "~",
    "100%41%2F%zz",
    "plus+plus",
    "a=b&c=d?e#f",
    "ünïcödé",
    "e\u0301 and \u00e9",
    "日本/語/漢字.csv",
    "\U0001f600/\U0001f468\u200d\U0001f469",
    "n" * 255,
    "/".join(["deep"] * 150),
    "UPPER",
    "upper",
]


def test_keys_of_every_legal_character_are_files_and_come_back_as_the_same_keys(shared: Lab) -> None:
    name = fresh("odd")
    for key in ODD:
        shared.put(f"{name}/in/{key}", key.encode())
    outputs = {"Outputs": [shared.output("out", f"s3://{shared.bucket}/{name}/out", OUT)]}
    request = shared.request(
        name,
        *("sh", "-c", f"cp -r {IN}/. {OUT}/ && find {OUT} -type f -print0 | tr -dc '\\0' | wc -c"),
        ProcessingInputs=[shared.input("in", f"s3://{shared.bucket}/{name}/in/", IN)],
        ProcessingOutputConfig=outputs,
    )
    job = shared.outcome(request)
    log = shared.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    listed = shared.on.s3.list_objects_v2(Bucket=shared.bucket, Prefix=f"{name}/out/")["Contents"]
    assert sorted(item["Key"].removeprefix(f"{name}/out/") for item in listed) == sorted(ODD)
    for key in ODD:
        assert shared.get(f"{name}/out/{key}") == key.encode()


def test_keys_that_no_path_could_be_come_back_as_they_were_put(shared: Lab) -> None:
    top = fresh("paths")
    keys = ["a/../../b", "../up", "a//b", "./a", "a\\b", "a", "a/", "/", "..", "a/.."]
    for key in keys:
        shared.put(f"{top}/{key}", key.encode())
    listed = shared.on.s3.list_objects_v2(Bucket=shared.bucket, Prefix=f"{top}/")["Contents"]
    assert [each["Key"].removeprefix(f"{top}/") for each in listed] == sorted(keys)
    for key in keys:
        assert shared.get(f"{top}/{key}") == key.encode(), key


def test_keys_that_a_tree_cannot_hold_are_refused_by_name_when_they_are_put(shared: Lab) -> None:
    for key in ("n" * 256, "x/" + "k" * 256 + "/y"):
        code, message = refusal(shared.on.s3.put_object, Bucket=shared.bucket, Key=key, Body=b"x")
        assert code == "InvalidArgument", (key, code, message)
        assert key[:100] in message
    code, _ = refusal(shared.on.s3.put_object, Bucket=shared.bucket, Key="k" * 1025, Body=b"x")
    assert code == "KeyTooLongError"


def test_no_spelling_of_a_key_or_prefix_leads_out_of_its_bucket(shared: Lab) -> None:
    on, secret = shared.on, fresh("secret")
    other = blocks.make_bucket(on, fresh("other"))
    on.s3.put_object(Bucket=other, Key=secret, Body=b"secret")
    shared.put("dir/inside", b"x")  # what a policy says of dir/* must hold for every name of it
    assert refusal(on.s3.get_object, Bucket=shared.bucket, Key="dir\\inside")[0] == "NoSuchKey"
    ways = [
        f"{up}{sep}{other}{sep}{secret}"
        for sep in ("/", "\\")
        for up in ("..", f"dir{sep}..{sep}..", f".{sep}..", f"dir{sep}..{sep}.{sep}..")
    ]
    ways += [
        f"..%2F{other}%2F{secret}",
        f"%2e%2e/{other}/{secret}",
        f"..\\{other}/{secret}",
        f"../{other}\\{secret}",
    ]
    for key in ways:
        for call in (on.s3.get_object, on.s3.head_object):
            assert refusal(call, Bucket=shared.bucket, Key=key)[0] in ("NoSuchKey", "404", "InvalidURI"), key
        copied = {"Bucket": shared.bucket, "Key": key}
        with pytest.raises(botocore.exceptions.ClientError):
            on.s3.copy_object(Bucket=shared.bucket, Key="copied", CopySource=copied)
        on.s3.delete_object(Bucket=shared.bucket, Key=key)
        on.s3.delete_objects(Bucket=shared.bucket, Delete={"Objects": [{"Key": key}]})
        for prefix in (key, key.removesuffix(secret)):
            found = on.s3.list_objects_v2(Bucket=shared.bucket, Prefix=prefix)
            assert found["KeyCount"] == 0, (prefix, found)
    assert on.s3.get_object(Bucket=other, Key=secret)["Body"].read() == b"secret"


# ---- too much ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("size=256k", "ClientError: Failed to download data. No space left on the disk"),
        (
            "nr_inodes=4",
            "InternalServerError: We encountered an internal error. Please try again. No space left on the disk of ",
        ),
    ],
)
def test_a_disk_that_is_full_while_staging_fails_the_job_says_so_and_is_empty_again(
    cloister: Cloister, shared: Lab, limit: str, said: str
) -> None:
    uri = shared.put("large", b"x" * (1 << 20))
    # A small disk where jobs keep their data, in the daemon's own mount namespace only
    inside(cloister, "mount", "-t", "tmpfs", "-o", f"{limit},mode=700", "tmpfs", "jobs")
    try:
        with leaving_nothing(cloister, shared):
            request = shared.request(fresh("full"), "true", ProcessingInputs=[shared.input("in", uri, IN)])
            job = shared.outcome(request)
            assert job["ProcessingJobStatus"] == "Failed"
            assert said in job["FailureReason"]
            assert inside(cloister, "find", "jobs", "-mindepth", "1") == []
    finally:
        inside(cloister, "umount", "jobs")
    request = shared.request(fresh("room"), "true", ProcessingInputs=[shared.input("in", uri, IN)])
    assert shared.outcome(request)["ProcessingJobStatus"] == "Completed"


#: 10,000 take 50 s on two cores. So the unprivileged run, which is beside root's, has just more than one page
#: of a listing.
MANY = 10_000 if os.environ.get("CLOISTER_FUZZ") or os.getuid() == 0 else 1_100

WRITE_MANY = """
import os, sys
for n in range(int(sys.argv[1])):
    folder = f"/opt/ml/processing/out/{n % 100:02}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{n:05}", "w") as file:
        file.write(str(n))
"""

READ_MANY = """
import pathlib
found = sorted(int(path.read_text()) for path in pathlib.Path("/opt/ml/processing/in").rglob("*") if path.is_file())
print(len(found), found == list(range(len(found))))
"""


@pytest.mark.timeout(400)
def test_a_prefix_of_very_many_objects_is_written_and_read_whole(shared: Lab) -> None:
    name = fresh("many")
    uri = f"s3://{shared.bucket}/{name}"
    outputs = {"Outputs": [shared.output("out", f"{uri}/many", OUT)]}
    times = {"StoppingCondition": {"MaxRuntimeInSeconds": 300}}
    for request in (
        shared.scripted(name, WRITE_MANY, str(MANY), ProcessingOutputConfig=outputs, **times),
        shared.scripted(
            f"{name}-r", READ_MANY, ProcessingInputs=[shared.input("in", f"{uri}/many/", IN)], **times
        ),
    ):
        shared.create(request)
        job = blocks.wait_for(shared.on, request["ProcessingJobName"], 300)
        assert job["ProcessingJobStatus"] == "Completed", job.get("FailureReason")
    assert shared.log(job) == f"{MANY} True"
    pages = shared.on.s3.get_paginator("list_objects_v2").paginate(
        Bucket=shared.bucket, Prefix=f"{name}/many/"
    )
    for page in pages:
        objects = [{"Key": item["Key"]} for item in page["Contents"]]
        shared.on.s3.delete_objects(Bucket=shared.bucket, Delete={"Objects": objects, "Quiet": True})
