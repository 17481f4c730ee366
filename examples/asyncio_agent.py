"""An agent on plain asyncio: 100 commands over 10 daemons, a few at a time on each, with a progress bar."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from rich.progress import Progress

import sandd
import sandd.aio

DAEMONS, COMMANDS, AT_ONCE = 10, 100, 4


@asynccontextmanager
async def daemon_process(url: str, daemon_id: str) -> AsyncIterator[None]:
    """A daemon as a child of this program; in real life it starts in a sandbox."""
    command = [sys.executable, "-m", "sandd.daemon", "--server-url", url, "--daemon-id", daemon_id]
    process = await asyncio.create_subprocess_exec(*command, "--log-level", "warning")
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def main() -> None:
    """Start everything, do the work, and say what came of it."""
    async with sandd.aio.open_controller(port=0) as controller, AsyncExitStack() as stack:
        for number in range(DAEMONS):
            await stack.enter_async_context(daemon_process(controller.url, f"worker-{number}"))
        async with asyncio.timeout(60):
            workers = [await controller.wait_for_daemon(f"worker-{n}") for n in range(DAEMONS)]
        places = {worker.id: asyncio.Semaphore(AT_ONCE) for worker in workers}

        with Progress(disable=not sys.stdout.isatty()) as progress:
            bar = progress.add_task("commands", total=COMMANDS)

            async def work(number: int) -> sandd.CommandResult:
                worker = workers[number % DAEMONS]
                async with places[worker.id]:
                    result = await worker.run(f"echo {number} squared is $(({number} * {number}))")
                progress.advance(bar)
                return result

            async with (
                asyncio.TaskGroup() as tasks
            ):  # cancelled, it takes the remote commands along
                running = [tasks.create_task(work(number)) for number in range(COMMANDS)]

        results = [task.result() for task in running]
        print(results[12].stdout.strip())
        print(Counter(result.success for result in results)[True], "of", COMMANDS, "succeeded")
        print(len({result.job_id for result in results}), "jobs on", DAEMONS, "daemons")


if __name__ == "__main__":
    asyncio.run(main())
