"""How a daemon does requests, without a process and without a wire: room, turns, ends and mistakes."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from scripted import Bytes, control, cursors, data, drain

from sandd import wire
from sandd._core import job_requests
from sandd._core.job import DaemonLink, Job
from sandd._core.job_requests import JobRequests, signal_number
from sandd._core.jobs import Effect, Effects, JobTable
from sandd._core.requests import Doing, Requests
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
        self.requests = Requests(self.table, nursery, act=self.act)
        self.requests.offer(JobRequests(self.table, act=self.act, wait_over=self.wait_over).doers)
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
    output = b"".join(part.body for part in said if isinstance(part, Bytes))
    return list(wire.decode_answers(output))  # type: ignore[arg-type]


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
    monkeypatch.setattr(wire.Request, "window", 1000)
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
    monkeypatch.setattr(job_requests, "ANSWERS_A_TURN", 10)
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
    monkeypatch.setattr(job_requests, "describe", lambda _job, _now: 1 / 0)
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


def talk(daemon: Daemon, do: Any, *, credit: int = 10_000_000) -> int:
    """Have a request done by `do`; its channel."""
    daemon.requests.offer({wire.JobsSpec: do})  # of all kinds the one that is closest at hand
    return daemon.ask(wire.JobsSpec(), credit=credit)


def give(daemon: Daemon, channel: int, offset: int, body: bytes, *, final: bool = False) -> None:
    """Some of its INPUT comes in."""
    frame = data(channel, Stream.INPUT, offset, body, final=final)
    daemon.act(daemon.table.receive(daemon.link, frame, trio.current_time()))


async def test_a_request_that_is_left_sees_to_what_it_was_given(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If that is whole, within its grace, which each piece prolongs; what it puts out is dropped."""
    monkeypatch.setattr(wire.Request, "kill_grace", 10.0)
    taken: list[float] = []

    async def do(doing: Doing, _spec: object) -> None:
        while await doing.read(1):
            taken.append(trio.current_time() - began)
            await trio.sleep(6)
            await doing.write(bytes(1_000_000))

    async with running() as daemon:
        began = trio.current_time()
        channel = talk(daemon, do, credit=0)
        give(daemon, channel, 0, b"abcd", final=True)
        await trio.testing.wait_all_tasks_blocked()
        request = daemon.job(channel)
        daemon.receive(channel, wire.End("d", request.key[1], client=ALICE, tenant="t"))
        with trio.fail_after(100):
            while daemon.table.jobs:
                await trio.sleep(1)
        assert taken == [0.0, 6.0, 12.0, 18.0]
        assert isinstance(request.result, wire.Exited)


@pytest.mark.parametrize(("final", "seconds"), [(False, 0.0), (True, 10.0)])
async def test_the_grace_of_a_request_has_an_end(
    final: bool, seconds: float, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none where something of what it was given is missing: it would be waited for in vain."""
    monkeypatch.setattr(wire.Request, "kill_grace", 10.0)

    async def do(doing: Doing, _spec: object) -> None:
        await doing.read(1)
        await trio.sleep_forever()

    async with running() as daemon:
        channel = talk(daemon, do)
        give(daemon, channel, 0, b"abcd", final=final)
        await trio.testing.wait_all_tasks_blocked()
        request, began = daemon.job(channel), trio.current_time()
        daemon.receive(channel, wire.End("d", request.key[1], client=ALICE, tenant="t"))
        while daemon.table.jobs:
            await trio.sleep(0.5)
        assert trio.current_time() - began == pytest.approx(seconds, abs=1.0)
        assert request.result is not None
        assert request.result.code is FailedCode.CANCELLED


async def test_a_request_reads_its_input_to_the_end() -> None:
    """Each piece once, in order, waiting for what has not come; then b"", again and again."""
    read: list[bytes] = []

    async def do(doing: Doing, _spec: object) -> None:
        while chunk := await doing.read(3):
            read.append(chunk)
        read.append(await doing.read())

    async with running() as daemon:
        channel = talk(daemon, do)
        await trio.testing.wait_all_tasks_blocked()
        give(daemon, channel, 0, b"abcd")
        await trio.testing.wait_all_tasks_blocked()
        assert read == [b"abc", b"d"]
        give(daemon, channel, 4, b"e", final=True)
        await trio.testing.wait_all_tasks_blocked()
        assert read == [b"abc", b"d", b"e", b""]
        assert end_of(daemon.heard(channel)).code == 0


async def test_a_request_writes_as_much_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it puts out waits for the client, and beside it something else may wait for input."""
    monkeypatch.setattr(wire.Request, "window", 1000)
    read: list[bytes] = []

    async def do(doing: Doing, _spec: object) -> None:
        async def listen() -> None:
            read.append(await doing.read())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await doing.write(bytes(5000))

    async with running() as daemon:
        channel = talk(daemon, do)
        await trio.testing.wait_all_tasks_blocked()
        job = daemon.job(channel)
        log = job.sends[Stream.OUTPUT]
        assert log.end == 1000
        give(daemon, channel, 0, b"while it waits")
        await trio.testing.wait_all_tasks_blocked()
        assert read == [b"while it waits"]
        said: list[Any] = []
        while job.state is not JobState.ENDED:
            said += daemon.heard(channel)
            window = wire.StreamWindow(Stream.OUTPUT, log.end, 10_000_000)
            daemon.receive(channel, wire.Window((window,)))
            await trio.testing.wait_all_tasks_blocked()
        said += daemon.heard(channel)
        assert b"".join(each.body for each in said if isinstance(each, Bytes)) == bytes(5000)


async def test_what_the_system_refuses_is_told_by_its_name() -> None:
    """The numbers differ from system to system."""

    async def do(_doing: Doing, _spec: object) -> None:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", b"/tmp/\xff")

    async with running() as daemon:
        channel = talk(daemon, do)
        await trio.testing.wait_all_tasks_blocked()
        failed = end_of(daemon.heard(channel))
        assert (failed.code, failed.symbol) == (FailedCode.SYSTEM, "EISDIR")
        assert (failed.message, failed.filename) == ("Is a directory", b"/tmp/\xff")


async def test_what_nobody_offers_is_declined() -> None:
    """A daemon may be built without some of it."""
    async with running() as daemon:
        daemon.requests._doers.clear()
        channel = daemon.ask(wire.JobsSpec())
        await trio.testing.wait_all_tasks_blocked()
        assert end_of(daemon.heard(channel)).code is FailedCode.DECLINED


async def test_who_takes_a_request_back_is_told_from_who_is_gone() -> None:
    """What was begun is of use to who asks again, and to nobody else."""
    given_up: list[bool] = []

    async def do(doing: Doing, _spec: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            given_up.append(doing.is_given_up)

    async with running() as daemon:
        channel = talk(daemon, do)
        await trio.testing.wait_all_tasks_blocked()
        daemon.receive(channel, wire.End("d", daemon.job(channel).key[1], client=ALICE, tenant="t"))
        await trio.testing.wait_all_tasks_blocked()
        assert given_up == [True]
        channel = talk(daemon, do)
        await trio.testing.wait_all_tasks_blocked()
        daemon.act(daemon.table.stop(daemon.job(channel), Outcome.LEASE_EXPIRED))
        await trio.testing.wait_all_tasks_blocked()
        assert given_up == [True, False]
