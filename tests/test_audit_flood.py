"""How much strangers, and each actor's refusals, may cause to be written."""

from __future__ import annotations

from sandd._core.audit.flood import BURST, MAX_ACTORS, Floods
from sandd._core.audit.records import Record, RecordType


def refusal(actor: str) -> Record:
    """Somebody was refused something."""
    return Record(type=RecordType.REFUSAL, outcome="denied", tenant="acme", actor=actor)


def test_each_actor_has_room_of_its_own() -> None:
    """Whoever fills his own takes nothing from others, and has one more each second."""
    floods = Floods()
    assert sum(floods.admits(refusal("mallory"), 0.0) for _ in range(1000)) == BURST
    assert floods.admits(refusal("alice"), 0.0)
    assert not floods.admits(refusal("mallory"), 0.5)
    assert floods.admits(refusal("mallory"), 1.5)
    assert floods.admits_stranger(0.0)
    (told,) = floods.summaries()
    assert (told.tenant, told.actor) == ("acme", "mallory")
    assert told.reason is not None
    assert told.reason.startswith("901 more")
    assert list(floods.summaries()) == []


def test_each_type_has_room_of_its_own() -> None:
    """Whoever attaches again and again hides no refusal by that; either number is told."""
    floods = Floods()
    for what in (RecordType.ATTACH, RecordType.REFUSAL):
        record = Record(type=what, outcome="", tenant="acme", actor="mallory")
        assert sum(floods.admits(record, 0.0) for _ in range(BURST + 7)) == BURST
    told = {record.type: record.reason for record in floods.summaries()}
    assert told == {
        RecordType.ATTACH: "7 more attached as had been told before, and are not told one by one",
        RecordType.REFUSAL: "7 more were refused, and are not told one by one",
    }


def test_names_that_are_made_up_share_what_is_left() -> None:
    """Memory has a bound, and so has the file; who was held back is not forgotten for a new name."""
    floods = Floods()
    for number in range(MAX_ACTORS):
        for _ in range(BURST + 1):
            floods.admits(refusal(f"name-{number}"), 0.0)
    admitted = sum(floods.admits(refusal(f"other-{number}"), 0.0) for number in range(5000))
    assert admitted == BURST
    assert not floods.admits(refusal("name-0"), 0.0)
    told = list(floods.summaries())
    assert len(told) == 1 + MAX_ACTORS
    assert told[0].actor is None
    # When all are whole again, a newcomer has the place of one of them.
    assert floods.admits(refusal("late"), 1000.0)
    assert len(floods._actors) == MAX_ACTORS
    assert floods._actors.get((RecordType.REFUSAL, "acme", "late")) is not None
