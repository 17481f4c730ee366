"""Each job of a router is counted once, whatever is heard of it, how often, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd._core.metrics.job_census import JobCensus
from sandd._core.metrics.tallies import Tally


@pytest.fixture
def tally() -> Tally:
    """Whose the jobs are."""
    return Tally()


@pytest.fixture
def census() -> JobCensus:
    """One that has room for three."""
    return JobCensus(most_jobs=3)


def test_an_ordinary_job_is_counted_once(census: JobCensus, tally: Tally) -> None:
    """Its start, its end, and nothing is kept when it was left."""
    job = census.asked("k", "d", tally, is_reusable=False)
    assert (tally.jobs_asked, tally.jobs_running) == (1, 1)
    census.ended(job, "exited")
    census.ended(job, "exited")
    census.left("k")
    census.unheard(job)
    assert (tally.jobs_running, tally.jobs_ended, len(census)) == (0, {"exited": 1}, 0)


def test_a_start_that_is_said_again_is_the_same(census: JobCensus, tally: Tally) -> None:
    """After a cut a client asks again; an end that others hear again is none, either."""
    job = census.asked("k", "d", tally, is_reusable=True)
    assert census.asked("k", "d", tally, is_reusable=True) is job
    census.ended(job, "exited")
    assert census.asked("k", "d", tally, is_reusable=False) is job
    assert (tally.jobs_asked, tally.jobs_ended) == (1, {"exited": 1})


def test_a_chosen_id_is_another_job_when_the_first_has_ended(
    census: JobCensus, tally: Tally
) -> None:
    """It may be used again."""
    job = census.asked("k", "d", tally, is_reusable=True)
    census.ended(job, "exited")
    assert census.asked("k", "d", tally, is_reusable=True) is not job
    assert (tally.jobs_asked, tally.jobs_running) == (2, 1)


def test_a_job_that_is_left_counts_until_its_end_is_heard(census: JobCensus, tally: Tally) -> None:
    """Its owner has it killed, and waits for that on its channel."""
    job = census.asked("k", "d", tally, is_reusable=False)
    census.left("k")
    assert tally.jobs_running == 1
    census.ended(job, "cancelled")
    assert (tally.jobs_ended, len(census)) == ({"cancelled": 1}, 0)


def test_of_a_job_that_is_left_by_all_nothing_is_heard(census: JobCensus, tally: Tally) -> None:
    """Whether its channel closes before or behind that."""
    first = census.asked("a", "d", tally, is_reusable=False)
    census.left("a")
    census.unheard(first)
    second = census.asked("b", "d", tally, is_reusable=False)
    census.unheard(second)
    assert tally.jobs_running == 1
    census.left("b")
    census.left("b")
    assert (tally.jobs_ended, tally.jobs_running, len(census)) == ({"unheard": 2}, 0, 0)


def test_with_its_daemon_all_its_jobs_are_lost(census: JobCensus, tally: Tally) -> None:
    """And nobody else's; those that had ended have ended."""
    ended = census.asked("a", "d", tally, is_reusable=False)
    census.ended(ended, "exited")
    census.asked("b", "d", tally, is_reusable=False)
    census.asked("c", "other", tally, is_reusable=False)
    census.lost("d")
    census.lost("d")
    assert (tally.jobs_ended, tally.jobs_running) == ({"exited": 1, "lost": 1}, 1)
    assert census.get("c") is not None


def test_the_oldest_makes_room(census: JobCensus, tally: Tally) -> None:
    """There is a bound, and what is pushed out does not count as running for ever."""
    for key in "abcd":
        census.asked(key, "d", tally, is_reusable=False)
    assert (len(census), tally.jobs_running, tally.jobs_ended) == (3, 3, {"unheard": 1})
    assert census.get("a") is None


def test_a_job_that_is_refused_does_not_run(census: JobCensus, tally: Tally) -> None:
    """The daemon said so."""
    census.refused(census.asked("a", "d", tally, is_reusable=False))
    assert (tally.jobs_running, tally.jobs_ended, len(census)) == (0, {"refused": 1}, 0)


def test_a_job_that_was_there_and_is_no_more_has_ended_unheard(
    census: JobCensus, tally: Tally
) -> None:
    """It was not refused."""
    job = census.asked("a", "d", tally, is_reusable=False)
    job.is_there = True
    census.refused(job)
    assert (tally.jobs_running, tally.jobs_ended, len(census)) == (0, {"unheard": 1}, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["asked", "heard", "unheard", "ended", "left", "lost", "refused"]),
            st.sampled_from("abcde"),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_numbers_add_up(steps: list[tuple[str, str]]) -> None:
    """What was asked for has ended or runs, nothing is negative, and what is kept is bounded."""
    census, tally = JobCensus(most_jobs=3), Tally()
    for step, key in steps:
        job = census.get(key)
        match step:
            case "asked":
                census.asked(key, f"d{key < 'c'}", tally, is_reusable=key == "a")
            case "left":
                census.left(key)
            case "lost":
                census.lost(f"d{key < 'c'}")
            case "ended" if job is not None:
                census.ended(job, "exited")
            case "refused" if job is not None:
                census.refused(job)
            case "heard":
                census.attached(key)
            case "unheard" if job is not None and job.listeners:
                census.unheard(job)
        assert tally.jobs_running + sum(tally.jobs_ended.values()) == tally.jobs_asked
        assert 0 <= tally.jobs_running <= len(census) <= 3
        assert sum(map(len, census._by_daemon.values())) == len(census)
        assert tally.jobs_running == sum(not each.has_ended for each in census._jobs.values())
