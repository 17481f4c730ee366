"""Audit logs for tests: files made without a controller, and what can be done to them."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from sandd._core.audit.keys import SigningKey, make_key
from sandd._core.audit.records import Record, RecordType
from sandd._core.audit.redaction import Redactor
from sandd._core.audit.segments import SegmentedLog, Stamped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def open_log(
    directory: Path, *, segment_bytes: int = 1_000_000, secrets: tuple[str, ...] = ()
) -> SegmentedLog:
    """A log in the directory `audit` of this one, with its key beside it."""
    return SegmentedLog.open(
        directory / "audit", key_in(directory), Redactor(secrets), segment_bytes=segment_bytes
    )


def key_in(directory: Path) -> SigningKey:
    """The key of the log."""
    directory.mkdir(exist_ok=True)
    return make_key(directory / "audit.key")


@contextlib.contextmanager
def opened_log(directory: Path, **settings: Any) -> Iterator[SegmentedLog]:
    """The same, closed at the end."""
    log = open_log(directory, **settings)
    try:
        yield log
    finally:
        log.close()


def request(number: int = 1, **changes: Any) -> Record:
    """What somebody asked for."""
    said: dict[str, Any] = {
        "tenant": "default",
        "actor": "alice",
        "daemon": "worker-1",
        "job": f"job-{number}",
        "argv": ("make", str(number)),
    }
    return Record(type=RecordType.REQUEST, outcome="asked", **said | changes)


def append(log: SegmentedLog, *records: Record) -> None:
    """They happened now, and are on the disk."""
    made = log.make_lines([Stamped(each, time.time(), time.monotonic()) for each in records])
    log.append(made)


def fill(log: SegmentedLog, count: int, first: int = 1) -> None:
    """So many requests, each in a write of its own, with what is due after each."""
    for number in range(first, first + count):
        append(log, request(number))
        log.keep_up()


def segment(directory: Path, number: int = 1) -> Path:
    """One of its files."""
    return directory / "audit" / f"{number:06d}.jsonl"


def lines_of(directory: Path, number: int = 1) -> list[bytes]:
    """The lines of one of its files, each with its newline."""
    return segment(directory, number).read_bytes().splitlines(keepends=True)


def set_lines(directory: Path, lines: list[bytes], number: int = 1) -> None:
    """Somebody with an editor."""
    segment(directory, number).write_bytes(b"".join(lines))
