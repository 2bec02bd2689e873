"""A root process in a job, with everything it has, against the walls. Each test tries one way out."""

from __future__ import annotations

import json
import socket
import subprocess
import uuid
from pathlib import Path

import botocore.exceptions
import pytest
from tests.e2e.conftest import Cloister, Lab, make_lab, strike, wait_until

from cloister.demo import blocks

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


SPOOF = """
import threading, time
with open("/opt/ml/config/resourceconfig.json") as f:
    host = json.load(f)["current_host"]
PORT = 7000
peer = "algo-1"
mine = socket.gethostbyname(socket.gethostname())
other = "10.40.1.200"

if host == "algo-1":  # the receiver: everything that comes, and from where
    import atexit
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", PORT))
    t = socket.create_server(("", PORT))
    seen = []
    def accept():
        while True:
            c, source = t.accept()
            seen.append(("tcp", source[0])); c.close()
    threading.Thread(target=accept, daemon=True).start()
    s.settimeout(30)
    while True:
        body, source = s.recvfrom(2000)
        seen.append((body.decode(), source[0]))
        if body == b"end":
            break
    print("SEEN " + json.dumps(seen), flush=True)
    found.clear()
    os._exit(0)

def udp(*options):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for level, option in options:
        s.setsockopt(level, option, 1)
    return s
def bound(what, *options):
    s = udp(*options)
    s.bind((other, 0))
    return s.sendto(what.encode(), (peer_address, PORT))
def connected(*options):
    s = socket.socket()
    for level, option in options:
        s.setsockopt(level, option, 1)
    s.settimeout(1)
    s.bind((other, 0))
    s.connect((peer_address, PORT))
def pktinfo():
    info = (0).to_bytes(4, "little") + socket.inet_aton(other) + bytes(4)
    return udp().sendmsg([b"pktinfo"], [(0, 8, info)], 0, (peer_address, PORT))
def raw(kind, protocol, packet):
    return socket.socket(socket.AF_INET, kind, protocol).sendto(packet, (peer_address, PORT))
def source_route():
    s = udp()
    s.setsockopt(0, 4, bytes([131, 7, 4]) + socket.inet_aton(other) + b"\\0")
    return s.sendto(b"source route", (peer_address, PORT))

for _ in range(50):  # a name of a peer may need a moment
    try:
        peer_address = socket.gethostbyname(peer); socket.create_connection((peer_address, PORT), 1).close(); break
    except OSError:
        time.sleep(0.1)
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 8))
attempt("raw socket", lambda: raw(socket.SOCK_RAW, 255, bytes(20)))
attempt("raw UDP", lambda: raw(socket.SOCK_RAW, 17, bytes(8)))
attempt("bind another address", lambda: bound("bound"))
attempt("transparent", lambda: bound("transparent", (0, 19)))
attempt("free bind", lambda: bound("free", (0, 15)))
attempt("free and transparent, TCP", lambda: connected((0, 15), (0, 19)))
attempt("free bind, TCP", lambda: connected((0, 15)))
attempt("packet info", pktinfo)
attempt("source route", source_route)
attempt("any other of the family", lambda: socket.socket(40, socket.SOCK_STREAM, 0))
attempt("add an address", lambda: shell("ip address add 10.40.1.200/32 dev eth0"))
attempt("change a route", lambda: shell("ip route add 198.51.100.0/24 dev lo"))
attempt("take the interface down", lambda: shell("ip link set eth0 down"))
attempt("change the MAC", lambda: shell("ip link set eth0 address 02:00:00:00:00:99"))
attempt("answer ARP for another", lambda: shell("ip neighbour add proxy 10.40.1.200 dev eth0"))
attempt("a tunnel of its own", lambda: shell("ip link add t0 type dummy"))
print("MINE " + mine, flush=True)
udp().sendto(b"honest", (peer_address, PORT))
udp().sendto(b"end", (peer_address, PORT))
"""


def test_a_job_cannot_send_from_another_address_nor_change_its_own(lab: Lab) -> None:
    job = lab.run(PRELUDE + SPOOF, instances=2)
    log = lab.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    lines = dict(line.split(" ", 1) for line in log.splitlines())
    mine, seen, found = lines["MINE"], json.loads(lines["SEEN"]), json.loads(lines["FOUND"])
    found.pop("free bind")  # what the kernel let through, the receiver would have seen
    found.pop("free bind, TCP")
    assert all_refused(found), found
    assert ["honest", mine] in seen
    assert {source for _, source in seen} == {mine}, seen


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
    locked = blocks.make_bucket(on, f"locked-{uuid.uuid4().hex[:8]}")
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
import http.client
host = "{locked}.s3.{on.region}.amazonaws.com"
vpce, address = "vpce-0123456789abcdef0", "203.0.113.9"
url = f"http://{{host}}/{key}"
def by(headers, url=url):
    return lambda: urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5).read()
def plain(text):
    s = socket.create_connection((host, 80), 5)
    s.sendall(text.encode())
    answer = http.client.HTTPResponse(s); answer.begin()
    raise Exception(f"{{answer.status}} {{answer.read()}}")
attempt("nothing", by({{}}))
for name in ("x-amz-source-vpce", "X-Amz-SourceVpce", "aws-SourceVpce", "SourceVpce", "x-amzn-vpce-id", "x-cloister-endpoint"):
    attempt(name, by({{name: vpce}}))
for name in ("X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"):
    attempt(name, by({{name: address}}))
attempt("Forwarded", by({{"Forwarded": f"for={{address}};proto=https"}}))
attempt("query", by({{}}, url + f"?aws:SourceVpce={{vpce}}&x-amz-source-vpce={{vpce}}"))
attempt("another Host", by({{"Host": f"bucket.{{vpce}}.s3.{on.region}.vpce.amazonaws.com"}}))
attempt("an absolute target", lambda: plain(f"GET http://{{host}}/{key} HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n"))
attempt("the PROXY protocol", lambda: plain(f"PROXY TCP4 {{address}} 10.0.0.1 1 80\\r\\nGET /{key} HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n"))
""",
    )
    assert all_refused(found), found
    for what, word in found.items():
        code = "400" if what in ("the PROXY protocol", "an absolute target") else "403"
        assert word.startswith(f"refused: {code}"), (what, word[:200])


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


@pytest.mark.parametrize("how", ["os.symlink(target, path)", "os.mkfifo(path)", "os.mkdir(path)"])
def test_an_exit_message_that_is_no_file_is_not_followed(cloister: Cloister, lab: Lab, how: str) -> None:
    target = cloister.state / "root.json"
    script = f"import os\ntarget, path = {str(target)!r}, '/opt/ml/output/message'\n{how}"
    job = lab.run(script)
    assert job["ProcessingJobStatus"] == "Completed", job.get("FailureReason")
    assert "ExitMessage" not in job


def test_a_job_cannot_reach_a_job_of_another_group_in_its_own_subnet(lab: Lab) -> None:
    on = lab.on
    lonely = blocks.make_group(on, lab.vpc, f"lonely-{uuid.uuid4().hex[:6]}", allow_itself=False)
    server = f"server-{uuid.uuid4().hex[:8]}"
    lab.run(
        "import socket, time\ns = socket.create_server(('', 7000))\nprint('up', flush=True)\ntime.sleep(60)",
        name=server,
        group=lonely,
        wait=False,
    )
    try:
        wait_until("the server is up", lambda: "up" in _log(on, server))
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
        blocks.wait_for(on, server)


SERVER = """
import json, socket, time
listening = socket.create_server(("", 7000))
with open("/opt/ml/config/resourceconfig.json") as f:
    config = json.load(f)
for host in config["hosts"]:
    for _ in range(100):
        try:
            socket.create_connection((host, 7000), 1).close()
            print("reached", host, flush=True)
            break
        except OSError:
            time.sleep(0.1)
time.sleep(60)
"""


def test_two_vpcs_with_one_cidr_do_not_see_each_other(cloister: Cloister) -> None:
    on = cloister.stage()
    try:
        first, second = make_lab(on, "10.41.0.0/16"), make_lab(on, "10.41.0.0/16")
        server = f"server-{uuid.uuid4().hex[:8]}"
        first.run(SERVER, name=server, wait=False, instances=3)
        # In their own VPC the three servers reach one another.
        wait_until("the servers are up", lambda: _log(on, server).count("reached") == 9)
        interfaces = on.ec2.describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [first.vpc]}])
        addresses = [each["PrivateIpAddress"] for each in interfaces["NetworkInterfaces"]]
        found = tried(
            second,
            f"""
mine = socket.gethostbyname(socket.gethostname())
attempt("mine", lambda: mine)
for address in {addresses!r}:
    if address != mine:
        attempt(address, lambda: socket.create_connection((address, 7000), timeout=1))
""",
        )
        mine = found.pop("mine").removeprefix("done: ").strip("'")
        assert set(found) == set(addresses) - {mine}
        assert len(found) >= 2
        assert all_refused(found), (addresses, found)
    finally:
        strike(on)


def test_a_job_cannot_reach_this_host_nor_the_daemon(cloister: Cloister, lab: Lab) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener, socket.socket(socket.AF_UNIX) as hidden:
        name = f"\0cloister-test-{uuid.uuid4().hex}"
        hidden.bind(name)
        hidden.listen()
        port = listener.getsockname()[1]
        found = tried(
            lab,
            f"""
import concurrent.futures, resource, select, time
targets = [(a, p) for a in {["127.0.0.1", *addresses_of_this_host()]!r} for p in ({port}, {cloister.port})]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    for target in targets:
        pool.submit(attempt, "%s %d" % target, lambda t=target: socket.create_connection(t, timeout=1))

def open_ports(targets):
    found, room = [], resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
    for start in range(0, len(targets), room):
        poll, waiting = select.poll(), {{}}
        for target in targets[start : start + room]:
            s = socket.socket(); s.setblocking(False)
            s.connect_ex(target)
            waiting[s.fileno()] = (s, target)
            poll.register(s, select.POLLOUT)
        ends = time.monotonic() + 2
        while waiting and time.monotonic() < ends:
            for fd, _ in poll.poll(200):
                poll.unregister(fd)
                s, target = waiting.pop(fd)
                if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    found.append(target)
                s.close()
        for s, _ in waiting.values():
            s.close()
    return found
gateway, resolver = "10.40.1.1", "10.40.0.2"
ours = [8333, 8888, 9333, 18080, 18888, 19333, {port}, {cloister.port}]
others = (resolver, "169.254.169.253", "169.254.169.254", "169.254.170.2")
asked = [(gateway, p) for p in (*range(1, 10001), *ours)] + [(a, p) for a in others for p in (*range(1, 1001), *ours)]
for address, port in open_ports(asked):
    found[f"open {{address}} {{port}}"] = "open"

def unix(path):
    s = socket.socket(socket.AF_UNIX); s.connect(path)
attempt("an abstract socket of the host", lambda: unix({name!r}))
attempt("the daemon's control socket", lambda: unix({str(cloister.state / "control.sock")!r}))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("netlink of the host's firewall", lambda: shell("/usr/sbin/nft list ruleset | grep ."))
def six(address):
    return socket.create_connection((address, {cloister.port}), timeout=1)
attempt("IPv6", lambda: six("::1"))
attempt("IPv6 of the link", lambda: six("fe80::1%eth0"))
attempt("IPv6 mapped", lambda: six("::ffff:127.0.0.1"))
""",
        )
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    opened = {what for what in found if found[what] == "open"}
    # The resolver answers DNS over TCP, the credentials endpoint is the job's own.
    assert "open 169.254.170.2 80" in opened
    assert opened <= {f"open {a} 53" for a in ("10.40.0.2", "169.254.169.253")} | {"open 169.254.170.2 80"}
    assert all_refused({what: word for what, word in found.items() if what not in opened}), found


def addresses_of_this_host() -> list[str]:
    shown = subprocess.run(["ip", "-j", "address"], capture_output=True, check=True, timeout=10).stdout
    found = [a["local"] for link in json.loads(shown) for a in link["addr_info"] if a["family"] == "inet"]
    return [address for address in found if not address.startswith("127.")]


def _log(on: blocks.Stage, name: str) -> str:
    try:
        return "\n".join(blocks.job_log(on, name))
    except botocore.exceptions.ClientError:
        return ""
