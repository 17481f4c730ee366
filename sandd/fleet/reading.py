"""``sandd logs``: what a job has printed, and with ``--follow`` what it prints."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import trio

from sandd._core._errors import OutputGap
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.connecting import open_connection
from sandd.command_line.exit_codes import code_of_status
from sandd.command_line.finding_jobs import find_job
from sandd.command_line.outages import minding_outages
from sandd.command_line.stopping import run_command
from sandd.command_line.telling import say
from sandd.fleet.output import FILES, Output

if TYPE_CHECKING:
    import argparse

    from sandd._core.job_info import JobInfo
    from sandd._core.own_output import Name
    from sandd.command_line.stopping import Stop
    from sandd.controller import Process


def run_logs(options: argparse.Namespace) -> int:
    """Print what a job has printed; returns the exit code."""
    return run_command(partial(_logs, options))


async def _logs(options: argparse.Namespace, stop: Stop) -> int:
    output = Output(stop)
    async with open_connection(options) as controller:
        daemon, job = await find_job(controller, options.job, wait=options.wait)
        await _tell_what_is_gone(job)
        async with (
            minding_outages(controller, daemon, wait=options.wait),
            daemon.attach_process(job.job_id, read_only=True) as process,
        ):
            async with open_unwrapping_nursery() as nursery:
                for file in FILES:
                    end = math.inf if options.follow else job.kept[file].end
                    nursery.start_soon(_copy, process, file, end, output)
            return code_of_status(await process.wait()) if options.follow else 0


async def _copy(process: Process, name: Name, end: float, output: Output) -> None:
    """Print one of its outputs, up to that offset or to its end."""
    stream = process.stdout if name == "stdout" else process.stderr
    while process.offsets[name] < end:
        try:
            chunk = await stream.receive_some()
        except OutputGap as gap:
            await say(f"[bytes {gap.start} to {gap.end} of its {name} are not kept any more]")
            continue
        except trio.BrokenResourceError:
            return  # the job was lost; who waits for its end is told
        if not chunk:
            return
        await output.put(name, bytes(chunk))


async def _tell_what_is_gone(job: JobInfo) -> None:
    for name in FILES:
        if job.kept[name].base:
            await say(
                f"[the first {job.kept[name].base} bytes of its {name} are not kept any more: whoever "
                "holds it has read them, or they were dropped]"
            )
