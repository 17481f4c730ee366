"""The job that a command is about, on whichever daemon it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from sandd._core._errors import SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.choosing import NoSuchJob
from sandd.command_line.reaching import find_daemon
from sandd.command_line.stopping import Failure
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from sandd._core.job_info import JobInfo
    from sandd.command_line.choosing import JobName
    from sandd.controller import Controller, Daemon

ASK_SECONDS: Final = 5.0
"""For all daemons to list their jobs, where any of them may have the one that is meant."""


async def find_job(
    controller: Controller, name: JobName, *, wait: float = 0.0, sessions: bool = False
) -> tuple[Daemon, JobInfo]:
    """The one job that is meant, and its daemon; with `sessions` only those count.

    A daemon that is named is waited for while it is away, and for `wait` seconds if it is unknown. Else all that
    are online are asked.

    Raises:
        NoSuchJob: there is none, or several are meant; says which there are.
        Failure: there is no such daemon.
    """
    noun = "session" if sessions else "job"
    if name.daemon_id is not None:
        daemon = await find_daemon(controller, name.daemon_id, wait=wait)
        return daemon, name.choose({daemon.id: await list_jobs(daemon, sessions)}, noun=noun)[1]

    daemons = {each.id: each for each in controller.daemons()}
    if not daemons:
        raise Failure("no daemon is connected to this controller")
    jobs: dict[str, list[JobInfo]] = {}

    async def ask(daemon: Daemon) -> None:
        try:
            jobs[daemon.id] = await list_jobs(daemon, sessions)
        except SanddError:
            pass  # gone meanwhile, or it knows no lists: it is among the silent ones

    with trio.move_on_after(ASK_SECONDS):
        async with open_unwrapping_nursery() as nursery:
            for daemon in daemons.values():
                if daemon.state is DaemonState.ONLINE:
                    nursery.start_soon(ask, daemon)
    try:
        daemon_id, job = name.choose(jobs, noun=noun)
    except NoSuchJob as error:
        silent = [each for each in daemons if each not in jobs]
        more = f"\nnot asked, or without an answer: {', '.join(silent)}" if silent else ""
        raise NoSuchJob(f"{error}{more}") from error
    return daemons[daemon_id], job


async def list_jobs(daemon: Daemon, sessions: bool = False) -> list[JobInfo]:
    """The jobs there, or the sessions among them."""
    return [job for job in await daemon.jobs() if job.terminal or not sessions]
