"""A link's life: who is let in, who is dead, and when to dial again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.identity.introductions import answer_challenge
from sandd._core.identity.proofs import SharedSecret
from sandd._core.link import (
    HEALTHY,
    LABEL_LENGTH,
    WRITE_STALL,
    Backoff,
    Identity,
    Liveness,
    Verdict,
    check_daemon_id,
    check_hello,
    check_labels,
)
from sandd.wire import RejectCode

if TYPE_CHECKING:
    import random

CHALLENGE = wire.Challenge(b"n" * 32, "controller-1")
IDENTITY = Identity("worker-1", "instance-1", {"env": "prod"}, "host", "linux", "x86_64", "1.0")
TOKEN = SharedSecret(b"secret")


# ---- ids and labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("daemon_id", ["a", "worker-1", "A.b_c:d@e-f", "0" * 128])
def test_plain_daemon_ids_are_fine(daemon_id: str) -> None:
    """Letters, digits and a little punctuation, up to 128 of them."""
    assert check_daemon_id(daemon_id) is None


@pytest.mark.parametrize(
    "daemon_id", ["", "-a", ".", "a b", "a/b", "a\n", "é", "0" * 129, "../etc", "a\0", "a;rm"]
)
def test_other_daemon_ids_are_not(daemon_id: str) -> None:
    """An id goes into file names, command lines and logs."""
    problem = check_daemon_id(daemon_id)
    assert problem is not None
    assert "not usable" in problem
    assert problem.isprintable()


@pytest.mark.parametrize(
    ("labels", "fine"),
    [
        pytest.param({}, True, id="none"),
        pytest.param({"env": "prod", "gpu": ""}, True, id="empty value"),
        pytest.param({"k" * LABEL_LENGTH: "v" * LABEL_LENGTH}, True, id="longest"),
        pytest.param({f"{n}": "" for n in range(wire.MAX_LABELS)}, True, id="most"),
        pytest.param({"": "v"}, False, id="empty key"),
        pytest.param({"k" * (LABEL_LENGTH + 1): "v"}, False, id="long key"),
        pytest.param({"k": "v" * (LABEL_LENGTH + 1)}, False, id="long value"),
        pytest.param({"k": "a\nb"}, False, id="newline"),
        pytest.param({f"{n}": "\u00e9" * 255 for n in range(63)}, True, id="most bytes"),
        pytest.param({f"{n}": "\u00e9" * 256 for n in range(64)}, False, id="too many bytes"),
        pytest.param({"k\x1b[0m": "v"}, False, id="escape"),
        pytest.param({f"{n}": "" for n in range(wire.MAX_LABELS + 1)}, False, id="one too many"),
    ],
)
def test_labels_are_printable_and_bounded(labels: dict[str, str], fine: bool) -> None:
    """What every broadcast looks at, and every log line may show, stays short and plain."""
    problem = check_labels(labels)
    assert (problem is None) is fine
    assert problem is None or problem.isprintable()


# ---- handshake -----------------------------------------------------------------------------------


def test_the_largest_hello_is_within_its_limit() -> None:
    """Whatever labels are let through, the controller reads the Hello they travel in."""
    labels = {f"{n:02}" + "k" * 249: "v" * 256 for n in range(64)}
    assert check_labels(labels) is None
    ancestors = ("a" * 128,) * wire.MAX_ANCESTORS
    worst = Identity(
        *("d" * 128, "i" * 128, labels, "h" * 255, "p" * 64, "a" * 64, "v" * 64, ancestors)
    )
    hello = answer_challenge(CHALLENGE, worst, wire.MAX_OFFSET, TOKEN)
    assert sum(map(len, wire.encode_control(0, hello))) <= wire.MAX_HELLO_BYTES


def test_a_daemon_needs_a_challenge() -> None:
    """Whatever else a controller opens with is no controller of ours."""
    with pytest.raises(RemoteProtocolError, match="opened with Ping"):
        answer_challenge(wire.Ping(), IDENTITY, 1, None)
    with pytest.raises(RemoteProtocolError, match="opened with Unknown"):
        answer_challenge(wire.Unknown("x"), IDENTITY, 1, None)


def test_versions_must_meet() -> None:
    """The highest common version is spoken; without one both sides say so."""
    newer = attrs.evolve(CHALLENGE, versions=(3, 2, 1))
    assert answer_challenge(newer, IDENTITY, 1, None).version == 1
    with pytest.raises(RemoteProtocolError, match="no common protocol version"):
        answer_challenge(attrs.evolve(CHALLENGE, versions=(2,)), IDENTITY, 1, None)
    with pytest.raises(RemoteProtocolError, match="no common protocol version"):
        answer_challenge(attrs.evolve(CHALLENGE, versions=()), IDENTITY, 1, None)
    hello = attrs.evolve(answer_challenge(CHALLENGE, IDENTITY, 1, TOKEN), version=2)
    rejected = check_hello(hello)
    assert rejected is not None
    assert rejected.code is RejectCode.BAD_VERSION


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"daemon_id": "not usable"}, id="daemon id"),
        pytest.param({"labels": {"": "x"}}, id="labels"),
        pytest.param({"instance": ""}, id="instance"),
    ],
)
def test_a_hello_must_be_usable(changes: dict[str, Any]) -> None:
    """What can't be an id or a label is final, and the daemon is told what is wrong."""
    identity = attrs.evolve(IDENTITY, **changes)
    reject = check_hello(answer_challenge(CHALLENGE, identity, 1, TOKEN))
    assert reject is not None
    assert (reject.code, reject.retry_after) == (RejectCode.BAD_HELLO, None)
    assert reject.message


# ---- liveness ------------------------------------------------------------------------------------


def test_a_silent_peer_is_pinged_then_dead() -> None:
    """A ping after `heartbeat` of silence, and again; dead after `dead_after`."""
    liveness = Liveness(100.0, heartbeat=20.0, dead_after=45.0)
    assert liveness.check(119.9, None) is Verdict.WAIT
    assert liveness.check(120.0, None) is Verdict.PING
    assert liveness.check(121.0, None) is Verdict.WAIT
    assert liveness.check(140.0, None) is Verdict.PING
    assert liveness.check(144.9, None) is Verdict.WAIT
    assert liveness.check(145.0, None) is Verdict.DEAD
    assert liveness.reason == "nothing heard for 45 s"


def test_traffic_stands_for_pongs() -> None:
    """A peer that says anything needs no ping and isn't dead."""
    liveness = Liveness(0.0, heartbeat=20.0, dead_after=45.0)
    for now in range(0, 1000, 19):
        liveness.received(float(now))
        assert liveness.check(float(now) + 18.9, None) is Verdict.WAIT


def test_who_only_answers_never_pings() -> None:
    """An endless heartbeat: silence leads from waiting to death."""
    liveness = Liveness(0.0, heartbeat=math.inf, dead_after=45.0)
    verdicts = {liveness.check(float(now), None) for now in range(45)}
    assert verdicts == {Verdict.WAIT}
    assert liveness.check(45.0, None) is Verdict.DEAD


def test_a_peer_that_takes_no_byte_is_dead() -> None:
    """A write without progress for WRITE_STALL ends the link, however much comes in."""
    liveness = Liveness(0.0, heartbeat=20.0, dead_after=45.0)
    liveness.received(100.0)
    assert liveness.check(100.0, 100.1 - WRITE_STALL) is Verdict.WAIT
    assert liveness.check(100.0, 100.0 - WRITE_STALL) is Verdict.DEAD
    assert "took no byte for 20 s" in liveness.reason


def test_a_peer_that_takes_more_of_a_message_is_alive() -> None:
    """Its word comes behind that. That a write has begun says nothing, nor does one that is over."""
    liveness = Liveness(0.0, heartbeat=20.0, dead_after=45.0)
    assert liveness.check(44.0, 43.0, 43.0) is Verdict.WAIT
    assert liveness.check(62.0, 62.0, 43.0) is Verdict.WAIT
    assert liveness.check(87.9, 87.0, 86.0) is not Verdict.DEAD
    assert liveness.check(88.0, 87.0, 86.0) is Verdict.DEAD
    over = Liveness(0.0, heartbeat=20.0, dead_after=45.0)
    assert over.check(45.0, None, 44.0) is Verdict.DEAD


def test_our_own_standstill_is_not_held_against_the_peer() -> None:
    """After a suspend of ours the peer has all its time again, for what it says and for what it takes."""
    liveness = Liveness(0.0, heartbeat=20.0, dead_after=45.0)
    assert liveness.check(10.0, 9.0) is Verdict.WAIT
    liveness.lagged(600.0)
    assert liveness.check(611.0, 9.0) is Verdict.WAIT
    assert liveness.check(620.0, 9.0) is Verdict.PING
    assert liveness.check(611.0 + WRITE_STALL - 0.1, 9.0) is Verdict.WAIT
    assert liveness.check(611.0 + WRITE_STALL, 9.0) is Verdict.DEAD
    silent = Liveness(0.0, heartbeat=20.0, dead_after=45.0)
    silent.lagged(600.0)
    assert silent.check(644.9, None) is not Verdict.DEAD
    assert silent.check(645.0, None) is Verdict.DEAD


def test_a_word_behind_our_own_standstill_is_no_credit_for_another() -> None:
    """What is heard when we go on again, and before it is known how long we stood, counts from then and no later."""
    liveness = Liveness(0.0, heartbeat=math.inf, dead_after=45.0)
    liveness.received(600.0)
    liveness.lagged(590.0)
    assert liveness.check(602.0, None) is Verdict.WAIT
    assert liveness.check(646.9, None) is Verdict.WAIT
    assert liveness.check(647.0, None) is Verdict.DEAD


@pytest.mark.parametrize(("heartbeat", "dead_after"), [(20.0, 45.0), (math.inf, 45.0), (0.05, 0.1)])
def test_checks_come_often_enough(heartbeat: float, dead_after: float) -> None:
    """Every deadline is met within a tenth, and checking costs little."""
    interval = Liveness(0.0, heartbeat, dead_after).interval
    assert 0.02 <= interval <= max(0.02, min(heartbeat, dead_after, WRITE_STALL) / 10)


# ---- backoff -------------------------------------------------------------------------------------


def highest(low: float, high: float) -> float:
    """The unluckiest draw."""
    assert low <= high
    return high


def test_failures_wait_ever_longer_up_to_the_maximum() -> None:
    """The bound doubles from `base`, and stays at `maximum` however often it fails."""
    backoff = Backoff(base=0.5, maximum=30.0, uniform=highest)
    waits = [backoff.after_failure(None) for _ in range(8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    for _ in range(5000):
        assert backoff.after_failure(None) == 30.0


def test_waits_are_drawn_from_nothing_up() -> None:
    """A thousand daemons that lost the same controller come back spread out, not together."""
    draws: list[tuple[float, float]] = []
    backoff = Backoff(uniform=lambda low, high: draws.append((low, high)) or 0.25)  # type: ignore[func-returns-value]
    assert backoff.after_failure(None) == 0.25
    backoff.after_failure(None)
    backoff.after_loss(HEALTHY, progressed=False)
    assert draws == [(0.0, 0.5), (0.0, 1.0), (0.0, 0.1)]


@pytest.mark.parametrize(("lived", "progressed"), [(HEALTHY, False), (0.0, True)])
def test_a_link_that_worked_is_redialled_at_once(lived: float, progressed: bool) -> None:
    """A cut of a good link is no failure, and clears those before it."""
    backoff = Backoff(uniform=highest)
    for _ in range(5):
        backoff.after_failure(None)
    assert backoff.after_loss(lived, progressed) == 0.1
    assert backoff.after_failure(None) == 0.5


def test_no_wait_is_longer_than_the_maximum() -> None:
    """Behind a good link neither, where somebody wants it back within less than its tenth of a second."""
    backoff = Backoff(maximum=0.05, uniform=highest)
    assert backoff.after_loss(HEALTHY, progressed=True) == 0.05
    assert backoff.after_failure(None) == 0.05


def test_a_link_that_did_nothing_is_a_failure() -> None:
    """A controller that accepts and drops is not dialled in a loop."""
    backoff = Backoff(uniform=highest)
    waits = [backoff.after_loss(HEALTHY - 0.1, progressed=False) for _ in range(3)]
    assert waits == [0.5, 1, 2]


def test_what_the_controller_asked_for_wins() -> None:
    """`retry_after` is waited for at least, with a little spread, whatever our own maximum."""
    backoff = Backoff(maximum=30.0, uniform=highest)
    assert backoff.after_failure(10.0) == 12.5
    assert backoff.after_failure(3600.0) == 3600.0 + 7.5
    assert backoff.after_failure(0.0) == 0.0


@pytest.mark.parametrize(
    ("lived", "progressed", "next_wait"),
    [(HEALTHY, False, 1.0), (0.0, True, 1.0), (0.0, False, 8.0)],
)
def test_orderly_restarts_are_no_failures(lived: float, progressed: bool, next_wait: float) -> None:
    """However often a controller was restarted: one that doesn't answer at once is dialled again soon."""
    backoff = Backoff(uniform=highest)
    for _ in range(4):
        assert backoff.after_farewell(lived, progressed, 1.0) == 1.25
    assert backoff.after_failure(None) == next_wait


@given(st.integers(1, 60), st.none() | st.floats(0, 1e6), st.randoms())
def test_a_wait_is_always_bounded(
    failures: int, retry_after: float | None, source: random.Random
) -> None:
    """(9) Whatever happened before, the next dial comes within the maximum, or what was asked for."""
    backoff = Backoff(uniform=source.uniform)
    for _ in range(failures):
        backoff.after_failure(None)
    wait = backoff.after_failure(retry_after)
    if retry_after is None:
        assert 0 <= wait <= backoff.maximum
    else:
        assert retry_after <= wait <= retry_after + backoff.maximum / 4


@given(
    heartbeat=st.floats(0.1, 60) | st.just(math.inf),
    dead_after=st.floats(0.1, 60),
    steps=st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["hear", "lag", "check"]))),
)
def test_in_its_patience_a_check_does_nothing(
    heartbeat: float, dead_after: float, steps: list[tuple[float, str]]
) -> None:
    """So whoever knows that no write is pending need not ask for it."""
    liveness, now = Liveness(0.0, heartbeat, dead_after), 0.0
    for seconds, what in steps:
        now += seconds
        if what == "hear":
            liveness.received(now)
        elif what == "lag":
            liveness.lagged(seconds)
        elif now - liveness.last_received < liveness.patience and liveness.writes_from is not None:
            before = attrs.asdict(liveness)
            assert liveness.check(now, None, now - 1.0) is Verdict.WAIT
            assert attrs.asdict(liveness) == before
        elif liveness.check(now, None) is Verdict.DEAD:
            return
