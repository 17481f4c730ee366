"""Every call, cancelled at each of its awaits: nothing is left here or there, and the connection is as it was."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final

import pytest
import trio
from cancelling import cancel_at_each_await
from process_tools import living_tasks, read_line, until
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import DaemonState, JobNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

MOST_AWAITS: Final = 300
"""No call takes so many; one that does would never be seen to its end."""
NEW: Final = bytes(range(256)) * 2000
"""What a file is to be."""
TREE: Final = "trap '' TERM; setsid sleep 60 & echo on; cat; sleep 60"


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that all of them share: each leaves it as it was."""
    with standing_daemon() as daemon:
        yield daemon


class Calls:
    """What an agent can ask for, each with the awaits of its whole life."""

    def __init__(
        self,
        controller: sandd.Controller,
        worker: sandd.Daemon,
        marker: Marker,
        directory: Path,
    ) -> None:
        self.controller = controller
        self.worker = worker
        self.env = dict([marker])
        self.here = worker.path(directory)

    async def run(self) -> None:
        """Input, output and an end of its own."""
        result = await self.worker.run("cat; exit 3", input="said", env=self.env, kill_grace=0)
        assert (result.stdout, result.exit_code) == ("said", 3)

    async def run_with_much(self) -> None:
        """More input and output than all buffers hold."""
        data = bytes(3_000_000)
        result = await self.worker.run(["cat"], input=data, env=self.env, kill_grace=0)
        assert result.stdout_bytes == data

    async def run_a_tree_out_of_time(self) -> None:
        """One that has to be killed."""
        with pytest.raises(sandd.CommandTimeout):
            await self.worker.run(TREE, timeout=0.05, env=self.env, kill_grace=0)

    async def open_process(self) -> None:
        """A conversation, a signal, and the end of a tree that has to be killed."""
        async with self.worker.open_process(TREE, env=self.env, kill_grace=0) as process:
            assert await process.stdout.receive_some(2) == b"on"
            await process.stdin.wait_send_all_might_not_block()
            await process.stdin.send_all(b"and on")
            assert await read_line(process.stdout) == b""
            assert await process.stdout.receive_some() == b"and on"
            await process.terminate()
            await process.stdin.aclose()
            await process.stderr.aclose()

    async def open_session(self) -> None:
        """Type, see it, another size, and the hang-up."""
        async with self.worker.open_session(TREE, env=self.env, kill_grace=0) as session:
            await session.wait_send_all_might_not_block()
            await session.send_all(b"typed")
            await session.resize(10, 20)
            assert await session.receive_some()
            await session.signal("CONT")
            async with self.worker.attach_session(session.job_id, read_only=True) as onlooker:
                assert await onlooker.receive_some()
            await session.aclose()

    async def wait(self) -> None:
        """For the end of a process, and of its output."""
        async with self.worker.open_process("echo on", env=self.env, kill_grace=0) as process:
            assert (await process.wait()).success
            assert await read_line(process.stdout) == b"on"
            await process.kill()

    async def attach_process(self) -> None:
        """To look on, as long as it lasts."""
        async with self.worker.open_process(["cat"], env=self.env, kill_grace=0) as process:
            async with self.worker.attach_process(process.job_id, read_only=True) as viewer:
                await process.stdin.send_all(b"seen")
                assert await viewer.stdout.receive_some() == b"seen"

    async def take_over(self) -> None:
        """From another block of the same program."""
        async with self.worker.open_process(["cat"], env=self.env, kill_grace=0) as process:
            async with self.worker.attach_process(process.job_id, takeover=True, kill_grace=0):
                pass

    async def detach(self) -> None:
        """What goes on without us, until it is forgotten."""
        async with self.worker.open_process(["cat"], env=self.env, kill_grace=0) as process:
            await process.stdin.send_all(b"input")
            await process.detach()
        await self.worker.forget(process.job_id)

    async def requests(self) -> None:
        """A list, a kill, and a job that is forgotten."""
        async with self.worker.open_process(TREE, env=self.env, kill_grace=0) as process:
            assert len(await self.worker.jobs()) == 1
            await self.worker.kill(process.job_id, grace=0)
            await self.worker.forget(process.job_id)

    async def broadcast(self) -> None:
        """A command on all of them, and an absent one waited for."""
        await self.controller.wait_for_daemon(self.worker.id)
        (result,) = (await self.controller.broadcast("echo on", env=self.env)).values()
        assert isinstance(result, sandd.CommandResult)

    async def look_at_files(self) -> None:
        """Each in one question, and one with many answers."""
        assert await (self.here / "file").exists()
        assert await self.here.glob("fi*") == [self.here / "file"]
        assert len(await (self.here / "file").read_bytes(length=3)) == 3

    async def change_files(self) -> None:
        """A tree is made, and removed."""
        await (self.here / "tree/deep").mkdir(parents=True, exist_ok=True)
        await (self.here / "tree/file").touch()
        await (self.here / "tree").rmtree()

    async def write_a_small_file(self) -> None:
        """In one question."""
        await (self.here / "file").write_bytes(NEW[:1000])

    async def write_a_file(self) -> None:
        """More than all buffers hold."""
        await (self.here / "file").write_bytes(NEW)

    async def open_write(self) -> None:
        """Piece by piece, to an end of its own."""
        async with (self.here / "file").open_write() as stream:
            await stream.wait_send_all_might_not_block()
            await stream.send_all(NEW[:10])
            await stream.send_all(NEW[10:])

    async def open_read(self) -> None:
        """Not to its end."""
        async with (self.here / "file").open_read() as stream:
            await stream.receive_some(3)

    async def open_events(self) -> None:
        """Until the next of them."""
        async with self.controller.open_events() as events:
            with trio.move_on_after(0.001):
                await anext(events)


@pytest.mark.parametrize("name", [name for name in vars(Calls) if not name.startswith("_")])
async def test_cancelled_at_every_await_nothing_is_left(
    daemon: StandingDaemon, marker: Marker, name: str, tmp_path: Path
) -> None:
    """No process, job, task or half a file; what is asked for next is answered, over the same connection."""
    file = tmp_path / "file"
    file.write_bytes(b"old")
    # Up to fifty lives of a call, one after the other: ten seconds, and more on a machine that is busy.
    async with daemon.controller(within=55.0) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        call = getattr(Calls(controller, worker, marker, tmp_path), name)
        await worker.run("true")
        connected_at = worker.info.connected_at
        tasks = living_tasks()

        async def check() -> None:
            for job in await worker.jobs():
                # Cancelled while it was being detached, it may have been; and who gives up a takeover
                # after its first holder was told leaves the job to its lease.
                assert name in ("detach", "take_over")
                with contextlib.suppress(JobNotFound):
                    await worker.forget(job.job_id)
            await until(lambda: not [each for each in os.listdir(tmp_path) if each[0] == "."])
            assert file.read_bytes() in (b"old", NEW[:1000], NEW)
            assert marker.processes() == []
            assert controller.statistics().jobs == 0
            assert (await worker.run("echo well")).stdout == "well\n"
            await until(lambda: living_tasks() == tasks)
            assert (worker.state, worker.info.connected_at) == (DaemonState.ONLINE, connected_at)

        assert await cancel_at_each_await(call, check) > 0


async def test_cancelled_at_every_await_a_controller_is_closed() -> None:
    """While it opens, while it is open, and while it closes: by the leak check, nothing is left of it."""

    async def call() -> None:
        async with sandd.open_controller(port=0):
            await trio.lowlevel.checkpoint()

    async def check() -> None:
        await trio.lowlevel.checkpoint()

    assert await cancel_at_each_await(call, check) > 2
