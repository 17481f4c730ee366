"""The writer's scheduler: control first, then fair, and a message never too large."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core import scheduler as scheduler_module
from sandd._core.scheduler import (
    BATCH_BYTES,
    FRAME_OVERHEAD,
    LONE_BYTES,
    SHARED_FRAME_BYTES,
    Scheduler,
    message_bytes,
)
from sandd.wire import EncodedFrame, FrameType, Stream

if TYPE_CHECKING:
    import pytest

    from sandd._core.scheduler import Message


class Pile:
    """A source with a number of messages and of bytes to send."""

    def __init__(self, channel: int, *, urgent: int = 0, bulk: int = 0) -> None:
        self.channel = channel
        self.urgent = urgent
        self.bulk = bulk
        self.asked: deque[int] = deque()

    def next_urgent(self) -> EncodedFrame | None:
        """One message."""
        if not self.urgent:
            return None
        self.urgent -= 1
        return wire.encode_data(self.channel, Stream.EVENTS, 0, b"urgent")

    def next_bulk(self, limit: int) -> EncodedFrame | None:
        """As many bytes as are allowed."""
        self.asked.append(limit)
        if not self.bulk:
            return None
        size = min(limit, self.bulk)
        self.bulk -= size
        return wire.encode_data(self.channel, Stream.OUTPUT, 0, bytes(size))


PING = wire.encode_control(0, wire.Ping())


def kinds(message: Message | None) -> list[tuple[str, int]]:
    """("control", "urgent" or "bulk", channel) of each frame."""
    assert message is not None
    names = []
    for frame in wire.decode_frames(b"".join(message)):
        if frame.type is FrameType.CONTROL:
            names.append(("control", frame.channel))
        else:
            stream = wire.decode_data(frame).stream
            names.append(("urgent" if stream is Stream.EVENTS else "bulk", frame.channel))
    return names


def test_an_idle_scheduler_has_nothing() -> None:
    """Without anything to send there is no message."""
    scheduler = Scheduler()
    assert not scheduler.pending
    assert scheduler.next_message() is None
    scheduler.activate(Pile(1))
    assert scheduler.pending
    assert scheduler.next_message() is None
    assert not scheduler.pending


def test_control_goes_first_then_messages_then_data() -> None:
    """(10) What is urgent never stands behind data, in whatever order it was given."""
    scheduler = Scheduler()
    for channel in (1, 2):
        scheduler.activate(Pile(channel, urgent=2, bulk=10))
    scheduler.control(PING)
    assert kinds(scheduler.next_message()) == [
        ("control", 0),
        ("urgent", 1),
        ("urgent", 2),
        ("urgent", 1),
        ("urgent", 2),
        ("bulk", 1),
        ("bulk", 2),
    ]
    assert scheduler.next_message() is None


def test_late_control_goes_behind_what_is_waited_for() -> None:
    """(10) A farewell lets urgent frames pass, but waits for no data, and counts as what it is."""
    scheduler = Scheduler()
    scheduler.control(wire.encode_control(9, wire.Detach()), late=True)
    assert scheduler.pending
    scheduler.activate(Pile(1, urgent=1, bulk=10 * wire.MIB))
    scheduler.control(PING)
    sent = kinds(scheduler.next_message())
    assert sent[:4] == [("control", 0), ("urgent", 1), ("control", 9), ("bulk", 1)]


def test_control_waits_for_one_message_at_most() -> None:
    """(10) Whatever bulk there is, a control frame is the first of the next message."""
    scheduler = Scheduler()
    scheduler.activate(Pile(1, bulk=10 * wire.MIB))
    for _ in range(10):
        message = scheduler.next_message()
        assert message is not None
        assert message_bytes(message) <= BATCH_BYTES + wire.MAX_DATA_BYTES + 100
        scheduler.control(PING)
        assert kinds(scheduler.next_message())[0] == ("control", 0)


def test_data_is_shared_evenly() -> None:
    """(10) Sources take turns, also across messages, and share them in small frames."""
    scheduler = Scheduler()
    piles = [Pile(n, bulk=wire.MIB) for n in range(5)]
    for pile in piles:
        scheduler.activate(pile)
    for _ in range(12):
        scheduler.next_message()
        left = [pile.bulk for pile in piles]
        assert max(left) - min(left) <= SHARED_FRAME_BYTES
    assert set(piles[0].asked) == {SHARED_FRAME_BYTES}


def test_a_single_source_sends_large_frames() -> None:
    """Who is alone needn't share."""
    scheduler = Scheduler()
    pile = Pile(1, bulk=wire.MIB)
    scheduler.activate(pile)
    scheduler.next_message()
    assert set(pile.asked) == {wire.MAX_DATA_BYTES}


def test_a_little_room_is_not_used_for_a_large_frame() -> None:
    """A file's frames leave a few KiB of their message, and a keystroke behind two of them would wait twice as long."""
    scheduler = Scheduler()
    record = wire.MAX_DATA_BYTES - 4 * wire.KIB

    class Records(Pile):
        def next_bulk(self, limit: int) -> EncodedFrame | None:
            return super().next_bulk(min(limit, record))

    scheduler.activate(Records(1, bulk=3 * record))
    for _ in range(3):
        message = scheduler.next_message()
        assert kinds(message) == [("bulk", 1)]
        assert record < message_bytes(message or ()) < BATCH_BYTES
    assert scheduler.next_message() is None


def test_where_there_is_nothing_else_data_goes_however_small_a_message_is() -> None:
    """On the slowest line, too."""
    scheduler = Scheduler()
    scheduler.activate(Pile(1, bulk=10))
    assert len(scheduler.next_frames(1)) == 1


def test_a_source_waits_in_one_place_only() -> None:
    """Saying again that there is something gives no second turn."""
    scheduler = Scheduler()
    first, second = Pile(1, bulk=2 * wire.MIB), Pile(2, bulk=2 * wire.MIB)
    scheduler.activate(first)
    scheduler.activate(second)
    for _ in range(5):
        scheduler.activate(first)
        scheduler.next_message()
        scheduler.activate(first)
        assert abs(first.bulk - second.bulk) <= SHARED_FRAME_BYTES


def test_a_discarded_source_is_not_asked() -> None:
    """What is gone sends nothing; discarding what isn't there is fine."""
    scheduler = Scheduler()
    gone, other = Pile(1, urgent=1, bulk=1), Pile(2, urgent=1)
    scheduler.activate(gone)
    scheduler.activate(other)
    scheduler.discard(gone)
    scheduler.discard(gone)
    assert kinds(scheduler.next_message()) == [("urgent", 2)]
    assert not gone.asked


def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control frames are bounded, their overhead included; beyond it the connection is lost, and memory stays."""
    size = sum(map(len, PING)) + FRAME_OVERHEAD
    monkeypatch.setattr(scheduler_module, "MAX_CONTROL_BACKLOG", 5 * size)
    scheduler = Scheduler()
    for _ in range(5):
        scheduler.control(PING)
    assert not scheduler.overrun
    for late in (True, False) * 500:
        scheduler.control(PING, late=late)
    assert scheduler.overrun
    assert len(kinds(scheduler.next_message())) == 5


def test_control_that_was_sent_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on what waits, not on what ever was."""
    monkeypatch.setattr(scheduler_module, "MAX_CONTROL_BACKLOG", 1000)
    scheduler = Scheduler()
    for late in (True, False):
        for _ in range(1000):
            scheduler.control(PING, late=late)
            scheduler.next_message()
    assert not scheduler.overrun


@given(
    st.lists(st.integers(0, wire.MAX_CONTROL_BYTES), max_size=4),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, wire.MIB)), max_size=5),
)
def test_every_message_is_within_the_limit_and_everything_is_sent_once(
    controls: list[int], piles: list[tuple[int, int]]
) -> None:
    """No message exceeds what the peer takes, whatever is queued, and nothing stays behind."""
    scheduler = Scheduler()
    sources = [Pile(n, urgent=urgent, bulk=bulk) for n, (urgent, bulk) in enumerate(piles)]
    for size in controls:
        scheduler.control((b"\x01\0\0\0\0" + size.to_bytes(4, "big"), bytes(size)))
    for source in sources:
        scheduler.activate(source)
    sent_controls, sent_urgent, sent_bulk = [], 0, 0
    while scheduler.pending:
        message = scheduler.next_message()
        if message is None:
            break
        assert message_bytes(message) <= wire.MAX_MESSAGE_BYTES
        for frame in wire.decode_frames(b"".join(message)):
            if frame.type is FrameType.CONTROL:
                sent_controls.append(len(frame.payload))
            elif wire.decode_data(frame).stream is Stream.EVENTS:
                sent_urgent += 1
            else:
                sent_bulk += len(wire.decode_data(frame).body)
    assert sent_controls == controls
    assert sent_urgent == sum(urgent for urgent, _ in piles)
    assert sent_bulk == sum(bulk for _, bulk in piles)
    assert not scheduler.pending


def test_an_answer_by_itself_is_sent_as_one_among_others() -> None:
    """Of most links it is all there ever is; then no source is asked, and nothing else is pending."""
    alone, first = Scheduler(), Scheduler()
    alone.answer(wire.encode_pong(7))
    first.answer(wire.encode_pong(7))
    first.control(PING)
    assert alone.only_answers
    assert not first.only_answers
    message = alone.next_message()
    assert message is not None
    assert not alone.pending
    assert first.next_message() == (b"".join((*message, *PING)),)


def test_what_is_large_is_a_piece_of_its_message_and_no_copy() -> None:
    """And what is small is put together, in the order of the frames."""
    large = bytes(LONE_BYTES)
    frames = [PING, wire.encode_data(1, Stream.OUTPUT, 0, large), PING, PING]
    scheduler = Scheduler()
    for frame in frames:
        scheduler.control(frame)
    message = scheduler.next_message()
    assert message is not None
    assert [len(piece) for piece in message] == [
        len(b"".join(PING)) + len(frames[1][0]),
        LONE_BYTES,
        2 * len(b"".join(PING)),
    ]
    assert message[1] is large
    assert b"".join(message) == b"".join(b"".join(frame) for frame in frames)
    assert message_bytes(message) == len(b"".join(message))
