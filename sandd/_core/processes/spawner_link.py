"""The daemon's end of the socket to its spawner: starting that process, requests out, reports in.

Requests are sent at once, without a task switch, as long as the socket takes them; what it does not
take waits in a backlog that one task writes out. Nothing is ever half-enqueued, so a caller may be
cancelled anywhere.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.processes.open_files import limit_for_children
from sandd._core.processes.spawner_messages import decode_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sandd._core.processes.spawner_messages import Message, ProcessLimits

MAX_BACKLOG_BYTES = 1 << 20
"""New jobs wait while more than this is unsent: the spawner is busy."""
RECEIVE_BYTES = 64 * 1024
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)
_TRY_AGAIN = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
"""ETOOMANYREFS: too many descriptors are on their way (unix(7)); it passes as the spawner reads."""

# `-I -S`: no site-packages, no environment, no user files. The packages are stand-ins, of which
# only the last has a search path, so that no __init__ runs. It works from a zipapp too. And what is imported stays,
# so to look through it for cycles, again and again, is in vain.
_BOOT = """\
import gc, sys
gc.disable()
for name in "sandd", "sandd._core", "sandd._core.processes":
    sys.modules[name] = package = type(sys)(name)
package.__path__ = [sys.argv[1]]
from sandd._core.processes.spawner import main
descriptor, daemon, soft_limit = map(int, sys.argv[2:5])
total = tuple(None if word == "-" else int(word) if word.isdigit() else float(word) for word in sys.argv[5:])
main(descriptor, daemon, None if soft_limit < 0 else soft_limit, total or None)
"""


class SpawnerGoneError(Exception):
    """The spawner does not listen any more, and the request was not sent."""


class SpawnerLink:
    """One spawner process, alive or dying."""

    def __init__(self, process: trio.Process, ours: socket.socket) -> None:
        self.process = process
        self.base: Mapping[bytes, bytes] | None = None
        """The `Spawn.base` that was sent last."""
        self._socket = ours
        self._backlog: deque[tuple[memoryview, list[int]]] = deque()
        self._backlog_bytes = 0
        self._is_over = False
        self._running = trio.CancelScope()
        self._backlog_filled = trio.Event()
        self._backlog_drained = trio.Event()

    def __repr__(self) -> str:
        return f"<SpawnerLink to process {self.process.pid}, {self._backlog_bytes} bytes to send>"

    @property
    def is_congested(self) -> bool:
        """Whether a new job should wait in `wait_for_room` first."""
        return self._backlog_bytes > MAX_BACKLOG_BYTES

    async def wait_for_room(self) -> None:
        """Wait until the backlog is short, or the spawner is gone."""
        while self.is_congested and not self._is_over:
            await self._backlog_drained.wait()

    def send(self, request: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send an encoded request, or queue it; the descriptors stay the caller's to close.

        Raises:
            SpawnerGoneError: nothing was sent.
            OSError: nothing was sent; there was no room (EMFILE) to keep copies of descriptors.
        """
        sent = 0 if self._backlog else self._send_some(request, descriptors)
        if sent == len(request):
            return
        data = memoryview(request)
        # The descriptors went with the first byte, if any did.
        kept = [] if sent else _duplicate(descriptors)
        self._backlog.append((data[sent:], kept))
        self._backlog_bytes += len(data) - sent
        self._backlog_filled.set()

    async def run(self, report: Callable[[list[Message]], None]) -> None:
        """Call ``report`` with the spawner's messages, those that came together at once, until it is gone."""
        try:
            with self._running:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_backlog)
                    await self._read_reports(report)
                    nursery.cancel_scope.cancel()
        finally:
            self._is_over = True
            self._backlog_drained.set()
            for _, descriptors in self._backlog:
                _close_all(descriptors)
            self._backlog.clear()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def end(self) -> None:
        """Tell the spawner that it is over: it kills everything, exits, and `run` returns."""
        with suppress(OSError):  # it is over already
            self._socket.shutdown(socket.SHUT_WR)

    def give_up(self) -> None:
        """Listen no more: `run` returns though the spawner, killed, can't die of it."""
        self._running.cancel()

    async def _read_reports(self, report: Callable[[list[Message]], None]) -> None:
        buffer = bytearray()
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return  # ECONNRESET: it died with requests unread
            if not data:
                return
            buffer += data
            if messages := decode_all(buffer):
                report(messages)

    async def _write_backlog(self) -> None:
        while True:
            await self._backlog_filled.wait()
            while self._backlog:
                await trio.lowlevel.wait_writable(self._socket)
                data, descriptors = self._backlog[0]
                try:
                    sent = self._send_some(data, descriptors)
                except SpawnerGoneError:
                    return  # the reader notices, and what is left is closed there
                if not sent:
                    # Writable, and yet not taken: see `_TRY_AGAIN`.
                    await trio.sleep(0.005)
                    continue
                self._backlog[0] = (data[sent:], [])
                _close_all(descriptors)
                self._backlog_bytes -= sent
                if sent == len(data):
                    self._backlog.popleft()
            self._backlog_filled = trio.Event()
            self._backlog_drained.set()
            self._backlog_drained = trio.Event()

    def _send_some(self, data: bytes | memoryview, descriptors: Sequence[int]) -> int:
        ancillary = []
        if descriptors:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
        try:
            return self._socket.sendmsg([data], ancillary)
        except OSError as error:
            if error.errno in _TRY_AGAIN:
                return 0
            if error.errno in _GONE:
                raise SpawnerGoneError from error
            raise


async def start_spawner(total: ProcessLimits | None = None) -> SpawnerLink:
    """Start a spawner; it takes requests at once, and needs 25 ms of a processor before it answers the first.

    Args:
        total: limits of all its jobs together.

    Raises:
        SpawnFailed: the interpreter can't be started. Nothing ran.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    soft_limit = limit_for_children()
    try:
        process = await trio.lowlevel.open_process(
            [
                *(sys.executable, "-I", "-S", "-c", _BOOT, os.path.dirname(__file__)),
                *map(str, (theirs.fileno(), os.getpid(), -1 if soft_limit is None else soft_limit)),
                *("-" if value is None else str(value) for value in total or ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # stderr is the daemon's: a traceback must be seen. Children never get it.
            pass_fds=[theirs.fileno()],
            # Out of reach of Ctrl-C at the daemon's terminal.
            start_new_session=True,
        )
    except BaseException as error:
        ours.close()
        if isinstance(error, OSError):
            raise SpawnFailed(error.errno or 0, error.strerror or "", sys.executable) from error
        raise
    finally:
        theirs.close()
    return SpawnerLink(process, ours)


def _duplicate(descriptors: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            # No comprehension: it would lose those made before an error.
            copies.append(os.dup(descriptor))
    except OSError:
        _close_all(copies)
        raise
    return copies


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
