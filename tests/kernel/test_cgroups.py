"""Which cgroups are ours to write, on hosts laid out unlike this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.kernel import cgroups


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's folder of cgroups, where we are the machine's root; a folder with a file `ro` is not ours."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "in_user_namespace", lambda: False)
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) / "ro").exists())
    return tmp_path


def _version_1(host: Path) -> None:
    for name in ("systemd", "memory", "cpu,cpuacct", "pids"):
        (host / name).mkdir()
    (host / "cpu").symlink_to("cpu,cpuacct")
    (host / "ro").touch()  # as systemd mounts the folder of the hierarchies


@pytest.mark.parametrize("hybrid", [False, True])
def test_version_1_is_ours_when_its_hierarchies_are_though_their_folder_is_read_only(
    host: Path, hybrid: bool
) -> None:
    _version_1(host)
    if hybrid:
        (host / "unified").mkdir()
        (host / "unified" / "cgroup.controllers").touch()
    assert cgroups.version() == "1"
    assert cgroups.default_parent("/state").startswith("/cloister-")


def test_version_1_in_a_container_that_may_only_look_is_not_ours(host: Path) -> None:
    _version_1(host)
    (host / "memory" / "ro").touch()
    assert cgroups.default_parent("/state") == ""


def test_version_2_is_ours_when_its_top_can_be_written(host: Path) -> None:
    (host / "cgroup.controllers").touch()
    assert cgroups.version() == "2"
    assert cgroups.default_parent("/state").startswith("/cloister-")
    (host / "ro").touch()
    assert cgroups.default_parent("/state") == ""


@pytest.mark.parametrize("version", ["1", "2"])
def test_what_a_crash_left_is_removed_from_every_hierarchy(host: Path, version: str) -> None:
    if version == "1":
        _version_1(host)
    else:
        (host / "cgroup.controllers").touch()
    left = [top / cgroups.default_parent("/state")[1:] for top in cgroups._tops()]
    for folder in left:
        (folder / "job-algo-1" / "inner").mkdir(parents=True)
    assert cgroups.remove_all(Path("/state")) == []
    assert not any(folder.exists() for folder in left)
