"""What Windows tells of a machine and of a process, by ctypes.

Source: learn.microsoft.com, the pages of the functions named below.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import wintypes

assert sys.platform == "win32"  # tells mypy not to look any further elsewhere

_TICKS_PER_SECOND = 10_000_000  # FILETIME: 100 ns each


class _MemoryStatus(ctypes.Structure):
    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


class _MemoryCounters(ctypes.Structure):
    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.GetCurrentProcess.restype = wintypes.HANDLE
# Without its types, a function gets its handles cut to 32 bits.
_kernel32.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.c_void_p, ctypes.c_uint32)
_kernel32.GlobalMemoryStatusEx.argtypes = (ctypes.c_void_p,)
_kernel32.GetSystemTimes.argtypes = (ctypes.c_void_p,) * 3


def read_memory() -> tuple[int | None, int | None]:
    """The machine's memory, and what of it is available, in bytes; None where it doesn't tell."""
    status = _MemoryStatus()
    status.dwLength = ctypes.sizeof(status)
    if not _kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.ullTotalPhys), int(status.ullAvailPhys)


def read_times() -> float | None:
    """Seconds that its processors, together, were not idle since its start."""
    idle, kernel, user = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()
    told = _kernel32.GetSystemTimes(ctypes.byref(idle), ctypes.byref(kernel), ctypes.byref(user))
    if not told:
        return None
    # The kernel's time has the idle one in it.
    return (kernel.value + user.value - idle.value) / _TICKS_PER_SECOND


def read_own_memory() -> int | None:
    """Bytes of this process' working set."""
    return working_set(_kernel32.GetCurrentProcess())


def working_set(process: int) -> int | None:
    """Bytes of a process' working set, by its handle."""
    counters = _MemoryCounters()
    counters.cb = ctypes.sizeof(counters)
    if not _kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb):
        return None
    return int(counters.WorkingSetSize)
