"""Pseudo-consoles by pywinpty, which has ConPTY of Windows 10 (1809) and later.

What was read in its source, and in that of winpty-rs, which it is made of (1.0.6), as its documentation doesn't
say so:

- It reads by a thread of its own into a queue without a bound. So our slow reader stops our thread, but not the
  program: its output goes on to pile up in there. Nothing of its interface could prevent that.
- It decodes what it reads in pieces of 32 KiB, each for itself: a character that lies across two comes as
  U+FFFD. NUL characters are left out.
- 5 s after the exit it stops reading, if nothing has ended that before. Until 3.0.3 (winpty-rs 1.0.5) that was
  at once, and what the console had yet to paint was lost (its issue 565); in 2.0 a read with nothing to read
  never came back, and gave 40 KB a second. Hence 3.0.5 is the least that will do.
- Letting go of its object waits until the process has exited.
- It tells errors as texts, in the language of the system, and without their numbers.
"""

from __future__ import annotations

import _winapi
import errno
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.processes.windows import command_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.processes.interface import TerminalSize

assert sys.platform == "win32"  # tells mypy not to look any further elsewhere

NOT_INSTALLED: Final = (
    "terminals on Windows need the package pywinpty: python -m pip install 'pywinpty>=3.0.5,<4'"
)
EMPTY_READ_SECONDS: Final = 0.01
"""How long to wait after a read that gave nothing though it is to wait: it does so once the library has stopped
reading, until we do."""
_PROCESS_RIGHTS: Final = 0x00100000 | 0x1000 | 0x0001  # synchronize, query limited, terminate
_WAIT_OBJECT_0: Final = 0
_KILLED: Final = 1
"""The exit code of a killed process, as `windows_job_objects.EXIT_CODE`."""


def open_console(
    argv: list[str], size: TerminalSize, cwd: str | None, env: Mapping[str, str]
) -> WinptyConsole:
    """See `windows_terminal.OpenConsole`. Blocks for as long as Windows takes to start two processes."""
    try:
        import winpty
    except ImportError as error:
        raise SpawnFailed(errno.ENOSYS, NOT_INSTALLED) from error
    line, environment = command_line(argv), environment_block(env)
    if "\0" in line or "\0" in (cwd or ""):
        raise ValueError("embedded null character")
    rows, cols = size
    try:
        # By name: where ConPTY is missing, the library would take a console that it scrapes.
        pty = winpty.PTY(cols, rows, backend=winpty.Backend.ConPTY)
    except winpty.WinptyError as error:
        raise SpawnFailed(errno.ENOSYS, f"no pseudo-console can be had: {error}") from error
    try:
        # All of it as the program's name: it is what CreateProcess gets as its command line.
        pty.spawn(line, cwd=cwd, env=environment)
    except winpty.WinptyError as error:
        # Which number it was can only be guessed, by looking at what may be wrong.
        if cwd is not None and not os.path.isdir(cwd):
            raise NotADirectoryError(errno.ENOTDIR, str(error), cwd) from error
        found = shutil.which(argv[0], path=env.get("PATH"))
        number = errno.ENOENT if found is None else errno.EINVAL
        raise OSError(number, str(error)) from error
    return WinptyConsole(pty, winpty.WinptyError)


def environment_block(env: Mapping[str, str]) -> str:
    """Variables as CreateProcess takes them, but for the last NUL, which the library adds."""
    for name, value in env.items():
        if not name or "=" in name[1:]:
            raise ValueError(f"illegal environment variable name {name!r}")
        if "\0" in name or "\0" in value:
            raise ValueError("embedded null character")
    return "".join(f"{name}={value}\0" for name, value in env.items()) or "\0"


class WinptyConsole:
    """See `windows_terminal.Console`."""

    def __init__(self, pty: Any, failure: type[Exception]) -> None:
        self._pty = pty
        self._failure = failure
        """What the library raises, whatever is wrong."""
        self.pid: int = pty.pid
        # Of our own: the library's goes with its object, whoever waits for it.
        self._process = _winapi.OpenProcess(_PROCESS_RIGHTS, False, self.pid)

    def read(self) -> bytes:
        pty = self._pty
        try:
            text: str = pty.read(blocking=True)
            if not text:
                if pty.iseof():
                    raise EOFError
                time.sleep(EMPTY_READ_SECONDS)
        except self._failure as error:
            raise EOFError from error  # it reads no more after an error, nor after `interrupt`
        return text.encode("utf-8", "replace")

    def write(self, text: str) -> None:
        self._call("write", text)

    def resize(self, rows: int, cols: int) -> None:
        self._call("set_size", cols, rows)

    def has_exited(self) -> bool:
        return _winapi.WaitForSingleObject(self._process, 0) == _WAIT_OBJECT_0

    async def wait_exited(self) -> int:
        try:
            await trio.lowlevel.WaitForSingleObject(self._process)
            return _winapi.GetExitCodeProcess(self._process)
        finally:
            _winapi.CloseHandle(self._process)

    def terminate(self) -> None:
        _winapi.TerminateProcess(self._process, _KILLED)

    def interrupt(self) -> None:
        try:
            self._call("cancel_io")
        except OSError:
            pass  # nothing was being read

    def close(self) -> None:
        # Its destructor is the only way. Who types at this moment keeps it a little longer.
        self._pty = None

    def _call(self, method: str, *arguments: object) -> None:
        pty = self._pty
        if pty is None:
            raise OSError(errno.EPIPE, "this console was closed")
        try:
            getattr(pty, method)(*arguments)
        except self._failure as error:
            raise OSError(errno.EIO, str(error)) from error
