"""What `ServerProcess` and `ServerSession` have in common: a `HeldJob` for code that doesn't use trio.

A task in the trio thread holds the job's block open until `close`; every method is a short call into that thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from sandd._core.arguments import patience
from sandd._core.held_block import HeldBlock
from sandd._core.held_job import HeldJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from signal import Signals
    from typing import Self

    from sandd._core.bridge import TrioThread
    from sandd._core.results import ExitStatus

T = TypeVar("T")
HeldT = TypeVar("HeldT", bound=HeldJob)


class ServerJob(ABC, Generic[HeldT]):
    """A job that runs a program, in a block that any thread may leave."""

    def __init__(
        self,
        thread: TrioThread[Any],
        open_job: Callable[[], AbstractAsyncContextManager[HeldT, bool | None]],
    ) -> None:
        self._thread = thread
        self._block = HeldBlock(
            thread,
            lambda: self._hold_open(open_job),
            take_back=lambda held: held._take_back(),
        )
        self._held = self._block.enter()

    def __repr__(self) -> str:
        return repr(self._held).replace("sandd.", "sandd.Server", 1)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def job_id(self) -> str:
        """Id of its job, unique on its daemon; what `Client.attach_process`, `attach_session` and others go by."""
        return self._held.job_id

    @property
    def pid(self) -> int:
        """Process id of its program, on the daemon's machine."""
        return self._held.pid

    @property
    def exit_code(self) -> int | None:
        """The program's; ``-N`` if signal N ended it; None while it runs, or if how it ended isn't known."""
        status = self._held.status
        return None if status is None else status.exit_code

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """How the program ended, once it has; None if that takes more than `timeout` seconds.

        It reads nothing, and a program whose output isn't read may never end. Errors as `Process.wait`.
        """
        limit = patience(timeout)

        async def wait() -> ExitStatus | None:
            with trio.move_on_after(limit):
                return await self._held.wait()
            return self._held.status

        return self._run(wait)

    def signal(self, name: str | Signals) -> None:
        """Send a signal, such as "INT", to the process group; nothing happens if it has ended.

        In a session that is the group in the foreground.
        """
        self._run(self._held.signal, name)

    def detach(self) -> None:
        """Let it outlive this object and this program; `Client.attach_process` or `attach_session` finds it again."""
        self._run(self._held.detach)

    def close(self) -> None:
        """End the program, and wait until its whole process tree is gone; a detached one goes on.

        A thread that reads at this moment gets `trio.ClosedResourceError`. Idempotent. Once the client is closed, so
        is this.
        """
        self._block.leave()

    # -- inside

    def _run(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        return self._thread.run(async_fn, *args)

    @asynccontextmanager
    async def _hold_open(
        self, open_job: Callable[[], AbstractAsyncContextManager[HeldT, bool | None]]
    ) -> AsyncIterator[HeldT]:
        async with open_job() as held:
            yield held
            await self._stop_reading(held)

    @abstractmethod
    async def _stop_reading(self, held: HeldT) -> None:
        """Whoever reads at this moment is told that it was closed."""
