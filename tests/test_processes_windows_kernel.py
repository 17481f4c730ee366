"""The ctypes half of Job Objects: which functions are called, with what, on a kernel that is made up."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sandd
from sandd._core.limits import Limits, Usage
from sandd._core.processes import TreeUsage

if TYPE_CHECKING:
    from types import ModuleType

NAME = "sandd._core.processes.windows_job_objects"  # for coverage; it is in no sys.modules
PATH = Path(sandd.__file__).parent / "_core/processes/windows_job_objects.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is a real one")


class FakeFunction:
    """One function of a DLL: notes its arguments, returns what it is told to."""

    def __init__(self, name: str, library: FakeLibrary) -> None:
        self.name = name
        self.library = library
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        """Note the call; structures are noted as they are."""
        noted = [getattr(argument, "_obj", argument) for argument in arguments]
        self.library.calls.append((self.name, *noted))
        if self.name == "QueryInformationJobObject":
            for name, value in self.library.counters.items():
                setattr(noted[2], name, value)
            if self.library.counters or noted[1] == 9:
                pass
            elif noted[1] == 1:
                noted[2].ActiveProcesses = 3
                noted[2].TotalUserTime, noted[2].TotalKernelTime = 20_000_000, 5_000_000
            else:
                noted[2].NumberOfProcessIdsInList = 2
                noted[2].ProcessIdList[:2] = [4711, 4712]
        if self.name == "K32GetProcessMemoryInfo":
            noted[1].WorkingSetSize = 4096
        return self.library.results.get(self.name, 0 if self.name == "NtResumeProcess" else 77)


class FakeLibrary:
    """kernel32 and ntdll in one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.results: dict[str, int] = {}
        self.counters: dict[str, int] = {}
        self.functions: dict[str, FakeFunction] = {}

    def __getattr__(self, name: str) -> FakeFunction:
        return self.functions.setdefault(name, FakeFunction(name, self))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of one function."""
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """The kernel; failures are OSErrors with its last error, 5."""
    library = FakeLibrary()
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: library, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 5, raising=False)
    monkeypatch.setattr(ctypes, "WinError", lambda code: OSError(code, "denied"), raising=False)
    return library


@pytest.fixture
def module(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, loaded as on Windows."""
    assert library.calls == []
    spec = importlib.util.spec_from_file_location(NAME, PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        spec.loader.exec_module(module)
    return module


def test_job_object_kills_on_close(module: ModuleType, library: FakeLibrary) -> None:
    """The limit is set before anything is in it, in a structure of the documented size."""
    job = module.KernelJobObject()
    ((handle, information, limits, size),) = library.named("SetInformationJobObject")
    assert (handle, information, size) == (77, 9, 144)
    assert limits.BasicLimitInformation.LimitFlags == 0x2000
    job.close()
    job.close()
    assert library.named("CloseHandle") == [(77,)]


def test_process_is_assigned_before_it_runs(module: ModuleType, library: FakeLibrary) -> None:
    """Opened, assigned, resumed, closed: in this order."""
    module.KernelJobObject().adopt(4711)
    assert [call[0] for call in library.calls[2:]] == [
        *("OpenProcess", "AssignProcessToJobObject", "NtResumeProcess", "CloseHandle")
    ]
    assert library.named("OpenProcess") == [(0x901, False, 4711)]


def test_failures_are_os_errors(module: ModuleType, library: FakeLibrary) -> None:
    """Of each step; a handle that was opened is closed."""
    job = module.KernelJobObject()
    for name, result in (("AssignProcessToJobObject", 0), ("NtResumeProcess", -1)):
        library.results = {name: result}
        with pytest.raises(OSError, match=r"denied|NtResumeProcess"):
            job.adopt(4711)
        assert library.calls[-1][0] == "CloseHandle"
    assert library.calls[-2][0] == "NtResumeProcess"
    closed = len(library.named("CloseHandle"))
    library.results = {"SetInformationJobObject": 0}
    with pytest.raises(OSError, match="denied"):
        module.KernelJobObject()
    assert len(library.named("CloseHandle")) == closed + 1
    library.results = {"CreateJobObjectW": 0}
    with pytest.raises(OSError, match="denied"):
        module.KernelJobObject()
    assert len(library.named("CloseHandle")) == closed + 1


def test_what_the_kernel_refuses_to_resume_is_told(
    module: ModuleType, library: FakeLibrary
) -> None:
    """With the status that its documentation lists, and an errno."""
    library.results = {"NtResumeProcess": -1073741790}
    with pytest.raises(OSError, match="status 0xc0000022") as caught:
        module.KernelJobObject().adopt(4711)
    assert caught.value.errno == errno.EIO


def test_usage_is_that_of_all_in_it(
    module: ModuleType, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times as the kernel adds them up, memory process by process; one that has ended meanwhile has none."""
    machine = importlib.util.spec_from_file_location(
        "sandd._core.machine_windows", PATH.parent.parent / "machine_windows.py"
    )
    assert machine is not None
    assert machine.loader is not None
    loaded = importlib.util.module_from_spec(machine)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        machine.loader.exec_module(loaded)
    monkeypatch.setitem(sys.modules, "sandd._core.machine_windows", loaded)
    job = module.KernelJobObject()
    assert job.usage() == TreeUsage(2.5, 2 * 4096, 3)
    assert library.named("OpenProcess") == [(0x1010, False, 4711), (0x1010, False, 4712)]
    assert len(library.named("CloseHandle")) == 2
    library.results = {"OpenProcess": 0}
    assert job.usage() == TreeUsage(2.5, 0, 3)


def test_emptiness_and_end(module: ModuleType, library: FakeLibrary) -> None:
    """The number of active processes is the kernel's; all of them are terminated with code 1."""
    job = module.KernelJobObject()
    assert job.active_processes() == 3
    ((_, information, _, size, _),) = library.named("QueryInformationJobObject")
    assert (information, size) == (1, 48)
    job.terminate()
    assert library.named("TerminateJobObject") == [(77, 1)]


def test_limits_are_the_kernels(module: ModuleType, library: FakeLibrary) -> None:
    """Each by its flag, in the units that are documented; the share of processors in a structure of its own."""
    job = module.KernelJobObject()
    job.hold(Limits(memory_bytes=1 << 26, processes=7, cpu_seconds=1.5, nice=12))
    *_, (_, information, limits, size) = library.named("SetInformationJobObject")
    assert (information, size) == (9, 144)
    basic = limits.BasicLimitInformation
    assert basic.LimitFlags == 0x2000 | 0x200 | 0x8 | 0x4 | 0x20
    assert (limits.JobMemoryLimit, basic.ActiveProcessLimit) == (1 << 26, 7)
    assert (basic.PerJobUserTimeLimit, basic.PriorityClass) == (15_000_000, 0x4000)
    job.hold(Limits(cpus=(os.cpu_count() or 1) / 2, nice=19))
    (_, kind, limits, _), (_, other, rate, size) = library.named("SetInformationJobObject")[-2:]
    assert (kind, limits.BasicLimitInformation.PriorityClass) == (9, 0x40)
    assert (other, rate.ControlFlags, rate.CpuRate, size) == (15, 0x5, 5000, 8)


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ({}, ""),
        ({"TotalUserTime": 20_000_000}, "cpu_seconds"),
        ({"TotalTerminatedProcesses": 1}, "processes"),
        ({"PeakJobMemoryUsed": 1 << 26}, "memory_bytes"),
    ],
)
def test_the_limit_that_was_met_is_told_by_counters(
    module: ModuleType, library: FakeLibrary, counted: dict[str, int], expected: str
) -> None:
    """And what was used: processor time of users and of the kernel, and the largest process."""
    job = module.KernelJobObject()
    library.counters = {"TotalKernelTime": 5_000_000, "PeakProcessMemoryUsed": 4096, **counted}
    assert job.used()[1] == ""  # nothing was limited
    job.hold(Limits(memory_bytes=1 << 26, processes=7, cpu_seconds=1.5))
    usage, limit = job.used()
    assert limit == expected
    user = counted.get("TotalUserTime", 0) / 10_000_000
    assert usage == Usage(user + 0.5, 4096)
