"""Bytes on this program's stdout and stderr, never torn, whichever tasks write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.own_output import Name
    from sandd.command_line.stopping import Stop

FILES: Final[tuple[Name, ...]] = ("stdout", "stderr")
"""What they are called, here as on a daemon."""


@define(eq=False)
class Output:
    """Both of them. What one task puts there stands together, whoever else does."""

    _stop: Stop
    """Where one of them takes no more, the command is stopped: there is nothing left to do."""
    _lock: trio.Lock = field(factory=trio.Lock)

    async def put(self, name: Name, data: bytes | Callable[[], bytes]) -> None:
        """All of `data`, on "stdout" or "stderr"; returns when its reader has it, or the system for it.

        What is only made from something smaller may be given as a function: it is called once it can be written.
        """
        async with self._lock:
            text = data if isinstance(data, bytes) else data()
            if text:
                await self._stop.write(name, text)
