from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.jobs import bundle
from cloister.jobs.bundle import Bind, Bundle, IdRange, Limits, User

IMAGE = (("/entry",), ("cmd", "arg"))


@pytest.mark.parametrize(
    ("entrypoint", "arguments", "argv"),
    [
        ((), (), ("/entry", "cmd", "arg")),
        (("python3", "x.py"), (), ("python3", "x.py")),
        ((), ("--a", "1"), ("/entry", "--a", "1")),
        (("python3",), ("x.py",), ("python3", "x.py")),
    ],
)
def test_entrypoint_drops_the_images_command_and_arguments_replace_it(
    entrypoint: tuple[str, ...], arguments: tuple[str, ...], argv: tuple[str, ...]
) -> None:
    assert bundle.argv(*IMAGE, entrypoint, arguments) == argv


def _bundle(**more: object) -> Bundle:
    values: dict[str, object] = {
        "rootfs": "/mnt/root",
        "argv": ("/bin/true",),
        "env": {"A": "b=c"},
        "cwd": "/",
        "user": User(),
        "hostname": "algo-1",
        "netns": "/mnt/net",
        "uid_map": (IdRange(container=0, host=100_000, size=65_536),),
        "gid_map": (IdRange(container=0, host=100_000, size=65_536),),
    }
    return Bundle(**{**values, **more})  # type: ignore[arg-type]


def test_a_container_has_every_namespace_of_its_own_and_joins_only_its_network() -> None:
    namespaces = bundle.config(_bundle())["linux"]["namespaces"]
    assert {n["type"]: n.get("path") for n in namespaces} == {
        "pid": None, "ipc": None, "uts": None, "mount": None, "cgroup": None, "user": None,
        "network": "/mnt/net",
    }  # fmt: skip


def test_a_container_gains_no_privileges_and_no_dangerous_capability() -> None:
    process = bundle.config(_bundle())["process"]
    assert process["noNewPrivileges"] is True
    dangerous = {"CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD"}
    assert not dangerous & set(process["capabilities"]["bounding"])
    other = bundle.config(_bundle(user=User(uid=7)))["process"]
    assert other["capabilities"]["effective"] == other["capabilities"]["permitted"] == []


def test_limits_are_written_only_where_there_is_a_cgroup() -> None:
    limits = Limits(cpus=1.5, memory=1 << 30, pids=100)
    assert set(bundle.config(_bundle(limits=limits))["linux"]["resources"]) == {"devices"}
    resources = bundle.config(_bundle(limits=limits, cgroup="/cloister-1/x"))["linux"]["resources"]
    assert resources["cpu"] == {"period": 100_000, "quota": 150_000}
    assert resources["memory"] == {"limit": 1 << 30}
    assert resources["pids"] == {"limit": 100}


def test_a_folder_is_mounted_before_what_lies_in_it() -> None:
    binds = (Bind(source="/b", target="/opt/ml/input"), Bind(source="/a", target="/opt", read_only=True))
    mounts = bundle.config(_bundle(binds=binds))["mounts"]
    targets = [m["destination"] for m in mounts]
    assert targets.index("/opt") < targets.index("/opt/ml/input")
    options = {m["destination"]: m["options"] for m in mounts}
    assert "ro" in options["/opt"]
    assert {"rw", "nosuid", "nodev"} <= set(options["/opt/ml/input"])


@given(
    job=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.text(max_size=9)),
    image=st.lists(st.text(max_size=9), max_size=5),
)
def test_the_jobs_variables_win_and_the_configuration_is_json(job: dict[str, str], image: list[str]) -> None:
    env = bundle.environment(image, job, User(), "algo-1")
    assert {name: env[name] for name in job} == job
    config = json.loads(json.dumps(bundle.config(_bundle(env=env))))
    assert set(config["process"]["env"]) == {f"{k}={v}" for k, v in env.items()}


PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "syscalls": [
        {"names": ["read", "mount", "clone", "socket", "fcntl"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {"names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
        {"names": ["stime"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_TIME"]}},
        {"names": ["stime"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_TIME"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
    ],
}  # fmt: skip


def _actions(filter_: dict[str, object], name: str) -> list[str]:
    rules = filter_["syscalls"]
    assert isinstance(rules, list)
    return [rule["action"] for rule in rules if name in rule["names"]]


def test_a_profile_is_read_for_this_machine_and_these_capabilities() -> None:
    filter_ = bundle.seccomp(PROFILE, "x86_64")
    assert filter_["architectures"] == ["SCMP_ARCH_X86_64"]
    assert filter_["defaultErrnoRet"] == 38
    allow, refuse = ["SCMP_ACT_ALLOW"], ["SCMP_ACT_ERRNO"]
    expected = {
        "read": allow, "arch_prctl": allow, "sync_file_range2": [], "chroot": allow, "stime": refuse,
        "ptrace": allow,
    }  # fmt: skip
    assert {name: _actions(filter_, name) for name in expected} == expected


def test_no_profile_can_allow_mounts_namespaces_leases_or_sockets_beyond_the_network() -> None:
    for profile in (PROFILE, None):
        filter_ = bundle.seccomp(profile, "x86_64")
        for name in bundle.REFUSED:
            assert _actions(filter_, name) == ["SCMP_ACT_ERRNO"], name
        clones = [rule for rule in filter_["syscalls"] if "clone" in rule["names"]]
        assert clones
        assert all(rule["args"] for rule in clones)
        families = [rule for rule in filter_["syscalls"] if "socket" in rule["names"]]
        assert {"index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_GT"} in families[0]["args"]
        assert all(rule["args"] for rule in filter_["syscalls"] if "fcntl" in rule["names"])


def test_a_machine_or_profile_that_cannot_be_filtered_is_refused() -> None:
    with pytest.raises(ValueError, match="vax"):
        bundle.seccomp(PROFILE, "vax")
    with pytest.raises(ValueError, match="allows by default"):
        bundle.seccomp({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}, "x86_64")
