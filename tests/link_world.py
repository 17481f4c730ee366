"""Controllers and daemons without I/O: dialled, let in or turned away, cut, silent, restarted, doubled.

What decides is real: the handshake, fencing and the registry, admission, liveness, backoff, the router, the
client and the job table. Models are the network (`sandd.testing.memory_network`), the processes and the
readers (job_world.py), and here the two shells: `Door` does at the controller's end of a connection what
acceptor.py and pump.py do, `Dial` at the daemon's end what dialer.py and pump.py do.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import define, field
from job_world import JobWorld, Process, Reader

from sandd import wire
from sandd._core._errors import (
    RequestRefused,
)
from sandd._core.acceptor import RIVAL_PING_SECONDS
from sandd._core.admission import Admission, ComeBack
from sandd._core.client import Client
from sandd._core.dialer import Dialer, Rejected
from sandd._core.fencing import RIVAL_PATIENCE, Claim, Ruling
from sandd._core.identity.introductions import answer_challenge
from sandd._core.identity.proofs import SharedSecret, proves_secret
from sandd._core.identity.rights import Principal
from sandd._core.job import DaemonLink
from sandd._core.jobs import LONGEST_TICK, Effect, Effects, JobTable
from sandd._core.link import Backoff, Identity, Liveness, Verdict, check_hello
from sandd._core.pump import HANDSHAKE_SECONDS, NEVER
from sandd._core.registry import Registry
from sandd._core.router import Router
from sandd._core.tombstones import parse
from sandd.testing.memory_network import Cable, MemoryNetwork
from sandd.wire import DaemonState, FrameType, RejectCode, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd._core import router_links
    from sandd._core.client_job import ClientJob
    from sandd._core.scheduler import Scheduler
    from sandd.testing.virtual_clock import Timer

DAEMON: Final = "d"
TOKEN: Final = b"secret"
HEARTBEAT: Final = 4.0
DEAD_AFTER: Final = 9.0
"""Seconds; short, so that they pass in few looks at a link."""
LEASE: Final = 30.0
RETENTION: Final = 20.0
LONGEST_WAIT: Final = 8.0
"""Seconds between two dials at most, unless the controller asks for more."""
ADMITTED_PER_SECOND: Final = 0.5
LOOK: Final = 3.0
"""Seconds between two looks at a link: fewer than the pump's, for there is much time to pass."""
FLIGHT: Final = 3.0
"""Seconds that a message takes over a slow connection."""


def next_look(now: float) -> float:
    """The same moments for everybody: then the clock has fewer to stop at."""
    return (now // LOOK + 1) * LOOK


def encoded(message: wire.Control) -> bytes:
    """A message that goes by itself."""
    return b"".join(wire.encode_control(0, message))


def in_one(scheduler: Scheduler, max_bytes: int) -> bytes | None:
    """What a connection sends next."""
    frames = scheduler.next_frames(max_bytes)
    return b"".join([part for frame in frames for part in wire.encoded(frame)]) if frames else None


# ---- the controller's side -----------------------------------------------------------------------


@define(eq=False)
class Door:
    """The controller's end of one connection, from the first byte to the last."""

    controller: Controller
    cable: Cable | None = None
    is_open: bool = True
    said: deque[wire.Control] = field(factory=deque)
    """By itself, for as long as the link is not live."""
    challenge: wire.Challenge | None = None
    challenged_at: float = 0.0
    hello: wire.Hello | None = None
    link: router_links.DaemonLink | None = None
    """Once it is live."""
    liveness: Liveness | None = None
    askers: list[tuple[Door, Timer, int]] = field(factory=list)
    """Rivals that wait for a sign of life: the answer to their own ping, or to a later one."""
    ping_number: int = 0
    timer: Timer | None = None

    def next_message(self, max_bytes: int) -> bytes | None:
        """See `End`."""
        if self.said:
            message = self.said.popleft()
            if isinstance(message, wire.Reject):
                assert self.cable is not None
                self.cable.down.close()
            return encoded(message)
        return None if self.link is None else in_one(self.link.scheduler, max_bytes)

    def receive(self, message: bytes) -> None:
        """See `End`."""
        if self.liveness is not None:
            self.liveness.received(self.controller.clock.now)
        for frame in wire.decode_frames(message):
            if not self.is_open:
                return
            if self.hello is None:
                self.controller.hear(self, wire.decode_control(frame))
            elif self.link is not None:
                self._take(self.link, frame)
        self.controller.flush()

    def _take(self, link: router_links.DaemonLink, frame: wire.Frame) -> None:
        message = None
        if frame.channel == 0 and frame.type is FrameType.CONTROL:
            message = wire.decode_control(frame)
        match message:
            case wire.Ping():
                link.scheduler.control(wire.encode_control(0, wire.Pong(message.number)))
            case wire.Pong():
                self.controller.answered(self, message.number)
            case wire.Goodbye():
                self.over(DaemonState.GONE)
            case _:
                self.controller.on_frame(link, frame)

    def peer_closed(self) -> None:
        """See `End`."""
        self.over()

    def watch(self) -> None:
        """Look whether the daemon lives."""
        assert self.liveness is not None
        if self.is_open:
            if self.liveness.check(self.controller.clock.now, None) is Verdict.DEAD:
                self.over()
            else:
                self.timer = self.controller.clock.call_at(
                    next_look(self.controller.clock.now), self.watch
                )

    def time_out(self) -> None:
        """No Hello came."""
        if self.hello is None:
            self.over()

    def over(self, state: DaemonState = DaemonState.AWAY) -> None:
        """The connection is closed, or known to be broken."""
        if not self.is_open:
            return
        assert self.cable is not None
        self.cable.down.close()
        if self.timer is not None:
            self.timer.cancel()
        if self.link is not None:
            self.controller.offline(self.link, state)
        self.controller.answered(self, self.ping_number, alive=False)


class Controller:
    """One start of the controller's program, with one client of its own."""

    def __init__(self, world: LinkWorld, number: int) -> None:
        self.world = world
        self.name = f"controller-{number}"
        self.clock = world.clock
        self.router = Router()
        self.registry = Registry(lambda: self.clock.now)
        self.admission = Admission(ADMITTED_PER_SECOND)
        self.client = Client()
        self.client_link = self.router.add_client(principal=Principal(self.name, "*"))
        self.client_link.take = self._take
        self.doors: list[Door] = []
        self.instances: list[str] = []
        """Those that were let in, in their order."""
        self.goodbyes = 0
        self.rivals: set[str] = set()
        """Instances that lived beside the one that was let in last, for all that is known here."""
        self.ends: Counter[int] = Counter()
        """Told, per channel of the client."""
        self.flush()  # the client is told that nobody is there

    # -- doors

    def open_door(self) -> Door | float | None:
        """Somebody dials: a door, or the seconds after which to come back."""
        place = self.admission.ask(self.clock.now)
        if isinstance(place, ComeBack):
            return place.retry_after
        door = Door(self)
        self.doors = [each for each in self.doors if each.is_open or each.link is not None]
        self.doors.append(door)

        def challenge() -> None:
            door.challenge = wire.Challenge(bytes(32), self.name)
            door.challenged_at = self.clock.now
            door.said.append(door.challenge)
            door.timer = self.clock.call_later(HANDSHAKE_SECONDS, door.time_out)

        if place.wait:
            self.clock.call_later(place.wait, challenge)
        else:
            challenge()
        return door

    def hear(self, door: Door, hello: wire.Control | wire.Unknown) -> None:
        """The first message."""
        assert door.challenge is not None
        assert isinstance(hello, wire.Hello)
        reject = check_hello(hello)
        assert proves_secret(hello, door.challenge, TOKEN)
        door.hello = hello
        if reject is None:
            self.admit(door, hello)
        else:
            self.refuse(door, reject)

    def admit(self, door: Door, hello: wire.Hello) -> None:
        """Do with a ruling what the acceptor does."""
        if not door.is_open:
            return
        claim = Claim.of(hello, door.challenged_at)
        record = self.registry.get(hello.daemon_id)
        if record is None:
            self.welcome(door, hello)
            return
        holder = cast("Door | None", record.pump)
        match record.tenure.judge(claim, record.state, self.clock.now - record.since):
            case Ruling.STALE:
                self.refuse(door, wire.Reject(RejectCode.STALE, "stale", 0.0))
            case Ruling.REFUSE:
                self.refuse(door, record.tenure.refuse(hello.daemon_id, claim))
            case Ruling.ASK_HOLDER:
                assert holder is not None, "(8) it counts as online, but has no link"
                assert holder.link is not None
                assert holder.is_open
                holder.ping_number += 1
                ping = wire.Ping(holder.ping_number)
                holder.link.scheduler.control(wire.encode_control(0, ping))
                timer = self.clock.call_later(RIVAL_PING_SECONDS, holder.over)
                holder.askers.append((door, timer, ping.number))
            case Ruling.SUPERSEDE:
                assert claim.instance == record.tenure.holder.instance
                self.welcome(door, hello)
                if holder is not None:
                    holder.over()
            case Ruling.ADMIT | Ruling.ADMIT_FORK as ruling:
                is_alarm = ruling is Ruling.ADMIT_FORK
                assert self.world.is_copied or not is_alarm, "an alarm, but nothing was copied"
                assert holder is None, "(8) let in beside one that is online"
                self.welcome(door, hello)

    def answered(self, door: Door, number: int, *, alive: bool = True) -> None:
        """Those who asked for this door's id learn whether its daemon gave a sign of life."""
        askers = [asker for asker in door.askers if asker[2] <= number]
        door.askers = [asker for asker in door.askers if asker[2] > number]
        for rival, timer, _ in askers:
            timer.cancel()
            record = self.registry.get(DAEMON)
            assert record is not None
            assert rival.hello is not None
            if alive and record.pump is cast("Any", door):
                claim = Claim.of(rival.hello, rival.challenged_at)
                self.refuse(rival, record.tenure.refuse(DAEMON, claim))
            else:
                self.admit(rival, rival.hello)

    def refuse(self, door: Door, reject: wire.Reject) -> None:
        """Turn a daemon away."""
        is_alarm = reject.code is RejectCode.CLONED
        assert self.world.is_copied or not is_alarm, "an alarm, but nothing was copied"
        if reject.code in (RejectCode.ID_IN_USE, RejectCode.CLONED):
            assert door.hello is not None
            self.rivals.add(door.hello.instance)
        if door.is_open:
            door.said.append(reject)

    def welcome(self, door: Door, hello: wire.Hello) -> None:
        """Let a daemon in; but no rival before the one that is away had time to come back."""
        record = self.registry.get(hello.daemon_id)
        if record is not None and record.state is DaemonState.AWAY:
            is_soon = self.clock.now - record.since < RIVAL_PATIENCE
            is_other = record.tenure.holder.instance != hello.instance
            assert not (is_soon and is_other and hello.instance in self.rivals), "(9) to and fro"
        if record is not None:
            self.rivals.add(record.tenure.holder.instance)
        self.rivals.discard(hello.instance)
        door.link = self.router.add_daemon(hello.daemon_id, hello.instance)
        claim = Claim.of(hello, door.challenged_at)
        self.registry.online(hello.daemon_id, wire.UNDESCRIBED, claim, door.link, cast("Any", door))
        self.instances.append(hello.instance)
        door.liveness = Liveness(self.clock.now, NEVER, DEAD_AFTER)
        if door.timer is not None:
            door.timer.cancel()
        door.watch()
        door.said.append(wire.Welcome(hello.version, HEARTBEAT, DEAD_AFTER))
        self.flush()

    def offline(self, link: router_links.DaemonLink, state: DaemonState) -> None:
        """A live link is over."""
        self.goodbyes += state is DaemonState.GONE
        self.router.remove_daemon(link, state)
        self.registry.offline(link, state)
        self.flush()

    def on_frame(self, link: router_links.DaemonLink, frame: wire.Frame) -> None:
        """Of a superseded link nothing counts any more."""
        if self.router.daemons.get(link.daemon_id) is link:
            self.router.receive(link, frame)

    # -- its client

    def flush(self) -> None:
        """Carry frames between the client and the router until nothing is left, as `LocalLink` does."""
        ours, theirs = self.client.scheduler, self.client_link.scheduler
        while ours.pending or theirs.pending:
            for frame in ours.next_frames():
                self.router.receive(self.client_link, wire.as_frame(frame))
            for frame in theirs.next_frames():
                self._deliver(wire.as_frame(frame))

    def has_input(self, job: ClientJob) -> None:
        """There is more on the job's input: the daemon's link takes it from there, as `LocalLink` has it."""
        channel = job.channel
        if channel is not None and not self.router.draw(
            self.client_link, channel.number, channel.send[Stream.INPUT]
        ):
            self.client.activate(job)

    def _deliver(self, frame: wire.Frame) -> None:
        if frame.type is not FrameType.CONTROL:
            self._count_ends(frame.channel, wire.decode_data(frame))
        for job in self.client.receive(frame):
            self.world.job_changed(job)

    def _take(self, channel: int, data: wire.Data) -> None:
        self._count_ends(channel, data)
        job = self.client.receive_data(channel, data)
        if job is not None:
            self.world.job_changed(job)

    def _count_ends(self, channel: int, data: wire.Data) -> None:
        if data.stream is Stream.EVENTS and len(data.body):
            event = wire.decode_event(data.body)
            self.ends[channel] += isinstance(event, wire.Exited | wire.Failed)
            assert self.ends[channel] <= 1, "(6) an end that was told twice"


# ---- the daemon's side ---------------------------------------------------------------------------


@define(eq=False)
class Dial:
    """The daemon's end of one connection."""

    daemon: Daemon
    cable: Cable | None = None
    is_open: bool = True
    said: deque[wire.Control] = field(factory=deque)
    is_introduced: bool = False
    link: DaemonLink | None = None
    live_at: float = 0.0
    liveness: Liveness | None = None
    goodbye: wire.Goodbye | None = None
    timer: Timer | None = None

    def next_message(self, max_bytes: int) -> bytes | None:
        """See `End`."""
        if self.said:
            return encoded(self.said.popleft())
        return None if self.link is None else in_one(self.link.scheduler, max_bytes)

    def receive(self, message: bytes) -> None:
        """See `End`."""
        daemon = self.daemon
        if self.liveness is not None:
            self.liveness.received(daemon.clock.now)
        for frame in wire.decode_frames(message):
            if not self.is_open:
                return
            if frame.channel == 0 and frame.type is FrameType.CONTROL:
                self._hear(wire.decode_control(frame), frame)
            else:
                assert self.link is not None
                daemon.take(self.link, frame)

    def _hear(self, message: wire.Control | wire.Unknown, frame: wire.Frame) -> None:
        daemon = self.daemon
        match message:
            case wire.Challenge():
                self.is_introduced = True
                self.said.append(
                    answer_challenge(
                        message, daemon.identity, daemon.connections, SharedSecret(TOKEN)
                    )
                )
            case wire.Welcome():
                assert self.is_introduced
                assert self.timer is not None
                self.timer.cancel()
                self.link = DaemonLink()
                self.live_at = daemon.clock.now
                self.liveness = Liveness(self.live_at, message.heartbeat, message.dead_after)
                self.watch()
            case wire.Reject():
                self.over(message)
            case wire.Ping():
                assert self.link is not None
                self.link.scheduler.control(wire.encode_control(0, wire.Pong(message.number)))
            case wire.Pong():
                pass
            case wire.Goodbye():
                self.goodbye = message
                self.over()
            case _:
                assert self.link is not None
                daemon.take(self.link, frame)

    def peer_closed(self) -> None:
        """See `End`."""
        self.over()

    def watch(self) -> None:
        """Look whether the controller lives, and let it know that we do."""
        assert self.liveness is not None
        assert self.link is not None
        if not self.is_open:
            return
        now = self.daemon.clock.now
        verdict = self.liveness.check(now, None)
        if verdict is Verdict.DEAD:
            self.over()
            return
        if verdict is Verdict.PING:
            self.link.scheduler.control(wire.encode_control(0, wire.Ping(2)))
        self.timer = self.daemon.clock.call_at(next_look(now), self.watch)

    def over(self, reject: wire.Reject | None = None) -> None:
        """The connection is closed, or known to be broken: wait, and dial again."""
        if not self.is_open:
            return
        assert self.cable is not None
        self.cable.up.close()
        if self.timer is not None:
            self.timer.cancel()
        if self.link is not None:
            self.daemon.lose(self.link)
        self.daemon.dial_later(self, reject)


class Directory:
    """A state directory, which one daemon at a time holds: it knows who was started in it, newest first."""

    def __init__(self, starts: tuple[str, ...] = ()) -> None:
        self.starts = starts

    def record(self, instance: str) -> tuple[str, ...]:
        """What `record_start` does."""
        earlier = self.starts
        self.starts = (instance, *earlier)[: wire.MAX_ANCESTORS]
        return earlier


class Daemon:
    """One start of the daemon's program."""

    def __init__(self, world: LinkWorld, number: int, directory: Directory) -> None:
        self.world = world
        self.clock = world.clock
        self.directory = directory
        instance = f"instance-{number}"
        self.identity = Identity(DAEMON, instance, ancestors=directory.record(instance))
        self.table = JobTable(self.identity.instance, retention=RETENTION)
        self.lives = True
        self.connections = 0
        self.dial_in_use: Dial | None = None
        self.processes: dict[str, Process] = {}
        self._owning: dict[Process, str] = {}
        """The client that came to own each of them last."""
        backoff = Backoff(
            maximum=LONGEST_WAIT, uniform=lambda low, high: low + (high - low) * world.luck
        )
        self._dialer = Dialer("ws://c", cast("Any", None), backoff)
        self._redial: Timer | None = self.clock.call_later(0.0, self.dial)
        self._tick()

    @property
    def is_live(self) -> bool:
        """It has a link, for all it knows."""
        return self.dial_in_use is not None and self.dial_in_use.link is not None

    # -- connections

    def dial(self) -> None:
        """Try to reach the controller."""
        assert self.dial_in_use is None, "(8) a second connection beside the first"
        if not self.lives:
            return
        self.connections += 1
        door = self.world.controller.open_door()
        if not isinstance(door, Door):
            self._wait(self._dialer.backoff.after_failure(door))
            return
        dial = self.dial_in_use = Dial(self)
        dial.cable = door.cable = self.world.network.connect(cast("Any", door), cast("Any", dial))
        for way in dial.cable.ways:
            way.delay = self.world.delay
        dial.timer = self.clock.call_later(HANDSHAKE_SECONDS, dial.over)

    def dial_later(self, dial: Dial, reject: wire.Reject | None) -> None:
        """What the dialer does when a connection is over."""
        self.dial_in_use = None
        if not self.lives:
            return
        backoff = self._dialer.backoff
        if reject is not None:
            wait = self._dialer._after_reject(Rejected(reject))
        elif dial.link is None:
            wait = backoff.after_failure(None)
        elif dial.goodbye is not None and dial.goodbye.retry_after:
            lived = self.clock.now - dial.live_at
            wait = backoff.after_farewell(lived, dial.link.progressed, dial.goodbye.retry_after)
        else:
            wait = backoff.after_loss(self.clock.now - dial.live_at, dial.link.progressed)
        self._wait(wait)

    def _wait(self, seconds: float) -> None:
        assert seconds >= 0.0
        self._redial = self.clock.call_later(seconds, self.dial)

    # -- jobs

    def take(self, link: DaemonLink, frame: wire.Frame) -> None:
        """A frame for its jobs. Who lost one to another doesn't get it back by merely returning."""
        message = wire.decode_control(frame) if frame.type is FrameType.CONTROL else None
        process = self.processes.get(message.job_id) if isinstance(message, wire.Attach) else None
        owner = None if process is None else process.job.owner
        self.act(self.table.receive(link, frame, self.clock.now))
        if isinstance(message, wire.Attach):
            process = self.processes.get(message.job_id)
            if process is not None and process.job.owner not in (None, owner):
                lost = self._owning.get(process) not in (None, message.client)
                returns = message.generation is not None and not message.takeover
                assert not (lost and returns), "(1) the loser of a job is its owner again"
                self._owning[process] = message.client

    def lose(self, link: DaemonLink) -> None:
        """A link is over."""
        if self.lives:
            self.act(self.table.close_link(link, self.clock.now))

    def act(self, effects: Effects) -> None:
        """Do what the job table asks for."""
        for job, effect in effects:
            process = self.processes.get(job.key[1])
            match effect:
                case Effect.START:
                    self.processes[job.key[1]] = self.world.started(self, job)
                case Effect.OPS if process is not None:
                    process.apply_ops()
                case Effect.END:
                    assert process is not None
                    self.exit(process, 137)
                case Effect.OPS | Effect.INPUT | Effect.ROOM | Effect.FORGOTTEN:
                    pass

    def exit(self, process: Process, code: int, *, left_in_pipes: int = 0) -> None:
        """A process ends."""
        if process.result is None:
            process.exit(code, left_in_pipes=left_in_pipes)
            self.act(self.table.ended(process.job, self.clock.now))

    @property
    def present(self) -> list[Process]:
        """Processes, running or not, whose job it still has."""
        jobs = self.table.jobs
        return [each for each in self.processes.values() if jobs.get(each.job.key) is each.job]

    def _tick(self) -> None:
        if self.lives:
            self.act(self.table.tick(self.clock.now))
            self.clock.call_later(LONGEST_TICK, self._tick)

    def die(self, *, politely: bool) -> None:
        """By SIGKILL, which its peer may take a while to see; or in good order, with a farewell."""
        dial = self.dial_in_use
        if politely and dial is not None and dial.link is not None:
            dial.link.scheduler.control(wire.encode_control(0, wire.Goodbye("stopped")))
            while dial.cable is not None and dial.cable.up.send():
                pass
        self.lives = False
        if dial is not None:
            dial.over()
        if self._redial is not None:
            self._redial.cancel()
        for process in self.processes.values():
            process.running = False


# ---- all of it -----------------------------------------------------------------------------------


class LinkWorld(JobWorld):
    """Two controllers, of which one has the address that daemons dial; daemons of one id; readers of jobs."""

    def __init__(self, luck: float) -> None:
        super().__init__()
        self.luck = luck
        """Of every random wait: 0 is the shortest."""
        self.delay = 0.0
        """Seconds that a message takes over a connection that is made now."""
        self.network = MemoryNetwork(seed=0)
        self.clock = self.network.clock
        self.controllers = [Controller(self, 0), Controller(self, 1)]
        self.retired: list[Controller] = []
        self.at = 0
        """Which of the controllers has the address."""
        self.is_copied = False
        """A directory was copied."""
        self.daemons: list[Daemon] = []
        """Those that live: one, or two of the same id."""
        self.dead: list[Daemon] = []
        self.controller_of: dict[ClientJob, Controller] = {}
        self.opened: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.start_daemon(Directory())

    @property
    def controller(self) -> Controller:
        """The one that daemons reach."""
        return self.controllers[self.at]

    # -- programs that start and die

    def start_daemon(self, directory: Directory) -> Daemon:
        """A new instance."""
        daemon = Daemon(self, len(self.daemons) + len(self.dead), directory)
        self.daemons.append(daemon)
        return daemon

    def kill_daemon(self, daemon: Daemon, *, politely: bool) -> None:
        """Its program ends."""
        daemon.die(politely=politely)
        self.daemons.remove(daemon)
        self.dead.append(daemon)

    def restart_controller(self, index: int) -> None:
        """Its program is killed, and what it knew and who used it are gone; another takes its place."""
        old = self.controllers[index]
        for door in old.doors:
            if door.is_open and door.cable is not None:
                door.cable.down.close()
        for reader in self.readers:
            if self.controller_of[reader.job] is old:
                reader.left = True
        self.retired.append(old)
        self.controllers[index] = Controller(self, len(self.retired) + 1)

    # -- applications

    def open(self, controller: Controller, *, job_id: str | None = None) -> Reader:
        """Start a job."""
        spec = wire.CommandSpec((b"model",), lease=LEASE)
        job = controller.client.open(DAEMON, spec, job_id=job_id)
        self.opened[job.id] += 1
        return self._reader(controller, job)

    def attach(
        self, controller: Controller, job_id: str, *, role: Role, takeover: bool
    ) -> Reader | None:
        """Attach to a job that there may be; None if it was refused on the spot."""
        try:
            job = controller.client.attach(DAEMON, job_id, role=role, takeover=takeover)
        except RequestRefused:
            return None
        return self._reader(controller, job)

    def _reader(self, controller: Controller, job: ClientJob) -> Reader:
        reader = Reader(cast("Any", controller), job, len(self.readers))
        self.readers.append(reader)
        self.controller_of[job] = controller
        controller.flush()
        return reader

    def leave(self, reader: Reader, *, end: bool) -> None:
        """The application has enough of a job: ends it, or lets it go on."""
        if not reader.left:
            reader.left = True
            controller = self.controller_of[reader.job]
            if end:
                self.end_asked(reader)
                controller.client.end(reader.job)
            controller.client.close(reader.job)
            controller.flush()

    def daemon_of(self, job: ClientJob) -> Daemon | None:
        """The one that it is bound to, dead or alive."""
        for daemon in (*self.daemons, *self.dead):
            if daemon.identity.instance == job.instance:
                return daemon
        return None

    def process_of(self, reader: Reader) -> Process | None:
        """See `JobWorld`."""
        daemon = self.daemon_of(reader.job)
        return None if daemon is None else daemon.processes.get(reader.job.id)

    def has_job(self, job: ClientJob) -> bool:
        """See `JobWorld`."""
        daemon = self.daemon_of(job)
        assert daemon is not None, "bound to nobody"
        return ("default", job.id) in daemon.table.jobs

    def may_be_gone(self, job: ClientJob) -> bool:
        """See `JobWorld`."""
        controller = self.controller_of[job]
        return bool(set(controller.instances) - {job.instance} or controller.goodbyes)

    def may_be_freed(self, process: Process, stream: Stream) -> bool:
        """See `JobWorld`. Nobody asks for dropping here, and only jobs that are kept are looked at."""
        return False

    def started(self, daemon: Daemon, job: Any) -> Process:
        """(5) One job key starts at most one process, whatever is restarted and whoever says it again."""
        job_id = job.key[1]
        self.starts[job_id] += 1
        assert job_id not in daemon.processes, "(5) a second process for one job"
        assert self.starts[job_id] <= self.opened[job_id], "(5) started more often than asked for"
        process = Process(job, sum(self.starts.values()))
        if parse(job_id) is not None:
            for reader in self.readers:
                if reader.job.id == job_id and reader.job.sequence is not None:
                    assert reader.job.instance == daemon.identity.instance, (
                        "(5) it was sent to another instance"
                    )
                    process.owners.append((0, reader))
        return process

    def read(self, reader: Reader, size: int, *, once: bool = False) -> None:
        """Somebody takes what has arrived."""
        process = self.process_of(reader)
        if process is not None and not reader.left:
            reader.read(size, process, once=once)
            self.controller_of[reader.job].flush()

    # -- the guarantees

    def check(self) -> None:
        """Assert what must hold at every moment, by number."""
        for controller in self.controllers:
            self._check_links(controller)
        for daemon in self.daemons:
            for process in daemon.present:
                self.check_process(process)
        for reader in self.readers:
            if not reader.left:
                self.check_reader(reader)

    def _check_links(self, controller: Controller) -> None:
        """(8) At most one link is live, it is the newest of its instance, and all agree on which it is."""
        record = controller.registry.get(DAEMON)
        live = [door for door in controller.doors if door.is_open and door.link is not None]
        assert len(live) <= 1, "(8) two live links"
        link = controller.router.daemons.get(DAEMON)
        assert [door.link for door in live] == ([] if link is None else [link])
        if record is None:
            assert link is None
            return
        assert record.link is link, "(8) registry and router differ"
        assert (record.state is DaemonState.ONLINE) == (link is not None)
        known = [
            door.hello
            for door in controller.doors
            if door.link is not None and door.hello is not None
        ]
        for hello in known:
            if hello.instance == record.tenure.holder.instance:
                assert hello.connection <= record.tenure.holder.connection, "(8) not the newest"
        for each in (controller.client_link, *controller.router.daemons.values()):
            for route in each.routes.values():
                assert route.daemon is link, "(8) a route over a dead link"
        for door in controller.doors:
            if not door.is_open:
                assert not door.askers, "a rival waits for somebody who is gone"

    def late_frames(self, controller: Controller) -> None:
        """(8) What a link that was superseded or given up still held arrives after all: without effect."""
        for door in controller.doors:
            if door.is_open or door.link is None or door.cable is None:
                continue
            before = self._state(controller)
            for _, message in door.cable.up.flying:
                for frame in wire.decode_frames(message or b""):
                    if frame.channel:
                        controller.on_frame(door.link, frame)
            door.cable.up.flying.clear()
            assert before == self._state(controller), "(8) a superseded link had an effect"

    def _state(self, controller: Controller) -> list[Any]:
        links = [controller.client_link, *controller.router.daemons.values()]
        return [(link, dict(link.routes), link.scheduler.pending) for link in links]

    def live_pairs(self) -> Iterator[tuple[Controller, Daemon]]:
        """Controllers and daemons that both hold the two ends of one live connection."""
        for controller in self.controllers:
            for door in controller.doors:
                if door.is_open and door.link is not None and door.cable is not None:
                    dial = cast("Any", door.cable.far)
                    if dial.is_open and dial.link is not None:
                        yield controller, dial.daemon
