"""Who is measured: each a program that does what it is asked to, or a function of this process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen

from benchmarks.peers import packages

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_SECONDS = 150.0
"""For any work: the longest takes a few seconds, or twenty."""
END_SECONDS = 30.0
"""For a driver and all that it has started to end."""


@frozen
class Answer:
    """What came of a work."""

    value: Any
    cpu: float
    """Seconds of processor time in the driver's process, which has the controller."""


class Driver:
    """A program, and how it is asked."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process

    def ask(self, work: str, **arguments: object) -> Answer:
        """What came of it; RuntimeError with what the program said if it failed, or that it said nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"work": work, **arguments}), file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            raise RuntimeError(f"{self.name}: {work}: no answer within {ANSWER_SECONDS:g} s")
        answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {work}: {answer['error']}")
        return Answer(answer["value"], answer["cpu"])


@contextmanager
def open_driver(
    name: str, module: str, *arguments: str, package: str | None = None
) -> Iterator[Driver]:
    """A driver that runs `module`, which finds `package` before all others; it ends with the block."""
    environment = dict(os.environ)
    path = [str(packages.PROJECT)]
    if package is not None:
        place = packages.find(package)
        assert place is not None, f"{package} isn't installed"
        path.insert(0, str(place))
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, "-P", "-m", f"benchmarks.peers.{module}", *arguments]
    with subprocess.Popen(
        command,
        env=environment,
        cwd=packages.PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stdin is not None
        try:
            yield Driver(name, process)
        finally:
            process.stdin.close()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
