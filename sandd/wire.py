"""The wire protocol, whole: frames, messages, limits, and a codec that lets nothing else through.

Enough is written here to build a peer in another language. No I/O, no clock, no trio.

Transport
    WebSocket, subprotocol ``sandd.2`` (the number is the major version), binary messages only, no
    permessage-deflate. Each WebSocket message is a run of whole *frames*.

Frame
    ``type: u8, channel: u32, length: u32`` (big endian), then ``length`` bytes of payload.

    ======== ===== =====================================================================
    CONTROL    1   msgpack map of one control message; its tag is the key ``t``
    DATA       2   ``stream: u8, offset: u64``, then raw bytes (or one message, see below)
    FIN        3   as DATA; the stream ends behind these bytes (which may be none)
    GAP        4   ``stream: u8, offset: u64, end: u64``: offset..end was dropped, go on at end
    ======== ===== =====================================================================

    Channel 0 belongs to the link; every other channel is one client's attachment to one job. The
    client picks channel numbers, rising by at least one with every Attach of a connection.

Stream
    A log addressed by absolute offsets. INPUT, OUTPUT and ERROR count bytes. OPS and EVENTS count
    *messages*: one DATA frame carries exactly one, msgpack with the tag key ``t``, and moves the
    offset by one. On a channel, a stream's frames are contiguous from the offset its Attach named.
    ``Window`` returns two absolute numbers: ``ack`` (everything below was handed to the application)
    and ``max_offset`` (credit: nothing at or beyond it may be sent). Neither ever goes down on a
    channel. A receiver that has consumed all that has come acknowledges after 128 KiB at the latest, one
    that has more at hand after four times as much, so a sender needs no more than 128 KiB of room to make
    progress. OUTPUT and ERROR end by a FIN, or by the final offset that the job's last event gives for
    them, whichever comes first; INPUT always by a FIN.

Conversation
    controller: Challenge; daemon: Hello; controller: Welcome or Reject. Then clients Attach to jobs;
    data may follow an Attach that carries a spec at once, within ``INITIAL_INPUT_BYTES``.

Proof
    A Hello is proven by 32 bytes over a text: its pieces are ``sandd.2 hello proof``, the message's tag, the
    Challenge's nonce and controller id, and then for each field but ``proof`` that isn't at its default, in the
    order below, its name and its value; each piece behind its length (u32, big endian). A value is a letter and
    then: ``b`` bytes, ``s`` text in UTF-8, ``e`` the text of an enumeration, ``i`` a whole number in decimal,
    ``t`` the items of a list, or ``m`` keys and values of a map by the order of these bytes, each again behind its
    length. With a secret that both ends know it is HMAC-SHA256(secret, text); with a token, whose secret the
    controller doesn't know, that secret XOR HMAC-SHA256(SHA-256(secret), text).

    A client of a controller in another process, an *operator*, dials in as daemons do, at ``OPERATOR_PATH``
    instead of ``DAEMON_PATH``, and answers the Challenge by OperatorHello. Behind its Welcome it is told of
    every daemon that is known, then ``DaemonsTold``, and from then on of every change.

Session
    A job whose program runs in a terminal of its own. INPUT is what is typed there, OUTPUT what it shows
    (ERROR stays empty); the size of the window changes by the op ``resize``. It keeps the last
    ``scrollback`` bytes of what its owner has read, and who attaches without an offset begins there.

Request
    A job that the daemon does itself, without a process, such as listing its jobs. It is started,
    resumed and ended as any other, but belongs to the client that started it alone, and is in no
    list. Its OUTPUT is a run of answers, msgpack maps with the tag key ``t``, unless its spec says
    otherwise; it ends by ``Exited`` with code 0, or by ``Failed``.

Transfer
    A request that copies a file or a tree: ``upload`` to the daemon, ``download`` from it. INPUT and
    OUTPUT are runs of *records*, and either end may be the sender. A record is ``kind: u8, length:
    u32`` (big endian), then ``length`` bytes: with kind 1 one message, msgpack with the tag key ``t``;
    with kind 2 bytes of the file that is being sent. Unknown messages are ignored.

    The sender says, after ``total`` if the spec asks for that, exactly one thing without a name, as
    the receiver chooses it: ``file`` or ``ask``, or ``enter``, what is in the directory, and ``leave``.
    Then ``end``. A small file of a transfer that skips nothing follows its ``file`` at once. Any other
    is a question, ``ask``; questions are numbered from 0, the receiver answers them in order by
    ``skip`` or ``want``, and what it wants is sent in that order, too: ``content``, bytes and ``zeros``
    that make up its size, ``complete``; or ``changed`` in place of the latter, and the bytes once more
    from the beginning; or ``vanished`` in place of all. Nothing else stands among them. At most
    ``TRANSFER_WINDOW`` files, and ``TRANSFER_WINDOW_BYTES`` of their paths, are asked about and not
    complete. When all that was sent is safe on its disk, the receiver says ``settled``.
    Whichever end fails says ``failed``; then nothing follows, and the other end needn't say any more.

Connection
    A request that is a socket on the daemon's side. INPUT goes into it, and the end of INPUT ends that
    direction alone; OUTPUT is what comes out of it, and its FIN is the peer's. ``Started`` says that it
    stands. When both directions have ended it has ``Exited``; one that broke has ``Failed``, and then
    the end of OUTPUT is no end of what the peer said. Who is done with it sends ``End``: what arrived
    of INPUT is still delivered if all of it did, else the connection is reset.

    A ``connect`` spec makes one. Others come to a listener, a request of a ``listen`` spec: of each an
    answer of the listener tells the id, and its client, nobody else, attaches to it without a spec.

History
    sandd.2 / version 1: as written here.
"""

from __future__ import annotations

import enum
import functools
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, TypeVar, get_args

import attrs
import msgpack
from attrs import field, frozen
from attrs.validators import deep_iterable
from cattrs.fns import identity
from cattrs.preconf.msgpack import make_converter

from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.limits import LIMIT_NAMES, NO_LIMITS, Limits

SUBPROTOCOL: Final = "sandd.2"
VERSIONS: Final = (1,)
DAEMON_PATH: Final = "/ws"
"""Where daemons dial in, in the URL."""
OPERATOR_PATH: Final = "/operator"
"""Where operators do."""

# ---- limits -------------------------------------------------------------------------------------

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_DATA_BYTES: Final = 512 * KIB
"""Raw bytes in one DATA frame, on a line that takes so many at once: each frame is some 100 calls of each process that
it passes, whatever its size, and with 128 KiB those were a quarter of what bulk cost (m)."""
MAX_WORD_BYTES: Final = 128 * KIB
"""One message on OPS or EVENTS: they are counted, so this is what bounds the bytes of those that wait."""
MAX_PING_BYTES: Final = 24
"""A ping, or the answer to one, as our encoder writes it."""
MAX_CONTROL_BYTES: Final = 1 * MIB
"""One control message: an argv and environment may be large; Linux itself stops at 2 MiB."""
MAX_HELLO_BYTES: Final = 64 * KIB
"""One WebSocket message before authentication: nobody unknown makes us hold more."""
MAX_MESSAGE_BYTES: Final = 2 * MIB
"""One WebSocket message: the largest control frame, and a batch of data beside it."""
MAX_OFFSET: Final = 2**63 - 1
"""Offsets stay below this, so that they fit a signed 64-bit integer in every language."""
MAX_SECONDS: Final = 1e9
"""Any duration: 31 years, so that adding it to a clock reading stays exact."""
MAX_ID_LENGTH: Final = 128
"""Characters in a daemon id, job id or tenant."""
MAX_NAME_LENGTH: Final = 2 * MAX_ID_LENGTH
"""Characters in a daemon's full name, ``TENANT/ID``, as one says it who may see several tenants."""
MAX_LABELS: Final = 64
"""Labels of one daemon; they are held for each daemon and matched on each broadcast."""
MAX_ANCESTORS: Final = 16
"""Earlier instances in a Hello: so many starts in a row may stay unheard of by the controller."""
MAX_TEXT_LENGTH: Final = 4096
"""Characters in a message for people (reject, failure): a screenful."""
MAX_ITEMS: Final = 1024
"""Elements of one list or map in a message, unknown fields included; specs may hold more."""
SHORT_SPEC_BYTES: Final = 512
"""Up to here a spec is read in one go, like any message: what arrays in it claim comes to 1.4 MiB at most."""
INITIAL_INPUT_BYTES: Final = 64 * KIB
"""Credit on INPUT before Attached has come: one small stdin travels with its Attach."""
INITIAL_OUTPUT_BYTES: Final = 1 * MIB
"""Credit on OUTPUT and ERROR of a channel whose Attach names no cursors, unless it says otherwise."""
MESSAGE_WINDOW: Final = 64
"""Credit on OPS and EVENTS, in messages, beyond what was consumed."""
ACK_EVERY_BYTES: Final = 128 * KIB
"""A receiver that has consumed all there is acknowledges after this much at the latest: each word of it is a turn of
every process that it passes, and with 64 KiB those were half of what bulk cost (m)."""
MAX_UNREAD_PIECES: Final = 4096
"""Unread pieces of a stream, with gaps between them, that a receiver holds: each costs 100 bytes besides."""
MAX_ANSWERS_BYTES: Final = 64 * MIB
"""All answers to one request: 100,000 jobs, of 600 bytes each."""
MAX_SCROLLBACK_BYTES: Final = 16 * MIB
"""What a session may keep of its past output: it is in the daemon's memory."""
MAX_TERMINAL_SIZE: Final = 0xFFFF
"""Rows or columns of a terminal: an unsigned short in the kernel's winsize."""
MAX_RECORD_BYTES: Final = 64 * KIB
"""One message of a transfer: a name or two, and a text for people."""
MAX_PIECE_BYTES: Final = 1 * MIB
"""Bytes of a file in one record; and in one system call of those that move them."""
MAX_ZEROS: Final = 64 * MIB
"""In one ``zeros``: the receiver hashes them, and looks behind each whether that is still wanted: 50 ms."""
SMALL_FILE_BYTES: Final = 256 * KIB
"""Up to here a file is sent unasked: sending it costs less than a round trip."""
TRANSFER_WINDOW: Final = 1024
"""Files that are asked about and not complete: 0.5 s of round trip at 2,000 files a second."""
TRANSFER_WINDOW_BYTES: Final = 256 * KIB
"""Of their paths: both ends keep them."""
MAX_NAME_BYTES: Final = 1024
"""One name in a directory: 255 characters of UTF-8 or UTF-16 are at most that."""
MAX_PATH_BYTES: Final = 32 * KIB
"""A path: what Windows allows; Linux stops at 4 KiB."""
MAX_DEPTH: Final = 1024
"""Directories within each other in a tree: a path has no room for many more."""
MAX_UNSUPPORTED: Final = 64
"""Names of what was left out, in ``end``: enough to see what it is about."""
MAX_HOST_LENGTH: Final = 255
"""Characters in a host's name: what the DNS allows."""
MAX_SOCKET_PATH: Final = 4096
"""Bytes in the path of a Unix socket; systems allow about a hundred, and say so themselves."""
MAX_SHOWN_BYTES: Final = 256
"""Of a command, or of a failure, in the answer that describes a job: enough to know it again."""

# ---- frames -------------------------------------------------------------------------------------


class FrameType(enum.IntEnum):
    """The first byte of a frame."""

    CONTROL = 1
    DATA = 2
    FIN = 3
    GAP = 4


class Stream(enum.IntEnum):
    """The streams of a job, and which way each one flows."""

    OPS = 0  # client -> daemon, messages: what to do with the running job
    EVENTS = 1  # daemon -> client, messages: what became of it
    INPUT = 2  # client -> daemon, bytes: stdin, keystrokes, an upload
    OUTPUT = 3  # daemon -> client, bytes: stdout, a screen, a download
    ERROR = 4  # daemon -> client, bytes: stderr


TO_DAEMON: Final = frozenset({Stream.OPS, Stream.INPUT})
TO_CLIENT: Final = frozenset({Stream.EVENTS, Stream.OUTPUT, Stream.ERROR})
MESSAGE_STREAMS: Final = frozenset({Stream.OPS, Stream.EVENTS})

_HEADER: Final = struct.Struct("!BII")
_DATA: Final = struct.Struct("!BQ")
_GAP: Final = struct.Struct("!BQQ")
_DATA_HEADER: Final = struct.Struct("!BIIBQ")
HEADER_BYTES: Final = _HEADER.size

Buffer: TypeAlias = bytes | memoryview
EncodedFrame: TypeAlias = tuple[bytes, Buffer]
"""A frame ready to send: head and body, joined only when a whole message is put together."""


class ControlFrame(NamedTuple):
    """A control frame that becomes bytes only when it leaves this process: see `encoded`."""

    channel: int
    message: Control


OutgoingFrame: TypeAlias = EncodedFrame | ControlFrame


class Data(NamedTuple):
    """The payload of a DATA, FIN or GAP frame."""

    stream: Stream
    offset: int
    body: memoryview
    final: bool = False
    gap_end: int | None = None


class Frame(NamedTuple):
    """One frame of a received message; the payload still borrows the message's memory."""

    type: FrameType
    channel: int
    payload: memoryview
    message: Control | Unknown | None = None
    """What the payload of a control frame says, where it was never bytes."""
    data: Data | None = None
    """What the payload of a data frame says, where that was read along, or it was never put together."""


_FRAME_TYPES: Final = {int(kind): kind for kind in FrameType}
# Bound here, and as numbers, because looking up a member by its class costs as much as a function call (Python 3.11).
_CONTROL_FRAME: Final = FrameType.CONTROL
_FIN_FRAME: Final = FrameType.FIN
_GAP_FRAME: Final = FrameType.GAP
_CONTROL_NUMBER: Final = int(FrameType.CONTROL)
_DATA_NUMBER: Final = int(FrameType.DATA)
_FIN_NUMBER: Final = int(FrameType.FIN)
_STREAMS: Final = {int(stream): stream for stream in Stream}


def decode_frames(message: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Iterator[Frame]:
    """Split a WebSocket message into its frames, in order; RemoteProtocolError for anything else."""
    size = len(message)
    if size > max_bytes:
        raise RemoteProtocolError(f"message of {size} bytes; at most {max_bytes} are allowed here")
    view = memoryview(message)
    position = 0
    while position < size:
        if size - position < HEADER_BYTES:
            raise RemoteProtocolError("message ends inside a frame header")
        number, channel, length = _HEADER.unpack_from(view, position)
        frame_type = _FRAME_TYPES.get(number)
        if frame_type is None:
            raise RemoteProtocolError(f"unknown frame type {number}")
        position += HEADER_BYTES
        if length > size - position:
            raise RemoteProtocolError(
                f"frame claims {length} bytes, its message has {size - position}"
            )
        payload = view[position : position + length]
        position += length
        data = None
        if number == _DATA_NUMBER and _DATA.size <= length <= MAX_WORD_BYTES:
            # As `decode_data`, which is left what needs a closer look.
            stream_number, offset = _DATA.unpack_from(payload)
            stream = _STREAMS.get(stream_number)
            if stream is not None and offset <= MAX_OFFSET - MAX_WORD_BYTES:
                data = tuple.__new__(Data, (stream, offset, payload[_DATA.size :], False, None))
        # As `Frame(...)`, without a function of Python's own in between.
        yield tuple.__new__(Frame, (frame_type, channel, payload, None, data))


def encoded(frame: OutgoingFrame) -> EncodedFrame:
    """The frame's bytes. LocalProtocolError for a control message larger than MAX_CONTROL_BYTES."""
    if isinstance(frame, ControlFrame):
        return encode_control(frame.channel, frame.message)
    return frame


_NO_PAYLOAD: Final = memoryview(b"")


def as_frame(outgoing: OutgoingFrame) -> Frame:
    """A frame as its receiver would see it, for a link that stays in this process."""
    if isinstance(outgoing, ControlFrame):
        channel, message = outgoing
        return tuple.__new__(Frame, (_CONTROL_FRAME, channel, _NO_PAYLOAD, message, None))
    head, body = outgoing
    if len(head) == HEADER_BYTES:
        number, channel, _ = _HEADER.unpack_from(head)
        return Frame(_FRAME_TYPES[number], channel, memoryview(body))
    # The head of a data frame we encoded ourselves holds the beginning of the payload.
    number, channel, _, stream, offset = _DATA_HEADER.unpack_from(head)
    kind = _FRAME_TYPES[number]
    data = Data(_STREAMS[stream], offset, memoryview(body), kind is _FIN_FRAME)
    return Frame(kind, channel, _NO_PAYLOAD, data=data)


def decode_data(frame: Frame) -> Data:
    """Read the payload of a DATA, FIN or GAP frame; RemoteProtocolError if it breaks a limit."""
    if frame.data is not None:
        return frame.data
    kind, payload = frame.type, frame.payload
    shape = _GAP if kind is _GAP_FRAME else _DATA
    if len(payload) < shape.size:
        raise RemoteProtocolError("data frame shorter than its own header")
    gap_end = None
    if kind is _GAP_FRAME:
        number, offset, gap_end = _GAP.unpack_from(payload)
        if not offset < gap_end <= MAX_OFFSET:
            raise RemoteProtocolError(f"gap from {offset} to {gap_end}")
    else:
        number, offset = _DATA.unpack_from(payload)
    stream = _STREAMS.get(number)
    if stream is None:
        raise RemoteProtocolError(f"unknown stream {number}")
    body = payload[shape.size :]
    limit = MAX_WORD_BYTES if stream in MESSAGE_STREAMS else MAX_DATA_BYTES
    if len(body) > limit:
        raise RemoteProtocolError(
            f"{stream.name} frame of {len(body)} bytes; at most {limit} are allowed"
        )
    if offset + len(body) > MAX_OFFSET:
        raise RemoteProtocolError(f"offset {offset} is out of range")
    if gap_end is not None and len(body):
        raise RemoteProtocolError("gap frame with a body")
    # As `Data(...)`, without a function of Python's own in between.
    return tuple.__new__(Data, (stream, offset, body, kind is _FIN_FRAME, gap_end))


def encode_data(
    channel: int, stream: Stream, offset: int, body: Buffer, *, final: bool = False
) -> EncodedFrame:
    """A DATA frame, or FIN with `final`; `body` is at most MAX_DATA_BYTES (the caller's duty)."""
    kind = _FIN_NUMBER if final else _DATA_NUMBER
    return _DATA_HEADER.pack(kind, channel, _DATA.size + len(body), stream, offset), body


def split_data(frame: EncodedFrame, count: int) -> tuple[EncodedFrame, EncodedFrame | None]:
    """The frame's first `count` bytes, and a frame of the rest, if it is a data frame of more than that."""
    head, body = frame
    kind, channel, length = _HEADER.unpack_from(head)
    if kind == FrameType.GAP or length <= _DATA.size + count:
        return frame, None
    if len(head) == HEADER_BYTES:  # one that is passed on: its payload is still in one piece
        number, offset = _DATA.unpack_from(body)
        body = body[_DATA.size :]
    else:
        number, offset = _DATA.unpack_from(head, HEADER_BYTES)
    final = kind == FrameType.FIN
    stream = _STREAMS[number]
    return (
        encode_data(channel, stream, offset, body[:count]),
        encode_data(channel, stream, offset + count, body[count:], final=final),
    )


def encode_gap(channel: int, stream: Stream, start: int, end: int) -> EncodedFrame:
    """A GAP frame: ``start``..``end`` of the stream is gone; delivery goes on at ``end``."""
    return _HEADER.pack(FrameType.GAP, channel, _GAP.size), _GAP.pack(stream, start, end)


def encode_control(channel: int, message: Control) -> EncodedFrame:
    """A CONTROL frame; LocalProtocolError when the message is larger than MAX_CONTROL_BYTES."""
    return _control_frame(channel, _CONTROL.to_map(message), type(message))


def encode_stamped(
    channel: int,
    message: Attach,
    *,
    tenant: str,
    principal: str,
    limits: Limits,
    isolation: IsolationLevel,
) -> EncodedFrame:
    """As `encode_control` of the Attach with what the router stamps, whatever it says of that itself."""
    for text in (tenant, principal):
        if len(text) > MAX_ID_LENGTH:
            raise LocalProtocolError(f"{text:.40}... has {len(text)} characters: no id has so many")
    value = _CONTROL.to_map(message)
    value["tenant"], value["principal"] = tenant, principal
    for name in ("limits", "isolation"):
        value.pop(name, None)
    if limits is not NO_LIMITS:
        value["limits"] = _converter.unstructure(limits)
    if isolation is not _NO_ISOLATION:
        value["isolation"] = _converter.unstructure(isolation)
    return _control_frame(channel, value, Attach)


def _control_frame(channel: int, value: dict[str, Any], kind: type[Control]) -> EncodedFrame:
    payload = _pack(value)
    if len(payload) > MAX_CONTROL_BYTES:
        raise LocalProtocolError(
            f"{kind.__name__} of {len(payload)} bytes; one message holds {MAX_CONTROL_BYTES}"
        )
    return _HEADER.pack(_CONTROL_NUMBER, channel, len(payload)), payload


def readdress(channel: int, frame: Frame) -> OutgoingFrame:
    """The same frame for another channel; the payload is passed on verbatim, uncopied."""
    if frame.message is not None and not isinstance(frame.message, Unknown):
        return ControlFrame(channel, frame.message)
    if frame.data is not None:
        stream, offset, body, final, _ = frame.data
        return encode_data(channel, stream, offset, body, final=final)
    return _HEADER.pack(frame.type, channel, len(frame.payload)), frame.payload


def decode_control(frame: Frame) -> Control | Unknown:
    """The control message in a CONTROL frame. Tags we don't know become `Unknown`."""
    if frame.message is not None:
        return frame.message
    if len(frame.payload) <= MAX_PING_BYTES:
        payload = bytes(frame.payload)
        if payload.endswith(_PINGS):
            return _decode_ping(payload)
        if payload == _PLAIN_ATTACHED:
            return PLAIN_ATTACHED
    message: Control | Unknown = _CONTROL.decode(frame.payload)
    return message


_PINGS: Final = (b"\xa1t\xa4ping", b"\xa1t\xa4pong")
"""How they end, as our encoder writes them."""
_PLAIN_ATTACHED: Final = b"\x81\xa1t\xa8attached"
"""PLAIN_ATTACHED in whole: that is the answer to most starts."""


@functools.lru_cache(256)
def _decode_ping(payload: bytes) -> Control | Unknown:
    # Thousands of daemons ping, each every 20 s, and most of them with the same numbers.
    message: Control | Unknown = _CONTROL.decode(payload)
    return message


LONE_PING_BYTES: Final = HEADER_BYTES + MAX_PING_BYTES
"""A longer message is no `lone_ping`: whoever gets many need not ask."""


def lone_ping(message: bytes) -> int | None:
    """The number of the ping that a WebSocket message consists of; None where there is anything else in it."""
    if len(message) > LONE_PING_BYTES or not message.endswith(_PINGS[0]):
        return None
    return _lone_ping(message)


@functools.lru_cache(256)
def _lone_ping(message: bytes) -> int | None:
    try:
        frames = list(decode_frames(message))
        if len(frames) == 1 and frames[0].type is FrameType.CONTROL and frames[0].channel == 0:
            ping = decode_control(frames[0])
            return ping.number if isinstance(ping, Ping) else None
    except RemoteProtocolError:
        pass  # whoever decodes it is told
    return None


@functools.lru_cache(256)
def encode_pong(number: int) -> EncodedFrame:
    """The CONTROL frame that answers a ping."""
    return encode_control(0, Pong(number))


# ---- control messages: the link (channel 0) -----------------------------------------------------


def _within(low: float, high: float) -> Any:
    # One comparison, because these run for every field of every message; attrs' own are three calls.
    def check(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"{attribute.name} is {value}, which is not within {low} and {high}")

    return check


def _at_most(length: int) -> Any:
    # As above; attrs' own `max_len` is an object whose __call__ costs twice as much.
    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if len(value) > length:
            raise ValueError(f"{attribute.name} has {len(value)} elements; at most {length} may be")

    return check


def _optional(check_given: Any) -> Any:
    # As above; attrs' own `optional` is an object, too.
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None:
            check_given(instance, attribute, value)

    return check


_id: Any = _at_most(MAX_ID_LENGTH)
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def _trace(_: Any, attribute: Any, value: str) -> None:
    if value and not _TRACEPARENT.fullmatch(value):
        raise ValueError(f"{attribute.name} is no traceparent")


_full_name: Any = _at_most(MAX_NAME_LENGTH)
_offset = _within(0, MAX_OFFSET)
_path: Any = _at_most(MAX_PATH_BYTES)
_mode = _within(0, 0o7777)
_signed = _within(-MAX_OFFSET, MAX_OFFSET)
_unsigned = _within(0, 2**64 - 1)
_seconds = _within(0.0, MAX_SECONDS)


def _limit_name(_instance: object, _attribute: object, value: str) -> None:
    if value and value not in LIMIT_NAMES:
        raise ValueError(f"{value!r:.60} is no limit")


@frozen
class Unknown:
    """A message of a newer peer; it is ignored."""

    tag: str


@frozen
class Challenge:
    """controller -> daemon, first on every connection."""

    nonce: bytes = field(validator=_at_most(64))  # random, goes into the proof
    controller_id: str = field(validator=_id)  # random per controller start
    versions: tuple[int, ...] = field(
        default=VERSIONS, validator=_at_most(16)
    )  # spoken by the controller


class CredentialKind(enum.StrEnum):
    """What it is that a Hello's proof proves."""

    SHARED = (
        "shared"  # the secret that all daemons know, or all operators; without a proof: nothing
    )
    JOIN = "join"  # a join token: a daemon's, for the first time
    KEY = "key"  # the daemon's own key
    OPERATOR = "operator"  # an operator's token


class IsolationLevel(enum.StrEnum):
    """What a job is kept apart from; each level is that and all before it. See `_core.isolation`."""

    NONE = "none"  # it is who the daemon is
    USER = "user"  # a user of its tenant's own, in a workspace of that user's
    LANDLOCK = "landlock"  # and it writes nowhere else, and reads the system and that
    BWRAP = "bwrap"  # and it sees nothing else: neither files nor processes


_NO_ISOLATION: Final = IsolationLevel.NONE


@frozen
class Hello:
    """daemon -> controller: who is calling."""

    version: int  # chosen from the Challenge's
    daemon_id: str = field(validator=_id)
    instance: str = field(validator=_id)  # random per daemon process
    connection: int = field(
        validator=_offset
    )  # rises with every dial of the instance; the highest wins
    hostname: str = field(default="", validator=_at_most(255))
    platform: str = field(default="", validator=_at_most(64))  # "linux", "darwin", "win32"
    arch: str = field(default="", validator=_at_most(64))  # "x86_64", "arm64", ...
    daemon_version: str = field(default="", validator=_at_most(64))
    labels: Mapping[str, str] = field(factory=dict, validator=_at_most(MAX_LABELS))
    proof: bytes = field(default=b"", validator=_at_most(64))  # see _core.identity.proofs
    ancestors: tuple[str, ...] = field(
        default=(), validator=[_at_most(MAX_ANCESTORS), deep_iterable(_id)]
    )  # instances started before from this state directory, newest first; see _core.fencing
    credential: CredentialKind = CredentialKind.SHARED
    key_id: str = field(default="", validator=_id)  # JOIN: the token's; KEY: the daemon's uid
    generation: int = field(default=0, validator=_offset)  # of the KEY
    channel_binding: bytes = field(
        default=b"", validator=_at_most(64)
    )  # SHA-256 of the certificate that TLS showed; a controller that ends TLS insists on its own
    isolation: IsolationLevel = IsolationLevel.NONE  # the least of all its jobs
    isolation_levels: tuple[IsolationLevel, ...] = field(
        default=(IsolationLevel.NONE,), validator=_at_most(16)
    )  # those that may be asked for; without the least, it runs nothing


@frozen
class OperatorHello:
    """operator -> controller: who is calling."""

    version: int  # chosen from the Challenge's
    client: str = field(validator=_id)  # random per client; as in Attach
    connection: int = field(
        validator=_offset
    )  # rises with every dial of the client; the highest wins
    name: str = field(default="", validator=_at_most(255))  # for logs: user and host
    proof: bytes = field(default=b"", validator=_at_most(64))  # see _core.identity.proofs
    credential: CredentialKind = CredentialKind.SHARED
    key_id: str = field(default="", validator=_id)  # OPERATOR: the token's
    channel_binding: bytes = field(default=b"", validator=_at_most(64))  # as in Hello


@frozen
class Enrolment:
    """A daemon's own key, which it is to keep, and to prove from its next connection on."""

    uid: str = field(validator=_id)  # the daemon's, for good
    generation: int = field(
        validator=_offset
    )  # who has proven one can't come with an earlier one: such a key was copied
    secret: bytes = field(repr=False, validator=_at_most(64))


@frozen
class Welcome:
    """controller -> daemon or operator: the link is live."""

    version: int
    heartbeat: float = field(
        default=20.0, validator=_within(0.05, 3600.0)
    )  # ping after this silence, s
    dead_after: float = field(
        default=45.0, validator=_within(0.1, 7200.0)
    )  # no inbound for this long, s
    enrolment: Enrolment | None = None  # for a daemon that joined, or was started anew


class RejectCode(enum.StrEnum):
    """Why a controller turned a daemon or an operator away."""

    BAD_VERSION = "bad_version"  # no common version; final
    ID_IN_USE = "id_in_use"  # another live instance holds the id; try again after retry_after
    CLONED = "cloned"  # as ID_IN_USE, and one's state directory is a copy of the other's
    UNAUTHENTICATED = "unauthenticated"  # proof missing or wrong; final
    LOCKED = "locked"  # the daemon's key was copied, or somebody has locked it; try again
    STALE = "stale"  # a newer connection of the same instance, or a later start, is known
    BAD_HELLO = "bad_hello"  # id or labels not acceptable; final
    BUSY = "busy"  # draining or too many daemons; try again


@frozen
class Reject:
    """controller -> daemon or operator: not now, or never."""

    code: RejectCode
    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))
    retry_after: float | None = field(default=None, validator=_optional(_seconds))  # None: final


@frozen
class Ping:
    """Either way: answer with Pong. A data message, because proxies swallow WebSocket pings."""

    number: int = field(default=0, validator=_offset)


@frozen
class Pong:
    """The answer to a Ping, with its number; of several that came together the latest is answered."""

    number: int = field(default=0, validator=_offset)


@frozen
class Goodbye:
    """Either way: an orderly end. A daemon that says it won't come back; a controller may."""

    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))
    retry_after: float = field(default=0.0, validator=_seconds)  # controller: redial no sooner


class DaemonState(enum.StrEnum):
    """What a controller knows of a daemon."""

    ONLINE = "online"
    AWAY = "away"
    GONE = "gone"


@frozen
class DaemonDescription:
    """What a daemon said of itself, in its Hello."""

    hostname: str = field(default="", validator=_at_most(255))
    platform: str = field(default="", validator=_at_most(64))
    arch: str = field(default="", validator=_at_most(64))
    version: str = field(default="", validator=_at_most(64))  # daemon_version
    labels: Mapping[str, str] = field(factory=dict, validator=_at_most(MAX_LABELS))
    isolation: IsolationLevel = IsolationLevel.NONE
    isolation_levels: tuple[IsolationLevel, ...] = field(
        default=(IsolationLevel.NONE,), validator=_at_most(16)
    )


UNDESCRIBED: Final = DaemonDescription()


@frozen
class DaemonStatus:
    """router -> client: a daemon came, went away, or is gone; sent on every change."""

    daemon_id: str = field(validator=_full_name)
    state: DaemonState
    instance: str = field(default="", validator=_id)
    about: DaemonDescription = UNDESCRIBED
    connected_for: float = field(
        default=0.0, validator=_seconds
    )  # since it came, on its newest connection; 0 in what tells of a change


@frozen
class DaemonCloned:
    """router -> client: a daemon dialled in whose state directory and that of the id's holder are copies of one."""

    daemon_id: str = field(validator=_full_name)
    instance: str = field(validator=_id)
    about: DaemonDescription = UNDESCRIBED


@frozen
class DaemonsTold:
    """router -> client, once: it has been told of every daemon that is known."""


News: TypeAlias = DaemonStatus | DaemonCloned | DaemonsTold


@frozen
class AskStatistics:
    """client -> router: how much has passed there, of what the client may see."""

    number: int = field(validator=_offset)  # that of the answer


@frozen
class Statistics:
    """router -> client: the answer. What is left out is not for the client to know.

    Counts are of all clients together, since the controller was started, within the client's tenant; of several
    tenants for who may see them all.
    """

    number: int = field(validator=_offset)
    jobs_asked: int | None = field(default=None, validator=_optional(_offset))  # commands, sessions
    jobs_running: int | None = field(
        default=None, validator=_optional(_signed)
    )  # as far as their ends were heard of
    jobs_ended: Mapping[str, int] = field(
        factory=dict, validator=_at_most(MAX_ITEMS)
    )  # by outcome, or what was heard instead
    requests: int | None = field(default=None, validator=_optional(_offset))
    bytes_to_daemons: int | None = field(default=None, validator=_optional(_offset))  # of streams
    bytes_to_clients: int | None = field(default=None, validator=_optional(_offset))
    operators: int | None = field(default=None, validator=_optional(_offset))  # connected now
    uptime: float | None = field(default=None, validator=_optional(_seconds))
    loop_lag: float | None = field(default=None, validator=_optional(_seconds))


# ---- control messages: channels -----------------------------------------------------------------


class Role(enum.StrEnum):
    """What an attachment may do."""

    OWNER = "owner"  # its acks free memory, it writes and signals; one at a time
    VIEWER = "viewer"  # reads along, holds nothing back


@frozen
class Cursor:
    """Where a client wants one stream towards it to go on."""

    stream: Stream
    max_offset: int = field(validator=_offset)  # credit
    offset: int | None = field(
        default=None, validator=_optional(_offset)
    )  # None: the oldest kept; of a session's, what its scrollback holds


@frozen
class Attach:
    """client -> daemon: attach this channel to a job; create it first if `spec` is given and it doesn't exist."""

    daemon_id: str = field(validator=_full_name)  # for the router
    job_id: str = field(validator=_id)
    client: str = field(
        validator=_id
    )  # random per client; the same client re-attaching is no takeover
    cursors: tuple[Cursor, ...] = field(
        default=(), validator=_at_most(len(Stream))
    )  # none: every stream from its oldest, with `output_credit` and MESSAGE_WINDOW of credit
    spec: bytes | None = None  # encode_spec(); compared byte for byte on a second Attach
    instance: str = field(default="", validator=_id)  # the daemon instance the spec is bound to
    role: Role = Role.OWNER
    takeover: bool = False  # become the owner even though another client is attached
    generation: int | None = field(
        default=None, validator=_optional(_offset)
    )  # of the ownership being resumed; None: none yet
    settled: int = field(
        default=0, validator=_offset
    )  # generated ids of this client below it never start again
    attempt: int = field(
        default=0, validator=_offset
    )  # rises with each Attach of this client; an earlier one that comes late is refused
    tenant: str = field(
        default="", validator=_id
    )  # stamped by the router; what a client says is ignored
    principal: str = field(default="", validator=_id)  # stamped by the router
    output_credit: int = field(
        default=INITIAL_OUTPUT_BYTES, validator=_offset
    )  # on OUTPUT and ERROR, where there are no cursors; the router may lower it
    limits: Limits = NO_LIMITS  # stamped by the router: what it starts may use no more
    isolation: IsolationLevel = IsolationLevel.NONE  # stamped by the router: no less
    trace: str = field(
        default="", validator=_trace
    )  # with a spec: a `traceparent` of W3C Trace Context, which becomes TRACEPARENT; never compared


@frozen
class StreamState:
    """One stream of a job as the daemon holds it when it answers."""

    stream: Stream
    base: int = field(default=0, validator=_offset)  # to client: oldest kept
    floor: int = field(default=0, validator=_offset)  # to client: acknowledged by the owner
    end: int = field(default=0, validator=_offset)  # to client: produced so far
    start: int = field(
        default=0, validator=_offset
    )  # to client: where delivery on this channel begins
    received: int = field(default=0, validator=_offset)  # to daemon: continue here
    max_offset: int = field(default=0, validator=_offset)  # to daemon: credit


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@frozen
class Attached:
    """daemon -> client: the channel is open.

    A stream that is not named stands at 0 in every respect; towards the daemon it has the credit that
    a new job's has: `INITIAL_INPUT_BYTES`, or `MESSAGE_WINDOW` ops.

    Where all of it is at its default, and the Attach had a spec and no cursors, the first message on
    EVENTS says as much, and it is left out if that is there in time: a short command has one answer.
    """

    role: Role = Role.OWNER
    generation: int = field(default=1, validator=_offset)
    state: JobState = JobState.QUEUED
    streams: tuple[StreamState, ...] = field(default=(), validator=_at_most(len(Stream)))
    detached: bool = False  # it outlives its owner: who leaves, leaves it running
    terminal: bool = False  # its program runs in a terminal: it is a session


PLAIN_ATTACHED: Final = Attached()
"""What need not be said."""


class RefusedCode(enum.StrEnum):
    """Why an Attach was turned down. LOST means: may have run; all others: nothing ran by this Attach."""

    JOB_NOT_FOUND = "job_not_found"
    ENDED = "ended"  # it was ended and forgotten; the same id never starts again
    LOST = "lost"  # the spec was bound to another instance of the daemon; or the router gave the channel up
    JOB_ID_CONFLICT = "job_id_conflict"
    BUSY = "busy"  # another client is the owner; ask for takeover or be a viewer
    TAKEN = "taken"  # somebody took over since this client's generation
    UNSUPPORTED = "unsupported"  # the spec has a field or kind this daemon doesn't know
    DAEMON_NOT_FOUND = "daemon_not_found"
    DENIED = "denied"
    RATE_LIMITED = "rate_limited"  # too many starts, of `scope`; try again after `retry_after`
    POLICY_DENIED = (
        "policy_denied"  # no rule allows it: of the daemon's policy, or the controller's
    )


@frozen
class Refused:
    """daemon or router -> client: the Attach failed, its job was forgotten, or the client broke the protocol (DENIED).

    The channel is closed.
    """

    code: RefusedCode
    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))
    retry_after: float | None = field(default=None, validator=_optional(_seconds))  # RATE_LIMITED
    scope: str = field(default="", validator=_id)  # RATE_LIMITED: "operator", "tenant" or "daemon"
    policy_hash: str = field(default="", validator=_at_most(64))  # for POLICY_DENIED: which policy


@frozen
class Away:
    """router -> client: the daemon's link is down; the channel is closed. Attach again on its return."""


@frozen
class Taken:
    """daemon -> client: the job has another owner now; the channel is closed."""


@frozen
class Detach:
    """client -> daemon, or router -> daemon for a client that went: the channel is closed, the job goes on."""


@frozen
class Flush:
    """client -> daemon: send this back once all of it has arrived on the channel; daemon -> client: it has.

    It overtakes data, as every control message does. A client that closes its channel behind the
    answer, and doesn't end the job, knows that nothing it had sent is lost.
    """

    ops: int = field(default=0, validator=_offset)  # everything below
    input: int = field(default=0, validator=_offset)  # everything below
    ended: bool = False  # and the end of INPUT


@frozen
class StreamWindow:
    """Ack and credit of one stream; both absolute, neither ever goes down on a channel."""

    stream: Stream
    ack: int = field(validator=_offset)
    max_offset: int = field(validator=_offset)


@frozen
class Window:
    """receiver -> sender."""

    streams: tuple[StreamWindow, ...] = field(validator=_at_most(len(Stream)))


@frozen
class End:
    """client -> daemon: the owner leaves. Kill what runs of the job, then forget it with all its output.

    On channel 0, or on the channel attached to the job, which it then closes as Detach does.
    Idempotent, and valid for a job that is running, ended, or has never been heard of: then a start
    of that id which arrives later never runs. The router keeps it for a daemon that is away.
    In the name of a client that isn't the job's owner, or is no more, it has no effect.

    With `left` the job goes on, and nothing is forgotten: its owner has what it wants, so what a session shows from now
    on is only its scrollback.
    """

    daemon_id: str = field(validator=_full_name)
    job_id: str = field(validator=_id)
    grace: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # seconds from TERM to KILL; None: as the spec says
    client: str = field(default="", validator=_id)  # as in Attach: who leaves; "": whoever owns it
    tenant: str = field(default="", validator=_id)  # stamped by the router
    left: int | None = field(
        default=None, validator=_optional(_offset)
    )  # generation of the ownership that is given up; a later one isn't meant


Control: TypeAlias = (
    Challenge | Hello | OperatorHello | Welcome | Reject | Ping | Pong | Goodbye
    | DaemonStatus | DaemonCloned | DaemonsTold | AskStatistics | Statistics
    | Attach | Attached | Refused | Away | Taken | Detach | Flush | Window | End
)  # fmt: skip

# ---- stream messages ----------------------------------------------------------------------------


@frozen
class Started:
    """EVENTS: the job runs. Left out where `Exited` can be told at once."""

    pid: int = field(default=0, validator=_offset)


class StallReason(enum.StrEnum):
    """What keeps a daemon from putting output on its disk."""

    QUOTA = "quota"  # the job's, or the daemon's: it goes on when output is fetched, here or there
    DISK = "disk"  # full or broken: it goes on as soon as that is mended


@frozen
class Stalled:
    """EVENTS: the job's process has to wait, because the daemon has no room for more of this output.

    Nothing is lost. It is said while nobody fetches the output, and once until Flowing.
    """

    stream: Stream
    reason: StallReason
    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))  # the system's, for DISK


@frozen
class Flowing:
    """EVENTS: there is room again for the output that had Stalled."""

    stream: Stream


class Outcome(enum.StrEnum):
    """How a job ended."""

    EXITED = "exited"  # by itself; exit_code is its own
    SIGNALED = "signaled"  # by a signal nobody here sent
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"  # by the owner's leaving or a kill request
    LEASE_EXPIRED = "lease_expired"
    OUT_OF_MEMORY = (
        "out_of_memory"  # the kernel killed of it, for its limit; `limit` is "memory_bytes"
    )
    LIMIT_EXCEEDED = "limit_exceeded"  # of another limit: see `limit`


@frozen
class Exited:
    """EVENTS, last: the job's process is gone, its tree is empty, and its streams end at `finals`."""

    code: int | None  # real exit code, or
    signal: int | None  # the signal that killed it: exactly one of the two
    outcome: Outcome
    seconds: float = field(validator=_seconds)  # from spawn to exit
    pipes_held: bool = False  # a background child kept a pipe open past the drain grace
    finals: Mapping[Stream, int] = field(
        factory=dict, validator=_at_most(len(Stream))
    )  # where OUTPUT and ERROR end; 0 is left out
    pid: int = field(default=0, validator=_offset)  # where no Started went before
    cpu_seconds: float = field(default=0.0, validator=_seconds)  # of all its processes
    max_rss_bytes: int = field(
        default=0, validator=_offset
    )  # the largest resident set of any of its processes
    limits: Limits = NO_LIMITS  # those that it was held to
    limit: str = field(
        default="", validator=_limit_name
    )  # OUT_OF_MEMORY, LIMIT_EXCEEDED: which of them


class FailedCode(enum.StrEnum):
    """Why a job has no exit status."""

    SPAWN = "spawn"  # the program could not be started: nothing ran
    LOST = "lost"  # it ran, and its fate is unknown
    CANCELLED = "cancelled"  # ended before it was started: nothing ran
    JOB_NOT_FOUND = "job_not_found"  # a request names a job that isn't there: nothing was done
    DECLINED = "declined"  # a request asks for what can't be done here: nothing was done
    SYSTEM = "system"  # a system call failed for a request: `symbol` says how
    POLICY_DENIED = "policy_denied"  # the daemon's policy, by what is on its disk: nothing ran


@frozen
class Failed:
    """EVENTS, last: there is no exit status to report."""

    code: FailedCode
    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))
    errno: int = field(default=0, validator=_within(0, 65535))
    filename: bytes | None = field(
        default=None, validator=_optional(_at_most(MAX_TEXT_LENGTH))
    )  # what it failed on
    finals: Mapping[Stream, int] = field(factory=dict, validator=_at_most(len(Stream)))
    symbol: str = field(
        default="", validator=_at_most(32)
    )  # for SYSTEM: "ENOENT", ...; the numbers differ between systems
    policy_hash: str = field(default="", validator=_at_most(64))  # for POLICY_DENIED: which policy


Event: TypeAlias = Started | Stalled | Flowing | Exited | Failed


@frozen
class Signal:
    """OPS: send a signal to the job's process group; a session's is the one in the foreground."""

    name: str = field(validator=_at_most(32))  # "TERM", "INT", ... without SIG


@frozen
class Resize:
    """OPS: the session's window has another size now; its foreground process group gets SIGWINCH."""

    rows: int = field(validator=_within(1, MAX_TERMINAL_SIZE))
    cols: int = field(validator=_within(1, MAX_TERMINAL_SIZE))


@frozen
class DetachJob:
    """OPS: the job outlives its owner from now on."""


Op: TypeAlias = Signal | Resize | DetachJob

# ---- job specs: strict, an unknown field is refused ------------------------------------------------


class OnFull(enum.StrEnum):
    """What happens to output nobody fetches, when there is no room left."""

    BLOCK = "block"  # the process waits
    DROP_OLDEST = "drop_oldest"  # a gap appears
    DROP_UNATTENDED = (
        "drop_unattended"  # the process waits for an owner, but not for the lack of one
    )


@frozen
class CommandSpec:
    """Run a program with pipes."""

    argv: tuple[bytes, ...]  # exec'd directly; with `shell`, one element: the text for the shell
    shell: bool = False
    stdin: bool = True  # False: reads end of file at once
    merge_stderr: bool = False  # stderr goes into OUTPUT, in the order written
    cwd: bytes | None = None  # None: the daemon's
    env: Mapping[bytes, bytes] = field(factory=dict)  # merged over the daemon's environment
    user: str | None = None  # name or uid to run as; None: the daemon's
    timeout: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # seconds from the spawn to the kill
    idle_timeout: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # seconds without any output
    kill_grace: float = field(default=5.0, validator=_seconds)  # seconds from TERM to KILL
    lease: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # seconds without an owner until it is ended; None: the daemon's default
    on_full: OnFull = OnFull.BLOCK
    detach: bool = False  # outlives its owner from the start
    limits: Limits = NO_LIMITS  # the daemon, its policy and the router may allow less
    require_limits: bool = False  # start nothing if there is a limit that can't be held there
    isolation: IsolationLevel | None = None  # at least; None: the daemon's


@frozen
class SessionSpec:
    """Run a program in a terminal of its own."""

    argv: tuple[bytes, ...] = ()  # as in CommandSpec; none: the login shell of the user
    shell: bool = False  # as in CommandSpec
    rows: int = field(default=24, validator=_within(1, MAX_TERMINAL_SIZE))
    cols: int = field(default=80, validator=_within(1, MAX_TERMINAL_SIZE))
    term: str = field(default="xterm-256color", validator=_at_most(64))  # becomes TERM
    scrollback: int = field(default=1 * MIB, validator=_within(0, MAX_SCROLLBACK_BYTES))  # bytes
    cwd: bytes | None = None  # as in CommandSpec, and so are those below
    env: Mapping[bytes, bytes] = field(factory=dict)
    user: str | None = None
    kill_grace: float = field(default=5.0, validator=_seconds)  # seconds from HUP to KILL
    lease: float | None = field(default=None, validator=_optional(_seconds))
    on_full: OnFull = OnFull.DROP_UNATTENDED
    detach: bool = False
    limits: Limits = NO_LIMITS
    require_limits: bool = False
    isolation: IsolationLevel | None = None
    # What a terminal leaves no choice in.
    stdin: ClassVar[bool] = True
    merge_stderr: ClassVar[bool] = True
    timeout: ClassVar[float | None] = None
    idle_timeout: ClassVar[float | None] = None


ProgramSpec: TypeAlias = CommandSpec | SessionSpec
"""What runs a program, as no `Request` does."""


class Request:
    """What every spec of a request is: the daemon does it itself, and does it for its client alone."""

    __slots__ = ()
    # What a command may choose is settled here; the job of a request is treated like any other.
    stdin: ClassVar[bool] = False  # there is no INPUT
    window: ClassVar[int] = 256 * KIB  # bytes on their way that the daemon holds, each direction
    kill_grace: ClassVar[float] = 0.0
    lease: ClassVar[float | None] = None
    on_full: ClassVar[OnFull] = OnFull.BLOCK
    detach: ClassVar[bool] = False


@frozen
class JobsSpec(Request):
    """Request: an answer for each of the tenant's jobs, in the order of their starts."""


@frozen
class KillSpec(Request):
    """Request: end a job, keep its results. It is done when the job has ended and its tree is empty."""

    job_id: str = field(validator=_id)
    signal: str = field(default="TERM", validator=_at_most(32))  # first; without SIG
    grace: float = field(default=5.0, validator=_seconds)  # seconds until KILL


@frozen
class ForgetSpec(Request):
    """Request: end a job if it still runs, and drop its results. Its id stays used up."""

    job_id: str = field(validator=_id)


@frozen
class StatisticsSpec(Request):
    """Request: how busy it is. JobUsage for each of the tenant's jobs, then a DaemonUsage; or that again and again."""

    jobs: bool = True  # False: no JobUsage
    interval: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # seconds from one to the next, 0.2 at least; None: once
    window: ClassVar[int] = 64 * KIB
    lease: ClassVar[float | None] = 3600.0  # seconds without its client


class Update(enum.StrEnum):
    """Which files a transfer skips, because the receiver has them."""

    NONE = "none"  # it sends all
    TIME = "time"  # those with equal size and time of modification
    HASH = "hash"  # those with equal size and SHA-256


@frozen
class UploadSpec(Request):
    """Request: take a file or a tree; see Transfer. OUTPUT is the receiver's records, INPUT the sender's."""

    path: bytes = field(validator=_path)  # what the copy is to be
    update: Update = Update.NONE
    stdin: ClassVar[bool] = True
    window: ClassVar[int] = 4 * MIB  # a thread takes or brings two megabytes at a time


@frozen
class DownloadSpec(Request):
    """Request: send a file or a tree; see Transfer. OUTPUT is the sender's records, INPUT the receiver's."""

    path: bytes = field(validator=_path)  # what is copied; a link there is followed
    update: Update = Update.NONE
    include: tuple[
        str, ...
    ] = ()  # patterns as in a .gitignore; of a tree, only files that match one are sent
    exclude: tuple[str, ...] = ()  # as above: what matches is left out; it outweighs `include`
    total: bool = False  # say `total` first
    stdin: ClassVar[bool] = True
    window: ClassVar[int] = 4 * MIB  # a thread takes or brings two megabytes at a time


# Paths are bytes, as the daemon's system has them; a relative one starts at the daemon's working directory, or
# at its --root. What its system refuses is `Failed` with SYSTEM.


@frozen
class StatSpec(Request):
    """Request: one FileInfo, without `path`."""

    path: bytes = field(validator=_path)
    follow: bool = True  # what a link leads to, instead of the link


@frozen
class ListSpec(Request):
    """Request: a FileInfo for each entry of a directory, in no order; `path` is its name there."""

    path: bytes = field(validator=_path)


@frozen
class GlobSpec(Request):
    """Request: a FileInfo for whatever matches a pattern, in no order; `path` begins at that of the spec.

    Patterns are those of Python's pathlib, as of 3.13. What can't be read is passed over.
    """

    path: bytes = field(validator=_path)
    pattern: bytes = field(validator=_path)


@frozen
class MakeDirectorySpec(Request):
    """Request: make a directory."""

    path: bytes = field(validator=_path)
    mode: int = field(default=0o777, validator=_mode)  # less the daemon's umask
    parents: bool = False  # make those that are missing, too
    exist_ok: bool = False


class Removal(enum.StrEnum):
    """What is to be removed."""

    FILE = "file"  # or anything else that is no directory; of a link, the link
    DIRECTORY = "directory"  # an empty one
    TREE = "tree"  # a directory with all that is in it; links in it are not followed


@frozen
class RemoveSpec(Request):
    """Request: remove a file or a directory. A tree may be gone in part when this fails, or is taken back."""

    path: bytes = field(validator=_path)
    what: Removal
    missing_ok: bool = False  # of a file


@frozen
class RenameSpec(Request):
    """Request: give a file or directory another name; what has that name is replaced, as rename(2) does."""

    path: bytes = field(validator=_path)
    target: bytes = field(validator=_path)
    replace: bool = (
        True  # False: Windows refuses where the name is taken, others replace all the same
    )


@frozen
class LinkSpec(Request):
    """Request: make a symbolic link."""

    path: bytes = field(validator=_path)
    target: bytes = field(validator=_path)  # what it says; not looked at


@frozen
class TouchSpec(Request):
    """Request: make an empty file, or set the times of what is there to now."""

    path: bytes = field(validator=_path)
    mode: int = field(default=0o666, validator=_mode)  # of a new file, less the daemon's umask
    exist_ok: bool = True


@frozen
class ChangeSpec(Request):
    """Request: change what isn't None; a link is followed."""

    path: bytes = field(validator=_path)
    mode: int | None = field(default=None, validator=_optional(_mode))
    size: int | None = field(
        default=None, validator=_optional(_offset)
    )  # bytes; cut, or zeros added


@frozen
class ReadSpec(Request):
    """Request: OUTPUT is what is in a file, raw. What is no regular file is refused."""

    path: bytes = field(validator=_path)
    offset: int = field(default=0, validator=_offset)
    length: int | None = field(default=None, validator=_optional(_offset))  # None: to its end
    window: ClassVar[int] = 1 * MIB


class WriteMode(enum.StrEnum):
    """What becomes of the file that is there."""

    REPLACE = "replace"  # it keeps its mode; it is as it was until the new one is whole
    EXCLUSIVE = "exclusive"  # there must be none
    APPEND = "append"  # INPUT is written at its end, as it comes; what was written stays


@frozen
class WriteSpec(Request):
    """Request: INPUT is written to a file. It is done at the end of INPUT, and without that nothing is changed.

    OUTPUT is a FileInfo of the file when it is done. If INPUT hasn't ended when that is to be written, another goes
    ahead: nothing stands in the way so far.
    """

    path: bytes = field(validator=_path)
    how: WriteMode = WriteMode.REPLACE
    mode: int = field(default=0o666, validator=_mode)  # of a new file, less the daemon's umask
    stdin: ClassVar[bool] = True
    window: ClassVar[int] = 1 * MIB


@frozen
class WatchSpec(Request):
    """Request: a FileInfo of what is watched, then FileChanges until it is taken back."""

    path: bytes = field(validator=_path)
    recursive: bool = True  # all that is below, too


FileSpec: TypeAlias = (
    StatSpec | ListSpec | GlobSpec | MakeDirectorySpec | RemoveSpec | RenameSpec | LinkSpec
    | TouchSpec | ChangeSpec | ReadSpec | WriteSpec | WatchSpec
)  # fmt: skip


@frozen
class ConnectSpec(Request):
    """Request: a connection from the daemon's side to a host's port, or to a Unix socket there."""

    host: str = field(validator=_at_most(MAX_HOST_LENGTH))  # name or address; "": there is a path
    port: int = field(default=0, validator=_within(0, 65535))
    path: bytes | None = field(
        default=None, validator=_optional(_at_most(MAX_SOCKET_PATH))
    )  # of a Unix socket, instead of the two
    stdin: ClassVar[bool] = True
    window: ClassVar[int] = MIB
    kill_grace: ClassVar[float] = 10.0  # seconds for what arrived of INPUT, once its client left
    lease: ClassVar[float | None] = 3600.0  # seconds without its client; hardly a peer waits longer


@frozen
class ListenSpec(Request):
    """Request: listen on the daemon's side. One `Listening` answers it, then `Accepted` for each connection."""

    host: str = field(
        validator=_at_most(MAX_HOST_LENGTH)
    )  # address to bind, or a name of one; "": there is a path
    port: int = field(default=0, validator=_within(0, 65535))  # 0: any that is free
    path: bytes | None = field(
        default=None, validator=_optional(_at_most(MAX_SOCKET_PATH))
    )  # of a Unix socket, instead of the two
    window: ClassVar[int] = ACK_EVERY_BYTES  # less would never be acknowledged
    lease: ClassVar[float | None] = (
        3600.0  # seconds without its client, then the port is free again
    )


Spec: TypeAlias = (
    ProgramSpec | JobsSpec | KillSpec | ForgetSpec | StatisticsSpec | FileSpec | UploadSpec | DownloadSpec
    | ConnectSpec | ListenSpec
)  # fmt: skip


class UnsupportedSpec(RemoteProtocolError):
    """A spec with a kind, field or value this daemon doesn't know; the job is refused, the link lives."""


# ---- answers: what a request puts out -----------------------------------------------------------


@frozen
class KeptOutput:
    """What there is of one output: base..end can be read."""

    stream: Stream
    base: int = field(default=0, validator=_offset)  # oldest kept
    end: int = field(default=0, validator=_offset)  # written so far


@frozen
class JobRecord:
    """An answer to JobsSpec: one job, as it stood when this was written."""

    job_id: str = field(validator=_id)
    state: JobState
    argv: tuple[bytes, ...] = field(validator=_at_most(MAX_ITEMS))  # as in its spec
    shell: bool = False  # as in its spec
    cut: bool = False  # argv was too long, and ends early
    pid: int = field(default=0, validator=_offset)  # 0: it never started
    age: float = field(default=0.0, validator=_seconds)  # seconds since it was asked for
    started: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # seconds since its process was
    ended: float | None = field(default=None, validator=_optional(_seconds))  # seconds since it did
    code: int | None = None  # as in Exited
    signal: int | None = None  # as in Exited
    outcome: Outcome | None = None  # as in Exited; None: it runs, or `failed`
    failed: FailedCode | None = None  # as in Failed
    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))  # as in Failed
    detached: bool = False  # it outlives its owner
    terminal: bool = False  # it is a session
    owned: bool = False  # somebody is attached as the owner
    viewers: int = field(default=0, validator=_offset)  # attached to look on
    kept: tuple[KeptOutput, ...] = field(
        default=(), validator=_at_most(len(Stream))
    )  # an output that isn't named has nothing yet


@frozen
class JobUsage:
    """An answer to StatisticsSpec: a job that has not ended, and what its process tree takes."""

    job: JobRecord
    cpu_seconds: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # of processor, used by those that live and by children they have waited for; None: not known
    rss_bytes: int | None = field(default=None, validator=_optional(_offset))  # in memory
    processes: int | None = field(default=None, validator=_optional(_offset))  # that live


@frozen
class DaemonUsage:
    """The last answer to StatisticsSpec, or the last before the next round of it."""

    uptime: float = field(validator=_seconds)  # seconds from the daemon's start to this moment
    cpus: int = field(validator=_offset)  # processors of its machine
    load: tuple[float, ...] = field(
        default=(), validator=_at_most(3)
    )  # its averages over 1, 5 and 15 minutes; none: it has no such thing
    busy_seconds: float | None = field(
        default=None, validator=_optional(_seconds)
    )  # that its processors, together, were not idle; None: not known
    memory_bytes: int | None = field(default=None, validator=_optional(_offset))  # it has
    memory_available_bytes: int | None = field(
        default=None, validator=_optional(_offset)
    )  # that programs could still take
    cpu_seconds: float = field(default=0.0, validator=_seconds)  # the daemon's own
    rss_bytes: int | None = field(default=None, validator=_optional(_offset))  # the daemon's own
    jobs_running: int = field(default=0, validator=_offset)  # the tenant's
    jobs_queued: int = field(default=0, validator=_offset)  # the tenant's, that wait for their turn
    bytes_in: int = field(default=0, validator=_offset)  # from the controller, since its start
    bytes_out: int = field(default=0, validator=_offset)  # to the controller, since its start
    spool_bytes: int = field(default=0, validator=_offset)  # of output, on its disk


@frozen
class Listening:
    """The first answer to ListenSpec: whoever connects there from now on is accepted."""

    host: str = field(default="", validator=_at_most(MAX_HOST_LENGTH))  # the address that was bound
    port: int = field(default=0, validator=_within(0, 65535))
    path: bytes | None = field(default=None, validator=_optional(_at_most(MAX_SOCKET_PATH)))


@frozen
class Accepted:
    """An answer to ListenSpec: somebody connected, and the connection is a job; attach to it soon."""

    job_id: str = field(validator=_id)
    peer: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))  # its address, for people


class FileKind(enum.StrEnum):
    """What a name in a directory stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character_device"
    BLOCK_DEVICE = "block_device"
    OTHER = "other"


@frozen
class FileInfo:
    """What a system tells of a file, directory or link. On Windows some of it is 0."""

    kind: FileKind
    size: int = field(default=0, validator=_offset)  # bytes; of a link, those of its text
    mode: int = field(default=0, validator=_within(0, 0o7777))  # permissions
    mtime_ns: int = field(default=0, validator=_signed)  # nanoseconds since 1970: contents changed
    atime_ns: int = field(default=0, validator=_signed)  # nanoseconds since 1970: was read
    uid: int = field(default=0, validator=_unsigned)
    gid: int = field(default=0, validator=_unsigned)
    links: int = field(default=1, validator=_unsigned)  # names it has
    inode: int = field(default=0, validator=_unsigned)  # with `device`: which file it is
    device: int = field(default=0, validator=_unsigned)
    path: bytes = field(default=b"", validator=_path)  # from what was asked for
    target: bytes | None = field(default=None, validator=_optional(_path))  # what a link says


class ChangeKind(enum.StrEnum):
    """What happened to a file or directory."""

    ADDED = "added"
    MODIFIED = "modified"
    REMOVED = "removed"
    MISSED = "missed"  # more happened than could be told: look for yourself


@frozen
class FileChange:
    """An answer to WatchSpec. What happens to a file several times at once is told once."""

    kind: ChangeKind
    path: bytes = field(default=b"", validator=_path)  # from what is watched; "": that itself


Answer: TypeAlias = (
    JobRecord | JobUsage | DaemonUsage | Listening | Accepted | FileInfo | FileChange
)

# ---- records: what the two ends of a transfer tell each other -----------------------------------


_name: Any = _at_most(MAX_NAME_BYTES)
_mode = _within(0, 0o7777)
_time = _within(-(2**63), 2**63 - 1)
_digest: Any = _at_most(32)


@frozen
class TotalRecord:
    """sender, first: what there is to send, as counted beforehand. It may have changed when it is sent."""

    size: int = field(validator=_offset)  # bytes in all files
    files: int = field(validator=_offset)


@frozen
class EnterRecord:
    """sender: a directory; what follows until its LeaveRecord is in it."""

    name: bytes = field(validator=_name)
    mode: int = field(validator=_mode)  # permissions, as in st_mode
    mtime: int = field(validator=_time)  # modified, nanoseconds since 1970


@frozen
class LeaveRecord:
    """sender: that was all in this directory."""


@frozen
class LinkRecord:
    """sender: a symbolic link."""

    name: bytes = field(validator=_name)
    target: bytes = field(validator=_path)  # what it says
    mtime: int = field(validator=_time)


@frozen
class FileRecord:
    """sender: a file, and its bytes follow."""

    name: bytes = field(validator=_name)
    size: int = field(validator=_within(0, SMALL_FILE_BYTES))
    mode: int = field(validator=_mode)
    mtime: int = field(validator=_time)
    sha256: bytes = field(validator=_digest)  # of its bytes


@frozen
class AskRecord:
    """sender: there is a file, and does the receiver want it."""

    name: bytes = field(validator=_name)
    size: int = field(validator=_offset)
    mode: int = field(validator=_mode)
    mtime: int = field(validator=_time)


@frozen
class SkipRecord:
    """receiver, to an AskRecord: no, I have that file."""


@frozen
class WantRecord:
    """receiver, to an AskRecord: yes; and I have bytes that may be its beginning."""

    offset: int = field(default=0, validator=_offset)  # how many
    sha256: bytes = field(default=b"", validator=_digest)  # their hash, unless there are none
    whole: bool = False  # they are a file that was there before: with Update.HASH it is skipped if it is the same


@frozen
class ContentRecord:
    """sender: the bytes follow of a file that is wanted."""

    number: int = field(validator=_offset)  # which AskRecord it was
    offset: int = field(
        default=0, validator=_offset
    )  # from here: 0, or as wanted, if the hash is right


@frozen
class ZerosRecord:
    """sender: bytes of the file that are zero, for instance those of a hole."""

    count: int = field(validator=_within(1, MAX_ZEROS))


@frozen
class CompleteRecord:
    """sender: that were all bytes of the file."""

    sha256: bytes = field(validator=_digest)  # of all of them, from 0


@frozen
class ChangedRecord:
    """sender: the file was written to while it was read. Its bytes follow anew, from 0."""

    size: int = field(validator=_offset)
    mode: int = field(validator=_mode)
    mtime: int = field(validator=_time)


@frozen
class VanishedRecord:
    """sender: a file that is wanted isn't there any more."""

    number: int = field(validator=_offset)  # which AskRecord it was


@frozen
class EndRecord:
    """sender, last: that was all."""

    unsupported: int = field(
        default=0, validator=_offset
    )  # devices, sockets, ... that were left out
    names: tuple[bytes, ...] = field(
        default=(), validator=_at_most(MAX_UNSUPPORTED)
    )  # paths of some of them, in the tree


@frozen
class SettledRecord:
    """receiver, last: everything is on the disk, under its name."""


@frozen
class FailedRecord:
    """Either end, last: it can't go on."""

    symbol: str = field(default="", validator=_at_most(32))  # the system's error: "ENOSPC", ...
    message: str = field(default="", validator=_at_most(MAX_TEXT_LENGTH))
    filename: bytes | None = field(default=None, validator=_optional(_path))


Record: TypeAlias = (
    TotalRecord | EnterRecord | LeaveRecord | LinkRecord | FileRecord | AskRecord | SkipRecord
    | WantRecord | ContentRecord | ZerosRecord | CompleteRecord | ChangedRecord | VanishedRecord
    | EndRecord | SettledRecord | FailedRecord
)  # fmt: skip


# ---- codec --------------------------------------------------------------------------------------

CONTROL_TAGS: Final[dict[type, str]] = {
    Challenge: "challenge", Hello: "hello", Welcome: "welcome", Reject: "reject",
    OperatorHello: "operator", Ping: "ping", Pong: "pong", Goodbye: "bye",
    DaemonStatus: "daemon", DaemonCloned: "cloned", DaemonsTold: "told",
    AskStatistics: "ask_statistics", Statistics: "statistics",
    Attach: "attach", Attached: "attached", Refused: "refused", Away: "away", Taken: "taken",
    Detach: "detach", Flush: "flush", Window: "window", End: "end",
}  # fmt: skip
EVENT_TAGS: Final[dict[type, str]] = {
    Started: "started", Stalled: "stalled", Flowing: "flowing", Exited: "exited", Failed: "failed",
}  # fmt: skip
OP_TAGS: Final[dict[type, str]] = {Signal: "signal", Resize: "resize", DetachJob: "detach"}
ANSWER_TAGS: Final[dict[type, str]] = {
    JobRecord: "job", JobUsage: "job_usage", DaemonUsage: "daemon_usage", FileInfo: "file", FileChange: "change",
    Listening: "listening", Accepted: "accepted",
}  # fmt: skip
RECORD_TAGS: Final[dict[type, str]] = {
    TotalRecord: "total", EnterRecord: "enter", LeaveRecord: "leave", LinkRecord: "link",
    FileRecord: "file", AskRecord: "ask", SkipRecord: "skip", WantRecord: "want",
    ContentRecord: "content", ZerosRecord: "zeros", CompleteRecord: "complete",
    ChangedRecord: "changed", VanishedRecord: "vanished", EndRecord: "end",
    SettledRecord: "settled", FailedRecord: "failed",
}  # fmt: skip
ENUMERATIONS: Final = (
    Stream, CredentialKind, RejectCode, DaemonState, Role, JobState, RefusedCode, StallReason, Outcome, FailedCode,
    OnFull, FileKind, Removal, WriteMode, ChangeKind, Update, IsolationLevel,
)  # fmt: skip
SPEC_KINDS: Final[dict[str, type[Spec]]] = {
    "command": CommandSpec, "session": SessionSpec,
    "jobs": JobsSpec, "kill": KillSpec, "forget": ForgetSpec, "statistics": StatisticsSpec,
    "stat": StatSpec, "list": ListSpec, "glob": GlobSpec, "mkdir": MakeDirectorySpec,
    "remove": RemoveSpec, "rename": RenameSpec, "symlink": LinkSpec, "touch": TouchSpec,
    "change": ChangeSpec, "read": ReadSpec, "write": WriteSpec, "watch": WatchSpec,
    "upload": UploadSpec, "download": DownloadSpec,
    "connect": ConnectSpec, "listen": ListenSpec,
}  # fmt: skip
_SPEC_TAGS: Final = {cls: kind for kind, cls in SPEC_KINDS.items()}
_SPEC_FIELDS: Final = {
    cls: frozenset(each.name for each in attrs.fields(cls)) for cls in SPEC_KINDS.values()
}


def _strict(expected: type) -> Callable[[Any, Any], Any]:
    """By default cattrs *converts* ("7" to 7, an int to that many zero bytes); here a wrong type is an error."""

    def structure(value: Any, _: Any) -> Any:
        if type(value) is expected or (expected is float and type(value) is int):
            return value
        raise TypeError(f"{expected.__name__} expected, got {type(value).__name__}")

    return structure


def _member(enumeration: type[enum.Enum]) -> Callable[[Any, Any], Any]:
    members = {(type(member.value), member.value): member for member in enumeration}
    return lambda value, _: members[type(value), value]


_PLAIN: Final[dict[Any, tuple[type, ...]]] = {
    str: (str,), bytes: (bytes,), bool: (bool,), int: (int,), float: (float, int),
}  # fmt: skip


def _structure_fields(converter: Any, cls: Any, *, strict: bool) -> Callable[[Any, Any], Any]:
    """What makes an object of a map: one function for all its fields, where cattrs has one for each that is there."""
    plain: dict[str, tuple[type, ...]] = {}
    others: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {}
    for each in attrs.fields(attrs.resolve_types(cls)):
        kind: Any = each.type
        if _is_optional(kind):
            (kind,) = [arg for arg in get_args(kind) if arg is not NoneType]
        if kind in _PLAIN:
            plain[each.name] = _PLAIN[kind] if kind is each.type else (*_PLAIN[kind], NoneType)
        else:
            others[each.name] = converter.get_structure_hook(each.type), each.type

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"map expected, got {type(value).__name__}")
        fields = {}
        for name, item in value.items():
            if name in plain:
                if type(item) not in plain[name]:
                    expected = plain[name][0].__name__
                    raise TypeError(f"{name}: {expected} expected, got {type(item).__name__}")
                fields[name] = item
            elif name in others:
                hook, kind = others[name]
                fields[name] = hook(item, kind)
            elif strict:
                raise TypeError(f"{name!r:.64} is no field of {cls.__name__}")
        return cls(**fields)

    return structure


def _is_optional(cls: Any) -> bool:
    return isinstance(cls, UnionType) and len(get_args(cls)) == 2 and NoneType in get_args(cls)


def _build_converter(*, strict_fields: bool) -> Any:
    converter = make_converter(omit_if_default=True, detailed_validation=False)
    for primitive in (int, str, float, bool, bytes):
        converter.register_structure_hook(primitive, _strict(primitive))
        converter.register_unstructure_hook(primitive, identity)

    for enumeration in ENUMERATIONS:
        # One by one, since a StrEnum is a str and would get the hook for str.
        converter.register_structure_hook(enumeration, _member(enumeration))

    @converter.register_structure_hook_factory(_is_optional)
    def _(cls: Any) -> Any:
        inner = next(each for each in get_args(cls) if each is not NoneType)
        hook = converter.get_structure_hook(inner)
        return lambda value, _: None if value is None else hook(value, inner)

    @converter.register_unstructure_hook_factory(_is_optional)
    def _(cls: Any) -> Any:
        inner = next(each for each in get_args(cls) if each is not NoneType)
        hook = converter.get_unstructure_hook(inner)
        return hook if hook is identity else lambda value: None if value is None else hook(value)

    @converter.register_structure_hook_factory(lambda t: getattr(t, "__origin__", None) is tuple)
    def _(cls: Any) -> Any:
        item = cls.__args__[0]
        hook = converter.get_structure_hook(item)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise TypeError(f"list expected, got {type(value).__name__}")
            return tuple([hook(element, item) for element in value])

        return structure

    @converter.register_structure_hook_factory(lambda t: getattr(t, "__origin__", None) is Mapping)
    def _(cls: Any) -> Any:
        key_type, value_type = cls.__args__
        key_hook = converter.get_structure_hook(key_type)
        value_hook = converter.get_structure_hook(value_type)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise TypeError(f"map expected, got {type(value).__name__}")
            return {key_hook(k, key_type): value_hook(v, value_type) for k, v in value.items()}

        return structure

    converter.register_structure_hook_factory(
        attrs.has, lambda cls: _structure_fields(converter, cls, strict=strict_fields)
    )
    return converter


_converter = _build_converter(strict_fields=False)
_spec_converter = _build_converter(strict_fields=True)
_Key = TypeVar("_Key")
_Made = TypeVar("_Made")


class _OnFirstUse(dict[_Key, _Made]):
    """What is made for each key when it is first asked for.

    cattrs writes and compiles a function for each message that is sent, 4 ms each: all of them would be half of what
    a program takes to start that then uses a dozen.
    """

    def __init__(self, make: Callable[[_Key], _Made]) -> None:
        self._make = make

    def __missing__(self, key: _Key) -> _Made:
        made = self[key] = self._make(key)
        return made


_SPEC_TO_WIRE: Final = _OnFirstUse(_spec_converter.get_unstructure_hook)
_SPEC_FROM_WIRE: Final = _OnFirstUse(_spec_converter.get_structure_hook)


class _Codec:
    """One family of tagged messages, with cattrs' functions for each.

    Not cattrs' tagged unions: with a default for unknown tags they remember each one they have met.
    """

    def __init__(self, tags: Mapping[type, str], what: str) -> None:
        self._what = what
        by_tag = {tag: cls for cls, tag in tags.items()}
        self._to_wire: _OnFirstUse[type, tuple[str, Any]] = _OnFirstUse(
            lambda cls: (tags[cls], _converter.get_unstructure_hook(cls))
        )
        self._known = frozenset(by_tag)
        self._from_wire: _OnFirstUse[str, tuple[type, Any]] = _OnFirstUse(
            lambda tag: (by_tag[tag], _converter.get_structure_hook(by_tag[tag]))
        )

    def to_map(self, message: Control | Event | Op | Answer | Record) -> dict[str, Any]:
        tag, unstructure = self._to_wire[type(message)]
        value: dict[str, Any] = unstructure(message)
        value["t"] = tag
        return value

    def encode(self, message: Control | Event | Op | Answer | Record) -> bytes:
        return _pack(self.to_map(message))

    def decode(self, payload: Buffer) -> Any:
        try:
            if len(payload) > SHORT_SPEC_BYTES:
                _check_size(payload, self._what)
            return self._structure(_unpack(payload))
        except RemoteProtocolError:
            raise
        except Exception as error:
            # Whatever a peer sends, one type of error leaves here: that is this method's contract.
            raise RemoteProtocolError(f"bad {self._what}: {error!r:.200}") from error

    def decode_all(self, payload: Buffer, max_bytes: int) -> Iterator[Any]:
        """The messages that follow each other, one by one."""
        if len(payload) > max_bytes:
            raise RemoteProtocolError(
                f"{len(payload)} bytes of {self._what}s; at most {max_bytes} are allowed"
            )
        unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=False,
            max_buffer_size=max_bytes,
            read_size=max(len(payload), 1),  # its first buffer, which would be a megabyte
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
        unpacker.feed(payload)
        while unpacker.tell() < len(payload):
            try:
                message = self._structure(unpacker.unpack())
            except Exception as error:
                raise RemoteProtocolError(f"bad {self._what}: {error!r:.200}") from error
            yield message

    def _structure(self, value: Any) -> Any:
        if type(value) is not dict or type(tag := value.get("t")) is not str:
            raise TypeError("a map with a tag expected")
        if tag not in self._known:
            return Unknown(tag[:64])
        cls, structure = self._from_wire[tag]
        return structure(value, cls)


def _pack(value: Any) -> bytes:
    # As `packb`, whose buffer of 256 KiB each time takes twice as long.
    packed: bytes = msgpack.Packer(use_bin_type=True, buf_size=SHORT_SPEC_BYTES).pack(value)
    return packed


def _check_size(payload: Buffer, what: str) -> None:
    if len(payload) > MAX_CONTROL_BYTES:
        raise RemoteProtocolError(
            f"{what} of {len(payload)} bytes; at most {MAX_CONTROL_BYTES} are allowed"
        )


def _unpack(payload: Buffer, *, unique: bool = False) -> Any:
    # msgpack (before 1.2.4) allocates what an array's header claims, in each of up to 1024 nested
    # ones, so the claims have a bound. Texts and bytes it bounds by the size of the payload.
    return msgpack.unpackb(
        payload,
        raw=False,
        strict_map_key=False,
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
        max_ext_len=0,
        object_pairs_hook=_unique if unique else None,
    )


def _unpack_flat(payload: Buffer, *, unique: bool = False) -> Any:
    """A map of scalars, and of lists and maps of scalars of any length: claims cost nothing, depth is 2."""
    if len(payload) <= SHORT_SPEC_BYTES:
        # What is so short can't claim much, at any depth; that its depth is 2 the types of its fields see to.
        return _unpack(payload, unique=unique)
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=False,
        max_buffer_size=MAX_CONTROL_BYTES,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(payload)
    value: dict[Any, Any] = {}
    for _ in range(unpacker.read_map_header()):
        name = unpacker.unpack()
        if unique and name in value:
            raise ValueError("a key that is there twice")
        head = payload[unpacker.tell()]
        if 0x90 <= head <= 0x9F or head in (0xDC, 0xDD):
            value[name] = [unpacker.unpack() for _ in range(unpacker.read_array_header())]
        elif 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
            value[name] = {
                unpacker.unpack(): unpacker.unpack() for _ in range(unpacker.read_map_header())
            }
        else:
            value[name] = unpacker.unpack()
    if unpacker.tell() != len(payload):
        raise ValueError("bytes behind the end")
    return value


_CONTROL: Final = _Codec(CONTROL_TAGS, "control message")
_EVENTS: Final = _Codec(EVENT_TAGS, "event")
_OPS: Final = _Codec(OP_TAGS, "op")
_ANSWERS: Final = _Codec(ANSWER_TAGS, "answer")
_RECORDS: Final = _Codec(RECORD_TAGS, "record")


def encode_event(event: Event) -> bytes:
    """One message for the EVENTS stream."""
    return _EVENTS.encode(event)


def decode_event(payload: Buffer) -> Event | Unknown:
    """One message of the EVENTS stream; RemoteProtocolError if it is none."""
    event: Event | Unknown = _EVENTS.decode(payload)
    return event


def peek_outcome(payload: Buffer) -> str | None:
    """How a job ended, as a message of its EVENTS has it: an `Outcome`, or a `FailedCode`; None if it tells no end.

    For whoever only counts: of what our own encoder writes a few bytes are looked at, which takes a thirtieth of the
    time. A message that is none tells no end.
    """
    data = bytes(payload)
    if data.endswith(b"\xa1t\xa6exited"):
        at = data.find(b"\xa7outcome") + 8
        known = _OUTCOMES.get(data[at + 1 : at + 1 + (data[at] & 0x1F)])
        if known is not None:
            return known
    elif data.endswith(b"\xa1t\xa7started"):
        return None
    try:
        event = decode_event(payload)
    except RemoteProtocolError:
        return None
    if isinstance(event, Exited):
        return event.outcome.value
    return event.code.value if isinstance(event, Failed) else None


_OUTCOMES: Final = {outcome.value.encode(): outcome.value for outcome in Outcome}


def encode_op(op: Op) -> bytes:
    """One message for the OPS stream."""
    return _OPS.encode(op)


def decode_op(payload: Buffer) -> Op | Unknown:
    """One message of the OPS stream; RemoteProtocolError if it is none."""
    op: Op | Unknown = _OPS.decode(payload)
    return op


def encode_answer(answer: Answer) -> bytes:
    """One answer, for the OUTPUT of a request; answers follow each other without anything between."""
    return _ANSWERS.encode(answer)


def decode_answers(payload: Buffer) -> Iterator[Answer | Unknown]:
    """The answers in all of a request's OUTPUT, one by one; RemoteProtocolError where one is none."""
    return _ANSWERS.decode_all(payload, MAX_ANSWERS_BYTES)


def encode_record(record: Record) -> bytes:
    """One message of a transfer, without the head of its record."""
    return _RECORDS.encode(record)


def decode_record(payload: Buffer) -> Record | Unknown:
    """One message of a transfer; RemoteProtocolError if it is none."""
    record: Record | Unknown = _RECORDS.decode(payload)
    return record


class AnswerReader:
    """Answers as they arrive, in pieces of any size."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=False,
            max_buffer_size=2 * MAX_CONTROL_BYTES,
            read_size=16 * KIB,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )

    def feed(self, data: Buffer) -> Iterator[Answer | Unknown]:
        """Those that are whole by now; RemoteProtocolError where one is none. To be read to its end."""
        try:
            self._unpacker.feed(data)
            while True:
                yield _ANSWERS._structure(self._unpacker.unpack())
        except msgpack.OutOfData:
            return
        except Exception as error:
            raise RemoteProtocolError(f"bad answer: {error!r:.200}") from error


def encode_spec(spec: Spec) -> bytes:
    """A spec for `Attach.spec`: a msgpack map with the key ``kind``, fields at their default left out."""
    kind = type(spec)
    return _pack({"kind": _SPEC_TAGS[kind], **_SPEC_TO_WIRE[kind](spec)})


def kind_of_spec(payload: Buffer) -> str | None:
    """The kind that a spec says it is of, for whoever needn't understand the rest; None if it says none, or two."""
    try:
        _check_size(payload, "spec")
        value = _unpack_flat(payload, unique=True)
    except Exception:  # whatever it is, it is no spec: the daemon says what is wrong with it
        return None
    kind = value.get("kind") if type(value) is dict else None
    return kind if type(kind) is str else None


def peek_kind(payload: bytes) -> str:
    """As `kind_of_spec`, for whoever only counts: quickly, where it is written as we write it, and "" if unknown."""
    if payload[1:6] == b"\xa4kind" and len(payload) > 6:
        known = _KINDS.get(payload[7 : 7 + (payload[6] & 0x1F)])
        if known is not None:
            return known
    return kind if (kind := kind_of_spec(payload)) in SPEC_KINDS else ""


_KINDS: Final = {kind.encode(): kind for kind in SPEC_KINDS}


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Of two values for one key readers differ in which counts."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key that is there twice")
    return value


def decode_spec(payload: Buffer) -> Spec:
    """The spec in `Attach.spec`; UnsupportedSpec for whatever this daemon would have to leave out."""
    try:
        if len(payload) > SHORT_SPEC_BYTES:
            _check_size(payload, "spec")
        value = _unpack_flat(payload)
        if type(value) is not dict:
            raise TypeError("a map expected")
        kind = SPEC_KINDS.get(value.pop("kind", None))
        if kind is None:
            raise UnsupportedSpec("this daemon does not know this kind of job")
        if not value.keys() <= _SPEC_FIELDS[kind]:
            name = next(name for name in value if name not in _SPEC_FIELDS[kind])
            raise UnsupportedSpec(f"this daemon does not know the field {name!r:.64}")
        spec: Spec = _SPEC_FROM_WIRE[kind](value, kind)
    except RemoteProtocolError:
        raise
    except Exception as error:
        raise UnsupportedSpec(f"bad job spec: {error!r:.200}") from error
    if isinstance(spec, (CommandSpec, SessionSpec)):
        if not spec.argv and isinstance(spec, CommandSpec):
            raise UnsupportedSpec("argv needs a program")
        if spec.shell and len(spec.argv) != 1:
            raise UnsupportedSpec("argv is exactly one text when it is run by the shell")
    elif isinstance(spec, (ConnectSpec, ListenSpec)) and bool(spec.host) is bool(spec.path):
        raise UnsupportedSpec("an address is either a host and a port, or the path of a socket")
    return spec
