"""The end of a transfer that has the files: `send`.

A thread prepares a batch of records, while those before it are on their way: the channel holds as much. Another task
hears what the receiver answers.
"""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError, TransferError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.transfers.agenda import Agenda, Question, Turn
from sandd._core.transfers.disk_work import DiskWork
from sandd._core.transfers.ends import (
    RECORDS_PER_TURN,
    PeerGoneError,
    failure_error,
    say_farewell,
    tell,
)
from sandd._core.transfers.filters import Filter
from sandd._core.transfers.reading import Source
from sandd._core.transfers.records import RecordReader, message_bytes
from sandd._core.transfers.result import TransferResult
from sandd._core.transfers.walking import BATCH_BYTES, Walk, count
from sandd.wire import Update

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
    from typing import TypeVar

    from sandd._core.files.roots import Root
    from sandd._core.transfers.ends import ByteChannel

    T = TypeVar("T")


@trio.lowlevel.enable_ki_protection
async def send(
    channel: ByteChannel,
    root: Root,
    path: bytes,
    *,
    update: Update = Update.NONE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    says_total: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TransferResult:
    """Send the file or tree at `path` to a receiver; returns when all of it is safe on the receiver's disk.

    Args:
        path: a link there is followed; those in a tree are sent as links.
        update: what the receiver skips, as it knows, too.
        include: as in a .gitignore: of a tree, only files that match one of these are sent.
        exclude: as above: what matches is left out.
        says_total: count before, and tell the receiver.
        progress: called with bytes done and bytes in all, in this task.

    Raises:
        OSError: something here can't be read; the receiver was told.
        TransferError: the receiver failed, or is gone; or a file changes each time it is read.
        RemoteProtocolError: the receiver says what makes no sense.
    """
    sender = _Sender(channel, root, path, Filter(include, exclude), update, progress)
    try:
        return await sender.run(counts=says_total or progress is not None, says_total=says_total)
    finally:
        await sender.disk.finish(sender.close)


@define(eq=False)
class _Batch:
    """Records that are to be sent, and what they do for the counts."""

    records: list[bytes] = field(factory=list)
    done: int = 0


class _Sender:
    def __init__(
        self,
        channel: ByteChannel,
        root: Root,
        path: bytes,
        chosen: Filter,
        update: Update,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._channel = channel
        self._root = root
        self._path = path
        self._chosen = chosen
        self._progress = progress
        self.disk = DiskWork()
        self._agenda = Agenda()
        self._walk = Walk(root, path, chosen, asks=update is not Update.NONE)
        self._heard = trio.Event()
        self._settled = trio.Event()
        self._has_ended = False
        """All was produced: the receiver may say that it is done."""
        # The thread's, one at a time.
        self._source: Source | None = None
        self._source_records: Generator[bytes, None, None] | None = None
        self._counting: Generator[tuple[int, int], None, None] | None = None
        # The counts.
        self._began = trio.current_time()
        self._total = 0
        self._done = 0
        self._moved = 0
        self._resumed = 0
        self._skipped = 0
        self._size = 0
        self._files = 0
        self._sha256: bytes | None = None

    def close(self) -> None:
        """Let go of all descriptors."""
        self._walk.close()
        for each in (self._source_records, self._counting):
            if each is not None:
                each.close()

    async def run(self, *, counts: bool, says_total: bool) -> TransferResult:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(self._listen)
            if counts:
                total = await self._or_farewell(self._count)
                if says_total:
                    await self._transmit(_Batch([message_bytes(total)]))
            while (batch := await self._or_farewell(self._prepare)) is not None:
                await self._transmit(batch)
            self._has_ended = True
            end = wire.EndRecord(self._walk.unsupported, tuple(self._walk.unsupported_names))
            await self._transmit(_Batch([message_bytes(end)]))
            await self._settled.wait()
            nursery.cancel_scope.cancel()
        return TransferResult(
            bytes=self._moved,
            size=self._size,
            files=self._files,
            skipped=self._skipped,
            resumed=self._resumed,
            sha256=None if self._sha256 is None else self._sha256.hex(),
            seconds=trio.current_time() - self._began,
            unsupported=self._walk.unsupported,
            unsupported_names=tuple(os.fsdecode(name) for name in self._walk.unsupported_names),
        )

    # -- towards the receiver

    async def _or_farewell(self, prepare: Callable[[], Awaitable[T]]) -> T:
        """What it returns; what goes wrong here the receiver is told, too. Nothing is being sent meanwhile."""
        try:
            return await prepare()
        except (OSError, TransferError) as error:
            await say_farewell(self._channel, error)
            raise

    async def _prepare(self) -> _Batch | None:
        """What is to be sent next; None when that was all."""
        while True:
            while self._agenda.skipped:
                skipped = self._agenda.skipped.popleft()
                self._skipped += 1
                self._done += skipped.size
                self._say_progress()
            match self._agenda.next():
                case Turn.WALK:
                    return await self._find()
                case Turn.SEND:
                    return await self._read()
                case Turn.WAIT:
                    self._heard = trio.Event()
                    await self._heard.wait()
                case Turn.END:
                    return None

    async def _find(self) -> _Batch:
        agenda = self._agenda
        found = await self.disk.do(self._walk.find, agenda.room(), agenda.room_bytes())
        for question in found.questions:
            agenda.asked(question)
        agenda.has_walked = found.is_last
        self._files += found.files
        self._size += found.size
        self._moved += found.moved
        self._sha256 = self._walk.sha256
        return _Batch(found.records, found.moved)

    async def _read(self) -> _Batch:
        wanted = self._agenda.wanted
        records, finished, done = await self.disk.do(self._read_some, list(wanted)[:_FILES])
        self._agenda.is_sending = self._source is not None
        for source in finished:
            question = wanted.popleft()
            assert question is source.question
            self._agenda.closed(question)
            self._count_source(source)
        return _Batch(records, done)

    def _read_some(self, wanted: list[Question]) -> tuple[list[bytes], list[Source], int]:
        """About two megabytes of what is wanted, in a thread: records, files that are complete, bytes done."""
        records: list[bytes] = []
        finished: list[Source] = []
        size = done = 0
        for question in wanted:
            source = self._source
            if source is None:
                path = self._walk.full_path(question.path)
                source = self._source = Source(self._root, path, question, self.disk.check)
                self._source_records = source.records()
            assert self._source_records is not None
            before = source.done
            for record in self._source_records:
                records.append(record)
                size += len(record)
                if size >= BATCH_BYTES or source.done - before >= wire.MAX_ZEROS:
                    break
            else:
                finished.append(source)
                self._source = self._source_records = None
            done += source.done - before
            if self._source is not None or size >= BATCH_BYTES or done >= wire.MAX_ZEROS:
                break
        return records, finished, done

    def _count_source(self, source: Source) -> None:
        self._moved += source.moved
        self._resumed += source.resumed
        self._skipped += source.is_same
        self._size += source.size - source.question.size
        if source.is_gone:
            self._files -= 1
            self._size -= source.size
        if not self._walk.is_tree:
            self._sha256 = source.sha256

    async def _transmit(self, batch: _Batch) -> None:
        # Nobody holds what was sent until there is more: the batch has none of it any more.
        records, batch.records = batch.records, []
        await tell(self._channel, *_joined(records))
        self._done += batch.done
        if batch.done:
            self._say_progress()

    def _say_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))

    async def _count(self) -> wire.TotalRecord:
        self._counting = count(self._root, self._path, self._chosen)
        size = files = 0
        while (now := await self.disk.do(next, self._counting, None)) is not None:
            size, files = now
        self._total = size
        return wire.TotalRecord(size, files)

    # -- from the receiver

    @trio.lowlevel.enable_ki_protection
    async def _listen(self) -> None:
        reader = RecordReader()
        while not self._settled.is_set():
            pieces = await self._channel.receive()
            if not pieces:
                raise PeerGoneError("the receiver is gone, and has not said that it is done")
            records = chain.from_iterable(map(reader.feed, pieces))
            for number, record in enumerate(records, 1):
                self._hear(record)
                if number % RECORDS_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            self._heard.set()

    def _hear(self, record: wire.Record | wire.Unknown | memoryview) -> None:
        match record:
            case wire.SkipRecord() | wire.WantRecord():
                self._agenda.answered(record)
            case wire.SettledRecord() if self._has_ended:
                self._settled.set()
            case wire.FailedRecord():
                raise failure_error(record)
            case wire.Unknown():
                pass
            case _:
                raise RemoteProtocolError(f"{type(record).__name__} from a receiver")


_FILES = 64
"""Files that are read in one go, at most."""
_JOINED_BYTES = 64 * wire.KIB
"""A record of more is sent by itself, rather than copied."""


def _joined(records: list[bytes]) -> Iterator[bytes]:
    """The same bytes, in fewer pieces."""
    small: list[bytes] = []
    for record in records:
        if len(record) >= _JOINED_BYTES:
            if small:
                yield b"".join(small)
                small = []
            yield record
        else:
            small.append(record)
    if small:
        yield b"".join(small)
