"""The documentation's commands, run as they are written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Cloister, free_port

from cloister import options
from cloister.options import Options

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(document: Path) -> str:
    """A document's fenced commands as one bash script; a Python block is what one types into python3."""
    lines = ["set -euo pipefail"]
    for language, text in FENCE.findall(document.read_text()):
        lines.append(text if language == "sh" else f"python3 - <<'END OF BLOCK'\n{text}END OF BLOCK")
    return "\n".join(lines)


@pytest.fixture
def fresh() -> Iterator[Cloister]:
    """A state folder of this test's own, in which nothing was started yet."""
    folder = Path(tempfile.mkdtemp(prefix="cloister-docs-", dir="/var/tmp"))
    port = free_port()
    options.write(folder, Options(port=port))  # the default port may be the user's own Cloister's
    found = Cloister(folder, port)
    try:
        yield found
    finally:
        found.command("down", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_quickstart_works_as_it_is_written(fresh: Cloister, tmp_path: Path) -> None:
    script = script_of(ROOT / "docs/quickstart.md")
    assert script.count("cloister up") == script.count("create_processing_job") == 1
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CLOISTER_STATE": str(fresh.state)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first is Completed" in done.stderr
    on = fresh.stage()
    job = on.sagemaker.describe_processing_job(ProcessingJobName="first")
    assert job["ProcessingJobStatus"] == "Completed", job
    assert on.s3.get_object(Bucket="my-data", Key="out/HELLO.txt")["Body"].read() == b"HELLO"
