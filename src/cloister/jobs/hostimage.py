"""`cloister/host`: an image made of the host's own read-only /usr and Cloister's Python.

A job can run on a machine that cannot pull any image. The image is a small layer (an /etc written here, the
top folders, the host's /bin, /lib … links) and read-only binds: /usr, and what Cloister's Python needs when
it is not in /usr. No home, no state, no password, no key of the host is in it: /etc is a list of names
that may be copied, not of names that may not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_TOP_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_TOP_FOLDERS = {
    "dev": 0o755, "etc": 0o755, "home": 0o755, "mnt": 0o755, "opt": 0o755, "proc": 0o555, "root": 0o700,
    "run": 0o755, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755, "var": 0o755, "var/cache": 0o755,
    "var/lib": 0o755, "var/log": 0o755, "var/spool": 0o755, "var/tmp": 0o1777, "etc/ssl": 0o755,
    "etc/ssl/certs": 0o755,
}  # fmt: skip

#: What of the host's /etc programs of /usr need to start. Only world-readable files are taken of these.
_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates.conf", "crypto-policies", "debian_version",
    "ethertypes", "fonts", "gai.conf", "host.conf", "inputrc", "java-*-openjdk", "java", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "libaudit.conf", "locale.alias", "locale.conf", "localtime", "login.defs",
    "lsb-release", "magic", "magic.mime", "mime.types", "networks", "openmpi", "OpenCL", "os-release", "perl",
    "profile", "protocols", "python3", "python3.*", "redhat-release", "R", "rpc", "services",
    "shells", "ssl/openssl.cnf", "system-release", "terminfo", "timezone", "xattr.conf", "xml",
)  # fmt: skip

#: where distributions keep the bundle of public certificates
_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP = (
    "root:x:0:\ndaemon:x:1:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
)
_NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBind:
    """A folder of the host, shown read-only at the same path. `ours`: it is Cloister's own environment, and
    its owner is shown as root where its file system can do that; else the host's file owners and modes go on
    to bar the way."""

    path: str
    ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostImage:
    digest: str
    layer: str
    binds: tuple[HostBind, ...]
    env: tuple[str, ...]


def is_host(uri: str) -> bool:
    """`cloister/host`, with or without a tag, also behind a registry's name."""
    name = uri.rsplit("/", 2)
    last = "/".join(name[-2:])
    return last == "cloister/host" or last.startswith("cloister/host:")


def build(cache: Path) -> HostImage:
    """The image; its layer is made in `cache` when it is not there yet, named by what goes into it."""
    files = _files()
    binds, env = python_environment()
    links = [(name, os.readlink(f"/{name}")) for name in _TOP_LINKS if os.path.islink(f"/{name}")]
    binds = (*(HostBind(path=f"/{n}", ours=False) for n in _TOP_LINKS if _is_real_folder(f"/{n}")), *binds)
    digest = hashlib.sha256(repr(("v1", links, sorted(files), _PASSWD, _GROUP)).encode())
    for name in sorted(files):
        mode, content = files[name]
        digest.update(f"{mode:o}".encode() + b"\0" + hashlib.sha256(content).digest())
    identity = digest.hexdigest()
    layer = cache / f"host-{identity[:16]}"
    if not layer.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # A folder of this call's own: several jobs may want the image at once.
        partial = Path(tempfile.mkdtemp(prefix=f".{layer.name}.", dir=cache))
        try:
            _write(partial / "layer", files, links)
            with contextlib.suppress(OSError):  # another one was quicker
                (partial / "layer").rename(layer)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if not layer.exists():
            raise FileNotFoundError(f"{layer} could not be made")
    usr = HostBind(path="/usr", ours=False)
    return HostImage(digest=f"sha256:{identity}", layer=str(layer), binds=(usr, *binds), env=env)


def python_environment() -> tuple[tuple[HostBind, ...], tuple[str, ...]]:
    """What of Cloister's own Python lies outside /usr, and the variables that make `python3` that Python."""
    wanted = [Path(sys.prefix), Path(sys.base_prefix), Path(os.path.realpath(sys.executable)).parent.parent]
    sites = []
    for module in ("boto3", "botocore"):
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            sites.append(Path(spec.origin).parent.parent)
    wanted += sites
    folders: list[Path] = []
    for folder in sorted(set(wanted), key=lambda p: len(p.parts)):
        if folder == Path("/") or folder.is_relative_to("/usr"):
            continue
        if not any(folder.is_relative_to(seen) for seen in folders):
            folders.append(folder)
    path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = [f"PATH={path}", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"]
    outside = [str(s) for s in dict.fromkeys(sites) if not s.is_relative_to(sys.prefix)]
    if outside:
        env.append("PYTHONPATH=" + ":".join(outside))
    return tuple(HostBind(path=str(f), ours=True) for f in folders), tuple(env)


def _is_real_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _files() -> dict[str, tuple[int, bytes]]:
    """Path in the layer -> (file type and mode, content or link target)."""
    found: dict[str, tuple[int, bytes]] = {}
    etc = Path("/etc")
    for pattern in _ETC:
        for path in etc.glob(pattern):
            _collect(path, found)
    for name, text in {"passwd": _PASSWD, "group": _GROUP, "nsswitch.conf": _NSSWITCH}.items():
        found[f"etc/{name}"] = (stat.S_IFREG | 0o644, text.encode())
    found["etc/mtab"] = (stat.S_IFLNK, b"/proc/self/mounts")
    found["var/run"] = (stat.S_IFLNK, b"/run")
    for bundle in _CERTIFICATES:
        try:
            certificates = Path(bundle).read_bytes()
        except OSError:
            continue
        if b"PRIVATE KEY" not in certificates:
            for place in ("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt"):
                found[place] = (stat.S_IFREG | 0o644, certificates)
            found["etc/ssl/cert.pem"] = (stat.S_IFLNK, b"certs/ca-certificates.crt")
            break
    return found


def _collect(path: Path, found: dict[str, tuple[int, bytes]]) -> None:
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            found[str(path)[1:]] = (stat.S_IFLNK, os.fsencode(os.readlink(path)))
        elif stat.S_ISDIR(info.st_mode) and info.st_mode & 0o005 == 0o005:
            for child in path.iterdir():
                _collect(child, found)
        elif stat.S_ISREG(info.st_mode) and info.st_mode & 0o004 and info.st_size < 4 << 20:
            found[str(path)[1:]] = (stat.S_IFREG | (info.st_mode & 0o755), path.read_bytes())
    except OSError:
        return  # what cannot be read is not in the image


def _write(root: Path, files: dict[str, tuple[int, bytes]], links: list[tuple[str, str]]) -> None:
    root.mkdir(parents=True)
    root.chmod(0o755)
    for name, mode in _TOP_FOLDERS.items():
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for name, target in links:
        (root / name).symlink_to(target)
    for name, (mode, content) in files.items():
        path = root / name
        for parent in reversed(path.relative_to(root).parents):
            if not (root / parent).is_dir():
                (root / parent).mkdir()
                (root / parent).chmod(0o755)  # whatever our umask
        if stat.S_ISLNK(mode):
            path.symlink_to(os.fsdecode(content))
        else:
            path.write_bytes(content)
            path.chmod(stat.S_IMODE(mode))
