"""``python -m benchmarks.soak``, for seconds: nothing lost, nothing run twice, nothing grown."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from daemons import daemon_environment
from forked_python import run_python

if TYPE_CHECKING:
    from conftest import Marker

PROJECT: Final = Path(__file__).parent.parent
WAIT: Final = 50.0
"""Seconds for what takes three or four: the machine may be busy."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


LONG_WAIT: Final = 1800.0
"""For 5 GiB there and back, hashed twice more: 4 minutes on two cores that others use, too."""


def soak(name: str, marker: Marker, *arguments: str, wait: float = WAIT) -> str:
    """What it printed; it has ended well."""
    done = run_python(
        [sys.executable, "-m", "benchmarks.soak", name, *arguments],
        any_program=True,
        cwd=PROJECT,
        env=daemon_environment(dict([marker])),
        capture_output=True,
        text=True,
        timeout=wait,
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert "all of it held" in said
    return done.stdout


def test_cuts(marker: Marker) -> None:
    """Commands run once and lose no byte over connections that are cut at random, and memory is flat."""
    said = soak("cuts", marker, "--quick", "--seed", "42")
    assert said.startswith("cuts, seed 42\n")
    assert "all 24 positions were reached" in said


def test_stalled(marker: Marker) -> None:
    """A command whose reader stops waits for it, in no more memory, and delays nobody."""
    said = soak("stalled", marker, "--quick")
    assert "it is all there: 67,108,864 bytes" in said


def test_files(marker: Marker) -> None:
    """Files arrive whole over connections that are cut, nothing is sent twice, and memory is flat."""
    said = soak("files", marker, "--quick", "--seed", "42")
    assert "upload: all 4 positions were reached" in said
    assert "300 small files: " in said


@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="takes minutes, and 15 GiB of disk"
)
def test_files_of_5_gib(marker: Marker) -> None:
    """The same with a file far larger than all that either side may hold of it."""
    said = soak("files", marker, "--gib", "5", wait=LONG_WAIT)
    assert "upload: 5,368,709,120 bytes" in said
    assert "download: 5,368,709,120 bytes" in said


def test_operators(marker: Marker) -> None:
    """While the controller is killed and started again, operators lose nothing, and nothing runs twice."""
    said = soak("operators", marker, "--quick", "--seed", "42")
    assert "kills of the controller: 1" in said
    assert "each was started once" in said


def test_restart(marker: Marker) -> None:
    """Daemons whose controller was killed come to the next one at a bounded rate, with their jobs."""
    said = soak("restart", marker, "--quick")
    assert "all 42 are back" in said


SOAK_THAT_FAILS: Final = """
import sys
from benchmarks.soak import __main__ as program, stalled

async def soak(plan, findings):
    findings.check("water is wet", True)
    findings.check("pigs fly", False)

stalled.soak = soak
sys.exit(program.main(["stalled", "--quick"]))
"""


def test_what_does_not_hold_is_an_exit_code() -> None:
    """One failure among what held is enough, and it is shown."""
    done = run_python(
        [sys.executable, "-c", SOAK_THAT_FAILS],
        any_program=True,
        cwd=PROJECT,
        env=daemon_environment(),
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 1, done.stderr
    assert "ok   water is wet" in done.stdout
    assert "FAIL pigs fly" in done.stdout
    assert "1 did not hold" in done.stdout
