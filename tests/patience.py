"""Limits that say only that something ends, on a machine that is as busy as it likes.

What a test waits for takes milliseconds, or a second or two. Where coverage is measured, and others run beside it, the
same may take a minute, of which it has had a processor for a few seconds. So these limits count seconds of calm (see
proc_files.py), as the one that each test has does.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

import trio
from proc_files import seconds_of_calm

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_MOST: Final = 10
"""So many times as long a limit is by the wall's clock, on a machine that never comes to rest."""


class Patience:
    """So many seconds of calm, from now on."""

    def __init__(self, seconds: float) -> None:
        self._calm_end = seconds_of_calm() + seconds
        self._next_look = time.monotonic() + seconds
        self._last_end = time.monotonic() + AT_MOST * seconds

    @property
    def left(self) -> float:
        """Seconds after which it may be over, but not before; none: it is."""
        now = time.monotonic()
        # Calm takes at least as long as it says: no need to ask the kernel at each look.
        if now >= self._next_look:
            self._next_look = min(now + self._calm_end - seconds_of_calm(), self._last_end)
        return max(0.0, self._next_look - now)

    @property
    def is_over(self) -> bool:
        """There is none left."""
        return not self.left


@contextlib.contextmanager
def fail_after_calm(seconds: float) -> Iterator[None]:
    """`trio.fail_after` by that clock; not for a trio whose own clock is a mock."""
    patience, watch = Patience(seconds), trio.CancelScope()

    async def lose_it() -> None:
        with watch:
            while left := patience.left:
                await trio.sleep(left)
            scope.cancel()

    with trio.CancelScope() as scope:
        trio.lowlevel.spawn_system_task(lose_it)
        try:
            yield
        finally:
            watch.cancel()
    if scope.cancelled_caught:
        raise trio.TooSlowError
