"""``sandd token`` and ``sandd daemons``: what they change, print and refuse, with a controller or without."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from controllers import SECONDS, running_controller
from daemons import daemon_environment, running_daemon
from forked_python import run_python

from sandd._core.identity.database import open_database
from sandd._core.identity.records import new_join_token
from sandd._core.identity.rights import Role, Verb
from sandd.cli import main
from sandd.command_line.journaling import local_user
from sandd.enrolling.options import ROLES, VERBS, _read_time

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of files are POSIX ones")

TOKEN = re.compile(r"sd[jo]_[0-9A-Za-z]{61}")


def run(
    state: Path, *arguments: str, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One of the commands, for this state directory; it is to end with this exit code."""
    done = run_python(
        [sys.executable, "-m", "sandd", *arguments],
        env=daemon_environment({"SANDD_CONTROLLER_STATE_DIR": str(state)} | (env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def objects(state: Path, *arguments: str) -> list[dict[str, Any]]:
    """What it prints with --json."""
    return [json.loads(line) for line in run(state, *arguments, "--json").stdout.splitlines()]


def test_the_words_are_those_that_are_understood() -> None:
    """They are written down twice, as the command line is to be known without the rest."""
    assert list(ROLES) == [role.value for role in Role]
    assert list(VERBS) == [verb.value for verb in Verb]
    times = {"30s": 30, "15m": 900, "8h": 28_800, "90d": 7_776_000, "1.5": 1.5, "never": None}
    assert {text: _read_time(text) for text in times} == times


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it is Linux'")
@pytest.mark.parametrize("how", [(), ("--json",)])
def test_a_token_that_can_not_be_shown_is_good_for_nothing(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    """One line says that the disk is full; what nobody has seen nobody can use, or revoke."""
    with open("/dev/full", "wb") as full:
        done = run_python(
            [sys.executable, "-m", "sandd", "token", "create", "join", *how],
            env=daemon_environment({"SANDD_CONTROLLER_STATE_DIR": str(tmp_path)}),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
        )
    assert (done.returncode, done.stderr) == (125, "sandd: stdout: No space left on device\n")
    (made,) = objects(tmp_path, "token", "list")
    assert made["state"] == "revoked"


def test_records_that_can_not_be_used_are_one_line(tmp_path: Path) -> None:
    """It says of what."""
    run(tmp_path, "token", "create", "join")
    with contextlib.closing(sqlite3.connect(tmp_path / "sandd.db")) as database:
        database.execute("DROP TABLE tokens")
        database.commit()
    assert "no such table" in run(tmp_path, "token", "list", code=125).stderr


def test_tokens_are_made_listed_and_revoked_without_a_controller(tmp_path: Path) -> None:
    """A token is printed once, and nowhere else; what is kept of it shows no secret."""
    state = tmp_path / "state"
    text = run(
        state,
        *[
            "token",
            "create",
            "join",
            "--uses",
            "3",
            "--tenant",
            "acme",
            "-l",
            "a=b",
            "--name",
            "ci",
        ],
    ).stdout.strip()
    assert TOKEN.fullmatch(text)
    made = objects(
        state, *["token", "create", "operator", "me", "--role", "runner", "--verbs", "list,run"]
    )
    assert TOKEN.fullmatch(made[0]["token"])
    listed = objects(state, "token", "list")
    assert [each["id"] for each in listed] == [text[4:16], made[0]["id"]]
    assert (listed[0]["uses_left"], listed[0]["tenant"], listed[0]["labels"]) == (
        *(3, "acme"),
        {"a": "b"},
    )
    assert (listed[1]["role"], listed[1]["verbs"]) == ("runner", ["list", "run"])
    table = run(state, "token", "list").stdout
    assert "3 of 3 uses" in table
    for secret in (text[16:], made[0]["token"][16:]):
        assert secret not in table + json.dumps(listed)
    assert run(state, "token", "revoke", text[4:16]).stdout.strip() == text[4:16]
    assert [each["state"] for each in objects(state, "token", "list")] == ["revoked", "valid"]
    done = run(state, "token", "revoke", "nobodys", made[0]["id"], code=125)
    assert "'nobodys'" in done.stderr
    assert done.stdout.strip() == made[0]["id"]


def test_an_id_that_is_too_long_is_no_id(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is not cut to one, and not shown whole, as it may be most of a token; all of a token names it."""
    where = ["--state-dir", str(tmp_path)]
    assert main(["token", "create", "join", *where]) == 0
    text = capfd.readouterr().out.strip()

    def state() -> str:
        with contextlib.closing(open_database(tmp_path)) as database:
            return "valid" if database.tokens()[0].revoked_at is None else "revoked"

    for longer in (text[4:16] + "x", text[4:40], text[:40], text[:-1] + "-"):
        assert main(["token", "revoke", longer, *where]) == 125
        told = capfd.readouterr().err
        assert "no token's id" in told
        assert text[16:20] not in told
    assert state() == "valid"
    assert main(["token", "revoke", text, *where]) == 0
    assert state() == "revoked"


def test_what_commands_change_is_told_to_the_controller(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the name of who runs them, and not what was refused."""
    where = ["--state-dir", str(tmp_path)]
    assert main(["token", "create", "operator", "eve", "--json", *where]) == 0
    key_id = json.loads(capfd.readouterr().out)["id"]
    assert main(["token", "revoke", key_id, "0" * 12, *where]) == 125
    with contextlib.closing(open_database(tmp_path)) as database:
        _, info = new_join_token(time.time(), daemons="*")
        database.add_token(info)
        database.join(info.id, "w", "instance", time.time())
        for change in ("lock", "unlock", "forget"):
            assert main(["daemons", change, "w", *where]) == 0
        assert main(["daemons", "lock", "w", *where]) == 125
        told = [json.loads(each.said) for each in database.changes(0)]
    assert [(each["kind"], each["outcome"]) for each in told] == [
        ("operator", "created"),
        ("token", "revoked"),
        *[("daemon", outcome) for outcome in ("locked", "unlocked", "forgotten")],
    ]
    assert [each["result"]["token"] for each in told[:2]] == [key_id] * 2
    assert {each["actor"] for each in told} == {f"local:{local_user()}"}


def test_a_token_goes_into_a_new_file_of_its_own(tmp_path: Path) -> None:
    """For its owner alone; a file that is there is left as it is, and then there is no token."""
    state, out = tmp_path / "state", tmp_path / "token"
    assert run(state, "token", "create", "join", "--out", str(out)).stdout == ""
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    text = out.read_text()
    assert TOKEN.fullmatch(text.strip())
    run(state, "token", "create", "join", "--out", str(out), code=125)
    assert out.read_text() == text
    assert len(objects(state, "token", "list")) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("token create join --uses 0", 2, "'0' is no number"),
        ("token create join --expires soon", 2, "'soon' is no time"),
        ("token create join --expires 0s", 2, "is no time"),
        ("token create join --tenant a/b", 125, "tenant 'a/b' is not usable"),
        ("token create operator me --verbs fly", 2, "'fly' is none of"),
        ("token create operator me --role king", 2, "'king'"),
        ("token create operator", 2, "NAME"),
        ("token", 2, "COMMAND"),
        ("token list", 125, "no controller keeps its state in"),
        ("daemons lock w", 125, "no controller keeps its state in"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(
    tmp_path: Path, arguments: str, code: int, words: str
) -> None:
    """And nothing is made."""
    done = run(tmp_path / "state", *arguments.split(), code=code)
    assert words in done.stderr
    assert done.stdout == ""


def test_a_daemon_joins_and_is_put_out_by_another_program() -> None:
    """By the command that the controller tells; then it is locked, and forgotten, from the command line."""
    with running_controller("--print-join") as controller:
        state = controller.state_dir
        said = controller.wait_for_log(r"--token-file (\S+join\.token)")[1]
        assert stat.S_IMODE(os.stat(said).st_mode) == 0o600
        with running_daemon(
            controller.url, "w", arguments=["--token-file", said, "--reconnect-max", "0.2"]
        ) as daemon:
            controller.wait_for_daemon("w")
            (record,) = objects(state, "daemons", "list")
            assert (record["name"], record["state"]) == ("w", "active")
            assert run(state, "daemons", "lock", "w").stdout.strip() == "w"
            daemon.wait_for_log_sync("is locked")
            assert "locked" in run(state, "daemons", "list").stdout
            run(state, "daemons", "unlock", "w")
            run(state, "daemons", "forget", "w")
            assert objects(state, "daemons", "list") == []
            assert "'w'" in run(state, "daemons", "lock", "w", code=125).stderr
            daemon.kill()


def test_an_operators_token_is_heeded_by_commands(tmp_path: Path) -> None:
    """A viewer lists, and runs nothing; revoked, it does neither."""
    out = tmp_path / "token"
    with running_controller() as controller, controller.daemon("w"):
        run(controller.state_dir, *f"token create operator eve --out {out}".split())
        env = {"SANDD_OPERATOR_TOKEN_FILE": str(out)}
        assert "w" in controller.run_command("ps", env=env).stdout
        done = controller.run_command("exec", "w", "--", "true", env=env)
        assert done.returncode == 125
        assert "'eve' may not do that" in done.stderr
        run(controller.state_dir, "token", "revoke", out.read_text()[4:16])
        done = controller.run_command("ps", env=env)
        assert done.returncode == 125
        assert "no longer valid" in done.stderr
