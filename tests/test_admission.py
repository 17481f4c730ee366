"""`Admission`: a bounded number per second, in order, and nobody is kept out for ever."""

from __future__ import annotations

import heapq
import random
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandd._core.admission import (
    LONGEST_RETRY,
    LONGEST_WAIT,
    Admission,
    ComeBack,
    Place,
)
from sandd._core.link import Backoff

RATES = st.floats(0.1, 10_000)
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 20)), max_size=300)
"""Seconds between two who ask."""


def places(admission: Admission, gaps: list[float]) -> list[float]:
    """When those came in who got a place, in the order in which they asked."""
    now, came = 1000.0, []
    for gap in gaps:
        now += gap
        answer = admission.ask(now)
        if isinstance(answer, Place):
            came.append(now + answer.wait)
    return came


@given(RATES, GAPS)
def test_no_span_of_time_sees_more_than_the_rate_and_a_burst(
    rate: float, gaps: list[float]
) -> None:
    """Whenever and however many ask."""
    admission = Admission(rate)
    came = places(admission, gaps)
    for first in range(len(came)):
        for last in range(first, min(len(came), first + 40)):
            allowed = rate * (came[last] - came[first]) + admission.burst
            assert last - first + 1 <= allowed + 1e-3


@given(RATES, GAPS)
def test_places_come_up_in_the_order_of_asking(rate: float, gaps: list[float]) -> None:
    """Nobody is overtaken by who asked later."""
    came = places(Admission(rate), gaps)
    assert all(one <= other + 1e-9 for one, other in pairwise(came))


@given(RATES, GAPS)
@example(0.1, [0.0] * 10 + [19.0, 7.9, 1.0, 0.0, 0.0, 0.0])  # was 60 s and a rounding error
def test_waits_are_bounded(rate: float, gaps: list[float]) -> None:
    """For a place, and for the time to ask again."""
    admission, now = Admission(rate), 0.0
    for gap in gaps:
        now += gap
        match admission.ask(now):
            case Place(wait):
                assert 0.0 <= wait <= LONGEST_WAIT
            case ComeBack(retry_after):
                assert 0.0 < retry_after <= LONGEST_RETRY


def test_a_few_never_wait() -> None:
    """After a quiet time a quarter of a second's worth comes in at once, and at least one."""
    admission = Admission(200.0)
    for start in (0.0, 100.0):
        waits = [
            answer.wait for _ in range(51) if isinstance(answer := admission.ask(start), Place)
        ]
        assert waits == pytest.approx([0.0] * 50 + [1 / 200])
    slow = Admission(0.5)
    assert [slow.ask(0.0) for _ in range(3)] == [Place(0.0), Place(2.0), Place(4.0)]
    assert isinstance(slow.ask(0.0), ComeBack)


def test_who_finds_no_place_is_told_a_time_of_its_own() -> None:
    """At the pace at which places come up, so that they don't all come back at once."""
    admission = Admission(100.0)
    while isinstance(answer := admission.ask(0.0), Place):
        pass
    assert answer == ComeBack(LONGEST_WAIT / 2)
    later = [admission.ask(0.0) for _ in range(200)]
    times = [each.retry_after for each in later if isinstance(each, ComeBack)]
    assert len(times) == 200
    assert times[0] == pytest.approx(LONGEST_WAIT / 2 + 0.01)
    assert all(other - one == pytest.approx(0.01) for one, other in pairwise(times))


def come_back(count: int, rate: float, *, newcomers: float = 0.0, seed: int = 1) -> dict[int, int]:
    """Play a restart under `count` daemons; the second at which each is in.

    `newcomers` others ask each second, for as long as it lasts.
    """
    source = random.Random(seed)
    admission = Admission(rate)
    # A heap of (when, who); newcomers have negative numbers.
    asking = [(source.uniform(0.0, 0.1), number) for number in range(count)]
    if newcomers:
        asking.append((0.0, -1))
    heapq.heapify(asking)
    backoffs = [Backoff(uniform=source.uniform) for _ in range(count)]
    back: dict[int, int] = {}
    while len(back) < count:
        now, number = heapq.heappop(asking)
        if number < 0:
            heapq.heappush(asking, (now + source.expovariate(newcomers), -1))
        match admission.ask(now):
            case Place(wait) if number >= 0:
                back[number] = int(now + wait)
            case ComeBack(retry_after) if number >= 0:
                again = backoffs[number].after_failure(retry_after)
                assert again >= retry_after, "what the controller asked for wins"
                heapq.heappush(asking, (now + again, number))
        assert now < 600, "somebody is never let in"
    assert max(backoff.failures for backoff in backoffs) <= 4, "nobody is sent away again and again"
    return back


@pytest.mark.parametrize("count", [500, 5_000, 10_000])
def test_a_restart_under_thousands_of_daemons_is_orderly(count: int) -> None:
    """At no time more than the rate, all the time nearly as many, and everybody is back."""
    back = come_back(count, 200.0)
    seconds = max(back.values()) + 1
    counts = [list(back.values()).count(second) for second in range(seconds)]
    assert max(counts) <= 200 + 50
    assert seconds <= count / 200 * 1.4 + 5


def test_daemons_that_were_sent_away_are_not_starved_by_newcomers() -> None:
    """Who comes back has the same chance as who comes for the first time."""
    back = come_back(2_000, 200.0, newcomers=100.0)
    assert max(back.values()) < 60
