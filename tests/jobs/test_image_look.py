"""What a look into an image's layers tells of a job's command, before the job runs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.jobs.image_look import Look, look
from cloister.jobs.images import Image, ImageConfig, Images

MINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")


def image(*layers: Path, **config: object) -> Image:
    made = ImageConfig(**config)  # type: ignore[arg-type]
    return Image(
        name="etl", digest="sha256:0", layers=tuple(map(str, layers)), config=made, architecture=MINE
    )


def seen(found: Image, *entrypoint: str, **how: object) -> Look:
    return look(found, entrypoint, how.get("arguments", ()), how.get("env", {}), how.get("mounted", ()))  # type: ignore[arg-type]


def program(layer: Path, path: str, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    file = layer / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.fixture
def base(tmp_path: Path) -> Path:
    layer = tmp_path / "base"
    program(layer, "usr/bin/sh", "\0")
    program(layer, "usr/bin/run")
    (layer / "bin").symlink_to("usr/bin")
    return layer


def test_a_program_is_found_on_the_path_and_by_its_name_through_the_images_links(base: Path) -> None:
    assert seen(image(base), "run").seen == "etl has /usr/bin/run, which can be executed."
    assert seen(image(base), "/bin/run").seen == "etl has /usr/bin/run, which can be executed."
    assert not seen(image(base, entrypoint=("/bin/run",))).trouble
    assert not seen(image(base, working_dir="/usr"), "bin/run").trouble


def test_a_program_that_is_not_there_is_named_with_where_it_was_looked_for(base: Path) -> None:
    assert seen(image(base), "/run.sh").trouble == "etl has no /run.sh: the container cannot be started."
    told = seen(image(base, env=("PATH=/opt/bin:/usr/sbin",)), "run").trouble
    assert told == "etl has no run on its PATH (/opt/bin:/usr/sbin): the container cannot be started."
    assert not seen(image(base), "run", env={"PATH": "/bin"}).trouble, "the job's own PATH is meant"
    assert "says which command to run" in seen(image(base)).trouble


def test_what_cannot_be_executed_is_told(base: Path) -> None:
    program(base, "plain", mode=0o644)
    program(base, "bash-script", "#!/bin/bash -e\n")
    elf = b"\x7fELF\x02\x01\x01" + bytes(11) + (8).to_bytes(2, "little")  # MIPS
    program(base, "strange").write_bytes(elf)
    assert "/plain of etl is not executable" in seen(image(base), "/plain").trouble
    assert "no file that can be executed" in seen(image(base), "/usr").trouble
    assert (
        "a script for /bin/bash, which the image does not have" in seen(image(base), "/bash-script").trouble
    )
    assert "for another kind of machine" in seen(image(base), "/strange").trouble


def test_an_image_for_another_machine_is_told_with_what_to_do(base: Path) -> None:
    found = replace(image(base), architecture="mips64le")
    assert "etl is for mips64le, and this machine is" in seen(found, "run").trouble


def test_layers_hide_what_lies_below_as_the_overlay_does(base: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("marks of deleted files are devices")
    top = tmp_path / "top"
    (top / "usr/bin").mkdir(parents=True)
    os.mknod(top / "usr/bin/run", 0o20000, 0)
    assert "has no /bin/run" in seen(image(top, base), "/bin/run").trouble
    assert not seen(image(top, base), "/bin/sh").trouble
    replaced = tmp_path / "replaced"
    program(replaced, "usr/only")
    try:
        os.setxattr(replaced / "usr", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("no trusted attributes here")
    assert "has no /bin/sh" in seen(image(replaced, base), "/bin/sh").trouble
    assert "a script for /bin/sh" in seen(image(replaced, base), "/usr/only").trouble


def test_no_link_of_an_image_leads_out_of_it(base: Path, tmp_path: Path) -> None:
    outside = program(tmp_path, "outside")
    (base / "out").symlink_to(outside)
    (base / "loop").symlink_to("loop")
    (base / "up").symlink_to("../" * 30 + "usr/bin/run")
    assert "has no /out" in seen(image(base), "/out").trouble
    assert "has no /loop" in seen(image(base), "/loop").trouble
    assert seen(image(base), "/up").seen == "etl has /usr/bin/run, which can be executed."
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "data").symlink_to(tmp_path)
    (base / "data").mkdir()
    assert "has no /data/outside" in seen(image(base, lower), "/data/outside").trouble


def test_what_comes_with_the_jobs_data_is_not_looked_at_and_said_not_to_be(base: Path) -> None:
    code = "/opt/ml/processing/input/code"
    found = seen(image(base), f"{code}/run.sh", mounted=[code])
    assert (found.trouble, found.seen) == (
        "",
        f"{code}/run.sh comes with the job's data, and was not looked at.",
    )


def test_the_built_in_image_has_this_hosts_programs(tmp_path: Path) -> None:
    host = Images(tmp_path, rootless=True, environ={}).local("cloister/host")
    assert host is not None
    assert not seen(host, "python3").trouble
    assert shutil.which("env") is not None
    assert not seen(host, "/usr/bin/env").trouble
    assert "has no no-such-program" in seen(host, "no-such-program").trouble
