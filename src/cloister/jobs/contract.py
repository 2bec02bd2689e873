"""What a processing container finds when it starts: its files, its environment, its name. Pure.

AWS: "Build your own processing container" (developer guide): /opt/ml/config/processingjobconfig.json,
/opt/ml/config/resourceconfig.json, /opt/ml/output/message, and the credentials endpoint by the environment.
"""

from __future__ import annotations

import json
from typing import Any

from cloister.jobs.model import Instance, ProcessingJob

#: where the bundle of certificate authorities (the host's and ours) is mounted
CA_BUNDLE_PATH = "/etc/cloister/ca-bundle.pem"
CREDENTIALS_ADDRESS = "169.254.170.2"
#: variables by which the usual TLS stacks (AWS SDKs, OpenSSL, requests, curl) find their authorities
_CA_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
#: bytes of /opt/ml/output/message that become the ExitMessage
MESSAGE_LIMIT = 1024


def processing_job_config(job: ProcessingJob) -> dict[str, Any]:
    """processingjobconfig.json: members that were not given are explicit nulls."""
    request = job.request
    app = request["AppSpecification"]
    cluster = request["ProcessingResources"]["ClusterConfig"]
    output = request.get("ProcessingOutputConfig")
    stopping = request.get("StoppingCondition")
    return {
        "ProcessingJobArn": job.arn,
        "ProcessingJobName": job.name,
        "AppSpecification": {
            "ImageUri": app["ImageUri"],
            "ContainerEntrypoint": app.get("ContainerEntrypoint"),
            "ContainerArguments": app.get("ContainerArguments"),
        },
        "Environment": request.get("Environment") or {},
        "ProcessingInputs": [_input(each) for each in job.inputs],
        "ProcessingOutputConfig": {
            "Outputs": [_output(each) for each in job.outputs],
            "KmsKeyId": (output or {}).get("KmsKeyId"),
        },
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": cluster.get("InstanceCount", 1),
                "InstanceType": cluster.get("InstanceType"),
                "VolumeSizeInGB": cluster["VolumeSizeInGB"],
                "VolumeKmsKeyId": cluster.get("VolumeKmsKeyId"),
            }
        },
        "RoleArn": request["RoleArn"],
        "StoppingCondition": {"MaxRuntimeInSeconds": stopping["MaxRuntimeInSeconds"]} if stopping else None,
    }


def _input(given: dict[str, Any]) -> dict[str, Any]:
    s3 = given["S3Input"]
    return {
        "InputName": given["InputName"],
        "AppManaged": given.get("AppManaged", False),
        "S3Input": {
            "LocalPath": s3.get("LocalPath"),
            "S3Uri": s3["S3Uri"],
            "S3DataDistributionType": s3.get("S3DataDistributionType", "FullyReplicated"),
            "S3DataType": s3["S3DataType"],
            "S3InputMode": s3.get("S3InputMode", "File"),
            "S3CompressionType": s3.get("S3CompressionType", "None"),
            "S3DownloadMode": "StartOfJob",
        },
        "DatasetDefinition": None,
    }


def _output(given: dict[str, Any]) -> dict[str, Any]:
    s3 = given["S3Output"]
    return {
        "OutputName": given["OutputName"],
        "AppManaged": given.get("AppManaged", False),
        "S3Output": {
            "LocalPath": s3.get("LocalPath"),
            "S3Uri": s3["S3Uri"],
            "S3UploadMode": s3["S3UploadMode"],
        },
        "FeatureStoreOutput": None,
    }


def resource_config(job: ProcessingJob, instance: Instance) -> dict[str, Any]:
    """resourceconfig.json: who am I, and who are my peers."""
    return {
        "current_host": instance.host,
        "current_instance_type": job.request["ProcessingResources"]["ClusterConfig"].get("InstanceType"),
        "hosts": [each.host for each in job.instances],
        "network_interface_name": "eth0",
    }


def config_files(job: ProcessingJob, instance: Instance) -> dict[str, bytes]:
    """File name -> content, of /opt/ml/config."""
    return {
        "processingjobconfig.json": json.dumps(processing_job_config(job)).encode(),
        "resourceconfig.json": json.dumps(resource_config(job, instance)).encode(),
    }


def environment(job: ProcessingJob, region: str) -> dict[str, str]:
    """The job's own variables win over ours: a user may bring a different bundle or region."""
    credentials = {} if job.isolated else {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": job.credentials_path}
    ours = {
        **credentials,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        **dict.fromkeys(_CA_VARIABLES, CA_BUNDLE_PATH),
    }
    return {**ours, **(job.request.get("Environment") or {})}


def exit_message(messages: list[bytes]) -> str | None:
    """The ExitMessage of a job from its containers' /opt/ml/output/message files, in order of hosts.

    AWS: UTF-8, several containers' messages are concatenated, the first 1 KB is kept. A cut never leaves
    half a character. Raises UnicodeDecodeError when the text is not UTF-8."""
    whole = b"".join(messages)
    if not whole:
        return None
    cut = whole[:MESSAGE_LIMIT]
    try:
        return cut.decode()
    except UnicodeDecodeError as error:
        if len(whole) > MESSAGE_LIMIT and error.reason == "unexpected end of data":
            return cut[: error.start].decode()
        raise
