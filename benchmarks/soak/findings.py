"""What a soak found: its figures, and whether what must hold held."""

from __future__ import annotations

import os
from pathlib import Path

import trio
from attrs import define, field

MIB = 1024 * 1024
LOOK_SECONDS = 0.05
"""Between two looks at what processes hold."""
SETTLE_SECONDS = 5.0
"""For a process on a busy machine to let go of what it needs no more."""


@define
class Findings:
    """Prints each figure and each check as it comes."""

    failures: int = 0

    def figure(self, what: str, value: object) -> None:
        """A number to know, good or bad."""
        print(f"  {what}: {value}", flush=True)

    def check(self, what: str, holds: bool) -> None:
        """Something that must be so."""
        print(f"  {'ok  ' if holds else 'FAIL'} {what}", flush=True)
        self.failures += not holds

    def conclude(self) -> int:
        """The exit code."""
        print("all of it held" if not self.failures else f"{self.failures} did not hold")
        return 1 if self.failures else 0


@define
class Watched:
    """A process whose holdings are looked at all the time."""

    name: str
    pid: int
    resident_at_start: int = field(init=False)
    descriptors_at_start: int = field(init=False)
    most_resident: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.resident_at_start = self.most_resident = self.resident()
        self.descriptors_at_start = self.descriptors()

    def resident(self) -> int:
        """Bytes of memory it has now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.most_resident = max(self.most_resident, self.resident())
            await trio.sleep(LOOK_SECONDS)

    async def judge(self, findings: Findings, *, allowed_growth: int) -> None:
        """Whether memory was flat and no descriptor stayed."""
        start, most = self.resident_at_start / MIB, self.most_resident / MIB
        findings.figure(
            f"{self.name}, resident",
            f"{start:.1f} MiB at the start, {most:.1f} at most, {self.resident() / MIB:.1f} at the end",
        )
        limit = allowed_growth / MIB
        findings.check(f"{self.name}: never more than {limit:.0f} MiB above", most - start <= limit)
        before, after = self.descriptors_at_start, self.descriptors()
        with trio.move_on_after(SETTLE_SECONDS):  # a result is told before its pipes are closed
            while (after := self.descriptors()) > before:  # noqa: ASYNC110 - another process tells no event
                await trio.sleep(LOOK_SECONDS)
        findings.check(f"{self.name}: {before} descriptors before, {after} after", after <= before)
