"""The router between clients and daemons: forwards frames verbatim, under another channel number.

Sans-IO. Every link has a `Scheduler`; `receive` puts frames into those of other links and marks them
dirty, and the shell sends what they hold. Offsets, acks and credit run end to end, so the router
keeps no bytes but those under way: per link and channel it holds a queue, bounded by the receiver's credit.

Nothing is queued for a daemon that isn't live: the client gets `Away` and attaches again later.
The one thing kept for it is an `End`: the owner left, so the job must not outlive that.

Daemons are known by their full names, and each belongs to one tenant; so do its jobs, whoever starts them. A client
says and hears of them as its principal has it (`identity.rights`), and of those it may not see nothing at all: they
are answered for as those that were never there.

A client in this process takes all there is at once, and keeps what it sends. Of one in another process neither is sure:
what may come to wait for it, or because of it, is bounded by lowering the credit that passes: see `credit`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, evolve, field

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.credit import CreditPool, Flow
from sandd._core.identity.rights import EVERYTHING, Principal, split_name
from sandd._core.scheduler import SHARED_FRAME_BYTES, Scheduler
from sandd._core.tombstones import parse
from sandd.wire import DaemonState, Frame, FrameType, OutgoingFrame, RefusedCode, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_END_INTENTS: Final = 10_000
"""Ends kept for daemons that are away; beyond it the oldest is dropped, and the job's lease ends it."""

MAX_ENDS_UNDER_WAY: Final = 1024
"""Ends remembered per daemon link, to be said again after a cut; saying one twice is harmless."""

MAX_ROUTES: Final = 8192
"""Channels that a client in another process may have open: for each something may come to wait."""

MAX_WAITING_BYTES: Final = 64 * wire.MIB
"""Under way to one link over all metered routes, messages included. The credit keeps to a third of that; who sends
more by messages, of which a window holds 8 MiB a channel, costs the receiver its connection, and it comes back."""


PINNED_FACTOR: Final = 4
"""A frame that waits may keep so many times its size alive: a copy of each would cost more than that is worth."""
HEAD_BYTES: Final = 128
"""What a frame counts for besides its bytes: it is three objects."""


class RelayQueue:
    """Frames under way to one channel of one link; a `Source` for its scheduler."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._urgent: deque[OutgoingFrame] = deque()
        self._bulk: deque[OutgoingFrame] = deque()

    def put(self, frame: Frame, data: wire.Data) -> None:
        """Take a stream's frame; the order within the stream is kept."""
        queue = self._urgent if data.stream in wire.MESSAGE_STREAMS else self._bulk
        queue.append(wire.readdress(self.number, frame))

    def next_urgent(self) -> OutgoingFrame | None:
        """See `Source`."""
        return self._urgent.popleft() if self._urgent else None

    def next_bulk(self, limit: int) -> OutgoingFrame | None:
        """See `Source`; frames are passed on whole, unless the line is a slow one."""
        if not self._bulk:
            return None
        frame = self._bulk.popleft()
        if limit < SHARED_FRAME_BYTES and not isinstance(frame, wire.ControlFrame):
            frame, rest = wire.split_data(frame, limit)
            if rest is not None:
                self._bulk.appendleft(rest)
        return frame


class Carrier(Protocol):
    """What carries a link's frames: the shell's end of it."""

    def wake(self) -> None:
        """The link's scheduler has something to send."""

    def close(self, reason: str) -> None:
        """End the link."""


class MeteredQueue(RelayQueue):
    """A queue whose streams tell their flows what has passed."""

    def __init__(self, number: int, link: RouterLink, flows: dict[wire.Stream, Flow]) -> None:
        super().__init__(number)
        self._link = link
        self._flows = flows
        self._ends: dict[bool, deque[tuple[Flow, int, int, int]]] = {True: deque(), False: deque()}
        """Of each frame: its flow, where that stands behind it, units of a gap, and its size; the urgent ones and the
        others."""

    def put(self, frame: Frame, data: wire.Data) -> None:
        """Take a stream's frame. RemoteProtocolError where its sender has no credit for it."""
        flow = self._flows[data.stream]
        end = flow.arrived(data)
        if self._link.scheduler.overrun:
            return  # its connection is about to be given up
        skipped = 0 if data.gap_end is None else data.gap_end - data.offset
        size = len(data.body) + HEAD_BYTES
        self._link.add_waiting(size)
        self._ends[data.stream in wire.MESSAGE_STREAMS].append((flow, end, skipped, size))
        super().put(_by_itself(frame), data)

    def next_urgent(self) -> OutgoingFrame | None:
        """See `Source`."""
        return self._passed(super().next_urgent(), urgent=True)

    def next_bulk(self, limit: int) -> OutgoingFrame | None:
        """See `Source`."""
        before = len(self._bulk)
        frame = super().next_bulk(limit)
        # What is left of one that was split, on a slow line, has yet to go.
        return frame if len(self._bulk) == before else self._passed(frame, urgent=False)

    def _passed(self, frame: OutgoingFrame | None, *, urgent: bool) -> OutgoingFrame | None:
        if frame is not None:
            flow, end, skipped, size = self._ends[urgent].popleft()
            self._link.waiting -= size
            flow.pass_on(end, skipped)
        return frame

    def close(self) -> None:
        """Nothing of it is sent any more."""
        for ends in self._ends.values():
            self._link.waiting -= sum(size for *_, size in ends)
            ends.clear()


@define(eq=False)
class RouterLink:
    """One link of the router: to a daemon, or to a client."""

    dirty: set[RouterLink]
    """The router's set of links for which something was scheduled since the shell last looked."""
    carrier: Carrier | None = None
    """Set by the shell; none for the client in this process, which looks by itself."""
    scheduler: Scheduler = field(factory=Scheduler)
    routes: dict[int, Route] = field(factory=dict)
    last_channel: int = 0
    pool: CreditPool = field(factory=CreditPool)
    waiting: int = 0
    """Bytes under way to it over metered routes."""

    def add_waiting(self, size: int) -> None:
        """So many more; beyond MAX_WAITING_BYTES it is to be given up."""
        self.waiting += size
        if self.waiting > MAX_WAITING_BYTES:
            self.scheduler.overrun = True

    def control(self, channel: int, message: wire.Control, *, late: bool = False) -> None:
        """Queue a control message; `late` as in `Scheduler.control`."""
        self.schedule(wire.ControlFrame(channel, message), late=late)

    def schedule(self, frame: OutgoingFrame, *, late: bool = False) -> None:
        """Queue a control frame."""
        self.scheduler.control(frame, late=late)
        self.dirty.add(self)


@define(eq=False)
class ClientLink(RouterLink):
    """A link to a client; everything it asks for is asked in this name."""

    principal: Principal = EVERYTHING
    client: str = ""
    """Of one in another process: the only client that it may be; see `Attach`."""

    @property
    def is_metered(self) -> bool:
        """What it grants is passed on within bounds."""
        return self.client != ""


@define(eq=False)
class DaemonLink(RouterLink):
    """A link to a live daemon."""

    daemon_id: str = ""
    """Its full name."""
    instance: str = ""
    ends: deque[wire.End] = field(factory=lambda: deque(maxlen=MAX_ENDS_UNDER_WAY))
    """The latest Ends sent on it: should it break, they may not have arrived."""

    @property
    def tenant(self) -> str:
        """Whose it is, and all its jobs."""
        return split_name(self.daemon_id)[0]


@define(eq=False)
class Route:
    """One client's channel joined to one daemon's."""

    client: ClientLink
    to_client: RelayQueue
    daemon: DaemonLink
    to_daemon: RelayQueue
    flows: dict[wire.Stream, Flow]
    """Of its streams, where it is metered; else none."""
    role: wire.Role = wire.Role.OWNER


class Router:
    """Joins channels of client links to channels of daemon links."""

    def __init__(self) -> None:
        self.clients: dict[ClientLink, None] = {}  # an ordered set
        self.daemons: dict[str, DaemonLink] = {}
        self.dirty: set[RouterLink] = set()
        """Links for which something was scheduled; the shell empties it."""
        self._waking = False
        self._status: dict[str, wire.DaemonStatus] = {}
        self._since: dict[str, float] = {}
        """When each daemon's newest link began, by the shell's clock."""
        self._ends: OrderedDict[tuple[str, str, str, str], wire.End] = OrderedDict()
        self.ends_version = 0
        """Rises whenever `kept_ends` changes."""

    # -- links come and go

    def add_client(
        self, *, principal: Principal = EVERYTHING, client: str = "", now: float = 0.0
    ) -> ClientLink:
        """A client is connected; it is told of every daemon that it may see."""
        link = ClientLink(self.dirty, principal=principal, client=client)
        self.clients[link] = None
        for status in self._status.values():
            since = self._since.get(status.daemon_id, now)
            _tell_news(link, evolve(status, connected_for=max(0.0, now - since)))
        link.control(0, wire.DaemonsTold())
        return link

    def remove_client(self, link: ClientLink) -> None:
        """The client's link is gone: its channels are detached, its jobs go on."""
        self.clients.pop(link, None)
        self.dirty.discard(link)
        for route in list(link.routes.values()):
            self._unjoin(route)
            route.daemon.control(route.to_daemon.number, wire.Detach())

    def add_daemon(
        self,
        daemon_id: str,
        instance: str,
        about: wire.DaemonDescription = wire.UNDESCRIBED,
        *,
        now: float = 0.0,
    ) -> DaemonLink:
        """A daemon is live on a new link; one it had before is superseded, nothing late from that counts."""
        link = DaemonLink(self.dirty, daemon_id=daemon_id, instance=instance)
        previous = self.daemons.get(link.daemon_id)
        if previous is not None:
            self._drop_daemon(previous, DaemonState.AWAY)
        self.daemons[link.daemon_id] = link
        self._since[link.daemon_id] = now
        for key in [key for key in self._ends if key[0] == link.daemon_id]:
            self._send_end(link, self._ends.pop(key))
            self.ends_version += 1
        self._announce(wire.DaemonStatus(link.daemon_id, DaemonState.ONLINE, link.instance, about))
        return link

    def remove_daemon(self, link: DaemonLink, state: DaemonState) -> None:
        """The daemon's link is gone: its clients wait (AWAY) or learn that it won't return (GONE)."""
        if self.daemons.get(link.daemon_id) is link:  # else superseded: that was the moment
            self._drop_daemon(link, state)
            self._announce(evolve(self._status[link.daemon_id], state=state))

    def _drop_daemon(self, link: DaemonLink, state: DaemonState) -> None:
        del self.daemons[link.daemon_id]
        self.dirty.discard(link)
        if state is DaemonState.AWAY:
            for end in link.ends:
                self._keep(end)
        for route in list(link.routes.values()):
            self._unjoin(route)
            route.client.control(route.to_client.number, wire.Away())

    def daemon_gone(self, daemon_id: str) -> None:
        """An absent daemon is given up for good."""
        status = self._status.get(daemon_id)
        if status is not None and status.state is DaemonState.AWAY:
            self._announce(evolve(status, state=DaemonState.GONE))

    def tell_cloned(self, daemon_id: str, instance: str, about: wire.DaemonDescription) -> None:
        """A daemon came whose state directory and that of another are copies of one."""
        self._publish(wire.DaemonCloned(daemon_id, instance, about))

    def _announce(self, status: wire.DaemonStatus) -> None:
        self._status[status.daemon_id] = status
        self._publish(status)

    def _publish(self, news: wire.DaemonStatus | wire.DaemonCloned) -> None:
        for client in self.clients:
            _tell_news(client, news)

    def forget_daemon(self, daemon_id: str) -> None:
        """Nobody asks for this daemon any more: keep nothing of it."""
        self._status.pop(daemon_id, None)
        self._since.pop(daemon_id, None)
        for key in [key for key in self._ends if key[0] == daemon_id]:
            del self._ends[key]
            self.ends_version += 1

    def wake_carriers(self) -> None:
        """Have whatever was scheduled for links with a carrier sent."""
        if self._waking:
            return  # called while a carrier takes what it has; the loop below goes on until all is quiet
        self._waking = True
        try:
            while self.dirty:
                carrier = self.dirty.pop().carrier
                if carrier is not None:
                    carrier.wake()
        finally:
            self._waking = False

    # -- frames

    def receive(self, link: RouterLink, frame: Frame) -> None:
        """Take one frame from a link; RemoteProtocolError closes that link and touches no other."""
        if isinstance(link, ClientLink):
            self._from_client(link, frame)
        elif isinstance(link, DaemonLink):
            self._from_daemon(link, frame)
        else:
            raise LocalProtocolError("a router's link is a client's or a daemon's")

    def _from_client(self, link: ClientLink, frame: Frame) -> None:
        if frame.type is not FrameType.CONTROL:
            route = self._route(link, frame)
            if route is not None:
                data = wire.decode_data(frame)
                if data.stream not in wire.TO_DAEMON or data.gap_end is not None:
                    raise RemoteProtocolError(f"{data.stream.name} does not flow to the daemon")
                if route.role is wire.Role.VIEWER:
                    raise RemoteProtocolError(f"{data.stream.name} on a channel that only looks on")
                self._forward(route.daemon, route.to_daemon, frame, data)
            return
        message = wire.decode_control(frame)
        match message:
            case wire.Attach():
                self._attach(link, frame.channel, message)
            case wire.End():
                route = self._route(link, frame) if frame.channel else None
                if route is not None:
                    self._unjoin(route)
                self._end(link, message, route)
            case wire.Window() | wire.Detach() | wire.Flush():
                route = self._route(link, frame)
                if route is None:
                    return
                if isinstance(message, wire.Detach):
                    self._unjoin(route)
                number = route.to_daemon.number
                route.daemon.schedule(_metered(message, route, frame, number, wire.TO_CLIENT))
            case wire.Unknown():
                pass
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a client to send")

    def _from_daemon(self, link: DaemonLink, frame: Frame) -> None:
        if frame.type is not FrameType.CONTROL:
            route = self._route(link, frame)
            if route is not None:
                data = wire.decode_data(frame)
                gap_in_messages = data.gap_end is not None and data.stream in wire.MESSAGE_STREAMS
                if data.stream not in wire.TO_CLIENT or gap_in_messages:
                    raise RemoteProtocolError(f"{data.stream.name} does not flow to the client")
                self._forward(route.client, route.to_client, frame, data)
            return
        message = wire.decode_control(frame)
        if isinstance(message, wire.Unknown) and frame.channel == 0:
            return
        if not isinstance(
            message,
            wire.Attached | wire.Refused | wire.Taken | wire.Flush | wire.Window | wire.Unknown,
        ):
            raise RemoteProtocolError(f"{type(message).__name__} is not for a daemon to send")
        route = self._route(link, frame)
        if route is None:
            return
        if isinstance(message, wire.Refused | wire.Taken):
            self._unjoin(route)
        number = route.to_client.number
        route.client.schedule(_metered(message, route, frame, number, wire.TO_DAEMON))

    def _route(self, link: RouterLink, frame: Frame) -> Route | None:
        """None: that channel was closed, and this frame was under way; it is no error."""
        if not 0 < frame.channel <= link.last_channel:
            raise RemoteProtocolError(f"frame for channel {frame.channel}, which was never opened")
        return link.routes.get(frame.channel)

    def _forward(self, link: RouterLink, queue: RelayQueue, frame: Frame, data: wire.Data) -> None:
        queue.put(frame, data)
        link.scheduler.activate(queue)
        link.dirty.add(link)

    def _attach(self, link: ClientLink, number: int, message: wire.Attach) -> None:
        if number <= link.last_channel:
            raise RemoteProtocolError(f"Attach on channel {number}, behind {link.last_channel}")
        link.last_channel = number
        streams = [cursor.stream for cursor in message.cursors]
        if len({*streams} & wire.TO_CLIENT) < len(streams):
            raise RemoteProtocolError("Attach asks for a stream twice, or for one to the daemon")
        name = link.principal.full_name(message.daemon_id)
        if name is None or name not in self._status:
            link.control(number, wire.Refused(RefusedCode.DAEMON_NOT_FOUND, "no such daemon"))
            return
        refusal = self.authorise(link, message)
        if refusal is not None:
            link.control(number, refusal)
            return
        daemon = self.daemons.get(name)
        if daemon is None:
            link.control(number, wire.Away())
            return
        if link.is_metered and len(link.routes) >= MAX_ROUTES:
            text = f"a client may have {MAX_ROUTES} jobs open at a time"
            link.control(number, wire.Refused(RefusedCode.DENIED, text))
            return
        route = self._new_route(link, number, daemon, message.role)
        try:
            stamped = wire.encode_control(
                daemon.last_channel + 1, _stamp(_metered_attach(message, route), link, daemon)
            )
        except LocalProtocolError as error:  # it was within the limit before it was stamped
            self._unjoin(route)
            link.control(number, wire.Refused(RefusedCode.DENIED, str(error)))
            return
        if message.spec is not None and parse(message.job_id) is None:
            # A chosen id may be used again one day: what ended its last job must not end this one.
            self._drop_ends(daemon, message.job_id)
        daemon.last_channel += 1
        link.routes[number] = route
        daemon.routes[daemon.last_channel] = route
        daemon.schedule(stamped)

    def authorise(self, link: ClientLink, message: wire.Attach) -> wire.Refused | None:
        """Why the client may not do that on a daemon that it sees; None: it may."""
        return link.principal.refusal(message, link.client or message.client)

    def _new_route(
        self, link: ClientLink, number: int, daemon: DaemonLink, role: wire.Role
    ) -> Route:
        far = daemon.last_channel + 1
        if not link.is_metered:
            return Route(link, RelayQueue(number), daemon, RelayQueue(far), {}, role)
        flows: dict[wire.Stream, Flow] = {}
        route = Route(
            link,
            MeteredQueue(number, link, flows),
            daemon,
            MeteredQueue(far, daemon, flows),
            flows,
            role,
        )
        for stream in wire.Stream:
            pool = (daemon if stream in wire.TO_DAEMON else link).pool
            flows[stream] = Flow(stream, pool, link, on_due=lambda flow: self._tell(route, flow))
        return route

    def _tell(self, route: Route, flow: Flow) -> None:
        """The flow's sender may send more."""
        update = wire.Window((flow.update(),))
        if flow.stream in wire.TO_DAEMON:
            route.client.control(route.to_client.number, update)
        else:
            route.daemon.control(route.to_daemon.number, update)

    def _end(self, link: ClientLink, message: wire.End, route: Route | None) -> None:
        client = link.client or message.client
        name = link.principal.full_name(message.daemon_id)
        is_allowed = name is not None and link.principal.may_end(message.job_id, client)
        number = 0
        if route is not None and is_allowed and name == route.daemon.daemon_id:
            number = route.to_daemon.number
        elif route is not None:  # all that it closes is the channel
            route.daemon.control(route.to_daemon.number, wire.Detach())
        if name is None or not is_allowed:
            return  # nobody waits for an answer to this
        tenant, _ = split_name(name)
        stamped = wire.End(name, message.job_id, message.grace, client, tenant)
        daemon = self.daemons.get(name)
        if daemon is not None:
            self._send_end(daemon, stamped, number)
        else:  # away, or not back yet since this controller was started
            self._keep(stamped)

    def _send_end(self, daemon: DaemonLink, message: wire.End, number: int = 0) -> None:
        # In its place: a request that follows is not to find a job that was left before it.
        daemon.control(number, message)
        daemon.ends.append(message)

    def _drop_ends(self, daemon: DaemonLink, job_id: str) -> None:
        kept = [end for end in daemon.ends if end.job_id != job_id]
        daemon.ends = deque(kept, maxlen=MAX_ENDS_UNDER_WAY)

    @property
    def kept_ends(self) -> list[wire.End]:
        """Those for daemons that are away, or not back yet since this controller was started."""
        return list(self._ends.values())

    def restore_ends(self, ends: Iterable[wire.End]) -> None:
        """Those that an earlier controller had kept."""
        for end in ends:
            self._keep(end)

    def _keep(self, end: wire.End) -> None:
        self.ends_version += 1
        self._ends[end.daemon_id, end.tenant, end.job_id, end.client] = end
        if len(self._ends) > MAX_END_INTENTS:
            self._ends.popitem(last=False)

    def _unjoin(self, route: Route) -> None:
        route.client.routes.pop(route.to_client.number, None)
        route.client.scheduler.discard(route.to_client)
        route.daemon.routes.pop(route.to_daemon.number, None)
        route.daemon.scheduler.discard(route.to_daemon)
        for queue in (route.to_client, route.to_daemon):
            if isinstance(queue, MeteredQueue):
                queue.close()
        for flow in route.flows.values():
            flow.close()


def _metered_attach(message: wire.Attach, route: Route) -> wire.Attach:
    """The Attach with as much credit as may be passed on."""
    flows = route.flows
    if not flows:
        return message
    # Until the daemon says more, the client may send this much.
    flows[Stream.OPS].want(wire.MESSAGE_WINDOW)
    flows[Stream.INPUT].allow(wire.INITIAL_INPUT_BYTES)
    if not message.cursors:
        flows[Stream.EVENTS].want(wire.MESSAGE_WINDOW)
        outputs = [flows[Stream.OUTPUT], flows[Stream.ERROR]]
        credit = min(flow.want(message.output_credit) for flow in outputs)
        return evolve(message, output_credit=credit)
    cursors = []
    for cursor in message.cursors:
        flow = flows[cursor.stream]
        if cursor.offset is not None:
            flow.place(cursor.offset)
        cursors.append(evolve(cursor, max_offset=flow.want(cursor.max_offset)))
    return evolve(message, cursors=tuple(cursors))


def _metered(
    message: wire.Control | wire.Unknown,
    route: Route,
    frame: Frame,
    number: int,
    streams: frozenset[Stream],
) -> OutgoingFrame:
    """The frame for the other end's channel, with as much credit for `streams` as may be passed on."""
    flows = route.flows
    match message:
        case wire.Window() if flows:
            if any(entry.stream not in streams for entry in message.streams):
                raise RemoteProtocolError("credit for a stream that flows the other way")
            entries = [
                evolve(entry, max_offset=flows[entry.stream].want(entry.max_offset, entry.ack))
                for entry in message.streams
            ]
            return wire.ControlFrame(number, wire.Window(tuple(entries)))
        case wire.Attached() if flows:
            states = []
            for state in message.streams:
                flow = flows[state.stream]
                if state.stream in streams:
                    flow.place(state.received)
                    state = evolve(state, max_offset=flow.want(state.max_offset))
                else:
                    flow.place(state.start, by_sender=True)
                states.append(state)
            return wire.ControlFrame(number, evolve(message, streams=tuple(states)))
    return wire.readdress(number, _by_itself(frame) if flows else frame)


def _by_itself(frame: Frame) -> Frame:
    """The frame, without the message that it came in, if that is much larger: it would be kept along with it."""
    payload = frame.payload
    if memoryview(payload.obj).nbytes < PINNED_FACTOR * len(payload):
        return frame
    return frame._replace(payload=memoryview(bytes(payload)))


def _tell_news(link: ClientLink, news: wire.DaemonStatus | wire.DaemonCloned) -> None:
    """What became of a daemon, to a client that may see it, by the name that it knows."""
    shown = link.principal.shown(news.daemon_id)
    if shown is not None:
        link.control(0, news if shown == news.daemon_id else evolve(news, daemon_id=shown))


def _stamp(message: wire.Attach, link: ClientLink, daemon: DaemonLink) -> wire.Attach:
    """The Attach in the name the link was authenticated for, whatever the client put there."""
    return wire.Attach(
        daemon_id=daemon.daemon_id,
        job_id=message.job_id,
        client=link.client or message.client,
        cursors=message.cursors,
        spec=message.spec,
        instance=message.instance,
        role=message.role,
        takeover=message.takeover,
        generation=message.generation,
        settled=message.settled,
        attempt=message.attempt,
        tenant=daemon.tenant,
        principal=link.principal.name,
        output_credit=message.output_credit,
    )
