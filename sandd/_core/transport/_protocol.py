"""wsproto's connection with limits: every event trio-websocket ever sees has passed here. No I/O.

trio-websocket takes its protocol object as an argument, which makes this the one place where a
peer's bytes can be refused before they cost memory or reach code that doesn't expect them. It is
also the seam for a faster codec: whatever has wsproto's `send`, `receive_data`, `events` and
`state` can stand below.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection as FrameConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.handshake import H11Handshake

from sandd._core.byte_ring import ByteRing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    import h11
    from wsproto.events import Event
    from wsproto.typing import Headers

    from sandd.wire import Buffer

MAX_FRAGMENTS: Final = 4096
"""Frames in one message. Ours come in one; a proxy may split them, but not into crumbs: parsing an
empty frame costs about 8 us, and 100,000 of them may hide in a message of no size at all."""

EVENTS_PER_TURN: Final = 512
"""Events handled before other tasks run: one read may hold 40,000 pings, 0.4 s of parsing."""

MESSAGE_OVERHEAD: Final = 64
"""Bytes charged for a waiting message besides its own, so that empty ones are bounded as well."""

MAX_REFUSAL_BYTES: Final = 1024
"""What is kept of the body of an HTTP refusal: enough for a sentence to show to a person."""

MAX_RETRY_AFTER: Final = 300.0
"""Seconds; a server, or a proxy that answers in its place, can't send anybody away for longer."""

LEAST_RETRY_AFTER: Final = 1.0
"""Seconds; who says "at once", as load balancers do, is not asked a hundred times a second."""

AGAIN: Final = b"AGAIN"
"""Fed instead of bytes from the network (told by identity): go on with what is already here."""

_NO_STATUS, _ABNORMAL = 1005, 1006
"""Close codes that never cross the wire; wsproto reports them where the peer sent none."""


_SPENT_HANDSHAKE: Final = H11Handshake(ConnectionType.SERVER)
"""Has nothing more to say; stands in for that of every open connection, which would hold on to its
HTTP parser and request: 3 KiB (m)."""


@frozen
class Breach:
    """A rule of WebSocket, or a limit of ours, that the peer broke: the close code and why."""

    code: int
    reason: str


@frozen
class PeerClose:
    """The peer's close frame, where it is the one that closes. `code` is None if it sent none."""

    code: int | None
    reason: str

    @classmethod
    def of(cls, event: CloseConnection) -> PeerClose:
        code = None if event.code in (_NO_STATUS, _ABNORMAL) else int(event.code)
        return cls(code, event.reason or "")


@define
class Refusal:
    """A server's HTTP answer to our handshake, where it is not an upgrade."""

    status: int
    retry_after: float | None = None
    """Seconds, where it named any."""
    body: bytes = b""

    @classmethod
    def of(cls, event: RejectConnection) -> Refusal:
        return cls(event.status_code, _retry_after(event.headers))


def _retry_after(headers: Headers) -> float | None:
    """Seconds to wait, from a Retry-After header (RFC 9110 s. 10.2.3); a date is not understood."""
    for name, value in headers:
        if name.lower() == b"retry-after" and value.isdigit() and len(value) < 10:
            return max(LEAST_RETRY_AFTER, min(float(value), MAX_RETRY_AFTER))
    return None


FAST_MASK_BYTES: Final = 4096
"""From here on masking is left to C, a hundred times as fast; below, the two are much the same."""


@functools.cache
def _c_masker() -> Callable[[bytes | memoryview, bytes], bytes] | None:
    """The masker of the package websockets; None where it was installed without its C part.

    Loaded when it is first needed: that takes 25 ms, which a daemon need not wait for to register (m).
    """
    try:
        from websockets.speedups import apply_mask
    except ImportError:
        return None
    return apply_mask


def _masked(data: Buffer, key: bytes) -> bytes:
    """`data` masked or unmasked (RFC 6455 s. 5.3): in C, or by one XOR of two large numbers."""
    size = len(data)
    if size >= FAST_MASK_BYTES and (apply_mask := _c_masker()) is not None:
        return apply_mask(data, key)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")).to_bytes(
        size, "little"
    )


def _all_masked(pieces: Iterable[Buffer], key: bytes) -> Iterator[bytes]:
    """One after the other, as if they were in one piece."""
    turn = 0
    for piece in pieces:
        yield _masked(piece, key[turn:] + key[:turn])
        turn = (turn + len(piece)) % 4


@define
class _Arriving:
    """A message in one frame that has begun to come, and wsproto knows nothing of."""

    size: int
    key: bytes
    """b"" where it isn't masked."""
    body: ByteRing = field(factory=ByteRing)

    def take(self, data: bytes, position: int) -> int:
        """How many of these bytes, from there on, belong to it."""
        count = min(len(data) - position, self.size - len(self.body))
        self.body.append(
            data if count == len(data) else memoryview(data)[position : position + count]
        )
        return count

    def message(self) -> bytes | None:
        """The message, once it is whole."""
        if len(self.body) < self.size:
            return None
        body = self.body.copy(self.size)
        return _masked(body, self.key) if self.key else body


def keep(_message: bytes) -> bool:
    """Hands over nothing."""
    return False


class GuardedProtocol(WSConnection):
    """wsproto's `WSConnection`; it yields whole binary messages, and nothing that could hurt.

    What trio-websocket must not handle is kept in attributes instead, for the owner to act upon
    after each turn: pings (it would answer after our close frame, and crash), text and broken
    frames (it would close without a code), refusals (it would raise them in a background task).

    Args:
        role: which side of the connection this is.
        max_message_bytes: the most a message may have, counted over its fragments.
    """

    def __init__(self, role: ConnectionType, *, max_message_bytes: int) -> None:
        super().__init__(role)
        self.breach: Breach | None = None
        self.peer_close: PeerClose | None = None
        self.accepted = False
        """The server has upgraded the connection (client side)."""
        self.refusal: Refusal | None = None
        self.handshake_error: Exception | None = None
        self.has_more = False
        """The last turn ended because it was long, not because the bytes did: feed `AGAIN`."""
        self.hand_over: Callable[[bytes], bool] = keep
        """Offered each whole message first; what it takes is not yielded."""
        self.charged = 0
        """Cost of all messages yielded so far, each see `cost_of`."""
        self.max_message_bytes = max_message_bytes
        self._partial = bytearray()
        self._fragments = 0
        self.ping: bytes | None = None
        """The payload of the latest ping that nobody answered; see `take_ping`."""
        self._whole: list[bytes] = []
        """Messages that came in one frame, EVENTS_PER_TURN at most; they go before whatever wsproto holds."""
        self._arriving: _Arriving | None = None
        """The one that is still coming; nothing else can come before it is whole."""
        self._head = b""
        """The beginning of a frame that may be such a message."""
        self._is_fed = True
        """wsproto may have something to yield."""
        self.is_between = False
        """Known to be open (`is_open`), with nothing under way in wsproto, until that has to do with anything again: it
        is made anew then, and until then takes no memory (2 KiB)."""
        self._deaf = False
        self._heard = False

    @property
    def is_open(self) -> bool:
        """Both sides may send messages: no close frame has gone either way."""
        connection = self.connection
        return self.is_between or (
            connection is not None and connection.state is ConnectionState.OPEN
        )

    def take_ping(self) -> bytes | None:
        """The payload of the latest ping that nobody answered, once.

        Only the latest needs an answer (RFC 6455 s. 5.5.3), hence a flood costs one pong a turn.
        """
        ping, self.ping = self.ping, None
        return ping

    @staticmethod
    def cost_of(message: bytes | bytearray) -> int:
        """What a waiting message is charged at."""
        return len(message) + MESSAGE_OVERHEAD

    def encode_message(self, *pieces: Buffer) -> tuple[Buffer, ...]:
        """The frame of one whole message, as `send` would make it, at a fifth of the cost: its head, and its pieces.

        Not in one piece, which would be one more copy. A frame that is neither a fragment nor compressed depends on
        nothing that was sent before.
        """
        size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        masked = 0x80 if self.client else 0
        if size <= 125:
            head = bytes((0x82, masked | size))
        elif size <= 0xFFFF:
            head = bytes((0x82, masked | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x82, masked | 127)) + size.to_bytes(8, "big")
        if not masked:
            return head, *pieces
        key = os.urandom(4)  # a fresh one for each frame (RFC 6455 s. 5.3)
        if len(pieces) == 1:
            return head + key, _masked(pieces[0], key)
        return head + key, *_all_masked(pieces, key)

    @property
    def http(self) -> h11.Connection:
        """What is to read the upgrade request, and says the answer (server side); a private name that tests hold."""
        return self.handshake._h11_connection

    def read_request(self, request: h11.Request) -> Request:
        """The upgrade request, checked, which `http` has just read (server side).

        Raises:
            wsproto.utilities.RemoteProtocolError: it is not a WebSocket handshake of version 13.
            UnicodeError: a header that must be ASCII isn't.
        """
        # wsproto's public way has h11 write a request that was read, and read it once more: a tenth of a handshake (m).
        checked = self.handshake._process_connection_request(request)
        self.http.next_event()  # its end, unless there is a body to come, which nobody waits for
        return checked

    @property
    def state(self) -> ConnectionState:
        """See wsproto."""
        return ConnectionState.OPEN if self.is_between else super().state

    def send(self, event: Event) -> bytes:
        """See wsproto."""
        self._wake()
        data = super().send(event)
        if isinstance(event, AcceptConnection):
            list(super().events())  # of the handshake, which is over
            self._is_fed = False
            self._doze()
        return data

    def _doze(self) -> None:
        """Forget what can be made anew, if nothing but that is left of wsproto's part."""
        if self.breach is None and not self._deaf and self._is_between_messages():
            self.is_between = True
            self.connection = None
            self.handshake = _SPENT_HANDSHAKE

    def _wake(self) -> None:
        if self.is_between:
            self.is_between = False
            self.connection = FrameConnection(
                ConnectionType.CLIENT if self.client else ConnectionType.SERVER
            )

    def receive_data(self, data: bytes | None) -> None:
        """Take bytes from the network. Never raises: garbage shows in `handshake_error`."""
        if self._deaf or data is AGAIN:
            return
        try:
            if self.client and not self._heard and data is not None:
                # h11 would wait for a second line, which a greeting like SSH's doesn't have.
                self._heard = True
                if not b"HTTP/".startswith(data[:5]):
                    raise ValueError("not HTTP")
            if data is None:
                # Of a message that will never be whole, nobody needs to know.
                data, self._head, self._arriving = self._head or None, b"", None
                self._wake()
                if data is not None:
                    super().receive_data(data)
                    data = None
            elif self._takes_whole_messages:
                data = self._take_whole_messages(data)
                if not data:
                    return
            self._is_fed = True
            self._wake()
            super().receive_data(data)
        except Exception as exc:  # wsproto lets UnicodeError and h11's errors out of a handshake
            self.handshake_error = exc
            self._deaf = True

    def forget_half(self) -> None:
        """Nothing more comes: of a message that will never be whole, nobody needs to know.

        What is left of a connection refers to itself, and to this: so it would be there until Python looks for such,
        and a program that only moves bulk makes so little else that it seldom does.
        """
        self._head, self._arriving = b"", None
        self._forget_partial()

    def deliver(self, data: bytes) -> bytes:
        """Hand over the messages at the front of `data`, as far as they need nothing of wsproto.

        Returns what is left to `receive_data`: all, the rest, `AGAIN` if there are messages to yield, or b""
        if there is nothing to do any more. Mostly it is that, and saves a turn through trio-websocket.
        """
        if self.is_between and not (self._whole or self._head or self._arriving):
            # Exactly one short one, as mostly: a third of the work that it would be else.
            begin, masked = (2, 0) if self.client else (6, 0x80)
            length = len(data) - begin
            if (
                0 <= length <= 125
                and data[0] == 0x82
                and data[1] == masked | length
                and length <= self.max_message_bytes
            ):
                body = data[begin:]
                message = _masked(body, data[2:begin]) if masked else body
                hand_over = (
                    self.hand_over
                )  # (to call what is not a method by its name takes Python longer)
                if hand_over(message):
                    return b""
                self._whole.append(message)
                return AGAIN
        if self._deaf or self._whole or not self._takes_whole_messages:
            return data
        return self._hand_over(self._take_whole_messages(data))

    def deliver_left(self, left: bytes) -> bytes | None:
        """Go on with what `deliver` left because it wasn't taken; what is left of it now, or None."""
        left = self._hand_over(b"" if left is AGAIN else left)
        return (left if self._whole or not left else self.deliver(left)) or None

    def _hand_over(self, rest: bytes) -> bytes:
        whole = self._whole
        while whole:
            if self.breach is None and self.is_open and not self.hand_over(whole[0]):
                return rest or AGAIN
            del whole[0]
        return rest

    def events(self) -> Generator[Event, None, None]:
        """What trio-websocket has to handle, at most `EVENTS_PER_TURN` a call (see `has_more`)."""
        self.has_more = False
        budget = EVENTS_PER_TURN
        if self.connection is not None and (self.accepted or not self.client):
            self.handshake = _SPENT_HANDSHAKE
        while self._whole:
            body = self._whole.pop(0)
            if self.breach is None and self.is_open and not self.hand_over(body):
                self.charged += self.cost_of(body)
                yield BytesMessage(data=body)
            budget -= 1
            if budget == 0:
                self.has_more = True
                return
        if not self._is_fed:
            return
        for event in super().events():
            match event:
                case BytesMessage():
                    message = self._assemble(event)
                    if message is not None and not self.hand_over(bytes(message.data)):
                        self.charged += self.cost_of(message.data)
                        yield message
                case TextMessage():
                    self._note_breach(1003, "text messages are not spoken here, only binary ones")
                case Ping():
                    self.ping = bytes(event.payload)
                case Pong():
                    pass  # we send no pings; the link layer has its own, which proxies let through
                case CloseConnection():
                    if self.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                        # The peer has closed nothing: wsproto says that it can't parse on.
                        self._deaf = True
                        self._note_breach(int(event.code), event.reason or "broken frame")
                    else:
                        if self.state is ConnectionState.REMOTE_CLOSING:  # else it answers ours
                            self.peer_close = PeerClose.of(event)
                        yield event
                case AcceptConnection():
                    self.accepted = True
                    yield event
                case RejectConnection():
                    self.refusal = Refusal.of(event)
                case RejectData():
                    assert self.refusal is not None  # wsproto: the head comes before the body
                    room = MAX_REFUSAL_BYTES - len(self.refusal.body)
                    self.refusal.body += bytes(event.data[:room])
                case _:
                    yield event
            budget -= 1
            if budget == 0:
                self.has_more = True
                return
        self._is_fed = self.connection is None
        if not self._is_fed:
            self._doze()

    @property
    def _takes_whole_messages(self) -> bool:
        """The next byte continues a message that wsproto knows nothing of, or begins one."""
        if self._arriving is not None or self._head or self.is_between:
            return True
        if self._is_fed or self.connection is None or not self.is_open or self.breach is not None:
            return False
        self._doze()
        return self.is_between

    def _is_between_messages(self) -> bool:
        """The next byte is the first of a frame, and of a message, for wsproto too; private names that a test holds."""
        connection = self.connection
        if connection is None or connection.state is not ConnectionState.OPEN or connection._events:
            return False
        proto = connection._proto
        decoder = proto._frame_decoder
        return (
            decoder.header is None
            and not decoder.buffer
            and proto._message_decoder.opcode is None
            and not decoder.extensions
        )

    def _take_whole_messages(self, data: bytes) -> bytes:
        """Take messages in one frame each from the front of `data`; the rest is for wsproto.

        That is what our own peers send, and takes a tenth of the time that wsproto needs. Whatever is
        not exactly that, or could be refused, is left to it.
        """
        if self._head:
            data, self._head = self._head + data, b""
        position, size = 0, len(data)
        # No more than a turn may take: what comes behind is taken apart by wsproto, turn by turn.
        while position < size and len(self._whole) < EVENTS_PER_TURN:
            arriving = self._arriving
            if arriving is None:
                head = self._read_head(data, position)
                if head is None:
                    break
                length, key, begin = head
                if begin > size:
                    self._head = data[position:]
                    return b""
                end = begin + length
                if end <= size:
                    if key:
                        with memoryview(data)[begin:end] as masked:
                            self._whole.append(_masked(masked, key))
                    else:
                        self._whole.append(data[begin:end])
                    position = end
                    continue
                arriving = self._arriving = _Arriving(length, key)
                position = begin
            if position < size:
                position += arriving.take(data, position)
            message = arriving.message()
            if message is not None:
                self._arriving = None
                self._whole.append(message)
        return data[position:] if position else data

    def _read_head(self, data: bytes, position: int) -> tuple[int, bytes, int] | None:
        """Of a whole message in one frame: its length, its key, and where its body begins.

        That is behind the end of `data` if the head isn't all there. None: it is something else.
        """
        masked = 0 if self.client else 0x80  # the peer's MASK bit
        if data[position] != 0x82:  # FIN, and the opcode of binary
            return None
        begin = position + 2
        if begin > len(data):
            return 0, b"", begin
        length = data[position + 1] ^ masked
        if length > 127:
            return None  # masked where it mustn't be, or the other way round
        if length > 125:
            count, least = (2, 126) if length == 126 else (8, 0x10000)
            begin += count
            if begin > len(data):
                return 0, b"", begin
            length = int.from_bytes(data[begin - count : begin], "big")
            if length < least:
                return None
        if length > self.max_message_bytes:
            return None
        if not masked:
            return length, b"", begin
        return length, data[begin : begin + 4], begin + 4

    def _assemble(self, event: BytesMessage) -> BytesMessage | None:
        """The whole message that this piece completes, if it does and is wanted."""
        if self.breach is not None or not self.is_open:
            return None  # we have said goodbye: nobody will read it
        if event.message_finished and self._fragments == 0 and not self._partial:
            return self._checked(event)
        # Appended at once, not kept as a list of pieces: a megabyte sent byte by byte would be a
        # million objects.
        self._partial += event.data
        if event.frame_finished:
            self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self._note_breach(1008, f"a message of more than {MAX_FRAGMENTS} fragments")
            return None
        if self._checked(event, len(self._partial)) is None or not event.message_finished:
            return None
        message = BytesMessage(data=bytes(self._partial))
        self._forget_partial()
        return message

    def _checked(self, event: BytesMessage, size: int | None = None) -> BytesMessage | None:
        if (len(event.data) if size is None else size) <= self.max_message_bytes:
            return event
        self._note_breach(1009, f"a message of more than {self.max_message_bytes} bytes")
        return None

    def _note_breach(self, code: int, reason: str) -> None:
        self._forget_partial()
        if self.breach is None:
            self.breach = Breach(code, reason)

    def _forget_partial(self) -> None:
        self._partial = bytearray()
        self._fragments = 0
