"""What the daemon keeps of a session, for whom, and where who attaches begins."""

from __future__ import annotations

import attrs
import pytest
from scripted import Bytes, Skip, control, cursors
from test_jobs import ALICE, BOB, Daemon

from sandd import wire
from sandd._core.job import SESSION_RING_BYTES as RING
from sandd.wire import Role, Stream

SCROLLBACK = 1000
SPEC = wire.encode_spec(wire.SessionSpec((b"sh",), scrollback=SCROLLBACK))


@pytest.fixture
def daemon() -> Daemon:
    """A daemon with one session, whose client is attached and has heard so."""
    daemon = Daemon()
    daemon.attach(spec=SPEC, cursors=cursors(credit=100 * wire.MIB))
    ((_, attached),) = daemon.heard()
    assert attached.terminal
    daemon.job().started(7)
    daemon.job().finish(Stream.ERROR)
    return daemon


def show(daemon: Daemon, count: int) -> None:
    """The program prints so many bytes."""
    job = daemon.job()
    while count:
        size = min(count, job.room(Stream.OUTPUT))
        assert size, "it has to wait"
        job.write(Stream.OUTPUT, bytes(size))
        count -= size


def acknowledge(daemon: Daemon, offset: int, channel: int = 1) -> None:
    """The client has read so far."""
    daemon.heard()
    window = wire.StreamWindow(Stream.OUTPUT, offset, offset + 100 * wire.MIB)
    daemon.receive(control(channel, wire.Window((window,))))


def start_of(daemon: Daemon, channel: int) -> int:
    """Where the channel was told that its output begins."""
    ((_, attached),) = [
        (number, said)
        for number, said in daemon.heard()
        if number == channel and isinstance(said, wire.Attached)
    ]
    (state,) = [state for state in attached.streams if state.stream is Stream.OUTPUT]
    assert isinstance(state.start, int)
    return state.start


def test_what_was_read_is_kept_as_far_as_the_scrollback_reaches(daemon: Daemon) -> None:
    """And no further; none of it goes for what is not read yet."""
    show(daemon, 5000)
    acknowledge(daemon, 5000)
    log = daemon.job().outputs[Stream.OUTPUT]
    assert (log.base, log.floor, log.end) == (4000, 5000, 5000)
    show(daemon, RING)
    assert log.base == 4000
    assert log.room == 0  # its owner is there: it waits for it


def test_who_attaches_sees_the_scrollback_and_nothing_older(daemon: Daemon) -> None:
    """Also where much more is kept, since its owner has not read it; who asks for that gets it."""
    show(daemon, 5000)
    daemon.heard()
    daemon.resume(2, client=BOB, role=Role.VIEWER, cursors=())
    assert start_of(daemon, 2) == 4000
    daemon.resume(3, client=BOB, role=Role.VIEWER, cursors=cursors(output=None, credit=RING))
    assert start_of(daemon, 3) == 4000
    daemon.resume(4, client=BOB, role=Role.VIEWER, cursors=cursors(output=100, credit=RING))
    assert start_of(daemon, 4) == 100


def test_an_owner_whose_connection_broke_gets_all_of_it(daemon: Daemon) -> None:
    """Nobody knows whether it comes back: nothing counts as read."""
    show(daemon, 100)
    daemon.heard()
    daemon.table.close_link(daemon.link, daemon.now)
    show(daemon, 5000)
    again = daemon.restarted_link()
    again.resume(1, cursors=cursors(output=100, credit=RING), generation=1)
    assert start_of(again, 1) == 100
    assert sum(len(said.body) for _, said in again.heard() if isinstance(said, Bytes)) <= 5000
    assert daemon.job().outputs[Stream.OUTPUT].base == 0


def left(daemon: Daemon, generation: int = 1, client: str = ALICE) -> wire.End:
    """Its owner says that it leaves the job, for good, to itself."""
    tenant, job_id = daemon.job().key
    return wire.End("d", job_id, client=client, tenant=tenant, left=generation)


@pytest.mark.parametrize("for_good", [False, True])
def test_of_a_session_that_was_left_the_scrollback_is_enough(
    daemon: Daemon, for_good: bool
) -> None:
    """Its owner said that it won't come back for more; else all is kept, for it may."""
    show(daemon, 100)
    acknowledge(daemon, 100)
    daemon.receive(control(1, left(daemon) if for_good else wire.Detach()))
    show(daemon, 5000)
    log = daemon.job().outputs[Stream.OUTPUT]
    assert (log.base, log.floor) == ((4100, 5100) if for_good else (0, 100))
    assert log.end == 5100
    # From when somebody comes, it is theirs to read.
    daemon.resume(2, client=BOB, cursors=cursors(credit=0))
    show(daemon, 50)
    assert log.floor == (5100 if for_good else 100)


def test_what_a_viewer_says_on_leaving_counts_for_nothing(daemon: Daemon) -> None:
    """It has read nothing for the owner."""
    show(daemon, 5000)
    daemon.heard()
    daemon.resume(2, client=BOB, role=Role.VIEWER)
    daemon.receive(control(2, left(daemon, client=BOB)))
    show(daemon, 100)
    assert daemon.job().outputs[Stream.OUTPUT].floor == 0


def test_leaving_is_heard_behind_a_cut(daemon: Daemon) -> None:
    """On whatever link, said again, it is the same and ends nothing; of a job that is not there nothing comes."""
    show(daemon, 5000)
    said = left(daemon)
    daemon.table.close_link(daemon.link, daemon.now)
    again = daemon.restarted_link()
    for _ in range(2):
        again.receive(control(0, said))
    assert daemon.job().outputs[Stream.OUTPUT].floor == 5000
    assert not daemon.job().end_requested
    again.receive(control(0, attrs.evolve(said, job_id="another")))
    assert not daemon.table.tombstones.holds((said.tenant, "another"), daemon.now)


def test_leaving_means_the_ownership_that_was_left(daemon: Daemon) -> None:
    """Said again when its client has come back for more, it is too late: that may be cut, and come back for all."""
    show(daemon, 100)
    said = left(daemon)
    daemon.receive(control(1, said))
    daemon.resume(2, cursors=cursors(output=100, credit=0))
    assert daemon.job().generation == 2
    show(daemon, 5000)
    daemon.table.close_link(daemon.link, daemon.now)
    daemon.restarted_link().receive(control(0, said))
    assert daemon.job().outputs[Stream.OUTPUT].floor == 100


def test_a_command_that_was_left_is_kept_whole() -> None:
    """Only a session has a scrollback."""
    daemon = Daemon()
    daemon.attach(
        spec=wire.encode_spec(wire.CommandSpec((b"x",), detach=True)), cursors=cursors(credit=RING)
    )
    daemon.heard()
    daemon.receive(control(1, wire.Detach()))
    daemon.job().write(Stream.OUTPUT, bytes(5000))
    assert daemon.job().outputs[Stream.OUTPUT].floor == 0
    assert not daemon.job().terminal


def test_detaching_keeps_no_more_than_the_scrollback(daemon: Daemon) -> None:
    """A session that runs for weeks has no use for all it ever showed."""
    daemon.job().detach()
    show(daemon, 5000)
    acknowledge(daemon, 5000)
    assert daemon.job().detached
    assert daemon.job().outputs[Stream.OUTPUT].base == 4000


def test_without_its_owner_it_never_waits(daemon: Daemon) -> None:
    """The oldest goes when there is no room; with its owner there it waits, and nothing goes."""
    show(daemon, RING)
    assert daemon.job().room(Stream.OUTPUT) == 0
    daemon.table.close_link(daemon.link, daemon.now)
    show(daemon, 10 * RING)
    log = daemon.job().outputs[Stream.OUTPUT]
    assert log.end - log.base == RING + SCROLLBACK
    again = daemon.restarted_link()
    again.resume(1, cursors=cursors(output=0, credit=100 * wire.MIB), generation=1)
    assert Skip(Stream.OUTPUT, 0, log.base) in [said for _, said in again.heard()]
