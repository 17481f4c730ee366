"""Cells: little processes, each in a control group of its own, that start a job there at a request (Linux).

Whoever is to be in a group has to be moved, which takes 10 ms, or born there. So a cell moves itself, once; and what
it forks is born where it is. It starts one job at a time, and waits for the next when that one is gone: a job with
limits costs half a millisecond more than one without (m), but for the first.

The child is not the cell's but its parent's, the spawner's (CLONE_PARENT, clone(2)): it is watched, and reaped, as
any other job's leader is. A cell has no children, and knows nothing of what becomes of them.

    spawner -> cell   Spawn, with all descriptors, as the daemon sends it; `env` complete
    cell -> spawner   Started or Failed

A cell ends when its socket does. Standard library only.
"""

from __future__ import annotations

import _socket
import array
import contextlib
import errno
import gc
import os
import signal
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import process_table, quick_fork
from sandd._core.processes.forked_launch import (
    RESTORED_SIGNALS,
    ConfinementError,
    LimitError,
    launch_forked,
)
from sandd._core.processes.spawner_messages import (
    Failed,
    MessageReader,
    ProcessLimits,
    Ready,
    Spawn,
    Started,
    encode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from sandd._core.processes.limit_groups import Counters, LimitGroup

ANSWER_SECONDS = 5.0
"""How long a cell may take to come up, or to start a job. It takes 20 ms, or 1; one that hangs costs its job alone."""
NO_JOBS_BRAND = 1
"""Of a cell between two jobs: who looks for a job's processes doesn't take it for one."""
LAST_DESCRIPTOR = 1 << 20
_SCORE = "/proc/self/oom_score_adj"
_SPARED = b"-999"
"""The last to be chosen by the kernel when memory is short: what a cell has started goes first. Yet not never (-1000):
who can't be chosen, with nobody else there, waits for memory for good, and the spawner for it."""


class CellError(OSError):
    """A cell did not do what it was asked for; the text is for people. What it may have started is in its group."""


class Cell:
    """The spawner's end of a cell.

    Raises:
        OSError: it can't be started, or can't get into its group; nothing is left of it but the group.
    """

    def __init__(self, group: LimitGroup, *, has_cpu: bool) -> None:
        self.group = group
        self.has_cpu = has_cpu
        """Its group can hold `cpus`."""
        self.before: Counters = group.counters()
        """What its group had counted before the job that it is for now."""
        self._link, theirs = _socket.socketpair()
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _be_a_cell(theirs, group)
        except OSError:
            self._link.close()
            raise
        finally:
            theirs.close()
        self._link.settimeout(ANSWER_SECONDS)
        self._reader = MessageReader(self._link)
        self._is_up = False

    def __repr__(self) -> str:
        return f"<Cell {self.pid} in {self.group!r}>"

    def launch(self, request: Spawn, descriptors: list[int]) -> int:
        """Start a job in the cell's group; the process id of its leader, which is our child.

        Raises:
            CellError: the cell is of no use any more.
            OSError: the program can't be started, as from `launcher.launch`. Nothing ran.
        """
        assert request.limits is not None
        limits = ProcessLimits(*request.limits)
        number = errno.EAGAIN
        try:
            self._wait_until_up()
            # Not yet the processors': we wait for the cell, and it would take its time.
            self.group.hold(limits._replace(cpus=None), extra=1)
            data = encode(request, descriptors=len(descriptors))
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", descriptors))
            sent = self._link.sendmsg([data], [rights])
            self._link.sendall(memoryview(data)[sent:])
            number = errno.ETIME  # from now on it may run: who asked must not try again
            answer = self._receive()
            if limits.cpus is not None:
                self.group.slow_down(limits.cpus)
        except CellError:
            raise
        except (OSError, EOFError) as error:
            if self.group.counters().oom_kills > self.before.oom_kills:
                text = "its limit of memory is less than it takes to start it"
                raise CellError(errno.E2BIG, text) from error
            raise CellError(number, f"what starts jobs with limits failed: {error}") from error
        if isinstance(answer, Failed):
            if answer.filename == _OF_LIMITS:
                raise LimitError(answer.number, answer.text)
            if answer.filename == _OF_CONFINEMENT:
                raise ConfinementError(answer.number, answer.text)
            if answer.number == 0:
                raise ValueError(answer.text)
            raise OSError(answer.number, answer.text, answer.filename)
        assert isinstance(answer, Started)
        return answer.pid

    def end(self) -> None:
        """Kill the cell and reap it; what it has started lives on. Its group is not removed."""
        self._link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _wait_until_up(self) -> None:
        if not self._is_up:
            answer = self._receive()
            if isinstance(answer, Failed):
                raise CellError(answer.number, answer.text)
            self._is_up = True

    def _receive(self) -> Ready | Started | Failed:
        received = self._reader.receive()
        if received is None:
            raise CellError(errno.EAGAIN, "what starts jobs with limits does not answer")
        message, _, _ = received
        assert isinstance(message, Ready | Started | Failed)
        return message


# --- in the cell ----------------------------------------------------------------------------------

_OF_LIMITS = "\0limits"
_OF_CONFINEMENT = "\0confinement"
"""Instead of a file's name: which kind of error it was."""


def _be_a_cell(link: _socket.socket, group: LimitGroup) -> NoReturn:
    try:
        _let_go(link.fileno())
        score = _spare_ourselves()
        try:
            group.enter()
        except OSError as error:
            link.sendall(encode(Failed(0, error.errno or errno.EPERM, str(error), None)))
        else:
            link.sendall(encode(Ready(is_subreaper=False, group=None)))
            _serve(link, _sibling_maker(score))
    finally:
        # Whatever happened, no copy of the spawner goes on from here.
        os._exit(0)


def _let_go(link: int) -> None:
    """Of all that is the spawner's: its sockets would not end with it, and its jobs' pipes not with them."""
    signal.set_wakeup_fd(-1)
    # As a child is to have them; one that ends the cell has ended its spawner.
    for number in (signal.SIGCHLD, *RESTORED_SIGNALS):
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, link)
    os.closerange(link + 1, LAST_DESCRIPTOR)
    gc.disable()  # what it would look at are pages to be copied
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
        comm.write(b"sandd-cell")


def _spare_ourselves() -> bytes | None:
    """What is to be undone for those whom we start; None where we may not be spared."""
    try:
        with open(_SCORE, "rb") as file:
            before = file.read().strip()
        with open(_SCORE, "wb") as file:
            file.write(_SPARED)
    except OSError:
        return None
    return before


def _serve(link: _socket.socket, fork: Callable[[], int]) -> None:
    reader = MessageReader(link)
    home: int | None = None
    with contextlib.suppress(OSError):  # as after "sudo -u" in a home that is root's
        home = os.open(".", os.O_RDONLY)
    nothing = os.open(os.devnull, os.O_RDWR)
    while (received := reader.receive()) is not None:
        message, descriptors, is_complete = received
        assert isinstance(message, Spawn)
        process_table.brand_children(message.brand)
        answer: Started | Failed
        try:
            if not is_complete:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            answer = Started(
                message.job,
                launch_forked(message, message.env, descriptors, fork=fork, spares_child=True),
            )
        except (LimitError, ConfinementError) as error:
            kind = _OF_LIMITS if isinstance(error, LimitError) else _OF_CONFINEMENT
            answer = Failed(message.job, error.errno or 0, error.strerror or "", kind)
        except OSError as error:
            name = None if error.filename is None else os.fsdecode(error.filename)
            answer = Failed(message.job, error.errno or errno.EIO, error.strerror or "", name)
        except Exception as error:
            answer = Failed(message.job, 0, str(error), None)
        for descriptor in descriptors:
            os.close(descriptor)
        process_table.brand_children(NO_JOBS_BRAND)
        link.sendall(encode(answer))
        if home is None:
            return  # there is no way back from where that job was started: the next one takes another cell
        # What a child was to inherit may be in somebody's way, such as the end of a pipe.
        os.fchdir(home)
        for number in range(3):
            os.dup2(nothing, number)


def _sibling_maker(score: bytes | None) -> Callable[[], int]:
    """What forks for our parent; the child is not spared when memory is short, as we are."""
    if score is None:
        return quick_fork.fork_sibling
    ours, theirs = os.open(_SCORE, os.O_WRONLY), score

    def fork() -> int:
        os.pwrite(ours, theirs, 0)
        pid = quick_fork.fork_sibling()
        if pid:
            os.pwrite(ours, _SPARED, 0)
        return pid

    return fork
