"""Limits of the tests: they end what doesn't, and let a busy machine have its time."""

from __future__ import annotations

import subprocess
import sys
import time

import patience
import pytest
import trio
from forked_python import PythonProcess
from patience import AT_MOST, Patience, fail_after_calm

SLEEPS = [sys.executable, "-c", "import time; time.sleep(1000)"]


@pytest.fixture
def no_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody waits for a processor all the time."""
    monkeypatch.setattr(patience, "seconds_of_calm", lambda: 0.0)


@pytest.fixture
def all_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ever does."""
    monkeypatch.setattr(patience, "seconds_of_calm", time.monotonic)


async def test_what_is_in_time_is_left_alone() -> None:
    """And nothing cancels what comes after it."""
    with fail_after_calm(0.01):
        await trio.lowlevel.checkpoint()
    await trio.sleep(0.05)


@pytest.mark.usefixtures("all_calm")
async def test_what_does_not_end_is_ended() -> None:
    """After as many seconds as are given, where the machine has nothing else to do."""
    began = time.monotonic()
    with pytest.raises(trio.TooSlowError):
        with fail_after_calm(0.05):
            await trio.sleep_forever()
    assert time.monotonic() - began >= 0.05


@pytest.mark.usefixtures("no_calm")
async def test_a_busy_machine_has_its_time_but_not_all_of_it() -> None:
    """So many times as much, and no more."""
    began = time.monotonic()
    with pytest.raises(trio.TooSlowError):
        with fail_after_calm(0.02):
            await trio.sleep_forever()
    assert time.monotonic() - began >= 0.02 * AT_MOST


def test_others_waiting_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over when there has been so much calm, and not before."""
    calm = 5.0
    monkeypatch.setattr(patience, "seconds_of_calm", lambda: calm)
    limit = Patience(0.02)
    time.sleep(0.03)
    # The clock's numbers are large, and so is what they are rounded by.
    assert limit.left == pytest.approx(0.02)
    calm += 0.02
    time.sleep(0.03)
    assert limit.is_over


async def test_an_exception_comes_out_as_it_is() -> None:
    """In no group, and the limit says nothing."""
    with pytest.raises(ZeroDivisionError):
        with fail_after_calm(10):
            raise ZeroDivisionError


@pytest.mark.usefixtures("all_calm")
def test_time_outs_of_processes_are_such_limits() -> None:
    """What is waited for in vain is told as it is by the standard library, and can be waited for again."""
    with PythonProcess(SLEEPS, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(b"input", 0.05)
        finally:
            process.kill()


@pytest.mark.usefixtures("no_calm")
def test_input_is_given_once_however_often_it_is_looked() -> None:
    """A time-out that goes on, as the machine is busy, gives and takes each byte once."""
    echo = [
        sys.executable,
        "-c",
        "import sys, time; time.sleep(1); sys.stdout.write(sys.stdin.read())",
    ]
    with PythonProcess(echo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.communicate("said", 0.5) == ("said", None)
        finally:
            process.kill()
