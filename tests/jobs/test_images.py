from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister import facts
from cloister.jobs import hostimage
from cloister.jobs.images import ImageNotFound, Images, candidates, is_in_a_registry, storages

ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        (f"{ECR}/team/mine:1", (f"{ECR}/team/mine:1", "localhost/team/mine:1", "team/mine:1")),
        (f"{ECR}/mine", (f"{ECR}/mine:latest", "localhost/mine:latest", "mine:latest")),
        ("mine:2", ("mine:2", "localhost/mine:2", "docker.io/library/mine:2")),
        ("quay.io/a/b:3", ("quay.io/a/b:3",)),
        ("host:5000/a", ("host:5000/a:latest",)),
    ],
)
def test_an_image_uri_is_looked_for_under_its_full_and_its_local_name(
    uri: str, names: tuple[str, ...]
) -> None:
    assert candidates(uri) == names


def test_storage_is_found_by_podmans_rules(tmp_path: Path) -> None:
    graph = tmp_path / "data/containers/storage"
    (graph / "vfs-images").mkdir(parents=True)
    (graph / "vfs-images/images.json").write_text("[]")
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    assert [(s.root, s.driver) for s in storages(environ, rootless=True)] == [(graph, "vfs")]


def test_a_damaged_storage_has_no_images(tmp_path: Path) -> None:
    graph = tmp_path / ".local/share/containers/storage"
    for text in ("{", json.dumps([{"id": "x", "names": ["localhost/a:latest"], "layer": "gone"}])):
        (graph / "overlay-images").mkdir(parents=True, exist_ok=True)
        (graph / "overlay-images/images.json").write_text(text)
        images = Images(tmp_path / "cache", rootless=True, environ={"HOME": str(tmp_path)})
        assert images.local("a") is None


@pytest.mark.parametrize("uri", ["cloister/host", "cloister/host:latest", f"{ECR}/cloister/host:1"])
def test_cloister_host_is_always_there(tmp_path: Path, uri: str) -> None:
    image = Images(tmp_path, rootless=True, environ={}).local(uri)
    assert image is not None
    assert image.binds[0].path == "/usr"
    assert any(entry.startswith(f"PATH={sys.prefix}/bin:") for entry in image.config.env)


@pytest.mark.parametrize("uri", ["cloister/hosts", "mycloister/host", "host"])
def test_other_names_are_other_images(uri: str) -> None:
    assert not hostimage.is_host(uri)


def test_the_host_image_holds_no_secret_and_no_account_of_the_host(tmp_path: Path) -> None:
    layer = Path(hostimage.build(tmp_path).layer)
    assert hostimage.build(tmp_path).layer == str(layer)
    names = {str(path.relative_to(layer)) for path in layer.rglob("*")}
    secret = {
        "shadow",
        "gshadow",
        "ssh",
        "sudoers",
        "sudoers.d",
        "hostname",
        "machine-id",
        "ssl/private",
        "fstab",
    }
    assert not {f"etc/{name}" for name in secret} & names
    assert next(line.split(":")[0] for line in (layer / "etc/passwd").read_text().splitlines()) == "root"
    for path in layer.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"PRIVATE KEY-----" not in path.read_bytes()
    assert (layer / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (layer / "root").stat().st_mode & 0o7777 == 0o700
    assert not list((layer / "root").iterdir())
    assert not list((layer / "home").iterdir())


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "docker-archive:/var/lib/x.tar",
            "dir:/var/lib/x",
            "dir:123/x",
            "oci-archive:x.tar",
            "oci:x",
            "sif:x",
        ),
        *("docker-daemon:app", "docker-daemon:app:latest", "containers-storage:app", "docker://host/app"),
        *("--authfile=/etc/shadow", "-v", "", "a b", "a\n", "../x", "/x", "A/B:c/d", "x@sha256:12"),
    ],
)
async def test_an_image_is_taken_from_no_file_folder_or_engine_of_the_host(tmp_path: Path, uri: str) -> None:
    (tmp_path / "podman").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "podman").chmod(0o755)
    images = Images(tmp_path / "cache", rootless=False, environ={"PATH": str(tmp_path)})
    with pytest.raises(ImageNotFound, match="no name of an image in a registry"):
        await images.resolve(uri)
    assert not (tmp_path / "called").exists()
    asked = {"AppSpecification": {"ImageUri": uri}}
    assert "no name of an image in a registry" in (await facts._image(images, asked)).trouble


@pytest.mark.parametrize(
    "uri",
    [
        *("alpine", "alpine:3.19", "library/alpine", "localhost:5000/a/b_c:V1", "quay.io/x/y-z"),
        *("123456789012.dkr.ecr.us-east-1.amazonaws.com/team/app:latest", f"host/app@sha256:{'a' * 64}"),
    ],
)
def test_an_image_of_a_registry_is_one(uri: str) -> None:
    assert is_in_a_registry(uri)


def test_jobs_that_want_the_host_image_at_once_find_it_whole(tmp_path: Path) -> None:
    images = Images(tmp_path, rootless=True, environ={})
    alone = Images(tmp_path / "alone", rootless=True, environ={}).local("cloister/host")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: images.local("cloister/host"), range(8)))
    assert alone is not None
    (whole,) = alone.layers
    for image in found:
        assert image is not None
        assert _names(Path(image.layers[0])) == _names(Path(whole))
    assert [path.name for path in tmp_path.iterdir() if path.name != "alone"] == [Path(whole).name]


def _names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}
