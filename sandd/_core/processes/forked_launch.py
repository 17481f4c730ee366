"""Starting one program by a fork of our own: what posix_spawn(3) can't do is done in the child, step by step.

Standard library only; it runs in the spawner, which has one thread and so may fork. That takes 2 ms more (m), most of
it for the pages that a fork has copied when either side writes. The steps have a fixed order, since each takes away
what a later one could do without it:

    session      a new one, with default signals and its standard streams; its terminal, if it has one
    limits       of the process: see `child_limits`. It is in its control group by then, as it is born there
    directory    that a policy has checked, by its descriptor; or by its path
    user         groups, then gid, then uid; behind that it is root's no more. Of a confined job the umask, too
    directory    of a confined job, by its path: so it is the user who enters it
    confinement  no new privileges, and Landlock: see `sandd._core.isolation`
    lock         what may be executed: see `exec_lock`
    execution    of what a policy has checked, by its descriptor; or of what the name leads to, as execvp(3)

In the child nothing is allocated that could fail in a way that is not told: whatever goes wrong there comes back
through a pipe that the execution closes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import child_limits, landlock, program_search, quick_fork
from sandd._core.processes.exec_lock import Execution
from sandd._core.processes.named_tuples import NamedTuple
from sandd._core.processes.spawner_messages import ProcessLimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from sandd._core.processes.spawner_messages import Spawn

RESTORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores, and children should not. The spawner ignores nothing else, and blocks nothing."""
_FAILURE = struct.Struct("=iB")
"""Errno, and on the way to what."""
_IN_DIRECTORY, _AS_USER, _CONFINED, _AS_PROGRAM, _LIMITED = range(5)
_PRIVATE_UMASK = 0o077
"""Of a confined job: what it makes is its user's alone, wherever that is."""
_KEPT_SIGNALS = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})
"""What a wrapper doesn't ignore: the first two can't be, and by the third it hears of its program's end."""


class ConfinementError(OSError):
    """A job can't be kept within what it is to be kept within. Nothing ran; the text is for people."""


class LimitError(OSError):
    """A job can't be held to its limits. Nothing ran; the text is for people."""


class Opened(NamedTuple):
    """Descriptors that came with a request, behind those of its pipes, in this order."""

    executable: int | None
    directory: int | None
    lock: int | None
    confinement: int | None


def take_descriptors(request: Spawn, descriptors: list[int]) -> tuple[list[int], Opened]:
    """Those of the pipes, and what was opened for this program."""
    pipes = list(descriptors)
    checked = (False, False, False) if request.checked is None else request.checked[1:4]
    are_there = (*checked, request.confined is not None and request.confined[0])
    found: list[int | None] = [pipes.pop() if there else None for there in reversed(are_there)]
    return pipes, Opened(*reversed(found))


def launch_forked(
    request: Spawn,
    env: dict[bytes, bytes],
    descriptors: list[int],
    *,
    fork: Callable[[], int] = quick_fork.fork,
    spares_child: bool = False,
) -> int:
    """As `launcher.launch`, for whatever request: one for another user, or that a policy has checked, or that is to be
    confined or limited.

    Args:
        fork: as os.fork; the child need not be ours.
        spares_child: we have nothing to lose, and do ourselves what a child inherits: our signals are as it is to
            have them, and our streams and directory become its. Each page that a child writes to costs 2 us (m).
    """
    pipes, opened = take_descriptors(request, descriptors)
    if request.checked is None:
        program = request.argv[0]
        become = _becoming_what_is_found(request, env)
    else:
        program = request.checked[0]
        become = _becoming_what_was_checked(request.checked, request.argv, env, opened)
    if request.confined is not None and sys.platform == "linux":
        landlock.prepare()
    terminal = os.fsencode(os.ttyname(pipes[0])) if request.terminal else None
    if terminal is not None and request.identity is not None:
        os.fchown(pipes[0], request.identity[0], -1)  # it was ours, and nobody else may open it
    is_ready = spares_child and terminal is None
    if is_ready:
        _take_standard_streams(request, pipes, None)
        if request.checked is None and request.confined is None and request.identity is None:
            if request.cwd is not None:
                os.chdir(request.cwd)
            return _launch_by_little(request, program_search.find(program, env), env, fork)

    def be_the_child(tell: int) -> NoReturn:
        _be_the_child(request, pipes, terminal, opened, become, tell, is_ready=is_ready)

    return _fork_off(request, program, be_the_child, fork)


def _fork_off(
    request: Spawn, program: bytes, be_the_child: Callable[[int], NoReturn], fork: Callable[[], int]
) -> int:
    """The pid of a child that executes its program by now; what goes wrong there it writes to what it is given."""
    told, tell = os.pipe()
    try:
        pid = fork()
        if pid == 0:
            be_the_child(tell)
        os.close(tell)
        tell = -1
        failure = os.read(told, _FAILURE.size)
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
    if not failure:
        return pid
    with contextlib.suppress(ChildProcessError):  # it is another's, who will
        os.waitpid(pid, 0)
    _raise_failure(request, program, failure)


def _launch_by_little(
    request: Spawn, path: bytes, env: dict[bytes, bytes], fork: Callable[[], int]
) -> int:
    """Of all the steps those that are left where nothing is checked or confined, and we are as the child is to be.

    It is the same as the rest would do, in half the pages.
    """
    limits = None if request.limits is None else ProcessLimits(*request.limits)

    def be_the_child(tell: int) -> NoReturn:
        stage, number = _LIMITED, errno.EIO
        try:
            os.setsid()
            if limits is not None:
                child_limits.apply(limits)
            stage = _AS_PROGRAM
            os.execve(path, request.argv, env)  # noqa: S606 - no shell is what is wanted
        except OSError as error:
            number = error.errno or number
        finally:
            os.write(tell, _FAILURE.pack(number, stage))
            os._exit(127)

    return _fork_off(request, request.argv[0], be_the_child, fork)


def _raise_failure(request: Spawn, program: bytes, failure: bytes) -> NoReturn:
    number, stage = _FAILURE.unpack(failure)
    if stage == _CONFINED:
        raise ConfinementError(number, f"it can't be confined: {os.strerror(number)}", "Landlock")
    if stage == _LIMITED:
        raise LimitError(number, f"its limits can't be set: {os.strerror(number)}")
    name = {_IN_DIRECTORY: request.cwd, _AS_PROGRAM: program}.get(stage)
    raise OSError(number, os.strerror(number), None if name is None else os.fsdecode(name))


def _becoming_what_was_checked(
    checked: tuple[bytes, bool, bool, bool, bool],
    argv: tuple[bytes, ...],
    env: dict[bytes, bytes],
    opened: Opened,
) -> Callable[[], None]:
    """What makes of a child the very program that was checked, under its lock."""
    program, *_, is_alone = checked
    if sys.platform == "linux":
        execution = Execution(program, opened.executable, argv, env)

        def become() -> None:
            if opened.lock is not None:
                execution.lock(opened.lock, is_alone=is_alone)
            execution()
    else:
        # Nothing executes a descriptor there; and nothing locks.
        def become() -> None:
            os.execve(program, argv, env)  # noqa: S606 - no shell is what is wanted

    return become


def _becoming_what_is_found(request: Spawn, env: dict[bytes, bytes]) -> Callable[[], None]:
    """What makes of a child the program that its name leads to, or what wraps that."""
    program = request.argv[0]
    wrapper = () if request.confined is None else request.confined[1]
    # In the child it would be told as something else.
    if any(b"\0" in each for each in (*request.argv, *env, *env.values())):
        raise ValueError("embedded null byte")
    if any(not name or b"=" in name for name in env):
        raise ValueError("illegal environment variable name")
    if not wrapper:
        return lambda: program_search.execute(program, request.argv, env)

    def become() -> None:
        # The wrapper would find what is wrong too late for us, as it runs by then.
        program_search.find(program, env)
        options = _hand_over(env)
        # A signal to the whole tree would end the wrapper before its program, whose exit code it is to give back.
        for each in signal.valid_signals() - _KEPT_SIGNALS:
            with contextlib.suppress(
                OSError, ValueError
            ):  # those that the C library has for itself
                signal.signal(each, signal.SIG_IGN)
        line = (wrapper[0], b"--args", b"%d" % options, *wrapper[1:], *request.argv)
        os.execve(wrapper[0], line, {})  # noqa: S606 - no shell is what is wanted

    return become


def _hand_over(env: dict[bytes, bytes]) -> int:
    """A descriptor from which bubblewrap reads the program's environment, which its command line would show to others.

    Its own is empty: it is not confined yet, and variables such as LD_PRELOAD say what it loads.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    options = b"".join(b"--setenv\0%s\0%s\0" % each for each in env.items())
    descriptor = os.memfd_create("environment", 0)  # for it to inherit, and to close
    written = 0
    while written < len(options):
        written += os.write(descriptor, options[written:])
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _be_the_child(
    request: Spawn,
    pipes: Sequence[int],
    terminal: bytes | None,
    opened: Opened,
    become: Callable[[], None],
    tell: int,
    *,
    is_ready: bool,
) -> NoReturn:
    stage, number = _AS_PROGRAM, errno.EIO
    try:
        os.setsid()
        if not is_ready:
            for each in RESTORED_SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            _take_standard_streams(request, pipes, terminal)
        if request.limits is not None:
            stage = _LIMITED
            child_limits.apply(ProcessLimits(*request.limits))
        if opened.directory is not None:
            stage = _IN_DIRECTORY
            os.fchdir(opened.directory)
        elif request.confined is None and request.cwd is not None:
            stage = _IN_DIRECTORY
            os.chdir(request.cwd)
        if request.identity is not None:
            stage = _AS_USER
            uid, gid, groups = request.identity
            os.setgroups(groups)
            os.setgid(gid)  # of root, all three ids
            os.setuid(uid)
        if request.confined is not None:
            os.umask(_PRIVATE_UMASK)
            if opened.directory is None and request.cwd is not None:
                stage = _IN_DIRECTORY
                os.chdir(request.cwd)
            stage = _CONFINED
            _confine(opened.confinement)
        stage = _AS_PROGRAM
        become()
    except OSError as error:
        number = error.errno or number
    finally:
        # Whatever else it was, no copy of the spawner goes on from here.
        os.write(tell, _FAILURE.pack(number, stage))
        os._exit(127)


def _confine(ruleset: int | None) -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    landlock.forbid_new_privileges()
    if ruleset is not None:
        landlock.restrict(ruleset)


def _take_standard_streams(request: Spawn, pipes: Sequence[int], terminal: bytes | None) -> None:
    if terminal is not None:
        # By its path: a session leader's first terminal becomes the controlling one (tty_ioctl(4)).
        opened = os.open(terminal, os.O_RDWR)
        streams = [opened, opened, opened]
    else:
        rest = iter(pipes)
        if not request.stdin:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            if nothing > 2:
                os.close(nothing)  # we may be a cell, which lives on
        stdin = next(rest) if request.stdin else 0
        stdout = next(rest)
        streams = [stdin, stdout, stdout if request.merge_stderr else next(rest)]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
