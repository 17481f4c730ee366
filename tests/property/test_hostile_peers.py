"""Peers that say anything at all: one type of error comes of it, and nobody else is harmed."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from scripted import Bytes, control, cursors, data, drain
from strategies import CONTROLS, FRAMES, messages

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.client import Client
from sandd._core.job import DaemonLink
from sandd._core.jobs import Effect, JobTable
from sandd._core.router import Router
from sandd.wire import DaemonState, JobState, Role, Stream

SPEC = wire.encode_spec(wire.CommandSpec((b"x",)))
ATTACH = wire.Attach("d", "honest", "honest", cursors(), SPEC, "here")

ATTACHES = st.builds(
    lambda message, **known: b"".join(
        wire.encode_control(known.pop("channel"), attrs.evolve(message, **known))
    ),
    messages(wire.Attach),
    channel=st.integers(0, 6),
    spec=st.sampled_from([SPEC, None, b"?"]),
    daemon_id=st.sampled_from(["d", "e"]),
    job_id=st.sampled_from(["a", "b", "0123456789abcdef.1"]),
    instance=st.sampled_from(["here", ""]),
    cursors=st.sampled_from([cursors(), cursors(output=None), cursors(output=3), ()]),
)
"""Attaches that come through, to jobs that may exist."""
HOSTILE = st.lists(st.one_of(FRAMES, ATTACHES), max_size=25).map(
    lambda parts: [next(iter(wire.decode_frames(part))) for part in parts]
)


@given(HOSTILE)
def test_a_daemon_survives_any_frames(frames: list[wire.Frame]) -> None:
    """A link that breaks the rules is closed; every job there is was started, and others go on."""
    table = JobTable("here")
    honest, hostile = DaemonLink(), DaemonLink()
    ((job, _),) = table.receive(honest, control(1, attrs.evolve(ATTACH, tenant="t")), 0.0)
    job.started(1)
    drain(honest.scheduler)
    started = {job}
    for frame in frames:
        try:
            effects = table.receive(hostile, frame, 0.0)
        except RemoteProtocolError:
            table.close_link(hostile, 0.0)
            hostile = DaemonLink()
            continue
        for other, effect in effects:
            if effect is Effect.START:
                assert other not in started, "(5)"
                started.add(other)
            while effect is Effect.OPS and other.next_op() is not None:
                pass  # what was accepted can be read
        assert set(table.jobs.values()) <= started, "a job nobody was told to start"
        list(drain(hostile.scheduler))
    table.close_link(hostile, 0.0)
    assert not hostile.attachments
    assert drain(honest.scheduler) == []
    table.receive(honest, data(1, Stream.INPUT, 0, b"in"), 0.0)
    assert job.take_input(9) == b"in"
    job.write(Stream.OUTPUT, b"out")
    assert drain(honest.scheduler) == [(1, Bytes(Stream.OUTPUT, 0, b"out"))]


@given(HOSTILE, HOSTILE)
def test_a_router_survives_any_frames(
    from_client: list[wire.Frame], from_daemon: list[wire.Frame]
) -> None:
    """Client or daemon, whoever breaks the rules is closed alone; no channel of theirs is left."""
    router = Router()
    daemon, other_daemon = router.add_daemon("d", "here"), router.add_daemon("e", "here")
    honest, hostile = router.add_client(), router.add_client()
    router.receive(honest, control(1, ATTACH))
    drain(honest.scheduler)
    for frame in from_client:
        try:
            router.receive(hostile, frame)
        except RemoteProtocolError:
            router.remove_client(hostile)
            hostile = router.add_client()
    for frame in from_daemon:
        try:
            router.receive(other_daemon, frame)
        except RemoteProtocolError:
            router.remove_daemon(other_daemon, DaemonState.AWAY)
            other_daemon = router.add_daemon("e", "here")
    assert {channel for channel, _ in drain(honest.scheduler)} <= {0}
    router.remove_client(hostile)
    router.remove_daemon(other_daemon, DaemonState.GONE)
    assert list(honest.routes) == [1]
    assert len(daemon.routes) == 1
    drain(daemon.scheduler)
    drain(honest.scheduler)
    (number,) = daemon.routes
    router.receive(honest, data(1, Stream.INPUT, 0, b"in"))
    assert drain(daemon.scheduler) == [(number, Bytes(Stream.INPUT, 0, b"in"))]
    router.receive(daemon, data(number, Stream.OUTPUT, 0, b"out"))
    assert drain(honest.scheduler) == [(1, Bytes(Stream.OUTPUT, 0, b"out"))]


ANSWERS = st.builds(
    lambda channel, message: b"".join(wire.encode_control(channel, message)),
    st.sampled_from([1, 3]),
    CONTROLS.filter(lambda message: not isinstance(message, wire.DaemonStatus)),
)


@given(st.lists(st.one_of(FRAMES, ANSWERS), max_size=25))
def test_a_client_survives_any_frames(parts: list[bytes]) -> None:
    """A daemon that breaks the rules spoils its own job, and no other of the same client."""
    client = Client()
    client.receive(control(0, wire.DaemonStatus("d", DaemonState.ONLINE, "here")))
    spoilt, honest = (client.open("d", wire.CommandSpec((b"x",))) for _ in range(2))
    states = (wire.StreamState(Stream.OPS, max_offset=64), wire.StreamState(Stream.INPUT))
    attached = wire.Attached(Role.OWNER, 1, JobState.RUNNING, states)
    client.receive(control(2, attached))
    for part in parts:
        (frame,) = wire.decode_frames(part)
        if frame.channel == 2:
            continue
        try:
            client.receive(frame)
        except RemoteProtocolError as error:
            broken = client.job_on(frame.channel)
            if broken is not None:
                client.end(broken)
                client.close(broken, error)
        for log in spoilt.outputs.values():
            log.take(100)
    client.receive(data(2, Stream.OUTPUT, 0, b"out"))
    assert honest.outputs[Stream.OUTPUT].take(9) == b"out"
    assert honest.error is None
    client.close(spoilt)
    client.close(honest)
    drain(client.scheduler)
    assert not client.jobs
    assert client.job_on(1) is client.job_on(2) is None
