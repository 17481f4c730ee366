"""``python -m benchmarks``: it measures, says what it saw, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemons import daemon_environment
from forked_python import PythonProcess, run_python

if TYPE_CHECKING:
    from conftest import Marker

PROJECT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "benchmarks", "--only", "exec"]
WAIT = 30.0
"""Seconds for what should take one or two: the machine may be busy."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the floors need a POSIX system")


def test_benchmarks_show_ours_beside_the_floor(tmp_path: Path, marker: Marker) -> None:
    """The table and the JSON file have the same figures; a missed target is no failure."""
    file = tmp_path / "figures.json"
    result = run_python(
        [*COMMAND, "--quick", "--json", str(file)],
        any_program=True,
        cwd=PROJECT,
        env=daemon_environment({marker.name: marker.value}),
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert result.returncode == 0, result.stderr
    (section,) = json.loads(file.read_text("utf-8"))["sections"]
    assert section["name"] == "exec"
    p50 = section["rows"][0]
    assert p50["ours"] > 0
    assert p50["floor"] > 0
    assert p50["ratio"]["least"] <= p50["ratio"]["median"] <= p50["ratio"]["most"]
    verdict = "ok" if p50["met"] else "missed"
    figures = [f"{p50['ours']:.2f} ms", f"{p50['floor']:.2f} ms", f"<= 2.5x: {verdict}"]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("  p50 ")]
    assert [figure in line for figure in figures] == [True] * 3, line
    assert "load average at the start" in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="finds its processes in /proc")
def test_benchmarks_interrupted_leave_nothing_behind(marker: Marker) -> None:
    """Ctrl-C ends the daemons too, and removes their files."""
    environment = daemon_environment({marker.name: marker.value})
    with PythonProcess(
        COMMAND, cwd=PROJECT, env=environment, any_program=True, stderr=subprocess.PIPE
    ) as benchmarks:
        give_up = time.monotonic() + WAIT
        # Itself, the daemons' keeper, a daemon and its spawner.
        while len(marker.processes()) < 4 and time.monotonic() < give_up:
            assert benchmarks.poll() is None
            time.sleep(0.01)
        benchmarks.send_signal(signal.SIGINT)
        _, said = benchmarks.communicate(timeout=WAIT)
    assert benchmarks.returncode == 128 + signal.SIGINT, said
    assert b"Traceback" not in said
