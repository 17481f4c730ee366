"""A job that outlives the agent that started it: the next one finds it, reads on, and has its end."""

import sys
from collections.abc import Mapping

import trio

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]
BUILD = "for part in parse compile link; do echo $part; sleep 0.5; done; echo done"


async def first_agent(nursery: trio.Nursery) -> tuple[int, Mapping[str, int]]:
    """Starts a build and reads its beginning; the port it was at, and how far it has read."""
    async with sandd.open_controller(port=0) as controller:
        nursery.start_soon(trio.run_process, [*DAEMON, "--server-url", controller.url])
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process(BUILD, detach=True, job_id="build") as process:
            print("first:", await process.stdout.receive_some())
            offsets = process.offsets  # an agent that may be killed writes this down
    return int(controller.address.rpartition(":")[2]), offsets


async def second_agent(port: int, offsets: Mapping[str, int]) -> None:
    """Finds the build, and sees it through. It might as well be another program."""
    async with sandd.open_controller(port=port) as controller:  # where the daemon looks for one
        worker = await controller.wait_for_daemon("worker-1")
        for job in await worker.jobs():
            print(f"second: {job.job_id!r} is {job.state}, held by anybody: {job.owned}")

        # Whoever only looks on can be there at the same time, and reads all of it.
        async with (
            worker.attach_process("build", since=offsets) as process,
            worker.attach_process("build", read_only=True) as viewer,
        ):
            print("second:", b"".join([chunk async for chunk in process.stdout]))
            print("viewer:", b"".join([chunk async for chunk in viewer.stdout]))
            print("exit code:", (await process.wait()).exit_code)

        await worker.forget("build")  # or its results are kept for a day
        print("jobs left:", await worker.jobs())


async def main() -> None:
    """Two agents, one after the other, and a daemon that outlives them."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            port, offsets = await first_agent(nursery)
            await second_agent(port, offsets)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
