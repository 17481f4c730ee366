"""The client's half: a job's way through attachments, cuts and takeovers, as its opener sees it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from scripted import Bytes, Skip, control, data, drain, event, gap, unknown

from sandd import wire
from sandd._core._errors import (
    DaemonGone,
    DaemonNotFound,
    JobIdConflict,
    JobNotFound,
    JobTaken,
    LocalProtocolError,
    PolicyDenied,
    RateLimited,
    RemoteProtocolError,
    RequestRefused,
    SanddError,
)
from sandd._core.client import Client
from sandd._core.client_job import AttachState, ClientJob
from sandd._core.streams import MOST_RING_BYTES, VIEWER_WINDOW_BYTES, WINDOW_BYTES, Gap
from sandd._core.tombstones import parse
from sandd.wire import (
    DaemonState,
    FailedCode,
    JobState,
    Outcome,
    RefusedCode,
    Role,
    StallReason,
    Stream,
)

SPEC = wire.CommandSpec(argv=(b"true",))
EXITED = wire.Exited(0, None, Outcome.EXITED, 1.0, False, {Stream.OUTPUT: 3, Stream.ERROR: 0})
OPS_CREDIT = wire.StreamState(Stream.OPS, max_offset=64)


class Peer:
    """A client, and the router's end of its link, with one daemon."""

    def __init__(self, *, online: bool = True) -> None:
        self.client = Client()
        if online:
            self.status(DaemonState.ONLINE)

    def status(self, state: DaemonState, instance: str = "here") -> list[ClientJob]:
        """The daemon came, went, or is gone."""
        return self.client.receive(control(0, wire.DaemonStatus("d", state, instance)))

    def heard(self) -> list[tuple[int, Any]]:
        """What the client says."""
        return drain(self.client.scheduler)

    def attach_heard(self) -> tuple[int, wire.Attach]:
        """The one thing the client says: an Attach."""
        ((channel, message),) = self.heard()
        assert isinstance(message, wire.Attach)
        return channel, message

    def attached(self, channel: int, **changes: Any) -> list[ClientJob]:
        """The daemon's answer to an Attach: a new job's, but for the `changes`."""
        states = (OPS_CREDIT, wire.StreamState(Stream.INPUT, max_offset=100_000))
        answer = wire.Attached(Role.OWNER, 1, JobState.QUEUED, states)
        return self.client.receive(control(channel, attrs.evolve(answer, **changes)))

    def refused(self, channel: int, code: RefusedCode) -> list[ClientJob]:
        """The daemon's or the router's refusal."""
        return self.client.receive(control(channel, wire.Refused(code, "because")))

    def running(self, **options: Any) -> tuple[ClientJob, int]:
        """A job that was started and attached, and its channel."""
        job = self.client.open("d", SPEC, **options)
        channel, _ = self.attach_heard()
        self.attached(channel)
        self.client.receive(event(channel, 0, wire.Started(7)))
        return job, channel


@pytest.fixture
def peer() -> Peer:
    """A client whose daemon is online."""
    return Peer()


def cursor(message: wire.Attach, stream: Stream) -> wire.Cursor:
    """Where the Attach wants the stream to go on."""
    (found,) = [cursor for cursor in message.cursors if cursor.stream is stream]
    return found


def attached_to(peer: Peer, *states: wire.StreamState, **options: Any) -> tuple[ClientJob, int]:
    """A job that was there before us, and the channel to it."""
    job = peer.client.attach("d", "theirs", **options)
    channel, _ = peer.attach_heard()
    peer.attached(channel, generation=2, state=JobState.RUNNING, streams=(OPS_CREDIT, *states))
    return job, channel


# ---- starting ------------------------------------------------------------------------------------


def test_a_job_starts_when_its_daemon_is_there() -> None:
    """A start waits for its daemon, and is bound to the instance it is then sent to."""
    peer = Peer(online=False)
    job = peer.client.open("d", SPEC)
    assert (job.state, job.sent, peer.heard()) == (AttachState.WAITING, False, [])
    peer.status(DaemonState.AWAY)
    assert (job.state, peer.heard()) == (AttachState.WAITING, [])
    assert peer.status(DaemonState.ONLINE) == [job]
    channel, message = peer.attach_heard()
    assert (job.state, job.sent, channel) == (AttachState.ATTACHING, True, 1)
    assert message == wire.Attach(
        daemon_id="d",
        job_id=job.id,
        client=peer.client.id,
        cursors=(),  # all there is, as it can't exist yet
        spec=wire.encode_spec(SPEC),
        instance="here",
        settled=1,
        attempt=1,
    )


def test_each_attach_has_a_higher_number_than_those_before(peer: Peer) -> None:
    """Of whatever job and on whatever link: so the daemon knows one that comes late."""
    for _ in range(2):
        peer.client.open("d", SPEC)
    peer.status(DaemonState.AWAY)
    peer.status(DaemonState.ONLINE)
    attaches = [message for _, message in peer.heard() if isinstance(message, wire.Attach)]
    assert [message.attempt for message in attaches] == [1, 2, 3, 4]


def test_generated_ids_are_unique_and_say_whose_they_are(peer: Peer) -> None:
    """An id holds its client and a number that rises."""
    first, second = peer.client.open("d", SPEC), peer.client.open("d", SPEC)
    assert parse(first.id) == (peer.client.id, 1)
    assert parse(second.id) == (peer.client.id, 2)
    assert Client().id != peer.client.id


def test_little_input_travels_with_its_attach(peer: Peer) -> None:
    """Up to INITIAL_INPUT_BYTES go before the answer; more waits for credit."""
    job = peer.client.open("d", SPEC, input_capacity=None)
    job.input.append(bytes(100_000))
    job.input.finish()
    job.ops.append(wire.encode_op(wire.Signal("INT")))
    peer.client.activate(job)
    ((channel, attach), *rest) = peer.heard()
    assert isinstance(attach, wire.Attach)
    assert rest[0] == (channel, wire.Signal("INT"))
    assert sum(len(said.body) for _, said in rest[1:]) == wire.INITIAL_INPUT_BYTES
    peer.attached(channel)
    said = [said for _, said in peer.heard()]
    assert sum(len(part.body) for part in said) == 100_000 - wire.INITIAL_INPUT_BYTES
    assert [part.final for part in said] == [False] * (len(said) - 1) + [True]


def test_input_for_a_chosen_id_waits_for_the_answer(peer: Peer) -> None:
    """Such a job may exist already, so nobody knows yet where its input goes on."""
    job = peer.client.open("d", SPEC, job_id="chosen")
    job.input.append(b"abc")
    job.input.finish()
    peer.client.activate(job)
    channel, message = peer.attach_heard()
    assert message.job_id == "chosen"
    peer.attached(channel)
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 0, b"abc", True))]


def test_a_spec_too_large_is_refused_before_anything_is_sent(peer: Peer) -> None:
    """What no message could carry is the caller's error, and leaves no job behind."""
    huge = wire.CommandSpec(argv=(bytes(wire.MAX_CONTROL_BYTES),))
    with pytest.raises(LocalProtocolError, match="too large"):
        peer.client.open("d", huge)
    assert (peer.client.jobs, peer.heard()) == ({}, [])


# ---- what comes back -----------------------------------------------------------------------------


def test_a_job_runs_and_ends(peer: Peer) -> None:
    """(6) Events tell what became of it; it is finished when all its output has arrived."""
    job, channel = peer.running()
    assert job.started == wire.Started(7)
    assert (job.state, job.job_state, job.generation) == (AttachState.ATTACHED, JobState.QUEUED, 1)
    peer.client.receive(data(channel, Stream.OUTPUT, 0, b"ab"))
    peer.client.receive(event(channel, 1, EXITED))
    assert job.result == EXITED
    assert not job.finished
    peer.client.receive(data(channel, Stream.OUTPUT, 2, b"c", final=True))
    assert job.finished
    assert job.outputs[Stream.OUTPUT].take(99) == b"abc"


@pytest.mark.parametrize("state", [DaemonState.GONE, DaemonState.ONLINE])
def test_a_job_that_has_told_all_is_no_loss(peer: Peer, state: DaemonState) -> None:
    """Its daemon is gone, or another, before anybody has looked: what became of it is known all the same."""
    job, channel = peer.running()
    job.terminal = True
    half, _ = peer.running()
    peer.client.receive(event(channel, 1, EXITED))
    peer.client.receive(data(channel, Stream.OUTPUT, 0, b"abc", final=True))
    assert job.finished
    peer.client.receive(control(0, wire.DaemonStatus("d", state, "another")))
    assert (job.state, job.error, job.result) == (AttachState.CLOSED, None, EXITED)
    assert not peer.client.has_ended_any  # nobody is left who would have to hear of it
    assert isinstance(half.error, DaemonGone)


def test_an_event_answers_a_start(peer: Peer) -> None:
    """The daemon has nothing else to say to a new job: then its first event says that it is attached."""
    job = peer.client.open("d", attrs.evolve(SPEC, stdin=False))
    channel, attach = peer.attach_heard()
    assert attach.cursors == ()
    ended = wire.Exited(0, None, Outcome.EXITED, 1.0, pid=7)
    assert peer.client.receive(event(channel, 0, ended)) == [job]
    assert (job.state, job.confirmed, job.generation) == (AttachState.ATTACHED, True, 1)
    assert (job.result, job.started, job.finished) == (ended, wire.Started(7), True)


def test_a_new_jobs_streams_are_bounded_from_their_first_byte(peer: Peer) -> None:
    """What they grant stands before anything has come, and each has its own."""
    job = peer.client.open("d", attrs.evolve(SPEC, stdin=False))
    channel, _ = peer.attach_heard()
    assert not job.channel.pending  # type: ignore[union-attr]
    for offset in range(0, WINDOW_BYTES, 64 * wire.KIB):
        peer.client.receive(data(channel, Stream.ERROR, offset, bytes(64 * wire.KIB)))
    assert peer.heard() == []
    with pytest.raises(RemoteProtocolError, match="ERROR exceeds its credit"):
        peer.client.receive(data(channel, Stream.ERROR, WINDOW_BYTES, b"x"))
    with pytest.raises(RemoteProtocolError, match="OPS does not flow this way"):
        peer.client.receive(data(channel, Stream.OPS, 0, b"x"))
    # Its other output isn't held up by that one.
    peer.client.receive(data(channel, Stream.OUTPUT, 0, bytes(wire.ACK_EVERY_BYTES)))
    job.outputs[Stream.OUTPUT].discard()
    job.outputs[Stream.ERROR].discard()
    peer.client.activate(job)
    ((_, window),) = peer.heard()
    assert isinstance(window, wire.Window)
    granted = {each.stream: (each.ack, each.max_offset) for each in window.streams}
    assert granted == {
        Stream.ERROR: (WINDOW_BYTES, 2 * WINDOW_BYTES),
        Stream.OUTPUT: (wire.ACK_EVERY_BYTES, wire.ACK_EVERY_BYTES + WINDOW_BYTES),
    }


def test_a_job_may_have_a_wider_window(peer: Peer) -> None:
    """It is said with its start, and holds from the first byte on, and behind a cut."""
    wide = 4 * WINDOW_BYTES
    job = peer.client.open("d", SPEC, output_window=wide)
    channel, attach = peer.attach_heard()
    assert (attach.cursors, attach.output_credit) == ((), wide)
    peer.attached(channel)
    for offset in range(0, wide, 512 * wire.KIB):
        peer.client.receive(data(channel, Stream.OUTPUT, offset, bytes(512 * wire.KIB)))
    with pytest.raises(RemoteProtocolError, match="OUTPUT exceeds its credit"):
        peer.client.receive(data(channel, Stream.OUTPUT, wide, b"x"))
    job.outputs[Stream.OUTPUT].discard()
    peer.client.activate(job)
    ((_, window),) = peer.heard()
    assert window == wire.Window((wire.StreamWindow(Stream.OUTPUT, wide, 2 * wide),))
    peer.status(DaemonState.AWAY)
    peer.heard()
    peer.status(DaemonState.ONLINE)
    ((_, attach), *_) = peer.heard()
    assert isinstance(attach, wire.Attach)
    assert cursor(attach, Stream.OUTPUT) == wire.Cursor(Stream.OUTPUT, 2 * wide, wide)


def test_no_event_answers_an_attach(peer: Peer) -> None:
    """Of a job that may have been there before, only the answer tells where its streams go on."""
    peer.client.attach("d", "theirs")
    channel, _ = peer.attach_heard()
    with pytest.raises(RemoteProtocolError, match="before the answer"):
        peer.client.receive(event(channel, 0, wire.Started(7)))
    job = peer.client.open("d", SPEC)
    channel, _ = peer.attach_heard()
    peer.status(DaemonState.AWAY)
    peer.status(DaemonState.ONLINE)
    (channel, _), *_ = [
        each
        for each in peer.heard()
        if isinstance(each[1], wire.Attach) and each[1].job_id == job.id
    ]
    with pytest.raises(RemoteProtocolError, match="before the answer"):
        peer.client.receive(event(channel, 0, wire.Started(7)))


def test_a_job_that_failed_is_finished(peer: Peer) -> None:
    """What was never started has a result without output."""
    job, channel = peer.running()
    failed = wire.Failed(FailedCode.SPAWN, "no", 2, b"x", {})
    peer.client.receive(event(channel, 1, failed))
    assert (job.result, job.finished) == (failed, True)


def test_events_of_a_newer_version_are_ignored(peer: Peer) -> None:
    """An event that this client doesn't know changes nothing."""
    job, channel = peer.running()
    newer = wire.encode_event(wire.Started(1)).replace(b"\xa7started", b"\xa7snoozed")
    peer.client.receive(data(channel, Stream.EVENTS, 1, newer))
    peer.client.receive(unknown(channel))
    peer.client.receive(unknown(0))
    assert (job.result, job.state) == (None, AttachState.ATTACHED)


def test_stalls_are_known_while_they_last(peer: Peer) -> None:
    """Why the daemon keeps a process waiting; nothing is left of it at the end."""
    job, channel = peer.running()
    stalled = wire.Stalled(Stream.OUTPUT, StallReason.DISK, "full")
    other = wire.Stalled(Stream.ERROR, StallReason.QUOTA)
    peer.client.receive(event(channel, 1, stalled))
    peer.client.receive(event(channel, 2, other))
    assert job.stalls == {Stream.OUTPUT: stalled, Stream.ERROR: other}
    peer.client.receive(event(channel, 3, wire.Flowing(Stream.OUTPUT)))
    peer.client.receive(event(channel, 4, wire.Flowing(Stream.OUTPUT)))
    assert job.stalls == {Stream.ERROR: other}
    peer.client.receive(event(channel, 5, EXITED))
    assert job.stalls == {}


def test_only_outputs_stall(peer: Peer) -> None:
    """Anything else is the daemon's mistake."""
    _, channel = peer.running()
    with pytest.raises(RemoteProtocolError, match="INPUT is no output"):
        peer.client.receive(event(channel, 1, wire.Stalled(Stream.INPUT, StallReason.DISK)))


def test_what_the_application_takes_is_acknowledged(peer: Peer) -> None:
    """Ack means handed to the application, and comes with as much new credit."""
    job, channel = peer.running()
    size = wire.ACK_EVERY_BYTES
    peer.client.receive(data(channel, Stream.OUTPUT, 0, bytes(size)))
    assert peer.heard() == []
    job.outputs[Stream.OUTPUT].take(size - 1)
    peer.client.activate(job)
    assert peer.heard() == []
    job.outputs[Stream.OUTPUT].take(1)
    peer.client.activate(job)
    ((_, window),) = peer.heard()
    assert window == wire.Window((wire.StreamWindow(Stream.OUTPUT, size, size + WINDOW_BYTES),))


def test_input_follows_the_daemons_credit(peer: Peer) -> None:
    """(3) Nothing is sent beyond what was granted, and everything once it is."""
    job, channel = peer.running(input_capacity=None)
    job.input.append(bytes(150_000))
    peer.client.activate(job)
    assert sum(len(said.body) for _, said in peer.heard()) == 100_000
    granted = wire.Window((wire.StreamWindow(Stream.INPUT, 100_000, 120_000),))
    peer.client.receive(control(channel, granted))
    assert sum(len(said.body) for _, said in peer.heard()) == 20_000
    assert job.input.floor == 100_000


def test_gaps_come_out_where_they_are(peer: Peer) -> None:
    """(2) What was dropped is told between the bytes around it."""
    job, channel = peer.running()
    peer.client.receive(data(channel, Stream.OUTPUT, 0, b"ab"))
    peer.client.receive(gap(channel, Stream.OUTPUT, 2, 10))
    peer.client.receive(data(channel, Stream.OUTPUT, 10, b"c"))
    log = job.outputs[Stream.OUTPUT]
    assert [log.take(9), log.take(9), log.take(9)] == [b"ab", Gap(2, 10), b"c"]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(data(1, Stream.OUTPUT, 5, b"x"), "expected 2", id="hole"),
        pytest.param(data(1, Stream.OUTPUT, 1, b"x"), "expected 2", id="overlap"),
        pytest.param(data(1, Stream.INPUT, 0, b"x"), "does not flow this way", id="input"),
        pytest.param(data(1, Stream.EVENTS, 1, b"?"), "bad event", id="no event"),
        pytest.param(gap(1, Stream.EVENTS, 1, 9), "gap in a stream of messages", id="event gap"),
        pytest.param(
            control(1, wire.Attached(Role.OWNER, 1, JobState.RUNNING, ())),
            "without an Attach",
            id="attached twice",
        ),
        pytest.param(control(1, wire.Detach()), "not for a client", id="detach"),
        pytest.param(control(1, wire.Ping()), "not for a client", id="ping"),
        pytest.param(
            control(1, wire.Window((wire.StreamWindow(Stream.INPUT, 1, 99),))),
            "beyond what was sent",
            id="ack beyond sent",
        ),
        pytest.param(
            control(1, wire.Window((wire.StreamWindow(Stream.INPUT, 0, 99),))),
            "went down",
            id="credit went down",
        ),
        pytest.param(
            control(1, wire.Window((wire.StreamWindow(Stream.OUTPUT, 0, 99),))),
            "is not sent on channel",
            id="window the wrong way",
        ),
        pytest.param(
            event(1, 1, wire.Exited(0, None, Outcome.EXITED, 1, False, {Stream.OUTPUT: 1})),
            "ends at 1",
            id="exit short of the output",
        ),
    ],
)
def test_a_daemon_that_breaks_the_rules_is_refused(
    peer: Peer, broken: wire.Frame, complaint: str
) -> None:
    """A RemoteProtocolError, and other jobs aren't touched."""
    _, channel = peer.running()
    other, other_channel = peer.running()
    assert channel == 1
    peer.client.receive(data(1, Stream.OUTPUT, 0, b"ab"))
    with pytest.raises(RemoteProtocolError, match=complaint):
        peer.client.receive(broken)
    peer.client.receive(event(other_channel, 1, attrs.evolve(EXITED, finals={})))
    assert other.finished


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(data(1, Stream.OUTPUT, 2, b"cd"), id="more bytes"),
        pytest.param(data(1, Stream.OUTPUT, 2, b"", final=True), id="another end"),
        pytest.param(gap(1, Stream.OUTPUT, 2, 4), id="gap"),
        pytest.param(data(1, Stream.ERROR, 0, b"x"), id="another stream"),
        pytest.param(event(1, 2, EXITED), id="another exit"),
    ],
)
def test_nothing_comes_behind_the_final_offsets(peer: Peer, late: wire.Frame) -> None:
    """(6) The exit event says where the output ends; a daemon can't take that back."""
    _, channel = peer.running()
    peer.client.receive(data(channel, Stream.OUTPUT, 0, b"ab"))
    peer.client.receive(event(channel, 1, EXITED))
    with pytest.raises(RemoteProtocolError, match=r"after the exit|ends at|behind its end"):
        peer.client.receive(late)


def test_frames_for_a_channel_that_was_closed_are_dropped(peer: Peer) -> None:
    """What was under way when the application left is no error."""
    job, channel = peer.running()
    peer.client.close(job)
    assert peer.client.receive(data(channel, Stream.OUTPUT, 0, b"late")) == []
    assert peer.client.receive(control(channel, wire.Taken())) == []


# ---- cuts ----------------------------------------------------------------------------------------


def test_a_job_goes_on_where_it_was(peer: Peer) -> None:
    """(1) After an outage each stream continues at its offset; the spec is never sent again."""
    job, channel = peer.running()
    peer.client.receive(data(channel, Stream.OUTPUT, 0, b"abc"))
    job.input.append(b"0123456789")
    peer.client.activate(job)
    peer.heard()
    assert peer.client.receive(control(channel, wire.Away())) == [job]
    assert peer.status(DaemonState.AWAY) == [job]
    assert (job.state, job.channel) == (AttachState.WAITING, None)
    job.outputs[Stream.OUTPUT].take(2)
    job.input.append(b"more")
    peer.client.activate(job)
    assert peer.heard() == []
    peer.status(DaemonState.ONLINE)
    channel, message = peer.attach_heard()
    assert (channel, message.spec, message.generation) == (2, None, 1)
    assert cursor(message, Stream.EVENTS).offset == 1
    assert cursor(message, Stream.OUTPUT) == wire.Cursor(Stream.OUTPUT, 2 + WINDOW_BYTES, 3)
    assert peer.heard() == []
    states = (OPS_CREDIT, wire.StreamState(Stream.INPUT, received=6, max_offset=12))
    peer.attached(channel, streams=states, state=JobState.RUNNING)
    assert peer.heard() == [(2, Bytes(Stream.INPUT, 6, b"6789mo"))]
    assert job.job_state is JobState.RUNNING


def test_the_end_of_input_survives_a_cut(peer: Peer) -> None:
    """(7) The end is said again on the new channel, at the same place."""
    job, channel = peer.running()
    job.input.append(b"abc")
    job.input.finish()
    peer.client.activate(job)
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 0, b"abc", True))]
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    states = (OPS_CREDIT, wire.StreamState(Stream.INPUT, received=3, max_offset=3))
    peer.attached(channel, streams=states)
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 3, b"", True))]


def test_output_that_had_ended_may_end_again(peer: Peer) -> None:
    """A daemon says the end on each channel; what was complete stays so."""
    job, channel = peer.running()
    peer.client.receive(data(channel, Stream.OUTPUT, 0, b"abc", final=True))
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    peer.attached(channel)
    peer.client.receive(data(channel, Stream.OUTPUT, 3, final=True))
    peer.client.receive(event(channel, 1, EXITED))
    assert job.finished
    assert job.outputs[Stream.OUTPUT].take(99) == b"abc"


def test_what_was_taken_is_acknowledged_again_after_a_cut(peer: Peer) -> None:
    """(9) The ack may have been lost with the link; without it the daemon's buffer would stay full."""
    job, channel = peer.running()
    peer.client.receive(data(channel, Stream.OUTPUT, 0, bytes(wire.ACK_EVERY_BYTES)))
    job.outputs[Stream.OUTPUT].take(wire.ACK_EVERY_BYTES)
    peer.client.activate(job)
    assert len(peer.heard()) == 1
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    ((_, attach), (channel, window)) = peer.heard()
    assert isinstance(attach, wire.Attach)
    assert channel == 2
    assert window == wire.Window(
        (
            wire.StreamWindow(
                Stream.OUTPUT, wire.ACK_EVERY_BYTES, wire.ACK_EVERY_BYTES + WINDOW_BYTES
            ),
        )
    )
    peer.attached(2)
    assert peer.heard() == []


def test_a_start_that_was_not_confirmed_is_sent_again(peer: Peer) -> None:
    """(5) The same spec, id and instance: the daemon will know whether it had it."""
    job = peer.client.open("d", SPEC)
    job.input.append(b"abc")
    peer.heard()  # lost with the link
    peer.client.receive(control(1, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, again = peer.attach_heard()
    assert channel == 2
    assert (again.spec, again.instance, again.job_id) == (job.spec, "here", job.id)
    assert again.generation is None
    peer.attached(2)
    assert peer.heard() == [(2, Bytes(Stream.INPUT, 0, b"abc"))]


def test_a_restarted_daemon_runs_nothing_again(peer: Peer) -> None:
    """(5) What may have run on the former instance is lost; what was never sent goes to the new one."""
    job, _ = peer.running()
    peer.status(DaemonState.AWAY)
    waiting = peer.client.open("d", SPEC)
    peer.heard()
    assert set(peer.status(DaemonState.ONLINE, "another")) == {job, waiting}
    assert isinstance(job.error, DaemonGone)
    assert job.error.outcome_unknown
    assert (job.state, job.finished) == (AttachState.CLOSED, True)
    _, message = peer.attach_heard()
    assert (message.job_id, message.instance) == (waiting.id, "another")


def test_a_daemon_that_is_gone_takes_its_jobs_along(peer: Peer) -> None:
    """Jobs it had are lost; those it never had are told that nothing ran."""
    job, _ = peer.running()
    peer.status(DaemonState.AWAY)
    waiting = peer.client.open("d", SPEC)
    peer.status(DaemonState.GONE)
    assert isinstance(job.error, DaemonGone)
    assert job.error.outcome_unknown
    assert isinstance(waiting.error, DaemonGone)
    assert not waiting.error.outcome_unknown


def test_a_job_that_was_never_sent_goes_to_the_next_instance(peer: Peer) -> None:
    """It is bound to no instance yet, so it can't run twice."""
    peer.status(DaemonState.AWAY)
    waiting = peer.client.open("d", SPEC)
    peer.heard()
    peer.status(DaemonState.ONLINE, "another")
    assert peer.attach_heard()[1].job_id == waiting.id


def test_daemons_that_are_gone_take_no_memory(peer: Peer) -> None:
    """Sandboxes come and go by the thousand, each with an id of its own."""
    for n in range(100):
        for state in DaemonState:
            peer.client.receive(control(0, wire.DaemonStatus(f"{n}", state, "x")))
    assert set(peer.client.daemons) == {"d"}


def test_a_status_of_another_daemon_changes_nothing(peer: Peer) -> None:
    """Each job follows its own daemon."""
    job, _ = peer.running()
    assert peer.client.receive(control(0, wire.DaemonStatus("e", DaemonState.GONE, "x"))) == []
    assert job.state is AttachState.ATTACHED


def test_a_status_closes_channels_the_router_forgot_to(peer: Peer) -> None:
    """A daemon that is away has no channels, whatever was said before."""
    job, channel = peer.running()
    peer.heard()
    peer.status(DaemonState.AWAY)
    assert job.state is AttachState.WAITING
    assert peer.heard() == [(channel, wire.Detach())]


def test_a_lost_link_is_an_outage_like_any_other(peer: Peer) -> None:
    """When the link to the router is gone all jobs wait, and go on over the next one."""
    job, _ = peer.running()
    peer.client.close(peer.running()[0])
    stale = peer.client.scheduler
    assert peer.client.link_down() == [job]
    assert peer.client.scheduler is not stale
    assert (job.state, job.channel, peer.client.daemons) == (AttachState.WAITING, None, {})
    opened = peer.client.open("d", SPEC)
    assert peer.heard() == []
    peer.status(DaemonState.ONLINE)
    attaches = dict(peer.heard())
    assert set(attaches) == {1, 2}
    assert {message.job_id for message in attaches.values()} == {job.id, opened.id}


# ---- existing jobs -------------------------------------------------------------------------------


def existing(*, received: int = 5) -> tuple[wire.StreamState, ...]:
    """What a daemon says of a job that ran before this client came."""
    return (
        wire.StreamState(Stream.EVENTS, end=1),
        wire.StreamState(Stream.OUTPUT, base=3, floor=3, end=9, start=3),
        wire.StreamState(Stream.ERROR),
        wire.StreamState(Stream.OPS, received=2, max_offset=66),
        wire.StreamState(Stream.INPUT, received=received, max_offset=received + 100),
    )


def test_attach_begins_at_the_oldest_kept(peer: Peer) -> None:
    """A job that existed before us is joined where the daemon says, in both directions."""
    job = peer.client.attach("d", "theirs")
    job.input.append(b"abc")
    channel, message = peer.attach_heard()
    assert (message.spec, message.generation) == (None, None)
    assert {cursor.offset for cursor in message.cursors} == {None}
    peer.attached(channel, streams=existing(), generation=4)
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 5, b"abc"))]
    peer.client.receive(event(channel, 0, wire.Started(7)))
    peer.client.receive(data(channel, Stream.OUTPUT, 3, b"defghi"))
    assert job.outputs[Stream.OUTPUT].take(99) == b"defghi"
    assert job.started == wire.Started(7)
    assert job.generation == 4
    job.input.append(b"d")
    peer.client.activate(job)
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 8, b"d"))]


@pytest.mark.parametrize("chosen", [True, False])
def test_not_even_an_end_is_said_before_its_place_is_known(peer: Peer, chosen: bool) -> None:
    """(7) A stdin that was closed before the answer came ends behind what the job had got before."""
    client = peer.client
    job = client.open("d", SPEC, job_id="theirs") if chosen else client.attach("d", "theirs")
    job.input.finish()
    peer.client.activate(job)
    channel, _ = peer.attach_heard()
    peer.attached(channel, streams=existing())
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 5, b"", True))]


def test_attach_goes_on_where_it_is_told(peer: Peer) -> None:
    """With `since` the streams named there begin at these offsets; gaps tell what is gone."""
    job = peer.client.attach("d", "theirs", since={Stream.OUTPUT: 1})
    channel, message = peer.attach_heard()
    assert cursor(message, Stream.OUTPUT).offset == 1
    assert cursor(message, Stream.ERROR).offset is None
    streams = (wire.StreamState(Stream.OUTPUT, base=3, floor=3, end=9, start=1), *existing()[2:])
    peer.attached(channel, streams=streams)
    peer.client.receive(gap(channel, Stream.OUTPUT, 1, 3))
    peer.client.receive(data(channel, Stream.OUTPUT, 3, b"x"))
    log = job.outputs[Stream.OUTPUT]
    assert [log.take(9), log.take(9)] == [Gap(1, 3), b"x"]
    assert Skip(Stream.OUTPUT, 1, 3) == (Stream.OUTPUT, 1, 3)


def test_attach_far_into_a_stream_grants_credit_there(peer: Peer) -> None:
    """A client that joins late has a whole window from where it joins."""
    job = peer.client.attach("d", "theirs")
    channel, _ = peer.attach_heard()
    far = 10 * WINDOW_BYTES
    state = wire.StreamState(Stream.OUTPUT, base=far, floor=far, end=far + 9, start=far)
    peer.attached(channel, streams=(state, OPS_CREDIT, wire.StreamState(Stream.INPUT)))
    assert job.channel is not None
    assert all(each.log.received <= each.max_offset for each in job.channel.receive.values())
    ((_, window),) = peer.heard()
    assert window == wire.Window((wire.StreamWindow(Stream.OUTPUT, far, far + WINDOW_BYTES),))
    peer.client.receive(data(channel, Stream.OUTPUT, far, b"x" * 9))
    assert job.outputs[Stream.OUTPUT].take(99) == b"x" * 9


def test_viewers_grant_more_than_an_owner_is_ahead(peer: Peer) -> None:
    """The sender doesn't wait for them: what they have no credit for may be gone when they have."""
    job = peer.client.attach("d", "theirs", role=Role.VIEWER)
    channel, message = peer.attach_heard()
    assert cursor(message, Stream.OUTPUT).max_offset == VIEWER_WINDOW_BYTES
    assert VIEWER_WINDOW_BYTES >= WINDOW_BYTES + MOST_RING_BYTES
    peer.attached(channel, role=Role.VIEWER, streams=existing()[2:3])
    size = wire.MAX_DATA_BYTES
    peer.client.receive(data(channel, Stream.OUTPUT, 0, bytes(size)))
    job.outputs[Stream.OUTPUT].take(size)
    peer.client.activate(job)
    ((_, window),) = peer.heard()
    (entry,) = window.streams
    assert entry == wire.StreamWindow(Stream.OUTPUT, size, size + VIEWER_WINDOW_BYTES)


def test_viewers_send_nothing(peer: Peer) -> None:
    """A viewer only reads; its leaving ends no job."""
    job = peer.client.attach("d", "theirs", role=Role.VIEWER)
    channel, message = peer.attach_heard()
    assert message.role is Role.VIEWER
    peer.attached(channel, role=Role.VIEWER, streams=existing()[:3])
    job.ops.append(wire.encode_op(wire.Signal("KILL")))
    peer.client.activate(job)
    peer.client.end(job)
    assert peer.heard() == []
    peer.client.receive(data(channel, Stream.OUTPUT, 3, b"x"))
    peer.client.close(job)
    assert peer.heard() == [(channel, wire.Detach())]


def test_takeover_is_asked_for_until_it_was_granted(peer: Peer) -> None:
    """A client that owned the job once doesn't take it away from its successor later."""
    job = peer.client.attach("d", "theirs", takeover=True)
    for channel in (1, 2):
        assert peer.attach_heard()[1].takeover
        if channel == 1:
            peer.client.receive(control(1, wire.Away()))
            peer.status(DaemonState.ONLINE)
    peer.attached(2, streams=existing(), generation=2)
    peer.client.receive(control(2, wire.Away()))
    peer.status(DaemonState.ONLINE)
    _, message = peer.attach_heard()
    assert (message.takeover, message.generation, job.takeover) == (False, 2, False)


def test_starting_a_chosen_id_again_joins_the_job_that_runs(peer: Peer) -> None:
    """(5) An agent that was restarted asks for the same thing: its input goes on behind what came before."""
    job = peer.client.open("d", SPEC, job_id="chosen")
    channel, message = peer.attach_heard()
    assert message.spec == wire.encode_spec(SPEC)
    peer.attached(channel, streams=existing()[3:], generation=2)
    job.input.append(b"abc")
    job.ops.append(wire.encode_op(wire.Signal("INT")))
    peer.client.activate(job)
    assert peer.heard() == [
        (channel, wire.Signal("INT")),
        (channel, Bytes(Stream.INPUT, 5, b"abc")),
    ]
    assert job.ops.end == 3


def test_input_given_again_goes_on_where_the_daemon_is(peer: Peer) -> None:
    """The same call after a restart sends of the same input only what had not arrived."""
    job = peer.client.open("d", SPEC, job_id="chosen", input_capacity=None)
    job.input.append(b"0123456789")
    job.input.finish()
    channel, _ = peer.attach_heard()
    peer.attached(channel, streams=existing()[3:])
    assert peer.heard() == [(channel, Bytes(Stream.INPUT, 5, b"56789", True))]


@pytest.mark.parametrize("received", [2, 11])
def test_a_daemon_cannot_have_what_was_never_sent(peer: Peer, received: int) -> None:
    """On a resumed channel the daemon continues between what it acknowledged and what was sent."""
    job, channel = peer.running()
    job.input.append(b"0123456789")
    peer.client.activate(job)
    peer.heard()
    acked = wire.Window((wire.StreamWindow(Stream.INPUT, 3, 100_000),))
    peer.client.receive(control(channel, acked))
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    with pytest.raises(RemoteProtocolError, match="continues INPUT where we can't"):
        peer.attached(channel, streams=existing(received=received)[4:])


# ---- refusals ------------------------------------------------------------------------------------


ERRORS: dict[RefusedCode, type[SanddError]] = {
    RefusedCode.JOB_NOT_FOUND: JobNotFound,
    RefusedCode.ENDED: JobNotFound,
    RefusedCode.LOST: DaemonGone,
    RefusedCode.JOB_ID_CONFLICT: JobIdConflict,
    RefusedCode.TAKEN: JobTaken,
    RefusedCode.DAEMON_NOT_FOUND: DaemonNotFound,
    RefusedCode.BUSY: RequestRefused,
    RefusedCode.UNSUPPORTED: RequestRefused,
    RefusedCode.DENIED: RequestRefused,
    RefusedCode.POLICY_DENIED: PolicyDenied,
    RefusedCode.RATE_LIMITED: RateLimited,
    RefusedCode.POLICY_DENIED: PolicyDenied,
}


@pytest.mark.parametrize("code", RefusedCode)
def test_a_refusal_becomes_the_fitting_error(peer: Peer, code: RefusedCode) -> None:
    """The job is closed for good, and says why and for what."""
    job = peer.client.open("d", SPEC)
    channel, _ = peer.attach_heard()
    assert peer.refused(channel, code) == [job]
    assert (job.state, job.finished, peer.client.jobs) == (AttachState.CLOSED, True, {})
    assert type(job.error) is ERRORS[code]
    assert job.id in str(job.error)
    assert "because" in str(job.error)
    peer.client.end(job)
    peer.client.close(job)
    assert peer.heard() == []


def test_a_start_that_is_one_too_many_says_when_to_try_again(peer: Peer) -> None:
    """And whose limit it was; it never ran."""
    job = peer.client.open("d", SPEC)
    channel, _ = peer.attach_heard()
    refused = wire.Refused(RefusedCode.RATE_LIMITED, "because", 1.5, "tenant")
    peer.client.receive(control(channel, refused))
    assert isinstance(job.error, RateLimited)
    assert (job.error.scope, job.error.retry_after) == ("tenant", 1.5)
    assert peer.client.held_back == []


def test_a_start_that_was_sent_before_is_held_back_and_asked_for_again(peer: Peer) -> None:
    """It may run since the first time, so nobody may be told that it doesn't."""
    job = peer.client.open("d", SPEC)
    peer.attach_heard()
    peer.client.link_down()
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    refused = wire.Refused(RefusedCode.RATE_LIMITED, "because", 1.5, "daemon")
    peer.client.receive(control(channel, refused))
    assert (job.state, job.error) == (AttachState.WAITING, None)
    assert peer.client.held_back == [(job, 1.5)]
    assert peer.heard() == []
    peer.client.ask_again(job)
    channel, attach = peer.attach_heard()
    assert attach.spec is not None
    peer.client.ask_again(job)  # once is enough
    assert peer.heard() == []
    peer.attached(channel)
    assert job.confirmed
    peer.client.forget(job)
    peer.heard()
    peer.client.ask_again(job)  # it was left
    assert peer.heard() == []


DECLINED = (RefusedCode.DENIED, RefusedCode.POLICY_DENIED, RefusedCode.UNSUPPORTED)


def refused_after_a_cut(peer: Peer, code: RefusedCode) -> tuple[ClientJob, int]:
    """A job whose start was sent twice, and refused then; and the channel on which it is asked for."""
    job = peer.client.open("d", SPEC)
    peer.attach_heard()
    peer.client.link_down()
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    peer.client.receive(control(channel, wire.Refused(code, "because", policy_hash="abc")))
    channel, attach = peer.attach_heard()
    assert (attach.spec, attach.instance, attach.job_id) == (None, "here", job.id)
    return job, channel


@pytest.mark.parametrize("code", DECLINED)
def test_a_start_that_was_sent_before_and_is_refused_may_run(peer: Peer, code: RefusedCode) -> None:
    """A policy may have changed meanwhile. The daemon knows whether it does; then it goes on as any other."""
    job, channel = refused_after_a_cut(peer, code)
    peer.attached(channel, generation=2)
    assert (job.state, job.error, job.generation) == (AttachState.ATTACHED, None, 2)
    peer.heard()
    peer.client.end(job)
    assert peer.heard() == [(0, wire.End("d", job.id, None, peer.client.id))]


@pytest.mark.parametrize("code", DECLINED)
def test_a_start_that_was_sent_before_and_never_came_is_refused_as_it_was(
    peer: Peer, code: RefusedCode
) -> None:
    """By then it is true that nothing ran."""
    job, channel = refused_after_a_cut(peer, code)
    peer.refused(channel, RefusedCode.JOB_NOT_FOUND)
    assert isinstance(job.error, RequestRefused)
    assert "because" in str(job.error)
    if isinstance(job.error, PolicyDenied):
        assert job.error.policy_hash == "abc"
    assert peer.heard() == []


def test_a_chosen_id_is_not_asked_for_without_its_spec(peer: Peer) -> None:
    """It could be that of another job by now, which somebody else has started."""
    job = peer.client.open("d", SPEC, job_id="chosen")
    peer.attach_heard()
    peer.client.link_down()
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    peer.refused(channel, RefusedCode.DENIED)
    assert type(job.error) is RequestRefused
    assert peer.heard() == []


def test_who_asks_whether_a_job_runs_may_be_cut_off_again(peer: Peer) -> None:
    """It asks once more, and not for a start."""
    job, channel = refused_after_a_cut(peer, RefusedCode.DENIED)
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, attach = peer.attach_heard()
    assert attach.spec is None
    peer.refused(channel, RefusedCode.DENIED)
    assert type(job.error) is RequestRefused


def test_an_owner_that_was_displaced_learns_so(peer: Peer) -> None:
    """Taken closes the job here; it is neither ended nor asked for again."""
    job, channel = peer.running()
    peer.heard()
    assert peer.client.receive(control(channel, wire.Taken())) == [job]
    assert isinstance(job.error, JobTaken)
    peer.client.end(job)
    peer.status(DaemonState.ONLINE)
    assert peer.heard() == []


def test_an_attached_job_that_was_forgotten_is_closed(peer: Peer) -> None:
    """A job that somebody else ended is gone, whatever of it had arrived."""
    job, channel = peer.running()
    peer.refused(channel, RefusedCode.ENDED)
    assert isinstance(job.error, JobNotFound)


# ---- leaving -------------------------------------------------------------------------------------


def test_leaving_a_session_is_said_until_a_link_stands(peer: Peer) -> None:
    """It goes on, and its daemon need not keep for us what it shows; a cut may lose the word, so it is said again."""
    job = peer.client.open("d", wire.SessionSpec(detach=True))
    channel, _ = peer.attach_heard()
    peer.attached(channel, terminal=True, detached=True)
    peer.heard()
    peer.client.close(job)
    left = wire.End("d", job.id, client=peer.client.id, left=1)
    assert peer.heard() == [(channel, left)]
    peer.client.link_down()
    assert peer.heard() == [(0, left)]


def test_a_session_that_was_ended_or_given_up_is_not_left(peer: Peer) -> None:
    """The one is over, and whose the other is has not changed."""
    job = peer.client.open("d", wire.SessionSpec())
    channel, _ = peer.attach_heard()
    peer.attached(channel, terminal=True)
    peer.client.end(job)
    peer.client.close(job)
    other = peer.client.attach("d", "theirs")
    peer.attached(2, terminal=True, streams=existing())
    peer.client.give_up(other)
    said = [said for _, said in peer.heard() if not isinstance(said, wire.Attach)]
    assert said == [wire.End("d", job.id, client=peer.client.id), wire.Detach(), wire.Detach()]


def test_leaving_ends_the_job_in_our_own_name(peer: Peer) -> None:
    """End says who leaves, so that it can't hit another owner's job."""
    job, channel = peer.running()
    peer.heard()
    peer.client.end(job, 2.5)
    peer.client.close(job)
    assert peer.heard() == [
        (0, wire.End("d", job.id, 2.5, peer.client.id)),
        (channel, wire.Detach()),
    ]
    assert (job.state, job.error) == (AttachState.CLOSED, None)
    peer.client.close(job, DaemonGone("late"))
    assert isinstance(job.error, DaemonGone)


def test_what_was_never_sent_needs_no_end() -> None:
    """Nobody has heard of it."""
    peer = Peer(online=False)
    job = peer.client.open("d", SPEC)
    peer.client.end(job)
    peer.client.close(job)
    assert peer.heard() == []
    peer.status(DaemonState.ONLINE)
    assert peer.heard() == []


def test_end_of_a_job_whose_daemon_is_away_goes_to_the_router(peer: Peer) -> None:
    """The router keeps it for the daemon's return."""
    job, channel = peer.running()
    peer.client.receive(control(channel, wire.Away()))
    peer.client.end(job)
    assert peer.heard() == [(0, wire.End("d", job.id, None, peer.client.id))]


# ---- settled ids ---------------------------------------------------------------------------------


# ---- leaving a job that goes on -------------------------------------------------------------------


def test_we_do_not_take_a_job_over_from_ourselves_unasked(peer: Peer) -> None:
    """The daemon takes two blocks of one program for one client, so the client keeps them apart."""
    first, _ = peer.running()
    with pytest.raises(RequestRefused, match="takeover=True"):
        peer.client.attach("d", first.id)
    assert (list(peer.client.jobs), peer.heard()) == ([first], [])
    for options in ({"takeover": True}, {"role": Role.VIEWER}):
        assert peer.client.attach("d", first.id, **options) in peer.client.jobs  # type: ignore[arg-type]
    assert peer.client.attach("other", first.id).daemon_id == "other"
    peer.heard()
    other = Peer()
    viewer = other.client.attach("d", "theirs", role=Role.VIEWER)
    owner = other.client.attach("d", "theirs")
    other.client.close(owner)
    assert other.client.attach("d", "theirs") is not viewer


@pytest.mark.parametrize("attach", [True, False], ids=["attach", "open"])
def test_who_is_about_to_lose_a_job_to_another_block_does_not_end_it(
    peer: Peer, attach: bool
) -> None:
    """Both have one name for the daemon: the End of the one would end the job of the other."""
    job, _ = peer.running(job_id="chosen")
    rival = (
        peer.client.attach("d", "chosen", takeover=True)
        if attach
        else peer.client.open("d", SPEC, job_id="chosen")
    )
    channel, _ = peer.attach_heard()
    peer.client.end(job)
    assert peer.heard() == []
    peer.refused(channel, RefusedCode.DENIED)
    peer.client.end(job)  # it lost nothing after all
    assert peer.heard() == [(0, wire.End("d", "chosen", client=peer.client.id))]
    assert isinstance(rival.error, RequestRefused)


def test_a_takeover_that_is_given_up_takes_nothing(peer: Peer) -> None:
    """Who would have lost the job ends it as ever; nobody else would before its lease is over."""
    job, _ = peer.running(job_id="chosen")
    rival = peer.client.attach("d", "chosen", takeover=True)
    peer.heard()
    peer.client.give_up(rival)
    peer.heard()
    peer.client.end(job)
    assert peer.heard() == [(0, wire.End("d", "chosen", client=peer.client.id))]


def test_who_attached_is_caught_up_when_it_knows_what_had_happened(peer: Peer) -> None:
    """What is said of the job before that may be wrong: it has perhaps ended long ago."""
    job, channel = attached_to(peer, wire.StreamState(Stream.EVENTS, end=2))
    assert not job.caught_up
    peer.client.receive(event(channel, 0, wire.Started(7)))
    assert not job.caught_up
    peer.client.receive(event(channel, 1, attrs.evolve(EXITED, finals={})))
    assert job.caught_up
    peer.status(DaemonState.AWAY)
    assert not job.caught_up


def test_a_job_outlives_us_if_it_is_detached_or_we_only_look_on(peer: Peer) -> None:
    """The daemon says so with its first answer; after that it is for the owner to make it so, and to know."""
    job, channel = peer.running()
    assert not job.outlives_us
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    peer.attached(channel, detached=True)
    assert not job.outlives_us  # a request that was given up arrived after all
    job = peer.client.attach("d", "another")
    channel, _ = peer.attach_heard()
    peer.attached(channel, detached=True)
    assert job.outlives_us
    assert peer.client.attach("d", "theirs", role=Role.VIEWER).outlives_us


def test_what_was_sent_is_unflushed_until_it_is_acknowledged(peer: Peer) -> None:
    """Nothing sent, nothing to wait for; offsets of a former owner's input are none of ours."""
    job, channel = attached_to(peer, wire.StreamState(Stream.INPUT, received=5, max_offset=99))
    assert not job.unflushed
    job.input.append(b"abc")
    peer.client.activate(job)
    peer.heard()
    assert job.unflushed
    peer.client.receive(control(channel, wire.Window((wire.StreamWindow(Stream.INPUT, 8, 107),))))
    assert not job.unflushed
    job.ops.append(wire.encode_op(wire.DetachJob()))
    assert job.unflushed


def test_a_flush_waits_for_its_own_answer(peer: Peer) -> None:
    """An answer for less says nothing about the rest, and what is sent later is not waited for."""
    job, channel = peer.running()
    job.ops.append(wire.encode_op(wire.DetachJob()))
    peer.client.flush(job)
    assert (channel, wire.Flush(ops=1)) in peer.heard()
    job.input.append(b"abc")
    job.input.finish()
    peer.client.flush(job)
    assert (channel, wire.Flush(1, 3, True)) in peer.heard()
    peer.client.receive(control(channel, wire.Flush(ops=1)))
    assert job.flush == wire.Flush(1, 3, True)
    job.ops.append(wire.encode_op(wire.Signal("INT")))
    peer.client.receive(control(channel, wire.Flush(1, 3, True)))
    assert job.flush is None


def test_a_flush_is_asked_for_again_after_a_cut(peer: Peer) -> None:
    """The question went with its channel; the answer comes behind what is sent again."""
    job, channel = peer.running()
    job.input.append(b"abc")
    peer.client.flush(job)
    peer.heard()
    peer.client.receive(control(channel, wire.Away()))
    peer.client.flush(job)
    assert peer.heard() == []
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    peer.attached(channel)
    assert peer.heard() == [
        (channel, wire.Flush(input=3)),
        (channel, Bytes(Stream.INPUT, 0, b"abc")),
    ]
    peer.client.receive(control(channel, wire.Flush(input=3)))
    assert job.flush is None
    peer.client.receive(control(channel, wire.Away()))
    peer.status(DaemonState.ONLINE)
    channel, _ = peer.attach_heard()
    peer.attached(channel)
    assert wire.Flush(input=3) not in [said for _, said in peer.heard()]


def test_ids_are_settled_up_to_the_first_unconfirmed(peer: Peer) -> None:
    """(5) Below the lowest id that may still be started, none ever will be."""
    jobs = [peer.client.open("d", SPEC) for _ in range(3)]
    settled = [message.settled for _, message in peer.heard()]
    assert settled == [1, 1, 1]
    peer.attached(2)
    peer.client.open("d", SPEC)
    assert peer.attach_heard()[1].settled == 1
    peer.attached(1)
    peer.client.open("d", SPEC)
    assert peer.attach_heard()[1].settled == 3
    peer.refused(3, RefusedCode.DENIED)
    peer.client.close(jobs[0])
    peer.client.open("d", SPEC, job_id="chosen")
    assert [said.settled for _, said in peer.heard() if isinstance(said, wire.Attach)] == [4]


def test_ids_of_other_daemons_settle_on_their_own(peer: Peer) -> None:
    """A job that waits for another daemon holds nothing back here."""
    peer.client.open("elsewhere", SPEC)
    _, channel = peer.running()
    assert channel == 1
    peer.client.open("d", SPEC)
    assert peer.attach_heard()[1].settled == 3
    peer.attached(2)
    job = peer.client.attach("d", "theirs")
    assert peer.attach_heard()[1].settled == 4
    peer.client.close(job)


def test_jobs_print_as_what_they_are(peer: Peer) -> None:
    """A job in a log or a failed test is recognisable."""
    job = peer.client.open("d", SPEC, job_id="mine")
    assert repr(job) == "<ClientJob d/mine attaching>"
    assert peer.client.job_on(1) is job
    assert peer.client.job_on(2) is None
