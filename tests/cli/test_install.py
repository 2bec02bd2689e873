"""What `scripts/install.sh` asks for, on releases that this host is not: apt and dpkg are stand-ins here, and
nothing is installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install.sh"


def asked_for(folder: Path, *, known: str, python: str = "/nowhere/python3") -> list[str]:
    """The packages of the command that it prints, where apt knows only `known` and none is installed."""
    stand_ins = {
        "apt-cache": f'[ "$2" = "{known}" ]',
        "dpkg-query": "exit 1",
        "id": "echo 1000",
        "sudo": "exit 1",
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CLOISTER_PYTHON": python}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (command,) = (line for line in done.stderr.splitlines() if "apt-get install" in line)
    return command.split()


@pytest.mark.parametrize(
    ("known", "wanted"),
    [("python3.11", ("python3.11", "python3.11-venv")), ("", ("python3", "python3-venv"))],
    ids=["Ubuntu 22.04", "Debian 13"],
)
def test_where_there_is_no_python_the_one_that_the_release_has_is_installed(
    tmp_path: Path, known: str, wanted: tuple[str, ...]
) -> None:
    asked = asked_for(tmp_path, known=known)
    assert [each for each in asked if each.startswith("python3")] == list(wanted)


def test_a_python_without_venv_gets_its_own(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$2" in *version_info\\ \\<*) exit 0;; *ensurepip*) exit 1;; *) echo 3.12;; esac\n'
    )
    python.chmod(0o755)
    asked = asked_for(tmp_path, known="", python=str(python))
    assert [each for each in asked if each.startswith("python3")] == ["python3.12-venv"]
