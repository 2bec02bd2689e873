"""Where a Cloister keeps its state, and how the commands talk to its daemon."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


def default_state() -> Path:
    """`CLOISTER_STATE`, else /var/lib/cloister for root, else ~/.local/state/cloister."""
    named = os.environ.get("CLOISTER_STATE")
    return Path(named) if named else _usual_state()


def _usual_state() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/cloister")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "cloister"


def itself(state: Path, words: str) -> str:
    """The command line of a command of ours about this state folder, to be typed as it is."""
    return f"{_command(state, default_state())} {words}"


def in_any_shell(state: Path) -> str:
    """The beginning of one for what is kept and read later, where CLOISTER_STATE may not be set."""
    return _command(state, _usual_state())


def _command(state: Path, default: Path) -> str:
    return "cloister" if state == default.absolute() else f"cloister --state {shlex.quote(str(state))}"


class NotUp(click.ClickException):
    """No daemon is up. Exit code 3, as `cloister status` has it."""

    exit_code = 3

    def __init__(self, state: Path) -> None:
        super().__init__(f"Cloister is not up. Start it: {itself(state, 'up')}")


class NoAnswer(click.ClickException):
    """The daemon refuses a question. Exit code 2: 1 is an answer that something fails."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a running daemon says of itself (STATE/daemon.json); `pid` is as this host knows it."""

    pid: int
    url: str
    region: str
    account: str
    http_url: str | None = None


def read_running(state: Path) -> Running | None:
    """The daemon's own words, or None when it is not up (whatever a stale file says)."""
    try:
        found = json.loads((state / "daemon.json").read_text())
        pid = _ping(state)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return Running(**{**found, "pid": pid})


def _ping(state: Path) -> int:
    """The pid of the daemon that answers. Its own word for it is of a pid namespace of its own: only the
    socket tells ours."""
    connection = _UnixConnection(state / "control.sock", 30)
    try:
        connection.request("GET", "/ping")
        connection.getresponse().read()
        return connection.peer
    finally:
        connection.close()


class ControlError(Exception):
    """The daemon answered a command with a refusal; the text says why."""


def ask_daemon(state: Path, method: str, path: str, body: Any = None) -> Any:
    """`ask`, for a command: what goes wrong ends it with its sentence and exit code."""
    try:
        return ask(state, method, path, body)
    except ControlError as error:
        raise NoAnswer(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise NotUp(state) from error


def ask(state: Path, method: str, path: str, body: Any = None, *, timeout: float = 60) -> Any:
    """One request on the daemon's control socket, `body` as JSON. ControlError when it is refused, OSError
    when no daemon is up."""
    connection = _UnixConnection(state / "control.sock", timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        answer = json.loads(response.read() or b"null")
        if response.status != 200:
            raise ControlError(answer["error"])
        return answer
    finally:
        connection.close()


def hold(state: Path, path: str, body: Any) -> http.client.HTTPResponse:
    """A POST whose answer stays open, to be read line by line. ControlError when it is refused, OSError when
    no daemon is up."""
    connection = _UnixConnection(state / "control.sock", 60)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    if response.status != 200:
        raise ControlError(json.loads(response.read())["error"])
    return response


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("cloister", timeout=timeout)
        self._path = path
        self.peer = 0

    def connect(self) -> None:
        # A socket's path is limited to 107 bytes; by way of the folder's descriptor it never is longer.
        folder = os.open(self._path.parent, os.O_PATH)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
            size = struct.calcsize("3i")  # struct ucred: pid, uid, gid
            self.peer = struct.unpack(
                "3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            )[0]
        finally:
            os.close(folder)
