"""The exec lock: what a job may execute, for itself and all that descends from it, for good. Linux only.

Standard library only; the spawner applies it in a child, between fork and exec. Two parts of the kernel keep it:

    Landlock    executes the files of a list, and no others: by inode, whatever path leads there (landlock(7))
    seccomp     no memfd_create(2), memfd_secret(2), execveat(2): those make or run programs that are no files;
                and where nothing but the first program is allowed, no execve(2) either

A dynamic program needs its loader to be executable, and the loader, executed by hand, runs any file there is:
mapping one is no execution to Landlock. So a list of more than one program is open to ``ld.so FILE``, and the lock
that holds is the one without any. There the filter lets that execution through whose arguments are at *our*
addresses, which whoever comes after it doesn't know and, without running code already, can't use.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import landlock
from sandd._core.processes.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

MIN_LANDLOCK: Final = 2
"""The first version that can be told to allow renaming between directories, which the first always forbids."""


class _Machine(NamedTuple):
    """Numbers of one architecture: linux/audit.h, and its table of system calls."""

    audit: int
    execve: int
    execveat: int
    memfd_create: int
    memfd_secret: int


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 59, 322, 319, 447),
    "aarch64": _Machine(0xC00000B7, 221, 281, 279, 447),
}
_X32_BIT: Final = 0x40000000
"""Set in the numbers of another ABI of x86_64, which has calls of its own."""
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL: Final = 0x80000000
"""The whole process: a program of another architecture, whose calls this filter can't read."""
_AT_EMPTY_PATH: Final = 0x1000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data."""
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_IF_ATLEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K


class LockError(OSError):
    """This kernel can't hold the lock."""


def _machine() -> str:
    return os.uname().machine  # the module platform would be a twentieth of a spawner's start


def unavailable() -> str | None:
    """Why there is no lock on this machine; None: there is one."""
    if sys.platform != "linux":
        return f"{sys.platform} has none"
    if _machine() not in _MACHINES or sys.maxsize < 2**32:
        return f"it is not known for {_machine()}"
    try:
        version = landlock.version()
    except OSError as error:
        return f"the kernel has no Landlock ({error.strerror})"
    if version < MIN_LANDLOCK:
        return f"the kernel's Landlock is version {version}; it takes {MIN_LANDLOCK} (Linux 5.19)"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            actions = file.read().split()
    except OSError:
        actions = []
    return None if "errno" in actions else "the kernel has no seccomp filters"


def open_ruleset(files: Iterable[int]) -> int:
    """A descriptor of the list of files that may be executed; of each there is a descriptor in `files`."""
    ruleset = landlock.open_ruleset(access=landlock.EXECUTE | landlock.REFER)
    try:
        top = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            landlock.allow(ruleset, landlock.REFER, top)
        finally:
            os.close(top)
        for file in files:
            landlock.allow(ruleset, landlock.EXECUTE, file)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


class Execution:
    """One execve(2) or execveat(2), prepared: its arguments stay where they are, and a filter may know them."""

    def __init__(
        self, path: bytes, descriptor: int | None, argv: Iterable[bytes], env: dict[bytes, bytes]
    ) -> None:
        """Of the file that `descriptor` is open for; without one, of what is at `path`.

        Raises:
            ValueError: a NUL in an argument or "=" in a variable's name.
            LockError: it is not known how to do that on this machine.
        """
        import ctypes  # late: it takes the spawner 5 ms, and most never need it

        machine = _MACHINES.get(_machine())
        if machine is None:
            raise LockError(errno.ENOSYS, f"not known for {_machine()}")
        self._machine = machine
        self._descriptor = descriptor
        arguments = [*argv]
        variables = [b"%s=%s" % each for each in env.items()]
        if any(b"\0" in each for each in (path, *arguments, *variables)):
            raise ValueError("embedded null byte")
        if any(not name or b"=" in name for name in env):
            raise ValueError("illegal environment variable name")
        self._path = ctypes.create_string_buffer(b"" if descriptor is not None else path)
        self._argv = (ctypes.c_char_p * (len(arguments) + 1))(*arguments, None)
        self._env = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
        self._addresses = (ctypes.addressof(self._path), ctypes.addressof(self._argv))

    def lock(self, ruleset: int, *, is_alone: bool) -> None:
        """Confine this process, and all that it ever starts; `is_alone`: to this execution and no other."""
        import ctypes

        landlock.restrict(ruleset)
        program = ctypes.create_string_buffer(self._filter(is_alone=is_alone))
        header = struct.pack("@HP", (len(program) - 1) // 8, ctypes.addressof(program))
        landlock.control_process(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header)

    def __call__(self) -> None:
        """Become the program. OSError if that fails; else nobody is here any more."""
        if self._descriptor is None:
            landlock.call(self._machine.execve, self._path, self._argv, self._env)
        else:
            number = self._machine.execveat
            landlock.call(
                number, self._descriptor, self._path, self._argv, self._env, _AT_EMPTY_PATH
            )

    def _filter(self, *, is_alone: bool) -> bytes:
        """The program that the kernel runs at each call: struct sock_filter, one after the other (seccomp(2))."""
        machine = self._machine
        denied = [machine.memfd_create, machine.memfd_secret]
        guarded: int | None = None
        if self._descriptor is not None:
            guarded = machine.execveat
            denied += [machine.execve] * is_alone
        else:
            guarded = machine.execve if is_alone else None
            denied += [machine.execveat]
        program = [
            _load(_AT_ARCHITECTURE),
            *_unless(_JUMP_IF_EQUAL, machine.audit, _KILL),
            _load(_AT_NUMBER),
        ]
        if _machine() == "x86_64":
            program += [_jump(_JUMP_IF_ATLEAST, _X32_BIT, 0, 1), _return(_ERRNO | errno.EPERM)]
        for number in denied:
            program += [_jump(_JUMP_IF_EQUAL, number, 0, 1), _return(_ERRNO | errno.EPERM)]
        if guarded is not None:
            first = _AT_ARGUMENTS + 8 * (self._descriptor is not None)
            checks: list[bytes] = []
            for index, address in enumerate(self._addresses):
                for half in (0, 1):  # little endian, as both machines are
                    checks.append(_load(first + 8 * index + 4 * half))
                    word = address >> (32 * half) & 0xFFFFFFFF
                    checks += _unless(_JUMP_IF_EQUAL, word, _ERRNO | errno.EPERM)
            program += [_jump(_JUMP_IF_EQUAL, guarded, 0, len(checks)), *checks]
        return b"".join([*program, _return(_ALLOW)])


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _load(offset: int) -> bytes:
    return _instruction(0x20, offset)  # BPF_LD | BPF_W | BPF_ABS


def _jump(code: int, value: int, yes: int, no: int) -> bytes:
    return _instruction(code, value, yes, no)


def _return(action: int) -> bytes:
    return _instruction(0x06, action)  # BPF_RET | BPF_K


def _unless(code: int, value: int, action: int) -> list[bytes]:
    return [_jump(code, value, 1, 0), _return(action)]
