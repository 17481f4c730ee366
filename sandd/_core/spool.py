"""What a daemon's disk is asked to do for its jobs' outputs, and how much of it they may have together.

Sans-IO. The logs (`SpooledLog`) decide, the `Spooler` does it in threads.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define, field, frozen

from sandd import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd._core.spooled_log import SpooledLog
    from sandd.wire import StallReason

SEGMENT_BYTES: Final = 16 * wire.MIB
"""One file of a spool: space is given back to the disk in such steps."""
SEGMENTS_OF_A_QUOTA: Final = 8
"""A small quota has smaller segments, so that what is freed of it is never most of it."""
PIECE_BYTES: Final = 128 * wire.KIB
"""One write or read: a quarter of the ring, so that the process goes on filling it while the disk takes that."""


@frozen
class Spill:
    """Write `data`, which stands at `start` of the stream, at `position` of a file."""

    file: str
    position: int
    start: int
    data: bytes


@frozen
class Fetch:
    """Read `size` bytes, which stand at `start` of the stream, from `position` of a file."""

    file: str
    position: int
    start: int
    size: int


@frozen
class Delete:
    """Delete these files: nobody needs what stands below `until`, and from there on they hold nothing."""

    files: tuple[str, ...]
    until: int


DiskTask: TypeAlias = Spill | Fetch | Delete


@frozen
class Stall:
    """Why the daemon's disk takes no more of an output, so that the command waits."""

    reason: StallReason
    """A quota, or the disk."""
    message: str = ""
    """What the daemon's system says, where its disk is full or broken."""


@define(eq=False)
class Spool:
    """What the logs of a daemon share: the quotas, and the list of those for which the disk has work."""

    daemon_quota: int
    """Bytes on disk of all jobs together."""
    job_quota: int
    """Bytes on disk of one job."""
    segment_bytes: int = SEGMENT_BYTES
    piece_bytes: int = PIECE_BYTES
    used: int = 0
    work: dict[SpooledLog, None] = field(factory=dict)
    """Logs whose `next_task` may have something; the shell empties it."""
    _refused: dict[SpooledLog, None] = field(factory=dict)
    """Logs that found no room within the quotas."""
    _numbers: Iterator[int] = field(factory=itertools.count)

    @classmethod
    def within(cls, daemon_quota: int, job_quota: int) -> Spool:
        """A spool with these quotas, in bytes, and segments that suit them."""
        part = min(daemon_quota, job_quota) // SEGMENTS_OF_A_QUOTA
        return cls(daemon_quota, job_quota, max(1, min(SEGMENT_BYTES, part)))

    def reserve(self, log: SpooledLog, units: int) -> bool:
        """Whether the log may put `units` more on disk; if not, it is asked again when there is room."""
        if self.used + units > self.daemon_quota or log.job.disk_bytes + units > self.job_quota:
            self._refused[log] = None
            return False
        self._refused.pop(log, None)
        self.used += units
        return True

    def release(self, units: int) -> None:
        """So much is on disk no more; whoever was refused may ask again."""
        self.used -= units
        self.work.update(self._refused)
        self._refused.clear()

    def forget(self, log: SpooledLog) -> None:
        """The log wants nothing more."""
        self._refused.pop(log, None)

    def next_number(self) -> int:
        """A number that no other log has, for the names of its files."""
        return next(self._numbers)
