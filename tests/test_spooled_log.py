"""A job's output: what stays in memory, what goes to disk and comes back, what makes room, and who waits."""

from __future__ import annotations

from typing import Any, cast

import pytest
from attrs import define, field
from model_disk import ModelDisk

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.channels import Channel
from sandd._core.ring_room import RingRoom
from sandd._core.scheduler import Scheduler
from sandd._core.spool import SEGMENT_BYTES, Delete, DiskTask, Fetch, Spill, Spool, Stall
from sandd._core.spooled_log import EVERYTHING, SpooledLog
from sandd._core.streams import MOST_RING_BYTES, SendCursor
from sandd.wire import OnFull, StallReason, Stream


@define(eq=False)
class Job:
    """What a log wants to know of its job."""

    logs: list[SpooledLog] = field(factory=list)

    @property
    def disk_bytes(self) -> int:
        """Of all its outputs."""
        return sum(log.disk_bytes for log in self.logs)


def log_of(
    content: bytes = b"",
    *,
    capacity: int = 8,
    retain: int = 0,
    dropping: bool = False,
    spool: Spool | None = None,
    owned: bool = False,
    job: Job | None = None,
    ring_room: RingRoom | None = None,
) -> SpooledLog:
    """A log that holds `content`."""
    job = job or Job()
    log = SpooledLog(
        cast("Any", job),
        capacity=capacity,
        retain=retain,
        on_full=OnFull.DROP_OLDEST if dropping else OnFull.BLOCK,
        spool=spool,
        ring_room=ring_room,
    )
    job.logs.append(log)
    log.own(attached=owned)
    log.append(content)
    return log


def spool_of(
    daemon_quota: int = 100, job_quota: int = 100, *, segment_bytes: int = 4, piece_bytes: int = 4
) -> Spool:
    """A spool of small numbers."""
    return Spool(daemon_quota, job_quota, segment_bytes, piece_bytes)


@pytest.fixture
def disk() -> ModelDisk:
    """An empty disk."""
    return ModelDisk()


def read_all(log: SpooledLog, disk: ModelDisk, *, start: int = 0, limit: int = 100) -> bytes:
    """Everything a new cursor sends, with the disk's help."""
    cursor = SendCursor(Stream.OUTPUT, log, start, wire.MAX_OFFSET)
    data = b""
    while True:
        frame = cursor.next_frame(1, limit)
        if frame is not None:
            data += frame[1]
        elif not disk.serve(log):
            return data


# ---- without a disk ------------------------------------------------------------------------------


def test_a_log_without_a_spool_is_a_ring() -> None:
    """It holds its capacity, whoever is there, and asks for nothing."""
    log = log_of(b"abcdef")
    assert (log.room, log.memory_bytes, log.disk_bytes) == (2, 6, 0)
    with pytest.raises(LocalProtocolError, match="room for 2"):
        log.append(b"ghi")
    log.append(b"gh")
    assert (log.room, log.stall, log.failing, log.next_task()) == (0, None, False, None)
    log.acknowledge(5)
    assert (log.base, log.floor, log.room, log.read(5, 9)) == (5, 5, 5, (b"fgh", 3))
    with pytest.raises(RemoteProtocolError, match="beyond the end"):
        log.acknowledge(9)
    log.abandon()
    assert (log.base, log.memory_bytes, log.final) == (8, 0, True)


def test_what_is_retained_takes_no_room() -> None:
    """Below the floor the ring keeps what it has room for, and gives it up for what is new."""
    log = log_of(b"abcdefgh", retain=EVERYTHING)
    log.acknowledge(6)
    assert (log.base, log.floor, log.room) == (0, 6, 6)
    assert log.read(0, 9) == (b"abcdefgh", 8)
    log.append(b"ijkl")
    assert (log.base, log.floor, log.end, log.room) == (4, 6, 12, 2)
    log.acknowledge(12)
    assert (log.base, log.room) == (4, 8)


def test_retained_bytes_beyond_their_number_are_freed_at_once() -> None:
    """A scrollback has a size, and a place of its own: none of it goes while its owner keeps up."""
    log = log_of(b"abcdefgh", retain=3, owned=True)
    log.acknowledge(6)
    assert (log.base, log.floor, log.room) == (3, 6, 6)
    log.append(b"ijklmn")
    assert (log.base, log.room) == (3, 0)
    log.own(attached=False)
    assert log.room == 3  # what was read may go when room is needed


def test_dropping_log_always_has_room() -> None:
    """With dropping on, the oldest bytes go, and the newest `capacity` are kept."""
    for owned in (True, False):
        log = log_of(b"abcdef", capacity=6, dropping=True, owned=owned)
        assert log.room == 6
        log.append(b"ghi")
        assert (log.base, log.floor, log.end) == (3, 3, 9)
        assert log.read(3, 10) == (b"defghi", 6)
        log.append(b"ABCDEF")
        assert log.read(9, 10) == (b"ABCDEF", 6)
        log.acknowledge(5)  # what was dropped since counts no less
        assert (log.base, log.floor) == (9, 9)


def test_dropping_log_takes_at_most_its_capacity_at_once() -> None:
    """What could never be kept is refused, and nothing is lost by the try."""
    log = log_of(b"abc", capacity=4, dropping=True)
    with pytest.raises(LocalProtocolError):
        log.append(b"12345")
    assert (log.base, log.end, log.read(0, 10)) == (0, 3, (b"abc", 3))


def test_gap_is_held_back_until_the_receiver_has_room() -> None:
    """A receiver that takes nothing is not told of each gap: it gets one, when it takes something."""
    log = log_of(b"abcdefgh", capacity=8, dropping=True)
    cursor = SendCursor(Stream.OUTPUT, log, sent=0, max_offset=4)
    assert cursor.next_frame(1, 100) == wire.encode_data(1, Stream.OUTPUT, 0, b"abcd")
    for _ in range(5):
        log.append(b"12345678")
        assert not cursor.pending
    cursor.on_window(4, 8)
    assert cursor.next_frame(1, 100) == wire.encode_gap(1, Stream.OUTPUT, 4, 40)
    assert not cursor.pending
    cursor.on_window(40, 44)
    assert cursor.next_frame(1, 100) == wire.encode_data(1, Stream.OUTPUT, 40, b"1234")


def test_after_the_exit_there_is_room_for_what_the_pipes_hold() -> None:
    """Whoever reads, and however much of older output waits."""
    log = log_of(b"abcdefgh", owned=True)
    assert log.room == 0
    log.drain(5)
    assert log.room == 5


# ---- wider ---------------------------------------------------------------------------------------


def test_an_owner_that_takes_much_makes_the_ring_wider() -> None:
    """Twice as wide each time that it has taken all that the ring held, up to a bound."""
    ring_room = RingRoom(MOST_RING_BYTES)
    log = log_of(b"abcdefgh", owned=True, ring_room=ring_room)
    log.acknowledge(7)
    assert (log.window, log.room) == (8, 7)
    log.acknowledge(8)
    assert (log.window, log.room, ring_room.left) == (16, 16, MOST_RING_BYTES - 8)
    while log.window < MOST_RING_BYTES:
        before = log.window
        log.append(bytes(log.room))
        assert log.room == 0
        log.acknowledge(log.end)
        assert log.window == min(2 * before, MOST_RING_BYTES)
    log.append(bytes(log.room))
    log.acknowledge(log.end)
    assert (log.window, log.room) == (MOST_RING_BYTES, MOST_RING_BYTES)
    assert ring_room.left == 8


def test_a_ring_is_as_wide_as_there_is_room_for() -> None:
    """What others have taken isn't there; what nobody needs any more is."""
    ring_room = RingRoom(10)
    first = log_of(b"abcdefgh", owned=True, ring_room=ring_room)
    second = log_of(b"abcdefgh", owned=True, ring_room=ring_room)
    for log in (first, second):
        log.acknowledge(8)
    assert (first.window, second.window, ring_room.left) == (16, 10, 0)
    first.append(b"ijklmnopqrst")
    first.finish()
    assert ring_room.left == 4  # the rest of what it holds is held in it
    first.acknowledge(10)
    assert ring_room.left == 6
    first.acknowledge(20)
    assert ring_room.left == 8
    first.acknowledge(20)
    first.abandon()
    assert ring_room.left == 8
    second.append(b"i")
    second.abandon()
    assert ring_room.left == 10


def test_nobody_but_an_owner_makes_a_ring_wider() -> None:
    """What is thrown away because nobody will read it needs no room."""
    ring_room = RingRoom(100)
    log = log_of(b"abcdefgh", ring_room=ring_room)
    log.acknowledge(8)
    assert (log.window, ring_room.left) == (8, 100)
    log.finish()
    assert ring_room.left == 100


def test_a_wider_ring_goes_to_the_disk_when_it_is_half_full() -> None:
    """As a narrow one does."""
    spool = spool_of()
    log = log_of(b"abcdefgh", owned=True, spool=spool, ring_room=RingRoom(100))
    log.acknowledge(8)
    log.own(attached=False)
    log.append(b"12345678")
    assert not spool.work
    log.append(b"9")
    assert list(spool.work) == [log]


# ---- to the disk ---------------------------------------------------------------------------------


def test_short_output_never_touches_the_disk() -> None:
    """Half the ring is no reason to make a file, and nobody is bothered with it."""
    spool = spool_of()
    log = log_of(b"abcd", spool=spool)
    assert not spool.work
    assert log.next_task() is None
    assert log._disk is None


def test_while_its_owner_is_attached_output_stays_in_memory() -> None:
    """A slow reader slows the process; the disk is for when nobody is there."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool, owned=True)
    assert (log.room, log.next_task()) == (0, None)
    assert not spool.work
    log.own(attached=False)
    assert list(spool.work) == [log]
    assert log.next_task() == Spill("0.0", 0, 0, b"abcd")


def test_the_disk_makes_room_piece_by_piece(disk: ModelDisk) -> None:
    """What is written leaves memory when it is written, and not before."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    task = log.next_task()
    assert task == Spill("0.0", 0, 0, b"abcd")
    assert log.next_task() is None  # one at a time
    assert (log.room, log.memory_bytes, log.disk_bytes, spool.used) == (0, 12, 4, 4)
    assert log.read(0, 9) == (b"abcdefgh", 8)
    log.done(task, disk.perform(task))
    assert (log.room, log.memory_bytes, log.disk_bytes, spool.used) == (4, 4, 4, 4)
    assert (log.base, log.floor, log.end) == (0, 0, 8)
    log.append(b"ijkl")
    assert disk.serve(log) == [Spill("0.1", 0, 4, b"efgh")]
    assert read_all(log, disk) == b"abcdefghijkl"


def test_pieces_end_where_their_file_does(disk: ModelDisk) -> None:
    """A segment holds a fixed range of offsets; one that starts in the middle begins with a hole."""
    spool = spool_of(segment_bytes=5)
    log = log_of(b"abcdefgh", spool=spool, owned=True)
    log.acknowledge(3)
    log.own(attached=False)
    log.append(b"ijk")
    assert disk.serve(log) == [Spill("0.0", 3, 3, b"de"), Spill("0.1", 0, 5, b"fghi")]
    assert read_all(log, disk, start=3) == b"defghijk"


def test_each_log_has_files_of_its_own() -> None:
    """Names are numbers: nothing a peer says names a file."""
    spool = spool_of()
    files = []
    for _ in range(3):
        task = log_of(b"abcdefgh", spool=spool).next_task()
        assert isinstance(task, Spill)
        files.append(task.file)
    assert files == ["0.0", "1.0", "2.0"]


def test_what_was_acknowledged_is_deleted_segment_by_segment(disk: ModelDisk) -> None:
    """Space is given back before the last byte is fetched."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    disk.serve(log)
    log.append(b"ijkl")
    disk.serve(log)
    assert sorted(disk.files) == ["0.0", "0.1"]
    log.acknowledge(3)
    assert (log.next_task(), log.base) == (None, 3)
    spool.work.clear()
    log.acknowledge(5)
    assert list(spool.work) == [log]
    assert disk.serve(log) == [Delete(("0.0",), 4)]
    assert (sorted(disk.files), log.disk_bytes, spool.used) == (["0.1"], 4, 4)
    log.acknowledge(9)  # the last file goes as soon as nothing in it is needed
    assert disk.serve(log) == [Delete(("0.1",), 8)]
    assert (disk.files, log.disk_bytes, spool.used) == ({}, 0, 0)


def test_acknowledged_while_it_was_being_written(disk: ModelDisk) -> None:
    """The owner came back and took it from memory: what is written of it is deleted again."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    task = log.next_task()
    assert task is not None
    log.own(attached=True)
    log.acknowledge(7)
    assert (log.memory_bytes, log.read(7, 9)) == (5, (b"h", 1))
    log.done(task, disk.perform(task))
    assert log.read(7, 9) == (b"h", 1)
    assert disk.serve(log) == [Delete(("0.0",), 4)]
    assert (disk.files, spool.used, log.room) == ({}, 0, 7)


def test_half_of_it_acknowledged_while_it_was_being_written(disk: ModelDisk) -> None:
    """The other half is on disk, and the rest in memory."""
    log = log_of(b"abcdefgh", spool=spool_of())
    task = log.next_task()
    assert task is not None
    log.acknowledge(2)
    log.done(task, disk.perform(task))
    assert (log.memory_bytes, read_all(log, disk, start=2)) == (4, b"cdefgh")


def test_a_spool_that_was_emptied_begins_anew(disk: ModelDisk) -> None:
    """The next output nobody fetches is written where it belongs, though much went by in between."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    disk.serve(log)
    log.own(attached=True)
    log.acknowledge(8)
    disk.serve(log)
    for _ in range(5):
        log.append(b"12345678")
        log.acknowledge(log.end)
    log.own(attached=False)
    log.append(b"ABCDEFGH")
    assert disk.serve(log) == [Spill("0.12", 0, 48, b"ABCD")]
    assert (log.disk_bytes, spool.used) == (4, 4)
    assert read_all(log, disk, start=48) == b"ABCDEFGH"


def test_an_owner_that_returns_sets_the_pace_again(disk: ModelDisk) -> None:
    """The process waits until what piled up has been read down to the ring's size."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    log.append(b"ijkl")
    disk.serve(log)
    assert log.room == 4
    log.own(attached=True)
    assert log.room == 0
    log.acknowledge(4)
    assert log.room == 0
    log.acknowledge(6)
    assert log.room == 2
    log.own(attached=False)
    assert log.room == 4


def test_an_exit_is_told_though_the_owner_reads_slowly(disk: ModelDisk) -> None:
    """What the pipes hold is taken into memory, however much waits on disk."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    log.append(b"ijkl")
    log.own(attached=True)
    assert log.room == 0
    log.drain(3)
    assert log.room == 3
    log.append(b"mno")
    log.finish()
    assert read_all(log, disk) == b"abcdefghijklmno"


def test_what_was_read_while_there_was_room_is_taken(disk: ModelDisk) -> None:
    """The owner comes back while a pump reads: there is less room, but the bytes are read already."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    assert log.room == 4
    log.own(attached=True)
    assert log.room == 0
    log.append(b"ijkl")
    with pytest.raises(LocalProtocolError, match="room for 0"):
        log.append(b"m")
    assert read_all(log, disk) == b"abcdefghijkl"


def test_a_detached_job_keeps_also_what_was_acknowledged(disk: ModelDisk) -> None:
    """Whoever attaches later gets all of it."""
    log = log_of(b"abcd", spool=spool_of(), retain=EVERYTHING, owned=True)
    for _ in range(5):
        log.append(b"1234")
        log.acknowledge(log.end)
        disk.serve(log)
    assert (log.base, log.floor, log.memory_bytes) == (0, 24, 4)
    assert read_all(log, disk) == b"abcd" + b"1234" * 5


def test_a_job_that_detaches_keeps_what_comes_from_then_on(disk: ModelDisk) -> None:
    """What was freed before is gone."""
    log = log_of(b"abcdefgh", spool=spool_of(), owned=True)
    log.acknowledge(6)
    log.keep_all()
    log.append(b"ijkl")
    log.acknowledge(12)
    disk.serve(log)
    assert log.base == 6
    assert read_all(log, disk, start=6) == b"ghijkl"


def test_a_forgotten_job_leaves_no_file(disk: ModelDisk) -> None:
    """Also what is being written at that moment goes."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    disk.serve(log)
    log.append(b"ijkl")
    task = log.next_task()
    assert task is not None
    log.abandon()
    assert (log.next_task(), log.base, log.floor, log.end) == (None, 12, 12, 12)
    log.done(task, disk.perform(task))
    assert disk.serve(log) == [Delete(("0.0", "0.1"), 8)]
    assert (disk.files, spool.used, spool.work) == ({}, 0, {log: None})


# ---- and back ------------------------------------------------------------------------------------


def test_a_cursor_in_the_part_on_disk_waits_for_it(disk: ModelDisk) -> None:
    """It has nothing to send until that was read back, and has asked for it by trying."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    disk.serve(log)
    spool.work.clear()
    cursor = SendCursor(Stream.OUTPUT, log, 1, 100)
    assert not cursor.pending
    assert cursor.next_frame(1, 100) is None
    assert list(spool.work) == [log]
    task = log.next_task()
    assert task == Fetch("0.0", 1, 1, 3)
    log.done(task, disk.perform(task))
    assert cursor.pending
    assert cursor.next_frame(1, 2) == wire.encode_data(1, Stream.OUTPUT, 1, b"bc")
    assert cursor.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 3, b"d")
    assert cursor.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 4, b"efgh")


def test_a_cursor_without_credit_asks_for_nothing(disk: ModelDisk) -> None:
    """The disk is not read for who can't take it."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    disk.serve(log)
    spool.work.clear()
    cursor = SendCursor(Stream.OUTPUT, log, 0, 0)
    assert cursor.next_frame(1, 100) is None
    assert not spool.work


def test_what_follows_is_read_ahead(disk: ModelDisk) -> None:
    """While a piece is sent the next one is fetched; no more than that is held."""
    log = log_of(b"abcdefgh", spool=spool_of())
    for _ in range(4):
        disk.serve(log)
        log.append(b"1234")
    disk.serve(log)
    cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
    cursor.next_frame(1, 1)
    assert disk.serve(log) == [Fetch("0.0", 0, 0, 4)]
    cursor.next_frame(1, 1)
    assert disk.serve(log) == [Fetch("0.1", 0, 4, 4)]
    cursor.next_frame(1, 1)
    assert disk.serve(log) == []
    assert log.memory_bytes == 4 + 4 + 4


def test_any_number_of_readers_share_a_bounded_memory(disk: ModelDisk) -> None:
    """Each at another place: two pieces are held, everybody gets all of it, and the process goes on."""
    log = log_of(b"", spool=spool_of(1000, 1000), capacity=8)
    content = bytes(range(100))
    for start in range(0, 100, 4):
        log.append(content[start : start + 4])
        disk.serve(log)
    cursors = [SendCursor(Stream.OUTPUT, log, start, 100) for start in range(0, 40, 4)]
    got = [b""] * len(cursors)
    for _ in range(1000):
        for index, cursor in enumerate(cursors):
            frame = cursor.next_frame(1, 3)
            if frame is not None:
                got[index] += frame[1]
        task = log.next_task()
        if task is not None:
            log.done(task, disk.perform(task))
        assert log.memory_bytes <= 8 + 2 * 4
    assert got == [content[start:] for start in range(0, 40, 4)]


def test_readers_take_turns_with_the_disk(disk: ModelDisk) -> None:
    """(10) However many they are, nobody waits until others have read everything."""
    log = log_of(b"", spool=spool_of(1000, 1000), capacity=8)
    for _ in range(100):
        log.append(b"1234")
        disk.serve(log)
    scheduler = Scheduler()
    cursors = [SendCursor(Stream.OUTPUT, log, start, 1000) for start in range(0, 250, 50)]
    channels = [Channel(number, send=[c], receive=[]) for number, c in enumerate(cursors, 1)]
    for _ in range(20 * len(cursors)):
        for channel in channels:
            scheduler.activate(channel)
        while scheduler.next_frames():
            pass
        task = log.next_task()
        assert task is not None
        log.done(task, disk.perform(task))
    read = [cursor.sent - start for cursor, start in zip(cursors, range(0, 250, 50), strict=True)]
    assert min(read) >= 15 * 4


def test_a_piece_that_nobody_takes_makes_way(disk: ModelDisk) -> None:
    """The oldest does; who wanted it asks again."""
    log = log_of(b"", spool=spool_of())
    for _ in range(4):
        log.append(b"1234")
        disk.serve(log)
    first, *others = [SendCursor(Stream.OUTPUT, log, start, 100) for start in (0, 4, 8)]
    for cursor in (first, *others):
        assert cursor.next_frame(1, 9) is None
        disk.serve(log)
        assert cursor.pending
    assert (first.pending, [other.pending for other in others]) == (False, [True, True])
    assert log.memory_bytes == 4 + 4 + 4
    assert first.next_frame(1, 9) is None
    disk.serve(log)
    assert first.next_frame(1, 9) is not None


def test_writing_and_reading_take_turns(disk: ModelDisk) -> None:
    """A reader that replays does not keep the process waiting, nor the other way round."""
    log = log_of(b"abcdefgh", spool=spool_of())
    cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
    disk.serve(log)
    kinds = []
    for _ in range(6):
        log.append(b"x" * log.room)
        cursor.next_frame(1, 100)
        task = log.next_task()
        assert task is not None
        log.done(task, disk.perform(task))
        kinds.append(type(task))
    assert kinds == [Fetch, Spill] * 3


def test_pieces_for_nobody_are_not_kept(disk: ModelDisk) -> None:
    """When nobody is attached any more, memory holds the ring alone."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
    cursor.next_frame(1, 1)
    disk.serve(log)
    assert log.memory_bytes == 8
    log.release_pieces()
    assert log.memory_bytes == 4
    cursor.next_frame(1, 1)
    task = log.next_task()
    assert task is not None
    log.release_pieces()
    log.done(task, disk.perform(task))
    assert log.memory_bytes == 4


def test_what_was_read_back_and_then_acknowledged_is_dropped(disk: ModelDisk) -> None:
    """A viewer that is overtaken gets a gap, not old bytes behind it."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    viewer = SendCursor(Stream.OUTPUT, log, 0, 100)
    viewer.next_frame(1, 1)
    disk.serve(log)
    log.acknowledge(6)
    assert log.memory_bytes == 2
    assert viewer.next_frame(1, 9) == wire.encode_gap(1, Stream.OUTPUT, 0, 6)
    late = SendCursor(Stream.OUTPUT, log, 6, 100)
    assert late.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 6, b"gh")


def test_a_read_that_was_overtaken_changes_nothing(disk: ModelDisk) -> None:
    """What it brings is not needed any more."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
    cursor.next_frame(1, 1)
    task = log.next_task()
    assert isinstance(task, Fetch)
    log.acknowledge(5)
    log.done(task, disk.perform(task))
    assert log.memory_bytes == 3
    assert disk.serve(log) == [Delete(("0.0",), 4)]


# ---- quotas --------------------------------------------------------------------------------------


def test_at_its_quota_the_process_waits(disk: ModelDisk) -> None:
    """Nothing is lost; it goes on when somebody reads, and a segment can be given back."""
    spool = spool_of(job_quota=8)
    log = log_of(spool=spool)
    for piece in (b"abcd", b"efgh", b"ijkl", b"mnop"):
        log.append(piece)
        disk.serve(log)
    assert (log.disk_bytes, log.memory_bytes, log.room) == (8, 8, 0)
    assert log.stall == Stall(StallReason.QUOTA)
    assert not log.failing  # time alone won't help
    log.acknowledge(4)
    assert log.room == 0
    assert disk.serve(log) == [Delete(("0.0",), 4), Spill("0.2", 0, 8, b"ijkl")]
    assert (log.room, log.stall) == (4, None)
    assert read_all(log, disk, start=4) == b"efghijklmnop"


def test_both_outputs_of_a_job_share_its_quota(disk: ModelDisk) -> None:
    """What one has taken the other can't, until it is given back."""
    spool, job = spool_of(job_quota=6), Job()
    first = log_of(b"abcdefgh", spool=spool, job=job)
    second = log_of(b"ABCDEFGH", spool=spool, job=job)
    disk.serve(first)
    assert disk.serve(second) == []
    assert (second.stall, first.stall) == (Stall(StallReason.QUOTA), None)
    spool.work.clear()
    first.abandon()
    disk.serve(first)
    assert second in spool.work
    assert disk.serve(second) == [Spill("1.0", 0, 0, b"ABCD")]


def test_all_jobs_share_the_daemons_quota(disk: ModelDisk) -> None:
    """Who finds no room is asked again as soon as somebody gives some back."""
    spool = spool_of(daemon_quota=10)
    logs = [log_of(b"abcdefgh", spool=spool) for _ in range(3)]
    assert [len(disk.serve(log)) for log in logs] == [1, 1, 0]
    assert [log.room for log in logs] == [4, 4, 0]
    spool.work.clear()
    logs[0].acknowledge(4)
    disk.serve(logs[0])
    assert logs[2] in spool.work
    disk.serve(logs[2])
    assert (logs[2].room, spool.used) == (4, 8)


def test_a_log_that_is_forgotten_is_asked_no_more() -> None:
    """Room that is given back is not offered to who is gone."""
    spool = spool_of(daemon_quota=1)
    log = log_of(b"abcdefgh", spool=spool)
    assert log.next_task() is None
    log.abandon()
    spool.work.clear()
    spool.release(0)
    assert not spool.work


def test_what_is_retained_goes_first_when_the_quota_is_full(disk: ModelDisk) -> None:
    """A detached job's owner reads on: the oldest of what it has read is given up, and no more."""
    spool = spool_of(job_quota=12)
    log = log_of(spool=spool, retain=EVERYTHING, owned=True)
    for number in range(10):
        log.append(bytes([number]) * 4)
        log.acknowledge(log.end)
        disk.serve(log)
        assert (log.room, log.disk_bytes <= 12) == (4, True)
    assert (log.base, log.floor, log.end) == (24, 40, 40)
    assert read_all(log, disk, start=24) == b"".join(bytes([n]) * 4 for n in range(6, 10))


def test_what_is_not_acknowledged_is_never_given_up_for_room(disk: ModelDisk) -> None:
    """A detached job that nobody is attached to waits at its quota, with all of it kept."""
    log = log_of(b"abcdefgh", spool=spool_of(job_quota=8), retain=EVERYTHING)
    log.acknowledge(3)
    disk.serve(log)
    log.append(b"ijkl")
    disk.serve(log)
    log.append(b"mnop")
    disk.serve(log)
    assert (log.base, log.room, log.stall) == (0, 0, Stall(StallReason.QUOTA))
    log.acknowledge(4)  # now the first segment can go
    assert disk.serve(log) == [Delete(("0.0",), 4), Spill("0.2", 0, 8, b"ijkl")]
    assert (log.base, log.room) == (4, 4)


def test_without_any_quota_left_the_ring_is_what_there_is(disk: ModelDisk) -> None:
    """Others have the whole disk: what the owner has read makes way in memory."""
    spool = spool_of(daemon_quota=1)
    log = log_of(b"abcdefgh", spool=spool, retain=EVERYTHING, owned=True)
    assert disk.serve(log) == []
    log.acknowledge(6)
    assert log.room == 6
    log.append(b"ijklmn")
    assert (log.base, log.floor, log.room) == (6, 6, 0)
    assert log.stall is None  # it is its reader that it waits for


def test_a_small_quota_has_small_segments() -> None:
    """What is given up at once is never most of what may be kept."""
    assert Spool.within(8 * wire.MIB, 1 * wire.MIB).segment_bytes == 128 * wire.KIB
    assert Spool.within(2**40, 2**40).segment_bytes == SEGMENT_BYTES
    assert Spool.within(1, 1).segment_bytes == 1


# ---- dropping ------------------------------------------------------------------------------------


def test_a_dropping_job_fills_the_disk_before_it_drops(disk: ModelDisk) -> None:
    """Then the oldest segment goes; the process never waits, and who reads gets a gap."""
    spool = spool_of(job_quota=8)
    log = log_of(spool=spool, dropping=True)
    for number in range(10):
        log.append(bytes([number]) * 4)
        disk.serve(log)
        assert (log.room, log.stall) == (4, None)
    assert (log.base, log.floor, log.end) == (28, 28, 40)
    cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
    assert cursor.next_frame(1, 9) == wire.encode_gap(1, Stream.OUTPUT, 0, 28)
    assert read_all(log, disk, start=28) == b"".join(bytes([n]) * 4 for n in range(7, 10))


def test_what_piled_up_is_not_dropped_at_the_owners_return(disk: ModelDisk) -> None:
    """But it grows no more: each new byte costs the oldest one."""
    log = log_of(spool=spool_of(), dropping=True)
    for _ in range(10):
        log.append(b"1234")
        disk.serve(log)
    log.own(attached=True)
    assert (log.base, log.room) == (0, 4)
    log.append(b"567")
    assert (log.base, log.floor, log.end) == (3, 3, 43)
    disk.serve(log)
    log.append(b"8")
    assert (log.base, log.end) == (4, 44)
    disk.serve(log)
    log.acknowledge(40)
    disk.serve(log)
    assert (log.disk_bytes, log.memory_bytes, log.room) == (0, 4, 8)


def test_a_dropping_job_does_not_wait_for_an_owner_with_much_to_read(disk: ModelDisk) -> None:
    """The oldest is on disk, so the newest goes there, too: the ring never stays full."""
    log = log_of(spool=spool_of(), dropping=True)
    for _ in range(10):
        log.append(b"1234")
        disk.serve(log)
    log.own(attached=True)
    for number in range(20):
        assert log.room >= 4
        log.append(bytes([number]) * 4)
        disk.serve(log)
    assert log.end - log.base == 40


def test_a_full_log_that_is_to_keep_all_goes_to_disk(disk: ModelDisk) -> None:
    """It was full when its owner had it detached: the disk makes room, and the process goes on."""
    log = log_of(b"abcdefgh", capacity=8, spool=spool_of(), owned=True)
    log.keep_all()
    log.acknowledge(8)
    assert log.room == 0
    assert log._spool is not None
    assert log in log._spool.work
    disk.serve(log)
    assert log.room == 4
    assert read_all(log, disk) == b"abcdefgh"


def test_a_detached_dropping_job_drops_at_its_quota_only(disk: ModelDisk) -> None:
    """Also when its owner is attached and reads nothing."""
    log = log_of(spool=spool_of(job_quota=20), dropping=True, retain=EVERYTHING, owned=True)
    for number in range(6):
        log.append(bytes([number]) * 4)
        disk.serve(log)
    assert (log.base, log.room) == (0, 4)
    for number in range(6, 10):
        log.append(bytes([number]) * 4)
        disk.serve(log)
    assert (log.base, log.floor, log.end, log.room) == (16, 16, 40, 4)


def test_a_dropping_job_without_any_disk_drops_from_memory(disk: ModelDisk) -> None:
    """Others have the whole disk; the process doesn't wait for them either."""
    spool = spool_of(daemon_quota=1)
    log = log_of(b"abcdefgh", spool=spool, dropping=True)
    disk.serve(log)
    assert (log.room, log.stall) == (8, None)
    log.append(b"ijkl")
    assert (log.base, log.end) == (4, 12)
    spool.work.clear()
    log.append(b"mnop")
    assert not spool.work  # it does not ask with each byte it writes; it is told of room


# ---- a disk that fails ---------------------------------------------------------------------------


def fail(
    log: SpooledLog, message: str = "No space left on device", *, full: bool = False
) -> DiskTask:
    """The next thing the log asks for goes wrong."""
    task = log.next_task()
    assert task is not None
    log.failed(task, message, full=full)
    return task


def test_when_the_disk_is_full_the_process_waits_and_nothing_is_lost(disk: ModelDisk) -> None:
    """It is tried again, and goes on as if nothing had been."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    fail(log)
    assert (log.room, log.disk_bytes, spool.used) == (0, 0, 0)
    assert log.stall == Stall(StallReason.DISK, "No space left on device")
    assert log.failing
    log.retry()
    assert log.next_task() == Delete(("0.0",), 0)  # what the failed write may have left


def test_a_write_that_failed_leaves_no_file(disk: ModelDisk) -> None:
    """A part of it may be there: it is deleted, or written over."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    task = log.next_task()
    assert isinstance(task, Spill)
    disk.perform(task, only=2)
    log.failed(task, "No space left on device")
    assert disk.serve(log) == [Delete(("0.0",), 0)]
    assert (disk.files, log.failing) == ({}, True)  # that made no room: it is not tried at once
    log.retry()
    assert disk.serve(log) == [Spill("0.0", 0, 0, b"abcd")]
    assert (log.room, log.stall, log.failing) == (4, None, False)
    log.append(b"ijkl")
    task = log.next_task()
    assert isinstance(task, Spill)
    disk.perform(task, only=2)
    log.failed(task, "Input/output error")
    log.retry()
    assert disk.serve(log) == [task]
    assert read_all(log, disk) == b"abcdefghijkl"


def test_a_job_that_ends_while_the_disk_fails_leaves_no_file(disk: ModelDisk) -> None:
    """Forgotten is forgotten."""
    log = log_of(b"abcdefgh", spool=spool_of())
    task = log.next_task()
    assert task is not None
    disk.perform(task)
    log.abandon()
    log.failed(task, "Input/output error")
    disk.serve(log)
    assert (disk.files, log.failing) == ({}, False)


def test_the_owner_gets_everything_though_the_disk_is_full(disk: ModelDisk) -> None:
    """What is in memory and what is on disk can be read; and then the process goes on without the disk."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    log.append(b"ijkl")
    fail(log)
    log.own(attached=True)
    assert read_all(log, disk) == b"abcdefghijkl"
    assert not log.failing  # with its owner there, it doesn't need to write
    log.acknowledge(10)
    assert (log.room, log.stall) == (6, None)


def test_a_stall_is_the_disks_only_where_the_reader_could_go_on() -> None:
    """With its owner attached and behind, the process waits for that."""
    log = log_of(b"abcdefgh", spool=spool_of())
    fail(log)
    assert log.stall is not None
    log.own(attached=True)
    assert (log.room, log.stall) == (0, None)


def retained_log(disk: ModelDisk) -> SpooledLog:
    """A detached job's log: 12 bytes on disk, acknowledged, and 8 in memory."""
    log = log_of(b"", spool=spool_of(), retain=EVERYTHING, owned=True)
    for _ in range(4):
        log.append(b"1234")
        log.acknowledge(log.end)
        disk.serve(log)
    log.append(b"5678")
    assert (log.base, log.disk_bytes, log.memory_bytes) == (0, 12, 8)
    return log


def test_what_is_retained_goes_first_when_the_disk_is_full(disk: ModelDisk) -> None:
    """A step, at once, as at the end of a quota."""
    log = retained_log(disk)
    fail(log, full=True)
    assert disk.serve(log) == [Delete(("0.0",), 4), Spill("0.3", 0, 12, b"1234")]
    assert (log.base, log.failing) == (4, False)


def test_a_disk_that_fails_once_costs_nothing_that_is_retained(disk: ModelDisk) -> None:
    """Deleting is no cure for other errors, unless they stay: perhaps it is one of the files."""
    log = retained_log(disk)
    fail(log, "Input/output error")
    log.retry()
    assert log.base == 0
    fail(log, "Input/output error")
    log.retry()
    assert disk.serve(log) == [Delete(("0.0",), 4), Spill("0.3", 0, 12, b"1234")]
    log.append(b"9abc")
    fail(log, "Input/output error")
    log.retry()
    assert log.base == 4  # it has worked in between


def test_a_dropping_job_goes_on_when_the_disk_is_full(disk: ModelDisk) -> None:
    """Its oldest segment goes, at once; with nothing left on disk it drops from memory."""
    log = log_of(b"abcdefgh", spool=spool_of(), dropping=True)
    disk.serve(log)
    log.append(b"ijkl")
    fail(log, full=True)
    task = log.next_task()
    assert task == Delete(("0.0", "0.1"), 4)
    log.done(task, disk.perform(task))
    fail(log, full=True)
    assert (log.room, log.stall) == (8, None)
    log.append(b"mnopqrst")
    assert (log.base, log.end, log.room) == (12, 20, 8)


def test_a_dropping_job_goes_on_when_the_disk_is_broken(disk: ModelDisk) -> None:
    """Not at the first failure: what is on disk may still be read by then."""
    log = log_of(b"abcdefgh", spool=spool_of(), dropping=True)
    disk.serve(log)
    log.append(b"ijkl")
    fail(log, "Input/output error")
    assert (log.room, log.stall) == (0, Stall(StallReason.DISK, "Input/output error"))
    log.retry()
    assert log.base == 0
    fail(log, "Input/output error")
    log.retry()
    assert log.base == 4
    disk.perform(fail(log, "it counts as deleted"))
    fail(log, "Input/output error")
    assert (log.room, log.stall) == (8, None)


def test_a_read_that_failed_is_tried_again(disk: ModelDisk) -> None:
    """Its reader waits; nothing is skipped."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
    cursor.next_frame(1, 9)
    fail(log, "Input/output error")
    assert (log.next_task(), log.failing, cursor.pending) == (None, True, False)
    log.retry()
    disk.serve(log)
    assert cursor.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 0, b"abcd")


def test_a_reader_that_left_is_no_reason_to_try_again(disk: ModelDisk) -> None:
    """Nobody waits for it."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    SendCursor(Stream.OUTPUT, log, 0, 100).next_frame(1, 9)
    fail(log, "Input/output error")
    log.release_pieces()
    assert not log.failing


def test_what_somebody_deleted_becomes_a_gap(disk: ModelDisk) -> None:
    """The rest of that file is given up, and said to be; what follows is delivered."""
    log = log_of(b"abcdefgh", spool=spool_of())
    disk.serve(log)
    log.append(b"ijkl")
    disk.serve(log)
    cursor = SendCursor(Stream.OUTPUT, log, 1, 100)
    cursor.next_frame(1, 9)
    task = log.next_task()
    assert isinstance(task, Fetch)
    log.lost(task)
    assert (log.base, log.floor) == (4, 4)
    assert cursor.next_frame(1, 9) == wire.encode_gap(1, Stream.OUTPUT, 1, 4)
    assert read_all(log, disk, start=4) == b"efghijkl"


def test_a_deletion_that_failed_counts_as_done(disk: ModelDisk) -> None:
    """It is tried again when the daemon ends; until then nothing waits for it."""
    spool = spool_of()
    log = log_of(b"abcdefgh", spool=spool)
    disk.serve(log)
    log.acknowledge(5)
    assert fail(log) == Delete(("0.0",), 4)
    assert (spool.used, log.next_task()) == (0, None)


def test_the_disk_answers_what_it_was_asked() -> None:
    """Anything else is our own mistake."""
    log = log_of(b"abcdefgh", spool=spool_of())
    task = log.next_task()
    assert isinstance(task, Spill)
    with pytest.raises(LocalProtocolError, match="not asked"):
        log.done(Delete((), 0))
    log.done(task)
    with pytest.raises(LocalProtocolError, match="not asked"):
        log.done(task)
    log.retry()  # without a reason: no harm
    assert log.stall is None
