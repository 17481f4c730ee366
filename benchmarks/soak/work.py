"""What the jobs of a soak do, and whether they did it once and told all of it."""

from __future__ import annotations

import shlex
from pathlib import Path  # noqa: TC003 - attrs looks at it
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    import sandd

PAUSE = 0.05
"""Seconds between two lines of a long job."""


def name_of(number: int) -> str:
    """Of a daemon."""
    return f"real-{number}"


@frozen
class LongJob:
    """Counts, slowly, and leaves a mark each time that it is started."""

    id: str
    state: Path
    lines: int

    @property
    def command(self) -> str:
        """For the shell."""
        mark = shlex.quote(str(self.mark))
        return (
            f"echo started >> {mark}; i=0; while [ $i -lt {self.lines} ]; "
            f"do echo {self.id} $i; i=$((i+1)); sleep {PAUSE}; done"
        )

    @property
    def mark(self) -> Path:
        """Has a line for each start."""
        return self.state / "started" / self.id

    async def read(self, process: sandd.Process) -> str | None:
        """Read it to its end; what is wrong with it, if anything is."""
        output = b""
        async for chunk in process.stdout:
            output += chunk
        status = await process.wait()
        expected = "".join(f"{self.id} {number}\n" for number in range(self.lines)).encode()
        starts = self.mark.read_text().count("started")
        if output != expected or status.exit_code != 0 or starts != 1:
            return (
                f"{self.id}: {len(output)} of {len(expected)} bytes, exit code {status.exit_code}, "
                f"{starts} starts"
            )
        return None
