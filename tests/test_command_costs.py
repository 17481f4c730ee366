"""What a command costs, in calls of our own functions: a figure that creeps up unseen, and differs on no machine."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
import trio
from process_tools import until

import sandd
from sandd import wire
from sandd._core.job import DaemonLink
from sandd._core.jobs import JobTable
from sandd._core.processes import open_process_host
from sandd._core.runner import JobRunner
from sandd.testing import open_daemon_cores
from sandd.wire import JobState

if TYPE_CHECKING:
    from types import FrameType

LIMIT: Final = 25.0
COMMANDS: Final = 60
MOST_COMMANDS: Final = 600
OURS: Final = os.path.dirname(sandd.__file__)
MOST_CALLS: Final = 498
"""For one command: its controller's, its daemon's and its fake process', but for those of the libraries."""
MOST_DAEMON_CALLS: Final = 144
"""For one command: its job's, from an Attach to the message that tells its end, and its process' host's."""


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
                # On a busy machine most are told of in two messages; one that isn't is enough to know.
                while len(costs) < MOST_COMMANDS and not (costs and costs[-1][0] < MOST_CALLS):
                    calls.counts = Counter()
                    await run()
                    costs.append((calls.counts.total(), calls.counts))
            finally:
                sys.setprofile(before)
    least, counts = min(costs, key=lambda cost: cost[0])
    assert least < MOST_CALLS, counts.most_common(50)


class _Line:
    """A pump whose line takes everything at once."""

    def __init__(self, link: DaemonLink) -> None:
        self._link = link
        self.told = trio.Event()

    def wake(self) -> None:
        if self._link.scheduler.next_message():
            self.told.set()


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the end of a process is heard of otherwise"
)
async def test_a_daemons_part_of_a_command_is_made_of_so_many_calls() -> None:
    """That of a short one, whose end is known with its start."""
    table, link = JobTable("instance"), DaemonLink()
    spec = wire.encode_spec(wire.CommandSpec((b"true",), shell=True, stdin=False))
    with trio.fail_after(LIMIT):
        async with open_process_host() as host, trio.open_nursery() as nursery:
            runner = JobRunner(table, host, nursery, max_running=2)
            line = _Line(link)
            runner.add_link(link, line)  # type: ignore[arg-type]
            calls = OurCalls()
            costs: list[tuple[int, Counter[str]]] = []
            before = sys.getprofile()
            for number in range(1, COMMANDS):
                message = wire.Attach("d", f"job-{number}", "c", spec=spec, instance="instance")
                head, body = wire.encode_control(number, message)
                (frame,) = wire.decode_frames(head + body)
                calls.counts, line.told = Counter(), trio.Event()
                sys.setprofile(calls)
                try:
                    runner.receive(link, frame)
                    runner.after_message()
                    await line.told.wait()
                finally:
                    sys.setprofile(before)
                costs.append((calls.counts.total(), calls.counts))
            await until(lambda: all(job.state is JobState.ENDED for job in table.jobs.values()))
            nursery.cancel_scope.cancel()
    least, counts = min(costs, key=lambda cost: cost[0])
    assert least < MOST_DAEMON_CALLS, counts.most_common(50)
