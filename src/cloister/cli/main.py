"""`cloister`: the command line. Each command prints a value that another module returned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import click

from cloister.cli.paths import default_state

HELP = """Run Amazon SageMaker Processing jobs inside a private VPC, on this machine.

\b
A first session:
    cloister doctor                 what this host can do, and what to install
    cloister up                     start in the background
    eval "$(cloister env)"          point boto3, the AWS CLI and the SDK at it
    aws ec2 describe-vpcs           … and use AWS as you know it
    cloister check job.json         would this job work? without running it
    cloister logs my-job            what a job wrote
    cloister why my-job             which rule lets it through, or refuses it
    cloister receipt my-job         what it reached and was refused, signed
    cloister down                   stop; the next `up` finds every resource

Containers really run; security groups, route tables, endpoint policies and DNS are enforced by the
kernel, in namespaces of Cloister's own. Nothing on the host's network or firewall is changed.
"""


class _LazyGroup(click.Group):
    """Loads a command's module when the command is named, so that `cloister env` stays quick."""

    commands_in: ClassVar[dict[str, str]] = {
        "up": "lifecycle",
        "down": "lifecycle",
        "status": "lifecycle",
        "env": "lifecycle",
        "gc": "lifecycle",
        "doctor": "doctor",
        "logs": "logs",
        "attach": "attach",
        "why": "why",
        "check": "check",
        "receipt": "receipt",
        "demo": "demo",
        "completion": "completion",
    }

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # as a shell tells it of other commands, without a word
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Whole sentences: click cuts them."""
        with formatter.section("Commands"):
            rows = [(name, _first_sentence(self.get_command(ctx, name))) for name in self.commands_in]
            formatter.write_dl(rows)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self.commands_in.get(cmd_name)
        if module is None:
            return None
        found = __import__(f"cloister.cli.{module}", fromlist=["commands"])
        command: click.Command = getattr(found, cmd_name)
        return command


def _first_sentence(command: click.Command | None) -> str:
    text = " ".join((command.help or "").split("\n\n")[0].split()) if command is not None else ""
    return text.partition(". ")[0].removesuffix(".") + "."


@click.group(cls=_LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="CLOISTER_STATE",
    help="Folder that keeps everything. [default: /var/lib/cloister as root, else ~/.local/state/cloister]",
)
@click.version_option(package_name="cloister")
@click.pass_context
def main(ctx: click.Context, state: Path | None) -> None:
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    ctx.obj = (state or default_state()).absolute()


def json_option(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)


if __name__ == "__main__":
    main()
