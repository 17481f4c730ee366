"""A result that one thread waits for and another one has, without ever blocking the other.

Waiting threads wait on C locks only. `threading.Event`, `Condition` and what is built of them are
Python: a KeyboardInterrupt in the wrong place leaves their inner lock held, and then the thread that
has the result would hang in `set`.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_LONGEST_WAIT: Final = 0.1 if sys.platform == "win32" else 3600.0
"""Seconds at a stretch that a thread waits for a lock: on Windows it hears no Ctrl-C meanwhile."""


class Promise(Generic[T]):
    """A value or an exception to come, for any number of waiting threads.

    Neither side ever blocks the other, wherever a signal handler's exception strikes a waiter.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.done = False

    def keep(self, value: T) -> bool:
        """Here is the value; False if the promise was done already, and nothing changes."""
        if self.done:
            return False
        self._value = value
        self._settle()
        return True

    def fail(self, error: BaseException) -> bool:
        """There will be no value; False if the promise was done already, and nothing changes."""
        if self.done:
            return False
        self._error = error
        self._settle()
        return True

    def _settle(self) -> None:
        self.done = True
        while True:
            try:
                function = self._waiting.popleft()
            except IndexError:
                return
            function()

    # Whoever waits is in the queue before `done` is looked at, and `done` is set before the queue is
    # emptied: none is forgotten. None takes another one out, for an interrupt may strike it there.

    def when_done(self, function: Callable[[], object]) -> None:
        """Have it called once: at once if the promise is done, else where that is done to it.

        It must neither block nor raise.
        """

        def call() -> None:
            function()

        self._waiting.append(call)
        if self.done:
            try:
                self._waiting.remove(call)
            except ValueError:
                return  # it has been called
            function()

    def wait(self, seconds: float | None = None) -> bool:
        """Block this thread until the promise is done; False if that takes more than `seconds`."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        # Each waiter has a lock of its own, which only `_settle` releases.
        waiter = threading.Lock()
        waiter.acquire()
        self._waiting.append(waiter.release)
        while not self.done:
            left = min(deadline - time.monotonic(), _LONGEST_WAIT)
            if left <= 0:
                return False
            waiter.acquire(timeout=left)
        return True

    def result(self) -> T:
        """The value, or the exception raised. For one caller: it takes the outcome away."""
        assert self.done
        value, error = self._value, self._error
        self._value = self._error = None
        if error is None:
            return value  # type: ignore[return-value]  # None only where T has it
        try:
            raise error
        finally:
            # The error's traceback has this frame, and this frame must not have the error.
            del error, self
