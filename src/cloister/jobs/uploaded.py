"""What of an output with S3UploadMode Continuous is in S3 already, kept beside the output's folder.

A pass over the output while the container runs uploads what changed since the one before; the last one, when
it has ended, what the passes left. A file is known again by its size and time of modification.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: bytes; a file up to this size is read whole, so that it may change while it is uploaded
SMALL = 8 << 20
#: a larger one waits until nobody has written to it for so many seconds
_QUIET_SECONDS = 2.0

#: a file's path below the output's folder -> {"stamp": its size and time, "sha256": digest}
Record = dict[str, dict[str, Any]]


def read(folder: str) -> Record:
    try:
        found: Record = json.loads(_path(folder).read_text())
    except FileNotFoundError:
        return {}
    return found


def write(folder: str, record: Record) -> None:
    scratch = _path(folder).with_suffix(".new")
    scratch.write_text(json.dumps(record))
    scratch.rename(_path(folder))


def _path(folder: str) -> Path:
    return Path(folder + ".uploaded")


def stamp(fd: int) -> list[int]:
    found = os.fstat(fd)
    return [found.st_size, found.st_mtime_ns]


def can_be_read(folder: str, parts: tuple[str, ...], size: int, now: float) -> bool:
    """Whether a pass takes this file, or leaves it to a later one."""
    if size <= SMALL:
        return True
    try:
        modified = os.stat(os.path.join(folder, *parts), follow_symlinks=False).st_mtime
    except OSError:
        return False
    return now - modified > _QUIET_SECONDS
