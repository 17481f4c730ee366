"""What the daemon codes against: a request to start something, and the tree that came of it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import attrs

from sandd._core._errors import SanddError
from sandd._core.limits import NO_LIMITS, NO_USAGE, Limits, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import TypeAlias

    import trio

    TerminalSize: TypeAlias = tuple[int, int]
    """Rows and columns."""
    Answered: TypeAlias = Callable[[bool], Callable[[], None] | None]
    """Told of the answer to `ProcessHost.begin`, and whether no other has come with it. If others have, which may be
    anybody's, what it returns is called when all of them have been told, and once if it is the same for several."""


class ChildLost(SanddError):
    """The spawner died, or its host was left, with this child running; its whole tree was killed.

    It may have run in part or whole, and it has no exit status: none is ever made up.
    """


@attrs.frozen
class CheckedProgram:
    """What a policy has checked, and opened, so that nothing takes its place. Whoever opened it closes it."""

    path: bytes
    """Of the program; its arguments needn't begin with that."""
    executable: int | None = None
    """A descriptor of it; None where only a path can be executed: of a script, and not on Linux."""
    directory: int | None = None
    """Of the working directory; None: the daemon's."""
    ruleset: int | None = None
    """Of what it, and whatever it starts, may execute: see `exec_lock`. None: anything."""
    is_alone: bool = False
    """It may start nothing."""


@attrs.frozen
class Confinement:
    """What a job is kept within, itself and all that descends from it. POSIX only; whoever opened it closes it."""

    identity: tuple[int, int, tuple[int, ...]] | None = None
    """Whom it runs as, uid, gid and groups, whatever `SpawnRequest.user` says; None: that one."""
    ruleset: int | None = None
    """A descriptor of what it may do to files, and reach: see `landlock`."""
    wrapper: tuple[bytes, ...] = ()
    """The command line, but for the program's own, of what runs it elsewhere: bubblewrap. It gives back its exit
    code, and ignores signals until the program runs, which then ignores none. The environment is that one's alone."""


@attrs.frozen
class SpawnRequest:
    """What to start, in the bytes the kernel takes; shells and defaults have been resolved."""

    argv: tuple[bytes, ...]
    """Executed directly; the first is looked up in the ``PATH`` it will have unless it has a slash."""
    env: Mapping[bytes, bytes]
    """The child's environment, as far as `base` doesn't have it. Must hold ``SANDD_JOB=<marker>``."""
    marker: bytes
    """Unique to this job; processes that left its session are recognised by it."""
    cwd: bytes | None = None
    """None: where the daemon was when its process host was opened."""
    user: str | None = None
    """Name or numeric uid: sets uid, gid and supplementary groups, but no environment."""
    stdin: bool = True
    """False: the child reads ``/dev/null``."""
    merge_stderr: bool = False
    """True: stderr goes into stdout's pipe, in the order of writing."""
    terminal: TerminalSize | None = None
    """The size of a terminal to run it in: its controlling terminal, and instead of all three pipes. Its
    tree is asked to end by a hang-up then (SIGHUP), as shells don't mind SIGTERM."""
    base: Mapping[bytes, bytes] = attrs.field(factory=dict)
    """What `env` is merged over. To be the same object for many requests, and never changed: a host may
    have passed it on once and for all."""
    checked: CheckedProgram | None = None
    """What is run instead of what `argv` begins with, and where; then `cwd` is only its name. POSIX only."""
    confinement: Confinement | None = None
    """None: it may do what its user may."""
    limits: Limits = NO_LIMITS
    """What it may use. `wall` and `output_bytes` are not the host's business."""
    must_hold: bool = False
    """Start nothing if there is a limit that this machine can't hold it to."""

    def __attrs_post_init__(self) -> None:
        if not self.argv or not self.marker:
            raise ValueError("a process needs a program, and a marker")


@attrs.frozen
class ExitStatus:
    """The real wait status of a process: exactly one of the two is set."""

    code: int | None
    """What it passed to exit(2), 0 to 255 (32 bits on Windows)."""
    signal: int | None
    """Number of the signal that ended it."""

    def __attrs_post_init__(self) -> None:
        if (self.code is None) == (self.signal is None):
            raise ValueError(
                f"an exit has a code or a signal, not {self.code!r} and {self.signal!r}"
            )


@attrs.frozen
class TreeUsage:
    """What a process tree takes, at one moment."""

    cpu_seconds: float
    """Of processor: used by the processes that live, and by children that those have waited for."""
    rss_bytes: int
    """In memory; what several of them share counts for each."""
    processes: int
    """That live."""


class ReceivesNowait:
    """What an output stream may be besides: one that can be asked without waiting.

    The stream's own class sees to it that it is complete: of one that is an ABC itself, `isinstance` takes
    three calls.
    """

    __slots__ = ()

    @abc.abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What is there; b"" at the end, None when there is nothing yet."""


class SendsNowait:
    """What an input stream may be besides: one that takes what it can without waiting. See `ReceivesNowait`."""

    __slots__ = ()

    @abc.abstractmethod
    def send_nowait(self, data: bytes | memoryview) -> int:
        """Send the beginning of `data`; how many bytes of it, none included.

        Raises:
            trio.BrokenResourceError: nobody reads there any more.
        """


class Terminal(abc.ABC):
    """The terminal that a job runs in, from outside."""

    __slots__ = ()

    @abc.abstractmethod
    def resize(self, rows: int, cols: int) -> None:
        """The window has another size from now on. No error if nobody is there any more."""

    @abc.abstractmethod
    def signal(self, number: int) -> bool:
        """Send signal ``number`` to the process group in the foreground; False if that can't be done."""


class Child(abc.ABC):
    """One started job: its direct child process, and everything that descends from it.

    Made by `ProcessHost.spawn`. Closing the streams is the caller's business.
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """Process id of the direct child; on POSIX also the id of its process group and session."""

    @property
    @abc.abstractmethod
    def stdin(self) -> trio.abc.SendStream | None:
        """Our end of its stdin; None where ``/dev/null`` was asked for."""

    @property
    @abc.abstractmethod
    def stdout(self) -> trio.abc.ReceiveStream:
        """Our end of its stdout; it ends when nobody holds the other end any more."""

    @property
    @abc.abstractmethod
    def stderr(self) -> trio.abc.ReceiveStream | None:
        """Our end of its stderr; None where that was merged into `stdout`."""

    @property
    def terminal(self) -> Terminal | None:
        """What it runs in, with `stdin` and `stdout` as its two directions; None: it has pipes."""
        return None

    @property
    @abc.abstractmethod
    def has_exited(self) -> bool:
        """`wait_exited` would return, or raise, at once."""

    @property
    @abc.abstractmethod
    def ended(self) -> ExitStatus | None:
        """How it ended, once nothing is left of its tree either; else, and where it is lost, None."""

    @property
    def used(self) -> Usage:
        """What its tree has used, once nothing is left of it."""
        return NO_USAGE

    @property
    def limit(self) -> str:
        """The limit that its tree went beyond, by the kernel's counters or by what was seen; "" for none, or so far."""
        return ""

    @property
    def unheld(self) -> tuple[str, ...]:
        """Which of the limits of its request it is not held to, as this machine can't."""
        return ()

    @abc.abstractmethod
    def close_pipes(self) -> None:
        """Close our ends of the pipes, at once; idempotent."""

    @abc.abstractmethod
    async def wait_exited(self) -> ExitStatus:
        """How the direct child ended, once it has; what it started may live on, and hold its pipes.

        Any number of tasks may wait, at any time, also afterwards. Cancelling changes nothing.

        Raises:
            ChildLost: there will never be a status; the tree is dead.
        """

    @abc.abstractmethod
    def signal(self, number: int) -> None:
        """Send signal ``number`` to the process group. No error if nobody is there any more.

        Raises:
            ValueError: there is no such signal on this machine. Nothing was sent.
        """

    @abc.abstractmethod
    async def kill(self, *, grace: float) -> None:
        """End the tree: SIGTERM to all of it (SIGHUP where it has a terminal), and after ``grace``
        seconds SIGKILL to the last.

        Returns when nothing of the tree is left and the direct child is reaped; at once if so
        already. Idempotent: of several calls the earliest deadline counts. Cancelling it stops only
        the waiting.
        """

    @abc.abstractmethod
    async def release(self, *, sweep: bool = True) -> None:
        """Be done with a child that has exited: reap it and forget it. Idempotent.

        With ``sweep`` whatever is left of its tree is SIGKILLed first, and this returns when
        nothing of it is left. Without, the others are left alone (until the host ends). Cancelling
        it stops only the waiting.

        Raises:
            RuntimeError: the child has not exited; use `kill`.
        """


class ProcessHost(abc.ABC):
    """Starts process trees and owns them: none outlives it."""

    __slots__ = ()

    async def unheld(self, limits: Limits) -> tuple[str, ...]:
        """Which of these limits this machine can't hold a job to."""
        return tuple(limits.given)

    async def unheld_total(self, limits: Limits) -> tuple[str, ...]:
        """Which of these limits it can't hold all jobs together to."""
        return tuple(limits.given)

    @abc.abstractmethod
    def begin(self, request: SpawnRequest, answered: Answered) -> Child | None:
        """Ask for a process at once; None, and nothing is asked for, where that would mean to wait.

        `answered` is called once, later, when it has started, or has failed to. By then the child may
        have `ended` and be done with; else it is to be passed to `begun` before anything else.

        Raises:
            SpawnFailed: as `spawn`. Nothing ran.
        """

    @abc.abstractmethod
    async def begun(self, child: Child) -> None:
        """Wait until what `begin` asked for has started; raises and cleans up as `spawn` does."""

    async def measure(self, pids: Collection[int]) -> Mapping[int, TreeUsage]:
        """What the trees of these direct children take now; those of whom nothing is known are left out.

        Cancelling it waits for the look that is under way, which takes a third of a second at most.
        """
        return {}

    @abc.abstractmethod
    async def spawn(self, request: SpawnRequest) -> Child:
        """Start a process in a session and process group of its own.

        Its signal dispositions and limit of open files are the system's defaults, not the daemon's,
        and it inherits no descriptor but 0, 1 and 2. If cancelled, whatever got started is killed
        and reaped.

        Returns:
            The child, whose streams now belong to the caller.

        Raises:
            SpawnFailed: with this machine's errno, text and file name. Nothing ran.
            ChildLost: the spawner died at this very moment. It may have run; it is dead.
        """
