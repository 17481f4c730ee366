"""The agent in the controller's own process: a client like any other, over a link that stays in memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.identity.rights import EVERYTHING
from sandd._core.job_link import JobHandle, JobLink
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.client_job import ClientJob
    from sandd._core.directory import Directory
    from sandd._core.identity.rights import Principal
    from sandd._core.router import Router

Said = TypeVar("Said")

# Bound here because looking it up by its class costs as much as a function call (Python 3.11).
_INPUT: Final = Stream.INPUT


class LocalLink(JobLink):
    """Carries frames between the client and the router, and has the router's other links send theirs."""

    def __init__(
        self,
        router: Router,
        directory: Directory,
        principal: Principal = EVERYTHING,
        *,
        audit: AuditSink = NO_AUDIT,
    ) -> None:
        super().__init__(directory)
        self.audit = audit
        self._router = router
        self._link = router.add_client(principal=principal)
        self.actor = self._link.actor
        self._flushing = False
        self._changed: set[JobHandle] = set()
        """Those that what was taken has changed: to be updated by `flush`."""
        self._link.take = partial(self._take, self.client.receive_data)
        self._link.take_attached = partial(self._take, self.client.receive_attached)

    @trio.lowlevel.enable_ki_protection
    def flush(self, *, late: bool = False) -> None:
        """Carry frames both ways until nothing is left, then wake whoever else the router has something for."""
        if self._flushing:
            return  # called from inside the loop below, which goes on until all is quiet
        self._flushing = True
        changed = self._changed
        try:
            ours, theirs = self.client.scheduler, self._link.scheduler
            while True:
                # Once for all the frames of a job, and before the next round: sinks consume.
                while changed:
                    changed.pop().update()
                if ours.pressing or (late and ours.pending):
                    for frame in ours.next_frames(late=late):
                        self._router.receive(self._link, wire.as_frame(frame))
                elif not theirs.pending:
                    break
                if theirs.pending:
                    for frame in theirs.next_frames():
                        self.deliver(wire.as_frame(frame), changed)
        finally:
            self._flushing = False
        self._router.wake_carriers()

    def _take(
        self, receive: Callable[[int, Said], ClientJob | None], channel: int, said: Said
    ) -> None:
        """Have the client receive what the router hands over as it comes, without a frame around it."""
        try:
            job = receive(channel, said)
        except RemoteProtocolError as error:
            job = self.client.job_on(channel)
            self._spoil(channel, job, error)
        if job is not None and (handle := self._handles.get(job)) is not None:
            self._changed.add(handle)

    @trio.lowlevel.enable_ki_protection
    def has_input(self, job: ClientJob) -> None:
        """The daemon's link takes it from where it is; no frame of it goes through the client's scheduler."""
        channel = job.channel
        source = None if channel is None else channel.send.get(_INPUT)
        if channel is None or source is None:
            return  # it goes out when the job has one; who only looks on has none
        if self._router.draw(self._link, channel.number, source):
            self._router.wake_carriers()
        else:
            self.changed(job)

    def blame(self, channel: int, job: ClientJob | None, error: RemoteProtocolError) -> None:
        """The daemon behind the channel has: its link is over."""
        route = self._link.routes.get(channel)
        if route is not None and route.daemon.carrier is not None:
            route.daemon.carrier.close(f"it broke the protocol: {error}")

    def abandon(self) -> None:
        """Forget what is left, and wake everybody."""
        super().abandon()
        self._router.remove_client(self._link)
