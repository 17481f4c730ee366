"""One stream for property tests: a sender's log, an owner and viewers that read it, over channels that come and go.

Small numbers, so that every bound is met all the time. DESIGN.md's guarantees 1 to 4 are asserted
by number after each step, and at the end that everything arrives (9).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.streams import (
    ByteReceiveLog,
    ByteSendLog,
    Gap,
    ReceiveLog,
    ReceiveWindow,
    SendCursor,
    SendLog,
)
from sandd.wire import EncodedFrame, Stream

COUNTS = st.integers(1, 12)
INDEXES = st.integers(0, 3)
MAX_READERS = 4

_UNITS = bytes((position * 167 + position // 256) % 256 for position in range(65_536))


def units(start: int, end: int) -> bytes:
    """The bytes that belong at these positions; nearly every neighbour differs."""
    assert end <= len(_UNITS)
    return _UNITS[start:end]


@define(eq=False)
class Reader:
    """One receiver, over one channel after the other."""

    log: ReceiveLog
    cursor: SendCursor
    window: ReceiveWindow
    owns: bool
    frames: deque[EncodedFrame] = field(factory=deque)
    """Under way to it."""
    windows: deque[wire.StreamWindow] = field(factory=deque)
    """Under way from it."""
    start: int = 0
    position: int = 0
    delivered: int = 0
    """Bytes or messages, without gaps; `read` of them were taken by the application."""
    read: int = 0
    gaps: int = 0


class StreamPair(RuleBasedStateMachine):
    """A stream of bytes."""

    stream = Stream.OUTPUT
    dropping = False
    has_viewers = True

    @initialize(capacity=st.integers(1, 20), retain=st.integers(0, 20), window=st.integers(1, 20))
    def set_up(self, capacity: int, retain: int, window: int) -> None:
        """A new stream, with its owner attached from the beginning."""
        self.begin(capacity, retain, window)

    def begin(self, capacity: int, retain: int, window: int) -> None:
        """Make sender and owner."""
        self.capacity = capacity
        self.retain = retain
        # As with the real numbers, a sender has room for as much as a receiver may leave unsaid.
        self.window_size = min(window, capacity)
        self.sender = self.make_sender()
        self.readers = [self.make_reader(0, owns=True)]
        self.acked = 0
        self.marks: dict[int, tuple[Any, tuple[int, ...]]] = {}

    def make_sender(self) -> SendLog:
        """The sender's log."""
        return ByteSendLog(capacity=self.capacity, retain=self.retain)

    def make_log(self, start: int) -> ReceiveLog:
        """A receiver's log."""
        return ByteReceiveLog(start)

    def make_reader(self, start: int, *, owns: bool) -> Reader:
        """A receiver that begins at an offset, with its first channel."""
        log = self.make_log(start)
        window = ReceiveWindow.open(self.stream, log, self.window_size)
        cursor = SendCursor(self.stream, self.sender, start, window.max_offset)
        return Reader(log, cursor, window, owns, start=start, position=start)

    def reader(self, index: int) -> Reader:
        """One of the readers; the first is the owner."""
        return self.readers[index % len(self.readers)]

    # -- the source

    @rule(count=COUNTS)
    def append(self, count: int) -> None:
        """The source produces as much as there is room for."""
        if not self.sender.final:
            count = min(count, self.sender.room)
            end = self.sender.end
            self.put(units(end, end + count))

    def put(self, data: bytes) -> None:
        """What is produced goes into the log."""
        assert isinstance(self.sender, ByteSendLog)
        self.sender.append(data)

    @precondition(lambda self: self.sender.end > 20)
    @rule()
    def finish(self) -> None:
        """The source ends."""
        self.sender.finish()

    # -- the channels

    @rule(index=INDEXES, limit=COUNTS)
    def send(self, index: int, limit: int) -> None:
        """The sender sends one frame."""
        reader = self.reader(index)
        frame = reader.cursor.next_frame(1, limit)
        assert (frame is not None) or not reader.cursor.pending
        if frame is not None:
            reader.frames.append(frame)

    @rule(index=INDEXES)
    def deliver(self, index: int) -> None:
        """A frame arrives."""
        reader = self.reader(index)
        if reader.frames:
            (frame,) = wire.decode_frames(b"".join(reader.frames.popleft()))
            data = wire.decode_data(frame)
            reader.window.on_data(data)
            is_message = self.stream in wire.MESSAGE_STREAMS and not data.final
            reader.delivered += 1 if is_message else len(data.body)

    @rule(index=INDEXES, count=COUNTS)
    def take(self, index: int, count: int) -> None:
        """The application takes something."""
        reader = self.reader(index)
        assert isinstance(reader.log, ByteReceiveLog)
        taken = reader.log.take(count)
        if isinstance(taken, Gap):
            assert taken.start == reader.position, "(1) a gap that doesn't continue"
            assert taken.end > taken.start, "(2) an empty gap"
            self.check_gap(reader, taken)
            reader.gaps += taken.end - taken.start
            reader.position = taken.end
            return
        end = reader.position + len(taken)
        assert taken == units(reader.position, end), "(1) wrong bytes"
        reader.position = end
        reader.read += len(taken)

    def check_gap(self, reader: Reader, gap: Gap) -> None:
        """(1) The owner misses nothing, unless the oldest is dropped."""
        if reader.owns:
            assert self.dropping, "(1) the owner missed something"
        assert gap.end <= self.sender.base, "(2) a gap over what is still there"

    @rule(index=INDEXES)
    def tell(self, index: int) -> None:
        """The receiver says what it took, and grants more, when that is due."""
        reader = self.reader(index)
        if reader.window.update_due:
            said = reader.window.update()
            assert said.ack == reader.position, "(4) acknowledged what nobody has taken"
            reader.windows.append(said)

    @rule(index=INDEXES)
    def hear(self, index: int) -> None:
        """The sender hears of it."""
        reader = self.reader(index)
        if reader.windows:
            said = reader.windows.popleft()
            reader.cursor.on_window(said.ack, said.max_offset)
            if reader.owns:
                self.sender.acknowledge(said.ack)
                self.acked = max(self.acked, said.ack)

    @rule(index=INDEXES, count=COUNTS, burst=st.integers(1, 9), rounds=st.integers(1, 3))
    def flow(self, index: int, count: int, burst: int, rounds: int) -> None:
        """All of it in its turn: what most of the time goes on, and what fills rings and windows.

        Without it, an ack reaches the sender only where six rules happen to follow each other, and
        what is wrong with acks takes hundreds of examples to find; with it, a dozen.
        """
        for _ in range(rounds):
            self.append(count)
            for _ in range(burst):
                self.send(index, count)
            for _ in range(burst):
                self.deliver(index)
            self.take(index, count)
            self.tell(index)
            self.hear(index)

    @rule(index=INDEXES, arriving=st.integers(0, 3))
    def cut(self, index: int, arriving: int) -> None:
        """The channel breaks; some of what is under way arrives; a new one goes on from there."""
        reader = self.reader(index)
        for _ in range(arriving):
            self.deliver(index)
            self.hear(index)
        reader.frames.clear()
        reader.windows.clear()
        reader.window = ReceiveWindow.open(self.stream, reader.log, self.window_size)
        reader.cursor = SendCursor(
            self.stream, self.sender, reader.log.received, reader.window.max_offset
        )

    @rule(index=INDEXES, how=st.sampled_from(["again", "ahead", "too much", "less"]))
    def lie(self, index: int, how: str) -> None:
        """(1), (3), (4) What breaks the rules is refused, and changes nothing."""
        reader = self.reader(index)
        window, cursor, received = reader.window, reader.cursor, reader.log.received
        before = (received, window.max_offset, cursor.ack, cursor.max_offset)
        lies = {
            "again": lambda: window.on_data(self.forged(received - 1, 1)),
            "ahead": lambda: window.on_data(self.forged(received + 1, 1)),
            "too much": lambda: window.on_data(
                self.forged(received, window.max_offset - received + 1)
            ),
            "less": lambda: cursor.on_window(cursor.ack, cursor.max_offset - 1),
        }
        with pytest.raises(RemoteProtocolError):
            lies[how]()
        assert before == (reader.log.received, window.max_offset, cursor.ack, cursor.max_offset)

    def forged(self, offset: int, size: int) -> wire.Data:
        """A frame that no honest sender would send."""
        if self.stream in wire.MESSAGE_STREAMS:  # each is one message, whatever its size
            offset += size - 1
        return wire.Data(self.stream, offset, memoryview(bytes(size)))

    @precondition(lambda self: self.has_viewers and len(self.readers) < MAX_READERS)
    @rule(where=st.sampled_from(["beginning", "base", "end"]))
    def view(self, where: str) -> None:
        """Somebody else attaches, who holds nothing back."""
        start = {"beginning": 0, "base": self.sender.base, "end": self.sender.end}[where]
        self.readers.append(self.make_reader(start, owns=False))

    # -- what must hold

    @invariant()
    def guarantees(self) -> None:
        """After every rule. One invariant, as what Hypothesis does around each takes longer than some."""
        if hasattr(self, "sender"):
            self.check()

    def check(self) -> None:
        """Assert them all; also on the way to the end, where Hypothesis doesn't look."""
        self.offsets_are_in_order()
        self.bytes_and_gaps_partition_what_was_read()
        self.nothing_unacknowledged_is_freed()
        self.memory_is_bounded()
        self.credit_is_bounded()

    def offsets_are_in_order(self) -> None:
        """(3)"""
        sender = self.sender
        assert sender.base <= sender.floor <= sender.end
        self.never_down(sender, sender.base, sender.floor, sender.end)
        for reader in self.readers:
            cursor, window = reader.cursor, reader.window
            assert cursor.ack <= cursor.sent <= sender.end
            assert reader.log.received <= cursor.sent
            assert reader.log.received <= window.max_offset
            assert cursor.max_offset <= window.max_offset, "(3) more credit used than granted"
            self.never_down(cursor, cursor.ack, cursor.sent, cursor.max_offset)
            self.never_down(window, window.acked, window.max_offset)
            self.never_down(reader.log, reader.log.consumed, reader.log.received)

    def never_down(self, thing: Any, *values: int) -> None:
        """(3) None of these ever decreases."""
        _, before = self.marks.get(id(thing), (thing, ()))
        if before != values:
            assert all(a <= b for a, b in zip(before, values, strict=False)), (
                f"(3) {before} to {values}"
            )
            self.marks[id(thing)] = (thing, values)  # holding it, so that its id isn't used again

    def bytes_and_gaps_partition_what_was_read(self) -> None:
        """(2)"""
        for reader in self.readers:
            assert reader.position == reader.start + reader.read + reader.gaps
            assert reader.log.consumed == reader.position

    def nothing_unacknowledged_is_freed(self) -> None:
        """(4)"""
        assert self.sender.floor == self.acked
        assert self.sender.base == max(0, self.sender.floor - self.retain)

    def memory_is_bounded(self) -> None:
        """(4)"""
        assert self.sender.end - self.sender.base <= self.capacity + self.retain
        for reader in self.readers:
            held = reader.delivered - reader.read
            assert held <= self.window_size, "(4) more is held than was granted"

    def credit_is_bounded(self) -> None:
        """(4) No more is granted than the window holds beyond what was taken."""
        for reader in self.readers:
            most = max(reader.log.consumed + self.window_size, reader.log.received)
            assert reader.window.max_offset <= most, "(4) more is granted than the window"

    def get_on(self) -> None:
        """What else goes on while the readers read."""

    def teardown(self) -> None:
        """(9) When all channels are made anew and everybody reads, everything arrives."""
        if not hasattr(self, "sender"):
            return
        for index in range(len(self.readers)):
            self.cut(index, 0)
        enough = self.sender.end + 5 * self.capacity
        for _ in range(500):
            if self.sender.end < enough:
                self.append(12)
            else:
                self.sender.finish()
            self.get_on()
            for index in range(len(self.readers)):
                self.send(index, 12)
                self.deliver(index)
                self.take(index, 100)
                self.tell(index)
                self.hear(index)
            self.check()
            if all(reader.log.at_end for reader in self.readers):
                break
        for reader in self.readers:
            assert reader.log.at_end, "(9) something never arrives"
            assert reader.position == self.sender.end, "(1) the stream ends short"
        if not self.dropping:
            assert self.readers[0].read == self.sender.end, "(1) the owner has not all"
