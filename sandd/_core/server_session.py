"""`ServerSession`: a terminal on a daemon for code that doesn't use trio; what `Server.new_session` gives.

A task in the server's trio thread holds the session's block open until `close`; every method is a short
call into that thread.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio
from attrs import define

from sandd._core.bridge import Promise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from signal import Signals
    from typing import Any, Self

    from sandd._core.bridge import TrioThread
    from sandd._core.results import ExitStatus
    from sandd._core.session_handle import Session

T = TypeVar("T")


class ServerSession:
    """A terminal on a daemon, for synchronous code; made by `Server.new_session` and `Server.attach_session`.

    Any number of threads may call its methods; one at a time reads, one at a time writes, and others wait
    for their turn. Use it in a ``with`` block or call `close`; closing the server ends it, too.
    """

    def __init__(
        self,
        thread: TrioThread[Any],
        open_session: Callable[[], AbstractAsyncContextManager[Session]],
    ) -> None:
        self._thread = thread
        self._opened: Promise[Session] = Promise()
        self._leave = trio.Event()
        self._unwanted = False
        """Whoever opened it was interrupted, and never had it."""
        # A call that was interrupted goes on in the background for a moment, when the next one may be there.
        self._reading, self._writing = trio.Lock(), trio.Lock()
        self._unread = b""
        """Received for a thread that was interrupted before it had it; of the trio thread alone."""
        self._hold = thread.call(self._hold_open, open_session, on_done=self._is_over)
        self._session = self._open()

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
        return self._session.offset - len(self._unread)

    @property
    def exit_code(self) -> int | None:
        """The program's; ``-N`` if signal N ended it; None while it runs, or if how it ended isn't known."""
        status = self._session.status
        return None if status is None else status.exit_code

    def write(self, data: bytes | str) -> None:
        r"""Type `data`: ``b"\r"`` is the Enter key, ``b"\x03"`` Ctrl-C; a text is typed as UTF-8.

        Raises:
            trio.BrokenResourceError: the session has ended; the cause says so if it was lost or taken over.
            trio.ClosedResourceError: it was closed, or the server was.
        """
        typed = data.encode() if isinstance(data, str) else data

        async def send() -> None:
            async with self._writing:
                await self._session.send_all(typed)

        self._run(send)

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
            trio.ClosedResourceError: it was closed, or the server was.
        """

        taken = _Taken()

        async def receive() -> None:
            if self._is_readable:
                await self._receive(taken, max_bytes)
                return
            with trio.move_on_after(math.inf if timeout is None else max(0.0, timeout)):
                await self._receive(taken, max_bytes)

        try:
            self._run(receive)
            return taken.data
        except BaseException:
            self._thread._soon(partial(self._put_back, taken))
            raise

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

        async def wait() -> ExitStatus | None:
            with trio.move_on_after(math.inf if timeout is None else max(0.0, timeout)):
                return await self._session.wait()
            return self._session.status

        return self._run(wait)

    def detach(self) -> None:
        """Let it outlive this object and this program; `Server.attach_session` finds it again."""
        self._run(self._session.detach)

    def close(self) -> None:
        """End the session, and wait until its whole process tree is gone; a detached one goes on.

        A thread that is in `read` gets `trio.ClosedResourceError`. Idempotent. Once the server is closed, so
        is the session.
        """
        with suppress(trio.ClosedResourceError):
            self._run(self._let_go)
            self._hold.promise.wait()

    # -- inside

    def _open(self) -> Session:
        try:
            self._hold.start()
            self._opened.wait()
            return self._opened.result()
        except BaseException:
            self._unwanted = True
            self._hold.cancel()
            raise

    # The three below are in the trio thread, and between two awaits each: what was received is the thread's
    # that asked for it, or goes to the next one, and never to neither or both.

    @property
    def _is_readable(self) -> bool:
        return not self._reading.locked() and bool(self._unread or self._session.is_readable)

    async def _receive(self, taken: _Taken, max_bytes: int | None) -> None:
        async with self._reading:
            if self._unread and (max_bytes is None or max_bytes > 0) and not self._leave.is_set():
                end = len(self._unread) if max_bytes is None else max_bytes
                taken.data, self._unread = self._unread[:end], self._unread[end:]
            else:
                taken.data = await self._session.receive_some(max_bytes)
        if taken.by_nobody:
            self._put_back(taken)

    def _put_back(self, taken: _Taken) -> None:
        taken.by_nobody = True
        self._unread += taken.data or b""
        taken.data = None

    def _run(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        return self._thread.run(async_fn, *args)

    async def _let_go(self) -> None:
        self._leave.set()

    async def _hold_open(
        self, open_session: Callable[[], AbstractAsyncContextManager[Session]]
    ) -> None:
        async with open_session() as session:
            self._opened.keep(session)
            try:
                await self._leave.wait()
                await session.aclose()  # whoever reads at this moment is told that it was closed
            finally:
                if self._unwanted:
                    await session._take_back()

    def _is_over(self) -> None:
        if not self._opened.done:
            try:
                self._hold.promise.result()
            except BaseException as error:
                self._opened.fail(error)


@define
class _Taken:
    """What a call of `ServerSession.read` has received."""

    data: bytes | None = None
    by_nobody: bool = False
    """The thread that called was interrupted."""
