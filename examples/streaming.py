"""Live output, input and signals: a build as it goes, a conversation, a server that is stopped."""

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]
BUILD = "for part in parse compile link; do echo $part; sleep 0.3; done; echo done >&2"
TALK = "while read name; do echo hello $name; done; echo bye"
SERVE = "trap 'echo stopped; exit' INT; echo serving; while :; do sleep 0.1; done"


async def lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[str, None]:
    """The lines of a stream, whose chunks end anywhere, in mid-character too."""
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def work(worker: sandd.Daemon) -> None:
    """Three commands, watched and talked to while they run."""
    # Merged: a stderr of its own would have to be read too, or a full one stops the command.
    async with worker.open_process(BUILD, stderr="merge", timeout=60) as process:
        async for line in lines(process.stdout):
            print(f"build: {line}")
        print(f"build: exit code {(await process.wait()).exit_code}")
    async with worker.open_process(TALK) as process, aclosing(lines(process.stdout)) as answers:
        for name in ("Ada", "Grace"):
            await process.stdin.send_all(f"{name}\n".encode())
            print(f"talk: {await anext(answers)}")
        await process.stdin.aclose()  # end of file
        print(f"talk: {await anext(answers)}")
    async with worker.open_process(SERVE) as process:
        async for line in lines(process.stdout):
            print(f"serve: {line}")
            if line == "serving":
                await process.signal("INT")


async def main() -> None:
    """Start a controller, a daemon of our own, and work with it."""
    async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, [*DAEMON, "--server-url", controller.url])
        with trio.fail_after(60):
            await work(await controller.wait_for_daemon("worker-1"))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
