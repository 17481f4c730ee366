"""What tables and JSON say of daemons and jobs."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from fleet_examples import DAEMON, JOB

from sandd import DaemonState, JobState, Outcome
from sandd.fleet import tables

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC's."""
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_columns_stand_under_each_other() -> None:
    """Each as wide as its widest cell, also of characters that are two columns wide; nothing trails."""
    lines = tables.Layout().lines([("A", "B", "C"), ("long", "", "x"), ("\u65e5\u672c", "bb", "")])
    assert lines == ["A     B   C", "long      x", "\u65e5\u672c  bb"]


def test_columns_stay_where_they_are() -> None:
    """Rows that come later stand under the earlier ones, until one is wider."""
    layout = tables.Layout()
    assert layout.lines([("NAME", "X")]) == ["NAME  X"]
    assert layout.lines([("a", "b")]) == ["a     b"]
    assert layout.lines([("longer", "b"), ("a", "b")]) == ["longer  b", "a       b"]
    assert layout.lines([]) == []


@pytest.mark.usefixtures("in_utc")
def test_a_daemon_is_a_row_and_an_object() -> None:
    """With its labels in order; in JSON there is all that it has said of itself."""
    row = tables.daemon_row(DAEMON, DaemonState.AWAY)
    assert dict(zip(tables.DAEMON_HEADER, row, strict=True)) == {
        "DAEMON": "worker-1",
        "STATE": "away",
        "PLATFORM": "linux/x86_64",
        "VERSION": "0.1.0",
        "CONNECTED": "2001-09-09 01:46:40",
        "LABELS": "env=prod,zone=b",
    }
    told = json.loads(json.dumps(tables.daemon_object(DAEMON, DaemonState.ONLINE)))
    assert told["state"] == "online"
    assert told["labels"] == {"env": "prod", "zone": "b"}
    assert told["connected_at"] == 1_000_000_000.25
    assert {"id", "platform", "arch", "hostname", "version", "instance"} < told.keys()


def test_nothing_that_a_daemon_says_can_drive_the_terminal() -> None:
    """Escape sequences in its version or its jobs' commands are shown as what they are."""
    row = tables.daemon_row(evolve(DAEMON, version="1\x1b[2J", arch="a\nb"), DaemonState.ONLINE)
    row += tables.job_row("w", evolve(JOB, command="echo \x1b]0;x\x07"))
    row += tables.unanswered_row("w", "no\x1bway")
    assert all(cell.isprintable() for cell in row)
    assert "1\\x1b[2J" in row


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({}, "running"),
        ({"state": JobState.QUEUED}, "queued"),
        ({"outcome": Outcome.EXITED, "exit_code": 3}, "exit 3"),
        ({"outcome": Outcome.SIGNALED, "exit_code": -9}, "SIGKILL"),
        ({"outcome": Outcome.TIMED_OUT, "exit_code": -15}, "timed out"),
        ({"outcome": Outcome.LEASE_EXPIRED, "exit_code": -15}, "lease expired"),
        ({"outcome": Outcome.CANCELLED, "exit_code": 0}, "cancelled"),
        ({"failure": "spawn_failed: no such program: nope"}, "spawn failed"),
        ({"failure": ""}, "lost"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_a_job_stands(changes: dict[str, Any], stands: str) -> None:
    """Its state, or how it ended."""
    state = JobState.ENDED if changes and "state" not in changes else JobState.RUNNING
    assert tables.how_it_stands(evolve(JOB, **{"state": state} | changes)) == stands


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, "held"),
        ({"viewers": 2}, "held +2"),
        ({"owned": False}, "leased"),
        ({"owned": False, "detached": True}, "detached"),
        ({"owned": True, "detached": True}, "held"),
        ({"state": JobState.ENDED, "failure": "x", "viewers": 1}, "+1"),
        ({"state": JobState.ENDED, "failure": "x"}, ""),
    ],
    ids=str,
)
def test_who_holds_a_job(changes: dict[str, Any], held: str) -> None:
    """Somebody, nobody with its lease running, or nobody as it needs none; and who looks on."""
    assert tables.job_row("w", evolve(JOB, **changes))[3] == held


def test_a_job_is_a_row_and_an_object() -> None:
    """The row is short; the object has all."""
    assert tables.job_row("w", JOB) == ("w/j1", "running", "1m15s", "held", "make test")
    assert tables.job_row("w", evolve(JOB, command=""))[4] == "(login shell)"
    long = tables.job_row("w", evolve(JOB, command="x" * 1000))[4]
    assert long == "x" * tables.MOST_OF_A_COMMAND + "..."
    assert tables.job_object("w", JOB).keys() >= {"daemon", "id", "state", "command", "exit_code"}
    assert tables.unanswered_object("w", "away") == {
        "daemon": "w",
        "id": None,
        "unanswered": "away",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m0s"),
        (3599, "59m59s"),
        (3661, "1h1m"),
        (90_000, "1d1h"),
        (8_640_000, "100d0h"),
    ],
)
def test_spans_are_short(seconds: float, text: str) -> None:
    """Two units, and no more."""
    assert tables.span(seconds) == text
