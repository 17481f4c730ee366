"""Who is linked to whom: controllers and daemons that die, double, fall silent and dial again, against
DESIGN.md's guarantees.

Two controllers, of which one at a time has the address; two daemons that may have one id; jobs that are
started, shared and taken over through all of it. The machines are the real ones, the world is in
link_world.py, and after each rule the guarantees are asserted by number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from effort import tried
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from link_world import DEAD_AFTER, FLIGHT, LEASE, LONGEST_WAIT, RETENTION, Directory, LinkWorld

from sandd._core.client_job import AttachState
from sandd._core.fencing import RIVAL_PATIENCE, RIVAL_RETRY
from sandd._core.pump import HANDSHAKE_SECONDS
from sandd.wire import Exited, JobState, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from job_world import Process, Reader
    from link_world import Daemon

T = TypeVar("T")

INDEXES = st.integers(0, 5)
SIZES = st.sampled_from([1, 10, 1000, 70_000])
SEEDS = st.integers(0, 2**16)
"""Of random moves on the network: one number costs a tenth of what drawing each move would."""
ARRIVING = st.integers(0, 1500)
"""Bytes that still arrive of what is under way when a connection breaks: to any of a handshake's."""
MOVES = 12
MAX_JOBS = 3
MAX_READERS = 6
MAX_DAEMONS = 6
"""Started, one after the other."""
CHOSEN = "chosen"
SETTLED = DEAD_AFTER + RIVAL_PATIENCE + RIVAL_RETRY * 1.25 + LONGEST_WAIT + HANDSHAKE_SECONDS
"""Seconds on a healthy network after which it is decided who has the id, whatever happened before."""
MORE = 300_000
"""Bytes: beyond any ring."""
ROUNDS = 30


class Links(RuleBasedStateMachine):
    """Controllers and daemons; whoever uses the jobs uses one of the controllers."""

    @initialize(luck=st.sampled_from([0.0, 0.5, 1.0]))
    def set_up(self, luck: float) -> None:
        """A daemon is let in, and runs a job."""
        self.world = LinkWorld(luck)
        self.network = self.world.network
        self.network.pump()
        self.network.advance(0.0)
        self.world.open(self.world.controllers[0])

    def pick(self, what: Sequence[T], index: int) -> T | None:
        """One of several, or None where there is none."""
        return what[index % len(what)] if what else None

    def a_reader(self, index: int) -> Reader | None:
        """Somebody who is attached, or wants to be."""
        return self.pick([reader for reader in self.world.readers if not reader.left], index)

    def a_daemon(self, index: int) -> Daemon | None:
        """One that lives."""
        return self.pick(self.world.daemons, index)

    # -- programs

    @precondition(lambda self: len(self.world.daemons) + len(self.world.dead) < MAX_DAEMONS)
    @rule(
        index=INDEXES,
        how=st.sampled_from(["killed", "killed", "stopped", "stranger", "copy"]),
        starting=st.booleans(),
    )
    def daemons_change(self, index: int, how: str, starting: bool) -> None:
        """A daemon is killed or stopped and started again; or another of its id is started beside it, by a
        stranger or in a copy of its directory. A start may be under way that means another one."""
        if starting:
            self.start_job(index, chosen=False)
        daemon = self.a_daemon(index)
        assert daemon is not None
        if how in ("killed", "stopped"):
            self.world.kill_daemon(daemon, politely=how == "stopped")
            self.world.start_daemon(daemon.directory)
        elif len(self.world.daemons) < 2:
            self.world.is_copied = self.world.is_copied or how == "copy"
            self.world.start_daemon(Directory(daemon.directory.starts if how == "copy" else ()))

    @rule(index=st.integers(0, 1), how=st.sampled_from(["moves", "dies"]), address=st.booleans())
    def controllers_change(self, index: int, how: str, address: bool) -> None:
        """The address is given to the other controller; or one dies, and a new one is in its place."""
        if how == "dies":
            self.world.restart_controller(index)
        if how == "moves" or address:
            self.world.at = 1 - self.world.at

    # -- applications

    @precondition(lambda self: len(self.world.readers) < MAX_READERS)
    @rule(index=INDEXES, chosen=st.booleans())
    def start_job(self, index: int, chosen: bool) -> None:
        """Somebody starts a job, perhaps under an id that there was before."""
        if len(self.world.opened) < MAX_JOBS and len(self.world.readers) < MAX_READERS:
            controller = self.world.controllers[index % 2]
            self.world.open(controller, job_id=CHOSEN if chosen else None)

    @precondition(lambda self: len(self.world.readers) < MAX_READERS)
    @rule(index=INDEXES, role=st.sampled_from(Role), takeover=st.booleans())
    def attach(self, index: int, role: Role, takeover: bool) -> None:
        """Somebody attaches to a job, as after the loss of the controller that started it."""
        job_id = self.pick([*self.world.opened], index // 2)
        if job_id is not None:
            takeover = takeover and role is Role.OWNER
            controller = self.world.controllers[index % 2]
            self.world.attach(controller, job_id, role=role, takeover=takeover)

    @rule(index=INDEXES, end=st.booleans())
    def leave(self, index: int, end: bool) -> None:
        """Somebody has enough of a job, and ends it or lets it go on."""
        reader = self.a_reader(index)
        if reader is not None:
            self.world.leave(reader, end=end)

    @rule(printed=SIZES, written=SIZES, seed=SEEDS, exiting=st.integers(0, 9), once=st.booleans())
    def work(self, printed: int, written: int, seed: int, exiting: int, once: bool) -> None:
        """All processes print and read, all owners write, all readers read, all or a part; one process may
        end."""
        for reader in self.world.readers:
            if not reader.left and reader.job.role is Role.OWNER:
                reader.write(written)
                self.world.controller_of[reader.job].flush()
        self.network.shake(MOVES, seed=seed)
        for daemon in self.world.daemons:
            for number, process in enumerate(daemon.present):
                process.spawn()
                process.produce(Stream.OUTPUT, printed)
                process.consume(written)
                if number == exiting:
                    daemon.exit(process, 3, left_in_pipes=printed)
        self.network.shake(MOVES, seed=~seed)
        for reader in self.world.readers:
            self.world.read(reader, printed, once=once)

    # -- the network and the clock

    @rule(seed=SEEDS, moves=st.sampled_from([2, MOVES, 0]))
    def travel(self, seed: int, moves: int) -> None:
        """Something travels, or all there is."""
        if moves:
            self.network.shake(moves, seed=seed)
        else:
            self.network.pump()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 12.0, 30.0, 70.0]))
    def wait(self, seconds: float) -> None:
        """Time passes: what is due happens, and what is under way arrives."""
        self.network.advance(seconds)

    @rule(
        index=INDEXES,
        up_bytes=ARRIVING,
        down_bytes=ARRIVING,
        seconds=st.sampled_from([0.0, 1.0, 15.0]),
    )
    def cut(self, index: int, up_bytes: int, down_bytes: int, seconds: float) -> None:
        """A connection breaks, anywhere in what is under way; only time shows it."""
        cable = self.pick(self.network.cables, index)
        if cable is not None:
            for way in cable.ways:
                way.send()
            cable.cut(up_bytes=up_bytes, down_bytes=down_bytes)
            self.network.advance(seconds)

    @rule(index=INDEXES, up=st.booleans(), arriving=ARRIVING, slow=st.booleans())
    def reset(self, index: int, up: bool, arriving: int, slow: bool) -> None:
        """One end learns that its connection is broken, as by a RST; the other doesn't. What the first had said
        may still arrive, or come late: behind what it says on its next connection."""
        cable = self.pick(self.network.cables, index)
        if cable is not None:
            for way in cable.ways:
                way.delay = FLIGHT if slow else way.delay
                way.send()
            cable.cut(up_bytes=arriving, down_bytes=arriving)
            (cable.far if up else cable.near).peer_closed()
            self.network.advance(0.5)

    @rule(index=INDEXES, seconds=st.sampled_from([2.0, 5.0, 8.0]))
    def hurry(self, index: int, seconds: float) -> None:
        """A daemon dials over a slow line, gives that up with its handshake under way, and dials over a fast
        one: what it said first arrives last."""
        daemon = self.a_daemon(index)
        assert daemon is not None
        self.world.delay = FLIGHT
        if daemon.dial_in_use is not None:
            daemon.dial_in_use.over()
        self.network.advance(seconds)
        self.world.delay = 0.0
        if daemon.dial_in_use is not None and not daemon.is_live:
            daemon.dial_in_use.over()

    @rule(
        index=INDEXES,
        up=st.booleans(),
        how=st.sampled_from(["held", "slow", "mended"]),
        others=st.booleans(),
    )
    def impair(self, index: int, up: bool, how: str, others: bool) -> None:
        """One direction of a connection is a black hole, or slow, or as good as new; and slow or not are those
        that are made from now on."""
        if others:
            self.world.delay = FLIGHT if how == "slow" else 0.0
        cable = self.pick(self.network.cables, index)
        if cable is not None:
            way = cable.up if up else cable.down
            way.is_held = how == "held"
            way.delay = FLIGHT if how == "slow" else 0.0

    @rule(index=st.integers(0, 1))
    def late_frames(self, index: int) -> None:
        """What an old connection still held arrives."""
        self.world.late_frames(self.world.controllers[index])

    # -- what must hold

    @invariant()
    def guarantees(self) -> None:
        """At every moment."""
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """(9) On a healthy network one daemon has the id, for good, and all its jobs complete; (12) when all
        have left, and leases are over, nothing is left."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.delay = 0.0
        for cable in self.network.cables:
            for way in cable.ways:
                way.release()
                way.delay = 0.0
        for door in world.controllers[1 - world.at].doors:
            door.over()
        self.network.advance(SETTLED)
        world.check()
        (holder,) = [daemon for daemon in world.daemons if daemon.is_live]
        assert [(world.controller, holder)] == list(world.live_pairs()), "(9) who has the id?"
        holders = len(world.controller.instances)
        self.complete(holder)
        self.network.advance(DEAD_AFTER + RIVAL_RETRY * 1.25 + LONGEST_WAIT)
        assert len(world.controller.instances) == holders, "(9) the id goes to and fro"
        for reader in world.readers:
            world.leave(reader, end=True)
        self.network.advance(LEASE + 5)
        for daemon in world.daemons:
            for process in daemon.present:
                assert process.result is not None, "(12) it outlived its lease"
        self.network.advance(RETENTION + 5)
        world.check()
        for daemon in world.daemons:
            assert not daemon.table.jobs, "(12) a job is left"
        for controller in world.controllers:
            for link in (controller.client_link, *controller.router.daemons.values()):
                assert not link.routes, "a route is left"
                assert not link.scheduler.pending, "something is still scheduled"
            assert not controller.client.jobs

    def complete(self, holder: Daemon) -> None:
        """Let every process of the daemon that has the id print and read more, and end; its readers get all."""
        world = self.world
        ours = [
            reader
            for reader in world.readers
            if not reader.left and world.controller_of[reader.job] is world.controller
        ]
        goals: dict[Process, int] = {}
        for round_ in range(ROUNDS):
            self.network.pump()
            for process in holder.present:
                if process.result is None:
                    process.spawn()
                    goal = goals.setdefault(process, process.produced[Stream.OUTPUT] + MORE)
                    process.produce(Stream.OUTPUT, goal - process.produced[Stream.OUTPUT])
                    process.consume(MORE)
                    if process.produced[Stream.OUTPUT] >= goal or process.job.owner is None:
                        holder.exit(process, 7, left_in_pipes=1000)
            for reader in ours:
                world.read(reader, MORE)
            world.check()
            if round_ > 1 and all(reader.job.finished for reader in ours):
                break
        else:
            raise AssertionError(f"(9) {ours} after {ROUNDS} rounds on a healthy network")
        for reader in ours:
            if reader.job.error is not None:
                continue
            if reader.job.state is AttachState.CLOSED:
                # It had told all before its daemon was another, of which nothing is left here.
                assert isinstance(reader.job.result, Exited)
                ends = reader.job.result.finals
            else:
                assert reader.job.state is AttachState.ATTACHED
                process = holder.processes[reader.job.id]
                assert process.job.state is JobState.ENDED
                ends = process.produced
            for stream, size in ends.items():
                assert reader.job.outputs[stream].consumed == size, "(6) the output ends short"


TestLinks = tried(Links)
