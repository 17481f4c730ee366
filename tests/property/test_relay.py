"""Nothing is lost: the whole relay, cut anywhere, against DESIGN.md's guarantees.

Real clients, router and job table; only the cables and the processes are models (relay_world.py,
which asserts the guarantees by their numbers after each step).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from effort import tried
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from relay_world import Peer, World

from sandd import wire
from sandd._core.client_job import AttachState
from sandd._core.spool import Spool
from sandd._core.streams import WINDOW_BYTES
from sandd.wire import JobState, Role, Stream

if TYPE_CHECKING:
    from job_world import Process, Reader

SIZES = st.sampled_from([1, 10, 1000, 65_536, 70_000, 300_000])
INDEXES = st.integers(0, 9)
OUTPUTS = st.sampled_from([Stream.OUTPUT, Stream.ERROR])
Moves: TypeAlias = list[tuple[int, bool, bool]]
"""(which connection, towards its near end, sent rather than delivered)."""
MOVES = st.binary(max_size=12).map(lambda data: [(n >> 2, bool(n & 1), bool(n & 2)) for n in data])
"""One byte for each: drawing them one by one would take longer than all else."""
FRACTIONS = st.integers(0, 2000) | st.integers(0, 10**6)
"""Bytes that still arrive of what is under way when a connection breaks."""
QUOTAS = st.sampled_from([100_000, wire.MIB, 100 * wire.MIB])
"""Bytes on disk: next to nothing, a little more than the rings hold, and more than is ever printed."""
MAX_JOBS = 3
MAX_REQUESTS = 3
LEASE = 30.0
"""Seconds; so short that it passes in a few ticks."""
RETENTION = 100.0
MORE = 300_000
"""Bytes: beyond any ring and the window of an input, so that what stands still for lack of credit is found
out. Only the first process prints enough for the window of an output, for that takes its time."""
ROUNDS = 60
"""In which everything is complete on a healthy network, whatever happened before."""


class Relay(RuleBasedStateMachine):
    """One daemon; Alice, who starts jobs; Bob, who looks at them and takes them over."""

    @initialize(
        dropping=st.booleans(),
        detach=st.booleans(),
        terminal=st.sampled_from([False, False, True]),
        spool=st.builds(Spool.within, QUOTAS, QUOTAS) | st.none(),
        audited=st.booleans(),
    )
    def set_up(
        self, dropping: bool, detach: bool, terminal: bool, spool: Spool | None, audited: bool
    ) -> None:
        """Everybody is connected, and a first job is wanted."""
        self.world = World(spool, retention=RETENTION, audited=audited)
        self.dropping = dropping
        self.detach = detach
        self.terminal = terminal
        self.alice = self.world.join("alice")
        self.bob = self.world.join("bob")
        self.world.dial()
        self.world.start(
            self.alice, dropping=dropping, detach=detach, lease=LEASE, terminal=terminal
        )
        if audited:
            self.alice.hand_over()  # the log has it, and not yet the daemon

    def pick(self, what: list[Any], index: int) -> Any:
        """One of several, or None where there is none."""
        return what[index % len(what)] if what else None

    def peer(self, index: int) -> Peer:
        """Alice or Bob."""
        return (self.alice, self.bob)[index % 2]

    def a_reader(self, index: int) -> Reader | None:
        """Somebody who is attached, or wants to be."""
        open_readers = [reader for reader in self.world.readers if not reader.left]
        reader: Reader | None = self.pick(open_readers, index)
        return reader

    def a_process(self, index: int) -> Process | None:
        """Something that runs, or is about to."""
        live = [
            process
            for process in self.world.processes.values()
            if process.result is None and process.job in self.world.table.jobs.values()
        ]
        process: Process | None = self.pick(live, index)
        return process

    # -- applications

    @precondition(lambda self: len(self.world.processes) < MAX_JOBS)
    @rule(chosen=st.booleans(), arrives=st.booleans())
    def start(self, chosen: bool, arrives: bool) -> None:
        """Alice starts another job, or the one of an id of her choice, be it again; it may arrive at once."""
        # What a former instance ran under a chosen id may be asked for anew: that would be no fault.
        first = self.world.table.instance == "instance-1"
        job_id = "chosen" if chosen and first else None
        self.world.start(
            self.alice,
            dropping=self.dropping,
            detach=self.detach,
            job_id=job_id,
            lease=LEASE,
            terminal=self.terminal,
        )
        if arrives:
            self.alice.hand_over()

    @rule(
        index=INDEXES,
        what=st.sampled_from(["write", "finish", "signal", "flush", "detach"]),
        size=SIZES,
    )
    def use(self, index: int, what: str, size: int) -> None:
        """Somebody writes to a job's stdin or closes it, signals the job, asks whether all has arrived,
        or wants the job to outlive it."""
        reader = self.a_reader(index)
        if reader is None or reader.job.role is not Role.OWNER:
            return
        match what:
            case "write":
                reader.write(size)
            case "finish":
                reader.finish()
            case "signal":
                reader.signal()
            case _:
                reader.ask_flush(detach=what == "detach")

    @rule(index=INDEXES, size=SIZES, once=st.booleans())
    def read(self, index: int, size: int, once: bool) -> None:
        """Somebody reads what has arrived, in pieces, or the first piece of it."""
        reader = self.a_reader(index)
        if reader is not None and reader.job.id in self.world.processes:
            reader.read(size, self.world.processes[reader.job.id], once=once)

    @rule(index=INDEXES, stuck=st.booleans(), owner=st.booleans(), takeover=st.booleans())
    def attach(self, index: int, stuck: bool, owner: bool, takeover: bool) -> None:
        """Bob attaches to a job of Alice's: looks on, or takes it over, or tries to."""
        reader = self.a_reader(index)
        if reader is not None and len(self.world.readers) < 3 * MAX_JOBS:
            role = Role.OWNER if owner else Role.VIEWER
            stuck = stuck and not owner
            self.world.attach(self.bob, reader.job.id, role=role, takeover=takeover, stuck=stuck)

    @precondition(lambda self: len(self.world.asked) < MAX_REQUESTS)
    @rule(
        index=INDEXES,
        who=st.integers(0, 1),
        kind=st.sampled_from([wire.JobsSpec, wire.KillSpec, wire.ForgetSpec]),
    )
    def ask(self, index: int, who: int, kind: type[wire.Request]) -> None:
        """Somebody wants to know what jobs there are, or to have one ended or forgotten."""
        reader = self.pick(self.world.readers, index)
        if kind is wire.JobsSpec:
            self.world.ask(self.peer(who), wire.JobsSpec())
        elif reader is not None:
            self.world.ended_by_owner.add(reader.job.id)
            self.world.ask(self.peer(who), kind(reader.job.id))  # type: ignore[call-arg]

    @rule(index=INDEXES, end=st.booleans())
    def leave(self, index: int, end: bool) -> None:
        """Somebody has enough of a job, and ends it or lets it go on."""
        reader = self.a_reader(index)
        if reader is not None:
            self.world.leave(reader, end=end)

    # -- processes

    @rule(
        index=INDEXES,
        what=st.sampled_from(["spawn", "print", "close", "read", "exit"]),
        stream=OUTPUTS,
        size=SIZES,
    )
    def run(self, index: int, what: str, stream: Stream, size: int) -> None:
        """It is a job's turn: its process starts, prints, closes an output, reads its stdin, or ends."""
        process = self.a_process(index)
        if process is None:
            return
        process.spawn()
        match what:
            case "print":
                process.produce(stream, size)
            case "close":
                process.close(stream)
            case "read":
                process.consume(size)
            case "exit":
                self.world.exit(process.job.key[1], size % 256, left_in_pipes=size)

    @rule(seconds=st.sampled_from([5, 25, 120]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.world.tick(seconds)

    # -- everybody at once: what most of the time goes on

    @rule(printed=SIZES, written=SIZES, read=SIZES, moves=MOVES, once=st.booleans())
    def work(self, printed: int, written: int, read: int, moves: Moves, once: bool) -> None:
        """All processes print and read, all owners write, all readers read, all or a part; some of it
        travels."""
        for reader in self.world.readers:
            if not reader.left and reader.job.role is Role.OWNER:
                reader.write(written)
                reader.signal()
        self.travel(moves)
        for process in list(self.world.processes.values()):
            if process.job in self.world.table.jobs.values():
                process.spawn()
                process.produce(Stream.OUTPUT, printed)
                process.produce(Stream.ERROR, printed // 2)
                process.consume(written)
        self.travel(moves)
        for reader in self.world.readers:
            if not reader.left and reader.job.id in self.world.processes:
                reader.read(read, self.world.processes[reader.job.id], once=once)

    @rule(
        up_bytes=FRACTIONS, down_bytes=FRACTIONS, seconds=st.sampled_from([-1, 0, 0, 20, 50, 120])
    )
    def outage(self, up_bytes: int, down_bytes: int, seconds: int) -> None:
        """The daemon's connection breaks in the middle of what is under way; it is made again, after a while
        if both ends have noticed, or before they do."""
        cable = self.world.cables[-1]
        for up in (True, False):
            cable.send(up=up)
        cable.cut(up_bytes=up_bytes, down_bytes=down_bytes)
        for up in (True, False):
            while cable.deliver(up=up):
                pass
        if seconds >= 0:
            self.world.router_notices(cable)
            self.world.daemon_notices(cable)
            self.world.tick(seconds)
        self.world.dial()

    @rule()
    def serve_disk(self) -> None:
        """The daemon's disk does what it was asked for."""
        self.world.serve_disk()

    @precondition(lambda self: bool(self.world.log.waiting))
    @rule(count=st.integers(1, 3), full=st.sampled_from([False, False, False, True]))
    def write_log(self, count: int, full: bool) -> None:
        """The audit log's disk takes some of what is held until it has it; or it is full, and nothing of that runs."""
        self.world.log.write(count, refusal="full" if full else None)

    @precondition(lambda self: bool(self.world.log.waiting))
    @rule(who=st.integers(0, 1), comes_back=st.booleans())
    def go_while_held(self, who: int, comes_back: bool) -> None:
        """A connection breaks while something is held that its client asked for; it may be back before that goes on."""
        peer = self.peer(who)
        assert peer.cable is not None
        peer.cable.cut(up_bytes=0, down_bytes=0)
        peer.router_notices()
        if comes_back:
            peer.connect()
        self.world.log.write(1)

    # -- the network

    def travel(self, moves: Moves, max_bytes: int = 256 * wire.KIB) -> None:
        """Some messages are sent, some arrive, in any order over the connections."""
        for index, up, sending in moves:
            cable = self.pick(list(self.world.live_cables), index)
            if cable is not None and sending:
                cable.send(up=up, max_bytes=max_bytes)
            elif cable is not None:
                cable.deliver(up=up)

    @rule(moves=MOVES, max_bytes=st.sampled_from([0, 0, 1, 1000, 256 * wire.KIB]))
    def trickle(self, moves: Moves, max_bytes: int) -> None:
        """Everything that can travel does; or a little, in small messages or large ones."""
        if max_bytes:
            self.travel(moves, max_bytes)
        else:
            self.world.pump()

    @rule(index=INDEXES, up_bytes=FRACTIONS, down_bytes=FRACTIONS)
    def cut(self, index: int, up_bytes: int, down_bytes: int) -> None:
        """A connection breaks, anywhere in what is under way."""
        cable = self.pick(list(self.world.live_cables), index)
        if cable is not None:
            cable.cut(up_bytes=up_bytes, down_bytes=down_bytes)

    @rule(index=INDEXES, who=st.sampled_from(["router", "router of clients", "daemon"]))
    def notice(self, index: int, who: str) -> None:
        """The router learns of a cut; or the daemon does, or of an older connection's end."""
        if who == "router of clients":
            self.peer(index).router_notices()
            return
        gone = [cable for cable in self.world.cables if cable.is_cut or not cable.near.is_open]
        cable = self.pick(gone, index)
        if cable is not None and who == "daemon":
            self.world.daemon_notices(cable)
        elif cable is not None and cable.is_cut and cable.near.is_open:
            self.world.router_notices(cable)

    @rule(who=st.integers(0, 2))
    def connect(self, who: int) -> None:
        """The daemon or a client connects again, whatever anybody thinks of its former connection."""
        if who == 2:
            self.world.dial()
        else:
            self.peer(who).connect()

    @rule(index=INDEXES)
    def late_frames(self, index: int) -> None:
        """What an old connection still held arrives."""
        cable = self.pick([cable for cable in self.world.cables if not cable.near.is_open], index)
        if cable is not None:
            self.world.late_frames(cable)

    @precondition(
        lambda self: (
            self.world.table.instance == "instance-1"
            and all(reader.job.sent or reader.job.sequence for reader in self.world.readers)
        )
    )
    @rule(really=st.integers(0, 3), starting=st.booleans())
    def restart(self, really: int, starting: bool) -> None:
        """Now and then the daemon's process is killed, and another takes its place; a start may be under
        way that means the old one."""
        if really == 0:
            if starting and len(self.world.processes) < MAX_JOBS:
                self.world.start(self.alice, lease=LEASE)
            self.world.restart_daemon()
            self.world.dial()

    # -- what must hold

    @invariant()
    def guarantees(self) -> None:
        """At every moment."""
        self.world.check()

    def teardown(self) -> None:
        """(9) On a healthy network everything completes, and when all have left nothing is left."""
        if not hasattr(self, "world"):
            return
        self.world.heal()
        self.complete()
        for reader in self.world.readers:
            reader.stuck = False
        self.world.read_all()
        self.complete()
        self.world.check_answered()
        for reader in self.world.readers:
            self.world.leave(reader, end=True)
        for asked in self.world.asked:
            asked.peer.client.end(asked.job)
            asked.peer.client.close(asked.job)
        self.world.pump()
        for process in self.world.processes.values():
            if process.job in self.world.table.jobs.values():
                self.world.exit(process.job.key[1], 0)  # a detached one that nobody ended
        self.world.tick(LEASE + RETENTION + 10)
        self.world.pump()
        self.world.check_empty()
        assert not self.world.table.jobs, "a job is left"

    def complete(self) -> None:
        """Let every process print and read much more, and end; every reader that reads gets all."""
        goals: dict[Process, int] = {}
        for round_ in range(ROUNDS):
            self.world.pump()
            for process in list(self.world.processes.values()):
                if process.job in self.world.table.jobs.values() and process.result is None:
                    process.spawn()
                    self.get_on(process, goals)
            self.world.read_all()
            self.world.check()
            waiting = [
                reader
                for reader in self.world.readers
                if not (reader.left or reader.stuck or reader.job.finished)
            ]
            if round_ > 1 and not waiting:
                break
        else:
            raise AssertionError(f"(9) {waiting} after {ROUNDS} rounds on a healthy network")
        self.world.pump()
        self.world.read_all()
        for reader in self.world.readers:
            if not reader.left and not reader.stuck and reader.job.error is None:
                # Closed is one that had told all before its daemon was another.
                closed = reader.job.state is AttachState.CLOSED and reader.job.result is not None
                assert reader.job.state is AttachState.ATTACHED or closed
                assert self.world.processes[reader.job.id].job.state is JobState.ENDED
                self.world.check_complete(reader)

    def get_on(self, process: Process, goals: dict[Process, int]) -> None:
        """It prints more, and gets more input, as long as somebody is there for it; then it ends."""
        owners = [
            reader
            for reader in self.world.readers
            if reader.job.channel is not None
            and process.job.owner is not None
            and reader.job.id == process.job.key[1]
            and reader.job.role is Role.OWNER
            and not reader.left
        ]
        for reader in owners:
            if reader.written < MORE:
                reader.write(MORE)
            else:
                reader.finish()
        more = WINDOW_BYTES if process.number == 0 else MORE
        goal = goals.setdefault(process, process.produced[Stream.OUTPUT] + more)
        process.produce(Stream.OUTPUT, goal - process.produced[Stream.OUTPUT])
        process.consume(MORE)
        printing = not process.job.sends[Stream.OUTPUT].final
        unprinted = printing and process.produced[Stream.OUTPUT] < goal
        alone = len(process.owners) == 1  # else its input may have ended before this owner came
        if not owners or not (unprinted or (alone and not process.at_end_of_input)):
            self.world.exit(process.job.key[1], 3, left_in_pipes=1000)


TestRelay = tried(Relay)
