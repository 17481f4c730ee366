"""A client's link to a controller in another process, over all the cuts of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from sandd._core.identity.introductions import answer_as_operator
from sandd._core.identity.tokens import Token, client_prefix
from sandd._core.job_link import JobHandle, JobLink
from sandd._core.pump import Pump

if TYPE_CHECKING:
    from sandd import wire
    from sandd._core._errors import RemoteProtocolError
    from sandd._core.client_job import ClientJob
    from sandd._core.directory import Directory
    from sandd._core.identity.proofs import Credential
    from sandd._core.transport import Connection

LOOK_SECONDS: Final = 60.0
"""How often daemons that are away are looked at: they may be, for a day."""


class RemoteLink(JobLink):
    """What a remote client's dialer calls for: see `Caller`. A cut costs its jobs their channels, and nothing else."""

    def __init__(self, directory: Directory, *, credential: Credential | None, name: str) -> None:
        prefix = client_prefix(credential.key_id) if isinstance(credential, Token) else ""
        super().__init__(directory, prefix)
        self._credential = credential
        self._name = name
        self._pump: Pump | None = None
        self._changed: set[JobHandle] = set()
        self._progressed = False
        self.bytes_received = 0
        """On links that have ended; `statistics` adds the live one."""
        self.bytes_sent = 0

    # -- for the dialer

    def introduce(
        self, said: wire.Control | wire.Unknown, connection: int, channel_binding: bytes
    ) -> wire.Control:
        """The OperatorHello."""
        return answer_as_operator(
            *(said, self.client.id, connection, self._name, self._credential, channel_binding)
        )

    def has_another_credential(self) -> bool:
        """Never."""
        return False

    async def welcomed(self, welcome: wire.Welcome) -> None:
        """Nothing in it is to be kept."""

    def begin(self, connection: Connection, welcome: wire.Welcome) -> Pump:
        """There is a link; jobs attach as soon as it has told which daemons are online."""
        self._progressed = False
        self._pump = Pump(
            connection,
            self.client.scheduler,
            on_frame=self._take,
            heartbeat=welcome.heartbeat,
            dead_after=welcome.dead_after,
            after_message=self._settle,
        )
        return self._pump

    def end(self) -> bool:
        """There is none any more: for us, all daemons are away. Whether any job heard of itself meanwhile."""
        if self._pump is not None:
            self.bytes_received += self._pump.bytes_received
            self.bytes_sent += self._pump.bytes_sent
            self._pump = None
        self.directory.lose_sight()
        self.update(self.client.link_down())
        return self._progressed

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes received and sent so far."""
        received, sent = self.bytes_received, self.bytes_sent
        if self._pump is not None:
            received += self._pump.bytes_received
            sent += self._pump.bytes_sent
        return received, sent

    # -- for the client

    @trio.lowlevel.enable_ki_protection
    def flush(self, *, late: bool = False) -> None:
        """Send what the client has to send, as soon as there is a link."""
        scheduler = self.client.scheduler
        if self._pump is not None and (scheduler.pressing or (late and scheduler.pending)):
            self._pump.wake()

    def blame(self, channel: int, job: ClientJob | None, error: RemoteProtocolError) -> None:
        """Of a job, its daemon has; and the controller passes on what daemons say. Else the controller has."""
        if job is None:
            raise error

    async def look_after(self) -> None:
        """Give up daemons that have been away for too long; as long as the client lives."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            for status in self.directory.expired():
                self.update(self.client.hear(status))

    def _take(self, frame: wire.Frame) -> None:
        if frame.channel:
            self._progressed = True
        self.deliver(frame, self._changed)

    def _settle(self) -> None:
        while self._changed:
            self._changed.pop().update()
        self.flush()
