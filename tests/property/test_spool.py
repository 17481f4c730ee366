"""A job's output whose oldest part goes to a disk that is slow, small, and now and then broken.

The readers and their channels are those of stream_pair.py; the disk is a model that does what the log
asks for whenever it likes, and looks at the log only when that asks it to. After each step DESIGN.md's
guarantees 1 to 4 are asserted by number, with the bounds of memory and disk; at the end, with the
disk mended and everybody reading, that everything arrives (9).
"""

from __future__ import annotations

from typing import Any, cast

from attrs import define
from effort import tried
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from model_disk import ModelDisk
from stream_pair import COUNTS, INDEXES, StreamPair, units

from sandd._core.read_ahead import READ_AHEAD
from sandd._core.spool import Delete, DiskTask, Spill, Spool
from sandd._core.spooled_log import EVERYTHING, SpooledLog
from sandd._core.streams import ReceiveWindow, SendCursor
from sandd.wire import OnFull

DRAIN = 5


@define(eq=False)
class LateDisk(ModelDisk):
    """A disk that takes its time, and may break."""

    task: DiskTask | None = None
    """Under way."""
    is_serving: bool = False
    """The log's task runs: it looks at the log when a piece of work is done."""
    is_broken: bool = False


@define(eq=False)
class OneLogJob:
    """What a log needs to know of its job."""

    log: SpooledLog | None = None

    @property
    def disk_bytes(self) -> int:
        """Of its only output."""
        return 0 if self.log is None else self.log.disk_bytes


class SpooledPair(StreamPair):
    """One output of a job, its readers, and the disk."""

    sender: SpooledLog

    @initialize(
        capacity=st.integers(2, 20),
        retain=st.sampled_from([0, 7, EVERYTHING]),
        on_full=st.sampled_from(OnFull),
        window=st.integers(1, 20),
        segment=st.integers(1, 12),
        piece=st.integers(1, 8),
        job_quota=st.integers(1, 60),
        daemon_quota=st.integers(1, 80),
    )
    def set_up(  # type: ignore[override]
        self,
        capacity: int,
        retain: int,
        on_full: OnFull,
        window: int,
        segment: int,
        piece: int,
        job_quota: int,
        daemon_quota: int,
    ) -> None:
        """A new stream, with its owner attached from the beginning, and an empty disk."""
        self.on_full = on_full
        self.dropping = on_full is not OnFull.BLOCK
        self.spool = Spool(daemon_quota, job_quota, segment, piece)
        self.disk = LateDisk()
        self.others = 0
        self.is_away = False
        self.drained = 0
        self.promise = 0
        """Room that a pump counts on."""
        self.kept_from = 0
        """What was below it, when all was to be kept, was freed before."""
        self.was_in_trouble = False
        self.kept_in_memory = 0 if retain == EVERYTHING else retain
        """Of what is below the floor."""
        self.begin(capacity, retain, window)

    @property
    def drops(self) -> bool:
        """Whether it may drop something now; `dropping`: or at another time."""
        return self.on_full is OnFull.DROP_OLDEST or (self.dropping and self.is_away)

    def make_sender(self) -> SpooledLog:
        """The sender's log."""
        job = OneLogJob()
        job.log = SpooledLog(
            cast("Any", job),
            capacity=self.capacity,
            retain=self.retain,
            on_full=self.on_full,
            spool=self.spool,
        )
        job.log.own(attached=True)
        return job.log

    # -- the source and the owner

    @rule(count=COUNTS)
    def append(self, count: int) -> None:
        """The process writes as much as there is room for; while the owner is there, no more than it left."""
        log = self.sender
        unread = log.end - log.floor
        super().append(count)
        self.promise = 0
        if not (self.is_away or self.drops or self.drained):
            assert log.end - log.floor <= max(unread, self.capacity), "faster than its reader"

    @rule()
    def look_for_room(self) -> None:
        """A pump begins to read from the process' pipe as much as there is room for."""
        self.promise = self.sender.room

    @precondition(lambda self: self.promise)
    @rule(count=COUNTS)
    def append_what_was_read(self, count: int) -> None:
        """By now there may be less room; but what was read has to go somewhere."""
        log = self.sender
        if not log.final:
            log.append(units(log.end, log.end + min(count, self.promise)))
        self.promise = 0

    @precondition(lambda self: not self.drained)
    @rule()
    def exit(self) -> None:
        """The process exits: what its pipe holds is taken, whoever reads and whatever the disk does."""
        self.drained = DRAIN
        self.sender.drain(DRAIN)
        assert self.sender.room >= DRAIN
        self.append(DRAIN)
        self.sender.finish()

    @precondition(lambda self: not self.is_away)
    @rule(arriving=st.integers(0, 3))
    def leave(self, arriving: int) -> None:
        """The owner's channel breaks."""
        for _ in range(arriving):
            self.deliver(0)
            self.hear(0)
        self.readers[0].frames.clear()
        self.readers[0].windows.clear()
        self.is_away = True
        self.sender.own(attached=False)

    @precondition(lambda self: self.is_away)
    @rule()
    def come(self) -> None:
        """The owner is back, with a new channel."""
        reader = self.readers[0]
        reader.windows.clear()  # what it would have said meanwhile, it had no channel for
        self.is_away = False
        reader.window = ReceiveWindow.open(self.stream, reader.log, self.window_size)
        reader.cursor = SendCursor(
            self.stream, self.sender, reader.log.received, reader.window.max_offset
        )
        self.sender.own(attached=True)

    @rule(index=INDEXES, limit=COUNTS)
    def send(self, index: int, limit: int) -> None:
        """The sender sends one frame, if somebody is there to send it to."""
        if not (self.is_away and self.reader(index).owns):
            super().send(index, limit)

    @rule(index=INDEXES, arriving=st.integers(0, 3))
    def cut(self, index: int, arriving: int) -> None:
        """The channel breaks, and a new one goes on from there; the owner is away in between."""
        if not self.reader(index).owns:
            super().cut(index, arriving)
        else:
            if not self.is_away:
                self.leave(arriving)
            self.come()

    @precondition(lambda self: self.retain is not EVERYTHING)
    @rule()
    def keep_all(self) -> None:
        """The job is to outlive its owner."""
        self.kept_from = self.sender.base
        self.retain = EVERYTHING
        self.sender.keep_all()

    @rule()
    def forget_pieces(self) -> None:
        """Nobody is attached for a moment."""
        self.sender.release_pieces()

    # -- the disk

    @rule(fails=st.booleans(), full=st.booleans())
    def serve(self, fails: bool, full: bool = False) -> None:
        """The disk is done with something, or begins with something."""
        disk, log = self.disk, self.sender
        if disk.task is not None:
            task, disk.task = disk.task, None
            if (disk.is_broken or fails) and not isinstance(task, Delete):
                self.was_in_trouble = True
                if isinstance(task, Spill):
                    disk.perform(task, only=1)
                log.failed(task, "No space left on device", full=full)
            else:
                log.done(task, disk.perform(task))
        if log in self.spool.work:
            del self.spool.work[log]
            disk.is_serving = True
        if disk.is_serving:
            disk.task = log.next_task()
            self.note_trouble()
            if disk.task is None and not log.failing:
                disk.is_serving = False

    @precondition(lambda self: self.disk.is_serving and self.disk.task is None)
    @rule()
    def wait(self) -> None:
        """Time passes: what failed is tried again."""
        if self.sender.failing:
            self.sender.retry()
            self.note_trouble()

    def note_trouble(self) -> None:
        """Whether the log ever had to do without the disk."""
        if self.sender._disk is not None and self.sender._disk.trouble is not None:
            self.was_in_trouble = True

    @rule()
    def break_disk(self) -> None:
        """It takes nothing any more."""
        self.disk.is_broken = True

    @rule()
    def mend_disk(self) -> None:
        """It works."""
        self.disk.is_broken = False

    @rule(count=st.integers(1, 40))
    def others_take(self, count: int) -> None:
        """Other jobs put something on disk."""
        taken = min(count, self.spool.daemon_quota - self.spool.used)
        self.spool.used += taken
        self.others += taken

    @rule(count=st.integers(1, 40))
    def others_give(self, count: int) -> None:
        """Other jobs' output is deleted."""
        given = min(count, self.others)
        self.others -= given
        self.spool.release(given)

    # -- what must hold

    def check(self) -> None:
        """As for every stream, and the disk's."""
        super().check()
        self.disk_is_bounded()
        self.disk_holds_what_it_should()
        self.the_process_waits_for_a_reason()

    def nothing_unacknowledged_is_freed(self) -> None:
        """(4) Nor is what is retained, unless the room was needed."""
        log = self.sender
        if not self.dropping:
            assert log.floor == self.acked, "(4) the floor moved by itself"
        assert log.base <= log.floor
        if not (self.was_in_trouble or self.dropping):
            kept_from = max(self.kept_from, log.floor - self.retain)
            assert log.base == kept_from, "(4) freed without need"

    def memory_is_bounded(self) -> None:
        """(4) The ring, what is being written, and what was read back; whatever the disk holds."""
        log, piece = self.sender, self.spool.piece_bytes
        ring = self.capacity + self.kept_in_memory + self.drained
        assert len(log._bytes) <= ring
        assert log.memory_bytes <= ring + piece + READ_AHEAD * piece
        for reader in self.readers:
            held = reader.delivered - reader.read
            assert held <= self.window_size, "(4) more is held than was granted"

    def disk_is_bounded(self) -> None:
        """(4) The quotas hold, and what is counted is what is there."""
        log, spool = self.sender, self.spool
        assert spool.used == self.others + log.disk_bytes
        assert spool.used <= spool.daemon_quota
        assert log.disk_bytes <= spool.job_quota
        written = sum(map(len, self.disk.files.values()))
        hole = spool.segment_bytes - 1  # at the beginning of the first file
        assert written <= log.disk_bytes + hole + 1, "more is on disk than is counted"

    def disk_holds_what_it_should(self) -> None:
        """(1) What is not in memory can be read back, each byte in its place; and nothing is twice."""
        log = self.sender
        part = log._disk
        if part is None:
            assert len(log._bytes) == log.end - log.base
            return
        assert len(log._bytes) == log.end - max(log.base, part.end)
        size, offset = self.spool.segment_bytes, log.base
        while offset < part.end:
            file = self.disk.files[f"{part.number}.{offset // size}"]
            end = min(part.end, offset - offset % size + size)
            begin = offset % size
            assert file[begin : begin + end - offset] == units(offset, end)
            offset = end

    def the_process_waits_for_a_reason(self) -> None:
        """(9) Without room it waits for its reader, for the disk that is at it, or for a disk that stalls."""
        log = self.sender
        if log.room == 0 and not log.final:
            unread = log.end - log.floor
            reader = not (self.is_away or self.drops) and unread >= self.capacity
            disk = self.disk.is_serving or self.disk.task is not None or log in self.spool.work
            stalled = log.stall is not None and not self.drops
            assert reader or disk or stalled, "(9) it waits for nothing"

    def get_on(self) -> None:
        """The disk works."""
        self.serve(fails=False)
        if self.disk.is_serving and self.disk.task is None:
            self.wait()

    def settle_disk(self) -> None:
        """The disk does all it is asked for."""
        for _ in range(200):
            self.get_on()
            if not self.disk.is_serving and self.sender not in self.spool.work:
                return
        raise AssertionError("(9) the disk never comes to rest")

    def teardown(self) -> None:
        """(9) With the disk mended everything arrives; when the job is forgotten, the disk is empty."""
        if not hasattr(self, "sender"):
            return
        self.mend_disk()
        self.others_give(self.others)
        if self.is_away:
            self.come()
        super().teardown()
        self.sender.abandon()
        self.settle_disk()
        assert self.disk.files == {}, "a file is left"
        assert (self.spool.used, self.sender.memory_bytes) == (0, 0)


TestSpool = tried(SpooledPair, quick_examples=250)
