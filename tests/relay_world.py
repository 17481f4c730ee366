"""A whole system without I/O: clients, a router, a daemon and its processes, joined by cables.

Every part is the real state machine, driven in the order in which the trio shells drive it
(local_link.py, pump.py, runner.py). Only the cables and the processes (job_world.py) are models: a
cable carries WebSocket messages and can be cut anywhere. `World.check` asserts the guarantees of
DESIGN.md, section 7, by number.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from attrs import define, field
from job_world import DRAIN, JobWorld, Process, Reader
from model_disk import ModelDisk

from sandd import wire
from sandd._core._errors import DaemonGone, JobNotFound, RequestRefused
from sandd._core.audit.records import RecordType
from sandd._core.client import Client
from sandd._core.client_job import OUTPUTS, ClientJob
from sandd._core.credit import CreditPool
from sandd._core.identity.rights import Principal
from sandd._core.job import DaemonLink, Job
from sandd._core.job_info import describe
from sandd._core.jobs import INPUT_WINDOW, LONGEST_TICK, Effect, Effects, JobTable
from sandd._core.read_ahead import READ_AHEAD
from sandd._core.relay_queue import MeteredQueue
from sandd._core.router import Router
from sandd._core.scheduler import BATCH_BYTES, Scheduler
from sandd._core.spool import PIECE_BYTES, Spool
from sandd._core.streams import MOST_RING_BYTES, RING_BYTES
from sandd.wire import DaemonState, FailedCode, FrameType, JobState, Outcome, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandd._core import router_links
    from sandd._core.audit.records import Record

DAEMON: Final = "d"


# ---- cables --------------------------------------------------------------------------------------


@define(eq=False)
class End:
    """One end of a cable: a core's scheduler, and where its frames go."""

    scheduler: Scheduler
    receive: Callable[[wire.Frame], None]
    is_open: bool = True
    """The core has not noticed yet that the connection is gone."""


@define(eq=False)
class Cable:
    """One WebSocket connection. A message arrives whole or, if it was cut, not at all."""

    near: End
    far: End
    to_near: deque[bytes] = field(factory=deque)
    to_far: deque[bytes] = field(factory=deque)
    is_cut: bool = False

    def send(self, *, up: bool, max_bytes: int = BATCH_BYTES) -> bool:
        """One end hands a message to its socket: the far end with `up`; whether it had one."""
        sender, flying = (self.far, self.to_near) if up else (self.near, self.to_far)
        frames = sender.scheduler.next_frames(max_bytes) if sender.is_open else []
        if not frames:
            return False
        message = b"".join([part for frame in frames for part in wire.encoded(frame)])
        assert len(message) <= wire.MAX_MESSAGE_BYTES
        if not self.is_cut:
            flying.append(message)
        return True

    def deliver(self, *, up: bool) -> bool:
        """The oldest message under way arrives: at the near end with `up`; whether there was one."""
        receiver, flying = (self.near, self.to_near) if up else (self.far, self.to_far)
        if not flying:
            return False
        message = flying.popleft()
        if receiver.is_open:
            for frame in wire.decode_frames(message):
                receiver.receive(frame)
        return True

    def pump(self) -> bool:
        """Everything there is travels to its end; whether there was anything."""
        moved = False
        for up in (True, False):
            while self.deliver(up=up) or self.send(up=up):
                moved = True
        return moved

    def cut(self, *, up_bytes: int, down_bytes: int) -> None:
        """Of what is under way these many bytes arrive; the rest, and all that follows, is lost."""
        for flying, kept in ((self.to_near, up_bytes), (self.to_far, down_bytes)):
            whole = 0
            while whole < len(flying) and len(flying[whole]) <= kept:
                kept -= len(flying[whole])
                whole += 1
            while len(flying) > whole:
                flying.pop()
        self.is_cut = True


# ---- clients and what they ask for ---------------------------------------------------------------


@define(eq=False)
class Asked:
    """A request, as its client and as the daemon see it."""

    peer: Peer
    job: ClientJob
    spec: wire.Request
    done: int = 0
    """How often the daemon did it."""
    done_at: float = 0.0
    lapsed: bool = False
    """Nobody came for the answer for as long as results are kept."""

    @property
    def answers(self) -> list[wire.JobRecord]:
        """What has arrived of its answers; it takes them."""
        data = b""
        while chunk := self.job.outputs[Stream.OUTPUT].take(wire.MIB):
            assert isinstance(chunk, bytes)
            data += chunk
        records = list(wire.decode_answers(data))
        assert all(isinstance(record, wire.JobRecord) for record in records)
        return records  # type: ignore[return-value]


@define(eq=False)
class Peer:
    """A client and its connection to the router."""

    world: World
    name: str
    client: Client = field(factory=Client)
    cable: Cable | None = None
    """The newest connection."""
    links: dict[Cable, router_links.ClientLink] = field(factory=dict)
    """The connections that the router still holds open."""
    exits: Counter[int] = field(factory=Counter)
    """Ends heard, per channel of the present connection."""

    def connect(self) -> None:
        """A new connection to the router, which may not have noticed yet that the old one is gone."""
        if self.cable is not None:
            self.cable.far.is_open = False
            self.client.link_down()
            self.exits.clear()
        # The first is one in the controller's own process, the others are in processes of their own.
        is_remote = self is not self.world.peers[0]
        link = self.world.router.add_client(
            principal=Principal(self.name, "*"), client=self.client.id if is_remote else ""
        )
        link._pool = small_pool()
        near = End(link.scheduler, lambda frame: self.world.router.receive(link, frame))
        self.cable = Cable(near, End(self.client.scheduler, self.receive))
        self.links[self.cable] = link

    def has_input(self, job: ClientJob) -> None:
        """There is more on the job's input."""
        self.client.activate(job)

    def hand_over(self) -> None:
        """All that the client has to say now arrives at the router."""
        assert self.cable is not None
        while self.cable.send(up=True) or self.cable.deliver(up=True):
            pass

    def router_notices(self) -> None:
        """The router learns of every connection that is gone."""
        for cable, link in list(self.links.items()):
            if cable is not self.cable or cable.is_cut:
                cable.near.is_open = False
                self.world.router.remove_client(link)
                del self.links[cable]

    def receive(self, frame: wire.Frame) -> None:
        """(6) A frame arrives; a channel tells an end once."""
        if frame.type is FrameType.DATA:
            data = wire.decode_data(frame)
            if data.stream is Stream.EVENTS:
                ended = isinstance(wire.decode_event(data.body), wire.Exited | wire.Failed)
                self.exits[frame.channel] += ended
                assert self.exits[frame.channel] <= 1, "(6) an end that was told twice"
        for job in self.client.receive(frame):
            self.world.job_changed(job)


# ---- all of it -----------------------------------------------------------------------------------


def waiting_for(client: router_links.ClientLink) -> int:
    """Bytes of outputs that the router holds for it."""
    held = 0
    for route in client.routes.values():
        queue = route.to_client
        assert isinstance(queue, MeteredQueue)
        held += sum(len(piece.body) for piece in queue._pieces)
    return held


def small_pool() -> CreditPool:
    """For so much that what flows here meets its bounds."""
    return CreditPool(100_000, least=4000, first=10_000, first_part=4)


@define(eq=False)
class ModelLog:
    """An audit log whose disk writes when it is told to."""

    is_on: bool = True
    waiting: deque[tuple[Record, Callable[[str | None], None]]] = field(factory=deque)
    durable: list[Record] = field(factory=list)
    """In the order of the disk."""
    bounded: list[bool] = field(factory=list)
    """Of each note, whether it may be left out where there are many."""

    def note(
        self, record: Record, *, from_stranger: bool = False, is_bounded: bool = False
    ) -> None:
        """See `AuditSink`."""
        self.durable.append(record)
        self.bounded.append(is_bounded)

    def commit(self, record: Record, done: Callable[[str | None], None]) -> None:
        """See `AuditSink`."""
        self.waiting.append((record, done))

    def write(self, limit: int = 1_000_000, *, refusal: str | None = None) -> bool:
        """The disk takes the oldest, or not; whether there were any."""
        found = False
        while self.waiting and limit > 0:
            record, done = self.waiting.popleft()
            if refusal is None:
                self.durable.append(record)
            done(refusal)
            limit -= 1
            found = True
        return found

    def told(self, kind: RecordType, job_id: str) -> int:
        """How often the disk has that of the job."""
        return sum(each.type is kind and each.job == job_id for each in self.durable)


SCROLLBACK = 1000
"""Of a job with a terminal."""


def may_drop(process: Process, stream: Stream) -> bool:
    """Whether there are times in which something of it goes that its owner has not acknowledged."""
    return process.job.outputs[stream].on_full is not wire.OnFull.BLOCK


class World(JobWorld):
    """Clients, router, daemon and processes."""

    def __init__(
        self, spool: Spool | None = None, *, retention: float = 3600.0, audited: bool = False
    ) -> None:
        super().__init__()
        self.log = ModelLog(is_on=audited)
        self.router = Router(audit=self.log)
        self.disk = ModelDisk()
        self.table = JobTable("instance-1", retention=retention, spool=spool)
        self.now = 0.0
        self._last_tick: float | None = None
        self.peers: list[Peer] = []
        self.cables: list[Cable] = []
        """To the daemon: the last is the newest; earlier ones may not have been noticed to be gone."""
        self.table_links: dict[Cable, DaemonLink] = {}
        self.router_links: dict[Cable, router_links.DaemonLink] = {}
        self.processes: dict[str, Process] = {}
        """The one process there ever was of each job."""
        self.asked: list[Asked] = []

    # -- peers and links

    def join(self, name: str) -> Peer:
        """One more client."""
        peer = Peer(self, name)
        self.peers.append(peer)
        peer.connect()
        return peer

    def dial(self) -> Cable:
        """The daemon connects anew; the router supersedes whatever link it had."""
        table_link = DaemonLink()
        router_link = self.router.add_daemon(DAEMON, self.table.instance)
        router_link._pool = small_pool()
        for cable in self.cables:
            cable.near.is_open = False
        cable = Cable(
            End(router_link.scheduler, lambda frame: self.router.receive(router_link, frame)),
            End(
                table_link.scheduler,
                lambda frame: self.daemon_receives(table_link, frame),
            ),
        )
        self.table_links[cable] = table_link
        self.router_links[cable] = router_link
        self.cables.append(cable)
        return cable

    def daemon_receives(self, link: DaemonLink, frame: wire.Frame) -> None:
        """The daemon takes a frame; whoever came to own a job by it has it from the beginning of its lease."""
        self.act(self.table.receive(link, frame, self.now))
        if frame.type is FrameType.CONTROL:
            for process in self.processes.values():
                if process.job.owner is not None:
                    process.unowned_seconds = 0.0

    def router_notices(self, cable: Cable) -> None:
        """The router learns that the daemon's connection is gone."""
        cable.near.is_open = False
        self.router.remove_daemon(self.router_links[cable], DaemonState.AWAY)

    def daemon_notices(self, cable: Cable) -> None:
        """The daemon learns that its connection is gone."""
        if cable.far.is_open:
            cable.far.is_open = False
            self.act(self.table.close_link(self.table_links[cable], self.now))

    def late_frames(self, cable: Cable) -> None:
        """(8) What a superseded link still holds arrives at the router after all: without effect."""
        assert not cable.near.is_open
        links = [*self.router.clients, *self.router.daemons.values()]
        before = [(link, dict(link.routes), link.scheduler.pending) for link in links]
        while cable.to_near:
            for frame in wire.decode_frames(cable.to_near.popleft()):
                self.router.receive(self.router_links[cable], frame)
        after = [(link, dict(link.routes), link.scheduler.pending) for link in links]
        assert before == after, "(8) a superseded link had an effect"

    def restart_daemon(self) -> None:
        """The daemon's process dies, its jobs with it; another instance takes its place."""
        self.table = JobTable("instance-2", retention=self.table.retention)
        self._last_tick = None
        for cable in self.cables:
            cable.far.is_open = False
            cable.is_cut = True
        for process in self.processes.values():
            process.running = False

    # -- jobs

    def start(
        self,
        peer: Peer,
        *,
        dropping: bool = False,
        detach: bool = False,
        job_id: str | None = None,
        lease: float = 600.0,
        terminal: bool = False,
    ) -> Reader:
        """A client starts a job."""
        on_full = wire.OnFull.DROP_OLDEST if dropping else wire.OnFull.BLOCK
        spec: wire.ProgramSpec
        if terminal:
            spec = wire.SessionSpec((b"model",), scrollback=SCROLLBACK, lease=lease, detach=detach)
        else:
            spec = wire.CommandSpec((b"model",), on_full=on_full, lease=lease, detach=detach)
        return self._reader(peer, peer.client.open(DAEMON, spec, job_id=job_id))

    def attach(
        self, peer: Peer, job_id: str, *, role: Role, takeover: bool = False, stuck: bool = False
    ) -> None:
        """Another client attaches to a job, unless it holds it already."""
        try:
            job = peer.client.attach(DAEMON, job_id, role=role, takeover=takeover)
        except RequestRefused:
            assert role is Role.OWNER
            assert not takeover
            return
        self._reader(peer, job, stuck=stuck)

    def _reader(self, peer: Peer, job: ClientJob, *, stuck: bool = False) -> Reader:
        reader = Reader(peer, job, len(self.readers), stuck)
        self.readers.append(reader)
        return reader

    def ask(self, peer: Peer, spec: wire.JobsSpec | wire.KillSpec | wire.ForgetSpec) -> Asked:
        """A client asks the daemon for something."""
        asked = Asked(peer, peer.client.open(DAEMON, spec), spec)
        self.asked.append(asked)
        return asked

    def perform(self, job: Job) -> None:
        """The daemon does what it is asked for."""
        for asked in self.asked:
            if asked.job.id == job.key[1]:
                asked.done += 1
                asked.done_at = self.now
                assert asked.done == 1, "(5) a request that was done twice"
        spec, tenant = job.spec, job.key[0]
        named = None
        if isinstance(spec, wire.KillSpec | wire.ForgetSpec):
            named = self.table.find(tenant, spec.job_id)
            if named is None:
                job.failed(FailedCode.JOB_NOT_FOUND, "no such job")
            elif named.state is not JobState.ENDED:
                self.act(self.table.stop(named, Outcome.CANCELLED, 0.0))
        if isinstance(spec, wire.ForgetSpec) and named is not None:
            self.act(self.table.forget(named, self.now))
        if isinstance(spec, wire.JobsSpec):
            for each in self.table.commands(tenant):
                job.write(Stream.OUTPUT, wire.encode_answer(describe(each, self.now)))
        if job.state is not JobState.ENDED:
            job.exited(code=0, signal=None, outcome=Outcome.EXITED, seconds=0.0, pipes_held=False)
        self.act(self.table.ended(job, self.now))

    def leave(self, reader: Reader, *, end: bool) -> None:
        """The application is done with the job: ends it, or lets it go on."""
        if not reader.left:
            reader.left = True
            if end:
                self.end_asked(reader)
                reader.peer.client.end(reader.job)
            reader.peer.client.close(reader.job)

    def act(self, effects: Effects) -> None:
        """Do what the job table asks for."""
        for job, effect in effects:
            process = self.processes.get(job.key[1])
            match effect:
                case Effect.START if self.log.is_on and not self.log.told(
                    RecordType.REQUEST, job.key[1]
                ):
                    raise AssertionError("it was started before its request was on record")
                case Effect.START if isinstance(job.spec, wire.Request):
                    self.perform(job)
                case Effect.START:
                    assert process is None, "(5) a second process for one job"
                    starter = [
                        (0, each)
                        for each in self.readers
                        if each.job.id == job.key[1] and each.job.sequence is not None
                    ]  # it may talk to the job before it hears of it
                    self.processes[job.key[1]] = Process(job, len(self.processes), owners=starter)
                case Effect.OPS if process is not None:
                    process.apply_ops()
                case Effect.END:
                    self._check_killed(job)
                    self.exit(job.key[1], 137)
                case Effect.FORGOTTEN if process is not None and process.job is job:
                    self._check_forgotten(process)
                case Effect.FORGOTTEN if isinstance(job.spec, wire.Request):
                    for asked in self.asked:
                        if asked.job.id == job.key[1]:
                            asked.lapsed = self.now - asked.done_at >= self.table.retention
                case Effect.OPS | Effect.INPUT | Effect.ROOM | Effect.FORGOTTEN:
                    pass

    def exit(self, job_id: str, code: int, *, left_in_pipes: int = 0) -> None:
        """The process of a job ends."""
        process = self.processes[job_id]
        if process.result is None:
            process.exit(code, left_in_pipes=left_in_pipes)
            self.act(self.table.ended(process.job, self.now))

    def tick(self, seconds: float) -> None:
        """Time passes on the daemon; what is over by then, and only that, is ended or forgotten."""
        self._tick()
        for _ in range(round(seconds / LONGEST_TICK)):
            self.now += LONGEST_TICK
            self._tick()

    def _tick(self) -> None:
        elapsed = 0.0 if self._last_tick is None else self.now - self._last_tick
        self._last_tick = self.now
        for process in self.processes.values():
            if process.job.owner is None:
                process.unowned_seconds += elapsed
        self.act(self.table.tick(self.now))
        for process in self.processes.values():
            if self.table.jobs.get(process.job.key) is not process.job:
                continue
            if process.result is not None:
                assert process.unowned_seconds < self.table.retention, "(12) kept for too long"
            elif not process.job.detached:
                assert process.unowned_seconds < process.job.lease, "(12) it outlived its lease"

    def _check_killed(self, job: Job) -> None:
        """A job is killed on demand, or when nobody has owned it for as long as its lease; not if detached."""
        if job.end_outcome is Outcome.LEASE_EXPIRED:
            assert not job.detached, "a detached job has no lease"
            unowned = self.processes[job.key[1]].unowned_seconds
            assert unowned >= job.lease, "the lease was not over"
        else:
            assert job.key[1] in self.ended_by_owner, "killed, but nobody asked for it"

    def _check_forgotten(self, process: Process) -> None:
        """Results are kept until the owner gave them up, or nobody came for them for long enough."""
        assert process.result is not None, "forgotten while it runs"
        if process.job.key[1] not in self.ended_by_owner:
            kept = process.unowned_seconds
            assert kept >= self.table.retention, "forgotten too soon"

    # -- moving on

    @property
    def live_cables(self) -> Iterable[Cable]:
        """Every connection that somebody still holds open."""
        yield from [cable for cable in self.cables if cable.near.is_open or cable.far.is_open]
        yield from [cable for peer in self.peers for cable in peer.links]

    def pump(self, limit: int = 1000) -> None:
        """Everything that can travel does, to the last frame, in a bounded number of rounds."""
        for _ in range(limit):
            moved = [cable.pump() for cable in self.live_cables]
            if not self.serve_disk() and not any(moved) and not self.log.write():
                return
        raise AssertionError("(9) the network never comes to rest")

    def serve_disk(self) -> bool:
        """The disk does what the outputs ask for; whether there was anything."""
        work = self.table.spool.work if self.table.spool is not None else {}
        served = bool(work)
        while work:
            log, _ = work.popitem()
            self.disk.serve(log)
            log.job.tell_stalls()
            log.job.announce()
        return served

    def heal(self) -> None:
        """Every broken connection is noticed at both ends and made again."""
        for peer in self.peers:
            if peer.cable is None or peer.cable.is_cut:
                peer.connect()
            peer.router_notices()
        for cable in self.cables:
            if cable.is_cut or cable is not self.cables[-1]:
                self.router_notices(cable)
                self.daemon_notices(cable)
        if not self.cables or not self.cables[-1].near.is_open:
            self.dial()

    def read_all(self) -> None:
        """Every application that reads at all takes everything."""
        for reader in self.readers:
            if reader.job.id in self.processes and not reader.left:
                reader.read(wire.MIB, self.processes[reader.job.id])

    # -- the guarantees

    def check(self) -> None:
        """Assert what must hold at every moment, by number."""
        owned = all(job.owner is not None for job in self.table.jobs.values())
        assert owned or self.table.has_unowned, "(12) a lease that nobody counts"
        for process in self.processes.values():
            self.check_process(process)
        for reader in self.readers:
            self.check_reader(reader)
        for link in [*self.router.clients, *self.router.daemons.values()]:
            assert not link.scheduler.overrun
            for route in link.routes.values():
                assert route.client in self.router.clients, "a route to nobody"
                live = self.router.daemons.get(route.daemon.daemon_id)
                assert live is route.daemon, "(8) a route over a dead link"
        for client in self.router.clients:
            if client.is_metered:
                assert waiting_for(client) <= client.pool.bound, (
                    "(10) too much waits for one client"
                )
        if self.table.spool is not None:
            used = sum(job.disk_bytes for job in self.table.jobs.values())
            assert used <= self.table.spool.used <= self.table.spool.daemon_quota, "(4) the quota"
        for key, job in self.table.jobs.items():
            for attachment in job.attachments:
                assert attachment.link.attachments[attachment.channel.number] is attachment, key
                self.check_channel(attachment.channel)

    def process_of(self, reader: Reader) -> Process | None:
        """See `JobWorld`."""
        return self.processes.get(reader.job.id)

    def has_job(self, job: ClientJob) -> bool:
        """See `JobWorld`."""
        return ("default", job.id) in self.table.jobs

    def may_be_gone(self, job: ClientJob) -> bool:
        """See `JobWorld`."""
        return self.table.instance != "instance-1"

    def may_be_freed(self, process: Process, stream: Stream) -> bool:
        """See `JobWorld`."""
        is_forgotten = self.table.jobs.get(process.job.key) is not process.job
        return is_forgotten or may_drop(process, stream)

    def check_process(self, process: Process) -> None:
        """See `JobWorld`; and (4), of what is held for it."""
        super().check_process(process)
        job = process.job
        for output in job.outputs.values():
            assert output.window <= MOST_RING_BYTES
            most = output.window + (0 if job.state is not JobState.ENDED else DRAIN)
            if job.terminal:
                most += SCROLLBACK
            read_back = READ_AHEAD * PIECE_BYTES if output.disk_bytes else 0
            assert output.memory_bytes <= most + read_back, "(4) more is held than the bound"
        waiting = job.input.received - job.input.consumed
        assert waiting <= INPUT_WINDOW, "(4) more input is held than was granted"

    def check_reader(self, reader: Reader) -> None:
        """See `JobWorld`; and what it asked to be told of."""
        super().check_reader(reader)
        job = reader.job
        if job.flush is None and reader.flush is not None and job.error is None:
            self._check_flushed(reader, reader.flush)
        if job.role is Role.OWNER and job.confirmed:
            held = max(job.input.end - job.input.floor, 0)
            assert held <= RING_BYTES, "(4) more unacknowledged input than the bound"

    def _check_flushed(self, reader: Reader, flush: wire.Flush) -> None:
        job = self.processes[reader.job.id].job
        assert job.ops.received >= flush.ops, "ops that were called arrived and are not there"
        assert job.input.received >= flush.input, "input that was called arrived and is not there"
        assert job.input.final is not None or not flush.ended, "an end of input that is not there"
        assert job.detached or not reader.detaches, "called detached, and is not"

    def check_complete(self, reader: Reader) -> None:
        """(1), (2), (6): everything was told, and every byte up to the final offsets is accounted for."""
        job = reader.job
        process = self.processes[job.id]
        assert job.finished, "(9) not finished on a healthy network"
        assert job.result is not None, "(6) closed without an end"
        self.check_reader(reader)
        for stream in OUTPUTS:
            reader.begin(stream)
            assert reader.position[stream] == process.produced[stream], "(6) the output ends short"
            if job.role is Role.OWNER and not may_drop(process, stream):
                assert not reader.gaps[stream], "(1) the owner missed something"
                before = [0, *self._read_by_owners_before(reader, stream)]
                assert reader.started_at[stream] <= max(before), "(1) some bytes had no owner"

    def _read_by_owners_before(self, reader: Reader, stream: Stream) -> list[int]:
        owners = [owner for _, owner in self.processes[reader.job.id].owners]
        return [owner.job.outputs[stream].consumed for owner in owners[: owners.index(reader)]]

    def check_empty(self) -> None:
        """Nobody is attached to anything: no route, no attachment, no file, nothing to send is left."""
        if self.table.spool is not None and not self.table.jobs:
            assert (self.disk.files, self.table.spool.used) == ({}, 0), "a file is left"
        for link in [*self.router.clients, *self.router.daemons.values()]:
            assert not link.routes, "a route is left"
            assert not link.scheduler.pending, "something is still scheduled"
            counted = (link.waiting, link.backlog.waiting, *link.pool.held.values())
            assert not any(counted), "something still counts as waiting"
        for client in self.router.clients:
            assert (client.held, client.held_bytes) == ({}, 0), "something is still held"
        assert not len(self.router._held)
        self.check_trail()
        for cable in self.cables:
            if cable.far.is_open:
                assert not self.table_links[cable].attachments, "an attachment is left"
                assert not self.table_links[cable].scheduler.pending
        for peer in self.peers:
            assert not peer.client.jobs
            assert not peer.client.scheduler.pending

    def check_trail(self) -> None:
        """What was recorded of a job is told once, and what was not told did not happen."""
        if not self.log.is_on:
            return
        for job_id in self.processes:
            assert self.log.told(RecordType.START, job_id) <= 1, "a start that is told twice"
            if job_id != "chosen":
                assert self.log.told(RecordType.REQUEST, job_id) == 1, "not on record once"
                assert self.log.told(RecordType.END, job_id) <= 1, "an end that is told twice"

    def check_answered(self) -> None:
        """(5), (6), (9): each request was done once, and its client has heard all of it."""
        for asked in self.asked:
            job = asked.job
            if self.table.instance != "instance-1" and isinstance(job.error, DaemonGone):
                continue
            if asked.lapsed and isinstance(job.error, JobNotFound):
                continue
            if type(job.error) is RequestRefused:
                assert self.log.is_on, "refused, by nobody"
                assert not asked.done, "refused, and done"
                continue
            assert job.finished, "(9) a request that was never answered"
            assert asked.done == 1
            named = not isinstance(asked.spec, wire.JobsSpec)
            assert isinstance(job.result, wire.Exited) or (
                named and isinstance(job.result, wire.Failed)
            ), job.result
            assert not asked.answers or not named
