"""The agent's own link: what it says to whom, and when it says what nobody waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from scripted import Bytes, control, data, drain, event

from sandd import wire
from sandd._core import commands
from sandd._core._errors import LocalProtocolError, SpawnFailed
from sandd._core.client_job import AttachState
from sandd._core.directory import Directory
from sandd._core.held_job import attached, started
from sandd._core.job_link import (
    DAEMONS_PER_TURN,
    FAREWELLS_AT_ONCE,
    LATE_SECONDS,
    LEAST_MARGIN,
    LEAVE_MARGIN,
    JobHandle,
)
from sandd._core.local_link import LocalLink
from sandd._core.process_handle import Process
from sandd._core.ring_room import RING_ROOM_BYTES
from sandd._core.router import Router
from sandd._core.session_handle import Session
from sandd._core.streams import VIEWER_WINDOW_BYTES, WINDOW_BYTES, Gap
from sandd.wire import Outcome, Role, Stream

if TYPE_CHECKING:
    from sandd._core.router_links import DaemonLink

SPEC = wire.CommandSpec(argv=(b"true",), stdin=False)
DETACHED = wire.CommandSpec(argv=(b"true",), stdin=False, detach=True)
DETACHED_SESSION = wire.SessionSpec(detach=True)
EXITED = wire.Exited(0, None, Outcome.EXITED, 1.0, pid=7)


class World:
    """A link, its router, and the router's end of a daemon's connection."""

    def __init__(self) -> None:
        self.router = Router()
        self.link = LocalLink(self.router, Directory(lambda: 0.0))
        self.daemon: DaemonLink = self.router.add_daemon("d", "here")
        self.link.flush()

    def start(self, spec: wire.Spec = SPEC, **options: Any) -> tuple[JobHandle, int]:
        """A job, and the channel that the daemon has of it."""
        handle = self.link.open("d", spec, **options)
        *_, (channel, message) = drain(self.daemon.scheduler)
        assert isinstance(message, wire.Attach)
        return handle, channel

    def end(self, channel: int) -> None:
        """The daemon says that the job has ended."""
        self.router.receive(self.daemon, control(channel, wire.Attached()))
        self.router.receive(self.daemon, event(channel, 0, EXITED))
        self.link.flush()

    def say(self, *frames: wire.Frame) -> None:
        """The daemon says that."""
        for frame in frames:
            self.router.receive(self.daemon, frame)
        self.link.flush()

    def attach(self, role: Role = Role.OWNER) -> tuple[JobHandle, int]:
        """A job of somebody else, and the channel that the daemon has of our asking for it."""
        handle = self.link.attach(
            "d", "theirs", role=role, takeover=False, since={}, kill_grace=1.0
        )
        ((channel, message),) = drain(self.daemon.scheduler)
        assert isinstance(message, wire.Attach)
        return handle, channel

    def heard(self) -> list[Any]:
        """What the daemon is told."""
        return [message for _, message in drain(self.daemon.scheduler)]

    @property
    def ends(self) -> list[str]:
        """The jobs that the daemon is told to end and forget."""
        return [m.job_id for _, m in drain(self.daemon.scheduler) if isinstance(m, wire.End)]


@pytest.fixture
def world() -> World:
    """One daemon, online."""
    return World()


TALKING = wire.CommandSpec(argv=(b"cat",))


def talk(world: World, handle: JobHandle, text: bytes) -> None:
    """More for its stdin."""
    handle.job.input.append(text)
    world.link.has_input(handle.job)


@pytest.mark.parametrize(
    ("spec", "window"),
    [
        pytest.param(wire.DownloadSpec(b"f"), wire.DownloadSpec.window, id="a download"),
        pytest.param(wire.UploadSpec(b"f"), WINDOW_BYTES, id="an upload"),
        pytest.param(wire.StatSpec(b"f"), WINDOW_BYTES, id="a question"),
        pytest.param(SPEC, WINDOW_BYTES, id="a command"),
    ],
)
async def test_a_download_may_send_as_much_as_its_daemon_holds(
    world: World, spec: wire.Spec, window: int
) -> None:
    """With less granted, each turn of a copy would wait for the one before."""
    world.link.open("d", spec)
    ((_, attach),) = drain(world.daemon.scheduler)
    assert isinstance(attach, wire.Attach)
    assert attach.output_credit == window


async def test_many_downloads_share_what_they_may_have_under_way(world: World) -> None:
    """What is beyond a command's is bounded for all of them together; and whoever ends leaves it to the next."""
    handles = [world.link.open("d", wire.DownloadSpec(b"f")) for _ in range(40)]
    windows = [handle.job.output_window for handle in handles]
    assert sum(windows) == len(handles) * WINDOW_BYTES + RING_ROOM_BYTES
    assert (windows[0], windows[-1]) == (wire.DownloadSpec.window, WINDOW_BYTES)
    with pytest.raises(LocalProtocolError, match="too large"):
        world.link.open("d", wire.DownloadSpec(b"f", include=("x" * wire.MAX_CONTROL_BYTES,)))
    looking_on = world.link.attach(
        "d", "theirs", role=Role.VIEWER, takeover=False, since={}, kill_grace=1.0
    )
    assert looking_on.job.output_window > WINDOW_BYTES
    world.link.drop(looking_on)  # it had nothing of that
    for _ in range(2):
        world.link.drop(handles[0])
    again = [world.link.open("d", wire.DownloadSpec(b"f")).job.output_window for _ in range(2)]
    assert again == [wire.DownloadSpec.window, WINDOW_BYTES]


def test_input_is_drawn_when_the_daemons_link_takes_it(world: World) -> None:
    """Until then it is nowhere but in the job's log, and what has come together goes together."""
    handle, channel = world.start(TALKING)
    cursor = handle.job.channel.send[Stream.INPUT]  # type: ignore[union-attr]
    talk(world, handle, b"one ")
    talk(world, handle, b"two")
    assert (cursor.sent, world.link.client.scheduler.pending) == (0, False)
    assert drain(world.daemon.scheduler) == [(channel, Bytes(Stream.INPUT, 0, b"one two"))]
    assert cursor.sent == 7
    traffic = world.daemon.routes[channel].traffic
    assert traffic.to_daemons == 7
    handle.job.input.finish()
    world.link.has_input(handle.job)
    assert drain(world.daemon.scheduler) == [(channel, Bytes(Stream.INPUT, 7, b"", final=True))]


def test_what_waits_for_the_link_goes_before_what_is_drawn(world: World) -> None:
    """However it came there: each byte once, and in order."""
    handle, channel = world.start(TALKING)
    handle.job.input.append(b"one ")
    world.link.changed(handle.job)
    talk(world, handle, b"two")
    said = [message for on, message in drain(world.daemon.scheduler) if on == channel]
    assert said == [Bytes(Stream.INPUT, 0, b"one "), Bytes(Stream.INPUT, 4, b"two")]


def test_input_is_drawn_within_the_daemons_credit(world: World) -> None:
    """What is beyond it goes when there is more."""
    handle, channel = world.start(TALKING)
    talk(world, handle, bytes(wire.INITIAL_INPUT_BYTES) + b"rest")
    sent = sum(len(message.body) for _, message in drain(world.daemon.scheduler))
    assert sent == wire.INITIAL_INPUT_BYTES
    talk(world, handle, b"!")
    assert drain(world.daemon.scheduler) == []
    more = wire.StreamWindow(Stream.INPUT, 0, 2 * wire.INITIAL_INPUT_BYTES)
    world.say(control(channel, wire.Attached()), control(channel, wire.Window((more,))))
    assert drain(world.daemon.scheduler) == [(channel, Bytes(Stream.INPUT, sent, b"rest!"))]


def test_nothing_is_drawn_from_a_job_that_was_left(world: World) -> None:
    """Its End may go a little later, and then it has none to overtake."""
    handle, _ = world.start(TALKING)
    talk(world, handle, b"unheard")
    world.link.client.forget(handle.job)
    assert drain(world.daemon.scheduler) == []
    world.link.say_farewells()
    ((_, message),) = drain(world.daemon.scheduler)
    assert isinstance(message, wire.End)
    assert world.daemon.routes == {}


def test_input_for_a_daemon_that_is_away_waits(world: World) -> None:
    """It goes out on the channel that the job gets then."""
    handle, _ = world.start(TALKING)
    world.router.remove_daemon(world.daemon, wire.DaemonState.AWAY)
    world.link.flush()
    talk(world, handle, b"later")
    world.daemon = world.router.add_daemon("d", "here")
    world.link.flush()
    ((channel, attach),) = drain(world.daemon.scheduler)
    assert isinstance(attach, wire.Attach)
    world.say(control(channel, wire.Attached()))
    assert drain(world.daemon.scheduler) == [(channel, Bytes(Stream.INPUT, 0, b"later"))]


def test_what_comes_is_handed_over_at_once_unless_something_waits(world: World) -> None:
    """The answer to a start and its output; but nothing is heard before what came ahead of it."""
    handle, channel = world.start(TALKING)
    log = handle.job.outputs[Stream.OUTPUT]
    world.router.add_daemon("another", "there")  # which is news
    world.router.receive(world.daemon, control(channel, wire.Attached()))
    world.router.receive(world.daemon, data(channel, Stream.OUTPUT, 0, b"behind "))
    assert (handle.job.state, log.received) == (AttachState.ATTACHING, 0)
    world.link.flush()
    assert (handle.job.state, log.received) == (AttachState.ATTACHED, 7)
    world.router.receive(world.daemon, data(channel, Stream.OUTPUT, 7, b"at once"))
    assert log.received == 14
    assert log.take(100) == b"behind at once"
    handle, channel = world.start(TALKING)
    world.router.receive(world.daemon, control(channel, wire.Attached()))
    assert handle.job.state is AttachState.ATTACHED


async def test_farewells_go_together_a_little_later(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """To jobs that have ended: nobody waits, and each by itself would take the processor from the next job."""
    started = [world.start() for _ in range(3)]
    for handle, channel in started:
        world.end(channel)
        assert handle.complete
        handle.forget()
        assert handle.closed
    assert world.link.job_count == 0
    assert world.ends == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.link.run)
        await trio.sleep(LATE_SECONDS / 2)
        assert world.ends == []
        await trio.sleep(LATE_SECONDS)
        nursery.cancel_scope.cancel()
    assert sorted(world.ends) == sorted(handle.job.id for handle, _ in started)
    assert all(handle.job.state is AttachState.CLOSED for handle, _ in started)
    assert not world.link.client.jobs


async def test_many_farewells_to_one_daemon_wait_no_longer(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Said all at one time, they would hold up whoever waits by then."""

    def finish(count: int) -> list[str]:
        started = [world.start() for _ in range(count)]
        for handle, channel in started:
            world.end(channel)
            handle.forget()
        return sorted(handle.job.id for handle, _ in started)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.link.run)
        gone = finish(FAREWELLS_AT_ONCE)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(world.ends) == gone
        few = finish(FAREWELLS_AT_ONCE - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert world.ends == []
        await trio.sleep(2 * LATE_SECONDS)
        assert sorted(world.ends) == few
        nursery.cancel_scope.cancel()


async def test_farewells_to_very_many_daemons_let_others_run(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """In between: to thousands they are a second of work."""
    count = 2 * DAEMONS_PER_TURN + 1
    for number in range(count):
        world.daemon = world.router.add_daemon(f"d{number}", "here")
        world.link.flush()
        handle = world.link.open(f"d{number}", SPEC)
        ((channel, _),) = drain(world.daemon.scheduler)
        world.end(channel)
        handle.forget()
    left = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.link.run)
        await trio.sleep(LATE_SECONDS)
        while len(world.link.client.jobs):
            left.append(len(world.link.client.jobs))
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert any(each < count for each in left)


def test_a_farewell_is_said_once(world: World) -> None:
    """However often the job is forgotten."""
    handle, channel = world.start()
    world.end(channel)
    handle.forget()
    handle.forget()
    world.link.say_farewells()
    assert world.ends == [handle.job.id]


def test_what_may_yet_run_is_taken_back_at_once(world: World) -> None:
    """A job that has not ended, be its daemon there or away."""
    handle, _ = world.start()
    handle.forget()
    world.link.say_farewells()
    assert world.ends == [handle.job.id]
    world.router.remove_daemon(world.daemon, wire.DaemonState.AWAY)
    waiting = world.link.open("d", SPEC)
    waiting.forget()
    assert waiting.job not in world.link.client.jobs


def test_an_id_of_ones_own_is_free_again_in_order(world: World) -> None:
    """Its farewell goes before whatever is started under it next."""
    handle, channel = world.start(job_id="mine")
    world.end(channel)
    handle.forget()
    world.link.open("d", SPEC, job_id="mine")
    heard = [type(message) for _, message in drain(world.daemon.scheduler)]
    assert heard == [wire.End, wire.Attach]


@pytest.mark.parametrize("how", ["request", "attach", "close"])
async def test_who_could_tell_the_difference_brings_farewells_along(world: World, how: str) -> None:
    """A request that lists jobs, an attach to one, and the end of the link itself."""
    handle, channel = world.start()
    world.end(channel)
    handle.forget()
    match how:
        case "request":
            world.link.open("d", wire.JobsSpec())
        case "attach":
            world.link.attach(
                "d", "other", role=wire.Role.OWNER, takeover=False, since={}, kill_grace=1.0
            )
        case "close":
            world.link.close()
    assert handle.job.id in world.ends


async def test_a_request_comes_behind_the_farewells_before_it(world: World) -> None:
    """However many: what was left is not there any more for who asks what there is."""
    started = [world.start() for _ in range(300)]
    for handle, channel in started:
        world.end(channel)
        handle.forget()
    drain(world.daemon.scheduler)
    world.link.open("d", wire.JobsSpec())
    said = [message for _, message in drain(world.daemon.scheduler)]
    assert [type(message) for message in said] == [*[wire.End] * 300, wire.Attach]


# ---- what nobody has read is not acknowledged ---------------------------------------------------


def running_session(world: World) -> tuple[Session, int]:
    """One that is detached, and the channel that the daemon has of it."""
    handle, channel = world.start(DETACHED_SESSION)
    world.say(
        control(channel, wire.Attached(detached=True, terminal=True)),
        event(channel, 0, wire.Started(7)),
    )
    return Session(handle, kill_grace=1.0), channel


async def test_closing_a_session_that_goes_on_acknowledges_nothing_unread(world: World) -> None:
    """Neither what had arrived, nor what arrives while what was typed is on its way: it is the next one's."""
    session, channel = running_session(world)
    world.say(data(channel, Stream.OUTPUT, 0, b"x" * 100_000))
    assert await session.receive_some(10) == b"x" * 10
    await session.send_all(b"typed")
    assert world.heard() == [Bytes(Stream.INPUT, 0, b"typed")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.aclose)
        await trio.testing.wait_all_tasks_blocked()
        (flush,) = world.heard()
        assert flush == wire.Flush(0, 5)
        world.say(data(channel, Stream.OUTPUT, 100_000, b"y" * 100_000))
        assert world.heard() == []
        world.say(control(channel, flush))
    (left,) = world.heard()
    assert left == wire.End(
        "d", session.job_id, client=world.link.client.id, tenant="default", left=1
    )
    assert session.offset == 10
    with pytest.raises(trio.ClosedResourceError):
        await session.receive_some()
    assert session.offset == 10
    await session.aclose()
    assert world.heard() == []


async def test_closing_a_session_tells_who_reads_at_once(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """However long it takes until what was typed is there."""
    session, _ = running_session(world)
    await session.send_all(b"typed")
    told = trio.Event()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.receive_some()
        told.set()

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(session.aclose)
            await told.wait()
            assert not session._handle.closed
            (flush,) = [m for m in world.heard() if isinstance(m, wire.Flush)]
            world.say(control(1, flush))


async def test_closing_a_session_that_ends_throws_the_rest_away(world: World) -> None:
    """Its program may have much to say to the hang-up, and nobody is going to read it."""
    handle, channel = world.start(wire.SessionSpec())
    world.say(control(channel, wire.Attached(terminal=True)), event(channel, 0, wire.Started(7)))
    session = Session(handle, kill_grace=1.0)
    world.say(data(channel, Stream.OUTPUT, 0, b"x" * wire.ACK_EVERY_BYTES))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.aclose)
        await trio.testing.wait_all_tasks_blocked()
        end, acknowledged = world.heard()
        assert [(w.stream, w.ack) for w in acknowledged.streams] == [
            (Stream.OUTPUT, wire.ACK_EVERY_BYTES)
        ]
        assert isinstance(end, wire.End)
        world.say(event(channel, 1, wire.Exited(None, 1, Outcome.SIGNALED, 1.0)))


@pytest.mark.parametrize(
    ("role", "granted"), [(Role.OWNER, WINDOW_BYTES), (Role.VIEWER, VIEWER_WINDOW_BYTES)]
)
async def test_attaching_acknowledges_nothing_before_the_block_is_entered(
    world: World, role: Role, granted: int
) -> None:
    """Where it begins may be far behind what others have still to read: cancelled, it leaves that as it was."""
    far = 10 * WINDOW_BYTES
    events = wire.StreamState(Stream.EVENTS, end=1)
    output = wire.StreamState(Stream.OUTPUT, end=far + 9, start=far)

    def answer(channel: int) -> None:
        streams = (events, output)
        world.say(control(channel, wire.Attached(role, detached=True, streams=streams)))

    handle, channel = world.attach(role)
    with trio.CancelScope() as scope:
        answer(channel)
        credit = wire.StreamWindow(Stream.OUTPUT, 0, far + granted)
        assert world.heard() == [wire.Window((credit,))]
        scope.cancel()
        async with attached(handle, kill_grace=1.0):
            raise AssertionError
    assert world.heard() == [wire.Detach()]

    handle, channel = world.attach(role)
    answer(channel)
    world.say(event(channel, 0, wire.Started(7)), data(channel, Stream.OUTPUT, far, b"x" * 9))
    assert world.heard() == [wire.Window((credit,))]
    async with attached(handle, kill_grace=1.0):
        window = wire.StreamWindow(Stream.OUTPUT, far, far + granted)
        assert world.heard() == [wire.Window((window,))]


@pytest.mark.parametrize("has_ended", [False, True])
async def test_leaving_waits_for_what_a_tap_has_yet_to_see(
    world: World, has_ended: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A recording has the last words, too: news of the end overtakes them, and nobody reads any more."""
    handle, channel = world.start(wire.SessionSpec())
    seen: list[bytes | Gap] = []
    handle.tap(Stream.OUTPUT, seen.append)
    world.say(control(channel, wire.Attached(terminal=True)), event(channel, 0, wire.Started(7)))
    size = wire.MAX_DATA_BYTES
    for offset in range(0, WINDOW_BYTES, size):  # all that was granted
        world.say(data(channel, Stream.OUTPUT, offset, b"x" * size))
    end = event(
        channel,
        1,
        wire.Exited(0, None, Outcome.EXITED, 1.0, finals={Stream.OUTPUT: WINDOW_BYTES + 4}),
    )
    if has_ended:
        world.say(end)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.leave, 1.0)
            await trio.testing.wait_all_tasks_blocked()
            said = world.heard()
            assert any(isinstance(message, wire.End) for message in said) is not has_ended
            assert [m.streams[0].ack for m in said if isinstance(m, wire.Window)] == [WINDOW_BYTES]
            if not has_ended:
                world.say(end)
                await trio.testing.wait_all_tasks_blocked()
            world.say(data(channel, Stream.OUTPUT, WINDOW_BYTES, b"last"))
    assert seen[-1] == b"last"
    assert handle.closed


async def test_leaving_twice_waits_once(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """For what a tap has yet to see, if that never comes."""
    handle, channel = world.start(wire.SessionSpec())
    handle.tap(Stream.OUTPUT, lambda _: None)
    world.say(
        control(channel, wire.Attached(terminal=True)),
        event(channel, 0, wire.Exited(0, None, Outcome.EXITED, 1.0, finals={Stream.OUTPUT: 4})),
    )
    await handle.leave(1.0)
    assert trio.current_time() == 1.0 + LEAVE_MARGIN
    await handle.leave(1.0)
    assert trio.current_time() == 1.0 + LEAVE_MARGIN


@pytest.mark.parametrize(
    ("lasted", "waited"), [(0.1, LEAST_MARGIN), (3.0, 3.0), (99.0, LEAVE_MARGIN)]
)
async def test_a_request_is_waited_for_as_long_as_it_lasted(
    world: World, autojump_clock: trio.testing.MockClock, lasted: float, waited: float
) -> None:
    """Who gave it a tenth of a second isn't kept for ten more by a daemon that stands still."""
    handle, _ = world.start(wire.DownloadSpec(b"/file"))
    await trio.sleep(lasted)
    await handle.leave(0.0)
    assert trio.current_time() == pytest.approx(lasted + waited)
    assert handle.closed


async def test_leaving_waits_for_no_tap_of_a_daemon_that_is_away(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Leaving returns at once, whatever a recording misses by that."""
    handle, channel = world.start(wire.SessionSpec())
    handle.tap(Stream.OUTPUT, lambda _: None)
    world.say(
        control(channel, wire.Attached(terminal=True)),
        event(channel, 0, wire.Exited(0, None, Outcome.EXITED, 1.0, finals={Stream.OUTPUT: 4})),
    )
    world.router.remove_daemon(world.daemon, wire.DaemonState.AWAY)
    world.link.flush()
    with trio.fail_after(1):
        await handle.leave(1.0)
    assert handle.closed


# ---- who waits is told that the block was left --------------------------------------------------


@pytest.mark.parametrize("how", ["forget", "detach", "give_up"])
async def test_whoever_waits_for_a_job_that_is_let_go_of_is_told(
    world: World, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """In another task than that of the block: else it would wait for ever, as nothing comes any more."""
    handle, channel = world.start(wire.CommandSpec(argv=(b"cat",)))
    world.say(control(channel, wire.Attached()), event(channel, 0, wire.Started(7)))
    process = Process(handle, stdin=True, stderr=True, kill_grace=1.0)
    room = handle.job.input.room

    async def receive() -> None:
        with pytest.raises(trio.BrokenResourceError, match="was left"):
            await process.stdout.receive_some()

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await process.stdin.send_all(bytes(room + 1))

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError, match="was left"):
            await process.wait()

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            for task in (receive, send, wait):
                nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            getattr(handle, how)()


async def test_detach_that_comes_to_nothing_says_so(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The block was left before the daemon could have known."""
    handle, channel = world.start()
    world.say(control(channel, wire.Attached()), event(channel, 0, wire.Started(7)))
    process = Process(handle, stdin=False, stderr=True, kill_grace=1.0)

    async def detach() -> None:
        with pytest.raises(trio.ClosedResourceError, match="was left"):
            await process.detach()

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(detach)
            await trio.testing.wait_all_tasks_blocked()
            handle.forget()
    assert not handle.job.detached


# ---- the controller closes ----------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DETACHED, DETACHED_SESSION])
@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_detached_job_that_nobody_has_heard_of_is_ended(
    world: World, spec: wire.Spec, is_answered: bool
) -> None:
    """When the controller closes before the block is entered: else it would run for ever, unknown."""
    handle, channel = world.start(spec)
    if is_answered:
        world.say(control(channel, wire.Attached(detached=True)))
        assert handle.job.outlives_us
    world.link.close()
    assert world.ends == [handle.job.id]


async def test_a_detached_job_in_its_block_goes_on(world: World) -> None:
    """When the controller closes: who has it is told, and knows its id."""
    handle, channel = world.start(DETACHED)
    world.say(control(channel, wire.Attached(detached=True)), event(channel, 0, wire.Started(7)))
    async with started(handle, timeout=None, kill_grace=1.0):
        world.link.close()
        assert world.heard() == [wire.Detach()]
        assert handle.closed


@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_job_that_is_being_attached_to_is_left_as_it_is(
    world: World, is_answered: bool
) -> None:
    """When the controller closes: it is none of ours yet, and may be detached for all we know."""
    handle, channel = world.attach()
    if is_answered:
        states = (wire.StreamState(Stream.EVENTS, end=1),)
        world.say(control(channel, wire.Attached(detached=True, streams=states)))
        assert not handle.job.caught_up
    waited = False

    async def enter() -> None:
        nonlocal waited
        with pytest.raises(trio.ClosedResourceError):
            async with attached(handle, kill_grace=1.0):
                raise AssertionError
        waited = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked()
        world.link.close()
    assert waited
    assert world.heard() == [wire.Detach()]


# ---- one command for many daemons ---------------------------------------------------------------


def world_of_many(world: World) -> dict[str, DaemonLink]:
    """Two more daemons."""
    others = {name: world.router.add_daemon(name, "there") for name in ("e", "f")}
    world.link.flush()
    return {"d": world.daemon, **others}


@pytest.mark.parametrize("timeout", [None, 50.0])
async def test_a_broadcast_that_is_cancelled_leaves_all_at_once(
    world: World, timeout: float | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Whichever it waits for; and waits for them beside each other, none longer than for one."""
    daemons = world_of_many(world)
    prepared = commands.prepare("make", timeout=timeout, kill_grace=2.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commands.run_on_each, world.link, daemons, prepared)
        await trio.testing.wait_all_tasks_blocked()
        for daemon in daemons.values():
            assert [type(said) for _, said in drain(daemon.scheduler)] == [wire.Attach]
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        for daemon in daemons.values():
            ((_, end),) = drain(daemon.scheduler)
            assert isinstance(end, wire.End)
    assert trio.current_time() == 2.0 + LEAVE_MARGIN
    assert world.link.job_count == 0


@pytest.mark.parametrize("timeout", [None, 50.0])
async def test_a_broadcast_has_an_answer_of_each_in_whatever_order_they_come(
    world: World, timeout: float | None, autojump_clock: trio.testing.MockClock
) -> None:
    """One that can't run it takes nothing from the others."""
    daemons = world_of_many(world)
    answers: dict[str, Any] = {}

    async def broadcast() -> None:
        prepared = commands.prepare("make", timeout=timeout)
        answers.update(await commands.run_on_each(world.link, daemons, prepared))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broadcast)
        await trio.testing.wait_all_tasks_blocked()
        for name, daemon in reversed(daemons.items()):
            ((channel, _),) = drain(daemon.scheduler)
            failed = wire.Failed(wire.FailedCode.SPAWN, "no room")
            world.router.receive(daemon, event(channel, 0, failed if name == "e" else EXITED))
            world.link.flush()
            await trio.testing.wait_all_tasks_blocked()
    assert list(answers) == ["d", "e", "f"]
    assert answers["d"].success
    assert answers["f"].success
    assert isinstance(answers["e"], SpawnFailed)
    assert world.link.job_count == 0


async def test_a_broadcast_that_can_go_no_further_leaves_what_was_not_sent_yet(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Commands go out some at a time; those before one that fails are started and ended, or neither."""
    names = [f"d{number}" for number in range(2 * commands.STARTS_AT_ONCE)]
    daemons = {name: world.router.add_daemon(name, "there") for name in names}
    world.link.flush()
    last = names[commands.STARTS_AT_ONCE + 2]
    open_job = world.link.open

    def open_until(daemon_id: str, *args: Any, **options: Any) -> JobHandle:
        if daemon_id == last:
            raise trio.ClosedResourceError("of a sudden")
        return open_job(daemon_id, *args, **options)

    monkeypatch.setattr(world.link, "open", open_until)
    with pytest.raises(trio.ClosedResourceError, match="of a sudden"):
        await commands.run_on_each(world.link, names, commands.prepare("make", kill_grace=2.0))
    for name, daemon in daemons.items():
        told = [type(said) for _, said in drain(daemon.scheduler)]
        assert told == ([wire.Attach, wire.End] if names.index(name) < names.index(last) else [])
    assert world.link.job_count == 0


async def test_a_broadcast_goes_to_all_though_one_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the last of those that go together, or stands between them."""
    names = [f"d{number}" for number in range(2 * commands.STARTS_AT_ONCE)]
    daemons = {name: world.router.add_daemon(name, "there") for name in names}
    world.link.flush()
    refused = {names[1], names[commands.STARTS_AT_ONCE - 1], names[-1]}
    open_job = world.link.open

    def open_or_refuse(daemon_id: str, *args: Any, **options: Any) -> JobHandle:
        if daemon_id in refused:
            raise SpawnFailed(7, "too large")
        return open_job(daemon_id, *args, **options)

    monkeypatch.setattr(world.link, "open", open_or_refuse)
    answers: dict[str, Any] = {}

    async def broadcast() -> None:
        prepared = commands.prepare("make")
        answers.update(await commands.run_on_each(world.link, names, prepared))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broadcast)
        await trio.testing.wait_all_tasks_blocked()
        for name, daemon in daemons.items():
            for channel, _ in drain(daemon.scheduler):
                world.router.receive(daemon, event(channel, 0, EXITED))
            assert (name in refused) is not bool(daemon.routes)
        world.link.flush()
    assert list(answers) == names
    assert {name for name in names if isinstance(answers[name], SpawnFailed)} == refused
    assert all(answers[name].success for name in names if name not in refused)
