"""What one keystroke costs on its way to a program and back: calls of Python functions, and turns of the loop.

Both are counted and not timed, so they are the same on every machine. Each call costs most where nothing was done
for a while, as between two keystrokes: its code has left the processor's caches by then.
"""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

import sandd
from sandd.testing import open_daemon_cores

if TYPE_CHECKING:
    from types import FrameType

LIMIT: Final = 25.0
KEYSTROKES: Final = 21
MOST_CALLS: Final = 620
"""At both ends together, with trio's and the program's: a fifth more than when this was written. There had been
760, and then 551."""
MOST_TURNS: Final = 10
"""Of the loop, which here is one for both ends and the program: there were eight."""


class Effort(trio.abc.Instrument):
    """Counts while the block lasts."""

    def __init__(self) -> None:
        self.calls = 0
        self.turns = 0

    def before_io_wait(self, timeout: float) -> None:
        """The loop has done a turn."""
        self.turns += 1

    def _note(self, _frame: FrameType, event: str, _argument: Any) -> None:
        self.calls += event == "call"

    def __enter__(self) -> Effort:
        trio.lowlevel.add_instrument(self)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(self)


@pytest.mark.skipif(sys.getprofile() is not None, reason="somebody else counts calls")
async def test_a_keystroke_takes_few_calls_and_turns() -> None:
    """From `send_all` to the end of `receive_some`, once all is under way."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon_cores(controller.url, 1) as cores,
        ):
            await cores.wait_live()
            (daemon,) = controller.daemons()
            async with daemon.open_process(["cat"]) as process:
                efforts = [await type_one(process) for _ in range(KEYSTROKES)]
    calls = statistics.median(effort.calls for effort in efforts)
    turns = statistics.median(effort.turns for effort in efforts)
    assert calls <= MOST_CALLS, f"{calls} calls"
    assert turns <= MOST_TURNS, f"{turns} turns"


async def type_one(process: sandd.Process) -> Effort:
    """What one keystroke takes, after a pause in which everything comes to rest."""
    await trio.sleep(0.01)
    with Effort() as effort:
        await process.stdin.send_all(b"x")
        assert await process.stdout.receive_some() == b"x"
    return effort
