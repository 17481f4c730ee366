"""Used-up job ids: none runs twice, and remembering them takes little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd._core import tombstones as tombstones_module
from sandd._core.tombstones import KEEP_SECONDS, Tombstones, generate, parse

CLIENT, OTHER = "0123456789abcdef", "fedcba9876543210"


@given(st.integers(0, 10**18 - 1))
def test_generated_ids_can_be_told(sequence: int) -> None:
    """A generated id gives back its client and sequence."""
    assert parse(generate(CLIENT, sequence)) == (CLIENT, sequence)


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        "build",
        f"{CLIENT}",
        f"{CLIENT}.",
        f"{CLIENT}.-1",
        f"{CLIENT}.1\n",
        f"{CLIENT}.1234567890123456789",
        f"{CLIENT.upper()}.1",
        f"x{CLIENT}.1",
        f"{CLIENT}.\u0663",
    ],
)
def test_other_ids_are_chosen_ones(job_id: str) -> None:
    """Whatever isn't exactly a generated id was chosen by a user."""
    assert parse(job_id) is None


@pytest.mark.parametrize("job_id", [generate(CLIENT, 5), "chosen"])
def test_a_buried_id_is_used_up_in_its_tenant(job_id: str) -> None:
    """An id of the same name at another tenant is another id."""
    stones = Tombstones()
    assert not stones.holds(("t", job_id), 0.0)
    stones.bury(("t", job_id), 0.0)
    stones.bury(("t", job_id), 0.0)
    assert stones.holds(("t", job_id), 0.0)
    assert not stones.holds(("u", job_id), 0.0)
    assert not stones.holds(("t", job_id + "0"), 0.0)
    assert len(stones) == 1


def test_chosen_ids_are_free_again_after_a_day() -> None:
    """A day counts from when the id was used up first: it is said again after each cut. Generated ids
    are used up for ever."""
    stones = Tombstones()
    stones.bury(("t", "one"), 0.0)
    stones.bury(("t", "two"), 0.0)
    stones.bury(("t", generate(CLIENT, 1)), 0.0)
    stones.bury(("t", "one"), 1000.0)
    assert stones.holds(("t", "two"), KEEP_SECONDS - 1)
    assert not stones.holds(("t", "two"), KEEP_SECONDS)
    assert not stones.holds(("t", "one"), KEEP_SECONDS)
    assert stones.holds(("t", generate(CLIENT, 1)), 100 * KEEP_SECONDS)


def test_a_floor_stands_for_all_below_it() -> None:
    """What a client calls settled is used up, though nothing is remembered of it."""
    stones = Tombstones()
    for sequence in range(100):
        stones.bury(("t", generate(CLIENT, sequence)), 0.0)
    stones.settle("t", CLIENT, 0)
    stones.settle("t", CLIENT, 99)
    stones.settle("t", CLIENT, 50)
    assert len(stones) == 1
    assert all(stones.holds(("t", generate(CLIENT, sequence)), 0.0) for sequence in range(100))
    assert not stones.holds(("t", generate(CLIENT, 100)), 0.0)
    assert not stones.holds(("t", generate(OTHER, 5)), 0.0)
    stones.bury(("t", generate(CLIENT, 7)), 0.0)
    assert len(stones) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["bury", "settle"]),
            st.sampled_from([CLIENT, OTHER]),
            st.integers(0, 20),
        )
    )
)
def test_nothing_used_up_is_ever_free_again(steps: list[tuple[str, str, int]]) -> None:
    """(5) Against a model that remembers everything: used up is exactly what was buried or settled."""
    stones = Tombstones()
    used: set[tuple[str, int]] = set()
    for step, client, sequence in steps:
        if step == "bury":
            stones.bury(("t", generate(client, sequence)), 0.0)
            used.add((client, sequence))
        else:
            stones.settle("t", client, sequence)
            used |= {(client, below) for below in range(sequence)}
    for client in (CLIENT, OTHER):
        for sequence in range(25):
            held = stones.holds(("t", generate(client, sequence)), 0.0)
            assert held is ((client, sequence) in used)


def test_chosen_ids_never_heard_of_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is full nothing is remembered for those who never started; the table refuses them all."""
    monkeypatch.setattr(tombstones_module, "MAX_CHOSEN", 3)
    stones = Tombstones()
    for n in range(10):
        stones.forestall(("t", f"id-{n}"), float(n))
    assert stones.full
    assert len(stones) == 3
    assert stones.holds(("t", "id-2"), 9.0)
    stones.bury(("t", "ran"), 9.0)
    assert stones.holds(("t", "ran"), 9.0)
    stones.forestall(("t", "later"), KEEP_SECONDS + 8)
    assert stones.holds(("t", "later"), KEEP_SECONDS + 8)


def test_a_clients_ids_fill_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the floor rises: some ids never run, but none runs twice."""
    monkeypatch.setattr(tombstones_module, "MAX_CHOSEN", 100)
    stones = Tombstones()
    for sequence in range(0, 2000, 2):
        stones.forestall(("t", generate(CLIENT, sequence)), 0.0)
        assert len(stones) <= 100
    assert all(
        stones.holds(("t", generate(CLIENT, sequence)), 0.0) for sequence in range(0, 2000, 2)
    )
    assert not stones.holds(("t", generate(CLIENT, 2000)), 0.0)
    assert not stones.full


def test_the_client_unheard_of_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are bounded in number, too; whoever still speaks is remembered."""
    monkeypatch.setattr(tombstones_module, "MAX_CLIENTS", 2)
    stones = Tombstones()
    clients = [f"{n:016x}" for n in range(3)]
    stones.settle("t", clients[0], 5)
    stones.settle("t", clients[1], 5)
    stones.settle("t", clients[0], 6)
    stones.settle("t", clients[2], 5)
    held = [stones.holds(("t", generate(client, 1)), 0.0) for client in clients]
    assert held == [True, False, True]
