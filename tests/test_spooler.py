"""The spool's tasks: in threads, one thing at a time per log, and gone when there is nothing to do."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from attrs import define, field
from process_tools import until

from sandd import wire
from sandd._core import spooler as spooler_module
from sandd._core.spool import Delete, Fetch, Spill, Spool
from sandd._core.spool_files import SpoolFiles, open_spool_files
from sandd._core.spooled_log import SpooledLog
from sandd._core.spooler import DISK_THREADS, Spooler
from sandd._core.streams import SendCursor
from sandd.wire import OnFull, StallReason, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandd._core.spool import DiskTask

RING = 8


@define(eq=False)
class FakeJob:
    """What logs and spooler need of a job."""

    key: tuple[str, str] = ("t", "job")
    logs: list[SpooledLog] = field(factory=list)
    stalls: list[StallReason | None] = field(factory=list)
    """What `tell_stalls` saw, where it changed."""

    @property
    def disk_bytes(self) -> int:
        """Of all its outputs."""
        return sum(log.disk_bytes for log in self.logs)

    def tell_stalls(self) -> None:
        """Remember what would be told."""
        (log,) = self.logs
        reason = None if log.stall is None else log.stall.reason
        if reason != (self.stalls[-1] if self.stalls else None):
            self.stalls.append(reason)


class Files(SpoolFiles):
    """Real files, with faults."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.error: Exception | None = None
        """What every write and read fails by."""
        self.tried = 0
        self.gate: threading.Event | None = None
        """The thread waits for it, as for a disk that hangs."""
        self.inside = 0

    def perform(self, task: DiskTask) -> bytes:
        """Do it, or fail."""
        self.tried += 1
        self.inside += 1
        try:
            if self.gate is not None:
                self.gate.wait(10)
            if self.error is not None and not isinstance(task, Delete):
                raise self.error
            return super().perform(task)
        finally:
            self.inside -= 1


@define(eq=False)
class Disk:
    """A spooler, and what it works with."""

    spool: Spool
    files: Files
    spooler: Spooler
    nursery: trio.Nursery
    changed: list[FakeJob]

    def log(self, content: bytes = b"abcdefgh") -> SpooledLog:
        """A log of a job that nobody is attached to."""
        job = FakeJob()
        log = SpooledLog(cast("Any", job), capacity=RING, spool=self.spool)
        job.logs.append(log)
        log.append(content)
        return log

    async def settled(self) -> None:
        """No log has a task any more."""
        self.spooler.serve()
        await until(lambda: not self.nursery.child_tasks)


@contextlib.asynccontextmanager
async def open_disk(state: Path, *, daemon_quota: int = 1000) -> AsyncIterator[Disk]:
    """A spooler with small segments in that state directory."""
    with open_spool_files(state):
        files = Files(state / "spool")
        spool = Spool(daemon_quota, 1000, 4, 4)
        changed: list[FakeJob] = []
        async with trio.open_nursery() as nursery:
            spooler = Spooler(spool, files, nursery, cast("Callable[[Any], None]", changed.append))
            try:
                yield Disk(spool, files, spooler, nursery, changed)
            finally:
                files._is_closed = True
                nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooler_module, "RETRY_SECONDS", 0.05)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events that were logged."""
    return [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]


async def test_output_goes_to_disk_and_comes_back(tmp_path: Path) -> None:
    """There is room again, whoever waits is told, and a reader gets every byte."""
    async with open_disk(tmp_path) as disk:
        log = disk.log()
        await disk.settled()
        assert (log.room, log.disk_bytes) == (4, 4)
        assert set(disk.changed) == {log.job}
        assert (disk.files.directory / "0.0").read_bytes() == b"abcd"
        cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
        assert cursor.next_frame(1, 9) is None
        await disk.settled()
        assert cursor.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 0, b"abcd")
        assert cursor.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 4, b"efgh")
        log.abandon()
        await disk.settled()
        assert os.listdir(disk.files.directory) == []


async def test_short_output_costs_no_task_and_no_file(tmp_path: Path) -> None:
    """What fits into half the ring is nobody's business but the ring's."""
    async with open_disk(tmp_path) as disk:
        disk.log(b"abcd")
        disk.spooler.serve()
        assert not disk.nursery.child_tasks
        assert (disk.files.tried, os.listdir(tmp_path)) == (0, [])


async def test_a_disk_that_is_full_is_tried_until_it_takes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The stall is told, and its end; the daemon logs each once, however many jobs and tries."""
    with caplog.at_level(logging.INFO, "sandd"):
        async with open_disk(tmp_path) as disk:
            disk.files.error = OSError(errno.ENOSPC, "No space left on device")
            logs = [disk.log() for _ in range(3)]
            disk.spooler.serve()
            await until(lambda: disk.files.tried >= 20)
            assert [log.room for log in logs] == [0, 0, 0]
            assert lines(caplog) == ["spool_failed"]
            disk.files.error = None
            await disk.settled()
            assert [log.room for log in logs] == [4, 4, 4]
            stalls = [cast("Any", log.job).stalls for log in logs]
    assert stalls == [[StallReason.DISK, None]] * 3
    assert lines(caplog) == ["spool_failed", "spool_recovered"]


async def test_on_a_full_disk_what_may_be_dropped_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for a second try."""
    monkeypatch.setattr(spooler_module, "RETRY_SECONDS", 1000.0)
    async with open_disk(tmp_path) as disk:
        log = disk.log()
        log.on_full = OnFull.DROP_OLDEST
        await disk.settled()
        log.append(b"ijkl")
        perform, files = disk.files.perform, disk.files

        def perform_when_empty(task: DiskTask) -> bytes:
            if isinstance(task, Spill) and os.listdir(files.directory):
                raise OSError(errno.ENOSPC, "No space left on device")
            return perform(task)

        files.perform = perform_when_empty  # type: ignore[method-assign]
        await disk.settled()
        assert (log.base, log.room) == (4, 4)


async def test_between_two_tries_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs no processor; what can be done meanwhile is done, and hurries nothing."""
    monkeypatch.setattr(spooler_module, "RETRY_SECONDS", 1000.0)
    async with open_disk(tmp_path) as disk:
        log = disk.log()
        await disk.settled()
        log.append(b"ijkl")
        disk.files.error = OSError(errno.EIO, "Input/output error")
        disk.spooler.serve()
        await until(lambda: log.failing)
        disk.files.error = None
        for _ in range(3):
            cursor = SendCursor(Stream.OUTPUT, log, 0, 100)
            cursor.next_frame(1, 9)
            disk.spooler.serve()
            await until(lambda cursor=cursor: cursor.pending)  # type: ignore[misc]
            cursor.next_frame(1, 9)
        assert (log.room, disk.files.tried) == (0, 2 + 3)


async def test_a_reader_that_keeps_asking_does_not_keep_the_disk_trying(tmp_path: Path) -> None:
    """A writer asks its sources whenever something may have changed; that is no reason to try sooner."""
    async with open_disk(tmp_path) as disk:
        log = disk.log()
        await disk.settled()
        cursor = SendCursor(Stream.OUTPUT, log, 0, 100)

        def changed(job: Any) -> None:
            disk.changed.append(job)
            assert len(disk.changed) < 100, "the loop would never come to anything else"
            if not cursor.pending:
                cursor.next_frame(1, 9)
            disk.spooler.serve()

        disk.spooler._changed = changed
        disk.files.error = OSError(errno.EIO, "Input/output error")
        changed(log.job)
        await until(lambda: disk.files.tried >= 5)
        disk.files.error = None
        await until(lambda: cursor.pending)


async def test_what_is_asked_for_at_the_last_moment_is_done(tmp_path: Path) -> None:
    """A log's task doesn't end while somebody asks it for more."""
    async with open_disk(tmp_path) as disk:
        log = disk.log()
        cursor = SendCursor(Stream.OUTPUT, log, 0, 100)

        def changed(job: Any) -> None:
            disk.changed.append(job)
            if len(disk.changed) == 2:  # the task has nothing left to do, and says so
                assert cursor.next_frame(1, 9) is None
                disk.spooler.serve()

        disk.spooler._changed = changed
        disk.spooler.serve()
        await until(lambda: cursor.pending)


async def test_a_job_that_is_forgotten_is_not_tried_again(tmp_path: Path) -> None:
    """Its task ends, and nothing of it is left."""
    async with open_disk(tmp_path) as disk:
        disk.files.error = OSError(errno.EIO, "Input/output error")
        log = disk.log()
        disk.spooler.serve()
        await until(lambda: log.failing)
        log.abandon()
        await disk.settled()
        assert disk.spool.used == 0


async def test_a_defect_of_ours_costs_one_jobs_pace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the daemon: it is logged, and tried again like any other failure."""
    with caplog.at_level(logging.ERROR, "sandd"):
        async with open_disk(tmp_path) as disk:
            disk.files.error = RuntimeError("a mistake")
            log = disk.log()
            disk.spooler.serve()
            await until(lambda: log.failing)
            assert "a mistake" in str(caplog.records[0].msg)
            disk.files.error = None
            await disk.settled()
            assert log.room == 4


async def test_a_log_that_is_broken_costs_no_other_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in what decides stops that job's output, and is logged; the others' goes on."""

    done = SpooledLog.done

    def broken(log: SpooledLog, task: DiskTask, data: bytes = b"") -> None:
        if log is one:
            raise AssertionError("a mistake")
        done(log, task, data)

    with caplog.at_level(logging.ERROR, "sandd"):
        async with open_disk(tmp_path) as disk:
            one, other = disk.log(), disk.log()
            monkeypatch.setattr(SpooledLog, "done", broken)
            await disk.settled()
            assert (one.room, other.room) == (0, 4)
    assert lines(caplog) == ["spool_crashed"]


async def test_what_somebody_deleted_is_said_to_be_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader gets a gap and goes on behind it; the daemon's log says why."""
    async with open_disk(tmp_path) as disk:
        log = disk.log()
        await disk.settled()
        (disk.files.directory / "0.0").unlink()
        cursor = SendCursor(Stream.OUTPUT, log, 1, 100)
        cursor.next_frame(1, 9)
        with caplog.at_level(logging.ERROR, "sandd"):
            await disk.settled()
        assert cursor.next_frame(1, 9) == wire.encode_gap(1, Stream.OUTPUT, 1, 4)
        assert cursor.next_frame(1, 9) == wire.encode_data(1, Stream.OUTPUT, 4, b"efgh")
    assert lines(caplog) == ["spool_lost"]


async def test_a_disk_that_hangs_holds_up_nobody_but_its_jobs(tmp_path: Path) -> None:
    """The loop goes on; only so many threads wait for it."""
    async with open_disk(tmp_path) as disk:
        disk.files.gate = threading.Event()
        logs = [disk.log() for _ in range(2 * DISK_THREADS)]
        disk.spooler.serve()
        await until(lambda: disk.files.inside == DISK_THREADS)
        await trio.sleep(0.05)
        assert disk.files.inside == DISK_THREADS
        assert all(log.room == 0 for log in logs)
        disk.files.gate.set()
        await disk.settled()
        assert all(log.room == 4 for log in logs)


@pytest.mark.parametrize("kind", [Spill, Fetch, Delete])
async def test_cancelled_in_the_middle_of_anything_it_leaves_nothing(
    tmp_path: Path, kind: type[DiskTask]
) -> None:
    """The daemon ends without waiting for a disk that hangs, and what the disk does then leaves no file."""
    state = tmp_path / "state"
    state.mkdir()
    gate = threading.Event()
    with trio.fail_after(5):
        async with open_disk(state) as disk:
            files, log = disk.files, disk.log()
            if kind is not Spill:
                await disk.settled()
            if kind is Fetch:
                SendCursor(Stream.OUTPUT, log, 0, 100).next_frame(1, 9)
            if kind is Delete:
                log.acknowledge(5)
            files.gate = gate
            disk.spooler.serve()
            await until(lambda: files.inside == 1)
    assert files.inside == 1
    assert os.listdir(state) == []
    gate.set()
    await until(lambda: files.inside == 0)
    assert os.listdir(state) == []


async def test_cancelled_while_it_waits_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other place at which a log's task may be when its daemon ends."""
    monkeypatch.setattr(spooler_module, "RETRY_SECONDS", 1000.0)
    async with open_disk(tmp_path) as disk:
        disk.files.error = OSError(errno.ENOSPC, "No space left on device")
        log = disk.log()
        disk.spooler.serve()
        await until(lambda: log.failing)
        await trio.testing.wait_all_tasks_blocked()
    assert os.listdir(tmp_path) == []


async def test_room_that_others_give_back_is_used(tmp_path: Path) -> None:
    """Who was refused waits without a task, and gets one when there is room."""
    async with open_disk(tmp_path, daemon_quota=5) as disk:
        first, second = disk.log(), disk.log()
        await disk.settled()
        assert sorted([first.room, second.room]) == [0, 4]
        waiting, lucky = sorted([first, second], key=lambda log: log.room)
        assert cast("Any", waiting.job).stalls == [StallReason.QUOTA]
        lucky.acknowledge(4)
        await disk.settled()
        assert waiting.room == 4
        assert cast("Any", waiting.job).stalls == [StallReason.QUOTA, None]
