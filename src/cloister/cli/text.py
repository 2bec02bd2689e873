"""How sentences and commands are printed: for a terminal's width, or, to a file or pipe, one line each."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click


def say(text: str, first: str = "", rest: int | None = None) -> None:
    """A sentence after `first`; in a terminal its further lines are indented by `rest`, as far as `first`
    reaches by default."""
    text = printable(text)
    if not sys.stdout.isatty():
        click.echo(first + text)
        return
    indent = len(click.unstyle(first)) if rest is None else rest
    width = max(40, shutil.get_terminal_size().columns)
    lines = textwrap.wrap(text, max(30, width - indent), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
    click.echo(first + lines[0])
    for line in lines[1:]:
        click.echo(" " * indent + line)


def tell_command(label: str, command: str, indent: int) -> None:
    """A command to be copied: whole, on a line of its own in a terminal, whatever its length."""
    shown = click.style(command, fg="cyan")
    if sys.stdout.isatty():
        click.echo(" " * indent + f"{label}:")
        click.echo(shown)
    else:
        click.echo(" " * indent + f"{label}: {shown}")


def printable(text: str) -> str:
    """Keys and names are whatever a container made them: none of them shall move a terminal's cursor."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def mark(good: bool) -> str:
    return click.style("✓", fg="green") if good else click.style("✗", fg="red")
