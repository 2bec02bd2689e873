"""`cloister logs JOB`: what a job's containers wrote."""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path

import click

from cloister.cli.main import json_option
from cloister.cli.paths import ask_daemon


@click.command()
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@json_option
@click.pass_obj
def logs(state: Path, /, job: str, follow: bool, as_json: bool) -> None:
    """Print what JOB wrote, all instances merged in time, and at the end how it ended.

    \b
        cloister logs my-job
        cloister logs my-job --follow       go on until it has ended

    Exit code: 0 whatever became of the job, 2 no such job, 3 Cloister is not up.
    """
    after = ""
    while True:
        found = ask_daemon(state, "GET", f"/logs?job={urllib.parse.quote(job, safe='')}&after={after}")
        for event in found["events"]:
            click.echo(json.dumps(event) if as_json else _line(event))
        after = found["next"]
        if not follow or found["ended"]:
            break
        if not found["events"]:
            time.sleep(0.5)
    if not as_json and found["ended"]:
        reason = f": {found['failure_reason']}" if found["failure_reason"] else ""
        click.echo(f"{job} is {found['status']}{reason}", file=sys.stderr)


def _line(event: dict[str, object]) -> str:
    when = datetime.fromtimestamp(float(str(event["timestamp"])) / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    return f"{when} {event['instance']:8} {event['message']}"
