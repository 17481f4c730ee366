"""Who may hold a daemon id: each claim is judged by what is remembered of those before it.

A daemon is one *instance* after the other: every start is a new one. They are told from strangers by
their *ancestors*, the instances that started from the same state directory before; it keeps them. One
that names another among its ancestors **descends** from it: the other one had let go of the directory
by then, so it is over. Two that have an ancestor in common, and of which neither descends from the
other, come from two copies of one directory: they are **forked**.

The rules; the first that fits counts:

1. the holder itself: its newer connection supersedes the older one, which is stale if it comes late;
2. one whose descendant, the holder or a rival, is known, and was challenged after it: stale. Its Hello
   was under way for longer than it lived, for all that is known; if it does live, it will dial again;
3. nobody is known, or the holder is gone for good: admitted;
4. the holder has a live link: it is asked. If it answers, the other is refused, and a *rival* from
   then on; if not, the other is admitted;
5. the holder is away, and this is a rival: refused, until the holder had time to come back;
6. the holder is away: admitted. Mostly the daemon was started again.

Whose place is taken is a rival of its successor: should it ever come back, it has lived on.

In 4 and 5 two live at once. If they are related, that proves a copy (`RejectCode.CLONED`); if not, the
id was given twice (`RejectCode.ID_IN_USE`). In 6 a fork is only suspicious - the directory may have been
rolled back, with its whole machine - so it is reported, and let in: nothing runs twice by that, since a
job is bound to an instance.

What can raise no alarm: a directory that was lost, made anew or could not be written, for its daemon has
no relatives; starts that never reached the controller, for they are in the line of those that do; a
Hello that comes late, for it answers a challenge that is old; a controller that starts with an empty
memory, for the first claim is where it begins.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from sandd import wire
from sandd.wire import DaemonState, RejectCode

if TYPE_CHECKING:
    from collections.abc import Mapping

RIVAL_PATIENCE: Final = 60.0
"""Seconds for which a holder may be away before a rival gets its id: twice the longest pause between
its dials."""
RIVAL_RETRY: Final = 10.0
"""Seconds after which a rival may ask again."""
MAX_RIVALS: Final = 16
"""Instances remembered as rivals for one id: the latest."""


@frozen
class Claim:
    """Somebody wants to be the daemon of this id."""

    instance: str
    connection: int
    ancestors: tuple[str, ...] = ()
    """Newest first."""
    hostname: str = ""
    challenged_at: float = field(kw_only=True)
    """When the controller sent the challenge that the Hello answers, by its own clock: whoever makes this
    claim was started before, and has lived until then at least."""

    @classmethod
    def of(cls, hello: wire.Hello, challenged_at: float) -> Claim:
        """What a Hello claims, in answer to a challenge of that time."""
        return cls(
            hello.instance,
            hello.connection,
            hello.ancestors,
            hello.hostname,
            challenged_at=challenged_at,
        )

    def descends_from(self, other: Claim) -> bool:
        """Whether it was started from the other's state directory, after it."""
        return other.instance in self.ancestors

    def is_outlived_by(self, other: Claim) -> bool:
        """Whether the other was started from its state directory, and nothing shows that it lived on."""
        return other.descends_from(self) and self.challenged_at <= other.challenged_at

    def is_related_to(self, other: Claim) -> bool:
        """Whether both were started from one state directory, or from copies of one."""
        ours, theirs = {self.instance, *self.ancestors}, {other.instance, *other.ancestors}
        return not ours.isdisjoint(theirs)

    def is_fork_of(self, other: Claim) -> bool:
        """Whether this one's state directory is a copy that was made before the other started."""
        return self.is_related_to(other) and not self.descends_from(other)


class Ruling(enum.Enum):
    """What is to be done about a claim."""

    ADMIT = enum.auto()
    ADMIT_FORK = enum.auto()
    """As `ADMIT`, and people should hear of it."""
    SUPERSEDE = enum.auto()
    """As `ADMIT`; the link that the holder may have is an old one of this very instance."""
    ASK_HOLDER = enum.auto()
    """Ask the holder for a sign of life: refuse this one if it gives any, else admit it."""
    REFUSE = enum.auto()
    STALE = enum.auto()


@define
class Tenure:
    """What is remembered of those who held, or wanted, one daemon id."""

    holder: Claim
    _rivals: Mapping[str, _Rival] = field(factory=dict)
    """By instance, those that live, or may live, beside the holder; the latest is the last."""

    def judge(self, claim: Claim, state: DaemonState, away_for: float) -> Ruling:
        """What to do about a claim, the holder being in `state`; if AWAY, for so many seconds."""
        if claim.instance == self.holder.instance:
            is_newer = claim.connection > self.holder.connection
            return Ruling.SUPERSEDE if is_newer else Ruling.STALE
        known = [self.holder, *(rival.claim for rival in self._rivals.values())]
        if any(claim.is_outlived_by(other) for other in known):
            return Ruling.STALE
        if state is DaemonState.GONE:
            return Ruling.ADMIT
        if state is DaemonState.ONLINE:
            return Ruling.ASK_HOLDER
        if claim.instance in self._rivals and away_for < RIVAL_PATIENCE:
            return Ruling.REFUSE
        return Ruling.ADMIT_FORK if claim.is_fork_of(self.holder) else Ruling.ADMIT

    def refuse(self, daemon_id: str, claim: Claim) -> wire.Reject:
        """The answer to a claim that has to stand back; its instance is a rival now."""
        self._rivals = _remember(self._rivals, claim, self.holder)
        other = f"another running daemon, on host {self.holder.hostname!r}"
        if claim.is_related_to(self.holder):
            text = (
                f"the state directory of this daemon {daemon_id!r} is a copy of the one of {other}, or "
                "that is a copy of this: stop one of the two, or give one an id and an empty state "
                "directory of its own"
            )
            return wire.Reject(RejectCode.CLONED, text, RIVAL_RETRY)
        text = (
            f"the daemon id {daemon_id!r} is held by {other}; "
            "stop that one, or give this one another id"
        )
        return wire.Reject(RejectCode.ID_IN_USE, text, RIVAL_RETRY)

    def succeed(self, claim: Claim) -> None:
        """The claim was admitted."""
        rivals = {each: rival for each, rival in self._rivals.items() if each != claim.instance}
        is_same = claim.instance == self.holder.instance
        self._rivals = rivals if is_same else _remember(rivals, self.holder, self.holder)
        self.holder = claim

    def has_refused(self, claim: Claim) -> bool:
        """Whether this one had to stand back before, and the present holder was why."""
        rival = self._rivals.get(claim.instance)
        return rival is not None and rival.beside == self.holder.instance


@frozen
class _Rival:
    claim: Claim
    """Its latest."""
    beside: str
    """The instance that held the id then."""


def _remember(rivals: Mapping[str, _Rival], claim: Claim, holder: Claim) -> Mapping[str, _Rival]:
    others = [each for each in rivals.items() if each[0] != claim.instance]
    return dict([*others[1 - MAX_RIVALS :], (claim.instance, _Rival(claim, holder.instance))])
