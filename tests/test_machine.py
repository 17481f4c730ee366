"""What a machine tells of itself: from made-up files and outputs, and from this one."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from process_tools import linux_only

import sandd
from sandd._core.machine import Machine, read_linux, read_machine, read_macos

if TYPE_CHECKING:
    from types import ModuleType


def proc(directory: Path, **files: str) -> str:
    """A /proc with these files."""
    for name, text in files.items():
        path = directory / name.replace("_", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return str(directory)


def test_linux_tells_by_proc(tmp_path: Path) -> None:
    """Idle is no work, neither is waiting for a disk; the time of guests is in that of users already."""
    path = proc(
        tmp_path,
        stat="cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3\n",
        meminfo="MemTotal:       1000 kB\nMemFree:    1 kB\nMemAvailable:    300 kB\nHugePages_Total: 0\n",
        self_statm="500 20 5 1 0 9 0\n",
    )
    machine = read_linux(proc=path, ticks_per_second=100, page_bytes=4096)
    assert machine.busy_seconds == (100 + 20 + 30 + 6 + 7 + 8) / 100
    assert (machine.memory_bytes, machine.memory_available_bytes) == (1_024_000, 307_200)
    assert machine.own_rss_bytes == 20 * 4096
    assert machine.cpus >= 1
    assert machine.own_cpu_seconds > 0


def test_what_a_sandbox_hides_is_not_known(tmp_path: Path) -> None:
    """And nothing else is made up for it."""
    machine = read_linux(proc=str(tmp_path))
    assert machine.busy_seconds is machine.memory_bytes is machine.own_rss_bytes is None
    odd = proc(tmp_path, stat="intr 1 2 3 4 5\n", self_statm="\n")
    assert read_linux(proc=odd).busy_seconds is None


@linux_only
def test_this_machine_is_read() -> None:
    """All of it is there, and in the right units."""
    machine = read_machine()
    assert machine.cpus == os.cpu_count()
    assert len(machine.load) == 3
    assert machine.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_available_bytes is not None
    assert 0 < machine.memory_available_bytes < machine.memory_bytes
    assert machine.busy_seconds is not None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < machine.busy_seconds <= 1.05 * uptime * machine.cpus
    assert machine.own_rss_bytes is not None
    assert 5_000_000 < machine.own_rss_bytes < machine.memory_bytes


VM_STAT = b"""\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               100.
Pages active:                          200000.
Pages inactive:                            20.
Pages speculative:                          3.
Pages wired down:                       90000.
"""


def test_macos_tells_by_two_programs() -> None:
    """What it doesn't tell, or in another way, is not known."""
    outputs = {"/bin/ps": b"  2048\n", "/usr/bin/vm_stat": VM_STAT}
    machine = read_macos(lambda command: outputs[command[0]])
    assert machine.memory_available_bytes == 123 * 16384
    assert machine.own_rss_bytes == 2048 * 1024
    assert machine.busy_seconds is None

    def fail(_command: list[str]) -> bytes:
        raise subprocess.CalledProcessError(1, "ps")

    machine = read_macos(fail)
    assert machine.memory_available_bytes is machine.own_rss_bytes is None
    assert isinstance(machine, Machine)


class FakeFunction:
    """One function of kernel32, which fills in what it is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        """Success, except where the handle is 0."""
        given = [getattr(each, "_obj", each) for each in arguments]
        if self.name == "GlobalMemoryStatusEx":
            assert given[0].dwLength == 64  # by which the system knows the structure
            given[0].ullTotalPhys, given[0].ullAvailPhys = 1000, 400
        elif self.name == "GetSystemTimes":
            for each, value in zip(given, (60_000_000, 100_000_000, 20_000_000), strict=True):
                each.value = value
        elif self.name == "K32GetProcessMemoryInfo":
            assert (given[1].cb, given[2]) == (72, 72)
            given[1].WorkingSetSize = 4096
            return int(given[0] != 0)
        return 77


class FakeLibrary:
    """kernel32."""

    def __getattr__(self, name: str) -> FakeFunction:
        function = FakeFunction(name)
        setattr(self, name, function)
        return function


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, loaded as on Windows."""
    path = Path(sandd.__file__).parent / "_core/machine_windows.py"
    spec = importlib.util.spec_from_file_location("windows_of_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        patch.setattr(ctypes, "WinDLL", lambda *_, **__: FakeLibrary(), raising=False)
        spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform == "win32", reason="there is a real one")
def test_windows_tells_by_kernel32(windows: ModuleType) -> None:
    """Its structures have the sizes that are documented; the time of the kernel has the idle one in it."""
    assert windows.read_memory() == (1000, 400)
    assert windows.read_times() == 6.0
    assert windows.read_own_memory() == 4096
    assert windows.working_set(0) is None
