"""What `stand_in` runs: commands with pipes, shells in pseudo-terminals, and the loop that waits for them all."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 1 << 16
_ENVIRONMENT = dict(os.environb)
"""As a plain dictionary: to read it out of `os.environ` for each command takes long."""
_DEV_NULL = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)


class Loop:
    """Who waits for which file."""

    def __init__(self) -> None:
        # Where there is no epoll this is not measured, and has to work all the same.
        self._poll = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._in_a_second = 1 if hasattr(select, "epoll") else 1e3
        self._readers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, reader: Callable[[], None], event: int = select.POLLIN) -> None:
        """Call `reader` whenever there is something, or the end; or, by POLLOUT, room."""
        self._readers[fd] = reader
        self._poll.register(fd, event)

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        del self._readers[fd]
        self._poll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait, and have each read that can."""
        for fd, _ in self._poll.poll(None if timeout is None else timeout * self._in_a_second):
            if reader := self._readers.get(fd):
                reader()


class Command:
    """A running command, until both of its outputs have ended and it has."""

    def __init__(self, loop: Loop, text: str, over: Callable[[bytes, bytes, int], None]) -> None:
        self._loop, self._over = loop, over
        self._outputs: dict[int, list[bytes]] = {}
        out, child_out = os.pipe()
        err, child_err = os.pipe()
        self._fds = (out, err)
        self._pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", text],
            _ENVIRONMENT,
            file_actions=[
                _DEV_NULL,
                (os.POSIX_SPAWN_DUP2, child_out, 1),
                (os.POSIX_SPAWN_DUP2, child_err, 2),
            ],
            setsigdef=[signal.SIGPIPE],
        )
        os.close(child_out)
        os.close(child_err)
        for fd in self._fds:
            self._outputs[fd] = []
            loop.watch(fd, lambda fd=fd: self._read(fd))  # type: ignore[misc]
        self._open = len(self._fds)

    def _read(self, fd: int) -> None:
        if data := os.read(fd, READ_BYTES):
            self._outputs[fd].append(data)
            return
        self._loop.forget(fd)
        os.close(fd)
        self._open -= 1
        if not self._open:
            _, status = os.waitpid(self._pid, 0)
            out, err = (b"".join(self._outputs[fd]) for fd in self._fds)
            self._over(out, err, os.waitstatus_to_exitcode(status))


class Session:
    """A shell in a pseudo-terminal."""

    def __init__(
        self, loop: Loop, rows: int, cols: int, term: str, show: Callable[[bytes], None]
    ) -> None:
        self._loop, self._show = loop, show
        pid, self._master = pty.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                os.execvpe("/bin/sh", ["sh"], {**os.environ, "TERM": term})
            os._exit(127)
        self._pid = pid
        loop.watch(self._master, self._read)

    def write(self, data: bytes) -> None:
        """Type."""
        os.write(self._master, data)

    def _read(self) -> None:
        try:
            data = os.read(self._master, READ_BYTES)
        except OSError:  # its end, on Linux
            data = b""
        if data:
            self._show(data)
        else:
            self.close()

    def close(self) -> None:
        """End it."""
        if self._pid:
            self._loop.forget(self._master)
            os.close(self._master)
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
