"""`ServerSession`: a terminal on a daemon for code that doesn't use trio; what `Client.new_session` gives.

A task in the client's trio thread holds the session's block open until `close`; every method is a short
call into that thread.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from sandd._core.arguments import patience
from sandd._core.held_block import HeldBlock
from sandd._core.server_streams import Reading, Writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from signal import Signals
    from typing import Any, Self

    from sandd._core.bridge import TrioThread
    from sandd._core.results import ExitStatus
    from sandd._core.session_handle import Session

T = TypeVar("T")


class ServerSession:
    """A terminal on a daemon, for synchronous code; made by `Client.new_session` and `Client.attach_session`.

    Any number of threads may call its methods; one at a time reads, one at a time writes, and others wait
    for their turn. Use it in a ``with`` block or call `close`; closing the client ends it, too.
    """

    def __init__(
        self,
        thread: TrioThread[Any],
        open_session: Callable[[], AbstractAsyncContextManager[Session]],
    ) -> None:
        self._thread = thread
        self._block = HeldBlock(
            thread,
            lambda: self._hold_open(open_session),
            take_back=lambda session: session._take_back(),
        )
        self._session = session = self._block.enter()
        self._writing = Writing(thread, session.send_all)
        self._reading = Reading(
            thread, session.receive_some, lambda: session.is_readable, lambda: session.offset
        )

    def __repr__(self) -> str:
        return repr(self._session).replace("sandd.Session", "sandd.ServerSession")

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def job_id(self) -> str:
        """Id of its job, unique on its daemon; what `Daemon.attach_session` goes by."""
        return self._session.job_id

    @property
    def pid(self) -> int:
        """Process id of its program, on the daemon's machine."""
        return self._session.pid

    @property
    def offset(self) -> int:
        """How many bytes of what it shows have been read, from its beginning."""
        return self._reading.offset

    @property
    def exit_code(self) -> int | None:
        """The program's; ``-N`` if signal N ended it; None while it runs, or if how it ended isn't known."""
        status = self._session.status
        return None if status is None else status.exit_code

    def write(self, data: bytes | str) -> None:
        r"""Type `data`: ``b"\r"`` is the Enter key, ``b"\x03"`` Ctrl-C; a text is typed as UTF-8.

        Raises:
            trio.BrokenResourceError: the session has ended; the cause says so if it was lost or taken over.
            trio.ClosedResourceError: it was closed, or the client was.
        """
        self._writing.write(data)

    def read(self, timeout: float | None = None, max_bytes: int | None = None) -> bytes | None:
        """What it shows next: as soon as there is something, and all of it, in pieces that end anywhere.

        Interrupting it, by Ctrl-C say, loses nothing.

        Args:
            timeout: seconds to wait for something; 0 doesn't wait; None waits for as long as it takes.
            max_bytes: at most so many; None: 64 KiB.

        Returns:
            The bytes; b"" at the end, when the program has ended; None if the time ran out.

        Raises:
            OutputGap, trio.BrokenResourceError: as `Session.receive_some`.
            trio.ClosedResourceError: it was closed, or the client was.
        """
        return self._reading.read(timeout, max_bytes)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the program that its window has another size now."""
        self._run(self._session.resize, rows, cols)

    def signal(self, name: str | Signals) -> None:
        """Send a signal, such as "INT", to the process group in the foreground."""
        self._run(self._session.signal, name)

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """How the program ended, once it has; None if that takes more than `timeout` seconds.

        It reads nothing, and a program whose output isn't read may never end. Errors as `Session.wait`.
        """

        limit = patience(timeout)

        async def wait() -> ExitStatus | None:
            with trio.move_on_after(limit):
                return await self._session.wait()
            return self._session.status

        return self._run(wait)

    def detach(self) -> None:
        """Let it outlive this object and this program; `Client.attach_session` finds it again."""
        self._run(self._session.detach)

    def close(self) -> None:
        """End the session, and wait until its whole process tree is gone; a detached one goes on.

        A thread that is in `read` gets `trio.ClosedResourceError`. Idempotent. Once the client is closed, so
        is the session.
        """
        self._block.leave()

    # -- inside

    def _run(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        return self._thread.run(async_fn, *args)

    @asynccontextmanager
    async def _hold_open(
        self, open_session: Callable[[], AbstractAsyncContextManager[Session]]
    ) -> AsyncIterator[Session]:
        async with open_session() as session:
            yield session
            self._reading.kept.close()
            await session.aclose()  # whoever reads at this moment is told that it was closed
