"""Starting one program with its pipes: the kernel's part of a spawn, as short as it can be.

Standard library only; it runs in the spawner, which has one thread. posix_spawn(3) needs 0.1 ms less
than `subprocess.Popen` (m), but can't become another user, so that is left to Popen. Neither ever
forks in the way that copies the page tables.
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

if TYPE_CHECKING:
    from sandd._core.processes.spawner_messages import Spawn

_NOT_HERE = (errno.ENOENT, errno.ENOTDIR)
_TRY_NEXT = (*_NOT_HERE, errno.EACCES)
"""Errors after which execvp(3) goes on to the next directory of PATH."""
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
    pipes = iter(descriptors)
    stdin = next(pipes) if request.stdin else None
    stdout = next(pipes)
    stderr = stdout if request.merge_stderr else next(pipes)
    if request.identity is not None:
        return _launch_by_popen(request, env, stdin, stdout, stderr)
    if request.cwd is None:
        return _search(request, env, stdin, stdout, stderr)
    try:
        home = os.open(".", os.O_RDONLY)
    except OSError:
        # We would not find back, as after "sudo -u" in a home that is root's: the child has to go alone.
        return _launch_by_popen(request, env, stdin, stdout, stderr)
    try:
        os.chdir(request.cwd)
        try:
            return _search(request, env, stdin, stdout, stderr)
        finally:
            os.fchdir(home)
    finally:
        os.close(home)


def _search(
    request: Spawn, env: dict[bytes, bytes], stdin: int | None, stdout: int, stderr: int
) -> int:
    """As execvp(3), with the PATH that the program will have."""
    program = request.argv[0]
    try:
        if b"/" in program:
            return _spawn(program, request.argv, env, stdin, stdout, stderr)
        failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        for directory in env.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
            path = os.path.join(directory, program)
            # Looked for before it is tried: a spawn that fails costs 0.1 ms.
            if not os.path.lexists(path):
                continue
            try:
                return _spawn(path, request.argv, env, stdin, stdout, stderr)
            except OSError as error:
                if error.errno not in _TRY_NEXT:
                    raise
                if error.errno not in _NOT_HERE:
                    failure = error
        raise failure
    except OSError as error:
        number = error.errno or errno.EINVAL
        raise OSError(number, os.strerror(number), os.fsdecode(program)) from error


def _spawn(
    path: bytes,
    argv: tuple[bytes, ...],
    env: dict[bytes, bytes],
    stdin: int | None,
    stdout: int,
    stderr: int,
) -> int:
    return os.posix_spawn(
        path,
        argv,
        env,
        file_actions=(
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
            if stdin is None
            else (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ),
        setsid=True,
        setsigdef=_RESTORED,
    )


def _launch_by_popen(
    request: Spawn, env: dict[bytes, bytes], stdin: int | None, stdout: int, stderr: int
) -> int:
    uid, gid, groups = request.identity or (None, None, None)
    process = subprocess.Popen(
        request.argv,
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
