"""What a Cloister is started with. Kept in STATE/options.json, so that a daemon restarted by the holder is
the same Cloister; `cloister up` with other options rewrites it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

#: the only zones and services are those of one region and one account
DEFAULT_REGION = "us-east-1"
DEFAULT_ACCOUNT = "123456789012"
DEFAULT_PORT = 4510


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`port` serves HTTPS; `http_port` serves the same over plain HTTP when it is not 0.

    `s3_backend` is the URL of an S3 endpoint to keep objects in; None means the embedded SeaweedFS.
    `stop_grace` is the time in seconds between SIGINT and SIGKILL when a job is stopped."""

    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    http_port: int = 0
    region: str = DEFAULT_REGION
    account: str = DEFAULT_ACCOUNT
    cors_origins: tuple[str, ...] = ()
    s3_backend: str | None = None
    s3_backend_access_key: str | None = None
    s3_backend_secret_key: str | None = None
    rules_per_security_group: int = 60
    stop_grace: float = 120.0
    #: whether internet gateways lead on to the host's way out; AWS services are reached by them in any case
    internet: bool = True


def path(state: Path) -> Path:
    return state / "options.json"


def read(state: Path) -> Options:
    """The options of this state folder; the defaults when it has none yet."""
    try:
        return msgspec.json.decode(path(state).read_bytes(), type=Options)
    except FileNotFoundError:
        return Options()


def write(state: Path, options: Options) -> None:
    target = path(state)
    scratch = target.with_suffix(".new")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(options), indent=2))
    scratch.chmod(0o600)  # it may hold the backend's key
    os.replace(scratch, target)
