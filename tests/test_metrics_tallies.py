"""What has passed a router, by tenant; and how often something took how long."""

from __future__ import annotations

import pytest

from sandd import wire
from sandd._core.metrics.histograms import DISK_BOUNDS, LAG_BOUNDS, Histogram
from sandd._core.metrics.loop_lag import LoopLag
from sandd._core.metrics.tallies import OTHER, USES, Tallies, Tally, use_of


def test_a_histogram_counts_what_is_up_to_each_bound() -> None:
    """Buckets are cumulative, a bound is in the bucket below it, and the last has all."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    assert histogram.snapshot().buckets == ((0.1, 2), (1.0, 3), (float("inf"), 4))
    assert (histogram.count, histogram.sum) == (4, pytest.approx(7.65))


@pytest.mark.parametrize("bounds", [LAG_BOUNDS, DISK_BOUNDS], ids=["lag", "disk"])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    """What is found by halving has to be in order."""
    assert list(bounds) == sorted(set(bounds))


def test_the_lag_is_what_the_loop_was_late() -> None:
    """From when it was to look until it did; never less than nothing."""
    lag = LoopLag(1.0)
    assert lag.due(10.0) == 11.0
    assert lag.woke(11.5) == lag.latest == 0.5
    lag.due(11.5)
    assert lag.woke(12.4) == 0.0  # clocks have steps
    assert (lag.histogram.count, lag.histogram.sum) == (2, 0.5)


def test_every_kind_of_job_is_for_something() -> None:
    """Of each there is a use with a counter; what isn't known is something that was asked for."""
    assert {use_of(kind) for kind in wire.SPEC_KINDS} == set(USES)
    assert use_of("") == "request"


def test_tenants_beyond_the_bound_share_a_tally_that_nobody_sees() -> None:
    """The number of tallies is bounded, whoever comes; and one's own number is never another's."""
    tallies = Tallies(most_tenants=2)
    first = tallies.join("a")
    assert tallies.join("a") is first is tallies.of("a")
    assert tallies.join("b") is not first
    shared = tallies.join("c")
    assert tallies.join("d") is shared
    assert (tallies.of("c"), tallies.of("unheard-of")) == (None, None)
    assert [tenant for tenant, _ in tallies] == ["a", "b", OTHER]
    assert [tallies.label(each) for each in ("a", "c", "unheard-of")] == ["a", OTHER, OTHER]


def test_a_tenant_that_is_called_other_is_one_of_the_others() -> None:
    """Else two series would have one name."""
    tallies = Tallies()
    tallies.join(OTHER)
    assert [tenant for tenant, _ in tallies] == [OTHER]
    assert tallies.of(OTHER) is None


def test_nobody_shares_before_there_is_somebody() -> None:
    """An empty tally of nobody isn't shown."""
    assert list(Tallies()) == []


def test_a_total_is_the_sum_of_all() -> None:
    """Each field of each tally is in it once."""
    tallies = Tallies(most_tenants=1)
    for tenant in ("a", "b"):
        tally = tallies.join(tenant)
        tally.jobs_asked = 3
        tally.jobs_running = 2
        tally.ended("exited")
        tally.requests = 5
        tally.traffic["program"].to_daemons = 7
        tally.traffic["forward"].to_clients = 11
    total = tallies.total()
    assert (total.jobs_asked, total.jobs_running, total.requests) == (6, 2, 10)
    assert total.jobs_ended == {"exited": 2}
    assert (total.bytes_to_daemons, total.bytes_to_clients) == (14, 22)
    assert Tally().bytes_to_clients == 0
