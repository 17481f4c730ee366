"""An agent whose controller is another program: it starts `sandd controller`, waits for it, and connects."""

import asyncio
import contextlib
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import sandd

SANDD = [sys.executable, "-m", "sandd"]


@contextlib.asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """A program of sandd's, and what it says; elsewhere a service manager starts both of them."""
    program = await asyncio.create_subprocess_exec(*SANDD, *arguments, stdout=PIPE, stderr=DEVNULL)
    assert program.stdout is not None
    try:
        yield program.stdout
    finally:
        program.terminate()
        await program.wait()


async def work(url: str, token: str) -> None:
    """What an agent does all day, with daemons that are another program's."""
    # On trio it is sandd.connect_controller, in threads sandd.connect.
    async with sandd.aio.connect_controller(url, token=token) as controller:
        worker = await asyncio.wait_for(controller.wait_for_daemon("worker-1"), timeout=30)
        result = await worker.run("echo hello from $0", timeout=10)
        print(f"exit code {result.exit_code}, output {result.stdout!r}")


async def main() -> None:
    """A controller and a daemon, as programs of their own, for as long as the agent works."""
    with tempfile.TemporaryDirectory() as state:
        async with running("controller", "--port", "0", "--state-dir", state) as said:
            # Once it listens it says "ready" and where. By then its token is in its state directory, which
            # is ~/.local/state/sandd/controller-8765, where nothing else is said.
            ready, url = (await said.readline()).decode().split()
            print(ready)
            token = (Path(state) / "operator.token").read_text()
            async with running("daemon", "--server-url", url, "--daemon-id", "worker-1"):
                await work(url, token)


if __name__ == "__main__":
    asyncio.run(main())
