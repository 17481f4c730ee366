"""A terminal on POSIX: termios, and descriptions of our own.

stdin, stdout and stderr are shared: with the shell, with whoever pipes into us, often with each other. To make
one of them non-blocking would make it so for all of them, and for the shell after us. So the terminal
is opened once more, which gives an open file description that is nobody else's, and that one is
non-blocking. A thread that reads was rejected: it would take keys away that are typed after us.

Source: termios(3), cfmakeraw; tty_ioctl(4); open(2), "Open file descriptions".
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, Final

import trio

from sandd._core._errors import NoTerminal
from sandd.terminal.local import Size

assert sys.platform != "win32"  # tells mypy not to look any further there

import termios  # noqa: E402 - not there on Windows

RECEIVE_BYTES: Final = 4096
"""What a terminal's line discipline holds."""
SEND_BYTES: Final = 16 * 1024
"""At a time: a terminal takes a few thousand."""

_INPUT, _OUTPUT, _LOCAL, _CHARACTERS = 0, 1, 3, 6
"""Where termios.tcgetattr has what; 2 is control modes, 4 and 5 are speeds."""


class PosixTerminal:
    """The terminal of two descriptors, which stay as they are."""

    def __init__(self, input: int, output: int) -> None:
        self._input = _reopen(input, os.O_RDONLY)
        try:
            self._output = _reopen(output, os.O_WRONLY)
        except BaseException:
            os.close(self._input)
            raise
        self._saved: list[Any] = termios.tcgetattr(self._input)

    @property
    def in_foreground(self) -> bool:
        """Whether nobody stops us when we change it: as the foreground's, or as nobody's controlling terminal."""
        try:
            return os.tcgetpgrp(self._input) == os.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY  # else it has gone

    def remember(self) -> None:
        """Take the modes now for those to be put back."""
        try:
            self._saved = termios.tcgetattr(self._input)
        except termios.error:
            pass  # it has gone: reading tells

    def make_raw(self) -> None:
        """Every key is a byte to read, and every byte is shown as it is."""
        self._set(raw(self._saved))

    def restore(self) -> None:
        """The modes as they were remembered, unless the terminal is a shell's by now."""
        if self.in_foreground:
            self._set(self._saved)

    def size(self) -> Size:
        """Rows and columns; 0 where it doesn't know."""
        try:
            columns, rows = os.get_terminal_size(self._output)
        except OSError:
            return Size(0, 0)
        return Size(rows, columns)

    async def receive(self) -> bytes:
        """What was typed; b"" when the terminal has gone."""
        while True:
            await trio.lowlevel.wait_readable(self._input)
            try:
                return os.read(self._input, RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    async def send(self, data: bytes) -> None:
        """Show all of it. Nothing happens if the terminal has gone."""
        await trio.lowlevel.checkpoint()
        position = 0
        while position < len(data):
            try:
                position += os.write(self._output, data[position : position + SEND_BYTES])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._output)
            except OSError:
                return

    def close(self) -> None:
        """Give back our own descriptions; the descriptors we were given stay."""
        os.close(self._input)
        os.close(self._output)

    def _set(self, modes: list[Any]) -> None:
        while True:
            try:
                # NOW: to wait until all is shown is for ever where the terminal is stuck. What was typed
                # already stays to be read.
                termios.tcsetattr(self._input, termios.TCSANOW, modes)
            except termios.error as error:
                if (
                    error.args[0] == errno.EINTR
                ):  # as a program in the background we were stopped here
                    continue
                # Otherwise it has gone: reading tells.
            return


def raw(modes: list[Any]) -> list[Any]:
    """The modes, as for raw input and output: cfmakeraw, but for the size of a character."""
    made = list(modes)
    made[_INPUT] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    made[_INPUT] &= ~termios.INLCR
    made[_INPUT] &= ~(termios.IGNCR | termios.ICRNL | termios.IXON | termios.IXANY | termios.IXOFF)
    made[_OUTPUT] &= ~termios.OPOST
    made[_LOCAL] &= ~(
        termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
    )
    made[_CHARACTERS] = list(modes[_CHARACTERS])
    made[_CHARACTERS][termios.VMIN], made[_CHARACTERS][termios.VTIME] = 1, 0
    return made


def _reopen(descriptor: int, access: int) -> int:
    """The same terminal, by a description of our own."""
    names = []
    try:
        names.append(os.ttyname(descriptor))
    except OSError:
        pass  # it is of another mount namespace, as in a container
    try:
        os.tcgetpgrp(descriptor)
        names.append("/dev/tty")
    except OSError:
        pass  # not our controlling terminal: /dev/tty would be another one
    why: object = "it has no name here"
    for name in names:
        try:
            return os.open(name, access | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            why = error
    raise NoTerminal(f"the terminal of descriptor {descriptor} can't be opened: {why}")
