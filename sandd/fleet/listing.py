"""``sandd ps`` and ``sandd jobs``: who is there, and what runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from sandd._core._errors import SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.connecting import open_connection
from sandd.command_line.reaching import find_daemon
from sandd.command_line.stopping import Failure, run_command
from sandd.command_line.telling import put_json, put_out
from sandd.fleet import tables
from sandd.fleet.watching import watch
from sandd.wire import DaemonState

if TYPE_CHECKING:
    import argparse

    from sandd._core.job_info import JobInfo
    from sandd.command_line.stopping import Stop
    from sandd.controller import Daemon

MOST_AT_ONCE = 256
"""Daemons that are asked at the same time: each takes a moment of this program's, and some memory."""


def run_ps(options: argparse.Namespace) -> int:
    """List daemons; returns the exit code."""
    return run_command(partial(_ps, options))


def run_jobs(options: argparse.Namespace) -> int:
    """List jobs; returns the exit code."""
    return run_command(partial(_jobs, options))


# ---- daemons --------------------------------------------------------------------------------------


async def _ps(options: argparse.Namespace, _: Stop) -> int:
    async with open_connection(options) as controller:
        choose = partial(controller.daemons, dict(options.labels), match=options.match)
        if options.watch:
            await watch(controller, choose, as_json=options.json)
            raise Failure("the connection to the controller is closed")
        daemons = choose()
        if options.json:
            for daemon in daemons:
                await put_json(tables.daemon_object(daemon.info, daemon.state))
            return 0
        rows = [tables.daemon_row(each.info, each.state) for each in daemons]
        await put_out("\n".join(tables.Layout().lines([tables.DAEMON_HEADER, *rows])))
    return 0


# ---- jobs -----------------------------------------------------------------------------------------


async def _jobs(options: argparse.Namespace, _: Stop) -> int:
    async with open_connection(options) as controller:
        if options.daemon is not None:
            daemons = [await find_daemon(controller, options.daemon, wait=None)]
        else:
            daemons = controller.daemons()
        answers = await ask_all(daemons, options.timeout)
        if options.json:
            await _put_objects(answers)
        else:
            await put_out("\n".join(tables.Layout().lines(_rows(answers))))
    if options.daemon is not None and isinstance(why := answers[options.daemon], str):
        raise Failure(f"{options.daemon} did not say which jobs it has: {why}")
    return 0


async def ask_all(daemons: list[Daemon], seconds: float) -> dict[str, list[JobInfo] | str]:
    """The jobs of each daemon, by its id, or why they are not known: all within so many seconds."""
    answers: dict[str, list[JobInfo] | str] = {}
    limiter = trio.CapacityLimiter(MOST_AT_ONCE)

    async def ask(daemon: Daemon) -> None:
        async with limiter:
            try:
                answers[daemon.id] = await daemon.jobs()
            except SanddError as error:
                answers[daemon.id] = str(error)

    with trio.move_on_after(seconds):
        async with open_unwrapping_nursery() as nursery:
            for daemon in daemons:
                answers[daemon.id] = "no answer"
                if daemon.state is DaemonState.ONLINE:
                    nursery.start_soon(ask, daemon)
    for daemon in daemons:
        if isinstance(answers[daemon.id], str) and daemon.state is not DaemonState.ONLINE:
            answers[daemon.id] = daemon.state.value
    return dict(sorted(answers.items()))


def _rows(answers: dict[str, list[JobInfo] | str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [tables.JOB_HEADER]
    for daemon_id, answer in answers.items():
        if isinstance(answer, str):
            rows.append(tables.unanswered_row(daemon_id, answer))
        else:
            rows += [tables.job_row(daemon_id, job) for job in _newest_first(answer)]
    return rows


async def _put_objects(answers: dict[str, list[JobInfo] | str]) -> None:
    for daemon_id, answer in answers.items():
        if isinstance(answer, str):
            await put_json(tables.unanswered_object(daemon_id, answer))
        else:
            for job in _newest_first(answer):
                await put_json(tables.job_object(daemon_id, job))


def _newest_first(jobs: list[JobInfo]) -> list[JobInfo]:
    return sorted(jobs, key=lambda job: job.age)
