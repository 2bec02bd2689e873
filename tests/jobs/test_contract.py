"""What a container finds: configuration, environment, exit message."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.jobs.worlds import ROLE_ARN, request, s3_input, s3_output

from cloister.jobs import contract
from cloister.jobs.model import Instance, ProcessingJob
from cloister.services.sagemaker.processing_jobs import effective


def _job(**more: object) -> ProcessingJob:
    given = {**request(instances=2), **more}
    return ProcessingJob(
        name="job",
        job_id="1",
        arn="arn:aws:sagemaker:us-east-1:123456789012:processing-job/job",
        request=effective(given),
        instances=(Instance(index=1, address="10.0.0.4"), Instance(index=2, address="10.0.0.6")),
        credentials_path="/v2/credentials/x",
        created=0.0,
        modified=0.0,
    )


def test_the_configuration_has_explicit_nulls_for_what_was_not_given() -> None:
    job = _job(ProcessingInputs=[s3_input()], ProcessingOutputConfig={"Outputs": [s3_output()]})
    files = contract.config_files(job, job.instances[1])
    config = json.loads(files["processingjobconfig.json"])
    assert config["AppSpecification"] == {
        "ImageUri": "cloister/host",
        "ContainerEntrypoint": ["/bin/true"],
        "ContainerArguments": None,
    }
    assert config["ProcessingInputs"] == [
        {
            "InputName": "in",
            "AppManaged": False,
            "S3Input": {
                "LocalPath": "/opt/ml/processing/in",
                "S3Uri": "s3://bkt/in/",
                "S3DataDistributionType": "FullyReplicated",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
                "S3CompressionType": "None",
                "S3DownloadMode": "StartOfJob",
            },
            "DatasetDefinition": None,
        }
    ]
    assert config["ProcessingOutputConfig"]["KmsKeyId"] is None
    assert config["ProcessingResources"]["ClusterConfig"] == {
        "InstanceCount": 2,
        "InstanceType": "ml.m5.large",
        "VolumeSizeInGB": 1,
        "VolumeKmsKeyId": None,
    }
    assert config["RoleArn"] == ROLE_ARN
    assert json.loads(files["resourceconfig.json"])["current_host"] == "algo-2"
    assert json.loads(files["resourceconfig.json"])["hosts"] == ["algo-1", "algo-2"]


def test_the_jobs_own_variables_win_over_ours() -> None:
    found = contract.environment(_job(Environment={"AWS_CA_BUNDLE": "/mine", "A": "b"}), "eu-west-1")
    assert found["AWS_CA_BUNDLE"] == "/mine"
    assert found["A"] == "b"
    assert found["AWS_REGION"] == found["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert found["SSL_CERT_FILE"] == contract.CA_BUNDLE_PATH
    assert found["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] == "/v2/credentials/x"


def test_messages_are_concatenated_and_cut() -> None:
    assert contract.exit_message([]) is None
    assert contract.exit_message([b"", b""]) is None
    assert contract.exit_message([b"a", b"b"]) == "ab"
    assert contract.exit_message([b"x" * 1000, b"y" * 1000]) == "x" * 1000 + "y" * 24


@pytest.mark.parametrize("text", [b"\xff", b"ok\xc3", b"\xc3" + b"x" * 2000])
def test_a_message_that_is_not_utf_8_is_told(text: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        contract.exit_message([text])


@given(st.text(min_size=1))
def test_a_cut_never_breaks_a_character(text: str) -> None:
    whole = text * 1025
    try:
        data = whole.encode()
    except UnicodeEncodeError:
        return
    message = contract.exit_message([data])
    assert message is not None
    assert whole.startswith(message)
    assert len(message.encode()) > contract.MESSAGE_LIMIT - 4
