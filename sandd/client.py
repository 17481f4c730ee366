"""A controller for programs that don't use trio: `Client`, every method of which simply blocks.

::

    with sandd.connect("ws://127.0.0.1:8765", token="secret") as client:
        print(client.exec("worker-1", "hostname").stdout)

`sandd.Server` is one that daemons dial in to; it has its methods from here.
"""

from __future__ import annotations

import math
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypedDict, TypeVar, overload

import trio
from attrs import field, frozen

from sandd._core import commands, server_files, specs
from sandd._core._errors import CommandFailed, CommandTimeout, DaemonNotFound, SanddError
from sandd._core.arguments import check_labels, patience
from sandd._core.bridge import TrioThread
from sandd._core.held_block import HeldBlock
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.results import CommandResult
from sandd._core.server_process import ServerProcess
from sandd._core.server_session import ServerSession
from sandd._core.specs import KILL_GRACE
from sandd.controller import connect_controller
from sandd.wire import DaemonState, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from signal import Signals
    from typing import Self, TypeVarTuple, Unpack

    from sandd._core.commands import PreparedCommand, RunOptions
    from sandd._core.copying import Patterns, Progress
    from sandd._core.daemon_statistics import DaemonStatistics
    from sandd._core.job_info import JobInfo
    from sandd._core.limits import Limits
    from sandd._core.specs import Command, IsolationName, Text
    from sandd._core.transfers.result import TransferResult
    from sandd.controller import Controller, ControllerStatistics, Daemon

    Arguments = TypeVarTuple("Arguments")

__all__ = ["Client", "DaemonSummary", "FailedResult", "ServerProcess", "ServerSession", "connect"]

T = TypeVar("T")

EXEC_TIMEOUT: Final = 300.0
"""Seconds that a command may take, where the caller says nothing."""
ANSWER_SECONDS: Final = 10.0
"""Beyond a command's time-out and kill grace, how long its result may take to arrive."""


class ExecOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.run` beyond those that `Client.exec` names itself."""

    input: str | bytes | None
    user: str | None
    isolation: IsolationName | None
    idle_timeout: float | None
    kill_grace: float
    max_output: int
    check: bool
    limits: Limits | None
    require_limits: bool


class ProcessOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.open_process` beyond those that `Client.open_process` names itself."""

    user: str | None
    isolation: IsolationName | None
    timeout: float | None
    idle_timeout: float | None
    kill_grace: float
    lease: float | None
    on_full: Literal["block", "drop_oldest"]
    detach: bool
    limits: Limits | None
    require_limits: bool
    job_id: str | None


class SessionOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.open_session` beyond those that `Client.new_session` names itself."""

    user: str | None
    isolation: IsolationName | None
    scrollback: int
    kill_grace: float
    lease: float | None
    detach: bool
    limits: Limits | None
    require_limits: bool
    job_id: str | None
    record: str | os.PathLike[str] | None
    record_input: bool


class TransferOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.upload` and `Daemon.download`."""

    progress: Progress | None
    update: bool | Literal["hash"]
    include: Patterns
    exclude: Patterns


class ForwardOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.forward_port` beyond the port that it leads to."""

    remote_host: str
    remote_path: Text | None
    local_host: str
    local_port: int
    local_path: Text | None


class ReverseOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.reverse_port` beyond the port that it leads to."""

    local_host: str
    local_path: Text | None
    remote_host: str
    remote_port: int
    remote_path: Text | None


@frozen
class DaemonSummary:
    """One daemon at the moment of asking; but for `state` and `is_busy` it is its own word."""

    id: str
    version: str
    """Of sandd, there."""
    labels: Mapping[str, str]
    hostname: str
    platform: str
    """``sys.platform`` there: "linux", "darwin", "win32"."""
    arch: str
    """``platform.machine()`` there: "x86_64", "arm64", ..."""
    state: DaemonState
    """ONLINE, or AWAY when its connection broke and its jobs go on."""
    is_busy: bool
    """This client has a command or another job on it that has not ended."""
    connected_at: float
    """Unix time, by this machine's clock, of its newest connection."""


@frozen(repr=False)
class FailedResult(CommandResult):
    """In the answer to a `Client.broadcast`, stands for a command that has no result of its own.

    It could not be run, or ran out of time. `exit_code` is -1, and the last line of `stderr` says
    what failed.
    """

    error: SanddError = field(kw_only=True)
    """What `Client.exec` would have raised."""

    @property
    def signal(self) -> None:
        """None: -1 stands for a failure here, not for signal 1."""


def connect(
    url: str,
    *,
    token: str | bytes | None = None,
    ca_pin: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    client_certificate: str | os.PathLike[str] | None = None,
    client_key: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    connect_timeout: float = 10.0,
) -> Client:
    """A `Client` of a controller in another process, as ``sandd controller`` runs one.

    Once connected it dials again for ever, and goes on with all that it had begun.

    Args:
        url: ``ws://HOST[:PORT]`` or ``wss://HOST[:PORT]``; the port is 8765 where none is given.
        token: secret that operators must prove to know.
        ca_pin: as for `connect_controller`, and so are `ca_file`, `client_certificate`, `client_key` and `insecure`.
        connect_timeout: seconds until there must be a connection.

    Raises:
        AuthenticationFailed: there is no token, or another one; or the controller takes no operators.
        ControllerUnreachable: there is no connection in time (a ConnectionError, too); its text says why.
        RequestRefused: the two releases don't understand each other.
        ConfigurationError: an argument makes no sense.
    """
    self = object.__new__(Client)
    self._open(
        lambda: connect_controller(
            url,
            token=token,
            ca_pin=ca_pin,
            ca_file=ca_file,
            client_certificate=client_certificate,
            client_key=client_key,
            insecure=insecure,
            connect_timeout=connect_timeout,
        ),
        "sandd.Client",
    )
    return self


class Client:
    """A controller, for synchronous code; made by `connect`, and `Server` is one, too.

    Its trio event loop runs in a thread of its own; any number of
    threads may call any method at the same time. Each method blocks the calling thread, and only
    that: in a coroutine (asyncio's or trio's) it blocks the whole event loop, where `sandd.aio` doesn't.

    Ctrl-C interrupts whatever call the main thread is in, at once: KeyboardInterrupt is raised, the
    call is cancelled, and the remote process tree is killed while your program goes on.

    Use it in a ``with`` block or call `close`. Left open, it is closed when the interpreter exits.
    """

    def __init__(self) -> None:
        raise TypeError("use sandd.connect()")

    def _open(
        self, open_it: Callable[[], AbstractAsyncContextManager[Controller, bool | None]], name: str
    ) -> None:
        self._thread: TrioThread[Controller] = TrioThread(open_it, name=name)
        self._controller = self._thread.start()

    def __repr__(self) -> str:
        closed = ", closed" if self._thread.stopped else ""
        return f"<sandd.{type(self).__name__} {self.address}{closed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Nothing to close where __init__ failed; and no waiting, for this may be any thread.
        if hasattr(self, "_controller") and not self._thread.stopped:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._thread.stop()

    def close(self) -> None:
        """End what this has running, and close it; of a `Server`, daemons are told to come back later.

        It takes a few seconds at most. Calls that other threads are in are cancelled and raise
        trio.ClosedResourceError at once. Closing twice does nothing, and waits for the first.
        A Ctrl-C ends the waiting; what remains to be done is done in the background.

        Raises:
            RuntimeError: a function given to `call` did not let itself be cancelled; or the client
                had failed, by a defect of its own, before it was closed.
        """
        self._thread.close()

    # -- what it knows

    @property
    def address(self) -> str:
        """``HOST:PORT`` it listens on, with the real port; of a controller in another process, what was dialled."""
        return self._controller.address

    @property
    def url(self) -> str:
        """For a daemon's ``--server-url`` on this machine; elsewhere, put this one's name in it."""
        return self._controller.url

    @property
    def ca_pin(self) -> str | None:
        """``sha256:HEX`` for a daemon's ``--ca-pin``; None where the controller has no CA of its own."""
        return self._controller.ca_pin

    @property
    def controller(self) -> Controller:
        """The `Controller`, for functions that `call` runs; don't touch it from other threads."""
        return self._controller

    def list_daemons(self, labels: Mapping[str, str] | None = None) -> list[DaemonSummary]:
        """The daemons, online or away, that have all of `labels`, sorted by id."""

        async def look() -> list[DaemonSummary]:
            return self._summaries(self._controller.daemons(labels))

        return self.call(look)

    def get_daemon(self, daemon_id: str) -> DaemonSummary:
        """What is known of one daemon, online or away.

        Raises:
            DaemonNotFound: none of that id is known.
        """

        async def look() -> DaemonSummary:
            return self._summaries([self._controller.daemon(daemon_id)])[0]

        return self.call(look)

    def daemon_count(self) -> int:
        """How many daemons there are, online or away; `get_stats` tells them apart."""

        async def look() -> int:
            return len(self._controller.daemons())

        return self.call(look)

    def get_stats(self) -> ControllerStatistics:
        """Numbers of this moment."""

        async def look() -> ControllerStatistics:
            return self._controller.statistics()

        return self.call(look)

    @property
    def metrics_address(self) -> str | None:
        """``HOST:PORT`` where the figures of a `Server` are to be had; None: nowhere, or in another process."""
        return self._controller.metrics_address

    def fetch_stats(self, timeout: float | None = 30.0) -> ControllerStatistics:
        """Numbers of this moment, from the controller, wherever it is: see `sandd.Controller.fetch_statistics`.

        Args:
            timeout: seconds after which to give up, as the controller can't be reached; None: never.

        Raises:
            TimeoutError: it has not answered by then.
        """
        limit = patience(timeout)

        async def fetch() -> ControllerStatistics:
            with trio.move_on_after(limit):
                return await self._controller.fetch_statistics()
            raise TimeoutError(f"the controller has not told its statistics within {timeout:g} s")

        return self.call(fetch)

    def wait_for_daemon(self, daemon_id: str, timeout: float | None = 30.0) -> bool:
        """Wait until the daemon is online: True at once, or as soon as it dials in.

        Args:
            daemon_id: of the daemon.
            timeout: seconds after which to give up, and return False; None: never.
        """

        limit = patience(timeout)

        async def wait() -> bool:
            with trio.move_on_after(limit):
                await self._controller.wait_for_daemon(daemon_id)
                return True
            # With a time-out of 0 the waiting is cancelled before it has looked.
            try:
                return self._controller.daemon(daemon_id).state is DaemonState.ONLINE
            except DaemonNotFound:
                return False

        return self.call(wait)

    # -- what it does

    def exec(
        self,
        daemon_id: str,
        command: Command,
        timeout: float | None = EXEC_TIMEOUT,
        env: Mapping[str, str] | None = None,
        cwd: Text | None = None,
        **options: Unpack[ExecOptions],
    ) -> CommandResult:
        """Run a command on a daemon to its end, and return what it printed.

        The output arrives exactly once, whatever happens to the connection. While the daemon is
        away this waits, within `timeout`. What another thread is to end, `open_process` runs.

        Args:
            daemon_id: of a daemon that is online or away.
            command: a text is run by the daemon's shell; a list is a program and its arguments, run
                directly.
            timeout: seconds; None: no limit. On the daemon the process tree is killed when that
                long has passed since its start. Here the call is over after `timeout`, `kill_grace`
                and ten seconds more, even if the daemon can't be reached any more.
            env: merged over the daemon's environment.
            cwd: working directory; None: the daemon's.
            options: as for `Daemon.run`: `input`, `user`, `isolation`, `idle_timeout`, `kill_grace`,
                `max_output`, `check`.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too. Nothing ran.
            CommandTimeout: it ran out of time and was killed (a TimeoutError too); ``result`` has
                what it printed until then, ``started`` says whether it was started at all (None:
                not known).
            SpawnFailed: the program could not be started. Nothing ran.
            CommandFailed: `check` was given, and it ended badly; ``result`` has all of it.
            DaemonGone: the daemon is gone for good; ``outcome_unknown`` says whether it may have
                run.
            ValueError: an argument that makes no sense. Nothing ran.
            trio.ClosedResourceError: the client is closed, or was closed meanwhile; what ran is
                killed.
        """

        async def run() -> CommandResult:
            daemon = self._controller.daemon(daemon_id)
            given: RunOptions = {**options, "timeout": timeout, "env": env, "cwd": cwd}
            return await _run_bounded(daemon, commands.prepare_by(command, given))

        return self.call(run)

    def open_process(
        self,
        daemon_id: str,
        command: Command,
        *,
        stdin: bool = True,
        stderr: Literal["separate", "merge"] = "separate",
        env: Mapping[str, str] | None = None,
        cwd: Text | None = None,
        **options: Unpack[ProcessOptions],
    ) -> ServerProcess:
        """Start a command and talk to it while it runs: read what it writes as it comes, write to it, end it.

        ::

            with client.open_process("worker-1", "make test", stderr="merge") as process:
                for piece in process.stdout:
                    print(piece.decode(errors="replace"), end="")
                print(process.wait().exit_code)

        Leaving the block, or `ServerProcess.close` from any thread, ends the whole remote process tree and waits until
        it is gone. While the daemon is away this waits, and so do the methods of what it gives; nothing is lost.

        Read both outputs, each in a thread of its own, or merge them, or close the one you don't want: as on
        any pipe, a command stops when what it writes isn't read. About a megabyte fits in between.

        Args:
            daemon_id: of a daemon that is online or away.
            command: as for `exec`.
            stdin: False: the command reads end of file at once.
            stderr: "merge" sends it into stdout, in the order of writing.
            env: merged over the daemon's environment.
            cwd: working directory; None: the daemon's.
            options: as for `Daemon.open_process`: `user`, `isolation`, `timeout` (None, the default, is no limit),
                `idle_timeout`, `kill_grace`, `lease`, `on_full`, `detach`, `job_id`.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too. Nothing ran.
            SpawnFailed: the program could not be started. Nothing ran.
            DaemonGone and others: as for `Daemon.open_process`.
        """
        daemon = self.call(self._find, daemon_id)
        return ServerProcess(
            self._thread,
            lambda: daemon.open_process(
                command, stdin=stdin, stderr=stderr, env=env, cwd=cwd, **options
            ),
        )

    def attach_process(
        self,
        daemon_id: str,
        job_id: str,
        *,
        since: Mapping[str, int] | None = None,
        read_only: bool = False,
        takeover: bool = False,
        kill_grace: float = KILL_GRACE,
    ) -> ServerProcess:
        """A job that exists, running or ended, whoever started it; arguments and errors as `Daemon.attach_process`.

        `ServerProcess.close` ends it, unless it is detached or was attached with `read_only`.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too.
        """
        daemon = self.call(self._find, daemon_id)
        return ServerProcess(
            self._thread,
            lambda: daemon.attach_process(
                job_id, since=since, read_only=read_only, takeover=takeover, kill_grace=kill_grace
            ),
        )

    def new_session(
        self,
        daemon_id: str,
        rows: int = 24,
        cols: int = 80,
        term: str = "xterm-256color",
        interactive: bool = False,
        *,
        command: Command | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Text | None = None,
        **options: Unpack[SessionOptions],
    ) -> ServerSession:
        r"""Start a program in a terminal of its own on a daemon: the user's shell, where nothing else is said.

        ::

            with client.new_session("worker-1") as session:
                session.write("ls\r")
                print(session.read(timeout=1.0))

        While the daemon is away this waits, and so do the session's methods; nothing is lost.

        Args:
            daemon_id: of a daemon that is online or away.
            rows, cols: size of the terminal, in characters.
            term: type of the terminal that will show it: the program's TERM.
            interactive: connect it to the terminal that this program runs in, as ``sandd shell`` does, until
                the program has ended or somebody typed ``~.``; only then this returns. `rows` and `cols` are
                those of that terminal then. For the main thread only.
            command: as for `exec`.
            env: merged over the daemon's environment.
            cwd: working directory; None: the daemon's.
            options: as for `Daemon.open_session`: `user`, `scrollback`, `kill_grace`, `lease`, `detach`,
                `job_id`, `record`, `record_input`.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too. Nothing ran.
            SpawnFailed: the program could not be started. Nothing ran.
            DaemonGone: the daemon is gone for good.
            ValueError: an argument that makes no sense. Nothing ran.
            trio.ClosedResourceError: the client is closed.
            RuntimeError: `interactive` in another thread than the main one. Nothing ran.
            NoTerminal: `interactive`, but stdin or stdout is no terminal. Nothing ran.
        """
        daemon = self.call(self._find, daemon_id)

        def open_session(size: tuple[int, int]) -> ServerSession:
            rows, cols = size
            return ServerSession(
                self._thread,
                lambda: daemon.open_session(
                    command, rows=rows, cols=cols, term=term, env=env, cwd=cwd, **options
                ),
            )

        specs.check_size(rows, cols)
        if interactive:
            # Late: whoever talks to sessions by program needs no terminal.
            from sandd.terminal.blocking import hold_at_terminal

            return hold_at_terminal(open_session)
        return open_session((rows, cols))

    def attach_session(
        self,
        daemon_id: str,
        job_id: str,
        *,
        since: int | None = None,
        read_only: bool = False,
        takeover: bool = False,
        kill_grace: float = KILL_GRACE,
    ) -> ServerSession:
        """A session that exists, running or ended, whoever opened it; arguments and errors as `Daemon.attach_session`.

        It shows its scrollback first. `ServerSession.close` ends it, unless it is detached or was attached
        with `read_only`.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too.
        """
        daemon = self.call(self._find, daemon_id)
        return ServerSession(
            self._thread,
            lambda: daemon.attach_session(
                job_id, since=since, read_only=read_only, takeover=takeover, kill_grace=kill_grace
            ),
        )

    # -- files and ports

    def upload_file(
        self,
        daemon_id: str,
        remote_path: Text,
        data: bytes | bytearray | memoryview | str | os.PathLike[str],
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> TransferResult:
        """Make a file on the daemon's machine: of these bytes, or a copy of a file of this machine.

        At every moment, also after a crash, there is the old file or the whole new one. A copy keeps permissions
        and time of modification, and goes on where it was if it was interrupted by a crash.

        Args:
            daemon_id: of a daemon that is online or away; while it is away this waits.
            remote_path: of the file, its name included. Its directory must be there.
            data: bytes are the content. A text or a path object is the path of a file here; the content
                of a text is ``text.encode()``.
            timeout: seconds for all of it; None: no limit. Where the daemon doesn't answer the call goes on for
                as long again, a second at least and ten at most, in the hope of its word that it has stopped.
            progress: for a copy: called with the bytes done and those in all, in the client's thread,
                which it must not block.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too.
            TransferError: it could not be done, here or there; mostly the fitting OSError, too (FileNotFoundError,
                PermissionError, IsADirectoryError, ...); a TimeoutError if the time ran out. There is no new file.
            DaemonGone: the daemon is gone for good.
            RequestRefused: the daemon declined.
            trio.ClosedResourceError: the client is closed, or was closed meanwhile.
        """
        return self.call(
            server_files.upload_file,
            partial(self._controller.daemon, daemon_id),
            remote_path,
            data,
            timeout,
            progress,
        )

    @overload
    def download_file(
        self, daemon_id: str, remote_path: Text, *, timeout: float | None = None
    ) -> bytes: ...

    @overload
    def download_file(
        self,
        daemon_id: str,
        remote_path: Text,
        local_path: Text,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> TransferResult: ...

    def download_file(
        self,
        daemon_id: str,
        remote_path: Text,
        local_path: Text | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> bytes | TransferResult:
        """What is in a file on the daemon's machine; with a `local_path` it is copied to that file instead.

        Without `local_path` all of it is held in memory. Otherwise as `upload_file`, the other way round.
        """
        find = partial(self._controller.daemon, daemon_id)
        if local_path is None:
            return self.call(server_files.read_file, find, remote_path, timeout)
        return self.call(
            server_files.download_file, find, remote_path, local_path, timeout, progress
        )

    def upload(
        self,
        daemon_id: str,
        local: Text,
        remote: Text,
        *,
        timeout: float | None = None,
        **options: Unpack[TransferOptions],
    ) -> TransferResult:
        """Copy a file or a directory tree of this machine to the daemon's; see `Daemon.upload`.

        Args:
            daemon_id: of a daemon that is online or away; while it is away this waits.
            local: a file or a directory.
            remote: what the copy is to be, its name included.
            timeout: as for `upload_file`. Beyond that it is cancelled, and raises a TransferError that is a
                TimeoutError.
            options: as for `Daemon.upload`: `progress` (called in the client's thread, which it must not
                block), `update`, `include`, `exclude`.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too.
            TransferError and others: as for `Daemon.upload`.
        """
        return self.call(
            server_files.in_time,
            lambda: self._controller.daemon(daemon_id).upload(local, remote, **options),
            os.fsdecode(local),
            timeout,
        )

    def download(
        self,
        daemon_id: str,
        remote: Text,
        local: Text,
        *,
        timeout: float | None = None,
        **options: Unpack[TransferOptions],
    ) -> TransferResult:
        """Copy a file or a directory tree of the daemon's machine to this one; otherwise as `upload`."""
        return self.call(
            server_files.in_time,
            lambda: self._controller.daemon(daemon_id).download(remote, local, **options),
            os.fsdecode(remote),
            timeout,
        )

    def forward_port(
        self, daemon_id: str, remote_port: int | None = None, **options: Unpack[ForwardOptions]
    ) -> AbstractContextManager[tuple[str, int]]:
        """Listen here for a port on the daemon's side; a context manager for ``(host, port)``.

        ::

            with client.forward_port("worker-1", 80) as (host, port):
                print(urllib.request.urlopen(f"http://{host}:{port}/").read())

        Arguments and errors as `Daemon.forward_port`; any thread may connect.

        Raises:
            DaemonNotFound: no daemon of that id is known; a ValueError too.
        """
        daemon = self.call(self._find, daemon_id)
        return HeldBlock(self._thread, lambda: daemon.forward_port(remote_port, **options))

    def reverse_port(
        self, daemon_id: str, local_port: int | None = None, **options: Unpack[ReverseOptions]
    ) -> AbstractContextManager[tuple[str, int]]:
        """Listen on the daemon's side for a port here; otherwise as `forward_port`; see `Daemon.reverse_port`."""
        daemon = self.call(self._find, daemon_id)
        return HeldBlock(self._thread, lambda: daemon.reverse_port(local_port, **options))

    # -- jobs

    def jobs(self, daemon_id: str) -> list[JobInfo]:
        """All jobs on a daemon, running and ended; as `Daemon.jobs`."""
        return self.call(lambda: self._controller.daemon(daemon_id).jobs())

    def daemon_statistics(self, daemon_id: str, *, jobs: bool = True) -> DaemonStatistics:
        """How busy a daemon is now, its machine, and each of its jobs that has not ended; as `Daemon.statistics`."""
        return self.call(lambda: self._controller.daemon(daemon_id).statistics(jobs=jobs))

    def kill(
        self,
        daemon_id: str,
        job_id: str,
        *,
        signal: str | Signals = "TERM",
        grace: float = KILL_GRACE,
    ) -> None:
        """End a job, whoever holds it, and wait until its process tree is gone; as `Daemon.kill`."""
        self.call(
            lambda: self._controller.daemon(daemon_id).kill(job_id, signal=signal, grace=grace)
        )

    def forget(self, daemon_id: str, job_id: str) -> None:
        """Drop a job with all that is kept of it; as `Daemon.forget`."""
        self.call(lambda: self._controller.daemon(daemon_id).forget(job_id))

    # -- commands, on many

    def broadcast(
        self,
        labels: Mapping[str, str] | None,
        command: Command,
        timeout: float | None = EXEC_TIMEOUT,
        env: Mapping[str, str] | None = None,
        cwd: Text | None = None,
        **options: Unpack[ExecOptions],
    ) -> dict[str, CommandResult]:
        """Run a command on all daemons that have all of `labels` (None: on all), at once.

        One bad daemon fails no other, and delays the answer by no more than `exec` would take. (The labels come
        first here; `Controller.broadcast` has the command first, and the labels by name.)

        Args:
            labels: which daemons: those that have all of these; None: all.
            command: as for `exec`, and so are the other arguments. With `check`, a command that
                ended badly still gives its own result.

        Returns:
            Daemon id to its result, sorted by id. Where the command could not be run, or ran out of
            time, that is a `FailedResult`: `exit_code` is -1, `stderr` says what failed, and what
            the command had printed until then is in it too.

        Raises:
            ValueError: an argument that makes no sense. Nothing ran.
            trio.ClosedResourceError: the client is closed, or was closed meanwhile; what ran is
                killed.
        """

        try:
            check_labels(labels)
        except TypeError as error:
            raise TypeError(
                f"{error}; it comes first here: broadcast({{'env': 'prod'}}, 'uptime')"
            ) from None
        given: RunOptions = {**options, "timeout": timeout, "env": env, "cwd": cwd}
        prepared = commands.prepare_by(command, given)

        async def run() -> dict[str, CommandResult]:
            results: dict[str, CommandResult] = {}
            failures: list[Exception] = []

            async def run_on(daemon: Daemon) -> None:
                try:
                    results[daemon.id] = await _run_bounded(daemon, prepared)
                except CommandFailed as error:
                    results[daemon.id] = error.result
                except SanddError as error:
                    results[daemon.id] = _failed_result(error)
                except Exception as error:
                    # The client is closed, or at fault, hence the same everywhere: the call fails.
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            async with open_unwrapping_nursery() as nursery:
                for daemon in self._controller.daemons(labels):
                    nursery.start_soon(run_on, daemon)
            if failures:
                raise failures[0]
            return dict(sorted(results.items()))

        return self.call(run)

    def call(self, async_fn: Callable[[Unpack[Arguments]], Awaitable[T]], *args: *Arguments) -> T:
        """Run ``await async_fn(*args)`` in the controller's trio thread; what it returns.

        This is the way to all that the trio API has and this class lacks::

            async def names(daemon_id: str, path: str) -> list[str]:
                directory = client.controller.daemon(daemon_id).path(path)
                return [entry.name for entry in await directory.iterdir()]

            client.call(names, "worker-1", "/work")

        The function shares its thread with everything else that the client does: it must not block.
        Its exceptions come out as they are. It sees the calling thread's context variables.

        Raises:
            trio.ClosedResourceError: the client is closed, or was closed meanwhile; what ran was
                cancelled.
            RuntimeError: this *is* the trio thread; or the client has failed, by a defect of its
                own.
        """
        return self._thread.run(async_fn, *args)

    # -- inside

    async def _find(self, daemon_id: str) -> Daemon:
        return self._controller.daemon(daemon_id)

    def _summaries(self, daemons: list[Daemon]) -> list[DaemonSummary]:
        busy = self._controller._service.link.busy_daemons
        return [
            DaemonSummary(
                id=daemon.id,
                version=daemon.info.version,
                labels=daemon.info.labels,
                hostname=daemon.info.hostname,
                platform=daemon.info.platform,
                arch=daemon.info.arch,
                state=daemon.state,
                is_busy=daemon.id in busy,
                connected_at=daemon.info.connected_at,
            )
            for daemon in daemons
        ]


async def _run_bounded(daemon: Daemon, prepared: PreparedCommand) -> CommandResult:
    """`Daemon.run` that ends even if the daemon went away with the command running."""
    bound, spec = math.inf, prepared.spec
    if spec.timeout is not None:
        bound = spec.timeout + spec.kill_grace + ANSWER_SECONDS
    with trio.move_on_after(bound):
        return await daemon._run(prepared)
    raise CommandTimeout(
        f"no result from daemon {daemon.id!r}, which is {daemon.state.value}, within {bound} s; "
        "should the command still run, it is ended on the daemon's return",
        started=None,
    )


def _failed_result(error: SanddError) -> FailedResult:
    partial = error.result if isinstance(error, CommandTimeout) else None
    message = f"{type(error).__name__}: {error}\n".encode()
    if partial is None:
        return FailedResult(
            stdout_bytes=b"",
            stderr_bytes=message,
            exit_code=-1,
            outcome=Outcome.TIMED_OUT if isinstance(error, CommandTimeout) else Outcome.CANCELLED,
            duration=0.0,
            stdout_total=0,
            stderr_total=0,
            truncated=False,
            pipes_held=False,
            job_id="",
            error=error,
        )
    printed = partial.stderr_bytes
    if printed and not printed.endswith(b"\n"):
        printed += b"\n"
    return FailedResult(
        stdout_bytes=partial.stdout_bytes,
        stderr_bytes=printed + message,
        exit_code=-1,
        outcome=partial.outcome,
        duration=partial.duration,
        stdout_total=partial.stdout_total,
        stderr_total=partial.stderr_total,
        truncated=partial.truncated,
        pipes_held=partial.pipes_held,
        job_id=partial.job_id,
        cpu_seconds=partial.cpu_seconds,
        max_rss_bytes=partial.max_rss_bytes,
        limits=partial.limits,
        limit=partial.limit,
        error=error,
    )
