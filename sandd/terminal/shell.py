"""``sandd shell`` and ``sandd attach``: from a command line to a session, and from its end to an exit code.

The order in which things are undone is what matters here. Innermost is the raw terminal, which is put back
before anything is waited for; around it the session, which is ended unless it goes on; around that the
connection to the controller, or a controller and a daemon of our own; outermost what `program` does.
"""

from __future__ import annotations

import os
import shlex
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from sandd._core._errors import SpawnFailed
from sandd._core.interrupts import protected_context
from sandd.command_line.connecting import open_connection
from sandd.command_line.exit_codes import OUR_FAILURE, code_of_status
from sandd.command_line.finding_jobs import find_job
from sandd.command_line.options import LOCAL_ID, limits_of
from sandd.command_line.outages import minding_outages
from sandd.command_line.reaching import reach_daemon
from sandd.command_line.stopping import Failure, check_directory
from sandd.terminal.conversation import Conversation, Ending
from sandd.terminal.program import run_at_terminal
from sandd.terminal.replay import ReplayFilter
from sandd.wire import DaemonState

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from sandd._core.job_info import JobInfo
    from sandd.command_line.outages import Outages
    from sandd.command_line.stopping import Stop
    from sandd.controller import Daemon, Session
    from sandd.terminal.conversation import Ended
    from sandd.terminal.local import LocalTerminal

NOTICE_SECONDS: Final = 0.5
"""How long the daemon has to be away to be worth a line across somebody's editor: who types notices it by then."""
HUNG_UP: Final = 129
"""As if SIGHUP had come, which it mostly does."""


def run_shell(options: argparse.Namespace) -> int:
    """Hold a new session at this terminal; returns the exit code. Nothing is left of the terminal's modes."""
    if options.daemon is None:
        if not options.local:
            options.parser.error("it takes a DAEMON, or --local")
        options.daemon = LOCAL_ID
    if options.local and options.detach:
        options.parser.error(
            "--local and --detach: the session would end with the daemon, and that with us"
        )
    return run_at_terminal(partial(_shell, options))


def run_attach(options: argparse.Namespace) -> int:
    """Hold a session that exists at this terminal; returns the exit code."""
    if options.read_only and options.takeover:
        options.parser.error("--read-only and --takeover: who only looks on takes nothing over")
    return run_at_terminal(partial(_attach, options))


# ---- the two commands -----------------------------------------------------------------------------


async def _shell(options: argparse.Namespace, terminal: LocalTerminal, stop: Stop) -> int:
    async with (
        reach_daemon(options, options.daemon, stop) as (controller, daemon),
        minding_outages(controller, daemon, wait=options.wait) as outages,
    ):
        return await hold_new_session(options, daemon, terminal, outages)


async def hold_new_session(
    options: argparse.Namespace, daemon: Daemon, terminal: LocalTerminal, outages: Outages
) -> int:
    """A session as the options say, at this terminal; returns the exit code."""
    size = terminal.size
    opening = daemon.open_session(
        options.remote_command,
        rows=size.rows,
        cols=size.columns,
        term=os.environ.get("TERM") or "xterm-256color",
        cwd=options.cwd,
        env=dict(options.env),
        user=options.user,
        isolation=options.isolation,
        detach=options.detach,
        limits=limits_of(options),
        require_limits=options.require_limits,
        record=options.record,
    )
    async with _opened(options, opening) as session:
        why_not = "this daemon ends with this command (--local), and all of its sessions do"
        where = Where(daemon, session.job_id, goes_on=options.detach)
        conversation = partial(
            Conversation, size=size, why_not_detach=why_not if options.local else ""
        )
        return await _converse(outages, where, terminal, session, conversation)


@protected_context
async def _opened(
    options: argparse.Namespace, opening: AbstractAsyncContextManager[Session, bool | None]
) -> AsyncIterator[Session]:
    """The session; what can't be used of the options is told from a program that isn't there."""
    async with AsyncExitStack() as stack:
        try:
            session = await stack.enter_async_context(opening)
        except SpawnFailed as error:
            check_directory(error, options.cwd)
            raise
        except OSError as error:  # of the file alone: what fails on the daemon is a SpawnFailed
            raise Failure(f"--record {options.record}: {error.strerror or error}") from error
        yield session


async def _attach(options: argparse.Namespace, terminal: LocalTerminal, _: Stop) -> int:
    async with open_connection(options) as controller:
        daemon, job = await find_job(controller, options.job, wait=options.wait, sessions=True)
        if job.owned and not (options.read_only or options.takeover):
            raise Failure(
                f"somebody is attached to {daemon.id}/{job.job_id}: --takeover takes it from them, "
                "--read-only looks on"
            )
        async with (
            minding_outages(controller, daemon, wait=options.wait) as outages,
            daemon.attach_session(
                job.job_id, read_only=options.read_only, takeover=options.takeover
            ) as session,
        ):
            goes_on = options.read_only or job.detached
            where = Where(daemon, job.job_id, goes_on, options.read_only)
            if options.read_only:
                await terminal.say("[you look on; ~. leaves]")
            return await _converse(
                outages,
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
    outages: Outages,
    where: Where,
    terminal: LocalTerminal,
    session: Session,
    converse: Callable[[LocalTerminal, Session], Conversation],
) -> int:
    """Let terminal and session talk; then say how that ended. Returns the exit code."""
    async with terminal.raw_mode():
        outages.begun(where.outage_meaning, say=terminal.say, after=NOTICE_SECONDS)
        ended = await converse(terminal, session).run()
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

    @property
    def outage_meaning(self) -> str:
        """What a person wants to know while the daemon is away."""
        kept = "" if self.read_only else " What you type is kept."
        return f"if it lives, the session goes on.{kept} ~. leaves"

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
                return code_of_status(ended.status)
            case Ending.LEFT:
                return 0 if self.goes_on else OUR_FAILURE
            case Ending.DETACHED:
                return 0
            case Ending.HUNG_UP:
                return HUNG_UP


def _shown_before(job: JobInfo) -> int:
    """Offset of the first byte of its output that nobody has been shown."""
    return max((each.end for each in job.kept.values()), default=0)
