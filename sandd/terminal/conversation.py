"""A terminal and a session, until one of them has had enough.

Each direction has tasks of its own, because any of them may have to wait for its other end, and none may keep
the person from leaving: what was typed is read, and looked through for escapes, although nothing of it can be
sent while the daemon is away.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import frozen

from sandd._core._errors import OutputGap, SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.terminal.escapes import HELP, Escape, Escapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.results import ExitStatus
    from sandd.terminal.local import Size
    from sandd.terminal.replay import ReplayFilter

MAX_TYPED_BYTES: Final = 1024 * 1024
"""Kept of what was typed and can't be sent: a large paste. Beyond it the terminal has to wait, and with it
the escapes that stand behind it."""


class Terminal(Protocol):
    """What is needed of a `LocalTerminal`."""

    @property
    def size(self) -> Size:
        """As it is now."""

    async def receive(self) -> bytes:
        """What was typed; b"" when the terminal has gone."""

    async def show(self, data: bytes) -> None:
        """Show all of it."""

    async def say(self, text: str) -> None:
        """A line of our own."""

    def suspend(self) -> None:
        """Stop this program until it is continued."""

    async def next_size(self, known: Size) -> Size:
        """The size, as soon as it is another one."""


class Session(Protocol):
    """What is needed of a `sandd.Session`."""

    @property
    def offset(self) -> int:
        """How many bytes of its output were received, from its beginning."""

    async def send_all(self, data: bytes) -> None:
        """Type it."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the program shows; b"" at the end."""

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the size of the terminal."""

    async def detach(self) -> None:
        """Let it outlive us."""

    async def wait(self) -> ExitStatus:
        """How it ended."""


class Ending(enum.Enum):
    """Why a conversation is over."""

    EXITED = "exited"
    """The session's program has ended."""
    LEFT = "left"
    """The person has left, by ``~.``."""
    DETACHED = "detached"
    """The person has left, by ``~d``, and the session goes on."""
    HUNG_UP = "hung up"
    """The terminal has gone."""


@frozen
class Ended:
    """How a conversation ended."""

    ending: Ending
    status: ExitStatus | None = None
    """Where it has EXITED."""


class Conversation:
    """Carries bytes, sizes and escapes between a raw terminal and a session."""

    def __init__(
        self,
        terminal: Terminal,
        session: Session,
        *,
        size: Size | None = None,
        read_only: bool = False,
        why_not_detach: str = "",
        replay: ReplayFilter | None = None,
    ) -> None:
        """Nothing happens yet.

        Args:
            terminal: raw while `run` runs.
            session: as opened or attached to.
            size: what the session has been told already; None: tell it.
            read_only: nothing that is typed is for the session; ``~d`` leaves, too.
            why_not_detach: what ``~d`` answers where a session can't go on without us.
            replay: for output that is shown for the second time.
        """
        self._terminal = terminal
        self._session = session
        self._size = size
        self._read_only = read_only
        self._why_not_detach = why_not_detach
        self._replay = replay
        self._typed: deque[bytes | Escape] = deque()
        self._typed_bytes = 0
        self._typed_changed = trio.Event()
        self._over = trio.CancelScope()
        self._ended: Ended | None = None

    async def run(self) -> Ended:
        """Until the session's program has ended, or the person leaves, or the terminal has gone.

        Raises:
            JobTaken, JobNotFound, DaemonGone: there is no session to talk to any more.
        """
        with self._over:
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(self._read)
                if not self._read_only:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._resize)
                status = await self._show()
                self._end(Ended(Ending.EXITED, status))
                nursery.cancel_scope.cancel()
        assert self._ended is not None
        return self._ended

    def _end(self, ended: Ended) -> None:
        if self._ended is None:
            self._ended = ended
        self._over.cancel()

    # -- from the session

    async def _show(self) -> ExitStatus:
        while True:
            try:
                data = await self._session.receive_some()
            except OutputGap as gap:
                await self._terminal.say(f"[{gap.end - gap.start:,} bytes are not kept any more]")
                continue
            except trio.BrokenResourceError:
                break  # `wait` says why
            if not data:
                break
            if self._replay is not None:
                data = self._replay.feed(data, self._session.offset)
            if data:
                await self._terminal.show(data)
        return await self._session.wait()

    # -- from the terminal

    async def _read(self) -> None:
        """Read on whatever happens to what was read: an escape may be among it."""
        escapes = Escapes()
        while True:
            await self._until_typed_changes(lambda: self._typed_bytes <= MAX_TYPED_BYTES)
            typed = await self._terminal.receive()
            if not typed:
                self._end(Ended(Ending.HUNG_UP))
                return
            for said in escapes.feed(typed):
                if isinstance(said, bytes):
                    self._put(said)
                else:
                    await self._escape(said)

    async def _escape(self, escape: Escape) -> None:
        match escape:
            case Escape.LEAVE:
                self._end(Ended(Ending.LEFT))
            case Escape.DETACH if self._read_only:
                self._end(Ended(Ending.LEFT))
            case Escape.DETACH if self._why_not_detach:
                await self._terminal.say(f"[{self._why_not_detach}]")
            case Escape.DETACH:
                self._put(escape)
            case Escape.SUSPEND:
                self._terminal.suspend()
            case Escape.HELP:
                await self._terminal.say(HELP)

    def _put(self, said: bytes | Escape) -> None:
        if isinstance(said, bytes):
            if self._read_only:
                return
            self._typed_bytes += len(said)
        self._typed.append(said)
        self._wake()

    def _wake(self) -> None:
        self._typed_changed.set()
        self._typed_changed = trio.Event()

    async def _until_typed_changes(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._typed_changed.wait()

    async def _send(self) -> None:
        """Send what was typed, in order; an end of the session is `_show`'s to tell."""
        try:
            while True:
                await self._until_typed_changes(lambda: bool(self._typed))
                said = self._typed.popleft()
                if isinstance(said, Escape):
                    await self._session.detach()
                    self._end(Ended(Ending.DETACHED))
                    return
                while self._typed and isinstance(self._typed[0], bytes):
                    said += self._typed.popleft()  # type: ignore[operator]
                await self._session.send_all(said)
                self._typed_bytes -= len(said)
                self._wake()
        except (SanddError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._typed.clear()
            await trio.sleep_forever()

    async def _resize(self) -> None:
        known = self._size
        if known is None:
            known = self._terminal.size
            await self._tell_size(known)
        while True:
            known = await self._terminal.next_size(known)
            await self._tell_size(known)

    async def _tell_size(self, size: Size) -> None:
        try:
            await self._session.resize(size.rows, size.columns)
        except (SanddError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # `_show` hears of it, too
