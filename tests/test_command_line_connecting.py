"""How commands find their controller, and what a person is told who can't reach it, or isn't let in."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from controllers import running_controller
from daemons import daemon_environment
from forked_python import hurried, run_python
from peers import free_port

from sandd._core.controller_state import default_state_dir
from sandd.command_line.connecting import own_token_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from controllers import ControllerProcess

SECONDS = 50.0


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """One without daemons: who gets through to it is told so."""
    with running_controller() as controller:
        yield controller


THROUGH = "sandd: no daemon 'w': none is connected to this controller\n"


def reach(*arguments: str, code: int = 125, **env: str) -> str:
    """What a command says that looks for a daemon of the controller; it has failed."""
    done = run_python(
        [sys.executable, "-m", "sandd", "exec", *arguments, "w", "--", "true"],
        env=daemon_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_options_win_over_the_environment(controller: ControllerProcess, tmp_path: Path) -> None:
    """Of each the one that is nearer to the person."""
    assert reach(**controller.env) == THROUGH
    given = ["--controller", controller.url, "--token-file", str(controller.token_file)]
    assert (
        reach(*given, SANDD_CONTROLLER="ws://127.0.0.1:9", SANDD_OPERATOR_TOKEN_FILE="none")
        == THROUGH
    )
    base = controller.url.removesuffix("/ws")
    assert reach(**controller.env | {"SANDD_CONTROLLER": base}) == THROUGH


def test_the_token_of_one_s_own_controller_is_found(
    controller: ControllerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is where that has put it; on other machines nobody looks for it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    where = own_token_file(controller.url)
    assert where == default_state_dir(controller.port) / "operator.token"
    where.parent.mkdir(parents=True)
    where.write_bytes(controller.token_file.read_bytes())
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    assert reach(SANDD_CONTROLLER=controller.url, **env) == THROUGH
    assert own_token_file("ws://localhost") == default_state_dir(8765) / "operator.token"
    assert own_token_file("ws://192.0.2.1:8765") is None
    assert own_token_file("ws://controller.example:8765") is None
    assert own_token_file("ws://127.0.0.1:eighty") is None


def test_who_is_not_let_in_is_told_what_to_do(
    controller: ControllerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token, and with a wrong one; the wrong one isn't shown."""
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    told = reach("--controller", controller.url, **home)
    assert told.startswith(f"sandd: the controller at {controller.url} refused us: ")
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    assert told.endswith(
        "; there was no token: --token-file or $SANDD_OPERATOR_TOKEN_FILE names a file with it, "
        f"and there is no {own_token_file(controller.url)}\n"
    )
    wrong = tmp_path / "wrong"
    wrong.write_text("secret")
    told = reach("--controller", controller.url, "--token-file", str(wrong))
    assert "refused us" in told
    assert told.endswith(f"; the token was that of --token-file {wrong}\n")
    assert "secret" not in told


def test_a_daemon_s_secret_is_none_of_a_command_s(controller: ControllerProcess) -> None:
    """Its variable is for daemons, which may be started from the same environment."""
    assert reach(**controller.env, SANDD_TOKEN_FILE="/none") == THROUGH


def test_an_empty_token_file_is_named(controller: ControllerProcess, tmp_path: Path) -> None:
    """Wherever it is: nobody is asked with no token instead."""
    empty = tmp_path / "empty"
    empty.write_text("\n")
    told = reach(**controller.env | {"SANDD_OPERATOR_TOKEN_FILE": str(empty)})
    assert told.startswith(f"sandd: $SANDD_OPERATOR_TOKEN_FILE: the token file {empty} is empty")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        pytest.param(
            {"SANDD_OPERATOR_TOKEN_FILE": "none"},
            "$SANDD_OPERATOR_TOKEN_FILE: can't read the token file none: No such",
            id="token",
        ),
        pytest.param({"SANDD_CONTROLLER": "http://x"}, "'http://x' is no URL", id="scheme"),
        pytest.param({"SANDD_CONTROLLER": "ws://x:y"}, "'ws://x:y' is no URL", id="port"),
    ],
)
def test_what_can_not_be_is_told_at_once(env: dict[str, str], told: str) -> None:
    """And where it was said."""
    assert told in reach(**env, code=2 if "SANDD_CONTROLLER" in env else 125)


def test_a_controller_that_is_not_there(tmp_path: Path) -> None:
    """Where it was looked for, why it wasn't found, and what says where it is."""
    hurry = hurried(**{"sandd.command_line.connecting.CONNECT_SECONDS": 0.5})
    url = f"ws://127.0.0.1:{free_port()}"
    told = reach(SANDD_CONTROLLER=url, HOME=str(tmp_path), **hurry)
    assert "refused" in told
    assert "/operator" not in told
    assert told.endswith(
        "; 'sandd controller' starts one on this machine, --controller or $SANDD_CONTROLLER says where "
        "another one is, and --local needs none\n"
    )
