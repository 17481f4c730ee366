"""The daemon's end of a link: what it says of itself, and its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from sandd._core.job import DaemonLink
from sandd._core.link import Identity, answer_challenge
from sandd._core.pump import Pump

if TYPE_CHECKING:
    from sandd import wire
    from sandd._core.runner import JobRunner
    from sandd._core.transport import Connection


@define
class DaemonEnd:
    """What a daemon's dialer calls for: see `Caller`."""

    identity: Identity
    token: bytes | None
    runner: JobRunner
    _link: DaemonLink | None = None
    _pump: Pump | None = None

    def introduce(self, said: wire.Control | wire.Unknown, connection: int) -> wire.Control:
        """The Hello."""
        return answer_challenge(said, self.identity, connection, self.token)

    def begin(self, connection: Connection, welcome: wire.Welcome) -> Pump:
        """The jobs have a link."""
        link = self._link = DaemonLink()
        pump = self._pump = Pump(
            connection,
            link.scheduler,
            on_frame=lambda frame: self.runner.receive(link, frame),
            heartbeat=welcome.heartbeat,
            dead_after=welcome.dead_after,
            after_message=self.runner.after_message,
            after_pull=self.runner.serve_disk,
        )
        self.runner.add_link(link, pump)
        return pump

    def end(self) -> bool:
        """They have it no more; whether a client has acknowledged anything on it."""
        link, self._link, self._pump = self._link, None, None
        if link is None:
            return False
        self.runner.remove_link(link)
        return link.progressed

    async def tell_all(self) -> None:
        """Send all that jobs still have to tell to those who take it, if a link is live. Bound it."""
        if self._pump is not None:
            await self.runner.told()
        if self._pump is not None:
            await self._pump.drained()
