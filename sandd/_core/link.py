"""A link's life: handshake, liveness, backoff. Three small sans-IO machines.

    daemon      dial -> (Challenge) -> Hello -> (Welcome) live | (Reject) wait, or stop for good
    controller  Challenge -> (Hello) -> Welcome live | Reject

Clocks are monotonic and come in as arguments; only durations cross the wire.
"""

from __future__ import annotations

import enum
import math
import random
import re
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DAEMON_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
"""Ids go into file names, metric labels and command lines, so they stay plain."""
LABEL_LENGTH: Final = 256
"""Characters in a label's key or value."""
LABELS_BYTES: Final = 32 * wire.KIB
"""All labels together, in UTF-8: they travel in the Hello, of at most MAX_HELLO_BYTES."""
WRITE_STALL: Final = 20.0
"""Seconds without any progress of a pending write until the peer counts as dead."""
HEALTHY: Final = 10.0
"""Seconds a link must have lived for its loss not to count as a failure."""
OWN_LAG: Final = 5.0
"""Our own timer fired this late: the silence is ours, not the peer's."""


# ---- who we are ----------------------------------------------------------------------------------


@frozen
class Identity:
    """What a daemon says of itself, the same on every dial."""

    daemon_id: str
    instance: str
    labels: Mapping[str, str] = field(factory=dict)
    hostname: str = ""
    platform: str = ""
    arch: str = ""
    daemon_version: str = ""
    ancestors: tuple[str, ...] = ()
    """Instances that started from the same state directory before, newest first."""
    isolation: wire.IsolationLevel = wire.IsolationLevel.NONE
    """The least of all jobs."""
    isolation_levels: tuple[wire.IsolationLevel, ...] = (wire.IsolationLevel.NONE,)
    """Those that are to be had."""


def check_daemon_id(daemon_id: str) -> str | None:
    """What is wrong with a daemon id, for people; None when nothing is."""
    if DAEMON_ID.fullmatch(daemon_id):
        return None
    return (
        f"daemon id {daemon_id[:80]!r} is not usable: 1 to 128 letters, digits and any of . _ : @ -, "
        "beginning with a letter or digit"
    )


def check_labels(labels: Mapping[str, str]) -> str | None:
    """What is wrong with a set of labels, for people; None when nothing is."""
    if len(labels) > wire.MAX_LABELS:
        return f"{len(labels)} labels; a daemon may have {wire.MAX_LABELS}"
    total = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if total > LABELS_BYTES:
        return f"labels of {total} bytes in all; a daemon may have {LABELS_BYTES}"
    for key, value in labels.items():
        if not key or max(len(key), len(value)) > LABEL_LENGTH or not (key + value).isprintable():
            return (
                f"label {key[:80]!r} is not usable: keys and values are printable, "
                f"of at most {LABEL_LENGTH} characters"
            )
    return None


# ---- handshake -----------------------------------------------------------------------------------


def read_challenge(challenge: wire.Control | wire.Unknown) -> tuple[wire.Challenge, int]:
    """The controller's first words, and the version to speak; RemoteProtocolError if they can't be used."""
    if not isinstance(challenge, wire.Challenge):
        raise RemoteProtocolError(
            f"the controller opened with {type(challenge).__name__}, not with a Challenge"
        )
    common = set(challenge.versions) & set(wire.VERSIONS)
    if not common:
        raise RemoteProtocolError(
            f"no common protocol version: the controller speaks {list(challenge.versions)}, we {list(wire.VERSIONS)}"
        )
    return challenge, max(common)


def check_hello(hello: wire.Hello) -> wire.Reject | None:
    """The answer to a Hello that can't be used, whoever says it; None where nothing is wrong with it."""
    if hello.version not in wire.VERSIONS:
        return _bad_version()
    problem = check_daemon_id(hello.daemon_id) or check_labels(hello.labels)
    if problem is not None or not hello.instance:
        return wire.Reject(RejectCode.BAD_HELLO, problem or "an instance is needed")
    return None


def check_operator_hello(hello: wire.OperatorHello) -> wire.Reject | None:
    """As `check_hello`, for an operator's."""
    if hello.version not in wire.VERSIONS:
        return _bad_version()
    if not hello.client:
        return wire.Reject(RejectCode.BAD_HELLO, "a client id is needed")
    return None


def _bad_version() -> wire.Reject:
    return wire.Reject(
        RejectCode.BAD_VERSION, f"this controller speaks versions {list(wire.VERSIONS)}"
    )


# ---- liveness ------------------------------------------------------------------------------------


class Verdict(enum.Enum):
    """What liveness asks for."""

    WAIT = enum.auto()
    PING = enum.auto()
    DEAD = enum.auto()


@define
class Liveness:
    """Says when to ping a silent peer and when to give it up."""

    now: float
    heartbeat: float
    """Seconds of inbound silence after which we ping; math.inf: we only answer."""
    dead_after: float
    """Seconds of inbound silence after which the peer is dead."""
    last_received: float = field(init=False)
    last_ping: float = field(init=False)
    writes_from: float | None = field(init=False)
    """Pending writes count from here at the earliest; None: from the next check."""
    reason: str = ""

    def __attrs_post_init__(self) -> None:
        self.last_received = self.last_ping = self.writes_from = self.now

    def received(self, now: float) -> None:
        """Anything at all came in, be it a part of a message."""
        self.last_received = now

    def lagged(self, seconds: float) -> None:
        """Our own loop stood still this long: no silence of the peer's, and no refusal to take bytes."""
        self.last_received += seconds
        self.last_ping += seconds
        self.writes_from = None

    def check(
        self, now: float, write_pending_since: float | None, write_progress: float = -math.inf
    ) -> Verdict:
        """What to do now.

        Args:
            now: the time.
            write_pending_since: when the write that is under way last got on, or began; None: none is.
            write_progress: when a write last got on.
        """
        if write_pending_since is not None and write_pending_since == write_progress:
            # Somebody takes a message that is too long for the line: its answer will be behind that.
            self.last_received = max(self.last_received, write_progress)
        # Later than now it is where something was heard after a standstill, but before `lagged` told of that.
        self.last_received = min(self.last_received, now)
        if now - self.last_received >= self.dead_after:
            self.reason = f"nothing heard for {now - self.last_received:.0f} s"
            return Verdict.DEAD
        if self.writes_from is None:
            self.writes_from = now
        if write_pending_since is not None:
            stalled = now - max(write_pending_since, self.writes_from)
            if stalled >= WRITE_STALL:
                self.reason = f"the peer took no byte for {stalled:.0f} s"
                return Verdict.DEAD
        if now - max(self.last_received, self.last_ping) >= self.heartbeat:
            self.last_ping = now
            return Verdict.PING
        return Verdict.WAIT

    @property
    def interval(self) -> float:
        """Seconds between checks that keep every deadline within a tenth."""
        return max(0.02, min(self.heartbeat, self.dead_after, WRITE_STALL) / 10)

    @property
    def patience(self) -> float:
        """Seconds of silence in which a second `check` waits, and changes nothing, if no write is pending."""
        return min(self.heartbeat, self.dead_after)

    @property
    def own_lag(self) -> float:
        """A check that is later than this many seconds says that we stood still ourselves."""
        return max(self.interval, min(OWN_LAG, self.dead_after / 4))


# ---- backoff -------------------------------------------------------------------------------------


@define
class Backoff:
    """How long a daemon waits before it dials again: full jitter, so that a thousand don't come at once."""

    base: float = 0.5
    """Seconds; the first failure waits up to this."""
    maximum: float = 30.0
    """Seconds; no wait is longer, unless the controller asked for it."""
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = 0

    def after_loss(self, lived: float, progressed: bool) -> float:
        """Seconds to wait after a live link was lost; `progressed`: some ack advanced on it."""
        if progressed or lived >= HEALTHY:
            self.failures = 0
            return self.uniform(0.0, min(self.maximum, 0.1))
        return self.after_failure(None)

    def after_farewell(self, lived: float, progressed: bool, retry_after: float) -> float:
        """Seconds to wait after a controller has taken its leave, and said when to come back."""
        if progressed or lived >= HEALTHY:
            self.failures = 0
        return self.after_failure(retry_after)

    def after_failure(self, retry_after: float | None) -> float:
        """Seconds to wait after a dial failed; `retry_after` is what the controller asked for, and wins."""
        self.failures += 1
        if retry_after is not None:
            return retry_after + self.uniform(0.0, min(retry_after, self.maximum) / 4)
        # The exponent is bounded because floats are.
        return self.uniform(0.0, min(self.maximum, self.base * 2.0 ** min(self.failures - 1, 32)))
