"""Whether a state directory takes writes, as a probe asks: a file is written there, in a thread, and taken away."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from pathlib import Path

PROBE_FILE: Final = ".ready-probe"
PROBE_BYTES: Final = b"sandd asks whether this disk takes anything\n"
PROBE_SECONDS: Final = 2.0
"""For the disk; an orchestrator mostly waits for less, and then asks again."""
FRESH_SECONDS: Final = 1.0
"""An answer is good for so long, however many ask."""


@define(eq=False)
class WritableDirectory:
    """A directory that is to take writes."""

    path: Path
    _latest: tuple[float, str | None] | None = None
    _asking: trio.Lock = field(factory=trio.Lock)
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))
    """One thread at most, as a disk that hangs keeps it."""

    async def problem(self) -> str | None:
        """Why it does not take any; None: it does. Within PROBE_SECONDS."""
        async with self._asking:
            if self._latest is None or trio.current_time() - self._latest[0] >= FRESH_SECONDS:
                found = await self._look()
                # As of its end: with a disk that hangs a look takes longer than it is good for.
                self._latest = (trio.current_time(), found)
            return self._latest[1]

    async def _look(self) -> str | None:
        found: str | None = f"it takes more than {PROBE_SECONDS:g} s to write there"
        with trio.move_on_after(PROBE_SECONDS):
            found = await trio.to_thread.run_sync(
                _probe, self.path, limiter=self._limiter, abandon_on_cancel=True
            )
        return None if found is None else f"the state directory can't be written: {found}"


def _probe(directory: Path) -> str | None:
    path = directory / PROBE_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, PROBE_BYTES)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None
