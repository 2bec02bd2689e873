"""A root process in a job, with everything it has, against the walls. Each test tries one way out."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import botocore.exceptions
import pytest
from tests.e2e.conftest import Cloister, Lab, make_lab, strike

from cloister.demo import story

pytestmark = pytest.mark.e2e

#: helpers every hostile script starts with: `attempt` records what became of a try
PRELUDE = """
import json, os, socket, subprocess, sys, urllib.request, urllib.error
found = {}
def attempt(what, action):
    try:
        found[what] = "done: %r" % (action(),)
    except urllib.error.HTTPError as error:
        found[what] = "refused: %d %s" % (error.code, error.read()[:300].decode(errors="replace"))
    except BaseException as error:
        found[what] = "refused: %s" % error
def shell(command):
    return subprocess.run(command, shell=True, check=True, capture_output=True, timeout=10).stdout.decode()
import atexit
atexit.register(lambda: print("FOUND " + json.dumps(found), flush=True))
"""


def tried(lab: Lab, script: str, **how: object) -> dict[str, str]:
    """What became of each attempt of this script, run as a job."""
    job = lab.run(PRELUDE + script, **how)
    log = lab.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    (line,) = [line for line in log.splitlines() if line.startswith("FOUND ")]
    found: dict[str, str] = json.loads(line.removeprefix("FOUND "))
    return found


def all_refused(found: dict[str, str]) -> bool:
    return all(word.startswith("refused") for word in found.values()) and bool(found)


def test_a_job_cannot_send_from_another_address_nor_change_its_own(lab: Lab) -> None:
    found = tried(
        lab,
        """
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 8))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))
def bind():
    s = socket.socket(); s.bind(("10.40.1.200", 0))
attempt("bind another address", bind)
attempt("free bind", lambda: socket.socket().setsockopt(0, 15, 1) or socket.socket().setsockopt(0, 19, 1))
attempt("add an address", lambda: shell("ip address add 10.40.1.200/32 dev eth0"))
attempt("change a route", lambda: shell("ip route add 198.51.100.0/24 dev lo"))
attempt("take the interface down", lambda: shell("ip link set eth0 down"))
attempt("change the MAC", lambda: shell("ip link set eth0 address 02:00:00:00:00:99"))
""",
    )
    found.pop("free bind")  # binding freely may be allowed; sending so is the router's to refuse
    assert all_refused(found), found


def test_a_job_cannot_read_or_alter_a_rule(lab: Lab) -> None:
    found = tried(
        lab,
        """
attempt("flush rules", lambda: shell("/usr/sbin/nft flush ruleset"))
attempt("list rules", lambda: shell("/usr/sbin/nft list table ip cloister"))
def sysctl():
    with open("/proc/sys/net/ipv4/ip_forward", "w") as f: f.write("1")
attempt("write a sysctl", sysctl)
attempt("mount", lambda: shell("mount -t tmpfs none /mnt"))
attempt("remount /proc/sys", lambda: shell("mount -o remount,rw /proc/sys"))
attempt("a new network namespace joined to the old", lambda: shell("nsenter --net=/proc/1/ns/net ip link set eth0 down"))
attempt("load a module", lambda: shell("modprobe dummy"))
def kexec():
    with open("/proc/sysrq-trigger", "w") as f: f.write("h")
attempt("sysrq", kexec)
""",
    )
    assert all_refused(found), found


def test_a_job_sees_no_process_file_or_device_of_the_host(cloister: Cloister, lab: Lab) -> None:
    found = tried(
        lab,
        f"""
attempt("the state folder", lambda: os.listdir({str(cloister.state)!r}))
attempt("the root key", lambda: open({str(cloister.state / "root.json")!r}).read())
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("disks", lambda: [d for d in os.listdir("/dev") if d.startswith(("sd", "vd", "nvme", "kmsg", "mem"))] or 1/0)
attempt("make a device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)))
attempt("other processes", lambda: [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()] or 1/0)
attempt("write to /usr", lambda: open("/usr/bin/evil", "w"))
attempt("host's processes' memory", lambda: open("/proc/kcore", "rb").read(10))
""",
    )
    assert all_refused(found), found


def test_a_job_cannot_have_another_jobs_credentials(lab: Lab) -> None:
    own = """
def own():
    url = "http://169.254.170.2" + os.environ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
    return json.load(urllib.request.urlopen(url, timeout=3))["AccessKeyId"]
attempt("own", own)
attempt("uri", lambda: os.environ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"])
"""
    first = tried(lab, own)
    assert first["own"].startswith("done: 'ASIA")
    uri = first["uri"].removeprefix("done: ").strip("'")
    second = tried(
        lab,
        own
        + f"""
attempt("another's", lambda: urllib.request.urlopen("http://169.254.170.2{uri}", timeout=3).read())
attempt("guess", lambda: urllib.request.urlopen("http://169.254.170.2/", timeout=3).read())
attempt("up and over", lambda: urllib.request.urlopen("http://169.254.170.2/../..{uri}", timeout=3).read())
attempt("instance metadata", lambda: urllib.request.urlopen("http://169.254.169.254/latest/", timeout=2).read())
""",
    )
    assert second.pop("own").startswith("done: 'ASIA")
    assert second.pop("uri") != first["uri"]
    assert all_refused(second), second


def test_a_job_cannot_forge_the_endpoint_it_came_by(lab: Lab) -> None:
    on = lab.on
    key = "locked.txt"
    locked = story.make_bucket(on, f"locked-{uuid.uuid4().hex[:8]}")
    on.s3.put_object(Bucket=locked, Key=key, Body=b"secret")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{locked}/*",
                "Condition": {"StringEquals": {"aws:SourceVpce": "vpce-0123456789abcdef0"}},
            },
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{locked}/*",
                "Condition": {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}},
            },
        ],
    }
    on.s3.put_bucket_policy(Bucket=locked, Policy=json.dumps(policy))
    found = tried(
        lab,
        f"""
url = "http://{locked}.s3.{on.region}.amazonaws.com/{key}"
forged = {{"none": {{}}, "vpce": {{"x-amz-source-vpce": "vpce-0123456789abcdef0", "aws:SourceVpce": "vpce-0123456789abcdef0"}},
  "forwarded": {{"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"}}}}
for what, headers in forged.items():
    attempt(what, lambda: urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5).read())
""",
    )
    assert all_refused(found), found
    assert all("AccessDenied" in word for word in found.values()), found


def test_nothing_a_job_starts_survives_it(lab: Lab) -> None:
    marker = f"survivor-{uuid.uuid4().hex}"
    job = lab.run(
        f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sh", ["{marker}", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"])
    os._exit(0)
time.sleep(0.3)
"""
    )
    assert job["ProcessingJobStatus"] == "Completed"
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "cmdline").read_bytes():
                alive.append(process.name)
        except OSError:
            continue
    assert alive == []


def test_symlinks_and_special_files_in_an_output_are_not_uploaded_and_not_followed(lab: Lab) -> None:
    name = f"links-{uuid.uuid4().hex[:8]}"
    job = lab.run(
        """
import os
out = "/opt/ml/processing/output"
os.makedirs(out + "/real/deep", exist_ok=True)
open(out + "/real/deep/file.txt", "w").write("kept")
os.symlink("/etc/passwd", out + "/passwd")
os.symlink("/", out + "/root")
os.symlink("../../../../../../etc", out + "/real/up")
os.mkfifo(out + "/pipe")
""",
        name=name,
        output=f"s3://{lab.bucket}/out/{name}",
    )
    assert job["ProcessingJobStatus"] == "Completed", job.get("FailureReason")
    listed = lab.on.s3.list_objects_v2(Bucket=lab.bucket, Prefix=f"out/{name}")
    assert [item["Key"] for item in listed["Contents"]] == [f"out/{name}/real/deep/file.txt"]


def test_a_job_cannot_reach_a_job_of_another_group_in_its_own_subnet(lab: Lab) -> None:
    on = lab.on
    lonely = story.make_group(on, lab.vpc, f"lonely-{uuid.uuid4().hex[:6]}", allow_itself=False)
    server = f"server-{uuid.uuid4().hex[:8]}"
    lab.run(
        "import socket, time\ns = socket.create_server(('', 7000))\nprint('up', flush=True)\ntime.sleep(60)",
        name=server,
        group=lonely,
        wait=False,
    )
    try:
        story_log = ""
        while "up" not in story_log:
            try:
                story_log = "\n".join(story.job_log(on, server))
            except botocore.exceptions.ClientError:
                story_log = ""
        interfaces = on.ec2.describe_network_interfaces(Filters=[{"Name": "group-id", "Values": [lonely]}])
        addresses = [a["PrivateIpAddress"] for a in interfaces["NetworkInterfaces"][0]["PrivateIpAddresses"]]
        found = tried(
            lab,
            f"""
for address in {addresses!r}:
    attempt(address, lambda: socket.create_connection((address, 7000), timeout=1.5))
""",
        )
        assert all_refused(found), found
    finally:
        on.sagemaker.stop_processing_job(ProcessingJobName=server)
        story.wait_for(on, server)


def test_two_vpcs_with_one_cidr_do_not_see_each_other(cloister: Cloister) -> None:
    on = cloister.stage()
    try:
        first, second = make_lab(on, "10.41.0.0/16"), make_lab(on, "10.41.0.0/16")
        server = f"server-{uuid.uuid4().hex[:8]}"
        first.run(
            "import socket, time\ns = socket.create_server(('', 7000))\nprint('up', flush=True)\ntime.sleep(60)",
            name=server,
            wait=False,
        )
        interfaces = on.ec2.describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [first.vpc]}])
        address = interfaces["NetworkInterfaces"][0]["PrivateIpAddress"]
        # Ours gets other addresses of the same range first, so that the server's is not our own.
        found = tried(
            second,
            """
mine = socket.gethostbyname(socket.gethostname())
for last in range(4, 12):
    address = "10.41.1.%d" % last
    if address != mine:
        attempt(address, lambda: socket.create_connection((address, 7000), timeout=0.4))
""",
        )
        assert all_refused(found), (address, found)
    finally:
        strike(on)
