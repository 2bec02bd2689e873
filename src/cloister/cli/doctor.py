"""`cloister doctor`: what this host can do, found by trying."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from cloister.cli.main import json_option
from cloister.kernel.facts import host_facts


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this host can do, what is missing, and the command that mends it. Exits 1 if one is.

    \b
        cloister doctor
        cloister doctor --json | jq '.[] | select(.ok | not)'
    """
    facts = host_facts()
    if as_json:
        click.echo(json.dumps([asdict(fact) for fact in facts], indent=2))
    else:
        for fact in facts:
            word = "ok" if fact.ok else "MISSING" if fact.needed else "without"
            click.echo(f"{word:8} {fact.name:20} {fact.detail}")
            if not fact.ok and fact.fix:
                click.echo(f"{'':8} {'':20} → {fact.fix}")
    if not all(fact.ok or not fact.needed for fact in facts):
        raise SystemExit(1)
