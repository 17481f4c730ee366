"""`sandd.testing.memory_network`: what arrives, and when, over connections that are cut, held and slow."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest
from attrs import define, field

from sandd import wire
from sandd._core.scheduler import Scheduler
from sandd.testing.memory_network import SEED_VARIABLE, Cable, CoreEnd, MemoryNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable


@define(eq=False)
class Party:
    """An end that sends what it is given, and keeps what it gets."""

    outbox: deque[bytes] = field(factory=deque)
    heard: list[bytes] = field(factory=list)
    is_open: bool = True
    peer_has_closed: bool = False

    def say(self, *messages: bytes) -> None:
        """Have something to send."""
        self.outbox.extend(messages)

    def next_message(self, max_bytes: int) -> bytes | None:
        """See `End`."""
        return self.outbox.popleft() if self.outbox else None

    def receive(self, message: bytes) -> None:
        """See `End`."""
        self.heard.append(message)

    def peer_closed(self) -> None:
        """See `End`."""
        self.peer_has_closed = True


@pytest.fixture
def network() -> MemoryNetwork:
    """A network with a seed of its own."""
    return MemoryNetwork(seed=1)


@pytest.fixture
def near() -> Party:
    """The end that took the connection."""
    return Party()


@pytest.fixture
def far() -> Party:
    """The end that dialled."""
    return Party()


@pytest.fixture
def cable(network: MemoryNetwork, near: Party, far: Party) -> Cable:
    """One connection between the two."""
    return network.connect(near, far)


def messages(count: int) -> list[bytes]:
    """Messages of 1, 2, 3, ... bytes."""
    return [bytes([65 + index]) * (index + 1) for index in range(count)]


def send_all(cable: Cable) -> None:
    """Everything is under way, and nothing has arrived."""
    for way in cable.ways:
        while way.send():
            pass


def test_messages_arrive_whole_and_in_order(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable
) -> None:
    """In both directions."""
    far.say(*messages(5))
    near.say(b"back")
    network.pump()
    assert near.heard == messages(5)
    assert far.heard == [b"back"]
    assert (cable.up.sent_bytes, cable.down.sent_bytes) == (15, 4)


@pytest.mark.parametrize("arriving", range(16))
def test_a_cut_behind_any_byte_lets_whole_messages_through(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable, arriving: int
) -> None:
    """Of a message that is cut in its middle nothing arrives, and nothing that was sent after it."""
    far.say(*messages(5))
    near.say(b"back")
    send_all(cable)
    cable.cut(up_bytes=arriving)
    far.say(b"too late")
    network.pump()
    whole = [sum(range(1, count + 1)) <= arriving for count in range(1, 6)].count(True)
    assert near.heard == messages(whole)
    assert far.heard == []
    assert cable.is_cut


def test_nobody_is_told_of_a_cut(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable
) -> None:
    """The connection stays open at both ends until they close it, and is of the network until then."""
    cable.cut()
    network.pump()
    assert not near.peer_has_closed
    assert network.cables == [cable]
    near.is_open = False
    assert network.cables == [cable]
    far.is_open = False
    assert network.cables == []
    assert repr(cable) == "<Cable closed closed, cut: 0 bytes up, 0 down>"


def test_a_held_direction_loses_nothing(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable
) -> None:
    """The other one goes on; released, everything arrives in its order."""
    cable.up.hold()
    far.say(b"one", b"two")
    near.say(b"back")
    network.advance(100)
    assert (near.heard, far.heard) == ([], [b"back"])
    assert cable.up.flying_bytes == 6
    cable.up.release()
    far.say(b"three")
    network.pump()
    assert near.heard == [b"one", b"two", b"three"]


def test_a_slow_direction_delivers_in_time_and_in_order(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable
) -> None:
    """What is sent after it has become fast again does not overtake."""
    cable.up.delay = 5.0
    far.say(b"slow")
    network.advance(2)
    cable.up.delay = 0.0
    far.say(b"fast")
    network.advance(2.9)
    assert near.heard == []
    network.advance(0.2)
    assert near.heard == [b"slow", b"fast"]


def test_what_is_led_to_by_an_arrival_happens_at_its_time(network: MemoryNetwork) -> None:
    """An answer to a message that took a second has its own second to go, and meets timers in order."""
    seen: list[tuple[str, float]] = []

    class Echo(Party):
        def receive(self, message: bytes) -> None:
            seen.append(("asked", network.clock.now))
            self.say(b"answer")

    class Asker(Party):
        def receive(self, message: bytes) -> None:
            seen.append(("answered", network.clock.now))

    asker = Asker()
    cable = network.connect(Echo(), asker)
    cable.up.delay = cable.down.delay = 1.0
    network.clock.call_at(1.5, lambda: seen.append(("timer", network.clock.now)))
    asker.say(b"question")
    network.advance(10)
    assert seen == [("asked", 1.0), ("timer", 1.5), ("answered", 2.0)]
    assert network.clock.now == 10


def test_the_word_of_a_closing_stands_behind_what_was_sent(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable
) -> None:
    """And is lost, like anything else, with a connection that was cut."""
    far.say(b"last words")
    cable.up.send()
    cable.up.close()
    far.say(b"never sent")
    network.pump()
    assert (near.heard, near.peer_has_closed) == ([b"last words"], True)
    cable.cut()
    cable.down.close()
    network.pump()
    assert not far.peer_has_closed


def test_what_arrives_at_a_closed_end_is_lost(
    network: MemoryNetwork, near: Party, far: Party, cable: Cable
) -> None:
    """It is not kept for later."""
    near.is_open = False
    far.say(b"to nobody")
    network.pump()
    near.is_open = True
    network.pump()
    assert near.heard == []


def test_two_connections_between_the_same_two_live_side_by_side(network: MemoryNetwork) -> None:
    """A new one does not end the one before it."""
    old, new = [network.connect(Party(), Party()) for _ in range(2)]
    for index, cable in enumerate((old, new)):
        cable.far.say(messages(2)[index])  # type: ignore[attr-defined]
    network.pump()
    assert [cable.near.heard for cable in (old, new)] == [[b"A"], [b"BB"]]  # type: ignore[attr-defined]


def shaken(seed: int | None, *, again: int | None = None) -> Iterable[int]:
    """How much of three messages has arrived after each of some random moves."""
    network = MemoryNetwork(seed)
    near, far = Party(), Party()
    network.connect(near, far)
    far.say(*messages(3))
    for step in range(20):
        network.shake(1, seed=None if again is None else again + step)
        yield len(near.heard)


def test_the_seed_repeats_what_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's, that of one call, and that of the environment."""
    assert list(shaken(7)) == list(shaken(7)) != list(shaken(8))
    assert list(shaken(1, again=5)) == list(shaken(2, again=5))
    monkeypatch.setenv(SEED_VARIABLE, "7")
    assert list(shaken(None)) == list(shaken(7))
    monkeypatch.delenv(SEED_VARIABLE)
    assert MemoryNetwork().seed != MemoryNetwork().seed
    MemoryNetwork(1).shake(10)  # without a cable nothing moves


def test_a_failure_names_the_seed() -> None:
    """As a note, which pytest prints below the traceback; the exception is the one that was raised."""
    with pytest.raises(AssertionError) as caught, MemoryNetwork(seed=42) as network:
        assert network.cables, "a guarantee was broken"
    assert caught.value.__notes__ == ["the network's seed was 42: SANDD_TEST_SEED=42"]


def test_a_network_without_rest_is_an_error(network: MemoryNetwork) -> None:
    """Two that answer each other for ever don't hang the test."""

    class Talker(Party):
        def receive(self, message: bytes) -> None:
            self.say(message)

    one = Talker()
    network.connect(one, Talker())
    one.say(b"hello")
    with pytest.raises(AssertionError, match="never comes to rest"):
        network.pump()


def test_a_core_is_an_end_by_its_scheduler(network: MemoryNetwork) -> None:
    """What the scheduler holds is sent in one message; what arrives is handed over frame by frame."""
    schedulers, frames = [Scheduler(), Scheduler()], list[wire.Frame]()
    closed: list[bool] = []
    core = CoreEnd(schedulers[0], frames.append, lambda: closed.append(True))
    cable = network.connect(core, CoreEnd(schedulers[1], frames.append))
    for number in range(3):
        schedulers[1].control(wire.encode_control(number, wire.Ping(number)))
    assert cable.up.send()
    assert len(cable.up.flying) == 1
    network.pump()
    assert [frame.channel for frame in frames] == [0, 1, 2]
    cable.up.close()
    cable.down.close()
    network.pump()
    assert closed == []  # it had closed itself
    assert network.cables == []


def test_a_core_that_closes_at_a_frame_hears_no_more_of_the_message(network: MemoryNetwork) -> None:
    """As with a real connection, whose reader stops there."""
    scheduler, heard = Scheduler(), list[int]()

    def take(frame: wire.Frame) -> None:
        heard.append(frame.channel)
        core.is_open = frame.channel != 1

    core = CoreEnd(Scheduler(), take)
    network.connect(core, CoreEnd(scheduler, heard.append))  # type: ignore[arg-type]
    for number in range(3):
        scheduler.control(wire.encode_control(number, wire.Ping(number)))
    network.pump()
    assert heard == [0, 1]
