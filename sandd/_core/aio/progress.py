"""What the trio thread reports, in the event loop of who asked for it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from sandd._core.aio.calls import call, teller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.bridge import TrioThread

    Progress = Callable[[int, int], None]

T = TypeVar("T")


async def reported_here(
    thread: TrioThread[Any], function: Callable[[Progress], Awaitable[T]], progress: Progress
) -> T:
    """What ``await function(report)`` gives in that thread; what is reported there `progress` hears here.

    What `progress` raises ends the call, and is raised.
    """
    relay = _Relay(progress)
    with relay.scope:
        return await call(thread, lambda: function(relay.report))
    assert relay.error is not None
    raise relay.error


class _Relay:
    """The newest report, on its way: one that the loop hasn't heard of yet is overtaken, so none queue up."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tell = teller(self, _Relay._hear)
        self._newest: deque[tuple[int, int]] = deque(maxlen=1)
        self._is_told = False
        self.scope = anyio.CancelScope()
        self.error: BaseException | None = None

    # There is a report before `_is_told` is looked at, and that is taken back before the report is.

    def report(self, done: int, total: int) -> None:
        """In the trio thread."""
        self._newest.append((done, total))
        if not self._is_told:
            self._is_told = True
            self._tell()

    def _hear(self) -> None:
        self._is_told = False
        if self._newest and self.error is None:
            try:
                self._progress(*self._newest.popleft())
            except BaseException as error:
                self.error = error
                self.scope.cancel()
