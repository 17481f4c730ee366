"""Job Objects by ctypes: the kernel's own notion of a process tree, from which nothing escapes.

Source: learn.microsoft.com, "Job Objects" and the pages of the functions named below.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from ctypes import wintypes

from sandd._core.limits import NO_LIMITS, Limits, Usage
from sandd._core.processes.interface import TreeUsage

assert sys.platform == "win32"  # tells mypy not to look any further elsewhere

_KILL_ON_JOB_CLOSE = 0x2000
_BASIC_ACCOUNTING = 1  # JOBOBJECTINFOCLASS
_PROCESS_IDS = 3
_EXTENDED_LIMITS = 9
_CPU_RATE = 15
_JOB_TIME, _ACTIVE_PROCESSES, _PRIORITY_CLASS, _JOB_MEMORY = 0x4, 0x8, 0x20, 0x200
_IDLE_PRIORITY, _BELOW_NORMAL_PRIORITY = 0x40, 0x4000
_RATE_ENABLED, _RATE_HARD_CAP = 0x1, 0x4
_FULL_MEMORY = 0.95
"""A job that came this near to its memory, which it never goes beyond, was refused some: it asks for more at a time."""
_PROCESS_RIGHTS = 0x0001 | 0x0100 | 0x0800  # terminate, set quota (to assign), suspend and resume
_QUERY_RIGHTS = 0x1000 | 0x0010  # query limited information, read its memory's counters
_TICKS_PER_SECOND = 10_000_000  # 100 ns each
_MOST_IDS = 1024
"""Processes of a job whose memory is counted."""
EXIT_CODE = 1
"""What processes that were terminated report, as with `subprocess.Popen.terminate`."""


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_ulonglong * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class _CpuRate(ctypes.Structure):
    _fields_ = (("ControlFlags", ctypes.c_uint32), ("CpuRate", ctypes.c_uint32))


class _Accounting(ctypes.Structure):
    _fields_ = (
        ("TotalUserTime", ctypes.c_int64),
        ("TotalKernelTime", ctypes.c_int64),
        ("ThisPeriodTotalUserTime", ctypes.c_int64),
        ("ThisPeriodTotalKernelTime", ctypes.c_int64),
        ("TotalPageFaultCount", ctypes.c_uint32),
        ("TotalProcesses", ctypes.c_uint32),
        ("ActiveProcesses", ctypes.c_uint32),
        ("TotalTerminatedProcesses", ctypes.c_uint32),
    )


class _ProcessIds(ctypes.Structure):
    _fields_ = (
        ("NumberOfAssignedProcesses", ctypes.c_uint32),
        ("NumberOfProcessIdsInList", ctypes.c_uint32),
        ("ProcessIdList", ctypes.c_size_t * _MOST_IDS),
    )


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_ntdll = ctypes.WinDLL("ntdll")
_HANDLE_FIRST: dict[str, tuple[object, ...]] = {
    "AssignProcessToJobObject": (wintypes.HANDLE, wintypes.HANDLE),
    "CloseHandle": (wintypes.HANDLE,),
    "QueryInformationJobObject": (
        *(wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p),
    ),
    "SetInformationJobObject": (
        *(wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32),
    ),
    "TerminateJobObject": (wintypes.HANDLE, ctypes.c_uint32),
}
for _name, _types in _HANDLE_FIRST.items():
    # Without its types, a function gets its handles cut to 32 bits.
    getattr(_kernel32, _name).argtypes = _types
_kernel32.CreateJobObjectW.restype = wintypes.HANDLE
_kernel32.OpenProcess.restype = wintypes.HANDLE
_kernel32.OpenProcess.argtypes = (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32)
_ntdll.NtResumeProcess.argtypes = (wintypes.HANDLE,)


class KernelJobObject:
    """A new Job Object; closing it, or the daemon's death, kills all that is in it."""

    def __init__(self) -> None:
        self._handle: int | None = _check(_kernel32.CreateJobObjectW(None, None))
        self._limits = NO_LIMITS
        limits = _ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
        try:
            self._set(_EXTENDED_LIMITS, limits)
        except OSError:
            self.close()
            raise

    def hold(self, limits: Limits) -> None:
        """From now on these are its limits, those of `windows_child.HOLDS`."""
        self._limits = limits
        extended = _ExtendedLimits()
        basic = extended.BasicLimitInformation
        flags = _KILL_ON_JOB_CLOSE
        if limits.memory_bytes is not None:
            flags |= _JOB_MEMORY
            extended.JobMemoryLimit = limits.memory_bytes
        if limits.processes is not None:
            flags |= _ACTIVE_PROCESSES
            basic.ActiveProcessLimit = limits.processes
        if limits.cpu_seconds is not None:
            flags |= _JOB_TIME
            basic.PerJobUserTimeLimit = int(limits.cpu_seconds * _TICKS_PER_SECOND)
        if limits.nice:
            flags |= _PRIORITY_CLASS
            basic.PriorityClass = _IDLE_PRIORITY if limits.nice >= 15 else _BELOW_NORMAL_PRIORITY
        basic.LimitFlags = flags
        self._set(_EXTENDED_LIMITS, extended)
        if limits.cpus is not None:
            # In hundredths of a percent of all processors.
            rate = max(1, min(10_000, int(limits.cpus / (os.cpu_count() or 1) * 10_000)))
            self._set(_CPU_RATE, _CpuRate(_RATE_ENABLED | _RATE_HARD_CAP, rate))

    def used(self) -> tuple[Usage, str]:
        """What its processes have used so far, and the limit that they met, or ""."""
        accounting, extended = self._accounting(), _ExtendedLimits()
        self._query(_EXTENDED_LIMITS, extended)
        limits, user = self._limits, accounting.TotalUserTime / _TICKS_PER_SECOND
        usage = Usage(
            user + accounting.TotalKernelTime / _TICKS_PER_SECOND,
            int(extended.PeakProcessMemoryUsed),
        )
        if limits.cpu_seconds is not None and user >= limits.cpu_seconds:
            return usage, "cpu_seconds"
        if limits.processes is not None and accounting.TotalTerminatedProcesses:
            return usage, "processes"  # of a limit: those that we terminate are not counted there
        if (
            limits.memory_bytes is not None
            and extended.PeakJobMemoryUsed >= _FULL_MEMORY * limits.memory_bytes
        ):
            return usage, "memory_bytes"
        return usage, ""

    def adopt(self, pid: int) -> None:
        """Take in a process that was created suspended, and let it run."""
        process = _check(_kernel32.OpenProcess(_PROCESS_RIGHTS, False, pid))
        try:
            _check(_kernel32.AssignProcessToJobObject(self._handle, process))
            # ResumeThread wants the first thread's handle, which subprocess has thrown away.
            status = _ntdll.NtResumeProcess(process)
            if status != 0:
                raise OSError(errno.EIO, f"NtResumeProcess: status {status & 0xFFFFFFFF:#x}")
        finally:
            _kernel32.CloseHandle(process)

    def terminate(self) -> None:
        """End every process in it."""
        _check(_kernel32.TerminateJobObject(self._handle, EXIT_CODE))

    def active_processes(self) -> int:
        """How many processes are in it."""
        return int(self._accounting().ActiveProcesses)

    def _accounting(self) -> _Accounting:
        accounting = _Accounting()
        self._query(_BASIC_ACCOUNTING, accounting)
        return accounting

    def usage(self) -> TreeUsage:
        """What the processes in it take, those that have ended included in the time."""
        from sandd._core.machine_windows import working_set

        accounting = self._accounting()
        memory = 0
        for pid in self._process_ids():
            process = _kernel32.OpenProcess(_QUERY_RIGHTS, False, pid)
            if process:  # else it has ended meanwhile
                memory += working_set(process) or 0
                _kernel32.CloseHandle(process)
        ticks = accounting.TotalUserTime + accounting.TotalKernelTime
        return TreeUsage(ticks / _TICKS_PER_SECOND, memory, int(accounting.ActiveProcesses))

    def _process_ids(self) -> list[int]:
        """Of the first `_MOST_IDS` that live in it."""
        listed = _ProcessIds()
        # Where there are more it fails, with ERROR_MORE_DATA, and has filled what there is.
        _kernel32.QueryInformationJobObject(
            self._handle, _PROCESS_IDS, ctypes.byref(listed), ctypes.sizeof(listed), None
        )
        return [int(each) for each in listed.ProcessIdList[: listed.NumberOfProcessIdsInList]]

    def _set(self, kind: int, value: ctypes.Structure) -> None:
        size = ctypes.sizeof(value)
        _check(_kernel32.SetInformationJobObject(self._handle, kind, ctypes.byref(value), size))

    def _query(self, kind: int, value: ctypes.Structure) -> None:
        size = ctypes.sizeof(value)
        _check(
            _kernel32.QueryInformationJobObject(self._handle, kind, ctypes.byref(value), size, None)
        )

    def close(self) -> None:
        """Kill what is left in it."""
        if self._handle is not None:
            _kernel32.CloseHandle(self._handle)
            self._handle = None


def _check(result: int | None) -> int:
    if not result:
        raise ctypes.WinError(ctypes.get_last_error())
    return result
