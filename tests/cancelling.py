"""Cancels a call at each of its awaits, one after the other."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MOST_AWAITS: Final = 300
"""No call takes so many; one that does would never be seen to its end."""


class CancelAt(trio.abc.Instrument):
    """Cancels what the current task does, at one of its awaits."""

    def __init__(self, number: int, *, going_on: bool) -> None:
        self.scope = trio.CancelScope()
        self.awaits = 0
        self._number = number
        self._going_on = going_on
        """Not while it waits, but when what it waited for is there already."""
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """It waits now."""
        if not self._going_on:
            self._count(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """It waits no more."""
        if self._going_on:
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.awaits += 1
            if self.awaits == self._number:
                self.scope.cancel()


async def cancel_at_each_await(
    call: Callable[[], Awaitable[object]], check: Callable[[], Awaitable[object]]
) -> int:
    """Cancel it at its first await, then at its second, ... until it ends before; the number of awaits."""
    most = 0
    for going_on in (False, True):
        for number in itertools.count(1):
            assert number < MOST_AWAITS
            cancel = CancelAt(number, going_on=going_on)
            trio.lowlevel.add_instrument(cancel)
            try:
                with cancel.scope:
                    await call()
            finally:
                trio.lowlevel.remove_instrument(cancel)
            await check()
            if cancel.awaits < number:
                most = max(most, cancel.awaits)
                break
    return most
