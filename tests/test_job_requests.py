"""`Daemon.jobs`, `kill` and `forget` with a real daemon, whatever happens to the connection meanwhile."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing
from another_agent import another_agent
from process_tools import read_all, read_line, until
from raw_daemon import RawDaemon, raw_daemon
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import JobNotFound, JobState, Outcome, RemoteProtocolError, RequestRefused, wire
from sandd.testing import DOWN, UP, Direction, open_fault_proxy
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conftest import Marker

    from sandd.testing import FaultProxy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

STUBBORN: Final = "trap '' TERM; sleep 60 & setsid sleep 60 & echo planted; wait; sleep 60"


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; each leaves it without a job."""
    with standing_daemon() as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def relayed(daemon: StandingDaemon) -> AsyncIterator[tuple[sandd.Daemon, FaultProxy]]:
    """The daemon, and the relay between it and a fresh controller."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(int(controller.address.rpartition(":")[2]), port=daemon.port) as relay,
        ):
            yield await controller.wait_for_daemon("worker-1"), relay


async def the_job(worker: sandd.Daemon, job_id: str) -> sandd.JobInfo:
    """What the list says of one job."""
    (found,) = [job for job in await worker.jobs() if job.job_id == job_id]
    return found


# ---- jobs ---------------------------------------------------------------------------------------


async def test_jobs_lists_what_there_is_in_the_order_of_the_starts(daemon: StandingDaemon) -> None:
    """Nothing is nothing; what runs and what has ended is there, as it is, and the asking is not."""
    async with daemon.worker() as worker:
        assert await worker.jobs() == []
        async with (
            worker.open_process(["cat"], job_id="one") as one,
            worker.open_process("echo hello; echo err >&2; exit 3", detach=True) as two,
        ):
            await two.wait()
            first, second = await worker.jobs()
            assert (first.job_id, first.state, first.command) == (
                "one",
                JobState.RUNNING,
                ("cat",),
            )
            assert (first.pid, first.outcome, first.exit_code) == (one.pid, None, None)
            assert (first.owned, first.detached, first.viewers) == (True, False, 0)
            assert first.started_age is not None
            assert 0 < first.started_age <= first.age < LIMIT
            assert first.ended_age is None
            assert (second.job_id, second.state) == (two.job_id, JobState.ENDED)
            assert second.command == "echo hello; echo err >&2; exit 3"
            assert (second.outcome, second.exit_code) == (Outcome.EXITED, 3)
            assert second.detached
            assert second.ended_age is not None
            assert second.started_age is not None
            assert second.ended_age <= second.started_age
            assert {name: kept.end for name, kept in second.kept.items()} == {
                "stdout": 6,
                "stderr": 4,
            }
        assert [job.job_id for job in await worker.jobs()] == [two.job_id]
        await worker.forget(two.job_id)
        assert await worker.jobs() == []


async def test_jobs_says_what_could_not_be_started(daemon: StandingDaemon) -> None:
    """The reason is there, and no process."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        with pytest.raises(sandd.SpawnFailed):
            async with worker.open_process(["no-such-program"], detach=True):
                pytest.fail("nothing ran")
        assert await worker.jobs() == []  # its opener was told, and that was the end of it
        spec = wire.CommandSpec((b"no-such-program",), detach=True)
        handle = controller._service.link.open("worker-1", spec, job_id="bad")
        await handle.until(lambda: handle.ended)
        handle.detach()
        bad = await the_job(worker, "bad")
        assert (bad.state, bad.pid, bad.started_age) == (JobState.ENDED, None, None)
        assert bad.failure.startswith("spawn: No such file")
        async with worker.attach_process("bad") as process:
            with pytest.raises(sandd.SpawnFailed):
                await process.wait()
        await worker.forget("bad")


async def test_requests_neither_wait_nor_take_a_turn(marker: Marker) -> None:
    """On a daemon that runs as much as it may they are answered at once, and run nobody out of turn."""
    with standing_daemon(arguments=["--max-running", "1"]) as daemon:
        async with daemon.worker() as worker, trio.open_nursery() as nursery:
            async with worker.open_process("read x; echo $x", env=dict([marker])) as process:
                waiting: list[sandd.SanddError] = []

                @nursery.start_soon
                async def wait_for_a_turn() -> None:
                    with pytest.raises(RequestRefused) as caught:
                        async with worker.open_process("echo never", job_id="waiting"):
                            pytest.fail("it had no turn")
                    waiting.append(caught.value)

                running: Any = None
                while running is None or len(running) < 2:
                    running = await worker.jobs()
                assert [job.state for job in running] == [JobState.RUNNING, JobState.QUEUED]
                assert running[1].pid is None
                await worker.kill("waiting")
                await until(lambda: waiting)
                assert "before it was started" in str(waiting[0])
                for _ in range(20):
                    await worker.jobs()
                await process.stdin.send_all(b"still here\n")
                assert await read_line(process.stdout) == b"still here"


async def test_a_list_of_many_jobs_is_whole(daemon: StandingDaemon) -> None:
    """More than fits one turn, one frame, or one window's acknowledgement."""
    count, text = 300, ": " + "x" * 300
    async with daemon.worker() as worker:
        async with trio.open_nursery() as nursery:

            async def leave_one(number: int) -> None:
                async with worker.open_process(text, job_id=f"many-{number}", detach=True):
                    pass

            for number in range(count):
                nursery.start_soon(leave_one, number)
        jobs = await worker.jobs()
        assert {job.job_id for job in jobs} == {f"many-{number}" for number in range(count)}
        assert {job.command for job in jobs} == {text[: wire.MAX_SHOWN_BYTES] + "..."}
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(worker.forget, job.job_id)
        assert await worker.jobs() == []


# ---- kill ---------------------------------------------------------------------------------------


async def test_kill_ends_the_tree_and_leaves_the_results(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """When it returns nothing is alive; the owner reads what was written, and how it ended."""
    async with daemon.worker() as worker:
        async with worker.open_process(STUBBORN, env=dict([marker])) as process:
            assert await read_line(process.stdout) == b"planted"
            await until(lambda: len(marker.processes()) >= 3)  # one may be in mid-execve(2)
            await worker.kill(process.job_id, grace=0.1)
            assert marker.processes() == []
            status = await process.wait()
            assert (status.signal, status.outcome) == ("SIGKILL", Outcome.CANCELLED)
            assert await read_all(process.stdout) == b""
            await worker.kill(process.job_id)  # it has ended: nothing to do
            info = await the_job(worker, process.job_id)
            assert (info.outcome, info.exit_code) == (Outcome.CANCELLED, -9)


@pytest.mark.parametrize("name", ["TERM", "INT", "SIGUSR1", signal.SIGHUP], ids=str)
async def test_kill_begins_with_the_signal_it_is_told(daemon: StandingDaemon, name: Any) -> None:
    """Who minds it ends by itself, within the grace; its exit code is its own."""
    trapped = sandd._core.specs.normal_signal(name)
    script = f"trap 'echo bye; exit 5' {trapped}; echo on; while :; do sleep 0.02; done"
    async with daemon.worker() as worker, worker.open_process(script) as process:
        assert await read_line(process.stdout) == b"on"
        await worker.kill(process.job_id, signal=name)
        assert (await process.wait()).exit_code == 5
        assert await read_line(process.stdout) == b"bye"


@pytest.mark.parametrize("name", ["INT", "KILL"])
async def test_kill_ends_by_force_what_does_not_mind(
    daemon: StandingDaemon, name: str, marker: Marker
) -> None:
    """After the grace, or at once where that is what was asked for."""
    script = "trap '' INT TERM; echo on; while :; do sleep 0.02; done"
    async with daemon.worker() as worker:
        async with worker.open_process(script, env=dict([marker])) as process:
            assert await read_line(process.stdout) == b"on"
            started = trio.current_time()
            await worker.kill(process.job_id, signal=name, grace=0.3 if name == "INT" else 60)
            assert name == "KILL" or trio.current_time() - started >= 0.3
            assert marker.processes() == []
            assert (await process.wait()).signal == "SIGKILL"


async def test_a_second_kill_may_be_shorter(daemon: StandingDaemon) -> None:
    """Who loses patience needs no other way; both return when it is done."""
    script = "trap '' TERM; echo on; while :; do sleep 0.02; done"
    async with daemon.worker() as worker, worker.open_process(script) as process:
        assert await read_line(process.stdout) == b"on"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(worker.kill, process.job_id, grace=600))
            await trio.sleep(0.1)
            nursery.start_soon(functools.partial(worker.kill, process.job_id, signal="KILL"))
        assert (await process.wait()).signal == "SIGKILL"


async def test_a_signal_the_machine_does_not_have_is_declined(daemon: StandingDaemon) -> None:
    """Nothing is done then."""
    async with daemon.worker() as worker, worker.open_process(["cat"]) as process:
        with pytest.raises(RequestRefused, match="no signal 'BREAK'"):
            await worker.kill(process.job_id, signal="BREAK")
        await process.stdin.send_all(b"x")
        assert await process.stdout.receive_some() == b"x"


async def test_what_is_not_there_is_job_not_found(daemon: StandingDaemon) -> None:
    """It is a LookupError, too, and says what was looked for."""
    async with daemon.worker() as worker:
        for attempt in (worker.kill, worker.forget):
            with pytest.raises(JobNotFound, match="'no-such-job'") as caught:
                await attempt("no-such-job")
            assert isinstance(caught.value, LookupError)


async def test_senseless_arguments_are_value_errors(daemon: StandingDaemon) -> None:
    """They are refused before anything is sent."""
    async with daemon.worker() as worker:
        for attempt in (
            lambda: worker.kill(""),
            lambda: worker.kill("x\n"),
            lambda: worker.kill("x", grace=-1),
            lambda: worker.kill("x", grace=float("nan")),
            lambda: worker.kill("x", signal="NONSENSE"),
            lambda: worker.forget("x" * 129),
        ):
            with pytest.raises(ValueError, match=r"\w") as caught:
                await attempt()
            assert not isinstance(caught.value, sandd.SanddError)


# ---- forget -------------------------------------------------------------------------------------


async def test_forget_drops_a_job_and_uses_its_id_up(daemon: StandingDaemon) -> None:
    """Nobody finds it any more, whoever looks on is told, and the same start runs nothing."""
    async with daemon.worker() as worker:
        async with worker.open_process("echo x", job_id="used", detach=True) as process:
            await process.wait()
        async with worker.attach_process("used", read_only=True) as viewer:
            assert await read_all(viewer.stdout) == b"x\n"
            await worker.forget("used")
            assert (await viewer.wait()).success  # as it has been told before
        for attempt in (worker.kill, worker.forget):
            with pytest.raises(JobNotFound):
                await attempt("used")
        with pytest.raises(JobNotFound):
            async with worker.attach_process("used"):
                pytest.fail("it is gone")
        with pytest.raises(sandd.SanddError):
            async with worker.open_process("echo x", job_id="used", detach=True):
                pytest.fail("the id is used up")


async def test_forget_ends_what_still_runs(daemon: StandingDaemon, marker: Marker) -> None:
    """As kill does, with the job's own grace; its owner learns how it ended, and that it is gone."""
    async with daemon.worker() as worker:
        async with worker.open_process(STUBBORN, env=dict([marker]), kill_grace=0.1) as process:
            assert await read_line(process.stdout) == b"planted"
            await worker.forget(process.job_id)
            assert marker.processes() == []
            assert await worker.jobs() == []
            assert (await process.wait()).outcome is Outcome.CANCELLED


async def test_a_viewer_of_a_job_that_is_forgotten_while_it_waits_is_told(
    daemon: StandingDaemon,
) -> None:
    """With its output unread and its credit used up it can't wait for ever."""
    async with daemon.worker() as worker:
        script = "read x; head -c 3000000 /dev/zero; read x"
        async with worker.open_process(script, on_full="drop_oldest") as process:
            async with worker.attach_process(process.job_id, read_only=True) as viewer:
                # Not before: who attaches to the last that is kept has missed nothing.
                await process.stdin.send_all(b"go\n")
                while (await the_job(worker, process.job_id)).kept["stdout"].end < 3_000_000:
                    await trio.sleep(0.01)
                await worker.forget(process.job_id)
                with contextlib.suppress(JobNotFound):  # whichever of the two words comes first
                    await viewer.wait()
                with pytest.raises((trio.BrokenResourceError, sandd.OutputGap)):
                    await read_all(viewer.stdout)


# ---- whose --------------------------------------------------------------------------------------


async def test_agents_of_one_tenant_share_their_jobs(daemon: StandingDaemon) -> None:
    """Each sees, kills and forgets what another has started."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as colleague:
            async with worker.open_process(["cat"]) as process:
                (seen,) = await colleague.daemon("worker-1").jobs()
                assert (seen.job_id, seen.owned) == (process.job_id, True)
                await colleague.daemon("worker-1").kill(process.job_id)
                assert (await process.wait()).outcome is Outcome.CANCELLED
                await colleague.daemon("worker-1").forget(process.job_id)
                assert await worker.jobs() == []


# ---- cuts and absence ---------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])
async def test_a_cut_at_any_byte_of_a_request_is_no_difference(
    daemon: StandingDaemon, direction: Direction
) -> None:
    """Wherever the connection breaks, each request is done once and answered whole."""
    async with relayed(daemon) as (worker, relay):

        async def go_through() -> None:
            async with worker.open_process("sleep 60", detach=True) as process:
                pass
            (listed,) = await worker.jobs()
            assert (listed.job_id, listed.state) == (process.job_id, JobState.RUNNING)
            await worker.kill(process.job_id)
            (listed,) = await worker.jobs()
            assert (listed.state, listed.outcome) == (JobState.ENDED, Outcome.CANCELLED)
            await worker.forget(process.job_id)  # once: a second time it isn't found
            assert await worker.jobs() == []

        before = relay.passed[direction]
        await go_through()
        whole = relay.passed[direction] - before
        positions = range(1, whole + 1, max(1, whole // 30))
        for position in positions:
            relay.cut_after(position, direction)
            await go_through()
            relay.forget_cuts()
        assert relay.accepted > len(positions) // 2


async def test_a_request_waits_for_a_daemon_that_is_away(daemon: StandingDaemon) -> None:
    """As a command does; and it can be cancelled, at once and without a trace."""
    async with relayed(daemon) as (worker, relay):
        relay.refuse()
        await until(lambda: worker.state is sandd.DaemonState.AWAY)
        with trio.move_on_after(0.1) as scope:
            await worker.jobs()
        assert scope.cancelled_caught
        answers: list[list[sandd.JobInfo]] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask() -> None:
                answers.append(await worker.jobs())

            await trio.testing.wait_all_tasks_blocked(0.05)
            assert answers == []
            relay.accept()
        assert answers == [[]]


async def test_a_kill_that_is_cancelled_goes_on_without_us(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Only the waiting is over; the request itself is gone from the daemon."""
    async with daemon.worker() as worker:
        script = "trap '' TERM; echo on; sleep 60; sleep 60"
        async with worker.open_process(script, env=dict([marker]), detach=True) as process:
            assert await read_line(process.stdout) == b"on"
            with trio.move_on_after(0.2) as scope:
                await worker.kill(process.job_id, grace=3.0)
            assert scope.cancelled_caught
            assert marker.processes()
            assert (await process.wait()).signal == "SIGKILL"
        await worker.forget(process.job_id)


async def test_cancelled_at_every_moment_a_request_leaves_nothing(daemon: StandingDaemon) -> None:
    """The connection is healthy afterwards, and no request is left on the daemon or here."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        for number in range(60):
            with trio.move_on_after(number * 0.0001):
                await worker.jobs()
            with trio.move_on_after(number * 0.0001), contextlib.suppress(JobNotFound):
                await worker.kill("x")
        assert controller.statistics().jobs == 0
        assert await worker.jobs() == []
        assert (await worker.run("echo on")).stdout == "on\n"
        assert controller.statistics().jobs_started == 1  # requests are not counted


async def test_closing_the_controller_ends_a_request(daemon: StandingDaemon) -> None:
    """Who waits for one learns of it."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
            script = "trap '' TERM; echo on; sleep 60; sleep 60"
            process = await stack.enter_async_context(
                worker.open_process(script, kill_grace=0.1, job_id="closing")
            )
            assert await read_line(process.stdout) == b"on"

            @nursery.start_soon
            async def kill() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await worker.kill("closing", grace=60)

            await trio.sleep(0.1)
            controller._service.link.close()
    async with daemon.worker() as worker:
        with pytest.raises(trio.ClosedResourceError):
            await sandd._core.asking.ask(controller._service.link, "worker-1", wire.JobsSpec())
        while await worker.jobs():
            await trio.sleep(0.01)


async def test_a_daemon_that_is_gone_answers_nothing(daemon: StandingDaemon) -> None:
    """A handle to a former instance says so at once."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        worker._info = sandd.DaemonInfo("worker-1", "", "", "", "", {}, "former", 0.0)
        for attempt in (worker.jobs, lambda: worker.kill("x"), lambda: worker.forget("x")):
            with pytest.raises(sandd.DaemonGone) as caught:
                await attempt()  # type: ignore[operator]
            assert not caught.value.outcome_unknown


async def test_without_trio_they_are_reached_by_call(daemon: StandingDaemon) -> None:
    """`Server.call` runs them in the controller's thread."""

    def synchronous() -> list[str]:
        with sandd.Server(port=daemon.port) as server:
            assert server.wait_for_daemon("worker-1", timeout=LIMIT)
            worker = server.controller.daemon("worker-1")

            async def leave_one() -> None:
                async with worker.open_process("sleep 60", job_id="synchronous", detach=True):
                    pass

            server.call(leave_one)
            jobs = server.call(worker.jobs)
            server.call(functools.partial(worker.kill, "synchronous", grace=1))
            server.call(worker.forget, "synchronous")
            with pytest.raises(JobNotFound):
                server.call(worker.forget, "synchronous")
            return [job.job_id for job in jobs]

    assert await trio.to_thread.run_sync(synchronous) == ["synchronous"]


# ---- daemons that lie ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def asked(answer: bytes) -> AsyncIterator[sandd.Daemon]:
    """A daemon that answers each request with these bytes, and says that this is all."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller, raw_daemon(controller.url) as raw:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_answer, raw, answer)
                yield await controller.wait_for_daemon("raw")
                nursery.cancel_scope.cancel()


async def _answer(raw: RawDaemon, answer: bytes) -> None:
    with contextlib.suppress(sandd._core._errors.ConnectionLost):
        while True:
            channel, attach = await raw.receive_attach()
            assert attach.spec is not None
            attached = wire.Attached(wire.Role.OWNER, 1, JobState.QUEUED, ())
            finals = {Stream.OUTPUT: len(answer), Stream.ERROR: 0}
            exited = wire.Exited(0, None, Outcome.EXITED, 0.0, False, finals)
            await raw.send(
                wire.encode_control(channel, attached),
                wire.encode_data(channel, Stream.OUTPUT, 0, answer, final=True),
                wire.encode_data(channel, Stream.EVENTS, 0, wire.encode_event(exited)),
            )


async def test_nonsense_for_an_answer_is_a_protocol_error() -> None:
    """It is the daemon's fault, and costs this call alone."""
    async with asked(b"\xc1") as worker:
        with pytest.raises(RemoteProtocolError, match="bad answer"):
            await worker.jobs()
        with pytest.raises(RemoteProtocolError):
            await worker.jobs()


async def test_answers_of_a_newer_daemon_are_left_out() -> None:
    """What this version doesn't know is no job to it."""
    record = wire.JobRecord("j", JobState.QUEUED, (b"x",))
    packed = wire.encode_answer(record)
    newer = packed.replace(b"\xa3job", b"\xa3foo", 1)
    async with asked(newer + packed) as worker:
        assert [job.job_id for job in await worker.jobs()] == ["j"]


async def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon can't make its client hold more than a request may be answered with."""
    monkeypatch.setattr(wire, "MAX_ANSWERS_BYTES", 1000)
    async with asked(bytes(2000)) as worker:
        with pytest.raises(RemoteProtocolError, match="at most 1000"):
            await worker.jobs()
