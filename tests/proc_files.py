"""Files of /proc, read without a detour: tests look through all processes, again and again until something is so."""

from __future__ import annotations

import os
import re
import time


def seconds_of_calm() -> float:
    """A monotonic clock that stands while somebody on this machine waits for a processor, where the kernel counts that.

    So what is measured by it is what was waited for, and not how many others there were (Linux: pressure stall
    information). Elsewhere it is the plain one.
    """
    return time.monotonic() - _seconds_of_pressure()


def _seconds_of_pressure() -> float:
    try:
        with open("/proc/pressure/cpu", "rb") as file:
            some = file.readline()
    except OSError:  # an older kernel, or one that was told not to count
        return 0.0
    return int(some.rpartition(b"total=")[2]) / 1e6


def process_ids() -> list[int]:
    """Of every process there is; none where there is no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except FileNotFoundError:
        return []


def contents(pid: int, name: str) -> bytes:
    """What a process' file holds; nothing where the process is gone, or not ours to look at."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    except OSError:
        return b""
    pieces = []
    try:
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    except OSError:  # ESRCH: it has just ended
        pass
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def state_and_parent(pid: int) -> tuple[str, int] | None:
    """A letter as of proc(5), and the pid of its parent; None: it is gone."""
    # The name in parentheses may itself hold spaces and parentheses.
    fields = contents(pid, "stat").rpartition(b")")[2].split(None, 2)
    return (fields[0].decode(), int(fields[1])) if fields else None


def has_variable(pid: int, variable: bytes) -> bool:
    """Whether its environment holds this ``NAME=value``."""
    return variable in (environment := contents(pid, "environ")) and (
        variable in environment.split(b"\0")
    )


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal; ProcessLookupError if it is gone."""
    caught = re.search(rb"SigCgt:\s*([0-9a-f]+)", contents(pid, "status"))
    if caught is None:
        raise ProcessLookupError(pid)
    return bool(int(caught[1], 16) >> (number - 1) & 1)
