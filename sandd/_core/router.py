"""The router between clients and daemons: forwards frames verbatim, under another channel number.

Sans-IO. Every link has a `Scheduler`; `receive` puts frames into those of other links and marks them
dirty, and the shell sends what they hold. Offsets, acks and credit run end to end, so the router
keeps no bytes but those under way: per link and channel it holds a queue, bounded by the receiver's credit.

Nothing is queued for a daemon that isn't live: the client gets `Away` and attaches again later.
The one thing kept for it is an `End`: the owner left, so the job must not outlive that. What a daemon had sent before
it left for good still reaches its clients; only behind that do they hear that it has left.

Daemons are known by their full names, and each belongs to one tenant; so do its jobs, whoever starts them. A client
says and hears of them as its principal has it (`identity.rights`), and of those it may not see nothing at all: they
are answered for as those that were never there.

A client in this process takes all there is at once (`ClientLink.take`), and keeps what it sends until the daemon's link
takes it from there (`Router.draw`). Of one in another process neither is sure:
what may come to wait for it, or because of it, is bounded by lowering the credit that passes (`credit`), and what needs
no credit by the room there is for each sender (`backlog`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import evolve

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.audit.trail import JobTrail
from sandd._core.credit import Flow
from sandd._core.held_requests import HeldRequests, job_key
from sandd._core.identity.rights import EVERYTHING, Principal, split_name
from sandd._core.kept_ends import KeptEnds
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.metrics.router_counts import RouterCounts
from sandd._core.metrics.statistics import ProcessFigures, statistics_for
from sandd._core.relay_queue import MeteredQueue, RelayQueue, by_itself
from sandd._core.router_links import (
    UNMETERED,
    ClientLink,
    DaemonLink,
    Parting,
    Route,
    RouterLink,
    close_route,
    metered_attach,
    metered_attached,
    pass_on,
    tell_news,
)
from sandd._core.scheduler import control_size
from sandd._core.tombstones import parse
from sandd.wire import DaemonState, Frame, FrameType, IsolationLevel, RefusedCode, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.backlog import Share
    from sandd._core.streams import SendCursor

# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_CONTROL: Final = FrameType.CONTROL
_EVENTS: Final = Stream.EVENTS

MAX_END_INTENTS: Final = 10_000
"""Ends kept for daemons that are away; beyond it who has most of them loses its oldest, and the job's lease ends it."""

MAX_ROUTES: Final = 8192
"""Channels that a client in another process may have open: for each something may come to wait."""

TOO_MUCH: Final = (
    "more waits on a slow line than one may have under way there; try again when it has gone"
)


class Router:
    """Joins channels of client links to channels of daemon links."""

    def __init__(
        self,
        authorise: Callable[
            [ClientLink, wire.Attach], wire.Refused | None
        ] = lambda _link, _message: None,
        audit: AuditSink = NO_AUDIT,
        policies_of: Callable[[str], Iterable[str]] = lambda _tenant: (),
        limits_of: Callable[[str, wire.Attach], Limits] = lambda _tenant, _message: NO_LIMITS,
        isolation_of: Callable[[str], IsolationLevel] = lambda _tenant: IsolationLevel.NONE,
    ) -> None:
        self._authorise = authorise
        """Asked of each Attach that would be passed on, by the daemon's full name; a refusal goes back in its stead."""
        self._limits_of = limits_of
        """What an Attach that may be passed on may start on a daemon of a tenant, at most."""
        self._isolation_of = isolation_of
        """What a tenant's jobs are kept apart from, at least."""
        self._audit = audit
        self._trail = JobTrail(audit, policies_of)
        self._held = HeldRequests(audit, self._trail, self)
        self.clients: dict[ClientLink, None] = {}  # an ordered set
        self.daemons: dict[str, DaemonLink] = {}
        self.dirty: set[RouterLink] = set()
        """Links for which something was scheduled; the shell empties it."""
        self._waking = False
        self._status: dict[str, wire.DaemonStatus] = {}
        self._since: dict[str, float] = {}
        """When each daemon's newest link began, by the shell's clock."""
        self._ends = KeptEnds(MAX_END_INTENTS)
        self.counts = RouterCounts()
        self.process: Callable[[], ProcessFigures] = ProcessFigures
        """Figures of the program it is in, for those who may see all."""

    # -- links come and go

    def add_client(
        self, *, principal: Principal = EVERYTHING, client: str = "", now: float = 0.0
    ) -> ClientLink:
        """A client is connected; it is told of every daemon that it may see."""
        link = ClientLink(self.dirty, principal=principal, client=client)
        self.clients[link] = None
        for status in self._status.values():
            since = self._since.get(status.daemon_id, now)
            tell_news(link, evolve(status, connected_for=max(0.0, now - since)))
        link.control(0, wire.DaemonsTold())
        return link

    def remove_client(self, link: ClientLink) -> None:
        """The client's link is gone: its channels are detached, its jobs go on."""
        self.clients.pop(link, None)
        self.dirty.discard(link)
        self._held.forget(link)
        for route in list(link.routes.values()):
            self._detach(route, wire.Detach())
        for parting in link.partings.values():
            for route in parting.routes.values():
                self._close(route)
        link.partings.clear()

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
        link.tally = self.counts.tallies.join(link.tenant)
        known = self._status.get(link.daemon_id)
        if known is not None and known.instance != link.instance:
            self.counts.census.lost(link.daemon_id)
        self.daemons[link.daemon_id] = link
        self._since[link.daemon_id] = now
        for end, sender in self._ends.take(link.daemon_id):
            self._send_end(link, end, link.backlog.share(sender))
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
            for end, sender in link.ends_under_way():
                self._ends.keep(end, sender)
        for route in list(link.routes.values()):
            if state is DaemonState.GONE and route.to_client.holds_data:
                self._see_off(route)
            else:
                self._unjoin(route)
                route.client.control(route.to_client.number, wire.Away())

    def _see_off(self, route: Route) -> None:
        """Nothing more comes from the daemon: what is under way arrives, and then the client hears so."""
        client, number, daemon_id = route.client, route.to_client.number, route.daemon.daemon_id
        del client.routes[number], route.daemon.routes[route.to_daemon.number]
        route.to_daemon.close()
        for stream, flow in route.flows.items():
            flow.stop() if stream in wire.TO_CLIENT else flow.close()
        client.partings.setdefault(daemon_id, Parting()).routes[number] = route
        route.to_client.finish(wire.Away(), lambda: self._parted(route))
        client.activate(route.to_client)

    def _let_go(self, link: ClientLink, number: int) -> None:
        """It wants nothing more that is under way on the channel, from a daemon that has left."""
        for parting in link.partings.values():
            if number in parting.routes:
                self._parted(parting.routes[number])
                break

    def _parted(self, route: Route) -> None:
        client, daemon_id = route.client, route.daemon.daemon_id
        self._close(route)
        parting = client.partings[daemon_id]
        del parting.routes[route.to_client.number]
        if not parting.routes:
            del client.partings[daemon_id]
            if parting.news is not None:
                tell_news(client, parting.news)

    def daemon_gone(self, daemon_id: str) -> None:
        """An absent daemon is given up for good."""
        status = self._status.get(daemon_id)
        if status is not None and status.state is DaemonState.AWAY:
            self._announce(evolve(status, state=DaemonState.GONE))

    def tell_cloned(self, daemon_id: str, instance: str, about: wire.DaemonDescription) -> None:
        """A daemon came whose state directory and that of another are copies of one."""
        self._publish(wire.DaemonCloned(daemon_id, instance, about))

    def _announce(self, status: wire.DaemonStatus) -> None:
        self.counts.population.moved(self._status.get(status.daemon_id), status)
        if status.state is DaemonState.GONE:
            self.counts.census.lost(status.daemon_id)
        self._status[status.daemon_id] = status
        self._publish(status)

    def _publish(self, news: wire.DaemonStatus | wire.DaemonCloned) -> None:
        for client in self.clients:
            parting = None
            if client.partings and isinstance(news, wire.DaemonStatus):
                parting = client.partings.get(news.daemon_id)
            if parting is None:
                tell_news(client, news)
            else:
                assert isinstance(news, wire.DaemonStatus)
                parting.news = news

    def forget_daemon(self, daemon_id: str) -> None:
        """Nobody asks for this daemon any more: keep nothing of it."""
        self.counts.population.forgotten(self._status.pop(daemon_id, None))
        self._since.pop(daemon_id, None)
        self._ends.take(daemon_id)

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
            self.receive_from_daemon(link, frame)
        else:
            raise LocalProtocolError("a router's link is a client's or a daemon's")

    def _from_client(self, link: ClientLink, frame: Frame) -> None:
        if link.held and self._held.keeps(link, frame):
            return
        if frame.type is not _CONTROL:
            route = self._route(link, frame)
            if route is not None:
                data = wire.decode_data(frame)
                if data.stream not in wire.TO_DAEMON or data.gap_end is not None:
                    raise RemoteProtocolError(f"{data.stream.name} does not flow to the daemon")
                if route.role is wire.Role.VIEWER:
                    raise RemoteProtocolError(f"{data.stream.name} on a channel that only looks on")
                if data.stream is Stream.INPUT:
                    route.traffic.to_daemons += len(data.body)
                self._forward(route, route.daemon, route.to_daemon, frame, data)
            return
        message = wire.decode_control(frame)
        match message:
            case wire.Attach():
                self._attach(link, frame.channel, message)
            case wire.End():
                named = self.meant(link, message)
                if named is not None and self._held.keeps_end(link, frame, named):
                    return
                route = self._route(link, frame) if frame.channel else None
                if route is None:
                    self._let_go(link, frame.channel)
                self._end(link, named, route)
            case wire.Window() | wire.Flush():
                route = self._route(link, frame)
                if route is not None:
                    pass_on(message, route, route.daemon, route.to_daemon, wire.TO_CLIENT)
            case wire.Detach():
                route = self._route(link, frame)
                if route is not None:
                    self._detach(route, message)
                else:
                    self._let_go(link, frame.channel)
            case wire.AskStatistics():
                link.control(
                    0, statistics_for(link.principal, message, self.counts.tallies, self.process)
                )
            case wire.Unknown():
                pass
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a client to send")

    def receive_from_daemon(self, link: DaemonLink, frame: Frame) -> None:
        """As `receive`. Of a superseded link nothing counts any more, though its carrier may still hold a message."""
        if self.daemons.get(link.daemon_id) is not link:
            return
        kind, number, _, _, data = frame
        if number > link.heard:
            self._route(link, frame)  # or it is one that was never opened
            link.heard = number
        if kind is not _CONTROL:
            route = link.routes.get(number) or self._route(link, frame)
            if route is not None:
                data = data or wire.decode_data(frame)
                stream, _, body, _, gap_end = data
                if stream is _EVENTS:
                    self.counts.happened(route.counted, body)
                    if route.job is not None:
                        self._trail.happened(route.job, route.client.actor, body)
                else:
                    route.traffic.to_clients += len(body)
                gap_in_messages = gap_end is not None and stream in wire.MESSAGE_STREAMS
                if stream not in wire.TO_CLIENT or gap_in_messages:
                    raise RemoteProtocolError(f"{stream.name} does not flow to the client")
                client = route.client
                take = client.take
                if take is not None and not client.scheduler.pending:
                    take(route.to_client.number, data)
                    self.dirty.add(client)  # what comes of it is for its shell to see to
                else:  # behind what waits
                    self._forward(route, client, route.to_client, frame, data)
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
        client, queue = route.client, route.to_client
        match message:
            case wire.Window() | wire.Flush():
                pass_on(message, route, client, queue, wire.TO_DAEMON)
                return
            case wire.Attached():
                if route.is_answered:
                    raise RemoteProtocolError("Attached twice on one channel")
                route.is_answered = True
                if route.attaching is not None:
                    route.job = self._trail.attached(*route.attaching, client.actor)
                    route.attaching = None
                elif route.job is not None:
                    self._trail.answered(route.job, message)
                self.counts.answered(route.counted)
                if client.take_attached is not None and not client.scheduler.pending:
                    client.take_attached(queue.number, message)
                    self.dirty.add(client)
                else:
                    client.control(queue.number, metered_attached(message, route))
                return
            case wire.Refused() | wire.Taken():
                if isinstance(message, wire.Refused):
                    self.counts.refused_by_daemon(route.counted, message)
                if isinstance(message, wire.Refused) and route.key is not None:
                    self._trail.refused(route.key, client.actor, message, by="daemon")
                self._unjoin(route)
                for control in queue.take_controls():
                    client.control(queue.number, control)
        passed = wire.readdress(queue.number, by_itself(frame) if route.flows else frame)
        share = route.to_client_share
        if share is not None and not share.has_room(control_size(passed)):
            self._refuse(route)
        else:
            client.schedule(passed, share=share)

    def draw(self, link: ClientLink, number: int, source: SendCursor) -> bool:
        """A client in this process has data of a stream: the daemon's link takes it from there, as it has room.

        So it waits nowhere on its way. False: that channel isn't open, so the frame has to come by `receive`.
        """
        route = link.routes.get(number)
        if route is None:
            return False
        queue, daemon = route.to_daemon, route.daemon
        if queue.source is not source:
            queue.draw_from(source, route.traffic)
        daemon.scheduler.activate_bulk(queue)
        self.dirty.add(daemon)
        return True

    def _route(self, link: RouterLink, frame: Frame) -> Route | None:
        """None: that channel was closed, and this frame was under way; it is no error."""
        if not 0 < frame.channel <= link.last_channel:
            raise RemoteProtocolError(f"frame for channel {frame.channel}, which was never opened")
        return link.routes.get(frame.channel)

    def _forward(
        self, route: Route, link: RouterLink, queue: RelayQueue, frame: Frame, data: wire.Data
    ) -> None:
        if queue.put(frame, data):
            link.activate(queue)
        else:
            self._refuse(route)

    def _refuse(self, route: Route) -> None:
        """More waits for one end than the other may have there: that costs the channel, and nobody anything else.

        Its Attach was passed on, so the job may run, whether that was answered or not.
        """
        number = route.to_client.number
        self._detach(route, wire.Detach())
        route.client.control(number, wire.Refused(RefusedCode.LOST, TOO_MUCH))

    def _leave(self, route: Route) -> None:
        """The client closes the channel: the daemon hears what it had said of acks before."""
        self._unjoin(route)
        for control in route.to_daemon.take_controls():
            route.daemon.control(route.to_daemon.number, control, share=route.to_daemon_share)

    def _detach(self, route: Route, message: wire.Detach) -> None:
        self._leave(route)
        route.daemon.control(route.to_daemon.number, message, share=route.to_daemon_share)

    def _attach(self, link: ClientLink, number: int, message: wire.Attach) -> None:
        if number <= link.last_channel:
            raise RemoteProtocolError(f"Attach on channel {number}, behind {link.last_channel}")
        link.last_channel = number
        if message.cursors:
            streams = {cursor.stream for cursor in message.cursors} & wire.TO_CLIENT
            if len(streams) < len(message.cursors):
                raise RemoteProtocolError(
                    "Attach asks for a stream twice, or for one to the daemon"
                )
        name = link.principal.full_name(message.daemon_id)
        if name is None or name not in self._status:
            self._turn_down_unseen(link, number, message)
            return
        client = link.client or message.client
        if (name, client) != (message.daemon_id, message.client):
            # From here on by its full name, and in that of who says it.
            message = evolve(message, daemon_id=name, client=client)
        refusal = link.principal.refusal(message, client)
        if refusal is not None:
            self.turn_down(link, number, message, refusal)
        elif name not in self.daemons or name in link.partings:
            link.control(number, wire.Away())
        elif link.is_metered and len(link.routes) + len(link.held) >= MAX_ROUTES:
            text = f"a client may have {MAX_ROUTES} jobs open at a time"
            self.turn_down(link, number, message, wire.Refused(RefusedCode.DENIED, text))
        elif (refusal := self._authorise(link, message)) is not None:
            self.turn_down(link, number, message, refusal)
        elif self._held.admits(link, number, message):
            self.open_channel(link, number, message)

    def _turn_down_unseen(self, link: ClientLink, number: int, message: wire.Attach) -> None:
        """A daemon that isn't there, or not for this client: it can't tell which."""
        refused = wire.Refused(RefusedCode.DAEMON_NOT_FOUND, "no such daemon")
        link.control(number, refused)
        self.counts.turned_down(refused)
        if self._audit.is_on:  # as what the client said: of another tenant there is nothing to say
            key = (message.daemon_id, link.principal.tenant, message.job_id)
            self._trail.refused(key, link.actor, refused)

    def open_channel(self, link: ClientLink, number: int, message: wire.Attach) -> None:
        """Pass on an Attach that may be, and that means the daemon by its full name."""
        daemon = self.daemons.get(message.daemon_id)
        if daemon is None or message.daemon_id in link.partings:
            if message.daemon_id in self._status:
                link.control(number, wire.Away())
            else:
                refused = wire.Refused(RefusedCode.DAEMON_NOT_FOUND, "no such daemon")
                self.turn_down(link, number, message, refused)
            return
        route = self._new_route(link, number, daemon, message.role)
        try:
            # In the name the link was authenticated for, and within its limits, whatever the client put there.
            stamped = wire.encode_stamped(
                daemon.last_channel + 1,
                metered_attach(message, route),
                tenant=daemon.tenant,
                principal=link.principal.name,
                limits=self._limits_of(daemon.tenant, message),
                isolation=self._isolation_of(daemon.tenant),
            )
        except LocalProtocolError as error:  # it was within the limit before it was stamped
            self._unjoin(route)
            self.turn_down(link, number, message, wire.Refused(RefusedCode.DENIED, str(error)))
            return
        share = route.to_daemon_share
        if not share.has_room(control_size(stamped)):
            self._unjoin(route)
            self.turn_down(link, number, message, wire.Refused(RefusedCode.DENIED, TOO_MUCH))
            return
        key = message.daemon_id, daemon.tenant, message.job_id
        if self._audit.is_on:
            route.job = self._trail.get(key)
            route.attaching = (key, message) if message.spec is None else None
        route.traffic, route.counted = self.counts.opened(daemon, key, message)
        if message.spec is not None and parse(message.job_id) is None:
            # A chosen id may be used again one day: what ended its last job must not end this one.
            daemon.ends.drop(daemon.tenant, message.job_id)
        daemon.last_channel += 1
        link.routes[number] = route
        daemon.routes[daemon.last_channel] = route
        daemon.schedule(stamped, share=share)

    def turn_down(
        self, link: ClientLink, number: int, message: wire.Attach, refused: wire.Refused
    ) -> None:
        """Tell the client that its Attach is not passed on, and why."""
        link.control(number, refused)
        self.counts.turned_down(refused)
        if self._audit.is_on:
            self._trail.refused(job_key(message), link.actor, refused)

    def _new_route(
        self, link: ClientLink, number: int, daemon: DaemonLink, role: wire.Role
    ) -> Route:
        far = daemon.last_channel + 1
        share = daemon.backlog.share(link.sender)
        if not link.is_metered:
            queues = RelayQueue(number), RelayQueue(far)
            return Route(link, queues[0], daemon, queues[1], UNMETERED, role, None, share)
        its_share = link.backlog.share(daemon.daemon_id)
        flows: dict[wire.Stream, Flow] = {}
        route = Route(
            link,
            MeteredQueue(number, link, flows, its_share),
            daemon,
            MeteredQueue(far, daemon, flows, share),
            flows,
            role,
            its_share,
            share,
        )
        for stream in wire.Stream:
            pool = (daemon if stream in wire.TO_DAEMON else link).pool
            flows[stream] = Flow(stream, pool, link, on_due=lambda flow: self._tell(route, flow))
        return route

    def _tell(self, route: Route, flow: Flow) -> None:
        """The flow's sender may send more."""
        if flow.stream in wire.TO_DAEMON:
            link: RouterLink = route.client
            queue = route.to_client
        else:
            link, queue = route.daemon, route.to_daemon
        queue.put_window(flow.update())
        link.activate(queue)

    def _end(self, link: ClientLink, named: wire.End | None, route: Route | None) -> None:
        number = 0
        if route is not None:
            if named is not None and named.daemon_id == route.daemon.daemon_id:
                number = route.to_daemon.number
                self._leave(route)
            else:  # all that it closes is the channel
                self._detach(route, wire.Detach())
        if named is not None:  # else nobody waits for an answer to it
            self._end_job(link, named, number)

    def meant(self, link: ClientLink, message: wire.End) -> wire.End | None:
        """The End by the full name of its daemon, in its tenant's name; None: it is not for the client to say."""
        client = link.client or message.client
        name = link.principal.full_name(message.daemon_id)
        if name is None or not link.principal.may_end(message.job_id, client):
            return None
        tenant = split_name(name)[0]
        return wire.End(name, message.job_id, message.grace, client, tenant, message.left)

    def end_job(self, link: ClientLink, message: wire.End) -> None:
        """Pass on an End that is none of a channel; or keep it until the daemon is back."""
        self._end(link, self.meant(link, message), None)

    def _end_job(self, link: ClientLink, stamped: wire.End, number: int) -> None:
        if stamped.left is None:
            key = (stamped.daemon_id, stamped.tenant, stamped.job_id)
            self.counts.census.left(key)
            if self._audit.is_on:
                self._trail.stopped(key, link.actor)
        daemon = self.daemons.get(stamped.daemon_id)
        if daemon is None:  # away, or not back yet since this controller was started
            self._ends.keep(stamped, link.sender)
            return
        share = daemon.backlog.share(link.sender)
        if link.is_metered and not share.has_room(control_size(wire.ControlFrame(0, stamped))):
            raise RemoteProtocolError(f"too many Ends for daemon {daemon.daemon_id!r}: {TOO_MUCH}")
        self._send_end(daemon, stamped, share, number)

    def _send_end(
        self, daemon: DaemonLink, message: wire.End, share: Share, number: int = 0
    ) -> None:
        # In its place: a request that follows is not to find a job that was left before it.
        daemon.control(number, message, share=share)
        daemon.remember_end(message, share.sender)

    @property
    def kept_ends(self) -> list[wire.End]:
        """Those for daemons that are away, or not back yet since this controller was started."""
        return [end for end, _ in self._ends.all()]

    @property
    def ends_kept(self) -> int:
        """How many these are."""
        return len(self._ends)

    @property
    def ends_version(self) -> int:
        """Rises whenever `kept_ends` changes."""
        return self._ends.version

    def restore_ends(self, ends: Iterable[wire.End]) -> None:
        """Those that an earlier controller had kept."""
        for end in ends:
            self._ends.keep(end, (end.tenant, end.client))

    def _unjoin(self, route: Route) -> None:
        route.client.routes.pop(route.to_client.number, None)
        route.daemon.routes.pop(route.to_daemon.number, None)
        self._close(route)

    def _close(self, route: Route) -> None:
        close_route(route)
        counted, route.counted = route.counted, None  # once, whoever closes it
        self.counts.closed(counted)
