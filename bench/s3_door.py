"""GET and PUT through the S3 door from a job's network namespace, against SeaweedFS asked by the same client.

The client is curl for 1 GiB (its own clock, the body to /dev/null) and wrk for 4 KiB (4 connections that stay
open): both cost little, so that on few cores the door shows and not the client. The peer runs them in the
backend's namespace: over plain HTTP, and for our HTTPS also over SeaweedFS's own. "signed": the payload's
SHA-256 is in the signature (the peer gets the same header, and checks it as well).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import file_digest, sha256
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from bench import cloister_up, measure
from bench.cloister_up import Network, Up
from cloister.s3.backend import NAMESPACE
from cloister.wire import sigv4
from cloister.wire.http import HttpRequest

LARGE, SMALL = 1 << 30, 4096
SECONDS = 2.0
CONNECTIONS = 4
IMAGE = "cloister/host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A place to ask from, and whom: `url` without a path; `address` is where its name is."""

    up: Up
    netns: Path
    url: str
    address: str
    access_key: str
    secret: str
    bucket: str

    def command(self, *argv: str) -> list[str]:
        inside = ["nsenter", f"--net={self.netns}", *argv]
        return [sys.executable, "-m", "cloister.kernel.holder", "--enter", str(self.up.state), "--", *inside]

    def headers(self, method: str, key: str, payload: str = sigv4.UNSIGNED_PAYLOAD) -> list[str]:
        request = HttpRequest(
            method=method,
            path=f"/{self.bucket}/{key}",
            query="",
            headers=(("Host", urlsplit(self.url).netloc),),
        )
        signed = sigv4.sign(
            request, access_key=self.access_key, secret=self.secret, region=self.up.running.region,
            service="s3", now=time.time(), payload_hash=payload,
        )  # fmt: skip
        return [word for name, value in signed for word in ("-H", f"{name}: {value}")]

    def curl(self, key: str, *options: str, payload: str = sigv4.UNSIGNED_PAYLOAD) -> float:
        """MiB/s of one transfer."""
        method = "PUT" if "-T" in options else "GET"
        command = self.command(
            "curl", "-sSk", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{time_total}",
            "--connect-to", f"::{self.address}:", "-H", "Expect:", *options,
            *self.headers(method, key, payload), f"{self.url}/{self.bucket}/{key}",
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        status, seconds = done.stdout.split()
        if status != "200":
            raise RuntimeError(f"{method} {self.url}: {status}")
        return LARGE / float(seconds) / (1 << 20)

    def wrk(self, key: str, script: Path | None = None) -> float:
        """Requests/s that succeed."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        command = self.command(
            "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS:.0f}s", *(["-s", str(script)] if script else []),
            *self.headers("PUT" if script else "GET", key),
            f"{parts.scheme}://{self.address}{port}/{self.bucket}/{key}",
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
            raise RuntimeError(f"wrk {self.url}: {done.stdout}")
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        assert found is not None, done.stdout
        return float(found[1])


def _namespace(up: Up, net: Network) -> Path:
    """The network namespace of a job that only sleeps."""
    name = f"s3-{up.stage.mark}"
    cloister_up.create_job(up, net, name, image=IMAGE, entrypoint=["sleep", "600"])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        job = up.stage.sagemaker.describe_processing_job(ProcessingJobName=name)
        if job["ProcessingJobStatus"] != "InProgress":
            raise RuntimeError(f"the job ended: {job.get('FailureReason')}")
        found = up.stage.ec2.describe_network_interfaces(
            Filters=[{"Name": "subnet-id", "Values": [net.subnet]}]
        )["NetworkInterfaces"]
        if found:  # the namespace is pinned where only the daemon's own mount namespace sees it
            netns = up.state / "run" / "netns" / str(found[0]["NetworkInterfaceId"])
            inside = ["--enter", str(up.state), "--", "nsenter", f"--net={netns}", "true"]
            command = [sys.executable, "-m", "cloister.kernel.holder", *inside]
            if subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0:
                return netns
        time.sleep(0.1)
    raise RuntimeError("the job has no interface after 30 s")


def _sides(up: Up, net: Network) -> dict[str, Side]:
    netns = up.state / "run" / "netns"
    job = _namespace(up, net)
    lists = up.stage.ec2.describe_prefix_lists()["PrefixLists"]
    cidr = next(each for each in lists if each["PrefixListName"].endswith(".s3"))["Cidrs"][0]
    root = {
        "access_key": up.environment["AWS_ACCESS_KEY_ID"],
        "secret": up.environment["AWS_SECRET_ACCESS_KEY"],
    }
    keys = json.loads((up.state / "objects" / "s3.json").read_text())["identities"][0]["credentials"][0]
    sides = {
        scheme: Side(
            up=up,
            netns=job,
            url=f"{scheme}://s3.{up.running.region}.amazonaws.com",
            address=str(ip_network(cidr)[1]),
            bucket=net.bucket,
            **root,
        )
        for scheme in ("http", "https")
    }
    # wrk resolves the URL's host and sends our Host header, so `address` serves both clients
    sides["peer"] = Side(
        up=up, netns=netns / NAMESPACE, url="http://127.0.0.1:8333", address="127.0.0.1",
        access_key=keys["accessKey"], secret=keys["secretKey"], bucket=net.bucket,
    )  # fmt: skip
    return sides


@contextlib.contextmanager
def _over_tls(up: Up, peer: Side) -> Iterator[Side]:
    """SeaweedFS asked over its own HTTPS: one more S3 gateway in front of the same store."""
    folder = up.state / "bench-tls"
    folder.mkdir()
    shutil.copy(up.state / "objects" / "s3.json", folder)
    certificate = [
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    files = ["-subj", "/CN=store", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", "req", *certificate, *files], check=True, capture_output=True, timeout=30)
    weed = shutil.which("weed", path=os.path.join(sys.prefix, "bin")) or "weed"
    gateway = [
        *(weed, "s3", "-filer=127.0.0.1:8339.8340", "-ip.bind=127.0.0.1", "-port=8350", "-port.grpc=8351"),
        *("-port.https=8352", f"-cert.file={folder}/cert.pem", f"-key.file={folder}/key.pem", "-iam=false"),
        *(f"-config={folder}/s3.json", "-port.iceberg=0", "-port.lance=0"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(peer.command(*gateway), stdout=log, stderr=log)
    try:
        side = replace(peer, url="https://127.0.0.1:8352")
        deadline = time.monotonic() + 30
        while subprocess.run(
            side.command("curl", "-sk", "-o", "/dev/null", side.url), check=False, timeout=30
        ).returncode:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"no S3 gateway with TLS: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield side
    finally:
        process.kill()
        process.wait()


def run(rounds: int) -> list[measure.Row]:
    for program in ("curl", "wrk"):
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not installed (Debian package {program})")
    rows: list[measure.Row] = []
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(cloister_up.cloister())
        net = cloister_up.network(up)
        sides = _sides(up, net)
        large, small, script = up.state / "large", up.state / "small", up.state / "put.lua"
        with large.open("wb") as file:
            file.truncate(LARGE)
        small.write_bytes(b"x" * SMALL)
        script.write_text(f'wrk.method = "PUT"\nwrk.body = string.rep("x", {SMALL})\n')
        with large.open("rb") as body:
            digest = file_digest(body, sha256).hexdigest()
        peer = sides["peer"]
        peer.curl("large", "-T", str(large))

        over_tls = stack.enter_context(_over_tls(up, peer))

        def compare(what: str, unit: str, act: Callable[[Side], float], limits: dict[str, float]) -> None:
            pairs = [("http", peer), ("https", peer), ("https", over_tls)]
            for scheme, other in pairs:
                side, limit = sides[scheme], limits[scheme]
                act(side), act(other)
                samples = measure.interleave(partial(act, side), partial(act, other), rounds)
                against = ", over HTTPS both" if other is over_tls else ""
                label = f"s3 door: {what}, {scheme.upper()}{against}"
                rows.append(measure.row(label, unit, *samples, at_least=limit))
                print(measure.table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)

        bulk = {"http": 0.9, "https": 0.7}
        compare("GET 1 GiB", "MiB/s", lambda side: side.curl("large"), bulk)
        compare("PUT 1 GiB", "MiB/s", lambda side: side.curl("put", "-T", str(large)), bulk)
        compare(
            "PUT 1 GiB signed", "MiB/s",
            lambda side: side.curl("put", "-T", str(large), payload=digest), bulk,
        )  # fmt: skip
        few = {"http": 0.4, "https": 0.4}
        subprocess.run(
            peer.command("curl", "-sS", "-T", str(small), *peer.headers("PUT", "small"),
                         f"{peer.url}/{peer.bucket}/small"),
            check=True, timeout=30, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        compare("GET 4 KiB", "/s", lambda side: side.wrk("small"), few)
        compare("PUT 4 KiB", "/s", lambda side: side.wrk("put-small", script), few)
    return rows
