"""Transfers of trees of any shape and name, and peers that say anything."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import LOOKALIKES, PACKABLE, RECORDS
from transfer_world import Line, Lines, copy, snapshot

from sandd import TransferError, wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import arrivals, syncing
from sandd._core.transfers.agenda import LOOK_AHEAD, Agenda, Question, Turn
from sandd._core.transfers.partials import Partials
from sandd._core.transfers.receiving import receive
from sandd._core.transfers.records import RecordReader, message_bytes, piece_head
from sandd._core.transfers.sending import send
from sandd.wire import KIB

# ---- records ------------------------------------------------------------------------------------

PIECES = st.binary(max_size=200)


def as_bytes(part: wire.Record | bytes) -> bytes:
    """A record, or a piece of a file, as it is sent."""
    if isinstance(part, bytes):
        return piece_head(len(part)) + part
    return message_bytes(part)


def read_all(stream: bytes, cuts: list[int]) -> tuple[list[Any], str]:
    """What a reader says of a stream that comes in pieces, bytes of files joined; and its complaint."""
    reader, found = RecordReader(), []
    places = [0, *sorted(each % (len(stream) + 1) for each in cuts), len(stream)]
    try:
        for start, end in itertools.pairwise(places):
            for each in reader.feed(stream[start:end]):
                if not isinstance(each, memoryview):
                    found.append(each)
                elif found and isinstance(found[-1], bytes):
                    found[-1] += bytes(each)
                else:
                    found.append(bytes(each))
    except RemoteProtocolError as error:
        return found, str(error)
    return found, ""


CUTS = st.lists(st.integers(0, 1 << 16), max_size=10)


@given(st.lists(RECORDS | PIECES, max_size=8), CUTS)
def test_records_come_out_as_they_went_in(parts: list[Any], cuts: list[int]) -> None:
    """However the stream is cut; of pieces only their bytes count, and not where one ends."""
    found, complaint = read_all(b"".join(as_bytes(part) for part in parts), cuts)

    expected: list[Any] = []
    for part in parts:
        if isinstance(part, bytes) and expected and isinstance(expected[-1], bytes):
            expected[-1] += part
        elif part != b"":
            expected.append(part)
    assert not complaint
    assert found == expected


def claimed(kind: int, length: int, payload: bytes) -> bytes:
    """A record that says it is of this kind and length."""
    return bytes([kind]) + length.to_bytes(4, "big") + payload


ANY_STREAM = st.lists(
    st.binary(max_size=40)
    | RECORDS.map(message_bytes)
    | PIECES.map(as_bytes)
    | LOOKALIKES.map(lambda payload: claimed(1, len(payload), payload))
    | PACKABLE.map(wire._pack).map(lambda payload: claimed(1, len(payload), payload))
    | st.builds(claimed, st.integers(0, 3), st.integers(0, 2**32 - 1), st.binary(max_size=20)),
    max_size=6,
).map(b"".join)


@given(ANY_STREAM, CUTS)
def test_any_bytes_are_records_or_refused(stream: bytes, cuts: list[int]) -> None:
    """(11) One type of error, the same wherever it is cut, and memory in proportion."""
    tracemalloc.start()
    try:
        whole = read_all(stream, [])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(whole[1]) < 300
    assert peak < 200 * len(stream) + 200_000
    assert read_all(stream, cuts) == whole


@given(st.lists(RECORDS | PIECES.map(memoryview), max_size=20))
def test_any_records_are_steps_or_refused(records: list[Any]) -> None:
    """(11) Whatever a sender says is steps or RemoteProtocolError; its names are below the target."""
    machine = arrivals.Arrivals()
    steps: list[arrivals.Step] = []
    try:
        for record in records:
            machine.take(record, steps)
            for step in steps:
                if isinstance(step, arrivals.Ask):
                    machine.offered(step.file, 0, is_whole=False)
    except RemoteProtocolError:
        pass
    for step in steps:
        about = getattr(step, "file", None) or getattr(step, "folder", None) or step
        path = getattr(about, "path", b"")
        assert b".." not in path.split(b"/")
        assert not path.startswith(b"/")


@pytest.fixture(scope="module", autouse=True)
def _no_syncing() -> Any:
    """So many transfers don't wait for the disk each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syncing, "_syncfs", lambda _descriptor: 0)
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@given(ANY_STREAM)
def test_any_sender_is_survived(stream: bytes) -> None:
    """(11) A receiver that hears anything ends, and has written nothing but below its target."""

    async def hear(target: Path) -> None:
        lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
        await lines.forth.send(stream)
        lines.forth.close()
        with trio.fail_after(20):
            await receive(lines.receiver, AnyFile(), os.fsencode(target), partials=Partials())

    with tempfile.TemporaryDirectory() as name:
        inside = Path(name) / "inside"
        inside.mkdir()
        try:
            trio.run(hear, inside / "target")
        except (RemoteProtocolError, TransferError, OSError):
            pass
        assert os.listdir(name) == ["inside"]
        assert set(os.listdir(inside)) <= {"target"}


@given(ANY_STREAM)
def test_any_receiver_is_survived(stream: bytes) -> None:
    """(11) A sender that hears anything ends; its files are as they were."""

    async def hear(source: Path) -> None:
        lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
        await lines.back.send(stream)
        lines.back.close()
        with trio.fail_after(20):
            await send(lines.sender, AnyFile(), os.fsencode(source))

    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.write_bytes(bytes(300 * KIB))
        try:
            trio.run(hear, source)
        except (RemoteProtocolError, TransferError, OSError):
            pass
        assert source.read_bytes() == bytes(300 * KIB)
        assert os.listdir(name) == ["source"]


# ---- trees --------------------------------------------------------------------------------------

if sys.platform == "linux":
    NAMES = (
        st.binary(min_size=1, max_size=12)
        | st.sampled_from([b"\n", b"-rf", b"\xff\xfe", b"a" * 255, b"\xc3\xa9" * 127, b" ", b"...", b"\\"])
    ).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))  # fmt: skip
else:
    NAMES = st.text("abc é", min_size=1, max_size=12).filter(str.strip).map(os.fsencode)

CONTENTS = (
    st.binary(max_size=50)
    | st.sampled_from(
        [
            *(bytes(4096), bytes(300 * KIB), b"x" + bytes(300 * KIB), bytes(300 * KIB) + b"x"),
            *(os.urandom(300 * KIB), b"y" * wire.SMALL_FILE_BYTES, b"z" * 262145),
        ]
    )
)  # fmt: skip
TREES: st.SearchStrategy[Any] = st.recursive(
    CONTENTS | st.sampled_from([b"target", b"/", b"..", b"\xff"]).map(lambda link: ("link", link)),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
TIMES = st.integers(-(2**33), 2**33).map(lambda seconds: seconds * 10**9 + 123_456_789)


def build(path: bytes, tree: Any, draw: st.DataObject) -> None:
    """Make it, with modes and times of any kind."""
    if isinstance(tree, tuple):
        os.symlink(tree[1], path)
        return
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, each in tree.items():
            build(os.path.join(path, name), each, draw)
    else:
        Path(os.fsdecode(path)).write_bytes(tree)
    os.chmod(path, draw.draw(st.sampled_from([0o600, 0o644, 0o755, 0o777, 0o400, 0o700])))
    os.utime(path, ns=(0, draw.draw(TIMES)))


@settings(max_examples=max(25, settings().max_examples // 10))  # one costs as much as 100 others
@given(TREES, st.sampled_from(wire.Update), st.sampled_from([1000, 65536]), st.data())
def test_any_tree_is_copied_exactly(
    tree: Any, update: wire.Update, piece: int, draw: st.DataObject
) -> None:
    """Names, bytes, modes, times; and a second call with an update sends nothing."""
    with tempfile.TemporaryDirectory() as name:
        source, target = (os.path.join(os.fsencode(name), each) for each in (b"source", b"target"))
        tree = (
            {b"link": tree} if isinstance(tree, tuple) else tree
        )  # at the top it would be followed
        build(source, tree, draw)

        lines = Lines(Line(piece=piece), Line(piece=7))
        first = trio.run(lambda: copy(source, target, update=update, lines=lines)).result

        assert snapshot(target) == snapshot(source)
        again = trio.run(lambda: copy(source, target, update=update)).result
        if update is wire.Update.NONE:
            assert again.bytes == first.bytes
        else:
            assert (again.bytes, again.skipped) == (0, again.files)
        found, expected = snapshot(target), snapshot(source)
        if isinstance(tree, dict):  # which was there the second time
            del found[b""], expected[b""]
        assert found == expected
        # What may not be read can't be removed, either, unless one is the administrator.
        for folder, _, _ in os.walk(name):
            os.chmod(folder, 0o700)
        shutil.rmtree(target, ignore_errors=True)


# ---- the sender's agenda ------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2000), max_size=30), st.data())
def test_the_agenda_keeps_within_its_window(lengths: list[int], draw: st.DataObject) -> None:
    """Whatever is answered when: the window is kept, the order too, and it comes to an end."""
    agenda, waiting, sent, number = Agenda(), [], [], 0
    while (turn := agenda.next()) is not Turn.END:
        if waiting and (turn is Turn.WAIT or draw.draw(st.booleans())):
            question = waiting.pop(0)
            skip = draw.draw(st.booleans())
            agenda.answered(wire.SkipRecord() if skip else wire.WantRecord())
        elif turn is Turn.WALK:
            room, room_bytes = agenda.room(), agenda.room_bytes()
            assert room > 0
            assert room_bytes > 0
            for _ in range(min(room, 300)):
                if not lengths or room_bytes <= 0:
                    break
                question = Question(number, b"x" * lengths.pop(), 0)
                number += 1
                room_bytes -= len(question.path)
                agenda.asked(question)
                waiting.append(question)
            agenda.has_walked = not lengths
        elif turn is Turn.SEND:
            question = agenda.wanted.popleft()
            agenda.closed(question)
            sent.append(question.number)
        open_questions = [*waiting, *agenda.wanted]
        assert len(open_questions) <= wire.TRANSFER_WINDOW
        total = sum(len(each.path) for each in open_questions)
        assert total <= wire.TRANSFER_WINDOW_BYTES + wire.MAX_PATH_BYTES
    assert not waiting
    assert not lengths
    assert sent == sorted(sent)


def test_nothing_comes_between_the_parts_of_a_file() -> None:
    """Though the receiver skips so much meanwhile that it is time to look for more."""
    agenda = Agenda()
    for number in range(LOOK_AHEAD + 10):
        agenda.asked(Question(number, b"x", 1))
    agenda.answered(wire.WantRecord())
    assert agenda.next() is Turn.SEND
    agenda.is_sending = True
    for _ in range(100):
        agenda.answered(wire.SkipRecord())

    assert agenda.next() is Turn.SEND
    agenda.is_sending = False
    assert agenda.next() is Turn.WALK
