"""An output's log whose oldest part may lie on disk: what is put there, read back and deleted, and when.

Sans-IO: the log says what the disk shall do (`SpooledLog.next_task`), one thing at a time, and is told
how that went (`done`, `failed`, `lost`). Until then nothing is given up that the disk may not have.

    base            disk.end                end
     |---- on disk ----|----- in memory -----|          memory: at most `capacity`
     |    segments     |        ring         |          disk: within the quotas

What is in memory is the ring it always was; the disk drains it while nobody is attached who could. So
room is room in the ring, whatever the disk holds, and a disk that can't take more makes the process
wait by that alone. A cursor in the part on disk has nothing to send until that has been read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core._errors import LocalProtocolError
from sandd._core.read_ahead import ReadAhead
from sandd._core.spool import Delete, DiskTask, Fetch, Spill, Spool, Stall
from sandd._core.streams import MOST_RING_BYTES, RING_BYTES, ByteSendLog
from sandd.wire import OnFull, StallReason

if TYPE_CHECKING:
    from sandd._core.job import Job
    from sandd._core.ring_room import RingRoom
    from sandd.wire import Buffer

# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_DROP_OLDEST: Final = OnFull.DROP_OLDEST

EVERYTHING: Final = wire.MAX_OFFSET
"""`retain` of a log that frees what was acknowledged only when it needs the room."""


@define(eq=False)
class _DiskPart:
    """The part of a log that is on disk: ``max(base, start)`` to `end`. Made when first needed."""

    number: int
    start: int
    """Files hold nothing below it; the log's base may be within the first file."""
    end: int
    touched: int
    """A write that failed may have left something up to here, in a file of its own."""
    busy: DiskTask | None = None
    """Under way. One at a time, so that no two are ever about the same file."""
    trouble: Stall | None = None
    """Why the last try to put something there failed."""
    failures: int = 0
    """Writes that failed, one after the other."""
    unreadable: bool = False
    """The last try to read failed."""
    read_back: ReadAhead = field(factory=ReadAhead)
    fetched_last: bool = False


class SpooledLog(ByteSendLog):
    """A job's output. Without a spool, or while its owner is attached and keeps up, it is a ring in memory.

    An owner that takes a ring's worth and more makes it a wider one, as long as there is `RingRoom`.

    When there is no room, what `retain` kept below the floor goes first. Then the process waits, or
    the oldest goes, as `on_full` says. What is retained has its place in memory beside the ring, unless
    that is EVERYTHING.
    """

    __slots__ = (
        *("_disk", "_draining", "_is_owned", "_ring_room", "_spill_above", "_spool"),
        *("_taken_room", "_widened_at", "job", "on_full", "told_stall", "window"),
    )

    def __init__(
        self,
        job: Job,
        *,
        capacity: int = RING_BYTES,
        retain: int = 0,
        on_full: OnFull = OnFull.BLOCK,
        spool: Spool | None = None,
        ring_room: RingRoom | None = None,
    ) -> None:
        super().__init__(capacity=capacity, retain=retain)
        self.window = capacity
        """Bytes that the owner has not acknowledged, while it is attached."""
        self.capacity: int = capacity + (0 if retain == EVERYTHING else retain)
        """Bytes in memory."""
        self.job = job
        self.on_full = on_full
        self.told_stall = False
        """The last word of it to the job's clients was that it stalls."""
        self._is_owned = False
        self._draining = False
        self._spool = spool
        self._disk: _DiskPart | None = None
        self._spill_above = self.capacity - capacity // 2
        self._ring_room = ring_room
        self._taken_room = 0
        self._widened_at = 0
        """`floor` when more room was taken, or was asked for in vain."""

    # -- what there is

    @property
    def memory_bytes(self) -> int:
        """Bytes of it in memory: the ring, and what was read back or is being written."""
        disk = self._disk
        if disk is None:
            return len(self._bytes)
        under_way = len(disk.busy.data) if isinstance(disk.busy, Spill) else 0
        return len(self._bytes) + under_way + disk.read_back.held_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of it on disk, and under way there."""
        disk = self._disk
        if disk is None:
            return 0
        under_way = len(disk.busy.data) if isinstance(disk.busy, Spill) else 0
        return disk.end - disk.start + under_way

    @property
    def room(self) -> int:
        """Bytes that may be appended now: what the ring has free, or can do without."""
        held = self._bytes.size
        room = self.capacity - held
        if self._is_owned and not self._draining and self.on_full is not _DROP_OLDEST:
            pace = self.window - (self.end - self.floor)
            if pace <= room:
                return max(0, pace)  # as mostly: then it is no matter what the ring can do without
        if held and not self._takes_more and self._memory_start == self.base:
            room = self._most
        if self._is_owned and not (self._draining or self.dropping):
            # The owner's pace is the process' pace, whatever there is of older output.
            room = min(room, self.window - (self.end - self.floor))
        return max(0, room)

    @property
    def dropping(self) -> bool:
        """When full, it drops the oldest instead of having no room."""
        return self.on_full is OnFull.DROP_OLDEST or (
            self.on_full is OnFull.DROP_UNATTENDED and not self._is_owned
        )

    @property
    def is_stalled(self) -> bool:
        """The process waits, and the disk has no room either: be it that its reader is there by now."""
        return self._disk is not None and self._disk.trouble is not None and not self.room

    @property
    def stall(self) -> Stall | None:
        """Why the process waits for the disk, if it does: None where it has room, or waits for its reader."""
        waits_for_reader = self._is_owned and self.end - self.floor >= self.window
        if self._disk is None or waits_for_reader or not self.is_stalled:
            return None
        return self._disk.trouble

    @property
    def failing(self) -> bool:
        """The disk failed, and there is a reason to `retry`."""
        disk = self._disk
        if disk is None:
            return False
        failed = disk.trouble is not None and disk.trouble.reason is StallReason.DISK
        return (failed and self._spill_due) or (disk.unreadable and bool(disk.read_back.wanted))

    @property
    def _most(self) -> int:
        """What can be appended at all: `room` may shrink while a pump reads what it had room for, this can't."""
        held, start = len(self._bytes), self._memory_start
        return self.capacity - held + (held if self.dropping else max(0, self.floor - start))

    @property
    def _memory_start(self) -> int:
        """What stands below is on disk, or gone."""
        return self.base if self._disk is None else max(self.base, self._disk.end)

    @property
    def _spools(self) -> bool:
        """Whether the disk is to take what the ring has no room for."""
        if self._spool is None:
            return False
        # What is dropped is the oldest; as long as that is on disk, the newest has to go there, too.
        has_backlog = self.dropping and self._memory_start > self.base
        return not self._is_owned or self.retain == EVERYTHING or has_backlog

    @property
    def _takes_more(self) -> bool:
        """The disk makes room in the ring, now or soon."""
        return self._spools and (self._disk is None or self._disk.trouble is None)

    @property
    def _spill_due(self) -> bool:
        return len(self._bytes) > self._spill_above and self._spools

    # -- what the job does

    def own(self, *, attached: bool) -> None:
        """The job's owner has come, or is gone."""
        self._is_owned = attached
        if self.end:  # else there is nothing that the disk could have or get
            self._look()

    def keep_all(self) -> None:
        """From now on keep also what was acknowledged, as far as there is room for it."""
        self.retain = EVERYTHING
        self._look()  # what is full now would not be looked at again: nobody can add to it

    def drain(self, units: int) -> None:
        """The process has exited: have room for `units` more in memory, whoever reads."""
        self.capacity += units
        self._draining = True

    def append(self, data: Buffer) -> None:
        """Add bytes at the end: at most as many as there was `room` for since the last time."""
        units, ring = len(data), self._bytes
        room = self.capacity - ring.size
        if self.final or units > room:
            # What is held can make it more, never less.
            self._check_room(units, room if units <= room else self._most)
        ring.append(data)
        self.end += units
        if (
            self.on_full is _DROP_OLDEST and self._is_owned and self.retain != EVERYTHING
        ):  # (where it is owned, that is `dropping`)
            # What piled up while the owner was away is not dropped at its return, but grows no more.
            self._drop(min(self.end - self.capacity, self.floor + units))
        excess = ring.size - self.capacity
        if excess > 0:
            self._drop(self._memory_start + excess)
        if ring.size > self._spill_above:
            self._look()

    def acknowledge(self, offset: int) -> None:
        super().acknowledge(offset)
        if self.final:
            self._narrow()
        elif self._is_owned and self.floor - self._widened_at >= self.window:
            self._widen()
        disk = self._disk
        if disk is not None and disk.trouble is not None:
            self._ask()  # some of it can be freed now

    def abandon(self) -> None:
        """The job is forgotten: nobody needs any of it."""
        self.final = True
        if self.end:  # else it never had anything to ask of the disk, nor more room than at first
            self._drop(self.end)
            self._narrow()
            if self._spool is not None:
                self._spool.forget(self)

    def finish(self) -> None:
        super().finish()
        self._narrow()

    def _widen(self) -> None:
        self._widened_at = self.floor
        if self._ring_room is not None and self.window < MOST_RING_BYTES:
            room = self._ring_room.take(min(self.window, MOST_RING_BYTES - self.window))
            self._taken_room += room
            self.window += room
            self.capacity += room
            self._spill_above += room - room // 2

    def _narrow(self) -> None:
        """Nothing is appended any more: what the ring doesn't hold others may have. Results are kept for a day."""
        if self._ring_room is not None and self._taken_room:
            spare = min(self._taken_room, self.capacity - self._bytes.size)
            self._ring_room.give_back(spare)
            self._taken_room -= spare
            self.capacity -= spare

    def release_pieces(self) -> None:
        """Nobody is attached: nobody needs what was read back."""
        if self._disk is not None:
            self._disk.read_back.clear()

    # -- what cursors do

    def at_hand(self, offset: int) -> bool:
        disk = self._disk
        return disk is None or offset >= disk.end or disk.read_back.has(offset)

    def read(self, offset: int, limit: int) -> tuple[Buffer, int]:
        disk = self._disk
        if disk is None or offset >= disk.end:
            start = self.base if disk is None else self._memory_start
            chunk = self._bytes.read(offset - start, limit)
            return chunk, len(chunk)
        taken = disk.read_back.take(offset, limit)
        if taken is None:
            self._want(disk, offset)
            return b"", 0
        chunk, end = taken
        if end < disk.end and disk.read_back.has_place:
            self._want(disk, end)
        return chunk, len(chunk)

    def _want(self, disk: _DiskPart, offset: int) -> None:
        # Only what is new is asked for: a reader that tries again must not keep the shell busy.
        if disk.read_back.want(offset):
            self._ask()

    # -- what the disk does

    def next_task(self) -> DiskTask | None:
        """What the disk shall do next, until `done`, `failed` or `lost`; None: nothing, or not now."""
        disk = self._disk
        if disk is not None and disk.busy is not None:
            return None
        task: DiskTask | None = None
        if disk is not None:
            task = self._next_delete(disk)
            if task is None and not disk.fetched_last:
                task = self._next_fetch(disk)
        task = task or self._next_spill()
        disk = self._disk
        if disk is not None:
            task = task or self._next_fetch(disk)
            disk.busy = task
            disk.fetched_last = isinstance(task, Fetch)
        return task

    def done(self, task: DiskTask, data: bytes = b"") -> None:
        """The disk has done it; `data` is what a `Fetch` has read."""
        disk, spool = self._finish(task)
        match task:
            case Spill():
                disk.failures = 0
                start, disk.end = self._memory_start, task.start + len(task.data)
                if disk.end > start:
                    self._bytes.discard(disk.end - start)
            case Fetch():
                disk.read_back.add(task.start, data)
                disk.read_back.free(self.base)
            case Delete():
                self._deleted(disk, task, spool)
        self._look()

    def failed(self, task: DiskTask, message: str, *, full: bool = False) -> None:
        """The disk could not do it, as it is `full` or for any other reason.

        What may be given up makes room on a full disk at once, like at the end of a quota. If the log is
        `failing` then, the shell calls `retry` after a while.
        """
        disk, spool = self._finish(task)
        match task:
            case Spill():
                disk.trouble = Stall(StallReason.DISK, message)
                disk.failures += 1
                spool.release(len(task.data))
                if full:
                    self._make_way(disk)
            case Fetch():
                disk.unreadable = True
            case Delete():
                self._deleted(disk, task, spool)  # it goes with the directory at the latest

    def lost(self, task: DiskTask) -> None:
        """What was to be read is not there any more: nobody will ever have it, so it becomes a gap."""
        disk, spool = self._finish(task)
        assert isinstance(task, Fetch)
        disk.read_back.give_up(task.start)
        self._drop(min(self._segment_end(task.start, spool), disk.end))

    def retry(self) -> None:
        """Time has passed: try again what failed; if that was not the first time, with less on disk."""
        disk = self._disk
        if disk is not None:
            if disk.trouble is not None and disk.trouble.reason is StallReason.DISK:
                disk.trouble = None
                if disk.failures > 1:
                    self._make_way(disk)
            disk.unreadable = False
            self._look()

    # -- inside

    def _finish(self, task: DiskTask) -> tuple[_DiskPart, Spool]:
        disk, spool = self._disk, self._spool
        if disk is None or spool is None or disk.busy is not task:
            raise LocalProtocolError("the disk was not asked for that")
        disk.busy = None
        return disk, spool

    def _deleted(self, disk: _DiskPart, task: Delete, spool: Spool) -> None:
        released, disk.start = task.until - disk.start, task.until
        if disk.start == disk.end:
            disk.touched = disk.end
        if released:
            disk.trouble = None  # a full disk has room again
            spool.release(released)

    def _next_delete(self, disk: _DiskPart) -> Delete | None:
        assert self._spool is not None
        size = self._spool.segment_bytes
        until = last = self.base - self.base % size
        if disk.end <= self.base:
            until, last = disk.end, max(disk.end, disk.touched)  # the last file goes, too
        if last <= disk.start:
            return None
        segments = range(disk.start // size, (last - 1) // size + 1)
        return Delete(tuple(f"{disk.number}.{segment}" for segment in segments), until)

    def _next_fetch(self, disk: _DiskPart) -> Fetch | None:
        assert self._spool is not None
        start = disk.read_back.next_wanted(self.base, disk.end)
        if start is None or disk.unreadable:
            return None
        end = min(start + self._spool.piece_bytes, self._segment_end(start, self._spool), disk.end)
        file, position = self._place(disk, start, self._spool)
        return Fetch(file, position, start, end - start)

    def _next_spill(self) -> Spill | Delete | None:
        spool = self._spool
        if spool is None or not self._spill_due:
            return None
        start = self._memory_start
        disk = self._disk
        if disk is None:
            disk = self._disk = _DiskPart(spool.next_number(), start, start, start)
        if disk.trouble is not None and disk.trouble.reason is StallReason.DISK:
            return None
        if disk.start == disk.end:
            disk.start = disk.end = start  # nothing is there now
        size = min(len(self._bytes), spool.piece_bytes, self._segment_end(start, spool) - start)
        if not spool.reserve(self, size):
            disk.trouble = Stall(StallReason.QUOTA)
            self._make_way(disk)
            return self._next_delete(disk)
        disk.trouble = None
        disk.touched = start + size
        data = self._bytes.copy(size)
        file, position = self._place(disk, start, spool)
        return Spill(file, position, start, data)

    def _make_way(self, disk: _DiskPart) -> None:
        """Give up the oldest segment on disk, if the owner has it all, or the oldest may be dropped."""
        assert self._spool is not None
        until = min(self._segment_end(self.base, self._spool), disk.end)
        if until > self.base and (self.dropping or until <= self.floor):
            self._drop(until)

    def _drop(self, offset: int) -> None:
        """Nothing below `offset` is needed, whoever has it."""
        self.floor = max(self.floor, offset)
        self._free(offset)

    def _free(self, offset: int) -> None:
        if offset > self.base:
            start = self._memory_start
            if offset > start:
                self._bytes.discard(offset - start)
            self.base = offset
            disk = self._disk
            if disk is not None:
                disk.read_back.free(offset)
                self._look()

    def _segment_end(self, offset: int, spool: Spool) -> int:
        return offset - offset % spool.segment_bytes + spool.segment_bytes

    def _place(self, disk: _DiskPart, offset: int, spool: Spool) -> tuple[str, int]:
        """File, and position in it. A file may begin with a hole, which takes no space."""
        segment, position = divmod(offset, spool.segment_bytes)
        return f"{disk.number}.{segment}", position

    def _look(self) -> None:
        """Something changed: ask for the disk's work, if there is any now."""
        disk = self._disk
        if disk is None:
            if self._spill_due:
                self._ask()
        elif (
            disk.read_back.wanted
            or self._next_delete(disk) is not None
            # In trouble only to say so, once: else each byte that a dropping job writes would ask.
            or (self._spill_due and (disk.trouble is None or not self.room))
        ):
            self._ask()

    def _ask(self) -> None:
        assert self._spool is not None
        self._spool.work[self] = None
