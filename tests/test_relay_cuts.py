"""One session, cut everywhere: the exact same result, whatever the connections do.

The real client, router and job table, in memory (relay_world.py). The session has output on both
streams, input and its end, signals and an exit; each run ends on a healthy network.
"""

from __future__ import annotations

from itertools import product

import pytest
from attrs import define
from job_world import OUTPUTS, Process, pattern
from relay_world import Cable, World

from sandd import wire
from sandd.wire import Outcome, Stream

EXITED = wire.Exited(3, None, Outcome.EXITED, 1.0, False, {Stream.OUTPUT: 75, Stream.ERROR: 5})
BATCHES = 256 * wire.KIB


@define(eq=False)
class Cut:
    """Where a connection breaks: behind this many bytes, in this direction."""

    up: bool
    position: int
    other_arrives: bool = True
    """What was under way the other way still arrives; else it is lost, too."""
    redialled_first: bool = True
    """There is a new connection before the router has noticed that the old one is gone."""


class Session:
    """A scripted session over a connection that is cut where it is told to be.

    The connection is the daemon's, or with `of_client` the client's. With `max_bytes=1` each frame
    is a message of its own.
    """

    def __init__(
        self, *cuts: Cut, max_bytes: int = 1, of_client: bool = False, terminal: bool = False
    ) -> None:
        self.world = World()
        self.of_client = of_client
        self.max_bytes = max_bytes
        self.cuts = list(cuts)
        self.passed = {True: 0, False: 0}
        self.totals: list[tuple[bool, int]] = []
        """(direction, bytes passed in it) behind each message of the present connection."""
        self.links = 1
        self.last_cut: Cut | None = None
        self.alice = self.world.join("alice")
        self.world.dial()
        self.reader = self.world.start(self.alice, terminal=terminal)

    @property
    def cables(self) -> tuple[Cable, Cable]:
        """The connection that is cut, and the other one."""
        daemon, client = self.world.cables[-1], self.alice.cable
        assert client is not None
        return (client, daemon) if self.of_client else (daemon, client)

    def travel(self) -> None:
        """Everything travels; a cut is noticed, and mended, at once."""
        for _ in range(1000):
            watched, other = self.cables
            moved = [other.pump(), *[self.pass_on(watched, up=up) for up in (True, False)]]
            if watched.is_cut:
                self.mend(watched)
            elif not any(moved):
                return
        raise AssertionError("(9) the session never comes to rest")

    def pass_on(self, cable: Cable, *, up: bool) -> bool:
        """One message travels in one direction, as far as the connection lasts."""
        if not cable.send(up=up, max_bytes=self.max_bytes):
            return False
        flying = cable.to_near if up else cable.to_far
        if flying:
            self.passed[up] += len(flying[-1])
            self.totals.append((up, self.passed[up]))
            cut = self.cuts[0] if self.cuts else None
            if cut is not None and cut.up is up and self.passed[up] > cut.position:
                self.last_cut = self.cuts.pop(0)
                # The other direction's next message is under way at the same moment.
                cable.send(up=not up, max_bytes=self.max_bytes)
                arriving = 10**6 if cut.other_arrives else 0
                cable.cut(up_bytes=0 if up else arriving, down_bytes=arriving if up else 0)
        while cable.deliver(up=up) or cable.deliver(up=not up):
            pass
        return True

    def mend(self, cable: Cable) -> None:
        """The broken connection is noticed at both ends, and replaced."""
        assert self.last_cut is not None
        early = self.last_cut.redialled_first
        self.links += 1
        self.passed = {True: 0, False: 0}
        if self.of_client:
            if not early:
                self.alice.router_notices()
            self.alice.connect()
            self.travel()
            self.alice.router_notices()
            return
        if not early:
            self.world.router_notices(cable)
            self.world.daemon_notices(cable)
        self.world.dial()
        self.travel()
        self.world.daemon_notices(cable)

    @property
    def process(self) -> Process:
        """What the job runs."""
        (process,) = self.world.processes.values()
        return process

    def run(self) -> None:
        """The script, from the first start to the last word."""
        reader = self.reader
        reader.write(10)
        self.step()
        self.process.spawn()
        self.process.produce(Stream.OUTPUT, 20)
        self.step()
        self.process.consume(4)
        reader.signal()
        reader.write(30)
        self.process.produce(Stream.ERROR, 5)
        self.step()
        self.process.consume(100)
        reader.finish()
        self.process.produce(Stream.OUTPUT, 30)
        self.step()
        self.process.consume(100)
        self.process.close(Stream.ERROR)
        reader.signal()
        self.step()
        self.world.exit(self.process.job.key[1], 3, left_in_pipes=25)
        self.step()
        self.world.leave(reader, end=True)
        self.step()

    def step(self) -> None:
        """Everything travels, everybody reads, and the guarantees hold."""
        self.travel()
        self.world.read_all()
        self.travel()
        self.world.check()

    def check(self) -> None:
        """The result is exactly the one of a session without a cut, and nothing is left of it."""
        reader, process = self.reader, self.process
        assert reader.job.error is None
        assert reader.job.result == EXITED
        assert {stream: reader.taken[stream] for stream in OUTPUTS} == EXITED.finals
        assert bytes(process.consumed) == pattern(reader.number, 0, 40)
        assert process.at_end_of_input
        assert process.signals == ["S0", "S1"]
        if self.of_client:
            self.world.tick(
                5000
            )  # its last word may be lost with its connection: leases are for that
        assert self.world.table.jobs == {}
        self.world.check_empty()


def played(
    *cuts: Cut, max_bytes: int = 1, of_client: bool = False, terminal: bool = False
) -> Session:
    """A session that was played and checked."""
    session = Session(*cuts, max_bytes=max_bytes, of_client=of_client, terminal=terminal)
    session.run()
    session.check()
    return session


WHOSE = pytest.mark.parametrize("of_client", [False, True], ids=["daemon", "client"])


@pytest.mark.parametrize("max_bytes", [1, BATCHES], ids=["frames", "batches"])
@WHOSE
def test_a_session_without_a_cut(of_client: bool, max_bytes: int) -> None:
    """The script does what it says, over one connection."""
    assert played(max_bytes=max_bytes, of_client=of_client).links == 1


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("other_arrives", [True, False], ids=["other arrives", "other lost"])
@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
@WHOSE
def test_a_cut_at_every_byte(
    of_client: bool, terminal: bool, other_arrives: bool, up: bool
) -> None:
    """(1), (5), (6), (7): one cut behind every single byte, in each direction, of each connection."""
    uncut = played(of_client=of_client, terminal=terminal)
    behind = [passed for way, passed in uncut.totals if way is up]
    assert len(behind) >= 8
    for first, beyond in zip([0, *behind], behind, strict=False):
        # A message arrives whole or not at all (`Cable.cut`), so what is true of its first and its
        # last byte is true of those between them.
        for position, early in product((first, beyond - 1), (True, False)):
            cut = Cut(up, position, other_arrives, redialled_first=early)
            assert played(cut, of_client=of_client, terminal=terminal).links == 2


@WHOSE
def test_two_cuts_behind_every_message(of_client: bool) -> None:
    """(1), (5), (6), (7): a second cut anywhere in what follows the first, down to the resuming itself."""
    first_ones = played(max_bytes=BATCHES, of_client=of_client).totals
    links = []
    for up, passed in first_ones:
        first = Cut(up, passed - 1, other_arrives=passed % 2 == 0, redialled_first=passed % 3 == 0)
        once = Session(first, max_bytes=BATCHES, of_client=of_client)
        once.run()
        second_ones = once.totals[first_ones.index((up, passed)) + 1 :]
        for (again, behind), early in product(second_ones, (True, False)):
            second = Cut(again, behind - 1, redialled_first=early)
            links.append(played(first, second, max_bytes=BATCHES, of_client=of_client).links)
    assert links.count(3) > 0.9 * len(links) > 100
