"""``sandd exec``: from a command line to a process on a daemon, and from its end to an exit code.

What a local command would do, this one does: bytes go through as they come, a full pipe holds the command up,
and whoever stops reading ends it. Ctrl-C goes to the command first, which may have to say something about it; a
second one, and any other signal, ends it with its whole tree.
"""

from __future__ import annotations

import sys
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from sandd._core._errors import SpawnFailed
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.own_output import CantWrite
from sandd.command_line.exit_codes import code_of_status
from sandd.command_line.options import limits_of
from sandd.command_line.outages import minding_outages
from sandd.command_line.reaching import reach_daemon
from sandd.command_line.stopping import Failure, check_directory, run_command
from sandd.command_line.telling import put_out, say
from sandd.executing.own_input import CHUNK_BYTES, descriptor_of, read_chunks
from sandd.terminal.program import run_at_terminal
from sandd.terminal.shell import hold_new_session
from sandd.wire import Outcome

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from sandd._core.own_output import Name
    from sandd._core.results import ExitStatus
    from sandd.command_line.stopping import Stop
    from sandd.controller import Process
    from sandd.terminal.local import LocalTerminal

_UNEXPECTED_ENDS: Final[Mapping[Outcome, str]] = {
    Outcome.LEASE_EXPIRED: "nobody held it for so long that its lease passed",
    Outcome.OUT_OF_MEMORY: "its memory was not enough",
    Outcome.LIMIT_EXCEEDED: "it went beyond a limit",
    Outcome.CANCELLED: "somebody has asked for that (as 'sandd kill' does), or the daemon was stopped",
}
"""Why a command was ended that didn't end by itself."""


def run_exec(options: argparse.Namespace) -> int:
    """Run a command on a daemon, or begin it (``--detach``); returns the exit code."""
    if options.terminal:
        return run_at_terminal(partial(_exec_at_terminal, options))
    return run_command(partial(_exec, options))


async def _exec_at_terminal(
    options: argparse.Namespace, terminal: LocalTerminal, stop: Stop
) -> int:
    async with (
        reach_daemon(options, options.daemon, stop) as (controller, daemon),
        minding_outages(controller, daemon, wait=options.wait) as outages,
    ):
        return await hold_new_session(options, daemon, terminal, outages)


async def _exec(options: argparse.Namespace, stop: Stop) -> int:
    async with (
        reach_daemon(options, options.daemon, stop) as (controller, daemon),
        minding_outages(controller, daemon, wait=options.wait) as outages,
    ):
        try:
            async with daemon.open_process(
                options.remote_command,
                stdin=options.interactive,
                cwd=options.cwd,
                env=dict(options.env),
                user=options.user,
                isolation=options.isolation,
                timeout=options.timeout,
                idle_timeout=options.idle_timeout,
                detach=options.detach,
                limits=limits_of(options),
                require_limits=options.require_limits,
            ) as process:
                if not options.detach:
                    outages.begun("if it lives, the command goes on there")
                    return await _Execution(options, process, stop).run()
        except SpawnFailed as error:
            check_directory(error, options.cwd)
            raise
        await _tell_begun(f"{daemon.id}/{process.job_id}")
        return 0


async def _tell_begun(job: str) -> None:
    try:
        await put_out(job)
    except CantWrite:
        # Whoever doesn't learn that it was begun begins it again.
        await say(f"sandd: the job is {job}, and has been begun")
        raise


@define(eq=False)
class _Execution:
    """A command that runs there, and this program's streams."""

    _options: argparse.Namespace
    _process: Process
    _stop: Stop

    async def run(self) -> int:
        """Until it has ended, and all it wrote has been written here; the exit code."""
        async with open_unwrapping_nursery() as beside:
            beside.start_soon(self._hand_on, self._stop.spare_interrupt())
            if self._options.interactive:
                beside.start_soon(self._feed)
            async with open_unwrapping_nursery() as outputs:
                outputs.start_soon(self._copy, self._process.stdout, "stdout")
                outputs.start_soon(self._copy, self._process.stderr, "stderr")
            status = await self._process.wait()
            beside.cancel_scope.cancel()
        if (why := describe_end(status, self._options)) is not None:
            await say(f"sandd: the command was killed: {why}")
        return code_of_status(status)

    async def _copy(self, output: trio.abc.ReceiveStream, name: Name) -> None:
        while True:
            try:
                data = await output.receive_some(CHUNK_BYTES)
            except trio.BrokenResourceError:
                return  # `wait` says why
            if not data:
                return
            # A command that nobody hears is ended: what it would say is lost.
            await self._stop.write(name, data)

    async def _feed(self) -> None:
        """Our stdin to the command, and its end too; an end of the command is for others to tell."""
        stdin = self._process.stdin
        descriptor = descriptor_of(sys.stdin)
        try:
            if descriptor is not None:
                async with aclosing(read_chunks(descriptor)) as chunks:
                    async for data in chunks:
                        await stdin.send_all(data)
            await stdin.aclose()
        except trio.BrokenResourceError:
            pass
        except OSError as error:
            raise Failure(f"stdin: {error.strerror}") from error

    async def _hand_on(self, interrupted: trio.Event) -> None:
        """The first Ctrl-C to the command, as a terminal would."""
        await interrupted.wait()
        await self._process.signal("INT")


def describe_end(status: ExitStatus, options: argparse.Namespace) -> str | None:
    """Why it has not ended by itself, nor by a signal that its exit code tells."""
    if status.outcome is Outcome.TIMED_OUT:
        total, silent = options.timeout, options.idle_timeout
        if silent is not None and (total is None or status.duration < total):
            return f"it wrote nothing for {silent:g} s (--idle-timeout)"
        if total is not None:
            return f"it ran for {total:g} s (--timeout)"
        return "it ran out of time"  # of somebody else's: the daemon's own
    if status.limit is not None:
        most = getattr(status.limits, status.limit)
        return f"it went beyond its limit {status.limit}={most}"
    return _UNEXPECTED_ENDS.get(status.outcome)
