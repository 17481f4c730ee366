"""How far a copy is, shown while it runs: a bar on stderr, where that is a terminal.

The terminal may stop at any time (Ctrl-S), and the program that copies must not: all writing is done in a
thread, and the copy itself only leaves two numbers behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

import trio
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sandd._core.interrupts import protected_context
from sandd._core.logs import printable
from sandd._core.nurseries import open_unwrapping_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DRAW_SECONDS: Final = 0.1
"""Between two looks at how far it is."""
LAST_DRAW_SECONDS: Final = 1.0
"""What a terminal that shows nothing any more gets for the last state of the bar."""


class _Console(Console):
    """The cursor stays: who is stopped or killed can't bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        return False


@protected_context
async def showing_progress(name: str, file: TextIO) -> AsyncIterator[Callable[[int, int], None]]:
    """A bar for one copy while the block lasts; the function takes bytes done and bytes in all.

    The bar stays as it was at the end of the block.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=_Console(file=file),
        auto_refresh=False,  # its own thread would hold a lock while the terminal doesn't take anything
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = progress.add_task(escape(printable(name)), total=None)
    done, total = 0, 0

    def note(bytes_done: int, bytes_in_all: int) -> None:
        nonlocal done, total
        done, total = bytes_done, bytes_in_all

    def draw() -> None:
        progress.update(task, completed=done, total=total or None)
        progress.refresh()

    def finish() -> None:
        draw()
        progress.stop()

    async def keep_drawing() -> None:
        while True:
            await trio.sleep(DRAW_SECONDS)
            await trio.to_thread.run_sync(draw, abandon_on_cancel=True)

    await trio.to_thread.run_sync(progress.start, abandon_on_cancel=True)
    try:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(keep_drawing)
            yield note
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(LAST_DRAW_SECONDS, shield=True):
            await trio.to_thread.run_sync(finish, abandon_on_cancel=True)
