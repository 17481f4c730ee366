"""What a command says: each text in a thread of its own, for a terminal may have been stopped (Ctrl-S)."""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING

import attrs
import trio

from sandd._core.logs import printable
from sandd._core.own_output import CantWrite, write, write_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sandd._core.own_output import Name

    Say = Callable[[str], Awaitable[None]]


async def say(text: str) -> None:
    """Lines on stderr, in words that can't be a sequence for the terminal; where it takes none, they are lost."""
    lines = "".join(f"{printable(line)}\n" for line in text.splitlines())
    try:
        await trio.to_thread.run_sync(write_text, "stderr", lines, abandon_on_cancel=True)
    except CantWrite:
        pass  # what goes wrong for that reason is for nobody to hear


async def say_nothing(_: str) -> None:
    """Instead of `say`, for who wants it quiet."""
    await trio.lowlevel.checkpoint()


async def put_out(line: str) -> None:
    """A line on stdout, at once: whoever reads it is told now; CantWrite, as for `put_bytes`."""
    await trio.to_thread.run_sync(write_text, "stdout", f"{line}\n", abandon_on_cancel=True)


async def put_bytes(name: Name, data: bytes | bytearray) -> None:
    """All of it on stdout or stderr, however long that takes. Cancelled, it may have been written in part.

    Raises:
        CantWrite: it takes no more; a `ReaderGone`, if that is because its reader doesn't.
    """
    await trio.to_thread.run_sync(write, name, data, abandon_on_cancel=True)


async def put_json(fields: Mapping[str, object]) -> None:
    """A line of JSON on stdout, at once: the objects of the library as the objects and texts of JSON."""
    await put_out(json.dumps(fields, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if attrs.has(kind := type(value)):
        return {each.name: getattr(value, each.name) for each in attrs.fields(kind)}
    raise TypeError(f"{value!r} has no form in JSON")
