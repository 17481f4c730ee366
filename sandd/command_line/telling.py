"""What a command says: each text in a thread of its own, for a terminal may have been stopped (Ctrl-S)."""

from __future__ import annotations

import sys
from typing import TextIO

import trio

from sandd._core.logs import printable


async def say(text: str) -> None:
    """Lines on stderr, in words that can't be a sequence for the terminal."""
    lines = "".join(f"{printable(line)}\n" for line in text.splitlines())
    await trio.to_thread.run_sync(_write, sys.stderr, lines, abandon_on_cancel=True)


async def say_nothing(_: str) -> None:
    """Instead of `say`, for who wants it quiet."""
    await trio.lowlevel.checkpoint()


async def put_out(line: str) -> None:
    """A line on stdout, at once: whoever reads it is told now."""
    await trio.to_thread.run_sync(_write, sys.stdout, f"{line}\n", abandon_on_cancel=True)


def _write(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()
