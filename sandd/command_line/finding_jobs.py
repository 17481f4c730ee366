"""The job that a command is about, on whichever daemon it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from sandd._core._errors import SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.choosing import NoSuchJob
from sandd.command_line.outages import minding_outages
from sandd.command_line.reaching import find_daemon
from sandd.command_line.stopping import Failure
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandd._core.job_info import JobInfo
    from sandd.command_line.choosing import JobName
    from sandd.controller import Controller, Daemon

ASK_SECONDS: Final = 5.0
"""For all daemons to list their jobs, where any of them may have the one that is meant."""


async def find_job(
    controller: Controller, name: JobName, *, wait: float | None = None, sessions: bool = False
) -> tuple[Daemon, JobInfo]:
    """The one job that is meant, and its daemon; with `sessions` it has to be one.

    A daemon that is named is waited for, as ``--wait`` says it. Else all that are online are asked.

    Raises:
        NoSuchJob: there is none, or several are meant; says which there are.
        Failure: there is no such daemon, or it was away for too long.
    """
    if name.daemon_id is not None:
        daemon = await find_daemon(controller, name.daemon_id, wait=wait)
        async with minding_outages(controller, daemon, wait=wait):
            daemons, jobs = {daemon.id: daemon}, {daemon.id: await daemon.jobs()}
    else:
        daemons = {each.id: each for each in controller.daemons()}
        if not daemons:
            raise Failure("no daemon is connected to this controller")
        jobs = await _jobs_everywhere(daemons.values())
    try:
        daemon_id, job = _choose(name, jobs, sessions=sessions)
    except NoSuchJob as error:
        silent = sorted(each for each in daemons if each not in jobs)
        more = f"\nnot asked, or without an answer: {', '.join(silent)}" if silent else ""
        raise NoSuchJob(f"{error}{more}") from error
    return daemons[daemon_id], job


def _choose(
    name: JobName, jobs: Mapping[str, list[JobInfo]], *, sessions: bool
) -> tuple[str, JobInfo]:
    if not sessions:
        return name.choose(jobs)
    only = {daemon_id: [job for job in there if job.terminal] for daemon_id, there in jobs.items()}
    try:
        return name.choose(only, noun="session")
    except NoSuchJob as error:
        try:
            daemon_id, job = name.choose(jobs)
        except NoSuchJob:
            raise error from None
        raise NoSuchJob(
            f"{daemon_id}/{job.job_id} has no terminal: it is a command, and no session"
        ) from None


async def _jobs_everywhere(daemons: Iterable[Daemon]) -> dict[str, list[JobInfo]]:
    """The jobs of all daemons that are online and tell them in time."""
    jobs: dict[str, list[JobInfo]] = {}

    async def ask(daemon: Daemon) -> None:
        try:
            jobs[daemon.id] = await daemon.jobs()
        except SanddError:
            pass  # gone meanwhile, or it knows no lists: it is among the silent ones

    with trio.move_on_after(ASK_SECONDS):
        async with open_unwrapping_nursery() as nursery:
            for daemon in daemons:
                if daemon.state is DaemonState.ONLINE:
                    nursery.start_soon(ask, daemon)
    return jobs
