"""A person at a session: types, and looks at the screen until it shows what was waited for.

::

    async with worker.open_session(["bash", "--norc"]) as session, Person.at(session) as person:
        await person.types("echo hello\r")
        await person.sees("hello")
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import pyte
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import sandd

LIMIT: Final = 20.0
"""Seconds to wait for something to appear: mostly it takes some milliseconds, but the machine may be busy."""


class Screen(pyte.Screen):
    """pyte's, but without its fault at the private variants of SGR, which vim sends: they colour nothing."""

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        """Set colours and the like for what follows."""
        if not private:
            super().select_graphic_rendition(*attributes)


class Person:
    """Reads all that a session shows, as a terminal of that size does, and types."""

    def __init__(self, session: sandd.Session, rows: int, cols: int) -> None:
        self.session = session
        self.screen = Screen(cols, rows)
        self.shown = bytearray()
        """Every byte there was."""
        self.ended = False
        self._stream = pyte.ByteStream(self.screen)
        self._changed = trio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def at(
        cls, session: sandd.Session, rows: int = 24, cols: int = 80
    ) -> AsyncIterator[Person]:
        """Somebody who looks at it while the block lasts."""
        person = cls(session, rows, cols)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(person._look)
            yield person
            nursery.cancel_scope.cancel()

    async def types(self, text: str) -> None:
        r"""Type a text; Enter is ``\r``."""
        await self.session.send_all(text.encode())

    async def sees(self, text: str, *, within: float = LIMIT) -> None:
        """Wait until the screen has it somewhere, in one line."""
        with trio.move_on_after(within):
            while not any(text in line for line in self.lines):
                if self.ended:
                    break
                await self._changed.wait()
            else:
                return
        raise AssertionError(f"no {text!r} on the screen:\n" + "\n".join(self.lines))

    async def sees_end(self, *, within: float = LIMIT) -> None:
        """Wait until the session shows nothing any more."""
        with trio.fail_after(within):
            while not self.ended:
                await self._changed.wait()

    async def resizes(self, rows: int, cols: int) -> None:
        """Drag the window's corner."""
        self.screen.resize(rows, cols)
        await self.session.resize(rows, cols)

    @property
    def lines(self) -> list[str]:
        """The screen, without what is blank at the lines' ends."""
        return [line.rstrip() for line in self.screen.display]

    async def _look(self) -> None:
        while data := await self.session.receive_some():
            self.shown += data
            self._stream.feed(data)
            self._tell()
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def in_foreground(pid: int) -> str:
    """Name of the process that leads the foreground of the session of `pid`."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{pid}/stat") as file:
            group = int(file.read().rpartition(")")[2].split()[5])
        with open(f"/proc/{group}/comm") as file:
            return file.read().strip()
    return ""
