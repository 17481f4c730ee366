"""The codec under fire: whatever comes in, a message or one type of error comes out."""

from __future__ import annotations

import tracemalloc
from typing import Any, get_args, get_origin

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ANSWER_CLASSES,
    ANSWERS,
    CONTROL_CLASSES,
    CONTROLS,
    EVENT_CLASSES,
    EVENTS,
    FRAMES,
    LOOKALIKES,
    MESSAGE_CLASSES,
    OFFSETS,
    OP_CLASSES,
    OPS,
    PACKABLE,
    RECORD_CLASSES,
    RECORDS,
    SPEC_CLASSES,
    SPECS,
    annotations,
    messages,
)

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.limits import Limits
from sandd.wire import FrameType, Stream


def decode_everything(message: bytes) -> None:
    """All that a receiver may do with a message's bytes before it looks at what they mean."""
    for frame in wire.decode_frames(message):
        if frame.type is FrameType.CONTROL:
            wire.decode_control(frame)
        else:
            data = wire.decode_data(frame)
            if data.stream in wire.MESSAGE_STREAMS:
                (wire.decode_op if data.stream is Stream.OPS else wire.decode_event)(data.body)


def refuses_or_decodes(message: bytes) -> None:
    """(11) Only RemoteProtocolError leaves the decoder, and memory stays in proportion."""
    complaint = ""
    tracemalloc.start()
    try:
        decode_everything(message)
    except RemoteProtocolError as error:
        complaint = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(complaint) < 300
    assert peak < 200 * len(message) + 200_000


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused(message: bytes) -> None:
    """(11) Arbitrary bytes give frames or RemoteProtocolError, and little memory."""
    refuses_or_decodes(message)


@given(st.lists(FRAMES, max_size=4).map(b"".join), st.data())
def test_damaged_frames_are_frames_or_refused(message: bytes, draw: st.DataObject) -> None:
    """(11) Honest frames, cut short and with bytes changed, give frames or RemoteProtocolError."""
    damaged = bytearray(message)
    for _ in range(draw.draw(st.integers(0, 3)) if damaged else 0):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    refuses_or_decodes(bytes(damaged[: draw.draw(st.integers(0, len(damaged)))]))


@given(LOOKALIKES | PACKABLE.map(msgpack.packb) | st.binary(max_size=100))
def test_any_payload_is_a_message_or_refused(payload: bytes) -> None:
    """(11) A known tag around anything gives a message or RemoteProtocolError, from every decoder."""
    frame = wire.Frame(FrameType.CONTROL, 1, memoryview(payload))
    for decode in (
        lambda: wire.decode_control(frame),
        lambda: wire.decode_event(payload),
        lambda: wire.decode_op(payload),
        lambda: next(wire.decode_answers(payload), wire.Unknown("")),
    ):
        try:
            message = decode()
        except RemoteProtocolError:
            continue
        assert type(message) in {*MESSAGE_CLASSES, wire.Unknown}


@given(
    st.dictionaries(
        st.sampled_from([field.name for cls in SPEC_CLASSES for field in attrs.fields(cls)])
        | st.text(),
        PACKABLE,
        max_size=5,
    ),
    st.sampled_from(
        [
            {"kind": "command"},
            {"kind": "command", "argv": [b"x"]},
            *[{"kind": kind, "job_id": "x"} for kind in wire.SPEC_KINDS],
            {"kind": 1},
            {},
        ]
    ),
)
def test_any_spec_is_a_spec_or_unsupported(fields: dict[str, Any], rest: dict[str, Any]) -> None:
    """(11) Whatever a spec holds, the daemon gets a spec or UnsupportedSpec."""
    payload = msgpack.packb({**fields, **rest})
    try:
        spec = wire.decode_spec(payload)
    except wire.UnsupportedSpec:
        return
    assert wire.decode_spec(wire.encode_spec(spec)) == spec


# ---- round trips ---------------------------------------------------------------------------------


@given(messages(wire.Attach), messages(wire.Attach), st.integers(0, 2**32 - 1))
def test_a_stamped_attach_says_what_one_made_anew_would(
    asked: wire.Attach, stamps: wire.Attach, channel: int
) -> None:
    """The router's word counts, whatever the client had put there; all else is as the client said it."""
    given = {name: getattr(stamps, name) for name in ("tenant", "principal", "limits", "isolation")}
    (frame,) = wire.decode_frames(b"".join(wire.encode_stamped(channel, asked, **given)))
    assert frame.channel == channel
    assert wire.decode_control(frame) == attrs.evolve(asked, **given)


@given(CONTROLS, st.integers(0, 2**32 - 1))
def test_control_messages_survive_the_wire(message: Any, channel: int) -> None:
    """What decode gives equals what encode was given, in value and in type."""
    head, body = wire.encode_control(channel, message)
    (frame,) = wire.decode_frames(head + bytes(body))
    assert frame.channel == channel
    assert_same(wire.decode_control(frame), message)


@given(
    st.integers(0, 2**32 - 1),
    CONTROLS,
    st.sampled_from(Stream),
    OFFSETS.map(lambda n: n // 2),
    st.binary(max_size=50),
    st.booleans(),
)
def test_a_frame_is_the_same_without_a_wire(
    channel: int, message: Any, stream: Stream, offset: int, body: bytes, final: bool
) -> None:
    """What a receiver in the same process is handed is what the decoder would have made of it."""
    for encoded in (
        wire.encode_control(channel, message),
        wire.encode_data(channel, stream, offset, body, final=final),
        wire.encode_data(channel, stream, offset, memoryview(body), final=final),
        wire.encode_gap(channel, stream, offset, offset + 1),
    ):
        (sent,) = wire.decode_frames(b"".join(encoded))
        near = wire.as_frame(encoded)
        passed_on = wire.readdress(7, near)
        for each, number in (
            (near, channel),
            (wire.as_frame(passed_on), 7),
            (wire.as_frame(wire.readdress(7, sent)), 7),
        ):
            assert (each.type, each.channel) == (sent.type, number)
            if sent.type is FrameType.CONTROL:
                assert each == sent._replace(channel=number)
            else:
                assert wire.decode_data(each) == wire.decode_data(sent)
        assert b"".join(wire.encoded(passed_on)) == b"".join(wire.encoded(wire.readdress(7, sent)))


@given(
    st.integers(0, 7),
    st.one_of(
        st.integers(0, 2**64 - 1),
        st.sampled_from((wire.MAX_OFFSET, wire.MAX_OFFSET - wire.MAX_WORD_BYTES)).flatmap(
            lambda near: st.integers(near - 30, near + 30)
        ),
    ),
    st.one_of(st.integers(0, 30), st.integers(wire.MAX_WORD_BYTES - 30, wire.MAX_WORD_BYTES + 30)),
    st.integers(0, 20),
)
def test_what_is_read_along_with_a_frame_is_what_it_says(
    number: int, offset: int, size: int, missing: int
) -> None:
    """(11) Of any data frame: nothing is taken by the short way that the plain one refuses, or reads otherwise."""
    payload = (number.to_bytes(1, "big") + offset.to_bytes(8, "big") + bytes(size))[
        : 9 + size - missing
    ]
    message = b"\x02" + bytes(4) + len(payload).to_bytes(4, "big") + payload
    (frame,) = wire.decode_frames(message)
    try:
        plain = wire.decode_data(frame._replace(data=None))
    except RemoteProtocolError:
        assert frame.data is None
    else:
        assert wire.decode_data(frame) == plain
        assert frame.data in (None, plain)


@given(EVENTS)
def test_events_survive_the_wire(event: wire.Event) -> None:
    """What decode gives equals what encode was given, in value and in type."""
    assert_same(wire.decode_event(wire.encode_event(event)), event)


@given(OPS)
def test_ops_survive_the_wire(op: wire.Op) -> None:
    """What decode gives equals what encode was given, in value and in type."""
    assert_same(wire.decode_op(wire.encode_op(op)), op)


@given(SPECS)
def test_specs_survive_the_wire(spec: wire.Spec) -> None:
    """What decode gives equals what encode was given, in value and in type."""
    assert_same(wire.decode_spec(wire.encode_spec(spec)), spec)


@given(RECORDS)
def test_records_survive_the_wire(record: wire.Record) -> None:
    """What decode gives equals what encode was given, in value and in type."""
    assert_same(wire.decode_record(wire.encode_record(record)), record)


@given(st.lists(ANSWERS, max_size=4))
def test_answers_survive_the_wire(answers: list[wire.Answer]) -> None:
    """However many follow each other, what decode gives equals what encode was given."""
    payload = b"".join(wire.encode_answer(answer) for answer in answers)
    assert_same(list(wire.decode_answers(payload)), answers)


@given(st.lists(ANSWERS | LOOKALIKES | PACKABLE.map(msgpack.packb), max_size=4), st.data())
def test_any_answers_are_answers_or_refused(parts: list[Any], draw: st.DataObject) -> None:
    """(11) Whatever a daemon answers, cut anywhere, is answers or RemoteProtocolError."""
    payload = b"".join(
        part if isinstance(part, bytes) else wire.encode_answer(part) for part in parts
    )
    payload = payload[: draw.draw(st.integers(0, len(payload)))]
    answers, complaint = [], ""
    tracemalloc.start()
    try:
        answers += wire.decode_answers(payload)
    except RemoteProtocolError as error:
        complaint = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(complaint) < 300
    assert peak < 200 * len(payload) + 200_000
    assert {type(answer) for answer in answers} <= {*ANSWER_CLASSES, wire.Unknown}


def assert_same(left: object, right: object) -> None:
    """Equal, and 1 is not True, nor 1.0, nor an enumeration's member."""
    assert left == right
    assert repr(left) == repr(right)


@given(
    st.lists(
        st.tuples(st.sampled_from(Stream), st.binary(max_size=50), OFFSETS.map(lambda n: n // 2))
    ),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_data_survives_the_wire(
    parts: list[tuple[Stream, bytes, int]], channel: int, final: bool
) -> None:
    """A run of data frames comes back frame by frame, readdressed or not."""
    message = b"".join(
        [
            piece
            for stream, body, offset in parts
            for piece in wire.encode_data(channel, stream, offset, body, final=final)
        ]
    )
    moved = b"".join(
        [piece for frame in wire.decode_frames(message) for piece in wire.readdress(7, frame)]
    )
    for copy, number in ((message, channel), (moved, 7)):
        frames = list(wire.decode_frames(copy))
        assert [frame.channel for frame in frames] == [number] * len(parts)
        assert [wire.decode_data(frame) for frame in frames] == [
            (stream, offset, body, final, None) for stream, body, offset in parts
        ]


# ---- strictness ----------------------------------------------------------------------------------

SAMPLES: list[Any] = [None, True, 7, 7.5, "7", b"7", [], [7], {}, {"7": 7}]
"""One value of each type there is on the wire; none of them is any enumeration's."""


def fits(value: Any, annotation: Any) -> bool:
    """Whether a field of that type may hold the value; kept apart from how the codec decides it."""
    parts = get_args(annotation)
    if get_origin(annotation) is not None and type(None) in parts:
        return any(fits(value, part) for part in parts)
    if get_origin(annotation) is tuple:
        return type(value) is list and all(fits(element, parts[0]) for element in value)
    if get_origin(annotation) is not None:
        return type(value) is dict and all(
            fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items()
        )
    if annotation is float:
        return type(value) in (int, float)
    if annotation is type(None):
        return value is None
    if annotation in (wire.DaemonDescription, Limits):
        return type(value) is dict  # none of its fields is needed, and what isn't known is ignored
    return type(value) is annotation


CLASSES = [pytest.param(cls, id=cls.__name__) for cls in MESSAGE_CLASSES]


def fields_on_the_wire(message: Any) -> dict[str, Any]:
    """A message as the map that msgpack makes of it."""
    if type(message) in SPEC_CLASSES:
        payload: Any = wire.encode_spec(message)
    elif type(message) in EVENT_CLASSES:
        payload = wire.encode_event(message)
    elif type(message) in OP_CLASSES:
        payload = wire.encode_op(message)
    elif type(message) in ANSWER_CLASSES:
        payload = wire.encode_answer(message)
    elif type(message) in RECORD_CLASSES:
        payload = wire.encode_record(message)
    else:
        payload = wire.encode_control(1, message)[1]
    unpacked: dict[str, Any] = msgpack.unpackb(payload, strict_map_key=False)
    return unpacked


def decode_as(cls: type, fields: dict[str, Any]) -> Any:
    """The map, packed and read by the decoder for that class."""
    payload = msgpack.packb(fields)
    if cls in SPEC_CLASSES:
        return wire.decode_spec(payload)
    if cls in EVENT_CLASSES:
        return wire.decode_event(payload)
    if cls in OP_CLASSES:
        return wire.decode_op(payload)
    if cls in ANSWER_CLASSES:
        (answer,) = wire.decode_answers(payload)
        return answer
    if cls in RECORD_CLASSES:
        return wire.decode_record(payload)
    return wire.decode_control(wire.Frame(FrameType.CONTROL, 1, memoryview(payload)))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_wrong_type_is_refused_in_every_field(cls: type) -> None:
    """No value of another type is converted into one that fits: it is refused."""
    fields = fields_on_the_wire(plainest(cls))
    for name in [attribute.name for attribute in attrs.fields(cls)]:
        for value in SAMPLES:
            if not fits(value, annotations(cls)[name]):
                with pytest.raises(RemoteProtocolError):
                    pytest.fail(f"{name}={value!r}: {decode_as(cls, {**fields, name: value})}")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_field_without_default_is_needed(cls: type) -> None:
    """A message that leaves out what it must say is refused; what has a default may be left out."""
    for attribute in attrs.fields(cls):
        fields = fields_on_the_wire(plainest(cls))
        fields.pop(attribute.name, None)
        if attribute.default is attrs.NOTHING:
            with pytest.raises(RemoteProtocolError):
                pytest.fail(f"without {attribute.name}: {decode_as(cls, fields)}")
        else:
            assert type(decode_as(cls, fields)) is cls, attribute.name


def plainest(cls: type) -> Any:
    """The plainest message of a class."""
    required = {
        int: 1,
        str: "x",
        bytes: b"x",
        float: 1.0,
        wire.RejectCode: wire.RejectCode.BUSY,
        wire.DaemonState: wire.DaemonState.AWAY,
        wire.Role: wire.Role.OWNER,
        wire.JobState: wire.JobState.QUEUED,
        wire.RefusedCode: wire.RefusedCode.BUSY,
        wire.Outcome: wire.Outcome.EXITED,
        wire.FailedCode: wire.FailedCode.LOST,
        wire.StallReason: wire.StallReason.QUOTA,
        wire.Stream: Stream.OUTPUT,
        wire.FileKind: wire.FileKind.FILE,
        wire.ChangeKind: wire.ChangeKind.ADDED,
        wire.Removal: wire.Removal.FILE,
        wire.JobRecord: wire.JobRecord("x", wire.JobState.QUEUED, (b"x",)),
    }
    given: dict[str, Any] = {}
    for attribute in attrs.fields(cls):
        if attribute.default is attrs.NOTHING:
            annotation = annotations(cls)[attribute.name]
            if get_origin(annotation) is tuple:
                given[attribute.name] = (b"x",) if attribute.name == "argv" else ()
            else:
                given[attribute.name] = required.get(annotation)
    return cls(**given)


@given(st.one_of([messages(cls) for cls in CONTROL_CLASSES]), st.text(min_size=1), PACKABLE)
def test_unknown_fields_of_messages_are_ignored(message: Any, name: str, value: Any) -> None:
    """A field of a newer peer changes nothing."""
    fields = fields_on_the_wire(message)
    if name not in {"t", *annotations(type(message))}:
        assert_same(decode_as(type(message), {**fields, name: value}), message)


@given(SPECS, st.text(min_size=1), PACKABLE)
def test_unknown_fields_of_specs_are_refused(spec: wire.Spec, name: str, value: Any) -> None:
    """A daemon that can't do all of a spec does none of it."""
    fields = fields_on_the_wire(spec)
    if name not in {"kind", *annotations(type(spec))}:
        with pytest.raises(wire.UnsupportedSpec):
            decode_as(type(spec), {**fields, name: value})
