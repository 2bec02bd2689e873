"""`cloister why`: which gate lets something through or refuses it, and what would change that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cloister.cli.main import json_option
from cloister.cli.paths import ask_daemon
from cloister.cli.text import mark, say, tell_command


@click.command()
@click.argument("job", required=False)
@click.option("--from", "source", metavar="ENI", help="Ask for this interface (id or private address).")
@click.option("--to", "target", metavar="ADDRESS[:PORT]", help="… to this address or interface.")
@click.option("--protocol", default="tcp", show_default=True, help="With --to: tcp, udp, icmp or a number.")
@click.option("--request", metavar="'METHOD URL'", help="… making this request, of a URL or s3://BUCKET/KEY.")
@click.option("--role", help="With --request: signed by a session of this role. [default: the root user]")
@click.option(
    "--action", metavar="SERVICE:ACTION[=ARN]", help="With --request, of a service other than S3: what it is."
)
@json_option
@click.pass_obj
def why(
    state: Path,
    /,
    job: str | None,
    source: str | None,
    target: str | None,
    protocol: str,
    request: str | None,
    role: str | None,
    action: str | None,
    as_json: bool,
) -> None:
    """Explain, gate by gate, why JOB (or one connection, or one request) is let through or refused.

    \b
    cloister why my-job
    cloister why --from eni-0123 --to 10.0.1.7:5432
    cloister why --from eni-0123 --role my-role \\
        --request 'GET s3://my-bucket/data.csv'
    cloister why --from eni-0123 --role my-role --action kms:Decrypt \\
        --request 'POST https://kms.us-east-1.amazonaws.com/'

    Every step names the resource and rule that decided; after a refusal comes the smallest change that
    would allow it, as an AWS CLI command. Of a job that runs or has ended you see first what was really
    dropped and refused.

    Exit code: 0 all is let through by the rules as they are, 1 something is refused, 2 no such job or
    interface, 3 Cloister is not up.
    """
    found = ask_daemon(state, "POST", "/why", _question(job, source, target, protocol, request, role, action))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    sys.exit(0 if all(answer["allowed"] for answer in found["answers"]) else 1)


def _question(
    job: str | None,
    source: str | None,
    target: str | None,
    protocol: str,
    request: str | None,
    role: str | None,
    action: str | None,
) -> dict[str, Any]:
    if job is not None and source is None:
        return {"job": job}
    if job is None and source is not None and (target is None) is not (request is None):
        if request is not None:
            return {"from": source, "request": request, "role": role, "action": action}
        return {"from": source, "to": target, "protocol": protocol}
    raise click.UsageError(
        "Name a JOB, or --from with either --to or --request. As in: cloister why my-job; "
        "cloister why --from eni-0123 --to 10.0.1.7:5432"
    )


def _print(found: dict[str, Any]) -> None:
    if "job" in found:
        reason = f": {found['failure_reason']}" if found["failure_reason"] else ""
        say(f"{found['job']} is {found['status']}{reason}")
        click.echo("")
        if found["refused"]:
            click.echo("Refused while it ran:")
            for each in found["refused"]:
                unit = each["unit"] if each["times"] != 1 else each["unit"].removesuffix("s")
                say(f"{each['what']} ({each['times']} {unit})", f"{mark(False)} ")
                say(each["why"], "    ")
                if each["fix"]:
                    tell_command("to allow it", each["fix"], 4)
            click.echo("")
        elif found["ended"]:
            click.echo("Nothing was refused to it while it ran.\n")
        if found["ended"]:
            click.echo("By the rules as they are now:")
    before: list[dict[str, Any]] = []
    for answer in found["answers"]:
        say(answer["what"], f"{mark(answer['allowed'])} ")
        print_steps(answer["steps"], before)
        before = answer["steps"]


def print_steps(steps: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """What is the same as at the beginning of `before` is not said again."""
    same = next((n for n, (one, two) in enumerate(zip(steps, before, strict=False)) if one != two), None)
    known = min(len(steps), len(before)) if same is None else same
    if known > 1:
        good = all(step["allowed"] for step in steps[:known])
        gates = ", ".join(dict.fromkeys(step["gate"] for step in steps[:known]))
        say(f"{gates}: as above", f"    {mark(good)} ")
        steps = steps[known:]
    for step in steps:
        say(step["sentence"], f"    {mark(step['allowed'])} {step['gate']:<16} ")
        if step["fix"]:
            tell_command("to allow it", step["fix"], 23)
