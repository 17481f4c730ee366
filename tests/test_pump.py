"""`Pump` over a connection that a test plays: order, heartbeats, farewells, and how a link ends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing
from attrs import define, field

from sandd import RemoteProtocolError, wire
from sandd._core._errors import ConnectionLost
from sandd._core.link import OWN_LAG, WRITE_STALL
from sandd._core.pace import FIRST_BYTES, LEAST_BYTES, MOST_BYTES, SLOW_SECONDS
from sandd._core.pump import (
    ALWAYS,
    CROWD_SECONDS,
    FRAMES_PER_READ,
    FRAMES_PER_TURN,
    NEVER,
    Pump,
    receive_control,
    send_control,
)
from sandd._core.scheduler import MAX_CONTROL_BACKLOG, Scheduler
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sized

    from sandd._core.transport import Connection


@define(eq=False)
class FakeConnection:
    """What a pump needs of a connection, in memory; the test is the peer."""

    sent: list[bytes] = field(factory=list)
    at_once: list[bytes] = field(factory=list)
    """Those of `sent` that were handed over without waiting."""
    takes_at_once: bool = True
    is_at_rest: bool = False
    has_unsent: bool = False
    """The kernel left a part of the latest message for later."""
    flushes: int = 0
    bytes_received: int = 0
    reads_all_at_once: bool = False
    """All that was said came with one read."""
    write_pending_since: float | None = None
    last_write_progress: float = 0.0
    goodbye_seconds: list[float] = field(factory=list)
    """For each `aclose`, how long the peer would have had to answer."""
    unsent_limits: list[int] = field(factory=list)
    _gate: trio.Event | None = None
    _incoming: trio.MemorySendChannel[bytes | Exception] = field(init=False)
    _outgoing: trio.MemoryReceiveChannel[bytes | Exception] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._incoming, self._outgoing = trio.open_memory_channel[bytes | Exception](100)

    @property
    def line(self) -> FakeConnection:
        """What the pump looks at."""
        return self

    # -- what the test does

    def say(self, *frames: wire.EncodedFrame) -> None:
        """The peer sends a message of these frames."""
        self._incoming.send_nowait(b"".join(part for frame in frames for part in frame))

    def say_bytes(self, message: bytes) -> None:
        """The peer sends this message."""
        self._incoming.send_nowait(message)

    def end(self, error: Exception) -> None:
        """The connection is over."""
        self._incoming.send_nowait(error)

    def block(self) -> None:
        """From now on the socket takes nothing."""
        self._gate = trio.Event()

    def unblock(self) -> None:
        """It takes everything again."""
        if self._gate is not None:
            self._gate.set()
        self._gate = None

    @property
    def controls(self) -> list[wire.Control | wire.Unknown]:
        """All control messages sent so far."""
        frames = [frame for message in self.sent for frame in wire.decode_frames(message)]
        return [
            wire.decode_control(frame) for frame in frames if frame.type is wire.FrameType.CONTROL
        ]

    # -- what the pump does

    def limit_unsent(self, count: int) -> None:
        """See `Connection`."""
        self.unsent_limits.append(count)

    def rest(self) -> None:
        """See `Connection`."""
        self.is_at_rest = True

    def stir(self) -> None:
        """See `Connection`."""
        self.is_at_rest = False

    async def aclose(self, code: int, *, timeout: float) -> None:
        """See `Connection`."""
        self.goodbye_seconds.append(timeout)

    async def flush(self) -> None:
        """See `Connection`."""
        self.flushes += 1
        self.has_unsent = False

    async def send_message(self, *pieces: wire.Buffer) -> None:
        """See `Connection`."""
        message = b"".join(pieces)
        await trio.lowlevel.checkpoint()
        if self._gate is not None:
            await self._gate.wait()
        self.sent.append(message)

    def send_message_nowait(self, *pieces: wire.Buffer) -> bool:
        """See `Connection`."""
        message = b"".join(pieces)
        if not self.takes_at_once or self._gate is not None:
            return False
        self.sent.append(message)
        self.at_once.append(message)
        return True

    async def receive_message(self) -> bytes:
        """See `Connection`."""
        message = await self._outgoing.receive()
        if isinstance(message, Exception):
            raise message
        if not self.reads_all_at_once:
            self.bytes_received += len(message)
        return message

    async def deliver_messages(
        self, receive: Callable[[bytes], bool], go_on: Callable[[], bool]
    ) -> None:
        """See `Connection`."""
        while True:
            done = receive(await self.receive_message())
            while not done:
                await trio.lowlevel.checkpoint()
                done = go_on()


@define(eq=False)
class Bench:
    """A running pump, and everything around it."""

    connection: FakeConnection
    scheduler: Scheduler
    pump: Pump
    frames: list[wire.Frame]
    turns: list[int]
    """How many frames had come at each end of a message."""
    outcome: list[BaseException]
    numbers_given: list[int] = field(factory=list)

    def schedule(self, number: int) -> None:
        """Give the pump a small control message to send."""
        self.numbers_given.append(number)
        self.scheduler.control(wire.encode_control(0, wire.Ping(number)))
        self.pump.wake()

    def bulk(self, size: int) -> None:
        """Give the pump a frame of so many bytes to send."""
        self.scheduler.control((bytes(9), bytes(size)))
        self.pump.wake()

    @property
    def numbers(self) -> list[int]:
        """Of the pings sent."""
        return [each.number for each in self.connection.controls if isinstance(each, wire.Ping)]

    async def over(self) -> BaseException:
        """How `run` ended."""
        with trio.fail_after(1000):
            while not self.outcome:
                await trio.sleep(0.01)
        return self.outcome[0]


@asynccontextmanager
async def opened(
    heartbeat: float = NEVER,
    dead_after: float = 1e6,
    on_frame: Callable[[wire.Frame], None] | None = None,
    may_answer: Callable[[], bool] = lambda: True,
    expecting: Sized = ALWAYS,
) -> AsyncIterator[Bench]:
    """A pump that runs while the block lasts; its timers keep still, unless asked otherwise."""
    connection, scheduler = FakeConnection(), Scheduler()
    frames: list[wire.Frame] = []
    turns: list[int] = []
    pump = Pump(
        cast("Connection", connection),
        scheduler,
        on_frame or frames.append,
        heartbeat=heartbeat,
        dead_after=dead_after,
        after_message=lambda: turns.append(len(frames)),
        may_answer=may_answer,
        expecting=expecting,
    )
    bench = Bench(connection, scheduler, pump, frames, turns, [])

    async def run() -> None:
        try:
            await pump.run()
        except (ConnectionLost, RemoteProtocolError) as error:
            bench.outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        yield bench
        nursery.cancel_scope.cancel()


# ---- sending ------------------------------------------------------------------------------------


async def test_a_message_goes_out_at_once() -> None:
    """Before `wake` returns, as nothing is on the way before it."""
    async with opened() as bench:
        bench.schedule(1)
        assert bench.numbers == [1]
        assert len(bench.connection.at_once) == 1
        assert bench.pump.bytes_sent == len(bench.connection.sent[0])


async def test_what_follows_soon_shares_a_message(mock_clock: trio.testing.MockClock) -> None:
    """In a crowd batching is worth more; the order is kept."""
    async with opened() as bench:
        mock_clock.jump(1.0)
        for number in range(5):
            bench.schedule(number)
        assert bench.numbers == [0]
        await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [0, 1, 2, 3, 4]
        assert len(bench.connection.sent) == 2
        mock_clock.jump(CROWD_SECONDS)
        bench.schedule(5)
        assert bench.numbers == [0, 1, 2, 3, 4, 5]


async def test_a_writer_with_nothing_to_do_is_not_woken(mock_clock: trio.testing.MockClock) -> None:
    """What went at once leaves it nothing, unless the kernel didn't take all of it."""
    async with opened() as bench:
        before = bench.connection.flushes
        for number in range(3):
            mock_clock.jump(1.0)
            bench.schedule(number)
            await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [0, 1, 2]
        assert bench.connection.flushes == before
        mock_clock.jump(1.0)
        bench.connection.has_unsent = True
        bench.schedule(3)
        await trio.testing.wait_all_tasks_blocked()
        assert not bench.connection.has_unsent


async def test_what_goes_at_once_is_learned_from(mock_clock: trio.testing.MockClock) -> None:
    """Messages grow where the kernel takes all of them, and shrink where it keeps the writer waiting for a part."""
    async with opened() as bench:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):  # one says nothing: it went where nothing had been waiting yet
            mock_clock.jump(1.0)
            bench.bulk(FIRST_BYTES)
        assert bench.scheduler.batch_bytes == 2 * FIRST_BYTES
        mock_clock.jump(1.0)
        bench.connection.has_unsent = True
        bench.bulk(2 * FIRST_BYTES)
        assert len(bench.connection.at_once) == 3
        mock_clock.jump(SLOW_SECONDS + 0.1)  # before the writer has flushed it
        await trio.testing.wait_all_tasks_blocked()
        assert bench.scheduler.batch_bytes == FIRST_BYTES
        assert bench.connection.unsent_limits[-1] == FIRST_BYTES


async def test_what_could_not_go_at_once_goes_first_and_once() -> None:
    """A message taken from the scheduler is never lost, repeated or overtaken."""
    async with opened() as bench:
        bench.connection.takes_at_once = False
        bench.schedule(1)
        bench.schedule(2)
        assert bench.connection.sent == []
        await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [1, 2]
        assert bench.pump.bytes_sent == sum(map(len, bench.connection.sent))


async def test_what_is_woken_by_a_pull_goes_behind_it(mock_clock: trio.testing.MockClock) -> None:
    """Asking for a message may give others something to say, and these may wake the same pump."""
    async with opened() as bench:
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(CROWD_SECONDS)
        bench.pump._after_pull = lambda: bench.schedule(2) if 2 not in bench.numbers_given else None
        bench.schedule(1)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [1, 2]


async def test_what_comes_while_the_writer_finds_nothing_is_sent(
    mock_clock: trio.testing.MockClock,
) -> None:
    """It comes by the very look that found nothing."""
    async with opened() as bench:
        await trio.testing.wait_all_tasks_blocked()
        bench.pump._after_pull = lambda: bench.schedule(2) if 2 not in bench.numbers_given else None
        # In a crowd the writer looks, and what it finds then is nothing.
        bench.pump._crowd_until = trio.current_time() + 1.0
        bench.pump.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [2]


async def test_what_comes_of_a_look_that_found_nothing_outlives_the_writer(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A writer that has been told to end, in this very turn, doesn't take the word of it for its own end."""
    async with opened() as bench:
        bench.connection.takes_at_once = False
        bench.schedule(1)
        await trio.testing.wait_all_tasks_blocked()
        bench.connection.takes_at_once = True
        mock_clock.jump(CROWD_SECONDS)
        assert bench.pump._writer is not None
        bench.pump._writer.rest()
        bench.pump._writer.rest()
        bench.pump._after_pull = lambda: bench.schedule(2) if 2 not in bench.numbers_given else None
        bench.pump.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [1, 2]


async def test_a_blocked_socket_holds_back_and_loses_nothing() -> None:
    """What is scheduled meanwhile follows in order."""
    async with opened() as bench:
        bench.connection.block()
        for number in range(4):
            bench.schedule(number)
            await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == []
        bench.connection.unblock()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.numbers == [0, 1, 2, 3]


async def test_messages_grow_with_what_the_line_takes() -> None:
    """They begin small, and the kernel is held to as much: nothing is known of the line yet."""
    async with opened() as bench:
        assert bench.connection.unsent_limits == [FIRST_BYTES]
        for _ in range(40):
            bench.scheduler.control((bytes(9), bytes(100_000)))
        bench.pump.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.scheduler.batch_bytes == MOST_BYTES
        assert bench.connection.unsent_limits == [FIRST_BYTES << n for n in range(7)]
        assert len(bench.connection.sent[0]) == 100_009
        assert max(map(len, bench.connection.sent)) > MOST_BYTES


async def test_messages_shrink_on_a_line_that_is_slow(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Down to a few KiB, so that others get a word in."""
    async with opened() as bench:
        for _ in range(4):
            bench.connection.block()
            bench.scheduler.control((bytes(9), bytes(100_000)))
            bench.pump.wake()
            await trio.sleep(SLOW_SECONDS + 0.1)
            bench.connection.unblock()
            await trio.testing.wait_all_tasks_blocked()
        assert bench.scheduler.batch_bytes == LEAST_BYTES
        assert bench.connection.unsent_limits == [FIRST_BYTES, LEAST_BYTES]


async def test_waking_before_it_runs_is_remembered() -> None:
    """What was scheduled before the first turn is sent in it."""
    connection, scheduler = FakeConnection(), Scheduler()
    pump = Pump(
        cast("Connection", connection), scheduler, lambda _: None, heartbeat=NEVER, dead_after=1e6
    )
    scheduler.control(wire.encode_control(0, wire.Ping(1)))
    pump.wake()
    assert connection.sent == []
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run)
            await trio.testing.wait_all_tasks_blocked()
            assert connection.controls == [wire.Ping(1)]
            nursery.cancel_scope.cancel()


# ---- draining -----------------------------------------------------------------------------------


async def test_drained_means_handed_to_the_socket() -> None:
    """Everything scheduled before, not merely taken from the scheduler."""
    async with opened() as bench:
        bench.connection.block()
        bench.schedule(1)
        done = trio.Event()

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def drain() -> None:
                await bench.pump.drained()
                assert bench.numbers == [1]
                done.set()

            await trio.testing.wait_all_tasks_blocked()
            assert not done.is_set()
            bench.connection.unblock()
        await bench.pump.drained()


async def test_what_a_look_has_brought_is_not_drained_before_it_is_sent(
    mock_clock: trio.testing.MockClock,
) -> None:
    """The look found nothing itself, and the writer's task is made for what it brought."""
    async with opened() as bench:
        mock_clock.jump(CROWD_SECONDS)
        bench.pump._after_pull = lambda: bench.schedule(2) if 2 not in bench.numbers_given else None
        bench.connection.block()
        bench.pump.wake()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.pump.drained)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            bench.connection.unblock()
        assert bench.numbers == [2]


@pytest.mark.parametrize("moment", ["before", "during", "parked"])
async def test_a_link_that_is_over_is_drained(moment: str) -> None:
    """Nothing more will be sent, so nobody waits for it: not even one that was about to be."""
    with trio.fail_after(5):
        async with opened() as bench:
            if moment == "during":
                bench.connection.block()
                bench.schedule(1)
            async with trio.open_nursery() as nursery:
                if moment != "before":
                    nursery.start_soon(bench.pump.drained)
                    await trio.testing.wait_all_tasks_blocked()
                bench.pump.close("enough")
                await bench.over()
            bench.schedule(2)
            await bench.pump.drained()


# ---- receiving ----------------------------------------------------------------------------------


async def test_frames_are_handed_over_in_order_and_each_message_is_followed_up() -> None:
    """`after_message` comes once a message, behind its last frame."""
    async with opened() as bench:
        first, second = (wire.encode_data(n, Stream.OUTPUT, 0, b"x") for n in (1, 2))
        bench.connection.say(first, second)
        bench.connection.say(first)
        bench.connection.say()
        await trio.testing.wait_all_tasks_blocked()
        assert [frame.channel for frame in bench.frames] == [1, 2, 1]
        assert bench.turns == [2, 3, 3]
        assert bench.pump.bytes_received == 3 * len(b"".join(first))


async def test_a_message_of_many_frames_is_taken_in_turns() -> None:
    """Others run in between; its frames stay in order, and the next message behind them."""
    count = 5 * FRAMES_PER_TURN + 7
    async with opened() as bench:
        offsets = [*range(count), 1_000_000]
        data = [wire.encode_data(1, Stream.OUTPUT, offset, b"") for offset in offsets]
        bench.connection.say(*data[:-1])
        bench.connection.say(data[-1])
        await trio.testing.wait_all_tasks_blocked()
        assert [wire.decode_data(frame).offset for frame in bench.frames] == offsets
        assert bench.turns == [*range(FRAMES_PER_TURN, count, FRAMES_PER_TURN), count, count + 1]


async def test_many_messages_are_taken_in_turns() -> None:
    """Of those that came at once others run after as many frames as they have, or as there are messages without any."""
    each = FRAMES_PER_TURN - 1
    count = FRAMES_PER_READ // each + 1
    async with opened() as bench:
        bench.connection.reads_all_at_once = True
        for _ in range(count + 1):
            bench.connection.say(*[wire.encode_data(1, Stream.OUTPUT, 0, b"")] * each)
        await trio.testing.wait_all_tasks_blocked()
        turns = [each * number for number in range(1, count + 2)]
        # Once, a turn is others': nothing more is taken, and it is looked whether anything is to be said.
        assert bench.turns == [*turns[:count], turns[count - 1], turns[count]]
        before = len(bench.turns)
        for _ in range(FRAMES_PER_READ):
            bench.connection.say()
            await trio.testing.wait_all_tasks_blocked()
        assert len(bench.turns) == before + FRAMES_PER_READ + 1


async def test_messages_that_come_one_after_the_other_are_taken_as_they_come() -> None:
    """However many there have been: nobody had to wait for them."""
    count = FRAMES_PER_READ + 10
    async with opened() as bench:
        for _ in range(count):
            bench.connection.say(wire.encode_data(1, Stream.OUTPUT, 0, b""))
            await trio.testing.wait_all_tasks_blocked()
        assert bench.turns == list(range(1, count + 1))


async def test_a_bad_frame_among_many_ends_the_link() -> None:
    """Though it is met in a later turn than the message came in."""
    data = wire.encode_data(1, Stream.OUTPUT, 0, b"")
    async with opened() as bench:
        bench.connection.say_bytes(b"".join(data) * (FRAMES_PER_TURN + 3) + b"\xff" * 20)
        assert isinstance(await bench.over(), RemoteProtocolError)
        assert len(bench.frames) == FRAMES_PER_TURN + 3


async def test_a_ping_is_answered_with_its_number() -> None:
    """By itself, and not handed on."""
    async with opened() as bench:
        bench.connection.say(wire.encode_control(0, wire.Ping(77)))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.connection.controls == [wire.Pong(77)]
        assert bench.frames == []


async def test_pings_that_come_together_are_answered_once() -> None:
    """By the number of the latest: a flood of them costs no flood of answers."""
    async with opened() as bench:
        pings = [wire.encode_control(0, wire.Ping(number)) for number in range(1, 101)]
        bench.connection.say(*pings)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.connection.controls == [wire.Pong(100)]


@pytest.mark.parametrize("takes_at_once", [True, False])
async def test_a_ping_by_itself_is_answered_before_what_comes_later(takes_at_once: bool) -> None:
    """At once, or by the writer; and what is said meanwhile is behind the answer."""
    async with opened() as bench:
        bench.connection.takes_at_once = takes_at_once
        for number in (1, 2):
            bench.connection.say(wire.encode_control(0, wire.Ping(number)))
            await trio.testing.wait_all_tasks_blocked()
            bench.pump.say(wire.Ping(number + 10))
            await trio.testing.wait_all_tasks_blocked()
        assert bench.connection.controls == [
            wire.Pong(1),
            wire.Ping(11),
            wire.Pong(2),
            wire.Ping(12),
        ]
        assert not bench.turns  # nobody was handed anything


@pytest.mark.parametrize("takes_at_once", [True, False])
async def test_a_link_rests_from_a_ping_on_while_nothing_is_expected(takes_at_once: bool) -> None:
    """Whatever is said to the peer ends that, unless it is an answer; and so it does where nobody could be told."""
    expecting = {"a job"}
    async with opened(expecting=expecting) as bench:
        connection = bench.connection
        connection.takes_at_once = takes_at_once

        async def hear(*frames: wire.EncodedFrame) -> bool:
            connection.say(*frames)
            await trio.testing.wait_all_tasks_blocked()
            return connection.is_at_rest

        ping = wire.encode_control(0, wire.Ping(1))
        assert not await hear(ping), "an answer is expected"
        expecting.clear()
        assert not await hear(wire.encode_control(0, wire.Pong(0))), "it may have more to say"
        for _ in range(2):
            assert await hear(ping)
            assert await hear(ping)
            bench.schedule(1)
            assert not connection.is_at_rest, "before the peer can have heard of it"
            await trio.testing.wait_all_tasks_blocked()
            assert not connection.is_at_rest
        assert await hear(ping)
        connection.block()
        connection.say(ping)
        bench.schedule(1)
        assert not connection.is_at_rest
        connection.unblock()


async def test_a_link_of_which_nothing_is_expected_rests_from_the_start() -> None:
    """Not from its first heartbeat on: of thousands that come together each would wait for it by itself."""
    async with opened(expecting=()) as bench:
        assert bench.connection.is_at_rest
        bench.schedule(1)
        assert not bench.connection.is_at_rest
    async with opened(expecting=("a job",)) as bench:
        assert not bench.connection.is_at_rest


async def test_a_link_of_which_anything_may_be_expected_never_rests() -> None:
    """As an operator's, and the daemon's end of one."""
    async with opened() as bench:
        for number in range(3):
            bench.connection.say(wire.encode_control(0, wire.Ping(number)))
            await trio.testing.wait_all_tasks_blocked()
            assert not bench.connection.is_at_rest


async def test_a_peer_that_pings_and_reads_nothing_has_one_answer_waiting() -> None:
    """The latest, ahead of what else waits for it."""
    async with opened() as bench:
        bench.connection.block()
        bench.schedule(1)
        await trio.testing.wait_all_tasks_blocked()
        bench.schedule(2)
        for number in range(1, 50):
            bench.connection.say(wire.encode_control(0, wire.Ping(number)))
            await trio.testing.wait_all_tasks_blocked()
        bench.connection.unblock()
        await trio.testing.wait_all_tasks_blocked()
        assert [c for c in bench.connection.controls if isinstance(c, wire.Pong)] == [wire.Pong(49)]


async def test_an_answer_waits_until_it_may_be_given() -> None:
    """It says that all before it is safe: who is asked knows when that is so."""
    async with opened(may_answer=lambda: False) as bench:
        bench.connection.say(wire.encode_control(0, wire.Ping(7)))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.connection.controls == []
        for _ in range(2):
            bench.pump.answer()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.connection.controls == [wire.Pong(7)]


async def test_pinging_returns_with_the_answer() -> None:
    """Any number of tasks may wait for one, and a pong that nobody waits for is nothing."""
    async with opened() as bench:
        bench.connection.say(wire.encode_control(0, wire.Pong(9)))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.pump.ping)
            nursery.start_soon(bench.pump.ping)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2
            bench.connection.say(wire.encode_control(0, wire.Pong(bench.numbers[-1])))
        assert bench.outcome == []


async def test_a_late_answer_to_an_earlier_ping_answers_no_later_one() -> None:
    """On a slow line it may have been said by somebody who has died since; nor does one to no ping at all."""
    async with opened() as bench:
        with trio.move_on_after(0.01):
            await bench.pump.ping()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.pump.ping)
            await trio.testing.wait_all_tasks_blocked()
            first, second = bench.numbers
            for number in (first, second + 1, 2**62):
                bench.connection.say(wire.encode_control(0, wire.Pong(number)))
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1
            bench.connection.say(wire.encode_control(0, wire.Pong(second)))
        assert bench.outcome == []


async def test_pinging_a_link_that_is_over_is_an_error() -> None:
    """At once, also for those who wait already."""
    with trio.fail_after(5):
        async with opened() as bench:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def ping() -> None:
                    with pytest.raises(ConnectionLost, match="enough"):
                        await bench.pump.ping()

                await trio.testing.wait_all_tasks_blocked()
                bench.pump.close("enough")
            with pytest.raises(ConnectionLost, match="enough"):
                await bench.pump.ping()


# ---- how it ends --------------------------------------------------------------------------------


async def test_a_farewell_ends_the_link_and_is_kept() -> None:
    """What stood before it in the message counts; what stands behind it doesn't."""
    async with opened() as bench:
        data = wire.encode_data(1, Stream.OUTPUT, 0, b"x")
        bench.connection.say(data, wire.encode_control(0, wire.Goodbye("see you", 3.0)), data)
        error = await bench.over()
        assert isinstance(error, ConnectionLost)
        assert "see you" in str(error)
        assert bench.pump.goodbye == wire.Goodbye("see you", 3.0)
        assert len(bench.frames) == 1
        assert bench.turns == [1]


async def test_a_bad_frame_ends_the_link_with_the_breach() -> None:
    """RemoteProtocolError, as itself; what stood before it counts."""
    async with opened() as bench:
        data = wire.encode_data(1, Stream.OUTPUT, 0, b"x")
        bench.connection.say_bytes(b"".join(data) + b"\xff" * 20)
        assert isinstance(await bench.over(), RemoteProtocolError)
        assert bench.turns == [1]


async def test_a_breach_that_the_handler_finds_ends_the_link() -> None:
    """As one that the pump finds."""

    def refuse(_frame: wire.Frame) -> None:
        raise RemoteProtocolError("not on my channel")

    async with opened(on_frame=refuse) as bench:
        bench.connection.say(wire.encode_data(1, Stream.OUTPUT, 0, b"x"))
        assert "not on my channel" in str(await bench.over())


async def test_a_mistake_of_ours_costs_the_link_and_not_the_program() -> None:
    """It is logged with its traceback, and the link comes back by itself."""

    def crash(_frame: wire.Frame) -> None:
        raise ZeroDivisionError

    async with opened(on_frame=crash) as bench:
        bench.connection.say(wire.encode_data(1, Stream.OUTPUT, 0, b"x"))
        error = await bench.over()
        assert isinstance(error, ConnectionLost)
        assert "ZeroDivisionError" in str(error)


async def test_the_end_of_the_connection_is_told_as_it_was() -> None:
    """The very error, from whichever task met it."""
    error = ConnectionLost("reset")
    async with opened() as bench:
        bench.connection.end(error)
        assert await bench.over() is error
        assert bench.connection.goodbye_seconds == [], "whoever has the connection closes it"


async def test_closed_by_us_it_says_why() -> None:
    """The first reason counts."""
    async with opened() as bench:
        bench.pump.close("superseded")
        bench.pump.close("later")
        assert str(await bench.over()) == "superseded"


async def test_cancelled_it_is_cancelled() -> None:
    """Cancellation from outside is no loss of the connection."""
    connection = cast("Connection", FakeConnection())
    pump = Pump(connection, Scheduler(), lambda _: None, heartbeat=NEVER, dead_after=1e6)
    with trio.move_on_after(0.01) as scope:
        await pump.run()
    assert scope.cancelled_caught


# ---- time ---------------------------------------------------------------------------------------


async def test_silence_is_met_with_pings_and_then_with_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A ping after each heartbeat of silence; dead after `dead_after` without a word."""
    async with opened(heartbeat=10, dead_after=35) as bench:
        await trio.sleep(9)
        assert bench.numbers == []
        await trio.sleep(25)
        assert bench.numbers == [1, 2, 3]
        assert bench.outcome == []
        await trio.sleep(5)
        assert "nothing heard" in str(bench.outcome[0])
        assert bench.connection.goodbye_seconds == [0.0], "who is dead answers no goodbye"


async def test_any_word_keeps_a_link_alive_and_spares_the_ping(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Traffic is heartbeat enough."""
    async with opened(heartbeat=10, dead_after=35) as bench:
        for _ in range(30):
            await trio.sleep(8)
            bench.connection.say(wire.encode_control(0, wire.Pong(1)))
        assert bench.numbers == []
        assert bench.outcome == []


async def test_a_part_of_a_message_is_a_word(autojump_clock: trio.testing.MockClock) -> None:
    """On a line that has become slow a large message takes longer than a dead peer is waited for."""
    async with opened(heartbeat=10, dead_after=35) as bench:
        for _ in range(100):
            await trio.sleep(3)
            bench.connection.bytes_received += 1000
        assert (bench.numbers, bench.outcome) == ([], [])
        await trio.sleep(39)
        assert "nothing heard" in str(bench.outcome[0])


async def test_whoever_takes_a_long_message_is_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its answer to a ping comes behind that; but a message that nobody has begun to take is no sign of life."""
    async with opened(heartbeat=10, dead_after=35) as bench:
        for _ in range(30):
            await trio.sleep(3)
            now = trio.current_time()
            bench.connection.write_pending_since = bench.connection.last_write_progress = now
        assert bench.outcome == []
        bench.connection.write_pending_since = None
        await trio.sleep(30)
        bench.connection.write_pending_since = trio.current_time()
        assert bench.outcome == []
        await trio.sleep(9)
        assert "nothing heard" in str(bench.outcome[0])


async def test_the_side_that_only_answers_never_pings(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It counts the silence all the same."""
    async with opened(heartbeat=NEVER, dead_after=35) as bench:
        await trio.sleep(34)
        assert (bench.numbers, bench.outcome) == ([], [])
        await trio.sleep(5)
        assert len(bench.outcome) == 1


async def test_a_peer_that_takes_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However much it says: a write that gets nowhere for WRITE_STALL seconds is the end."""
    async with opened(heartbeat=10, dead_after=35) as bench:
        bench.connection.write_pending_since = trio.current_time()
        for _ in range(int(WRITE_STALL) - 2):
            await trio.sleep(1)
            bench.connection.say(wire.encode_control(0, wire.Pong(1)))
        assert bench.outcome == []
        await trio.sleep(4)
        assert "took no byte" in str(bench.outcome[0])
        assert bench.connection.goodbye_seconds == [0.0]


async def test_a_peer_that_lets_control_messages_pile_up_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Memory is bounded, whoever is at the other end."""
    async with opened(heartbeat=10, dead_after=35) as bench:
        bench.connection.block()
        large = (bytes(9), bytes(MAX_CONTROL_BACKLOG // 2 + 1))
        bench.scheduler.control(large)
        bench.scheduler.control(large)
        await trio.sleep(3)
        assert "does not read" in str(bench.outcome[0])


async def test_that_is_noticed_when_it_is_said() -> None:
    """Not only when the timer looks: until then everybody would go on talking to it."""
    async with opened() as bench:
        bench.connection.block()
        large = (bytes(9), bytes(MAX_CONTROL_BACKLOG // 2 + 1))
        bench.scheduler.control(large)
        bench.scheduler.control(large)
        bench.pump.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert "does not read" in str(bench.outcome[0])


@pytest.mark.parametrize(("dead_after", "stood"), [(45.0, 300.0), (45.0, 46.0), (0.8, 2.0)])
async def test_our_own_standing_still_is_not_the_peers_silence(
    mock_clock: trio.testing.MockClock, dead_after: float, stood: float
) -> None:
    """After a suspend, or a blocked loop, the peer has its time again; then silence counts as before."""
    async with opened(heartbeat=dead_after / 2, dead_after=dead_after) as bench:
        mock_clock.jump(stood)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.outcome == []
        for _ in range(40):
            mock_clock.jump(dead_after / 20)
            await trio.testing.wait_all_tasks_blocked()
        assert len(bench.outcome) == 1
    assert stood > dead_after > min(OWN_LAG, dead_after / 4)


# ---- the handshake's two functions ---------------------------------------------------------------


async def test_control_messages_travel_alone() -> None:
    """What one end sends by `send_control` the other receives by `receive_control`."""
    here = FakeConnection()
    await send_control(cast("Connection", here), wire.Ping(3))
    here.say_bytes(here.sent[0])
    assert await receive_control(cast("Connection", here)) == wire.Ping(3)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff" * 30,
        b"".join(wire.encode_control(0, wire.Ping(1))) * 2,
        b"".join(wire.encode_control(1, wire.Ping(1))),
        b"".join(wire.encode_data(0, Stream.OUTPUT, 0, b"x")),
        bytes(wire.MAX_HELLO_BYTES + 1),
    ],
    ids=["empty", "garbage", "two", "channel", "data", "large"],
)
async def test_anything_but_one_small_control_message_is_a_breach(message: bytes) -> None:
    """Before anybody is known, nothing else is listened to."""
    connection = FakeConnection()
    connection.say_bytes(message)
    with pytest.raises(RemoteProtocolError):
        await receive_control(cast("Connection", connection))
