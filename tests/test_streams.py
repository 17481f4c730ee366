"""Streams: what a log keeps, what a cursor sends, what a receiver takes."""

from __future__ import annotations

import tracemalloc
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.byte_ring import LARGE_BYTES
from sandd._core.streams import (
    ByteReceiveLog,
    ByteSendLog,
    Gap,
    MessageReceiveLog,
    MessageSendLog,
    ReceiveLog,
    ReceiveWindow,
    SendCursor,
)
from sandd.wire import Data, EncodedFrame, Stream

KIB = wire.KIB


def decoded(frame: EncodedFrame | None) -> Data:
    """What a receiver makes of a frame."""
    assert frame is not None
    (read,) = wire.decode_frames(b"".join(frame))
    return wire.decode_data(read)


def data(
    offset: int,
    body: bytes = b"",
    *,
    stream: Stream = Stream.OUTPUT,
    final: bool = False,
    gap_end: int | None = None,
) -> Data:
    """A data frame's payload as it comes out of the decoder."""
    return Data(stream, offset, memoryview(body), final, gap_end)


def log_of(content: bytes, *, capacity: int | None = 100, retain: int = 0) -> ByteSendLog:
    """A send log that holds `content`."""
    log = ByteSendLog(capacity=capacity, retain=retain)
    log.append(content)
    return log


def all_frames(cursor: SendCursor, limit: int = 1000) -> list[tuple[int, bytes, bool, int | None]]:
    """(offset, bytes, final, gap end) of everything the cursor sends now."""
    frames = []
    while cursor.pending:
        sent = decoded(cursor.next_frame(1, limit))
        frames.append((sent.offset, bytes(sent.body), sent.final, sent.gap_end))
    assert cursor.next_frame(1, limit) is None
    return frames


# ---- the sender's log ----------------------------------------------------------------------------


def test_send_log_keeps_all_above_the_floor() -> None:
    """Room shrinks by what is appended, and grows by acks alone."""
    log = log_of(b"abcdef", capacity=10)
    assert (log.base, log.floor, log.end, log.room) == (0, 0, 6, 4)
    log.acknowledge(4)
    assert (log.base, log.floor, log.end, log.room) == (4, 4, 6, 8)
    assert log.read(4, 10) == (b"ef", 2)
    assert log.read(5, 10) == (b"f", 1)
    assert log.read(4, 1) == (b"e", 1)


def test_send_log_ignores_an_ack_it_is_past() -> None:
    """Acks are absolute: an old one changes nothing."""
    log = log_of(b"abcdef")
    log.acknowledge(4)
    log.acknowledge(2)
    assert (log.base, log.floor) == (4, 4)


def test_send_log_refuses_an_ack_beyond_its_end() -> None:
    """Nobody can have what was never produced."""
    log = log_of(b"abcdef")
    with pytest.raises(RemoteProtocolError, match="beyond the end"):
        log.acknowledge(7)
    assert (log.base, log.floor, log.end) == (0, 0, 6)


def test_send_log_retains_below_the_floor() -> None:
    """What `retain` covers stays for those who attach later, and takes no room."""
    log = log_of(b"abcdef", capacity=6, retain=2)
    log.acknowledge(5)
    assert (log.base, log.floor, log.room) == (3, 5, 5)
    assert log.read(3, 10) == (b"def", 3)


def test_send_log_takes_no_more_than_its_room() -> None:
    """An append of too much is our own bug, and changes nothing."""
    log = log_of(b"abc", capacity=4)
    with pytest.raises(LocalProtocolError, match="room for 1"):
        log.append(b"de")
    assert log.end == 3
    log.append(b"d")
    assert log.read(0, 10) == (b"abcd", 4)


def test_send_log_without_capacity_takes_what_it_is_given() -> None:
    """Where the caller owns the memory, there is no bound but that of offsets."""
    log = ByteSendLog(capacity=None)
    assert log.room == wire.MAX_OFFSET
    log.append(bytes(10_000_000))
    assert log.room == wire.MAX_OFFSET - 10_000_000


def test_send_log_takes_nothing_behind_its_end() -> None:
    """A finished stream never grows, and a try to make it grow leaves it as it was."""
    log = log_of(b"abc")
    log.finish()
    log.finish()
    with pytest.raises(LocalProtocolError, match="finished"):
        log.append(b"d")
    assert (log.end, log.read(0, 10)) == (3, (b"abc", 3))
    messages = MessageSendLog()
    messages.append(b"one")
    messages.finish()
    with pytest.raises(LocalProtocolError, match="finished"):
        messages.append(b"two")
    messages.acknowledge(1)
    assert (messages.base, messages.end) == (1, 1)


def test_message_log_counts_messages() -> None:
    """A message is one unit, however long it is; reading gives one at a time."""
    log = MessageSendLog(capacity=2)
    log.append(b"first")
    log.append(b"second")
    assert (log.end, log.room) == (2, 0)
    assert log.read(0, 5) == (b"first", 1)
    assert log.read(1, 1) == (b"second", 1)
    with pytest.raises(LocalProtocolError, match="room for 0"):
        log.append(b"third")
    log.acknowledge(1)
    assert log.read(1, 1) == (b"second", 1)
    log.append(b"third")
    assert log.read(2, 1) == (b"third", 1)


def test_send_log_begins_where_it_is_told() -> None:
    """What was appended before the peer told its offset comes behind that, none of it lost."""
    log = log_of(b"abc", capacity=8)
    log.begin(1000)
    assert (log.base, log.floor, log.end, log.room) == (1000, 1000, 1003, 5)
    log.append(b"d")
    assert log.read(1000, 10) == (b"abcd", 4)
    assert log.read(1003, 10) == (b"d", 1)


# ---- cursors -------------------------------------------------------------------------------------


def test_cursor_sends_what_there_is_within_credit() -> None:
    """Frames are contiguous, of at most `limit` bytes, and end where the credit does."""
    cursor = SendCursor(Stream.OUTPUT, log_of(b"abcdefgh"), sent=0, max_offset=5)
    assert all_frames(cursor, 3) == [(0, b"abc", False, None), (3, b"de", False, None)]
    cursor.on_window(2, 7)
    assert all_frames(cursor, 3) == [(5, b"fg", False, None)]


def test_cursor_says_the_end_with_the_last_bytes() -> None:
    """FIN travels with the last bytes, once, and by itself when they have gone before."""
    log = log_of(b"abc")
    cursor = SendCursor(Stream.OUTPUT, log, sent=0, max_offset=10)
    log.finish()
    assert all_frames(cursor) == [(0, b"abc", True, None)]
    late = SendCursor(Stream.OUTPUT, log, sent=3, max_offset=3)
    assert all_frames(late) == [(3, b"", True, None)]


def test_cursor_needs_no_credit_for_the_end() -> None:
    """The end takes no room, so it is told to a receiver that has none."""
    log = log_of(b"abc")
    cursor = SendCursor(Stream.OUTPUT, log, sent=0, max_offset=3)
    assert all_frames(cursor) == [(0, b"abc", False, None)]
    log.finish()
    assert all_frames(cursor) == [(3, b"", True, None)]


def test_cursor_says_no_end_where_nothing_is_granted() -> None:
    """Below zero credit there is no place yet at which a stream could end."""
    log = ByteSendLog()
    log.finish()
    cursor = SendCursor(Stream.INPUT, log, sent=0, max_offset=-1)
    assert all_frames(cursor) == []
    cursor.max_offset = 0
    assert all_frames(cursor) == [(0, b"", True, None)]


def test_cursor_says_no_end_before_the_bytes() -> None:
    """Without credit for the last bytes their end is not said either."""
    log = log_of(b"abc")
    log.finish()
    cursor = SendCursor(Stream.OUTPUT, log, sent=0, max_offset=2)
    assert all_frames(cursor) == [(0, b"ab", False, None)]
    cursor.on_window(2, 3)
    assert all_frames(cursor) == [(2, b"c", True, None)]


def test_cursor_sends_messages_one_a_frame() -> None:
    """A frame of a message stream is exactly one message; the end comes by itself."""
    log = MessageSendLog()
    log.append(b"one")
    log.append(b"two")
    log.finish()
    cursor = SendCursor(Stream.EVENTS, log, sent=0, max_offset=64)
    assert all_frames(cursor) == [
        (0, b"one", False, None),
        (1, b"two", False, None),
        (2, b"", True, None),
    ]


def test_cursor_that_was_overtaken_says_what_is_gone() -> None:
    """A gap covers exactly what was freed, and delivery goes on behind it."""
    log = log_of(b"abcdefgh")
    cursor = SendCursor(Stream.OUTPUT, log, sent=2, max_offset=50)
    log.acknowledge(5)
    assert all_frames(cursor) == [(2, b"", False, 5), (5, b"fgh", False, None)]


def test_cursor_overtaken_at_the_very_end_says_gap_then_end() -> None:
    """A stream whose last bytes are gone still ends: the gap first, then the FIN."""
    log = log_of(b"abcdefgh")
    cursor = SendCursor(Stream.OUTPUT, log, sent=2, max_offset=8)
    log.finish()
    log.acknowledge(8)
    assert all_frames(cursor) == [(2, b"", False, 8), (8, b"", True, None)]


def test_window_that_crossed_a_gap_is_no_error() -> None:
    """A receiver that reads on before it hears of the gap grants less than the gap's end, honestly."""
    log = log_of(b"abcdefgh")
    cursor = SendCursor(Stream.OUTPUT, log, sent=0, max_offset=3)
    assert all_frames(cursor, 2) == [(0, b"ab", False, None), (2, b"c", False, None)]
    cursor.on_window(1, 4)
    log.acknowledge(8)
    assert all_frames(cursor) == [(3, b"", False, 8)]
    cursor.on_window(2, 5)  # sent before the gap arrived there
    cursor.on_window(8, 11)
    log.append(b"ijklm")
    assert all_frames(cursor) == [(8, b"ijk", False, None)]


def test_cursor_refuses_an_ack_of_what_it_did_not_send() -> None:
    """A receiver can't have more than was sent on its channel."""
    cursor = SendCursor(Stream.OUTPUT, log_of(b"abc"), sent=0, max_offset=2)
    all_frames(cursor)
    with pytest.raises(RemoteProtocolError, match="beyond what was sent"):
        cursor.on_window(3, 5)
    cursor.on_window(2, 5)


@pytest.mark.parametrize(
    ("ack", "max_offset"), [pytest.param(1, 9, id="ack"), pytest.param(2, 8, id="credit")]
)
def test_cursor_refuses_what_goes_down(ack: int, max_offset: int) -> None:
    """On a channel neither ack nor credit ever decreases; saying the same again is fine."""
    cursor = SendCursor(Stream.OUTPUT, log_of(b"abc"), sent=0, max_offset=3)
    all_frames(cursor)
    cursor.on_window(2, 9)
    cursor.on_window(2, 9)
    with pytest.raises(RemoteProtocolError, match="went down"):
        cursor.on_window(ack, max_offset)


# ---- the receiver's log --------------------------------------------------------------------------


def test_receive_log_takes_contiguous_bytes() -> None:
    """Bytes come out in order, in pieces of the taker's choice, and count as consumed then."""
    log = ByteReceiveLog()
    log.accept(data(0, b"abc"))
    log.accept(data(3, b""))
    log.accept(data(3, b"defg"))
    assert (log.received, log.consumed, log.readable) == (7, 0, True)
    assert [log.take(2), log.take(5), log.take(5)] == [b"ab", b"cdefg", b""]
    assert (log.consumed, log.readable) == (7, False)


def test_receive_log_gives_what_is_large_as_it_came() -> None:
    """Not copied, and not taken apart for a bound that others before it fill."""
    log, large = ByteReceiveLog(), bytes(LARGE_BYTES)
    log.accept(data(0, b"abc"))
    log.accept(data(3, large))
    log.accept(data(3 + len(large), b"d"))
    log.accept(data(4 + len(large), b"e"))
    log.accept(data(5 + len(large), gap_end=9 + len(large)))

    assert log.take_pieces(len(large)) == [b"abc"]
    (piece,) = log.take_pieces(len(large))
    assert isinstance(piece, memoryview)
    assert piece.obj is large
    assert log.consumed == 3 + len(large)
    assert log.take_pieces(99) == [b"de"]
    assert log.take_pieces(99) == Gap(5 + len(large), 9 + len(large))
    assert log.take_pieces(99) == []


def test_receive_log_gives_one_piece_after_the_other() -> None:
    """As they lie there, and consumed one by one; crumbs that had been gathered are nobody else's any more."""
    log, large = ByteReceiveLog(), bytes(LARGE_BYTES)
    log.accept(data(0, b"ab"))
    log.accept(data(2, b"c"))
    log.accept(data(3, large))
    log.accept(data(3 + len(large), gap_end=9 + len(large)))

    assert log.take_piece() == b"abc"
    assert log.consumed == 3
    piece = log.take_piece()
    assert isinstance(piece, memoryview)
    assert piece.obj is large
    assert log.consumed == 3 + len(large)
    assert log.take_piece() == Gap(3 + len(large), 9 + len(large))
    assert log.take_piece() == b""
    log.accept(data(9 + len(large), b"d"))
    assert log.take_piece() == b"d"
    assert log.consumed == log.received


@given(st.lists(st.integers(0, 3 * LARGE_BYTES)), st.integers(1, 4 * LARGE_BYTES))
def test_receive_log_gives_the_same_bytes_in_pieces(sizes: list[int], limit: int) -> None:
    """Once and in order, and at least one where there are any."""
    log, sent = ByteReceiveLog(), b""
    for number, size in enumerate(sizes):
        body = bytes([number % 256]) * size
        log.accept(data(len(sent), body))
        sent += body
    taken = b""
    while taken != sent:
        chunk = log.take_pieces(limit)
        assert isinstance(chunk, list)
        assert 0 < sum(map(len, chunk)) <= limit
        taken += b"".join(chunk)
        assert log.consumed == len(taken)
    assert log.take_pieces(limit) == []


@pytest.mark.parametrize("offset", [2, 4, 0])
def test_receive_log_refuses_what_is_not_next(offset: int) -> None:
    """A hole, an overlap and a repetition are errors, and leave the log as it was."""
    log = ByteReceiveLog()
    log.accept(data(0, b"abc"))
    with pytest.raises(RemoteProtocolError, match="expected 3"):
        log.accept(data(offset, b"x"))
    with pytest.raises(RemoteProtocolError, match="expected 3"):
        log.accept(data(offset, gap_end=99))
    assert (log.received, log.take(99)) == (3, b"abc")


@pytest.mark.parametrize(
    ("frames", "length"),
    [
        pytest.param([data(0, b"abc", final=True)], 3, id="with bytes"),
        pytest.param([data(0, b"abc"), data(3, final=True)], 3, id="by itself"),
        pytest.param([data(0, final=True)], 0, id="empty stream"),
    ],
)
def test_receive_log_ends_where_the_sender_said(frames: list[Data], length: int) -> None:
    """The end is known when FIN comes, and reached when all before it was taken."""
    log = ByteReceiveLog()
    for frame in frames:
        assert log.final is None
        assert not log.at_end
        log.accept(frame)
    assert log.final == length
    assert log.at_end is (length == 0)
    log.take(99)
    assert log.at_end


def test_receive_log_takes_the_same_end_again() -> None:
    """A new channel says the end anew; that changes nothing, and nothing may come behind it."""
    log = ByteReceiveLog()
    log.accept(data(0, b"abc", final=True))
    log.accept(data(3, final=True))
    assert (log.received, log.final) == (3, 3)
    for late in (data(3, b"d"), data(3), data(3, b"d", final=True), data(3, gap_end=9)):
        with pytest.raises(RemoteProtocolError, match="behind its end"):
            log.accept(late)
    for other in (data(2, final=True), data(4, final=True), data(2, b"c", final=True)):
        with pytest.raises(RemoteProtocolError, match="behind its end"):
            log.accept(other)
    assert log.take(99) == b"abc"


def test_receive_log_hands_out_gaps_in_their_place() -> None:
    """A gap comes out between the bytes before and behind it, by itself."""
    log = ByteReceiveLog()
    log.accept(data(0, b"abc"))
    log.accept(data(3, gap_end=10))
    log.accept(data(10, b"xyz"))
    assert log.take(99) == b"abc"
    assert log.consumed == 3
    assert log.take(99) == Gap(3, 10)
    assert log.consumed == 10
    assert log.take(99) == b"xyz"
    assert (log.received, log.consumed, log.readable) == (13, 13, False)


def test_adjoining_gaps_are_one() -> None:
    """A reader that was overtaken again and again holds one gap, not one for each time."""
    log = ByteReceiveLog()
    log.accept(data(0, b"abc"))
    for end in range(4, 1004):
        log.accept(data(end - 1, gap_end=end))
    assert [log.take(9), log.take(9), log.readable] == [b"abc", Gap(3, 1003), False]


def test_receive_log_discards_on_request() -> None:
    """What nobody wants counts as consumed, so that the sender goes on."""
    log = ByteReceiveLog()
    log.accept(data(0, b"abc"))
    log.accept(data(3, gap_end=10))
    log.discard()
    assert (log.consumed, log.readable, log.take(9)) == (10, False, b"")


def unread_log() -> ByteReceiveLog:
    """A log from 2 on with "abcd", a gap from 6 to 10, and "ef"; one byte was taken."""
    log = ByteReceiveLog(2)
    log.accept(data(2, b"ab"))
    log.accept(data(4, b"cd"))
    log.accept(data(6, gap_end=10))
    log.accept(data(10, b"ef"))
    assert log.take(1) == b"a"
    return log


@pytest.mark.parametrize(
    ("offset", "pieces"),
    [
        (3, [b"bcd", Gap(6, 10), b"ef"]),
        (5, [b"d", Gap(6, 10), b"ef"]),
        (6, [Gap(6, 10), b"ef"]),
        (8, [Gap(8, 10), b"ef"]),
        (10, [b"ef"]),
        (11, [b"f"]),
        (12, []),
    ],
)
def test_receive_log_shows_its_tail(offset: int, pieces: list[bytes | Gap]) -> None:
    """Wherever one begins; and all of it is taken as if nobody had looked."""
    log = unread_log()
    assert log.tail(offset) == pieces
    assert (log.consumed, log.received) == (3, 12)
    assert [log.take(99) for _ in range(4)] == [b"bcd", Gap(6, 10), b"ef", b""]
    assert log.tail(12) == []


@pytest.mark.parametrize("offset", [2, 13])
def test_receive_log_shows_only_what_is_unread(offset: int) -> None:
    """What was taken is gone, and what has not arrived isn't there."""
    with pytest.raises(LocalProtocolError, match="3 to 12 is unread"):
        unread_log().tail(offset)


def test_a_look_at_a_tail_copies_no_more_than_that() -> None:
    """However much is unread before it; and the log can grow behind it."""
    log = ByteReceiveLog()
    log.accept(data(0, bytes(4 * wire.MIB)))
    tracemalloc.start()
    try:
        for number in range(20):
            at = log.received
            log.accept(data(at, b"%02d" % number))
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            assert log.tail(at) == [b"%02d" % number]
            assert tracemalloc.get_traced_memory()[1] - before < 64 * KIB
    finally:
        tracemalloc.stop()


def test_message_log_takes_one_message_a_frame() -> None:
    """Messages come out whole and in order; an empty one is one too, an empty end is none."""
    log = MessageReceiveLog()
    assert log.take() is None
    log.accept(data(0, b"one", stream=Stream.EVENTS))
    log.accept(data(1, b"", stream=Stream.EVENTS))
    log.accept(data(2, b"", stream=Stream.EVENTS, final=True))
    assert (log.received, log.final, log.readable) == (2, 2, True)
    assert [log.take(), log.take(), log.take()] == [b"one", b"", None]
    assert (log.consumed, log.at_end) == (2, True)


def test_message_log_takes_a_message_with_the_end() -> None:
    """FIN with a body is one message and the end."""
    log = MessageReceiveLog()
    log.accept(data(0, b"last", stream=Stream.EVENTS, final=True))
    assert (log.received, log.final, log.take()) == (1, 1, b"last")


def test_a_stream_of_crumbs_between_gaps_is_refused() -> None:
    """Each byte would cost a hundred: what a peer can have us hold is bounded, whatever it sends."""
    log = ByteReceiveLog()
    window = ReceiveWindow.open(Stream.OUTPUT, log, wire.MIB)

    def send_crumbs(count: int) -> None:
        for _ in range(count):
            window.on_data(Data(Stream.OUTPUT, log.received, memoryview(b"x")))
            start = log.received
            window.on_data(Data(Stream.OUTPUT, start, memoryview(b""), gap_end=start + 1))

    tracemalloc.start()
    try:
        send_crumbs(wire.MAX_UNREAD_PIECES // 2)
        with pytest.raises(RemoteProtocolError, match="4096 pieces"):
            send_crumbs(1)
        assert tracemalloc.get_traced_memory()[0] < wire.MIB
    finally:
        tracemalloc.stop()
    while log.readable:
        log.take(1)
    send_crumbs(1)  # whoever reads may be sent more


def test_message_log_refuses_gaps() -> None:
    """Messages are never dropped, so a gap among them is an error that changes nothing."""
    log = MessageReceiveLog()
    with pytest.raises(RemoteProtocolError, match="gap in a stream of messages"):
        log.accept(data(0, stream=Stream.EVENTS, gap_end=5))
    assert log.received == 0


# ---- windows -------------------------------------------------------------------------------------


def window_of(size: int, consumed: int = 0, received: int | None = None) -> ReceiveWindow:
    """A new channel's window on a stream of which `consumed` bytes were taken."""
    log = ByteReceiveLog(consumed)
    if received is not None:
        log.accept(data(consumed, bytes(received - consumed)))
    return ReceiveWindow.open(Stream.OUTPUT, log, size)


def test_window_grants_from_what_was_consumed() -> None:
    """A new channel grants `window` beyond what was taken, and never less than what has arrived."""
    assert window_of(100).max_offset == 100
    assert window_of(100, consumed=30, received=70).max_offset == 130
    assert window_of(100, consumed=30, received=500).max_offset == 500


def test_window_holds_the_sender_to_its_credit() -> None:
    """The last granted byte is taken, the next one is an error, and FIN costs nothing."""
    window = window_of(5)
    window.on_data(data(0, b"abc"))
    with pytest.raises(RemoteProtocolError, match="exceeds its credit of 5"):
        window.on_data(data(3, b"def"))
    window.on_data(data(3, b"de"))
    with pytest.raises(RemoteProtocolError, match="exceeds its credit"):
        window.on_data(data(5, b"f", final=True))
    window.on_data(data(5, final=True))
    assert window.log.final == 5


def test_window_counts_messages_by_number() -> None:
    """In a stream of messages credit counts messages, whatever their size; the bare end is none."""
    log = MessageReceiveLog()
    window = ReceiveWindow.open(Stream.EVENTS, log, 2)
    window.on_data(data(0, b"x" * 1000, stream=Stream.EVENTS))
    window.on_data(data(1, b"", stream=Stream.EVENTS))
    with pytest.raises(RemoteProtocolError, match="exceeds its credit of 2"):
        window.on_data(data(2, b"", stream=Stream.EVENTS))
    with pytest.raises(RemoteProtocolError, match="exceeds its credit of 2"):
        window.on_data(data(2, b"x", stream=Stream.EVENTS, final=True))
    window.on_data(data(2, b"", stream=Stream.EVENTS, final=True))
    assert log.final == 2


def test_window_follows_a_gap() -> None:
    """What a gap skips needs no credit of its own: the credit moves along, and never back."""
    window = window_of(5)
    window.on_data(data(0, b"abc"))
    window.on_data(data(3, gap_end=50))
    with pytest.raises(RemoteProtocolError, match="exceeds its credit of 50"):
        window.on_data(data(50, b"x"))
    window.log.take(99)
    assert window.update().max_offset == 50
    window.log.take(99)
    assert window.update() == wire.StreamWindow(Stream.OUTPUT, 50, 55)
    window.on_data(data(50, b"abcde"))


def test_window_refuses_gaps_beyond_its_credit() -> None:
    """A sender can't make a receiver that reads nothing collect gaps."""
    window = window_of(5)
    window.on_data(data(0, b"abcde"))
    with pytest.raises(RemoteProtocolError, match="exceeds its credit of 5"):
        window.on_data(data(5, gap_end=6))
    assert (window.max_offset, window.log.received) == (5, 5)


def test_window_stays_as_it_was_after_a_refused_frame() -> None:
    """A gap in the wrong place grants nothing."""
    window = window_of(100)
    with pytest.raises(RemoteProtocolError, match="expected 0"):
        window.on_data(data(7, gap_end=5000))
    assert window.max_offset == 100


def test_update_is_due_after_128_kib_or_the_whole_window() -> None:
    """The sender hears of what was taken at 128 KiB at the latest, or sooner if it was granted less."""
    window = window_of(300 * KIB)
    window.on_data(data(0, bytes(128 * KIB)))
    window.log.take(128 * KIB - 1)  # type: ignore[call-arg]
    assert not window.update_due
    window.log.take(1)  # type: ignore[call-arg]
    assert window.update_due
    assert window.update() == wire.StreamWindow(Stream.OUTPUT, 128 * KIB, 428 * KIB)
    assert not window.update_due
    window.on_data(data(128 * KIB, bytes(128 * KIB)))
    window.on_data(data(256 * KIB, bytes(128 * KIB)))
    window.log.take(256 * KIB - 1)  # type: ignore[call-arg]
    assert not window.update_due, "more is at hand, and will be acknowledged with this"
    window.log.take(1)  # type: ignore[call-arg]
    assert window.update_due
    assert window.update() == wire.StreamWindow(Stream.OUTPUT, 384 * KIB, 684 * KIB)
    small = window_of(10)
    small.on_data(data(0, bytes(10)))
    small.log.take(9)  # type: ignore[call-arg]
    assert not small.update_due
    small.log.take(1)  # type: ignore[call-arg]
    assert small.update_due


def test_update_is_due_after_a_quarter_of_the_messages() -> None:
    """Acks of messages come in time for the sender never to run dry."""
    log = MessageReceiveLog()
    window = ReceiveWindow.open(Stream.EVENTS, log, 64)
    for n in range(16):
        assert not window.update_due
        window.on_data(data(n, b"x", stream=Stream.EVENTS))
        log.take()
    assert window.update_due


def test_no_update_is_due_for_a_stream_that_was_read_to_its_end() -> None:
    """Nothing more will come, so no word about it is needed."""
    window = window_of(300 * KIB)
    window.on_data(data(0, bytes(64 * KIB), final=True))
    window.log.take(64 * KIB - 1)  # type: ignore[call-arg]
    assert not window.update_due
    window.log.take(1)  # type: ignore[call-arg]
    assert not window.update_due


def test_no_update_is_due_where_nothing_is_granted() -> None:
    """A window of nothing stays one."""
    window = window_of(0, consumed=100 * KIB)
    assert window.max_offset == 100 * KIB
    assert not window.update_due


def test_a_new_channel_tells_again_what_was_consumed() -> None:
    """The ack of a former channel may have been lost: without another the sender would wait for ever."""
    sender = ByteSendLog(capacity=256 * KIB)
    sender.append(bytes(256 * KIB))
    log = ByteReceiveLog()
    first = ReceiveWindow.open(Stream.OUTPUT, log, 512 * KIB)
    cursor = SendCursor(Stream.OUTPUT, sender, 0, first.max_offset)
    while cursor.pending:
        first.on_data(decoded(cursor.next_frame(1, 128 * KIB)))
    log.take(256 * KIB)
    first.update()  # lost with the connection
    assert sender.room == 0
    second = ReceiveWindow.open(Stream.OUTPUT, log, 512 * KIB)
    assert second.update_due
    told = second.update()
    resumed = SendCursor(Stream.OUTPUT, sender, log.received, second.max_offset)
    resumed.on_window(told.ack, told.max_offset)
    sender.acknowledge(told.ack)
    assert sender.room == 256 * KIB
    assert not second.update_due


# ---- short ways ----------------------------------------------------------------------------------


@given(st.data())
def test_a_frame_that_is_taken_the_short_way_is_taken_as_any_other(drawn: st.DataObject) -> None:
    """(4) Whatever comes, in whatever state: the same is taken, refused and handed on."""
    short, plain = ByteReceiveLog(), ByteReceiveLog()
    frames = st.tuples(
        st.integers(-1, 1),
        st.binary(max_size=3),
        st.booleans(),
        st.one_of(st.none(), st.integers(1, 3)),
    )
    for shift, body, final, gap in drawn.draw(st.lists(frames, max_size=8)):
        offset = max(0, short.received + (shift if drawn.draw(st.integers(0, 9)) == 0 else 0))
        end = None if gap is None else offset + gap
        frame = data(offset, b"" if gap else body, final=final and gap is None, gap_end=end)
        complaints = []
        for take in (short.accept, partial(ReceiveLog.accept, plain)):
            try:
                take(frame)
                complaints.append("")
            except RemoteProtocolError as error:
                complaints.append(str(error))
        assert complaints[0] == complaints[1]
        assert (short.received, short.final) == (plain.received, plain.final)
        if drawn.draw(st.booleans()):
            assert short.take(2) == plain.take(2)
    assert short.tail(short.consumed) == plain.tail(plain.consumed)


@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 9)), max_size=9))
def test_what_there_is_room_for_is_filled_in(steps: list[tuple[bytes, int]]) -> None:
    """(4) As much of each piece as there is room for, and no more; what was sent before stays as it was."""
    log, model = ByteSendLog(capacity=10, retain=100), bytearray()
    for piece, taken in steps:
        room = log.room
        assert log.fill(piece) == min(len(piece), room)
        model += piece[:room]
        log.acknowledge(min(log.end, log.floor + taken))
    sent = b"".join(bytes(log.read(at, 1)[0]) for at in range(log.base, log.end))
    assert sent == model
    log.finish()
    with pytest.raises(LocalProtocolError, match="finished"):
        log.fill(b"x")
