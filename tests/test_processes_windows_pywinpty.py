"""What is asked of pywinpty and of the kernel, and with what: a library and a kernel that are made up."""

from __future__ import annotations

import errno
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trio

import sandd
from sandd._core._errors import SpawnFailed

NAME = "sandd._core.processes.windows_pywinpty"  # for coverage; it is in no sys.modules
PATH = Path(sandd.__file__).parent / "_core/processes/windows_pywinpty.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is a real one")


class WinptyError(Exception):
    """All that the library ever raises."""


class FakePTY:
    """The library's object; the stub file of its 3.1.2 was the model."""

    made: list[FakePTY] = []  # noqa: RUF012 - emptied by the fixture
    failures: dict[str, str] = {}  # noqa: RUF012 - as above
    """What fails, and the text of that."""

    def __init__(self, cols: int, rows: int, backend: int | None = None) -> None:
        self.check("PTY")
        self.size = (cols, rows)
        self.backend = backend
        self.pid: int | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.texts: list[str] = []
        self.eof = False
        self.made.append(self)

    def check(self, name: str) -> None:
        """Fail where that is wanted."""
        if name in self.failures:
            raise WinptyError(self.failures[name])

    def spawn(
        self,
        appname: str,
        cmdline: str | None = None,
        cwd: str | None = None,
        env: str | None = None,
    ) -> bool:
        """Note it."""
        self.check("spawn")
        self.calls.append(("spawn", appname, cmdline, cwd, env))
        self.pid = 4711
        return True

    def read(self, blocking: bool = False) -> str:
        """The next text; an empty one when it has stopped reading."""
        assert blocking
        self.check("read")
        return self.texts.pop(0) if self.texts else ""

    def write(self, to_write: str) -> int:
        """Note it."""
        self.check("write")
        self.calls.append(("write", to_write))
        return len(to_write)

    def set_size(self, cols: int, rows: int) -> None:
        """Note it."""
        self.check("set_size")
        self.calls.append(("set_size", cols, rows))

    def cancel_io(self) -> bool:
        """Note it."""
        self.check("cancel_io")
        self.calls.append(("cancel_io",))
        return True

    def iseof(self) -> bool:
        """Whether it says so."""
        return self.eof


class FakeKernel(ModuleType):
    """``_winapi``: one process, 4711, with the handle 77."""

    def __init__(self) -> None:
        super().__init__("_winapi")
        self.calls: list[tuple[Any, ...]] = []
        self.wait_result = 258  # WAIT_TIMEOUT

    def OpenProcess(self, rights: int, inherit: bool, pid: int) -> int:  # noqa: N802 - its name
        """A handle."""
        self.calls.append(("OpenProcess", rights, inherit, pid))
        return 77

    def WaitForSingleObject(self, handle: int, milliseconds: int) -> int:  # noqa: N802 - its name
        """Whether it has exited."""
        assert (handle, milliseconds) == (77, 0)
        return self.wait_result

    def GetExitCodeProcess(self, handle: int) -> int:  # noqa: N802 - its name
        """As that of a program that crashed: 32 bits without a sign."""
        assert handle == 77
        return 0xC0000005

    def TerminateProcess(self, handle: int, code: int) -> None:  # noqa: N802 - its name
        """Note it."""
        self.calls.append(("TerminateProcess", handle, code))

    def CloseHandle(self, handle: int) -> None:  # noqa: N802 - its name
        """Note it."""
        self.calls.append(("CloseHandle", handle))


@pytest.fixture
def kernel() -> FakeKernel:
    """The kernel."""
    return FakeKernel()


@pytest.fixture
def module(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, loaded as on Windows, where the library is installed."""
    monkeypatch.setattr(FakePTY, "made", [])
    monkeypatch.setattr(FakePTY, "failures", {})
    library = ModuleType("winpty")
    vars(library).update(
        PTY=FakePTY, WinptyError=WinptyError, Backend=SimpleNamespace(ConPTY=0, WinPTY=1)
    )
    monkeypatch.setitem(sys.modules, "winpty", library)
    monkeypatch.setitem(sys.modules, "_winapi", kernel)
    spec = importlib.util.spec_from_file_location(NAME, PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        spec.loader.exec_module(module)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


def opened(module: ModuleType) -> tuple[Any, FakePTY]:
    """A console, and the library's object in it."""
    console = module.open_console(["cmd.exe"], (24, 80), None, {})
    return console, FakePTY.made[-1]


def test_a_console_is_opened_by_conpty_with_a_whole_command_line(
    module: ModuleType, kernel: FakeKernel
) -> None:
    """Columns before rows; and variables as CreateProcess takes them, but for the last NUL."""
    environment = {"A": "1", "=C:": "C:\\x", "Ü": ""}
    console = module.open_console(
        ["C:\\Program Files\\x.exe", 'say "hi"'], (24, 80), "C:\\", environment
    )
    (pty,) = FakePTY.made
    assert (pty.size, pty.backend) == ((80, 24), 0)
    line = '"C:\\Program Files\\x.exe" "say \\"hi\\""'
    assert pty.calls == [("spawn", line, None, "C:\\", "A=1\0=C:=C:\\x\0Ü=\0")]
    assert console.pid == 4711
    assert kernel.calls == [("OpenProcess", 0x101001, False, 4711)]
    assert module.environment_block({}) == "\0"


def test_where_the_library_is_missing_it_is_said_how_to_get_it(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a start that failed: nothing ran."""
    monkeypatch.setitem(sys.modules, "winpty", None)  # has the import fail
    with pytest.raises(SpawnFailed, match="pip install 'pywinpty>=") as caught:
        opened(module)
    assert caught.value.errno == errno.ENOSYS


def test_where_windows_has_no_consoles_that_is_said(module: ModuleType) -> None:
    """Before version 1809."""
    FakePTY.failures["PTY"] = "not implemented"
    with pytest.raises(SpawnFailed, match="no pseudo-console can be had: not implemented"):
        opened(module)


def test_a_failed_start_has_the_errno_that_fits_best(module: ModuleType, tmp_path: Path) -> None:
    """The library tells a text alone."""
    FakePTY.failures["spawn"] = "Das System kann die angegebene Datei nicht finden."
    here = str(tmp_path)
    with pytest.raises(NotADirectoryError) as caught:
        module.open_console([sys.executable], (24, 80), here + "/no", {})
    assert caught.value.filename == here + "/no"
    for argv, number in ((["no-such"], errno.ENOENT), ([sys.executable], errno.EINVAL)):
        with pytest.raises(OSError, match="Das System") as failed:
            module.open_console(argv, (24, 80), here, {"PATH": here})
        assert failed.value.errno == number


@pytest.mark.parametrize(
    ("argv", "cwd", "env"),
    [
        (["a\0b"], None, {}),
        (["a"], "c\0d", {}),
        (["a"], None, {"A": "1\0B=2"}),
        (["a"], None, {"A\0": ""}),
        (["a"], None, {"A=B": ""}),
        (["a"], None, {"": ""}),
    ],
    ids=["argument", "directory", "value", "name", "equals", "empty"],
)
def test_what_would_be_cut_or_misread_is_refused(
    module: ModuleType, argv: list[str], cwd: str | None, env: dict[str, str]
) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match=r"null character|illegal environment variable"):
        module.open_console(argv, (24, 80), cwd, env)
    assert not FakePTY.made


def test_output_is_encoded_and_ends_when_the_library_says_so(module: ModuleType) -> None:
    """By an error, or by nothing to read and its word that there will be no more."""
    console, pty = opened(module)
    pty.texts = ["€", "", "half a pair: \ud800"]
    assert console.read() == "€".encode()
    assert console.read() == b""
    assert console.read() == b"half a pair: ?"
    pty.eof = True
    with pytest.raises(EOFError):
        console.read()
    FakePTY.failures["read"] = "Standard out reached EOF"
    with pytest.raises(EOFError):
        console.read()


def test_calls_go_to_the_library_until_it_was_let_go_of(module: ModuleType) -> None:
    """Its errors, and those after that, are OSErrors; that nothing was being read is none."""
    console, pty = opened(module)
    console.write("hi")
    console.resize(50, 132)
    console.interrupt()
    assert pty.calls[1:] == [("write", "hi"), ("set_size", 132, 50), ("cancel_io",)]
    FakePTY.failures.update(dict.fromkeys(("write", "set_size", "cancel_io"), "broken"))
    console.interrupt()
    for call in (lambda: console.write("x"), lambda: console.resize(1, 1)):
        with pytest.raises(OSError, match="broken"):
            call()
    console.close()
    console.interrupt()
    with pytest.raises(OSError, match="was closed") as caught:
        console.write("x")
    assert caught.value.errno == errno.EPIPE


async def test_the_process_is_watched_by_a_handle_of_our_own(
    module: ModuleType, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed once, also when nobody waits any more."""
    waited: list[int] = []

    async def wait(handle: int) -> None:
        waited.append(handle)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.lowlevel, "WaitForSingleObject", wait, raising=False)
    console, _ = opened(module)
    assert not console.has_exited()
    kernel.wait_result = 0
    assert console.has_exited()
    console.terminate()
    assert await console.wait_exited() == 0xC0000005
    assert waited == [77]
    assert kernel.calls[1:] == [("TerminateProcess", 77, 1), ("CloseHandle", 77)]
    with trio.CancelScope() as scope:
        scope.cancel()
        await console.wait_exited()
    assert scope.cancelled_caught
    assert kernel.calls[3:] == [("CloseHandle", 77)]
