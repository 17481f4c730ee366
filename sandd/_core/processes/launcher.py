"""Starting one program with its pipes, or in its terminal: the kernel's part of a spawn, as short as it can be.

Standard library only; it runs in the spawner, which has one thread. posix_spawn(3) never forks in the way that copies
the page tables, but can't become another user: what it can't do is left to a fork of our own (`forked_launch`).

A terminal becomes the controlling one of the session whose leader opens it first (tty_ioctl(4)). So it
is not passed on, as pipes are: the new process, which leads a session by then, opens it by its path.
"""

from __future__ import annotations

import errno
import os
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.forked_launch import RESTORED_SIGNALS, launch_forked
from sandd._core.processes.program_search import NOT_HERE, TRY_NEXT, candidates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from sandd._core.processes.spawner_messages import Spawn

    _Actions: TypeAlias = tuple[tuple[Any, ...], ...]
    """What posix_spawn(3) does with files on the way."""

_SPAWN_OPENS_TOO_EARLY = sys.platform == "darwin"
"""Its posix_spawn opens files before it makes the session (xnu, bsd/kern/kern_exec.c: file actions come before
POSIX_SPAWN_SETSID), so the terminal would be nobody's: no /dev/tty, no Ctrl-C. What a session leader opens
without O_NOCTTY later on is its controlling terminal there too (open2 in bsd/vfs/vfs_syscalls.c). Not run yet."""


def launch(request: Spawn, env: dict[bytes, bytes], descriptors: list[int]) -> int:
    """Start the program in a session of its own, with its pipes and `env`; returns its pid.

    All descriptors of the spawner but 0 to 2 are closed on exec (PEP 446), and those three are
    replaced: so a child gets its pipes and nothing else. (glibc lets it ignore signals 32 and 33, which
    it uses itself and gives handlers when it does.)

    Raises:
        OSError: it can't be started; `filename` is what it failed on. Nothing ran.
        ValueError: a NUL in an argument or "=" in a variable's name.
    """
    pid = _spawn(request, env, descriptors) if _can_be_spawned(request) else None
    return launch_forked(request, env, descriptors) if pid is None else pid


def _can_be_spawned(request: Spawn) -> bool:
    return (
        request.checked is None
        and request.confined is None
        and request.limits is None
        and request.identity is None
        and not (request.terminal and _SPAWN_OPENS_TOO_EARLY)
    )


def _actions(request: Spawn, descriptors: list[int]) -> _Actions:
    if request.terminal:
        path = os.ttyname(descriptors[0])
        return (
            (os.POSIX_SPAWN_OPEN, 0, path, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        )
    pipes = iter(descriptors)
    stdin = next(pipes) if request.stdin else None
    stdout = next(pipes)
    stderr = stdout if request.merge_stderr else next(pipes)
    return (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        if stdin is None
        else (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    )


def _spawn(request: Spawn, env: dict[bytes, bytes], descriptors: list[int]) -> int | None:
    """The pid; None where we would not find back from the directory, so that the child has to go alone."""
    actions = _actions(request, descriptors)
    if request.cwd is None:
        return _search(request, env, actions)
    try:
        home = os.open(".", os.O_RDONLY)
    except OSError:
        return None  # as after "sudo -u" in a home that is root's
    try:
        os.chdir(request.cwd)
        try:
            return _search(request, env, actions)
        finally:
            os.fchdir(home)
    finally:
        os.close(home)


def _search(request: Spawn, env: dict[bytes, bytes], actions: _Actions) -> int:
    """As execvp(3), with the PATH that the program will have."""
    program = request.argv[0]
    try:
        if b"/" in program:  # as in most shell commands
            return _spawn_file(program, request, env, actions)
        failure = None
        for path in candidates(program, env):
            try:
                return _spawn_file(path, request, env, actions)
            except OSError as error:
                if error.errno not in TRY_NEXT:
                    raise
                if error.errno not in NOT_HERE:
                    failure = error
        raise failure or OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    except OSError as error:
        number = error.errno or errno.EINVAL
        raise OSError(number, os.strerror(number), os.fsdecode(program)) from error


def _spawn_file(path: bytes, request: Spawn, env: dict[bytes, bytes], actions: _Actions) -> int:
    return os.posix_spawn(
        path, request.argv, env, file_actions=actions, setsid=True, setsigdef=RESTORED_SIGNALS
    )
