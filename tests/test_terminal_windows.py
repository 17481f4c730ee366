"""The console's half: which functions are called, with what, on a kernel that is made up."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import sandd
from sandd import NoTerminal

if TYPE_CHECKING:
    from types import ModuleType

NAME = "sandd.terminal.windows"  # for coverage; it is in no sys.modules
PATH = Path(sandd.__file__).parent / "terminal/windows.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is a real one")

COOKED_KEYS = 0x0007 | 0x0010
COOKED_SCREEN = 0x0003
HANDLES = {-10: 10, -11: 11}


class Kernel:
    """A console: its modes, its code page, and what is typed."""

    def __init__(self) -> None:
        self.modes = {10: COOKED_KEYS, 11: COOKED_SCREEN}
        self.code_page = 850
        self.typed: list[str | bytes] = []
        self.handles: dict[int, int | None] = dict(HANDLES)
        self.fails: set[str] = set()

    def call(self, name: str, arguments: tuple[Any, ...]) -> int | None:
        """As the documentation of each function has it."""
        if name in self.fails:
            return 0
        match name, [getattr(argument, "_obj", argument) for argument in arguments]:
            case "GetStdHandle", [which]:
                return self.handles[which]
            case "GetConsoleMode", [handle, mode]:
                mode.value = self.modes[handle]
            case "SetConsoleMode", [handle, mode]:
                self.modes[handle] = mode
            case "GetConsoleOutputCP", []:
                return self.code_page
            case "SetConsoleOutputCP", [code_page]:
                self.code_page = code_page
            case "ReadConsoleW", [10, buffer, room, count, None]:
                text = self.typed.pop(0)
                units = text if isinstance(text, bytes) else text.encode("utf-16-le")
                assert len(units) <= 2 * room
                buffer[: len(units)] = units
                count.value = len(units) // 2
            case unknown:
                pytest.fail(f"unknown: {unknown}")
        return 1


class Function:
    """One function of the kernel."""

    def __init__(self, name: str, kernel: Kernel) -> None:
        self.name, self.kernel = name, kernel
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int | None:
        """Call it; handles must not be cut to 32 bits."""
        if self.name not in ("GetConsoleOutputCP",):
            assert self.argtypes is not None, f"{self.name} has no types"
        return self.kernel.call(self.name, arguments)


class Library:
    """kernel32."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._functions: dict[str, Function] = {}

    def __getattr__(self, name: str) -> Function:
        return self._functions.setdefault(name, Function(name, self._kernel))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The kernel; failures are OSErrors with its last error, 6."""
    kernel = Kernel()
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: Library(kernel), raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 6, raising=False)
    monkeypatch.setattr(ctypes, "WinError", lambda code: OSError(code, "invalid"), raising=False)
    return kernel


@pytest.fixture
def module(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, loaded as on Windows."""
    spec = importlib.util.spec_from_file_location(NAME, PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        spec.loader.exec_module(module)
    return module


def test_raw_mode_and_back(module: ModuleType, kernel: Kernel) -> None:
    """Keys and screen speak sequences, and UTF-8; then all three are as they were."""
    console = module.WindowsConsole()
    console.remember()
    console.make_raw()
    assert kernel.modes == {10: 0x0010 | 0x0200, 11: 0x0003 | 0x0004 | 0x0008}
    assert kernel.code_page == 65001
    console.restore()
    assert kernel.modes == {10: COOKED_KEYS, 11: COOKED_SCREEN}
    assert kernel.code_page == 850
    assert console.in_foreground
    console.close()


async def test_keys_come_as_utf_8(module: ModuleType, kernel: Kernel) -> None:
    """Also those outside the first plane, which come in two halves."""
    halves = "\N{GRINNING FACE}".encode("utf-16-le")
    kernel.typed = ["\x03ä", halves[:2], halves[2:] + b"x\0", ""]
    console = module.WindowsConsole()
    assert await console.receive() == b"\x03\xc3\xa4"
    assert await console.receive() == "\N{GRINNING FACE}x".encode()
    assert await console.receive() == b""
    kernel.fails = {"ReadConsoleW"}
    assert await console.receive() == b""


async def test_everything_is_shown(
    module: ModuleType, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as many pieces as the console takes it in; a console that has gone is no error."""
    shown = bytearray()

    def write(descriptor: int, data: bytes) -> int:
        assert descriptor == 1
        shown.extend(data[:1000])
        return min(len(data), 1000)

    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(22, "gone")

    monkeypatch.setattr(module, "os", type(os)("os"))
    monkeypatch.setattr(module.os, "write", write, raising=False)
    data = os.urandom(50_000)
    console = module.WindowsConsole()
    with trio.fail_after(10):
        await console.send(data)
    assert shown == data
    monkeypatch.setattr(module.os, "write", fail)
    await console.send(data)


def test_sizes_are_the_window_s(
    module: ModuleType, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows first; nothing where there is no window."""
    console = module.WindowsConsole()
    monkeypatch.setattr(module, "os", type(os)("os"))
    module.os.get_terminal_size = lambda _: os.terminal_size((120, 40))
    assert console.size() == (40, 120)

    def fail(_: int) -> os.terminal_size:
        raise OSError(6, "invalid")

    module.os.get_terminal_size = fail
    assert console.size() == (0, 0)


@pytest.mark.parametrize("handle", [None, 0, ctypes.c_void_p(-1).value])
def test_no_console_is_a_clear_error(
    handle: int | None, module: ModuleType, kernel: Kernel
) -> None:
    """As in a service."""
    kernel.handles[-11] = handle
    with pytest.raises(NoTerminal, match="no console"):
        module.WindowsConsole()


@pytest.mark.parametrize("name", ["GetConsoleMode", "SetConsoleMode", "SetConsoleOutputCP"])
def test_failures_are_os_errors(name: str, module: ModuleType, kernel: Kernel) -> None:
    """Of each step into raw mode; on the way back there is nothing to be done about it."""
    console = module.WindowsConsole()
    kernel.fails = {name}
    step = console.remember if name.startswith("Get") else console.make_raw
    with pytest.raises(OSError, match="invalid"):
        step()
    console.restore()
