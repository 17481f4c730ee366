"""What a finished command looks like to its caller, and how its output is gathered within a bound."""

from __future__ import annotations

import signal as _signal
from collections import deque
from typing import Final

from attrs import frozen

from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.streams import Gap
from sandd.wire import KIB, MIB, Exited, Outcome

__all__ = ["CommandResult", "ExitStatus", "Outcome"]

DEFAULT_MAX_OUTPUT: Final = 16 * MIB
"""Bytes kept per stream by `Daemon.run`."""
_OMITTED: Final = b"\n... %d bytes omitted ...\n"
_CHUNK: Final = 64 * KIB
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
        return self.exit_code == 0 and self.outcome is Outcome.EXITED


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
        return self.exit_code == 0 and self.outcome is Outcome.EXITED

    @property
    def duration_ms(self) -> int:
        """`duration` in whole milliseconds."""
        return round(self.duration * 1000)


class Collector:
    """Keeps the first and the last half of `limit` bytes of a stream of any length."""

    def __init__(self, limit: int) -> None:
        self._head = bytearray()
        self._head_limit = limit - limit // 2
        self._tail: deque[bytearray] = deque()
        self._tail_limit = limit // 2
        self._tail_bytes = 0
        self.total = 0

    def add(self, chunk: bytes | Gap) -> None:
        """The next bytes of the stream, or some that are gone: with them all goes from the head to there."""
        if isinstance(chunk, Gap):
            self.total += chunk.end - chunk.start
            self._tail_limit += self._head_limit - len(self._head)
            self._head_limit = len(self._head)
            self._tail.clear()
            self._tail_bytes = 0
            return
        self.total += len(chunk)
        head_room = self._head_limit - len(self._head)
        if head_room:
            self._head += chunk[:head_room]
            chunk = chunk[head_room:]
        if not chunk:
            return
        # Pieces of at least _CHUNK: many tiny chunks cost no more than their bytes.
        if self._tail and len(self._tail[-1]) < _CHUNK:
            self._tail[-1] += chunk
        else:
            self._tail.append(bytearray(chunk))
        self._tail_bytes += len(chunk)
        while self._tail and self._tail_bytes - len(self._tail[0]) >= self._tail_limit:
            self._tail_bytes -= len(self._tail.popleft())

    @property
    def truncated(self) -> bool:
        """Something was left out."""
        return self.total > len(self._head) + min(self._tail_bytes, self._tail_limit)

    def result(self) -> bytes:
        """What was kept; a line in the middle says how much was not."""
        if self.total == len(self._head):
            return bytes(self._head)
        tail = b"".join(self._tail)
        tail = tail[max(0, len(tail) - self._tail_limit) :]
        omitted = self.total - len(self._head) - len(tail)
        return bytes(self._head) + (_OMITTED % omitted if omitted else b"") + tail
