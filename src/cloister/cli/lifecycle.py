"""`up`, `down`, `status`, `env`, `gc`: a Cloister's own life."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.parse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import msgspec

from cloister import options as options_file
from cloister.cli.main import json_option
from cloister.cli.paths import (
    ControlError,
    NotUp,
    Running,
    ask,
    ask_daemon,
    in_any_shell,
    itself,
    read_running,
)
from cloister.kernel import cgroups, holder
from cloister.options import Options

#: so often the daemon may end while it starts: what ends it rarely passes
TRIES = 3
#: it tells its log each step of its start, and no step takes so long, also where everything is slow
STEP_SECONDS = 180.0
#: so long a holder takes at most until it can be told to end
_BORN_SECONDS = 3.0
#: bytes; with less on its disk Cloister does not start
_LITTLE_ROOM = 4 << 20
#: where no terminal shows the progress it is told so often
TELL_SECONDS = 15.0
#: what `cloister env` sets
VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"),
)


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="HTTPS port on loopback.  [default: 4510]")
@click.option("--http-port", type=click.IntRange(0, 65535), help="Also serve plain HTTP there (0: do not).")
@click.option("--region", help="The region to be.  [default: us-east-1]")
@click.option("--account", help="The 12-digit account id to be.  [default: 123456789012]")
@click.option(
    "--cors-origin", "cors_origins", multiple=True, help="Allow this browser origin (off by default)."
)
@click.option(
    "--s3-backend", help="Keep objects in this S3 endpoint (URL) instead of the embedded SeaweedFS."
)
@click.option("--s3-backend-access-key", help="Its access key.")
@click.option("--s3-backend-secret-key", envvar="CLOISTER_S3_BACKEND_SECRET_KEY", help="Its secret key.")
@click.option("--rules-per-security-group", type=click.IntRange(1, 100000), help="Quota.  [default: 60]")
@click.option(
    "--stop-grace",
    type=click.FloatRange(min=0),
    help="Seconds from SIGINT to SIGKILL at a stop.  [default: 120]",
)
@click.option(
    "--internet/--no-internet",
    default=None,
    help="Whether gateways lead out of this host.  [default: they do]",
)
@click.option("--foreground", is_flag=True, help="Stay, show the daemon's log, and go down at Ctrl-C.")
@json_option
@click.pass_obj
def up(state: Path, /, foreground: bool, as_json: bool, **given: Any) -> None:
    """Start Cloister, or find it running. Options are remembered for the next `up`.

    \b
        cloister up                            in the background, on port 4510
        cloister up --foreground               stay, and show the daemon's log
        cloister up --region eu-west-1 --http-port 4511
        cloister --state ~/two up --port 4520  a second one beside it
    """
    kept = open_state(state)
    chosen = {name: value for name, value in given.items() if value not in (None, ())}
    unknown = set(chosen) - {f.name for f in fields(Options)}
    assert not unknown, unknown
    options = replace(kept, **chosen)
    _check(options)
    running = read_running(state)
    if running is not None and chosen and options != kept:
        raise click.ClickException(f"Cloister is up with other options. First: {itself(state, 'down')}")
    if (options.region, options.account) != (kept.region, kept.account) and (state / "world.sqlite").exists():
        raise click.ClickException(
            f"the resources in {state} are of region {kept.region}, account {kept.account}, and stay so. "
            "Another region or account takes a state folder of its own: cloister --state FOLDER up …"
        )
    options_file.write(state, options)
    if running is None:
        running = start(state, quiet=as_json)
    if as_json:
        click.echo(json.dumps({"state": str(state), "url": running.url, "pid": running.pid}))
    else:
        click.echo(f"Cloister is up at {running.url} (state in {state}).")
        click.echo(f'Next: eval "$({itself(state, "env")})"')
    if foreground:
        _follow(state)


def _check(options: Options) -> None:
    """What cannot be is told by its value, before anything of it is kept."""
    if not re.fullmatch(r"\d{12}", options.account, re.ASCII):
        raise click.UsageError(f"--account takes 12 digits, not {options.account!r}.")
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-[1-9]", options.region):
        raise click.UsageError(f"--region takes a name like eu-west-1, not {options.region!r}.")
    if options.port == options.http_port:
        raise click.UsageError(f"--port and --http-port are both {options.port}.")
    if options.s3_backend is not None and not _is_url(options.s3_backend):
        raise click.UsageError(
            f"--s3-backend takes a URL like http://10.0.0.9:9000, not {options.s3_backend!r}."
        )


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address that is none
        return False


def open_state(state: Path) -> Options:
    """Make the state folder where there is none; the options kept in it."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = options_file.read(state)
        options_file.write(state, kept)
    except OSError as error:
        raise click.ClickException(
            f"the state folder {state} cannot be used: {error.strerror or error}. "
            "Name another: cloister --state FOLDER up (or set CLOISTER_STATE)."
        ) from error
    except msgspec.DecodeError as error:
        raise click.ClickException(
            f"{options_file.path(state)} cannot be read: {error}. "
            "Mend it, or delete it to start with the defaults; nothing else is kept there."
        ) from error
    return kept


def start(state: Path, *, quiet: bool) -> Running:
    """Start the holder and its daemon, and wait until it answers: as long as it lives and gets on. Who ends
    the waiting (Ctrl-C) ends what was started."""
    try:
        return _start(state, quiet=quiet)
    except KeyboardInterrupt:
        end = time.monotonic() + _BORN_SECONDS
        while not holder.stop(state, 10) and time.monotonic() < end:
            time.sleep(0.05)
        click.echo("\nInterrupted: Cloister is not up.", err=True)
        raise


def _start(state: Path, *, quiet: bool) -> Running:
    log, life = state / "daemon.log", state / "holder.log"
    before, lived = _size(log), _size(life)
    try:
        program = [sys.executable, "-m", "cloister.daemon", str(state), in_any_shell(state)]
        holder.ensure(state, program, log)
    except (OSError, RuntimeError) as error:
        raise click.ClickException(f"{error}\n`cloister doctor` says what this host lacks.") from error
    began = got_on = told = time.monotonic()
    size = before
    while (running := read_running(state)) is None:
        now = time.monotonic()
        if (grown := _size(log)) != size:
            size, got_on = grown, now
        if why := _given_up(holder.info(state) is not None, holder.ends(state, lived), now - got_on):
            holder.stop(state, 10)
            if (free := shutil.disk_usage(state).free) < _LITTLE_ROOM:
                why += f", and the disk of {state} is full ({free >> 10} KiB are left)"
            text = f"{why}. The end of {log}:\n" + "\n".join(_lines(log, before)[-15:])
            raise click.ClickException(text)
        if not quiet and (sys.stderr.isatty() or now - told > TELL_SECONDS):
            told = now
            _show_progress(now - began, (_lines(log, before) or [""])[-1])
        time.sleep(0.05)
    if not quiet and sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    return running


def _given_up(alive: bool, ends: int, idle: float) -> str:
    """Why waiting for the daemon is of no use any more; "" while it is of use."""
    if not alive:
        return "the daemon ended"
    if ends >= TRIES:
        return f"the daemon ended {ends} times while it started"
    if idle > STEP_SECONDS:
        return f"the daemon lives, but got on with nothing for {STEP_SECONDS:.0f} s"
    return ""


def _show_progress(seconds: float, line: str) -> None:
    """On a terminal the line before is written over."""
    step = line.rpartition(" cloister: ")[2][:60]
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[Kstarting … {seconds:4.1f} s  {step}", nl=False, err=True)
    else:
        click.echo(f"still starting after {seconds:.0f} s: {step}", err=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _lines(log: Path, since: int) -> list[str]:
    return log.read_bytes()[since:].decode(errors="replace").splitlines() if log.exists() else []


def _follow(state: Path) -> None:
    try:
        subprocess.run(["tail", "-n", "0", "-F", str(state / "daemon.log")], check=False)
    except KeyboardInterrupt:
        holder.stop(state, 30)
        click.echo("Cloister is down.")


@click.command()
@json_option
@click.pass_obj
def down(state: Path, /, as_json: bool) -> None:
    """Stop Cloister. Jobs that run are ended; every resource and object is kept for the next `up`.

    \b
        cloister down && cloister up     start afresh, with all that there was
    """
    ended = _jobs_under_way(state)
    was_up = holder.stop(state, 30)
    if left := cgroups.remove_all(state):
        click.echo(f"These cgroups could not be removed: {', '.join(left)}", err=True)
    (state / "daemon.json").unlink(missing_ok=True)
    if as_json:
        click.echo(json.dumps({"was_up": was_up, "ended_jobs": ended}))
    else:
        click.echo("Cloister is down." if was_up else "Cloister was not up.")
        if ended:
            click.echo(f"Ended with it, and Failed at the next `up`: {', '.join(ended)}")


def _jobs_under_way(state: Path) -> list[str]:
    """Nothing keeps `down` from ending a daemon that does not answer."""
    with contextlib.suppress(OSError, ValueError, ControlError, http.client.HTTPException):
        found: list[str] = ask(state, "GET", "/under-way", timeout=5)
        return found
    return []


@click.command()
@json_option
@click.pass_obj
def status(state: Path, /, as_json: bool) -> None:
    """What runs, what it holds, and whether anything is wrong. Exits 3 when Cloister is not up.

    \b
        cloister status
        cloister status --json | jq .resources
    """
    running = read_running(state)
    if running is None:
        said = f"Cloister is not up. Start it: {itself(state, 'up')}"
        click.echo(json.dumps({"up": False}) if as_json else said)
        raise SystemExit(3)
    found = ask_daemon(state, "GET", "/status")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"up at {found['url']}, region {found['region']}, account {found['account']}")
    click.echo(f"memory {found['memory_mb']} MB, objects in {found['s3']}")
    click.echo(f"way out    {found['way_out']}")
    click.echo("resources  " + ", ".join(f"{count} {kind}" for kind, count in found["resources"].items()))
    if found["problem"]:
        click.echo(f"PROBLEM    {found['problem']}")
    for job in found["jobs"]:
        phase = f" ({job['phase']})" if job["phase"] != job["status"] else ""
        click.echo(f"job        {job['name']:30} {job['status'] + phase:11} {job['subnet'] or ''}".rstrip())


@click.command()
@click.option("--unset", is_flag=True, help="Print the lines that undo it.")
@json_option
@click.pass_obj
def env(state: Path, /, unset: bool, as_json: bool) -> None:
    """Print the exports that point AWS clients at this Cloister.

    \b
        eval "$(cloister env)"           boto3, the AWS CLI and the SDK talk to it
        eval "$(cloister env --unset)"   … and no longer
    """
    if unset:  # also when Cloister is down: then most of all
        click.echo(json.dumps(VARIABLES) if as_json else "\n".join(f"unset {name}" for name in VARIABLES))
        return
    running = read_running(state)
    if running is None:
        raise NotUp(state)
    variables = environment(state, running)
    if as_json:
        click.echo(json.dumps(variables, indent=2))
    else:
        for name, value in variables.items():
            click.echo(f"export {name}={shlex.quote(value)}")


def environment(state: Path, running: Running) -> dict[str, str]:
    """The variables every AWS client reads, for this Cloister's root key."""
    root = json.loads((state / "root.json").read_text())
    values = (
        running.url,
        os.environ.get("CLOISTER_ROOT_ACCESS_KEY_ID") or root["AccessKeyId"],
        os.environ.get("CLOISTER_ROOT_SECRET_ACCESS_KEY") or root["SecretAccessKey"],
        running.region,
        running.region,
        str(state / "bundle.pem"),
    )
    return dict(zip(VARIABLES, values, strict=True))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@click.pass_obj
def gc(state: Path, /, dry_run: bool, as_json: bool) -> None:
    """Remove what a crash of this machine may have left: folders of ended jobs, cgroups, stale files.

    \b
        cloister gc --dry-run               only say what would go
        cloister gc
    """
    removed = collect_garbage(state, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"removed": removed}))
    elif removed:
        click.echo(("Would remove:\n  " if dry_run else "Removed:\n  ") + "\n  ".join(removed))
    else:
        click.echo("Nothing to remove.")


def collect_garbage(state: Path, *, dry_run: bool) -> list[str]:
    """The paths removed. A running daemon cleans its own jobs; without one everything volatile is stale."""
    if read_running(state) is not None:
        found: list[str] = ask_daemon(state, "POST", "/gc?dry_run=1" if dry_run else "/gc")
        return found
    removed = [str(path) for path in (state / "run", state / "daemon.json") if path.exists()]
    if not dry_run:
        shutil.rmtree(state / "run", ignore_errors=True)
        (state / "daemon.json").unlink(missing_ok=True)
        cgroups.remove_all(state)
    return removed
