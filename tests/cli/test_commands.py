"""The commands as people and scripts meet them: help that teaches, JSON that parses, errors that help.

No daemon runs here; where one is needed, a small server gives the answers of `cloister.control`. With a real
one the commands are driven in tests/e2e.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import socketserver
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click import Command, Context, unstyle
from click.testing import CliRunner, Result

from cloister.cli import lifecycle
from cloister.cli.main import main
from cloister.cli.paths import Running, in_any_shell

COMMANDS = main.list_commands(Context(main))
#: without output of their own to parse: a script for a shell; the output of somebody's command
WITHOUT_JSON = {"completion", "attach"}


def run(*arguments: str, state: Path | None = None, environment: dict[str, str] | None = None) -> Result:
    where = [] if state is None else ["--state", str(state)]
    return CliRunner().invoke(
        main, [*where, *arguments], env=environment, catch_exceptions=False, prog_name="cloister"
    )


def command(name: str) -> Command:
    found = main.get_command(Context(main), name)
    assert found is not None
    return found


# -- help --


def test_the_first_help_shows_a_session_and_every_command() -> None:
    shown = run("--help").output
    for line in ("cloister doctor", "cloister up", 'eval "$(cloister env)"', "cloister down"):
        assert line in shown
    for name in COMMANDS:
        assert f"\n  {name} " in shown
    assert run("-h").output == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_shows_how(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    before, _, options = result.output.partition("\nOptions:\n")
    assert "cloister " in before.split("\n", 1)[1], "no example"
    first = command(name).get_short_help_str(200)
    assert first[0].isupper()
    for option in command(name).params:
        if option.param_type_name == "option":
            assert getattr(option, "help", None), f"{option.name} has no help"
    assert ("--json" in options) is (name not in WITHOUT_JSON)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_in_80_columns(name: str) -> None:
    shown = run(*([name] if name else []), "--help", environment={"COLUMNS": "80"}).output
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_no_line_of_an_example_is_wrapped_into_another() -> None:
    for name in COMMANDS:
        lines = run(name, "--help").output.splitlines()[1:]
        assert all(line.count("cloister ") < 2 or "&&" in line for line in lines if line.startswith("      "))


def test_a_mistyped_command_or_option_is_told_where_help_is() -> None:
    for arguments in (["pu"], ["up", "--prot", "1"], ["logs"], ["completion", "tcsh"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "--help" in result.output


def test_the_version_is_printed() -> None:
    assert run("--version").output.startswith("cloister, version ")


# -- without a daemon --


@pytest.mark.parametrize(
    "arguments",
    [
        ["env"],
        ["env", "--json"],
        ["logs", "my-job"],
        ["status"],
        ["why", "my-job"],
        ["why", "--from", "10.0.0.4", "--to", "10.0.0.5:80"],
    ],
)
def test_what_needs_a_daemon_says_how_to_start_one(arguments: list[str], tmp_path: Path) -> None:
    if arguments[0] not in COMMANDS:
        pytest.skip("not there yet")
    result = run(*arguments, state=tmp_path / "none")
    assert result.exit_code == 3
    assert f"Start it: cloister --state {tmp_path / 'none'} up\n" in result.output
    usual = run(*arguments, environment={"CLOISTER_STATE": str(tmp_path / "none")})
    assert "Start it: cloister up\n" in usual.output
    assert not (tmp_path / "none").exists(), "asking makes no state folder"


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["status", "--json"], 3, {"up": False}),
        (["down", "--json"], 0, {"was_up": False, "ended_jobs": []}),
        (["env", "--unset", "--json"], 0, list(lifecycle.VARIABLES)),
        (["gc", "--json"], 0, {"removed": []}),
        (["gc", "--dry-run", "--json"], 0, {"removed": []}),
    ],
)
def test_without_a_daemon_json_is_json_too(
    arguments: list[str], code: int, answer: dict[str, Any], tmp_path: Path
) -> None:
    result = run(*arguments, state=tmp_path)
    assert (result.exit_code, json.loads(result.output)) == (code, answer)


def test_what_a_crash_left_is_removed_but_not_by_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "netns").mkdir(parents=True)
    (tmp_path / "daemon.json").write_text(
        '{"pid": 1, "url": "https://127.0.0.1:1", "region": "r", "account": "1"}'
    )
    left = [str(tmp_path / "run"), str(tmp_path / "daemon.json")]
    assert json.loads(run("gc", "--dry-run", "--json", state=tmp_path).output) == {"removed": left}
    assert (tmp_path / "run").exists()
    assert run("gc", state=tmp_path).output.startswith("Removed:\n")
    assert run("gc", state=tmp_path).output == "Nothing to remove.\n"


@pytest.mark.parametrize("name", ["up", "demo"])
def test_a_state_folder_that_cannot_be_made_is_told_with_what_to_do(name: str) -> None:
    result = run(name, state=Path("/proc/no-such-folder"))
    assert result.exit_code == 1
    assert "the state folder /proc/no-such-folder cannot be used" in result.output
    assert "cloister --state FOLDER up" in result.output


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("up", state=tmp_path / "file")
    assert result.exit_code == 2
    assert "is a file" in result.output


@pytest.mark.parametrize("text", ["{", '{"port": "many"}', "[]"])
def test_options_that_cannot_be_read_are_told_by_their_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(text)
    result = run("up", state=tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}/options.json cannot be read" in result.output
    assert "delete it to start with the defaults" in result.output
    assert (tmp_path / "options.json").read_text() == text, "nothing is overwritten"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--account", "12"], "--account takes 12 digits, not '12'"),
        (["--port", "4600", "--http-port", "4600"], "--port and --http-port are both 4600"),
        (["--port", "70000"], "70000 is not in the range 1<=x<=65535"),
        (["--rules-per-security-group", "0"], "is not in the range"),
        (["--stop-grace", "long"], "is not a valid float"),
        (["--stop-grace", "-1"], "-1.0 is not in the range"),
        (["--region", "not a region"], "--region takes a name like eu-west-1, not 'not a region'"),
        (["--s3-backend", "http://[x"], "--s3-backend takes a URL like"),
        (["--s3-backend", "http://x:port"], "--s3-backend takes a URL like"),
        (["--s3-backend", "nonsense"], "--s3-backend takes a URL like http://10.0.0.9:9000, not 'nonsense'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_value(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    result = run("up", *arguments, state=tmp_path)
    assert result.exit_code == 2
    assert told in result.output
    kept = tmp_path / "options.json"
    assert not kept.exists() or json.loads(kept.read_text())["region"] == "us-east-1", "nothing of it is kept"


def test_a_state_folder_stays_of_its_region_and_account(tmp_path: Path) -> None:
    (tmp_path / "world.sqlite").touch()
    result = run("up", "--region", "eu-west-1", state=tmp_path)
    assert result.exit_code == 1
    assert "are of region us-east-1, account 123456789012, and stay so" in result.output


def test_the_variables_are_taken_back_also_when_cloister_is_down(tmp_path: Path) -> None:
    assert run("env", "--unset", state=tmp_path).output.splitlines()[0] == "unset AWS_ENDPOINT_URL"


def test_the_state_folder_comes_from_the_option_the_variable_or_the_home(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "run").mkdir(parents=True)
    named = {"CLOISTER_STATE": str(there)}
    assert json.loads(run("gc", "--dry-run", "--json", state=here, environment=named).output) == {
        "removed": [str(here / "run")]
    }
    assert json.loads(run("gc", "--dry-run", "--json", environment=named).output) == {
        "removed": [str(there / "run")]
    }


# -- doctor, completion --


def test_the_doctor_names_each_thing_that_is_missing_and_its_cure() -> None:
    result = run("doctor", "--json")
    facts = json.loads(result.output)
    assert {"name", "ok", "needed", "detail", "fix"} <= set(facts[0])
    assert all(fact["fix"] for fact in facts if fact["needed"] and not fact["ok"])
    assert result.exit_code == int(any(fact["needed"] and not fact["ok"] for fact in facts))
    shown = run("doctor").output
    for fact in facts:
        assert fact["name"] in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_asks_cloister_itself(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_CLOISTER_COMPLETE={shell}_complete" in result.output


def test_a_shell_that_asks_is_given_the_commands_and_their_options() -> None:
    def completed(words: str, at: int) -> str:
        asked = {"_CLOISTER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        program = [sys.executable, "-c", "from cloister.cli.main import main; main(prog_name='cloister')"]
        done = subprocess.run(
            program, env={**os.environ, **asked}, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout

    assert {line.split(",")[1] for line in completed("cloister ", 1).splitlines()} >= set(COMMANDS)
    assert "--follow" in completed("cloister logs --", 2)


# -- with one --

STATUS = {
    "pid": 1,
    "up": True,
    "url": "https://127.0.0.1:4510",
    "region": "us-east-1",
    "account": "123456789012",
    "memory_mb": 70,
    "s3": "/var/lib/cloister/objects (SeaweedFS)",
    "problem": "the kernel refused a rule",
    "way_out": "none",
    "resources": {"VPCs": 2, "jobs": 1},
    "jobs": [{"name": "etl", "status": "InProgress", "phase": "running", "subnet": "subnet-1"}],
}
EVENTS = [
    {"timestamp": 1_700_000_000_123, "instance": "algo-1", "message": "hello, wörld"},
    {"timestamp": 1_700_000_001_000, "instance": "algo-2", "message": "bye"},
]
ANSWERS: dict[str, tuple[int, Any]] = {
    "/ping": (200, {"pid": 1}),
    "/status": (200, STATUS),
    "/gc": (200, ["/x/jobs/etl-1"]),
    "/under-way": (200, ["etl"]),
    "/logs?job=etl&after=": (
        200,
        {"events": EVENTS, "next": "2", "ended": True, "status": "Failed", "failure_reason": "exit code 3"},
    ),
    "/logs?job=nobody&after=": (404, {"error": "There is no job nobody; `cloister status` lists them."}),
}


_FINDING = {"ok": True, "about": "role", "sentence": "It may.", "fix": None, "steps": []}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, value = ANSWERS[self.path]
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder in which a daemon answers."""
    running = {name: STATUS[name] for name in ("pid", "url", "region", "account")}
    (tmp_path / "daemon.json").write_text(json.dumps(running))
    (tmp_path / "root.json").write_text(
        json.dumps({"AccessKeyId": "AKIAX", "SecretAccessKey": "it's/secret"})
    )
    server = socketserver.UnixStreamServer(str(tmp_path / "control.sock"), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_status_names_jobs_and_what_is_wrong(state: Path) -> None:
    shown = run("status", state=state).output
    assert "PROBLEM    the kernel refused a rule" in shown
    assert "resources  2 VPCs, 1 jobs" in shown
    assert "etl " in shown
    assert json.loads(run("status", "--json", state=state).output) == STATUS


def test_the_environment_is_what_a_shell_reads_back(state: Path) -> None:
    keys = {"CLOISTER_ROOT_ACCESS_KEY_ID": "", "CLOISTER_ROOT_SECRET_ACCESS_KEY": ""}
    variables = json.loads(run("env", "--json", state=state, environment=keys).output)
    assert variables["AWS_ENDPOINT_URL"] == STATUS["url"]
    assert variables["AWS_SECRET_ACCESS_KEY"] == "it's/secret"
    assert variables["AWS_CA_BUNDLE"] == str(state / "bundle.pem")
    script = run("env", state=state, environment=keys).output + 'echo "$AWS_SECRET_ACCESS_KEY|$AWS_REGION"\n'
    script += (
        run("env", "--unset", state=state, environment=keys).output + 'echo "<$AWS_SECRET_ACCESS_KEY>"\n'
    )
    done = subprocess.run(["sh", "-eu"], input=script.replace("<$", "<${").replace('KEY>"', 'KEY-}>"'),
                          capture_output=True, text=True, timeout=30, check=True)  # fmt: skip
    assert done.stdout == "it's/secret|us-east-1\n<>\n"


def test_the_environment_names_the_keys_that_the_daemon_was_given(state: Path) -> None:
    keys = {"CLOISTER_ROOT_ACCESS_KEY_ID": "mine", "CLOISTER_ROOT_SECRET_ACCESS_KEY": "my own"}
    variables = json.loads(run("env", "--json", state=state, environment=keys).output)
    assert (variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]) == ("mine", "my own")


def test_logs_are_lines_with_time_and_instance_or_one_json_value_a_line(state: Path) -> None:
    shown = run("logs", "etl", state=state).output
    assert "22:13:20.123 algo-1   hello, wörld\n22:13:21.000 algo-2   bye\n" in shown
    assert "etl is Failed: exit code 3" in shown
    lines = run("logs", "etl", "--json", state=state).output.splitlines()
    assert [json.loads(line) for line in lines] == EVENTS


LONG = (
    "aws ec2 create-vpc-endpoint --vpc-id vpc-1 --service-name com.amazonaws.us-east-1.s3 --route-table-ids"
)
NOWHERE = "The route table rtb-1 " + "has no route " * 9
STEPS = [
    {"gate": "dns", "allowed": True, "sentence": "It is 3.5.0.1.", "fix": None},
    {"gate": "route", "allowed": False, "sentence": NOWHERE, "fix": LONG},
]
WHY = {
    "answers": [
        {"what": "input a: list", "allowed": False, "steps": STEPS},
        {"what": "input a: read", "allowed": False, "steps": STEPS},
    ]
}


def test_an_explanation_is_wrapped_for_a_terminal_and_its_commands_are_not(state: Path) -> None:
    ANSWERS["/why"] = (200, WHY)
    question = ["why", "--from", "eni-1", "--to", "10.0.0.1"]
    piped = run(*question, state=state)
    assert piped.exit_code == 1
    assert len(piped.output.splitlines()) == 6
    assert f"to allow it: {LONG}\n" in piped.output
    assert piped.output.count("as above") == 1
    shown = in_terminal(*question, state=state)
    assert LONG in shown.splitlines()
    assert [line for line in shown.splitlines() if len(line) > 80 and line != LONG] == []
    assert shown.count("as above") == 1
    assert json.loads(run(*question, "--json", state=state).output) == WHY


def test_a_name_that_a_container_made_up_does_not_command_the_terminal(state: Path) -> None:
    evil = {
        "what": "algo-1: the name \x1b[2Jx\n",
        "why": "\x07",
        "fix": None,
        "times": 1,
        "unit": "questions",
    }
    ended = {"job": "etl", "status": "Failed", "failure_reason": "\x1b]0;x", "ended": True}
    ANSWERS["/why"] = (200, {**ended, "refused": [evil], "answers": []})
    shown = run("why", "etl", state=state).output
    assert "\\x1b[2Jx\\n (1 question)" in shown
    assert not {"\x1b", "\x07"} & set(shown)


def in_terminal(*arguments: str, state: Path) -> str:
    """What a command writes to a terminal of 80 columns, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    line = [sys.executable, "-m", "cloister.cli.main", "--state", str(state), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.Popen(line, stdout=slave, env=environment)
    os.close(slave)
    found = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the command has ended
        while part := os.read(master, 65536):
            found += part
    os.close(master)
    done.wait(30)
    return unstyle(found.decode().replace("\r\n", "\n"))


def test_a_refusal_of_the_daemon_is_shown_in_its_words(state: Path) -> None:
    result = run("logs", "nobody", state=state)
    assert result.exit_code == 2, "the question makes no sense"
    assert result.output == "Error: There is no job nobody; `cloister status` lists them.\n"


def test_a_running_daemon_collects_its_own_garbage(state: Path) -> None:
    assert json.loads(run("gc", "--json", state=state).output) == {"removed": ["/x/jobs/etl-1"]}


def test_up_with_other_options_does_not_change_a_running_cloister(state: Path) -> None:
    assert json.loads(run("up", "--json", state=state).output)["url"] == STATUS["url"]
    result = run("up", "--region", "eu-west-1", state=state)
    assert result.exit_code == 1
    assert f"First: cloister --state {state} down\n" in result.output


def test_the_pid_that_is_told_is_the_daemons_on_this_host(state: Path) -> None:
    told = json.loads(run("up", "--json", state=state).output)
    assert told["pid"] == os.getpid(), "who listens on its socket, whatever it calls itself"


def test_a_reader_that_has_seen_enough_is_no_daemon_that_is_down(state: Path) -> None:
    program = "from cloister.cli.main import main; main(prog_name='cloister')"
    command = [sys.executable, "-c", program, "--state", str(state), "logs", "etl"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_kept_to(
    state: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setitem(ANSWERS, "/check", (200, {"ok": True, "findings": [_FINDING]}))
    (state / "job.json").write_text("{}")
    result = CliRunner().invoke(
        main, ["--state", str(state), "check", str(state / "job.json")], env=variables, color=True
    )
    assert ("\x1b[" in result.output) is coloured


# -- starting --


@dataclass
class Usage:
    free: int


@dataclass
class Daemon:
    """One that does a step of its start at each of these seconds, ends at those, and is up after so many.
    It takes the place of the holder's functions and of the daemon's answers."""

    folder: Path
    steps: list[float] = field(default_factory=list)
    ends_at: list[float] = field(default_factory=list)
    up_after: float = 1e9
    holder_lives: bool = True
    stopped: bool = False
    began: float = 0.0

    def ensure(self, *_: object) -> None:
        self.began = time.monotonic()

    def _passed(self, moments: list[float]) -> int:
        return sum(self.began + each < time.monotonic() for each in moments)

    def info(self, _: Path) -> object:
        return self if self.holder_lives else None

    def ends(self, _: Path, __: int) -> int:
        return self._passed(self.ends_at)

    def stop(self, _: Path, __: float) -> bool:
        self.stopped = True
        return True

    def read_running(self, _: Path) -> Running | None:
        if not self.began:
            return None
        lines = "".join(f"INFO cloister: step {n}\n" for n in range(self._passed(self.steps)))
        (self.folder / "daemon.log").write_text(lines)
        up = self.began + self.up_after < time.monotonic()
        return Running(pid=7, url="https://here", region="r", account="1") if up else None


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    made = Daemon(tmp_path)
    monkeypatch.setattr(lifecycle, "holder", made)
    monkeypatch.setattr(lifecycle, "read_running", made.read_running)
    monkeypatch.setattr(lifecycle, "STEP_SECONDS", 0.5)
    return made


def test_up_waits_as_long_as_the_daemon_gets_on(daemon: Daemon) -> None:
    daemon.steps, daemon.up_after = [0.3, 0.6, 0.9, 1.2], 1.3
    assert "Cloister is up at https://here" in run("up", state=daemon.folder).output
    assert not daemon.stopped


def test_up_gives_up_when_the_daemon_gets_on_with_nothing_and_shows_its_log(daemon: Daemon) -> None:
    daemon.steps = [0.1]
    result = run("up", state=daemon.folder)
    assert (result.exit_code, daemon.stopped) == (1, True)
    assert "the daemon lives, but got on with nothing for" in result.output
    assert "cloister: step 0" in result.output


def test_up_gives_up_when_the_daemon_ends_again_and_again(daemon: Daemon) -> None:
    daemon.ends_at, daemon.up_after = [0.1, 0.2], 0.3
    assert run("up", state=daemon.folder).exit_code == 0, "twice may be chance"
    daemon.ends_at, daemon.up_after, daemon.began = [0.1, 0.2, 0.3], 0.4, 0.0
    result = run("up", state=daemon.folder)
    assert (result.exit_code, daemon.stopped) == (1, True)
    assert "the daemon ended 3 times while it started" in result.output


def test_up_gives_up_at_once_when_the_holder_is_gone(daemon: Daemon) -> None:
    daemon.holder_lives = False
    result = run("up", state=daemon.folder)
    assert (result.exit_code, "the daemon ended" in result.output) == (1, True)


def test_up_tells_on_no_terminal_too_that_it_still_waits(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "TELL_SECONDS", 0.2)
    daemon.steps, daemon.up_after = [0.1], 0.5
    assert "still starting after 0 s: step 0" in run("up", state=daemon.folder).output


def test_who_interrupts_up_ends_what_was_started(daemon: Daemon) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    daemon.ensure = interrupted  # type: ignore[method-assign]
    result = run("up", state=daemon.folder)
    assert (result.exit_code, daemon.stopped) == (130, True)
    assert "Interrupted: Cloister is not up." in result.output


def test_up_on_a_full_disk_says_so(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle.shutil, "disk_usage", lambda _: Usage(free=4096))
    daemon.holder_lives = False
    told = run("up", state=daemon.folder).output
    assert f"the daemon ended, and the disk of {daemon.folder} is full (4 KiB are left)" in told


def test_what_is_told_to_be_typed_names_the_state_folder_where_it_is_not_the_usual(tmp_path: Path) -> None:
    assert in_any_shell(tmp_path) == f"cloister --state {tmp_path}"
    assert in_any_shell(Path("/var/lib/cloister")) == "cloister" or os.geteuid() != 0
