"""``sandd kill`` and ``sandd forget``: jobs that are to end, or to be no more."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sandd._core._errors import SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.own_output import CantWrite, ReaderGone
from sandd.command_line.connecting import open_connection
from sandd.command_line.exit_codes import OUR_FAILURE, code_of_error
from sandd.command_line.finding_jobs import find_job
from sandd.command_line.outages import minding_outages
from sandd.command_line.stopping import Failure, run_command
from sandd.command_line.telling import put_out, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from sandd.command_line.choosing import JobName
    from sandd.command_line.stopping import Stop
    from sandd.controller import Controller, Daemon

    Act = Callable[[Daemon, str], Awaitable[None]]


def run_kill(options: argparse.Namespace) -> int:
    """End jobs; returns the exit code."""

    async def kill(daemon: Daemon, job_id: str) -> None:
        await daemon.kill(job_id, signal=options.signal, grace=options.grace)

    return run_command(partial(_on_each, options, kill))


def run_forget(options: argparse.Namespace) -> int:
    """Drop jobs; returns the exit code."""

    async def forget(daemon: Daemon, job_id: str) -> None:
        await daemon.forget(job_id)

    return run_command(partial(_on_each, options, forget))


async def _on_each(options: argparse.Namespace, act: Act, _: Stop) -> int:
    """Do it to all of them at once: one that can't be found, or takes its time, keeps no other from it."""
    code = 0

    async def on(controller: Controller, name: JobName) -> None:
        nonlocal code
        try:
            daemon, job = await find_job(controller, name, wait=options.wait)
            async with minding_outages(controller, daemon, wait=options.wait):
                await act(daemon, job.job_id)
            await put_out(f"{daemon.id}/{job.job_id}")
        except ReaderGone as error:
            code = code or code_of_error(error)
        except (SanddError, Failure, CantWrite) as error:
            code = OUR_FAILURE
            await say(f"sandd: {error}")

    async with open_connection(options) as controller, open_unwrapping_nursery() as nursery:
        for name in options.jobs:
            nursery.start_soon(on, controller, name)
    return code
