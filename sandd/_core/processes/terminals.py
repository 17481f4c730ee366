"""Our end of a job's pseudo-terminal: what is typed there goes in, what it shows comes out.

The other end, the terminal itself, is opened by the job's first process, for only so it becomes the
controlling terminal of the session that process leads (see `launcher`).

What macOS does otherwise, as read in its kernel's source (xnu 11417: ``bsd/kern/tty_dev.c``, ``kern_exit.c``) and
not run yet: what was written is thrown away when nobody has the terminal open any more (``ptsclose`` flushes),
so we keep it open; a read tells the end by giving nothing, not by EIO; tcgetpgrp(3) on our end works, as on
Linux. A session leader's exit waits until all that was written is read, and then takes the terminal from
whoever has it open, us included. So there the word of an exit comes after the output, and would wait with it
for a reader that has stopped; closing our end sets it free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import termios

import trio

from sandd._core.processes.interface import ReceivesNowait, SendsNowait, Terminal

if TYPE_CHECKING:
    from sandd._core.processes.interface import TerminalSize

READ_BYTES: Final = 128 * 1024
"""Taken in one turn, where the caller names no limit."""
WHOLE_BYTES: Final = 4095
"""What the kernel gives in one read while there is more, on Linux. To ask in vain behind a shorter one takes
40 us there (it waits for the kernel's own hand to be done with the terminal), a keystroke's worth."""
LOOK_SECONDS: Final = 0.05
"""How often a terminal is looked at that nobody has open while its first process lives."""
_WINSIZE: Final = struct.Struct("HHHH")  # rows, columns, and two that nobody fills: ioctl_tty(2)


class PosixTerminal(Terminal):
    """The master of a pseudo-terminal. Its two streams share the descriptor, which `close` closes.

    Args:
        master: its descriptor, which this object owns from now on.
        slave: kept open until `process_exited`, where a system throws away what was written to a terminal
            that nobody has open any more (macOS); else None.
    """

    __slots__ = ("_slave", "descriptor", "exited", "input", "output")

    def __init__(self, master: int, slave: int | None) -> None:
        os.set_blocking(master, False)
        self.descriptor = master
        self.exited = trio.Event()
        """The first process has ended."""
        self._slave = slave
        self.input = TerminalInput(self)
        self.output = TerminalOutput(self)

    def __repr__(self) -> str:
        return f"<PosixTerminal on {self.descriptor}>"

    def resize(self, rows: int, cols: int) -> None:
        if self.descriptor != -1:
            with contextlib.suppress(OSError):  # EIO: the other end is gone
                set_size(self.descriptor, (rows, cols))

    def signal(self, number: int) -> bool:
        if self.descriptor == -1:
            return False
        try:
            group = os.tcgetpgrp(self.descriptor)
            if group <= 1:
                return False
            os.killpg(group, signal.Signals(number))
        except (OSError, ValueError):
            return False  # nobody is there, or who is there is not ours to signal
        return True

    def process_exited(self) -> None:
        """The first process has ended: what it has written is there, and when that is read the end has come."""
        self.exited.set()
        if self._slave is not None and self.descriptor != -1:
            trio.lowlevel.notify_closing(self.descriptor)  # the reader shall look again

    def drained(self) -> bool:
        """Nothing can be read now; whether that is the end."""
        if self._slave is None or not self.exited.is_set():
            return False
        os.close(self._slave)
        self._slave = None
        return True

    def close(self) -> None:
        """Hang up: close our end, and end whoever waits for it."""
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
        if self.descriptor != -1:
            descriptor, self.descriptor = self.descriptor, -1
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)


class TerminalOutput(trio.abc.ReceiveStream, ReceivesNowait):
    """What the terminal shows."""

    __slots__ = ("_ended", "_is_drained", "_is_left", "_terminal")

    def __init__(self, terminal: PosixTerminal) -> None:
        self._terminal = terminal
        self._ended = False
        self._is_drained = False
        """The latest read took all there was."""
        self._is_left = False
        """Nobody has the terminal open, but somebody may open it again, as login(1) does."""

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What is there, at most `max_bytes`: the kernel gives `WHOLE_BYTES` at a time."""
        terminal = self._terminal
        if terminal.descriptor == -1:
            raise trio.ClosedResourceError("this terminal was closed")
        parts: list[bytes] = []
        room = max_bytes
        while room > 0 and not self._ended:
            try:
                data = os.read(terminal.descriptor, room)
            except BlockingIOError:
                self._ended = terminal.drained()
                break
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                # Linux: nobody has the terminal open any more, and all was read.
                if not terminal.exited.is_set():
                    self._is_left = True
                    break
                data = b""
            if not data:
                self._ended = True
                break
            parts.append(data)
            room -= len(data)
            if len(data) < WHOLE_BYTES and room > 0:
                self._is_drained = True
                break
        if parts:
            return b"".join(parts) if len(parts) > 1 else parts[0]
        return b"" if self._ended else None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        was_drained, self._is_drained = self._is_drained, False
        data = None
        # After the exit there may be nothing that would wake us: then it is asked in vain.
        if not was_drained or self._terminal.exited.is_set():
            data = self.receive_nowait(max_bytes or READ_BYTES)
        if data is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return data
        while data is None:
            if self._is_left:
                self._is_left = False  # it would count as readable all the time
                with trio.move_on_after(LOOK_SECONDS):
                    await self._terminal.exited.wait()
            else:
                try:
                    await trio.lowlevel.wait_readable(self._terminal.descriptor)
                except trio.ClosedResourceError:
                    if self._terminal.descriptor == -1:
                        raise
            data = self.receive_nowait(max_bytes or READ_BYTES)
        return data

    async def aclose(self) -> None:
        """Nothing: the terminal is one for both directions, and closed as one."""
        await trio.lowlevel.checkpoint()


class TerminalInput(trio.abc.SendStream, SendsNowait):
    """What is typed there."""

    __slots__ = ("_terminal",)

    def __init__(self, terminal: PosixTerminal) -> None:
        self._terminal = terminal

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Type all of it; waits while the terminal's queue is full, for nobody reads there."""
        await trio.lowlevel.checkpoint()
        position = 0
        with memoryview(data) as view:
            while position < len(view):
                sent = self.send_nowait(view[position:])
                position += sent
                if not sent:
                    await self._writable(self._terminal.descriptor)

    def send_nowait(self, data: bytes | memoryview) -> int:
        descriptor = self._terminal.descriptor
        if descriptor == -1:
            raise trio.ClosedResourceError("this terminal was closed")
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError("nobody has the terminal open") from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the terminal takes something."""
        if self._terminal.descriptor == -1:
            raise trio.ClosedResourceError("this terminal was closed")
        await self._writable(self._terminal.descriptor)

    async def _writable(self, descriptor: int) -> None:
        try:
            await trio.lowlevel.wait_writable(descriptor)
        except trio.ClosedResourceError:
            if self._terminal.descriptor == -1:
                raise

    async def aclose(self) -> None:
        """Nothing: that nobody types any more is no end of the terminal."""
        await trio.lowlevel.checkpoint()


def open_terminal(
    size: TerminalSize, *, keeps_slave: bool = sys.platform == "darwin"
) -> tuple[PosixTerminal, int]:
    """A new terminal, and a descriptor of its other end, which the caller is to pass on and close.

    Raises:
        OSError: there are no more terminals, or descriptors. Nothing is left open.
    """
    master, slave = os.openpty()
    kept = None
    try:
        set_size(master, size)
        if keeps_slave:
            kept = os.dup(slave)
        return PosixTerminal(master, kept), slave
    except BaseException:
        for descriptor in (master, slave, kept):
            if descriptor is not None:
                os.close(descriptor)
        raise


def set_size(descriptor: int, size: TerminalSize) -> None:
    """Tell the terminal how many rows and columns it has; its foreground processes get SIGWINCH."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, _WINSIZE.pack(*size, 0, 0))
