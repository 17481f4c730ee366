"""Hearing that a child has exited without reaping it, so that its process group keeps its number.

Standard library only. An `ExitWatch` has one descriptor that is readable when there is something to
say. Linux: an epoll of pidfds. macOS: a kqueue. Never a wait for just any child: the status of one
must not be taken by the watch of another.
"""

from __future__ import annotations

import abc
import os
import select
import sys
from contextlib import suppress
from typing import NamedTuple

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too


class WaitStatus(NamedTuple):
    """How a process ended: an exit code or the number of a signal."""

    code: int | None
    signal: int | None


def peek(pid: int) -> WaitStatus | None:
    """How the child ``pid`` ended, None while it runs; it stays a zombie.

    Where the system can't tell without reaping (macOS with Python before 3.13), it *is* reaped. Its
    group's number can then be used again once nobody is left in it; that risk has no remedy there.
    """
    if hasattr(os, "waitid"):
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return WaitStatus(result.si_status, None)
        return WaitStatus(None, result.si_status)
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended != pid:
        return None
    code = os.waitstatus_to_exitcode(status)
    return WaitStatus(code, None) if code >= 0 else WaitStatus(None, -code)


class ExitWatch(abc.ABC):
    """Watches children of this process."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """Readable when `ended` has something to say of a child that can be watched."""

    @abc.abstractmethod
    def add(self, pid: int) -> bool:
        """Watch the child ``pid``, which is not reaped yet; False if it has exited: then ask `ended` now."""

    @abc.abstractmethod
    def ended(self) -> list[tuple[int, WaitStatus]]:
        """The watched children that have exited since the last call, each told once, none reaped.

        Call it on every SIGCHLD too: children without a descriptor are noticed only then.
        """


if sys.platform == "linux":

    class PidfdWatch(ExitWatch):
        """One pidfd per child in an epoll of its own."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._pids: dict[int, int] = {}
            self._unwatched: set[int] = set()

        def fileno(self) -> int:
            return self._epoll.fileno()

        def add(self, pid: int) -> bool:
            if peek(pid) is not None:
                self._unwatched.add(pid)
                return False
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                # No descriptor left (EMFILE), or none of that sort (ENOSYS: Linux before 5.3, and
                # some sandboxes).
                self._unwatched.add(pid)
                return True
            try:
                self._epoll.register(descriptor, select.EPOLLIN)
            except OSError:
                # ENOSPC: the user's limit, /proc/sys/fs/epoll/max_user_watches.
                os.close(descriptor)
                self._unwatched.add(pid)
            else:
                self._pids[descriptor] = pid
            return True

        def ended(self) -> list[tuple[int, WaitStatus]]:
            found: list[tuple[int, WaitStatus]] = []
            for descriptor, _ in self._epoll.poll(0):
                pid = self._pids.pop(descriptor)
                # Closing it would not do that: a child may hold a copy for a moment, as vfork(2) returns
                # before execve(2) has closed what it closes.
                self._epoll.unregister(descriptor)
                os.close(descriptor)
                self._unwatched.add(pid)  # until it has been peeked at: mostly a line below
            for pid in list(self._unwatched):
                try:
                    status = peek(pid)
                except ChildProcessError:
                    self._unwatched.remove(pid)  # somebody reaped it: it was given up
                    continue
                if status is not None:
                    self._unwatched.remove(pid)
                    found.append((pid, status))
            return found


if sys.platform == "darwin":

    class KqueueWatch(ExitWatch):
        """One EVFILT_PROC filter per child; they need no descriptors."""

        def __init__(self) -> None:
            self._queue = select.kqueue()
            self._pids: set[int] = set()

        def fileno(self) -> int:
            return self._queue.fileno()

        def add(self, pid: int) -> bool:
            self._pids.add(pid)
            event = select.kevent(
                pid,
                filter=select.KQ_FILTER_PROC,
                flags=select.KQ_EV_ADD | select.KQ_EV_ONESHOT,
                fflags=select.KQ_NOTE_EXIT,
            )
            # ESRCH: it has exited already. SIGCHLD brings us to `ended`.
            with suppress(ProcessLookupError):
                self._queue.control([event], 0)
            return True

        def ended(self) -> list[tuple[int, WaitStatus]]:
            self._queue.control(None, max(1, len(self._pids)), 0)
            # NOTE_EXIT may come just before the status can be had, so all are asked each time.
            found: list[tuple[int, WaitStatus]] = []
            for pid in list(self._pids):
                status = peek(pid)
                if status is not None:
                    self._pids.remove(pid)
                    found.append((pid, status))
            return found


def open_exit_watch() -> ExitWatch:
    """The watch that fits this system."""
    if sys.platform == "linux":
        return PidfdWatch()
    if sys.platform == "darwin":
        return KqueueWatch()
    raise NotImplementedError(f"no way to watch processes on {sys.platform}")
