"""Who may hold a daemon id: each rule by itself; `property/test_fencing_worlds.py` tries them all."""

from __future__ import annotations

import pytest
from attrs import evolve

from sandd._core.fencing import MAX_RIVALS, RIVAL_PATIENCE, Claim, Ruling, Tenure
from sandd.wire import DaemonState, RejectCode

ONLINE, AWAY, GONE = DaemonState.ONLINE, DaemonState.AWAY, DaemonState.GONE
A = Claim("a", 5, ("a0",), "host-a", challenged_at=10.0)
RESTARTED = Claim("a2", 1, ("a", "a0"), "host-a", challenged_at=20.0)
COPY = Claim("b", 1, ("a0",), "host-b", challenged_at=30.0)
"""Started from a copy that was made before A was."""
STRANGER = Claim("s", 1, (), "host-s", challenged_at=30.0)
A_AGAIN = evolve(A, connection=6, challenged_at=30.0)
"""It lives: the restart is one in a copy that was made meanwhile."""


@pytest.mark.parametrize("state", list(DaemonState))
def test_the_newest_connection_of_the_holder_counts(state: DaemonState) -> None:
    """Whatever became of the one before; what comes late is stale."""
    for number, ruling in ((4, Ruling.STALE), (5, Ruling.STALE), (6, Ruling.SUPERSEDE)):
        assert Tenure(A).judge(evolve(A, connection=number), state, 0.0) is ruling


@pytest.mark.parametrize("claim", [RESTARTED, COPY, STRANGER], ids=["restarted", "copy", "other"])
def test_a_holder_on_a_live_link_is_asked(claim: Claim) -> None:
    """Nobody else gets the id before it had the chance to answer."""
    assert Tenure(A).judge(claim, ONLINE, 0.0) is Ruling.ASK_HOLDER


def test_a_restart_is_let_in_at_once_while_its_predecessor_is_away() -> None:
    """It names the holder as an ancestor; any number of starts in between may be unheard of."""
    assert Tenure(A).judge(RESTARTED, AWAY, 0.0) is Ruling.ADMIT
    later = evolve(RESTARTED, instance="a9", ancestors=("a8", "a7", "a6", "a", "a0"))
    assert Tenure(A).judge(later, AWAY, 0.0) is Ruling.ADMIT


def test_a_stranger_is_let_in_while_the_holder_is_away() -> None:
    """A lost state directory, as with a container that was replaced: no relatives, no alarm."""
    assert Tenure(A).judge(STRANGER, AWAY, 0.0) is Ruling.ADMIT
    assert Tenure(STRANGER).judge(A_AGAIN, AWAY, 0.0) is Ruling.ADMIT


def test_a_copy_is_let_in_while_the_holder_is_away_and_reported() -> None:
    """It may be a machine that was rolled back; nobody else could tell."""
    assert Tenure(A).judge(COPY, AWAY, 0.0) is Ruling.ADMIT_FORK
    twin = evolve(COPY, ancestors=("x", "a0"))
    assert Tenure(A).judge(twin, AWAY, 0.0) is Ruling.ADMIT_FORK


@pytest.mark.parametrize("claim", [RESTARTED, COPY, STRANGER], ids=["restarted", "copy", "other"])
def test_nobody_stands_in_the_way_once_the_holder_has_left_for_good(claim: Claim) -> None:
    """It said goodbye: what comes next can't live beside it."""
    assert Tenure(A).judge(claim, GONE, 0.0) is Ruling.ADMIT


@pytest.mark.parametrize(
    ("claim", "code"),
    [
        pytest.param(COPY, RejectCode.CLONED, id="siblings"),
        pytest.param(RESTARTED, RejectCode.CLONED, id="copied from a running one"),
        pytest.param(Claim("a0", 1, challenged_at=30.0), RejectCode.CLONED, id="an ancestor lives"),
        pytest.param(STRANGER, RejectCode.ID_IN_USE, id="unrelated"),
    ],
)
def test_the_refusal_says_what_it_is_and_what_to_do(claim: Claim, code: RejectCode) -> None:
    """Where two live at once, relatives prove a copy; both texts name the other's host and the way out."""
    reject = Tenure(A).refuse("worker-1", claim)
    assert reject.code is code
    assert reject.retry_after == 10.0
    for word in ("'worker-1'", "'host-a'", "stop", "id"):
        assert word in reject.message
    assert ("copy" in reject.message) is (code is RejectCode.CLONED)


def test_a_rival_has_to_wait_until_the_holder_had_time_to_come_back() -> None:
    """A short cut of the holder's connection doesn't give its id, and its jobs, away."""
    tenure = Tenure(A)
    assert not tenure.has_refused(STRANGER)
    tenure.refuse("d", STRANGER)
    assert tenure.has_refused(STRANGER)
    assert tenure.judge(STRANGER, AWAY, RIVAL_PATIENCE - 0.1) is Ruling.REFUSE
    assert tenure.judge(STRANGER, AWAY, RIVAL_PATIENCE) is Ruling.ADMIT
    assert tenure.judge(RESTARTED, AWAY, 0.0) is Ruling.ADMIT


@pytest.mark.parametrize("state", list(DaemonState))
def test_a_predecessor_that_speaks_late_is_not_heard(state: DaemonState) -> None:
    """Its Hello was under way for longer than it lived, as the challenge that it answers shows."""
    assert Tenure(RESTARTED).judge(A, state, RIVAL_PATIENCE) is Ruling.STALE
    same_moment = evolve(A, challenged_at=RESTARTED.challenged_at)
    assert Tenure(RESTARTED).judge(same_moment, state, RIVAL_PATIENCE) is Ruling.STALE


@pytest.mark.parametrize("state", list(DaemonState))
def test_a_predecessor_of_a_rival_is_not_heard_either(state: DaemonState) -> None:
    """Else it got the id in its grave once the holder is gone, and its restart were taken for a copy."""
    tenure = Tenure(STRANGER)
    tenure.refuse("d", RESTARTED)
    assert tenure.judge(A, state, RIVAL_PATIENCE) is Ruling.STALE


def test_a_predecessor_that_was_challenged_later_has_lived_on() -> None:
    """The directory was copied while it ran."""
    assert Tenure(RESTARTED).judge(A_AGAIN, ONLINE, 0.0) is Ruling.ASK_HOLDER
    assert Tenure(RESTARTED).judge(A_AGAIN, AWAY, 0.0) is Ruling.ADMIT_FORK
    assert Tenure(RESTARTED).judge(A_AGAIN, GONE, 0.0) is Ruling.ADMIT
    tenure = Tenure(STRANGER)
    tenure.refuse("d", RESTARTED)
    assert tenure.judge(A_AGAIN, AWAY, 0.0) is Ruling.ADMIT


def test_whose_place_was_taken_comes_back_as_a_rival() -> None:
    """It has lived on all the time: its successor, away for a moment, doesn't lose the id to it."""
    tenure = Tenure(A)
    tenure.refuse("d", STRANGER)
    tenure.succeed(STRANGER)
    assert tenure.holder == STRANGER
    assert tenure.judge(A_AGAIN, ONLINE, 0.0) is Ruling.ASK_HOLDER
    assert tenure.judge(A_AGAIN, AWAY, 0.0) is Ruling.REFUSE
    assert tenure.judge(A_AGAIN, AWAY, RIVAL_PATIENCE) is Ruling.ADMIT


def test_rivals_of_the_former_holder_are_the_next_ones_too() -> None:
    """Whoever of them got the id: the others live on beside it."""
    tenure, other = Tenure(A), evolve(STRANGER, instance="s2")
    for claim in (STRANGER, other):
        tenure.refuse("d", claim)
    tenure.succeed(STRANGER)
    assert tenure.judge(other, AWAY, 0.0) is Ruling.REFUSE


def test_who_was_refused_is_known_beside_each_holder_anew() -> None:
    """Beside another one it may be for another reason."""
    tenure = Tenure(STRANGER)
    tenure.refuse("d", COPY)
    assert tenure.has_refused(COPY)
    tenure.succeed(A_AGAIN)
    assert not tenure.has_refused(COPY)
    assert not tenure.has_refused(STRANGER)
    assert tenure.refuse("d", COPY).code is RejectCode.CLONED
    tenure.succeed(evolve(A_AGAIN, connection=7))
    assert tenure.has_refused(COPY)


def test_a_daemon_is_no_rival_of_its_own() -> None:
    """However often it reconnects."""
    tenure = Tenure(A)
    for number in range(6, 9):
        tenure.succeed(evolve(A, connection=number))
    assert not tenure.has_refused(A)
    assert tenure.holder.connection == 8


def test_the_memory_of_rivals_is_bounded() -> None:
    """The latest are kept, the one refused last is the last to be forgotten."""
    tenure = Tenure(A)
    claims = [evolve(STRANGER, instance=f"r{number}") for number in range(40)]
    for claim in claims:
        tenure.refuse("d", claim)
        tenure.refuse("d", claims[0])
    known = [claim for claim in claims if tenure.has_refused(claim)]
    assert known == [claims[0], *claims[1 - MAX_RIVALS :]]
