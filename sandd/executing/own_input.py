"""This program's stdin as bytes, verbatim and as they come.

It is shared, as `sandd.terminal.posix` says, so it stays as it is: blocking. What may block is done in
threads that nobody waits for once it doesn't matter any more. To read in such a thread would take bytes away that
are meant for the next program, so what can be waited for is waited for first.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import TextIO

CHUNK_BYTES: Final = 256 * 1024
"""Read at a time: a thread's turn costs a quarter of a millisecond."""


async def read_chunks(descriptor: int) -> AsyncGenerator[bytes, None]:
    """What is there to be read, as it comes, to its end. Nothing is read that isn't asked for."""
    can_wait = not (sys.platform == "win32" or stat.S_ISREG(os.fstat(descriptor).st_mode))
    while True:
        if can_wait:
            try:
                await trio.lowlevel.wait_readable(descriptor)
            except OSError:
                can_wait = False  # /dev/null, on Linux: it never blocks anyway
        try:
            # In a thread although there is something: another reader may have been faster.
            data = await trio.to_thread.run_sync(
                os.read, descriptor, CHUNK_BYTES, abandon_on_cancel=True
            )
        except BlockingIOError:
            continue  # somebody has made it non-blocking
        if not data:
            return
        yield data


def descriptor_of(stream: TextIO | None) -> int | None:
    """Of `sys.stdin`; None if it was closed when we were started."""
    return None if stream is None else stream.fileno()
