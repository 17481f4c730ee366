"""Peers that lie: what they say names no path, takes no memory, and ends in one type of error."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from transfer_world import Line, Lines, names_below, partials_below

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import receiving, writing
from sandd._core.transfers.arrivals import Arrivals, check_name
from sandd._core.transfers.disk_work import DiskWork
from sandd._core.transfers.partials import Partials
from sandd._core.transfers.receiving import receive
from sandd._core.transfers.records import RecordReader, message_bytes, piece_head
from sandd._core.transfers.sending import send
from sandd._core.transfers.writing import Writer
from sandd.wire import (
    KIB,
    MIB,
    AskRecord,
    ChangedRecord,
    CompleteRecord,
    ContentRecord,
    EndRecord,
    EnterRecord,
    FailedRecord,
    FileRecord,
    LeaveRecord,
    LinkRecord,
    SettledRecord,
    SkipRecord,
    TotalRecord,
    Update,
    VanishedRecord,
    WantRecord,
    ZerosRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SHA_OF_X = hashlib.sha256(b"x").digest()
TOP = EnterRecord(b"", 0o755, 0)


def said(*parts: wire.Record | bytes) -> bytes:
    """Records, and pieces of files, as they are sent."""
    return b"".join(
        piece_head(len(part)) + part if isinstance(part, bytes) else message_bytes(part)
        for part in parts
    )


async def hear(target: Path, *parts: wire.Record | bytes) -> None:
    """A receiver hears this, and then nothing more; it must not wait for it."""
    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    await lines.forth.send(said(*parts))
    with trio.fail_after(20):
        await receive(lines.receiver, AnyFile(), os.fsencode(target), partials=Partials())


def small(name: bytes) -> tuple[FileRecord, bytes]:
    """A file of one byte."""
    return FileRecord(name, 1, 0o644, 0, SHA_OF_X), b"x"


def ask(name: bytes, size: int = 10) -> AskRecord:
    """A question about a file."""
    return AskRecord(name, size, 0o644, 0)


BAD_NAMES = [b"", b".", b"..", b"/", b"a/b", b"/etc", b"../up", b"a\0", b".sandd-12.part"]

LIES = {
    **{f"file {name!r}": (TOP, *small(name)) for name in BAD_NAMES},
    **{f"ask {name!r}": (TOP, ask(name)) for name in BAD_NAMES},
    **{f"directory {name!r}": (TOP, EnterRecord(name, 0o755, 0)) for name in BAD_NAMES},
    **{f"link {name!r}": (TOP, LinkRecord(name, b"/etc", 0)) for name in BAD_NAMES},
    "a name for the top": small(b"name"),
    "a link for the top": (LinkRecord(b"", b"/etc", 0),),
    "two tops": (*small(b""), *small(b"")),
    "a file behind the top directory": (TOP, LeaveRecord(), *small(b"x")),
    "leave what wasn't entered": (LeaveRecord(),),
    "leave twice": (TOP, LeaveRecord(), LeaveRecord()),
    "nothing": (EndRecord(),),
    "end in a directory": (TOP, EndRecord()),
    "end before an answer": (ask(b""), EndRecord()),
    "something behind the end": (*small(b""), EndRecord(), TOP),
    "bytes of nothing": (b"x",),
    "bytes in a directory": (TOP, b"x"),
    "too many bytes": (FileRecord(b"", 1, 0o644, 0, SHA_OF_X), b"xy"),
    "bytes behind a small file": (*small(b""), b"y"),
    "a record among a small file's bytes": (FileRecord(b"", 2, 0o644, 0, b""), b"x", EndRecord()),
    "content of nothing": (TOP, ContentRecord(0)),
    "content before the answer": (ask(b""), ContentRecord(0)),
    "vanished before the answer": (ask(b""), VanishedRecord(0)),
    "zeros of nothing": (TOP, ZerosRecord(1)),
    "complete of nothing": (TOP, CompleteRecord(b"")),
    "changed of nothing": (TOP, ChangedRecord(1, 0, 0)),
    "an answer": (WantRecord(),),
    "settled": (SettledRecord(),),
    "the total, later": (TOP, TotalRecord(1, 1)),
    "too long a path": (TOP, *[EnterRecord(b"d" * 200, 0o755, 0)] * 200),
    "too many questions": (TOP, *[ask(b"f")] * (wire.TRANSFER_WINDOW + 1)),
    "too long questions": (TOP, EnterRecord(b"d" * 240, 0o755, 0), *[ask(b"f" * 240)] * 700),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_lying_sender(tmp_path: Path, lie: Iterable[wire.Record | bytes]) -> None:
    """It is found out, by that alone; nothing is written but below the target, and no file stays there."""
    (tmp_path / "inside").mkdir()

    with pytest.raises(RemoteProtocolError):
        await hear(tmp_path / "inside" / "target", *lie)

    assert names_below(tmp_path)[0] == "inside"
    for path in (tmp_path / "inside").rglob("*"):
        assert path.is_dir()
        assert path.is_relative_to(tmp_path / "inside" / "target")


async def test_a_tree_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories within directories have a bound."""
    monkeypatch.setattr(wire, "MAX_DEPTH", 5)
    (tmp_path / "inside").mkdir()

    with pytest.raises(RemoteProtocolError):
        await hear(tmp_path / "inside" / "target", TOP, *[EnterRecord(b"d", 0o755, 0)] * 5)


@pytest.mark.parametrize("name", [b"C:", b"a\\b", b".. ", b"...", b"x.", b"x "])
def test_names_that_windows_reads_as_paths(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """They are names on other systems; there they may lead to another directory, or to another file."""
    check_name(name)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OSError, match="Windows"):
        check_name(name)
    check_name(b".a b.c")


class Scripted:
    """A sender that listens to the answers."""

    def __init__(self, target: Path, *, update: Update = Update.NONE) -> None:
        self.lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
        self.target = target
        self.update = update
        self.error: BaseException | None = None
        self._reader = RecordReader()
        self._heard: list[object] = []

    async def run(self) -> None:
        """Be the receiver."""
        try:
            with trio.fail_after(20):
                await receive(
                    self.lines.receiver,
                    AnyFile(),
                    os.fsencode(self.target),
                    partials=Partials(),
                    update=self.update,
                )
        except Exception as error:
            self.error = error

    async def say(self, *parts: wire.Record | bytes) -> None:
        """To the receiver."""
        await self.lines.forth.send(said(*parts))

    async def answer(self) -> object:
        """The receiver's next record."""
        while not self._heard:
            self._heard += self._reader.feed(b"".join(await self.lines.back.receive()))
        return self._heard.pop(0)


SHA_OF_TEN = hashlib.sha256(b"0123456789").digest()

LATE_LIES = {
    "an offset that wasn't offered": (ContentRecord(0, 5),),
    "content of another one": (ContentRecord(1),),
    "too many bytes": (ContentRecord(0), b"0123456789a"),
    "too many zeros": (ContentRecord(0), ZerosRecord(11)),
    "too few bytes": (ContentRecord(0), b"012345678", CompleteRecord(SHA_OF_TEN)),
    "something among the bytes": (ContentRecord(0), b"0123", *small(b"other")),
    "content within content": (ContentRecord(0), b"0123", ContentRecord(0)),
    "leave within content": (ContentRecord(0), b"0123", LeaveRecord()),
    "content twice": (
        *(ContentRecord(0), b"0123456789", CompleteRecord(SHA_OF_TEN)),
        ContentRecord(0),
    ),
    "vanished twice": (VanishedRecord(0), VanishedRecord(0)),
    "vanished within content": (ContentRecord(0), b"0123", VanishedRecord(0)),
    "end within content": (ContentRecord(0), b"0123", EndRecord()),
}


@pytest.mark.parametrize("lie", LATE_LIES.values(), ids=LATE_LIES)
async def test_a_sender_that_lies_about_what_is_wanted(
    tmp_path: Path, lie: Iterable[wire.Record | bytes]
) -> None:
    """It is found out, and nothing that isn't complete stays."""
    scripted = Scripted(tmp_path / "target")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted.run)
        await scripted.say(TOP, ask(b"f"))
        assert await scripted.answer() == WantRecord()
        await scripted.say(*lie)

    assert isinstance(scripted.error, RemoteProtocolError)
    assert names_below(tmp_path) in (["target"], ["target", "target/f"])


@pytest.mark.parametrize("is_small", [True, False])
async def test_another_hash_than_was_said(tmp_path: Path, is_small: bool) -> None:
    """What arrives damaged never gets its name; what was there is as it was."""
    target = tmp_path / "target"
    target.write_bytes(b"old")
    scripted = Scripted(target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted.run)
        if is_small:
            await scripted.say(FileRecord(b"", 2, 0o644, 0, SHA_OF_X), b"xx", EndRecord())
        else:
            await scripted.say(ask(b""))
            await scripted.answer()
            await scripted.say(ContentRecord(0), b"0123456789", CompleteRecord(SHA_OF_X))
        told = await scripted.answer()

    assert isinstance(told, FailedRecord)
    assert "hash" in str(scripted.error)
    assert names_below(tmp_path) == ["target"]
    assert target.read_bytes() == b"old"


async def test_bytes_for_a_file_that_is_the_same(tmp_path: Path) -> None:
    """Who agreed that a file is the same has no more bytes for it, whatever its size was said to be."""
    target = tmp_path / "target"
    target.write_bytes(b"0123456789")
    scripted = Scripted(target, update=Update.HASH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted.run)
        await scripted.say(ask(b""))
        assert await scripted.answer() == WantRecord(10, SHA_OF_TEN, whole=True)
        await scripted.say(ContentRecord(0, 10), CompleteRecord(SHA_OF_X))

    assert scripted.error is not None
    assert target.read_bytes() == b"0123456789"


async def test_a_slow_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete gets its name soon, though what follows may be long in coming."""
    monkeypatch.setattr(receiving, "SETTLE_SECONDS", 0.05)
    scripted = Scripted(tmp_path / "target")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted.run)
        await scripted.say(TOP, *small(b"one"), EnterRecord(b"d", 0o700, 5 * 10**9), LeaveRecord())
        with trio.fail_after(20):
            while names_below(tmp_path) != ["target", "target/d", "target/one"]:
                await trio.sleep(0.01)
        await scripted.say(*small(b"two"), LeaveRecord(), EndRecord())
        assert await scripted.answer() == SettledRecord()

    assert scripted.error is None
    assert (tmp_path / "target" / "d").stat().st_mtime == 5
    assert names_below(tmp_path) == ["target", "target/d", "target/one", "target/two"]


async def test_a_link_that_was_sent_is_not_followed(tmp_path: Path) -> None:
    """Neither as a directory nor as a file: what is elsewhere can't be reached through it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    there = os.fsencode(elsewhere)

    with pytest.raises(NotADirectoryError):
        await hear(
            tmp_path / "target",
            *(TOP, LinkRecord(b"d", there, 0), *[part for n in range(4000) for part in small(b"%d" % n)]),
            *(EnterRecord(b"d", 0o755, 0), *small(b"file"), LeaveRecord(), LeaveRecord(), EndRecord()),
        )  # fmt: skip
    await hear(
        tmp_path / "other",
        *(TOP, LinkRecord(b"f", there + b"/file", 0), *small(b"f"), LeaveRecord(), EndRecord()),
    )

    assert (elsewhere / "file").read_bytes() == b"precious"
    assert names_below(elsewhere) == ["file"]
    assert (tmp_path / "other" / "f").read_bytes() == b"x"


async def test_a_program_that_runs_as_somebody_else_is_not_made(tmp_path: Path) -> None:
    """Whatever mode a sender names, it is only about who may read, write and run."""
    await hear(
        tmp_path / "target",
        *(TOP, EnterRecord(b"d", 0o7777, 0), FileRecord(b"f", 1, 0o6755, 0, SHA_OF_X), b"x"),
        *(LeaveRecord(), LeaveRecord(), EndRecord()),
    )

    assert (tmp_path / "target" / "d" / "f").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "target" / "d").stat().st_mode & 0o7777 == 0o777


async def test_a_giant_hole_keeps_nobody(tmp_path: Path) -> None:
    """Zeros without end from a few bytes: the receiver works no more than it can be stopped in between."""
    scripted = Scripted(tmp_path / "target")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted.run)
        await scripted.say(ask(b"", 2**60))
        await scripted.answer()
        await scripted.say(ContentRecord(0), *[ZerosRecord(wire.MAX_ZEROS)] * 10_000)
        with trio.fail_after(20):
            while not partials_below(tmp_path):
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
        began = time.process_time()
    # Of our own work, whatever else the machine does: all the zeros are minutes of it, and some of them 0.02 s (m).
    assert time.process_time() - began < 1
    assert names_below(tmp_path) == []


async def test_a_sender_that_says_much_and_nothing_to_do(tmp_path: Path) -> None:
    """What means nothing here takes no room from what does: the receiver is not kept waiting by it."""
    newer = b"\x81\xa1t\xbb" + b"n" * 27  # a message that nobody knows
    unknown = b"\x01" + len(newer).to_bytes(4, "big") + newer
    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    await lines.forth.send(unknown * (3 * MIB // len(unknown)) + said(*small(b""), EndRecord()))
    with trio.fail_after(30):
        await receive(lines.receiver, AnyFile(), os.fsencode(tmp_path / "f"), partials=Partials())
    assert (tmp_path / "f").read_bytes() == b"x"


async def test_a_small_file_that_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file is nothing that a thread could do anything about."""
    hops: list[object] = []
    do = DiskWork.do

    async def counting(self: DiskWork, work: Any, *args: Any) -> Any:
        hops.append(work)
        return await do(self, work, *args)

    monkeypatch.setattr(DiskWork, "do", counting)
    scripted = Scripted(tmp_path / "target")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted.run)
        data = bytes(200_000)
        head = FileRecord(b"", len(data), 0o644, 0, hashlib.sha256(data).digest())
        await scripted.say(TotalRecord(len(data), 1), head, data[:150_000])
        await trio.sleep(0.2)
        so_far = len(hops)
        await scripted.say(data[150_000:], EndRecord())
    assert so_far <= 2
    assert (tmp_path / "target").read_bytes() == data


async def test_a_chunk_of_very_many_files_is_written_while_it_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are in one, a thread has some of them at a time, and no more than some wait for it."""
    at_once: list[int] = []
    do = Writer.do

    def watched(self: Writer, steps: Any) -> Any:
        at_once.append(len(steps))
        time.sleep(0.05)  # for all of it to be taken in, if that were to happen
        return do(self, steps)

    monkeypatch.setattr(Writer, "do", watched)
    lines = Lines(Line(bound=1 << 40, piece=16 * MIB), Line(bound=1 << 40))
    files = [part for number in range(6000) for part in small(b"%d" % number)]
    await lines.forth.send(said(TOP, *files, LeaveRecord(), EndRecord()))
    target = tmp_path / "target"
    await receive(lines.receiver, AnyFile(), os.fsencode(target), partials=Partials())
    assert sum(at_once) == 6000 + 3
    assert max(at_once) < 1500
    assert len(os.listdir(target)) == 6000


async def test_directories_without_files_are_finished_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, only some wait at a time until they get their modes and times."""
    monkeypatch.setattr(writing, "SETTLE_FILES", 16)
    waiting: list[int] = []
    finish = Writer._one_less

    def watched(self: Writer, folder: Any) -> None:
        finish(self, folder)
        waiting.append(len(self._batch.named.finished))

    monkeypatch.setattr(Writer, "_one_less", watched)
    folders = [(EnterRecord(b"%d" % number, 0o700, 0), LeaveRecord()) for number in range(1000)]
    lines = Lines(Line(bound=1 << 40, piece=KIB), Line(bound=1 << 40))
    await lines.forth.send(said(TOP, *(record for folder in folders for record in folder)))
    await lines.forth.send(said(LeaveRecord(), EndRecord()))
    target = tmp_path / "target"
    await receive(lines.receiver, AnyFile(), os.fsencode(target), partials=Partials())
    assert len(waiting) >= 1000
    assert max(waiting) <= 16
    assert (target / "999").stat().st_mtime_ns == 0


def test_a_small_file_in_crumbs_takes_its_own_size() -> None:
    """Each piece is part of a chunk that may be large: none of those is kept for it."""
    arrivals, reader, steps = Arrivals(), RecordReader(), list[Any]()
    newer = b"\x81\xa1t\xda" + (30_000).to_bytes(2, "big") + b"n" * 30_000
    padding = b"\x01" + len(newer).to_bytes(4, "big") + newer
    for record in reader.feed(said(FileRecord(b"", 1000, 0o644, 0, SHA_OF_X))):
        arrivals.take(record, steps)
    tracemalloc.start()
    try:
        for _ in range(999):
            for record in reader.feed(said(b"x") + padding):
                arrivals.take(record, steps)
        assert tracemalloc.get_traced_memory()[0] < 300 * KIB
    finally:
        tracemalloc.stop()
    assert not steps


async def test_what_was_written_is_held_by_nobody(tmp_path: Path) -> None:
    """While nothing more comes: what waits for a sender is no memory but the rest of a batch."""
    size, came = 64 * MIB, 6 * MIB
    lines = Lines(Line(bound=1 << 40, piece=wire.MAX_DATA_BYTES), Line(bound=1 << 40))
    data = os.urandom(MIB)

    async def run() -> None:
        target = os.fsencode(tmp_path / "f")
        await receive(lines.receiver, AnyFile(), target, partials=Partials())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await lines.forth.send(said(ask(b"", size)))
        await lines.back.receive()
        tracemalloc.start()
        try:
            await lines.forth.send(said(ContentRecord(0)))
            for _ in range(came // MIB):
                await lines.forth.send(said(data))
            while sum((tmp_path / name).stat().st_size for name in names_below(tmp_path)) < came:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert tracemalloc.get_traced_memory()[0] < 512 * KIB
        finally:
            tracemalloc.stop()
        nursery.cancel_scope.cancel()


async def test_crumbs_are_charged_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record costs memory besides its bytes: a file that comes byte by byte is taken in no faster than others."""
    monkeypatch.setattr(receiving, "BACKLOG_COST", 64 * KIB)
    may_write = threading.Event()
    do = Writer.do
    monkeypatch.setattr(Writer, "do", lambda *args: may_write.wait(10) and do(*args))
    lines = Lines(Line(bound=1 << 40, piece=KIB), Line(bound=1 << 40))
    data = b"x" * 20_000
    digest = hashlib.sha256(data).digest()
    await lines.forth.send(said(ask(b"", len(data))))

    async def run() -> None:
        target = os.fsencode(tmp_path / "f")
        await receive(lines.receiver, AnyFile(), target, partials=Partials())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        may_write.set()
        await lines.back.receive()
        may_write.clear()
        await lines.forth.send(said(ContentRecord(0), *[b"x"] * len(data)))
        await lines.forth.send(said(CompleteRecord(digest), EndRecord()))
        await trio.testing.wait_all_tasks_blocked(0.1)
        waiting = lines.forth.unread
        may_write.set()
    assert waiting > 110_000
    assert (tmp_path / "f").read_bytes() == data


# ---- receivers ----------------------------------------------------------------------------------


RECEIVERS_LIES = {
    "too many answers": (SkipRecord(), SkipRecord()),
    "an offset behind the end": (WantRecord(10 * MIB, b"x"),),
    "settled too early": (SettledRecord(),),
    "a piece of a file": (b"x",),
    "what senders say": (EndRecord(),),
}


@pytest.mark.parametrize("lie", RECEIVERS_LIES.values(), ids=RECEIVERS_LIES)
async def test_a_lying_receiver(tmp_path: Path, lie: Iterable[wire.Record | bytes]) -> None:
    """It is found out."""
    (tmp_path / "source").write_bytes(bytes(300 * KIB))
    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    await lines.back.send(said(*lie))

    with pytest.raises(RemoteProtocolError), trio.fail_after(20):
        await send(lines.sender, AnyFile(), os.fsencode(tmp_path / "source"))


async def test_a_receiver_that_knows_other_hashes(tmp_path: Path) -> None:
    """A hash that isn't the source's gets it the file from its beginning."""
    (tmp_path / "source").write_bytes(b"y" * 300 * KIB)
    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    reader, heard = RecordReader(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, lines.sender, AnyFile(), os.fsencode(tmp_path / "source"))
        heard += reader.feed(b"".join(await lines.forth.receive()))
        assert isinstance(heard[0], AskRecord)
        await lines.back.send(said(WantRecord(5, SHA_OF_X)))
        while not isinstance(heard[-1], EndRecord):
            heard += reader.feed(b"".join(await lines.forth.receive()))
        await lines.back.send(said(SettledRecord()))

    assert ContentRecord(0, 0) in heard
    assert sum(len(each) for each in heard if isinstance(each, memoryview)) == 300 * KIB


async def test_unknown_messages_are_ignored(tmp_path: Path) -> None:
    """A newer peer may say more: at either end."""
    unknown = b"\x01" + len(b"\x81\xa1t\xa3new").to_bytes(4, "big") + b"\x81\xa1t\xa3new"
    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    await lines.forth.send(unknown + said(*small(b"")) + unknown + said(EndRecord()))
    await receive(lines.receiver, AnyFile(), os.fsencode(tmp_path / "target"), partials=Partials())
    assert (tmp_path / "target").read_bytes() == b"x"

    lines = Lines(Line(bound=1 << 40), Line(bound=1 << 40))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, lines.sender, AnyFile(), os.fsencode(tmp_path / "target"))
        reader, heard = RecordReader(), []
        while not any(isinstance(each, EndRecord) for each in heard):
            heard += reader.feed(b"".join(await lines.forth.receive()))
        await lines.back.send(unknown + said(SettledRecord()))
