"""A whole processing job against a whole `podman run` of the same image.

Ours: one instance in a VPC, no data, from before the CreateProcessingJob call to the container's first
instruction (it prints its own time) and to the first Describe that says Completed. The peer:
`podman run --rm --network none IMAGE true`, from start to exit.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, product
from pathlib import Path

from bench import cloister_up, measure
from cloister.demo import blocks

IMAGE = "localhost/cloister-bench-start:latest"
POLL = 0.005
LOW_LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]


@contextmanager
def image() -> Iterator[str]:
    """A small image in the invoking user's podman: busybox, `date` and `true`, the C library."""
    found = {"/bin/sh": Path("/bin/busybox")}
    for name in ("date", "true"):
        program = shutil.which(name)
        assert program is not None
        found[f"/bin/{name}"] = Path(program)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            found[library] = Path(library)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "opt"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for inside, outside in found.items():
            entry = tarfile.TarInfo(inside.lstrip("/"))
            content = outside.resolve().read_bytes()
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    subprocess.run(
        ["podman", "import", "-q", "-", IMAGE],
        input=data.getvalue(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    try:
        yield IMAGE
    finally:
        subprocess.run(["podman", "rmi", "-f", IMAGE], check=False, capture_output=True, timeout=60)


def podman_command() -> list[str]:
    """`podman run`, with the options that make it work here: crun refuses hosts with hybrid cgroups; podman
    raises limits, for which some hosts' root has no right."""
    for more in product(([], ["--runtime", "runc"]), ([], LOW_LIMITS)):
        command = ["podman", "run", *chain(*more), "--rm", "--network", "none", IMAGE, "true"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            return command
    raise RuntimeError(f"podman cannot run a container here: {done.stderr.strip()}")


def run(rounds: int) -> list[measure.Row]:
    with image(), cloister_up.cloister() as up:
        net = cloister_up.network(up)
        command = podman_command()
        firsts: list[float] = []
        number = 0

        def ours() -> float:
            nonlocal number
            number += 1
            name = f"start-{number}-{up.stage.mark}"
            began = time.time()
            cloister_up.create_job(up, net, name, image=IMAGE, entrypoint=["/bin/date", "+%s.%N"])
            deadline = began + 30
            while True:
                job = up.stage.sagemaker.describe_processing_job(ProcessingJobName=name)
                now = time.time()
                if job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped"):
                    break
                if now > deadline:
                    raise blocks.StoryError(f"{name} does not end")
                time.sleep(POLL)
            if job["ProcessingJobStatus"] != "Completed":
                raise blocks.StoryError(f"{name}: {job.get('FailureReason')}")
            firsts.append((float(cloister_up.log_lines(up, name)[0]) - began) * 1000)
            return (now - began) * 1000

        def peer() -> float:
            began = time.monotonic()
            subprocess.run(command, check=True, timeout=30, stdout=subprocess.DEVNULL)
            return (time.monotonic() - began) * 1000

        for _ in range(2):  # caches, lazy imports
            ours()
            peer()
        firsts.clear()
        whole, podman = measure.interleave(ours, peer, max(5, 3 * rounds))
        peer_name = " ".join(command[:2] + command[2:-2])
        return [
            measure.row(
                "job: create to first instruction", "ms", firsts, podman, at_most=1.0,
                note=f"the peer is the whole of `{peer_name} IMAGE true`",
            ),
            measure.row("job: create to Completed", "ms", whole, podman, at_most=2.0),
        ]  # fmt: skip
