"""A driver's half of the conversation: it does what a line on its stdin asks for, and answers how that went.

`benchmarks.peers.drivers` has the other half. A request is ``{"work": NAME, ...arguments}``, an answer
``{"value": ..., "cpu": SECONDS}`` with the processor time of this process meanwhile, or ``{"error": TEXT}``.
A driver ends when its stdin does, as does all that it has started.

Nothing but the standard library, and nothing of ours: the original's driver imports this, too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    Request = tuple[str, dict[str, Any]]


def read_request() -> Request | None:
    """What is asked for next, and its arguments; None when there is nobody to ask any more. It blocks."""
    line = sys.stdin.readline()
    if not line:
        return None
    request = json.loads(line)
    return request.pop("work"), request


class Answer:
    """The answer to one request, which is counted from now on."""

    def __init__(self) -> None:
        self._cpu_before = time.process_time()

    def give(self, value: object) -> None:
        """It went well, and this is what came of it."""
        _say({"value": value, "cpu": time.process_time() - self._cpu_before})

    def give_up(self) -> None:
        """It failed with the exception that is being handled."""
        _say({"error": traceback.format_exc()})


def answer_all(works: Mapping[str, Callable[..., object]]) -> None:
    """Do what is asked for, one after the other, until nobody asks."""
    while (request := read_request()) is not None:
        name, arguments = request
        answer = Answer()
        try:
            answer.give(works[name](**arguments))
        except Exception:
            answer.give_up()


async def answer_each(
    works: Mapping[str, Callable[..., Awaitable[object]]],
    in_thread: Callable[[Callable[[], Request | None]], Awaitable[Request | None]],
) -> None:
    """The same for works that are async; `in_thread` is trio's or asyncio's way to let something block."""
    while (request := await in_thread(read_request)) is not None:
        name, arguments = request
        answer = Answer()
        try:
            answer.give(await works[name](**arguments))
        except Exception:
            answer.give_up()


def _say(message: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is there to be answered
        print(json.dumps(message), flush=True)


@contextlib.contextmanager
def open_program(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program of `benchmarks`, and the first line it says; it ends at the end of its stdin."""
    command = [sys.executable, "-P", "-m", f"benchmarks.{module}", *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # a Ctrl-C is for who asked; this one ends with its stdin
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
