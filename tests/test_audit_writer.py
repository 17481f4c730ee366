"""The writer of the audit log: who waits hears when it is safe, many share a sync, and a full disk runs nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from audit_log import key_in, request, segment

from sandd import AuditOptions, ConfigurationError, RequestRefused
from sandd._core.audit import segments, writer
from sandd._core.audit.records import Record, RecordType
from sandd._core.audit.verifying import verify_log
from sandd._core.audit.writer import AuditLog, open_audit_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS = AuditOptions()
LIMIT = 20.0


def jobs_in(directory: Path) -> list[str]:
    """The jobs of all requests, in the order of the file."""
    records = [json.loads(line) for line in segment(directory).read_bytes().splitlines()]
    return [each["job"] for each in records if each["type"] == "request"]


def texts_in(directory: Path, kind: str) -> list[Any]:
    """Reasons of all records of that type."""
    records = [json.loads(line) for line in segment(directory).read_bytes().splitlines()]
    return [each.get("reason") for each in records if each["type"] == kind]


class Disk:
    """Stands in for os.write: it may be full, and it may stand still."""

    def __init__(self) -> None:
        self.full = False
        self.free = threading.Event()
        self.free.set()
        self.syncs = 0
        self._write = os.write
        self._sync = segments._sync

    def write(self, descriptor: int, data: Any) -> int:
        """As write(2)."""
        self.free.wait()
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """As fdatasync(2)."""
        self.syncs += 1
        self._sync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The log's."""
    disk = Disk()
    monkeypatch.setattr(segments.os, "write", disk.write)
    monkeypatch.setattr(segments, "_sync", disk.sync)
    yield disk
    disk.free.set()


async def committed(log: AuditLog, record: Record) -> None:
    """The record is on the disk when this returns; RequestRefused where what it tells of must not happen."""
    heard = trio.Event()
    answers: list[str | None] = []

    def done(refusal: str | None) -> None:
        answers.append(refusal)
        heard.set()

    log.commit(record, done)
    await heard.wait()
    if answers[0] is not None:
        raise RequestRefused(answers[0])


async def test_a_committed_record_is_on_the_disk(tmp_path: Path) -> None:
    """When it is said to be, it can be read there, and the log is whole when it is closed."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            for number in range(5):
                await committed(log, request(number))
                assert jobs_in(tmp_path)[-1] == f"job-{number}"
    verdict = verify_log(tmp_path / "audit", key_in(tmp_path).public)
    assert (verdict.fault, verdict.unsigned) == (None, 0)
    records = [json.loads(line) for line in segment(tmp_path).read_bytes().splitlines()]
    outcomes = [each["outcome"] for each in records if each["type"] == "controller"]
    assert outcomes == ["started", "closed"]


async def test_a_note_is_written_soon(tmp_path: Path) -> None:
    """Nobody has to wait for it, and nothing has to follow."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            log.note(request(1))
            while not jobs_in(tmp_path):
                await trio.sleep(0.001)


async def test_what_comes_meanwhile_shares_a_sync(tmp_path: Path, disk: Disk) -> None:
    """While the disk is busy, all that comes waits for one turn, and is answered in order."""
    answered: list[int] = []
    settled: list[int] = []
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            log.settle = lambda: settled.append(len(answered))
            disk.free.clear()
            log.commit(request(1), lambda _: answered.append(1))
            await trio.testing.wait_all_tasks_blocked(0.05)
            before = disk.syncs
            for number in range(2, 102):
                log.commit(request(number), lambda _, number=number: answered.append(number))  # type: ignore[misc]
            log.note(request(102))
            assert answered == []
            disk.free.set()
            while len(answered) < 101:
                await trio.sleep(0.001)
            assert disk.syncs - before == 2
    assert answered == list(range(1, 102))
    assert settled == [1, 101]
    assert jobs_in(tmp_path) == [f"job-{number}" for number in range(103)]


async def test_the_loop_waits_for_the_thread_and_not_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets the thread have the interpreter until all that is left is the sync, and goes on then."""
    monkeypatch.setattr(writer, "HANDOVER_SECONDS", 2 * LIMIT)
    synced = threading.Event()
    real_sync = segments._sync
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))

            def sync(descriptor: int) -> None:
                assert synced.wait(LIMIT)
                real_sync(descriptor)

            monkeypatch.setattr(segments, "_sync", sync)
            answers: list[str | None] = []
            log.commit(request(1), answers.append)
            while jobs_in(tmp_path) != ["job-0", "job-1"]:
                await trio.sleep(0.001)
            assert answers == []
            synced.set()
            while not answers:
                await trio.sleep(0.001)


async def test_a_full_disk_runs_nothing(tmp_path: Path, disk: Disk) -> None:
    """Whoever waits is refused, with why; what happened meanwhile is written when there is room again."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            disk.full = True
            with pytest.raises(RequestRefused, match=r"audit log can't be written.*No space left"):
                await committed(log, request(1))
            assert "failing" in repr(log)
            log.note(request(2))
            disk.full = False
            while jobs_in(tmp_path) != ["job-0", "job-2"]:
                await trio.sleep(0.01)
            await committed(log, request(3))
            assert log.failure is None
    assert jobs_in(tmp_path) == ["job-0", "job-2", "job-3"]
    assert verify_log(tmp_path / "audit", key_in(tmp_path).public).fault is None


async def test_a_full_disk_may_be_told_to_run(tmp_path: Path, disk: Disk) -> None:
    """Then requests go on, and are written as soon as that can be done."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, AuditOptions(on_full="run")) as log:
            await committed(log, request(0))
            disk.full = True
            await committed(log, request(1))
            assert jobs_in(tmp_path) == ["job-0"]
            disk.full = False
            while jobs_in(tmp_path) != ["job-0", "job-1"]:
                await trio.sleep(0.01)


async def test_what_there_is_no_room_for_is_counted(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has a bound; the oldest go, and the log says how many."""
    monkeypatch.setattr(writer, "MAX_WAITING", 10)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            disk.full = True
            for number in range(1, 31):
                log.note(request(number))
            while log.failure is None:
                await trio.sleep(0.001)
            disk.full = False
            while not texts_in(tmp_path, "lost"):
                await trio.sleep(0.01)
    assert texts_in(tmp_path, "lost") == ["20 events could not be written"]
    assert jobs_in(tmp_path) == ["job-0", *(f"job-{number}" for number in range(21, 31))]


@pytest.mark.parametrize("somebody_waits", [False, True])
async def test_what_there_is_no_room_for_while_the_disk_hangs_is_counted(
    somebody_waits: bool, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells nobody that it can't: memory has the bound all the same, and whoever waits is not forgotten."""
    monkeypatch.setattr(writer, "MAX_WAITING", 10)
    answers: list[str | None] = []
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            disk.free.clear()
            log.note(request(1))
            while log._waiting:  # it is under way
                await trio.sleep(0.001)
            if somebody_waits:
                log.commit(request(2), answers.append)
            for number in range(3, 33):
                log.note(request(number))
            assert len(log._waiting) == 10
            disk.free.set()
            while not texts_in(tmp_path, "lost"):
                await trio.sleep(0.01)
    kept = range(23, 33) if not somebody_waits else range(2, 12)
    assert jobs_in(tmp_path) == ["job-0", "job-1", *(f"job-{number}" for number in kept)]
    lost = 20 if not somebody_waits else 21
    assert texts_in(tmp_path, "lost") == [f"{lost} events could not be written"]
    assert answers == [None] * somebody_waits


async def test_strangers_cant_fill_the_disk(tmp_path: Path) -> None:
    """Of what they cause some is written in full, and the rest is counted."""
    refusal = Record(type=RecordType.REFUSAL, outcome="unauthorized")
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            for _ in range(1000):
                log.note(refusal, from_stranger=True)
    said = texts_in(tmp_path, "refusal")
    assert said.count(None) == 100
    assert said[-1] == "900 more were refused, and are not told one by one"


async def test_no_actor_fills_the_disk_with_what_is_refused(tmp_path: Path) -> None:
    """Of each some refusals are written in full, and of the rest the number, with whose they were."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            for actor, count in (("mallory", 1000), ("alice", 3)):
                refusal = Record(
                    type=RecordType.REFUSAL, outcome="denied", tenant="acme", actor=actor
                )
                for _ in range(count):
                    log.note(refusal, is_bounded=True)
    records = [json.loads(line) for line in segment(tmp_path).read_bytes().splitlines()]
    of = {
        actor: [each.get("reason") for each in records if each.get("actor") == actor]
        for actor in ("mallory", "alice")
    }
    assert of["mallory"] == [
        *[None] * 100,
        "900 more were refused, and are not told one by one",
    ]
    assert of["alice"] == [None] * 3


async def test_what_is_left_out_is_told_though_there_is_always_something_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hides how often he was refused by asking for something all the time."""
    monkeypatch.setattr(writer, "LOOK_SECONDS", 0.05)
    refusal = Record(type=RecordType.REFUSAL, outcome="denied", tenant="acme", actor="mallory")
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            for _ in range(200):
                log.note(refusal, is_bounded=True)
            while not any(texts_in(tmp_path, "refusal")):
                await committed(log, request(1))


async def test_a_disk_that_hangs_keeps_nobody(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller ends in bounded time, and whoever waits is told that it is not safe."""
    monkeypatch.setattr(writer, "CLOSE_SECONDS", 0.2)
    answers: list[str | None] = []
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            disk.free.clear()
            log.commit(request(1), answers.append)
            await trio.testing.wait_all_tasks_blocked(0.02)
            log.commit(request(2), answers.append)
    assert len(answers) == 2
    assert all(answer is not None and "in time" in answer for answer in answers)
    # When the disk comes back to itself, so does the file.
    disk.free.set()
    while True:
        with contextlib.suppress(ConfigurationError):
            async with open_audit_log(tmp_path, OPTIONS):
                break


async def test_whoever_fails_when_he_hears_fails_as_himself(tmp_path: Path) -> None:
    """What an answer raises is raised where the log is held open, and the log is closed in good order."""

    def fail(_: str | None) -> None:
        raise ZeroDivisionError

    with trio.fail_after(LIMIT), pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block's end raises
        async with open_audit_log(tmp_path, OPTIONS) as log:
            log.commit(request(1), fail)
            await trio.sleep_forever()
    assert jobs_in(tmp_path) == ["job-1"]
    async with open_audit_log(tmp_path, OPTIONS):
        pass


async def test_a_system_that_has_no_thread_left_is_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks is told so, the log goes on when there is one again, and is whole."""
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(writer, "LOOK_SECONDS", 0.01)

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            with monkeypatch.context() as crowded:
                crowded.setattr(trio.lowlevel, "start_thread_soon", fail)
                with pytest.raises(RequestRefused, match="can't start new thread"):
                    await committed(log, request(1))
                await trio.sleep(0.05)  # in which it looks whether anything is due
            await committed(log, request(2))
    assert jobs_in(tmp_path) == ["job-0", "job-2"]
    assert verify_log(tmp_path / "audit", key_in(tmp_path).public).fault is None


async def test_a_disk_that_is_full_at_the_end_costs_the_signature_alone(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The block ends as it would, it is said, and the next run signs what is there."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            await committed(log, request(0))
            disk.full = True
        disk.full = False
        assert "audit_log_not_signed" in caplog.text
        async with open_audit_log(tmp_path, OPTIONS):
            pass
    verdict = verify_log(tmp_path / "audit", key_in(tmp_path).public)
    assert (verdict.fault, verdict.unsigned) == (None, 0)


async def test_cancelling_who_waits_leaves_the_log_whole(tmp_path: Path, disk: Disk) -> None:
    """The record is written all the same, and the log goes on."""
    with trio.fail_after(LIMIT):
        async with open_audit_log(tmp_path, OPTIONS) as log:
            disk.free.clear()
            with trio.move_on_after(0.02) as scope:
                await committed(log, request(0))
            assert scope.cancelled_caught
            disk.free.set()
            await committed(log, request(1))
    assert jobs_in(tmp_path) == ["job-0", "job-1"]


async def test_cancelling_the_block_closes_the_log(tmp_path: Path) -> None:
    """What was told by then is written and signed, and others may have the log."""
    with trio.move_on_after(0) as scope:
        scope.cancel()
        async with open_audit_log(tmp_path, OPTIONS) as log:
            log.note(request(1))
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert jobs_in(tmp_path) == ["job-1"]
    assert verify_log(tmp_path / "audit", key_in(tmp_path).public).unsigned == 0
    async with open_audit_log(tmp_path, OPTIONS):
        pass


async def test_a_directory_that_cant_be_used_is_told(tmp_path: Path) -> None:
    """In one line, as an error of the configuration."""
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(ConfigurationError, match="can't use the audit log"):
        async with open_audit_log(tmp_path, OPTIONS):
            pass


@pytest.mark.parametrize("options", [{"on_full": "ignore"}, {"segment_bytes": 100}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    """With what was given, and what may be."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        AuditOptions(**options)
