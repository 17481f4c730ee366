"""Hearing of an exit without reaping, on each system, and with what a system may lack."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from process_tools import linux_only, until_sync

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes import exit_watch
from sandd._core.processes.exit_watch import ExitWatch, WaitStatus, open_exit_watch, peek

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    """Starts a shell script as a child that nobody but the test reaps."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(script: str) -> int:
        processes.append(subprocess.Popen(["/bin/sh", "-c", script]))
        return processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ended_within(watch: ExitWatch, count: int) -> dict[int, WaitStatus]:
    """What the watch tells until it has told of so many."""
    told: dict[int, WaitStatus] = {}

    def look() -> bool:
        told.update(watch.ended())
        return len(told) == count

    until_sync(look)
    return told


def test_each_exit_is_told_once_and_the_zombie_stays(start: Callable[[str], int]) -> None:
    """Codes and signals are right, and whoever owns the child can still wait for it."""
    watch = open_exit_watch()
    with_code, with_signal, running = start("exit 7"), start("kill -9 $$"), start("exec sleep 1000")
    for pid in (with_code, with_signal, running):
        watch.add(pid)
    told = ended_within(watch, 2)
    assert told == {with_code: WaitStatus(7, None), with_signal: WaitStatus(None, signal.SIGKILL)}
    assert watch.ended() == []
    assert os.waitpid(with_code, 0)[1] == 7 << 8


@linux_only
def test_watched_children_are_told_though_others_lie_dead(start: Callable[[str], int]) -> None:
    """One that nobody reaps is what the kernel tells again and again; it hides none, and the watch knows of it."""
    watch = open_exit_watch()
    stranger, first, second, running = map(start, ["exit 1", "exit 3", "exit 4", "exec sleep 1000"])
    for pid in (stranger, first, second):
        until_sync(lambda pid=pid: peek(pid) is not None)  # type: ignore[misc]
    for pid in (first, second, running):
        watch.add(pid)
    assert dict(watch.ended()) == {first: WaitStatus(3, None), second: WaitStatus(4, None)}
    assert watch.others_are_dead
    assert watch.ended() == []
    for pid in (stranger, first, second):
        os.waitpid(pid, 0)
    assert watch.ended() == []
    assert not watch.others_are_dead


@linux_only
def test_who_is_reaped_in_turn_is_told_without_asking_each(
    start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many questions as dead children, and one more; how many live makes no difference."""
    watch = open_exit_watch()
    pids = [start(script) for script in ("exit 3", "exit 4", *["exec sleep 1000"] * 5)]
    for pid in pids[:2]:
        until_sync(lambda pid=pid: peek(pid) is not None)  # type: ignore[misc]
    monkeypatch.setattr(exit_watch, "peek", None)
    for pid in pids:
        watch.add(pid)
    told = []
    while ended := watch.ended():
        told += ended
        os.waitpid(ended[0][0], 0)
    assert dict(told) == {pids[0]: WaitStatus(3, None), pids[1]: WaitStatus(4, None)}


@linux_only
@pytest.mark.parametrize("others", [[], ["exit 1"], ["exec sleep 1000"]])
def test_child_that_somebody_reaped_is_dropped(
    start: Callable[[str], int], others: list[str]
) -> None:
    """A job that was given up may be reaped as an orphan before its watch looks."""
    watch = open_exit_watch()
    pid = start("exit 3")
    watch.add(pid)
    for script in others:
        start(script)
    until_sync(lambda: peek(pid) is not None)
    os.waitpid(pid, 0)
    assert watch.ended() == []


def test_peek_leaves_the_status_for_the_reaper(start: Callable[[str], int]) -> None:
    """None while it runs; afterwards the same answer every time."""
    pid = start("exec sleep 1000")
    assert peek(pid) is None
    os.kill(pid, signal.SIGTERM)
    until_sync(lambda: peek(pid) is not None)
    assert peek(pid) == peek(pid) == WaitStatus(None, signal.SIGTERM)


@pytest.mark.parametrize(
    ("script", "expected"),
    [("exit 5", WaitStatus(5, None)), ("kill -TERM $$", WaitStatus(None, signal.SIGTERM))],
)
def test_peek_without_waitid_reaps(
    start: Callable[[str], int],
    script: str,
    expected: WaitStatus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS with Python before 3.13 can't look without reaping; the status is right all the same."""
    monkeypatch.delattr(os, "waitid", raising=False)
    pid = start(script)
    seen = None
    while seen is None:
        seen = peek(pid)
        time.sleep(0.001)
    assert seen == expected
    with pytest.raises(ChildProcessError):
        peek(pid)


def test_systems_without_a_watch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error, not a hang."""
    monkeypatch.setattr(exit_watch, "sys", SimpleNamespace(platform="sunos5"))
    with pytest.raises(NotImplementedError, match="sunos5"):
        open_exit_watch()


# ---- macOS, with a kqueue made up -----------------------------------------------------------------


class FakeQueue:
    """Knows what was asked for, and refuses processes that have exited, as the real one does."""

    def __init__(self) -> None:
        self.asked: list[dict[str, int]] = []
        self.drained = 0

    def fileno(self) -> int:
        """A number that select(2) is not asked about."""
        return 99

    def control(self, changes: list[dict[str, int]] | None, *_: float) -> list[object]:
        """Take changes, or tell events: none, as the watch asks everybody anyway."""
        if changes is None:
            self.drained += 1
            return []
        self.asked += changes
        if peek(changes[0]["ident"]) is not None:
            raise ProcessLookupError
        return []


@pytest.fixture
def kqueue_watch(monkeypatch: pytest.MonkeyPatch) -> ExitWatch:
    """The watch for macOS, from a copy of the module that believes to be there."""
    for name in ("KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_EV_ONESHOT", "KQ_NOTE_EXIT"):
        monkeypatch.setattr(select, name, 1 << len(name), raising=False)
    monkeypatch.setattr(select, "kqueue", FakeQueue, raising=False)
    monkeypatch.setattr(
        select, "kevent", lambda ident, **fields: {"ident": ident, **fields}, raising=False
    )
    spec = importlib.util.spec_from_file_location(exit_watch.__name__, exit_watch.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        spec.loader.exec_module(module)
        watch: ExitWatch = module.open_exit_watch()
    return watch


def test_kqueue_watch_tells_each_exit_once(
    kqueue_watch: ExitWatch, start: Callable[[str], int]
) -> None:
    """Also of a child that had exited before it was added; and it needs no descriptor for each."""
    early = start("exit 4")
    until_sync(lambda: peek(early) is not None)
    kqueue_watch.add(early)
    late = start("kill -9 $$")
    kqueue_watch.add(late)
    kqueue_watch.add(start("exec sleep 1000"))
    told = ended_within(kqueue_watch, 2)
    assert {pid: tuple(status) for pid, status in told.items()} == {
        early: (4, None),
        late: (None, signal.SIGKILL),
    }
    assert kqueue_watch.ended() == []
    assert kqueue_watch.descriptor == 99
