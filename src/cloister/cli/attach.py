"""`cloister attach`: a program of one's own on an interface in a VPC."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

from cloister.cli.paths import ControlError, NoAnswer, NotUp, hold
from cloister.kernel import holder

_RETRY_SECONDS = 15.0


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--subnet", required=True, metavar="ID", help="The subnet that the interface is made in.")
@click.option(
    "--security-group", "groups", multiple=True, metavar="ID", help="Repeatable.  [default: the VPC's]"
)
@click.option("--address", help="A private address of the subnet.  [default: any that is free]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def attach(
    state: Path, /, subnet: str, groups: tuple[str, ...], address: str | None, command: tuple[str, ...]
) -> None:
    """Run COMMAND on a network interface of its own in a VPC, until it ends.

    \b
    cloister attach --subnet subnet-0abc --security-group sg-0abc -- \\
        python3 -m http.server 80
    cloister attach --subnet subnet-0abc --address 10.0.1.20 -- \\
        runuser -u postgres -- postgres -D DATA

    It sees this machine's files, and of the network only what its security groups, the subnet's network ACL
    and route table let through, with the VPC's DNS. CLOISTER_INTERFACE and CLOISTER_ADDRESS tell it its
    place. The interface is released when COMMAND ends.

    Exit code: COMMAND's own; 2 there is no such subnet, group or free address, 3 Cloister is not up.
    """
    place = _Place(
        state, {"subnet": subnet, "groups": groups, "address": address, "command": " ".join(command)}
    )
    try:
        made = place.take()
    except ControlError as error:
        raise NoAnswer(str(error)) from error
    except OSError as error:
        raise NotUp(state) from error
    click.echo(f"{made['interface_id']} has {made['address']}", err=True)
    threading.Thread(target=place.keep, daemon=True).start()
    inner = [sys.executable, "-m", "cloister.kernel.attached", made["netns"], made["resolv_conf"]]
    inner += [str(os.geteuid()), str(os.getegid()), *command]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        ),
        "CLOISTER_INTERFACE": made["interface_id"],
        "CLOISTER_ADDRESS": made["address"],
    }
    sys.exit(holder.enter(state, inner, environment))


class _Place:
    """The interface, held by a connection to the daemon; taken again when the daemon was away."""

    def __init__(self, state: Path, wanted: dict[str, Any]) -> None:
        self._state = state
        self._wanted = wanted
        self._answer: http.client.HTTPResponse | None = None

    def take(self) -> dict[str, Any]:
        self._answer = hold(self._state, "/attach", self._wanted)
        made: dict[str, Any] = json.loads(self._answer.readline())
        self._wanted["interface_id"] = made["interface_id"]
        return made

    def keep(self) -> None:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                while self._answer is not None and self._answer.readline():
                    pass
            end = time.monotonic() + _RETRY_SECONDS
            while time.monotonic() < end:
                time.sleep(0.2)
                with contextlib.suppress(OSError, ValueError, ControlError, http.client.HTTPException):
                    self.take()
                    break
            else:
                return
