"""How busy daemons and jobs are, as rows and as objects: out of what two looks have told."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from fleet_examples import DAEMON
from fleet_examples import JOB as RUNNING

from sandd import (
    DaemonState,
    DaemonStatistics,
    JobStatistics,
    KeptOutput,
)
from sandd.fleet import busy
from sandd.fleet.busy import Gauge, Round

INFO = evolve(DAEMON, id="w\x1b1", connected_at=0.0)
JOB = evolve(
    RUNNING,
    command=("make", "te\nst"),
    kept={"stdout": KeptOutput(2000, 5000), "stderr": KeptOutput(0, 120)},
)
TOLD = DaemonStatistics(
    uptime=100.0,
    cpus=4,
    load=(1.5, 1.0, 0.5),
    busy_seconds=50.0,
    memory_bytes=8 << 30,
    memory_available_bytes=6 << 30,
    cpu_seconds=1.0,
    rss_bytes=30 << 20,
    jobs_running=2,
    jobs_queued=0,
    bytes_in=1000,
    bytes_out=50_000,
    spool_bytes=0,
    jobs=(JobStatistics(JOB, 10.0, 100 << 20, 3),),
)


def gauge(*told: DaemonStatistics) -> Gauge:
    """One that was told these."""
    made = Gauge()
    for index, each in enumerate(told):
        made.take(each, float(index))
    return made


def later(seconds: float, **changes: Any) -> DaemonStatistics:
    """The next that it tells."""
    return evolve(TOLD, uptime=TOLD.uptime + seconds, **changes)


def test_a_rate_takes_two_looks() -> None:
    """By the daemon's own clock, however long they were under way."""
    assert not gauge(TOLD).has_rates
    line = gauge(TOLD).line(INFO, DaemonState.ONLINE, 5.0)
    assert (line.cpu, line.bytes_in, line.bytes_out) == (None, None, None)
    more = gauge(TOLD, later(2.0, busy_seconds=54.0, bytes_in=3000, bytes_out=50_100))
    assert more.has_rates
    line = more.line(INFO, DaemonState.ONLINE, 5.0)
    assert (line.cpu, line.bytes_in, line.bytes_out) == (50.0, 1000.0, 50.0)
    assert line.memory_used == 2 << 30
    # Its clock and that of its machine are not read at one instant.
    line = gauge(TOLD, later(1.0, busy_seconds=54.1)).line(INFO, DaemonState.ONLINE, 5.0)
    assert line.cpu == 100.0


def test_the_same_look_twice_changes_no_rate() -> None:
    """As two who ask at once may be told the same."""
    again = gauge(TOLD, later(2.0, bytes_in=3000), later(2.0, bytes_in=3000))
    assert again.line(INFO, DaemonState.ONLINE, 5.0).bytes_in == 1000.0


def test_what_goes_backwards_is_another_start() -> None:
    """Then there is no rate, and never one below zero."""
    assert not gauge(TOLD, later(-50.0)).has_rates
    line = gauge(TOLD, later(1.0, bytes_in=10, busy_seconds=9.0)).line(
        INFO, DaemonState.ONLINE, 0.0
    )
    assert (line.bytes_in, line.cpu) == (0.0, 0.0)


def test_of_who_is_away_nothing_is_known() -> None:
    """What it said before is no longer true."""
    line = gauge(TOLD, later(1.0)).line(INFO, DaemonState.AWAY, 61.0)
    assert (line.newest, line.unanswered) == (None, "away")
    assert busy.daemon_row(line) == ("w\\x1b1", "away", *"-" * 7, "1m1s")
    silent = Gauge(failure="it may not").line(INFO, DaemonState.ONLINE, 1.0)
    assert busy.daemon_row(silent)[1] == "online (it may not)"
    assert busy.unanswered_row(line)[:2] == ("w\\x1b1/?", "(away)")


def test_a_row_says_it_shortly() -> None:
    """And nothing in it can drive a terminal."""
    told = gauge(TOLD, later(2.0, busy_seconds=54.0, bytes_in=3000, jobs_queued=5))
    line = told.line(INFO, DaemonState.ONLINE, 3700.0)
    assert busy.daemon_row(line) == (
        *("w\\x1b1", "online", "50.0%", "2.0G/8.0G", "1.50", "2+5", "1.0K", "0B", "0B", "1h1m"),
    )
    (job,) = told.job_lines("w1")
    assert busy.job_row(job) == (
        *("w1/j1", "running", "0.0%", "10.0s", "100M", "3", "5.0K", "1m14s", "make te\\nst"),
    )
    long = evolve(job, job=JobStatistics(evolve(JOB, command="x" * 500, started_age=None)))
    row = busy.job_row(long)
    assert row[3:6] == ("-", "-", "-")
    assert row[-2:] == ("-", "x" * 200 + "...")


def test_a_jobs_cpu_counts_processors() -> None:
    """100 is one of them; a job that is new, or whose orphans have gone, has no negative one."""
    jobs = (JobStatistics(JOB, 13.0, 1, 1),)
    (line,) = gauge(TOLD, later(2.0, jobs=jobs)).job_lines("w1")
    assert line.cpu == 150.0
    (line,) = gauge(TOLD, later(2.0, jobs=(JobStatistics(JOB, 9.0),))).job_lines("w1")
    assert line.cpu == 0.0
    (line,) = gauge(evolve(TOLD, jobs=()), later(2.0)).job_lines("w1")
    assert line.cpu is None
    assert Gauge().job_lines("w1") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (None, "-"),
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0K"),
            (10_239, "10K"),
            (1 << 20, "1.0M"),
        ),
        *((1.5 * (1 << 30), "1.5G"), (1 << 50, "1024T")),
    ],
)
def test_sizes_have_three_digits(value: float | None, text: str) -> None:
    """In units of 1,024."""
    assert busy.size(value) == text


def test_percentages() -> None:
    """One decimal, below 100."""
    assert [busy.percent(each) for each in (None, 0.04, 99.94, 99.96, 250.0)] == [
        *("-", "0.0%", "99.9%", "100%", "250%")
    ]


def daemon(daemon_id: str, **changes: Any) -> busy.DaemonLine:
    """One line."""
    return gauge(TOLD, later(1.0, **changes)).line(
        evolve(INFO, id=daemon_id), DaemonState.ONLINE, 5.0
    )


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("cpu", {"busy_seconds": 51.0}),
        ("memory", {"memory_available_bytes": 1}),
        ("load", {"load": (9.0, 0.0, 0.0)}),
        ("jobs", {"jobs_running": 9}),
        ("in", {"bytes_in": 2000}),
        ("out", {"bytes_out": 60_000}),
    ],
)
def test_daemons_are_sorted_by_any_key(key: str, changes: dict[str, Any]) -> None:
    """The largest first, equal ones by id, and last of whom nothing is known."""
    lines = [
        daemon("b"),
        Gauge().line(evolve(INFO, id="0"), DaemonState.AWAY, 5.0),
        daemon("a"),
        daemon("z", **changes),
    ]
    assert [each.id for each in busy.sort_daemons(lines, key)] == ["z", "a", "b", "0"]
    assert [each.id for each in busy.sort_daemons(lines, "id")] == ["0", "a", "b", "z"]


def test_jobs_are_sorted_by_any_key() -> None:
    """As daemons are; by id they go by daemon, and by age."""
    small = busy.JobLine("b", JobStatistics(JOB, 1.0, 1, 1), 1.0)
    old = evolve(JOB, age=500.0, started_age=400.0, kept={"stdout": KeptOutput(0, 10_000)})
    large = busy.JobLine("b", JobStatistics(old, 2.0, 2, 2), 2.0)
    unknown = busy.JobLine("a", JobStatistics(evolve(JOB, started_age=None, kept={})))
    lines = [unknown, small, large]
    for key in busy.JOB_SORTS:
        expected = [unknown, large, small] if key == "id" else [large, small, unknown]
        assert busy.sort_jobs(lines, key) == expected, key


def test_objects_have_units_in_their_names() -> None:
    """And null for what isn't known; a daemon whose jobs aren't known has no id of a job."""
    line = daemon("a")
    told = busy.daemon_object(line)
    assert (told["daemon"], told["cpu_percent"], told["rss_bytes"]) == ("a", 0.0, 30 << 20)
    away = gauge(TOLD).line(INFO, DaemonState.AWAY, 1.0)
    told = busy.daemon_object(away)
    assert (told["unanswered"], told["cpus"], told["load"]) == ("away", None, None)
    shown = Round((line, away), tuple(gauge(TOLD).job_lines("a")))
    job, silent = shown.objects
    assert (job["daemon"], job["id"], job["rss_bytes"], job["output_bytes"]) == (
        *("a", "j1", 100 << 20, 5120),
    )
    assert silent == {"daemon": INFO.id, "id": None, "unanswered": "away"}
    assert [row[0] for row in shown.rows] == ["a/j1", "w\\x1b1/?"]


def test_a_summary_adds_up() -> None:
    """Of those who are here."""
    away = gauge(TOLD).line(INFO, DaemonState.AWAY, 1.0)
    shown = Round((daemon("a", bytes_in=3000), daemon("b", bytes_in=3000), away))
    assert shown.summary == "2 online, 1 away, 4 jobs running, 3.9K/s in, 0B/s out"
    assert shown.header == busy.DAEMON_HEADER
    assert len(shown.rows) == len(shown.objects) == 3
    assert Round().summary == "no daemons"
