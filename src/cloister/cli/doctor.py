"""`cloister doctor`: what this host can do, found by trying."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cloister.cli.main import json_option
from cloister.cli.text import say
from cloister.kernel.facts import Fact, host_facts


@click.command()
@json_option
@click.pass_obj
def doctor(state: Path, /, as_json: bool) -> None:
    """Say what this host can do, what is missing, and the command that mends it. Exits 1 if one is.

    \b
        cloister doctor
        cloister doctor --json | jq '.[] | select(.ok | not)'
    """
    facts = [*host_facts(state), way_out_fact()]
    if as_json:
        click.echo(json.dumps([asdict(fact) for fact in facts], indent=2))
    else:
        for fact in facts:
            word = "ok" if fact.ok else "MISSING" if fact.needed else "without"
            say(fact.detail, f"{word:8} {fact.name:20} ")
            if not fact.ok and fact.fix:
                click.echo(f"{'':8} {'':20} → {fact.fix}")
    if not all(fact.ok or not fact.needed for fact in facts):
        raise SystemExit(1)


def way_out_fact() -> Fact:
    """Whether internet gateways can lead on to the real internet here."""
    from cloister import way_out  # what it imports is no part of a quick command

    link, missing = way_out.default_route(), way_out.missing()
    detail = missing or (f"{way_out.PROGRAM}, by {link}" if link else "the host has no default route")
    fix = ""
    if way_out.program() is None:
        fix = f"apt-get install {way_out.PROGRAM}"
    elif missing:
        fix = "chmod 666 /dev/net/tun"
    return Fact(name="way out", ok=not missing and link is not None, detail=detail, fix=fix, needed=False)
