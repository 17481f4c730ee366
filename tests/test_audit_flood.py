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
    assert sum(floods.admits_refusal(refusal("mallory"), 0.0) for _ in range(1000)) == BURST
    assert floods.admits_refusal(refusal("alice"), 0.0)
    assert not floods.admits_refusal(refusal("mallory"), 0.5)
    assert floods.admits_refusal(refusal("mallory"), 1.5)
    assert floods.admits_stranger(0.0)
    (told,) = floods.summaries()
    assert (told.tenant, told.actor) == ("acme", "mallory")
    assert told.reason is not None
    assert told.reason.startswith("901 more")
    assert list(floods.summaries()) == []


def test_names_that_are_made_up_share_what_is_left() -> None:
    """Memory has a bound, and so has the file; who was held back is not forgotten for a new name."""
    floods = Floods()
    for number in range(MAX_ACTORS):
        for _ in range(BURST + 1):
            floods.admits_refusal(refusal(f"name-{number}"), 0.0)
    admitted = sum(floods.admits_refusal(refusal(f"other-{number}"), 0.0) for number in range(5000))
    assert admitted == BURST
    assert not floods.admits_refusal(refusal("name-0"), 0.0)
    told = list(floods.summaries())
    assert len(told) == 1 + MAX_ACTORS
    assert told[0].actor is None
    # When all are whole again, a newcomer has the place of one of them.
    assert floods.admits_refusal(refusal("late"), 1000.0)
    assert len(floods._actors) == MAX_ACTORS
    assert floods._actors.get(("acme", "late")) is not None
