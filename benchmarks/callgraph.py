"""Where a program's time went: cProfile's figures, added up by part of the program. Pure but for `Probe`."""

from __future__ import annotations

import cProfile
import pstats
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import attrs
import trio
from attrs import define, frozen

SYSTEM_CALLS = "system calls"
_CALLING_OUT = ("'posix.", "posix.", "select.", "_socket.", "socket.", "'epoll' objects")
"""What the names of built-in functions that ask the kernel have in them."""

_GENERATED = re.compile(r"<c?attrs generated .*?\bsandd\.(?:_core\.)?(\w+)")


@frozen
class Part:
    """One part of a program."""

    calls: float
    cpu: float
    """Seconds, of the profiler's: what calls more is shown as slower than it is."""


@frozen
class Account:
    """What a program did."""

    turns: int
    """Of trio's loop."""
    steps: int
    """Of trio's tasks, in them."""
    parts: dict[str, Part]

    def per(self, count: int) -> Account:
        """The same for one of so many; turns and steps are rounded."""
        parts = {
            name: Part(part.calls / count, part.cpu / count) for name, part in self.parts.items()
        }
        return Account(round(self.turns / count), round(self.steps / count), parts)


@define(eq=False)
class _Counter(trio.abc.Instrument):
    turns: int = 0
    steps: int = 0

    def after_io_wait(self, timeout: float) -> None:
        self.turns += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


class Probe:
    """Looks at this thread from `start` to `stop`, both within `trio.run`."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile(time.thread_time)
        self._counter = _Counter()

    def start(self) -> None:
        """From now on."""
        trio.lowlevel.add_instrument(self._counter)
        self._profile.enable()

    def stop(self) -> Account:
        """What was done since."""
        self._profile.disable()
        trio.lowlevel.remove_instrument(self._counter)
        return Account(self._counter.turns, self._counter.steps, add_up(self._profile))


def add_up(profile: cProfile.Profile) -> dict[str, Part]:
    """The parts, those that took longest first; nothing of benchmarks/ is in them."""
    calls: Counter[str] = Counter()
    cpu: Counter[str] = Counter()
    stats = cast("Any", pstats.Stats(profile)).stats
    for (file, _, name), (_, count, own, _, callers) in stats.items():
        if file != "~":
            calls[part_of(file)] += count
            cpu[part_of(file)] += own
        elif any(word in name for word in _CALLING_OUT):
            calls[SYSTEM_CALLS] += count
            cpu[SYSTEM_CALLS] += own
        else:  # whatever else is built in belongs to who calls it
            for (caller, _, _), (_, its_count, its_own, _) in callers.items():
                calls[part_of(caller)] += its_count
                cpu[part_of(caller)] += its_own
    own_part = part_of(__file__)
    return {
        name: Part(calls[name], seconds) for name, seconds in cpu.most_common() if name != own_part
    }


def part_of(file: str) -> str:
    """Of one of our modules its name, below sandd/_core its first; of others their package's."""
    if found := _GENERATED.match(file):  # by attrs and cattrs, for one of our classes
        return f"sandd: {found[1]}"
    parts = Path(file).parts
    if "site-packages" in parts and (package := parts[parts.index("site-packages") + 1]) != "sandd":
        return package.removesuffix(".py")
    if "sandd" in parts:
        below = parts[len(parts) - parts[::-1].index("sandd") :]
        below = below[1:] if below[0] == "_core" else below
        return f"sandd: {below[0].removesuffix('.py')}"
    if "benchmarks" in parts:
        return "benchmarks"
    return "Python's library" if file.startswith((sys.base_prefix, "<")) else "built in"


def to_json(account: Account) -> dict[str, Any]:
    """For another process."""
    return attrs.asdict(account)


def from_json(fields: dict[str, Any]) -> Account:
    """From another process."""
    parts = {name: Part(**part) for name, part in fields["parts"].items()}
    return Account(fields["turns"], fields["steps"], parts)
