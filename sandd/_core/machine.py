"""What a machine has, and what of it is in use; and what this process takes of it.

Standard library only. What a system doesn't tell, or would tell only slowly, is None and never made up. On Linux all of
it comes from /proc: in a container that is the whole machine, as for every program there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable


@frozen
class Machine:
    """One moment of it."""

    cpus: int
    load: tuple[float, ...] = ()
    """Averages over 1, 5 and 15 minutes; none on Windows."""
    busy_seconds: float | None = None
    """Since its start, seconds that its processors were not idle, all of them together."""
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    """What programs could take without anything being swapped out."""
    own_cpu_seconds: float = 0.0
    """Of this process."""
    own_rss_bytes: int | None = None
    """Of this process."""


def read_machine() -> Machine:
    """This machine, now. It may take 20 ms (macOS), so it belongs into a thread. Raises nothing."""
    if sys.platform == "linux":
        return read_linux()
    if sys.platform == "win32":
        return read_windows()
    return read_macos()


def _cpus() -> int:
    return os.cpu_count() or 1


def _load() -> tuple[float, ...]:
    if sys.platform == "win32":
        return ()
    try:
        return os.getloadavg()
    except OSError:
        return ()  # unobtainable, as getloadavg(3) has it


# --- Linux ----------------------------------------------------------------------------------------


def read_linux(
    *,
    proc: str = "/proc",
    ticks_per_second: int = 100,  # USER_HZ: the same on all of today's machines, whatever the kernel's own is
    page_bytes: int | None = None,
) -> Machine:
    """As /proc tells it; a sandbox may leave out any part. Source: proc_stat(5), proc_meminfo(5), proc_pid_statm(5)."""
    memory = _meminfo(_read(f"{proc}/meminfo"))
    pages = _read(f"{proc}/self/statm").split()
    if page_bytes is None and sys.platform != "win32":
        page_bytes = os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpus=_cpus(),
        load=_load(),
        busy_seconds=_busy(_read(f"{proc}/stat"), ticks_per_second),
        memory_bytes=memory.get(b"MemTotal"),
        memory_available_bytes=memory.get(b"MemAvailable"),
        own_cpu_seconds=time.process_time(),
        own_rss_bytes=int(pages[1]) * (page_bytes or 4096) if len(pages) > 1 else None,
    )


def _busy(text: bytes, ticks_per_second: int) -> float | None:
    words = text.partition(b"\n")[0].split()
    if len(words) < 5 or words[0] != b"cpu":
        return None
    # user nice system idle iowait irq softirq steal; time of guests, which follows, is in the first two already.
    numbers = [int(word) for word in words[1:9]]
    return (sum(numbers) - sum(numbers[3:5])) / ticks_per_second


def _meminfo(text: bytes) -> dict[bytes, int]:
    return {
        name: int(kilobytes) * 1024
        for name, kilobytes in re.findall(rb"(?m)^(\w+): +(\d+) kB", text)
    }


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1 << 16)
    except OSError:
        return b""


# --- macOS ----------------------------------------------------------------------------------------


def read_macos(run: Callable[[list[str]], bytes] = subprocess.check_output) -> Machine:
    """As vm_stat(1) and ps(1) tell it; what its processors were busy with takes a call of Mach's, and is not told."""
    own = _run(run, ["/bin/ps", "-o", "rss=", "-p", str(os.getpid())]).strip()
    return Machine(
        cpus=_cpus(),
        load=_load(),
        memory_bytes=_physical_memory(),
        memory_available_bytes=_vm_stat(_run(run, ["/usr/bin/vm_stat"])),
        own_cpu_seconds=time.process_time(),
        own_rss_bytes=int(own) * 1024 if own.isdigit() else None,
    )


def _vm_stat(text: bytes) -> int | None:
    size = re.search(rb"page size of (\d+) bytes", text)
    pages = dict(re.findall(rb"(?m)^Pages (free|inactive|speculative): +(\d+)\.", text))
    if size is None or b"free" not in pages:
        return None
    return int(size[1]) * sum(map(int, pages.values()))


def _physical_memory() -> int | None:
    if sys.platform == "win32":
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _run(run: Callable[[list[str]], bytes], command: list[str]) -> bytes:
    try:
        return run(command)
    except (OSError, subprocess.SubprocessError):
        return b""


# --- Windows --------------------------------------------------------------------------------------


def read_windows() -> Machine:
    """As GlobalMemoryStatusEx, GetSystemTimes and GetProcessMemoryInfo tell it."""
    if sys.platform != "win32":
        raise NotImplementedError("Windows only")
    else:  # where mypy reads it
        from sandd._core.machine_windows import read_memory, read_own_memory, read_times

        total, available = read_memory()
        return Machine(
            cpus=_cpus(),
            busy_seconds=read_times(),
            memory_bytes=total,
            memory_available_bytes=available,
            own_cpu_seconds=time.process_time(),
            own_rss_bytes=read_own_memory(),
        )
