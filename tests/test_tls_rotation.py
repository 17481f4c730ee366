"""From one CA to the next: who signs and who is trusted at each step, and that no step comes too early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd._core.tls.key_pair import KeyPair
from sandd._core.tls.rotation import SETTLE_SECONDS, Phase, Rotation, TooEarly

OLD, NEW = KeyPair("old", "old's key"), KeyPair("new", "new's key")
DAY = SETTLE_SECONDS


def test_all_steps() -> None:
    """The new one is trusted before it signs, and the old one until nothing of it is in use."""
    steady = Rotation(Phase.STEADY, 0.0, OLD)
    assert (steady.issuer, steady.client_issuer, steady.trusted) == (OLD, OLD, (OLD,))
    both = steady.begin(NEW, 1.0)
    assert (both.issuer, both.client_issuer, both.trusted) == (OLD, NEW, (OLD, NEW))
    issue = both.go_on(1.0 + DAY)
    assert (issue.issuer, issue.client_issuer, issue.trusted) == (NEW, NEW, (NEW, OLD))
    done = issue.go_on(1.0 + 2 * DAY)
    assert done == Rotation(Phase.STEADY, 1.0 + 2 * DAY, NEW)
    assert done.trusted == (NEW,)


@given(st.floats(0, DAY, exclude_max=True))
def test_a_step_waits_for_a_day(waited: float) -> None:
    """And says for how long still; whoever insists is heard."""
    both = Rotation(Phase.STEADY, 0.0, OLD).begin(NEW, 0.0)
    with pytest.raises(TooEarly) as caught:
        both.go_on(waited)
    assert caught.value.seconds == DAY - waited
    assert both.go_on(waited, patient=False).phase is Phase.ISSUE_NEW


def test_a_clock_that_was_set_back_costs_a_day_at_most() -> None:
    """What is left is never more than the whole wait."""
    both = Rotation(Phase.STEADY, 0.0, OLD).begin(NEW, 100 * DAY)
    with pytest.raises(TooEarly) as caught:
        both.go_on(0.0)
    assert caught.value.seconds == DAY


def test_one_rotation_at_a_time() -> None:
    """What is under way has to be gone through, and what isn't can't go on."""
    steady = Rotation(Phase.STEADY, 0.0, OLD)
    with pytest.raises(ValueError, match="no rotation"):
        steady.go_on(DAY)
    both = steady.begin(NEW, 0.0)
    for each in (both, both.go_on(DAY)):
        with pytest.raises(ValueError, match="under way"):
            each.begin(KeyPair("third", ""), 2 * DAY)


@pytest.mark.parametrize(
    ("phase", "new"), [(Phase.STEADY, NEW), (Phase.TRUST_BOTH, None), (Phase.ISSUE_NEW, None)]
)
def test_what_makes_no_sense_can_not_be(phase: Phase, new: KeyPair | None) -> None:
    """Two CAs when nothing is under way, or one when something is."""
    with pytest.raises(ValueError, match="CA"):
        Rotation(phase, 0.0, OLD, new)


def test_no_key_is_shown() -> None:
    """Logs and tracebacks show values."""
    assert "old's key" not in repr(Rotation(Phase.TRUST_BOTH, 0.0, OLD, NEW))
