"""Holds the daemons: they end with whoever asked for them, however that came to its end.

A program of its own, ``python -m benchmarks.keeper PROGRAM URL [OPTION ...]``: for each daemon id on
stdin it starts a daemon, the module PROGRAM with these options, and answers with one line of JSON. At the
end of its stdin, which the death of its parent is too, by whatever signal, it stops all of them and removes
their files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

STOP_SECONDS = 12.0
"""For all daemons together to end after SIGTERM; one gives itself eight."""


def main() -> None:
    """Keep daemons until stdin ends."""
    signal.signal(signal.SIGTERM, _leave)
    program, url, *options = sys.argv[1:]
    daemons: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(
        prefix="sandd-benchmarks-", ignore_cleanup_errors=True
    ) as directory:
        try:
            for line in sys.stdin:
                home = Path(directory, line.strip())
                daemons.append(start(program, url, home, options))
                answer = {"pid": daemons[-1].pid, "log": str(home / "log")}
                print(json.dumps(answer), flush=True)
        except BrokenPipeError:
            pass  # nobody is there to be answered
        finally:
            stop(daemons)


def _leave(_number: int, _frame: object) -> NoReturn:
    sys.exit(0)


def start(program: str, url: str, home: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """A daemon that has its home's name for id."""
    home.mkdir()
    # An option for daemons that this user has in the environment is meant for another one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SANDD_") and name not in ("SERVER_URL", "DAEMON_ID")
    }
    command = [sys.executable, "-m", program, "--server-url", url, "--daemon-id", home.name]
    command += ["--state-dir", str(home / "state"), "--log-level", "warning", *options]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    """End them and reap them; those that don't leave in time are killed."""
    for daemon in daemons:
        daemon.terminate()
    give_up = time.monotonic() + STOP_SECONDS
    for daemon in daemons:
        try:
            daemon.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


if __name__ == "__main__":
    main()
