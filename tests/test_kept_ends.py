"""Ends that are to be said again: one for each job and client, and who says many pushes out its own."""

from __future__ import annotations

import pytest

from sandd import wire
from sandd._core.kept_ends import KeptEnds


def end(job_id: str, daemon_id: str = "d", **more: str) -> wire.End:
    """For a job of somebody's."""
    return wire.End(daemon_id, job_id, client=more.pop("client", "c"), tenant="t")


@pytest.mark.parametrize("victims", [1, 3])
def test_one_client_pushes_out_nobody_elses(victims: int) -> None:
    """However many it says: beyond the bound the oldest goes of whoever has most."""
    kept = KeptEnds(10)
    for n in range(victims):
        kept.keep(end(f"v{n}", client="victim"), "victim")
    for n in range(1000):
        kept.keep(end(f"h{n}", client="hostile"), "hostile")
    assert len(kept) == 10
    ids = [each.job_id for each, _ in kept.all()]
    assert ids == [
        *(f"v{n}" for n in range(victims)),
        *(f"h{n}" for n in range(990 + victims, 1000)),
    ]


def test_saying_one_again_changes_nothing() -> None:
    """It keeps its place, and is no reason to write them anew; with another grace it is another."""
    kept = KeptEnds(10)
    kept.keep(end("a"), "x")
    kept.keep(end("b"), "x")
    version = kept.version
    kept.keep(end("a"), "x")
    assert (kept.version, [each.job_id for each, _ in kept.all()]) == (version, ["a", "b"])
    kept.keep(wire.End("d", "a", 1.0, "c", "t"), "x")
    assert kept.version > version
    assert [(each.job_id, each.grace) for each, _ in kept.all()] == [("b", None), ("a", 1.0)]


def test_what_was_heard_is_forgotten() -> None:
    """All that was said at a lower place; one that is said anew, with another grace, is at its new one."""
    kept = KeptEnds(10)
    for place, job_id in ((0, "a"), (3, "b"), (3, "c"), (4, "d")):
        kept.keep(end(job_id), "x", place=place)
    kept.keep(end("c"), "x", place=5)
    kept.keep(wire.End("d", "a", 1.0, "c", "t"), "y", place=5)
    kept.heard(3)
    assert [each.job_id for each, _ in kept.all()] == ["b", "c", "d", "a"]
    kept.heard(5)
    assert [each.job_id for each, _ in kept.all()] == ["a"]
    kept.heard(6)
    kept.heard(7)
    assert (kept.all(), kept._by_sender) == ([], {})


def test_what_is_taken_is_kept_no_more() -> None:
    """Those of one daemon, with who said them; others stay."""
    kept = KeptEnds(10)
    kept.keep(end("a"), "x")
    kept.keep(end("a", "e"), "x")
    kept.keep(end("b"), "y")
    assert kept.take("d") == [(end("a"), "x"), (end("b"), "y")]
    assert kept.take("d") == []
    assert [each.daemon_id for each, _ in kept.all()] == ["e"]


def test_those_of_a_job_are_dropped() -> None:
    """Whoever said them; the same id of another tenant is another job."""
    kept = KeptEnds(10)
    kept.keep(end("a"), "x")
    kept.keep(end("a", client="another"), "y")
    kept.keep(end("b"), "x")
    kept.drop("t", "b")
    kept.drop("elsewhere", "a")
    assert len(kept) == 2
    kept.drop("t", "a")
    assert (len(kept), kept._by_sender) == (0, {})
