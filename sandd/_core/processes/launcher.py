"""Starting one program with its pipes, or in its terminal: the kernel's part of a spawn, as short as it can be.

Standard library only; it runs in the spawner, which has one thread. posix_spawn(3) needs 0.1 ms less
than `subprocess.Popen` (m), but can't become another user, so that is left to Popen. Neither ever
forks in the way that copies the page tables.

A terminal becomes the controlling one of the session whose leader opens it first (tty_ioctl(4)). So it
is not passed on, as pipes are: the new process, which leads a session by then, opens it by its path.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.forked_launch import launch_forked
from sandd._core.processes.program_search import NOT_HERE, TRY_NEXT, candidates, find

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from sandd._core.processes.spawner_messages import Spawn

    _Actions: TypeAlias = tuple[tuple[Any, ...], ...]
    """What posix_spawn(3) does with files on the way."""

_IN_TERMINAL = b'exec "$@" <>"$0" >&0 2>&0'
"""For the shell: open the terminal, then become the program. Its arguments: the terminal's path, and all of
the command. What Popen starts has no other way to open a file after setsid(2)."""
_SPAWN_OPENS_TOO_EARLY = sys.platform == "darwin"
"""Its posix_spawn opens files before it makes the session (xnu, bsd/kern/kern_exec.c: file actions come before
POSIX_SPAWN_SETSID), so the terminal would be nobody's: no /dev/tty, no Ctrl-C. What a session leader opens
without O_NOCTTY later on is its controlling terminal there too (open2 in bsd/vfs/vfs_syscalls.c). Not run yet."""
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores, and children should not. The spawner ignores nothing else, and blocks nothing."""


def launch(request: Spawn, env: dict[bytes, bytes], descriptors: list[int]) -> int:
    """Start the program in a session of its own, with its pipes and `env`; returns its pid.

    All descriptors of the spawner but 0 to 2 are closed on exec (PEP 446), and those three are
    replaced: so a child gets its pipes and nothing else. (glibc lets it ignore signals 32 and 33, which
    it uses itself and gives handlers when it does.)

    Raises:
        OSError: it can't be started; `filename` is what it failed on. Nothing ran.
        ValueError: a NUL in an argument or "=" in a variable's name.
    """
    if request.checked is not None or request.confined is not None or request.limits is not None:
        return launch_forked(request, env, descriptors)
    if request.terminal:
        return _launch_in_terminal(request, env, descriptors[0])
    pipes = iter(descriptors)
    stdin = next(pipes) if request.stdin else None
    stdout = next(pipes)
    stderr = stdout if request.merge_stderr else next(pipes)
    if request.identity is not None:
        return _launch_by_popen(request, request.argv, env, stdin, stdout, stderr)
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        if stdin is None
        else (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    )
    if request.cwd is None:
        return _search(request, env, actions)
    pid = _spawn_in_directory(request, env, actions)
    if pid is None:
        return _launch_by_popen(request, request.argv, env, stdin, stdout, stderr)
    return pid


def _launch_in_terminal(request: Spawn, env: dict[bytes, bytes], terminal: int) -> int:
    path = os.fsencode(os.ttyname(terminal))
    if request.identity is not None:
        os.fchown(terminal, request.identity[0], -1)  # it was ours, and nobody else may open it
    elif not _SPAWN_OPENS_TOO_EARLY:
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, path, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        )
        if request.cwd is None:
            return _search(request, env, actions)
        pid = _spawn_in_directory(request, env, actions)
        if pid is not None:
            return pid
    # The shell would find what is wrong too late for us: it runs by then. A bad directory is found by Popen.
    if request.cwd is None or os.path.isdir(request.cwd):
        find(request.argv[0], env, request.cwd or b"")
    argv = (b"/bin/sh", b"-c", _IN_TERMINAL, path, *request.argv)
    return _launch_by_popen(request, argv, env, terminal, terminal, terminal)


def _spawn_in_directory(request: Spawn, env: dict[bytes, bytes], actions: _Actions) -> int | None:
    """The pid; None where we would not find back from the directory, so that the child has to go alone."""
    assert request.cwd is not None
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
            return _spawn(program, request, env, actions)
        failure = None
        for path in candidates(program, env):
            try:
                return _spawn(path, request, env, actions)
            except OSError as error:
                if error.errno not in TRY_NEXT:
                    raise
                if error.errno not in NOT_HERE:
                    failure = error
        raise failure or OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    except OSError as error:
        number = error.errno or errno.EINVAL
        raise OSError(number, os.strerror(number), os.fsdecode(program)) from error


def _spawn(path: bytes, request: Spawn, env: dict[bytes, bytes], actions: _Actions) -> int:
    return os.posix_spawn(
        path, request.argv, env, file_actions=actions, setsid=True, setsigdef=_RESTORED
    )


def _launch_by_popen(
    request: Spawn,
    argv: tuple[bytes, ...],
    env: dict[bytes, bytes],
    stdin: int | None,
    stdout: int,
    stderr: int,
) -> int:
    uid, gid, groups = request.identity or (None, None, None)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=request.cwd,
        user=uid,
        group=gid,
        extra_groups=groups,
        close_fds=True,
        restore_signals=True,
        start_new_session=True,
    )
    # Popen objects that go away unfinished are kept in a list and waited for whenever another one is
    # made: that would take an exit status, and with it the leader's number, from under us. A Popen
    # that believes to have a return code does nothing of that.
    process.returncode = 0
    return process.pid
