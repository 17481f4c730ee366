"""The wire protocol: layouts, limits, and what each decoder turns down."""

from __future__ import annotations

import json
import tracemalloc
from typing import get_args

import attrs
import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.limits import Limits
from sandd.wire import FrameType, Stream

SPEC = wire.CommandSpec(argv=(b"true",))


def one_frame(message: bytes) -> wire.Frame:
    """The only frame of a message."""
    (frame,) = wire.decode_frames(message)
    return frame


def control(payload: bytes) -> wire.Frame:
    """A CONTROL frame around any payload."""
    return wire.Frame(FrameType.CONTROL, 0, memoryview(payload))


def data(payload: bytes, kind: FrameType = FrameType.DATA) -> wire.Frame:
    """A DATA, FIN or GAP frame around any payload."""
    return wire.Frame(kind, 1, memoryview(payload))


# ---- layouts: what a peer in another language relies on ------------------------------------------


def test_frames_are_laid_out_as_documented() -> None:
    """type u8, channel u32, length u32; DATA and FIN: stream u8, offset u64; GAP: and end u64."""
    head, body = wire.encode_data(0x01020304, Stream.OUTPUT, 0x1122334455667788, b"xyz")
    assert (head, body) == (bytes.fromhex("02 01020304 0000000c 03 1122334455667788"), b"xyz")
    head, body = wire.encode_data(7, Stream.INPUT, 5, b"", final=True)
    assert (head, body) == (bytes.fromhex("03 00000007 00000009 02 0000000000000005"), b"")
    head, body = wire.encode_gap(1, Stream.ERROR, 2, 9)
    assert head == bytes.fromhex("04 00000001 00000011")
    assert body == bytes.fromhex("04 0000000000000002 0000000000000009")
    head, body = wire.encode_control(3, wire.Ping(5))
    assert head == bytes.fromhex("01 00000003 00000010")
    assert msgpack.unpackb(body) == {"t": "ping", "number": 5}


def test_control_messages_leave_out_what_is_at_its_default() -> None:
    """A message is a map of its tag and of the fields that differ from their default."""
    _, body = wire.encode_control(0, wire.Away())
    assert msgpack.unpackb(body) == {"t": "away"}
    attach = wire.Attach("d", "j", "c", (wire.Cursor(Stream.OUTPUT, 9),))
    _, body = wire.encode_control(1, attach)
    assert msgpack.unpackb(body) == {
        "t": "attach",
        "daemon_id": "d",
        "job_id": "j",
        "client": "c",
        "cursors": [{"stream": 3, "max_offset": 9}],
    }


def test_the_plain_answer_is_known_by_its_bytes() -> None:
    """It needn't be made of its fields: it is that of most jobs."""
    frame = one_frame(b"".join(wire.encode_control(3, wire.Attached())))
    assert wire.decode_control(frame) is wire.PLAIN_ATTACHED


def test_a_stamp_is_no_longer_than_an_id() -> None:
    """What is said in the controller's name is within the limits that its receiver has."""
    attach = wire.Attach("d", "j", "c")
    plain = {"limits": Limits(), "isolation": wire.IsolationLevel.NONE}
    for tenant, principal in (("t" * 129, ""), ("", "p" * 129)):
        with pytest.raises(LocalProtocolError, match="129 characters"):
            wire.encode_stamped(1, attach, tenant=tenant, principal=principal, **plain)


def test_specs_are_maps_with_a_kind() -> None:
    """A spec says its kind, and the fields that differ from their default."""
    assert msgpack.unpackb(wire.encode_spec(SPEC)) == {"kind": "command", "argv": [b"true"]}


def test_requests_are_specs_and_their_answers_follow_each_other() -> None:
    """A request's kind says what it asks for; answers are maps with a tag, and nothing between them."""
    assert msgpack.unpackb(wire.encode_spec(wire.JobsSpec())) == {"kind": "jobs"}
    kill = wire.KillSpec("j", "INT", 1.5)
    assert msgpack.unpackb(wire.encode_spec(kill)) == {
        "kind": "kill",
        "job_id": "j",
        "signal": "INT",
        "grace": 1.5,
    }
    record = wire.JobRecord("j", wire.JobState.QUEUED, (b"true",))
    packed = wire.encode_answer(record)
    assert msgpack.unpackb(packed) == {
        "t": "job",
        "job_id": "j",
        "state": "queued",
        "argv": [b"true"],
    }
    assert list(wire.decode_answers(2 * packed)) == [record, record]
    assert list(wire.decode_answers(b"")) == []


def test_every_message_has_one_tag_of_its_own() -> None:
    """No two messages of a union share a tag, and none is without."""
    for union, tags in [
        (wire.Answer, wire.ANSWER_TAGS),
        (wire.Control, wire.CONTROL_TAGS),
        (wire.Event, wire.EVENT_TAGS),
        (wire.Op, wire.OP_TAGS),
    ]:
        assert set(get_args(union)) == set(tags)
        assert len(set(tags.values())) == len(tags)
        assert all(tags.values())


def test_each_stream_flows_one_way() -> None:
    """Every stream is either to the daemon or to the client."""
    assert set(Stream) == wire.TO_DAEMON | wire.TO_CLIENT
    assert not wire.TO_DAEMON & wire.TO_CLIENT


# ---- frames --------------------------------------------------------------------------------------


def test_decode_frames_splits_a_run_of_frames() -> None:
    """All frames of a message come out, in order, borrowing the message's memory."""
    message = b"".join(
        [
            *wire.encode_control(0, wire.Ping()),
            *wire.encode_data(4, Stream.INPUT, 8, b"abc"),
            *wire.encode_data(4, Stream.INPUT, 11, b"", final=True),
        ]
    )
    kinds = [(frame.type, frame.channel) for frame in wire.decode_frames(message)]
    assert kinds == [(FrameType.CONTROL, 0), (FrameType.DATA, 4), (FrameType.FIN, 4)]
    assert all(frame.payload.obj is message for frame in wire.decode_frames(message))
    assert list(wire.decode_frames(b"")) == []


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        pytest.param(b"\x01\0\0\0\0\0\0\0", "inside a frame header", id="short header"),
        pytest.param(b"\x05\0\0\0\0\0\0\0\0", "unknown frame type 5", id="unknown type"),
        pytest.param(b"\0\0\0\0\0\0\0\0\0", "unknown frame type 0", id="type zero"),
        pytest.param(b"\x01\0\0\0\0\0\0\0\x01", "claims 1 bytes", id="claims one too many"),
        pytest.param(b"\x01\0\0\0\0\xff\xff\xff\xff", "claims 4294967295 bytes", id="claims 4 GiB"),
    ],
)
def test_decode_frames_refuses_what_is_no_run_of_frames(message: bytes, complaint: str) -> None:
    """Whatever is not whole frames of a known type is a RemoteProtocolError."""
    with pytest.raises(RemoteProtocolError, match=complaint):
        list(wire.decode_frames(message))


def test_decode_frames_bounds_the_message() -> None:
    """A message is refused by its size before anything is made of it."""
    message = b"".join(wire.encode_data(1, Stream.INPUT, 0, bytes(100)))
    assert len(list(wire.decode_frames(message, max_bytes=len(message)))) == 1
    with pytest.raises(RemoteProtocolError, match="at most"):
        list(wire.decode_frames(message, max_bytes=len(message) - 1))


def test_readdress_changes_the_channel_alone() -> None:
    """The router's copy of a frame has the same payload, uncopied, under another channel."""
    frame = one_frame(b"".join(wire.encode_data(3, Stream.OUTPUT, 70, b"verbatim", final=True)))
    head, body = wire.readdress(9, frame)
    assert body is frame.payload
    assert one_frame(head + bytes(body)) == (FrameType.FIN, 9, frame.payload, None, None)


def test_the_bytes_of_a_data_frame_in_this_process_are_never_copied() -> None:
    """Nor is its payload put together; the router's copy says the same, on the same bytes."""
    content = b"verbatim"
    near = wire.as_frame(wire.encode_data(3, Stream.OUTPUT, 70, content, final=True))
    data = wire.decode_data(near)
    assert data.body.obj is content
    assert data == (Stream.OUTPUT, 70, content, True, None)
    head, body = wire.encoded(wire.readdress(9, near))
    assert isinstance(body, memoryview)
    assert body.obj is content
    assert wire.decode_data(one_frame(head + bytes(body))) == data


def test_a_control_frame_in_this_process_is_never_bytes() -> None:
    """What a link in memory carries is the message itself; on the network the same frame is its bytes."""
    message = wire.Ping(7)
    outgoing = wire.ControlFrame(3, message)
    near = wire.as_frame(outgoing)
    assert wire.decode_control(near) is message
    assert wire.readdress(9, near) == wire.ControlFrame(9, message)
    far = one_frame(b"".join(wire.encoded(outgoing)))
    assert (far.channel, wire.decode_control(far)) == (3, message)
    assert wire.encoded(wire.encode_control(3, message)) == wire.encode_control(3, message)
    unknown = far._replace(message=wire.Unknown("new"))
    assert wire.readdress(9, unknown) == wire.readdress(9, far)  # its bytes are all we have


@pytest.mark.parametrize("passed_on", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_split_data_cuts_a_frame_into_pieces_that_say_the_same(
    passed_on: bool, final: bool
) -> None:
    """Each of at most so many bytes, contiguous, and the end stands behind the last one."""
    frame = wire.encode_data(3, Stream.OUTPUT, 1000, b"0123456789", final=final)
    if passed_on:
        frame = wire.readdress(7, wire.as_frame(frame))
    channel = 7 if passed_on else 3
    said = []
    rest: wire.EncodedFrame | None = frame
    while rest is not None:
        first, rest = wire.split_data(rest, 4)
        (decoded,) = wire.decode_frames(b"".join(first))
        assert decoded.channel == channel
        data = wire.decode_data(decoded)
        said.append((data.stream, data.offset, bytes(data.body), data.final))
    assert said[0] == (Stream.OUTPUT, 1000, b"0123", False)
    assert b"".join(body for _, _, body, _ in said) == b"0123456789"
    assert [offset for _, offset, _, _ in said] == [
        1000 + sum(len(body) for _, _, body, _ in said[:number]) for number in range(len(said))
    ]
    assert [last for _, _, _, last in said] == [False] * (len(said) - 1) + [final]


def test_split_data_leaves_what_is_small_or_no_data() -> None:
    """Frames of no more than so many bytes, and gaps."""
    for frame in (
        wire.encode_data(3, Stream.OUTPUT, 5, b"0123", final=True),
        wire.readdress(7, wire.as_frame(wire.encode_data(3, Stream.OUTPUT, 5, b"0123"))),
        wire.encode_gap(3, Stream.OUTPUT, 5, 50),
    ):
        assert wire.split_data(frame, 4) == (frame, None)


def test_decode_data_reads_what_encode_wrote() -> None:
    """Stream, offset, bytes and the end arrive as they were sent."""
    frame = one_frame(b"".join(wire.encode_data(3, Stream.OUTPUT, 70, b"abc", final=True)))
    assert wire.decode_data(frame) == (Stream.OUTPUT, 70, b"abc", True, None)
    frame = one_frame(b"".join(wire.encode_gap(3, Stream.ERROR, 70, 90)))
    assert wire.decode_data(frame) == (Stream.ERROR, 70, b"", False, 90)


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        pytest.param(data(bytes(8)), "shorter than its own header", id="short data"),
        pytest.param(data(bytes(16), FrameType.GAP), "shorter than its own", id="short gap"),
        pytest.param(data(b"\x05" + bytes(8)), "unknown stream 5", id="unknown stream"),
        pytest.param(
            data(b"\x03" + bytes(8 + wire.MAX_DATA_BYTES + 1)), "at most 524288", id="too large"
        ),
        *(
            pytest.param(
                data(bytes((stream,)) + bytes(8 + wire.MAX_WORD_BYTES + 1)),
                f"{stream.name} frame of 131073 bytes; at most 131072",
                id=f"too large a message of {stream.name}",
            )
            for stream in sorted(wire.MESSAGE_STREAMS)
        ),
        pytest.param(data(b"\x03" + b"\xff" * 8), "out of range", id="offset of 2^64-1"),
        pytest.param(
            data(b"\x03" + (2**63 - 1).to_bytes(8, "big") + b"x"), "out of range", id="ends at 2^63"
        ),
        pytest.param(
            data(b"\x03" + bytes(7) + b"\5" + bytes(7) + b"\5", FrameType.GAP),
            "gap from 5 to 5",
            id="empty gap",
        ),
        pytest.param(
            data(b"\x03" + bytes(8) + (2**63).to_bytes(8, "big"), FrameType.GAP),
            "gap from 0",
            id="gap beyond all offsets",
        ),
        pytest.param(
            data(b"\x03" + bytes(8) + bytes(7) + b"\5" + b"x", FrameType.GAP),
            "gap frame with a body",
            id="gap with a body",
        ),
    ],
)
def test_decode_data_refuses_what_breaks_a_limit(frame: wire.Frame, complaint: str) -> None:
    """A data frame outside the documented limits is a RemoteProtocolError."""
    with pytest.raises(RemoteProtocolError, match=complaint):
        wire.decode_data(frame)


def test_decode_data_takes_what_is_just_within_the_limits() -> None:
    """The largest frame and the highest offset are fine."""
    largest = data(b"\x03" + bytes(8 + wire.MAX_DATA_BYTES))
    assert len(wire.decode_data(largest).body) == wire.MAX_DATA_BYTES
    largest = data(bytes(9 + wire.MAX_WORD_BYTES))
    assert len(wire.decode_data(largest).body) == wire.MAX_WORD_BYTES
    highest = (2**63 - 1).to_bytes(8, "big")
    assert wire.decode_data(data(b"\x03" + highest)).offset == wire.MAX_OFFSET
    assert wire.decode_data(data(b"\x03" + bytes(8) + highest, FrameType.GAP)).gap_end == 2**63 - 1


# ---- messages ------------------------------------------------------------------------------------


def test_encode_control_refuses_what_no_peer_would_take() -> None:
    """A message beyond MAX_CONTROL_BYTES is our own mistake, and is not sent."""
    most = wire.MAX_CONTROL_BYTES - len(wire.encode_control(1, wire.Attach("", "", "", (), b""))[1])
    attach = wire.Attach("", "", "", (), bytes(most - 20))
    assert wire.decode_control(one_frame(b"".join(wire.encode_control(1, attach)))) == attach
    with pytest.raises(LocalProtocolError, match="Attach of"):
        wire.encode_control(1, attrs.evolve(attach, spec=bytes(wire.MAX_CONTROL_BYTES)))


def test_decode_control_refuses_a_message_that_is_too_large() -> None:
    """The limit holds for a frame however it came."""
    with pytest.raises(RemoteProtocolError, match="at most"):
        wire.decode_control(control(bytes(wire.MAX_CONTROL_BYTES + 1)))


def test_the_largest_spec_fits_its_attach() -> None:
    """Whatever ids go with it, and stamped by a router, a spec the client lets through can be sent."""
    name = "\U0001f600" * wire.MAX_ID_LENGTH
    cursors = tuple(wire.Cursor(stream, wire.MAX_OFFSET, wire.MAX_OFFSET) for stream in Stream)
    wire.encode_control(
        2**32 - 1,
        wire.Attach(
            daemon_id=name,
            job_id=name,
            client=name,
            cursors=cursors,
            spec=bytes(wire.MAX_CONTROL_BYTES - 4 * wire.KIB),
            instance=name,
            role=wire.Role.VIEWER,
            takeover=True,
            generation=wire.MAX_OFFSET,
            settled=wire.MAX_OFFSET,
            tenant=name,
            principal=name,
        ),
    )


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(msgpack.packb({"t": "ping"}) + b"\0", id="something behind it"),
        pytest.param(msgpack.packb(["ping"]), id="no map"),
        pytest.param(msgpack.packb({"number": 1}), id="no tag"),
        pytest.param(msgpack.packb({"t": b"ping"}), id="tag of bytes"),
        pytest.param(msgpack.packb({"t": 7}), id="tag of int"),
        pytest.param(msgpack.packb({"t": "hello"}), id="fields missing"),
        pytest.param(msgpack.packb({"t": "ping", "number": -1}), id="below its range"),
        pytest.param(msgpack.packb({"t": "ping", "number": 2**63}), id="above its range"),
        pytest.param(msgpack.packb({"t": "ping", "number": True}), id="bool for int"),
        pytest.param(msgpack.packb({"t": "ping", "number": "1"}), id="str for int"),
        pytest.param(b"\x82\xa1t\xa4ping\xa6number\xc7\x00\x01", id="extension type"),
        pytest.param(b"\x82\xa1t\xa4ping\x91\x01\x01", id="unhashable key"),
        pytest.param(b"\x81\xa1t\xa2\xff\xfe", id="tag that is no UTF-8"),
        pytest.param(
            msgpack.packb({"t": "welcome", "version": 1, "heartbeat": float("nan")}),
            id="not a number",
        ),
        pytest.param(
            msgpack.packb({"t": "reject", "code": "busy", "retry_after": float("inf")}),
            id="infinity",
        ),
        pytest.param(msgpack.packb({"t": "reject", "code": "because"}), id="no member"),
        pytest.param(msgpack.packb({"t": "window", "streams": {}}), id="map for list"),
        pytest.param(
            msgpack.packb(
                {"t": "window", "streams": [{"stream": 3, "ack": 0, "max_offset": 0}] * 6}
            ),
            id="more streams than there are",
        ),
    ],
)
def test_decode_control_refuses_what_is_no_message(payload: bytes) -> None:
    """Whatever is not exactly a message is a RemoteProtocolError, with nothing converted on the way."""
    with pytest.raises(RemoteProtocolError, match="bad control message"):
        wire.decode_control(control(payload))


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**16, 2**31])
def test_pings_are_read_the_same_whether_they_are_remembered(number: int) -> None:
    """What is decoded twice is decoded once; a pong that is kept ready is the one that would be made."""
    for message in (wire.Ping(number), wire.Pong(number)):
        frame = wire.as_frame(wire.encode_control(0, message))
        assert wire.decode_control(frame) == wire.decode_control(frame) == message
    assert wire.encode_pong(number) == wire.encode_control(0, wire.Pong(number))
    for payload in (b"\x81\xa1t\xa4ping\xc0", b"\x82\xa1n\x01\xa1t\xa4pong", b"\xff\xa1t\xa4ping"):
        outcomes = []
        for _ in range(2):
            try:
                frame = wire.Frame(wire.FrameType.CONTROL, 0, memoryview(payload))
                outcomes.append(repr(wire.decode_control(frame)))
            except RemoteProtocolError as error:
                outcomes.append(repr(error))
        assert outcomes[0] == outcomes[1]


def test_whole_seconds_are_seconds() -> None:
    """Languages that know one kind of number may send a duration without a point."""
    payload = msgpack.packb({"t": "bye", "retry_after": 3})
    assert wire.decode_control(control(payload)) == wire.Goodbye(retry_after=3.0)


def test_unknown_fields_are_ignored() -> None:
    """A newer peer may say more than we understand."""
    payload = msgpack.packb({"t": "ping", "number": 4, "newer": [1, {"a": 2}]})
    assert wire.decode_control(control(payload)) == wire.Ping(4)


def test_unknown_tags_become_unknown() -> None:
    """A newer peer's message is told apart from a broken one, in each of the three unions."""
    payload = msgpack.packb({"t": "x" * 100, "what": 1})
    unknown = wire.Unknown("x" * 64)
    assert wire.decode_control(control(payload)) == unknown
    assert wire.decode_event(payload) == unknown
    assert wire.decode_op(payload) == unknown
    assert wire.decode_control(control(msgpack.packb({"t": ""}))) == wire.Unknown("")


def test_messages_of_one_union_are_unknown_in_another() -> None:
    """A tag means something in its own place only."""
    assert wire.decode_op(wire.encode_event(wire.Started(1))) == wire.Unknown("started")
    assert wire.decode_event(wire.encode_op(wire.DetachJob())) == wire.Unknown("detach")


def test_unknown_tags_are_not_remembered() -> None:
    """A peer that sends ever new tags costs no memory."""
    payloads = [msgpack.packb({"t": f"{n:04}" + "x" * 10_000}) for n in range(300)]
    wire.decode_control(control(payloads[0]))
    tracemalloc.start()
    try:
        for payload in payloads:
            wire.decode_control(control(payload))
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_decode_errors_quote_little() -> None:
    """An error's text stays short, whatever was sent."""
    with pytest.raises(RemoteProtocolError) as caught:
        wire.decode_control(control(msgpack.packb({"t": "hello", "version": "x" * 100_000})))
    assert len(str(caught.value)) < 300


def test_events_and_ops_come_back_as_they_were() -> None:
    """Enumerations as keys and values survive, exact types and all."""
    exited = wire.Exited(None, 9, wire.Outcome.TIMED_OUT, 2.5, True, {Stream.OUTPUT: 7})
    assert wire.decode_event(wire.encode_event(exited)) == exited
    assert wire.decode_op(wire.encode_op(wire.Signal("INT"))) == wire.Signal("INT")
    (key,) = wire.decode_event(wire.encode_event(exited)).finals  # type: ignore[union-attr]
    assert type(key) is Stream


def test_an_event_fits_a_data_frame_whatever_failed() -> None:
    """An event too large to be sent would break its link at each reconnect."""
    with pytest.raises(ValueError, match="filename"):
        wire.Failed(wire.FailedCode.SPAWN, filename=b"x" * wire.MAX_DATA_BYTES)
    with pytest.raises(ValueError, match="message"):
        wire.Failed(wire.FailedCode.SPAWN, message="x" * (wire.MAX_TEXT_LENGTH + 1))
    finals = dict.fromkeys(Stream, wire.MAX_OFFSET)
    text, name = "\U0001f600" * wire.MAX_TEXT_LENGTH, b"x" * wire.MAX_TEXT_LENGTH
    worst = wire.Failed(wire.FailedCode.SPAWN, text, 65535, name, finals)
    assert len(wire.encode_event(worst)) <= wire.MAX_DATA_BYTES


# ---- answers -------------------------------------------------------------------------------------

RECORD = wire.encode_answer(wire.JobRecord("j", wire.JobState.QUEUED, (b"true",)))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(RECORD[:-1], id="cut short"),
        pytest.param(RECORD + b"\xc1", id="no msgpack behind it"),
        pytest.param(msgpack.packb(["job"]), id="no map"),
        pytest.param(msgpack.packb({"t": "job"}), id="fields missing"),
        pytest.param(b"\x81\xa1t\xdd\xff\xff\xff\xff", id="claims 4 G elements"),
    ],
)
def test_decode_answers_refuses_what_is_none(payload: bytes) -> None:
    """What comes before the nonsense is read; then it is a RemoteProtocolError."""
    answers = wire.decode_answers(RECORD + payload)
    assert isinstance(next(answers), wire.JobRecord)
    with pytest.raises(RemoteProtocolError, match="bad answer"):
        list(answers)


def test_answers_of_a_newer_daemon_become_unknown() -> None:
    """What this client doesn't know is told from what is broken."""
    newer = msgpack.packb({"t": "socket", "port": 7})
    unknown, record = wire.decode_answers(newer + RECORD)
    assert unknown == wire.Unknown("socket")
    assert isinstance(record, wire.JobRecord)


def test_answer_reader_takes_pieces_that_end_anywhere() -> None:
    """Each answer comes out with its last byte, as `decode_answers` would read it."""
    listening = wire.Listening("127.0.0.1", 8080)
    accepted = wire.Accepted("j", "127.0.0.1:1")
    newer = msgpack.packb({"t": "socket", "port": 7})
    said = wire.encode_answer(listening) + wire.encode_answer(accepted) + newer
    reader = wire.AnswerReader()
    assert list(reader.feed(said)) == [listening, accepted, wire.Unknown("socket")]
    pieces = [list(reader.feed(said[at : at + 1])) for at in range(len(said))]
    ends = [at for at, answers in enumerate(pieces, 1) if answers]
    first = len(wire.encode_answer(listening))
    assert ends == [first, len(said) - len(newer), len(said)]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(msgpack.packb(["listening"]), id="no map"),
        pytest.param(msgpack.packb({"t": "listening", "port": 65536}), id="no port"),
        pytest.param(b"\x81\xa1t\xdd\xff\xff\xff\xff", id="claims 4 G elements"),
        pytest.param(b"\xc6\x7f\xff\xff\xff" + bytes(3 * wire.MIB), id="never ends"),
    ],
)
def test_answer_reader_refuses_what_is_none(payload: bytes) -> None:
    """A peer's nonsense is a RemoteProtocolError, and is never gathered without a bound."""
    reader = wire.AnswerReader()
    with pytest.raises(RemoteProtocolError):  # noqa: PT012 - in one of the rounds
        for start in range(0, len(payload), 1000):
            list(reader.feed(payload[start : start + 1000]))


@pytest.mark.parametrize("cls", [wire.ConnectSpec, wire.ListenSpec])
def test_an_address_is_a_host_or_a_path(cls: type[wire.ConnectSpec | wire.ListenSpec]) -> None:
    """Both, and neither, are refused."""
    for spec in (cls("here", 1), cls("", path=b"/there")):
        assert wire.decode_spec(wire.encode_spec(spec)) == spec
    for spec in (cls(""), cls("", 1), cls("here", 1, b"/there")):
        with pytest.raises(wire.UnsupportedSpec, match="either a host"):
            wire.decode_spec(wire.encode_spec(spec))


def test_decode_answers_bounds_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a request may be answered with is refused unread."""
    monkeypatch.setattr(wire, "MAX_ANSWERS_BYTES", 2 * len(RECORD))
    assert len(list(wire.decode_answers(2 * RECORD))) == 2
    with pytest.raises(RemoteProtocolError, match="at most"):
        next(wire.decode_answers(3 * RECORD))


# ---- specs ---------------------------------------------------------------------------------------


def packed_spec(**fields: object) -> bytes:
    """The bytes of a command's spec with any fields."""
    packed: bytes = msgpack.packb({"kind": "command", "argv": [b"true"], **fields})
    return packed


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        pytest.param(msgpack.packb({"argv": [b"true"]}), "kind of job", id="no kind"),
        pytest.param(msgpack.packb({"kind": "vm", "argv": [b"x"]}), "kind of job", id="other kind"),
        pytest.param(packed_spec(nice=5), "field 'nice'", id="unknown field"),
        pytest.param(packed_spec(**{"x" * 1000: 5}), "field 'x{63}$", id="long unknown field"),
        pytest.param(packed_spec(argv=[]), "needs a program", id="no argv"),
        pytest.param(
            packed_spec(shell=True, argv=[b"a", b"b"]), "exactly one text", id="two texts"
        ),
        pytest.param(packed_spec(argv=["true"]), "bad job spec", id="str for bytes"),
        pytest.param(packed_spec(argv=b"true"), "bad job spec", id="bytes for list"),
        pytest.param(packed_spec(argv=7), "bad job spec", id="int for list"),
        pytest.param(packed_spec(shell=1), "bad job spec", id="int for bool"),
        pytest.param(packed_spec(env=[[b"A", b"B"]]), "bad job spec", id="list for map"),
        pytest.param(packed_spec(env={"A": b"B"}), "bad job spec", id="str for bytes in a map"),
        pytest.param(packed_spec(timeout=-1), "bad job spec", id="negative time"),
        pytest.param(packed_spec(timeout=float("nan")), "bad job spec", id="not a number"),
        pytest.param(packed_spec(timeout=2e9), "bad job spec", id="more than all time"),
        pytest.param(packed_spec(on_full="explode"), "bad job spec", id="no member"),
        pytest.param(packed_spec(argv=[[b"true"]]), "bad job spec", id="nested too deep"),
        pytest.param(packed_spec(env={b"A": [b"B"]}), "bad job spec", id="list in a map"),
        pytest.param(packed_spec() + b"\0", "bad job spec", id="something behind it"),
        pytest.param(packed_spec()[:-1], "bad job spec", id="cut short"),
        pytest.param(b"", "bad job spec", id="empty"),
        pytest.param(msgpack.packb([1]), "bad job spec", id="no map"),
        pytest.param(msgpack.packb({"kind": ["command"]}), "bad job spec", id="unhashable kind"),
        pytest.param(msgpack.packb({"kind": "command"}), "bad job spec", id="field missing"),
        pytest.param(msgpack.packb({"kind": "kill"}), "bad job spec", id="no job to kill"),
        pytest.param(
            msgpack.packb({"kind": "jobs", "argv": [b"x"]}), "field 'argv'", id="of another kind"
        ),
        pytest.param(
            msgpack.packb({"kind": "kill", "job_id": "x", "lease": 3.0}),
            "field 'lease'",
            id="settled for requests",
        ),
    ],
)
def test_decode_spec_refuses_what_it_would_have_to_leave_out(
    payload: bytes, complaint: str
) -> None:
    """Whatever this daemon can't do exactly is UnsupportedSpec: the job is refused, the link lives."""
    with pytest.raises(wire.UnsupportedSpec, match=complaint):
        wire.decode_spec(payload)


def test_decode_spec_bounds_its_input() -> None:
    """A spec larger than any message is refused unread."""
    with pytest.raises(RemoteProtocolError, match="at most"):
        wire.decode_spec(bytes(wire.MAX_CONTROL_BYTES + 1))


def test_decode_spec_reads_long_arguments_and_environments() -> None:
    """A large command is as good as a small one."""
    argv = tuple(b"%d" % n for n in range(70_000))
    env = {b"%d" % n: b"x" for n in range(40_000)}
    spec = wire.CommandSpec(argv, env=env, cwd=b"/", timeout=3, on_full=wire.OnFull.DROP_OLDEST)
    assert wire.decode_spec(wire.encode_spec(spec)) == spec


@pytest.mark.parametrize("size", [1, wire.SHORT_SPEC_BYTES])
def test_decode_spec_takes_no_deeper_values_however_short_it_is(size: int) -> None:
    """Read in one go or piece by piece: an element that is a list or a map is refused."""
    for nested in ([[b"x"]], [{b"x": b"y"}], [b"x" * size, [b"x"]]):
        payload = msgpack.packb({"kind": "command", "argv": nested})
        with pytest.raises(wire.UnsupportedSpec):
            wire.decode_spec(payload)


@pytest.mark.parametrize("payload", [b"\x91\x01", b"\xc0", b"\xa1x", b""], ids=repr)
def test_decode_spec_takes_maps_only(payload: bytes) -> None:
    """A list, nothing, a text and no bytes at all are no specs."""
    with pytest.raises(wire.UnsupportedSpec, match="bad job spec"):
        wire.decode_spec(payload)


# ---- memory --------------------------------------------------------------------------------------

SHORT = wire.MAX_CONTROL_BYTES // 4
"""Of what is read to its end, and so takes its time where memory is traced."""
NESTED_CLAIMS = (b"\xdd" + (2**20 - 3000).to_bytes(4, "big")) * 500
"""500 arrays, each in the one before, each claiming a million elements."""


@pytest.mark.parametrize(
    ("payload", "size"),
    [
        pytest.param(b"\x81\xa1t" + NESTED_CLAIMS, wire.MAX_CONTROL_BYTES, id="claims"),
        pytest.param(
            b"\x82\xa1t\xa4ping\xa1x" + NESTED_CLAIMS,
            wire.MAX_CONTROL_BYTES,
            id="claims in an unknown field",
        ),
        pytest.param(
            b"\x82\xa1t\xa4ping\xa1x" + b"\x91" * 10_000, wire.MAX_CONTROL_BYTES, id="depth"
        ),
        pytest.param(
            b"\x82\xa1t\xa4ping\xa6number\xc6\xff\xff\xff\xff",
            wire.MAX_CONTROL_BYTES,
            id="4 GiB of bytes",
        ),
        pytest.param(b"\x82\xa1t\xa4ping\xa6number\xdf\xff\xff\xff\xff", SHORT, id="4 G entries"),
        pytest.param(
            b"\x82\xa4kind\xa7command\xa4argv" + NESTED_CLAIMS,
            wire.MAX_CONTROL_BYTES,
            id="claims in a spec",
        ),
        pytest.param(
            b"\x82\xa4kind\xa7command\xa4argv" + b"\xdd\xff\xff\xff\xff\xc0", SHORT, id="in argv"
        ),
        pytest.param(b"\xdf\xff\xff\xff\xff", SHORT, id="claims at the top"),
        pytest.param(b"\x81\xa1t\xdd\x00\x03\xff\xf0" + b"\x80" * 0x3FFF0, SHORT, id="empty maps"),
        pytest.param(
            b"\x81\xa1t\xdc\x00\xc8" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 200,
            SHORT,
            id="nested empties",
        ),
    ],
)
def test_decoding_allocates_in_proportion_to_what_was_sent(payload: bytes, size: int) -> None:
    """(11) A claim of much is not believed: no decoder takes much more memory than it was given."""
    payload = payload.ljust(size, b"\0")
    for decode in (wire.decode_event, wire.decode_op, wire.decode_spec):
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError):
                decode(payload)
            assert tracemalloc.get_traced_memory()[1] < 100 * len(payload)
        finally:
            tracemalloc.stop()


def test_a_short_spec_claims_little() -> None:
    """(11) Arrays within arrays, as many as fit, each of as many elements as any message may have."""
    payload = b"\x82\xa4kind\xa7command\xa4argv"
    payload += b"\xdc\x04\x00" * ((wire.SHORT_SPEC_BYTES - len(payload)) // 3)
    tracemalloc.start()
    try:
        with pytest.raises(wire.UnsupportedSpec):
            wire.decode_spec(payload)
        assert tracemalloc.get_traced_memory()[1] < 2 * wire.MIB
    finally:
        tracemalloc.stop()


def test_messages_print_as_what_they_say() -> None:
    """A message in a log or a failed test is readable."""
    assert repr(wire.Ping(3)) == "Ping(number=3)"
    assert json.dumps(wire.Role.OWNER) == '"owner"'


# ---- limits of jobs ----------------------------------------------------------------------------------


def test_limits_travel_in_specs_attaches_and_ends() -> None:
    """Those that there are, as a map of their names."""
    limits = Limits(memory_bytes=1 << 26, cpus=0.5)
    spec = attrs.evolve(SPEC, limits=limits, require_limits=True)
    assert wire.decode_spec(wire.encode_spec(spec)) == spec
    assert msgpack.unpackb(wire.encode_spec(spec))["limits"] == {
        "memory_bytes": 1 << 26,
        "cpus": 0.5,
    }
    assert "limits" not in msgpack.unpackb(wire.encode_spec(SPEC))
    end = wire.Exited(
        0,
        None,
        wire.Outcome.OUT_OF_MEMORY,
        1.0,
        limits=limits,
        limit="memory_bytes",
        cpu_seconds=0.5,
    )
    assert wire.decode_event(wire.encode_event(end)) == end


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_bytes": 1},
        {"memory_bytes": "64M"},
        {"memory_bytes": 2**64 - 1},
        {"processes": 1.5},
        {"nice": -20},
        {"speed": 1},
        {"wall": float("nan")},
        [],
        "memory",
        None,
    ],
    ids=str,
)
def test_a_spec_with_limits_that_are_none_is_unsupported(limits: object) -> None:
    """So is one that this daemon doesn't know: it would have to leave it out."""
    spec = {"kind": "command", "argv": [b"true"], "limits": limits}
    with pytest.raises(wire.UnsupportedSpec):
        wire.decode_spec(msgpack.packb(spec))


def test_an_end_by_a_limit_that_there_is_not_is_refused() -> None:
    """Whoever reads it looks the limit up by that name."""
    event = {
        "t": "exited",
        "code": 0,
        "signal": None,
        "outcome": "exited",
        "seconds": 1.0,
        "limit": "speed",
    }
    with pytest.raises(RemoteProtocolError, match="is no limit"):
        wire.decode_event(msgpack.packb(event))


PING = b"".join(wire.encode_control(0, wire.Ping(7)))


@given(
    st.binary(max_size=60)
    | st.tuples(st.integers(0, len(PING) - 1), st.integers(0, 255)).map(
        lambda change: PING[: change[0]] + bytes([change[1]]) + PING[change[0] + 1 :]
    )
)
@example(PING + PING)
@example(PING[:-1])
@example(b"".join(wire.encode_control(1, wire.Ping(7))))
@example(b"".join(wire.encode_control(0, wire.Pong(7))))
def test_a_lone_ping_is_what_decoding_makes_of_it(message: bytes) -> None:
    """And of whatever is not exactly that it isn't told."""
    expected = None
    try:
        frames = list(wire.decode_frames(message))
        if [(frame.type, frame.channel) for frame in frames] == [(FrameType.CONTROL, 0)]:
            control = wire.decode_control(frames[0])
            expected = control.number if isinstance(control, wire.Ping) else None
    except RemoteProtocolError:
        pass
    # (A ping may be encoded in other ways than ours, and is then taken as all else is.)
    assert wire.lone_ping(message) in (expected, None)


@given(st.integers(0, 2**32))
def test_a_lone_ping_of_our_own_is_known(number: int) -> None:
    """However large its number."""
    assert wire.lone_ping(b"".join(wire.encode_control(0, wire.Ping(number)))) == number
