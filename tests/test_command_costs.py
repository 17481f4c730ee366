"""What a command costs, in calls of our own functions: a figure that creeps up unseen, and differs on no machine."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

import sandd
from sandd.testing import open_daemon_cores

if TYPE_CHECKING:
    from types import FrameType

LIMIT: Final = 25.0
COMMANDS: Final = 60
OURS: Final = os.path.dirname(sandd.__file__)
MOST_CALLS: Final = 510
"""For one command: its controller's, its daemon's and its fake process', but for those of the libraries."""


class OurCalls:
    """Counts them, by function."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """See `sys.setprofile`."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS):
            self.counts[f"{os.path.basename(code.co_filename)}:{code.co_qualname}"] += 1


async def test_a_command_is_made_of_so_many_calls() -> None:
    """No more than it was made of, and a bit; who needs more says why, here."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon_cores(controller.url, 1) as cores,
        ):
            await cores.wait_live()
            daemon = controller.daemons()[0]

            async def run() -> None:
                await daemon.run("true", check=True)

            for _ in range(20):
                await run()
            calls = OurCalls()
            costs: list[tuple[int, Counter[str]]] = []
            before = sys.getprofile()
            sys.setprofile(calls)
            try:
                for _ in range(COMMANDS):
                    calls.counts = Counter()
                    await run()
                    costs.append((calls.counts.total(), calls.counts))
            finally:
                sys.setprofile(before)
    # On a busy machine many are told of in two messages; one that isn't is enough to know.
    least, counts = min(costs, key=lambda cost: cost[0])
    assert least < MOST_CALLS, counts.most_common(50)
