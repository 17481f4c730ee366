"""Limits that a process sets itself, between its fork and its program, and hands on to all that it starts.

Standard library only; it runs in the child.
"""

from __future__ import annotations

import math
import os
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandd._core.processes.spawner_messages import ProcessLimits

NAMES = frozenset({"open_files", "file_bytes", "nice"})
"""Those that hold so. `cpu_seconds` does, too, but for each process on its own: the rest is for who adds them up."""


def apply(limits: ProcessLimits) -> None:
    """Set them, for good. OSError where the kernel won't."""
    if limits.cpu_seconds is not None:
        seconds = math.ceil(limits.cpu_seconds)
        _lower(
            resource.RLIMIT_CPU, seconds, hard=seconds + 1
        )  # SIGXCPU, and SIGKILL a second later
    if limits.open_files is not None:
        _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    if limits.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, max(limits.nice, os.getpriority(os.PRIO_PROCESS, 0)))


def _lower(which: int, soft: int, *, hard: int | None = None) -> None:
    """Never more than there was; a process can't take it back, unless it is root's."""
    _, before = resource.getrlimit(which)
    wanted = soft if hard is None else hard
    if before != resource.RLIM_INFINITY:
        wanted = min(wanted, before)
    resource.setrlimit(which, (min(soft, wanted), wanted))
