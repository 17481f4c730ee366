"""`Daemon.attach_process` with a real daemon: who holds a job, who looks on, and what each one reads."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing
from another_agent import another_agent
from process_tools import read_all, read_line, until
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import JobNotFound, JobState, JobTaken, Outcome, OutputGap, RequestRefused
from sandd.testing import DOWN, UP, Direction, FaultProxy, open_fault_proxy
from sandd.wire import ACK_EVERY_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

RING: Final = 524_288
WINDOW: Final = 1_048_576
PRINT: Final = (
    "import sys, random; random.seed(3); n = int(sys.argv[1])\n"
    "while n > 0:\n"
    "    sys.stdout.buffer.write(random.randbytes(min(n, 10000))); n -= 10000\n"
)


def print_bytes(count: int) -> list[str]:
    """A command that prints as many bytes, always the same."""
    return [sys.executable, "-c", PRINT, str(count)]


def printed(count: int) -> bytes:
    """What that prints."""
    source = random.Random(3)
    return b"".join(source.randbytes(min(10_000, count - n)) for n in range(0, count, 10_000))


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; each leaves it without a job."""
    with standing_daemon() as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def orphan(worker: sandd.Daemon, command: Any, **options: Any) -> AsyncIterator[str]:
    """The id of a job whose agent has died, which nobody holds; forgotten at the end."""
    async with contextlib.AsyncExitStack() as left_behind:
        async with another_agent(worker) as agent:
            opened = agent.daemon(worker.id).open_process(command, **options)
            job_id = (await left_behind.enter_async_context(opened)).job_id
    try:
        yield job_id
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(JobNotFound):
            await worker.forget(job_id)


async def read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """That many bytes."""
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


async def read_with_gaps(stream: trio.abc.ReceiveStream, expected: bytes) -> list[OutputGap]:
    """Read to the end of what is expected: each byte is right where it stands, and the rest are gaps."""
    read, gaps = 0, []
    while read < len(expected):
        gap: OutputGap | None = None
        chunk = b""
        try:
            chunk = await stream.receive_some()
        except OutputGap as told:
            gap = told
        if gap is not None:
            assert gap.start == read < gap.end
            gaps.append(gap)
            read = gap.end
        else:
            assert chunk, "it ended early"
            assert chunk == expected[read : read + len(chunk)]
            read += len(chunk)
    return gaps


async def state_of(worker: sandd.Daemon, job_id: str) -> JobState:
    """Where the job stands."""
    (found,) = [job for job in await worker.jobs() if job.job_id == job_id]
    return found.state


# ---- a job that nobody holds --------------------------------------------------------------------


async def test_whoever_attaches_holds_the_job_and_all_that_is_kept_of_it(
    daemon: StandingDaemon,
) -> None:
    """It reads from the beginning, writes on, and learns the end; the process is the same."""
    async with daemon.worker() as worker:
        async with orphan(worker, "echo begun; echo err >&2; cat; exit 3") as job_id:
            (before,) = await worker.jobs()
            assert not before.owned
            async with worker.attach_process(job_id) as process:
                assert (process.job_id, process.pid) == (job_id, before.pid)
                assert (await worker.jobs())[0].owned
                assert await read_line(process.stdout) == b"begun"
                await process.stdin.send_all(b"more\n")
                await process.stdin.aclose()
                assert await read_all(process.stdout) == b"more\n"
                assert await read_all(process.stderr) == b"err\n"
                assert (await process.wait()).exit_code == 3
                assert process.offsets == {"stdout": 11, "stderr": 4}


async def test_input_goes_on_behind_what_the_job_already_has(daemon: StandingDaemon) -> None:
    """What the dead agent had sent isn't lost, and isn't sent again."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with contextlib.AsyncExitStack() as left_behind:
            async with another_agent(controller) as agent:
                opened = agent.daemon("worker-1").open_process("read x; cat")
                process = await left_behind.enter_async_context(opened)
                await process.stdin.send_all(b"line\nfirst ")
                assert await read_exactly(process.stdout, 6) == b"first "
        async with worker.attach_process(process.job_id) as second:
            await second.stdin.send_all(b"second")
            await second.stdin.aclose()
            assert (await read_all(second.stdout)).endswith(b"second")
            assert second.offsets["stdout"] == 12


async def test_leaving_it_ends_it_as_it_would_its_opener(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The tree is gone, and so are the results."""
    async with daemon.worker() as worker:
        script = "trap '' TERM; setsid sleep 60 & echo on; sleep 60; :"
        async with orphan(worker, script, env=dict([marker])) as job_id:
            async with worker.attach_process(job_id, kill_grace=0.1) as process:
                assert await read_line(process.stdout) == b"on"
                await until(lambda: len(marker.processes()) == 3)
            assert marker.processes() == []
            assert await worker.jobs() == []


async def test_an_exception_in_the_block_ends_it_and_comes_out_as_itself(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """In no group, and with nothing left behind it."""
    async with daemon.worker() as worker:
        async with orphan(worker, "sleep 60", env=dict([marker])) as job_id:
            with pytest.raises(KeyError) as caught:
                async with worker.attach_process(job_id):
                    raise KeyError("mine")
            assert caught.value.args == ("mine",)
            assert marker.processes() == []


async def test_a_job_that_has_ended_tells_all_it_had_to_tell(daemon: StandingDaemon) -> None:
    """What it printed and how it ended waits for who attaches, on both outputs."""
    async with daemon.worker() as worker:
        async with orphan(worker, "echo out; echo err >&2; kill -9 $$") as job_id:
            while await state_of(worker, job_id) is not JobState.ENDED:
                await trio.sleep(0.01)
            async with worker.attach_process(job_id) as process:
                assert process.pid > 1
                status = await process.wait()
                assert (status.signal, status.outcome) == ("SIGKILL", Outcome.SIGNALED)
                assert await read_all(process.stdout) == b"out\n"
                assert await read_all(process.stderr) == b"err\n"
            assert await worker.jobs() == []


async def test_after_its_lease_it_has_ended_and_says_so(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Nobody holds it for that long: the tree is killed, and who comes later is told why."""
    async with daemon.worker() as worker:
        script = "echo begun; setsid sleep 60 & sleep 60; :"
        async with orphan(worker, script, lease=2.0, env=dict([marker])) as job_id:
            await until(marker.processes)
            await until(lambda: not marker.processes(), within=15)
            while await state_of(worker, job_id) is not JobState.ENDED:
                await trio.sleep(0.01)
            async with worker.attach_process(job_id) as process:
                assert (await process.wait()).outcome is Outcome.LEASE_EXPIRED
                assert await read_all(process.stdout) == b"begun\n"


async def test_a_lease_does_not_run_while_somebody_holds_it(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Attaching stops it, and leaving it to itself again starts it anew."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with orphan(worker, ["cat"], lease=1.5, env=dict([marker])) as job_id:
            async with contextlib.AsyncExitStack() as left_behind:
                async with another_agent(controller) as agent:
                    attached = agent.daemon("worker-1").attach_process(job_id)
                    process = await left_behind.enter_async_context(attached)
                    await trio.sleep(3.5)
                    await process.stdin.send_all(b"on")
                    assert await process.stdout.receive_some() == b"on"
            await until(lambda: not marker.processes(), within=15)


# ---- where it goes on ---------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
async def test_since_goes_on_where_somebody_else_stopped(
    daemon: StandingDaemon, read_only: bool
) -> None:
    """With another's offsets the bytes of the two are all there are, each of them once."""
    total = 200_000
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with contextlib.AsyncExitStack() as left_behind:
            async with another_agent(controller) as agent:
                opened = agent.daemon("worker-1").open_process(print_bytes(total))
                first = await left_behind.enter_async_context(opened)
                begun = await read_exactly(first.stdout, 123_456)
                since = first.offsets
        assert since == {"stdout": 123_456, "stderr": 0}
        async with worker.attach_process(first.job_id, since=since, read_only=read_only) as second:
            assert second.offsets == since
            assert begun + await read_all(second.stdout) == printed(total)
            assert second.offsets == {"stdout": total, "stderr": 0}
        if read_only:
            await worker.forget(first.job_id)


async def test_since_may_name_one_output(daemon: StandingDaemon) -> None:
    """The other one begins with all that is kept."""
    async with daemon.worker() as worker:
        async with orphan(worker, "echo output; echo error >&2; cat") as job_id:
            while (await worker.jobs())[0].kept["stderr"].end < len("error\n"):
                await trio.sleep(0.01)
            async with worker.attach_process(
                job_id, since={"stderr": 3}, read_only=True
            ) as process:
                assert await read_line(process.stdout) == b"output"
                assert await read_line(process.stderr) == b"or"


async def test_since_beyond_the_end_is_refused(daemon: StandingDaemon) -> None:
    """Whoever asks for it means another job, or has miscounted; the job is left as it is."""
    async with daemon.worker() as worker, orphan(worker, "echo hello; cat") as job_id:
        async with worker.attach_process(job_id, read_only=True) as process:
            await process.stdout.receive_some()
        with pytest.raises(RequestRefused, match="from 7 on: so far it ends at 6"):
            async with worker.attach_process(job_id, since={"stdout": 7}):
                pytest.fail("it has not written that much")
        async with worker.attach_process(job_id, since={"stdout": 6}) as process:
            await process.stdin.send_all(b"on")
            assert await process.stdout.receive_some() == b"on"


async def test_since_before_what_is_kept_is_a_gap_first(daemon: StandingDaemon) -> None:
    """What an owner has read is gone: who asks for it is told exactly what is missing, once."""
    # While there is more at hand, an owner may leave four times ACK_EVERY_BYTES of what it has read unacknowledged.
    total, read = 1_200_000, 800_000
    assert read > 4 * ACK_EVERY_BYTES + 100_000
    async with daemon.worker() as worker:
        async with worker.open_process(print_bytes(total)) as owner:
            assert await read_exactly(owner.stdout, read) == printed(total)[:read]
            assert (await worker.run("true")).success  # what was acknowledged is known there by now
            async with worker.attach_process(
                owner.job_id, since={"stdout": 1000}, read_only=True
            ) as viewer:
                with pytest.raises(OutputGap) as caught:
                    await viewer.stdout.receive_some()
                gap = caught.value
                assert gap.start == 1000
                assert 100_000 < gap.end <= read
                assert viewer.offsets["stdout"] == gap.end
                assert (
                    await read_exactly(viewer.stdout, total - gap.end)
                    == (printed(total)[gap.end :])
                )


@pytest.mark.parametrize(
    "options",
    [
        {"since": {"output": 1}},
        {"since": {"stdout": -1}},
        {"since": {"stdout": 2**63}},
        {"kill_grace": -1},
        {"read_only": True, "takeover": True},
    ],
    ids=repr,
)
async def test_senseless_arguments_are_value_errors(
    daemon: StandingDaemon, options: dict[str, Any]
) -> None:
    """They are refused before anything is sent."""
    async with daemon.worker() as worker:
        with pytest.raises(ValueError, match=r"\w"):
            async with worker.attach_process("x", **options):
                pytest.fail("it makes no sense")
        with pytest.raises(TypeError):
            async with worker.attach_process("x", since={"stdout": 1.5}):  # type: ignore[dict-item]
                pytest.fail("it makes no sense")
        with pytest.raises(ValueError, match="job_id"):
            async with worker.attach_process(""):
                pytest.fail("it makes no sense")


async def test_what_is_not_there_cannot_be_attached_to(daemon: StandingDaemon) -> None:
    """Not by an owner, nor by who looks on."""
    async with daemon.worker() as worker:
        for options in ({}, {"read_only": True}, {"takeover": True}):
            with pytest.raises(JobNotFound):
                async with worker.attach_process("no-such-job", **options):
                    pytest.fail("there is none")
        worker._info = sandd.DaemonInfo("worker-1", "", "", "", "", {}, "former", 0.0)
        with pytest.raises(sandd.DaemonGone):
            async with worker.attach_process("x"):
                pytest.fail("the daemon is gone")


# ---- one owner at a time ------------------------------------------------------------------------


async def test_a_job_that_somebody_holds_is_refused(daemon: StandingDaemon) -> None:
    """The refusal says what can be done, to a block of the same program as to another agent."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as agent:
            async with worker.open_process(["cat"]) as process:
                for attacher in (worker, agent.daemon("worker-1")):
                    with pytest.raises(RequestRefused, match="takeover=True"):
                        async with attacher.attach_process(process.job_id):
                            pytest.fail("it is held")
                await process.stdin.send_all(b"x")
                assert await process.stdout.receive_some() == b"x"


@pytest.mark.parametrize("same", [True, False], ids=["same program", "another agent"])
async def test_takeover_tells_the_loser_and_leaves_the_rest_to_the_winner(
    daemon: StandingDaemon, marker: Marker, same: bool
) -> None:
    """Late words of the loser do nothing: neither its input, nor its signals, nor its leaving."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as agent:
            winner_sees = worker if same else agent.daemon("worker-1")
            async with worker.open_process(["cat"], env=dict([marker])) as loser:
                await loser.stdin.send_all(b"one ")
                assert await read_exactly(loser.stdout, 4) == b"one "
                async with winner_sees.attach_process(
                    loser.job_id, takeover=True, since=loser.offsets
                ) as winner:
                    with pytest.raises(JobTaken):
                        await loser.wait()
                    with pytest.raises(trio.BrokenResourceError):
                        await loser.stdin.send_all(b"late ")
                    with pytest.raises(JobTaken):
                        await loser.detach()
                    await loser.kill()
                    with pytest.raises(trio.BrokenResourceError):
                        await loser.stdout.receive_some()
                    await winner.stdin.send_all(b"two ")
                    assert await read_exactly(winner.stdout, 4) == b"two "
                    await winner.detach()
            assert len(marker.processes()) == 1
            await worker.forget(loser.job_id)
        assert marker.processes() == []


async def test_leaving_while_the_job_is_being_taken_ends_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The loser hasn't heard of it yet, and has the winner's name: its End would be the winner's."""
    async with daemon.worker() as worker, contextlib.AsyncExitStack() as stack:
        entered = trio.Event()
        jobs = worker._link.client.jobs

        async def take_over(job_id: str) -> None:
            process = await stack.enter_async_context(worker.attach_process(job_id, takeover=True))
            await process.stdin.send_all(b"x")
            assert await process.stdout.receive_some() == b"x"
            entered.set()

        async def answer_later() -> None:
            await trio.testing.wait_all_tasks_blocked(0.05)
            daemon.process.signal(signal.SIGCONT)

        try:
            async with trio.open_nursery() as nursery:
                async with worker.open_process(["cat"], env=dict([marker])) as loser:
                    daemon.process.signal(signal.SIGSTOP)
                    nursery.start_soon(take_over, loser.job_id)
                    await until(lambda: len(jobs) == 2)  # it has asked, and has no answer yet
                    nursery.start_soon(answer_later)
                await entered.wait()
        finally:
            daemon.process.signal(signal.SIGCONT)
        assert len(marker.processes()) == 1


async def test_takeovers_in_turn_lose_nothing(daemon: StandingDaemon) -> None:
    """Two agents take a job from each other, over and over: their bytes together are all there are."""
    total = 2_000_000
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as agent:
            both = [worker, agent.daemon("worker-1")]
            data, since = b"", {"stdout": 0, "stderr": 0}
            async with orphan(worker, print_bytes(total)) as job_id:
                async with contextlib.AsyncExitStack() as stack:
                    for turn in range(20):
                        process = await stack.enter_async_context(
                            both[turn % 2].attach_process(job_id, takeover=True, since=since)
                        )
                        data += await read_exactly(process.stdout, 50_000 + turn)
                        since = dict(process.offsets)
                    data += await read_all(process.stdout)
                    assert (await process.wait()).success
            assert hashlib.sha256(data).digest() == hashlib.sha256(printed(total)).digest()


# ---- looking on ---------------------------------------------------------------------------------


async def test_a_viewer_reads_along_and_changes_nothing(daemon: StandingDaemon) -> None:
    """It gets every byte the owner gets, and the end; writing and signalling it can't."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as agent:
            async with (
                worker.open_process("cat; echo end >&2; exit 4") as owner,
                agent.daemon("worker-1").attach_process(owner.job_id, read_only=True) as viewer,
            ):
                assert viewer.pid == owner.pid
                assert (await worker.jobs())[0].viewers == 1
                for text in (b"one", b"two"):
                    await owner.stdin.send_all(text)
                    assert await read_exactly(owner.stdout, 3) == text
                    assert await read_exactly(viewer.stdout, 3) == text
                with pytest.raises(trio.ClosedResourceError, match="read_only"):
                    viewer.stdin  # noqa: B018 - the property raises
                for attempt in (viewer.kill, viewer.detach, lambda: viewer.signal("INT")):
                    with pytest.raises(RequestRefused, match="read_only"):
                        await attempt()
                await owner.stdin.aclose()
                assert await read_all(viewer.stderr) == b"end\n"
                assert (await viewer.wait()).exit_code == 4
                assert (await owner.wait()).exit_code == 4


async def test_leaving_as_a_viewer_ends_nothing(daemon: StandingDaemon, marker: Marker) -> None:
    """Not in good order, not by an exception, and not when nobody else is there."""
    async with daemon.worker() as worker, orphan(worker, ["cat"], env=dict([marker])) as job_id:
        async with worker.attach_process(job_id, read_only=True):
            pass
        with pytest.raises(KeyError):
            async with worker.attach_process(job_id, read_only=True):
                raise KeyError("mine")
        with trio.move_on_after(0.1):
            async with worker.attach_process(job_id, read_only=True) as process:
                await process.wait()
        assert len(marker.processes()) == 1
        assert not (await worker.jobs())[0].owned


async def test_a_viewer_that_never_reads_gets_a_gap_and_delays_nobody(
    daemon: StandingDaemon,
) -> None:
    """The owner reads all at full speed; the viewer is told what it has missed, and reads on."""
    total = 8_000_000
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as agent:
            async with (
                worker.open_process(print_bytes(total)) as owner,
                agent.daemon("worker-1").attach_process(owner.job_id, read_only=True) as viewer,
            ):
                expected = printed(total)
                data = await read_all(owner.stdout)
                assert hashlib.sha256(data).digest() == hashlib.sha256(expected).digest()
                assert (await owner.wait()).success
                assert (await viewer.wait()).success
                gaps = await read_with_gaps(viewer.stdout, expected)
                assert await viewer.stdout.receive_some() == b""
                # It had credit for a window; some of that the owner may have had, and acknowledged, before it.
                dropped = sum(gap.end - gap.start for gap in gaps)
                assert total - 2 * WINDOW - 2 * RING < dropped < total


# ---- output that may be dropped -----------------------------------------------------------------


async def test_dropped_output_is_told_once_and_reading_goes_on(daemon: StandingDaemon) -> None:
    """With on_full="drop_oldest" the command never waits; gaps and bytes add up to what it wrote."""
    total = 6_000_000
    async with daemon.worker() as worker:
        async with worker.open_process(print_bytes(total), on_full="drop_oldest") as process:
            assert (await process.wait()).success  # though nobody has read a byte
            gaps = await read_with_gaps(process.stdout, printed(total))
            assert sum(gap.end - gap.start for gap in gaps) > total // 2
            assert await process.stdout.receive_some() == b""
            assert process.offsets["stdout"] == total


async def test_on_full_is_one_of_two(daemon: StandingDaemon) -> None:
    """Anything else is refused before anything is sent."""
    async with daemon.worker() as worker:
        with pytest.raises(ValueError, match="on_full"):
            async with worker.open_process("true", on_full="explode"):  # type: ignore[arg-type]
                pytest.fail("nothing ran")


# ---- cuts, absence, cancellation ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def relayed(daemon: StandingDaemon) -> AsyncIterator[tuple[sandd.Daemon, FaultProxy]]:
    """The daemon, and the relay between it and a fresh controller."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(int(controller.address.rpartition(":")[2]), port=daemon.port) as relay,
        ):
            yield await controller.wait_for_daemon("worker-1"), relay


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])
async def test_a_cut_at_any_byte_of_attaching_is_no_difference(
    daemon: StandingDaemon, direction: Direction
) -> None:
    """What is read is the same, once, wherever the connection breaks; and the job stays ours."""
    async with relayed(daemon) as (worker, relay):

        async def go_through() -> None:
            async with orphan(worker, "echo 0123456789; cat", detach=True) as job_id:
                async with worker.attach_process(job_id, read_only=True) as process:
                    assert await read_line(process.stdout) == b"0123456789"
                async with worker.attach_process(job_id, since={"stdout": 4}) as process:
                    await process.stdin.send_all(b"abc")
                    await process.stdin.aclose()
                    assert await read_all(process.stdout) == b"456789\nabc"
                    assert (await process.wait()).success

        before = relay.passed[direction]
        await go_through()
        whole = relay.passed[direction] - before
        positions = range(1, whole + 1, max(1, whole // 30))
        for position in positions:
            relay.cut_after(position, direction)
            await go_through()
            relay.forget_cuts()
        assert relay.accepted > len(positions) // 2


async def test_attaching_waits_for_a_daemon_that_is_away(daemon: StandingDaemon) -> None:
    """As a start does; given up, it leaves the job as it is."""
    async with relayed(daemon) as (worker, relay), orphan(worker, ["cat"]) as job_id:
        relay.refuse()
        await until(lambda: worker.state is sandd.DaemonState.AWAY)
        with trio.move_on_after(0.1) as scope:
            async with worker.attach_process(job_id):
                pytest.fail("it is away")
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            texts = []

            @nursery.start_soon
            async def attach() -> None:
                async with worker.attach_process(job_id) as process:
                    await process.stdin.send_all(b"x")
                    texts.append(await process.stdout.receive_some())

            await trio.testing.wait_all_tasks_blocked(0.05)
            relay.accept()
        assert texts == [b"x"]


async def test_cancelled_at_every_moment_attaching_leaves_the_job_as_it_is(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Nobody holds it, nothing of it is lost, and it runs; the connection is healthy."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with orphan(worker, "echo kept; exec cat", env=dict([marker])) as job_id:
            entered = number = 0
            while number < 60 or not entered:  # on a busy machine an answer takes its time
                number += 1
                for read_only in (True, False):
                    with trio.move_on_after((number - 1) * 0.00005):
                        async with worker.attach_process(job_id, read_only=read_only) as process:
                            entered += 1
                            process._handle.detach()  # it is ours now, and leaving would end it
            assert entered
            assert controller.statistics().jobs == 0
            assert len(marker.processes()) == 1
            (info,) = await worker.jobs()
            assert (info.owned, info.viewers) == (False, 0)
            async with worker.attach_process(job_id) as process:
                assert await read_line(process.stdout) == b"kept"
                await process.stdin.send_all(b"on")
                assert await process.stdout.receive_some() == b"on"


async def test_a_closed_controller_attaches_to_nothing(daemon: StandingDaemon) -> None:
    """It says so, and whoever looks on when it closes learns of it."""
    async with daemon.controller() as controller, contextlib.AsyncExitStack() as stack:
        worker = await controller.wait_for_daemon("worker-1")
        owner = await stack.enter_async_context(worker.open_process(["cat"]))
        viewer = await stack.enter_async_context(
            worker.attach_process(owner.job_id, read_only=True)
        )
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await viewer.wait()

            await trio.testing.wait_all_tasks_blocked(0.01)
            controller._service.link.close()
        with pytest.raises(trio.ClosedResourceError):
            async with worker.attach_process(owner.job_id):
                pytest.fail("it is closed")
