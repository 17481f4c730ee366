"""An agent on plain asyncio: a hundred commands over ten daemons at once, and a progress bar."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from rich.progress import Progress

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--log-level", "warning"]
DAEMONS, COMMANDS = 10, 100


@contextlib.asynccontextmanager
async def running_daemons(url: str) -> AsyncIterator[None]:
    """Ten daemons as children of this program; elsewhere each is a sandbox' entry point."""
    daemons = []
    try:
        for n in range(DAEMONS):
            command = [*DAEMON, "--server-url", url, "--daemon-id", f"worker-{n}"]
            daemons.append(await asyncio.create_subprocess_exec(*command))
        yield
    finally:
        for daemon in daemons:
            daemon.terminate()
        await asyncio.gather(*(daemon.wait() for daemon in daemons))


async def work(controller: sandd.aio.Controller) -> None:
    """Run a hundred commands, and one that takes too long."""
    async with asyncio.timeout(45):
        workers = [await controller.wait_for_daemon(f"worker-{n}") for n in range(DAEMONS)]

    async def square(number: int) -> int:
        result = await workers[number % DAEMONS].run(f"echo $(({number} * {number}))", check=True)
        progress.advance(bar)
        return int(result.stdout)

    with Progress() as progress:
        bar = progress.add_task("commands", total=COMMANDS)
        async with asyncio.TaskGroup() as tasks:
            squares = [tasks.create_task(square(number)) for number in range(COMMANDS)]
    total = sum(task.result() for task in squares)
    print(f"{COMMANDS} commands on {DAEMONS} daemons: the squares add up to {total}")

    with contextlib.suppress(TimeoutError):  # cancelling kills the remote tree, and waits for that
        await asyncio.wait_for(workers[0].run("sleep 4321"), timeout=0.5)
    print(f"out of time; jobs left: {await workers[0].jobs()}")


async def main() -> None:
    """Start a controller and the daemons, and work with them."""
    async with sandd.aio.open_controller(port=0) as controller, running_daemons(controller.url):
        await work(controller)


if __name__ == "__main__":
    asyncio.run(main())
