"""Hearing that a child has exited without reaping it, so that its process group keeps its number.

Standard library only. SIGCHLD says that somebody has exited, and an `ExitWatch` says who. Linux: one wait for any
child, which takes nothing, and tells of one that is dead. macOS: a kqueue, which has a descriptor that is readable
when there is something to say. A status is never taken: that of one child must not go to the watch of another.
"""

from __future__ import annotations

import abc
import os
import select
import sys
from contextlib import suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.named_tuples import NamedTuple


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
        return None if result is None else _status_of(result.si_code, result.si_status)
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended != pid:
        return None
    code = os.waitstatus_to_exitcode(status)
    return WaitStatus(code, None) if code >= 0 else WaitStatus(None, -code)


def _status_of(code: int, status: int) -> WaitStatus:
    return WaitStatus(status, None) if code == os.CLD_EXITED else WaitStatus(None, status)


class ExitWatch(abc.ABC):
    """Watches children of this process."""

    descriptor: int | None = None
    """Readable when `ended` has something to say; None: SIGCHLD is all that tells."""
    others_are_dead = True
    """Whether, at the last call of `ended`, a child may have been dead that isn't watched, or was told already."""

    @abc.abstractmethod
    def add(self, pid: int) -> None:
        """Watch the child ``pid``, which is not reaped yet."""

    @abc.abstractmethod
    def ended(self) -> list[tuple[int, WaitStatus]]:
        """Watched children that have exited, each told once, none reaped; call it until there are none.

        Call it on every SIGCHLD. Who is told is to be reaped before the next call, if it can be: that is faster then.
        """


if sys.platform == "linux":
    _DEAD = os.WEXITED | os.WNOWAIT | os.WNOHANG

    class WaitidWatch(ExitWatch):
        """Asks for any child that is dead: mostly there is one, and it is watched. Nothing is to be made for each."""

        def __init__(self) -> None:
            self._pids: set[int] = set()

        def add(self, pid: int) -> None:
            self._pids.add(pid)

        def ended(self) -> list[tuple[int, WaitStatus]]:
            self.others_are_dead = False
            try:
                result = os.waitid(os.P_ALL, 0, _DEAD)
            except ChildProcessError:
                self._pids.clear()  # somebody reaped them: they were given up
                return []
            if result is None:
                return []
            pid = result.si_pid
            if pid in self._pids:
                self._pids.remove(pid)
                return [(pid, _status_of(result.si_code, result.si_status))]
            # The same one is told again and again, until it is reaped: an orphan, or who has left a tree behind.
            self.others_are_dead = True
            return self._ask_each()

        def _ask_each(self) -> list[tuple[int, WaitStatus]]:
            found: list[tuple[int, WaitStatus]] = []
            for pid in list(self._pids):
                try:
                    status = peek(pid)
                except ChildProcessError:
                    self._pids.remove(pid)  # as above
                    continue
                if status is not None:
                    self._pids.remove(pid)
                    found.append((pid, status))
            return found


if sys.platform == "darwin":

    class KqueueWatch(ExitWatch):
        """One EVFILT_PROC filter per child; they need no descriptors."""

        def __init__(self) -> None:
            self._queue = select.kqueue()
            self._pids: set[int] = set()
            self.descriptor = self._queue.fileno()

        def add(self, pid: int) -> None:
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
        return WaitidWatch()
    if sys.platform == "darwin":
        return KqueueWatch()
    raise NotImplementedError(f"no way to watch processes on {sys.platform}")
