"""Where those rest of whose peers nothing is expected: they are read together, and a moment later than they could be.

Who waits for a peer by itself is waked for each of its heartbeats: a turn of the loop, a step through all of its task's
stack, a system call to be waked again. Of thousands of idle connections that is most of what they cost. Here each is
registered once, and a task that they share reads what has come of all. A task is waked by the first word that is more
than a heartbeat, by `wake`, or by its cancellation, and waits by itself from then on.

It takes a set of descriptors that can itself be waited for, which Linux has. Elsewhere nobody rests.
"""

from __future__ import annotations

import abc
import math
import select
import sys
from typing import TYPE_CHECKING, Final

import trio
from outcome import Error, Value

from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from outcome import Outcome

log = get_logger("transport")

LOOKS_AT_ONCE: Final = 32
"""Of those that have something, so many are looked at before other tasks run: 2 ms of heartbeats (m)."""
REFUSED_SECONDS: Final = 60.0
"""Where the system had no room for one, nobody asks it again for so long: each would, with every heartbeat."""


class RestingPlace(abc.ABC):
    """Some descriptors that are waited for together; `run` does it."""

    @property
    @abc.abstractmethod
    def takes_more(self) -> bool:
        """`rest` doesn't return at once, as far as is known."""

    @abc.abstractmethod
    async def rest(self, descriptor: int, look: Callable[[], None]) -> bytes | None:
        """Wait for `wake`, and have `look` called meanwhile whenever something can be read.

        What `look` raises is raised here.

        Args:
            descriptor: of a socket, which stays open meanwhile.
            look: reads from it, once; it may call `wake`.

        Returns:
            What it was waked with.
        """

    @abc.abstractmethod
    def wake(self, descriptor: int, came: bytes | None = None) -> None:
        """End its rest, if it rests. Before its socket is closed, since a number may mean another one soon."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Look after them, until cancelled; then nobody rests any more."""


if sys.platform == "linux":

    class EpollRestingPlace(RestingPlace):
        """An epoll of their own, in which each stays while it rests; that is what trio waits for.

        Args:
            pause: seconds from one look at them to the next, at least.
        """

        def __init__(self, pause: float) -> None:
            self._takes_more_from = -math.inf
            self._pause = pause
            self._epoll = select.epoll()
            self._resting: dict[int, tuple[trio.lowlevel.Task, Callable[[], None]]] = {}
            """Exactly those that are registered."""

        @property
        def takes_more(self) -> bool:
            since = self._takes_more_from
            return (
                since == -math.inf or trio.current_time() >= since
            )  # (asked with every heartbeat)

        async def rest(self, descriptor: int, look: Callable[[], None]) -> bytes | None:
            try:
                # (Told again and again, until it was read: nothing is to be done to be told of what comes next.)
                self._epoll.register(descriptor, select.EPOLLIN)
            except OSError:  # the system has no room for more (fs.epoll.max_user_watches)
                self._takes_more_from = trio.current_time() + REFUSED_SECONDS
                return None
            self._resting[descriptor] = (trio.lowlevel.current_task(), look)

            def abort(_: object) -> trio.lowlevel.Abort:
                self._leave(descriptor)
                return trio.lowlevel.Abort.SUCCEEDED

            came: bytes | None = await trio.lowlevel.wait_task_rescheduled(abort)
            return came

        def wake(self, descriptor: int, came: bytes | None = None) -> None:
            self._wake(descriptor, Value(came))

        def _wake(self, descriptor: int, outcome: Outcome[bytes | None]) -> bool:
            task = self._leave(descriptor)
            if task is not None:
                trio.lowlevel.reschedule(task, outcome)
            return task is not None

        def _leave(self, descriptor: int) -> trio.lowlevel.Task | None:
            known = self._resting.pop(descriptor, None)
            if known is None:
                return None
            self._epoll.unregister(descriptor)
            return known[0]

        @trio.lowlevel.enable_ki_protection
        async def run(self) -> None:
            try:
                while True:
                    ready = self._epoll.poll(0, LOOKS_AT_ONCE)
                    for descriptor, _ in ready:
                        self._look_at(descriptor)
                    if not ready:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    elif len(ready) == LOOKS_AT_ONCE:
                        await trio.lowlevel.checkpoint()
                    else:
                        # Not before the look: who comes after a pause is heard at once.
                        # (`trio.sleep` would be as many calls as two heartbeats.)
                        with trio.CancelScope(deadline=trio.current_time() + self._pause):
                            await trio.sleep_forever()
            finally:
                self._takes_more_from = math.inf
                for descriptor in list(self._resting):
                    self.wake(descriptor)
                self._epoll.close()

        def _look_at(self, descriptor: int) -> None:
            known = self._resting.get(descriptor)
            if known is None:
                return  # waked by one that was looked at before it
            _, look = known
            try:
                look()
            except Exception as error:
                if not self._wake(descriptor, Error(error)):
                    log.exception("look_failed")  # after it had waked its own


def open_resting_place(pause: float) -> RestingPlace | None:
    """One that suits this system; None: there is none."""
    if sys.platform == "linux":
        return EpollRestingPlace(pause)
    return None
