"""A program that holds a session with itself at its terminal: what is typed is shown, by name.

``python mirror.py FILE TEXT``: writes its process id to FILE; shows TEXT, with Python's escapes in it, then
``ready ROWSxCOLUMNS`` when the terminal is raw, and each byte in hex; ``q`` ends it with 7. For tests of what
becomes of a terminal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from sandd import ExitStatus, Outcome
from sandd.terminal.conversation import Conversation, Ended, Ending
from sandd.terminal.program import run_at_terminal

if TYPE_CHECKING:
    from sandd.command_line.stopping import Stop
    from sandd.terminal.local import LocalTerminal


class Mirror:
    """The session."""

    offset = 0

    def __init__(self, text: str) -> None:
        self._put, self._get = trio.open_memory_channel[bytes](1000)
        if text:
            self._put.send_nowait(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))

    async def send_all(self, data: bytes) -> None:
        """Note it."""
        for byte in data:
            await self._put.send(b"<%02x>" % byte)
        if b"q" in data:
            self._put.close()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What is to be shown next."""
        try:
            return await self._get.receive()
        except trio.EndOfChannel:
            return b""

    async def resize(self, rows: int, cols: int) -> None:
        """Note the size."""
        await self._put.send(b"\r\nready %dx%d\r\n" % (rows, cols))

    async def detach(self) -> None:
        """Go on without us."""
        await trio.lowlevel.checkpoint()

    async def wait(self) -> ExitStatus:
        """How it ended."""
        await trio.lowlevel.checkpoint()
        return ExitStatus(7, Outcome.EXITED, 0.0)


async def mirror(terminal: LocalTerminal, _stop: Stop) -> int:
    """Hold the session."""
    async with terminal.raw_mode():
        ended: Ended = await Conversation(terminal, Mirror(sys.argv[2])).run()
    await terminal.say(f"[{ended.ending.value}]")
    return 7 if ended.ending is Ending.EXITED else 0


Path(sys.argv[1]).write_text(str(os.getpid()))
sys.exit(run_at_terminal(mirror))
