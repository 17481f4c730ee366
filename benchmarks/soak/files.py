"""A large file up and down over connections that are cut at random bytes, and many small ones.

All must be there, with its hash; nothing may have been sent from the beginning again; and nothing may
have grown.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import frozen

import sandd
from benchmarks.files import make_large, make_small
from benchmarks.fleet import open_keeper, until_signal, wait_online
from benchmarks.soak.findings import MIB, Findings, Watched
from sandd.testing import DOWN, UP, open_fault_proxy

if TYPE_CHECKING:
    from sandd.testing import Direction, FaultProxy

ALLOWED_GROWTH = 30 * MIB
OVERHEAD = 1.01
"""Heads of frames and messages, and what the two sides say besides."""
HELD = MIB
"""Bytes that the proxy holds at most: so much of what has passed it never arrives when it cuts, and is sent again."""
"""What goes over the connection for each byte of a file, at most: frames, and what was under way at a cut."""


@frozen
class Plan:
    """How much of everything."""

    size: int
    """Bytes of the large file."""
    small: int
    """How many small ones."""
    cuts: int
    """In each direction of the file."""


FULL = Plan(size=1024 * MIB, small=10_000, cuts=20)
QUICK = Plan(size=24 * MIB, small=300, cuts=4)


async def soak(plan: Plan, seed: int, findings: Findings) -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="sandd-soak-") as name:
        directory = Path(name)
        source = directory / "source"
        await trio.to_thread.run_sync(make_large, source, plan.size)
        expected = await trio.to_thread.run_sync(_sha256, source)
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(controller.address, seed=seed, buffer_bytes=HELD) as proxy,
            open_keeper(proxy.url, "--reconnect-max", "0.5") as keeper,
            until_signal(),
        ):
            pid, log = await keeper.start("soak")
            worker = await wait_online(controller, "soak", log)
            warm = directory / "warm"
            await trio.to_thread.run_sync(make_large, warm, 8 * MIB)
            await worker.upload(warm, f"{warm}.up")
            await worker.download(f"{warm}.up", f"{warm}.down")
            proxy.cut()  # so that all is in memory that ever will be: what writes log lines, too
            await worker.upload(warm, f"{warm}.again")
            both = [Watched("controller", os.getpid()), Watched("daemon", pid)]
            async with trio.open_nursery() as nursery:
                for watched in both:
                    nursery.start_soon(watched.watch)
                there, back = directory / "there", directory / "back"
                with _Cuts(plan, proxy, DOWN, findings) as cuts:
                    result = await worker.upload(source, str(there))
                    cuts.judge("upload", result, there, expected)
                with _Cuts(plan, proxy, UP, findings) as cuts:
                    result = await worker.download(str(there), back)
                    cuts.judge("download", result, back, expected)
                await _small(plan, worker, directory, findings)
                nursery.cancel_scope.cancel()
            left = [name for name in os.listdir(directory) if name.startswith(".")]
            findings.check(f"no file in the making is left: {left}", not left)
            for watched in both:
                await watched.judge(findings, allowed_growth=ALLOWED_GROWTH)


class _Cuts:
    """One way of the file, and what became of it."""

    def __init__(
        self, plan: Plan, proxy: FaultProxy, direction: Direction, findings: Findings
    ) -> None:
        self._plan = plan
        self._proxy = proxy
        self._direction = direction
        self._findings = findings

    def __enter__(self) -> _Cuts:
        self._before = self._proxy.passed[self._direction], self._proxy.cuts
        # Not among the last bytes: each is to be reached.
        self._proxy.cut_at_random(
            self._plan.cuts, self._direction, within=self._plan.size * 9 // 10
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.forget_cuts()

    def judge(self, way: str, result: sandd.TransferResult, file: Path, expected: str) -> None:
        """Print it."""
        passed, cuts = self._before
        passed = self._proxy.passed[self._direction] - passed
        size = self._plan.size
        self._findings.figure(
            way,
            f"{size:,} bytes in {result.seconds:.1f} s, {size / 1e6 / result.seconds:.0f} MB/s, "
            f"over {self._proxy.cuts - cuts} cuts; {passed:,} bytes went through the proxy",
        )
        self._findings.check(
            f"{way}: all {self._plan.cuts} positions were reached", not self._proxy.cuts_ahead
        )
        self._findings.check(f"{way}: the hash is told", result.sha256 == expected)
        self._findings.check(f"{way}: the hash is that of the copy", _sha256(file) == expected)
        self._findings.check(
            f"{way}: nothing was sent from the beginning again",
            passed <= size * OVERHEAD + HELD * self._plan.cuts and result.bytes == size,
        )


async def _small(plan: Plan, worker: sandd.Daemon, directory: Path, findings: Findings) -> None:
    source, there, back = (directory / f"small-{name}" for name in ("source", "there", "back"))
    await trio.to_thread.run_sync(make_small, source, plan.small)
    up = await worker.upload(source, str(there))
    down = await worker.download(str(there), back)
    again = await worker.upload(source, str(there), update=True)
    findings.figure(
        f"{plan.small:,} small files",
        f"{plan.small / up.seconds:,.0f}/s up, {plan.small / down.seconds:,.0f}/s down, "
        f"{plan.small / again.seconds:,.0f}/s skipped",
    )
    for way, copy in (("up", there), ("down", back)):
        difference = await trio.to_thread.run_sync(_difference, source, copy)
        findings.check(f"all small files are equal {way}{difference}", not difference)
    findings.check(
        "what is there is not sent again", (again.bytes, again.skipped) == (0, plan.small)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(one: Path, other: Path) -> str:
    """The first difference between two trees: contents, permissions, times; "" where there is none."""
    for directory, directories, names in os.walk(one):
        here = Path(directory)
        there = other / here.relative_to(one)
        if sorted(os.listdir(there)) != sorted([*directories, *names]):
            return f": {there} has other entries"
        for name in (*directories, *names):
            mine, theirs = (here / name).stat(), (there / name).stat()
            if (mine.st_mode, mine.st_mtime_ns) != (theirs.st_mode, theirs.st_mtime_ns):
                return f": {there / name} has another mode or time"
        unequal = filecmp.cmpfiles(here, there, names, shallow=False)[1:]
        if any(unequal):
            return f": {there} has other contents: {unequal}"
    return ""
