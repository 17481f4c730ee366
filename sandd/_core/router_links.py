"""The router's links, and the routes that join a channel of one to a channel of another. Sans-IO.

What passes on a route is metered where its client is in another process: the credit in it is lowered to what may come
to wait (see `credit`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from attrs import astuple, define, evolve, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.backlog import Backlog, Share
from sandd._core.credit import CreditPool, Flow
from sandd._core.identity.rights import EVERYTHING, Principal, split_name
from sandd._core.kept_ends import KeptEnds
from sandd._core.metrics.tallies import Tally, Traffic
from sandd._core.relay_queue import UNCOUNTED, RelayQueue
from sandd._core.scheduler import Scheduler
from sandd.wire import OutgoingFrame, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from sandd._core.audit.trail import JobKey, TrackedJob
    from sandd._core.held_requests import Held
    from sandd._core.metrics.job_census import CountedJob

UNMETERED: Final[Mapping[wire.Stream, Flow]] = MappingProxyType({})
"""The flows of a route to a client in this process."""
MAX_ENDS_UNDER_WAY: Final = 1024
"""Ends remembered per daemon link, to be said again after a cut; saying one twice is harmless."""


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
    _pool: CreditPool | None = None
    backlog: Backlog = field(factory=Backlog)
    waiting: int = 0
    """Bytes under way to it over metered routes: the pool and the backlog bound them."""

    @property
    def pool(self) -> CreditPool:
        """What all metered flows towards it share; made with the first of them."""
        if self._pool is None:
            self._pool = CreditPool()
        return self._pool

    def control(
        self,
        channel: int,
        message: wire.Control,
        *,
        late: bool = False,
        share: Share | None = None,
    ) -> None:
        """Queue a control message; `late` and `share` as in `Scheduler.control`."""
        self.schedule(wire.ControlFrame(channel, message), late=late, share=share)

    def schedule(
        self, frame: OutgoingFrame, *, late: bool = False, share: Share | None = None
    ) -> None:
        """Queue a control frame."""
        self.scheduler.control(frame, late=late, share=share)
        self.dirty.add(self)

    def activate(self, queue: RelayQueue) -> None:
        """The queue has something for this link."""
        self.scheduler.activate(queue)
        self.dirty.add(self)


@define(eq=False)
class ClientLink(RouterLink):
    """A link to a client; everything it asks for is asked in this name."""

    principal: Principal = EVERYTHING
    client: str = ""
    """Of one in another process: the only client that it may be; see `Attach`."""
    partings: dict[str, Parting] = field(factory=dict)
    """Daemons that have left for good, of which something is still under way to it."""
    held: dict[int, Held] = field(factory=dict)
    """Channels that wait for the audit log."""
    held_bytes: int = 0
    take: Callable[[int, wire.Data], None] | None = None
    """Takes what flows to a channel of a client in this process, at once; None: it goes through the scheduler."""
    take_attached: Callable[[int, wire.Attached], None] | None = None
    """The same of the answer to its Attach."""
    is_metered: bool = field(init=False)
    """What it grants is passed on within bounds."""
    sender: Hashable = field(init=False)
    """Whose the room is that it takes at daemons: with another connection it has no more of it."""

    @is_metered.default
    def _is_in_another_process(self) -> bool:
        return self.client != ""

    @sender.default
    def _whoever_it_is(self) -> Hashable:
        return astuple(self.principal, recurse=False)  # whose hash takes no function of ours

    @property
    def actor(self) -> str:
        """Who it is, for the audit log."""
        return self.principal.name


@define(eq=False)
class DaemonLink(RouterLink):
    """A link to a live daemon."""

    daemon_id: str = ""
    """Its full name."""
    instance: str = ""
    ends: KeptEnds = field(factory=lambda: KeptEnds(MAX_ENDS_UNDER_WAY))
    """The latest Ends sent on it: should it break, they may not have arrived. Each one's place is the channel that
    was the newest then."""
    heard: int = 0
    """The newest channel that the daemon has said something on: it has all that was sent before that was opened."""
    tally: Tally = field(factory=Tally)
    """Its tenant's."""
    tenant: str = field(init=False)
    """Whose it is, and all its jobs."""

    @tenant.default
    def _first_of_its_name(self) -> str:
        return split_name(self.daemon_id)[0]

    def remember_end(self, end: wire.End, sender: Hashable) -> None:
        """It is being sent."""
        self.ends.heard(self.heard)
        self.ends.keep(end, sender, place=self.last_channel)

    def ends_under_way(self) -> list[tuple[wire.End, Hashable]]:
        """Those sent that may not have arrived, each with who said it."""
        self.ends.heard(self.heard)
        return self.ends.all()


@define(eq=False)
class Parting:
    """A daemon has left for good, and a client has yet to hear the last of it."""

    news: wire.DaemonStatus | None = None
    """What the client is told then: the latest."""
    routes: dict[int, Route] = field(factory=dict)
    """On which something is under way, by the client's channel."""


@define(eq=False)
class Route:
    """One client's channel joined to one daemon's."""

    client: ClientLink
    to_client: RelayQueue
    daemon: DaemonLink
    to_daemon: RelayQueue
    flows: Mapping[wire.Stream, Flow]
    """Of its streams, where it is metered; else none."""
    role: wire.Role
    to_client_share: Share | None
    """The room that the daemon has at the client; None: at one that takes all there is at once."""
    to_daemon_share: Share
    """The room that the client has at the daemon."""
    is_answered: bool = False
    """The daemon has said Attached."""
    job: TrackedJob | None = None
    """What the audit log knows of the job, where there is one."""
    attaching: tuple[JobKey, wire.Attach] | None = None
    """To be told to the audit log when the daemon says that the job is there, whose start is not asked for."""
    counted: CountedJob | None = None
    """The job, where it is one that is counted; see `RouterCounts`."""
    traffic: Traffic = UNCOUNTED
    """Where its bytes are counted."""

    @property
    def key(self) -> JobKey | None:
        """Which job it is about, where there is an audit log that knows of it, or is about to."""
        if self.job is not None:
            return self.job.key
        return None if self.attaching is None else self.attaching[0]


def close_route(route: Route) -> None:
    """Nothing of it is sent any more."""
    route.client.scheduler.discard(route.to_client)
    route.daemon.scheduler.discard(route.to_daemon)
    if route.flows:
        route.to_client.close()
        route.to_daemon.close()
        for flow in route.flows.values():
            flow.close()


def metered_attach(message: wire.Attach, route: Route) -> wire.Attach:
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


def pass_on(
    message: wire.Window | wire.Flush,
    route: Route,
    link: RouterLink,
    queue: RelayQueue,
    streams: frozenset[Stream],
) -> None:
    """Take it to the other end of the route, with as much credit for `streams` as may be passed on."""
    if isinstance(message, wire.Flush):
        queue.put_flush(message)
    else:
        flows = route.flows
        if flows and any(entry.stream not in streams for entry in message.streams):
            raise RemoteProtocolError("credit for a stream that flows the other way")
        for entry in message.streams:
            if flows:
                granted = flows[entry.stream].want(entry.max_offset, entry.ack)
                entry = wire.StreamWindow(entry.stream, entry.ack, granted)
            queue.put_window(entry)
    link.activate(queue)


def metered_attached(message: wire.Attached, route: Route) -> wire.Attached:
    """The answer with as much credit as may be passed on."""
    flows = route.flows
    if not flows:
        return message
    states = []
    for state in message.streams:
        flow = flows[state.stream]
        if state.stream in wire.TO_DAEMON:
            flow.place(state.received)
            state = evolve(state, max_offset=flow.want(state.max_offset))
        else:
            flow.place(state.start, by_sender=True)
        states.append(state)
    return evolve(message, streams=tuple(states))


def tell_news(link: ClientLink, news: wire.DaemonStatus | wire.DaemonCloned) -> None:
    """What became of a daemon, to a client that may see it, by the name that it knows."""
    shown = link.principal.shown(news.daemon_id)
    if shown is not None:
        link.control(0, news if shown == news.daemon_id else evolve(news, daemon_id=shown))
