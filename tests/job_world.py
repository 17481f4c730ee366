"""Processes, the applications that use them, and what must hold of both: for worlds without I/O.

A process produces and consumes bytes that tell where they belong; a reader is the application at one
client's end of a job. `JobWorld` asserts those of DESIGN.md's guarantees, by number, that can be told
from the two and their jobs alone, whatever joins them: relay_world.py and link_world.py do.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
from attrs import define, field

from sandd import wire
from sandd._core._errors import DaemonGone, JobNotFound, JobTaken, RequestRefused
from sandd._core.client_job import OUTPUTS, AttachState, ClientJob
from sandd._core.streams import Gap
from sandd.wire import FailedCode, Outcome, Role, Stream

if TYPE_CHECKING:
    from sandd._core.channels import Channel
    from sandd._core.client import Client
    from sandd._core.job import Job

DRAIN: Final = wire.MIB
"""What a process may leave in its pipes when it exits."""

SMALL_CHUNKS: Final = 100
"""In which somebody reads, before it takes all the rest at once."""

_NOISE: Final = random.Random(2).randbytes(wire.MIB) * 2


def pattern(writer: int, start: int, size: int) -> bytes:
    """Bytes that tell who wrote them and where they belong."""
    place = (writer * 98_317 + start) % wire.MIB
    return _NOISE[place : place + size]


# ---- processes -----------------------------------------------------------------------------------


@define(eq=False)
class Process:
    """What a job runs: it writes and reads as it is told, and remembers everything."""

    job: Job
    number: int
    running: bool = False
    produced: dict[Stream, int] = field(factory=lambda: dict.fromkeys(OUTPUTS, 0))
    consumed: bytearray = field(factory=bytearray)
    checked: int = 0
    """So much of `consumed` has been compared with what was written."""
    at_end_of_input: bool = False
    signals: list[str] = field(factory=list)
    result: wire.Exited | wire.Failed | None = None
    unowned_seconds: float = 0.0
    """Counted as its lease should be; since its end, as the retention should be."""
    owners: list[tuple[int, Reader]] = field(factory=list)
    """Who wrote its input, and from which offset on each was the owner."""

    @property
    def pid(self) -> int:
        """No other process has it."""
        return 4000 + self.number

    def writer(self, stream: Stream) -> int:
        """Names the bytes of one of its outputs."""
        return 1000 + self.number * 10 + stream

    def spawn(self) -> None:
        """It starts."""
        if self.result is None and not self.running:
            self.running = True
            self.job.started(self.pid)
            if self.number % 2:
                self.job.tell_started()  # else its end, or its first output, brings the word
            self.apply_ops()

    def apply_ops(self) -> None:
        """It is signalled."""
        while self.running and (op := self.job.next_op()) is not None:
            if isinstance(op, wire.Signal):
                self.signals.append(op.name)

    def produce(self, stream: Stream, size: int) -> int:
        """It prints as much as there is room for; returns how much."""
        if not self.running or self.job.sends[stream].final:
            return 0
        taken = min(size, self.job.room(stream))
        if taken:
            start = self.produced[stream]
            self.job.write(stream, pattern(self.writer(stream), start, taken))
            self.produced[stream] += taken
            self.job.tell_started()
        return taken

    def close(self, stream: Stream) -> None:
        """It closes one of its outputs."""
        if self.running and not self.job.sends[stream].final:
            self.job.finish(stream)

    def consume(self, size: int) -> None:
        """It reads its input."""
        if self.running:
            chunk = self.job.take_input(size)
            assert not (chunk and self.at_end_of_input), "(7) input behind its end"
            self.consumed += chunk
            self.at_end_of_input = self.job.input.at_end

    def exit(self, code: int, *, left_in_pipes: int = 0) -> None:
        """It ends, by itself or because it was killed."""
        if self.result is not None:
            return
        self.unowned_seconds = 0.0
        if not self.running:
            self.job.failed(FailedCode.CANCELLED, "ended before it was started")
            self.result = wire.Failed(FailedCode.CANCELLED, "ended before it was started")
            return
        self.job.make_room(DRAIN)
        self.produce(Stream.OUTPUT, left_in_pipes)
        outcome = self.job.end_outcome or Outcome.EXITED
        self.running = False
        self.job.exited(code=code, signal=None, outcome=outcome, seconds=1.0, pipes_held=False)
        finals = {stream: size for stream, size in self.produced.items() if size}
        self.result = wire.Exited(code, None, outcome, 1.0, False, finals)


# ---- applications --------------------------------------------------------------------------------


class HasClient(Protocol):
    """Whoever an application belongs to."""

    client: Client

    def has_input(self, job: ClientJob) -> None:
        """There is more on the job's input."""


@define(eq=False)
class Reader:
    """The application at one client's end of a job: writes, signals, and reads what it wants."""

    peer: HasClient
    job: ClientJob
    number: int
    stuck: bool = False
    """It never reads, as an operator's frozen terminal."""
    written: int = 0
    origin: int = 0
    """The offset of the job's input at which what it writes begins."""
    signals: list[str] = field(factory=list)
    position: dict[Stream, int] = field(factory=dict)
    taken: dict[Stream, int] = field(factory=lambda: dict.fromkeys(OUTPUTS, 0))
    gaps: dict[Stream, list[Gap]] = field(factory=lambda: {stream: [] for stream in OUTPUTS})
    started_at: dict[Stream, int] = field(factory=dict)
    left: bool = False
    flush: wire.Flush | None = None
    """What we have asked to be told of, the last time."""
    detaches: bool = False
    """We have asked for that, too."""

    def write(self, size: int) -> None:
        """Writes as much as there is room for."""
        log = self.job.input
        size = min(size, log.room)
        if size and not log.final and not self.left:
            log.append(pattern(self.number, self.written, size))
            self.written += size
            self.peer.has_input(self.job)

    def finish(self) -> None:
        """Closes its stdin."""
        if not self.left:
            self.job.input.finish()
            self.peer.client.activate(self.job)

    def signal(self) -> None:
        """Sends a signal."""
        if self.job.ops.room and not self.left:
            self.signals.append(f"S{len(self.signals)}")
            self.job.ops.append(wire.encode_op(wire.Signal(self.signals[-1])))
            self.peer.client.activate(self.job)

    def ask_flush(self, *, detach: bool) -> None:
        """Wants to know when all that was sent has arrived; and that the job is detached."""
        if self.job.ops.room and self.job.confirmed and not self.left:
            if detach:
                self.job.ops.append(wire.encode_op(wire.DetachJob()))
                self.peer.client.activate(self.job)
            self.detaches = self.detaches or detach
            self.peer.client.flush(self.job)
            self.flush = self.job.flush

    def read(self, size: int, process: Process, *, once: bool = False) -> None:
        """(1) Takes what has arrived, or with `once` the first chunk of each output: contiguous, and what the
        process wrote there."""
        if self.stuck or not self.job.confirmed:
            return
        for stream, log in self.job.outputs.items():
            chunk: bytes | Gap | None = None
            chunks = 0
            while chunk != b"":
                self.begin(stream)
                # A few chunks of that size, and then all: a million single bytes show nothing more.
                chunk = log.take(size if chunks < SMALL_CHUNKS else wire.MIB)
                chunks += 1
                position = self.position[stream]
                if isinstance(chunk, Gap):
                    assert chunk.start == position, "(1) a gap that doesn't continue"
                    assert chunk.end > chunk.start, "(2) an empty gap"
                    self.gaps[stream].append(chunk)
                    self.position[stream] = chunk.end
                    continue
                expected = pattern(process.writer(stream), position, len(chunk))
                assert chunk == expected, f"(1) wrong bytes at {position} of {stream.name}"
                self.position[stream] += len(chunk)
                self.taken[stream] += len(chunk)
                assert self.position[stream] <= process.produced[stream], "(1) never produced"
                if once:
                    break
        self.peer.client.activate(self.job)

    def begin(self, stream: Stream) -> None:
        """What it reads of an output begins where its job stands now, unless it has begun."""
        if stream not in self.position:
            self.position[stream] = self.started_at[stream] = self.job.outputs[stream].consumed


# ---- what must hold ------------------------------------------------------------------------------


class JobWorld(ABC):
    """What a world knows of jobs and of those who use them."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.ended_by_owner: set[str] = set()
        """Ids of jobs that somebody who owned them wanted to end."""
        self._marks: dict[int, tuple[Any, tuple[int, ...]]] = {}
        self._results: dict[ClientJob, wire.Exited | wire.Failed] = {}

    @abstractmethod
    def process_of(self, reader: Reader) -> Process | None:
        """What it is attached to."""

    @abstractmethod
    def has_job(self, job: ClientJob) -> bool:
        """Whether the daemon that it is bound to knows it."""

    @abstractmethod
    def may_be_gone(self, job: ClientJob) -> bool:
        """Whether the daemon that it is bound to has stopped, or another took its place."""

    def job_changed(self, job: ClientJob) -> None:
        """Note who owns a job from which offset of its input on."""
        if job.role is not Role.OWNER or job.state is not AttachState.ATTACHED:
            return
        for reader in self.readers:
            process = self.process_of(reader) if reader.job is job else None
            if process is not None and all(owner is not reader for _, owner in process.owners):
                # A second start says the same input again: what came of the first by now stands.
                reader.origin = job.input.end - reader.written
                stands = process.job.input.received if process.owners else 0
                process.owners.append((max(reader.origin, stands), reader))

    def end_asked(self, reader: Reader) -> None:
        """Its application wants the job to end: an owner's word counts."""
        if reader.job.role is Role.OWNER and reader.job.error is None:
            self.ended_by_owner.add(reader.job.id)

    # -- the guarantees

    def check_process(self, process: Process) -> None:
        """(3), (4) and (7), of what it prints and reads."""
        for stream, log in process.job.sends.items():
            assert log.base <= log.floor <= log.end, "(3) base, floor and end are out of order"
            self.never_down(log, log.base, log.floor, log.end)
            if stream in OUTPUTS and not self.may_be_freed(process, stream):
                read = [reader.job.outputs[stream].consumed for _, reader in process.owners]
                assert log.floor <= max(read, default=0), "(4) freed, but no owner took it"
        self._check_input(process)

    @abstractmethod
    def may_be_freed(self, process: Process, stream: Stream) -> bool:
        """Whether an output may be dropped that no owner took."""

    def _check_input(self, process: Process) -> None:
        """(7) What the process read is what its owners wrote, each from where it became the owner."""
        consumed = len(process.consumed)
        if process.checked < consumed:
            for index, (begin, reader) in enumerate(process.owners):
                end = min([consumed, *[start for start, _ in process.owners[index + 1 :]]])
                start, origin = max(begin, process.checked), reader.origin
                if start < end:
                    assert end - origin <= reader.written, "(7) read what was never written"
                    expected = pattern(reader.number, start - origin, end - start)
                    assert process.consumed[start:end] == expected, "(7) other bytes than written"
            process.checked = consumed
        if process.at_end_of_input:
            assert any(reader.job.input.final for _, reader in process.owners), (
                "(7) an end unasked for"
            )
        sent = [signal for _, reader in process.owners for signal in reader.signals]
        assert is_subsequence(process.signals, sent), "signals out of order, or twice"

    def check_reader(self, reader: Reader) -> None:
        """(2), (3) and (6), of what it was told."""
        job = reader.job
        if job.result is not None:
            process = self.process_of(reader)
            assert process is not None, "(6) an end of what never ran"
            told = job.result
            if isinstance(told, wire.Exited):
                assert told.pid in (0, process.pid), "(6) somebody else's"
                told = attrs.evolve(told, pid=0)
            assert told == process.result, "(6) not what became of it"
            assert self._results.setdefault(job, job.result) is job.result, "(6) told twice"
        for stream, log in job.outputs.items():
            if stream in reader.position:
                gaps = sum(gap.end - gap.start for gap in reader.gaps[stream])
                covered = reader.started_at[stream] + reader.taken[stream] + gaps
                assert reader.position[stream] == covered, "(2) gaps and bytes don't add up"
                assert log.consumed == reader.position[stream]
            assert log.consumed <= log.received
            self.never_down(log, log.consumed, log.received)
        if job.channel is not None:
            self.check_channel(job.channel)
        if job.error is not None:
            self._check_error(reader)

    def _check_error(self, reader: Reader) -> None:
        job, error = reader.job, reader.job.error
        if isinstance(error, JobTaken):
            rivals = [each for each in self.readers if each.job.id == job.id and each is not reader]
            assert any(each.job.role is Role.OWNER for each in rivals), "taken by nobody"
        elif isinstance(error, JobNotFound):
            # Unless it is confirmed, it may have asked before the start had arrived.
            excused = not job.confirmed or job.id in self.ended_by_owner
            assert excused or not self.has_job(job), "not found, but there"
        elif isinstance(error, DaemonGone):
            assert self.may_be_gone(job), "gone, but neither restarted nor stopped"
        else:
            assert isinstance(error, RequestRefused), repr(error)
            assert not job.confirmed, "refused after it was attached"

    def check_channel(self, channel: Channel) -> None:
        """(3) Of one end of a channel."""
        for cursor in channel.send.values():
            assert cursor.ack <= cursor.sent <= cursor.log.end, "(3) ack, sent and end out of order"
            self.never_down(cursor, cursor.ack, cursor.sent, cursor.max_offset)
        for window in channel.receive.values():
            assert window.log.received <= window.max_offset, "(3) more received than granted"
            self.never_down(window, window.acked, window.max_offset)

    def never_down(self, thing: Any, *values: int) -> None:
        """(3) None of the values of this thing has decreased since they were last looked at."""
        _, before = self._marks.get(id(thing), (thing, ()))
        if before != values:
            fell = any(a > b for a, b in zip(before, values, strict=False))
            assert not fell, f"(3) {before} to {values}"
            self._marks[id(thing)] = (thing, values)  # holding it, so that its id isn't used again


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    """Whether `part` is `whole` with some left out."""
    remaining = iter(whole)
    return all(item in remaining for item in part)
