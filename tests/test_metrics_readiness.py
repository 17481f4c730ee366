"""Whether a state directory takes writes: asked in a thread, bounded, and shared by all who ask."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import trio
import trio.testing

from sandd._core.metrics import readiness
from sandd._core.metrics.readiness import WritableDirectory

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_directory_that_takes_writes_is_no_problem(tmp_path: Path) -> None:
    """And nothing is left in it."""
    assert await WritableDirectory(tmp_path).problem() is None
    assert os.listdir(tmp_path) == []


async def test_one_that_takes_none_says_why(tmp_path: Path) -> None:
    """In the system's words."""
    problem = await WritableDirectory(tmp_path / "missing").problem()
    assert problem == "the state directory can't be written: No such file or directory"


async def test_a_disk_that_is_full_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the sync finds out; the file is taken away all the same."""

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert await WritableDirectory(tmp_path).problem() == (
        "the state directory can't be written: No space left on device"
    )
    assert os.listdir(tmp_path) == []


async def test_a_disk_that_hangs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps one thread, whoever asks how often; and when it is back, all is well."""
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    released, calls = threading.Event(), []

    def hang(_directory: Path) -> str | None:
        calls.append(None)
        released.wait()
        return None

    directory = WritableDirectory(tmp_path)
    with monkeypatch.context() as hanging:
        hanging.setattr(readiness, "_probe", hang)
        try:
            for _ in range(3):
                problem = await directory.problem()
                assert problem is not None
                assert "takes more than 0.05 s to write there" in problem
            assert len(calls) == 1
        finally:
            released.set()
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 60.0)
    assert await directory.problem() is None


async def test_however_many_ask_the_disk_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a second."""
    calls: list[None] = []
    monkeypatch.setattr(readiness, "_probe", lambda _: calls.append(None))
    directory = WritableDirectory(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(directory.problem)
    assert len(calls) == 1


async def test_what_took_long_to_find_out_is_good_for_all_who_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    """With a disk that hangs each look takes longer than an answer is good for: nobody waits for two."""
    looks = []

    async def look(_: WritableDirectory) -> str | None:
        looks.append(None)
        mock_clock.jump(5 * readiness.FRESH_SECONDS)
        await trio.lowlevel.checkpoint()
        return "it hangs"

    monkeypatch.setattr(WritableDirectory, "_look", look)
    directory = WritableDirectory(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(directory.problem)
    assert await directory.problem() == "it hangs"
    assert len(looks) == 1


async def test_who_gives_up_leaves_the_question_to_the_next(tmp_path: Path) -> None:
    """Cancelled while it waits for the disk."""
    directory = WritableDirectory(tmp_path)
    with trio.move_on_after(0) as scope:
        await directory.problem()
    assert scope.cancelled_caught
    assert await directory.problem() is None
    assert os.listdir(tmp_path) == []
