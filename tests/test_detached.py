"""Jobs that outlive the block, the program, and the controller that started them; real processes throughout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing
from another_agent import another_agent
from daemons import daemon_environment
from forked_python import copies
from process_tools import read_all, read_line, until
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import JobNotFound, JobState, JobTaken
from sandd._core import job_link
from sandd.testing import DOWN, UP, Direction, FaultProxy, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

MB: Final = 1_000_000


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


async def ended(worker: sandd.Daemon, job_id: str) -> sandd.JobInfo:
    """What is known of the job, once it has ended."""
    while True:
        for job in await worker.jobs():
            if job.job_id == job_id and job.state is JobState.ENDED:
                return job
        await trio.sleep(0.01)


# ---- leaving it ---------------------------------------------------------------------------------


async def test_a_detached_job_outlives_its_block_and_its_controller(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Another controller finds it, reads it from the beginning, and has its end."""
    async with daemon.worker() as worker:
        async with worker.open_process(
            "echo begun; read x; echo $x", detach=True, env=dict([marker])
        ) as process:
            job_id, pid = process.job_id, process.pid
        assert len(marker.processes()) == 1
    async with daemon.worker() as worker:
        (job,) = await worker.jobs()
        assert (job.job_id, job.pid, job.state) == (job_id, pid, JobState.RUNNING)
        assert (job.detached, job.owned) == (True, False)
        async with worker.attach_process(job_id) as process:
            await process.stdin.send_all(b"done\n")
            assert await read_all(process.stdout) == b"begun\ndone\n"
            assert (await process.wait()).success
        assert (await ended(worker, job_id)).exit_code == 0  # leaving it dropped nothing
        await worker.forget(job_id)


async def test_detach_makes_it_so_later(daemon: StandingDaemon, marker: Marker) -> None:
    """Once it has returned, leaving ends nothing, and the daemon says so to everybody."""
    async with daemon.worker() as worker:
        async with worker.open_process(["cat"], env=dict([marker]), lease=0.5) as process:
            assert not (await worker.jobs())[0].detached
            await process.detach()
            await process.detach()  # twice is once
            assert (await worker.jobs())[0].detached
            await process.stdin.send_all(b"x")  # still ours
            assert await process.stdout.receive_some() == b"x"
        await trio.sleep(2.5)  # five leases
        assert len(marker.processes()) == 1
        async with worker.attach_process(process.job_id) as again:
            await again.stdin.aclose()
            assert (await again.wait()).success
        await worker.forget(process.job_id)


async def test_detach_after_the_end_keeps_the_results(daemon: StandingDaemon) -> None:
    """They are there for who comes later, as those of any detached job."""
    async with daemon.worker() as worker:
        async with worker.open_process("echo result; exit 3") as process:
            await process.wait()
            await process.detach()
        async with worker.attach_process(process.job_id) as again:
            assert await read_all(again.stdout) == b"result\n"
            assert (await again.wait()).exit_code == 3
        await worker.forget(process.job_id)


async def test_an_exception_in_the_block_ends_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """It comes out as itself, and so does a cancellation; the job goes on."""
    async with daemon.worker() as worker:
        for number in range(2):
            with pytest.raises(KeyError):
                async with worker.open_process(
                    ["sleep", "60"], detach=True, env=dict([marker]), job_id=f"leaves-{number}"
                ):
                    raise KeyError("mine")
        with trio.move_on_after(0.3) as scope:
            async with worker.open_process(
                ["sleep", "60"], detach=True, env=dict([marker])
            ) as process:
                await process.wait()
        assert scope.cancelled_caught
        assert len(marker.processes()) == 3
        for job in await worker.jobs():
            await worker.forget(job.job_id)
        assert marker.processes() == []


async def test_cancelled_before_the_block_was_entered_nothing_is_left(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Nobody has heard of the job, so nobody would ever end it: it is ended like any other."""
    async with daemon.worker() as worker:
        entered: list[str] = []
        number = 0
        while number < 60 or not entered:  # on a busy machine a start takes its time
            with trio.move_on_after(number * 0.0002):
                async with worker.open_process(
                    ["sleep", "60"], detach=True, env=dict([marker])
                ) as process:
                    entered.append(process.job_id)
            number += 1
        assert len(entered) < number
        assert [job.job_id for job in await worker.jobs()] == entered
        for job_id in entered:
            await worker.forget(job_id)
        assert marker.processes() == []


async def test_closing_the_controller_ends_what_is_owned_and_lets_the_rest_go_on(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Also while their blocks are open: the detached ones and those that are looked on at."""
    async with daemon.controller() as controller, contextlib.AsyncExitStack() as stack:
        worker = await controller.wait_for_daemon("worker-1")
        for name, detach in (("owned", False), ("detached", True)):
            opened = worker.open_process(
                ["sleep", "60"], detach=detach, job_id=name, env=dict([marker])
            )
            await stack.enter_async_context(opened)
        await controller._service.close()
        with pytest.raises(trio.ClosedResourceError):
            async with worker.open_process("true", detach=True):
                pytest.fail("it is closed")
    async with daemon.worker() as worker:
        assert len(marker.processes()) == 1
        assert [job.job_id for job in await worker.jobs()] == ["detached"]
        await worker.kill("detached")
        await worker.forget("detached")


async def test_the_death_of_the_daemon_ends_detached_jobs_too(marker: Marker) -> None:
    """They outlive their client, and nothing else."""
    with standing_daemon() as daemon:
        async with daemon.worker() as worker:
            script = "setsid sleep 60 & echo on; sleep 60; :"
            async with worker.open_process(script, detach=True, env=dict([marker])) as process:
                assert await read_line(process.stdout) == b"on"
            await until(lambda: len(marker.processes()) == 3)
            daemon.process.kill()
            await until(lambda: not marker.processes())


async def test_the_results_of_a_detached_job_are_kept_until_they_are_forgotten(
    daemon: StandingDaemon,
) -> None:
    """However many read them; then there is no such job, and its id starts nothing."""
    async with daemon.worker() as worker:
        async with worker.open_process("echo kept", detach=True, job_id="kept"):
            pass
        await ended(worker, "kept")
        for options in ({"read_only": True}, {}, {"read_only": True}):
            async with worker.attach_process("kept", **options) as process:
                assert await read_all(process.stdout) == b"kept\n"
                assert (await process.wait()).success
        await worker.forget("kept")
        with pytest.raises(JobNotFound):
            async with worker.attach_process("kept"):
                pytest.fail("it is forgotten")


async def test_starting_it_again_finds_the_one_that_runs(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """An agent that doesn't know whether its service runs just starts it, under an id of its own."""
    script = f"echo x >> {tmp_path}/ran; cat"
    pids = set()
    for _ in range(3):
        async with daemon.worker() as worker:
            async with worker.open_process(script, detach=True, job_id="service") as process:
                pids.add(process.pid)
                await process.stdin.send_all(b"x")
                assert (await process.stdout.receive_some()).endswith(b"x")
    async with daemon.worker() as worker:
        await worker.forget("service")
    assert len(pids) == 1
    assert (tmp_path / "ran").read_text() == "x\n"


# ---- what was sent before leaving ---------------------------------------------------------------


async def test_what_was_written_before_leaving_arrives(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Input, its end, and a signal: leaving waits until they are there."""
    data = bytes(range(256)) * 1000
    async with daemon.worker() as worker:
        for number in range(10):
            copy, signalled = tmp_path / f"{number}", tmp_path / f"{number}.signalled"
            script = (
                f"trap 'touch {signalled}' USR1; (trap '' USR1; echo on; exec cat > {copy}); "
                f"until [ -e {signalled} ]; do sleep 0.01; done; exit 0"
            )
            async with worker.open_process(script, detach=True) as process:
                assert await read_line(process.stdout) == b"on"
                await process.stdin.send_all(data)
                await process.stdin.aclose()
                await process.signal("USR1")
            assert (await ended(worker, process.job_id)).exit_code == 0
            assert copy.read_bytes() == data
            await worker.forget(process.job_id)


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])
async def test_a_cut_at_any_byte_of_leaving_loses_nothing(
    daemon: StandingDaemon, direction: Direction, tmp_path: Path
) -> None:
    """Whatever was sent arrives once, and the job goes on, wherever the connection breaks."""
    async with relayed(daemon) as (worker, relay):

        async def go_through(detach: bool) -> None:
            async with worker.open_process(f"cat >> {tmp_path}/got", detach=detach) as process:
                await process.stdin.send_all(b"some input.")
                await process.stdin.aclose()
                if not detach:
                    await process.detach()
            assert (await ended(worker, process.job_id)).exit_code == 0
            await worker.forget(process.job_id)

        before = relay.passed[direction]
        for detach in (True, False):
            await go_through(detach)
        whole = relay.passed[direction] - before
        positions = range(1, whole + 1, max(1, whole // 30))
        for number, position in enumerate(positions):
            relay.cut_after(position % (whole // 2) + 1, direction)
            await go_through(number % 2 == 0)
            relay.forget_cuts()
        assert relay.accepted > len(positions) // 2
        assert (tmp_path / "got").read_text() == "some input." * (2 + len(positions))


async def test_leaving_does_not_wait_for_the_command_to_read(daemon: StandingDaemon) -> None:
    """What fits the buffers has arrived when the daemon has it, though nobody takes it."""
    async with daemon.worker() as worker:
        started = trio.current_time()
        async with worker.open_process("sleep 60; wc -c", detach=True) as process:
            with trio.move_on_after(0.3):
                await process.stdin.send_all(bytes(5 * MB))
        assert trio.current_time() - started < job_link.FLUSH_SECONDS / 2
        assert [job.state for job in await worker.jobs()] == [JobState.RUNNING]
        await worker.forget(process.job_id)


async def test_leaving_does_not_wait_for_ever_for_a_daemon_that_is_away(
    daemon: StandingDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent to it is lost then, and the job goes on."""
    monkeypatch.setattr(job_link, "FLUSH_SECONDS", 0.3)
    async with relayed(daemon) as (worker, relay):
        async with worker.open_process(["cat"], detach=True) as process:
            relay.refuse()
            await until(lambda: worker.state is sandd.DaemonState.AWAY)
            await process.stdin.send_all(b"lost")
            started = trio.current_time()
        assert 0.3 <= trio.current_time() - started < 5
        relay.accept()
        async with worker.attach_process(process.job_id) as again:
            await again.stdin.send_all(b"kept")
            await again.stdin.aclose()
            assert await read_all(again.stdout) == b"kept"
        await worker.forget(process.job_id)


async def test_leaving_while_the_daemon_is_away_returns_at_once_if_nothing_was_sent(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The job goes on there, and nobody ends it on its return."""
    async with relayed(daemon) as (worker, relay):
        async with worker.open_process(["sleep", "60"], detach=True, env=dict([marker])) as process:
            relay.refuse()
            await until(lambda: worker.state is sandd.DaemonState.AWAY)
            started = trio.current_time()
        assert trio.current_time() - started < job_link.FLUSH_SECONDS / 2
        relay.accept()
        (job,) = await worker.jobs()
        assert (job.job_id, job.owned) == (process.job_id, False)
        assert len(marker.processes()) == 1
        await worker.forget(process.job_id)


async def test_what_was_sent_while_the_daemon_is_away_arrives_on_its_return(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Leaving waits for it, as it would have been lost with the block."""
    async with relayed(daemon) as (worker, relay), trio.open_nursery() as nursery:
        async with worker.open_process(f"cat > {tmp_path}/got", detach=True) as process:
            relay.refuse()
            await until(lambda: worker.state is sandd.DaemonState.AWAY)
            await process.stdin.send_all(b"late")
            await process.stdin.aclose()

            @nursery.start_soon
            async def come_back() -> None:
                await trio.sleep(0.3)
                relay.accept()

        assert (await ended(worker, process.job_id)).exit_code == 0
        assert (tmp_path / "got").read_text() == "late"
        await worker.forget(process.job_id)


async def test_detach_waits_for_a_daemon_that_is_away(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Cancelled before it has returned it is no promise: leaving ends the job."""
    async with relayed(daemon) as (worker, relay):
        for wait in (True, False):
            async with worker.open_process(["sleep", "60"], env=dict([marker])) as process:
                relay.refuse()
                await until(lambda: worker.state is sandd.DaemonState.AWAY)
                with trio.move_on_after(0.2) as scope:
                    await process.detach()
                assert scope.cancelled_caught
                if wait:
                    relay.accept()
                    await process.detach()
            relay.accept()
            await worker._link.directory.wait_online("worker-1")
            if wait:
                assert [job.detached for job in await worker.jobs()] == [True]
                await worker.forget(process.job_id)
            await until(lambda: not marker.processes())


async def test_detach_tells_what_prevents_it(daemon: StandingDaemon) -> None:
    """A job that was taken over, or forgotten while it waits for its daemon, is no longer ours to detach."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        async with another_agent(controller) as agent:
            async with worker.open_process(["cat"]) as process:
                async with agent.daemon("worker-1").attach_process(process.job_id, takeover=True):
                    with pytest.raises(JobTaken):
                        await process.wait()
                    with pytest.raises(JobTaken):
                        await process.detach()


async def test_every_operation_is_a_checkpoint(daemon: StandingDaemon) -> None:
    """As trio wants it: also where there is nothing to wait for."""
    async with daemon.worker() as worker:
        async with worker.open_process("true", detach=True) as process:
            await process.wait()
            with trio.testing.assert_checkpoints():
                await process.detach()
        for attempt in (
            worker.jobs,
            lambda: worker.kill(process.job_id),
            lambda: worker.forget(process.job_id),
        ):
            with trio.testing.assert_checkpoints():
                await attempt()


# ---- an agent that is killed --------------------------------------------------------------------

AGENT: Final = """
import contextlib, hashlib, json, sys, trio, sandd

async def main(port, total, prefix):
    printing = [sys.executable, "-c", sys.argv[4]]
    async with sandd.open_controller(port=port) as controller, contextlib.AsyncExitStack() as stack:
        worker = await controller.wait_for_daemon("worker-1")
        said = {}
        for name, options in (("owned", {}), ("detached", {"detach": True})):
            command = [*printing, str(total), name]
            opened = worker.open_process(command, job_id=prefix + name, **options)
            process = await stack.enter_async_context(opened)
            data = b""
            while len(data) < 123_456:
                data += await process.stdout.receive_some(10_000)
            said[name] = [hashlib.sha256(data).hexdigest(), dict(process.offsets), process.pid]
        opened = worker.open_process("echo all; exit 7", job_id=prefix + "finished")
        finished = await stack.enter_async_context(opened)
        await finished.wait()
        said["finished"] = ["", dict(finished.offsets), finished.pid]
        print(json.dumps(said), flush=True)
        await trio.sleep_forever()

trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
"""
PRINTING: Final = """
import random, sys
total, name = int(sys.argv[1]), sys.argv[2]
source = random.Random(name)
for _ in range(total // 10_000):
    sys.stdout.buffer.write(source.randbytes(10_000))
    sys.stdout.flush()
print("end of", name, file=sys.stderr)
sys.exit(5)
"""
TOTAL: Final = 1 * MB


def printed(name: str) -> bytes:
    """What PRINTING writes."""
    import random

    source = random.Random(name)
    return b"".join(source.randbytes(10_000) for _ in range(TOTAL // 10_000))


@contextlib.asynccontextmanager
async def killed_agent(daemon: StandingDaemon, prefix: str) -> AsyncIterator[dict[str, Any]]:
    """What an agent had read, and of which jobs, before it was killed with SIGKILL."""
    arguments = [str(daemon.port), str(TOTAL), prefix, PRINTING]
    with copies():
        agent = await trio.lowlevel.open_process(
            [sys.executable, "-c", AGENT, *arguments],
            stdout=subprocess.PIPE,
            env=daemon_environment(),
        )
    assert agent.stdout is not None
    try:
        with trio.fail_after(LIMIT):
            async with agent.stdout:
                line = await read_line(agent.stdout)
        agent.send_signal(signal.SIGKILL)
        assert await agent.wait() == -signal.SIGKILL
    finally:
        agent.kill()
        await agent.wait()
    yield json.loads(line)


async def test_a_new_agent_finds_the_jobs_of_one_that_was_killed(daemon: StandingDaemon) -> None:
    """It lists what runs and what has ended, and reads on without a gap or a repeat, whoever was to own it."""
    async with killed_agent(daemon, "a-") as said, daemon.worker() as worker:
        jobs = {job.job_id.removeprefix("a-"): job for job in await worker.jobs()}
        assert list(jobs) == ["owned", "detached", "finished"]
        assert [job.pid for job in jobs.values()] == [said[name][2] for name in jobs]
        assert [job.owned for job in jobs.values()] == [False] * 3
        assert [job.detached for job in jobs.values()] == [False, True, False]
        # Nobody had to read for it to go on: its output is on disk.
        assert jobs["owned"].state in (JobState.RUNNING, JobState.ENDED)
        assert (jobs["finished"].state, jobs["finished"].exit_code) == (JobState.ENDED, 7)

        for name in ("owned", "detached"):
            digest, since, pid = said[name]
            begun = printed(name)[: since["stdout"]]
            assert len(begun) >= 123_456
            assert hashlib.sha256(begun).hexdigest() == digest
            async with worker.attach_process(f"a-{name}", since=since) as process:
                assert process.pid == pid
                data = begun + await read_all(process.stdout)
                assert await read_all(process.stderr) == f"end of {name}\n".encode()
                assert (await process.wait()).exit_code == 5
            assert hashlib.sha256(data).digest() == hashlib.sha256(printed(name)).digest()
        async with worker.attach_process("a-finished") as process:
            assert await read_all(process.stdout) == b"all\n"
            assert (await process.wait()).exit_code == 7
        assert [job.job_id for job in await worker.jobs()] == ["a-detached"]
        await worker.forget("a-detached")


async def test_without_offsets_a_new_agent_reads_all_that_is_kept(daemon: StandingDaemon) -> None:
    """It begins no later than where the dead one had read to, and what it gets is right to the end."""
    async with killed_agent(daemon, "b-") as said, daemon.worker() as worker:
        for name in ("owned", "detached"):
            async with worker.attach_process(f"b-{name}", takeover=True) as process:
                begun = process.offsets["stdout"]
                assert begun <= said[name][1]["stdout"]
                assert await read_all(process.stdout) == printed(name)[begun:]
        for job in await worker.jobs():
            await worker.forget(job.job_id)
