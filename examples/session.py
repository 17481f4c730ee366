"""A terminal on a daemon: a shell that is typed to, left running, found again, and looked at by two."""

import sys

import trio

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]
SHELL = ["sh", "-i"]


async def shown_until(session: sandd.Session, text: bytes) -> str:
    """What the terminal shows up to that text, or to the end."""
    shown = b""
    while text not in shown and (chunk := await session.receive_some()):
        shown += chunk
    return shown.decode("utf-8", "replace")


async def main() -> None:
    """A session and a daemon, both of which end with this program."""
    async with trio.open_nursery() as nursery, sandd.open_controller(port=0) as controller:
        nursery.start_soon(trio.run_process, [*DAEMON, "--server-url", controller.url])
        with trio.fail_after(60):
            worker = await controller.wait_for_daemon("worker-1")
            await work(worker)
        nursery.cancel_scope.cancel()


async def work(worker: sandd.Daemon) -> None:
    """Type, interrupt, leave, come back."""
    async with worker.open_session(SHELL, rows=30, cols=100, env={"PS1": "$ "}) as session:
        await session.send_all(b"stty size\r")  # Enter is a carriage return
        print("its size:", "30 100" in await shown_until(session, b"30 100"))

        await session.send_all(b"(echo ru''nning; exec sleep 1000)\r")
        await shown_until(session, b"running")  # the line itself, as it is typed, hasn't it
        await session.send_all(b"\x03echo in''terrupted\r")  # Ctrl-C, for what is in the foreground
        print("interrupted:", "interrupted" in await shown_until(session, b"interrupted"))

        await session.detach()  # from now on leaving the block ends nothing

    async with (
        worker.attach_session(session.job_id) as again,  # shows its scrollback first
        worker.attach_session(session.job_id, read_only=True) as onlooker,
    ):
        await again.send_all(b"echo se''en; exit 3\r")
        print("seen by both:", "seen" in await shown_until(again, b"seen"), end=" ")
        print("seen" in await shown_until(onlooker, b"seen"))
        print("exit code:", (await again.wait()).exit_code)
    await worker.forget(session.job_id)  # or what it showed is kept for a day


if __name__ == "__main__":
    trio.run(main)
