"""What a finished command looks like to its caller, and how its output is gathered within a bound."""

from __future__ import annotations

import signal as _signal
from io import BytesIO
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.streams import Gap
from sandd.wire import MIB, Exited, Outcome

if TYPE_CHECKING:
    from sandd.wire import Buffer

__all__ = ["CommandResult", "ExitStatus", "Outcome"]

DEFAULT_MAX_OUTPUT: Final = 16 * MIB
"""Bytes kept per stream by `Daemon.run`."""
_OMITTED: Final = b"\n... %d bytes omitted ...\n"
# Bound here because looking it up by its class costs as much as a function call (Python 3.11).
_EXITED: Final = Outcome.EXITED
_SHOWN: Final = 200
"""Bytes of an output that a result shows of itself: what a person asks first, and no more than a line or two."""


def signal_name(number: int) -> str:
    """``"SIGKILL"`` for 9; the plain number as text for a signal this platform doesn't name."""
    try:
        return _signal.Signals(number).name
    except ValueError:
        return str(number)


def exit_code(event: Exited) -> int:
    """The process' own exit code; ``-N`` if signal N killed it."""
    return event.code if event.code is not None else -(event.signal or 0)


@frozen
class ExitStatus:
    """How a job's process ended."""

    exit_code: int
    """The process' own exit code; ``-N`` if signal N killed it."""
    outcome: Outcome
    duration: float
    """Seconds from spawn to exit, measured on the daemon."""
    pipes_held: bool = False
    """A background child kept a pipe open past the drain grace; what it wrote later is lost."""
    cpu_seconds: float = 0.0
    """Processor time that it used, with all that it started and waited for."""
    max_rss_bytes: int = 0
    """The most memory that one of its processes had resident; at least that of what starts processes, 15 MB."""
    limits: Limits = NO_LIMITS
    """What it was held to: the least of what was asked for here and of what is allowed there."""
    limit: str | None = None
    """Where `outcome` is OUT_OF_MEMORY or LIMIT_EXCEEDED: which of `limits` it went beyond."""

    @classmethod
    def from_event(cls, event: Exited) -> ExitStatus:
        """The status in an Exited event."""
        return cls(
            exit_code=exit_code(event),
            outcome=event.outcome,
            duration=event.seconds,
            pipes_held=event.pipes_held,
            cpu_seconds=event.cpu_seconds,
            max_rss_bytes=event.max_rss_bytes,
            limits=event.limits,
            limit=event.limit or None,
        )

    @property
    def signal(self) -> str | None:
        """Name of the signal that killed the process (``"SIGTERM"``), or None."""
        return signal_name(-self.exit_code) if self.exit_code < 0 else None

    @property
    def success(self) -> bool:
        """It ended by itself with exit code 0."""
        return self.exit_code == 0 and self.outcome is _EXITED


def _shown(content: bytes) -> str:
    """The output itself, or how it begins and ends."""
    if len(content) <= _SHOWN:
        return repr(content.decode("utf-8", "replace"))
    head, tail = content[: _SHOWN // 2], content[-_SHOWN // 2 :]
    return f"{_shown(head)} ... {_shown(tail)} ({len(content)} bytes)"


@frozen(repr=False)
class CommandResult:
    """What one command produced and how it ended."""

    stdout_bytes: bytes
    """Standard output; at most `max_output` bytes, then head and tail with a line between them."""
    stderr_bytes: bytes
    exit_code: int
    """The process' own exit code; ``-N`` if signal N killed it."""
    outcome: Outcome
    duration: float
    """Seconds from spawn to exit, measured on the daemon."""
    stdout_total: int
    """Bytes written to standard output, kept or not."""
    stderr_total: int
    truncated: bool
    """One of the streams was larger than `max_output`; or a part of it was lost, as somebody took it off the
    daemon's disk."""
    pipes_held: bool
    """A background child kept a pipe open past the drain grace; what it wrote later is lost."""
    job_id: str
    cpu_seconds: float = 0.0
    """Processor time that it used, with all that it started and waited for."""
    max_rss_bytes: int = 0
    """The most memory that one of its processes had resident; at least that of what starts processes, 15 MB."""
    limits: Limits = NO_LIMITS
    """What it was held to: the least of what was asked for here and of what is allowed there."""
    limit: str | None = None
    """Where `outcome` is OUT_OF_MEMORY or LIMIT_EXCEEDED: which of `limits` it went beyond."""

    def __repr__(self) -> str:
        unusual = [name for name in ("truncated", "pipes_held") if getattr(self, name)]
        return (
            f"{type(self).__name__}(exit_code={self.exit_code}, outcome={self.outcome.value!r}, "
            f"stdout={_shown(self.stdout_bytes)}, stderr={_shown(self.stderr_bytes)}, "
            f"duration={self.duration:.6g}{''.join(f', {name}=True' for name in unusual)}, "
            f"{'' if self.limit is None else f'limit={self.limit!r}, '}job_id={self.job_id!r})"
        )

    @property
    def stdout(self) -> str:
        """Standard output as text: UTF-8, undecodable bytes replaced. Decoded at each access."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text: UTF-8, undecodable bytes replaced. Decoded at each access."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def signal(self) -> str | None:
        """Name of the signal that killed the process (``"SIGTERM"``), or None."""
        return signal_name(-self.exit_code) if self.exit_code < 0 else None

    @property
    def success(self) -> bool:
        """It ended by itself with exit code 0."""
        return self.exit_code == 0 and self.outcome is _EXITED

    @property
    def duration_ms(self) -> int:
        """`duration` in whole milliseconds."""
        return round(self.duration * 1000)


class Collector:
    """Keeps the first and the last half of `limit` bytes of a stream of any length.

    In one run of memory, which becomes the result as it is, if nothing had to be left out; else what is behind the
    first half is a ring.
    """

    __slots__ = ("_head", "_kept", "_limit", "_written", "total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head = limit - limit // 2
        """Bytes at the beginning that nothing is written over."""
        self._kept: BytesIO | None = None
        """`_limit` bytes at most; None: nothing has come yet, as mostly on one of the streams."""
        self._written = 0
        """Bytes that went there, written over or not."""
        self.total = 0

    def add(self, chunk: Buffer | Gap) -> None:
        """The next bytes of the stream, or some that are gone: with them all goes from the head to there."""
        if isinstance(chunk, Gap):
            self.total += chunk.end - chunk.start
            self._written = self._head = min(self._head, self._written)
            return
        size = len(chunk)
        self.total += size
        if self._kept is None:
            self._kept = BytesIO()
        if self._written + size <= self._limit:
            self._kept.seek(self._written)
            self._kept.write(chunk)
            self._written += size
        else:
            self._write_round(self._kept, memoryview(chunk))

    def _write_round(self, kept: BytesIO, chunk: memoryview) -> None:
        """Write what goes beyond the limit."""
        head, limit = self._head, self._limit
        if self._written < head:
            kept.seek(self._written)
            kept.write(chunk[: head - self._written])
            chunk = chunk[head - self._written :]
            self._written = head
        if head < limit:
            skipped = max(0, len(chunk) - (limit - head))
            position = self._place(self._written + skipped)
            self._written += len(chunk)
            chunk = chunk[skipped:]
            kept.seek(position)
            kept.write(chunk[: limit - position])
            kept.seek(head)
            kept.write(chunk[limit - position :])

    def _place(self, offset: int) -> int:
        """Where the byte is, or will be, behind so many that were written: all of the head was."""
        return self._head + (offset - self._head) % (self._limit - self._head)

    @property
    def truncated(self) -> bool:
        """Something was left out."""
        return self.total > min(self._written, self._limit)

    def result(self) -> bytes:
        """What was kept; a line in the middle says how much was not."""
        content = b"" if self._kept is None else self._kept.getvalue()  # which is no copy
        if not self.truncated:
            return content
        head = min(self._head, self._written)
        kept = min(self._written, self._limit)
        turn = self._place(self._written) if self._written > self._limit else head
        with memoryview(content) as view:
            parts = view[:head], _OMITTED % (self.total - kept), view[turn:kept], view[head:turn]
            return b"".join(parts)
