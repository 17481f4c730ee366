"""Bytes on their way from a thread that can only block to a task that must not."""

from __future__ import annotations

import threading
from collections import deque

import trio


class ThreadHandoff:
    """A queue of bytes with a bound: a thread that puts waits while it is full, so that a slow task slows it.

    Made in trio's thread. `put` and `end` are for the other thread, everything else is for tasks.

    Args:
        max_bytes: what may lie here when `put` lets another piece in; so the most is this and one piece.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._token = trio.lowlevel.current_trio_token()
        self._may_put = threading.Condition()  # its lock guards all of these
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._at_end = False
        self._is_closed = False
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<ThreadHandoff of {self._size} bytes>"

    # -- the thread's side

    def put(self, data: bytes) -> bool:
        """Hand `data` over, and wait while there is too much already; False where nobody wants any more."""
        with self._may_put:
            while self._size >= self._max_bytes and not self._is_closed:
                self._may_put.wait()
            if self._is_closed:
                return False
            if data:
                self._pieces.append(data)
                self._size += len(data)
        if data:
            self._notify()
        return True

    def end(self) -> None:
        """There will be no more."""
        with self._may_put:
            self._at_end = True
        self._notify()

    def _notify(self) -> None:
        try:
            self._token.run_sync_soon(self.wake, idempotent=True)
        except trio.RunFinishedError:
            self.close()  # nobody is left who could take it

    # -- the task's side

    def take(self, max_bytes: int) -> bytes | None:
        """What is there, at most `max_bytes`; b"" at the end, None when there is nothing yet."""
        with self._may_put:
            if not self._pieces:
                return b"" if self._at_end else None
            parts: list[bytes] = []
            room = max_bytes
            while self._pieces and room > 0:
                piece = self._pieces.popleft()
                if len(piece) > room:
                    self._pieces.appendleft(piece[room:])
                    piece = piece[:room]
                parts.append(piece)
                room -= len(piece)
            self._size -= max_bytes - room
            self._may_put.notify()
        return b"".join(parts)

    async def changed(self) -> None:
        """Wait until something has come, or has to be looked at. To be called right after `take`."""
        await self._changed.wait()

    def wake(self) -> None:
        """Have whoever waits look again."""
        self._changed.set()
        self._changed = trio.Event()

    def close(self) -> None:
        """Drop what is there and what comes; a thread that waits to put goes on. Idempotent."""
        with self._may_put:
            self._is_closed = True
            self._pieces.clear()
            self._size = 0
            self._may_put.notify()
