"""Whatever ends the program, and whenever: the log verifies, or the torn place is named, and what was safe is there."""

from __future__ import annotations

import errno
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from audit_log import append, key_in, open_log, request, segment
from effort import tried
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandd._core.audit import segments
from sandd._core.audit.segments import SegmentedLog, segments_in
from sandd._core.audit.verifying import verify_log


class Killed(BaseException):
    """The program ends here."""


@functools.cache  # a segment that is full is looked at after every step
def jobs_in(segment: bytes) -> list[str]:
    """Those whose requests are in it, whole."""
    lines = [line for line in segment.splitlines(keepends=True) if line.endswith(b"\n")]
    return [record["job"] for record in map(json.loads, lines) if record["type"] == "request"]


class AuditFiles(RuleBasedStateMachine):
    """One directory, and programs that write to it one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(prefix="sandd-audit-")
        self.directory = Path(self.temporary.name)
        self.log: SegmentedLog | None = None
        self.safe: list[str] = []
        """Jobs whose requests somebody was told are on the disk."""
        self.unsure: set[str] = set()
        """Those of writes that a crash ended."""
        self.number = 0
        # The programs are killed, and not the machine: what was written is there.
        self.syncs = mock.patch.multiple(os, fsync=mock.DEFAULT, fdatasync=mock.DEFAULT)
        self.syncs.start()

    def jobs(self, count: int) -> list[str]:
        """Ids of further ones."""
        self.number += count
        return [f"j{n}" for n in range(self.number - count, self.number)]

    def write(self, count: int) -> None:
        """Append so many requests, and do what is due."""
        assert self.log is not None
        jobs = self.jobs(count)
        self.unsure.update(jobs)
        append(self.log, *(request(job=job) for job in jobs))
        self.unsure.difference_update(jobs)
        self.safe += jobs
        self.log.keep_up()

    @precondition(lambda self: self.log is None)
    @rule()
    def open(self) -> None:
        """Another program goes on."""
        self.log = open_log(self.directory, segment_bytes=4096)

    @precondition(lambda self: self.log is not None)
    @rule(count=st.integers(1, 12))
    def append(self, count: int) -> None:
        """All goes well."""
        self.write(count)

    @precondition(lambda self: self.log is not None)
    @rule()
    def close(self) -> None:
        """The program ends in good order."""
        assert self.log is not None
        self.log.close()
        self.log = None

    @precondition(lambda self: self.log is not None)
    @rule(count=st.integers(1, 12), room=st.integers(0, 5000), is_crash=st.booleans())
    def fail(self, count: int, room: int, is_crash: bool) -> None:
        """In the middle of a write the disk is full, or the program is killed."""
        assert self.log is not None
        write = os.write
        descriptor = self.log._file
        left = room

        def take(descriptor: int, data: Any) -> int:
            nonlocal left
            if left <= 0 and len(data):
                raise Killed if is_crash else OSError(errno.ENOSPC, "No space left on device")
            taken = write(descriptor, bytes(data[:left]))
            left -= taken
            return taken

        try:
            with mock.patch.object(segments.os, "write", take):
                self.write(count)
        except OSError:
            pass  # nobody was told that they are safe; what was refused is checked by the invariant
        except Killed:
            if self.log._file != descriptor:
                os.close(descriptor)  # of the former segment, while the next one was being begun
            self.log.let_go()
            self.log = None

    @precondition(lambda self: self.log is not None)
    @rule(size=st.integers(1, 400))
    def kill(self, size: int) -> None:
        """The program is killed while a line is on its way to the disk."""
        assert self.log is not None
        self.log.let_go()
        self.log = None
        path = segments_in(self.directory / "audit")[-1]
        with path.open("ab") as file:
            file.write((b'{"actor":"alice",' * 30)[:size])

    @invariant()
    def nothing_is_lost(self) -> None:
        """What was said to be safe is there, in order; nothing is there that was refused."""
        if not segments_in(self.directory / "audit"):
            assert not self.safe
            return
        verdict = verify_log(self.directory / "audit", key_in(self.directory).public)
        torn = None
        if verdict.fault is not None:
            last = segments_in(self.directory / "audit")[-1]
            assert self.log is None, verdict
            assert verdict.place is not None
            assert "torn" in verdict.fault, verdict
            torn = verdict.place
            assert torn.startswith(last.name), verdict
        written = map(Path.read_bytes, segments_in(self.directory / "audit"))
        found = [job for segment in written for job in jobs_in(segment)]
        assert [job for job in found if job not in self.unsure] == self.safe

    def teardown(self) -> None:
        """Whatever happened, the next program goes on, and what it leaves is whole."""
        if self.log is not None:
            self.log.close()
        open_log(self.directory, segment_bytes=4096).close()
        assert verify_log(self.directory / "audit", key_in(self.directory).public).fault is None
        assert segment(self.directory).exists()
        self.syncs.stop()
        self.temporary.cleanup()


TestAuditFiles = tried(AuditFiles, quick_examples=50)  # each verifies the whole log after each step
