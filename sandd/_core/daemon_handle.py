"""A daemon, as who has its controller sees it: what can be run, held and asked for there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import trio

from sandd import wire
from sandd._core import commands, copying, port_forwards, port_streams, specs
from sandd._core._errors import DaemonGone, RemoteProtocolError
from sandd._core.asking import ask
from sandd._core.daemon_statistics import DaemonStatistics, StatisticsReader
from sandd._core.interrupts import protected_context
from sandd._core.job_info import JobInfo
from sandd._core.process_handle import Process, hold_attached, hold_process
from sandd._core.remote_path import RemotePath
from sandd._core.results import DEFAULT_MAX_OUTPUT, CommandResult
from sandd._core.session_handle import (
    Session,
    describe_recording,
    hold_attached_session,
    hold_session,
    recording,
)
from sandd._core.specs import DEFAULT_SCROLLBACK, KILL_GRACE
from sandd._core.statistics_stream import StatisticsStream
from sandd.wire import DaemonState, Role

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping
    from signal import Signals

    from sandd._core.copying import Patterns, Progress
    from sandd._core.directory import DaemonInfo, Entry
    from sandd._core.job_link import JobHandle, JobLink
    from sandd._core.limits import Limits
    from sandd._core.port_streams import RemoteStream
    from sandd._core.specs import Command, IsolationName, Text
    from sandd._core.transfers.result import TransferResult


class Daemon:
    """One daemon, as its controller sees it. The handle stays valid across reconnects.

    It means one *instance* (one start) of the daemon: when another instance took its place, `state`
    is GONE and nothing more can be run on this handle; take a new one.
    """

    def __init__(self) -> None:
        raise TypeError("use Controller.daemon(), .daemons() or .wait_for_daemon()")

    @classmethod
    def _create(cls, link: JobLink, entry: Entry) -> Daemon:
        self = object.__new__(cls)
        self._link = link
        self._info = entry.info
        return self

    _link: JobLink
    _info: DaemonInfo

    def __repr__(self) -> str:
        return f"<sandd.Daemon {self.id!r} {self.state.value}>"

    @property
    def id(self) -> str:
        """The daemon's id."""
        return self._info.id

    @property
    def info(self) -> DaemonInfo:
        """What the daemon said of itself, at its newest connection."""
        entry = self._link.directory.get(self.id)
        if entry is not None and entry.info.instance == self._info.instance:
            self._info = entry.info
        return self._info

    @property
    def state(self) -> DaemonState:
        """ONLINE; AWAY, when its connection broke and its jobs go on; or GONE for good."""
        entry = self._link.directory.get(self.id)
        if entry is None or entry.info.instance != self._info.instance:
            return DaemonState.GONE
        return entry.state

    async def run(
        self,
        command: Command,
        *,
        input: str | bytes | None = None,
        cwd: Text | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        isolation: IsolationName | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        kill_grace: float = KILL_GRACE,
        max_output: int = DEFAULT_MAX_OUTPUT,
        check: bool = False,
        limits: Limits | None = None,
        require_limits: bool = False,
    ) -> CommandResult:
        """Run a command to its end, and return what it printed.

        While the daemon is away this waits, and the command goes on; output arrives exactly once
        whatever happens to the connection. Cancelling kills the whole remote process tree, and waits
        until that is done (at most `kill_grace` and ten seconds more; not at all for a daemon that is away:
        then it is done on its return).

        So does the end of the command: what it left behind in the background is killed.

        A `timeout` doesn't bound the call itself: if the daemon goes away while the command runs, this
        waits for its return, for up to a day. `trio.fail_after` around it does.

        Args:
            command: a text is run by the daemon's shell; a list is a program and its arguments, run directly.
            input: all of standard input; text is sent as UTF-8. None: the command reads end of file at once.
            cwd: working directory; None: the daemon's.
            env: merged over the daemon's environment.
            user: name or numeric id of the user to run as, which needs a privileged daemon; None: the daemon's.
            isolation: what it is kept apart from, at least: "user", "landlock" or "bwrap"; None: as much as the
                daemon says. It can only raise that.
            timeout: seconds it may run. They count on the daemon, from the start of the process; a
                command that isn't started within them is taken back.
            idle_timeout: seconds it may go without writing anything.
            kill_grace: seconds from SIGTERM to SIGKILL.
            max_output: bytes kept of each of stdout and stderr: of what is longer, head and tail.
            check: raise CommandFailed unless it succeeds.
            limits: what it may use, with all that it starts. The daemon may allow less, and never more; the result
                says what it was held to, and `limit` which one it went beyond. That is no exception.
            require_limits: start nothing if there is a limit that can't be held on the daemon's machine. Without
                it, such a limit is missing in the result's.

        Raises:
            CommandTimeout: it ran out of time and was killed; ``result`` has what it printed until then,
                ``started`` says whether it was started at all (None: not known).
            SpawnFailed: the program could not be started. Nothing ran.
            CommandFailed: `check` was given, and it ended badly; ``result`` has all of it.
            DaemonGone: the daemon is gone for good; ``outcome_unknown`` says whether it may have run.
            RequestRefused: the daemon declined, or has not the `isolation` that was asked for. Nothing ran.
            ValueError: an argument that makes no sense. Nothing ran.
            trio.ClosedResourceError: the controller was closed meanwhile; what ran is killed.
        """
        prepared = commands.prepare(
            command,
            input=input,
            cwd=cwd,
            env=env,
            user=user,
            isolation=isolation,
            timeout=timeout,
            idle_timeout=idle_timeout,
            kill_grace=kill_grace,
            max_output=max_output,
            check=check,
            limits=limits,
            require_limits=require_limits,
        )
        return await self._run(prepared)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, prepared: commands.PreparedCommand) -> CommandResult:
        """As `run`, for whoever has read its arguments already."""
        self._check_not_gone()
        return await commands.run(self._link, self.id, prepared)

    @protected_context
    async def open_process(
        self,
        command: Command,
        *,
        stdin: bool = True,
        stderr: Literal["separate", "merge"] = "separate",
        cwd: Text | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        isolation: IsolationName | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        kill_grace: float = KILL_GRACE,
        lease: float | None = None,
        on_full: Literal["block", "drop_oldest"] = "block",
        detach: bool = False,
        limits: Limits | None = None,
        require_limits: bool = False,
        job_id: str | None = None,
    ) -> AsyncIterator[Process]:
        """Start a command and talk to it while it runs; an async context manager for a `Process`.

        Leaving the block ends the whole remote process tree (SIGTERM, `kill_grace`, SIGKILL) and
        waits until it is gone; for a daemon that is away, that is done on its return.

        With `detach`, or after `Process.detach`, leaving lets it go on, and `attach_process` finds it
        again. What was written to it and has not arrived yet, leaving waits for, ten seconds at most.

        Read both outputs, merge them, or close the one you don't want: as on any pipe, a command stops
        when what it writes isn't read. About a megabyte fits in between.

        Args:
            command: as for `run`, and so are the other arguments that `run` has.
            stdin: False: the command reads end of file at once.
            stderr: "merge" sends it into stdout, in the order of writing.
            lease: seconds that the daemon lets it run while nobody holds it, such as when this program
                has died; None: a day. Then it is killed: `outcome` is LEASE_EXPIRED.
            on_full: "drop_oldest" lets the command go on when what it wrote isn't fetched: the oldest
                is dropped, and reading raises OutputGap there, once.
            detach: it outlives this block and this program, and has no lease. Its results are kept
                for a day after its end. If the block isn't even entered, it is ended all the same.
            job_id: an id of your choice, of 1 to 128 printable characters; starting it twice runs it
                once: the later block takes it over, and the earlier one gets JobTaken. Its input is
                taken for the same input again; what the command has already got is not sent twice.
                When the job is forgotten, as it is on leaving the block, its id is used up for a day.

        Raises:
            SpawnFailed: the program could not be started. Nothing ran.
            CommandTimeout: it was not started within `timeout`. Later, running out of time is no
                exception here: `Process.wait` says TIMED_OUT.
            JobIdConflict: `job_id` is taken by another command. Nothing ran.
            JobNotFound: `job_id` was that of a job which is forgotten by now. Nothing ran by this.
            DaemonGone: the daemon is gone for good; ``outcome_unknown`` says whether it may have run.
            RequestRefused: the daemon declined. Nothing ran.
            ValueError: an argument that makes no sense. Nothing ran.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        if stderr not in ("separate", "merge"):
            raise ValueError(f"stderr is {stderr!r}; it must be 'separate' or 'merge'")
        if job_id is not None:
            specs.check_job_id(job_id)
        spec = specs.build_spec(
            command,
            stdin=stdin,
            merge_stderr=stderr == "merge",
            cwd=cwd,
            env=env,
            user=user,
            isolation=isolation,
            timeout=timeout,
            idle_timeout=idle_timeout,
            kill_grace=kill_grace,
            lease=lease,
            on_full=on_full,
            detach=detach,
            limits=limits,
            require_limits=require_limits,
        )
        await trio.lowlevel.checkpoint_if_cancelled()
        handle = commands.start(
            self._link, self.id, spec, job_id=job_id, input_data=None if stdin else b""
        )
        async with hold_process(
            handle,
            stdin=stdin,
            stderr=stderr == "separate",
            timeout=spec.timeout,
            kill_grace=spec.kill_grace,
        ) as process:
            yield process

    @protected_context
    async def attach_process(
        self,
        job_id: str,
        *,
        since: Mapping[str, int] | None = None,
        read_only: bool = False,
        takeover: bool = False,
        kill_grace: float = KILL_GRACE,
    ) -> AsyncIterator[Process]:
        """A job that exists, running or ended, whoever started it; an async context manager for a `Process`.

        Its outputs give what is kept from `since` on, and then go on live, without a gap or a
        repeat; its end is told, too, if it has ended before.

        Whoever attaches holds the job from then on: it is the one that reads, writes and signals, and
        leaving the block ends the job as leaving `open_process` does, unless it is detached. With
        `read_only` it only looks on: it delays nobody, ends nothing, and is overtaken (OutputGap)
        when it reads too slowly.

        While the daemon is away this waits; cancel it to stop waiting. Cancelled before the block is
        entered, it leaves the job as it is.

        Args:
            job_id: `Process.job_id`, or one of `jobs`.
            since: how many bytes of "stdout" and "stderr" you have already, as `Process.offsets` says;
                where bytes behind that are gone, reading raises OutputGap first. An output that isn't
                named, and None: all that is kept.
            read_only: look on, whoever holds the job.
            takeover: hold it even if somebody else does now; they get JobTaken.
            kill_grace: seconds from SIGTERM to SIGKILL where leaving ends it.

        Raises:
            JobNotFound: there is no such job on this daemon: it never was, or is forgotten.
            RequestRefused: somebody holds it, and `takeover` was not said; or `since` is beyond what it
                has written.
            DaemonGone: the daemon is gone for good, and the job with it.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        offsets = specs.read_offsets(since)
        async with hold_attached(
            await self._attach(job_id, offsets, read_only, takeover, kill_grace),
            kill_grace=kill_grace,
        ) as process:
            yield process

    @protected_context
    async def open_session(
        self,
        command: Command | None = None,
        *,
        rows: int = 24,
        cols: int = 80,
        term: str = "xterm-256color",
        cwd: Text | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        isolation: IsolationName | None = None,
        scrollback: int = DEFAULT_SCROLLBACK,
        kill_grace: float = KILL_GRACE,
        lease: float | None = None,
        detach: bool = False,
        limits: Limits | None = None,
        require_limits: bool = False,
        job_id: str | None = None,
        record: str | os.PathLike[str] | None = None,
        record_input: bool = False,
    ) -> AsyncIterator[Session]:
        """Start a program in a terminal of its own; an async context manager for a `Session`.

        Leaving the block hangs up: the whole remote process tree, jobs in the background included, gets
        SIGHUP, and SIGKILL after `kill_grace`; this waits until it is gone. For a daemon that is away,
        that is done on its return.

        With `detach`, or after `Session.detach`, leaving lets it go on, and `attach_session` finds it again.
        While nobody is attached the program never waits for a reader: what it shows is kept, up to the
        daemon's quota, as long as this program may come back; of a session that was left, the scrollback.

        Args:
            command: as for `run`, but in the terminal; None: the user's shell, interactive,
                but not as a login shell.
            rows: height of the terminal, in characters; see `Session.resize`.
            cols: width of the terminal, in characters.
            term: type of the terminal that will show it: the program's TERM.
            cwd: working directory; None: the daemon's.
            env: merged over the daemon's environment.
            user: name or numeric id of the user to run as, which needs a privileged daemon; None: the daemon's.
            isolation: what it is kept apart from, at least; as for `run`.
            scrollback: bytes of what was read already that are kept, for those who attach later; they are
                in the daemon's memory, so 16 MiB at most.
            kill_grace: seconds from SIGHUP to SIGKILL.
            lease: as for `open_process`, and so are the other arguments that it has.
            record: a file to be made on this side, with all that this block's session shows: in asciicast v3,
                for asciinema (3 and later) and other players. Whatever its disk does, the session goes on;
                if it fails, the log says so. At most 256 MiB.
            record_input: record what is typed, too, passwords among it.

        Raises:
            FileExistsError, OSError: the file to `record` to can't be made; nothing ran.
            SpawnFailed: the program could not be started. Nothing ran.
            JobIdConflict: `job_id` is taken by another job. Nothing ran.
            JobNotFound: `job_id` was that of a job which is forgotten by now. Nothing ran by this.
            DaemonGone: the daemon is gone for good; ``outcome_unknown`` says whether it may have run.
            RequestRefused: the daemon declined. Nothing ran.
            ValueError: an argument that makes no sense. Nothing ran.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        if job_id is not None:
            specs.check_job_id(job_id)
        spec = specs.build_session_spec(
            command,
            rows=rows,
            cols=cols,
            term=term,
            scrollback=scrollback,
            cwd=cwd,
            env=env,
            user=user,
            isolation=isolation,
            kill_grace=kill_grace,
            lease=lease,
            detach=detach,
            limits=limits,
            require_limits=require_limits,
        )
        audit = self._link.audit
        recorder = handle = None
        try:
            async with recording(
                record,
                spec,
                title=f"a session on {self.id}",
                include_input=record_input,
                redactor=audit.redactor,
            ) as recorder:
                await trio.lowlevel.checkpoint_if_cancelled()
                handle = commands.start(self._link, self.id, spec, job_id=job_id)
                async with hold_session(
                    handle, kill_grace=spec.kill_grace, recorder=recorder
                ) as session:
                    yield session
        finally:
            if recorder is not None and handle is not None:
                audit.note(describe_recording(recorder, handle))

    @protected_context
    async def attach_session(
        self,
        job_id: str,
        *,
        since: int | None = None,
        read_only: bool = False,
        takeover: bool = False,
        kill_grace: float = KILL_GRACE,
    ) -> AsyncIterator[Session]:
        """A session that exists, running or ended, whoever opened it; an async context manager for a `Session`.

        It shows what is kept from `since` on, and then goes on live, without a gap or a repeat. Otherwise
        as `attach_process`: whoever attaches types from then on, and ends the session on leaving, unless it
        is detached; with `read_only` it only looks on.

        The size stays as it was, and isn't told: `Session.resize` sets that of your window.

        Args:
            job_id: `Session.job_id`, or one of `jobs`.
            since: how many bytes you have already, as `Session.offset` says; where bytes behind that are
                gone, receiving raises OutputGap first. None: begin with what the scrollback holds.
            read_only: look on, whoever types.
            takeover: type even if somebody else does now; they get JobTaken.
            kill_grace: seconds from SIGHUP to SIGKILL where leaving ends it.

        Raises:
            JobNotFound: there is no such job on this daemon: it never was, or is forgotten.
            RequestRefused: somebody holds it, and `takeover` was not said; or `since` is beyond what it
                has shown; or the job has no terminal.
            DaemonGone: the daemon is gone for good, and the job with it.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        offsets = {} if since is None else {wire.Stream.OUTPUT: specs.read_offset("since", since)}
        async with hold_attached_session(
            await self._attach(job_id, offsets, read_only, takeover, kill_grace),
            kill_grace=kill_grace,
        ) as session:
            yield session

    async def upload(
        self,
        local: Text,
        remote: Text | RemotePath,
        *,
        progress: Progress | None = None,
        update: bool | Literal["hash"] = False,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> TransferResult:
        """Copy a file or a directory tree of this machine to the daemon's.

        It is exact: permissions, times of modification, symbolic links, empty directories and holes are
        as they are here; every file is compared by its SHA-256. Each file at the target is the old one until
        the new one is complete and safe on the disk. What else is in a directory there stays.

        A lost connection interrupts nothing. If this program dies, or the daemon, the same call again goes on
        where it was, also in the middle of a large file. Cancelled, or failing, it leaves no part of a file; those
        that were complete by then stay.

        Args:
            local: a file or a directory; a link there is followed, and those within a tree are copied as links.
            remote: what the copy is to be, its name included. Its directory must be there. A relative path
                starts at the daemon's working directory, or at its ``--root``.
            progress: called with the bytes done and the bytes in all, in this task: about every two megabytes, and
                every few hundred small files. When all is done this still waits until it is safe on the disk there.
            update: True: skip what is there with the same size and time of modification. "hash": skip
                what is there with the same content, whatever its time.
            include: one or several patterns as in a .gitignore; of a tree, only files that match one are copied.
            exclude: likewise; what matches is left out, whatever `include` says.

        Raises:
            TransferError: it could not be done, here or there; mostly the fitting OSError, too. What may not be
                written over (a directory, a device, a named pipe), what lies outside the daemon's
                ``--root``, a full disk, a source that keeps changing: nothing of the file is at the target.
            DaemonGone: the daemon is gone for good.
            RequestRefused: the daemon declined. Nothing was done.
            ValueError, TypeError: an argument that makes no sense. Nothing was done.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        return await copying.upload(
            self._link,
            self.id,
            local,
            self._plain(remote),
            progress=progress,
            update=update,
            include=include,
            exclude=exclude,
        )

    async def download(
        self,
        remote: Text | RemotePath,
        local: Text,
        *,
        progress: Progress | None = None,
        update: bool | Literal["hash"] = False,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> TransferResult:
        """Copy a file or a directory tree of the daemon's machine to this one.

        Otherwise as `upload`, the other way round, arguments and errors included.
        """
        self._check_not_gone()
        return await copying.download(
            self._link,
            self.id,
            self._plain(remote),
            local,
            progress=progress,
            update=update,
            include=include,
            exclude=exclude,
        )

    def path(self, path: str | bytes | os.PathLike[str] | RemotePath) -> RemotePath:
        """A path on the daemon's machine, to look at files there, read and write them.

        A relative one starts at the daemon's working directory; with ``--root`` at that directory, beneath
        which all paths have to stay.
        """
        return RemotePath._create(self, path)

    async def jobs(self) -> list[JobInfo]:
        """All jobs on the daemon, running and ended, in the order in which they were asked for.

        Those of others, too, as long as they are of the same tenant. While the daemon is away this
        waits; cancel it to stop waiting.

        Raises:
            DaemonGone: the daemon is gone for good, and its jobs with it.
            trio.ClosedResourceError: the controller is closed.
        """
        answers = await self._ask(wire.JobsSpec())
        return [JobInfo.from_record(each) for each in answers if isinstance(each, wire.JobRecord)]

    async def statistics(self, *, jobs: bool = True) -> DaemonStatistics:
        """How busy the daemon is now, its machine, and each of its jobs that has not ended.

        Of jobs, those of the same tenant, as `jobs` has them. While the daemon is away this waits; cancel it to
        stop waiting.

        Args:
            jobs: False: without the jobs, which is less work for the daemon.

        Raises:
            DaemonGone: the daemon is gone for good.
            trio.ClosedResourceError: the controller is closed.
        """
        answers = await self._ask(wire.StatisticsSpec(bool(jobs)))
        rounds = StatisticsReader().take(answers)
        if not rounds:
            raise RemoteProtocolError(f"daemon {self.id!r} did not say how busy it is")
        return rounds[-1]

    @protected_context
    async def open_statistics(
        self, *, interval: float = 2.0, jobs: bool = True
    ) -> AsyncIterator[StatisticsStream]:
        """How busy the daemon is, again and again; an async context manager for an endless async iterator.

        It is one request, however long it goes on. While the daemon is away nothing comes, and afterwards some of
        what was not sent; who reads slowly gets all of what the daemon has told so far, and delays the next.

        Args:
            interval: seconds from one to the next, 0.2 to 3,600.
            jobs: as for `statistics`.

        Raises:
            RequestRefused: the daemon tells 64 already. This, and the next, come from the iterator.
            DaemonGone: the daemon is gone for good.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        spec = wire.StatisticsSpec(bool(jobs), specs.check_interval("interval", interval))
        await trio.lowlevel.checkpoint_if_cancelled()
        handle = self._open_request(spec)
        try:
            yield StatisticsStream(handle)
        finally:
            handle.forget()

    async def kill(
        self, job_id: str, *, signal: str | Signals = "TERM", grace: float = KILL_GRACE
    ) -> None:
        """End a job, whoever holds it: returns when nothing of its process tree is left.

        What it wrote, and how it ended, is kept to be read. If it has ended already this does nothing.
        Cancelling stops only the waiting.

        Args:
            job_id: `Process.job_id`, or one of `jobs`.
            signal: what it gets first. "TERM" goes to all of the tree, another to its process group. A
                session is hung up (SIGHUP) instead of "TERM", which shells ignore.
            grace: seconds until SIGKILL to the last of it, 0 to 3,600.

        Raises:
            JobNotFound: there is no such job on this daemon.
            RequestRefused: the daemon's machine has no such signal. Nothing was done.
            DaemonGone: the daemon is gone for good, and the job with it.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        name = specs.normal_signal(signal)
        seconds = specs.check_grace("grace", grace)
        await self._ask(wire.KillSpec(specs.check_job_id(job_id), name, seconds))

    async def forget(self, job_id: str) -> None:
        """Drop a job with all that is kept of it; one that still runs is ended first, as by `kill`.

        Whoever is attached is told (JobNotFound). Its id can't be used again: for ever if it was
        generated, for a day if you chose it.

        Raises:
            JobNotFound: there is no such job on this daemon.
            DaemonGone: the daemon is gone for good, and the job with it.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        await self._ask(wire.ForgetSpec(specs.check_job_id(job_id)))

    async def open_tcp_stream(self, host: str, port: int) -> RemoteStream:
        """A connection made from the daemon's side, to whatever its machine reaches.

        It survives every cut between the controller and the daemon; close it, as any stream. While the
        daemon is away this waits; cancel it to stop waiting.

        Args:
            host: name or address, as the daemon's machine knows it.
            port: 1 to 65,535.

        Raises:
            TransferError: there is no connection; it is ConnectionRefusedError, TimeoutError (after 30 s), or
                another OSError, with EHOSTUNREACH where the name means nothing there.
            RequestRefused: the daemon has too many connections (1,024), or knows no connections.
            DaemonGone: the daemon is gone for good.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        target = specs.address(port, host, None, what="", lowest=1)
        return await port_streams.connect(self._link, self.id, wire.ConnectSpec(*target))

    async def open_unix_stream(self, path: Text) -> RemoteStream:
        """A connection to a Unix socket on the daemon's side; otherwise as `open_tcp_stream`.

        Raises:
            TransferError: there is no connection: FileNotFoundError, PermissionError, ConnectionRefusedError.
            RequestRefused: its machine has no Unix sockets; or as for `open_tcp_stream`.
        """
        self._check_not_gone()
        target = specs.address(None, "", path, what="", lowest=1)
        return await port_streams.connect(self._link, self.id, wire.ConnectSpec(*target))

    @protected_context
    async def forward_port(
        self,
        remote_port: int | None = None,
        *,
        remote_host: str = "127.0.0.1",
        remote_path: Text | None = None,
        local_host: str = "127.0.0.1",
        local_port: int = 0,
        local_path: Text | None = None,
    ) -> AsyncIterator[tuple[str, int]]:
        """Listen here for a port on the daemon's side; an async context manager for ``(host, port)``.

        Whoever connects there talks to `remote_port` of `remote_host`, as if from the daemon's machine.
        Connections survive every cut between the controller and the daemon. One that is refused there, or
        breaks, is reset here and logged; it harms no other. There may be 256 at once: more wait until one
        has ended. Leaving the block resets those that are still there.

        Whoever reaches the listening port reaches the daemon's side: keep it on loopback, or on a
        `local_path`, unless you mean it.

        Args:
            remote_port: 1 to 65,535.
            remote_host: name or address, as the daemon's machine knows it.
            remote_path: of a Unix socket on the daemon's side, instead of a port.
            local_host: the address to listen at.
            local_port: 0: any that is free.
            local_path: of a Unix socket to be made here, for this user alone, instead of a port; then
                what the block gets is ``(path, 0)``.

        Raises:
            OSError: there can't be such a listener here.
            RequestRefused: a path, and this machine has no Unix sockets.
            DaemonGone: the daemon is gone for good.
            ValueError: an argument that makes no sense.
            trio.ClosedResourceError: the controller is closed.
        """
        self._check_not_gone()
        target = specs.address(remote_port, remote_host, remote_path, what="remote_", lowest=1)
        address = specs.address(local_port, local_host, local_path, what="local_", lowest=0)
        async with port_forwards.forward(
            self._link, self.id, wire.ConnectSpec(*target), wire.ListenSpec(*address)
        ) as bound:
            yield bound

    @protected_context
    async def reverse_port(
        self,
        local_port: int | None = None,
        *,
        local_host: str = "127.0.0.1",
        local_path: Text | None = None,
        remote_host: str = "127.0.0.1",
        remote_port: int = 0,
        remote_path: Text | None = None,
    ) -> AsyncIterator[tuple[str, int]]:
        """Listen on the daemon's side for a port here; an async context manager for ``(host, port)``.

        As `forward_port`, the other way round: whoever connects to the daemon's side talks to `local_port`
        of `local_host`. Nothing listens there any more once the block is left; if the daemon is away
        by then, when it returns.

        Args:
            local_port: 1 to 65,535.
            local_host: name or address, as this machine knows it.
            local_path: of a Unix socket here, instead of a port.
            remote_host: the address to listen at, on the daemon's machine.
            remote_port: 0: any that is free there.
            remote_path: of a Unix socket to be made there, instead of a port.

        Raises:
            TransferError: there can't be such a listener there; it is the fitting OSError, too.
            DaemonGone: the daemon is gone for good; also in the block, once that is so.
            RequestRefused, ValueError, trio.ClosedResourceError: as for `forward_port`.
        """
        self._check_not_gone()
        target = specs.address(local_port, local_host, local_path, what="local_", lowest=1)
        address = specs.address(remote_port, remote_host, remote_path, what="remote_", lowest=0)
        async with port_forwards.reverse(
            self._link, self.id, wire.ConnectSpec(*target), wire.ListenSpec(*address)
        ) as bound:
            yield bound

    async def _attach(
        self,
        job_id: str,
        since: Mapping[wire.Stream, int],
        read_only: bool,
        takeover: bool,
        kill_grace: float,
    ) -> JobHandle:
        if read_only and takeover:
            raise ValueError("read_only and takeover: who only looks on takes nothing over")
        specs.check_job_id(job_id)
        specs.check_grace("kill_grace", kill_grace)
        await trio.lowlevel.checkpoint_if_cancelled()
        # Nothing is awaited from here to the block that will let go of it.
        return self._link.attach(
            self.id,
            job_id,
            role=Role.VIEWER if read_only else Role.OWNER,
            takeover=takeover,
            since=since,
            kill_grace=kill_grace,
        )

    async def _ask(self, request: wire.Spec) -> list[wire.Answer]:
        self._check_not_gone()
        return await ask(self._link, self.id, request)

    def _plain(self, path: Text | RemotePath) -> Text:
        return bytes(self.path(path)) if isinstance(path, RemotePath) else path

    def _open_request(self, request: wire.Spec, input_data: bytes | None = None) -> JobHandle:
        """Start a request, given all of its input or to be given more; whoever calls this lets go of it."""
        self._check_not_gone()
        return self._link.open(self.id, request, input_data=input_data)

    def _check_not_gone(self) -> None:
        if self.state is DaemonState.GONE:
            raise DaemonGone(
                f"daemon {self.id!r}, started as {self._info.instance}, is gone; it did not run this",
                outcome_unknown=False,
            )
