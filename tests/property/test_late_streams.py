"""Outputs and windows that are made late say the same as if they had been there: two tables, told the same."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import control, data, drain, op

from sandd import wire
from sandd._core.job import DaemonLink
from sandd._core.jobs import Effect, JobTable
from sandd.wire import JobState, Outcome, Role, Stream

JOB: Final = "a11ce00000000000.1"
CLIENTS: Final = ("a11ce00000000000", "b0b0000000000000")
SPECS: Final = [
    wire.encode_spec(spec)
    for spec in (
        wire.CommandSpec(argv=(b"true",), stdin=False),
        wire.CommandSpec(argv=(b"cat",)),
        wire.CommandSpec(argv=(b"true",), stdin=False, detach=True),
        wire.CommandSpec(argv=(b"true",), stdin=False, on_full=wire.OnFull.DROP_OLDEST),
        wire.SessionSpec(argv=(b"sh",), rows=24, cols=80, scrollback=1000),
    )
]
_streams = st.sampled_from([Stream.OUTPUT, Stream.ERROR])
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("started")),
        st.tuples(st.just("told")),
        st.tuples(st.just("write"), _streams, st.integers(1, 3000)),
        st.tuples(st.just("finish"), _streams),
        st.tuples(st.just("exit")),
        st.tuples(st.just("fail")),
        st.tuples(st.just("attach"), st.integers(0, 1), st.sampled_from(list(Role)), st.booleans()),
        st.tuples(st.just("window"), st.integers(1, 4), _streams, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("input"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("signal"), st.integers(1, 4)),
        st.tuples(st.just("read")),
        st.tuples(st.just("flush"), st.integers(1, 4), st.integers(0, 1)),
        st.tuples(st.just("detach"), st.integers(1, 4)),
        st.tuples(st.just("outlive"), st.integers(1, 4)),
        st.tuples(st.just("left")),
        st.tuples(st.just("end")),
        st.tuples(st.just("tick")),
        st.tuples(st.just("cut")),
        st.tuples(st.just("listen")),
    ),
    max_size=14,
)


class Twin:
    """A table with one job on one link; `eager`: its outputs and windows are made as soon as it is there."""

    def __init__(self, spec: bytes, credit: int, *, eager: bool) -> None:
        self.table = JobTable("here")
        self.link = DaemonLink()
        self.credit = credit
        self.channels = 0
        self.sent: dict[tuple[int, Stream], int] = {}
        self.now = 0.0
        self.told: list[Any] = []
        self.attach(0, Role.OWNER, takeover=False, spec=spec)
        self.job = self.table.jobs["", JOB]
        if eager:
            assert self.job.outputs
            assert self.job.owner is not None
            if self.job.owner.owes_windows:
                self.table.open_windows(self.job.owner)

    def attach(self, client: int, role: Role, *, takeover: bool, spec: bytes | None = None) -> None:
        """An Attach that names no cursors."""
        self.channels += 1
        message = wire.Attach(
            *("d", JOB, CLIENTS[client], (), spec, "" if spec is None else "here"),
            role=role,
            takeover=takeover,
            output_credit=self.credit,
        )
        self.receive(control(self.channels, message))

    def receive(self, frame: wire.Frame) -> None:
        """It comes; what the shell would have to do is noted."""
        self.note(self.table.receive(self.link, frame, self.now))

    def note(self, effects: list[tuple[Any, Effect]]) -> None:
        """What the shell would have to do."""
        self.told.append([effect for _, effect in effects])

    def listen(self) -> None:
        """All that is to be sent is sent."""
        heard = drain(self.link.scheduler)
        for channel, said in heard:
            if hasattr(said, "body"):
                self.sent[channel, said.stream] = said.offset + len(said.body)
        self.told.append(heard)

    def take(self, step: tuple[Any, ...]) -> None:
        """One step, if it can be taken."""
        job = self.job
        self.now += 1.0
        ended = job.state is JobState.ENDED
        match step:
            case ("started",) if job.state is JobState.QUEUED:
                job.started(4711, self.now)
            case ("told",):
                job.tell_started()
            case "write", stream, size if not ended:
                size = min(size, job.room(stream))
                if size and not job.sends[stream].final:
                    job.write(stream, bytes([size % 251]) * size)
            case "finish", stream if not ended:
                job.finish(stream)
            case ("exit",) if not ended:
                job.exited(
                    code=0, signal=None, outcome=Outcome.EXITED, seconds=1.0, pipes_held=False
                )
                self.note(self.table.ended(job, self.now))
            case ("fail",) if not ended:
                job.failed(wire.FailedCode.LOST, "gone")
                self.note(self.table.ended(job, self.now))
            case "attach", client, role, takeover:
                self.attach(client, role, takeover=takeover)
            case "window", channel, stream, rises, acks if channel <= self.channels:
                ack = self.sent.get((channel, stream), 0) if acks else 0
                update = wire.StreamWindow(stream, ack, self.credit + 1000 * rises)
                self.receive(control(channel, wire.Window((update,))))
            case "input", channel, is_last if channel <= self.channels:
                received = job.input.received
                self.receive(data(channel, Stream.INPUT, received, b"x" * 40_000, final=is_last))
            case "signal", channel if channel <= self.channels:
                self.receive(op(channel, job.ops.received, wire.Signal("INT")))
            case ("read",):
                self.told.append((job.next_op(), job.take_input(100_000)))
            case "flush", channel, count if channel <= self.channels:
                self.receive(control(channel, wire.Flush(count)))
            case "detach", channel if channel <= self.channels:
                self.receive(control(channel, wire.Detach()))
            case "outlive", channel if channel <= self.channels:
                self.receive(op(channel, job.ops.received, wire.DetachJob()))
            case ("left",):
                left = wire.End("d", JOB, client=job.client, left=job.generation)
                self.receive(control(0, left))
            case ("end",):
                self.receive(control(0, wire.End("d", JOB)))
            case ("tick",):
                self.note(self.table.tick(self.now))
            case ("cut",):
                self.note(self.table.close_link(self.link, self.now))
                self.link, self.channels = DaemonLink(), 0
                self.sent = {}
            case ("listen",):
                self.listen()
        self.told.append((job.state, job.detached, job.held_bytes, self.link.unsent))


# Each is short, and there are many kinds of steps.
@settings(max_examples=6 * settings().max_examples)
@given(spec=st.sampled_from(SPECS), credit=st.sampled_from([0, 1000, wire.MIB]), steps=STEPS)
def test_late_streams_say_what_early_ones_do(
    spec: bytes, credit: int, steps: list[tuple[Any, ...]]
) -> None:
    """Every frame and every effect is the same."""
    early, late = (Twin(spec, credit, eager=eager) for eager in (True, False))
    for step in (*steps, ("listen",), ("attach", 1, Role.VIEWER, False), ("listen",)):
        for twin in early, late:
            twin.take(step)
        assert early.told == late.told
