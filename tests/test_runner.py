"""How a real daemon runs its jobs: turns, time-outs, idleness, and its own orderly end."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
import trio.testing
from daemons import open_daemon
from process_tools import linux_only, posix_only, spawner_pids
from proxied_world import core_world
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import wire
from sandd._core import runner
from sandd._core.job import DaemonLink
from sandd._core.jobs import JobTable
from sandd._core.policy.permits import Gate
from sandd._core.processes import ReceivesNowait, SendsNowait
from sandd._core.runner import JobRunner
from sandd._core.spawn_requests import UNLIMITED, Allowance, spawn_request
from sandd.testing import FakeProcessHost

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Marker

    from sandd._core.job import Job
    from sandd._core.policy.permits import Permit
    from sandd._core.processes import Child, SpawnRequest
    from sandd._core.processes.interface import Answered

LIMIT = 30.0
"""Seconds for each test, far beyond what it needs."""


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon of those tests that neither end it nor start it in a way of their own."""
    with standing_daemon() as daemon:
        yield daemon


async def test_jobs_beyond_the_limit_run_in_the_order_of_their_starts(tmp_path: Path) -> None:
    """With one place, thirty jobs asked for one after the other run in that order."""
    order = tmp_path / "order"
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon(controller.url, "d", arguments=["--max-running", "1"]),
        ):
            worker = await controller.wait_for_daemon("d")
            gate = tmp_path / "gate"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, f"until [ -e {gate} ]; do sleep 0.02; done")
                while controller.statistics().jobs < 1:
                    await trio.sleep(0.01)
                for number in range(30):
                    nursery.start_soon(worker.run, f"echo {number} >> {order}")
                    while controller.statistics().jobs < number + 2:
                        await trio.lowlevel.checkpoint()
                gate.touch()
    assert [int(line) for line in order.read_text().split()] == list(range(30))


async def test_a_process_that_we_hold_back_is_not_idle(daemon: StandingDaemon) -> None:
    """Output that its reader doesn't fetch, for longer than idle_timeout, is no idleness of the process."""
    async with daemon.worker() as worker:
        script = "head -c 8000000 /dev/zero"
        async with worker.open_process(script, idle_timeout=1.5) as process:
            with pytest.raises(trio.TooSlowError), trio.fail_after(4.0):
                await process.wait()
            total = 0
            async for chunk in process.stdout:
                total += len(chunk)
            status = await process.wait()
    assert (total, status.exit_code, status.outcome) == (8_000_000, 0, sandd.Outcome.EXITED)


@posix_only
async def test_a_daemon_that_stood_still_does_not_call_its_jobs_idle(
    daemon: StandingDaemon,
) -> None:
    """After SIGSTOP and SIGCONT, what was written meanwhile counts before idle_timeout does."""
    async with daemon.worker() as worker:
        script = "for i in $(seq 30); do echo $i; sleep 0.1; done"
        async with worker.open_process(script, idle_timeout=1.5) as process:
            assert await process.stdout.receive_some()
            daemon.process.signal(signal.SIGSTOP)
            await trio.sleep(1.8)
            daemon.process.signal(signal.SIGCONT)
            status = await process.wait()
    assert status.outcome is sandd.Outcome.EXITED


class _LatePipe(trio.abc.ReceiveStream):
    """Held open by somebody else: gives what it has read in the very turn in which reading is cancelled."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if self.given:
                raise
            self.given = True
        return b"too late"

    given = False

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_is_read_in_the_turn_of_the_end_is_no_defect(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A background process goes on to write while the end is told: that is told, and nothing crashes."""
    table = JobTable("instance")
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            host = FakeProcessHost(nursery)
            begin, pipe = host.begin, _LatePipe()

            def begin_late(request: SpawnRequest, answered: Answered) -> Child:
                child = begin(request, answered)
                monkeypatch.setattr(child, "_stdout", pipe)
                return child

            monkeypatch.setattr(host, "begin", begin_late)
            runner = JobRunner(table, host, nursery, max_running=1)
            spec = wire.encode_spec(wire.CommandSpec((b"true",), detach=True))
            attach = wire.Attach("d", "job", "client", spec=spec, instance="instance")
            frame = wire.as_frame(wire.ControlFrame(1, attach))
            runner.receive(DaemonLink(), frame)
            job = table.jobs["", "job"]
            while job.state is not wire.JobState.ENDED or not pipe.given:
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    assert isinstance(job.result, wire.Exited)
    assert job.result.pipes_held
    assert job.outputs[wire.Stream.OUTPUT].end == 0
    assert "crashed" not in caplog.text


class _Said(trio.abc.ReceiveStream, ReceivesNowait):
    """A pipe with a few bytes in it, and its end."""

    def __init__(self, data: bytes) -> None:
        self._chunks = [data] if data else []

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        return self._chunks.pop() if self._chunks else b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._chunks.pop() if self._chunks else b""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Unreadable(_Said):
    """A pipe that can't be read without waiting, by a defect."""

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        raise RuntimeError("a defect")


class _SlowToAnswer(FakeProcessHost):
    """Says that a process has started, or has even ended, only when it is told to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery)
        self.children: list[Child] = []
        self.answers: list[Answered] = []

    def begin(self, request: SpawnRequest, answered: Answered) -> Child:
        self.answers.append(answered)
        child = super().begin(request, lambda _alone: None)
        if request.argv[-1] == b"true":
            child._stdout, child._stderr = _Said(b"out"), _Said(b"")  # type: ignore[attr-defined]
        self.children.append(child)
        return child


def _start(runner: JobRunner, link: DaemonLink, job_id: str, command: bytes) -> None:
    spec = wire.encode_spec(wire.CommandSpec((command,), shell=True))
    message = wire.Attach("d", job_id, "client", spec=spec, instance="instance")
    link_channel = link.last_channel + 1
    runner.receive(link, wire.as_frame(wire.ControlFrame(link_channel, message)))


async def test_a_command_that_is_over_needs_no_task() -> None:
    """What was begun is told to have ended in the very call that says so; one that runs on gets its task."""
    table = JobTable("instance")
    async with trio.open_nursery() as nursery:
        host = _SlowToAnswer(nursery)
        jobs, link = JobRunner(table, host, nursery, max_running=2), DaemonLink()
        _start(jobs, link, "short", b"true")
        _start(jobs, link, "long", b"sleep 1000")
        await trio.testing.wait_all_tasks_blocked()
        tasks = len(nursery.child_tasks)
        assert {job.state for job in table.jobs.values()} == {wire.JobState.QUEUED}
        host.answers[0](True)
        short = table.find("", "short")
        assert short is not None
        assert isinstance(short.result, wire.Exited)
        assert (short.result.code, short.result.pid, short.result.pipes_held) == (0, 1, False)
        assert short.result.finals == {wire.Stream.OUTPUT: 3}
        assert len(nursery.child_tasks) == tasks
        host.answers[1](True)
        assert len(nursery.child_tasks) == tasks + 1
        await trio.testing.wait_all_tasks_blocked()
        long = table.find("", "long")
        assert long is not None
        assert long.state is wire.JobState.RUNNING
        nursery.cancel_scope.cancel()


class _Wakes:
    """A pump that counts how often it is woken."""

    def __init__(self) -> None:
        self.count = 0

    def wake(self) -> None:
        self.count += 1


@pytest.mark.parametrize("last", [b"true", b"sleep 1000", b"false"])
async def test_what_ends_together_is_told_together(
    last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last of those that are answered together, whether that one is over, runs on or can't be read."""
    table = JobTable("instance")
    async with trio.open_nursery() as nursery:
        host = _SlowToAnswer(nursery)
        jobs, link, pump = JobRunner(table, host, nursery, max_running=9), DaemonLink(), _Wakes()
        jobs.add_link(link, pump)  # type: ignore[arg-type]
        for name in ("one", "two"):
            _start(jobs, link, name, b"true")
        _start(jobs, link, "last", last)
        jobs.after_message()
        await trio.testing.wait_all_tasks_blocked()
        if last == b"false":
            monkeypatch.setattr(host.children[-1], "_stdout", _Unreadable(b""))
        assert pump.count == 0
        says = [host.answers[number](False) for number in range(2)]
        assert pump.count == 0
        for name in ("one", "two"):
            job = table.find("", name)
            assert job is not None
            assert job.state is wire.JobState.ENDED
        says.append(host.answers[2](False))
        assert pump.count == 0
        assert set(says) - {None} == {jobs.flush}
        jobs.flush()
        assert pump.count == 1
        nursery.cancel_scope.cancel()


async def test_the_answer_to_a_start_waits_for_more_to_say() -> None:
    """That it runs on is told a moment later, unless it ends in between: nobody is woken for it."""
    table = JobTable("instance")
    async with trio.open_nursery() as nursery:
        host = _SlowToAnswer(nursery)
        jobs, pump, link = JobRunner(table, host, nursery, max_running=9), _Wakes(), DaemonLink()
        jobs.add_link(link, pump)  # type: ignore[arg-type]
        _start(jobs, link, "long", b"sleep 1000")
        jobs.after_message()
        await trio.testing.wait_all_tasks_blocked()
        host.answers[0](True)
        assert pump.count == 0
        nursery.cancel_scope.cancel()


async def test_a_turn_comes_when_a_command_without_a_task_is_over() -> None:
    """With one place, the next is begun in the call that ends the one before; one that is taken back is not."""
    table = JobTable("instance")
    async with trio.open_nursery() as nursery:
        host = _SlowToAnswer(nursery)
        jobs, link = JobRunner(table, host, nursery, max_running=1), DaemonLink()
        for name in ("one", "two", "three"):
            _start(jobs, link, name, b"true")
        end = wire.ControlFrame(0, wire.End("d", "two"))
        jobs.receive(link, wire.as_frame(end))
        assert table.find("", "two") is None or table.jobs["", "two"].state is wire.JobState.ENDED
        for number in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            assert len(host.answers) == number
            host.answers[-1](True)
        assert [job.state for job in table.commands("")] == [wire.JobState.ENDED] * len(
            table.commands("")
        )
        assert len(host.answers) == 2
        nursery.cancel_scope.cancel()


class _Much(_Said):
    """A pipe that always has as much as is asked for; it notes in which turn of the loop that was."""

    def __init__(self, turns: _Turns) -> None:
        super().__init__(b"")
        self._turns = turns
        self.asked_in: list[int] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self.asked_in.append(self._turns.count)
        await trio.lowlevel.checkpoint()
        return bytes(max_bytes or 1)

    async def takes_turns(self) -> int:
        """How many turns of the loop there are from one piece to the next."""
        begin = len(self.asked_in)
        while len(self.asked_in) < begin + 9:
            await trio.lowlevel.checkpoint()
        before, after = self.asked_in[-3:-1]
        return after - before


class _Keyboard(trio.abc.SendStream, SendsNowait):
    """Takes what is typed."""

    def __init__(self) -> None:
        self.typed = b""

    def send_nowait(self, data: bytes | memoryview) -> int:
        self.typed += data
        return len(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError("it takes all at once")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Turns(trio.abc.Instrument):
    """Counts turns of the loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_who_moves_much_lets_others_go_first_while_somebody_types(
    monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    """Between one piece and the next there is a turn more, for what came meanwhile: a keystroke, or its echo.

    Else nobody pays for that.
    """
    table, turns, keyboard = JobTable("instance"), _Turns(), _Keyboard()
    trio.lowlevel.add_instrument(turns)
    much = _Much(turns)
    async with trio.open_nursery() as nursery:
        host = FakeProcessHost(nursery)
        begin = host.begin

        def begin_with(request: SpawnRequest, answered: Callable[[], None]) -> Child:
            child = begin(request, answered)
            stream = {"_stdin": keyboard} if request.stdin else {"_stdout": much}
            for name, ours in stream.items():
                monkeypatch.setattr(child, name, ours)
            return child

        monkeypatch.setattr(host, "begin", begin_with)
        jobs, link = JobRunner(table, host, nursery, max_running=2), DaemonLink()
        for name, stdin in (("much", False), ("typed", True)):
            spec = wire.CommandSpec(
                (b"sleep 1000",), shell=True, stdin=stdin, on_full=wire.OnFull.DROP_OLDEST
            )
            attach = wire.Attach(
                "d", name, "client", spec=wire.encode_spec(spec), instance="instance"
            )
            jobs.receive(link, wire.as_frame(wire.ControlFrame(link.last_channel + 1, attach)))
        typing = link.last_channel
        plain = await much.takes_turns()
        for offset, size, expected in (
            (0, 1, plain + 1),
            (1, runner.TYPED_BYTES + 1, plain),  # that isn't typed
        ):
            mock_clock.jump(runner.TYPED_SECONDS)
            assert await much.takes_turns() == plain
            key = wire.encode_data(typing, wire.Stream.INPUT, offset, bytes(size))
            jobs.receive(link, wire.as_frame(key))
            assert len(keyboard.typed) == offset + size
            assert await much.takes_turns() == expected
        trio.lowlevel.remove_instrument(turns)
        nursery.cancel_scope.cancel()


async def test_leases_are_counted_while_a_job_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A daemon whose jobs all have their owners wakes up for none of them; one that is left ends with its lease."""
    steps: list[float] = []

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if "count_leases" in task.name:
                steps.append(trio.current_time())

    table = JobTable("instance")
    async with trio.open_nursery() as nursery:
        jobs, link = (
            JobRunner(table, FakeProcessHost(nursery), nursery, max_running=2),
            DaemonLink(),
        )
        trio.lowlevel.add_instrument(Steps())
        nursery.start_soon(jobs.count_leases)
        await trio.sleep(3600.0)
        spec = wire.encode_spec(wire.CommandSpec((b"sleep 100000",), shell=True, lease=10.0))
        attach = wire.Attach("d", "leased", "client", spec=spec, instance="instance")
        jobs.receive(link, wire.as_frame(wire.ControlFrame(1, attach)))
        jobs.after_message()
        await trio.sleep(3600.0)
        assert len(steps) <= 2 + 2 * 3600.0 / runner.REST_SECONDS
        left_at = trio.current_time()
        jobs.receive(link, wire.as_frame(wire.ControlFrame(1, wire.Detach())))
        jobs.after_message()
        job = table.jobs["", "leased"]
        while job.state is not wire.JobState.ENDED:
            await trio.sleep(0.1)
        assert 10.0 <= trio.current_time() - left_at <= 10.0 + 2 * runner.TICK_SECONDS
        assert job.end_outcome is wire.Outcome.LEASE_EXPIRED

        # Of one that is taken back the time counts no more.
        attach = wire.Attach("d", "again", "client", spec=spec, instance="instance")
        jobs.receive(link, wire.as_frame(wire.ControlFrame(2, attach)))
        jobs.remove_link(link)
        await trio.sleep(9.0)
        link = DaemonLink()
        attach = wire.Attach("d", "again", "client", generation=1)
        jobs.receive(link, wire.as_frame(wire.ControlFrame(1, attach)))
        jobs.after_message()
        jobs.act(table.forget(job, trio.current_time()))
        await trio.sleep(2 * runner.TICK_SECONDS)
        steps.clear()
        await trio.sleep(3600.0)
        assert len(steps) <= 1 + 3600.0 / runner.REST_SECONDS
        assert table.jobs["", "again"].end_outcome is None
        nursery.cancel_scope.cancel()


async def test_what_waits_behind_a_start_that_hangs_is_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As where the spawner stands still: what else is to be said on the link goes without the start's answer."""
    table = JobTable("instance")
    async with trio.open_nursery() as nursery:
        jobs = JobRunner(table, _SlowToAnswer(nursery), nursery, max_running=1)
        pump, link = _Wakes(), DaemonLink()
        nursery.start_soon(jobs.count_leases)
        await trio.testing.wait_all_tasks_blocked()
        jobs.add_link(link, pump)  # type: ignore[arg-type]
        _start(jobs, link, "hangs", b"true")
        jobs.receive(link, wire.as_frame(wire.ControlFrame(2, wire.Attach("d", "none", "client"))))
        jobs.after_message()
        assert pump.count == 0
        await trio.sleep(runner.REST_SECONDS + 0.1)
        assert pump.count == 1
        nursery.cancel_scope.cancel()


async def test_nothing_that_is_begun_while_the_daemon_stops_keeps_its_pipes() -> None:
    """A place that becomes free then is mostly given to nobody; in whatever order the tasks end."""
    for _ in range(10):
        table = JobTable("instance")
        async with trio.open_nursery() as outer:
            host = _SlowToAnswer(outer)
            async with trio.open_nursery() as nursery:
                jobs, link = JobRunner(table, host, nursery, max_running=1), DaemonLink()
                nursery.start_soon(jobs.count_leases)
                _start(jobs, link, "runs", b"sleep 1000")
                _start(jobs, link, "queued", b"sleep 1000")
                host.answers[0](True)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            for child in host.children:
                with pytest.raises(trio.ClosedResourceError):
                    await child.stdout.receive_some()
            outer.cancel_scope.cancel()


async def test_what_has_no_task_yet_is_let_go_of_when_the_daemon_stops() -> None:
    """Its pipes are closed, an answer that comes later has no effect, and nothing more is begun."""
    table = JobTable("instance")
    async with trio.open_nursery() as outer:
        host = _SlowToAnswer(outer)
        async with trio.open_nursery() as nursery:
            jobs, link = JobRunner(table, host, nursery, max_running=1), DaemonLink()
            nursery.start_soon(jobs.count_leases)
            _start(jobs, link, "begun", b"sleep 1000")
            _start(jobs, link, "queued", b"true")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.ClosedResourceError):
            await host.children[0].stdout.receive_some()
        host.answers[0](True)
        assert len(host.answers) == 1
        assert table.jobs["", "queued"].state is wire.JobState.QUEUED
        outer.cancel_scope.cancel()


@posix_only
@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "kill_grace", "lease"])
async def test_no_number_of_seconds_is_too_long_for_a_timer(
    daemon: StandingDaemon, name: str
) -> None:
    """As many as the wire can carry (31 years) are a long time, and no other job is the worse for them."""
    script = b"trap 'echo asked' TERM; echo on; while :; do sleep 0.02; done"
    options = {name: wire.MAX_SECONDS}
    spec = wire.CommandSpec((script,), shell=True, **options)  # type: ignore[arg-type]
    said = bytearray()
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        link = controller._service.link  # the public functions have bounds of their own
        async with worker.open_process(["cat"]) as other:
            handle = link.open(worker.id, spec, sinks={wire.Stream.OUTPUT: said.extend})
            await handle.until(lambda: said == b"on\n")
            link.client.end(handle.job, wire.MAX_SECONDS)
            link.flush()
            await handle.until(lambda: said == b"on\nasked\n")
            assert (await worker.run("echo later")).stdout == "later\n"
            await other.stdin.send_all(b"still here")
            assert await other.stdout.receive_some() == b"still here"
            assert not handle.ended
            await handle.leave(0.0)
            assert handle.ended


async def test_a_silent_process_is_idle(daemon: StandingDaemon) -> None:
    """idle_timeout ends a command that writes nothing for so long, and only then."""
    async with daemon.worker() as worker:
        with pytest.raises(sandd.CommandTimeout) as caught:
            await worker.run(
                "for i in 1 2 3; do echo $i; sleep 0.2; done; sleep 60", idle_timeout=0.5
            )
    assert caught.value.result is not None
    assert caught.value.result.stdout == "1\n2\n3\n"
    assert 0.9 < caught.value.result.duration < 10


async def test_not_started_is_never_said_of_what_ran(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """However short the time-out: ``started=False`` means that nothing ran."""
    async with daemon.worker() as worker:
        for number in range(60):
            trace = tmp_path / str(number)
            started: bool | None = True
            try:
                await worker.run(["touch", str(trace)], timeout=number * 0.00005)
            except sandd.CommandTimeout as error:
                started = error.started
            assert started is not False or not trace.exists()


@linux_only
@pytest.mark.parametrize("who", ["daemon", "spawner"])
async def test_while_descriptors_are_short_a_start_is_tried_again(
    daemon: StandingDaemon, tmp_path: Path, who: str
) -> None:
    """It waits a little longer, and runs once; what runs already doesn't notice."""
    trace, results = tmp_path / "trace", []
    async with daemon.worker() as worker, worker.open_process(["cat"]) as other:
        (spawner,) = spawner_pids(of=daemon.process.pid)
        pid = daemon.process.pid if who == "daemon" else spawner
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def run() -> None:
                    results.append(await worker.run(f"echo x >> {trace}; echo on"))

                with trio.move_on_after(0.4):
                    while True:
                        await other.stdin.send_all(b"x")
                        assert await other.stdout.receive_some() == b"x"
                assert not results
                assert not trace.exists()
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert (results[0].stdout, trace.read_text()) == ("on\n", "x\n")


@pytest.mark.parametrize("number", sorted(runner.SHORTAGES), ids=errno.errorcode.get)
async def test_a_shortage_that_stays_is_a_typed_error(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few tries; one that passes by then costs nobody anything, and the connection lives."""
    monkeypatch.setattr(runner, "SHORTAGE_DELAYS", (0.001, 0.002, 0.003, 0.004))
    tries, short_for = 0, 0

    def begin(
        self: FakeProcessHost, request: SpawnRequest, answered: Callable[[bool], None]
    ) -> Child:
        nonlocal tries
        tries += 1
        if tries <= short_for:
            raise sandd.SpawnFailed(number, os.strerror(number), "true")
        return begin_at_once(self, request, answered)

    begin_at_once = FakeProcessHost.begin
    monkeypatch.setattr(FakeProcessHost, "begin", begin)
    async with core_world() as it:
        for short_for in (1, 4, 5):  # noqa: B007 - `begin` goes by it
            tries, started = 0, it.core.host.started
            assert (await it.worker.run("true")).success
            assert it.core.host.started == started + 1
        tries, short_for = 0, 1000
        with pytest.raises(sandd.SpawnFailed) as caught:
            await it.worker.run("true")
        assert (caught.value.errno, tries) == (number, 6)
        short_for = 0
        assert (await it.worker.run("true")).success
        assert it.proxy.accepted == 1


async def test_stopping_daemon_delivers_every_result_first() -> None:
    """SIGTERM to the daemon: each job is ended, and all it printed on its way out arrives."""
    script = "trap 'head -c 200000 /dev/zero; exit 7' TERM; echo ready >&2; sleep 60 & wait"
    results: list[int] = []
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon(controller.url, "d") as daemon,
        ):
            worker = await controller.wait_for_daemon("d")
            ready = trio.CapacityLimiter(1)

            async def run() -> None:
                async with worker.open_process(script) as process:
                    async with ready:
                        assert await process.stderr.receive_some()
                    started.append(True)
                    data = b""
                    async for chunk in process.stdout:
                        data += chunk
                    status = await process.wait()
                    results.append(status.exit_code)
                    assert len(data) == 200_000

            started: list[bool] = []
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(run)
                while len(started) < 8:
                    await trio.sleep(0.01)
                assert await daemon.stop() == 0
            assert worker.state is sandd.DaemonState.GONE
    assert results == [7] * 8


async def test_stopping_daemon_takes_no_new_job(marker: Marker) -> None:
    """A client that keeps asking doesn't keep a daemon from ending; what it refuses has not run."""
    refused: list[sandd.SanddError] = []
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(port=0) as controller,
            open_daemon(controller.url, "d") as daemon,
        ):
            worker = await controller.wait_for_daemon("d")

            async def keep_asking() -> None:
                try:
                    while True:
                        await worker.run("sleep 0.05", env=dict([marker]))
                except sandd.SanddError as error:
                    refused.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, "trap '' TERM; sleep 1.5")
                nursery.start_soon(keep_asking)
                await trio.sleep(0.3)
                with trio.fail_after(7):
                    assert await daemon.stop() == 0
            assert worker.state is sandd.DaemonState.GONE
    assert isinstance(refused[0], sandd.RequestRefused | sandd.DaemonGone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopping_daemon_can_be_told_to_stop_again(number: int) -> None:
    """Signals that keep coming, to the last moment of the process, change nothing about exit code 0."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            for _ in range(3):
                async with open_daemon(controller.url, "d") as daemon:
                    await controller.wait_for_daemon("d")
                    daemon.terminate()
                    while daemon.exit_code is None:
                        daemon.signal(number)
                        await trio.sleep(0.001)
                    assert await daemon.wait() == 0


class _HangingGate(Gate):
    """A check that has opened something, and goes on when it is told."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.over = (threading.Event() for _ in range(3))
        self.opened: list[int] = []

    def judge(self, spec: wire.Spec) -> wire.Refused | None:
        return None

    def check(
        self,
        job: Job,
        spec: wire.ProgramSpec,
        instance: str,
        permit: Permit,
        allowance: Allowance = UNLIMITED,
    ) -> SpawnRequest:
        try:
            self.opened.append(permit.hold(os.open(os.devnull, os.O_RDONLY)))
            self.begun.set()
            self.go_on.wait(LIMIT)
            self.opened.append(os.open(os.devnull, os.O_RDONLY))
            permit.hold(self.opened[-1])
            return spawn_request(job, spec, instance)
        finally:
            self.over.set()


async def test_a_check_that_is_cancelled_leaves_nothing_open() -> None:
    """Neither what it had opened, nor what its thread opens afterwards; and nobody waits for that."""
    table, gate = JobTable("instance"), _HangingGate()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            runner = JobRunner(table, FakeProcessHost(nursery), nursery, max_running=1, gate=gate)
            _start(runner, DaemonLink(), "job", b"true")
            await trio.to_thread.run_sync(gate.begun.wait, LIMIT)
            nursery.cancel_scope.cancel()
    gate.go_on.set()
    assert gate.over.wait(LIMIT)
    assert len(gate.opened) == 2
    for descriptor in gate.opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


async def test_what_a_check_has_opened_is_closed_behind_the_start() -> None:
    """The process has its own by then."""
    table, gate = JobTable("instance"), _HangingGate()
    gate.go_on.set()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            runner = JobRunner(table, FakeProcessHost(nursery), nursery, max_running=1, gate=gate)
            _start(runner, DaemonLink(), "job", b"true")
            while table.jobs["", "job"].state is wire.JobState.QUEUED:
                await trio.sleep(0.01)
            for descriptor in gate.opened:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(descriptor)
            nursery.cancel_scope.cancel()
