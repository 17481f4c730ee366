"""Python processes that run sandd, in a tenth of the time: forked from one that has imported it, not started anew.

To import what a daemon, a controller or a command consists of takes half a second of a core, and the tests start a
thousand of them. Here they are real processes nevertheless, children of this one, with a pid, an environment, a command
line in /proc and descriptors of their own.

    process = PythonProcess([sys.executable, "-m", "sandd", "ps"], env=environment, stdout=subprocess.PIPE)

is a `subprocess.Popen` in every other respect, and is started like one where that can't be done otherwise: on other
systems, where this one refuses what it takes, for other modules, with settings for which Python has to begin anew
(PYTHON..., locale), where coverage is measured, and with ``SANDD_TESTS_FORK=0`` in the environment. What a test says
about how a program *starts* - what it imports, what a signal does meanwhile - has to be said about one that does: by
`subprocess.Popen`.

With ``any_program=True`` any other module is run by a copy, too, and so are scripts and what is behind ``-c``. Copies
that may start programs of their own, as those do, and ``sandd demo``, have them forked as well.

A copy may be told to wait for less: see `hurried`.
"""

from __future__ import annotations

import array
import contextlib
import functools
import inspect
import json
import marshal
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MODULES: Final = ("sandd", "sandd.daemon")
"""What can be run by a copy."""
HURRY: Final = "SANDD_TESTS_HURRY"
"""The variable that tells a copy of `hurried`."""
SETTLED_AT_START: Final = ("PYTHON", "COVERAGE", "LC_", "LANG", "LD_", "MALLOC_", "TZ", "SSL_")
"""How the variables begin that Python, or a library, looks at once in a process' life."""


class Program(NamedTuple):
    """What Python is asked to run."""

    kind: str
    """``-m``, ``-c``, or nothing for a script."""
    name: str
    """The module, the code, or the script's path."""
    arguments: list[str]
    warnings: list[str]
    """What is said by ``-W``."""

    @classmethod
    def of(cls, words: Sequence[str]) -> Program | None:
        """What the words behind the interpreter's name ask for; None: something else."""
        rest, warnings = list(words), []
        while rest[:1] == ["-W"]:
            warnings.append(rest[1])
            del rest[:2]
        if not rest:
            return None
        if rest[0] in ("-m", "-c"):
            return cls(rest[0], rest[1], rest[2:], warnings) if rest[1:] else None
        return None if rest[0].startswith("-") else cls("", rest[0], rest[1:], warnings)

    @property
    def is_ours(self) -> bool:
        """It is one that we install."""
        return self.kind == "-m" and self.name in MODULES and not self.warnings

    @property
    def starts_others(self) -> bool:
        """It may start daemons, or any other program of ours, as its children."""
        return not self.is_ours or "--local" in self.arguments or self.arguments[:1] == ["demo"]


class ForkingPython:
    """The process whose copies run our programs; see forking_python.py."""

    process: subprocess.Popen[bytes] | None = None
    """None: it belongs to a copy that starts others, and ends with it."""

    def __init__(self, requests: socket.socket, environment: Mapping[str, str]) -> None:
        self._settled = settled(environment)
        self._lock = threading.Lock()
        self.socket = requests

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> ForkingPython:
        """One that has begun in this environment."""
        ours, theirs = socket.socketpair()
        source = cls(ours, environment)
        with theirs:
            program = Path(__file__).with_name("forking_python.py")
            source.process = subprocess.Popen(
                [sys.executable, str(program), str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        return source

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether it works, and Python would begin in this environment as it has begun there."""
        return settled(environment) == self._settled and self.works

    @functools.cached_property
    def works(self) -> bool:
        """Whether the system lets it do what it does, which some containers don't; found out by a trial."""
        if self.process is None:
            return True  # or it would not be there
        try:
            pid = self.fork({"arguments": []}, (0, 1, 2))
        except (OSError, struct.error):  # refused; or it is gone
            return False
        return os.waitpid(pid, 0)[1] == 0

    def fork(self, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        """The pid of a copy that does what is asked, with these for stdin, stdout and stderr.

        Raises:
            OSError: the system can't do it; nothing runs.
        """
        body = marshal.dumps(request)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        with self._lock:
            self.socket.sendmsg([struct.pack("I", len(body))], [rights])
            self.socket.sendall(body)
            (pid,) = struct.unpack("i", self.socket.recv(4, socket.MSG_WAITALL))
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)

    def close(self) -> None:
        """It ends; its copies don't."""
        self.socket.close()
        if self.process is not None:
            self.process.wait()


def hurried(**seconds: float) -> dict[str, str]:
    """Variables for a program that is to wait for less than it does, where only that it does so matters.

    Where it is started, and not forked, it takes its time: nothing may depend on it.

    Args:
        seconds: for constants, by their full names: ``**{"sandd._core.tls.renewal.LOOK_SECONDS": 0.1}``.
    """
    return {HURRY: json.dumps(seconds)}


def settled(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment can't be changed later."""
    return {name: value for name, value in environment.items() if name.startswith(SETTLED_AT_START)}


class PythonProcess(subprocess.Popen[Any]):
    """A command as a child of this process, forked if it is ``python -m sandd`` or the daemon's.

    With `any_program` also if it is any other program in Python.
    """

    runs_any: ClassVar[bool] = False
    """What `any_program` is where nothing is said."""

    source: ClassVar[ForkingPython | None] = None
    """What they are forked from, once there has been one."""
    open_source: ClassVar[Callable[[], ForkingPython] | None] = None
    """Makes it; None: all are started."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        any_program: bool | None = None,
        **settings: Any,
    ) -> None:
        self._settings = settings
        self._any_program = self.runs_any if any_program is None else any_program
        super().__init__(command, env=env, **settings)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """The same, but the time-out counts seconds of calm."""
        if timeout is None:
            return super().communicate(input)
        patience = Patience(timeout)
        while True:
            try:
                return super().communicate(input, patience.left)
            except subprocess.TimeoutExpired:
                if patience.is_over:
                    raise
            input = None  # the first call has taken it

    def wait(self, timeout: float | None = None) -> int:
        """The same, but the time-out counts seconds of calm."""
        if timeout is None:
            return super().wait()
        patience = Patience(timeout)
        while True:
            try:
                return super().wait(patience.left)
            except subprocess.TimeoutExpired:
                if patience.is_over:
                    raise

    def _execute_child(self, *given: Any, **named: Any) -> None:
        """Called by the constructor, when it has made the pipes."""
        start = super()._execute_child
        call = inspect.signature(start).bind(*given, **named).arguments
        source = self._source() if self._can_be_forked(call) else None
        environment = os.environ if call["env"] is None else call["env"]
        if source is None or not source.suits(environment):
            start(*given, **named)
            return
        ours = [call["p2cread"], call["c2pwrite"], call["errwrite"]]
        request = {
            "arguments": [os.fspath(each) for each in call["args"][1:]],
            "environment": {os.fsencode(k): os.fsencode(v) for k, v in environment.items()},
            "cwd": os.fspath(call["cwd"] or os.getcwd()),
            "start_new_session": call["start_new_session"],
            "umask": umask(),
        }
        self.pid = source.fork(
            request, [own if each == -1 else each for own, each in enumerate(ours)]
        )
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(call[each] for each in pipes))

    def _can_be_forked(self, call: dict[str, Any]) -> bool:
        plain = {"stdin", "stdout", "stderr", "cwd", "start_new_session", "text", "encoding"}
        if not self._settings.keys() <= plain | {
            "errors",
            "bufsize",
            "universal_newlines",
            "shell",
        }:
            return False
        if (
            isinstance(call["args"], str | bytes)
            or call["shell"]
            or call["args"][0] != sys.executable
        ):
            return False
        program = Program.of(call["args"][1:])
        return program is not None and (self._any_program or program.is_ours)

    @classmethod
    def _source(cls) -> ForkingPython | None:
        if cls.source is None and cls.open_source is not None:
            cls.source = cls.open_source()
        return cls.source


@contextlib.contextmanager
def forking(environment: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """In this block each `PythonProcess` that can be is forked, from one that has begun in this environment."""
    measured = "COVERAGE_PROCESS_CONFIG" in os.environ  # which begins when Python does
    if sys.platform == "linux" and not measured and os.environ.get("SANDD_TESTS_FORK") != "0":
        PythonProcess.open_source = lambda: ForkingPython.start(environment())
    try:
        yield
    finally:
        source, PythonProcess.source, PythonProcess.open_source = PythonProcess.source, None, None
        if source is not None:
            source.close()


@contextlib.contextmanager
def copies() -> Iterator[None]:
    """In this block the processes that trio opens are such ones, too, where they are Python's."""
    start = subprocess.Popen
    subprocess.Popen = functools.partial(PythonProcess, any_program=True)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        subprocess.Popen = start  # type: ignore[misc]


def run_python(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float,
    input: Any = None,
    check: bool = False,
    **settings: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of a `PythonProcess`."""
    if settings.pop("capture_output", False):
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        settings["stdin"] = subprocess.PIPE
    with PythonProcess(command, env=env, **settings) as process:
        try:
            stdout, stderr = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            with contextlib.suppress(ValueError):  # closed already
                process.communicate()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def umask() -> int:
    """This process' mask for new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
