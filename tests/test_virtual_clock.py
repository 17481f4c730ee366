"""`sandd.testing.virtual_clock`: time that passes when it is told to."""

from __future__ import annotations

from functools import partial

from sandd.testing.virtual_clock import VirtualClock


def test_timers_fire_in_order_each_at_its_own_time() -> None:
    """Also those that are set while time passes; what is due later waits."""
    clock = VirtualClock(100.0)
    fired: list[tuple[str, float]] = []

    def note(name: str) -> None:
        fired.append((name, clock.now))

    def again() -> None:
        note("again")
        clock.call_later(2.0, partial(note, "set on the way"))

    clock.call_later(5.0, partial(note, "late"))
    clock.call_later(1.0, again)
    clock.call_at(101.0, partial(note, "second of two"))
    clock.call_later(20.0, partial(note, "too late"))
    assert clock.next_at == 101.0
    clock.advance(10.0)
    assert fired == [
        ("again", 101.0),
        ("second of two", 101.0),
        ("set on the way", 103.0),
        ("late", 105.0),
    ]
    assert (clock.now, clock.next_at) == (110.0, 120.0)


def test_a_cancelled_timer_does_not_fire() -> None:
    """It is as if it had not been set; cancelling one that has fired changes nothing."""
    clock = VirtualClock()
    fired: list[int] = []
    timers = [clock.call_at(when, partial(fired.append, when)) for when in (1, 2, 3)]
    timers[0].cancel()
    assert clock.next_at == 2
    clock.advance(2)
    assert [timer.is_pending for timer in timers] == [False, False, True]
    timers[1].cancel()
    timers[2].cancel()
    assert clock.next_at is None
    clock.advance(9)
    assert fired == [2]


def test_time_never_goes_back() -> None:
    """Not for a moment that is past, and not for a timer that is."""
    clock = VirtualClock(10.0)
    seen: list[float] = []
    clock.call_at(3.0, lambda: seen.append(clock.now))
    clock.advance_to(5.0)
    assert (clock.now, seen) == (10.0, [10.0])
    assert repr(clock) == "<VirtualClock at 10.000 s, 0 timers>"
