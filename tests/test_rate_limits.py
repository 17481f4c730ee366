"""Limits without I/O: never more than was allowed, told to the second, and in bounded memory whoever asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import ConfigurationError, Rate, RateLimits, wire
from sandd._core.rate_limits.bounded_table import BoundedTable, KeyedRate
from sandd._core.rate_limits.credentials import (
    BAR_MEMORY,
    FIRST_BAR,
    LONGEST_BAR,
    PROOF_MEMORY,
    FailedCredentials,
)
from sandd._core.rate_limits.job_starts import Excess, JobStartLimiter
from sandd._core.rate_limits.networks import network_of
from sandd._core.rate_limits.rates import ROUNDING, UNUSED
from sandd.wire import RefusedCode

RATES = st.builds(Rate, st.floats(0.01, 1000), st.integers(1, 50))
STARTS = st.floats(0, 1e7)
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 20)), max_size=200)
"""Seconds between two who ask."""
COMMAND = wire.encode_spec(wire.CommandSpec(("true",)))

# ---- one limit ----------------------------------------------------------------------------------


def passed(rate: Rate, start: float, gaps: list[float]) -> list[float]:
    """When those passed whom the rate let pass at once."""
    now, whole_at, times = start, UNUSED, []
    for gap in gaps:
        now += gap
        if rate.wait(whole_at, now) == 0.0:
            whole_at = rate.after_one(whole_at, now)
            times.append(now)
    return times


@given(RATES, STARTS, GAPS)
def test_no_span_of_time_sees_more_than_the_rate_and_a_burst(
    rate: Rate, start: float, gaps: list[float]
) -> None:
    """Whenever and however many ask."""
    times = passed(rate, start, gaps)
    for first in range(len(times)):
        for last in range(first, len(times)):
            span = times[last] - times[first] + 2 * ROUNDING
            assert last - first + 1 <= rate.burst + rate.per_second * span + 1e-6


@given(RATES, STARTS, GAPS)
def test_the_wait_that_is_told_is_exact(rate: Rate, start: float, gaps: list[float]) -> None:
    """Who comes when it was told passes, and who comes any earlier doesn't."""
    now, whole_at = start, UNUSED
    for gap in gaps:
        now += gap
        wait = rate.wait(whole_at, now)
        assert rate.wait(whole_at, now + wait) == 0.0
        if wait > 0.0:
            assert wait <= 1.0 / rate.per_second + 1e-6, "whoever waits that long, waits for one"
            early = now + wait - 3 * ROUNDING
            assert early <= now or rate.wait(whole_at, early) > 0.0
        else:
            whole_at = rate.after_one(whole_at, now)


def test_a_burst_is_a_seconds_worth_unless_it_is_said() -> None:
    """And one at least."""
    assert (Rate(10).burst, Rate(2.5).burst, Rate(0.1).burst, Rate(1, 7).burst) == (10, 3, 1, 7)


@pytest.mark.parametrize(
    ("per_second", "burst"),
    [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1e7, 1), (1, 0), (1, 1.5), (1, 1e7)],
)
def test_a_rate_that_makes_no_sense_is_an_error(per_second: float, burst: int) -> None:
    """None is ever taken for "as many as you like"."""
    with pytest.raises(ConfigurationError):
        Rate(per_second, burst)
    with pytest.raises(TypeError):
        RateLimits(daemon=per_second)  # type: ignore[arg-type]


# ---- many keys ----------------------------------------------------------------------------------


def test_ten_thousand_names_keep_the_table_flat() -> None:
    """It is never larger than it may be, and each newcomer has its own allowance."""
    keyed: KeyedRate[str] = KeyedRate(Rate(1, 2), 500)
    for number in range(10_000):
        assert keyed.wait(f"fake-{number}", 5.0) == 0.0
        keyed.count(f"fake-{number}", 5.0)
        assert len(keyed) <= 500


def test_who_is_held_back_is_not_forgotten_for_newcomers() -> None:
    """Neither while there are others to forget, nor when there are none any more."""
    keyed: KeyedRate[str] = KeyedRate(Rate(0.1, 1), 100)
    for number in range(100):
        keyed.count(f"held-{number}", 0.0)
    for number in range(10_000):
        keyed.count(f"fake-{number}", 1.0)
    assert all(keyed.wait(f"held-{number}", 1.0) == pytest.approx(9.0) for number in range(100))
    assert len(keyed) == 100
    keyed.count("later", 10.0)  # by then they are free again
    assert keyed.wait("later", 10.0) == pytest.approx(10.0)
    assert len(keyed) == 100


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200))
def test_a_table_is_bounded_and_forgets_only_who_is_free(moves: list[tuple[int, bool]]) -> None:
    """Whatever comes in which order."""
    table: BoundedTable[int, bool] = BoundedTable(8, lambda is_held, _now: is_held)
    held: set[int] = set()
    for key, is_held in moves:
        table.put(key, is_held, 0.0)
        if table.get(key) is True:
            held.add(key)
        else:
            held.discard(key)
        assert len(table) <= 8
        assert all(table.get(each) is True for each in held)


# ---- whose address ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64%eth0"),
        ("no address", "no address"),
    ],
)
def test_a_network_is_an_address_or_a_64(host: str, network: str) -> None:
    """What one party has all of counts as one."""
    assert network_of(host) == network


# ---- credentials that fail ----------------------------------------------------------------------


def fail(failures: FailedCredentials, count: int, now: float, host: str = "192.0.2.1") -> float:
    """So many failures at a moment; the longest bar that came of them."""
    return max(failures.failed(host, "/ws", now) for _ in range(count))


def test_five_failures_a_minute_are_forgiven_and_a_sixth_bars() -> None:
    """For a minute; then it is as it was."""
    failures = FailedCredentials()
    assert fail(failures, 5, 100.0) == 0.0
    assert failures.barred_for("192.0.2.1", "/ws", 100.0) == 0.0
    assert fail(failures, 1, 101.0) == FIRST_BAR
    assert failures.barred_for("192.0.2.1", "/ws", 111.0) == FIRST_BAR - 10
    assert failures.barred_for("192.0.2.1", "/ws", 101.0 + FIRST_BAR) == 0.0
    assert fail(failures, 5, 101.0 + FIRST_BAR) == 0.0


def test_failures_now_and_then_bar_nobody() -> None:
    """One in twelve seconds is what a minute's five come to."""
    failures = FailedCredentials()
    assert all(fail(failures, 1, 12.0 * each) == 0.0 for each in range(1000))


def test_each_bar_is_twice_as_long_up_to_ten_minutes() -> None:
    """And after a good while it is a short one again."""
    failures, now, bars = FailedCredentials(), 0.0, []
    for _ in range(6):
        bars.append(fail(failures, 6, now))
        now += bars[-1]
    assert bars == [60.0, 120.0, 240.0, 480.0, LONGEST_BAR, LONGEST_BAR]
    assert fail(failures, 6, now + BAR_MEMORY) == FIRST_BAR


def test_who_was_in_when_the_door_was_shut_makes_nothing_worse() -> None:
    """A hundred guesses at once are one bar, and not a hundred doublings."""
    failures = FailedCredentials()
    fail(failures, 100, 0.0)
    assert failures.barred_for("192.0.2.1", "/ws", 0.0) == FIRST_BAR


def test_a_bar_is_of_one_network_at_one_door() -> None:
    """All of a /64 is barred; neighbours, and those who want something else, are not."""
    failures = FailedCredentials()
    for host in range(6):
        failures.failed(f"2001:db8::{host}", "/operator", 0.0)
    assert failures.barred_for("2001:db8::ffff", "/operator", 0.0) > 0.0
    assert failures.barred_for("2001:db8::1", "/ws", 0.0) == 0.0
    assert failures.barred_for("2001:db8:0:1::1", "/operator", 0.0) == 0.0


def test_a_network_where_somebody_has_proven_itself_is_not_barred() -> None:
    """A neighbour behind the same address keeps nobody out: for a day after the latest proof, and not longer."""
    failures = FailedCredentials()
    fail(failures, 6, 0.0)
    failures.proven("192.0.2.1", "/ws", 10.0)  # it was in when the door was shut
    assert failures.barred_for("192.0.2.1", "/ws", 11.0) == 0.0
    assert fail(failures, 100, 70.0) == 0.0
    assert fail(failures, 100, 10.0 + PROOF_MEMORY) > 0.0


def test_a_flood_of_networks_keeps_the_tables_flat_and_lifts_no_bar() -> None:
    """Ten thousand addresses, each with its failures."""
    failures = FailedCredentials(most_networks=256)
    fail(failures, 6, 0.0)
    for number in range(10_000):
        fail(failures, 6, 1.0, host=f"10.0.{number // 256}.{number % 256}")
    assert failures.barred_for("192.0.2.1", "/ws", 1.0) == FIRST_BAR - 1
    assert len(failures) <= 3 * 256


# ---- job starts ---------------------------------------------------------------------------------


def test_the_longest_wait_of_the_three_is_told_and_nothing_is_counted() -> None:
    """What is refused for one reason takes nothing from the other allowances."""
    limiter = JobStartLimiter(RateLimits(operator=Rate(1, 2), tenant=Rate(1, 3), daemon=Rate(0.1)))
    assert limiter.take("ann", "t", "one", 0.0) is None
    for _ in range(10):
        assert limiter.take("ann", "t", "one", 0.0) == Excess("daemon", 10.0)
    assert limiter.take("ann", "t", "two", 0.0) is None
    assert limiter.take("ann", "t", "three", 0.0) == Excess("operator", 1.0)
    assert limiter.take("bob", "t", "three", 0.0) is None
    assert limiter.take("eve", "t", "four", 0.0) == Excess("tenant", 1.0)
    assert limiter.take("eve", "u", "four", 0.0) is None
    assert limiter.take("eve", "u", "one", 10.0) is None


def judged(limiter: JobStartLimiter, spec: bytes | None = COMMAND, **changes: bool) -> bool:
    """Whether an Attach is refused at time 0."""
    attach = wire.Attach("d", "j", "c", spec=spec)
    options = {"is_agent": False, **changes}
    refused = limiter.judge(attach, operator="ann", tenant="t", now=0.0, **options)
    assert refused is None or refused.code is RefusedCode.RATE_LIMITED
    return refused is not None


def test_commands_and_sessions_count_and_nothing_else_does() -> None:
    """Requests, and whoever attaches to what is there, start nothing. What is unclear counts."""
    limiter = JobStartLimiter(RateLimits(operator=Rate(1)))
    free = [
        None,
        *map(wire.encode_spec, (wire.JobsSpec(), wire.StatisticsSpec(interval=1.0))),
        wire.encode_spec(wire.StatSpec(b"/")),
    ]
    assert not any(judged(limiter, spec) for spec in 10 * free)
    assert not judged(limiter)
    session = wire.encode_spec(wire.SessionSpec(("sh",)))
    assert all(judged(limiter, spec) for spec in (COMMAND, session, b"\xc1", b""))
    assert not any(judged(limiter, spec) for spec in free)


def test_the_agents_own_starts_are_not_counted_unless_it_is_said() -> None:
    """It is the program that the controller is part of."""
    limiter = JobStartLimiter(RateLimits(daemon=Rate(1)))
    assert not any(judged(limiter, is_agent=True) for _ in range(10))
    assert not judged(limiter)
    assert judged(limiter)
    limiter = JobStartLimiter(RateLimits(daemon=Rate(1), includes_agent=True))
    assert [judged(limiter, is_agent=True) for _ in range(3)] == [False, True, True]


def test_without_limits_nothing_is_refused() -> None:
    """They are off unless somebody asks for them."""
    assert not any(judged(JobStartLimiter(RateLimits())) for _ in range(1000))
