"""What `cloister doctor` says of programs that a host has."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.kernel import facts


@pytest.mark.parametrize(
    ("name", "says", "ok"),
    [
        ("podman", "podman version 3.4.4", True),
        ("podman", "podman version 2.2.1", False),
        ("podman", "podman version 5.4.2", True),
        ("conmon", "conmon version 2.0.25\ncommit: unknown", True),
        ("conmon", "conmon version 2.0.9", False),
        ("runc", "runc version 1.1.0-0ubuntu1", True),
        ("runc", "runc version 1.0.0~rc93+ds1\ncommit: 1.0.0~rc93", False),
        ("runc", "runc version 1.3.3", True),
        ("runc", "runc version main", True),
        ("crun", "crun version 0.17", True),
    ],
)
def test_a_program_that_is_too_old_is_told_with_the_version_that_does(
    name: str, says: str, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    fact = facts._program(name, name, needed=False)
    assert fact.ok is ok
    assert says.splitlines()[0] in fact.detail
    if not ok:
        assert "older than" in fact.detail
        assert fact.needed  # it is the one that would be used
        assert fact.fix == f"apt-get install {name}"
