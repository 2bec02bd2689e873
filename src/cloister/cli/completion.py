"""`cloister completion`: the shell's completion script, made by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cloister.cli.main import main


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
        eval "$(cloister completion bash)"            in ~/.bashrc
        eval "$(cloister completion zsh)"             in ~/.zshrc
        cloister completion fish | source             in config.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "cloister", "_CLOISTER_COMPLETE").source())
