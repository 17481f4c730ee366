"""Bytes on this program's stdout and stderr: in a thread, for both may wait for their reader, and never torn."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd.executing.own_streams import descriptor_of, write_all

if TYPE_CHECKING:
    from collections.abc import Callable

FILES: Final = ("stdout", "stderr")
"""What they are called, here as on a daemon."""


@define(eq=False)
class Output:
    """Both of them. What one task puts there stands together, whoever else does."""

    on_reader_gone: trio.CancelScope
    """Cancelled when whoever reads one of them has gone, as `head` does: then there is nothing left to do."""
    error: BrokenPipeError | None = None
    _lock: trio.Lock = field(factory=trio.Lock)

    async def put(self, name: str, data: bytes | Callable[[], bytes]) -> None:
        """All of `data`, on "stdout" or "stderr"; returns when its reader has it, or the system for it.

        What is only made from something smaller may be given as a function: it is called once it can be written.
        """
        descriptor = descriptor_of(getattr(sys, name))
        async with self._lock:
            text = data if isinstance(data, bytes) else data()
            if descriptor is None or not text:
                return
            try:
                await write_all(descriptor, text)
            except BrokenPipeError as error:
                self.error = error
                self.on_reader_gone.cancel()
                await trio.sleep_forever()

    def raise_if_reader_gone(self) -> None:
        """BrokenPipeError, which is for the end of the program, once all is undone."""
        if self.error is not None:
            raise self.error
