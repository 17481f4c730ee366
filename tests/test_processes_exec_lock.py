"""Who is under the exec lock executes what its list has, by whatever way it tries, and so do its children.

The kernel keeps it, so this runs where there is one that can; what is said where there is none is tested anywhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import sys
import textwrap

import pytest
from process_tools import fork_among_threads, linux_only, root_only
from trusted_files import trusted_directory, write_program

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from typing import TYPE_CHECKING

from sandd._core.policy.executables import Owner, open_executable
from sandd._core.policy.permits import Permit
from sandd._core.processes import exec_lock
from sandd._core.processes.forked_launch import launch_forked
from sandd._core.processes.spawner_messages import Spawn

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = linux_only
needs_lock = pytest.mark.skipif(
    exec_lock.unavailable() is not None, reason=f"no exec lock here: {exec_lock.unavailable()}"
)
US = Owner(os.geteuid(), {os.getegid()})
SYSTEM_PYTHON = os.path.realpath("/usr/bin/python3")
needs_python = pytest.mark.skipif(
    not os.path.exists(SYSTEM_PYTHON), reason="a Python that only root may write"
)
NOBODY = (65534, 65534, (65534,))


def run(
    *argv: str,
    may_start: tuple[str, ...] | None = (),
    by_path: bool = False,
    cwd: Path | None = None,
    identity: tuple[int, int, tuple[int, ...]] | None = None,
) -> tuple[int, str]:
    """The exit code of a program, and all it has printed. `may_start` None: there is no lock."""
    with Permit() as permit:
        program = open_executable(argv[0], US, hold=permit.hold)
        ruleset = None
        if may_start is not None:
            files = [program.descriptor, *program.needed]
            for each in may_start:
                other = open_executable(each, US, hold=permit.hold)
                files += [other.descriptor, *other.needed]
            ruleset = permit.hold(exec_lock.open_ruleset(files))
        directory = None
        if cwd is not None:
            directory = permit.hold(os.open(cwd, os.O_RDONLY | os.O_DIRECTORY))
        executable = None if by_path or program.is_script else program.descriptor
        reading, writing = os.pipe()
        opened = [each for each in (executable, directory, ruleset) if each is not None]
        request = Spawn(
            job=1,
            argv=tuple(map(os.fsencode, argv)),
            env={},
            marker=b"m",
            cwd=None if cwd is None else os.fsencode(cwd),
            identity=identity,
            stdin=False,
            merge_stderr=True,
            terminal=False,
            base=None,
            checked=(
                *(os.fsencode(argv[0]), executable is not None, directory is not None),
                *(ruleset is not None, not may_start),
            ),
        )
        try:
            pid = launch_forked(
                request,
                {b"PATH": b"/usr/bin:/bin"},
                [writing, *opened],
                fork=fork_among_threads,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with os.fdopen(reading) as output:
            text = output.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def python(code: str, *arguments: str, may_start: tuple[str, ...] | None = ()) -> str:
    """What a script prints: it is the worst that could be under the lock."""
    script = textwrap.dedent(code)
    status, text = run(SYSTEM_PYTHON, "-I", "-c", script, *arguments, may_start=may_start)
    assert status == 0, text
    return text.strip()


ATTEMPT = """
import ctypes, os, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
target = sys.argv[1]
path = target.encode()
argv = (ctypes.c_char_p * 2)(path, None)
env = (ctypes.c_char_p * 1)(None)
def fork_then(act):
    pid = os.fork()
    if pid == 0:
        try: act()
        except OSError as error: os._exit(100 + error.errno)
        os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code >= 100: raise OSError(code - 100, "")
    print("ran")
def memfd():
    fd = os.memfd_create("x")
    os.write(fd, open(target, "rb").read())
    os.execv("/proc/self/fd/%d" % fd, ["x"])
def secret(): call(447, 0)
def by_thread():
    problems = []
    def act():
        try: subprocess.run([target])
        except OSError as error: problems.append(error)
    thread = threading.Thread(target=act); thread.start(); thread.join()
    if problems: raise problems[0]
    print("ran")
def new_user_namespace():
    libc.unshare(0x10000000)
    os.execv(target, [target])
attempts = {
    "execve": lambda: os.execv(target, [target]),
    "fork": lambda: fork_then(lambda: os.execv(target, [target])),
    "posix_spawn": lambda: os.posix_spawn(target, [target], {}),
    "subprocess": lambda: (subprocess.run([target]), print("ran")),
    "thread": by_thread,
    "fexecve": lambda: os.execve(os.open(target, os.O_RDONLY), ["x"], {}),
    "execveat": lambda: call(NUMBERS[0], -100, path, argv, env, 0),
    "proc-fd": lambda: os.execv("/proc/self/fd/%d" % os.open(target, os.O_RDONLY), ["x"]),
    "proc-root": lambda: os.execv("/proc/self/root" + target, ["x"]),
    "memfd": memfd,
    "memfd_secret": secret,
    "namespace": new_user_namespace,
    "self": lambda: fork_then(lambda: os.execv("/proc/self/exe", ["python", "-c", "print('ran')"])),
    "self-at": lambda: fork_then(lambda: call(NUMBERS[0], -100, b"/proc/self/exe", argv, env, 0)),
    "other-abi": lambda: call(NUMBERS[1], path, argv, env),
}
try:
    attempts[sys.argv[2]]()
except OSError as error:
    print("denied" if error.errno in (1, 13) else error)
"""
NUMBERS = {"x86_64": (322, 0x40000000 + 520), "aarch64": (281, 221)}
WAYS = [
    *("execve", "fork", "posix_spawn", "subprocess", "thread", "fexecve", "execveat", "proc-fd"),
    *("proc-root", "memfd", "memfd_secret", "namespace", "self", "self-at", "other-abi"),
]


def attempt(way: str, target: str, *, may_start: tuple[str, ...] | None = ()) -> str:
    """What becomes of an attempt to execute something."""
    numbers = f"NUMBERS = {NUMBERS[os.uname().machine]}\n"
    return python(numbers + ATTEMPT, target, way, may_start=may_start)


@needs_lock
@needs_python
@pytest.mark.parametrize("way", WAYS)
def test_alone_it_starts_nothing(way: str) -> None:
    """Not even itself."""
    assert attempt(way, "/usr/bin/id") == "denied"


@needs_lock
@needs_python
@pytest.mark.parametrize("way", [way for way in WAYS if way != "self"])
def test_with_a_list_it_starts_nothing_else(way: str) -> None:
    """By no way."""
    assert attempt(way, "/usr/bin/id", may_start=("/usr/bin/true",)) == "denied"


@needs_python
@pytest.mark.parametrize("way", ["execve", "fork", "subprocess", "proc-fd", "fexecve", "memfd"])
def test_without_the_lock_it_starts_anything(way: str) -> None:
    """So these attempts are such that succeed."""
    assert attempt(way, "/usr/bin/id", may_start=None) != "denied"


@needs_lock
@needs_python
@pytest.mark.parametrize("way", ["execve", "fork", "subprocess", "proc-fd"])
def test_with_a_list_it_starts_what_is_on_it(way: str) -> None:
    """And that may be anything, under the same lock."""
    assert attempt(way, "/usr/bin/true", may_start=("/usr/bin/true",)) in ("", "ran")


@needs_lock
@needs_python
@pytest.mark.parametrize("how", ["copy", "symlink", "hardlink", "renamed", "script"])
def test_no_other_name_makes_it_another_program(how: str, tmp_path: Path) -> None:
    """A list is of files, not of names; what is written next to it is not on it."""
    target = tmp_path / "true"
    match how:
        case "copy" | "renamed":
            shutil.copy("/usr/bin/id", target)
        case "symlink":
            target.symlink_to("/usr/bin/id")
        case "hardlink":
            shutil.copy("/usr/bin/id", tmp_path / "id")
            target.hardlink_to(tmp_path / "id")
        case "script":
            target.write_text("#!/usr/bin/true\n")
            target.chmod(0o755)
    assert attempt("subprocess", str(target), may_start=("/usr/bin/true",)) == "denied"


@needs_lock
@needs_python
def test_a_list_is_open_to_the_loader(tmp_path: Path) -> None:
    """What the module says: it is why a program that is alone may execute nothing at all."""
    loader = "/lib64/ld-linux-x86-64.so.2"
    if not os.path.exists(loader):
        pytest.skip("another architecture")
    code = f"import os; os.execv({loader!r}, ['x', '/usr/bin/id', '-u'])"
    assert python(code, may_start=("/usr/bin/true",)) == str(os.geteuid())
    status, text = run(SYSTEM_PYTHON, "-I", "-c", code)
    assert status != 0
    assert "not permitted" in text


@needs_lock
@needs_python
def test_files_may_be_renamed_under_the_lock(tmp_path: Path) -> None:
    """Between directories, too, which Landlock forbids unless it is told."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    code = "import os, sys; os.rename(sys.argv[1] + '/a/x', sys.argv[1] + '/b/y'); print('done')"
    assert python(code, str(tmp_path)) == "done"


@needs_lock
@pytest.mark.parametrize("by_path", [False, True], ids=["descriptor", "path"])
def test_it_executes_itself_once(by_path: bool) -> None:
    """The execution that the filter lets through, by either of the two system calls."""
    assert run("/usr/bin/id", "-u", by_path=by_path) == (0, f"{os.geteuid()}\n")


@needs_lock
@root_only
def test_a_script_is_run_by_its_interpreter() -> None:
    """Which needs no place on the list of its own, and starts nothing either."""
    with trusted_directory() as directory:
        script = write_program(directory / "script", '#!/bin/sh -e\necho "$1" "$0"; id; echo no\n')
        status, text = run(str(script), "one")
        assert status != 0
        assert text.startswith(f"one {script}\n")
        assert "Operation not permitted" in text or "not permitted" in text
        assert "no\n" not in text


@needs_lock
@root_only
def test_the_lock_holds_another_user() -> None:
    """Who has lost all privileges before."""
    assert run("/usr/bin/id", "-u", identity=NOBODY) == (0, "65534\n")


def test_what_goes_wrong_is_told() -> None:
    """By what it failed on; nothing is left of the attempt."""
    with pytest.raises(ValueError, match="null byte"):
        run("/usr/bin/true", "a\0b", may_start=None)
    if os.geteuid() == 0:
        with trusted_directory() as directory:
            nothing = write_program(directory / "x", b"nothing")
            with pytest.raises(OSError, match="x") as caught:
                run(str(nothing), may_start=None)
            assert (caught.value.errno, caught.value.filename) == (errno.ENOEXEC, str(nothing))


def test_where_there_is_no_lock_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older kernel, one without Landlock, another processor."""

    def version(number: int) -> None:
        monkeypatch.setattr(exec_lock.landlock, "version", lambda: number)

    version(1)
    assert "version 1" in (exec_lock.unavailable() or "")

    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(exec_lock.landlock, "version", missing)
    assert "no Landlock" in (exec_lock.unavailable() or "")
    monkeypatch.setattr(exec_lock, "_machine", lambda: "riscv64")
    assert "riscv64" in (exec_lock.unavailable() or "")


def test_the_filter_kills_other_architectures() -> None:
    """Whose system calls have other numbers: it reads the architecture before anything else."""
    execution = exec_lock.Execution(b"/bin/true", None, [b"true"], {})
    program = execution._filter(is_alone=True)
    first, second, third = struct.iter_unpack("=HBBI", program[:24])
    assert (first[3], third[3]) == (4, 0x80000000)
    assert second[3] == {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
    assert len(program) % 8 == 0
