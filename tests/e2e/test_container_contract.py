"""The container's contract, in one job: what it is given, what becomes of what it leaves, what Describe shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.e2e.conftest import IN, OUT, Lab, fresh

pytestmark = pytest.mark.e2e

REPORT = """
import json, os, pathlib, sys
top = pathlib.Path("/opt/ml")
config = {path.name: json.loads(path.read_text()) for path in (top / "config").iterdir()}
me = config["resourceconfig.json"]["current_host"]
found = {
    "argv": sys.argv[1:],
    "environment": dict(os.environ),
    "config": config,
    "inputs": {str(path.relative_to(top / "processing/in")): path.read_text()
               for path in sorted((top / "processing/in").rglob("*")) if path.is_file()},
    "hosts": open("/etc/hosts").read(),
}
(top / "processing/out/report").mkdir()
(top / f"processing/out/report/{me}.json").write_text(json.dumps(found))
(top / f"processing/out2/of-{me}.txt").write_text("second output of " + me)
(top / "output/message").write_text(f"the message of {me}; ")
"""


@pytest.fixture(scope="module")
def whole(shared: Lab) -> dict[str, Any]:
    """A job that uses all it can: its request, its last Describe, and what each instance saw."""
    name = fresh("Whole")
    top = f"{name}/in"
    data = {
        f"{top}/tree/a.txt": b"a",
        f"{top}/tree/deep/er/b.txt": b"b",
        f"{top}/tree/empty": b"",
        f"{top}/listed/x/1": b"one",
        f"{top}/listed/x/2": b"two",
        f"{top}/listed/y": b"not in the manifest",
        f"{top}/manifest.json": json.dumps(
            [{"prefix": f"s3://{shared.bucket}/{top}/listed/"}, "x/1", "x/2"]
        ).encode(),
        f"{top}/single.csv": b"1,2,3",
        f"{top}/single.csv.bak": b"a prefix is no file name",
    }
    for key, body in data.items():
        shared.put(key, body)
    uri = f"s3://{shared.bucket}/{name}"
    request = shared.scripted(
        name,
        REPORT,
        "--flag",
        "two words",
        "ünïcode",
        '"$HOME"',
        ProcessingInputs=[
            shared.input("tree", f"{uri}/in/tree", f"{IN}/tree"),
            shared.input("listed", f"{uri}/in/manifest.json", f"{IN}/listed", S3DataType="ManifestFile"),
            shared.input(
                "single", f"{uri}/in/single.csv", f"{IN}/single", S3DataDistributionType="FullyReplicated"
            ),
        ],
        ProcessingOutputConfig={
            "Outputs": [
                shared.output("first", f"{uri}/out/", OUT),
                shared.output("second", f"{uri}/second", "/opt/ml/processing/out2"),
            ]
        },
        Environment={"COLOUR": "blue green", "AWS_REGION": "eu-north-1", "EMPTY": ""},
    )
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 2
    job = shared.outcome(request)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), shared.log(job))
    reports = [json.loads(shared.get(f"{name}/out/report/algo-{n}.json")) for n in (1, 2)]
    return {"request": request, "job": job, "reports": reports}


def test_every_instance_gets_the_whole_of_a_replicated_input_by_prefix_manifest_or_key(
    whole: dict[str, Any],
) -> None:
    expected = {
        "tree/a.txt": "a",
        "tree/deep/er/b.txt": "b",
        "tree/empty": "",
        "listed/x/1": "one",
        "listed/x/2": "two",
        "single/single.csv": "1,2,3",
        "single/single.csv.bak": "a prefix is no file name",  # AWS: all objects that match the prefix
    }
    for report in whole["reports"]:
        assert report["inputs"] == expected


def test_every_output_of_every_instance_is_uploaded(shared: Lab, whole: dict[str, Any]) -> None:
    name = whole["job"]["ProcessingJobName"]
    keys = {
        item["Key"].removeprefix(f"{name}/")
        for prefix in ("out/", "second/")
        for item in shared.on.s3.list_objects_v2(Bucket=shared.bucket, Prefix=f"{name}/{prefix}")["Contents"]
    }
    reports = {f"out/report/algo-{n}.json" for n in (1, 2)}
    assert keys == reports | {f"second/of-algo-{n}.txt" for n in (1, 2)}
    assert shared.get(f"{name}/second/of-algo-2.txt") == b"second output of algo-2"


def test_arguments_and_environment_arrive_as_they_were_given(whole: dict[str, Any]) -> None:
    for report in whole["reports"]:
        assert report["argv"] == ["--flag", "two words", "ünïcode", '"$HOME"']
        given = {key: report["environment"][key] for key in ("COLOUR", "AWS_REGION", "EMPTY")}
        assert given == {"COLOUR": "blue green", "AWS_REGION": "eu-north-1", "EMPTY": ""}
        assert report["environment"]["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"].startswith("/")
        leaked = {key for key in report["environment"] if key.startswith(("CLOISTER", "SSH", "SUDO"))}
        assert leaked == set()


def test_the_messages_of_all_instances_become_the_exit_message(whole: dict[str, Any]) -> None:
    assert whole["job"]["ExitMessage"] == "the message of algo-1; the message of algo-2; "


def test_the_two_configuration_files_are_as_the_container_contract_says(whole: dict[str, Any]) -> None:
    request, job = whole["request"], whole["job"]
    inputs = [
        {
            "InputName": each["InputName"],
            "AppManaged": False,
            "S3Input": {
                "LocalPath": each["S3Input"]["LocalPath"],
                "S3Uri": each["S3Input"]["S3Uri"],
                "S3DataDistributionType": "FullyReplicated",
                "S3DataType": each["S3Input"]["S3DataType"],
                "S3InputMode": "File",
                "S3CompressionType": "None",
                "S3DownloadMode": "StartOfJob",
            },
            "DatasetDefinition": None,
        }
        for each in request["ProcessingInputs"]
    ]
    outputs = [
        {**each, "AppManaged": False, "FeatureStoreOutput": None}
        for each in request["ProcessingOutputConfig"]["Outputs"]
    ]
    processing = {
        "ProcessingJobArn": job["ProcessingJobArn"],
        "ProcessingJobName": request["ProcessingJobName"],
        "AppSpecification": request["AppSpecification"],
        "Environment": request["Environment"],
        "ProcessingInputs": inputs,
        "ProcessingOutputConfig": {"Outputs": outputs, "KmsKeyId": None},
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 2,
                "InstanceType": "ml.m5.large",
                "VolumeSizeInGB": 1,
                "VolumeKmsKeyId": None,
            }
        },
        "RoleArn": request["RoleArn"],
        "StoppingCondition": request["StoppingCondition"],
    }
    for number, report in enumerate(whole["reports"], 1):
        assert set(report["config"]) == {"processingjobconfig.json", "resourceconfig.json"}
        assert report["config"]["processingjobconfig.json"] == processing
        assert report["config"]["resourceconfig.json"] == {
            "current_host": f"algo-{number}",
            "current_instance_type": "ml.m5.large",
            "hosts": ["algo-1", "algo-2"],
            "network_interface_name": "eth0",
        }
        for host in ("algo-1", "algo-2"):
            assert any(line.split()[-1] == host for line in report["hosts"].splitlines()), report["hosts"]


def test_describe_shows_the_request_with_aws_defaults_filled_in(whole: dict[str, Any]) -> None:
    request, job = whole["request"], whole["job"]
    for member in ("AppSpecification", "Environment", "NetworkConfig", "RoleArn", "StoppingCondition"):
        assert job[member] == request[member]
    assert [each["S3Input"]["S3DataDistributionType"] for each in job["ProcessingInputs"]] == [
        "FullyReplicated"
    ] * 4
    name = request["ProcessingJobName"]
    assert job["ProcessingJobArn"].endswith(f":processing-job/{name.lower()}")
