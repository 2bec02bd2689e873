"""Supervision over the real engine, store and logs, with fakes of what happens outside of the process."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.house import (
    Behaviour,
    FakeContainers,
    House,
    completes,
    exits,
    runs_on,
)
from tests.jobs.worlds import documents, request, role, s3_input, s3_output

from cloister.engine import Engine
from cloister.jobs import continuous
from cloister.jobs.agent import Result, Spec
from cloister.jobs.containers import ContainerSpec
from cloister.jobs.lifecycle import JobEvent, after
from cloister.jobs.logfile import LogLine
from cloister.jobs.model import LOG_GROUP, SUBNET_TAG, ProcessingJob
from cloister.store import Store
from cloister.vpc.model import GroupRule, SecurityGroup, VpcEndpoint
from cloister.world import World


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    made: list[House] = []

    async def make(behave: Behaviour = completes, *, begin: bool = True, **more: Any) -> House:
        one = House(tmp_path, behave, **more)
        made.append(one)
        one.put(role(), *documents())
        if begin:
            await one.supervisor.start()
        return one

    yield make
    for one in made:
        await one.supervisor.stop()
        one.close()


async def test_a_job_completes_and_leaves_nothing(house: Callable[..., Any]) -> None:
    h = await house()
    h.submit(request(instances=2))
    job = await h.ended()
    assert (job.status, job.failure_reason) == ("Completed", None)
    assert job.started is not None
    assert job.ended is not None
    assert h.containers.starts == 2
    assert h.nothing_is_left()
    assert h.tasks == []


async def test_the_instances_share_one_subnet_and_know_each_other(house: Callable[..., Any]) -> None:
    seen: list[ContainerSpec] = []

    def look(spec: ContainerSpec, containers: FakeContainers) -> None:
        seen.append(spec)
        containers.exit(spec.id)

    h = await house(look)
    h.submit(request(instances=2, subnets=("subnet-2", "subnet-1")))
    job = await h.ended()
    assert job.subnet_id == "subnet-2"
    assert [spec.hostname for spec in seen] == ["algo-1", "algo-2"]
    assert seen[0].hosts == {each.host: each.address for each in job.instances}
    assert len({each.address for each in job.instances} | {e.agent_address for e in job.instances}) == 4
    assert seen[0].resolv_conf == "search ec2.internal\nnameserver 10.0.0.2\n"


async def test_a_full_subnet_is_passed_over_for_one_with_room(house: Callable[..., Any]) -> None:
    h = await house()
    h.submit(request(instances=6, subnets=("subnet-2", "subnet-1")))
    assert (await h.ended()).subnet_id == "subnet-1"


async def test_a_tag_chooses_among_the_subnets_of_a_job(house: Callable[..., Any]) -> None:
    h = await house()
    h.submit(request(subnets=("subnet-1", "subnet-2")), tags={SUBNET_TAG: "subnet-2"})
    assert (await h.ended()).subnet_id == "subnet-2"


async def test_too_few_addresses_fail_the_job_naming_subnet_need_and_what_is_free(
    house: Callable[..., Any],
) -> None:
    h = await house()
    h.submit(request(instances=6, subnets=("subnet-2",)))
    job = await h.ended()
    assert job.status == "Failed"
    assert "InsufficientFreeAddressesInSubnet" in job.failure_reason
    assert "needs 12 addresses" in job.failure_reason
    assert "subnet-2 (10.0.2.0/28) has 11 free" in job.failure_reason
    assert h.nothing_is_left()


async def test_a_non_zero_exit_fails_the_job_and_ends_the_others(house: Callable[..., Any]) -> None:
    def behave(spec: ContainerSpec, containers: FakeContainers) -> None:
        if spec.hostname == "algo-2":
            containers.exit(spec.id, 3)

    h = await house(behave)
    h.submit(request(instances=2))
    job = await h.ended()
    assert (job.status, job.failure_reason) == ("Failed", "AlgorithmError: , exit code: 3")
    assert h.containers.signals[0] == ("job-1-algo-1", signal.SIGKILL)
    assert [each.exit_code for each in job.instances] == [137, 3]
    assert h.nothing_is_left()


async def test_the_reason_names_the_rule_that_the_instances_lacked_to_talk(house: Callable[..., Any]) -> None:
    def behave(spec: ContainerSpec, containers: FakeContainers) -> None:
        containers.exit(spec.id, 3)

    h = await house(behave)
    with h.engine.transaction() as tx:
        group = tx.get(SecurityGroup, "sg-1")
        assert group is not None
        tx.put(replace(group, rules=tuple(rule for rule in group.rules if rule.egress)))
    h.submit(request(instances=2))
    reason = (await h.ended()).failure_reason
    assert reason.startswith(
        "AlgorithmError: , exit code: 3: algo-1 to algo-2: No ingress rule of sg-1 (eni-"
    )
    assert reason.endswith(
        "(aws ec2 authorize-security-group-ingress --group-id sg-1 "
        "--ip-permissions 'IpProtocol=tcp,FromPort=0,ToPort=65535,UserIdGroupPairs=[{GroupId=sg-1}]')"
    )


async def test_a_message_file_becomes_the_exit_message(house: Callable[..., Any]) -> None:
    def behave(spec: ContainerSpec, containers: FakeContainers) -> None:
        (spec.folder / "message" / "message").write_bytes(f"{spec.hostname} says no. ".encode())
        containers.exit(spec.id, 1)

    h = await house(behave)
    h.submit(request(instances=2))
    job = await h.ended()
    assert job.failure_reason == "AlgorithmError: See job logs for more information"
    assert job.exit_message == "algo-1 says no. algo-2 says no. "


async def test_a_message_that_is_not_utf_8_fails_the_job(house: Callable[..., Any]) -> None:
    def behave(spec: ContainerSpec, containers: FakeContainers) -> None:
        (spec.folder / "message" / "message").write_bytes(b"\xff")
        containers.exit(spec.id)

    h = await house(behave)
    h.submit(request())
    job = await h.ended()
    assert job.status == "Failed"
    assert job.failure_reason.startswith("ClientError:")


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (exits(137, oom_killed=True), "ClientError: Please use an instance type with more memory"),
        (exits(-1, lost=True), "InternalServerError: "),
    ],
)
async def test_lost_and_too_large_containers_fail_the_job(
    house: Callable[..., Any], behave: Behaviour, reason: str
) -> None:
    h = await house(behave)
    h.submit(request())
    job = await h.ended()
    assert job.status == "Failed"
    assert job.failure_reason.startswith(reason)


async def test_a_missing_image_and_a_missing_command_fail_the_job(house: Callable[..., Any]) -> None:
    h = await house()
    given = request()
    given["AppSpecification"]["ImageUri"] = "missing"
    h.submit(given)
    job = await h.ended()
    assert job.failure_reason.startswith("ClientError: API error (404): manifest for missing not found")
    with h.engine.transaction() as tx:
        tx.delete(ProcessingJob, "job")
    given = request()
    given["AppSpecification"]["ContainerEntrypoint"] = ["nothing"]
    h.submit(given, job_id="2")
    job = await h.ended()
    assert job.failure_reason == (
        "AlgorithmError: The container could not be started: no such file, exit code: 127"
    )
    assert h.nothing_is_left()


async def test_an_unreachable_s3_gives_the_known_reason_and_the_cause(house: Callable[..., Any]) -> None:
    h = await house()
    h.result = Result(
        ok=False,
        reason="ClientError: … Unable to execute request to S3",
        unreachable=True,
        request="GET s3://bkt?list-type=2&prefix=in/",
    )
    given = request()
    given["ProcessingInputs"] = [s3_input()]
    h.submit(given)
    job = await h.ended()
    assert job.failure_reason.startswith("ClientError: … Unable to execute request to S3: ")
    assert "rtb-1 of subnet-1 has no route" in job.failure_reason
    assert h.containers.starts == 0
    assert h.tasks[0].netns.endswith("-agent")
    assert h.nothing_is_left()


async def test_a_transfer_that_s3_refuses_names_whose_policy_and_the_change(
    house: Callable[..., Any],
) -> None:
    h = await house()
    said = "ClientError: … AccessDenied"
    h.result = Result(ok=False, reason=said, request="GET s3://bkt/in/a%20b")
    everywhere = GroupRule(rule_id="sgr-all", egress=True, protocol="-1", cidr="0.0.0.0/0")
    group = h.engine.world.get(SecurityGroup, "sg-1")
    h.put(
        replace(group, rules=(*group.rules, everywhere)),
        VpcEndpoint(
            endpoint_id="vpce-1",
            vpc_id="vpc-1",
            created=0.0,
            service_name="com.amazonaws.us-east-1.s3",
            route_table_ids=("rtb-1",),
            policy='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", '
            '"Action": "*", "Resource": "*"}]}',
        ),
    )
    given = request()
    given["ProcessingInputs"] = [s3_input()]
    h.submit(given)
    reason = (await h.ended()).failure_reason
    assert reason.startswith(f"{said}: ")
    assert "s3:GetObject on resource: " in reason
    assert "role jobs has no such statement (aws iam put-role-policy " in reason


async def test_outputs_are_uploaded_also_after_a_failure(house: Callable[..., Any]) -> None:
    def behave(spec: ContainerSpec, containers: FakeContainers) -> None:
        out = next(m.source for m in spec.mounts if m.target == "/opt/ml/processing/out")
        (Path(out) / "result").write_text("x")
        containers.exit(spec.id, 1)

    h = await house(behave)
    given = request()
    given["ProcessingOutputConfig"] = {"Outputs": [s3_output()]}
    h.submit(given)
    job = await h.ended()
    assert job.failure_reason == "AlgorithmError: , exit code: 1"
    assert [task.task for task in h.tasks] == ["upload"]


async def test_a_role_that_may_not_make_interfaces_fails_the_job_naming_the_action(
    house: Callable[..., Any],
) -> None:
    h = await house()
    h.put(role(actions=("ec2:Describe*",)))
    h.submit(request())
    job = await h.ended()
    assert "ec2:CreateNetworkInterface, ec2:CreateNetworkInterfacePermission" in job.failure_reason
    assert "ec2:DescribeVpcs" not in job.failure_reason


async def test_a_role_that_cannot_be_assumed_any_more_fails_the_job(house: Callable[..., Any]) -> None:
    h = await house()
    h.put(role(service="ec2.amazonaws.com"))
    h.submit(request())
    reason = (await h.ended()).failure_reason
    assert reason.startswith(
        "ClientError: SageMaker was unable to assume the role 'arn:aws:iam::123456789012:role/jobs': "
    )
    assert "(aws iam update-assume-role-policy --role-name jobs " in reason


def _ask_to_stop(h: House) -> None:
    h.put(replace(h.job, state=after(h.job.state, JobEvent.STOP)))


async def test_a_stopped_job_gets_sigint_then_sigkill(house: Callable[..., Any]) -> None:
    h = await house(runs_on)
    h.submit(request())
    await h.until(lambda: h.job.state == "Running")
    _ask_to_stop(h)
    assert h.job.status == "Stopping"
    job = await h.ended()
    assert job.status == "Stopped"
    assert [number for _, number in h.containers.signals] == [signal.SIGINT, signal.SIGKILL]
    assert h.nothing_is_left()


async def test_a_job_stopped_while_its_data_is_downloaded_never_starts_a_container(
    house: Callable[..., Any],
) -> None:
    h = await house()
    asked = asyncio.Event()

    async def hang(spec: Spec, path: Path) -> Result:
        asked.set()
        await asyncio.sleep(60)
        raise AssertionError

    h.supervisor._perform = hang
    given = request()
    given["ProcessingInputs"] = [s3_input()]
    h.submit(given)
    await asked.wait()
    _ask_to_stop(h)
    assert (await h.ended()).status == "Stopped"
    assert h.containers.starts == 0
    assert h.nothing_is_left()


async def test_a_job_that_runs_too_long_is_stopped_and_says_so(house: Callable[..., Any]) -> None:
    h = await house(runs_on, grace=0.0)
    given = request()
    given["StoppingCondition"] = {"MaxRuntimeInSeconds": 1}
    h.submit(given)
    job = await h.ended()
    assert job.status == "Stopped"
    assert "MaxRuntimeInSeconds" in job.failure_reason


async def test_logs_are_complete_before_the_job_is_terminal(house: Callable[..., Any]) -> None:
    def behave(spec: ContainerSpec, containers: FakeContainers) -> None:
        containers.lines[spec.id] = [
            LogLine(time=1_700_000_000_123_456_789, stream="stdout", text="hello"),
            LogLine(time=1_700_000_000_123_456_789, stream="stdout", text=""),
        ]
        containers.exit(spec.id)

    h = await house(behave)
    seen: list[list[str]] = []

    def watch(before: World, world: World, changes: Any) -> None:
        job = world.get(ProcessingJob, "job")
        if job is not None and job.terminal:
            streams = h.logs.streams(LOG_GROUP, "job/")
            seen.append([e.message for s in streams for e in h.logs.get(LOG_GROUP, s.name)])

    h.engine.subscribe(watch)
    h.submit(request())
    job = await h.ended()
    assert seen == [["hello"]]
    assert h.logs.streams(LOG_GROUP)[0].name == job.instances[0].log_stream
    assert h.logs.get(LOG_GROUP, job.instances[0].log_stream)[0].time == 1_700_000_000_123


async def test_the_next_supervisor_goes_on_with_a_running_container(house: Callable[..., Any]) -> None:
    h = await house(runs_on)
    h.submit(request())
    await h.until(lambda: h.job.state == "Running")
    await h.supervisor.stop()
    assert h.job.state == "Running"
    h.supervisor = h.new_supervisor()
    await h.supervisor.start()
    await asyncio.sleep(0.01)
    h.containers.exit("job-1-algo-1")
    assert (await h.ended()).status == "Completed"
    assert h.containers.starts == 1


def _die_after(h: House, commits: int) -> asyncio.Event:
    """Let that many commits happen, and none after them."""
    dead = asyncio.Event()
    left = [commits]
    save = h.engine._store.save

    def count(before: World, world: World, changes: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            dead.set()

    def save_unless_dead(changes: Any) -> None:
        if dead.is_set():
            raise RuntimeError("the daemon is dead")
        save(changes)

    h.engine.subscribe(count)
    h.engine._store.save = save_unless_dead  # type: ignore[method-assign]
    return dead


async def test_killed_after_any_commit_the_next_daemon_completes_the_job(tmp_path: Path) -> None:
    """The daemon is cut off right after its n-th commit, for every n: a new engine over the same file, a new
    supervisor over the same containers."""
    for n in range(1, 20):
        folder = tmp_path / str(n)
        folder.mkdir()
        h = House(folder, exits(0))
        h.put(role(), *documents())
        h.submit(request(instances=2))
        dead = _die_after(h, n)
        await h.supervisor.start()
        async with asyncio.timeout(5):
            while not dead.is_set() and not h.job.terminal:
                await asyncio.sleep(0)
        finished = h.job.terminal
        await h.supervisor.stop()
        h.store.close()
        h.store = Store(folder / "world.sqlite")
        h.engine = Engine(h.store)
        h.supervisor = h.new_supervisor()
        await h.supervisor.start()
        job = await h.ended()
        assert job.status == "Completed", (n, job.failure_reason)
        assert h.containers.starts == 2
        assert h.nothing_is_left()
        await h.supervisor.stop()
        h.close()
        if finished:
            break
    else:
        raise AssertionError("the job has more commits than were tried")


async def test_what_belongs_to_no_job_is_removed_at_start(house: Callable[..., Any]) -> None:
    h = await house(begin=False)
    (h.folder / "jobs" / "old-1" / "algo-1").mkdir(parents=True)
    h.containers.specs["old-1-algo-1"] = None
    assert (await h.supervisor.collect_garbage(dry_run=True)) == {
        "containers": ["old-1-algo-1"],
        "folders": ["old-1"],
    }
    await h.supervisor.start()
    assert h.nothing_is_left()


def _leaves_events(spec: ContainerSpec, _: FakeContainers) -> None:
    (spec.folder / "output" / "0" / "events").write_text("x")


def _continuous(**more: Any) -> dict[str, Any]:
    given = request()
    given["ProcessingOutputConfig"] = {"Outputs": [s3_output(S3UploadMode="Continuous")], **more}
    return given


async def test_a_continuous_output_is_uploaded_while_the_container_runs(
    house: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "_EVERY_SECONDS", 0.05)
    h = await house(_leaves_events)
    h.submit(_continuous(KmsKeyId="1-2"))
    await h.until(lambda: any(task.running for task in h.tasks))
    assert h.job.state == "Running"
    await asyncio.sleep(0.3)
    assert sum(task.running for task in h.tasks) == 1, "nothing has changed since"
    for container in list(h.containers.exits):
        h.containers.exit(container)
    job = await h.ended()
    assert job.status == "Completed"
    assert [(each.running, each.kms_key) for each in h.tasks] == [(True, "1-2"), (False, "1-2")]
    assert list(job.moved) == ["algo-1/upload"]
    assert h.nothing_is_left()


async def test_a_continuous_upload_that_fails_is_tried_again_and_fails_no_job(
    house: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "_EVERY_SECONDS", 0.05)
    h = await house(_leaves_events)
    h.result = Result(ok=False, reason="ClientError: no way")
    h.submit(_continuous())
    await h.until(lambda: len(h.tasks) > 2)
    assert h.job.status == "InProgress"
    h.result = Result(ok=True)
    for container in list(h.containers.exits):
        h.containers.exit(container)
    assert (await h.ended()).status == "Completed"


async def test_what_the_application_manages_is_neither_moved_nor_mounted_but_told(
    house: Callable[..., Any],
) -> None:
    h = await house()
    given = request()
    own, ours = s3_input("own", "/opt/ml/processing/own"), s3_input("ours", "/opt/ml/processing/ours")
    given["ProcessingInputs"] = [own | {"AppManaged": True}, ours]
    given["ProcessingOutputConfig"] = {"Outputs": [s3_output() | {"AppManaged": True}]}
    specs: list[ContainerSpec] = []
    configs: list[str] = []

    def look(spec: ContainerSpec, containers: FakeContainers) -> None:
        specs.append(spec)
        configs.append((spec.folder / "config" / "processingjobconfig.json").read_text())
        completes(spec, containers)

    h.containers.behave = look
    h.submit(given)
    assert (await h.ended()).status == "Completed"
    assert [each.name for task in h.tasks for each in task.channels] == ["ours"]
    assert [each.target for each in specs[0].mounts if "processing" in each.target] == [
        "/opt/ml/processing/ours"
    ]
    told = json.loads(configs[0])
    assert [each["AppManaged"] for each in told["ProcessingInputs"]] == [True, False]
    assert told["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"] == "s3://bkt/out"
