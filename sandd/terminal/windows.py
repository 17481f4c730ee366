"""A terminal on Windows: console modes by ctypes, and threads that read and write.

The console speaks the same sequences as other terminals once it is told to (Windows 10 1607 and later). Keys are
read as UTF-16, because reading bytes loses every character beyond ASCII in older consoles.

Source: learn.microsoft.com, "Console Virtual Terminal Sequences", SetConsoleMode, ReadConsole.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import sys
from ctypes import wintypes
from typing import Final

import trio

from sandd._core._errors import NoTerminal
from sandd.terminal.local import Size

assert sys.platform == "win32"  # tells mypy not to look any further elsewhere

_STD_INPUT: Final = -10
_STD_OUTPUT: Final = -11
_INVALID: Final = (None, 0, ctypes.c_void_p(-1).value)
_COOKED: Final = 0x0001 | 0x0002 | 0x0004
"""Input: Ctrl-C is a signal, lines, echo."""
_KEYS_AS_SEQUENCES: Final = 0x0200
_INTERPRET_SEQUENCES: Final = 0x0001 | 0x0004
"""Output: control characters, and sequences."""
_NO_CARRIAGE_RETURN: Final = 0x0008
"""Output: a line feed goes down, and nothing else."""
_UTF_8: Final = 65001
_UNITS: Final = 2048
"""UTF-16 code units read at a time."""
_SEND_BYTES: Final = 16 * 1024

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.GetStdHandle.restype = wintypes.HANDLE
_kernel32.GetStdHandle.argtypes = (ctypes.c_int32,)
_kernel32.GetConsoleMode.argtypes = (wintypes.HANDLE, ctypes.c_void_p)
_kernel32.SetConsoleMode.argtypes = (wintypes.HANDLE, ctypes.c_uint32)
_kernel32.SetConsoleOutputCP.argtypes = (ctypes.c_uint32,)
_kernel32.ReadConsoleW.argtypes = (
    *(wintypes.HANDLE, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p),
)


class WindowsConsole:
    """The console that this program was started in."""

    def __init__(self) -> None:
        self._input = _handle(_STD_INPUT)
        self._output = _handle(_STD_OUTPUT)
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("surrogatepass")
        self._saved = self._modes()

    @property
    def in_foreground(self) -> bool:
        """There is no job control here."""
        return True

    def remember(self) -> None:
        """Take the modes now for those to be put back."""
        self._saved = self._modes()

    def make_raw(self) -> None:
        """Every key is a byte to read, and every byte is shown as it is."""
        keys, screen, _ = self._saved
        _check(_kernel32.SetConsoleMode(self._input, keys & ~_COOKED | _KEYS_AS_SEQUENCES))
        raw = screen | _INTERPRET_SEQUENCES | _NO_CARRIAGE_RETURN
        _check(_kernel32.SetConsoleMode(self._output, raw))
        _check(_kernel32.SetConsoleOutputCP(_UTF_8))

    def restore(self) -> None:
        """The modes as they were remembered; nothing happens if the console has gone."""
        keys, screen, code_page = self._saved
        _kernel32.SetConsoleMode(self._input, keys)
        _kernel32.SetConsoleMode(self._output, screen)
        _kernel32.SetConsoleOutputCP(code_page)

    def size(self) -> Size:
        """Of the window, not of the buffer behind it; 0 where it doesn't know."""
        try:
            columns, rows = os.get_terminal_size(1)
        except OSError:
            return Size(0, 0)
        return Size(rows, columns)

    async def receive(self) -> bytes:
        """What was typed, as UTF-8; b"" when the console has gone. Cancelled, it leaves its thread behind."""
        while True:
            try:
                units = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
            except OSError:
                return b""
            if not units:
                return b""
            text = self._decoder.decode(units)
            if text:
                return text.encode("utf-8", "replace")

    async def send(self, data: bytes) -> None:
        """Show all of it. Nothing happens if the console has gone."""
        await trio.lowlevel.checkpoint()
        position = 0
        while position < len(data):
            chunk = data[position : position + _SEND_BYTES]
            try:
                position += await trio.to_thread.run_sync(
                    os.write, 1, chunk, abandon_on_cancel=True
                )
            except OSError:
                return

    def close(self) -> None:
        """Nothing: its handles are the process'."""

    def _modes(self) -> tuple[int, int, int]:
        keys, screen = ctypes.c_uint32(), ctypes.c_uint32()
        _check(_kernel32.GetConsoleMode(self._input, ctypes.byref(keys)))
        _check(_kernel32.GetConsoleMode(self._output, ctypes.byref(screen)))
        return keys.value, screen.value, int(_kernel32.GetConsoleOutputCP())

    def _read(self) -> bytes:
        buffer, count = ctypes.create_string_buffer(2 * _UNITS), ctypes.c_uint32()
        _check(
            _kernel32.ReadConsoleW(
                self._input, ctypes.byref(buffer), _UNITS, ctypes.byref(count), None
            )
        )
        return buffer.raw[: 2 * count.value]


def _handle(which: int) -> int:
    handle = _kernel32.GetStdHandle(which)
    if handle in _INVALID:
        raise NoTerminal("this program has no console")
    return int(handle)


def _check(result: int) -> None:
    if not result:
        raise ctypes.WinError(ctypes.get_last_error())
