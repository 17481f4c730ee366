"""``sandd shell`` and ``sandd attach``: from a command line to a session, and from its end to an exit code.

The order in which things are undone is what matters here. Innermost is the raw terminal, which is put back
before anything is waited for; around it the session, which is ended unless it goes on; around that the
daemon, where it is a child of ours, and the controller; outermost what `program` does.
"""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.interrupts import protected_context
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.controller import open_controller
from sandd.local_daemon import open_local_daemon
from sandd.terminal.choosing import JobName
from sandd.terminal.conversation import Conversation, Ending, tell_outages
from sandd.terminal.program import OUR_FAILURE, Failure, fail, run_at_terminal
from sandd.terminal.replay import ReplayFilter
from sandd.wire import DaemonState

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from sandd._core.job_info import JobInfo
    from sandd._core.results import ExitStatus
    from sandd.controller import Controller, Daemon, Session
    from sandd.local_daemon import LocalDaemon
    from sandd.terminal.conversation import Ended
    from sandd.terminal.local import LocalTerminal
    from sandd.terminal.program import Stop

DEFAULT_PORT: Final = 8765
_TAKEN: Final = "; another sandd, or a program of yours, is the controller there"
START_SECONDS: Final = 20.0
"""For a daemon of ours to dial in: half a second, or much more on a machine that is busy."""
GATHERING_SECONDS: Final = 2.0
"""For the daemons to dial in, once one has, where a job is to be found on any of them. Daemons whose
controller has just come back are there within a second or two, mostly."""
HUNG_UP: Final = 129
"""As if SIGHUP had come, which it mostly does."""


def run_shell(options: argparse.Namespace) -> int:
    """Hold a new session at this terminal; returns the exit code. Nothing is left of the terminal's modes."""
    if options.local and options.detach:
        return fail("--local and --detach: the session would end with the daemon, and that with us")
    return run_at_terminal(partial(_shell, options))


def run_attach(options: argparse.Namespace) -> int:
    """Hold a session that exists at this terminal; returns the exit code."""
    if options.read_only and options.takeover:
        return fail("--read-only and --takeover: who only looks on takes nothing over")
    try:
        name = JobName.parse(options.job)
    except ValueError as error:
        return fail(str(error))
    return run_at_terminal(partial(_attach, options, name))


# ---- the two commands -----------------------------------------------------------------------------


async def _shell(options: argparse.Namespace, terminal: LocalTerminal, stop: Stop) -> int:
    async with _listening(options, default_port=0 if options.local else DEFAULT_PORT) as controller:
        async with _daemon(options, controller, terminal, stop) as daemon:
            size = terminal.size
            opening = daemon.open_session(
                options.remote_command,
                rows=size.rows,
                cols=size.columns,
                term=os.environ.get("TERM") or "xterm-256color",
                cwd=options.cwd,
                env=dict(options.env),
                user=options.user,
                detach=options.detach,
                record=options.record,
            )
            async with _opened(options, opening) as session:
                why_not = "this daemon ends with this command (--local), and all of its sessions do"
                where = Where(daemon, session.job_id, goes_on=options.detach)
                conversation = partial(
                    Conversation, size=size, why_not_detach=why_not if options.local else ""
                )
                return await _converse(controller, where, terminal, session, conversation)


@protected_context
async def _opened(
    options: argparse.Namespace, opening: AbstractAsyncContextManager[Session, bool | None]
) -> AsyncIterator[Session]:
    """The session; what can't be used of the options is told from a program that isn't there."""
    async with AsyncExitStack() as stack:
        try:
            session = await stack.enter_async_context(opening)
        except SpawnFailed as error:
            if options.cwd is not None and error.filename == options.cwd:
                raise Failure(str(error)) from error
            raise
        except OSError as error:  # of the file alone: what fails on the daemon is a SpawnFailed
            raise Failure(f"--record {options.record}: {error.strerror or error}") from error
        yield session


async def _attach(
    options: argparse.Namespace, name: JobName, terminal: LocalTerminal, _: Stop
) -> int:
    async with _listening(options, default_port=DEFAULT_PORT) as controller:
        daemon, job = await _find(options, name, controller, terminal)
        if job.owned and not (options.read_only or options.takeover):
            raise Failure(
                f"somebody is attached to {daemon.id}/{job.job_id}: --takeover takes it from them, "
                "--read-only looks on"
            )
        async with daemon.attach_session(
            job.job_id, read_only=options.read_only, takeover=options.takeover
        ) as session:
            goes_on = options.read_only or job.detached
            where = Where(daemon, job.job_id, goes_on, options.read_only)
            if options.read_only:
                await terminal.say("[you look on; ~. leaves]")
            return await _converse(
                controller,
                where,
                terminal,
                session,
                partial(
                    Conversation,
                    read_only=options.read_only,
                    replay=ReplayFilter(_shown_before(job)),
                ),
            )


async def _converse(
    controller: Controller,
    where: Where,
    terminal: LocalTerminal,
    session: Session,
    converse: Callable[[LocalTerminal, Session], Conversation],
) -> int:
    """Let terminal and session talk; then say how that ended. Returns the exit code."""
    async with terminal.raw_mode():
        async with controller.open_events() as events, open_unwrapping_nursery() as nursery:
            nursery.start_soon(
                partial(tell_outages, where.daemon, events, terminal, read_only=where.read_only)
            )
            ended = await converse(terminal, session).run()
            nursery.cancel_scope.cancel()
    told = where.describe(ended)
    if told:
        await terminal.say(f"\n[{told}]")
    return where.exit_code(ended)


class Where(NamedTuple):
    """The session that is talked to."""

    daemon: Daemon
    job_id: str
    goes_on: bool
    """It is none of ours to end."""
    read_only: bool = False

    def describe(self, ended: Ended) -> str:
        """What a person wants to know at the end; nothing if it is what they expect."""
        back = shlex.join(["sandd", "attach", f"{self.daemon.id}/{self.job_id}"])
        match ended.ending:
            case Ending.EXITED | Ending.HUNG_UP:
                return ""
            case Ending.LEFT if not self.goes_on and self.daemon.state is DaemonState.AWAY:
                return (
                    f"left while {self.daemon.id} was away: until its lease is over the session goes "
                    f"on there: {back}"
                )
            case Ending.LEFT if not self.goes_on:
                return f"left; the session on {self.daemon.id} is being ended"
            case Ending.LEFT | Ending.DETACHED:
                return f"left; the session goes on: {back}"

    def exit_code(self, ended: Ended) -> int:
        """Of this program."""
        match ended.ending:
            case Ending.EXITED:
                assert ended.status is not None
                return exit_code(ended.status)
            case Ending.LEFT:
                return 0 if self.goes_on else OUR_FAILURE
            case Ending.DETACHED:
                return 0
            case Ending.HUNG_UP:
                return HUNG_UP


def exit_code(status: ExitStatus) -> int:
    """As a shell has it: the command's own, or 128 and the signal's number."""
    return status.exit_code if status.exit_code >= 0 else 128 - status.exit_code


# ---- the controller, the daemon, the job ------------------------------------------------------------


@protected_context
async def _listening(
    options: argparse.Namespace, *, default_port: int
) -> AsyncIterator[Controller]:
    port = default_port if options.port is None else options.port
    token = None
    if options.token_file is not None:
        try:
            token = await trio.Path(options.token_file).read_bytes()
        except OSError as error:
            raise Failure(f"--token-file {options.token_file}: {error.strerror}") from error
    async with AsyncExitStack() as stack:
        opening = open_controller(options.host, port, token=token)
        try:
            controller = await stack.enter_async_context(opening)
        except OSError as error:
            number = error.errno or 0
            taken = _TAKEN if number == errno.EADDRINUSE else ""
            # Its own text has the address in it already; one of a name that can't be found has no number.
            why = os.strerror(number) if number > 0 else error.strerror or error
            raise Failure(f"can't listen on {options.host}:{port}: {why}{taken}") from error
        yield controller


@protected_context
async def _daemon(
    options: argparse.Namespace, controller: Controller, terminal: LocalTerminal, stop: Stop
) -> AsyncIterator[Daemon]:
    """The daemon that was asked for, once it is there; with ``--local`` it is ours, and ends with the block."""
    if not options.local:
        await terminal.say(_invitation(controller, options.daemon, options.token_file))
        yield await controller.wait_for_daemon(options.daemon)
        return
    token = [] if options.token_file is None else ["--token-file", options.token_file]
    with tempfile.TemporaryDirectory(prefix="sandd-shell-", ignore_cleanup_errors=True) as path:
        async with open_local_daemon(
            controller.url, options.daemon, Path(path), options=token, on_start=stop.kill_if_hurried
        ) as child:
            daemon = await child.dialled_in(controller, START_SECONDS)
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(_watch, child)
                yield daemon
                nursery.cancel_scope.cancel()


async def _watch(child: LocalDaemon) -> None:
    code = await child.process.wait()
    raise Failure(f"the daemon has ended, with {code}. Its last words:\n{child.last_words()}")


async def _find(
    options: argparse.Namespace, name: JobName, controller: Controller, terminal: LocalTerminal
) -> tuple[Daemon, JobInfo]:
    """The job that is meant, and its daemon, once that has dialled in."""
    await terminal.say(_invitation(controller, name.daemon_id, options.token_file))
    if name.daemon_id is not None:
        await controller.wait_for_daemon(name.daemon_id)
    else:
        async with controller.open_events() as events:
            while not controller.daemons():
                await anext(events)
        await trio.sleep(GATHERING_SECONDS)
    daemons = {
        daemon.id: daemon
        for daemon in controller.daemons()
        if name.daemon_id in (None, daemon.id) and daemon.state is DaemonState.ONLINE
    }
    jobs: dict[str, list[JobInfo]] = {}

    async def ask(daemon: Daemon) -> None:
        jobs[daemon.id] = [job for job in await daemon.jobs() if job.terminal]

    async with open_unwrapping_nursery() as nursery:
        for daemon in daemons.values():
            nursery.start_soon(ask, daemon)
    daemon_id, job = name.choose(jobs)
    return daemons[daemon_id], job


def _invitation(controller: Controller, daemon_id: str | None, token_file: str | None) -> str:
    """Who is waited for, and what starts it."""
    command = ["python", "-m", "sandd.daemon", "--server-url", controller.url]
    command += ["--daemon-id", daemon_id or "ID"]
    command += [] if token_file is None else ["--token-file", token_file]
    whom = "a daemon" if daemon_id is None else f"the daemon {daemon_id!r}"
    return (
        f"sandd: waiting for {whom} at {controller.url}. Unless it is running (then it dials again "
        f"within half a minute), start it:\n"
        f"  {shlex.join(command)}"
    )


def _shown_before(job: JobInfo) -> int:
    """Offset of the first byte of its output that nobody has been shown."""
    return max((each.end for each in job.kept.values()), default=0)
