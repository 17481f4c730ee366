"""What goes to this program's own stdout and stderr, whichever command it is, and what becomes of it if that fails.

The one place that writes there: bytes, verbatim, at once, and past Python's buffers, so that nothing is left in
those which the interpreter would stumble over at its end. Each call may block, for as long as a terminal is stopped
(Ctrl-S) or a reader is slow: in trio it is for a thread (`telling`). Imports only the lightest modules.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TextIO

    Name = Literal["stdout", "stderr"]


class CantWrite(Exception):
    """What is for stdout, or for stderr, goes nowhere; the text is for the person."""


class ReaderGone(CantWrite):
    """Whoever read it has gone, as `head` does: nothing is left to do, and nobody to tell."""


def write(name: Name, data: bytes | bytearray) -> None:
    """All of it on "stdout" or "stderr"; returns when its reader has it, or the system for it.

    A stderr that was closed when we were started takes everything, and it is gone: so somebody has wanted it.

    Raises:
        ReaderGone: its other end is closed.
        CantWrite: it was closed before we were started, or the disk is full. A part may have been written.
    """
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        if name == "stdout" and data:
            raise CantWrite("stdout is closed")
        return
    try:
        _write_all(stream, data)
    except BrokenPipeError as error:
        raise ReaderGone(f"{name}: nobody reads it any more") from error
    except OSError as error:
        raise CantWrite(f"{name}: {error.strerror or error}") from error


def _write_all(stream: TextIO, data: bytes | bytearray) -> None:
    view = memoryview(data)
    if sys.platform == "win32":
        # Python's file for a console takes UTF-8; its descriptor would take the console's code page.
        raw = getattr(stream.buffer, "raw", stream.buffer)
        while view:
            view = view[raw.write(view) or 0 :]
        return
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # a program that runs our commands has put something else there
        stream.write(bytes(data).decode("utf-8", "replace"))
        stream.flush()
        return
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # somebody has made it non-blocking
            import select  # late: it is so rare

            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def write_text(name: Name, text: str) -> None:
    """`write`, as the locale says; what that has no bytes for is escaped."""
    encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
    write(name, text.encode(encoding, "backslashreplace"))


def flush_stdout() -> None:
    """What others have printed, as argparse does, while its failure can still be told.

    Raises:
        ReaderGone, CantWrite: as for `write`. Then none of it is left for the interpreter's end.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        if isinstance(error, BrokenPipeError):
            raise ReaderGone("stdout: nobody reads it any more") from error
        raise CantWrite(f"stdout: {error.strerror or error}") from error


def drop_stdout() -> None:
    """Let what is in Python's buffer go nowhere: the interpreter would fail with it at its end."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
