"""The SageMaker handlers: shapes, AWS's texts, and what is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.jobs.worlds import ROLE_ARN, documents, request, role, s3_input, s3_output
from tests.services.calls import ACCOUNT, invoke, make_call

import cloister.services.sagemaker.processing_jobs
import cloister.services.sagemaker.tags  # noqa: F401
from cloister.iam.model import Principal
from cloister.jobs.lifecycle import JobState
from cloister.jobs.model import ProcessingJob
from cloister.services.api import OPERATIONS, Call
from cloister.wire.errors import AwsError
from cloister.world import World


@pytest.fixture
def call() -> Call:
    return make_call(World.of([role(), *documents()]))


def _create(call: Call, **given: Any) -> dict[str, Any]:
    return invoke(call, "sagemaker", "CreateProcessingJob", **given)


def _refused(call: Call, **given: Any) -> AwsError:
    with pytest.raises(AwsError) as error:
        _create(call, **given)
    assert not list(call.tx.all(ProcessingJob))
    return error.value


@pytest.mark.parametrize(
    "given", [{}, {"NetworkConfig": {}}, {"NetworkConfig": {"EnableNetworkIsolation": False}}]
)
def test_a_job_may_name_no_vpc(call: Call, given: dict[str, Any]) -> None:
    wanted = request()
    del wanted["NetworkConfig"]
    _create(call, **wanted, **given)
    shown = invoke(call, "sagemaker", "DescribeProcessingJob", ProcessingJobName="job")
    assert "VpcConfig" not in shown.get("NetworkConfig", {})


def test_a_created_job_is_described_with_its_effective_request(call: Call) -> None:
    given = request(instances=2)
    del given["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    given["ProcessingInputs"] = [s3_input()]
    given["Tags"] = [{"Key": "k", "Value": "v"}]
    before = copy.deepcopy(given)
    created = _create(call, **given)
    assert given == before
    shown = invoke(call, "sagemaker", "DescribeProcessingJob", ProcessingJobName="job")
    assert created == {"ProcessingJobArn": f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:processing-job/job"}
    assert shown["ProcessingJobStatus"] == "InProgress"
    assert shown["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 1
    assert shown["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}
    assert shown["ProcessingInputs"][0]["S3Input"]["S3DataDistributionType"] == "FullyReplicated"
    assert shown["CreationTime"] == call.now
    assert "Tags" not in shown
    assert "FailureReason" not in shown
    assert invoke(call, "sagemaker", "ListTags", ResourceArn=created["ProcessingJobArn"]) == {
        "Tags": [{"Key": "k", "Value": "v"}]
    }


def test_the_tag_that_chooses_a_subnet_names_one_of_the_jobs(call: Call) -> None:
    with pytest.raises(AwsError, match="must name one of the job's subnets \\(subnet-1\\), not 'subnet-2'"):
        _create(call, **request(), Tags=[{"Key": "cloister:subnet", "Value": "subnet-2"}])
    _create(call, **request(), Tags=[{"Key": "cloister:subnet", "Value": "subnet-1"}])


def test_a_name_is_unique(call: Call) -> None:
    _create(call, **request())
    with pytest.raises(AwsError) as error:
        _create(call, **request())
    assert error.value.code == "ResourceInUse"
    assert error.value.message == (
        "Job name must be unique within an AWS account and region, and a job with this name already exists "
        f"(arn:aws:sagemaker:us-east-1:{ACCOUNT}:processing-job/job)"
    )


def _with(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    given = request()
    given["ProcessingInputs"] = [s3_input()]
    given["ProcessingOutputConfig"] = {"Outputs": [s3_output()]}
    change(given)
    return given


NOT_YET: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("S3InputMode Pipe (input in)", lambda g: g["ProcessingInputs"][0]["S3Input"].update(S3InputMode="Pipe")),
    (
        "S3CompressionType Gzip (input in)",
        lambda g: g["ProcessingInputs"][0]["S3Input"].update(S3CompressionType="Gzip"),
    ),
    ("DatasetDefinition (input in)", lambda g: g["ProcessingInputs"][0].update(DatasetDefinition={"x": 1})),
    (
        "FeatureStoreOutput (output out)",
        lambda g: g["ProcessingOutputConfig"]["Outputs"][0].update(
            FeatureStoreOutput={"FeatureGroupName": "f"}
        ),
    ),
    ("ExperimentConfig", lambda g: g.update(ExperimentConfig={"ExperimentName": "e"})),
    (
        "an alias as ProcessingOutputConfig.KmsKeyId (alias/k)",
        lambda g: g["ProcessingOutputConfig"].update(KmsKeyId="alias/k"),
    ),
    (
        "an alias as ClusterConfig.VolumeKmsKeyId (alias/k)",
        lambda g: g["ProcessingResources"]["ClusterConfig"].update(VolumeKmsKeyId="alias/k"),
    ),
    (
        "ClusterConfig.InstancePreferences",
        lambda g: g["ProcessingResources"]["ClusterConfig"].update(
            InstancePreferences=[{"InstanceType": "ml.m5.large"}]
        ),
    ),
]


@pytest.mark.parametrize(("what", "change"), NOT_YET, ids=[what for what, _ in NOT_YET])
def test_what_cloister_does_not_do_yet_is_refused_by_name(
    call: Call, what: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    error = _refused(call, **_with(change))
    assert (error.code, error.message) == ("ValidationException", f"Cloister does not implement {what} yet")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/opt/ml/processing/../x", "must not contain"),
        ("/opt/ml/processing//x", "must not contain"),
        ("/opt/ml/processing/./x", "must not contain"),
        ("/opt/ml/processing/", "must be under /opt/ml/processing/"),
        ("/opt/ml/processing", "must be under /opt/ml/processing/"),
        ("/opt/ml/processing2/x", "must be under /opt/ml/processing/"),
        ("/etc", "must be under /opt/ml/processing/"),
        ("data", "must be under /opt/ml/processing/"),
        (None, "LocalPath must be specified for input in"),
    ],
)
def test_a_local_path_outside_is_refused_by_name(call: Call, path: str | None, said: str) -> None:
    given = request()
    given["ProcessingInputs"] = [s3_input()]
    given["ProcessingInputs"][0]["S3Input"]["LocalPath"] = path
    error = _refused(call, **given)
    assert said in error.message
    assert error.code == "ValidationException"


@pytest.mark.parametrize(("one", "other"), [("a", "a"), ("a/b", "a"), ("a", "a/"), ("a/b/c", "a/")])
def test_two_channels_with_one_path_and_channels_in_an_output_are_refused(
    call: Call, one: str, other: str
) -> None:
    given = request()
    given["ProcessingInputs"] = [s3_input(path=f"/opt/ml/processing/{one}")]
    given["ProcessingOutputConfig"] = {"Outputs": [s3_output(path=f"/opt/ml/processing/{other}")]}
    assert "overlap" in _refused(call, **given).message


def test_a_channel_may_lie_in_an_input_as_the_sdks_code_does(call: Call) -> None:
    given = request()
    paths = (
        "/opt/ml/processing/input",
        "/opt/ml/processing/input/code",
        "/opt/ml/processing/input/code/more",
    )
    given["ProcessingInputs"] = [s3_input(f"in-{n}", path) for n, path in enumerate(paths)]
    given["ProcessingOutputConfig"] = {"Outputs": [s3_output(path="/opt/ml/processing/input/out")]}
    _create(call, **given)


def test_paths_that_only_begin_alike_do_not_overlap(call: Call) -> None:
    given = request()
    given["ProcessingInputs"] = [
        s3_input(name, f"/opt/ml/processing/{name}") for name in ("a", "ab", "a-b", "a.b")
    ]
    _create(call, **given)


def test_two_inputs_of_one_name_are_refused(call: Call) -> None:
    given = request()
    given["ProcessingInputs"] = [s3_input(), s3_input(path="/opt/ml/processing/other")]
    assert _refused(call, **given).message == "InputName must be unique: in is given twice"


@pytest.mark.parametrize("uri", ["s3:///x", "s3://b/../x", "https://b/x"])
def test_a_wrong_uri_is_refused_by_name(call: Call, uri: str) -> None:
    given = request()
    given["ProcessingInputs"] = [s3_input(S3Uri=uri)]
    assert uri in _refused(call, **given).message


@pytest.mark.parametrize(
    ("groups", "subnets", "said"),
    [
        (["sg-1"], ["subnet-0"], "The subnet ID 'subnet-0' does not exist"),
        (["sg-0"], ["subnet-1"], "The security group 'sg-0' does not exist"),
        (["sg-9"], ["subnet-1"], "Security group sg-9 and subnet subnet-1 belong to different networks."),
        (["sg-1"], ["subnet-1", "subnet-9"], "must be in the same VPC"),
    ],
)
def test_subnets_and_groups_must_exist_and_be_of_one_vpc(
    call: Call, groups: list[str], subnets: list[str], said: str
) -> None:
    given = request()
    given["NetworkConfig"]["VpcConfig"] = {"SecurityGroupIds": groups, "Subnets": subnets}
    assert said in _refused(call, **given).message


@pytest.mark.parametrize(
    "arn", [ROLE_ARN.replace("jobs", "none"), ROLE_ARN.replace("123456789012", "1" * 12)]
)
def test_a_role_that_does_not_exist_cannot_be_assumed(call: Call, arn: str) -> None:
    error = _refused(call, **{**request(), "RoleArn": arn})
    assert error.message == (
        f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
        "'sagemaker.amazonaws.com' to assume the role."
    )


def test_a_role_that_trusts_somebody_else_cannot_be_assumed() -> None:
    call = make_call(World.of([role(service="ec2.amazonaws.com"), *documents()]))
    assert _refused(call, **request()).message.startswith(f"Could not assume role {ROLE_ARN}.")


def test_passing_a_role_needs_iam_passrole() -> None:
    somebody = Principal(
        arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/jobs/me",
        account=ACCOUNT,
        user_id="AROAJOBSJOBSJOBSJOBS:me",
        access_key_id="ASIA",
        role_name="jobs",
        role_arn=ROLE_ARN,
        session_name="me",
    )
    world = World.of([role(), *documents()])
    error = _refused(make_call(world, principal=somebody), **request())
    assert error.code == "AccessDeniedException"
    assert "iam:PassRole" in error.message
    allowed = World.of([role(actions=("iam:PassRole",)), *documents()])
    _create(make_call(allowed, principal=somebody), **request())


def test_what_the_application_manages_needs_no_local_path_but_a_place_in_s3(call: Call) -> None:
    given = request()
    source, target = s3_input(), s3_output()
    del source["S3Input"]["LocalPath"], target["S3Output"]["LocalPath"]
    given["ProcessingInputs"] = [source | {"AppManaged": True}]
    given["ProcessingOutputConfig"] = {"Outputs": [target | {"AppManaged": True}]}
    _create(call, **given)
    (job,) = call.tx.all(ProcessingJob)
    assert (job.moved_inputs, job.moved_outputs) == ([], [])
    shown = invoke(call, "sagemaker", "DescribeProcessingJob", ProcessingJobName="job")
    assert shown["ProcessingInputs"][0]["AppManaged"] is True


def test_the_key_of_a_volume_needs_a_grant_by_the_caller_or_by_the_role() -> None:
    somebody = Principal(
        arn="arn:aws:sts::123456789012:assumed-role/caller/me",
        account=ACCOUNT,
        user_id="AROACALLER:me",
        access_key_id="ASIA",
        role_name="caller",
        role_arn="arn:aws:iam::123456789012:role/caller",
        session_name="me",
    )
    given = request()
    given["ProcessingResources"]["ClusterConfig"]["VolumeKmsKeyId"] = "1-2"

    def asked(of_caller: tuple[str, ...], of_role: tuple[str, ...]) -> Call:
        caller = replace(role(actions=("iam:PassRole", *of_caller)), name="caller", role_id="AROACALLER")
        return make_call(World.of([role(actions=of_role), caller, *documents()]), principal=somebody)

    error = _refused(asked((), ("s3:*",)), **given)
    assert error.code == "AccessDeniedException"
    assert "kms:CreateGrant on resource: arn:aws:kms:us-east-1:123456789012:key/1-2" in error.message
    _create(asked(("kms:CreateGrant",), ("s3:*",)), **given)
    _create(asked((), ("kms:CreateGrant",)), **given)


def test_guardrail_condition_keys_are_given_only_for_what_was_given(call: Call) -> None:
    context = OPERATIONS[("sagemaker", "CreateProcessingJob")].context
    assert context is not None
    given = request(subnets=("subnet-1", "subnet-2"))
    given["Tags"] = [{"Key": "k", "Value": "v"}]
    assert context(call, given) == {
        "sagemaker:VpcSubnets": ["subnet-1", "subnet-2"],
        "sagemaker:VpcSecurityGroupIds": ["sg-1"],
        "sagemaker:NetworkIsolation": "false",
        "sagemaker:InstanceTypes": ["ml.m5.large"],
        "aws:TagKeys": ["k"],
        "aws:RequestTag/k": "v",
    }
    del given["NetworkConfig"]
    assert "sagemaker:VpcSubnets" not in context(call, given)


@pytest.mark.parametrize("operation", ["DescribeProcessingJob", "StopProcessingJob"])
def test_a_missing_job_is_a_validation_exception(call: Call, operation: str) -> None:
    with pytest.raises(AwsError, match=r"ValidationException: Could not find requested job"):
        invoke(call, "sagemaker", operation, ProcessingJobName="none")


def _put(call: Call, name: str, state: JobState, *, created: float = 0.0, modified: float = 0.0) -> None:
    _create(call, **request(name))
    job = call.tx.get(ProcessingJob, name)
    assert job is not None
    call.tx.put(replace(job, state=state, created=created, modified=modified, failure_reason="r"))


def test_a_running_job_that_is_stopped_is_stopping(call: Call) -> None:
    _put(call, "job", JobState.RUNNING)
    for _ in range(2):
        assert invoke(call, "sagemaker", "StopProcessingJob", ProcessingJobName="job") == {}
        shown = invoke(call, "sagemaker", "DescribeProcessingJob", ProcessingJobName="job")
        assert shown["ProcessingJobStatus"] == "Stopping"


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.STOPPED])
def test_a_job_that_has_ended_cannot_be_stopped_but_deleted(call: Call, state: JobState) -> None:
    _put(call, "job", state)
    with pytest.raises(AwsError) as error:
        invoke(call, "sagemaker", "StopProcessingJob", ProcessingJobName="job")
    assert error.value.message == (
        f"The request was rejected because the processing job is in status {state.value}."
    )
    invoke(call, "sagemaker", "DeleteProcessingJob", ProcessingJobName="job")
    _create(call, **request("job"))


def test_a_running_job_cannot_be_deleted(call: Call) -> None:
    _put(call, "job", JobState.RUNNING)
    with pytest.raises(AwsError, match=r"ResourceInUse"):
        invoke(call, "sagemaker", "DeleteProcessingJob", ProcessingJobName="job")
    with pytest.raises(AwsError, match=r"ResourceNotFound"):
        invoke(call, "sagemaker", "DeleteProcessingJob", ProcessingJobName="none")


def _names(result: dict[str, Any]) -> list[str]:
    return [each["ProcessingJobName"] for each in result["ProcessingJobSummaries"]]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["c", "a", "b"]),
        ({"SortOrder": "Descending"}, ["b", "a", "c"]),
        ({"SortBy": "Name"}, ["a", "b", "c"]),
        ({"SortBy": "Status"}, ["c", "b", "a"]),
        ({"StatusEquals": "Failed"}, ["b"]),
        ({"NameContains": "a"}, ["a"]),
        ({"CreationTimeAfter": 1.0}, ["a", "b"]),
        ({"CreationTimeBefore": 3.0}, ["c", "a"]),
        ({"LastModifiedTimeAfter": 20.0}, ["b"]),
        ({"LastModifiedTimeBefore": 20.0}, ["c"]),
    ],
)
def test_jobs_are_listed_filtered_and_sorted(call: Call, given: dict[str, Any], names: list[str]) -> None:
    _put(call, "a", JobState.RUNNING, created=2, modified=20)
    _put(call, "b", JobState.FAILED, created=3, modified=30)
    _put(call, "c", JobState.COMPLETED, created=1, modified=10)
    assert _names(invoke(call, "sagemaker", "ListProcessingJobs", **given)) == names


@pytest.mark.parametrize("by", ["Name", "CreationTime", "Status"])
@pytest.mark.parametrize("order", ["Ascending", "Descending"])
def test_pages_cover_every_job_once(call: Call, by: str, order: str) -> None:
    for number in range(7):
        _put(call, f"j{number}", JobState.RUNNING, created=number // 2)
    found: list[str] = []
    more: dict[str, Any] = {}
    for _ in range(10):
        page = invoke(
            call, "sagemaker", "ListProcessingJobs", SortBy=by, SortOrder=order, MaxResults=2, **more
        )
        found += _names(page)
        if "NextToken" not in page:
            break
        more = {"NextToken": page["NextToken"]}
    assert sorted(found) == [f"j{number}" for number in range(7)]
    assert len(found) == 7


@pytest.mark.parametrize("token", ["x", "bm90IGpzb24=", "WzFd"])
def test_a_forged_page_token_is_refused(call: Call, token: str) -> None:
    with pytest.raises(AwsError, match=r"ValidationException"):
        invoke(call, "sagemaker", "ListProcessingJobs", NextToken=token)


def test_tags_are_added_listed_and_deleted(call: Call) -> None:
    arn = _create(call, **request())["ProcessingJobArn"]
    invoke(call, "sagemaker", "AddTags", ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}])
    added = invoke(call, "sagemaker", "AddTags", ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}])
    assert added["Tags"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    invoke(call, "sagemaker", "DeleteTags", ResourceArn=arn, TagKeys=["a"])
    assert invoke(call, "sagemaker", "ListTags", ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]


@pytest.mark.parametrize(
    "tags",
    [[{"Key": "aws:x", "Value": ""}], [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]],
)
def test_reserved_and_repeated_tag_keys_are_refused(call: Call, tags: list[dict[str, str]]) -> None:
    assert _refused(call, **{**request(), "Tags": tags}).code == "ValidationException"
