"""The clients people have, used as they use them: the SageMaker SDK's calls, the AWS CLI, boto3 in the job."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import pytest
from tests.e2e.conftest import IN, OUT, Cloister, Lab, fresh, wait_until

from cloister.cli.lifecycle import environment
from cloister.demo import blocks

pytestmark = pytest.mark.e2e

LOG_GROUP = "/aws/sagemaker/ProcessingJobs"


# ---- the SageMaker SDK ---------------------------------------------------------------------------

SDK_SCRIPT = """
import argparse, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int)
times = parser.parse_args().times
for line in range(times):
    print(f"line {line} of {os.environ['WHO']}", flush=True)
    time.sleep(0.05)
text = open("/opt/ml/processing/input/words.txt").read()
open("/opt/ml/processing/output/words.txt", "w").write(text.upper())
"""


class SdkLogs:
    """What sagemaker.session (v2) does to follow a job: `_flush_log_streams` and `multi_stream_iter`."""

    def __init__(self, on: blocks.Stage, job: str, instances: int) -> None:
        self.on, self.job, self.instances = on, job, instances
        self.streams: list[str] = []
        self.positions: dict[str, tuple[int, int]] = {}
        self.lines: list[str] = []

    def flush(self) -> None:
        if len(self.streams) < self.instances:
            self._find_streams()
        for stream in self.streams:
            for event in self._events(stream):
                self.lines.append(event["message"])
                start, skip = self.positions.get(stream, (0, 0))
                same = event["timestamp"] == start
                self.positions[stream] = (event["timestamp"], skip + 1 if same else 1)

    def _find_streams(self) -> None:
        try:
            asked = {"logGroupName": LOG_GROUP, "logStreamNamePrefix": f"{self.job}/"}
            found = self.on.logs.describe_log_streams(**asked, orderBy="LogStreamName", limit=self.instances)
            names = [each["logStreamName"] for each in found["logStreams"]]
            while "nextToken" in found:  # an answer that never ends would hang the SDK here
                found = self.on.logs.describe_log_streams(**asked, nextToken=found["nextToken"], limit=50)
                names += [each["logStreamName"] for each in found["logStreams"]]
            self.streams += [name for name in names if name not in self.streams]
        except self.on.logs.exceptions.ResourceNotFoundException:
            pass  # the only error that the SDK swallows

    def _events(self, stream: str) -> Iterator[dict[str, Any]]:
        start, skip = self.positions.get(stream, (0, 0))
        token: dict[str, Any] = {}
        while True:
            found = self.on.logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startTime=start, startFromHead=True, **token
            )
            token = {"nextToken": found["nextForwardToken"]}
            events = found["events"]
            if not events:
                return
            passed, skip = min(skip, len(events)), max(0, skip - len(events))
            yield from events[passed:]


def test_the_sagemaker_sdks_processor_gets_all_its_answers(shared: Lab) -> None:
    """ScriptProcessor(...).run(inputs, outputs, wait=True, logs=True), call by call."""
    on = shared.on
    # Session.default_bucket(): made when it is not there
    account = on.sts.get_caller_identity()["Account"]
    bucket = fresh(f"sagemaker-{on.region}-{account}")
    on.s3.list_buckets()
    with pytest.raises(botocore.exceptions.ClientError) as missing:
        on.s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
    assert missing.value.response["Error"]["Code"] == "404"
    blocks.make_bucket(on, bucket)
    on.s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
    # expand_role(): a role's name is as good as its ARN
    role = on.iam.get_role(RoleName=blocks.make_role(on, fresh("sdk"), [bucket]).rpartition("/")[2])["Role"][
        "Arn"
    ]

    name = f"sagemaker-scikit-learn-{uuid.uuid4().hex[:8]}-10-15-30-123"
    base = f"s3://{bucket}/{name}"
    on.s3.put_object(Bucket=bucket, Key=f"{name}/input/code/preprocess.py", Body=SDK_SCRIPT.encode())
    on.s3.put_object(Bucket=bucket, Key=f"{name}/input/input-1/words.txt", Body=b"some words")
    s3 = {
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
        "S3DataDistributionType": "FullyReplicated",
        "S3CompressionType": "None",
    }
    words = {"S3Uri": f"{base}/input/input-1", "LocalPath": "/opt/ml/processing/input", **s3}
    # ScriptProcessor's place for the code lies in the data's, when that is where AWS's examples put it
    code = {"S3Uri": f"{base}/input/code/preprocess.py", "LocalPath": "/opt/ml/processing/input/code", **s3}
    output = {"S3Uri": f"{base}/output", "LocalPath": "/opt/ml/processing/output", "S3UploadMode": "EndOfJob"}
    shared.create(
        {
            "ProcessingInputs": [
                {"InputName": "input-1", "AppManaged": False, "S3Input": words},
                {"InputName": "code", "AppManaged": False, "S3Input": code},
            ],
            "ProcessingOutputConfig": {
                "Outputs": [{"OutputName": "output-1", "AppManaged": False, "S3Output": output}]
            },
            "ProcessingJobName": name,
            "ProcessingResources": {
                "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
            },
            "AppSpecification": {
                "ImageUri": blocks.IMAGE,
                "ContainerArguments": ["--times", "20"],
                "ContainerEntrypoint": ["python3", "/opt/ml/processing/input/code/preprocess.py"],
            },
            "Environment": {"WHO": "the SDK"},
            "NetworkConfig": {
                "EnableNetworkIsolation": False,
                "VpcConfig": {"SecurityGroupIds": [shared.group], "Subnets": [shared.subnet]},
            },
            "RoleArn": role,
            "Tags": [{"Key": "project", "Value": "clients"}],
        }
    )
    job = on.sagemaker.describe_processing_job(ProcessingJobName=name)
    instances = job["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    logs = SdkLogs(on, name, instances)
    while job["ProcessingJobStatus"] not in ("Completed", "Failed", "Stopped"):
        logs.flush()
        time.sleep(0.2)
        job = on.sagemaker.describe_processing_job(ProcessingJobName=name)
    assert job["ProcessingJobStatus"] == "Completed", job
    logs.flush()
    (stream,) = logs.streams
    end = {"logGroupName": LOG_GROUP, "logStreamName": stream, "startFromHead": True}
    token = on.logs.get_log_events(**end)["nextForwardToken"]
    for _ in range(2):  # the end of the stream: no events, and always the same token
        found = on.logs.get_log_events(**end, nextToken=token)
        assert (found["events"], found["nextForwardToken"]) == ([], token)
    assert logs.lines == [f"line {n} of the SDK" for n in range(20)]
    assert on.s3.get_object(Bucket=bucket, Key=f"{name}/output/words.txt")["Body"].read() == b"SOME WORDS"
    assert on.sagemaker.list_tags(ResourceArn=job["ProcessingJobArn"])["Tags"] == [
        {"Key": "project", "Value": "clients"}
    ]
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}
    assert job["ProcessingStartTime"] <= job["ProcessingEndTime"]
    with pytest.raises(on.sagemaker.exceptions.ResourceInUse, match="already exists"):
        on.sagemaker.create_processing_job(**shared.request(name, "true"))


# ---- images ------------------------------------------------------------------------------------------


def busybox_image(cloister: Cloister, folder: Path, *changes: str) -> str:
    """The id of an image made of busybox alone, imported with podman as a user does."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", folder / "bin/busybox")
    for applet in ("sh", "cat", "id", "ls"):
        (folder / "bin" / applet).symlink_to("busybox")
    name = f"localhost/etl-{uuid.uuid4().hex[:8]}:3"
    environ = {**os.environ, **cloister.environ}
    tar = subprocess.run(
        ["tar", "-C", folder, "--owner=0", "--group=0", "-c", "."], capture_output=True, check=True
    )
    options = [word for change in changes for word in ("-c", change)]
    done = subprocess.run(
        ["podman", "import", "-q", *options, "-", name],
        input=tar.stdout,
        capture_output=True,
        timeout=60,
        env=environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return name.removeprefix("localhost/")


def test_an_ecr_uri_is_the_local_podman_image_of_that_name(
    cloister: Cloister, shared: Lab, tmp_path: Path
) -> None:
    tag = busybox_image(
        cloister,
        tmp_path / "tree",
        'ENTRYPOINT ["/bin/sh","-c"]',
        'CMD ["echo the CMD ran; ls /usr; exit 9"]',
        "ENV FROM_IMAGE=yes",
    )
    uri = f"{shared.on.account}.dkr.ecr.{shared.on.region}.amazonaws.com/{tag}"
    request = shared.request(fresh("ecr"))
    request["AppSpecification"] = {"ImageUri": uri}
    by_itself = shared.outcome(request)
    assert by_itself["FailureReason"] == "AlgorithmError: , exit code: 9"
    log = shared.log(by_itself)
    assert "the CMD ran" in log
    assert "/usr: No such file or directory" in log  # the image's root file system, not the host's

    script = "echo FROM_IMAGE=$FROM_IMAGE JOB=$JOB as $(id -u); cat /opt/ml/processing/in/a > /opt/ml/processing/out/b"
    key = fresh("busybox")
    request = shared.request(
        fresh("ecr"),
        Environment={"JOB": "too"},
        ProcessingInputs=[shared.input("in", shared.put(f"{key}/a", b"through busybox"), IN)],
        ProcessingOutputConfig={"Outputs": [shared.output("out", f"s3://{shared.bucket}/{key}/out", OUT)]},
    )
    request["AppSpecification"] = {"ImageUri": uri, "ContainerArguments": [script]}  # instead of the CMD
    job = shared.outcome(request)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), shared.log(job))
    assert shared.log(job) == "FROM_IMAGE=yes JOB=too as 0"
    assert shared.get(f"{key}/out/b") == b"through busybox"


# ---- ends --------------------------------------------------------------------------------------------

STOPPABLE = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path("/opt/ml/processing/out/partial.txt").write_text("saved at SIGINT")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
print("working", flush=True)
time.sleep(60)
"""


def test_a_stopped_job_gets_sigint_keeps_its_output_and_is_stopped(shared: Lab) -> None:
    on, name = shared.on, fresh("stop")
    outputs = {"Outputs": [shared.output("out", f"s3://{shared.bucket}/{name}", OUT)]}
    request = shared.scripted(name, STOPPABLE, ProcessingOutputConfig=outputs)
    shared.create(request)
    wait_until("the script works", lambda: _lines(on, name) == ["working"])
    on.sagemaker.stop_processing_job(ProcessingJobName=name)
    waiter = on.sagemaker.get_waiter("processing_job_completed_or_stopped")
    waiter.wait(ProcessingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 20})
    job = on.sagemaker.describe_processing_job(ProcessingJobName=name)
    assert job["ProcessingJobStatus"] == "Stopped"
    assert shared.get(f"{name}/partial.txt") == b"saved at SIGINT"
    with pytest.raises(botocore.exceptions.ClientError) as again:
        on.sagemaker.stop_processing_job(ProcessingJobName=name)
    assert again.value.response["Error"]["Code"] == "ValidationException"
    assert "is in status Stopped" in str(again.value)
    with pytest.raises(botocore.exceptions.ClientError) as missing:
        on.sagemaker.describe_processing_job(ProcessingJobName="no-such-job")
    assert missing.value.response["Error"]["Code"] == "ValidationException"
    assert missing.value.response["Error"]["Message"].startswith("Could not find requested job")


def _lines(on: blocks.Stage, name: str) -> list[str]:
    try:
        return blocks.job_log(on, name)
    except botocore.exceptions.ClientError:
        return []


def test_a_job_that_takes_longer_than_its_maximum_is_ended_and_says_so(shared: Lab) -> None:
    command = ("sh", "-c", "trap 'exit 0' INT; sleep 60 & wait")
    request = shared.request(fresh("long"), *command, StoppingCondition={"MaxRuntimeInSeconds": 1})
    began = time.monotonic()
    job = shared.outcome(request)
    assert job["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntimeInSeconds (1 seconds)" in job["FailureReason"]
    assert time.monotonic() - began < 15


def test_a_job_that_fails_says_its_exit_code_or_points_to_its_message(shared: Lab) -> None:
    plain = shared.outcome(shared.request(fresh("fails"), "sh", "-c", "exit 3"))
    assert (plain["ProcessingJobStatus"], plain["FailureReason"]) == (
        "Failed",
        "AlgorithmError: , exit code: 3",
    )
    command = "echo 'the column «x» is missing' > /opt/ml/output/message; exit 3"
    told = shared.outcome(shared.request(fresh("fails"), "sh", "-c", command))
    assert told["FailureReason"] == "AlgorithmError: See job logs for more information"
    assert told["ExitMessage"] == "the column «x» is missing\n"


# ---- boto3 in the job --------------------------------------------------------------------------------

BIG = """
import hashlib, os, shutil, sys
import boto3
bucket, key = sys.argv[1:]
s3 = boto3.client("s3")
size = (65 << 20) + 12345
block = os.urandom(1 << 20)
with open("/tmp/big", "wb") as out:
    while out.tell() < size:
        out.write((out.tell().to_bytes(8, "big") + block)[: min(len(block), size - out.tell())])
def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
s3.upload_file("/tmp/big", bucket, key)
head = s3.head_object(Bucket=bucket, Key=key)
assert head["ContentLength"] == size, head
assert head["ETag"].strip('"').endswith("-9"), head["ETag"]  # nine parts of 8 MiB
s3.download_file(bucket, key, "/tmp/again")
assert digest("/tmp/again") == digest("/tmp/big")
part = s3.get_object(Bucket=bucket, Key=key, Range="bytes=8388600-8388615")["Body"].read()
with open("/tmp/big", "rb") as big:
    big.seek(8388600)
    assert part == big.read(16)
shutil.copyfile("/tmp/big", "/opt/ml/processing/out/big")
print("DIGEST", digest("/tmp/again"))
"""


def test_an_object_of_many_parts_goes_up_and_comes_back_inside_the_vpc(shared: Lab) -> None:
    name = fresh("big")
    outputs = {"Outputs": [shared.output("out", f"s3://{shared.bucket}/{name}/out", OUT)]}
    request = shared.scripted(name, BIG, shared.bucket, f"{name}/by-boto3", ProcessingOutputConfig=outputs)
    job = shared.outcome(request)
    log = shared.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    digest = log.split()[-1]
    for key in (f"{name}/by-boto3", f"{name}/out/big"):  # by the job's boto3, by the platform's agent
        assert hashlib.sha256(shared.get(key)).hexdigest() == digest, key
    uploads = shared.on.s3.list_multipart_uploads(Bucket=shared.bucket)
    assert uploads.get("Uploads", []) == []


PRESIGNED = """
import boto3, json, sys, urllib.error, urllib.request
bucket, top = sys.argv[1:]
with open("/opt/ml/processing/in/urls.json") as file:
    outside = json.load(file)
from botocore.config import Config
s3 = boto3.client("s3", config=Config(signature_version="s3v4"))
def get(url):
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} " + error.read().decode().partition("<Code>")[2].partition("</Code>")[0]
mine = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": top + "/secret"}, ExpiresIn=60)
put = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": top + "/note"}, ExpiresIn=60)
urllib.request.urlopen(urllib.request.Request(put, data=b"noted", method="PUT"), timeout=5)
old = boto3.client("s3", config=Config(signature_version="s3"))
found = {
    "signature version 2": get(old.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": top + "/secret"})),
    "mine": get(mine),
    "the owner's": get(outside["good"]),
    "the owner's, expired": get(outside["expired"]),
    "for another key": get(mine.replace("/secret", "/note")),
    "without a signature": get(mine.partition("?")[0]),
}
print("FOUND " + json.dumps(found))
"""


def test_presigned_urls_are_good_inside_the_vpc_for_what_they_were_signed_for(
    cloister: Cloister, shared: Lab
) -> None:
    name = fresh("presigned")
    shared.put(f"{name}/secret", b"the secret")
    keys = environment(cloister.state, cloister.running())
    # Signed on this host for AWS's own name, which leads to this bucket inside the VPC only.
    owner = boto3.client(
        "s3",
        region_name=shared.on.region,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(signature_version="s3v4"),
    )
    what = {"Bucket": shared.bucket, "Key": f"{name}/secret"}
    urls = {
        "good": owner.generate_presigned_url("get_object", Params=what, ExpiresIn=60),
        "expired": owner.generate_presigned_url("get_object", Params=what, ExpiresIn=1),
    }
    uri = shared.put(f"{name}/urls/urls.json", json.dumps(urls).encode())
    time.sleep(1.1)
    request = shared.scripted(
        name, PRESIGNED, shared.bucket, name, ProcessingInputs=[shared.input("in", uri, IN)]
    )
    job = shared.outcome(request)
    log = shared.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    assert json.loads(log.removeprefix("FOUND ")) == {
        "signature version 2": "400 InvalidRequest",  # AWS: not for buckets made after June 24, 2020
        "mine": "the secret",
        "the owner's": "the secret",
        "the owner's, expired": "403 AccessDenied",
        "for another key": "403 SignatureDoesNotMatch",
        "without a signature": "403 AccessDenied",
    }
    assert shared.get(f"{name}/note") == b"noted"


def test_a_client_that_pauses_for_longer_than_the_store_would_wait_gets_its_object(shared: Lab) -> None:
    s3, data = shared.on.s3, os.urandom(24 << 20)
    s3.put_object(Bucket=shared.bucket, Key="slow", Body=data)
    body = s3.get_object(Bucket=shared.bucket, Key="slow")["Body"]
    began = body.read(2 << 20)
    time.sleep(35)
    assert began + body.read() == data
    s3.delete_object(Bucket=shared.bucket, Key="slow")


# ---- the AWS CLI ---------------------------------------------------------------------------------------

AWS = Path("/usr/bin/aws")

CLI_SCRIPT = """
set -e
aws s3 ls "s3://$1/$2/" | sed 's/.* /SEEN /'
aws s3 cp --no-progress "s3://$1/$2/hello.txt" /tmp/hello.txt
tr a-z A-Z </tmp/hello.txt | aws s3 cp - "s3://$1/$2/HELLO.txt"
aws s3api head-object --bucket "$1" --key "$2/HELLO.txt" --query ContentLength
"""


@pytest.mark.skipif(not AWS.exists(), reason="this distribution has no package awscli")
def test_the_aws_cli_drives_cloister_and_works_inside_a_job(
    cloister: Cloister, shared: Lab, tmp_path: Path
) -> None:
    name = fresh("cli")
    shown = environment(cloister.state, cloister.running())

    def aws(*arguments: str) -> Any:
        done = subprocess.run(
            # Debian 12's version does not know AWS_ENDPOINT_URL yet
            [AWS, "--endpoint-url", shown["AWS_ENDPOINT_URL"], *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **shown},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout.strip()

    vpcs = aws("ec2", "describe-vpcs", "--vpc-ids", shared.vpc)["Vpcs"]
    assert vpcs[0]["CidrBlock"] == "10.42.0.0/16"
    (tmp_path / "hello.txt").write_text("hello from the command line\n")
    (tmp_path / "cli.sh").write_text(CLI_SCRIPT)
    for file in ("hello.txt", "cli.sh"):
        aws("s3", "cp", str(tmp_path / file), f"s3://{shared.bucket}/{name}/{file}")
    code = shared.input("code", f"s3://{shared.bucket}/{name}/cli.sh", "/opt/ml/processing/code")
    request = shared.request(name, "sh", "/opt/ml/processing/code/cli.sh", ProcessingInputs=[code])
    request["AppSpecification"]["ContainerArguments"] = [shared.bucket, name]
    (tmp_path / "job.json").write_text(json.dumps(request))
    aws("sagemaker", "create-processing-job", "--cli-input-json", f"file://{tmp_path}/job.json")
    shared.on.undo.append(lambda: blocks.delete_job(shared.on, name))
    job = blocks.wait_for(shared.on, name)
    log = shared.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    assert [line for line in log.splitlines() if line.startswith("SEEN")] == ["SEEN cli.sh", "SEEN hello.txt"]
    assert log.splitlines()[-1] == "28"
    assert shared.get(f"{name}/HELLO.txt") == b"HELLO FROM THE COMMAND LINE\n"
    describe = ("sagemaker", "describe-processing-job", "--processing-job-name", name)
    assert aws(*describe, "--query", "ProcessingJobStatus", "--output", "text") == "Completed"


# ---- what is not there yet ---------------------------------------------------------------------------


def _input_with(**changes: Any) -> dict[str, Any]:
    s3 = {"S3Uri": "s3://b/k", "LocalPath": IN, "S3DataType": "S3Prefix", "S3InputMode": "File"}
    return {"ProcessingInputs": [{"InputName": "in", "S3Input": s3 | changes}]}


def _output_with(**changes: Any) -> dict[str, Any]:
    s3 = {"S3Uri": "s3://b/k", "LocalPath": OUT, "S3UploadMode": "EndOfJob"}
    return {"ProcessingOutputConfig": {"Outputs": [{"OutputName": "out", "S3Output": s3} | changes]}}


NOT_YET: dict[str, dict[str, Any]] = {
    "ExperimentConfig": {"ExperimentConfig": {"ExperimentName": "e"}},
    "S3InputMode Pipe (input in)": _input_with(S3InputMode="Pipe"),
    "S3CompressionType Gzip (input in)": _input_with(S3CompressionType="Gzip"),
    "S3Uri with https:// (input in: https://s3.amazonaws.com/b/k)": _input_with(
        S3Uri="https://s3.amazonaws.com/b/k"
    ),
    "DatasetDefinition (input in)": {
        "ProcessingInputs": [{"InputName": "in", "DatasetDefinition": {"LocalPath": IN}}]
    },
    "FeatureStoreOutput (output out)": _output_with(FeatureStoreOutput={"FeatureGroupName": "g"}),
    "an alias as ProcessingOutputConfig.KmsKeyId (alias/x)": {
        "ProcessingOutputConfig": {"Outputs": [], "KmsKeyId": "alias/x"}
    },
    "an alias as ClusterConfig.VolumeKmsKeyId (alias/x)": {"cluster": {"VolumeKmsKeyId": "alias/x"}},
    "ClusterConfig.InstancePreferences": {
        "cluster": {"InstanceType": None, "InstancePreferences": [{"InstanceType": "ml.m5.large"}]}
    },
}


def test_what_cloister_does_not_do_yet_is_refused_by_name_and_never_ignored(shared: Lab) -> None:
    for what, changes in NOT_YET.items():
        request = shared.request(fresh("not-yet"), "true")
        request |= {name: value for name, value in changes.items() if name != "cluster"}
        cluster = request["ProcessingResources"]["ClusterConfig"] | changes.get("cluster", {})
        request["ProcessingResources"]["ClusterConfig"] = {
            member: value for member, value in cluster.items() if value is not None
        }
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            shared.on.sagemaker.create_processing_job(**request)
        error = refused.value.response["Error"]
        assert error == {
            "Code": "ValidationException",
            "Message": f"Cloister does not implement {what} yet",
        }, what
        with pytest.raises(botocore.exceptions.ClientError, match="Could not find"):
            shared.on.sagemaker.describe_processing_job(ProcessingJobName=request["ProcessingJobName"])


def test_an_operation_cloister_does_not_have_is_an_error_that_names_it(shared: Lab) -> None:
    for call, what in (
        (shared.on.sagemaker.list_training_jobs, "sagemaker:ListTrainingJobs"),
        (shared.on.ec2.describe_vpn_gateways, "ec2:DescribeVpnGateways"),
        (shared.on.iam.list_users, "iam:ListUsers"),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match=f"Cloister does not implement {what}"):
            call()
