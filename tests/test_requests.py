"""How a daemon does requests, without a process and without a wire: room, turns, ends and mistakes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from scripted import Bytes, control, cursors, drain

from sandd import wire
from sandd._core import requests as requests_module
from sandd._core.job import DaemonLink, Job
from sandd._core.jobs import Effect, Effects, JobTable
from sandd._core.requests import Requests, signal_number
from sandd._core.spooled_log import SpooledLog
from sandd.wire import FailedCode, JobState, Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ALICE = "a11ce00000000000"


class Daemon:
    """A job table with one link, requests, and commands that run until they are told to end."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.table = JobTable("here")
        self.link = DaemonLink()
        self.over: dict[Job, trio.Event] = {}
        self.killed: list[tuple[Job, str]] = []
        self.requests = Requests(self.table, nursery, act=self.act, wait_over=self.wait_over)
        self.sequence = 0

    def act(self, effects: Effects) -> None:
        """What the runner would do."""
        for job, effect in effects:
            if effect is Effect.START and isinstance(job.spec, wire.Request):
                self.requests.start(job)
            elif effect is Effect.START:
                job.started(7, trio.current_time())
                self.over[job] = trio.Event()
            elif effect is Effect.END and job in self.over:
                self.killed.append((job, job.end_signal))
            else:
                self.requests.take(job, effect)

    async def wait_over(self, job: Job) -> None:
        """Until `end` is called for it."""
        await self.over[job].wait()

    def end(self, job: Job) -> None:
        """The command's tree is gone."""
        job.exited(code=None, signal=15, outcome=Outcome.CANCELLED, seconds=1.0, pipes_held=False)
        self.act(self.table.ended(job, trio.current_time()))
        self.over[job].set()

    def ask(self, spec: wire.Spec, *, credit: int = wire.MIB) -> int:
        """A job is asked for; the channel it is on, which is its number, too."""
        self.sequence += 1
        attach = wire.Attach(
            "d",
            f"{ALICE}.{self.sequence}",
            ALICE,
            cursors(credit=credit),
            wire.encode_spec(spec),
            "here",
            tenant="t",
        )
        now = trio.current_time()
        self.act(self.table.receive(self.link, control(self.sequence, attach), now))
        return self.sequence

    def job(self, number: int) -> Job:
        """The job that was asked for as that."""
        return self.table.jobs["t", f"{ALICE}.{number}"]

    def command(self) -> Job:
        """A command that runs."""
        return self.job(self.ask(wire.CommandSpec((b"sleep",))))

    def receive(self, channel: int, message: wire.Control) -> None:
        """A control message comes in."""
        frame = control(channel, message)
        self.act(self.table.receive(self.link, frame, trio.current_time()))

    def heard(self, channel: int) -> list[Any]:
        """What was said on a channel."""
        return [said for number, said in drain(self.link.scheduler) if number == channel]


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Daemon]:
    """A daemon; what it still does at the end of the block is cancelled."""
    async with trio.open_nursery() as nursery:
        yield Daemon(nursery)
        nursery.cancel_scope.cancel()


def records(said: list[Any]) -> list[wire.JobRecord]:
    """The answers among what was said."""
    data = b"".join(part.body for part in said if isinstance(part, Bytes))
    return list(wire.decode_answers(data))  # type: ignore[arg-type]


def end_of(said: list[Any]) -> Any:
    """The event that ended the request."""
    (event,) = [each for each in said if isinstance(each, wire.Exited | wire.Failed)]
    return event


async def test_a_list_is_answered_and_ends_with_code_0(autojump_clock: object) -> None:
    """Its answers are output like any other, with a final offset, and there was no Started."""
    async with running() as daemon:
        command = daemon.command()
        await trio.sleep(3)
        channel = daemon.ask(wire.JobsSpec())
        await trio.testing.wait_all_tasks_blocked()
        said = daemon.heard(channel)
        (record,) = records(said)
        assert (record.job_id, record.state, record.pid) == (
            command.key[1],
            JobState.RUNNING,
            7,
        )
        assert (record.age, record.started) == (3.0, 3.0)
        size = sum(len(part.body) for part in said if isinstance(part, Bytes))
        finals = {Stream.OUTPUT: size}
        assert end_of(said) == wire.Exited(0, None, Outcome.EXITED, 0.0, False, finals)
        assert not [each for each in said if isinstance(each, wire.Started)]
        daemon.receive(channel, wire.End("d", f"{ALICE}.{channel}", client=ALICE, tenant="t"))
        assert list(daemon.table.jobs.values()) == [command]


async def test_a_long_list_waits_for_room_and_skips_what_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds no more than the ring; each answer is true when it is made."""
    monkeypatch.setitem(SpooledLog.__init__.__kwdefaults__, "capacity", 1000)
    async with running() as daemon:
        commands = [daemon.command() for _ in range(100)]
        channel = daemon.ask(wire.JobsSpec(), credit=10_000_000)
        await trio.testing.wait_all_tasks_blocked()
        request = daemon.job(channel)
        log = request.sends[Stream.OUTPUT]
        assert 500 < log.end <= 1000
        last = commands[-1]
        daemon.end(last)
        daemon.act(daemon.table.forget(last, 0.0))
        read: list[Any] = []
        while request.state is not JobState.ENDED:
            read += daemon.heard(channel)
            window = wire.StreamWindow(Stream.OUTPUT, log.end, 10_000_000)
            daemon.receive(channel, wire.Window((window,)))
            await trio.testing.wait_all_tasks_blocked()
            assert log.end - log.floor <= 1000
        read += daemon.heard(channel)
        assert [record.job_id for record in records(read)] == [job.key[1] for job in commands[:-1]]


async def test_a_list_gives_everybody_else_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs there are, the loop isn't held up by more than a few."""
    monkeypatch.setattr(requests_module, "ANSWERS_A_TURN", 10)
    async with running() as daemon:
        for _ in range(95):
            daemon.command()
        request = daemon.job(daemon.ask(wire.JobsSpec()))
        turns = 0
        while request.state is not JobState.ENDED:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= 10


async def test_a_kill_ends_when_the_tree_is_gone() -> None:
    """Not when the request was understood; and the results stay."""
    async with running() as daemon:
        job = daemon.command()
        channel = daemon.ask(wire.KillSpec(job.key[1], "INT", 3.0))
        await trio.testing.wait_all_tasks_blocked()
        assert daemon.killed == [(job, "INT")]
        assert (job.end_outcome, job.end_grace) == (Outcome.CANCELLED, 3.0)
        assert daemon.job(channel).state is JobState.QUEUED
        daemon.end(job)
        await trio.testing.wait_all_tasks_blocked()
        assert end_of(daemon.heard(channel)).code == 0
        assert daemon.table.find("t", job.key[1]) is job
        channel = daemon.ask(wire.KillSpec(job.key[1], "NONSENSE"))
        await trio.testing.wait_all_tasks_blocked()
        assert end_of(daemon.heard(channel)).code == 0  # it has ended: nothing is sent
        assert len(daemon.killed) == 1


async def test_a_request_that_is_taken_back_stops_waiting() -> None:
    """What it has set going goes on; its own end says that it was taken back."""
    async with running() as daemon:
        job = daemon.command()
        channel = daemon.ask(wire.ForgetSpec(job.key[1]))
        request = daemon.job(channel)
        await trio.testing.wait_all_tasks_blocked()
        daemon.receive(0, wire.End("d", request.key[1], client=ALICE, tenant="t"))
        await trio.testing.wait_all_tasks_blocked()
        assert end_of(daemon.heard(channel)).code is FailedCode.CANCELLED
        daemon.receive(channel, wire.Detach())
        assert list(daemon.table.jobs.values()) == [job]
        daemon.end(job)
        await trio.testing.wait_all_tasks_blocked()
        assert daemon.table.find("t", job.key[1]) is job


async def test_what_two_want_to_forget_is_forgotten_once() -> None:
    """The second finds its work done."""
    async with running() as daemon:
        job = daemon.command()
        channels = [daemon.ask(wire.ForgetSpec(job.key[1])) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        daemon.end(job)
        await trio.testing.wait_all_tasks_blocked()
        said = drain(daemon.link.scheduler)
        for channel in channels:
            assert end_of([each for number, each in said if number == channel]).code == 0
        assert daemon.table.find("t", job.key[1]) is None


@pytest.mark.parametrize("kind", [wire.KillSpec, wire.ForgetSpec])
async def test_a_request_for_what_is_not_there_fails(kind: type[Any]) -> None:
    """Also if that is the request itself."""
    async with running() as daemon:
        for job_id in ("x", f"{ALICE}.2"):
            channel = daemon.ask(kind(job_id))
            await trio.testing.wait_all_tasks_blocked()
            failed = end_of(daemon.heard(channel))
            assert failed.code is FailedCode.JOB_NOT_FOUND
            assert job_id in failed.message


async def test_a_mistake_of_ours_costs_one_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client is told, the log has it, and everything else goes on."""
    monkeypatch.setattr(requests_module, "describe", lambda _job, _now: 1 / 0)
    async with running() as daemon:
        job = daemon.command()
        channel = daemon.ask(wire.JobsSpec())
        await trio.testing.wait_all_tasks_blocked()
        failed = end_of(daemon.heard(channel))
        assert failed.code is FailedCode.LOST
        assert "ZeroDivisionError" in failed.message
        channel = daemon.ask(wire.KillSpec(job.key[1]))
        daemon.end(job)
        await trio.testing.wait_all_tasks_blocked()
        assert end_of(daemon.heard(channel)).code == 0
    assert "request_crashed" in caplog.text


async def test_ops_and_input_mean_nothing_to_a_request() -> None:
    """They do no harm, and neither does what comes when it is over."""
    async with running() as daemon:
        job = daemon.command()
        channel = daemon.ask(wire.KillSpec(job.key[1]))
        request = daemon.job(channel)
        for effect in (Effect.OPS, Effect.INPUT, Effect.ROOM):
            daemon.requests.take(request, effect)
        await trio.testing.wait_all_tasks_blocked()
        daemon.end(job)
        await trio.testing.wait_all_tasks_blocked()
        assert end_of(daemon.heard(channel)).code == 0
        for effect in Effect:
            daemon.requests.take(request, effect)


def test_kill_ends_a_process_where_there_is_no_such_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Windows: `Process.kill` must not be less than `Process.terminate`."""
    monkeypatch.delattr("signal.SIGKILL")
    assert signal_number("KILL") == signal_number("TERM")


def test_signals_go_by_this_machines_numbers() -> None:
    """What only looks like a signal's name is none."""
    assert signal_number("TERM") == 15
    assert signal_number("NONSENSE") is None
    assert signal_number("_DFL") is None
    assert signal_number("") is None
