"""A controller with an agent of its own: ``python -m benchmarks.soak.host PORT STATE COUNT JOBS``.

It says its URL. The agent has a number of jobs to do on each of so many daemons, one after the other, each under an id
that follows from its place; it notes which are done, and goes on there when it is started again. When all are done, it
says so. It ends when its stdin does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

import sandd
from benchmarks.soak.work import LongJob, name_of


async def main() -> None:
    """Be a controller until stdin ends."""
    port, state, count, jobs = int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    async with (
        sandd.open_controller(port=port, state_dir=state / "controller") as controller,
        trio.open_nursery() as nursery,
    ):
        print(json.dumps({"url": controller.url}), flush=True)

        async def work() -> None:
            wrong: list[str] = []
            async with trio.open_nursery() as workers:
                for number in range(count):
                    workers.start_soon(do_jobs, controller, name_of(number), state, jobs, wrong)
            print(json.dumps({"wrong": wrong}), flush=True)

        nursery.start_soon(work)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def do_jobs(
    controller: sandd.Controller, name: str, state: Path, jobs: int, wrong: list[str]
) -> None:
    """Do those on one daemon that are not done yet."""
    done = state / f"agent-{name}.done"
    begin = len(done.read_text().split()) if done.exists() else 0
    daemon = await controller.wait_for_daemon(name)
    for number in range(begin, jobs):
        job = LongJob(f"agent-{name}-{number}", state, lines=60)
        # Under its id it is started once, however often it is asked for; and goes on without us.
        async with daemon.open_process(
            job.command, stdin=False, job_id=job.id, detach=True
        ) as process:
            complaint = await job.read(process)
        if complaint is not None:
            wrong.append(complaint)
        with done.open("a") as file:
            file.write(f"{number}\n")
        await daemon.forget(job.id)


if __name__ == "__main__":
    trio.run(main)
