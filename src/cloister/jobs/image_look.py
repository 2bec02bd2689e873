"""Whether an image can start a job's command, by a look into its layers, without running or mounting it.

Where the look ends is said: what lies in an input, what a script's interpreter makes of its arguments, and
which user may do what, only the job itself tells.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.jobs import bundle
from cloister.jobs.images import Image

#: a machine as the kernel calls it -> as OCI images call it, and its number in ELF files
_MACHINES = {
    "x86_64": ("amd64", 62),
    "aarch64": ("arm64", 183),
    "ppc64le": ("ppc64le", 21),
    "s390x": ("s390x", 22),
    "riscv64": ("riscv64", 243),
}
_LINKS = 40
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """`trouble`: why the command cannot start, "" when nothing was found. `seen` says what was looked at."""

    trouble: str = ""
    seen: str = ""


def look(
    image: Image,
    entrypoint: Sequence[str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    mounted: Sequence[str],
) -> Look:
    """`mounted` are paths where the platform puts the job's data over the image's."""
    here, number = _MACHINES.get(os.uname().machine, ("", 0))
    if image.architecture and here and image.architecture != here and not _emulated(image.architecture):
        return Look(
            trouble=f"{image.name} is for {image.architecture}, and this machine is {here}: "
            f"build it for this machine, or pull it anew with --arch {here}."
        )
    argv = bundle.argv(image.config.entrypoint, image.config.command, entrypoint, arguments)
    if not argv:
        return Look(trouble=f"Neither the job nor {image.name} says which command to run.")
    env = bundle.environment(image.config.env, environment, bundle.User(uid=0, gid=0), "algo-1")
    program = argv[0]
    candidates = _candidates(program, image.config.working_dir, env.get("PATH", bundle.DEFAULT_PATH))
    unseen = next((one for one in candidates if _is_below(one, mounted)), None)
    if unseen is not None:
        return Look(seen=f"{unseen} comes with the job's data, and was not looked at.")
    found = next(filter(None, (_find(image, one) for one in candidates)), None)
    if found is None:
        where = "" if "/" in program else f" on its PATH ({env.get('PATH', bundle.DEFAULT_PATH)})"
        return Look(trouble=f"{image.name} has no {program}{where}: the container cannot be started.")
    name, file = found
    if trouble := _trouble(image, name, file, number, mounted):
        return Look(trouble=trouble)
    return Look(seen=f"{image.name} has {name}, which can be executed.")


def _emulated(architecture: str) -> bool:
    names = {arch: machine for machine, (arch, _) in _MACHINES.items()}
    return Path(f"/proc/sys/fs/binfmt_misc/qemu-{names.get(architecture, architecture)}").exists()


def _candidates(program: str, cwd: str, path: str) -> list[str]:
    if "/" in program:
        return [os.path.normpath(os.path.join("/", cwd, program))]
    return [os.path.normpath(os.path.join("/", cwd, folder, program)) for folder in path.split(":")]


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _trouble(image: Image, name: str, path: str, number: int, mounted: Sequence[str]) -> str:
    """What keeps this file from being executed."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        return f"{name} of {image.name} is no file that can be executed."
    if not info.st_mode & 0o111:
        return f"{name} of {image.name} is not executable: build the image with `RUN chmod +x {name}`."
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return ""
    if head.startswith(b"#!"):
        interpreter = head[2:].splitlines()[0].split()[0:1]
        wanted = interpreter[0].decode(errors="replace") if interpreter else ""
        if wanted.startswith("/") and not _is_below(wanted, mounted) and _find(image, wanted) is None:
            return f"{name} of {image.name} is a script for {wanted}, which the image does not have."
    elif head.startswith(b"\x7fELF"):
        little = head[5:6] == b"\x01"
        machine = int.from_bytes(head[18:20], "little" if little else "big")
        if (
            number
            and machine != number
            and not any(_emulated(arch) for arch, one in _MACHINES.values() if one == machine)
        ):
            return f"{name} of {image.name} is a program for another kind of machine than this."
    return ""


# ---- the layers, as the overlay would show them --------------------------------------------------


def _find(image: Image, path: str) -> tuple[str, str] | None:
    """Where a path of the image leads to, links followed inside of it: its own name, and the host's."""
    pending = [part for part in path.split("/") if part]
    parts: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part in (".", ".."):
            del parts[len(parts) - (part == "..") :]
            continue
        entry = _entry(image, (*parts, part))
        if entry is None:
            return None
        if os.path.islink(entry):
            links += 1
            if links > _LINKS:
                return None
            target = os.readlink(entry)
            if target.startswith("/"):
                parts = []
            pending = [*filter(None, target.split("/")), *pending]
        else:
            parts.append(part)
    found = _entry(image, tuple(parts)) if parts else None
    return None if found is None else ("/" + "/".join(parts), found)


def _entry(image: Image, parts: tuple[str, ...]) -> str | None:
    """The host's name of the topmost layer's entry; no folder of `parts` is a link."""
    whole = "/" + "/".join(parts)
    for bind in image.binds:
        if _is_below(whole, [bind.path]):
            return whole if os.path.lexists(whole) else None
    for layer in image.layers:
        at = layer
        for depth, part in enumerate(parts, 1):
            if _is_opaque(at) and not os.path.lexists(os.path.join(at, part)):
                return None
            at = os.path.join(at, part)
            try:
                info = os.lstat(at)
            except OSError:
                break
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:  # an overlay's mark of what was deleted
                return None
            if depth < len(parts) and not stat.S_ISDIR(info.st_mode):  # hidden by the folder above it
                return None
        else:
            return at
    return None


def _is_opaque(folder: str) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(folder, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False
