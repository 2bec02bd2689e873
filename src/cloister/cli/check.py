"""`cloister check`: would this job work, without running it?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

import click

from cloister.cli.main import json_option
from cloister.cli.paths import NoAnswer, ask_daemon
from cloister.cli.text import mark, say, tell_command


@click.command()
@click.argument("job_json", type=click.File(), required=False, metavar="JOB.json")
@click.option(
    "--from-aws-cli-skeleton",
    "skeleton",
    type=click.File(),
    metavar="FILE",
    help="The input of `aws sagemaker create-processing-job --cli-input-json`; - reads standard input.",
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME",
    help="What the container asks: a service as in sts, with an action as in kms:Decrypt[=ARN], which is put "
    "to the policies, or HOST[:PORT] (repeatable).",
)
@json_option
@click.pass_obj
def check(
    state: Path,
    /,
    job_json: IO[str] | None,
    skeleton: IO[str] | None,
    services: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a CreateProcessingJob request against the VPC as it is now, without running it.

    \b
    cloister check job.json
    cloister check job.json --service kms:Decrypt --service 10.0.7.5:5432
    aws sagemaker create-processing-job --generate-cli-skeleton > job.json

    The last prints a form to fill in; members that are not needed must be taken out of it.

    Looked at: the request, the image and its command, the role and its permissions, addresses and zones, the
    instances among each other, objects, route and policies of every input and output, and every --service.
    Exit code: 0 the job can run, 1 something fails, 2 the file cannot be read, 3 Cloister is not up.
    """
    file = job_json or skeleton
    if file is None or (job_json is not None and skeleton is not None):
        raise click.UsageError("Name one file, or - for standard input.")
    try:
        request: Any = json.load(file)
    except ValueError as error:
        raise NoAnswer(f"{file.name} is no JSON: {error}") from error
    found = ask_daemon(state, "POST", "/check", {"request": request, "services": services})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for finding in found["findings"]:
            say(f"{finding['about']}: {finding['sentence']}", f"{mark(finding['ok'])} ")
            if finding["fix"] and not finding["ok"]:
                tell_command("to fix it", finding["fix"], 4)
        wrong = sum(not finding["ok"] for finding in found["findings"])
        fail = "fails" if wrong == 1 else "fail"
        click.echo("The job can run." if not wrong else f"{wrong} of {len(found['findings'])} checks {fail}.")
    sys.exit(0 if found["ok"] else 1)
