"""A session of a program that doesn't use trio, at that program's terminal: `Server.new_session(interactive=True)`.

The terminal is served by a trio loop in the calling thread; the session lives in another one, and is reached as
the program itself would reach it, by calls that block a thread.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from sandd._core.nurseries import open_unwrapping_nursery
from sandd.terminal.conversation import Conversation, Ending
from sandd.terminal.local import open_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sandd._core.results import ExitStatus
    from sandd.terminal.conversation import Ended
    from sandd.terminal.local import LocalTerminal, Size

LOOK_SECONDS: Final = 0.2
"""How long one blocking read waits: so long the end of a conversation may take."""
_ENDS_US: Final = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
"""Signals whose default is our end, with the terminal as it is."""


class BlockingSession(Protocol):
    """What is needed of a `sandd.ServerSession`."""

    @property
    def offset(self) -> int:
        """How many bytes of its output were received, from its beginning."""

    def write(self, data: bytes) -> None:
        """Type it."""

    def read(self, timeout: float | None = None, max_bytes: int | None = None) -> bytes | None:
        """What the program shows; b"" at the end, None if there is nothing in time."""

    def resize(self, rows: int, cols: int) -> None:
        """Tell the size of the terminal."""

    def detach(self) -> None:
        """Let it outlive us."""

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """How it ended."""

    def close(self) -> None:
        """End it, unless it is detached."""


S = TypeVar("S", bound=BlockingSession)


def hold_at_terminal(open_session: Callable[[Size], S]) -> S:
    """Open a session of the terminal's size, and let the two talk until one of them has had enough.

    The session it returns has ended, unless the person detached it. The terminal is as it was, whatever
    happens; a signal that ends this program ends it after that.

    Raises:
        NoTerminal: stdin or stdout is none. Nothing was opened.
        RuntimeError: this isn't the main thread, which alone hears of signals. Nothing was opened.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("interactive=True is for the main thread: signals are heard there alone")
    with open_terminal() as terminal:
        session = open_session(terminal.size)
        try:
            ended, number = trio.run(_talk, terminal, session)
        except BaseException:
            session.close()
            raise
    if ended is None or ended.ending is not Ending.DETACHED:
        session.close()
    if number is not None:
        signal.raise_signal(number)
    return session


async def _talk(
    terminal: LocalTerminal, session: BlockingSession
) -> tuple[Ended | None, int | None]:
    """How it ended; or the signal that ends this program."""
    caught: list[int] = []

    async def listen(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            caught.append(number)
            scope.cancel()

    ours = [each for each in _ENDS_US if signal.getsignal(each) is signal.SIG_DFL]
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(*ours)) if ours else None
        async with open_unwrapping_nursery() as nursery:
            with trio.CancelScope() as scope:
                if signals is not None:
                    nursery.start_soon(listen, signals, scope)
                async with terminal.raw_mode():
                    size = terminal.size
                    ended = await Conversation(terminal, _InThreads(session), size=size).run()
            nursery.cancel_scope.cancel()
    return (None, caught[0]) if caught else (ended, None)


class _InThreads:
    """The session as a conversation wants it; each call blocks a thread."""

    def __init__(self, session: BlockingSession) -> None:
        self._session = session

    @property
    def offset(self) -> int:
        return self._session.offset

    async def send_all(self, data: bytes) -> None:
        # Given up at the end, as it may wait for a daemon that is away; closing the session ends it.
        await trio.to_thread.run_sync(self._session.write, bytes(data), abandon_on_cancel=True)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # Never given up: what it has taken must be shown.
        read = partial(self._session.read, LOOK_SECONDS, max_bytes)
        while (data := await trio.to_thread.run_sync(read)) is None:
            await trio.lowlevel.checkpoint()
        return data

    async def resize(self, rows: int, cols: int) -> None:
        await trio.to_thread.run_sync(self._session.resize, rows, cols, abandon_on_cancel=True)

    async def detach(self) -> None:
        await trio.to_thread.run_sync(self._session.detach, abandon_on_cancel=True)

    async def wait(self) -> ExitStatus:
        while (status := await trio.to_thread.run_sync(self._session.wait, LOOK_SECONDS)) is None:
            await trio.lowlevel.checkpoint()
        return status
