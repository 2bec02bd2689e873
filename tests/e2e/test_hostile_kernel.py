"""A root process in a job against the kernel that it shares: by system calls, files of the kernel, and by taking
all there is of something. What must stay is the host, the daemon, and the jobs beside it."""

from __future__ import annotations

import os
import time
import uuid

import pytest
from tests.e2e.conftest import Lab, wait_until
from tests.e2e.test_hostile import all_refused, tried

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

CALLS = """
import ctypes, errno, fcntl, platform
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": dict(bpf=321, perf_event_open=298, userfaultfd=323, io_uring_setup=425, keyctl=250, add_key=248,
        fsopen=430, open_tree=428, move_mount=429, mount_setattr=442, pidfd_getfd=438, process_vm_readv=310,
        kexec_load=246, init_module=175, finit_module=313, swapon=167, reboot=169, settimeofday=164,
        clock_settime=227, acct=163, iopl=172, ioperm=173, quotactl=179, syslog=103, lookup_dcookie=212,
        name_to_handle_at=303, open_by_handle_at=304, pivot_root=155, sethostname=170, vhangup=153,
        unshare=272, setns=308, clone3=435, nfsservctl=180, mbind=237, move_pages=279, ptrace=101),
}
def call(name, *arguments):
    number = NUMBERS[platform.machine()][name]
    ctypes.set_errno(0)
    if libc.syscall(number, *arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "went through"
u = lambda n: ctypes.c_ulong(n)
text = lambda s: ctypes.c_char_p(s)
attributes = ctypes.create_string_buffer(128)
attempt("bpf", lambda: call("bpf", 0, ctypes.create_string_buffer(b"\\x01\\0\\0\\0\\x04\\0\\0\\0\\x04\\0\\0\\0\\x01\\0\\0\\0", 128), 72))
attempt("perf", lambda: call("perf_event_open", attributes, 0, -1, -1, 0))
attempt("userfaultfd", lambda: call("userfaultfd", 0))
attempt("keyring", lambda: call("add_key", text(b"user"), text(b"a"), text(b"b"), u(1), ctypes.c_int(-3)))
attempt("keyctl", lambda: call("keyctl", 0, ctypes.c_int(-3), 1))
attempt("fsopen", lambda: call("fsopen", text(b"tmpfs"), 0))
attempt("clone a mount", lambda: call("open_tree", -100, text(b"/"), 0x1 | 0x8000))
attempt("kexec", lambda: call("kexec_load", 0, 0, 0, 0))
attempt("a module", lambda: call("init_module", 0, 0, text(b"")))
attempt("swap", lambda: call("swapon", text(b"/tmp/x"), 0))
attempt("the clock", lambda: call("clock_settime", 0, (ctypes.c_long * 2)(1, 1)))
attempt("accounting", lambda: call("acct", text(b"/tmp/x")))
attempt("ports", lambda: call("iopl", 3))
attempt("the kernel's log", lambda: call("syslog", 3, attributes, 100))
handle = (ctypes.c_int * 40)(8, 1)
attempt("open by handle", lambda: call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, os.O_RDONLY))
attempt("another root", lambda: call("pivot_root", text(b"/"), text(b"/")))
attempt("a namespace of users", lambda: call("unshare", 0x10000000))
attempt("a namespace of mounts", lambda: call("unshare", 0x00020000))
attempt("a namespace of users by clone", lambda: libc.clone and shell("unshare -Ur true"))
attempt("its own network again", lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0))
def written(path, words):
    return lambda: os.write(os.open(path, os.O_WRONLY), words.encode())  # what is the kernel's is there already
for path, words in (
    ("/proc/sys/kernel/core_pattern", "|/bin/sh"), ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/kernel/modprobe", "/tmp/x"), ("/proc/sys/fs/file-max", "1"), ("/proc/self/oom_score_adj", "-1000"),
    ("/proc/sysrq-trigger", "b"), ("/sys/kernel/uevent_helper", "/tmp/x"), ("/sys/power/state", "mem"),
    ("/sys/fs/cgroup/cgroup.procs", "0"), ("/sys/fs/cgroup/pids.max", "max"), ("/sys/fs/cgroup/memory.max", "max"),
    ("/sys/fs/cgroup/release_agent", "/tmp/x"), ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1"),
    ("/sys/fs/cgroup/pids/pids.max", "max"), ("/sys/fs/cgroup/devices/devices.allow", "a"),
    ("/sys/fs/cgroup/memory/cgroup.procs", "0"), ("/sys/fs/cgroup/pids/cgroup.procs", "0"), ("/dev/kmsg", "x"),
):
    attempt("write " + path, written(path, words))
def real_time():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
attempt("real time", real_time)
attempt("a nicer process", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
for name, family, kind, protocol in (
    ("packets", 17, 3, 768), ("vsock", 40, 1, 0), ("Bluetooth", 31, 3, 1), ("keys of IPsec", 15, 3, 2),
    ("ESP by netlink", 16, 3, 6), ("audit", 16, 3, 9), ("the firewall", 16, 3, 12), ("crypto", 38, 5, 0),
):
    def ask(family=family, kind=kind, protocol=protocol, name=name):
        s = socket.socket(family, kind, protocol)
        if family == 16 and protocol != 9:
            kind = {6: 0x12, 12: (10 << 8) | 1}[protocol]
            s.sendto((20).to_bytes(4, "little") + kind.to_bytes(2, "little") + (0x301).to_bytes(2, "little") + bytes(12), (0, 0))
            answer = s.recv(8192)
            code = int.from_bytes(answer[16:20], "little", signed=True) if int.from_bytes(answer[4:6], "little") == 2 else 0
            if code < 0:
                raise OSError(-code, os.strerror(-code))
            if int.from_bytes(answer[4:6], "little") == 3:
                raise OSError(0, "nothing to see")
        if family == 16 and protocol == 9:
            s.sendto((16).to_bytes(4, "little") + (1000).to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(8), (0, 0))
            answer = s.recv(8192)
            code = int.from_bytes(answer[16:20], "little", signed=True)
            if int.from_bytes(answer[4:6], "little") == 2 and code < 0:
                raise OSError(-code, os.strerror(-code))
        return "open"
    attempt("socket: " + name, ask)
"""


def test_a_job_gets_nothing_of_the_kernel_that_is_not_its_own(lab: Lab) -> None:
    found = tried(lab, CALLS)
    assert all_refused(found), {k: v for k, v in found.items() if not v.startswith("refused")}


BOMBS = {
    "processes": """
import os, time
print("begins", flush=True)
while True:
    try:
        if os.fork() == 0:
            time.sleep(120); os._exit(0)
    except OSError as error:
        print("stopped", error, flush=True); time.sleep(1); break
time.sleep(20)
""",
    "files": """
import os, resource, socket, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print("begins", flush=True)
held = []
try:
    for _ in range(200_000):
        held.append(os.pipe())
except OSError as error:
    print("stopped", error, flush=True)
time.sleep(20)
""",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are the host's: only root may limit here")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_job_that_takes_all_it_can_get_does_not_stop_the_one_beside_it(lab: Lab, kind: str) -> None:
    name = f"bomb-{uuid.uuid4().hex[:8]}"
    lab.run(BOMBS[kind], name=name, wait=False)
    wait_until("it begins", lambda: "begins" in lab.log({"ProcessingJobName": name}))
    time.sleep(1)
    beside = lab.run("print('done')")
    assert beside["ProcessingJobStatus"] == "Completed", beside.get("FailureReason")
    lab.on.sagemaker.stop_processing_job(ProcessingJobName=name)
    blocks.wait_for(lab.on, name)
