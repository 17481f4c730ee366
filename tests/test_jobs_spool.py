"""The daemon's jobs and the spool: who is attached decides where output goes, and what is told of it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from model_disk import ModelDisk
from scripted import Bytes, Skip, control, cursors, drain, op

from sandd import wire
from sandd._core import job as job_module
from sandd._core.job import DaemonLink, Job
from sandd._core.jobs import Effect, Effects, JobTable
from sandd._core.spool import PIECE_BYTES, Spool
from sandd._core.streams import RING_BYTES as RING
from sandd.wire import OnFull, Outcome, Role, StallReason, Stream

ALICE = "a11ce00000000000"
FIRST = f"{ALICE}.1"


class Daemon:
    """A job table with a spool, its disk, and one link."""

    def __init__(self, *, job_quota: int = 100 * wire.MIB) -> None:
        self.spool = Spool.within(100 * wire.MIB, job_quota)
        self.table = JobTable("here", spool=self.spool)
        self.disk = ModelDisk()
        self.link = DaemonLink()

    def start(self, **spec: Any) -> Job:
        """Alice starts a job, and owns it."""
        spec_bytes = wire.encode_spec(wire.CommandSpec((b"x",), **spec))
        attach = wire.Attach("d", FIRST, ALICE, cursors(), spec_bytes, "here", tenant="t")
        self.receive(control(1, attach))
        job = self.job
        job.started(7)
        job.tell_started()
        return job

    def attach(self, channel: int, **changes: Any) -> None:
        """Alice attaches again."""
        attach = wire.Attach("d", FIRST, ALICE, cursors(), tenant="t", generation=1)
        self.receive(control(channel, attrs.evolve(attach, **changes)))

    @property
    def job(self) -> Job:
        """The job there is."""
        return self.table.jobs["t", FIRST]

    def receive(self, frame: wire.Frame) -> Effects:
        """A frame arrives."""
        return self.table.receive(self.link, frame, 0.0)

    def leave(self) -> Effects:
        """The link breaks; there is another one."""
        effects = self.table.close_link(self.link, 0.0)
        self.link = DaemonLink()
        return effects

    def ack(self, offset: int, channel: int = 1, stream: Stream = Stream.OUTPUT) -> None:
        """The owner has taken everything below."""
        entry = wire.StreamWindow(stream, offset, offset + 200 * wire.MIB)
        self.receive(control(channel, wire.Window((entry,))))

    def serve(self) -> None:
        """The disk does all it is asked for, as the shell has it do."""
        while self.spool.work:
            log, _ = self.spool.work.popitem()
            self.disk.serve(log)
            log.job.tell_stalls()
            log.job.announce()

    def write(self, size: int, stream: Stream = Stream.OUTPUT) -> int:
        """The process prints so much, or as much as there is room for; how much that was."""
        written = 0
        while written < size and (room := self.job.room(stream)):
            chunk = bytes(min(room, size - written, PIECE_BYTES))
            self.job.write(stream, chunk)
            written += len(chunk)
            self.serve()
        return written

    def heard(self) -> list[Any]:
        """What is said on the link, with the disk's help."""
        said: list[Any] = []
        while True:
            more = [message for _, message in drain(self.link.scheduler)]
            said += more
            if not more and not self.spool.work:
                return said
            self.serve()

    def events(self) -> list[wire.Event]:
        """The events among it."""
        kinds = (wire.Started, wire.Stalled, wire.Flowing, wire.Exited, wire.Failed)
        return [said for said in self.heard() if isinstance(said, kinds)]


@pytest.fixture
def daemon() -> Daemon:
    """A daemon without jobs."""
    return Daemon()


def received(said: list[Any], stream: Stream = Stream.OUTPUT) -> int:
    """How many bytes of a stream were sent."""
    return sum(len(s.body) for s in said if isinstance(s, Bytes) and s.stream is stream)


def test_while_its_owner_is_attached_a_job_has_its_ring(daemon: Daemon) -> None:
    """A slow reader slows the process, and the disk has nothing to do."""
    daemon.start()
    assert daemon.write(wire.MIB) == RING
    assert daemon.disk.files == {}


def test_when_its_owner_leaves_output_goes_to_disk(daemon: Daemon) -> None:
    """The process goes on at once; memory holds no more than before; viewers change nothing."""
    job = daemon.start()
    daemon.write(wire.MIB)
    assert daemon.leave() == [(job, Effect.ROOM)]
    daemon.serve()
    assert daemon.write(3 * wire.MIB) == 3 * wire.MIB
    daemon.attach(1, role=Role.VIEWER)
    assert daemon.write(3 * wire.MIB, Stream.ERROR) == 3 * wire.MIB
    assert job.held_bytes < 2 * RING + 10_000
    assert job.disk_bytes > 5 * wire.MIB
    assert daemon.spool.used == job.disk_bytes


def test_an_owner_that_leaves_frees_the_process_though_the_disk_has_nothing_to_do(
    daemon: Daemon,
) -> None:
    """What piled up before it came was more than the ring, so the process waited for it; now it needn't."""
    job = daemon.start()
    daemon.leave()
    daemon.write(wire.MIB)
    daemon.attach(1)
    assert job.room(Stream.OUTPUT) == 0
    daemon.spool.work.clear()
    assert daemon.leave() == [(job, Effect.ROOM)]
    assert job.room(Stream.OUTPUT) > 0


def test_the_owner_gets_all_of_it_at_its_return(daemon: Daemon) -> None:
    """From where it was, over the part on disk into the part in memory; and the disk is empty then."""
    daemon.start()
    daemon.write(1000)
    daemon.heard()
    daemon.ack(1000)
    daemon.leave()
    daemon.write(700_000)
    daemon.attach(1, cursors=cursors(output=1000))
    assert received(daemon.heard()) == 700_000
    assert daemon.job.room(Stream.OUTPUT) == 0
    daemon.ack(701_000)
    daemon.serve()
    assert (daemon.disk.files, daemon.spool.used) == ({}, 0)
    assert (
        daemon.job.room(Stream.OUTPUT) == 2 * RING
    )  # it has taken so much: it may have more at a time


def test_a_detached_job_keeps_what_was_acknowledged(daemon: Daemon) -> None:
    """Whoever attaches next gets the whole output."""
    daemon.start(detach=True)
    for total in range(200_000, 1_000_001, 200_000):
        daemon.write(200_000)
        daemon.heard()
        daemon.ack(total)
    daemon.leave()
    daemon.attach(1, cursors=cursors(output=None, error=None, events=None))
    assert received(daemon.heard()) == 1_000_000


def test_a_job_that_detaches_keeps_what_comes_then(daemon: Daemon) -> None:
    """From the moment on in which it was asked to."""
    job = daemon.start()
    daemon.receive(op(1, 0, wire.DetachJob()))
    job.next_op()
    daemon.write(200_000)
    daemon.heard()
    daemon.ack(200_000)
    assert job.sends[Stream.OUTPUT].base == 0


def test_a_dropping_job_goes_on_at_its_quota() -> None:
    """(2) Then the oldest goes, whoever reads is told, and the two make up all of it."""
    daemon = Daemon(job_quota=wire.MIB)
    daemon.start(on_full=OnFull.DROP_OLDEST)
    daemon.heard()
    daemon.leave()
    assert daemon.write(5 * wire.MIB) == 5 * wire.MIB
    daemon.attach(1, cursors=cursors(output=0, credit=100 * wire.MIB))
    said = daemon.heard()
    (gap,) = [each for each in said if isinstance(each, Skip)]
    assert gap.start == 0
    assert gap.end + received(said) == 5 * wire.MIB
    assert received(said) > 0.9 * wire.MIB


def test_a_forgotten_job_leaves_nothing_on_disk(daemon: Daemon) -> None:
    """Whether it ended or was ended."""
    job = daemon.start()
    daemon.leave()
    daemon.write(wire.MIB)
    job.exited(code=0, signal=None, outcome=Outcome.EXITED, seconds=1, pipes_held=False)
    assert daemon.disk.files
    end = wire.End("d", FIRST, None, ALICE, "t")
    assert daemon.receive(control(0, end)) == [(job, Effect.FORGOTTEN)]
    daemon.serve()
    assert (daemon.disk.files, daemon.spool.used, job.disk_bytes) == ({}, 0, 0)


def test_what_was_read_back_is_not_kept_for_nobody(daemon: Daemon) -> None:
    """When the last one leaves, memory holds the rings alone."""
    job = daemon.start()
    daemon.leave()
    daemon.write(wire.MIB)
    before = job.held_bytes
    daemon.attach(1, role=Role.VIEWER, cursors=cursors(credit=10))
    daemon.heard()
    assert job.held_bytes > before
    daemon.leave()
    assert job.held_bytes == before


# ---- stalls --------------------------------------------------------------------------------------


def test_a_stall_is_told_once_and_so_is_its_end() -> None:
    """At its quota the process waits; an event says why, and another that it goes on."""
    daemon = Daemon(job_quota=wire.MIB)
    job = daemon.start()
    assert daemon.events() == [wire.Started(7)]
    daemon.leave()
    assert daemon.write(10 * wire.MIB) == wire.MIB + RING
    for _ in range(3):
        job.tell_stalls()
    daemon.attach(1, cursors=cursors(events=1, output=0, credit=10 * wire.MIB))
    stalled = wire.Stalled(Stream.OUTPUT, StallReason.QUOTA)
    assert daemon.events() == [stalled]
    daemon.ack(wire.MIB)
    daemon.serve()
    assert daemon.events() == [wire.Flowing(Stream.OUTPUT)]


def test_each_output_stalls_by_itself(daemon: Daemon) -> None:
    """A disk that fails is told with the system's words, cut to what an event holds."""
    job = daemon.start()
    daemon.leave()
    for stream in (Stream.OUTPUT, Stream.ERROR):
        job.write(stream, bytes(RING))
    for log in list(daemon.spool.work):
        task = log.next_task()
        assert task is not None
        log.failed(task, "No space left " * 1000)
    daemon.spool.work.clear()
    job.tell_stalls()
    daemon.attach(1, cursors=cursors(events=1, credit=0))
    message = ("No space left " * 1000)[: wire.MAX_TEXT_LENGTH]
    told = [said for _, said in drain(daemon.link.scheduler)][1:]
    assert told == [
        wire.Stalled(stream, StallReason.DISK, message) for stream in (Stream.OUTPUT, Stream.ERROR)
    ]


def test_stalls_are_told_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's events are kept whole, so there is an end to those; the last word is that it flows."""
    monkeypatch.setattr(job_module, "MAX_STALLS_TOLD", 3)
    daemon = Daemon(job_quota=wire.MIB)
    daemon.start()
    daemon.leave()
    daemon.write(10 * wire.MIB)
    daemon.attach(1, cursors=cursors(output=0, credit=100 * wire.MIB))
    for _ in range(6):
        daemon.heard()
        total = daemon.job.outputs[Stream.OUTPUT].end
        daemon.ack(total)
        daemon.leave()
        daemon.write(10 * wire.MIB)
        daemon.attach(1, cursors=cursors(output=total, credit=100 * wire.MIB))
    daemon.heard()
    daemon.leave()
    daemon.attach(1, cursors=cursors(events=None, output=total, credit=0))
    told = [type(said) for said in daemon.events()]
    assert told == [wire.Started] + [wire.Stalled, wire.Flowing] * 3


def test_nothing_is_told_behind_the_end(daemon: Daemon) -> None:
    """(6) The exit is the last event, whatever the disk does later."""
    job = daemon.start()
    daemon.leave()
    job.write(Stream.OUTPUT, bytes(RING))
    (log,) = daemon.spool.work
    task = log.next_task()
    assert task is not None
    log.failed(task, "full")
    assert log.stall is not None
    job.exited(code=0, signal=None, outcome=Outcome.EXITED, seconds=1, pipes_held=False)
    job.tell_stalls()
    daemon.attach(1, cursors=cursors(events=None, credit=0))
    assert [type(event) for event in daemon.events()] == [wire.Started, wire.Exited]
