"""The guard between the network and trio-websocket, without any network."""

from __future__ import annotations

import itertools
import tracemalloc

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_peer import MIB, Op, close_payload, frame, upgrade_request
from wsproto import ConnectionType
from wsproto.connection import Connection as WSProtoConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection

from sandd._core.transport import _protocol
from sandd._core.transport._connection import MAX_WAITING_BYTES
from sandd._core.transport._protocol import (
    AGAIN,
    EVENTS_PER_TURN,
    MAX_FRAGMENTS,
    MESSAGE_OVERHEAD,
    GuardedProtocol,
)


def open_server_protocol(
    max_message_bytes: int = MIB, kind: type[GuardedProtocol] = GuardedProtocol
) -> GuardedProtocol:
    """The server's side of a connection that has just been opened."""
    protocol = kind(ConnectionType.SERVER, max_message_bytes=max_message_bytes)
    protocol.http.receive_data(upgrade_request())
    request = protocol.http.next_event()
    assert isinstance(request, h11.Request)
    protocol.read_request(request)
    protocol.send(AcceptConnection())
    return protocol


def test_guard_hands_out_a_long_read_in_turns() -> None:
    """However many frames one read holds, the loop gets its turn after a bounded number of them."""
    protocol = open_server_protocol()
    protocol.receive_data(frame(Op.BINARY, b"x") * (3 * EVENTS_PER_TURN) + frame(Op.BINARY, b"y"))
    for _ in range(3):
        assert len(list(protocol.events())) == EVENTS_PER_TURN
        assert protocol.has_more
        protocol.receive_data(AGAIN)
    (last,) = protocol.events()
    assert isinstance(last, BytesMessage)
    assert last.data == b"y"
    assert not protocol.has_more


def test_guard_takes_apart_no_more_of_a_read_than_a_turn_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even to keep it for the next: 40,000 messages of no size would hold the loop up for 0.1 s."""
    unmasked: list[bytes] = []
    unmask = _protocol._masked
    monkeypatch.setattr(
        _protocol, "_masked", lambda body, key: unmasked.append(body) or unmask(body, key)
    )
    protocol = open_server_protocol()
    assert not list(protocol.events())  # wsproto has nothing left: from here on it isn't asked
    protocol.receive_data(frame(Op.BINARY, b"x") * (3 * EVENTS_PER_TURN))
    assert len(unmasked) == EVENTS_PER_TURN


def test_guard_keeps_no_pieces() -> None:
    """A message that comes byte by byte takes its own size, not an object for each byte."""
    protocol = open_server_protocol()
    protocol.receive_data(frame(Op.BINARY, bytes(MIB))[:-MIB])
    tracemalloc.start()
    try:
        for _ in range(5_000):  # of which an object each would be three times as much
            protocol.receive_data(b"x")
            assert not list(protocol.events())
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_guard_keeps_nothing_of_a_peer_that_broke_the_rules() -> None:
    """What comes after a breach is dropped, whether it can still be parsed or not."""
    for breach in (frame(Op.TEXT, b"x"), frame(3), frame(Op.BINARY, bytes(1001))):
        protocol = open_server_protocol(max_message_bytes=1000)
        protocol.receive_data(breach)
        assert not list(protocol.events())
        assert protocol.breach is not None
        protocol.receive_data(frame(Op.BINARY, b"x"))
        assert not list(protocol.events())
        more = frame(Op.BINARY, bytes(900), fin=False)
        tracemalloc.start()
        try:
            for _ in range(1000):
                protocol.receive_data(more)
                assert not list(protocol.events())
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


def test_guard_keeps_nothing_that_comes_after_our_close() -> None:
    """Once we have said goodbye messages are dropped; the peer's goodbye behind them is seen."""
    protocol = open_server_protocol()
    protocol.send(CloseConnection(code=1000))
    protocol.receive_data(frame(Op.BINARY, b"x") + frame(Op.CLOSE, close_payload(1000)))
    (event,) = protocol.events()
    assert isinstance(event, CloseConnection)


def test_guard_keeps_the_beginning_of_a_frame_over_our_close() -> None:
    """A head that came in part before we said goodbye is still the head of what comes after."""
    protocol = open_server_protocol()
    assert not list(protocol.events())
    whole = frame(Op.BINARY, b"x" * 300)
    protocol.receive_data(whole[:3])
    assert not list(protocol.events())
    protocol.send(CloseConnection(code=1000))
    protocol.receive_data(whole[3:] + frame(Op.CLOSE, close_payload(1000)))
    (event,) = protocol.events()
    assert isinstance(event, CloseConnection)
    assert protocol.breach is None


def test_empty_messages_have_their_price() -> None:
    """Waiting messages are bounded in number too: an empty one isn't free."""
    protocol = open_server_protocol()
    protocol.receive_data(frame(Op.BINARY) * 10)
    list(protocol.events())
    assert protocol.charged == 10 * MESSAGE_OVERHEAD
    assert MAX_FRAGMENTS < MAX_WAITING_BYTES / MESSAGE_OVERHEAD


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_guard_takes_any_bytes(data: bytes, cuts: list[int]) -> None:
    """Whatever comes, in whatever pieces, it raises nothing, and the pieces make no difference."""
    for make in (
        lambda: open_server_protocol(max_message_bytes=100),
        lambda: GuardedProtocol(ConnectionType.CLIENT, max_message_bytes=100),
    ):
        outcomes = []
        for places in ([], cuts):
            protocol = make()
            edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
            messages: list[bytes] = []
            for start, end in itertools.pairwise(edges):
                protocol.receive_data(data[start:end])
                messages += [e.data for e in protocol.events() if isinstance(e, BytesMessage)]
            outcomes.append((messages, protocol.breach, protocol.peer_close))
        assert outcomes[0] == outcomes[1]


class PlainProtocol(GuardedProtocol):
    """Leaves everything to wsproto."""

    def _take_whole_messages(self, data: bytes) -> bytes:
        return data


def masked(opcode: int, body: bytes, fin: bool, mask: bool, key: bytes) -> bytes:
    """A frame with a real key."""
    plain = frame(opcode, body, fin=fin, mask=mask)
    if not mask:
        return plain
    head = plain[: len(plain) - len(body) - 4]
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(body))


FRAMES = st.lists(
    st.builds(
        masked,
        st.sampled_from([Op.BINARY] * 6 + [Op.CONTINUATION, Op.TEXT, Op.PING, Op.CLOSE, 3]),
        st.binary(max_size=20) | st.sampled_from([b"x" * 125, b"x" * 126, b"y" * 300]),
        st.sampled_from([True] * 5 + [False]),
        st.sampled_from([True] * 9 + [False]),
        st.binary(min_size=4, max_size=4),
    ),
    max_size=8,
).map(b"".join)


@given(data=FRAMES, cuts=st.lists(st.integers(0, 1500), max_size=5))
def test_whole_messages_are_taken_as_wsproto_would(data: bytes, cuts: list[int]) -> None:
    """The short way changes nothing: not the messages, nor what is refused, answered or closed."""
    edges = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    outcomes = []
    for kind in (GuardedProtocol, PlainProtocol):
        protocol = open_server_protocol(max_message_bytes=200, kind=kind)
        assert not list(protocol.events())  # wsproto has nothing left of the handshake
        messages: list[bytes] = []
        for start, end in itertools.pairwise(edges):
            protocol.receive_data(data[start:end])
            messages += [bytes(e.data) for e in protocol.events() if isinstance(e, BytesMessage)]
        outcomes.append((messages, protocol.breach, protocol.peer_close, protocol.take_ping()))
    assert outcomes[0] == outcomes[1]


@given(
    data=FRAMES,
    cuts=st.lists(st.integers(0, 1500), max_size=5),
    refused=st.sets(st.integers(0, 8)),
)
def test_messages_handed_over_are_those_that_are_yielded(
    data: bytes, cuts: list[int], refused: set[int]
) -> None:
    """Delivered or read, taken or left waiting: each message comes once, in order, and all else is as ever."""
    edges = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    outcomes = []
    for delivers in (True, False):
        protocol = open_server_protocol(max_message_bytes=200)
        assert not list(protocol.events())
        messages: list[bytes] = []
        offers = itertools.count()

        def hand_over(
            message: bytes,
            messages: list[bytes] = messages,
            offers: itertools.count[int] = offers,
        ) -> bool:
            if next(offers) in refused:
                return False
            messages.append(message)
            return True

        protocol.hand_over = hand_over
        for piece in (data[start:end] for start, end in itertools.pairwise(edges)):
            left = protocol.deliver(piece) if delivers else piece
            if left:
                protocol.receive_data(left)
            protocol.hand_over = lambda _: (
                False
            )  # who has refused one is asked again after the turn
            messages += [bytes(e.data) for e in protocol.events() if isinstance(e, BytesMessage)]
            protocol.hand_over = hand_over
        outcomes.append((messages, protocol.breach, protocol.peer_close, protocol.take_ping()))
    assert outcomes[0] == outcomes[1]


def test_delivering_stops_where_a_message_is_refused_and_at_what_wsproto_must_read() -> None:
    """What is left says so: `AGAIN` for messages that wait, the rest for wsproto, nothing when all is done."""
    protocol = open_server_protocol()
    list(protocol.events())
    taken: list[bytes] = []
    protocol.hand_over = lambda message: bool(message != b"no" and not taken.append(message))  # type: ignore[func-returns-value]
    assert protocol.deliver(frame(Op.BINARY, b"a") + frame(Op.BINARY, b"b")[:3]) == b""
    assert protocol.deliver(frame(Op.BINARY, b"b")[3:]) == b""
    ping = frame(Op.PING, b"p")
    assert protocol.deliver(frame(Op.BINARY, b"c") + ping) == ping
    assert taken == [b"a", b"b", b"c"]
    assert protocol.deliver(frame(Op.BINARY, b"no") + frame(Op.BINARY, b"d")) is AGAIN
    assert protocol.deliver(frame(Op.BINARY, b"e")) == frame(Op.BINARY, b"e")
    assert [bytes(e.data) for e in protocol.events() if isinstance(e, BytesMessage)] == [b"no"]
    assert taken == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("role", [ConnectionType.CLIENT, ConnectionType.SERVER])
@given(
    message=st.binary(max_size=1000)
    | st.sampled_from([b"x" * 125, b"x" * 126, b"y" * 0xFFFF, b"z" * 0x10000])
)
def test_encode_message_is_read_as_the_message_by_wsproto(
    role: ConnectionType, message: bytes
) -> None:
    """The short way to a frame gives one that wsproto itself takes for the same message."""
    theirs = ConnectionType.SERVER if role is ConnectionType.CLIENT else ConnectionType.CLIENT
    peer = WSProtoConnection(theirs)
    frame = GuardedProtocol(role, max_message_bytes=0xFFFF).encode_message(message)
    peer.receive_data(b"".join(frame))
    (event,) = peer.events()
    assert isinstance(event, BytesMessage)
    assert (event.data, event.message_finished) == (message, True)


@pytest.mark.parametrize("is_c", [True, False], ids=["C", "Python"])
@pytest.mark.parametrize("role", [ConnectionType.CLIENT, ConnectionType.SERVER])
@given(sizes=st.lists(st.integers(0, 9) | st.integers(4090, 4100), min_size=1, max_size=6))
def test_a_message_in_pieces_is_that_in_one(
    role: ConnectionType, is_c: bool, sizes: list[int]
) -> None:
    """Wherever it is cut: the mask goes on from one piece to the next, with either masker."""
    theirs = ConnectionType.SERVER if role is ConnectionType.CLIENT else ConnectionType.CLIENT
    pieces = [bytes(range(number, number + 100)) * 42 for number in range(len(sizes))]
    pieces = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        if not is_c:
            patch.setattr(_protocol, "_c_masker", lambda: None)
        frame = GuardedProtocol(role, max_message_bytes=MIB).encode_message(
            *(memoryview(piece) for piece in pieces)
        )
    peer = WSProtoConnection(theirs)
    peer.receive_data(b"".join(frame))
    data = b"".join(event.data for event in peer.events() if isinstance(event, BytesMessage))
    assert data == b"".join(pieces)


LONG = [b"", b"x" * 125, b"y" * 126, b"z" * 0xFFFF, bytes(range(256)) * 256, b"end" * 90_000]


@pytest.mark.parametrize("is_c", [True, False], ids=["C", "Python"])
@pytest.mark.parametrize("role", [ConnectionType.CLIENT, ConnectionType.SERVER])
@given(cuts=st.lists(st.integers(0, 420_000), max_size=12), near=st.integers(0, 20))
def test_long_messages_come_whole_whatever_pieces_they_come_in(
    role: ConnectionType, is_c: bool, cuts: list[int], near: int
) -> None:
    """Cut in their heads, too, and unmasked right by either masker."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_c:
            patch.setattr(_protocol, "_c_masker", lambda: None)
        theirs = ConnectionType.SERVER if role is ConnectionType.CLIENT else ConnectionType.CLIENT
        peer = GuardedProtocol(theirs, max_message_bytes=MIB)
        frames = [b"".join(peer.encode_message(message)) for message in LONG]
        data = b"".join(frames)
        if role is ConnectionType.SERVER:
            protocol = open_server_protocol()
        else:
            protocol = GuardedProtocol(role, max_message_bytes=MIB)
            protocol.connection = WSProtoConnection(role)
            protocol.accepted = protocol._heard = True
        assert not list(protocol.events())
        head = sum(len(each) for each in frames[:4]) + near  # somewhere in or behind a head
        edges = [0, *sorted(min(place, len(data)) for place in (*cuts, head)), len(data)]
        messages: list[bytes] = []
        for start, end in itertools.pairwise(edges):
            protocol.receive_data(data[start:end])
            messages += [bytes(e.data) for e in protocol.events() if isinstance(e, BytesMessage)]
        assert messages == LONG
        assert protocol.breach is None


@pytest.mark.parametrize("kept", [1, 5, 12, 1000])
def test_an_end_in_the_middle_of_a_long_message_is_an_end(kept: int) -> None:
    """Nobody gets a part of it, and nothing waits for the rest."""
    for kind in (GuardedProtocol, PlainProtocol):
        protocol = open_server_protocol(kind=kind)
        assert not list(protocol.events())
        protocol.receive_data(frame(Op.BINARY, bytes(100_000))[:kept])
        protocol.receive_data(None)
        (event,) = protocol.events()
        assert isinstance(event, CloseConnection)
        assert protocol.breach is None


def test_what_comes_behind_a_long_message_is_seen() -> None:
    """Its goodbye, say, in the same read as its last byte."""
    protocol = open_server_protocol()
    assert not list(protocol.events())
    data = frame(Op.BINARY, bytes(100_000)) + frame(Op.CLOSE, close_payload(1001))
    protocol.receive_data(data[:50_000])
    assert not list(protocol.events())
    protocol.receive_data(data[50_000:])
    message, close = protocol.events()
    assert isinstance(message, BytesMessage)
    assert isinstance(close, CloseConnection)
    assert protocol.peer_close is not None
    assert protocol.peer_close.code == 1001
