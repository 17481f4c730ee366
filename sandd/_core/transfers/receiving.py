"""The end of a transfer that gets the files: `receive`.

One task takes in what comes, and another one has a thread write it: two megabytes at a time, or many small
files, or what came within a few milliseconds.
"""

from __future__ import annotations

import math
import os
from itertools import chain
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core._errors import RemoteProtocolError, TransferError, transfer_error
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.transfers import arrivals
from sandd._core.transfers.arrivals import Arrivals
from sandd._core.transfers.disk_work import GIVE_UP_SECONDS, DiskWork
from sandd._core.transfers.ends import (
    RECORDS_PER_TURN,
    PeerGoneError,
    failure_error,
    say_farewell,
    tell,
)
from sandd._core.transfers.partials import Holder
from sandd._core.transfers.records import RecordReader, message_bytes
from sandd._core.transfers.result import TransferResult
from sandd._core.transfers.writing import SETTLE_SECONDS, Writer
from sandd.wire import Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandd._core.files.roots import Root
    from sandd._core.transfers.arrivals import Incoming, Step
    from sandd._core.transfers.ends import ByteChannel
    from sandd._core.transfers.partials import Partials

BATCH_COST: Final = 2 * wire.MIB
"""Bytes that are written in one go; a step counts as `STEP_COST`, so some 400 small files are one go."""
STEP_COST: Final = 4 * wire.KIB
"""What a system call or two, and the memory for a step, are worth in bytes."""
RECORD_COST: Final = 256
"""Of a record, besides its bytes: a piece of a file may have a single one."""
BACKLOG_COST: Final = BATCH_COST * 3 // 2
"""Taken in and not written: about one batch while another one is on its way to the disk. What is left of a chunk
comes on top of that."""
LAZY_BYTES: Final = BATCH_COST // 4
"""What comes while a thread writes is taken in by so much, as nobody waits for it: each time costs the sender
an acknowledgement, too. Half of what a sender may have under way, at the least."""
RECEIVE_BYTES: Final = BATCH_COST + wire.MAX_DATA_BYTES
"""What is taken in at a time, at most: a batch, and what the last piece has besides, which isn't taken apart."""
GATHER_SECONDS: Final = 0.003
"""From the first step until a batch is begun that isn't full: a thread costs 0.3 ms, whatever it does."""


@trio.lowlevel.enable_ki_protection
async def receive(
    channel: ByteChannel,
    root: Root,
    path: bytes,
    *,
    partials: Partials,
    tenant: str = "",
    update: Update = Update.NONE,
    progress: Callable[[int, int], None] | None = None,
    will_return: Callable[[], bool] = lambda: False,
) -> TransferResult:
    """Take what a sender sends, to be at `path`; returns when all of it is safe on the disk.

    Every file that was there stays as it is until the new one is complete. What a transfer leaves that
    ends without anybody's will, a later one goes on with; any other removes what isn't complete.

    Args:
        path: what the copy is to be. A link there is followed; those within a tree are replaced.
        tenant: on whose behalf; nobody else goes on with what is left.
        update: what is skipped, as the sender knows, too.
        progress: called with bytes done and bytes in all (0 if the sender didn't count), in a task of ours.
        will_return: asked when this is cancelled: whether somebody may go on with it later, all the same.

    Raises:
        OSError: something can't be written here; the sender was told.
        TransferError: the sender failed, or is gone; what arrived is damaged; or another transfer goes on with a file
            of this one.
        RemoteProtocolError: the sender says what makes no sense.
    """
    receiver = _Receiver(
        channel, root, path, partials, tenant=tenant, update=update, progress=progress
    )
    keep = False
    try:
        return await receiver.run()
    except trio.Cancelled:
        keep = will_return()
        raise
    finally:
        await receiver.finish(keep=keep)


class _Receiver:
    def __init__(
        self,
        channel: ByteChannel,
        root: Root,
        path: bytes,
        partials: Partials,
        *,
        tenant: str,
        update: Update,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._channel = channel
        self._partials = partials
        self._progress = progress
        self._path = path
        self._disk = DiskWork()
        self._journal = partials.open_journal()
        self._writer = Writer(
            root,
            path,
            tenant=tenant,
            update=update,
            journal=self._journal,
            check=self._disk.check,
        )
        self._arrivals = Arrivals()
        self._scope = trio.CancelScope()
        self._was_taken = False
        """Another transfer goes on with a file of this one."""
        self._is_told = False
        """The sender said itself that it failed."""
        self._is_cut_off = False
        """The sender is gone, and has not said why."""
        self._holder = Holder(self._take)
        self._steps: list[Step] = []
        self._steps_cost = 0
        self._backlog = 0
        """The cost of all that was taken in and is not written."""
        self._came = trio.Event()
        self._is_urgent = trio.Event()
        self._room = trio.Event()
        self._is_writing = False
        """A thread is at it."""
        self._patience = trio.CancelScope()
        self._began = trio.current_time()

    def _take(self) -> None:
        self._was_taken = True
        self._scope.cancel()

    async def run(self) -> TransferResult:
        with self._scope:
            try:
                async with open_unwrapping_nursery() as nursery:
                    nursery.start_soon(self._take_in)
                    await self._write_all()
                    nursery.cancel_scope.cancel()
            except (OSError, TransferError, RemoteProtocolError) as error:
                if not self._is_told and not self._is_cut_off:
                    await say_farewell(self._channel, error)
                raise
        if self._was_taken:
            raise transfer_error(
                "ECANCELED", "another transfer goes on with this one", os.fsdecode(self._path)
            )
        return self._result()

    def _result(self) -> TransferResult:
        arrived, end = self._arrivals, self._arrivals.end
        assert end is not None
        sha256 = None if arrived.is_tree else self._writer.sha256
        return TransferResult(
            bytes=arrived.moved,
            size=arrived.size,
            files=arrived.files,
            skipped=arrived.skipped_files,
            resumed=arrived.resumed,
            sha256=None if sha256 is None else sha256.hex(),
            seconds=trio.current_time() - self._began,
            unsupported=end.unsupported,
            unsupported_names=tuple(os.fsdecode(name) for name in end.names),
        )

    async def finish(self, *, keep: bool) -> None:
        """Remove what isn't complete, but for what somebody may go on with if `keep`."""

        def close() -> None:
            stays = True
            try:
                stays = self._writer.close(keep=keep)
            finally:
                self._journal.close(keep=stays)

        keep = keep or self._is_cut_off or self._was_taken
        await self._disk.finish(close)
        self._partials.release_all(self._holder)
        self._partials.closed_journal(self._journal)

    # -- what comes

    @trio.lowlevel.enable_ki_protection
    async def _take_in(self) -> None:
        reader = RecordReader()
        while not self._arrivals.ended:
            await self._has_room()
            await self._take_some(reader)
            self._hand_over()
            self._say_progress()

    async def _take_some(self, reader: RecordReader) -> None:
        # By itself: nobody holds what was taken in until there is more.
        records = chain.from_iterable(map(reader.feed, await self._hear()))
        for number, record in enumerate(records, 1):
            if isinstance(record, wire.FailedRecord):
                self._is_told = True
                raise failure_error(record)
            known = len(self._steps)
            self._arrivals.take(record, self._steps)
            size = len(record) if isinstance(record, memoryview) else 0
            self._charge(size + RECORD_COST + STEP_COST * (len(self._steps) - known))
            if number % RECORDS_PER_TURN == 0:
                # One chunk may be many times what a thread writes in one go.
                self._hand_over()
                await trio.lowlevel.checkpoint()
                await self._has_room()

    def _hand_over(self) -> None:
        self._came.set()
        if self._steps_cost >= BATCH_COST or self._arrivals.ended:
            self._is_urgent.set()

    async def _has_room(self) -> None:
        while self._backlog >= BACKLOG_COST:
            self._room = trio.Event()
            await self._room.wait()

    def _charge(self, cost: int) -> None:
        self._backlog += cost
        self._steps_cost += cost

    async def _hear(self) -> Sequence[wire.Buffer]:
        pieces = None
        try:
            if self._is_writing:
                with trio.CancelScope() as self._patience:
                    pieces = await self._channel.receive(LAZY_BYTES)
            if pieces is None:
                pieces = await self._channel.receive()
        except Exception:
            await self._write_the_rest()
            raise
        if not pieces:
            await self._write_the_rest()
            raise PeerGoneError("the sender is gone, and has not said that this is all")
        return pieces

    async def _write_the_rest(self) -> None:
        """Nothing more comes: what has come need not be sent again."""
        self._is_cut_off = True
        self._came.set()
        self._is_urgent.set()
        with trio.move_on_after(GIVE_UP_SECONDS):
            while self._backlog:
                self._room = trio.Event()
                await self._room.wait()

    async def _tell(self, data: bytes) -> None:
        try:
            await tell(self._channel, data)
        except Exception:
            self._is_cut_off = True
            raise

    def _say_progress(self) -> None:
        if self._progress is not None:
            arrived = self._arrivals
            total = arrived.size if arrived.total is None else arrived.total.size
            self._progress(arrived.done, max(total, arrived.done))

    # -- what is done with it

    async def _write_all(self) -> None:
        writer = self._writer
        await self._disk.do(writer.resolve)
        while not writer.is_done:
            patience = SETTLE_SECONDS if writer.has_unsettled else math.inf
            with trio.move_on_after(patience) as waiting:
                await self._came.wait()
                with trio.move_on_after(GATHER_SECONDS):
                    await self._is_urgent.wait()
            cost, self._steps_cost = self._steps_cost, 0
            self._came, self._is_urgent = trio.Event(), trio.Event()
            answers = await self._write_some()
            if waiting.cancelled_caught or writer.is_due:
                await self._disk.do(writer.settle)
            self._is_writing = False
            self._patience.cancel()
            self._backlog -= cost
            self._room.set()
            for path in writer.take_released():
                self._partials.release(path, self._holder)
            await self._answer(answers)
        await self._tell(message_bytes(wire.SettledRecord()))

    async def _write_some(self) -> list[tuple[Incoming, wire.SkipRecord | wire.WantRecord]]:
        # By itself: nobody holds what was written until there is more.
        steps, self._steps = self._steps, []
        for step in steps:
            if isinstance(step, arrivals.Ask):
                await self._claim(step.file)
        # What came may be nothing to do, such as half a small file.
        self._is_writing = True
        return await self._disk.do(self._writer.do, steps) if steps else []

    async def _claim(self, file: Incoming) -> None:
        partial = self._writer.partial(file)
        if partial is not None and await self._partials.claim(partial, self._holder):
            file.partial = partial

    async def _answer(
        self, answers: list[tuple[Incoming, wire.SkipRecord | wire.WantRecord]]
    ) -> None:
        for file, answer in answers:
            if isinstance(answer, wire.SkipRecord):
                self._arrivals.skipped(file)
            else:
                self._arrivals.offered(file, answer.offset, is_whole=answer.whole)
        if answers:
            await self._tell(b"".join(message_bytes(answer) for _, answer in answers))
            self._say_progress()
