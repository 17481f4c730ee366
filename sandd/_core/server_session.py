"""`ServerSession`: a terminal on a daemon for code that doesn't use trio; what `Client.new_session` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandd._core.server_job import ServerJob
from sandd._core.server_streams import Reading, Writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from sandd._core.bridge import TrioThread
    from sandd._core.session_handle import Session


class ServerSession(ServerJob["Session"]):
    """A terminal on a daemon, for synchronous code; made by `Client.new_session` and `Client.attach_session`.

    Any number of threads may call its methods; one at a time reads, one at a time writes, and others wait
    for their turn. Use it in a ``with`` block or call `close`; closing the client ends it, too.
    """

    def __init__(
        self,
        thread: TrioThread[Any],
        open_session: Callable[[], AbstractAsyncContextManager[Session]],
    ) -> None:
        super().__init__(thread, open_session)
        session = self._held
        self._writing = Writing(thread, session.send_all)
        self._reading = Reading(
            thread, session.receive_some, lambda: session.is_readable, lambda: session.offset
        )

    @property
    def offset(self) -> int:
        """How many bytes of what it shows have been read, from its beginning."""
        return self._reading.offset

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
        self._run(self._held.resize, rows, cols)

    # -- inside

    async def _stop_reading(self, held: Session) -> None:
        self._reading.kept.close()
        await held.aclose()
