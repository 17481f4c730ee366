"""What the property tests draw from: every message there is, from the classes themselves.

A field added to a message in `sandd.wire` is covered here without further ado; only a field whose
validator allows less than its type does needs a line in `NARROWER`.
"""

from __future__ import annotations

import enum
import functools
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

import attrs
import msgpack
from hypothesis import strategies as st

from sandd import wire
from sandd._core.limits import LIMIT_NAMES, Limits

OFFSETS = st.integers(0, wire.MAX_OFFSET) | st.integers(0, 300_000)
SECONDS = st.floats(0, wire.MAX_SECONDS)
SHORT_TEXT = st.text(max_size=32)  # the tightest bound of a text there is
SHORT_BYTES = st.binary(max_size=64)
SMALL_INTEGERS = st.integers(-(2**63), 2**64 - 1)

NARROWER: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (wire.Welcome, "heartbeat"): st.floats(0.05, 3600),
    (wire.Welcome, "dead_after"): st.floats(0.1, 7200),
    (wire.Failed, "errno"): st.integers(0, 65535),
    (wire.CommandSpec, "argv"): st.lists(SHORT_BYTES, min_size=1, max_size=4).map(tuple),
    (wire.CommandSpec, "shell"): st.just(False),  # else argv has exactly one element
    (wire.SessionSpec, "shell"): st.just(False),
    **{
        (cls, name): st.integers(1, wire.MAX_TERMINAL_SIZE)
        for cls in (wire.SessionSpec, wire.Resize)
        for name in ("rows", "cols")
    },
    **{
        (cls, "port"): st.integers(0, 65535)
        for cls in (wire.ConnectSpec, wire.ListenSpec, wire.Listening)
    },
    **{
        (cls, name): strategy
        for cls in (wire.ConnectSpec, wire.ListenSpec)
        for name, strategy in (("host", st.text(min_size=1, max_size=8)), ("path", st.none()))
    },  # else it is a path, and no host
    (wire.SessionSpec, "scrollback"): st.integers(0, wire.MAX_SCROLLBACK_BYTES),
    **{
        (cls, "mode"): st.integers(0, 0o7777)
        for cls in (
            *(wire.FileInfo, wire.MakeDirectorySpec, wire.TouchSpec, wire.WriteSpec),
            *(wire.EnterRecord, wire.FileRecord, wire.AskRecord, wire.ChangedRecord),
        )
    },
    (wire.ChangeSpec, "mode"): st.none() | st.integers(0, 0o7777),
    **{
        (cls, "sha256"): st.binary(max_size=32)
        for cls in (wire.FileRecord, wire.WantRecord, wire.CompleteRecord)
    },
    (wire.FileRecord, "size"): st.integers(0, wire.SMALL_FILE_BYTES),
    (wire.ZerosRecord, "count"): st.integers(1, wire.MAX_ZEROS),
    (wire.Attach, "trace"): st.from_regex(wire._TRACEPARENT, fullmatch=True) | st.just(""),
    (wire.DaemonUsage, "load"): st.lists(SECONDS, max_size=3).map(tuple),
    (wire.Exited, "limit"): st.sampled_from(("", *LIMIT_NAMES)),
    **{
        (Limits, name): st.none() | strategy
        for name, strategy in {
            "wall": st.floats(0.001, wire.MAX_SECONDS),
            "cpu_seconds": st.floats(0.01, wire.MAX_SECONDS),
            "cpus": st.floats(0.01, 4096),
            "memory_bytes": st.integers(wire.MIB, 2**62),
            "processes": st.integers(1, 1 << 22),
            "open_files": st.integers(8, 1 << 30),
            "file_bytes": st.integers(0, 2**62),
            "output_bytes": st.integers(0, 2**62),
            "nice": st.integers(0, 19),
        }.items()
    },
}

CONTROL_CLASSES = sorted(get_args(wire.Control), key=lambda cls: cls.__name__)
EVENT_CLASSES = sorted(get_args(wire.Event), key=lambda cls: cls.__name__)
OP_CLASSES = sorted(get_args(wire.Op), key=lambda cls: cls.__name__)
SPEC_CLASSES = sorted(wire.SPEC_KINDS.values(), key=lambda cls: cls.__name__)
ANSWER_CLASSES = sorted(wire.ANSWER_TAGS, key=lambda cls: cls.__name__)
RECORD_CLASSES = sorted(wire.RECORD_TAGS, key=lambda cls: cls.__name__)
MESSAGE_CLASSES = [
    *(*CONTROL_CLASSES, *EVENT_CLASSES, *OP_CLASSES, *ANSWER_CLASSES, *RECORD_CLASSES),
    *SPEC_CLASSES,
]


@functools.cache
def annotations(cls: type) -> dict[str, Any]:
    """The fields of a message class and their types, as run-time values."""
    hints = typing.get_type_hints(cls)
    return {attribute.name: hints[attribute.name] for attribute in attrs.fields(cls)}


def values(annotation: Any, *, bounded: bool = True) -> st.SearchStrategy[Any]:
    """Values of a field of that type; integers are offsets if `bounded`."""
    if annotation is int:
        return OFFSETS if bounded else SMALL_INTEGERS
    if annotation is type(None):
        return st.none()
    simple = {float: SECONDS, str: SHORT_TEXT, bytes: SHORT_BYTES, bool: st.booleans()}
    if annotation in simple:
        return simple[annotation]
    if get_origin(annotation) is UnionType:
        return st.one_of([values(part, bounded=bounded) for part in get_args(annotation)])
    if get_origin(annotation) is tuple:
        return st.lists(values(get_args(annotation)[0]), max_size=4).map(tuple)
    if get_origin(annotation) is Mapping:
        key, value = get_args(annotation)
        return st.dictionaries(values(key), values(value), max_size=4)
    if issubclass(annotation, enum.Enum):
        return st.sampled_from(annotation)
    return messages(annotation)


def messages(cls: type) -> st.SearchStrategy[Any]:
    """Instances of one message class, within its limits."""
    fields = {}
    for attribute in attrs.fields(cls):
        annotation = annotations(cls)[attribute.name]
        given = values(annotation, bounded=attribute.validator is not None)
        fields[attribute.name] = NARROWER.get((cls, attribute.name), given)
    return st.builds(cls, **fields)


CONTROLS = st.one_of([messages(cls) for cls in CONTROL_CLASSES])
EVENTS = st.one_of([messages(cls) for cls in EVENT_CLASSES])
OPS = st.one_of([messages(cls) for cls in OP_CLASSES])
SPECS = st.one_of([messages(cls) for cls in SPEC_CLASSES])
ANSWERS = st.one_of([messages(cls) for cls in ANSWER_CLASSES])
RECORDS = st.one_of([messages(cls) for cls in RECORD_CLASSES])

PACKABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)
"""Anything that msgpack can say."""

TAGS = st.sampled_from(
    [
        *wire.CONTROL_TAGS.values(),
        *wire.EVENT_TAGS.values(),
        *wire.OP_TAGS.values(),
        *wire.ANSWER_TAGS.values(),
        *wire.RECORD_TAGS.values(),
        "",
        "newer",
    ]
)
FIELD_NAMES = st.sampled_from(
    sorted({attribute.name for cls in MESSAGE_CLASSES for attribute in attrs.fields(cls)})
)
LOOKALIKES = st.builds(
    lambda tag, fields: msgpack.packb({"t": tag, **fields}),
    TAGS,
    st.dictionaries(FIELD_NAMES, PACKABLE, max_size=8),
)
"""Payloads with a known tag and known field names, and anything for values."""

DATA = st.builds(
    lambda channel, stream, offset, body, final: b"".join(
        wire.encode_data(channel, stream, offset, body, final=final)
    ),
    st.integers(0, 3),
    st.sampled_from(wire.Stream),
    st.integers(0, 40) | OFFSETS,
    st.binary(max_size=40)
    | st.builds(wire.encode_op, OPS)
    | st.builds(wire.encode_event, EVENTS)
    | LOOKALIKES,
    st.booleans(),
)
GAPS = st.builds(
    lambda channel, stream, start, length: b"".join(
        wire.encode_gap(channel, stream, start, start + length)
    ),
    st.integers(0, 3),
    st.sampled_from(wire.Stream),
    st.integers(0, 40),
    st.integers(0, 2**40),
)
CONTROL_FRAMES = st.builds(
    lambda channel, message: b"".join(wire.encode_control(channel, message)),
    st.integers(0, 3),
    CONTROLS,
)
FRAMES = st.one_of(
    DATA,
    GAPS,
    CONTROL_FRAMES,
    st.builds(
        lambda channel, body: (
            bytes([1]) + channel.to_bytes(4, "big") + len(body).to_bytes(4, "big") + body
        ),
        st.integers(0, 3),
        LOOKALIKES,
    ),
)
"""Encoded frames with the low channel numbers that tests use: honest ones, and near misses."""
