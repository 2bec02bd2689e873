"""Container images, read from where podman keeps them.

Images are pulled, tagged, loaded and built with podman as everybody does it. Cloister only reads podman's
storage (`images.json`, `layers.json` and the layers' folders, github.com/containers/storage): no podman is
started for a job, unless the image has to be pulled first. Reading takes no lock: podman replaces these
files by rename.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloister.jobs import hostimage
from cloister.jobs.hostimage import HostBind

_ECR = re.compile(
    r"(?P<registry>\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.(amazonaws\.com(\.cn)?|on\.aws))/(?P<rest>.+)"
)
#: what podman pulls from a registry: [HOST[:PORT]/]NAME[/NAME…][:TAG][@DIGEST]
_PART = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9+._-]+:[0-9a-fA-F]{32,})?"
)
#: with one of these before a colon podman takes an image from a file, a folder or another engine of this
#: host, and tags it as the archive says (containers-transports(5))
_TRANSPORTS = frozenset(
    {
        *("atomic", "containers-storage", "dir", "docker", "docker-archive", "docker-daemon", "oci"),
        *("oci-archive", "ostree", "sif", "tarball"),
    }
)
_PULL_SECONDS = 600.0
_HOST_SECONDS = 60.0


class ImageNotFound(Exception):
    """The image is not here and cannot be pulled. `str()` is the job's FailureReason, as AWS words it;
    `cause` says what happened."""

    def __init__(self, uri: str, cause: str) -> None:
        self.uri, self.cause = uri, cause
        super().__init__(
            f"ClientError: API error (404): manifest for {uri} not found: manifest unknown: "
            f"Requested image not found. {cause}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image says about its process (OCI image configuration, `config`)."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A resolved image. `layers` are folders, the topmost first, to be an overlay's lower ones; `binds` are
    folders of the host that belong to it (only `cloister/host` has any)."""

    name: str
    digest: str
    layers: tuple[str, ...]
    config: ImageConfig
    #: as OCI calls it ("amd64"), "" where the image does not say
    architecture: str = ""
    binds: tuple[HostBind, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """One podman storage: its folder and its driver ("overlay" or "vfs")."""

    root: Path
    driver: str


def candidates(uri: str) -> tuple[str, ...]:
    """The names under which podman may know the image, best first: the full name, and for an ECR URI
    also the name alone, so that `podman build -t mine .` is enough."""
    names = [uri]
    ecr = _ECR.fullmatch(uri)
    rest = ecr["rest"] if ecr else uri
    first = rest.split("/", 1)[0]
    if "/" not in rest or not ("." in first or ":" in first or first == "localhost"):
        names += [f"localhost/{rest}"] + ([rest] if ecr else [])
        if not ecr:
            names.append(f"docker.io/{rest}" if "/" in rest else f"docker.io/library/{rest}")
    elif ecr:
        names.append(rest)
    tagged = [n if "@" in n or ":" in n.rsplit("/", 1)[-1] else f"{n}:latest" for n in names]
    return tuple(dict.fromkeys(tagged))


def registry_of(uri: str) -> tuple[str, int]:
    """Host and port that an image is pulled from."""
    first, slash, _ = uri.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return "registry-1.docker.io", 443
    host, _, port = first.partition(":")
    return host, int(port) if port.isdigit() else 443


def is_in_a_registry(uri: str) -> bool:
    """Whether podman looks for this in a registry, and nowhere on this host."""
    return _REFERENCE.fullmatch(uri) is not None and uri.partition(":")[0] not in _TRANSPORTS


def storages(environ: dict[str, str], *, rootless: bool) -> tuple[Storage, ...]:
    """Where podman keeps this user's images, by the same rules as podman (containers-storage.conf(5)):
    the graph root, its driver, and further read-only stores."""
    if rootless:
        home = Path(environ.get("HOME", "/"))
        data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
        root, config_home = (
            data / "containers/storage",
            Path(environ.get("XDG_CONFIG_HOME") or home / ".config"),
        )
        files = [config_home / "containers/storage.conf"]
    else:
        root = Path("/var/lib/containers/storage")
        files = [Path("/etc/containers/storage.conf"), Path("/usr/share/containers/storage.conf")]
    if environ.get("CONTAINERS_STORAGE_CONF"):
        files = [Path(environ["CONTAINERS_STORAGE_CONF"])]
    # rootless podman keeps to the root it was first used with, whatever a configuration says later
    driver, more = environ.get("STORAGE_DRIVER", ""), [root] if rootless else []
    for file in files:
        try:
            section = tomllib.loads(file.read_text()).get("storage", {})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue
        root = Path(os.path.expandvars(section.get("graphroot") or str(root)))
        driver = driver or section.get("driver", "")
        more += [Path(p) for p in section.get("options", {}).get("additionalimagestores", ())]
        break
    found = []
    for place in dict.fromkeys((root, *more)):
        # The driver podman chose shows in the files; a fresh store may hold folders of several.
        for name in dict.fromkeys([driver or "overlay", "overlay", "vfs"]):
            if (place / f"{name}-images" / "images.json").exists():
                found.append(Storage(root=place, driver=name))
    return tuple(found)


def find(storage: Storage, names: Iterable[str]) -> Image | None:
    """The image that has one of these names in this storage, or None. A full image id is a name as well."""
    records = _read_json(storage.root / f"{storage.driver}-images" / "images.json") or []
    for name in names:
        for record in records:
            if name in (record.get("names") or ()) or _has_digest(record, name):
                return _load(storage, record, name)
    return None


def _has_digest(record: dict[str, Any], name: str) -> bool:
    repository, at, digest = name.partition("@")
    if not at:
        return False
    named = {n.rsplit(":", 1)[0] if ":" in n.rsplit("/", 1)[-1] else n for n in record.get("names") or ()}
    digests = {record.get("digest"), *(record.get("names") or ())}
    return (repository in named and digest in digests) or name in digests


def _load(storage: Storage, record: dict[str, Any], name: str) -> Image | None:
    identity = record["id"]
    folder = storage.root / f"{storage.driver}-images" / identity
    config = _read_json(folder / _big_data_name(f"sha256:{identity}"))
    if config is None:
        return None
    layers = _layers(storage, record.get("layer", ""))
    if layers is None:
        return None
    said = config.get("config") or {}
    return Image(
        name=name,
        digest=f"sha256:{identity}",
        layers=layers,
        architecture=str(config.get("architecture") or ""),
        config=ImageConfig(
            entrypoint=tuple(said.get("Entrypoint") or ()),
            command=tuple(said.get("Cmd") or ()),
            env=tuple(said.get("Env") or ()),
            working_dir=said.get("WorkingDir") or "/",
            user=said.get("User") or "",
            stop_signal=said.get("StopSignal") or "SIGTERM",
        ),
    )


def _big_data_name(key: str) -> str:
    # containers/storage images.go: keys that are not plain file names are stored in base 64
    return "=" + base64.b64encode(key.encode()).decode()


def _layers(storage: Storage, top: str) -> tuple[str, ...] | None:
    if not top:
        return ()
    if storage.driver == "vfs":  # every layer is a whole root file system
        whole = storage.root / "vfs" / "dir" / top
        return (str(whole),) if whole.is_dir() else None
    parents = {
        layer["id"]: layer.get("parent", "")
        for layer in _read_json(storage.root / f"{storage.driver}-layers" / "layers.json") or []
    }
    folders: list[str] = []
    layer = top
    while layer:
        diff = storage.root / storage.driver / layer / "diff"
        if layer not in parents or not diff.is_dir() or len(folders) > 500:
            return None
        folders.append(str(diff))
        layer = parents[layer]
    return tuple(folders)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


class Images:
    """Resolves the ImageUri of a job. `cache` is a folder in the state folder, for `cloister/host`."""

    def __init__(self, cache: Path, *, rootless: bool, environ: dict[str, str] | None = None) -> None:
        self._cache = cache
        self._rootless = rootless
        self._environ = dict(os.environ if environ is None else environ)
        self._pulls: dict[str, asyncio.Task[str]] = {}
        self._built: tuple[float, Image] | None = None
        self._known: dict[str, tuple[tuple[int, ...], Image]] = {}

    async def resolve(self, uri: str) -> Image:
        """The image of this URI; pulls it when it is not here. Raises ImageNotFound."""
        image = await asyncio.to_thread(self.local, uri)
        if image is not None:
            return image
        if not is_in_a_registry(uri):
            raise ImageNotFound(
                uri, "It is in no local storage, and this is no name of an image in a registry."
            )
        cause = await self._pull(uri)
        image = await asyncio.to_thread(self.local, uri)
        if image is None:
            raise ImageNotFound(uri, cause or "podman pulled it, but it is not in podman's storage.")
        return image

    def local(self, uri: str) -> Image | None:
        """The image of this URI if it is here."""
        if hostimage.is_host(uri):
            return replace(self._host(), name=uri)
        stores = storages(self._environ, rootless=self._rootless)
        stamp = tuple(_modified(s.root / f"{s.driver}-images" / "images.json") for s in stores)
        known = self._known.get(uri)
        if known is not None and known[0] == stamp:
            return known[1]
        for store in stores:
            image = find(store, candidates(uri))
            if image is not None:
                self._known[uri] = (stamp, image)
                return image
        return None

    def _host(self) -> Image:
        # Reading the host's /etc takes 10 ms: once in a while is enough.
        if self._built is None or time.monotonic() - self._built[0] > _HOST_SECONDS:
            built = hostimage.build(self._cache)
            image = Image(
                name="cloister/host",
                digest=built.digest,
                layers=(built.layer,),
                config=ImageConfig(command=("/bin/sh",), env=built.env),
                binds=built.binds,
            )
            self._built = (time.monotonic(), image)
        return self._built[1]

    async def _pull(self, uri: str) -> str:
        # Ten instances of one job want one pull.
        task = self._pulls.get(uri)
        if task is None:
            task = self._pulls[uri] = asyncio.create_task(self._podman_pull(uri))
            task.add_done_callback(lambda _: self._pulls.pop(uri, None))
        return await asyncio.shield(task)

    async def _podman_pull(self, uri: str) -> str:
        """ "" or why it did not succeed."""
        environ = dict(self._environ)
        if self._rootless:
            # We are already in a user namespace with the user's sub-ids: podman shall not make its own.
            environ |= {
                "_CONTAINERS_USERNS_CONFIGURED": "done",
                "_CONTAINERS_ROOTLESS_UID": str(_outer_uid()),
                "_CONTAINERS_ROOTLESS_GID": str(_outer_uid()),
            }
        try:
            process = await asyncio.create_subprocess_exec(
                "podman", "pull", "--quiet", "--", uri,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE, env=environ,
            )  # fmt: skip
        except OSError as error:
            return f"The image is in no local storage, and podman could not be run: {error.strerror}."
        try:
            async with asyncio.timeout(_PULL_SECONDS):
                _, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"The image is in no local storage, and podman did not pull it in {_PULL_SECONDS:.0f} s."
        if process.returncode == 0:
            return ""
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.startswith("Error")]
        last = lines[-1][:400] if lines else f"exit code {process.returncode}"
        return f"The image is in no local storage, and podman could not pull it: {last}"


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _outer_uid() -> int:
    """The uid outside of our user namespace that is 0 inside."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, outside, _ = (int(word) for word in line.split())
        if inside == 0:
            return outside
    return os.getuid()
