"""`Daemon.open_process` with a real daemon: live streams, signals, ids, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from daemons import open_daemon
from process_tools import PATIENCE, read_all, read_line, until
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import CommandTimeout, DaemonGone, JobIdConflict, JobTaken, Outcome, SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

MB = 1_000_000
TREE = (
    "trap '' TERM; sleep 60 & (sleep 60; :) & setsid sleep 60 & "
    "(setsid sh -c 'sleep 60 & sleep 60' &) ; echo planted; sleep 60; :"
)
TREE_SIZE = 7


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


# ---- talking to it ------------------------------------------------------------------------------


async def test_a_conversation_line_by_line(daemon: StandingDaemon) -> None:
    """What is sent is read at once, and what is answered can be read at once."""
    async with daemon.worker() as worker, worker.open_process(["cat"]) as process:
        for number in range(50):
            line = f"line {number}".encode()
            await process.stdin.send_all(line + b"\n")
            assert await read_line(process.stdout) == line
        await process.stdin.aclose()

        assert await read_all(process.stdout) == b""
        assert (await process.wait()).exit_code == 0


async def test_both_directions_at_once_without_a_deadlock(daemon: StandingDaemon) -> None:
    """Megabytes go through a filter whichever side is full at the moment."""
    data = random.Random(4).randbytes(8 * MB)
    async with daemon.worker() as worker, worker.open_process(["cat"]) as process:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def feed() -> None:
                await process.stdin.send_all(data)
                await process.stdin.aclose()

            assert await read_all(process.stdout) == data
        assert (await process.wait()).success


async def test_closing_stdin_is_end_of_file(daemon: StandingDaemon) -> None:
    """A program that reads to the end sees it when stdin is closed, not before."""
    async with daemon.worker() as worker, worker.open_process("wc -c") as process:
        await process.stdin.send_all(b"12345")
        with trio.move_on_after(0.3):
            await process.wait()
            pytest.fail("it ended before its input did")
        await process.stdin.aclose()

        assert (await process.wait()).success
        assert (await read_all(process.stdout)).strip() == b"5"


async def test_without_stdin_the_program_reads_the_end_at_once(daemon: StandingDaemon) -> None:
    """``stdin=False`` is the null device there, and no stream here."""
    async with (
        daemon.worker() as worker,
        worker.open_process("cat; echo x", stdin=False) as process,
    ):
        assert await read_all(process.stdout) == b"x\n"
        with pytest.raises(trio.ClosedResourceError, match="stdin=False"):
            process.stdin  # noqa: B018 - the property raises


async def test_both_output_streams_are_live(daemon: StandingDaemon) -> None:
    """stdout and stderr arrive while the process runs, each on its own."""
    script = "echo out; echo err >&2; read x; echo bye >&2"
    async with daemon.worker() as worker, worker.open_process(script) as process:
        assert await read_line(process.stderr) == b"err"
        assert await read_line(process.stdout) == b"out"
        await process.stdin.send_all(b"\n")
        assert await read_all(process.stderr) == b"bye\n"
        assert await read_all(process.stdout) == b""


async def test_merged_stderr_keeps_the_order_of_writing(daemon: StandingDaemon) -> None:
    """With ``stderr="merge"`` both come from stdout as they were written."""
    script = "for i in $(seq 500); do echo o$i; echo e$i >&2; done"
    async with daemon.worker() as worker:
        async with worker.open_process(script, stderr="merge") as process:
            lines = (await read_all(process.stdout)).decode().split()
            assert lines == [f"{kind}{i}" for i in range(1, 501) for kind in "oe"]
            with pytest.raises(trio.ClosedResourceError, match="merge"):
                process.stderr  # noqa: B018 - the property raises


async def test_output_is_complete_after_the_process_was_waited_for(daemon: StandingDaemon) -> None:
    """`wait` needs nobody to read; what fits the buffers can be read afterwards, to the last byte."""
    async with daemon.worker() as worker:
        async with worker.open_process("head -c 200000 /dev/zero; echo end >&2") as process:
            assert (await process.wait()).success
            assert len(await read_all(process.stdout)) == 200_000
            assert await read_all(process.stderr) == b"end\n"


async def test_receive_some_returns_at_most_what_was_asked_for(daemon: StandingDaemon) -> None:
    """``max_bytes`` is a limit, and nothing is lost by it."""
    data = random.Random(5).randbytes(100_000)
    async with daemon.worker() as worker, worker.open_process(["cat"]) as process:
        await process.stdin.send_all(data)
        await process.stdin.aclose()
        received = b""
        for size in [1, 2, 3, 1000, 1, 99_999]:
            chunk = await process.stdout.receive_some(size)
            assert 1 <= len(chunk) <= size
            received += chunk
        assert received + await read_all(process.stdout) == data
        assert process.offsets == {"stdout": 100_000, "stderr": 0}


# ---- back-pressure ------------------------------------------------------------------------------


async def test_a_reader_that_stops_stops_the_command_and_nobody_else(
    daemon: StandingDaemon, tmp_path: Any
) -> None:
    """The command blocks on its full pipe, another job doesn't notice, and not a byte is lost."""
    count = 30 * MB
    written = tmp_path / "written"
    program = (
        "import os\n"
        f"left, done = {count}, os.open({str(written)!r}, os.O_CREAT | os.O_WRONLY)\n"
        "while left:\n"
        "    left -= os.write(1, bytes(min(left, 65536)))\n"
        f"    os.pwrite(done, b'%10d' % ({count} - left), 0)\n"
    )

    def progress() -> int:
        return int(written.read_text() or 0) if written.exists() else 0

    async with daemon.worker() as worker:
        async with worker.open_process([sys.executable, "-c", program]) as process:
            await process.stdout.receive_some(1)
            await until(progress)
            seen = -1
            while seen != (seen := progress()):
                await trio.sleep(1.0)
            assert 0 < seen < 4 * MB, "the bound is the window, the ring and the pipe"

            took = []
            for _ in range(20):
                started = trio.current_time()
                assert (await worker.run("echo hi")).stdout == "hi\n"
                took.append(trio.current_time() - started)
            assert sorted(took)[10] < 5.0  # behind the one that is stuck it would be for ever
            assert (await worker.run("head -c 5000000 /dev/zero")).stdout_total == 5 * MB
            assert progress() == seen

            assert len(await read_all(process.stdout)) == count - 1
            assert (await process.wait()).success


async def test_input_nobody_reads_stops_the_sender_and_nobody_else(
    daemon: StandingDaemon,
) -> None:
    """`send_all` waits where the command doesn't read; a second job has all its speed."""
    async with daemon.worker() as worker:
        async with worker.open_process("sleep 60", kill_grace=0) as process:
            with trio.move_on_after(1.0) as scope:
                await process.stdin.send_all(bytes(20 * MB))
            assert scope.cancelled_caught

            data = random.Random(6).randbytes(5 * MB)
            assert (await worker.run("cat", input=data)).stdout_bytes == data


async def test_a_stream_that_is_closed_is_drained(daemon: StandingDaemon) -> None:
    """Who closes stdout wants no more of it: the command goes on as with /dev/null."""
    async with daemon.worker() as worker:
        async with worker.open_process("head -c 20000000 /dev/zero; echo done >&2") as process:
            await process.stdout.aclose()
            assert await read_all(process.stderr) == b"done\n"
            assert (await process.wait()).success


# ---- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["INT", "SIGHUP", "usr1", "KILL"])
async def test_signal_reaches_the_process(daemon: StandingDaemon, name: str) -> None:
    """By any of a signal's names."""
    short = name.upper().removeprefix("SIG")
    async with daemon.worker() as worker:
        async with worker.open_process(f"trap 'exit 42' {short}; echo on; read x") as process:
            assert await read_line(process.stdout) == b"on"
            await process.signal(name)
            status = await process.wait()
    if short == "KILL":
        assert (status.signal, status.exit_code) == ("SIGKILL", -9)
    else:
        assert (status.signal, status.exit_code) == (None, 42)


async def test_signals_arrive_in_order_and_once(daemon: StandingDaemon) -> None:
    """Each is one request, and none is sent again."""
    program = (
        "import os, signal\n"
        "for s in (10, 12): signal.signal(s, lambda n, _: os.write(1, b'%d ' % n))\n"
        "os.write(1, b'on\\n')\n"
        "while True: signal.pause()\n"
    )
    async with daemon.worker() as worker:
        async with worker.open_process([sys.executable, "-c", program]) as process:
            assert await read_line(process.stdout) == b"on"
            got = b""
            for number in range(20):
                await process.signal("USR1" if number % 2 else "USR2")
                got += await process.stdout.receive_some()
            assert got.split() == [b"12", b"10"] * 10
            await process.terminate()
            assert (await process.wait()).signal == "SIGTERM"


async def test_terminate_and_kill_are_those_signals(daemon: StandingDaemon) -> None:
    """`terminate` can be declined, `kill` can't."""
    async with daemon.worker() as worker:
        async with worker.open_process(
            "trap 'echo no' TERM; echo on; while :; do sleep 0.05; done"
        ) as process:
            assert await read_line(process.stdout) == b"on"
            await process.terminate()
            assert await read_line(process.stdout) == b"no"
            await process.kill()
            assert (await process.wait()).signal == "SIGKILL"


async def test_a_signal_after_the_end_does_nothing(daemon: StandingDaemon) -> None:
    """There is nobody to get it, and that is no error; a word that is no signal is one."""
    async with daemon.worker() as worker, worker.open_process("true") as process:
        await process.wait()
        await process.signal("INT")
        await process.kill()
        with pytest.raises(ValueError, match="not the name of a signal"):
            await process.signal("NONSENSE")


async def test_everybody_may_wait(daemon: StandingDaemon) -> None:
    """Any number of tasks get the same status, also afterwards."""
    async with daemon.worker() as worker, worker.open_process("read x; exit 5") as process:
        statuses = []

        async def wait() -> None:
            statuses.append(await process.wait())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert statuses == []
            await process.stdin.aclose()
        assert {status.exit_code for status in [*statuses, await process.wait()]} == {5}


async def test_cancelled_waiting_changes_nothing(daemon: StandingDaemon) -> None:
    """Neither `wait` nor a read that is given up costs a byte or the status."""
    async with daemon.worker() as worker, worker.open_process(["cat"]) as process:
        for _ in range(20):
            with trio.move_on_after(0.002):
                await process.wait()
            with trio.move_on_after(0.002):
                await process.stdout.receive_some()
        await process.stdin.send_all(b"whole")
        await process.stdin.aclose()
        assert await read_all(process.stdout) == b"whole"
        assert (await process.wait()).success


async def test_timeout_is_told_by_wait(daemon: StandingDaemon, marker: Marker) -> None:
    """Running out of time is no exception here: the status says TIMED_OUT, and nothing is left."""
    async with daemon.worker() as worker:
        async with worker.open_process(
            # Time for it to come to its first word, which mostly takes some milliseconds.
            TREE,
            env=dict([marker]),
            timeout=2.0,
            kill_grace=0.2,
        ) as process:
            assert (await process.wait()).outcome is Outcome.TIMED_OUT
            assert marker.processes() == []
            assert await read_all(process.stdout) == b"planted\n"


async def test_a_slow_reader_is_told_of_a_timeout_all_the_same(daemon: StandingDaemon) -> None:
    """A command stuck on its full pipe is killed in time; what it wrote before can still be read."""
    async with daemon.worker() as worker:
        async with worker.open_process("cat /dev/zero", timeout=0.5, kill_grace=0.1) as process:
            status = await process.wait()
            assert status.outcome is Outcome.TIMED_OUT
            assert len(await read_all(process.stdout)) > 100_000


async def test_leaving_the_block_ends_and_reaps_the_whole_tree(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """When the block has been left nothing of the tree is alive, TERM-proof or escaped as it may be."""
    async with daemon.worker() as worker:
        async with worker.open_process(TREE, env=dict([marker]), kill_grace=0.2) as process:
            assert await read_line(process.stdout) == b"planted"
            await until(lambda: len(marker.processes()) >= TREE_SIZE)
        assert marker.processes() == []
        status = await process.wait()
        assert status.outcome is Outcome.CANCELLED
        assert worker._link.job_count == 0


async def test_leaving_the_block_lets_the_process_clean_up(
    daemon: StandingDaemon, tmp_path: Any
) -> None:
    """SIGTERM comes first, and it has its grace."""
    async with daemon.worker() as worker:
        script = (
            f"trap 'sleep 0.2; echo cleaned > {tmp_path}/it; exit' TERM; echo on; sleep 60 & wait"
        )
        async with worker.open_process(script) as process:
            assert await read_line(process.stdout) == b"on"
        assert (tmp_path / "it").read_text() == "cleaned\n"


@pytest.mark.parametrize("moment", ["at once", "running", "flooding", "ended"])
async def test_an_exception_in_the_body_comes_out_as_itself(
    daemon: StandingDaemon, marker: Marker, moment: str
) -> None:
    """Not in a group, with nothing added, and the tree is gone."""
    script = {"running": TREE, "flooding": "cat /dev/zero", "ended": "true"}.get(moment, TREE)
    error = KeyError("ours")
    async with daemon.worker() as worker:
        with pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
            async with worker.open_process(script, env=dict([marker]), kill_grace=0.1) as process:
                if moment == "ended":
                    await process.wait()
                elif moment != "at once":
                    await process.stdout.receive_some()
                raise error
        assert caught.value is error
        assert (error.__cause__, getattr(error, "__notes__", [])) == (None, [])
        assert marker.processes() == []
        assert (await worker.run("echo on")).stdout == "on\n"


async def test_cancelled_at_many_moments_leaves_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """While it starts, while it talks, while it is left: whenever it strikes, nothing is left."""
    async with daemon.worker() as worker:
        for milliseconds in range(30):
            with trio.move_on_after(milliseconds / 1000):
                async with worker.open_process(
                    "setsid sleep 60 & read x; echo $x", env=dict([marker]), kill_grace=0.1
                ) as process:
                    await process.stdin.send_all(b"word\n")
                    await read_line(process.stdout)
                    await process.signal("TERM")
                    await process.wait()
            assert marker.processes() == [], milliseconds
        assert worker._link.job_count == 0
        assert (await worker.run("echo on")).stdout == "on\n"


async def test_what_cannot_be_started_raises_from_the_block(daemon: StandingDaemon) -> None:
    """SpawnFailed before the body runs."""
    async with daemon.worker() as worker:
        with pytest.raises(SpawnFailed) as caught:
            async with worker.open_process(["no-such-program"]):
                pytest.fail("there is no process to talk to")
        assert caught.value.errno == errno.ENOENT


# ---- trio's rules -------------------------------------------------------------------------------


async def test_one_task_at_a_time_per_stream(daemon: StandingDaemon) -> None:
    """The second reader or writer gets BusyResourceError, and the first is not disturbed."""
    async with daemon.worker() as worker:
        async with worker.open_process("sleep 60", kill_grace=0) as process:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.stdout.receive_some)
                nursery.start_soon(process.stderr.receive_some)
                nursery.start_soon(process.stdin.send_all, bytes(20 * MB))
                await trio.testing.wait_all_tasks_blocked(0.05)
                for stream in (process.stdout, process.stderr):
                    with pytest.raises(trio.BusyResourceError):
                        await stream.receive_some()
                with pytest.raises(trio.BusyResourceError):
                    await process.stdin.send_all(b"x")
                with pytest.raises(trio.BusyResourceError):
                    await process.stdin.wait_send_all_might_not_block()
                nursery.cancel_scope.cancel()


async def test_closed_streams_say_so(daemon: StandingDaemon) -> None:
    """Whoever uses what was closed, or waits in it while it is closed, gets ClosedResourceError."""
    async with daemon.worker() as worker, worker.open_process("sleep 60", kill_grace=0) as process:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await process.stdout.receive_some()

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await process.stdin.send_all(bytes(20 * MB))

            nursery.start_soon(receive)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await process.stdout.aclose()
            await process.stdin.aclose()
        await process.stdout.aclose()
        await process.stdin.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdout.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.wait_send_all_might_not_block()


async def test_input_for_a_process_that_has_ended_is_a_broken_stream(
    daemon: StandingDaemon,
) -> None:
    """Also for those who were waiting for room; closing it is fine."""
    async with daemon.worker() as worker, worker.open_process("exec 0<&-; sleep 0.3") as process:

        async def send_for_ever() -> None:
            while True:  # nobody reads it: the daemon throws it away, as fast as it comes
                await process.stdin.send_all(bytes(10 * MB))

        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever()
        await process.wait()
        with pytest.raises(trio.BrokenResourceError):
            await process.stdin.send_all(b"x")
        await process.stdin.aclose()


async def test_streams_of_a_block_that_was_left_are_over(daemon: StandingDaemon) -> None:
    """Nothing hangs: what has arrived can be read, then comes the end or an error; input is broken."""
    async with daemon.worker() as worker:
        async with worker.open_process("echo hi; sleep 60", kill_grace=0) as process:
            assert await read_line(process.stdout) == b"hi"
        with trio.fail_after(PATIENCE):
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await process.stdin.send_all(b"x")
            with contextlib.suppress(trio.BrokenResourceError):
                assert await process.stdout.receive_some() == b""
            await process.signal("INT")
            await process.wait()


async def test_every_operation_is_a_checkpoint(daemon: StandingDaemon) -> None:
    """As trio wants it: also where there is nothing to wait for."""
    async with daemon.worker() as worker, worker.open_process("echo hi; read x") as process:
        assert await read_line(process.stdout) == b"hi"
        for operation in (
            lambda: process.stdin.send_all(b"x"),
            process.stdin.wait_send_all_might_not_block,
            lambda: process.signal("CONT"),
            process.stderr.aclose,
        ):
            with trio.testing.assert_checkpoints():
                await operation()
        with trio.testing.assert_checkpoints():
            await process.stdin.aclose()
        await process.wait()
        for operation in (process.wait, process.stdout.receive_some, process.stdin.aclose):
            with trio.testing.assert_checkpoints():
                await operation()


async def test_a_pair_of_streams_through_cat_keeps_trios_contract(daemon: StandingDaemon) -> None:
    """What is sent into stdin comes out of stdout as trio's own check of one-way streams wants it.

    As far as that goes for a pipe with a process in it: closing the far end breaks nothing before
    the process has noticed, so only the parts about sending, receiving and closing apply.
    """
    async with daemon.worker() as worker, worker.open_process(["cat"]) as process:
        send, receive = process.stdin, process.stdout
        assert isinstance(send, trio.abc.SendStream)
        assert isinstance(receive, trio.abc.ReceiveStream)
        with trio.testing.assert_checkpoints():
            await send.send_all(b"x")
        assert await receive.receive_some(1) == b"x"
        for buffer in (bytearray(b"abc"), memoryview(b"def"), b""):
            await send.send_all(buffer)
        assert await receive.receive_some(1) == b"a"
        assert await _receive_exactly(receive, 5) == b"bcdef"
        with pytest.raises(ValueError, match="max_bytes"):
            await receive.receive_some(0)
        with pytest.raises(ValueError, match="max_bytes"):
            await receive.receive_some(-1)
        with pytest.raises(TypeError):
            await receive.receive_some(1.5)  # type: ignore[arg-type]
        async with send:
            pass
        assert await receive.receive_some() == b""
        assert await receive.receive_some() == b""
        async with receive:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await receive.receive_some()


async def _receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


# ---- ids ----------------------------------------------------------------------------------------


async def test_generated_ids_differ(daemon: StandingDaemon) -> None:
    """No two jobs have one id, and a process tells its own."""
    async with daemon.worker() as worker:
        async with worker.open_process("true") as one, worker.open_process("true") as two:
            assert one.job_id != two.job_id
            assert one.job_id in repr(one)
            assert one.pid > 1


async def test_a_chosen_id_runs_once(daemon: StandingDaemon, tmp_path: Any) -> None:
    """While a job of that id is there another command is a conflict, and afterwards the id is used up."""
    async with daemon.worker() as worker:
        name = f"chosen-{tmp_path.name}"
        async with worker.open_process(f"echo x >> {tmp_path}/ran; read x", job_id=name) as process:
            assert process.job_id == name
            with pytest.raises(JobIdConflict):
                async with worker.open_process("echo other", job_id=name):
                    pytest.fail("nothing ran")
            assert process.pid > 1
            await process.stdin.aclose()
            assert (await process.wait()).exit_code == 1
        with pytest.raises(sandd.SanddError):
            async with worker.open_process(f"echo x >> {tmp_path}/ran; read x", job_id=name):
                pytest.fail("the id was used up")
        assert (tmp_path / "ran").read_text() == "x\n"


async def test_the_same_start_again_takes_the_job_over(
    daemon: StandingDaemon, tmp_path: Any
) -> None:
    """One process, which the later block holds; the earlier one is told, and ends nothing when it is left."""
    name, script = f"shared-{tmp_path.name}", f"echo x >> {tmp_path}/ran; cat"
    async with daemon.worker() as worker:
        async with worker.open_process(script, job_id=name) as first:
            await first.stdin.send_all(b"one")
            assert await first.stdout.receive_some() == b"one"
            async with worker.open_process(script, job_id=name) as second:
                assert second.pid == first.pid
                with pytest.raises(JobTaken):
                    await first.wait()
                with pytest.raises(trio.BrokenResourceError):
                    await first.stdout.receive_some()
                with pytest.raises(trio.BrokenResourceError):
                    await first.stdin.send_all(b"x")
                await second.stdin.send_all(b"two")
                await second.stdin.aclose()
                # All that is kept: what the first one read may be in it, or not any more.
                assert await read_all(second.stdout) in (b"two", b"onetwo")
                assert (await second.wait()).success
        assert (tmp_path / "ran").read_text() == "x\n"


async def test_leaving_a_job_that_was_taken_over_ends_nothing(
    daemon: StandingDaemon, tmp_path: Any
) -> None:
    """Only its present holder can."""
    name = f"shared-{tmp_path.name}"
    async with daemon.worker() as worker, contextlib.AsyncExitStack() as later:
        async with worker.open_process(["cat"], job_id=name) as first:
            second = await later.enter_async_context(worker.open_process(["cat"], job_id=name))
            assert second.pid == first.pid
        await second.stdin.send_all(b"still here")
        assert await second.stdout.receive_some() == b"still here"


@pytest.mark.parametrize("job_id", ["", "x" * 129, "a\nb", "a\0b"], ids=repr)
async def test_ids_that_cannot_be_are_refused(daemon: StandingDaemon, job_id: str) -> None:
    """An id is 1 to 128 printable characters."""
    async with daemon.worker() as worker:
        with pytest.raises(ValueError, match="job_id"):
            async with worker.open_process("true", job_id=job_id):
                pytest.fail("nothing ran")


async def test_senseless_arguments_are_value_errors(daemon: StandingDaemon) -> None:
    """They are refused before anything is sent."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        for options in (
            {"stderr": "both"},
            {"lease": -1},
            {"kill_grace": -1},
            {"timeout": -1},
            {"cwd": "\0"},
        ):
            with pytest.raises(ValueError, match=r"\w"):
                async with worker.open_process("true", **options):  # type: ignore[arg-type]
                    pytest.fail("nothing ran")
        assert controller.statistics().jobs_started == 0


async def test_not_started_in_time_is_command_timeout(marker: Marker) -> None:
    """Where the daemon has no turn for it within `timeout`, it never runs."""
    with standing_daemon(arguments=["--max-running", "1"]) as daemon:
        async with daemon.worker() as worker:
            async with worker.open_process("sleep 60", env=dict([marker]), kill_grace=0):
                with pytest.raises(CommandTimeout) as caught:
                    async with worker.open_process("echo hi", timeout=0.2):
                        pytest.fail("it had no turn")
                assert caught.value.started is False


# ---- the daemon dies ----------------------------------------------------------------------------


async def test_streams_of_a_lost_job_are_broken(marker: Marker) -> None:
    """When another instance has the id the job is lost: streams break, `wait` raises DaemonGone."""
    with standing_daemon() as daemon:
        async with daemon.controller() as controller:
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_process(["cat"], env=dict([marker])) as process:
                digest = hashlib.sha256()
                await process.stdin.send_all(b"x" * 1000)
                digest.update(await _receive_exactly(process.stdout, 1000))
                daemon.process.kill()
                await until(lambda: not marker.processes())
                url = f"ws://127.0.0.1:{daemon.port}/ws"
                async with open_daemon(url, "worker-1"):
                    with pytest.raises(DaemonGone) as caught:
                        await process.wait()
                    assert caught.value.outcome_unknown
                    with pytest.raises(trio.BrokenResourceError):
                        await process.stdout.receive_some()
                    with pytest.raises(trio.BrokenResourceError):
                        await process.stdin.send_all(b"x")
