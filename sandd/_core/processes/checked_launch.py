"""Starting a program that a policy has checked: that very file, in that very directory, under the lock if there is one.

Standard library only; it runs in the spawner, which has one thread and so may fork. What posix_spawn(3) can't do
is done here by hand, in the child: change to a directory by its descriptor, lock itself in, execute a file by its
descriptor. That takes 2 ms more (m), most of it for the pages that a fork has copied when either side writes.

In the child nothing is allocated that could fail in a way that is not told: whatever goes wrong there comes back
through a pipe that the execution closes.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.exec_lock import Execution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandd._core.processes.spawner_messages import Spawn

_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""As in `launcher`."""
_FAILURE = struct.Struct("=iB")
"""Errno, and on the way to what."""
_IN_DIRECTORY, _AS_USER, _AS_PROGRAM = 0, 1, 2


class Checked(NamedTuple):
    """Descriptors that came with a request, behind those of its pipes."""

    executable: int | None
    directory: int | None
    ruleset: int | None


def take_descriptors(request: Spawn, descriptors: list[int]) -> tuple[list[int], Checked]:
    """Those of the pipes, and what the check has opened."""
    assert request.checked is not None
    pipes = list(descriptors)
    found: list[int | None] = []
    for is_there in reversed(request.checked[1:4]):
        found.append(pipes.pop() if is_there else None)
    ruleset, directory, executable = found
    return pipes, Checked(executable, directory, ruleset)


def launch_checked(request: Spawn, env: dict[bytes, bytes], descriptors: list[int]) -> int:
    """As `launcher.launch`, for a request that a policy has checked."""
    assert request.checked is not None
    program, *_, is_alone = request.checked
    pipes, checked = take_descriptors(request, descriptors)
    become: Callable[[], None]
    if sys.platform == "linux":
        execution = Execution(program, checked.executable, request.argv, env)

        def become() -> None:
            if checked.ruleset is not None:
                execution.lock(checked.ruleset, is_alone=is_alone)
            execution()
    else:
        # Nothing executes a descriptor there; and nothing locks.
        def become() -> None:
            os.execve(program, request.argv, env)  # noqa: S606 - no shell is what is wanted

    terminal = os.fsencode(os.ttyname(pipes[0])) if request.terminal else None
    if terminal is not None and request.identity is not None:
        os.fchown(pipes[0], request.identity[0], -1)  # it was ours, and nobody else may open it
    told, tell = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _be_the_child(request, pipes, terminal, checked.directory, become, tell)
        os.close(tell)
        tell = -1
        failure = os.read(told, _FAILURE.size)
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
    if not failure:
        return pid
    os.waitpid(pid, 0)
    number, stage = _FAILURE.unpack(failure)
    name = {_IN_DIRECTORY: request.cwd, _AS_PROGRAM: program}.get(stage)
    raise OSError(number, os.strerror(number), None if name is None else os.fsdecode(name))


def _be_the_child(
    request: Spawn,
    pipes: Sequence[int],
    terminal: bytes | None,
    directory: int | None,
    become: Callable[[], None],
    tell: int,
) -> None:
    stage, number = _AS_PROGRAM, errno.EIO
    try:
        os.setsid()
        for each in _RESTORED:
            signal.signal(each, signal.SIG_DFL)
        _take_standard_streams(request, pipes, terminal)
        if directory is not None:
            stage = _IN_DIRECTORY
            os.fchdir(directory)
        if request.identity is not None:
            stage = _AS_USER
            uid, gid, groups = request.identity
            os.setgroups(groups)
            os.setgid(gid)  # of root, all three ids
            os.setuid(uid)
        stage = _AS_PROGRAM
        become()
    except OSError as error:
        number = error.errno or number
    finally:
        # Whatever else it was, no copy of the spawner goes on from here.
        os.write(tell, _FAILURE.pack(number, stage))
        os._exit(127)


def _take_standard_streams(request: Spawn, pipes: Sequence[int], terminal: bytes | None) -> None:
    if terminal is not None:
        # By its path: a session leader's first terminal becomes the controlling one (tty_ioctl(4)).
        opened = os.open(terminal, os.O_RDWR)
        streams = [opened, opened, opened]
    else:
        rest = iter(pipes)
        stdin = next(rest) if request.stdin else os.open(os.devnull, os.O_RDONLY)
        stdout = next(rest)
        streams = [stdin, stdout, stdout if request.merge_stderr else next(rest)]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
