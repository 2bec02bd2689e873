"""The seed's first use of an endpoint policy: package installs from a repository that is an S3 bucket.

A real `dnf` in a job, a real repository, laid out as Amazon Linux's: a mirror list that names the folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.e2e.conftest import Lab

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

GREETING = "hello from a real package"

SPECS = {
    "cloister-hello": f"""
Name: cloister-hello
Version: 1.0
Release: 1
Summary: Says hello
License: Apache-2.0
BuildArch: noarch
Requires: cloister-words >= 2
%description
Says hello.
%install
mkdir -p %{{buildroot}}/usr/share/cloister-hello
echo "{GREETING}" > %{{buildroot}}/usr/share/cloister-hello/greeting
%files
/usr/share/cloister-hello/greeting
""",
    "cloister-words": """
Name: cloister-words
Version: 2.1
Release: 1
Summary: What hello needs
License: Apache-2.0
BuildArch: noarch
%description
Words.
%install
mkdir -p %{buildroot}/usr/share/cloister-words
echo words > %{buildroot}/usr/share/cloister-words/list
%files
/usr/share/cloister-words/list
""",
}

#: the repository's file as Amazon Linux 2 has it (amzn2-core.repo), but for signatures
REPO_FILE = """
[amzn2-core]
name=Amazon Linux 2 core repository
mirrorlist=http://amazonlinux.$awsregion.amazonaws.com/$releasever/core/latest/$basearch/mirror.list
gpgcheck=0
enabled=1
"""

#: dnf's exit code is the job's
INSTALL = f"""
import os, pathlib, subprocess, sys
top = pathlib.Path("/tmp/dnf")
(top / "vars").mkdir(parents=True)
(top / "repos").mkdir()
(top / "vars/awsregion").write_text(os.environ["AWS_REGION"])
(top / "repos/amzn2-core.repo").write_text({REPO_FILE!r})
(top / "dnf.conf").write_text("[main]\\nretries=1\\ntimeout=10\\nplugins=0\\n")
done = subprocess.run(
    ["dnf", "-y", f"--config={{top}}/dnf.conf", f"--setopt=reposdir={{top}}/repos", f"--setopt=varsdir={{top}}/vars",
     "--releasever=2", f"--installroot={{top}}/root", f"--setopt=cachedir={{top}}/cache", "install", "cloister-hello"],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
print(done.stdout, flush=True)
if done.returncode == 0:
    print("INSTALLED", *sorted(str(p.relative_to(top / "root")) for p in (top / "root/usr/share").glob("cloister-*/*")))
    print((top / "root/usr/share/cloister-hello/greeting").read_text())
sys.exit(done.returncode)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is an rpm repository of two packages, one of which requires the other."""
    top = tmp_path_factory.mktemp("rpm")
    repository = top / "repository"
    repository.mkdir()
    for name, text in SPECS.items():
        spec = top / f"{name}.spec"
        spec.write_text(text)
        build = [
            "rpmbuild",
            "-bb",
            "--quiet",
            "--define",
            f"_topdir {top}",
            "--define",
            f"_rpmdir {repository}",
        ]
        _run([*build, "--define", "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm", str(spec)])
    _run(["createrepo_c", "--quiet", str(repository)])
    assert len(list(repository.glob("*.rpm"))) == 2
    return repository


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def repository(lab: Lab, packages: Path) -> str:
    """The bucket amazonlinux.REGION.amazonaws.com with the packages, readable by everybody as AWS's own is."""
    on = lab.on
    bucket = blocks.make_bucket(on, f"amazonlinux.{on.region}.amazonaws.com")
    read = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    on.s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [read]}))
    folder = "2/core/2.0/x86_64/0123456789abcdef"
    for path in packages.rglob("*"):
        if path.is_file():
            key = f"{folder}/{path.relative_to(packages)}"
            on.s3.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    on.s3.put_object(
        Bucket=bucket, Key="2/core/latest/x86_64/mirror.list", Body=f"http://{bucket}/{folder}\n".encode()
    )
    return bucket


def test_dnf_in_a_job_installs_from_the_repository_until_the_endpoint_policy_denies_it(
    lab: Lab, repository: str
) -> None:
    allow = blocks.endpoint_policy(lab.bucket, deny_repository=False)
    lab.on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, PolicyDocument=allow)
    job = lab.run(INSTALL)
    log = lab.log(job)
    assert job["ProcessingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    assert "INSTALLED usr/share/cloister-hello/greeting usr/share/cloister-words/list" in log
    assert GREETING in log

    deny = blocks.endpoint_policy(lab.bucket, deny_repository=True)
    lab.on.ec2.modify_vpc_endpoint(VpcEndpointId=lab.endpoint, PolicyDocument=deny)
    job = lab.run(INSTALL)
    log = lab.log(job)
    assert job["ProcessingJobStatus"] == "Failed", log
    reason = job["FailureReason"]
    assert reason.startswith(
        "AlgorithmError: , exit code: 1: algo-1: s3:GetObject arn:aws:s3:::amazonlinux."
    ), reason
    assert "with an explicit deny in a VPC endpoint policy: " in reason, reason
    assert f" of {lab.endpoint} (" in reason, reason
    assert "Status code: 403 for http://amazonlinux." in log, log
    assert "INSTALLED" not in log
