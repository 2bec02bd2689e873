"""`cloister demo`: start Cloister when it is not up, tell the story, leave it running."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cloister.cli.lifecycle import environment, open_state, start
from cloister.cli.main import json_option
from cloister.cli.paths import itself, read_running


@click.command()
@json_option
@click.pass_obj
def demo(state: Path, /, as_json: bool) -> None:
    """Show a job in a private VPC, end to end: 336,776 flights, what is reachable and what is refused.

    Every step checks what it prints; the command fails if any step is not as stated. Cloister is started if
    it is not up, and left running.

    \b
        cloister demo
        cloister --state /tmp/try demo      in a state folder of its own
    """
    from cloister.demo import blocks, data, story

    running = read_running(state)
    if running is None:
        open_state(state)
        running = start(state, quiet=as_json)
    lines: list[str] = []
    say = lines.append if as_json else click.echo
    try:
        story.tell(blocks.stage(running.region, environment(state, running), say))
        failed = None
    except (blocks.StoryError, data.DatasetMissing) as error:
        failed = str(error)
    if as_json:
        click.echo(json.dumps({"held": failed is None, "failed": failed, "lines": lines}, indent=2))
    if failed is not None:
        raise click.ClickException(failed)
    if not as_json:
        click.echo("\nCloister is still up. Go on:")
        evaluated = f'eval "$({itself(state, "env")})"'
        for command, what in (
            (evaluated, "boto3, the AWS CLI and the SDK now talk to it"),
            ("aws ec2 describe-vpcs", "… as does any other client"),
            (itself(state, "status"), "what it holds, and its latest jobs"),
            (itself(state, "why JOB"), "which rule lets a job through, or refuses it"),
            (itself(state, "down"), "stop; resources and objects are kept"),
        ):
            click.echo(f"    {command:<{max(30, len(evaluated))}}  {what}")
