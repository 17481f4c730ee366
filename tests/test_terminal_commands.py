"""What ``sandd shell`` and ``sandd attach`` make of what they are told, and of what goes wrong."""

from __future__ import annotations

import contextlib
import errno
import signal
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from test_terminal_local import FakeDevice

from sandd import (
    DaemonGone,
    DaemonState,
    ExitStatus,
    JobTaken,
    NoTerminal,
    Outcome,
    RequestRefused,
    SpawnFailed,
)
from sandd.cli import build_parser
from sandd.command_line.remote_command import split
from sandd.command_line.stopping import STOP_SIGNALS, Failure, Stop
from sandd.terminal import program
from sandd.terminal.conversation import Ended, Ending
from sandd.terminal.local import LocalTerminal
from sandd.terminal.shell import Where

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """What is opened as this program's terminal."""
    device = FakeDevice()

    @contextlib.contextmanager
    def open_terminal() -> Iterator[LocalTerminal]:
        with LocalTerminal(device)._closing() as terminal:
            yield terminal

    monkeypatch.setattr(program, "open_terminal", open_terminal)
    return device


@pytest.mark.parametrize(
    ("given", "options", "command"),
    [
        pytest.param(["shell", "w"], ["shell", "w"], None, id="none"),
        pytest.param(["shell", "w", "--", "ls", "-l"], ["shell", "w"], ["ls", "-l"], id="command"),
        pytest.param(["shell", "w", "--"], ["shell", "w"], None, id="empty"),
        pytest.param(
            ["shell", "w", "--", "sh", "--", "-u"], ["shell", "w"], ["sh", "--", "-u"], id="dashes"
        ),
        pytest.param(["demo", "--", "x"], ["demo", "--", "x"], None, id="not-ours"),
    ],
)
def test_the_command_is_what_stands_behind_the_dashes(
    given: list[str], options: list[str], command: list[str] | None
) -> None:
    """Options of the command's are left alone, and so are other commands' lines."""
    assert split(given) == (options, command)


def test_options_of_shell() -> None:
    """Variables come together, and values may have more of the sign in them."""
    given = "shell w -e A=1 --env B=x=y -w /src -u me --detach --wait 3 --record f"
    options = build_parser().parse_args(given.split())
    assert options.env == [("A", "1"), ("B", "x=y")]
    assert (options.cwd, options.user, options.detach, options.wait) == ("/src", "me", True, 3.0)
    assert (options.controller, options.record, options.local) == (None, "f", False)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        pytest.param(JobTaken("x"), 125, "somebody else has taken the session over", id="taken"),
        pytest.param(SpawnFailed(errno.ENOENT, "no", "zsh"), 127, "'zsh'", id="not-found"),
        pytest.param(SpawnFailed(errno.EACCES, "no", "dir"), 126, "'dir'", id="not-executable"),
        pytest.param(SpawnFailed(errno.EMFILE, "no"), 125, "EMFILE", id="no-more-files"),
        pytest.param(DaemonGone("it is gone\x1b[2J"), 125, r"it is gone\x1b[2J", id="gone"),
        pytest.param(RequestRefused("no"), 125, "sandd: no", id="refused"),
        pytest.param(NoTerminal("none"), 125, "sandd: none", id="no-terminal"),
        pytest.param(ValueError("no size"), 2, "sandd: no size", id="misuse"),
        pytest.param(Failure("one\ntwo"), 125, "sandd: one\ntwo\n", id="failure"),
    ],
)
def test_what_goes_wrong_is_told_after_the_terminal_is_put_back(
    error: Exception, code: int, said: str, device: FakeDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line that can't be a sequence for the terminal, and with an exit code of its own."""

    async def fail(terminal: LocalTerminal, _: Stop) -> int:
        async with terminal.raw_mode():
            raise error

    assert program.run_at_terminal(fail) == code
    assert said in capsys.readouterr().err
    assert device.done == ["remember", "raw", "restore", "close"]


def test_a_mistake_of_ours_is_not_hidden(device: FakeDevice) -> None:
    """What nobody expects comes out as it is, with the terminal as it was."""

    async def fail(terminal: LocalTerminal, _: Stop) -> int:
        async with terminal.raw_mode():
            raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        program.run_at_terminal(fail)
    assert device.done == ["remember", "raw", "restore", "close"]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_cancel_in_good_order(number: signal.Signals, device: FakeDevice) -> None:
    """The body may clean up; the exit code is the signal's; handlers are those from before."""
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    cleaned_up = False

    async def body(terminal: LocalTerminal, _: Stop) -> int:
        nonlocal cleaned_up
        async with terminal.raw_mode():
            signal.raise_signal(number)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
                cleaned_up = True
        return 0

    assert program.run_at_terminal(body) == 128 + number
    assert cleaned_up
    assert device.done == ["remember", "raw", "restore", "close"]
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_saves_the_wait(number: signal.Signals, device: FakeDevice) -> None:
    """What waits for something to end, shielded, is interrupted; the code is the first signal's."""

    class Child:
        killed = False

        def kill(self) -> None:
            self.killed = True

    child = Child()

    async def body(terminal: LocalTerminal, stop: Stop) -> int:
        stop.kill_if_hurried(child)  # type: ignore[arg-type]
        async with terminal.raw_mode():
            signal.raise_signal(number)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()
                    signal.raise_signal(signal.SIGTERM)
                    await trio.sleep_forever()
        return 0

    assert program.run_at_terminal(body) == 128 + number
    assert child.killed
    assert device.done == ["remember", "raw", "restore", "close"]


class FakeDaemon:
    """Has an id and a state."""

    id = "w"

    def __init__(self, state: DaemonState) -> None:
        self.state = state


EXITED = Ended(Ending.EXITED, ExitStatus(3, Outcome.EXITED, 1.0))


@pytest.mark.parametrize(
    ("ended", "goes_on", "code", "told"),
    [
        pytest.param(EXITED, False, 3, "", id="exited"),
        pytest.param(Ended(Ending.LEFT), False, 125, "is being ended", id="left"),
        pytest.param(Ended(Ending.LEFT), True, 0, "goes on: sandd attach w/1", id="left-detached"),
        pytest.param(Ended(Ending.DETACHED), False, 0, "goes on: sandd attach w/1", id="detached"),
        pytest.param(Ended(Ending.HUNG_UP), False, 129, "", id="hung-up"),
    ],
)
def test_endings(ended: Ended, goes_on: bool, code: int, told: str) -> None:
    """What a person is told, and what a script."""
    where = Where(FakeDaemon(DaemonState.ONLINE), "1", goes_on)  # type: ignore[arg-type]

    assert where.exit_code(ended) == code
    assert told in where.describe(ended)
    assert bool(told) == bool(where.describe(ended))


def test_leaving_a_daemon_that_is_away_is_told_as_what_it_is() -> None:
    """The session can't be ended now, and nobody is to think so."""
    where = Where(FakeDaemon(DaemonState.AWAY), "1", goes_on=False)  # type: ignore[arg-type]

    assert "until its lease is over the session goes on there: sandd attach w/1" in where.describe(
        Ended(Ending.LEFT)
    )


@pytest.mark.parametrize(
    ("read_only", "meaning"),
    [
        (False, "if it lives, the session goes on. What you type is kept. ~. leaves"),
        (True, "if it lives, the session goes on. ~. leaves"),
    ],
)
def test_who_looks_on_is_promised_nothing(read_only: bool, meaning: str) -> None:
    """While the daemon is away: what a viewer types is not kept."""
    where = Where(FakeDaemon(DaemonState.AWAY), "1", False, read_only)  # type: ignore[arg-type]

    assert where.outage_meaning == meaning
