"""Process trees on the daemon's machine: started, watched to their real end, and ended whole.

Reading order, top down; each module imports only from those below it.

In the daemon:

    posix, windows    the two `ProcessHost`s
    posix_child       one job, as the spawner's reports tell it
    windows_child     one job, in its Job Object
    windows_terminal  a job's console there, and the thread that reads it
    windows_pywinpty  what Windows has for a terminal
    thread_handoff    bytes from such a thread to a task
    spawner_keeper    one spawner after the other, from the first to the end
    spawner_link      the daemon's end of the socket to a spawner
    lost_trees        what the daemon does about the jobs of a spawner that died
    pipes, terminals, users, open_files    small parts of a spawn
    tree_usage        what a tree takes, while it lives
    windows_job_objects    what Windows has for a process tree
    interface         `SpawnRequest`, `ExitStatus`, `Child`, `ProcessHost`

In the spawner, which must start in 20 ms and stay small. These import nothing but the standard
library, and of that nothing that takes as long as Python itself to start, such as `typing` (hence ``TYPE_CHECKING =
False``); and neither this file nor ``sandd/__init__`` is imported with them:

    spawner           the little process that starts every job (POSIX): its event loop
    launcher          starting one program with its pipes
    job_trees         which process belongs to which job
    culling           how a whole tree is killed
    control_groups    one group around all jobs, for what can't be done one by one
    exit_watch        hearing of an exit without reaping
    readiness         waiting for its few descriptors
    limit_keeper      holding jobs to their limits, by
    limit_cells       little processes that start them in control groups of their own,
    limit_groups      those groups, and
    child_limits      what a process sets itself before its program
    process_table     reading /proc (Linux) or ps (macOS), signals that hit no stranger
    forked_launch     starting one program that a policy has checked, or that is confined
    exec_lock         what it may execute
    landlock          the part of the kernel that confines, and locks
    quick_fork        a fork for who executes a program at once
    program_search    which files a program's name may mean
    spawner_messages  what daemon and spawner say to each other
    named_tuples      a class for messages, without `typing`
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.processes.interface import (
    CheckedProgram,
    Child,
    ChildLost,
    Confinement,
    ExitStatus,
    ProcessHost,
    ReceivesNowait,
    SendsNowait,
    SpawnRequest,
    Terminal,
    TreeUsage,
)
from sandd._core.processes.open_files import raise_open_files_limit

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "CheckedProgram",
    "Child",
    "ChildLost",
    "Confinement",
    "ExitStatus",
    "ProcessHost",
    "ReceivesNowait",
    "SendsNowait",
    "SpawnRequest",
    "Terminal",
    "TreeUsage",
    "open_process_host",
    "raise_open_files_limit",
]


def open_process_host(*, total: Limits = NO_LIMITS) -> AbstractAsyncContextManager[ProcessHost]:
    """A `ProcessHost` for this machine, as an async context manager.

    Leaving the block kills and reaps every process tree that is still there, in bounded time and
    whatever is being cancelled. An exception in the body comes out as itself.

    Args:
        total: what all jobs together may use, as far as this machine can hold that (`ProcessHost.unheld_total`).

    Call `raise_open_files_limit` before, where wanted: children get the original limit.

    Raises:
        SpawnFailed: the spawner process can't be started. Nothing ran.
    """
    # The other platform's module must not even be imported: it can't be.
    if sys.platform == "win32":
        from sandd._core.processes.windows import open_windows_process_host

        return open_windows_process_host()
    else:
        from sandd._core.processes.posix import open_posix_process_host

        return open_posix_process_host(total)
