"""``sandd demo``: a controller, a daemon and real work on one machine, step by step.

The steps are in `sandd.demo.steps`, and use nothing that isn't public: they may serve as examples.
Whatever one says of its outcome it has verified.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from sandd import __version__
from sandd.controller import open_controller
from sandd.demo.stage import (
    STOP_SIGNALS,
    Interruption,
    Outcome,
    Screen,
    Stage,
    open_daemon,
)
from sandd.demo.steps import STEPS, CheckFailed
from sandd.local_daemon import DaemonDidNotCome
from sandd.testing.fault_proxy import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd.controller import Controller, Daemon
    from sandd.local_daemon import LocalDaemon
    from sandd.testing.fault_proxy import FaultProxy

START_SECONDS: Final = 20.0
"""For the daemon to dial in: half a second, or much more on a machine that is busy."""
STEP_SECONDS: Final = 40.0
"""For any one step, each of which takes a second or two."""


def run_demo() -> int:
    """Show everything; returns the exit code: 0 if all that was shown held, 1 if not.

    After Ctrl-C or SIGTERM it is 128 and the signal's number. No process and no file is ever left.
    """
    return trio.run(_demo)


async def _demo() -> int:
    interruption = Interruption()
    screen = Screen(on_failure=interruption.steps.cancel)
    outcomes: list[Outcome] = []
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interruption.listen, signals)
            await _show(screen, outcomes, interruption)
            nursery.cancel_scope.cancel()
    if screen.failure is not None:
        raise screen.failure
    if interruption.number is not None:
        screen.title("Interrupted: the daemon has been stopped, and nothing is left behind.")
        return 128 + interruption.number
    screen.summary(outcomes)
    return 0 if all(each.held for each in outcomes) else 1


async def _show(screen: Screen, outcomes: list[Outcome], interruption: Interruption) -> None:
    """Set the stage, play the steps, and clear it again."""
    with tempfile.TemporaryDirectory(prefix="sandd-demo-", ignore_cleanup_errors=True) as path:
        async with (
            open_controller(port=0) as controller,
            open_fault_proxy(controller.address) as proxy,
        ):
            async with open_daemon(proxy.url, Path(path), interruption) as child:
                # Only the steps: ending the daemon in good order takes proxy and controller.
                with interruption.steps:
                    await _play(screen, outcomes, controller, proxy, child)
            if interruption.steps.cancelled_caught:
                return

            async def end() -> str:
                code = child.process.returncode
                if code != 0 and sys.platform != "win32":
                    raise CheckFailed(f"the daemon ended with {code}:\n{child.last_words()}")
                return "the daemon was asked to end, and did so in good order"

            screen.title(f"{len(STEPS) + 1}. The end")
            outcomes.append(await _step(screen, "The end", end))


async def _play(
    screen: Screen,
    outcomes: list[Outcome],
    controller: Controller,
    proxy: FaultProxy,
    child: LocalDaemon,
) -> None:
    worker: Daemon | None = None

    async def start() -> str:
        nonlocal worker
        worker = await child.dialled_in(controller, START_SECONDS)
        return f"the daemon {worker.id!r}, process {child.process.pid}, has dialled in"

    screen.title(f"sandd {__version__}: a controller and a daemon, on this machine")
    outcomes.append(await _step(screen, "The start", start))
    if worker is None:
        return
    stage = Stage(controller, worker, proxy, screen)
    for number, (title, step) in enumerate(STEPS.items(), start=1):
        screen.title(f"{number}. {title}")
        outcomes.append(await _step(screen, title, partial(step, stage)))


async def _step(screen: Screen, title: str, step: Callable[[], Awaitable[str]]) -> Outcome:
    """Run one step, and show what came of it. What it raises is a failure of that step alone."""
    began = trio.current_time()
    try:
        with trio.fail_after(STEP_SECONDS):
            said, held = await step(), True
    except Exception as error:
        said, held = _reason(error), False
    outcome = Outcome(title, said, trio.current_time() - began, held)
    screen.outcome(outcome)
    return outcome


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (CheckFailed, DaemonDidNotCome)):
        return str(error)
    if isinstance(error, trio.TooSlowError):
        return f"it took longer than {STEP_SECONDS:.0f} s"
    return f"{type(error).__name__}: {error}"
