"""Cuts, black holes and refusals between a real daemon and its controller: nothing is lost, nothing runs twice."""

from __future__ import annotations

import hashlib
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

import pytest
import trio
from daemons import open_daemon
from process_tools import read_all, read_line, until
from proxied_world import LIMIT, world
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import CommandTimeout, DaemonGone, DaemonState, Outcome
from sandd._core import commands, reception
from sandd.testing import DOWN, UP, Direction, Ending, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

MB = 1_000_000
PRODUCER: Final = (
    "import sys, random, time\n"
    "size, pauses = int(sys.argv[1]), int(sys.argv[2])\n"
    "r = random.Random(7)\n"
    "for i in range(pauses):\n"
    "    sys.stdout.buffer.write(r.randbytes(size // pauses)); sys.stdout.flush(); time.sleep(0.01)\n"
)


def produced(size: int, pauses: int) -> bytes:
    """What PRODUCER prints."""
    source = random.Random(7)
    return b"".join(source.randbytes(size // pauses) for _ in range(pauses))


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; those that end it start one of their own."""
    with standing_daemon() as daemon:
        yield daemon


# ---- nothing is lost ----------------------------------------------------------------------------


async def test_twenty_cuts_in_one_run_lose_and_repeat_nothing(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Output and input are whole, one process ran, the handle is the same, and events tell of each cut."""
    data = random.Random(8).randbytes(8 * MB)
    script = f"echo x >> {tmp_path}/ran; tee {tmp_path}/copy"
    async with world(daemon) as it, it.controller.open_events() as events:
        results = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def run() -> None:
                results.append(await it.worker.run(script, input=data))
                nursery.cancel_scope.cancel()

            for cut in range(1, 21):
                await it.proxy.wait_passed(it.proxy.passed[DOWN] + 100_000, DOWN)
                it.proxy.cut()
                await it.proxy.wait_accepted(1 + cut)

        assert results[0].stdout_bytes == data
        assert (tmp_path / "copy").read_bytes() == data
        assert (tmp_path / "ran").read_text() == "x\n"
        assert it.proxy.accepted == 21
        seen = [(await anext(events)).kind for _ in range(40)]
        assert seen == ["away", "resumed"] * 20
        assert it.worker.state is DaemonState.ONLINE
        assert (await it.worker.run("echo on")).stdout == "on\n"


async def test_a_link_that_flaps_all_the_time_makes_progress(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Cut 50 ms after each return, once something has come through, all that was begun comes to its end."""
    data = random.Random(9).randbytes(3 * MB)
    done = 0
    async with world(daemon) as it, it.controller.open_events() as events:

        def progress() -> int:
            return done + sum(it.proxy.passed.values()) // 50_000

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flap() -> None:
                while True:
                    before = progress()
                    await trio.sleep(0.05)
                    # A machine may be so busy that nobody has said a word by then, time after time.
                    await until(lambda: progress() > before)  # noqa: B023 - used within the iteration
                    it.proxy.cut()
                    while (await anext(events)).kind != "resumed":
                        pass

            async def upload() -> None:
                result = await it.worker.run("sha256sum", input=data)
                assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()

            async def download() -> None:
                result = await it.worker.run([sys.executable, "-c", PRODUCER, "2000000", "50"])
                assert result.stdout_bytes == produced(2_000_000, 50)

            async def talk() -> None:
                nonlocal done
                async with it.worker.open_process(["cat"]) as process:
                    for number in range(100):
                        await process.stdin.send_all(b"%d\n" % number)
                        assert await read_line(process.stdout) == b"%d" % number
                        done += 1

            async def many() -> None:
                nonlocal done
                for number in range(30):
                    result = await it.worker.run(f"echo {number} | tee -a {tmp_path}/numbers")
                    assert result.stdout == f"{number}\n"
                    done += 1

            async with trio.open_nursery() as jobs:
                for job in (upload, download, talk, many):
                    jobs.start_soon(job)
            nursery.cancel_scope.cancel()
        # A cat whose block was left during a cut ends on the daemon's return, and not if nobody waits for that.
        await it.worker.run("true")
        assert (tmp_path / "numbers").read_text().split() == [str(i) for i in range(30)]
        assert it.proxy.accepted > 5


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])
async def test_a_cut_at_any_byte_around_start_and_exit_is_no_difference(
    daemon: StandingDaemon, direction: Direction, tmp_path: Path
) -> None:
    """The command runs exactly once, and its result is the same wherever the connection breaks."""
    script = f"cat >> {tmp_path}/ran; echo out; echo err >&2; exit 7"
    async with world(daemon) as it:
        before = it.proxy.passed[direction]
        await it.worker.run(script, input=b".")
        whole = it.proxy.passed[direction] - before
        assert 50 < whole < 2000
        positions = range(1, whole + 1, max(1, whole // 40))
        for position in positions:
            it.proxy.cut_after(position, direction)
            result = await it.worker.run(script, input=b".")
            assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 7)
            it.proxy.forget_cuts()
        # Of the acknowledgements after the last one nothing can be seen here.
        assert it.proxy.accepted > len(positions) // 2
        assert (tmp_path / "ran").read_text() == "." * (len(positions) + 1)


async def test_a_half_closed_connection_is_dialled_again(daemon: StandingDaemon) -> None:
    """A proxy that lets nothing through any more, but closes politely, is one more cut."""
    async with world(daemon) as it:
        for _ in range(5):
            accepted = it.proxy.accepted
            it.proxy.cut_after(1, UP, Ending.CLOSE)
            with trio.move_on_after(LIMIT):
                assert (await it.worker.run("echo on")).stdout == "on\n"
            assert it.proxy.accepted == accepted + 1


async def test_input_and_its_end_survive_a_cut_between_them(daemon: StandingDaemon) -> None:
    """Stdin goes on where it stopped, and its end comes once."""
    async with world(daemon) as it, it.worker.open_process(["cat"]) as process:
        for part in (b"one\n", b"two\n", b"three\n"):
            await process.stdin.send_all(part)
            assert await read_line(process.stdout) == part.strip()
            it.proxy.cut()
        await process.stdin.aclose()
        it.proxy.cut()
        assert await process.stdout.receive_some() == b""
        assert (await process.wait()).success


async def test_both_directions_full_and_then_cut_is_no_deadlock(daemon: StandingDaemon) -> None:
    """A filter stuck on its output, and so on its input, goes on over the next connection, to the last byte."""
    data = b"".join(b"%09d\n" % number for number in range(1_200_000))
    async with world(daemon) as it, it.worker.open_process(["cat"]) as process:
        sent = 0

        async def write() -> None:
            nonlocal sent
            for position in range(0, len(data), 65_536):
                chunk = data[position : position + 65_536]
                await process.stdin.send_all(chunk)
                sent += len(chunk)
            await process.stdin.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            received = b""
            for _ in range(3):
                await stuck(lambda: sent)
                assert sent < len(data), "it was to be stuck, but all of it has been sent"
                await it.disconnect()
                await stuck(lambda: sent)
                it.proxy.accept()
                await it.back()
                await stuck(lambda: sent)
                while len(received) < sent // 3:
                    received += await process.stdout.receive_some()
                it.proxy.cut()
            received += await read_all(process.stdout)
        assert received == data
        assert (await process.wait()).success


async def stuck(progress: Callable[[], int]) -> None:
    """Return once there has been no progress for a while; early is no harm, but a test of less."""
    seen = -1
    while seen != (seen := progress()):
        await trio.sleep(0.2)


ONE_BYTE_AT_A_TIME = """
import os, pathlib, sys, time
asked, data = pathlib.Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
for count in range(1, len(data) + 1):
    while int(asked.read_text() or 0) < count:
        time.sleep(0.002)
    os.write(1, data[count - 1 : count])
    pathlib.Path(sys.argv[1] + ".done").write_text(str(count))
"""


async def test_a_cut_within_a_character_leaves_the_text_as_it_is(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Each byte of it comes over a connection of its own, and what is no UTF-8 is replaced, not torn."""
    text = "aé€😀".encode() + b"\xff\xf0\x9f" + "ß".encode() + b"\xe2\x82"
    asked, done = tmp_path / "asked", tmp_path / "asked.done"
    asked.touch()
    done.touch()
    async with world(daemon) as it:
        results: list[sandd.CommandResult] = []

        async def run() -> None:
            command = [sys.executable, "-c", ONE_BYTE_AT_A_TIME, str(asked), text.hex()]
            results.append(await it.worker.run(command, timeout=LIMIT))

        before = it.proxy.accepted
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for count in range(1, len(text) + 1):
                asked.write_text(str(count))
                await until(lambda count=count: done.read_text() == str(count), within=LIMIT)
                await it.disconnect()
                it.proxy.accept()
                await it.back()
        (result,) = results
        assert it.proxy.accepted - before >= len(text)
        assert result.stdout_bytes == text
        assert result.stdout == text.decode("utf-8", "replace") == "aé€😀\ufffd\ufffdß\ufffd"


async def test_signals_survive_cuts_in_order_and_once(daemon: StandingDaemon) -> None:
    """However often the connection breaks, each signal is delivered one time."""
    program = (
        "import os, signal\n"
        "for s in (10, 12): signal.signal(s, lambda n, _: os.write(1, b'%d\\n' % n))\n"
        "os.write(1, b'on\\n')\n"
        "while True: signal.pause()\n"
    )
    async with (
        world(daemon) as it,
        it.worker.open_process([sys.executable, "-c", program]) as process,
    ):
        assert await read_line(process.stdout) == b"on"
        for number in range(12):
            await process.signal("USR1" if number % 2 else "USR2")
            it.proxy.cut()
            assert await read_line(process.stdout) == (b"10" if number % 2 else b"12")
        await process.terminate()
        it.proxy.cut()
        assert (await process.wait()).signal == "SIGTERM"


async def test_an_exit_while_away_is_told_with_all_the_output(daemon: StandingDaemon) -> None:
    """What was printed, and how it ended, waits for the connection."""
    async with world(daemon) as it, it.worker.open_process("read x; echo late; exit 6") as process:
        await process.stdin.send_all(b"go\n")
        await it.disconnect()
        await trio.sleep(0.2)
        it.proxy.accept()
        status = await process.wait()
        assert status.exit_code == 6
        assert await read_line(process.stdout) == b"late"


async def test_a_command_goes_on_while_its_controller_is_away(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """A cut stops nothing on the daemon's side."""
    async with world(daemon) as it:
        log = tmp_path / "log"
        script = f"while sleep 0.02; do echo x >> {log}; done"
        async with it.worker.open_process(script, kill_grace=0):
            await until(log.exists)
            await it.disconnect()
            size = log.stat().st_size
            await until(lambda: log.stat().st_size > size + 10)
            assert it.worker.state is DaemonState.AWAY
            it.proxy.accept()
            await it.back()


# ---- away ---------------------------------------------------------------------------------------


async def test_a_run_that_begins_while_away_waits_and_then_runs_once(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """It is sent as soon as the daemon is back."""
    async with world(daemon) as it:
        await it.disconnect()
        async with trio.open_nursery() as nursery:
            results = []

            @nursery.start_soon
            async def run() -> None:
                results.append(await it.worker.run(f"echo x >> {tmp_path}/ran; echo here"))

            await trio.sleep(0.2)
            assert results == []
            assert not (tmp_path / "ran").exists()
            it.proxy.accept()
        assert results[0].stdout == "here\n"
        assert (tmp_path / "ran").read_text() == "x\n"


async def test_a_timeout_while_away_means_not_started(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """CommandTimeout says that nothing ran; nor does it later."""
    async with world(daemon) as it:
        await it.disconnect()
        with pytest.raises(CommandTimeout, match="not started") as caught:
            await it.worker.run(f"touch {tmp_path}/ran", timeout=0.2)
        assert (caught.value.started, caught.value.result) == (False, None)
        it.proxy.accept()
        await it.back()
        assert (await it.worker.run("echo on")).stdout == "on\n"
        assert not (tmp_path / "ran").exists()


async def test_a_timeout_on_the_way_means_unknown(daemon: StandingDaemon, tmp_path: Path) -> None:
    """Sent, never answered, and cut: whether it started can't be known; on return it is ended."""
    async with world(daemon) as it:
        it.proxy.blackhole(UP)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                errors: list[CommandTimeout] = []

                @nursery.start_soon
                async def run() -> None:
                    with pytest.raises(CommandTimeout) as caught:
                        await it.worker.run(f"touch {tmp_path}/ran; sleep 60", timeout=1.0)
                    errors.append(caught.value)

                await until(lambda: (tmp_path / "ran").exists())
                it.proxy.refuse()
                it.proxy.release()
        assert not scope.cancelled_caught
        assert (errors[0].started, errors[0].result) == (None, None)
        it.proxy.accept()
        await it.back()
        assert (await it.worker.run("echo on")).stdout == "on\n"


async def test_a_timeout_strikes_on_the_daemon_though_it_is_away(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The daemon counts it, not the connection: the command is dead long before we are back."""
    async with world(daemon) as it, trio.open_nursery() as nursery:
        errors: list[CommandTimeout] = []

        @nursery.start_soon
        async def run() -> None:
            with pytest.raises(CommandTimeout) as caught:
                await it.worker.run("echo hi; sleep 60", timeout=2.5, env=dict([marker]))
            errors.append(caught.value)

        await until(lambda: any(job.started for job in it.controller._service.link.client.jobs))
        assert marker.processes()
        await it.disconnect()
        await until(lambda: not marker.processes())
        assert errors == []
        it.proxy.accept()
        await until(lambda: errors)
        assert errors[0].started is True
        assert errors[0].result is not None
        assert errors[0].result.stdout == "hi\n"


async def test_a_run_whose_time_is_up_does_not_wait_for_an_absent_daemon(
    daemon: StandingDaemon, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has killed it by then; that it did, and not how it ended, is what is known."""
    monkeypatch.setattr(commands, "AWAY_MARGIN", 0.2)
    async with world(daemon) as it, trio.open_nursery() as nursery:
        errors: list[CommandTimeout] = []

        @nursery.start_soon
        async def run() -> None:
            with pytest.raises(CommandTimeout, match="away") as caught:
                await it.worker.run("sleep 60", timeout=2.5, kill_grace=0.1, env=dict([marker]))
            errors.append(caught.value)

        await until(lambda: any(job.started for job in it.controller._service.link.client.jobs))
        await it.disconnect()
        await until(lambda: errors)
        assert (errors[0].started, errors[0].result) == (True, None)
        assert marker.processes() == []
        it.proxy.accept()
        await it.back()


async def test_a_run_that_is_cancelled_while_away_returns_at_once(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """The tree lives until the daemon is back, and then dies unasked."""
    async with world(daemon) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: it.worker.run("sleep 60", env=dict([marker])))
            await until(marker.processes)
            await it.disconnect()
            started = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started < 5
        assert marker.processes()
        it.proxy.accept()
        await until(lambda: not marker.processes())


async def test_leaving_a_process_while_away_ends_it_on_return(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Leaving the block doesn't wait for the network; the intent to end it does."""
    async with world(daemon) as it:
        async with it.worker.open_process(
            "trap '' TERM; setsid sleep 60 & sleep 60", env=dict([marker]), kill_grace=0.1
        ) as process:
            await until(lambda: len(marker.processes()) >= 3)
            await it.disconnect()
            started = trio.current_time()
        assert trio.current_time() - started < 5
        with pytest.raises(trio.ClosedResourceError, match="left"):
            await process.wait()
        with pytest.raises(trio.BrokenResourceError):
            await process.stdout.receive_some()
        await process.signal("INT")
        assert len(marker.processes()) >= 3
        it.proxy.accept()
        await until(lambda: not marker.processes())
        assert it.controller.statistics().jobs == 0


async def test_leaving_just_before_a_cut_ends_it_all_the_same(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """An End that was lost on the way is said again."""
    async with world(daemon) as it:
        for held in (DOWN, UP):
            is_held = trio.Event()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def hold_a_process() -> None:
                    async with it.worker.open_process("sleep 60", env=dict([marker])):
                        await until(marker.processes)
                        it.proxy.blackhole(held)  # noqa: B023 - the nursery ends within the iteration
                        is_held.set()  # noqa: B023

                await is_held.wait()
                await trio.sleep(0.1)
                it.proxy.cut()
                it.proxy.release()
            await until(lambda: not marker.processes())
            await it.back()


async def test_cancelled_at_any_moment_around_cuts_leaves_nothing(
    daemon: StandingDaemon, marker: Marker
) -> None:
    """Whatever the connection does while a run is given up."""
    source = random.Random(10)
    async with world(daemon) as it:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flap() -> None:
                while True:
                    await trio.sleep(source.uniform(0.0, 0.05))
                    it.proxy.cut()

            for _ in range(40):
                with trio.move_on_after(source.uniform(0.0, 0.08)):
                    script = "setsid sleep 60 & sleep 60"
                    await it.worker.run(script, env=dict([marker]), kill_grace=0)
            nursery.cancel_scope.cancel()
        # Behind every End that was to be said again: so far, what is left may be about to start.
        assert (await it.worker.run("echo on")).stdout == "on\n"
        await until(lambda: not marker.processes())
        assert it.controller.statistics().jobs == 0


async def test_waiting_for_a_daemon_that_is_away_is_waiting_for_its_return(
    daemon: StandingDaemon,
) -> None:
    """`wait_for_daemon` and the handle know the difference between known and online."""
    async with world(daemon) as it:
        await it.disconnect()
        assert it.controller.daemon("worker-1").state is DaemonState.AWAY
        with trio.move_on_after(0.1) as scope:
            await it.controller.wait_for_daemon("worker-1")
        assert scope.cancelled_caught
        it.proxy.accept()
        assert (await it.controller.wait_for_daemon("worker-1")).state is DaemonState.ONLINE
        assert it.worker.state is DaemonState.ONLINE


# ---- silence ------------------------------------------------------------------------------------


async def test_a_short_black_hole_is_no_cut(daemon: StandingDaemon) -> None:
    """Shorter than the dead limit, it is a delay and nothing else."""
    async with world(daemon, heartbeat=0.5, dead_after=3.0) as it:
        it.proxy.blackhole()
        async with trio.open_nursery() as nursery:
            results = []

            @nursery.start_soon
            async def run() -> None:
                results.append(await it.worker.run("echo hi"))

            await trio.sleep(1.0)
            assert results == []
            it.proxy.release()
        assert results[0].stdout == "hi\n"
        assert it.proxy.accepted == 1


@pytest.mark.parametrize("directions", [(), (UP,), (DOWN,)], ids=["both", "up", "down"])
async def test_a_long_black_hole_is_noticed_by_both_sides(
    daemon: StandingDaemon, directions: tuple[Direction, ...], tmp_path: Path
) -> None:
    """Each side gives the connection up by itself, and what ran goes on over the next one."""
    async with world(daemon, heartbeat=0.1, dead_after=0.6) as it:
        async with it.worker.open_process(f"echo x >> {tmp_path}/ran; cat") as process:
            await process.stdin.send_all(b"before\n")
            assert await read_line(process.stdout) == b"before"
            it.proxy.blackhole(*directions)
            await process.stdin.send_all(b"during\n")
            started, lost = trio.current_time(), it.process.log.count("link_lost")
            await it.away()
            await until(lambda: it.process.log.count("link_lost") > lost)
            assert trio.current_time() - started < LIMIT / 2
            it.proxy.cut()
            it.proxy.release()
            assert await read_line(process.stdout) == b"during"
            assert (tmp_path / "ran").read_text() == "x\n"


async def test_an_idle_link_stays_up_on_heartbeats_alone(daemon: StandingDaemon) -> None:
    """Nobody says anything for many dead limits, and nobody is given up."""
    async with (
        world(daemon, heartbeat=0.1, dead_after=1.5) as it,
        it.controller.open_events() as events,
    ):
        with trio.move_on_after(5.0):
            pytest.fail(f"{await anext(events)!r}")
        assert it.proxy.accepted == 1


async def test_a_daemon_that_was_stopped_for_a_while_resumes(daemon: StandingDaemon) -> None:
    """SIGSTOP makes it silent, so it is given up; SIGCONT brings it back with its jobs and their output."""
    async with world(daemon, heartbeat=0.1, dead_after=0.6) as it:
        async with it.worker.open_process(["cat"]) as process:
            await process.stdin.send_all(b"before\n")
            assert await read_line(process.stdout) == b"before"
            it.process.signal(signal.SIGSTOP)
            await it.away()
            await process.stdin.send_all(b"during\n")
            it.process.signal(signal.SIGCONT)
            assert await read_line(process.stdout) == b"during"


async def test_a_loop_of_ours_that_stood_still_blames_nobody(daemon: StandingDaemon) -> None:
    """A controller whose program blocked for longer than the dead limit keeps its daemons."""
    async with world(daemon, heartbeat=0.2, dead_after=0.8) as it:
        import time

        time.sleep(2.0)  # noqa: ASYNC251 - that is the fault
        assert (await it.worker.run("echo on")).stdout == "on\n"
        await trio.sleep(0.3)
        assert (await it.worker.run("echo on")).stdout == "on\n"
        assert it.proxy.accepted == 1


# ---- another instance ---------------------------------------------------------------------------


async def test_a_restarted_daemon_runs_nothing_twice(tmp_path: Path, marker: Marker) -> None:
    """SIGKILL leaves it AWAY; when the next instance comes, what ran is lost and says so."""
    async with world() as it, it.controller.open_events() as events:
        async with trio.open_nursery() as nursery:
            errors: list[DaemonGone] = []

            async def run() -> None:
                with pytest.raises(DaemonGone) as caught:
                    await it.worker.run(f"echo x >> {tmp_path}/ran; sleep 60", env=dict([marker]))
                errors.append(caught.value)

            nursery.start_soon(run)
            await until(lambda: (tmp_path / "ran").exists())
            it.process.kill()
            await it.away()
            await until(lambda: not marker.processes())
            assert it.worker.state is DaemonState.AWAY
            await trio.sleep(0.1)
            assert errors == []
            async with open_daemon(it.proxy.url):
                fresh = await it.controller.wait_for_daemon("worker-1")
                assert (await fresh.run("echo new")).stdout == "new\n"
                assert errors[0].outcome_unknown
                assert it.worker.state is DaemonState.GONE
                assert fresh.info.instance != it.worker.info.instance
                with pytest.raises(DaemonGone) as caught:
                    await it.worker.run("true")
                assert not caught.value.outcome_unknown
        assert (tmp_path / "ran").read_text() == "x\n"
        kinds = [(await anext(events)).kind for _ in range(3)]
        assert kinds == ["away", "lost", "connected"]


async def test_a_daemon_that_says_goodbye_is_gone(marker: Marker) -> None:
    """After SIGTERM it tells how its jobs ended, and that it won't be back."""
    async with world() as it, it.controller.open_events() as events:
        async with trio.open_nursery() as nursery:
            results = []

            async def run() -> None:
                results.append(await it.worker.run("echo hi; sleep 60", env=dict([marker])))

            nursery.start_soon(run)
            await until(marker.processes)
            assert await it.process.stop() == 0
        assert results[0].outcome is Outcome.CANCELLED
        assert results[0].stdout == "hi\n"
        assert it.worker.state is DaemonState.GONE
        assert (await anext(events)).kind == "lost"
        with pytest.raises(sandd.DaemonNotFound):
            it.controller.daemon("worker-1")
        with pytest.raises(DaemonGone):
            await it.worker.run("true")


# ---- the controller goes and comes --------------------------------------------------------------


async def test_daemons_come_back_to_a_new_controller_on_the_same_port(
    marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed controller ends its jobs; the next one finds the daemon, and nothing of the first."""
    monkeypatch.setattr(reception, "DRAIN_RETRY_SECONDS", 0.05)
    with trio.fail_after(LIMIT):
        async with (
            open_fault_proxy(0) as proxy,
            open_daemon(proxy.url, arguments=["--reconnect-max", "0.1"]),
        ):
            instances = set()
            for _ in range(4):
                async with sandd.open_controller(port=0) as controller:
                    proxy.redirect(controller.address)
                    worker = await controller.wait_for_daemon("worker-1")
                    instances.add(worker.info.instance)
                    async with worker.open_process("sleep 60", env=dict([marker]), kill_grace=0):
                        await until(marker.processes)
                assert marker.processes() == []
            assert len(instances) == 1
