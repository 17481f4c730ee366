"""What may wait for one link without credit: each sender has as much as is left free."""

from __future__ import annotations

from sandd._core.backlog import BACKLOG_BYTES, Backlog
from sandd._core.scheduler import MAX_CONTROL_BACKLOG


def fill(backlog: Backlog, sender: str, size: int = 1) -> int:
    """Take as much room as there is for it; how much that was."""
    share, taken = backlog.share(sender), 0
    while share.has_room(size):
        share.add(size)
        taken += size
    return taken


def test_each_may_have_what_is_left_free() -> None:
    """One has half, the next half of the rest; and there is always something for one more."""
    backlog = Backlog(limit=1000)
    assert [fill(backlog, name) for name in "abc"] == [500, 250, 125]
    assert backlog.waiting == 875
    assert [fill(backlog, name) for name in "abc"] == [0, 0, 0]


def test_what_has_gone_makes_room() -> None:
    """For its sender and for others; whoever has nothing waiting is forgotten."""
    backlog = Backlog(limit=100)
    fill(backlog, "a")
    backlog.share("a").remove(50)
    assert (backlog.waiting, backlog.of("a"), backlog.by_sender) == (0, 0, {})
    assert fill(backlog, "b") == 50


def test_what_must_be_said_is_counted_without_room() -> None:
    """It leaves less for the rest of what its sender has to say, and for others."""
    backlog = Backlog(limit=100)
    backlog.share("a").add(90)
    assert not backlog.share("a").has_room(1)
    assert fill(backlog, "b") == 5


def test_the_link_is_not_given_up_for_what_senders_may_have_waiting() -> None:
    """What the controller itself says of daemons has room besides."""
    assert BACKLOG_BYTES < MAX_CONTROL_BACKLOG
