"""The router between clients and daemons: forwards frames verbatim, under another channel number.

Sans-IO. Every link has a `Scheduler`; `receive` puts frames into those of other links and marks them
dirty, and the shell sends what they hold. Offsets, acks and credit run end to end, so the router
keeps no stream state at all: per link and channel it holds a queue, bounded by the receiver's credit.

Nothing is queued for a daemon that isn't live: the client gets `Away` and attaches again later.
The one thing kept for it is an `End`: the owner left, so the job must not outlive that.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, evolve, field

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.scheduler import SHARED_FRAME_BYTES, Scheduler
from sandd._core.tombstones import parse
from sandd.wire import DaemonState, Frame, FrameType, OutgoingFrame, RefusedCode

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_END_INTENTS: Final = 10_000
"""Ends kept for daemons that are away; beyond it the oldest is dropped, and the job's lease ends it."""

MAX_ENDS_UNDER_WAY: Final = 1024
"""Ends remembered per daemon link, to be said again after a cut; saying one twice is harmless."""


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

    tenant: str = "default"
    principal: str = ""
    client: str = ""
    """The only client that it may be, if it was told; see `Attach`."""


@define(eq=False)
class DaemonLink(RouterLink):
    """A link to a live daemon."""

    daemon_id: str = ""
    instance: str = ""
    ends: deque[wire.End] = field(factory=lambda: deque(maxlen=MAX_ENDS_UNDER_WAY))
    """The latest Ends sent on it: should it break, they may not have arrived."""


@define(eq=False)
class Route:
    """One client's channel joined to one daemon's."""

    client: ClientLink
    to_client: RelayQueue
    daemon: DaemonLink
    to_daemon: RelayQueue


class Router:
    """Joins channels of client links to channels of daemon links."""

    def __init__(self) -> None:
        self.clients: dict[ClientLink, None] = {}  # an ordered set
        self.daemons: dict[str, DaemonLink] = {}
        self.dirty: set[RouterLink] = set()
        """Links for which something was scheduled; the shell empties it."""
        self._status: dict[str, wire.DaemonStatus] = {}
        self._since: dict[str, float] = {}
        """When each daemon's newest link began, by the shell's clock."""
        self._ends: OrderedDict[tuple[str, str, str, str], wire.End] = OrderedDict()
        self.ends_version = 0
        """Rises whenever `kept_ends` changes."""

    # -- links come and go

    def add_client(
        self, *, tenant: str = "default", principal: str = "", client: str = "", now: float = 0.0
    ) -> ClientLink:
        """A client is connected; it is told of every daemon."""
        link = ClientLink(self.dirty, tenant=tenant, principal=principal, client=client)
        self.clients[link] = None
        for status in self._status.values():
            since = self._since.get(status.daemon_id, now)
            link.control(0, evolve(status, connected_for=max(0.0, now - since)))
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
        self._tell(wire.DaemonCloned(daemon_id, instance, about))

    def _announce(self, status: wire.DaemonStatus) -> None:
        self._status[status.daemon_id] = status
        self._tell(status)

    def _tell(self, news: wire.News) -> None:
        for client in self.clients:
            client.control(0, news)

    def forget_daemon(self, daemon_id: str) -> None:
        """Nobody asks for this daemon any more: keep nothing of it."""
        self._status.pop(daemon_id, None)
        self._since.pop(daemon_id, None)
        for key in [key for key in self._ends if key[0] == daemon_id]:
            del self._ends[key]
            self.ends_version += 1

    def wake_carriers(self) -> None:
        """Have whatever was scheduled for links with a carrier sent."""
        while self.dirty:
            carrier = self.dirty.pop().carrier
            if carrier is not None:
                carrier.wake()

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
                self._end(link, message, 0 if route is None else route.to_daemon.number)
            case wire.Window() | wire.Detach() | wire.Flush():
                route = self._route(link, frame)
                if route is None:
                    return
                if isinstance(message, wire.Detach):
                    self._unjoin(route)
                route.daemon.schedule(wire.readdress(route.to_daemon.number, frame))
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
        route.client.schedule(wire.readdress(route.to_client.number, frame))

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
        daemon = self.daemons.get(message.daemon_id)
        if daemon is None:
            if message.daemon_id in self._status:
                link.control(number, wire.Away())
            else:
                link.control(number, wire.Refused(RefusedCode.DAEMON_NOT_FOUND, "no such daemon"))
            return
        try:
            stamped = wire.encode_control(daemon.last_channel + 1, _stamp(message, link))
        except LocalProtocolError as error:  # it was within the limit before it was stamped
            link.control(number, wire.Refused(RefusedCode.DENIED, str(error)))
            return
        if message.spec is not None and parse(message.job_id) is None:
            # A chosen id may be used again one day: what ended its last job must not end this one.
            self._drop_ends(daemon, link.tenant, message.job_id)
        daemon.last_channel += 1
        route = Route(link, RelayQueue(number), daemon, RelayQueue(daemon.last_channel))
        link.routes[number] = route
        daemon.routes[daemon.last_channel] = route
        daemon.schedule(stamped)

    def _end(self, link: ClientLink, message: wire.End, number: int) -> None:
        client = link.client or message.client
        stamped = wire.End(message.daemon_id, message.job_id, message.grace, client, link.tenant)
        daemon = self.daemons.get(message.daemon_id)
        if daemon is not None:
            self._send_end(daemon, stamped, number)
        else:  # away, or not back yet since this controller was started
            self._keep(stamped)

    def _send_end(self, daemon: DaemonLink, message: wire.End, number: int = 0) -> None:
        # In its place: a request that follows is not to find a job that was left before it.
        daemon.control(number, message)
        daemon.ends.append(message)

    def _drop_ends(self, daemon: DaemonLink, tenant: str, job_id: str) -> None:
        kept = [end for end in daemon.ends if (end.tenant, end.job_id) != (tenant, job_id)]
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


def _stamp(message: wire.Attach, link: ClientLink) -> wire.Attach:
    """The Attach in the name the link was authenticated for, whatever the client put there."""
    return wire.Attach(
        daemon_id=message.daemon_id,
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
        tenant=link.tenant,
        principal=link.principal,
    )
