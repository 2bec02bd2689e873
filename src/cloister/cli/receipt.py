"""`cloister receipt`: what a job reached, signed; and whether a receipt is genuine."""

from __future__ import annotations

import base64
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from cloister.cli.main import json_option
from cloister.cli.paths import ask_daemon, itself
from cloister.cli.text import mark, say


@click.command()
@click.argument("job", required=False)
@click.option(
    "--verify",
    "to_verify",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Check a receipt instead; needs no daemon.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the signed receipt (JSON) to this file.",
)
@json_option
@click.pass_obj
def receipt(
    state: Path, /, job: str | None, to_verify: Path | None, output: Path | None, as_json: bool
) -> None:
    """Show what JOB reached: every destination with its bytes and the rules that let it through, every
    refusal, the network it was in, digests of its inputs and outputs.

    \b
    cloister receipt my-job
    cloister receipt my-job -o my-job.receipt.json
    cloister receipt --verify my-job.receipt.json

    Receipts are signed with this installation's Ed25519 key, STATE/receipt.key. Exit code of --verify: 0 when
    it is genuine and of this installation, 1 when it was changed or is no receipt, 4 when it is genuine but
    signed with another key.
    """
    if (job is None) is (to_verify is None):
        raise click.UsageError("Name a JOB, or --verify FILE.")
    if to_verify is not None:
        sys.exit(_verify(state, to_verify, as_json))
    signed = ask_daemon(state, "POST", "/receipt", {"job": job})
    text = json.dumps(signed, indent=2, sort_keys=True, ensure_ascii=False)
    if output is not None:
        output.write_text(text + "\n")
        verifying = itself(state, f"receipt --verify {shlex.quote(str(output))}")
        click.echo(f"Wrote {output}. Check it with: {verifying}", err=True)
    if as_json:
        click.echo(text)
    elif output is None:
        _print(signed["receipt"])


def _verify(state: Path, path: Path, as_json: bool) -> int:
    from cloister.receipt_key import signing_key
    from cloister.why.receipt import NotGenuine, verify

    try:
        body, key = verify(path.read_text())
    except (NotGenuine, UnicodeDecodeError) as error:
        if as_json:
            click.echo(json.dumps({"genuine": False, "why": str(error)}))
        else:
            click.echo(f"{mark(False)} {path} is not genuine: {error}")
        return 1
    own = ""
    if (state / "receipt.key").exists():
        own = base64.b64encode(signing_key(state).public_key().public_bytes_raw()).decode()
    if as_json:
        told = {"genuine": True, "job": body["job"]["name"], "key": key, "own_key": key == own}
        click.echo(json.dumps(told))
    elif key == own:
        click.echo(
            f"{mark(True)} {path} is genuine: the receipt of {body['job']['name']}, of this installation."
        )
    else:
        click.echo(
            f"{mark(False)} {path} was not changed since it was signed, but with another key than this "
            f"installation's ({state / 'receipt.key'}): {key}. Ask its owner whether that is theirs."
        )
    return 0 if key == own else 4


def _print(body: dict[str, Any]) -> None:
    job, network = body["job"], body["network"]
    reason = f": {job['failure_reason']}" if job["failure_reason"] else ""
    say(f"{job['name']} is {job['status']}{reason}")
    say(f"{job['image']}, role {job['role']}, {job['created']} to {job['ended'] or 'now'}", "  ")
    _heading("Network")
    if "subnet" in network:
        groups = ", ".join(group["id"] for group in network["security_groups"])
        say(
            f"{network['vpc']['id']}, {network['subnet']['id']} ({network['subnet']['zone']}), {groups}", "  "
        )
    elif network:
        say(network["network"], "  ")
    for host, each in network.get("instances", {}).items():
        say(f"{host}: {each['address']}, its agent {each['agent']}", "  ")
    if body["reached"]:
        _heading("Reached")
    for each in body["reached"]:
        where = f"{each['who']} {each['way']} {_place(each['other'], each.get('name'))} {_port(each)}"
        sent, received = _bytes(each["bytes_sent"]), _bytes(each["bytes_received"])
        say(f"{where}: {sent} sent, {received} received", f"{mark(True)} ")
        if each.get("through"):
            say(f"through {', '.join(dict.fromkeys(each['through']))}", "      ")
    if body["requests"]:
        _heading("Requests, as policies decided them")
    for each in body["requests"]:
        good = each["outcome"] == "allowed"
        say(f"{each['who']}: {each['action']} {each['resource']}, {_times(each['count'])}", f"{mark(good)} ")
        by = f", by {each['endpoint']}" if each["endpoint"] else ""
        say(f"{', '.join(each['by']) or 'no statement'}{by}", "      ")
        if not good:
            say(each["why"], "      ")
    if body["refused"] or body.get("unknown_names"):
        _heading("Refused")
    for each in body["refused"]:
        where = f"{each['who']} to {_place(each['to'], each.get('name'))} {_port(each)}"
        say(f"{where}: {each['packets']} packet{'s' if each['packets'] != 1 else ''}", f"{mark(False)} ")
        say(each["why"], "      ")
    for each in body.get("unknown_names", ()):
        say(f"{each['who']}: the name {each['name']}, {_times(each['questions'])}", f"{mark(False)} ")
        say(each["why"], "      ")
    for kind in ("inputs", "outputs"):
        if body["data"][kind]:
            _heading(kind.capitalize())
        for name, channel in body["data"][kind].items():
            for host, digest in channel.items():
                if host != "uri":
                    objects = f"{digest['objects']} object{'s' if digest['objects'] != 1 else ''}"
                    what = f"{name} ({host}) {channel['uri']}: {objects}, {_bytes(digest['bytes'])}"
                    say(f"{what}, sha256 {digest['sha256']}", "  ", rest=4)
    if body["lines_left_out"]:
        click.echo(f"\n{body['lines_left_out']} more lines were left out.")
    for why in body["connections_may_be_missing"]:
        click.echo("")
        say(why, f"{mark(False)} ")


def _port(line: dict[str, Any]) -> str:
    port = f" port {line['port']}" if line["port"] is not None else ""
    return f"{line['protocol']}{port}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _place(address: str, name: str | None) -> str:
    return f"{name} ({address})" if name else address


def _heading(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
